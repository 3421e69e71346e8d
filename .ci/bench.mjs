/**
 * npm run bench [-- RUNS]: medians and ratios, side by side in one run, as machines are noisy: the variants take
 * turns. Everything runs against a stand-in on the loopback.
 */
import { spawn } from "node:child_process";
import { createHash } from "node:crypto";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { createServer } from "node:http";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";

const root = fileURLToPath(new URL("..", import.meta.url));
const runs = Number(process.argv[2] ?? 15);
const scratch = mkdtempSync(join(tmpdir(), "sync-providers-bench-"));
const file = (name, content) => {
  writeFileSync(join(scratch, name), content);
  return join(scratch, name);
};

let canonical = Buffer.alloc(0);
const server = createServer((request, response) => {
  if (request.url.includes("/git/commits/")) return response.end(JSON.stringify({ sha: "a".repeat(40) }));
  const etag = createHash("sha1").update(`blob ${canonical.length}\0`).update(canonical).digest("hex");
  response.writeHead(200, { "content-type": "text/plain", "content-length": canonical.length, etag: `"${etag}"` });
  response.end(canonical);
});
await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
const url = `http://127.0.0.1:${server.address().port}`;

/** Runs a command; its milliseconds, its peak of memory in MB where a preload prints it, and its exit code. */
function run([command, ...args], env = {}) {
  return new Promise((resolve) => {
    const started = performance.now();
    const child = spawn(command, args, { cwd: root, env: { PATH: process.env.PATH, HOME: scratch, ...env } });
    let said = "";
    child.stderr.on("data", (chunk) => (said += chunk));
    child.stdout.resume();
    child.on("close", (code) => {
      const peak = /peak (\d+)/.exec(said)?.[1];
      resolve({ ms: performance.now() - started, mb: Number(peak) / 1024, code });
    });
  });
}

const median = (numbers) => numbers.toSorted((a, b) => a - b)[Math.floor(numbers.length / 2)];

await run([process.execPath, ".ci/bundle.mjs", scratch]);
const bundle = join(scratch, "sync-providers.mjs");
const tsx = [process.execPath, fileURLToPath(import.meta.resolve("tsx/cli"))];
const providers = join(root, "fixtures/providers.yaml");
const fetching = { AUTO_SYNC_TOKEN: "token-of-the-bench", SYNC_CANONICAL_SERVER: url, SYNC_MAX_BYTES: String(2 ** 30) };
const gate = join(root, "sync-providers.ts");
const inSync = ["--event-name", "push", "--copy", providers];
const missing = ["--event-name", "push"];
const shell = 'curl -sSf -H "Authorization: token $AUTO_SYNC_TOKEN" -o "$HOME/curled" "$SYNC_CANONICAL_SERVER/api/v1/repos/o/n/raw/x?ref=main" && diff "$HOME/curled" fixtures/providers.yaml';
const runsAsItIs = process.features.typescript === "strip" || process.features.typescript === "transform";

const variants = [
  { name: "bare node", command: [process.execPath, "-e", "0"], code: 0 },
  { name: "empty file under tsx", command: [...tsx, file("empty.ts", "")], code: 0 },
  { name: "token missing under tsx", command: [...tsx, gate, ...missing], code: 1, to: "empty file under tsx" },
  { name: "in sync under tsx", command: [...tsx, gate, ...inSync], env: fetching, code: 0, to: "empty file under tsx" },
  { name: "token missing, bundle", command: [process.execPath, bundle, ...missing], code: 1, to: "bare node" },
  { name: "in sync, bundle", command: [process.execPath, bundle, ...inSync], env: fetching, code: 0, to: "bare node" },
  ...(runsAsItIs
    ? [
        { name: "token missing, node as it is", command: [process.execPath, gate, ...missing], code: 1, to: "bare node" },
        { name: "in sync, node as it is", command: [process.execPath, gate, ...inSync], env: fetching, code: 0, to: "bare node" },
      ]
    : []),
  { name: "the shell step (curl and diff)", command: ["sh", "-c", shell], env: fetching, code: 0, to: "bare node" },
];

const { readFileSync } = await import("node:fs");
canonical = readFileSync(providers);
const times = new Map(variants.map(({ name }) => [name, []]));
for (let round = 0; round <= runs; round += 1) {
  for (const { name, command, env, code } of variants) {
    const ran = await run(command, env);
    if (ran.code !== code) throw new Error(`${name} ended with ${ran.code}, not ${code}`);
    // The first round only warms the caches.
    if (round > 0) times.get(name).push(ran.ms);
  }
}
console.log(`node ${process.version}, ${runs} runs each, medians\n`);
console.log("| what | ms | ratio |\n| --- | --- | --- |");
for (const { name, to } of variants) {
  const ms = median(times.get(name));
  console.log(`| ${name} | ${ms.toFixed(0)} | ${to === undefined ? "" : `${(ms / median(times.get(to))).toFixed(2)} of ${to}`} |`);
}

const peak = file("peak.mjs", 'process.on("exit", () => console.error(`peak ${process.resourceUsage().maxRSS}`));');
console.log("\n| file | in sync | one line changed | unrelated |\n| --- | --- | --- | --- |");
for (const megabytes of [1, 10, 100]) {
  const lines = (letter) => {
    const line = `${letter.repeat(61)}:\n`;
    return Buffer.from(line.repeat(Math.floor((megabytes * 1e6) / line.length)));
  };
  canonical = lines("a");
  const changed = Buffer.from(canonical);
  changed[changed.length - 10] = 0x62;
  const copies = { same: canonical, changed, unrelated: lines("b") };
  const cells = [];
  for (const [kind, bytes] of Object.entries(copies)) {
    const copy = file("copy.yaml", bytes);
    const ran = [];
    for (let round = 0; round < 3; round += 1) {
      ran.push(await run([process.execPath, "--import", peak, bundle, "--event-name", "push", "--copy", copy], fetching));
    }
    if (ran.some(({ code }) => code !== (kind === "same" ? 0 : 1))) throw new Error(`${kind} ended with ${ran[0].code}`);
    cells.push(`${median(ran.map(({ ms }) => ms)).toFixed(0)} ms, ${median(ran.map(({ mb }) => mb)).toFixed(0)} MB`);
  }
  console.log(`| ${megabytes} MB | ${cells.join(" | ")} |`);
}

server.close();
server.closeAllConnections();
rmSync(scratch, { recursive: true });
