/**
 * npm run bundle [-- FOLDER]: the whole gate in one file that runs with node alone, in dist/ or in the folder.
 * Prints its sha256 and its size. The same sources and packages give the same bytes.
 */

import { createHash } from "node:crypto";
import {
  appendFileSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { join, resolve } from "node:path";
import { fileURLToPath } from "node:url";
import { build, type Plugin } from "esbuild";

const ROOT = fileURLToPath(new URL("..", import.meta.url));
const FOLDER = resolve(process.argv[2] ?? join(ROOT, "dist"));
const OUTFILE = join(FOLDER, "sync-providers.mjs");
const LICENCES = `${OUTFILE}.LEGAL.txt`;
const PACKAGES = ["undici", "diff", "yaml"];

/**
 * The files of undici's lib/ that the bundle leaves out, with what only they import. The gate sends a few small
 * requests by HTTP/1.1, and loading all of undici would take most of its time.
 */
const LEFT_OUT = [
  "api/api-pipeline.js",
  "api/api-stream.js",
  "api/api-upgrade.js",
  "cache/memory-cache-store.js",
  "cache/sqlite-cache-store.js",
  "dispatcher/balanced-pool.js",
  "dispatcher/client-h2.js",
  "dispatcher/h2c-client.js",
  "dispatcher/retry-agent.js",
  "dispatcher/round-robin-pool.js",
  "dispatcher/socks5-proxy-agent.js",
  "global.js",
  "handler/decorator-handler.js",
  "handler/redirect-handler.js",
  "handler/retry-handler.js",
  "interceptor/cache.js",
  "interceptor/decompress.js",
  "interceptor/deduplicate.js",
  "interceptor/dns.js",
  "interceptor/dump.js",
  "interceptor/redirect.js",
  "interceptor/response-error.js",
  "interceptor/retry.js",
  "llhttp/llhttp-wasm.js",
  "mock/mock-agent.js",
  "mock/mock-call-history.js",
  "mock/mock-client.js",
  "mock/mock-errors.js",
  "mock/mock-pool.js",
  "mock/snapshot-agent.js",
  "web/cache/cachestorage.js",
  "web/cookies/index.js",
  "web/eventsource/eventsource.js",
  "web/fetch/body.js",
  "web/fetch/data-url.js",
  "web/fetch/formdata.js",
  "web/fetch/global.js",
  "web/fetch/headers.js",
  "web/fetch/index.js",
  "web/fetch/request.js",
  "web/fetch/response.js",
  "web/websocket/events.js",
  "web/websocket/stream/websocketerror.js",
  "web/websocket/stream/websocketstream.js",
  "web/websocket/websocket.js",
];

/** What replaces those files, if an empty file is not enough. */
const REPLACEMENTS = new Map([
  // undici creates one of these when it is loaded.
  ["web/cache/cachestorage.js", "exports.CacheStorage = class {};"],
  // The parser for machines without SIMD. It is used if the other one fails, or with UNDICI_NO_WASM_SIMD.
  [
    "llhttp/llhttp-wasm.js",
    'throw new Error("The bundle needs WebAssembly SIMD; sync-providers.ts does not");',
  ],
]);

/** Node's assert parses the source to write its message, which takes seconds in a file of one line. */
const ASSERT = `module.exports = (value, message = "the assertion does not hold") => {
  if (!value) {
    throw Object.assign(new Error(message), { code: "ERR_ASSERTION" });
  }
};`;

/** Leaves the files out. The build fails if one of them is gone, or if nothing imports it any more. */
const leaveOut: Plugin = {
  name: "leave-out",
  setup({ onEnd, onLoad, onResolve }) {
    const lib = join(ROOT, "node_modules/undici/lib");
    const imported = new Set<string>();
    onLoad({ filter: /[/\\]undici[/\\]lib[/\\]/ }, ({ path }) => {
      const name = path.replaceAll("\\", "/").split("/undici/lib/")[1] ?? "";
      if (!LEFT_OUT.includes(name)) {
        return undefined;
      }
      imported.add(name);
      return { contents: REPLACEMENTS.get(name) ?? "" };
    });
    onResolve({ filter: /^node:assert$/ }, () => ({ path: "assert", namespace: "replacement" }));
    onLoad({ filter: /./, namespace: "replacement" }, () => ({ contents: ASSERT }));
    onEnd(() => {
      const errors: { text: string }[] = [];
      for (const name of LEFT_OUT) {
        if (!imported.has(name)) {
          const why = existsSync(join(lib, name)) ? "nothing imports it" : "there is no such file";
          errors.push({ text: `Cannot leave out undici/lib/${name}: ${why}` });
        }
      }
      return { errors };
    });
  },
};

/** The version of a package in the lock file, or of this project for the empty name. */
function versionOf(name: string): string {
  const lock = JSON.parse(readFileSync(join(ROOT, "package-lock.json"), "utf8"));
  return lock.packages[name === "" ? "" : `node_modules/${name}`].version;
}

function licenceOf(name: string): string {
  const folder = join(ROOT, "node_modules", name);
  const files = readdirSync(folder).filter((file) => /^licen[cs]e/i.test(file));
  if (files.length === 0) {
    throw new Error(`${name} has no licence`);
  }
  return files.map((file) => readFileSync(join(folder, file), "utf8")).join("\n");
}

const contents = PACKAGES.map((name) => `${name} ${versionOf(name)}`).join(", ");
const licencePlace = "their licences are in sync-providers.mjs.LEGAL.txt and in the registry";
const notice = `// sync-providers ${versionOf("")}, with ${contents}: ${licencePlace}.`;
// undici loads Node's modules with require(), which an ES module does not have.
const require = 'import{createRequire}from"node:module";const require=createRequire(import.meta.url);';

const { outputFiles } = await build({
  absWorkingDir: ROOT,
  entryPoints: ["sync-providers.ts"],
  outfile: OUTFILE,
  write: false,
  bundle: true,
  minify: true,
  platform: "node",
  format: "esm",
  target: "node20.18",
  plugins: [leaveOut],
  // Its index also exports a dozen other kinds of diff.
  alias: { diff: "diff/lib/patch/create.js" },
  sourcemap: "external",
  // An umlaut in a licence would make the whole file two bytes a character, and slower to load.
  legalComments: "external",
  logLevel: "warning",
  banner: { js: `${notice}\n${require}` },
});

mkdirSync(FOLDER, { recursive: true });
rmSync(LICENCES, { force: true });
for (const { path, contents: bytes } of outputFiles) {
  writeFileSync(path, bytes);
}
// esbuild writes the comments that it found in the files; the licences of the packages come after them.
for (const name of PACKAGES) {
  appendFileSync(LICENCES, `${name}\n\n${licenceOf(name)}\n`);
}

const bundle = readFileSync(OUTFILE);
console.log(`${createHash("sha256").update(bundle).digest("hex")}  ${OUTFILE}  ${bundle.length} bytes`);
