/**
 * npm run runtimes [-- EXECUTABLE...]: the same verdicts under every runtime that is here. Looks for node and deno
 * on the PATH, for nodes where nvm and setup-node put them, and takes the paths of others; says what it did not find.
 */
import { execFileSync, spawn } from "node:child_process";
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { createServer } from "node:http";
import { homedir, tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";

const root = fileURLToPath(new URL("..", import.meta.url));
const scratch = mkdtempSync(join(tmpdir(), "sync-providers-runtimes-"));
const file = readFileSync(join(root, "fixtures/providers.yaml"));
const server = createServer((request, response) => {
  if (request.url.includes("/git/commits/")) return response.end(JSON.stringify({ sha: "a".repeat(40) }));
  response.writeHead(200, { "content-type": "text/plain", "content-length": file.length }).end(file);
});
await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
const token = { AUTO_SYNC_TOKEN: "token-of-the-runtimes", SYNC_CANONICAL_SERVER: `http://127.0.0.1:${server.address().port}` };
const copy = "fixtures/providers.yaml";

const rows = [
  { args: ["--event-name", "push", "--copy", copy], env: token, want: "0 in-sync" },
  { args: ["--event-name", "push", "--copy", "fixtures/providers-drifted.yaml"], env: token, want: "1 drift" },
  { args: ["--event-name", "push"], want: "1 token-missing" },
  { args: ["--canonical", copy, "--copy", copy, "--pin", "fixtures/providers-old.sha256"], want: "1 pin-mismatch" },
  { args: ["--replay", "fixtures/events/pr-fork-synchronize.json"], want: "0 skipped" },
  { args: ["--copy", copy], env: { ...token, SYNC_CANONICAL_SERVER: "http://127.0.0.1:1", SYNC_TIMEOUT_SECONDS: "4" }, want: "3 unverified" },
  { args: ["--no-such-flag"], want: "2 usage" },
];

const found = (path) => existsSync(path);
const list = (folder) => (found(folder) ? readdirSync(folder).map((name) => join(folder, name)) : []);
const onPath = (name) => process.env.PATH.split(":").map((folder) => join(folder, name)).filter(found).slice(0, 1);
const nodes = [
  process.execPath,
  ...list(join(homedir(), ".nvm/versions/node")).map((folder) => join(folder, "bin/node")),
  ...list("/opt/hostedtoolcache/node").flatMap(list).map((folder) => join(folder, "bin/node")),
];
const executables = new Set([...nodes.filter(found), ...onPath("deno"), ...process.argv.slice(2)]);

execFileSync(process.execPath, [join(root, ".ci/bundle.mjs"), scratch]);
const bundle = join(scratch, "sync-providers.mjs");
const tsx = fileURLToPath(import.meta.resolve("tsx/cli"));

/** The ways to start the gate under an executable: its name, and the command. */
function waysOf(executable) {
  const version = execFileSync(executable, ["--version"], { encoding: "utf8" }).split("\n")[0];
  if (version.startsWith("deno")) return [{ name: `${version.split(" (")[0]}, as it is`, command: [executable, "run", "-A", "sync-providers.ts"] }];
  const [major, minor] = version.slice(1).split(".").map(Number);
  const strips = major > 23 || (major === 22 && minor >= 18);
  return [
    { name: `node ${version}, tsx`, command: [executable, tsx, "sync-providers.ts"] },
    { name: `node ${version}, bundle`, command: [executable, bundle] },
    ...(strips ? [{ name: `node ${version}, as it is`, command: [executable, "sync-providers.ts"] }] : []),
  ];
}

function run([command, ...args], env = {}) {
  return new Promise((resolve) => {
    const child = spawn(command, args, { cwd: root, env: { PATH: process.env.PATH, HOME: scratch, ...env } });
    let said = "";
    child.stdout.on("data", (chunk) => (said += chunk));
    child.stderr.on("data", (chunk) => (said += chunk));
    child.on("close", (code) => {
      const status = /^(?:::(?:error|warning).*?::|verdict +)([a-z-]+)/m.exec(said)?.[1];
      resolve({ got: `${code} ${status}`, said });
    });
  });
}

let failures = 0;
const tried = [];
for (const executable of executables) {
  for (const { name, command } of waysOf(executable)) {
    tried.push(name);
    const wrong = [];
    for (const { args, env, want } of rows) {
      const { got, said } = await run([...command, ...args], env);
      if (got !== want) wrong.push(`  ${args.join(" ")}: got ${got}, want ${want}\n${said}`);
    }
    failures += wrong.length;
    console.log(`${wrong.length === 0 ? "same" : "OTHER"}  ${name}: ${rows.length - wrong.length} of ${rows.length}`);
    for (const line of wrong) console.log(line);
  }
}
for (const wanted of ["node v20", "node v22", "node v24", "deno"]) {
  if (!tried.some((name) => name.startsWith(wanted))) console.log(`not here: ${wanted}`);
}

server.close();
server.closeAllConnections();
rmSync(scratch, { recursive: true });
process.exitCode = failures === 0 ? 0 : 1;
