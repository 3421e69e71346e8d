/**
 * npm run runtimes [-- EXECUTABLE...]: the same verdicts under every runtime that is here. Takes the node
 * that it runs under, those that nvm and setup-node installed, deno from the PATH, and the paths of others;
 * says which of the usual ones it did not find.
 */
import { execFileSync } from "node:child_process";
import { existsSync, readdirSync, rmSync } from "node:fs";
import { homedir } from "node:os";
import { join } from "node:path";
import { playRepository, STAND_IN_TOKEN, startForge } from "../fixtures/forge.ts";
import { makeBundle, runCommand, SCRATCH, TSX } from "./run-command.mjs";

const forge = await startForge(playRepository);
const bundle = await makeBundle();
const server = { SYNC_CANONICAL_SERVER: forge.url };
const secret = { ...server, AUTO_SYNC_TOKEN: STAND_IN_TOKEN };
const nobody = { ...secret, SYNC_CANONICAL_SERVER: "http://127.0.0.1:1", SYNC_TIMEOUT_SECONDS: "4" };
const canonical = "fixtures/providers.yaml";
const drifted = "fixtures/providers-drifted.yaml";
const oldPin = "fixtures/providers-old.sha256";
const written = join(SCRATCH, "written.yaml");
const fork = "fixtures/events/pr-fork-synchronize.json";

const rows = [
  { args: ["--event-name", "push", "--copy", canonical], env: secret, want: "0 in-sync" },
  { args: ["--event-name", "push", "--copy", drifted], env: secret, want: "1 drift" },
  { args: ["--event-name", "push", "--copy", drifted, "--json"], env: secret, want: "1 drift" },
  {
    args: ["--event-name", "push", "--copy", canonical],
    env: { ...server, SYNC_JOB_TOKEN: STAND_IN_TOKEN },
    want: "0 in-sync",
  },
  { args: ["--event-name", "push"], want: "1 token-missing" },
  { args: ["--canonical", canonical, "--copy", canonical, "--pin", oldPin], want: "1 pin-mismatch" },
  { args: ["--replay", fork], want: "0 skipped" },
  { args: ["--copy", canonical], env: nobody, want: "3 unverified" },
  { args: ["--write", "--copy", written], env: secret, want: "0 in-sync" },
  { args: ["--canonical", canonical, "--copy", written], want: "0 in-sync" },
  { args: ["--no-such-flag"], want: "2 usage" },
];

const list = (folder) => (existsSync(folder) ? readdirSync(folder).map((name) => join(folder, name)) : []);
const onPath = (name) => process.env.PATH.split(":").map((folder) => join(folder, name));
const nodes = [
  process.execPath,
  ...[join(homedir(), ".nvm/versions/node"), ...list("/opt/hostedtoolcache/node")]
    .flatMap(list)
    .map((folder) => join(folder, "bin/node")),
];
const executables = new Set([
  ...nodes.filter(existsSync),
  ...onPath("deno").filter(existsSync).slice(0, 1),
  ...process.argv.slice(2),
]);

/** The ways to start the gate under an executable: its name, and the command. */
function waysOf(executable) {
  const [version] = execFileSync(executable, ["--version"], { encoding: "utf8" }).split("\n");
  const script = "sync-providers.ts";
  if (version.startsWith("deno"))
    return [{ name: `${version.split(" (")[0]}, as it is`, command: [executable, "run", "-A", script] }];
  const [major, minor] = version.slice(1).split(".").map(Number);
  const strips = major > 23 || (major === 23 && minor >= 6) || (major === 22 && minor >= 18);
  return [
    { name: `node ${version}, tsx`, command: [executable, TSX, script] },
    { name: `node ${version}, bundle`, command: [executable, bundle] },
    ...(strips ? [{ name: `node ${version}, as it is`, command: [executable, script] }] : []),
  ];
}

/** The status in the verdict, which is the last line of the log, or in the document. */
function statusOf(stdout, isJson) {
  if (isJson) return /^ {2}"status": "([a-z-]+)"/m.exec(stdout)?.[1];
  const last = stdout.trimEnd().split("\n").at(-1);
  return /^(?:::(?:error|warning)[^:]*::|verdict +)([a-z-]+)/.exec(last)?.[1];
}

let failures = 0;
const tried = [];
for (const executable of executables) {
  for (const { name, command } of waysOf(executable)) {
    tried.push(name);
    const wrong = [];
    for (const { args, env, want } of rows) {
      const { exitCode, stdout, stderr } = await runCommand([...command, ...args], env);
      const got = `${exitCode} ${statusOf(stdout, args.includes("--json"))}`;
      if (got !== want) wrong.push(`  ${args.join(" ")}: got ${got}, want ${want}\n${stdout}${stderr}`);
    }
    rmSync(written, { force: true });
    failures += wrong.length;
    console.log(
      `${wrong.length === 0 ? "same" : "OTHER"}  ${name}: ${rows.length - wrong.length} of ${rows.length}`,
    );
    for (const line of wrong) console.log(line);
  }
}
for (const wanted of ["node v20", "node v22", "node v24", "deno"]) {
  if (!tried.some((name) => name.startsWith(wanted))) console.log(`not here: ${wanted}`);
}

await forge.close();
rmSync(SCRATCH, { recursive: true });
process.exitCode = failures === 0 ? 0 : 1;
