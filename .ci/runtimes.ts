/**
 * npm run runtimes [-- EXECUTABLE...]: the same verdicts under every installed runtime. Tries the node that it runs
 * under, those that nvm and setup-node installed, deno from the PATH, and the paths of others. Lists the usual ones
 * that are missing.
 */

import { execFileSync } from "node:child_process";
import { existsSync, readdirSync, rmSync } from "node:fs";
import { homedir } from "node:os";
import { join } from "node:path";
import { CANONICAL_PATH, CANONICAL_TOKEN, DRIFTED_PATH } from "../fixtures/contents.ts";
import { type CommandRun, parseDocument, runCommand, TSX } from "../fixtures/gate-runner.ts";
import { playPublicRepository, startGitea } from "../fixtures/gitea-server.ts";
import { makeBundle, SCRATCH } from "./scratch.ts";

const server = await startGitea({}, { fallback: playPublicRepository() });
const bundle = await makeBundle();
const serverEnv = { SYNC_CANONICAL_SERVER: server.url, GITHUB_SERVER_URL: server.url };
const secretEnv = { ...serverEnv, AUTO_SYNC_TOKEN: CANONICAL_TOKEN };
const unreachableEnv = {
  ...secretEnv,
  SYNC_CANONICAL_SERVER: "http://127.0.0.1:1",
  SYNC_TIMEOUT_SECONDS: "4",
};
const written = join(SCRATCH, "written.yaml");
const push = ["--event-name", "push"];
const local = ["--canonical", CANONICAL_PATH, "--copy", "fixtures/providers-copy.yaml"];

interface Row {
  readonly args: readonly string[];
  readonly env?: Readonly<Record<string, string>>;
  readonly want: { readonly exitCode: number; readonly status: string };
}

const rows: readonly Row[] = [
  { args: [...push, "--copy", CANONICAL_PATH], env: secretEnv, want: { exitCode: 0, status: "in-sync" } },
  { args: [...push, "--copy", DRIFTED_PATH], env: secretEnv, want: { exitCode: 1, status: "drift" } },
  {
    args: [...push, "--copy", DRIFTED_PATH, "--json"],
    env: secretEnv,
    want: { exitCode: 1, status: "drift" },
  },
  {
    args: [...push, "--copy", CANONICAL_PATH],
    env: { ...serverEnv, SYNC_JOB_TOKEN: CANONICAL_TOKEN },
    want: { exitCode: 0, status: "in-sync" },
  },
  { args: push, want: { exitCode: 1, status: "token-missing" } },
  {
    args: [...local, "--pin", "fixtures/providers-old.sha256"],
    want: { exitCode: 1, status: "pin-mismatch" },
  },
  {
    args: ["--replay", "fixtures/events/pr-fork-synchronize.json", "--copy", CANONICAL_PATH],
    want: { exitCode: 0, status: "skipped" },
  },
  {
    args: [...push, "--copy", CANONICAL_PATH],
    env: unreachableEnv,
    want: { exitCode: 3, status: "unverified" },
  },
  { args: ["--write", "--copy", written], env: secretEnv, want: { exitCode: 0, status: "in-sync" } },
  { args: ["--canonical", CANONICAL_PATH, "--copy", written], want: { exitCode: 0, status: "in-sync" } },
  { args: ["--no-such-flag"], want: { exitCode: 2, status: "usage" } },
];

function listFolder(folder: string): string[] {
  return existsSync(folder) ? readdirSync(folder).map((name) => join(folder, name)) : [];
}

/** The runtimes of this machine. */
function findExecutables(): Set<string> {
  const folders = [join(homedir(), ".nvm/versions/node"), ...listFolder("/opt/hostedtoolcache/node")];
  const nodes = folders.flatMap(listFolder).map((folder) => join(folder, "bin/node"));
  const onPath = (process.env.PATH ?? "").split(":").map((folder) => join(folder, "deno"));
  const deno = onPath.filter(existsSync).slice(0, 1);
  return new Set([process.execPath, ...nodes.filter(existsSync), ...deno, ...process.argv.slice(2)]);
}

interface Way {
  readonly name: string;
  readonly command: readonly string[];
}

/** The ways to start the gate with an executable. */
function waysOf(executable: string): Way[] {
  const version = execFileSync(executable, ["--version"], { encoding: "utf8" }).split("\n")[0] ?? "";
  const script = "sync-providers.ts";
  if (version.startsWith("deno")) {
    return [{ name: `${version.split(" (")[0]}, alone`, command: [executable, "run", "-A", script] }];
  }
  const [major = 0, minor = 0] = version.slice(1).split(".").map(Number);
  const ways = [
    { name: `node ${version}, tsx`, command: [executable, TSX, script] },
    { name: `node ${version}, bundle`, command: [executable, bundle] },
  ];
  if (major > 23 || (major === 23 && minor >= 6) || (major === 22 && minor >= 18)) {
    ways.push({ name: `node ${version}, alone`, command: [executable, script] });
  }
  return ways;
}

/** The status of a run: from the document, or from the last line of the log. */
function statusOf({ stdout, verdictLine }: CommandRun): string {
  if (stdout.startsWith("{")) {
    return String(parseDocument(stdout).status);
  }
  return /^(?:::(?:error|warning)[^:]*::)?([a-z-]+)/.exec(verdictLine)?.[1] ?? "none";
}

let failures = 0;
const tried: string[] = [];
for (const executable of findExecutables()) {
  for (const { name, command } of waysOf(executable)) {
    tried.push(name);
    const wrong: string[] = [];
    for (const { args, env = {}, want } of rows) {
      const run = await runCommand([...command, ...args], { HOME: SCRATCH, ...env });
      const status = statusOf(run);
      if (run.exitCode !== want.exitCode || status !== want.status) {
        const expected = `${want.exitCode} ${want.status}`;
        wrong.push(
          `  ${args.join(" ")}: ${run.exitCode} ${status}, not ${expected}\n${run.stdout}${run.stderr}`,
        );
      }
    }
    rmSync(written, { force: true });
    failures += wrong.length;
    const result = wrong.length === 0 ? "same" : "OTHER";
    console.log(`${result}  ${name}: ${rows.length - wrong.length} of ${rows.length}`);
    for (const line of wrong) {
      console.log(line);
    }
  }
}
for (const wanted of ["node v20", "node v22", "node v24", "deno"]) {
  if (!tried.some((name) => name.startsWith(wanted))) {
    console.log(`not installed: ${wanted}`);
  }
}

await server.close();
rmSync(SCRATCH, { recursive: true });
process.exitCode = failures === 0 ? 0 : 1;
