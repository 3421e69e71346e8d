/**
 * npm run bundle [-- FOLDER]: the whole gate in one file that runs with node alone, into dist/ or the folder.
 * Prints its size and its sha256; the same sources and packages give the same bytes.
 */
import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";

const root = fileURLToPath(new URL("..", import.meta.url));
const [folder = join(root, "dist")] = process.argv.slice(2);
const outfile = join(folder, "sync-providers.mjs");
const lock = JSON.parse(readFileSync(join(root, "package-lock.json"), "utf8"));
const names = ["undici", "p-retry", "is-network-error", "diff", "yaml"];
const parts = names.map((name) => `${name} ${lock.packages[`node_modules/${name}`].version}`).join(", ");

await build({
  absWorkingDir: root,
  entryPoints: ["sync-providers.ts"],
  outfile,
  bundle: true,
  minify: true,
  platform: "node",
  format: "esm",
  target: "node20.18",
  sourcemap: "external",
  // A name with an umlaut in a licence would make the whole file two bytes a character, and slower to load.
  legalComments: "external",
  logLevel: "warning",
  // undici asks for node's modules by require(), which a module has not.
  banner: {
    js: `// sync-providers ${lock.version}, with ${parts}: their licences are in sync-providers.mjs.LEGAL.txt and in the registry.\nimport{createRequire}from"node:module";const require=createRequire(import.meta.url);`,
  },
});

const bytes = readFileSync(outfile);
console.log(`${createHash("sha256").update(bytes).digest("hex")}  ${outfile}  ${bytes.length} bytes`);
