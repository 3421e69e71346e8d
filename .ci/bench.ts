/** npm run bench: ratios of processor time, measured in turns. Exits with 1 if one is over its target. */

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
    target: 2,
  },
  { name: "in sync, bundle / node -e 0", run: bundle, base: bareNode, target: Infinity },
];

/** Processor seconds of a command, its child processes included. The environment is PATH, HOME and the given one. */
async function measure({ command, env, exitCode }: typeof bareNode): Promise<number> {
  const timed = ["bash", "-c", 'TIMEFORMAT="%3U %3S"; time "$@" > /dev/null', "bash", ...command];
  const run = await runCommand(timed, env);
  equal(run.exitCode, exitCode, run.stderr);
  const [user = Number.NaN, system = Number.NaN] = run.stderr.trim().split(" ").map(Number);
  return user + system;
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
  console.log(`${ratio.toFixed(2)} ${target === Infinity ? "(no target)" : `(at most ${target})`}  ${name}`);
  if (!(ratio <= target)) {
    process.exitCode = 1;
  }
}
