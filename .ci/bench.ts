/**
 * npm run bench [-- RUNS]: medians and ratios, measured side by side. Machines are noisy, so the variants take
 * turns. Everything runs against the Gitea stand-in.
 */

import { readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { CANONICAL_BYTES, CANONICAL_TOKEN, COMMIT, ROOT } from "../fixtures/contents.ts";
import { type CommandRun, runCommand, TSX } from "../fixtures/gate-runner.ts";
import { respondWithFile, respondWithJson, startGitea } from "../fixtures/gitea-server.ts";
import { makeBundle, SCRATCH } from "./scratch.ts";

interface Variant {
  readonly name: string;
  readonly command: readonly string[];
  readonly env?: Readonly<Record<string, string>>;
  readonly exitCode: number;
  /** What the time is compared with. */
  readonly base?: Variant;
  /** The aim for the ratio. */
  readonly atMost?: number;
}

const RUNS = Number(process.argv[2] ?? 15);
const NODE = process.execPath;
const SOURCE = join(ROOT, "sync-providers.ts");
const COPY = join(SCRATCH, "copy.yaml");

let canonical: Buffer = CANONICAL_BYTES;
const server = await startGitea({
  repository: respondWithJson(200, { archived: false }),
  commit: respondWithJson(200, { sha: COMMIT }),
  file: (socket, request) => respondWithFile(canonical)(socket, request),
});
const bundle = await makeBundle();

function scratchFile(name: string, content: string | Buffer): string {
  const path = join(SCRATCH, name);
  writeFileSync(path, content);
  return path;
}

/** Runs a command. Throws if it ends in another way than expected. */
async function measure({
  name,
  command,
  env = {},
  exitCode,
}: Variant): Promise<{ ms: number; run: CommandRun }> {
  const startedAt = performance.now();
  const run = await runCommand(command, env);
  const ms = performance.now() - startedAt;
  if (run.exitCode !== exitCode) {
    throw new Error(`${name} ended with ${run.exitCode}, not ${exitCode}:\n${run.stdout}${run.stderr}`);
  }
  return { ms, run };
}

function medianOf(numbers: readonly number[]): number {
  const sorted = [...numbers].sort((a, b) => a - b);
  return sorted[Math.floor(sorted.length / 2)] ?? Number.NaN;
}

const fetchEnv = {
  AUTO_SYNC_TOKEN: CANONICAL_TOKEN,
  SYNC_CANONICAL_SERVER: server.url,
  SYNC_MAX_BYTES: String(2 ** 30),
};
const bareNode: Variant = { name: "bare node", command: [NODE, "-e", "0"], exitCode: 0 };
const emptyFile: Variant = {
  name: "empty file under tsx",
  command: [NODE, TSX, scratchFile("empty.ts", "")],
  exitCode: 0,
};

/** The gate started in one way, without a token and in sync. */
function variantsOf(way: string, command: readonly string[], aim: Pick<Variant, "base">): Variant[] {
  const limits = new Map([
    ["tsx", { missing: 1.1, inSync: 1.5 }],
    ["bundle", { missing: undefined, inSync: 3.5 }],
  ]);
  const { missing, inSync } = limits.get(way) ?? {};
  const args = ["--event-name", "push"];
  return [
    {
      name: `token missing, ${way}`,
      command: [...command, ...args],
      exitCode: 1,
      ...aim,
      ...(missing !== undefined && { atMost: missing }),
    },
    {
      name: `in sync, ${way}`,
      command: [...command, ...args, "--copy", scratchFile("providers.yaml", CANONICAL_BYTES)],
      env: fetchEnv,
      exitCode: 0,
      ...aim,
      ...(inSync !== undefined && { atMost: inSync }),
    },
  ];
}

const [major = 0, minor = 0] = process.versions.node.split(".").map(Number);
const stripsTypes = major > 22 || (major === 22 && minor >= 18);
const variants = [
  bareNode,
  emptyFile,
  ...variantsOf("tsx", [NODE, TSX, SOURCE], { base: emptyFile }),
  ...variantsOf("bundle", [NODE, bundle], { base: bareNode }),
  ...(stripsTypes ? variantsOf("node alone", [NODE, SOURCE], { base: bareNode }) : []),
];

async function compareTimes(): Promise<void> {
  const times = new Map(variants.map((variant) => [variant, [] as number[]]));
  for (let round = 0; round <= RUNS; round += 1) {
    for (const variant of variants) {
      const { ms } = await measure(variant);
      // The first round only fills the caches.
      if (round > 0) {
        times.get(variant)?.push(ms);
      }
    }
  }
  console.log(
    `node ${process.version}, medians of ${RUNS} runs; the bundle has ${readFileSync(bundle).length} bytes\n`,
  );
  console.log("| what | ms | ratio | at most |\n| --- | --- | --- | --- |");
  for (const variant of variants) {
    const ms = medianOf(times.get(variant) ?? []);
    const { base } = variant;
    const ratio =
      base === undefined ? "" : `${(ms / medianOf(times.get(base) ?? [])).toFixed(2)} of ${base.name}`;
    console.log(`| ${variant.name} | ${ms.toFixed(0)} | ${ratio} | ${variant.atMost ?? ""} |`);
  }
}

/** Time and peak of memory for files of many megabytes. */
async function measureLargeFiles(): Promise<void> {
  const code = 'process.on("exit", () => console.error(`peak ${process.resourceUsage().maxRSS}`));';
  const peak = scratchFile("peak.mjs", code);
  console.log("\nThe bundle: time, peak of memory, and the peak as a multiple of the file\n");
  console.log("| file | in sync | one line changed | unrelated |\n| --- | --- | --- | --- |");
  for (const megabytes of [1, 10, 100]) {
    const fileOf = (letter: string) => {
      const line = `${letter.repeat(61)}:\n`;
      return Buffer.from(line.repeat(Math.floor((megabytes * 1e6) / line.length)));
    };
    canonical = fileOf("a");
    const changed = Buffer.from(canonical);
    changed[changed.length - 10] = 0x62;
    const cells: string[] = [];
    for (const [name, bytes] of Object.entries({ same: canonical, changed, unrelated: fileOf("b") })) {
      writeFileSync(COPY, bytes);
      const command = [NODE, "--import", peak, bundle, "--event-name", "push", "--copy", COPY];
      const times: number[] = [];
      const peaks: number[] = [];
      for (let round = 0; round < 3; round += 1) {
        const { ms, run } = await measure({
          name,
          command,
          env: fetchEnv,
          exitCode: name === "same" ? 0 : 1,
        });
        times.push(ms);
        peaks.push((Number(/peak (\d+)/.exec(run.stderr)?.[1]) * 1024) / 1e6);
      }
      const mb = medianOf(peaks);
      cells.push(`${medianOf(times).toFixed(0)} ms, ${mb.toFixed(0)} MB (${(mb / megabytes).toFixed(2)})`);
    }
    console.log(`| ${megabytes} MB | ${cells.join(" | ")} |`);
  }
}

await compareTimes();
await measureLargeFiles();
await server.close();
rmSync(SCRATCH, { recursive: true });
