/** npm run bench: ratios of whole runs, measured in turns. Exits with 1 if one is over its target. */

import { equal } from "node:assert/strict";
import { join } from "node:path";
import { createFolder } from "../fixtures/folder.ts";
import { gateCommand, runCommand } from "../fixtures/gate.ts";
import { startGitea, TOKEN } from "../fixtures/gitea-server.ts";

const ROUNDS = 15;
using gitea = await startGitea();
using folder = createFolder({ "empty.ts": "" });
const push = {
  AUTO_SYNC_TOKEN: "",
  GITHUB_EVENT_NAME: "push",
  SYNC_CANONICAL_SERVER: gitea.url,
  SYNC_COPY_PATH: "fixtures/providers.yaml",
};
const inSync = { ...push, AUTO_SYNC_TOKEN: TOKEN };
const node = process.execPath;

const bareNode = { command: [node, "-e", "0"], env: {}, exitCode: 0 };
const emptyFile = {
  command: [node, "node_modules/tsx/dist/cli.mjs", join(folder.path, "empty.ts")],
  env: {},
  exitCode: 0,
};
const bundle = { command: [node, "dist/sync-providers.mjs"], env: inSync, exitCode: 0 };
const comparisons = [
  {
    name: "token missing, tsx / empty file, tsx",
    run: { command: gateCommand(), env: push, exitCode: 1 },
    base: emptyFile,
    target: 1.1,
  },
  {
    name: "in sync, tsx / empty file, tsx",
    run: { command: gateCommand(), env: inSync, exitCode: 0 },
    base: emptyFile,
    target: 1.8,
  },
  { name: "in sync, bundle / node -e 0", run: bundle, base: bareNode, target: 4 },
];

async function measure({ command, env, exitCode }: typeof bareNode): Promise<number> {
  const startedAt = performance.now();
  const run = await runCommand(command, { ...process.env, ...env });
  equal(run.exitCode, exitCode, run.log + run.stderr);
  return performance.now() - startedAt;
}

function median(numbers: readonly number[]): number {
  return numbers.toSorted((a, b) => a - b)[Math.floor(numbers.length / 2)] ?? Number.NaN;
}

for (const { name, run, base, target } of comparisons) {
  const times: number[] = [];
  const baseTimes: number[] = [];
  for (let round = 0; round < ROUNDS; round += 1) {
    times.push(await measure(run));
    baseTimes.push(await measure(base));
  }
  const ratio = median(times) / median(baseTimes);
  console.log(`${ratio.toFixed(2)} (at most ${target})  ${name}`);
  if (ratio > target) {
    process.exitCode = 1;
  }
}
