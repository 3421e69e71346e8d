/**
 * npm run bench [-- RUNS]: medians and ratios, side by side in one run. Machines are noisy, so the variants
 * take turns. Everything runs against the stand-in for the forge.
 */
import { readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { playFile, STAND_IN_TOKEN, startForge } from "../fixtures/forge.ts";
import { makeBundle, ROOT, runCommand, SCRATCH, TSX } from "./run-command.mjs";

const runs = Number(process.argv[2] ?? 15);
const providers = join(ROOT, "fixtures/providers.yaml");
let canonical = readFileSync(providers);
const forge = await startForge(playFile(() => canonical));
const bundle = await makeBundle();

function scratchFile(name, content) {
  writeFileSync(join(SCRATCH, name), content);
  return join(SCRATCH, name);
}

async function measure({ name, command, env, exitCode }) {
  const ran = await runCommand(command, env);
  if (ran.exitCode === exitCode) return ran;
  throw new Error(`${name} ended with ${ran.exitCode}, not ${exitCode}:\n${ran.stdout}${ran.stderr}`);
}

const median = (numbers) => numbers.toSorted((a, b) => a - b)[Math.floor(numbers.length / 2)];

const fetching = {
  AUTO_SYNC_TOKEN: STAND_IN_TOKEN,
  SYNC_CANONICAL_SERVER: forge.url,
  SYNC_MAX_BYTES: String(2 ** 30),
};
const node = process.execPath;
const bare = { name: "bare node", command: [node, "-e", "0"], exitCode: 0 };
const empty = {
  name: "empty file under tsx",
  command: [node, TSX, scratchFile("empty.ts", "")],
  exitCode: 0,
};
const shellStep = `set -e
curl -sSf -H "Authorization: token $AUTO_SYNC_TOKEN" -o "$HOME/curled" \\
  "$SYNC_CANONICAL_SERVER/api/v1/repos/o/n/raw/x?ref=main"
diff "$HOME/curled" fixtures/providers.yaml`;

/** The gate, started one way, without a token and in sync; `to` is what it is compared with. */
function gate(way, command, { to, most }) {
  const args = ["--event-name", "push"];
  return [
    { name: `token missing, ${way}`, command: [...command, ...args], exitCode: 1, to },
    {
      name: `in sync, ${way}`,
      command: [...command, ...args, "--copy", providers],
      env: fetching,
      exitCode: 0,
      to,
      most,
    },
  ];
}

const source = join(ROOT, "sync-providers.ts");
const runsAsItIs = process.features.typescript === "strip" || process.features.typescript === "transform";
const variants = [
  bare,
  empty,
  ...gate("tsx", [node, TSX, source], { to: empty, most: 1.5 }),
  ...gate("bundle", [node, bundle], { to: bare, most: 3.5 }),
  ...(runsAsItIs ? gate("node as it is", [node, source], { to: bare }) : []),
  {
    name: "the shell step (curl and diff)",
    command: ["sh", "-c", shellStep],
    env: fetching,
    exitCode: 0,
    to: bare,
  },
];

const times = new Map(variants.map((variant) => [variant, []]));
for (let round = 0; round <= runs; round += 1) {
  for (const variant of variants) {
    const { ms } = await measure(variant);
    // The first round only warms the caches.
    if (round > 0) times.get(variant).push(ms);
  }
}
const { length } = readFileSync(bundle);
console.log(`node ${process.version}, ${runs} runs each, medians; the bundle has ${length} bytes\n`);
console.log("| what | ms | ratio | at most |\n| --- | --- | --- | --- |");
for (const variant of variants) {
  const { name, to, most = "" } = variant;
  const ms = median(times.get(variant));
  const ratio = to === undefined ? "" : `${(ms / median(times.get(to))).toFixed(2)} of ${to.name}`;
  console.log(`| ${name} | ${ms.toFixed(0)} | ${ratio} | ${most} |`);
}

const print = 'process.on("exit", () => console.error(`peak ${process.resourceUsage().maxRSS}`));';
const peak = scratchFile("peak.mjs", print);
console.log(
  "\nThe bundle, peak of memory and how many times the file that is (in sync, 100 MB: at most 3.5)\n",
);
console.log("| file | in sync | one line changed | unrelated |\n| --- | --- | --- | --- |");
for (const megabytes of [1, 10, 100]) {
  const lines = (letter) => {
    const line = `${letter.repeat(61)}:\n`;
    return Buffer.from(line.repeat(Math.floor((megabytes * 1e6) / line.length)));
  };
  canonical = lines("a");
  const changed = Buffer.from(canonical);
  changed[changed.length - 10] = 0x62;
  const cells = [];
  for (const [name, bytes] of Object.entries({ same: canonical, changed, unrelated: lines("b") })) {
    const args = ["--event-name", "push", "--copy", scratchFile("copy.yaml", bytes)];
    const command = [node, "--import", peak, bundle, ...args];
    const ran = [];
    for (let round = 0; round < 3; round += 1) {
      ran.push(await measure({ name, command, env: fetching, exitCode: name === "same" ? 0 : 1 }));
    }
    const mb = median(ran.map(({ stderr }) => Number(/peak (\d+)/.exec(stderr)?.[1]) * 1024)) / 1e6;
    const ms = median(ran.map((one) => one.ms)).toFixed(0);
    cells.push(`${ms} ms, ${mb.toFixed(0)} MB (${(mb / megabytes).toFixed(2)})`);
  }
  console.log(`| ${megabytes} MB | ${cells.join(" | ")} |`);
}

await forge.close();
rmSync(SCRATCH, { recursive: true });
