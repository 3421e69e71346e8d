/**
 * npm run bundle [-- FOLDER]: the whole gate in one file that runs with node alone, into dist/ or the folder.
 * Prints its size and its sha256; the same sources and packages give the same bytes.
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
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";

const root = fileURLToPath(new URL("..", import.meta.url));
const [folder = join(root, "dist")] = process.argv.slice(2);
const outfile = join(folder, "sync-providers.mjs");
const licences = `${outfile}.LEGAL.txt`;
const lock = JSON.parse(readFileSync(join(root, "package-lock.json"), "utf8"));
const names = ["undici", "p-retry", "is-network-error", "diff", "yaml"];
const parts = names.map((name) => `${name} ${lock.packages[`node_modules/${name}`].version}`).join(", ");

/**
 * The files of undici's lib/ that the bundle leaves out, with whatever only they import. The gate asks for
 * two small answers by HTTP/1.1, at most through a proxy, and loading all of undici is most of its run.
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

/** What stands in the place of those files, where nothing at all would not do. */
const STAND_INS = {
  // undici makes one of these when it is loaded.
  "web/cache/cachestorage.js": "exports.CacheStorage = class {};",
  // The parser for machines without SIMD: asked for where the other one failed, or by UNDICI_NO_WASM_SIMD.
  "llhttp/llhttp-wasm.js":
    'throw new Error("The bundle needs WebAssembly SIMD; sync-providers.ts does not");',
};

/** node's own makes its message by parsing the source, which takes seconds in a file of one line. */
const ASSERT = `module.exports = (value, message = "the assertion does not hold") => {
  if (!value) throw Object.assign(new Error(message), { code: "ERR_ASSERTION" });
};`;

const leaveOut = {
  name: "leave-out",
  setup({ onEnd, onLoad, onResolve }) {
    const lib = join(root, "node_modules/undici/lib");
    const met = new Set();
    onLoad({ filter: /[/\\]undici[/\\]lib[/\\]/ }, ({ path }) => {
      const [, name] = path.replaceAll("\\", "/").split("/undici/lib/");
      if (!LEFT_OUT.includes(name)) return undefined;
      met.add(name);
      return { contents: STAND_INS[name] ?? "" };
    });
    onResolve({ filter: /^node:assert$/ }, () => ({ path: "assert", namespace: "stand-in" }));
    onLoad({ filter: /./, namespace: "stand-in" }, () => ({ contents: ASSERT }));
    onEnd(() => {
      const lost = LEFT_OUT.filter((name) => !met.has(name));
      const why = (name) => (existsSync(join(lib, name)) ? "nothing imports it" : "there is no such file");
      return { errors: lost.map((name) => ({ text: `Cannot leave out undici/lib/${name}: ${why(name)}` })) };
    });
  },
};

const where = "their licences are in sync-providers.mjs.LEGAL.txt and in the registry";
const notice = `// sync-providers ${lock.version}, with ${parts}: ${where}.`;
// undici asks for node's modules by require(), which a module has not.
const require = 'import{createRequire}from"node:module";const require=createRequire(import.meta.url);';

const { outputFiles } = await build({
  absWorkingDir: root,
  entryPoints: ["sync-providers.ts"],
  outfile,
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
  // A name with an umlaut in a licence would make the whole file two bytes a character, and slower to load.
  legalComments: "external",
  logLevel: "warning",
  banner: { js: `${notice}\n${require}` },
});

mkdirSync(folder, { recursive: true });
rmSync(licences, { force: true });
for (const { path, contents } of outputFiles) writeFileSync(path, contents);
// Beside the comments that esbuild found in the files.
for (const name of names) {
  const home = join(root, "node_modules", name);
  const text = readdirSync(home)
    .filter((file) => /^licen[cs]e/i.test(file))
    .map((file) => readFileSync(join(home, file), "utf8"));
  if (text.length === 0) throw new Error(`${name} has no licence`);
  appendFileSync(licences, `${name}\n\n${text.join("\n")}\n`);
}

const bytes = readFileSync(outfile);
console.log(`${createHash("sha256").update(bytes).digest("hex")}  ${outfile}  ${bytes.length} bytes`);
