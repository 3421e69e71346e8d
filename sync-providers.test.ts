/**
 * The tables, in the order of sync-providers.ts. Every expected value is written out. Most rows call `main` in
 * this process; a few run the real command. Servers listen on the loopback only.
 */

import assert from "node:assert/strict";
import { type ChildProcess, spawn } from "node:child_process";
import { chmodSync, existsSync, lstatSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, statSync, symlinkSync, writeFileSync } from "node:fs";
import { connect, createServer, type Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, describe, test } from "node:test";
import { createServer as createTlsServer } from "node:tls";
import { fileURLToPath } from "node:url";
import fc from "fast-check";
import { parseDocument, parse as parseYaml } from "yaml";
import { renderReadme } from "./fixtures/examples.ts";
import { type Forge, kindOf, type Play, play, playRepository, response, STAND_IN_TOKEN, startForge } from "./fixtures/forge.ts";
import {
  type Context,
  classify,
  type Difference,
  type Env,
  escapeData,
  escapeProperty,
  explainDifference,
  Failure,
  firstDifferingLine,
  inert,
  judge,
  main,
  masker,
  type Payload,
  REMEDIES,
  STATUSES,
  summarise,
  toJson,
  VERSION,
} from "./sync-providers.ts";

// The same inputs in every run: a red test is to be about the change that is tested.
fc.configureGlobal({ seed: 20_261_123 });

const ROOT = fileURLToPath(new URL(".", import.meta.url));
const CANONICAL = "fixtures/providers.yaml";
const DRIFTED = "fixtures/providers-drifted.yaml";
const COMMIT = "9d3b4a72788a6379345cb98a6f593008fa6c74ae";

// ─────────────────────────────── helpers ───────────────────────────────

/** What one run of the gate left behind. */
interface Ran {
  readonly exitCode: number;
  readonly stdout: string;
  readonly stderr: string;
}

/** Runs `main` in this process. The environment is the given one alone. No run may print the token. */
async function gate(argv: readonly string[], env: Env = {}): Promise<Ran> {
  const lines = { stdout: [] as string[], stderr: [] as string[] };
  const exitCode = await main(argv, env, (line, stream) => lines[stream].push(line));
  const ran = { exitCode, stdout: lines.stdout.join("\n"), stderr: lines.stderr.join("\n") };
  assertSilent(ran, env.AUTO_SYNC_TOKEN);
  return ran;
}

/** Looks for the token, raw and in base64, in whatever a run left behind. Shorter ones than any forge's are words. */
function assertSilent(ran: Ran, token = ""): void {
  const secret = token.trim();
  if (secret.length < 8) return;
  for (const form of [secret, Buffer.from(secret).toString("base64"), Buffer.from(secret).toString("base64url")]) {
    assert.ok(!`${ran.stdout}\n${ran.stderr}`.includes(form), `the token is in\n${ran.stdout}\n${ran.stderr}`);
  }
}

/**
 * Runs a command and collects what it prints. The environment is PATH, HOME and the given one. Coverage is off
 * (node would switch it on by itself): tsx changes the code, so that its places are not the source's.
 */
async function run(command: readonly string[], env: Env = {}): Promise<Ran & { signal: string | null }> {
  const { PATH, HOME } = process.env;
  const [file = "", ...args] = command;
  const child = spawn(file, args, { cwd: ROOT, env: { PATH, HOME, NODE_V8_COVERAGE: "", ...env } });
  const [stdout, stderr] = await Promise.all([collect(child, "stdout"), collect(child, "stderr")]);
  const [exitCode, signal] = (child.exitCode ?? child.signalCode) ? [child.exitCode, child.signalCode] : await closed(child);
  const ran = { exitCode: exitCode ?? -1, signal, stdout, stderr };
  assertSilent(ran, env.AUTO_SYNC_TOKEN);
  return ran;
}

function closed(child: ChildProcess): Promise<[number | null, string | null]> {
  return new Promise((resolve) => child.on("close", (code, signal) => resolve([code, signal])));
}

async function collect(child: ChildProcess, stream: "stdout" | "stderr"): Promise<string> {
  let text = "";
  for await (const chunk of child[stream] ?? []) text += chunk;
  return text;
}

const TSX = fileURLToPath(import.meta.resolve("tsx/cli"));

/** The real command, as `npx tsx sync-providers.ts` starts it. */
function command(...args: string[]): string[] {
  return [process.execPath, TSX, "sync-providers.ts", ...args];
}

/** The command under the tests' own loader: only what runs under it can count for the coverage. */
function measured(...args: string[]): string[] {
  return [process.execPath, "--import", "./.ci/loader.mjs", "sync-providers.ts", ...args];
}

/** The environment that lets {@link measured} count, where the coverage is taken. */
const MEASURED = { NODE_V8_COVERAGE: process.env.NODE_V8_COVERAGE ?? "" };

/** The commands that a runner obeys in a log: none between `stop-commands` and its random word. */
function annotations(log: string): string[] {
  let word = "";
  return log.split("\n").filter((line) => {
    const stop = /^::stop-commands::(.+)$/.exec(line)?.[1] ?? "";
    if (word === "" && stop !== "") word = stop;
    else if (line === `::${word}::`) word = "";
    else return word === "" && line.startsWith("::");
    return false;
  });
}

/** The verdict's parts of the JSON document. */
async function verdictOf(argv: readonly string[], env: Env = {}): Promise<Record<string, unknown>> {
  const ran = await gate([...argv, "--json"], env);
  const document: unknown = JSON.parse(ran.stdout);
  assert.ok(typeof document === "object" && document !== null);
  const fields = Object.fromEntries(Object.entries(document));
  assert.equal(fields.exitCode, ran.exitCode, "the document's exit code is the process's");
  return fields;
}

function statusLine({ status, reason, exitCode }: Record<string, unknown>): string {
  return `${status}${reason === null ? "" : ` ${reason}`} ${exitCode}`;
}

/** A folder that is gone after the tests of the file. */
const scratch = mkdtempSync(join(tmpdir(), "sync-providers-"));
after(() => rmSync(scratch, { recursive: true }));

function scratchFile(name: string, content: string | Buffer): string {
  const path = join(scratch, name);
  writeFileSync(path, content);
  return path;
}

/** Starts a forge for the tests of a describe block. */
function useForge(answer: Play): { readonly url: string; readonly forge: Forge } {
  let forge: Forge | null = null;
  const running = () => {
    assert.ok(forge !== null, "the forge is up");
    return forge;
  };
  before(async () => {
    forge = await startForge(answer);
  });
  after(() => running().close());
  return {
    get url() {
      return running().url;
    },
    get forge() {
      return running();
    },
  };
}

/** Settings under which the stand-in lets the gate in; the deadline keeps the back-off of failing rows short. */
function envFor(url: string, more: Env = {}): Env {
  return {
    GITHUB_EVENT_NAME: "push",
    AUTO_SYNC_TOKEN: STAND_IN_TOKEN,
    SYNC_CANONICAL_SERVER: url,
    SYNC_COPY_PATH: CANONICAL,
    SYNC_TIMEOUT_SECONDS: "4",
    ...more,
  };
}

// ─────────────────────────── statuses and text ───────────────────────────

describe("the statuses", () => {
  const rows = [
    { status: "usage", exitCode: 2, level: "error" },
    { status: "drift", exitCode: 1, level: "error" },
    { status: "token-missing", exitCode: 1, level: "error" },
    { status: "pin-mismatch", exitCode: 1, level: "error" },
    { status: "unverified", exitCode: 3, level: "error" },
    { status: "skipped", exitCode: 0, level: "warning" },
    { status: "in-sync", exitCode: 0, level: "none" },
  ];
  test("stand in the order of precedence, with their exit codes and levels", () => {
    const actual = Object.entries(STATUSES).map(([status, { exitCode, level }]) => ({
      status,
      exitCode,
      level,
    }));
    assert.deepEqual(actual, rows);
  });
  test("have a version that is the package's", () => {
    const { version } = JSON.parse(readFileSync("package.json", "utf8"));
    assert.equal(VERSION, version);
  });
});

describe("inert", () => {
  const rows = [
    { name: "plain text", text: "a: b, 100% ✓", want: "a: b, 100% ✓" },
    { name: "a command", text: "::error::x", want: ": :error: :x" },
    { name: "a long run of colons", text: "::::", want: ": : : :" },
    { name: "the old command form", text: "x ##[error]y ###[z]", want: "x # #[error]y ## #[z]" },
    { name: "line breaks and tabs", text: "a\r\nb\tc\u2028d", want: "a\\r\\nb\\tc\\u{2028}d" },
    { name: "escape sequences", text: "\u001b[31mred\u0007\u009b", want: "\\u{1b}[31mred\\u{7}\\u{9b}" },
    { name: "characters that turn the text around", text: "a\u202eb\u200bc\ufeff", want: "a\\u{202e}b\\u{200b}c\\u{feff}" },
    { name: "half a surrogate pair", text: "a\ud800b", want: "a\\u{d800}b" },
  ];
  for (const { name, text, want } of rows) test(`makes harmless ${name}`, () => assert.equal(inert(text), want));
});

describe("escaping of workflow commands", () => {
  const rows = [
    { name: "nothing to escape", text: "a b", data: "a b", property: "a b" },
    { name: "percent and line breaks", text: "5%\r\n", data: "5%25%0D%0A", property: "5%25%0D%0A" },
    { name: "colon and comma", text: "a:b,c", data: "a:b,c", property: "a%3Ab%2Cc" },
    { name: "an escape that is already there", text: "%0A", data: "%250A", property: "%250A" },
  ];
  for (const { name, text, data, property } of rows) {
    test(`of the message: ${name}`, () => assert.equal(escapeData(text), data));
    test(`of a property: ${name}`, () => assert.equal(escapeProperty(text), property));
  }
});

describe("the mask", () => {
  const rows = [
    { name: "the secret itself", secret: "0123456789abcdef", text: "at 0123456789abcdef.", want: "at ***." },
    { name: "base64", secret: "secret-token", text: "c2VjcmV0LXRva2Vu", want: "***" },
    { name: "URL-safe base64", secret: "~~~???~~~", text: "fn5-Pz8_fn5-", want: "***" },
    { name: "a percent-encoded secret", secret: "tok{en}1234", text: "tok%7Ben%7D1234", want: "***" },
    { name: "a secret with quotes", secret: 'dead"beef', text: "dead'beef", want: "***" },
    { name: "a secret that the escapes change", secret: "100%::secret", text: "100%25::secret 100%: :secret", want: "*** ***" },
    { name: "no word as short as this", secret: "token", text: "token-missing", want: "token-missing" },
    { name: "nothing without a secret", secret: "", text: "abc", want: "abc" },
  ];
  for (const { name, secret, text, want } of rows) test(`blots out ${name}`, () => assert.equal(masker(secret)(text), want));
});

// ─────────────────────────────── settings ───────────────────────────────

const LOCAL = ["--canonical", CANONICAL, "--copy", CANONICAL];

describe("settings and flags", () => {
  const good: { name: string; argv?: string[]; env?: Env; want: string }[] = [
    { name: "a copy and a canonical by flag", argv: LOCAL, want: "in-sync 0" },
    { name: "a flag over its setting", argv: LOCAL, env: { SYNC_COPY_PATH: DRIFTED }, want: "in-sync 0" },
    { name: "the copy by setting", argv: ["--canonical", CANONICAL], env: { SYNC_COPY_PATH: DRIFTED }, want: "drift 1" },
    { name: "a copy outside the repository", argv: ["--canonical", CANONICAL, "--copy", `fixtures/../${CANONICAL}`], want: "in-sync 0" },
    { name: "empty settings as unset", argv: LOCAL, env: { SYNC_TIMEOUT_SECONDS: "", SYNC_MAX_BYTES: " ", SYNC_CANONICAL_SERVER: "", SYNC_ALLOW_HTTP: "" }, want: "in-sync 0" },
    { name: "a day as the deadline, and 1 GiB as the size limit", argv: LOCAL, env: { SYNC_TIMEOUT_SECONDS: "86400", SYNC_MAX_BYTES: "1073741824" }, want: "in-sync 0" },
    { name: "half a second as the deadline", argv: LOCAL, env: { SYNC_TIMEOUT_SECONDS: "0.5" }, want: "in-sync 0" },
    { name: "a size limit that the file just meets", argv: LOCAL, env: { SYNC_MAX_BYTES: "795" }, want: "in-sync 0" },
    { name: "no token beside a local canonical", argv: LOCAL, env: { AUTO_SYNC_TOKEN: "in ner" }, want: "in-sync 0" },
    { name: "a runner's plain http: server that is not used", argv: LOCAL, env: { GITHUB_SERVER_URL: "http://gitea:3000" }, want: "in-sync 0" },
    { name: "a server on a sub-path", argv: LOCAL, env: { SYNC_CANONICAL_SERVER: "https://example.com/git/" }, want: "in-sync 0" },
    { name: "plain http: to 127.0.0.0/8", argv: LOCAL, env: { SYNC_CANONICAL_SERVER: "http://127.1.2.3:80" }, want: "in-sync 0" },
    { name: "plain http: to ::1", argv: LOCAL, env: { SYNC_CANONICAL_SERVER: "http://[0:0::1]:80" }, want: "in-sync 0" },
    { name: "plain http: to localhost", argv: LOCAL, env: { SYNC_CANONICAL_SERVER: "http://localhost:3000" }, want: "in-sync 0" },
    { name: "plain http: that was allowed", argv: LOCAL, env: { SYNC_CANONICAL_SERVER: "http://gitea:3000", SYNC_ALLOW_HTTP: "1" }, want: "in-sync 0" },
    {
      name: "names and refs with unusual characters",
      argv: LOCAL,
      env: {
        SYNC_CANONICAL_REPO: "a.b-c/_d",
        SYNC_CANONICAL_PATH: "a..b/ü %.yaml",
        SYNC_CANONICAL_REF: "release/1.0",
      },
      want: "in-sync 0",
    },
  ];
  for (const { name, argv = [], env = {}, want } of good) {
    test(`accepts ${name}`, async () => assert.equal(statusLine(await verdictOf(argv, env)), want));
  }

  const bad: { name: string; argv?: string[]; env?: Env; want: RegExp }[] = [
    { name: "an unknown flag", argv: ["--token=x"], want: /Unknown option '--token'/ },
    { name: "a positional argument", argv: ["fixtures"], want: /Unexpected argument 'fixtures'/ },
    { name: "a flag without its value", argv: ["--copy"], want: /--copy <value>/ },
    { name: "an empty flag", argv: ["--replay", ""], want: /--replay is empty/ },
    { name: "two sources of the event", argv: ["--replay", "a", "--event", "b"], want: /--replay and --event/ },
    { name: "a rehearsal that writes", argv: ["--replay", "a", "--write"], want: /--replay and --write/ },
    { name: "a pin that is the copy itself", argv: ["--copy", "fixtures/a", "--pin", "fixtures/../fixtures/a"], want: /SYNC_COPY_PATH and SYNC_PIN_PATH name one file/ },
    { name: "an explanation that writes", argv: ["--explain", "--write"], want: /--explain and --write/ },
    { name: "a replay that is not there", argv: ["--replay", "no.json"], want: /replay "no\.json": there is no such file/ },
    { name: "a replay that is a directory", argv: ["--replay", "fixtures"], want: /replay "fixtures": it is a directory/ },
    { name: "a bare payload without a name", argv: ["--replay", "package.json"], want: /--event-name/ },
    { name: "a replay that is not JSON, without a name", argv: ["--replay", CANONICAL], want: /not JSON.*--event-name/ },
    { name: "no server where a fetch is due", env: { AUTO_SYNC_TOKEN: "x" }, want: /SYNC_CANONICAL_SERVER/ },
    { name: "a server that is no URL", env: { SYNC_CANONICAL_SERVER: "git.example.com" }, want: /SYNC_CANONICAL_SERVER/ },
    { name: "a server with a blank in it", env: { SYNC_CANONICAL_SERVER: "https://a b" }, want: /SYNC_CANONICAL_SERVER: it is not a URL/ },
    { name: "a server with backslashes", env: { SYNC_CANONICAL_SERVER: "https:\\\\a" }, want: /SYNC_CANONICAL_SERVER: it is not a URL/ },
    { name: "a server with a tab in it", env: { SYNC_CANONICAL_SERVER: "https://a\tb" }, want: /SYNC_CANONICAL_SERVER: it is not a URL/ },
    { name: "a server of another scheme", env: { SYNC_CANONICAL_SERVER: "ftp://a" }, want: /SYNC_CANONICAL_SERVER: it is neither/ },
    { name: "a server with a user name", env: { SYNC_CANONICAL_SERVER: "https://me@a" }, want: /SYNC_CANONICAL_SERVER: it holds a user name/ },
    { name: "a server with a password", env: { SYNC_CANONICAL_SERVER: "https://:pw@a" }, want: /SYNC_CANONICAL_SERVER: it holds a user name/ },
    { name: "a server with a query", env: { SYNC_CANONICAL_SERVER: "https://a/?" }, want: /SYNC_CANONICAL_SERVER: it holds a query/ },
    { name: "a server with a fragment", env: { SYNC_CANONICAL_SERVER: "https://a/#" }, want: /SYNC_CANONICAL_SERVER: it holds a query/ },
    { name: "plain http: to another machine", env: { SYNC_CANONICAL_SERVER: "http://127.0.0.1.example.com" }, want: /SYNC_CANONICAL_SERVER.*SYNC_ALLOW_HTTP=1/ },
    { name: "the runner's plain http:", env: { GITHUB_SERVER_URL: "http://gitea:3000" }, want: /GITHUB_SERVER_URL.*SYNC_ALLOW_HTTP=1/ },
    { name: "a switch that is not 0 or 1", env: { SYNC_ALLOW_HTTP: "yes" }, want: /SYNC_ALLOW_HTTP/ },
    { name: "a repository without an owner", env: { SYNC_CANONICAL_REPO: "name" }, want: /SYNC_CANONICAL_REPO: it is "name"/ },
    { name: "a repository of three parts", env: { SYNC_CANONICAL_REPO: "a/b/c" }, want: /SYNC_CANONICAL_REPO/ },
    { name: "a repository of dots", env: { SYNC_CANONICAL_REPO: "../b" }, want: /SYNC_CANONICAL_REPO/ },
    { name: "a repository with a dot for a name", env: { SYNC_CANONICAL_REPO: "a/." }, want: /SYNC_CANONICAL_REPO/ },
    { name: "a repository with a query", env: { SYNC_CANONICAL_REPO: "a/b?c" }, want: /SYNC_CANONICAL_REPO/ },
    { name: "an absolute canonical path", env: { SYNC_CANONICAL_PATH: "/etc/passwd" }, want: /SYNC_CANONICAL_PATH/ },
    { name: "a canonical path that climbs", env: { SYNC_CANONICAL_PATH: "a/../b" }, want: /SYNC_CANONICAL_PATH/ },
    { name: "a canonical path with a dot", env: { SYNC_CANONICAL_PATH: "./a" }, want: /SYNC_CANONICAL_PATH/ },
    { name: "a canonical path with a line break", env: { SYNC_CANONICAL_PATH: "a\nb" }, want: /SYNC_CANONICAL_PATH/ },
    { name: "a ref that climbs", env: { SYNC_CANONICAL_REF: ".." }, want: /SYNC_CANONICAL_REF/ },
    { name: "a ref with a control character", env: { SYNC_CANONICAL_REF: "a\u0000b" }, want: /SYNC_CANONICAL_REF/ },
    { name: "a deadline of 0", env: { SYNC_TIMEOUT_SECONDS: "0" }, want: /SYNC_TIMEOUT_SECONDS: it is "0"/ },
    { name: "a negative deadline", env: { SYNC_TIMEOUT_SECONDS: "-1" }, want: /SYNC_TIMEOUT_SECONDS/ },
    { name: "a deadline in words", env: { SYNC_TIMEOUT_SECONDS: "1m" }, want: /SYNC_TIMEOUT_SECONDS/ },
    { name: "a deadline in hex", env: { SYNC_TIMEOUT_SECONDS: "0x10" }, want: /SYNC_TIMEOUT_SECONDS/ },
    { name: "a deadline of more than a day", env: { SYNC_TIMEOUT_SECONDS: "86401" }, want: /SYNC_TIMEOUT_SECONDS.*86400/ },
    { name: "a size limit of 0", env: { SYNC_MAX_BYTES: "0" }, want: /SYNC_MAX_BYTES/ },
    { name: "a broken size limit", env: { SYNC_MAX_BYTES: "1.5" }, want: /SYNC_MAX_BYTES/ },
    { name: "a size limit beyond 1 GiB", env: { SYNC_MAX_BYTES: "1073741825" }, want: /SYNC_MAX_BYTES.*1073741824/ },
  ];
  for (const { name, argv = [], env = {}, want } of bad) {
    test(`refuses ${name}`, async () => {
      const { exitCode, stdout } = await gate(argv, env);
      assert.equal(exitCode, 2, stdout);
      assert.match(stdout, /^::error::usage: /m);
      assert.match(stdout, want);
    });
  }

  test("refuses an explanation in JSON", async () => {
    const { exitCode, stderr } = await gate(["--explain", "--json"]);
    assert.equal(exitCode, 2);
    assert.match(stderr, /--explain and --json/);
  });
  test("a refused repository's credentials are not printed", async () => {
    for (const repo of ["https://me:hunter2@git.example.com/o/n", "me:hunter2@o/n"]) {
      const { stdout } = await gate([], { SYNC_CANONICAL_REPO: repo });
      assert.doesNotMatch(stdout, /hunter2/);
      assert.match(stdout, /SYNC_CANONICAL_REPO: it is a URL or holds a credential/);
    }
  });
  test("a refused server's credentials are not printed", async () => {
    const { stdout } = await gate([], { SYNC_CANONICAL_SERVER: "https://me:hunter2@git.example.com" });
    assert.doesNotMatch(stdout, /hunter2|git\.example\.com$/m);
  });
  test("--help names every flag and every setting", async () => {
    const { exitCode, stdout } = await gate(["--help"]);
    assert.equal(exitCode, 0);
    for (const word of ["--event-name", "--event", "--copy", "--canonical", "--replay", "--pin", "--explain", "--write", "--json", "AUTO_SYNC_TOKEN", "SYNC_PIN_PATH", "SYNC_DEBUG"])
      assert.ok(stdout.includes(word), word);
  });
  test("--version prints the version alone", async () => assert.equal((await gate(["--version"])).stdout, VERSION));
});

// ─────────────────────────────── case table ───────────────────────────────

/** Branch and trust of every file in fixtures/events, written down from what the forge did. */
const CAPTURED: Record<string, { branch: number; trusted: boolean }> = {
  "branch-created": { branch: 4, trusted: true },
  "branch-deleted": { branch: 4, trusted: true },
  "fork-created": { branch: 4, trusted: true },
  "issue-opened": { branch: 4, trusted: true },
  "pr-agit-opened": { branch: 3, trusted: false },
  "pr-deleted-fork-labeled": { branch: 3, trusted: false },
  "pr-fork-comment": { branch: 4, trusted: true },
  "pr-fork-synchronize": { branch: 3, trusted: false },
  "pr-fork-target": { branch: 4, trusted: true },
  "pr-from-parent": { branch: 3, trusted: false },
  "pr-same-closed": { branch: 2, trusted: true },
  "pr-same-forked-base": { branch: 2, trusted: true },
  "pr-same-opened": { branch: 2, trusted: true },
  "pr-same-reopened": { branch: 2, trusted: true },
  "pr-same-review": { branch: 4, trusted: true },
  "pr-same-synchronize": { branch: 2, trusted: true },
  "push-main": { branch: 1, trusted: true },
  "push-staging": { branch: 1, trusted: true },
  "push-tag": { branch: 1, trusted: true },
  "release-published": { branch: 4, trusted: true },
  schedule: { branch: 1, trusted: true },
  "workflow-dispatch": { branch: 1, trusted: true },
};

function captured(name: string): { event_name: string; event: unknown; secret_arrived: boolean } {
  return JSON.parse(readFileSync(`fixtures/events/${name}.json`, "utf8"));
}

/** A pull request whose head and base are given, and nothing else. */
function pull(head: unknown, base: unknown = { repo: { id: 1, full_name: "o/base" } }): Payload {
  return { value: { pull_request: { head, base } } };
}

/** Made by hand: each row is about one rule, in the table's order, and about what falls through it. */
const PAYLOADS: { name: string; payload: Payload; branch: 2 | 3 | 4; why: RegExp }[] = [
  // Rule 1: the empty label.
  { name: "an empty label before equal ids", payload: pull({ label: "", repo: { id: 1 } }), branch: 3, why: /AGit/ },
  { name: "a blank label, which is not empty", payload: pull({ label: " ", repo: { id: 1 } }), branch: 2, why: /id/ },
  { name: "a label that is null", payload: pull({ label: null, repo: { id: 1 } }), branch: 2, why: /id/ },
  { name: "an empty label of the base", payload: pull({ label: "x", repo: { id: 1 } }, { label: "", repo: { id: 1 } }), branch: 2, why: /id/ },
  // Rule 2: no head repository any more.
  { name: "a head repository that is null", payload: pull({ label: "x", repo: null }), branch: 3, why: /deleted/ },
  { name: "a head repository that is null, without a base", payload: pull({ repo: null }, null), branch: 3, why: /deleted/ },
  { name: "a head repository that is missing", payload: pull({ label: "x", repo_id: -1 }), branch: 4, why: /no usable/ },
  { name: "a head repository that is false", payload: pull({ label: "x", repo: false }), branch: 4, why: /no usable/ },
  // Rule 3: the ids.
  { name: "equal ids before different names", payload: pull({ repo: { id: 1, full_name: "o/x", fork: true } }), branch: 2, why: /id is 1, base\.repo\.id is 1/ },
  { name: "different ids before equal names", payload: pull({ repo: { id: 2, full_name: "o/base", fork: false } }), branch: 3, why: /id is 2, base\.repo\.id is 1/ },
  { name: "the largest id", payload: pull({ repo: { id: 9007199254740991 } }, { repo: { id: 9007199254740991 } }), branch: 2, why: /id/ },
  // Rule 4: the names, where an id is unusable.
  { name: "ids as strings", payload: pull({ repo: { id: "1", full_name: "o/x" } }), branch: 3, why: /"o\/x"/ },
  { name: "a head id of 0", payload: pull({ repo: { id: 0, full_name: "o/base" } }), branch: 2, why: /"o\/base"/ },
  { name: "a base id of 0", payload: pull({ repo: { id: 1, full_name: "o/x" } }, { repo: { id: 0, full_name: "o/y" } }), branch: 3, why: /"o\/x"/ },
  { name: "negative ids that are equal", payload: pull({ repo: { id: -1, full_name: "o/x" } }, { repo: { id: -1, full_name: "o/y" } }), branch: 3, why: /"o\/x"/ },
  { name: "fractional ids that are equal", payload: pull({ repo: { id: 1.5, full_name: "o/x" } }, { repo: { id: 1.5, full_name: "o/y" } }), branch: 3, why: /"o\/x"/ },
  { name: "ids beyond the safe integers", payload: pull({ repo: { id: 2 ** 53, full_name: "o/x" } }, { repo: { id: 2 ** 53, full_name: "o/y" } }), branch: 3, why: /"o\/x"/ },
  { name: "names that differ in case alone", payload: pull({ repo: { full_name: "O/Base" } }), branch: 2, why: /"O\/Base"/ },
  { name: "a base name in capitals", payload: pull({ repo: { full_name: "o/base" } }, { repo: { full_name: "O/BASE" } }), branch: 2, why: /"O\/BASE"/ },
  { name: "names before the flag", payload: pull({ repo: { full_name: "o/base", fork: true } }), branch: 2, why: /"o\/base"/ },
  // Rule 5: the flag.
  { name: "an empty head name", payload: pull({ repo: { full_name: "", fork: true } }), branch: 3, why: /fork is true/ },
  { name: "an empty base name", payload: pull({ repo: { full_name: "o/x", fork: false } }, { repo: { full_name: "" } }), branch: 2, why: /fork is false/ },
  { name: "names as numbers", payload: pull({ repo: { full_name: 1, fork: true } }, { repo: { full_name: 1 } }), branch: 3, why: /fork is true/ },
  { name: "the flag alone, without a base", payload: pull({ repo: { fork: false } }, undefined), branch: 2, why: /fork is false/ },
  // Rule 6: it cannot be told.
  { name: "the flag as a string", payload: pull({ repo: { fork: "true" } }), branch: 4, why: /no usable/ },
  { name: "the flag of the base alone", payload: pull({ repo: {} }, { repo: { fork: true } }), branch: 4, why: /no usable/ },
  { name: "repositories that are arrays", payload: pull({ repo: [{ id: 2 }] }), branch: 4, why: /no usable/ },
  { name: "a head that is an array", payload: pull([{ label: "" }]), branch: 4, why: /no usable/ },
  { name: "a head that is null", payload: pull(null), branch: 4, why: /no usable/ },
  { name: "a pull request that is null", payload: { value: { pull_request: null } }, branch: 4, why: /no usable/ },
  { name: "an empty object", payload: { value: {} }, branch: 4, why: /no usable/ },
  { name: "keys of the prototype", payload: { value: JSON.parse('{"__proto__":{"pull_request":{"head":{"label":""}}}}') }, branch: 4, why: /no usable/ },
  { name: "inherited keys", payload: { value: Object.create({ pull_request: { head: { label: "" } } }) }, branch: 4, why: /no usable/ },
  { name: "an array", payload: { value: [{ pull_request: { head: { label: "" } } }] }, branch: 4, why: /not an object/ },
  { name: "null", payload: { value: null }, branch: 4, why: /not an object/ },
  { name: "a string", payload: { value: "pull_request" }, branch: 4, why: /not an object/ },
  { name: "no payload", payload: { missing: "nothing there" }, branch: 4, why: /nothing there/ },
];

describe("the case table, on captured events", () => {
  test("has a row for every file", () => {
    const files = readdirSync("fixtures/events").map((file) => file.replace(/\.json$/, ""));
    assert.deepEqual(files.sort(), Object.keys(CAPTURED).sort());
  });
  for (const [name, want] of Object.entries(CAPTURED)) {
    test(`${want.trusted ? "trusts" : "does not trust"} ${name}`, () => {
      const { event_name, event } = captured(name);
      const { branch, trusted } = classify(event_name, { value: event });
      assert.deepEqual({ branch, trusted }, want);
    });
  }
  for (const [name, { trusted }] of Object.entries(CAPTURED).filter(([name]) => captured(name).event_name === "pull_request")) {
    test(`agrees with the forge on ${name}`, () => assert.equal(trusted, captured(name).secret_arrived));
  }
});

describe("the case table, on payloads made by hand", () => {
  for (const { name, payload, branch, why } of PAYLOADS) {
    test(`${branch === 3 ? "does not trust" : "trusts"} ${name}`, () => {
      const context = classify("pull_request", payload);
      assert.equal(context.branch, branch, context.why);
      assert.equal(context.trusted, branch !== 3);
      assert.match(context.why, why);
    });
  }
});

describe("the case table, on event names", () => {
  const fork = pull({ label: "", repo: null });
  const rows = [
    { event: "push", branch: 1, why: /own context/ },
    { event: "schedule", branch: 1, why: /own context/ },
    { event: "workflow_dispatch", branch: 1, why: /own context/ },
    { event: "pull_request_target", branch: 4, why: /does not name/ },
    { event: "Pull_Request", branch: 4, why: /does not name/ },
    { event: " push", branch: 4, why: /does not name/ },
    { event: "constructor", branch: 4, why: /does not name/ },
    { event: "", branch: 4, why: /no event name/ },
    { event: " \t", branch: 4, why: /no event name/ },
  ];
  for (const { event, branch, why } of rows) {
    test(`trusts ${JSON.stringify(event)}, whatever its payload`, () => {
      const context = classify(event, fork);
      assert.deepEqual([context.branch, context.trusted, context.event], [branch, true, event]);
      assert.match(context.why, why);
    });
  }
});

describe("the event's file", () => {
  const forkEvent = JSON.stringify({ pull_request: { head: { label: "", repo: null } } });
  const rows: { name: string; file: () => string; want: string; why: RegExp }[] = [
    { name: "a payload", file: () => scratchFile("pr.json", forkEvent), want: "skipped 0", why: /AGit/ },
    { name: "a byte-order mark before the JSON", file: () => scratchFile("bom.json", `\ufeff${forkEvent}`), want: "skipped 0", why: /AGit/ },
    { name: "no file", file: () => join(scratch, "none.json"), want: "token-missing 1", why: /there is no such file/ },
    { name: "a directory", file: () => scratch, want: "token-missing 1", why: /it is a directory/ },
    { name: "a device", file: () => "/dev/zero", want: "token-missing 1", why: /not a regular file/ },
    { name: "half a JSON", file: () => scratchFile("half.json", forkEvent.slice(0, -1)), want: "token-missing 1", why: /not JSON/ },
    { name: "an empty file", file: () => scratchFile("empty.json", ""), want: "token-missing 1", why: /not JSON/ },
    { name: "JSON nested beyond the parser's stack", file: () => scratchFile("deep.json", "[".repeat(2_000_000)), want: "token-missing 1", why: /not JSON/ },
    { name: "a huge file", file: () => scratchFile("huge.json", Buffer.alloc(26_214_401, " ")), want: "token-missing 1", why: /26214401 bytes/ },
    { name: "an array", file: () => scratchFile("array.json", `[${forkEvent}]`), want: "token-missing 1", why: /not an object/ },
  ];
  for (const { name, file, want, why } of rows) {
    test(`with ${name}: ${want}`, async () => {
      const path = file();
      const env = { GITHUB_EVENT_NAME: "pull_request", GITHUB_EVENT_PATH: path };
      assert.equal(statusLine(await verdictOf([], env)), want);
      assert.match((await gate(["--event-name", "pull_request", "--event", path])).stdout, why);
    });
  }
  test("is not read for any other event", async () => {
    const { stdout } = await gate([], { GITHUB_EVENT_NAME: "push", GITHUB_EVENT_PATH: "/dev/zero" });
    assert.doesNotMatch(stdout, /zero|regular/);
  });
  test("is missed where the runner named none", async () => {
    const { exitCode, stdout } = await gate([], { GITHUB_EVENT_NAME: "pull_request" });
    assert.equal(exitCode, 1);
    assert.match(stdout, /GITHUB_EVENT_PATH/);
  });
});

describe("a replay without a token", () => {
  test("says so even where the local canonical differs", async () => {
    const argv = ["--replay", "fixtures/events/schedule.json", "--canonical", CANONICAL, "--copy", DRIFTED];
    assert.equal(statusLine(await verdictOf(argv)), "token-missing 1");
  });
});

describe("the replay", () => {
  const bare = JSON.stringify({ pull_request: { head: { label: "" } } });
  const rows: { name: string; content: string; argv?: string[]; env?: Env; want: string }[] = [
    { name: "a capture", content: `{"event_name":"pull_request","event":${bare}}`, want: "skipped 0" },
    { name: "a capture, with a token", content: `{"event_name":"pull_request","event":${bare}}`, env: { AUTO_SYNC_TOKEN: "x" }, want: "in-sync 0" },
    { name: "a capture, before the runner's own event", content: `{"event_name":"pull_request","event":${bare}}`, env: { GITHUB_EVENT_NAME: "push" }, want: "skipped 0" },
    { name: "a capture, with another name by flag", content: `{"event_name":"pull_request","event":${bare}}`, argv: ["--event-name", "push"], want: "token-missing 1" },
    { name: "a capture without a name", content: `{"event_name":"","event":${bare}}`, want: "token-missing 1" },
    { name: "a bare payload, named by flag", content: bare, argv: ["--event-name", "pull_request"], want: "skipped 0" },
    { name: "a bare payload, named by the environment", content: bare, env: { GITHUB_EVENT_NAME: "pull_request" }, want: "skipped 0" },
    { name: "a broken payload, named by flag", content: "{", argv: ["--event-name", "pull_request"], want: "token-missing 1" },
    { name: "a capture whose name is a number", content: `{"event_name":1,"event":${bare}}`, want: "usage 2" },
    { name: "a capture without its event", content: `{"event_name":"push"}`, want: "usage 2" },
  ];
  for (const [index, { name, content, argv = [], env = {}, want }] of rows.entries()) {
    test(`of ${name}: ${want}`, async () => {
      const file = scratchFile(`replay-${index}.json`, content);
      assert.equal(statusLine(await verdictOf(["--replay", file, ...LOCAL, ...argv], env)), want);
    });
  }
});

// ─────────────────────────── every permutation ───────────────────────────

const TOKENS = {
  unset: undefined,
  empty: "",
  blank: " \t\n",
  malformed: "to ken-with-a-blank",
  present: ` ${STAND_IN_TOKEN}\n`,
};
type TokenKind = keyof typeof TOKENS;
type CanonicalKind = "in sync" | "drifted" | "unreachable";

/** What each kind of token comes to, by trust and by the canonical's state. */
const OUTCOMES: { token: TokenKind; canonical: CanonicalKind; trusted: string; untrusted: string }[] = [
  { token: "unset", canonical: "in sync", trusted: "token-missing 1", untrusted: "skipped 0" },
  { token: "unset", canonical: "drifted", trusted: "token-missing 1", untrusted: "skipped 0" },
  { token: "unset", canonical: "unreachable", trusted: "token-missing 1", untrusted: "skipped 0" },
  { token: "empty", canonical: "in sync", trusted: "token-missing 1", untrusted: "skipped 0" },
  { token: "empty", canonical: "drifted", trusted: "token-missing 1", untrusted: "skipped 0" },
  { token: "empty", canonical: "unreachable", trusted: "token-missing 1", untrusted: "skipped 0" },
  { token: "blank", canonical: "in sync", trusted: "token-missing 1", untrusted: "skipped 0" },
  { token: "blank", canonical: "drifted", trusted: "token-missing 1", untrusted: "skipped 0" },
  { token: "blank", canonical: "unreachable", trusted: "token-missing 1", untrusted: "skipped 0" },
  { token: "malformed", canonical: "in sync", trusted: "unverified token-malformed 3", untrusted: "unverified token-malformed 3" },
  { token: "malformed", canonical: "drifted", trusted: "unverified token-malformed 3", untrusted: "unverified token-malformed 3" },
  { token: "malformed", canonical: "unreachable", trusted: "unverified token-malformed 3", untrusted: "unverified token-malformed 3" },
  { token: "present", canonical: "in sync", trusted: "in-sync 0", untrusted: "in-sync 0" },
  { token: "present", canonical: "drifted", trusted: "drift 1", untrusted: "drift 1" },
  { token: "present", canonical: "unreachable", trusted: "unverified unreachable 3", untrusted: "unverified unreachable 3" },
];

describe("every event by every token by every canonical", () => {
  const good = useForge(playRepository);
  const gone = useForge((socket) => socket.destroy());
  const events: { name: string; trusted: boolean; capture: () => unknown }[] = [
    ...Object.entries(CAPTURED).map(([name, { trusted }]) => ({
      name,
      trusted,
      capture: () => captured(name),
    })),
    ...PAYLOADS.flatMap(({ name, payload, branch }) =>
      "missing" in payload || JSON.stringify(payload.value) === undefined
        ? []
        : [{ name: `${name} (made by hand)`, trusted: branch !== 3, capture: () => ({ event_name: "pull_request", event: payload.value }) }],
    ),
  ];
  for (const [index, { name, trusted, capture }] of events.entries()) {
    test(`${trusted ? "trusted" : "untrusted"}: ${name}`, async () => {
      const replay = scratchFile(`permutation-${index}.json`, JSON.stringify(capture()));
      for (const outcome of OUTCOMES) {
        const before = good.forge.asked.length + gone.forge.asked.length;
        const env = envFor(outcome.canonical === "unreachable" ? gone.url : good.url, {
          AUTO_SYNC_TOKEN: TOKENS[outcome.token],
          SYNC_COPY_PATH: outcome.canonical === "drifted" ? DRIFTED : CANONICAL,
          // Short where the back-off is waited for, long where the machine may be slow.
          SYNC_TIMEOUT_SECONDS: outcome.canonical === "unreachable" ? "1.5" : "30",
        });
        const got = statusLine(await verdictOf(["--replay", replay], env));
        const want = trusted ? outcome.trusted : outcome.untrusted;
        assert.equal(got, want, `token ${outcome.token}, canonical ${outcome.canonical}: got ${got}, want ${want}`);
        const isAsked = good.forge.asked.length + gone.forge.asked.length > before;
        assert.equal(isAsked, outcome.token === "present", "the forge is asked with a token only");
      }
    });
  }
});

describe("a missing token", () => {
  test("in a trusted context is one error that names the event and the remedy", async () => {
    const { exitCode, stdout } = await gate([], { GITHUB_EVENT_NAME: "schedule" });
    assert.equal(exitCode, 1);
    const [annotation = "", ...more] = annotations(stdout);
    assert.deepEqual(more, []);
    assert.match(annotation, /^::error::token-missing: .*"schedule".*Provision AUTO_SYNC_TOKEN \(read scope on molecule-controlplane\)/);
  });
  test("without an event name is an error too", async () => {
    const { exitCode, stdout } = await gate([]);
    assert.equal(exitCode, 1);
    assert.match(stdout, /^::error::token-missing: .*an event without a name/m);
  });
  test("on a fork's pull request is one warning that says that nothing was compared", async () => {
    const { exitCode, stdout } = await gate(["--replay", "fixtures/events/pr-fork-synchronize.json"]);
    assert.equal(exitCode, 0);
    const [annotation = "", ...more] = annotations(stdout);
    assert.deepEqual(more, []);
    assert.match(annotation, /^::warning::skipped: .*nothing was compared.*hermetic pin still guards hand edits/);
  });
});

// ─────────────────────────────── the wire ───────────────────────────────

describe("the fetch", () => {
  const forge = useForge(playRepository);
  test("asks for the commit, then for the file at it, with the token in one header", async () => {
    const { exitCode, stdout } = await gate([], envFor(forge.url, { SYNC_CANONICAL_REF: "release/1.0", SYNC_CANONICAL_PATH: "a b/ü?.yaml" }));
    assert.equal(exitCode, 0, stdout);
    const base = "/api/v1/repos/molecule-ai/molecule-controlplane";
    assert.deepEqual(
      forge.forge.asked.map(({ method, target }) => `${method} ${target}`),
      [`GET ${base}/git/commits/release%2F1.0?stat=false&verification=false&files=false`, `GET ${base}/raw/a%20b/%C3%BC%3F.yaml?ref=${COMMIT}`],
    );
    for (const { headers } of forge.forge.asked) {
      assert.equal(headers.get("authorization"), `token ${STAND_IN_TOKEN}`);
      assert.equal(headers.get("accept-encoding"), "identity");
      assert.match(headers.get("user-agent") ?? "", /^sync-providers\/1\.0\.0/);
    }
  });
});

describe("one connection", () => {
  let connections = 0;
  const seen = new Set<unknown>();
  const forge = useForge((socket, asked) => {
    if (!seen.has(socket)) connections += 1;
    seen.add(socket);
    const bytes = response(kindOf(asked) === "commit" ? "commit-of-branch" : "ok-at-commit");
    socket.on("close", () => seen.delete(socket));
    // A server that would keep an idle connection for ten minutes.
    socket.write(Buffer.from(bytes.toString("latin1").replace("Connection: close", "Keep-Alive: timeout=600"), "latin1"));
  });
  test("serves both requests, and is closed with the verdict", async () => {
    assert.equal(statusLine(await verdictOf([], envFor(forge.url))), "in-sync 0");
    assert.equal(connections, 1);
    while (seen.size > 0) await new Promise((resolve) => setTimeout(resolve, 10));
  });
});

/** An HTTP answer with its length, or without when `headers` brings its own framing. */
function answer(status: string, headers: Record<string, string> = {}, body: string | Buffer = ""): Play {
  const bytes = Buffer.from(body);
  const framing = "content-length" in headers || "transfer-encoding" in headers ? {} : { "content-length": String(bytes.length) };
  const lines = Object.entries({ ...headers, ...framing }).map(([name, value]) => `${name}: ${value}\r\n`);
  return (socket) => void socket.write(Buffer.concat([Buffer.from(`HTTP/1.1 ${status}\r\n${lines.join("")}\r\n`), bytes]));
}

/** Plays one way for one kind of request, and the captured repository for the others. */
function on(kind: ReturnType<typeof kindOf>, special: Play): Play {
  return (socket, asked) => (kindOf(asked) === kind ? special : playRepository)(socket, asked);
}

/** Plays each of the first answers once, then the captured repository. */
function first(...plays: Play[]): Play {
  const left = [...plays];
  return (socket, asked) => (left.shift() ?? playRepository)(socket, asked);
}

/** The captured commit and file, with something cut out of the raw bytes of the file's answer. */
function fileWith(change: (raw: string) => string): Play {
  const raw = response("ok-at-commit").toString("latin1");
  assert.notEqual(change(raw), raw, "the change found its place");
  return on("file", (socket) => void socket.end(Buffer.from(change(raw), "latin1")));
}

const BODY = readFileSync(CANONICAL);
/** `git hash-object` of the canonical fixture in a sha256 repository. */
const SHA256_BLOB_ID = "c6b8d6b4e5115944594d71ec9fcc912ab741df9fa990b25e8846ef309e91f96b";
const JSON_TYPE = { "content-type": "application/json" };

/** What the forge does, and what the gate makes of it. Made anew for each run, as many keep count. */
const FAULTS: {
  name: string;
  forge: () => Play;
  want: string;
  says?: RegExp;
  env?: Env;
  attempts?: number;
}[] = [
  // The connection.
  { name: "hangs up for ever", forge: () => (socket) => socket.destroy(), want: "unverified unreachable 3", attempts: 4 },
  { name: "is not there", forge: () => () => {}, env: { SYNC_CANONICAL_SERVER: "http://127.0.0.1:1" }, want: "unverified unreachable 3", says: /ECONNREFUSED/, attempts: 4 },
  { name: "has a name that nobody knows", forge: () => () => {}, env: { SYNC_CANONICAL_SERVER: "https://no-such-host.invalid" }, want: "unverified unreachable 3", says: /no-such-host/ },
  { name: "hangs up once", forge: () => first((socket) => socket.destroy()), want: "in-sync 0", says: /retry +1 of 3/, attempts: 3 },
  { name: "resets before the answer", forge: () => (socket) => socket.resetAndDestroy(), want: "unverified unreachable 3", says: /ECONNRESET/ },
  {
    name: "resets during the answer",
    forge: () => on("file", (socket) => socket.write(response("ok-at-commit").subarray(0, 700), () => socket.resetAndDestroy())),
    want: "unverified bad-response 3",
    says: /broke off/,
  },
  {
    name: "is silent",
    forge: () => () => {},
    want: "unverified timeout 3",
    env: { SYNC_TIMEOUT_SECONDS: "0.4" },
  },
  {
    name: "is silent once",
    forge: () => first(() => {}),
    want: "in-sync 0",
    says: /nothing came for 1 s/,
    env: { SYNC_TIMEOUT_SECONDS: "4" },
    attempts: 3,
  },
  { name: "speaks no HTTP", forge: () => (socket) => socket.end("SSH-2.0-OpenSSH_9.2\r\n"), want: "unverified bad-response 3", says: /HTTPParserError/, attempts: 1 },
  { name: "sends headers without end", forge: () => (socket) => socket.write(`HTTP/1.1 200 OK\r\nx: ${"y".repeat(200_000)}`), want: "unverified bad-response 3", says: /HEADERS_OVERFLOW/ },
  // The body.
  {
    name: "drips a byte at a time",
    forge: () =>
      on("file", (socket) => {
        socket.write("HTTP/1.1 200 OK\r\nContent-Length: 795\r\n\r\n");
        const drip = setInterval(() => socket.write("x"), 50);
        socket.on("close", () => clearInterval(drip));
      }),
    want: "unverified timeout 3",
    env: { SYNC_TIMEOUT_SECONDS: "0.6" },
  },
  { name: "stops short of the length", forge: () => fileWith((raw) => raw.slice(0, -1)), want: "unverified bad-response 3", says: /broke off/, attempts: 5 },
  {
    name: "stops short of the length on an open connection's end",
    forge: () => fileWith((raw) => raw.replace("Connection: close\r\n", "").slice(0, -1)),
    want: "unverified bad-response 3",
    says: /broke off/,
    attempts: 5,
  },
  { name: "stops short once", forge: () => first(playRepository, (socket) => void socket.end(response("ok-at-commit").subarray(0, 600))), want: "in-sync 0", says: /retry/, attempts: 3 },
  {
    name: "breaks off a chunked body",
    forge: () => on("file", (socket) => void socket.end("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")),
    want: "unverified bad-response 3",
    says: /broke off/,
  },
  { name: "sends more than the length", forge: () => fileWith((raw) => raw.replace("Content-Length: 795", "Content-Length: 794")), want: "unverified bad-response 3" },
  {
    name: "sends a broken chunk size",
    forge: () => on("file", (socket) => void socket.end("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n")),
    want: "unverified bad-response 3",
    says: /HTTPParserError/,
  },
  { name: "sends the file in chunks", forge: () => on("file", answer("200 OK", { "transfer-encoding": "chunked" }, `31b\r\n${BODY}\r\n0\r\n\r\n`)), want: "in-sync 0" },
  { name: "sends the file until the connection's end", forge: () => on("file", (socket) => void socket.end(Buffer.concat([Buffer.from("HTTP/1.1 200 OK\r\n\r\n"), BODY]))), want: "in-sync 0" },
  {
    name: "announces more than the limit",
    forge: () => playRepository,
    want: "unverified too-large 3",
    says: /795 bytes, more than 794 bytes/,
    env: { SYNC_MAX_BYTES: "794", SYNC_COPY_PATH: "fixtures/responses/crlf-file.http" },
    attempts: 2,
  },
  {
    name: "sends more than the limit unannounced",
    forge: () =>
      on("file", (socket) => {
        const flood = () => {
          while (socket.writable && socket.write(Buffer.alloc(65536)));
        };
        socket.on("drain", flood);
        socket.write("HTTP/1.1 200 OK\r\n\r\n");
        flood();
      }),
    want: "unverified too-large 3",
    says: /it has more than 10485760 bytes/,
  },
  // The bytes.
  {
    name: "flips a byte against the blob id",
    forge: () => fileWith((raw) => raw.replace("schema_version: 1", "schema_version: 2")),
    want: "unverified bad-response 3",
    says: /blob id e8edcdc409a7/,
    attempts: 2,
  },
  { name: "names the blob id weakly, and it is wrong", forge: () => fileWith((raw) => raw.replace('Etag: "e8', 'Etag: W/"e9')), want: "unverified bad-response 3", says: /blob id/ },
  { name: "announces just the limit", forge: () => playRepository, want: "in-sync 0", env: { SYNC_MAX_BYTES: "795" } },
  {
    name: "sends just the limit unannounced",
    forge: () => on("file", answer("200 OK", { "transfer-encoding": "chunked" }, `31b\r\n${BODY}\r\n0\r\n\r\n`)),
    want: "in-sync 0",
    env: { SYNC_MAX_BYTES: "795" },
  },
  {
    name: "sends one byte more than the limit unannounced",
    forge: () => on("file", answer("200 OK", { "transfer-encoding": "chunked" }, `31b\r\n${BODY}\r\n0\r\n\r\n`)),
    want: "unverified too-large 3",
    env: { SYNC_MAX_BYTES: "794", SYNC_COPY_PATH: "fixtures/responses/crlf-file.http" },
  },
  { name: "announces two lengths", forge: () => on("file", (socket) => void socket.end("HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\nabc")), want: "unverified bad-response 3" },
  {
    name: "compresses the transfer",
    forge: () => on("file", (socket) => void socket.end("HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n")),
    want: "unverified bad-response 3",
    says: /"gzip, chunked"/,
  },
  {
    name: "names two blob ids, the second wrong",
    forge: () => fileWith((raw) => raw.replace(/(Etag: "e8.*)\r\n/, `$1\r\nEtag: "${"0".repeat(40)}"\r\n`)),
    want: "unverified bad-response 3",
    says: /blob id 0000/,
  },
  {
    name: "answers in two halves with a pause before each",
    forge: () =>
      on("file", (socket) => {
        setTimeout(() => socket.write("HTTP/1.1 200 OK\r\nContent-Length: 795\r\n\r\n"), 1200);
        setTimeout(() => socket.write(BODY), 2400);
      }),
    want: "in-sync 0",
    env: { SYNC_TIMEOUT_SECONDS: "8" },
    attempts: 2,
  },
  { name: "names the blob id weakly, and it is wrong", forge: () => fileWith((raw) => raw.replace('Etag: "', 'Etag: W/"')), want: "in-sync 0" },
  { name: "names the blob id in capitals", forge: () => fileWith((raw) => raw.replace("e8edcdc409a79ecafa8c21f09ebc471ef430aa42", "E8EDCDC409A79ECAFA8C21F09EBC471EF430AA42")), want: "in-sync 0" },
  {
    name: "breaks off a chunked body where the connection was to close",
    forge: () => on("file", (socket) => void socket.end("HTTP/1.1 200 OK\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")),
    want: "unverified bad-response 3",
    says: /broke off/,
    attempts: 5,
  },
  { name: "has an opaque ETag", forge: () => fileWith((raw) => raw.replace('"e8edcd', '"gzip-e8edcd')), want: "in-sync 0" },
  { name: "has an ETag without quotes", forge: () => fileWith((raw) => raw.replace('"e8edcdc409a79ecafa8c21f09ebc471ef430aa42"', "e9edcdc409a79ecafa8c21f09ebc471ef430aa42")), want: "in-sync 0" },
  { name: "has no ETag", forge: () => fileWith((raw) => raw.replace(/Etag: .*\r\n/, "")), want: "in-sync 0" },
  { name: "names a sha256 blob id", forge: () => fileWith((raw) => raw.replace("e8edcdc409a79ecafa8c21f09ebc471ef430aa42", SHA256_BLOB_ID)), want: "in-sync 0" },
  {
    name: "names a wrong sha256 blob id",
    forge: () => fileWith((raw) => raw.replace("e8edcdc409a79ecafa8c21f09ebc471ef430aa42", `0${SHA256_BLOB_ID.slice(1)}`)),
    want: "unverified bad-response 3",
    says: /blob id 0/,
  },
  { name: "sends an empty file", forge: () => on("file", play("empty-file")), want: "drift 1", says: /line=1/ },
  { name: "sends a symbolic link", forge: () => on("file", play("symlink")), want: "unverified bad-response 3", says: /"symlink"/ },
  { name: "sends a Git LFS pointer", forge: () => on("file", play("lfs-pointer")), want: "unverified bad-response 3", says: /Git LFS/ },
  { name: "sends JSON as the file", forge: () => on("file", play("contents-endpoint")), want: "unverified bad-response 3", says: /application\/json/ },
  { name: "sends HTML in capitals", forge: () => on("file", answer("200 OK", { "content-type": "TEXT/HTML" }, BODY)), want: "unverified bad-response 3", says: /TEXT\/HTML/ },
  { name: "sends HTML as the file", forge: () => on("file", answer("200 OK", { "content-type": "text/html" }, BODY)), want: "unverified bad-response 3", says: /text\/html/ },
  { name: "sends gzip unasked", forge: () => on("file", answer("200 OK", { "content-encoding": "gzip" }, BODY)), want: "unverified bad-response 3", says: /"gzip"/ },
  {
    name: "names the encoding twice",
    forge: () => on("file", answer("200 OK\r\ncontent-encoding: identity\r\ncontent-encoding: gzip", {}, BODY)),
    want: "unverified bad-response 3",
    says: /"identity, gzip"/,
  },
  { name: "names the encoding that was asked for", forge: () => on("file", answer("200 OK", { "content-encoding": "Identity" }, BODY)), want: "in-sync 0" },
  // The statuses.
  { name: "refuses the token", forge: () => play("bad-token"), want: "unverified token-rejected 3", says: /401, saying "user does not exist/, attempts: 1 },
  { name: "refuses the token for the file", forge: () => on("file", play("bad-token")), want: "unverified token-rejected 3" },
  { name: "misses the scope", forge: () => play("token-without-scope"), want: "unverified token-scope 3", says: /read:repository/, attempts: 1 },
  { name: "misses the scope, on 1.25", forge: () => play("gitea-1.25.4-token-without-scope"), want: "unverified token-scope 3" },
  { name: "shows no such repository", forge: () => play("repo-invisible"), want: "unverified repo-not-visible 3", says: /molecule-ai\/molecule-controlplane/, attempts: 2 },
  { name: "has no such ref", forge: () => on("commit", play("commit-of-missing-ref")), want: "unverified ref-not-found 3", says: /"main"/ },
  { name: "cannot read the ref", forge: () => on("commit", answer("422 Unprocessable Entity")), want: "unverified ref-not-found 3", says: /"main~1"/, env: { SYNC_CANONICAL_REF: "main~1" } },
  { name: "has no such file", forge: () => on("file", play("missing-file")), want: "unverified file-not-found 3", says: /providers\.yaml/ },
  { name: "has a directory there", forge: () => on("file", play("directory")), want: "unverified file-not-found 3", says: /directory/ },
  { name: "takes the token back between two requests", forge: () => first(play("commit-of-missing-ref"), play("bad-token")), want: "unverified token-rejected 3" },
  { name: "answers the question for the repository with an error", forge: () => first(play("commit-of-missing-ref"), play("token-without-scope")), want: "unverified token-scope 3" },
  { name: "answers 204", forge: () => on("file", answer("204 No Content")), want: "unverified bad-response 3", says: /204/, attempts: 2 },
  { name: "answers 206", forge: () => on("file", answer("206 Partial Content", {}, BODY)), want: "unverified bad-response 3", says: /206/ },
  { name: "answers 304", forge: () => on("file", answer("304 Not Modified")), want: "unverified bad-response 3", says: /304/ },
  { name: "answers 400 with a body that is not JSON", forge: () => answer("400 Bad Request", {}, "no"), want: "unverified bad-response 3", says: /answered 400\./ },
  { name: "answers 400 with a message that is no text", forge: () => answer("400 Bad Request", {}, '{"message":1}'), want: "unverified bad-response 3", says: /answered 400\./ },
  { name: "answers 400 with an empty message", forge: () => answer("400 Bad Request", {}, '{"message":""}'), want: "unverified bad-response 3", says: /answered 400\./ },
  {
    name: "answers 401 with an endless body",
    forge: () => (socket) => {
      socket.write("HTTP/1.1 401 No\r\n\r\n");
      const drip = setInterval(() => socket.write("x".repeat(4000)), 5);
      socket.on("close", () => clearInterval(drip));
    },
    want: "unverified token-rejected 3",
  },
  { name: "answers 401 with a body that never comes", forge: () => answer("401 No", { "content-length": "10" }), want: "unverified token-rejected 3" },
  // Retries.
  ...[429, 500, 502, 503, 504].flatMap((status) => [
    { name: `answers ${status} once`, forge: () => first(answer(`${status} Busy`)), want: "in-sync 0", says: new RegExp(`retry +1 of 3: .*${status}`), attempts: 3 },
    { name: `answers ${status} for ever`, forge: () => answer(`${status} Busy`), want: "unverified server-error 3", says: new RegExp(`${status}`), attempts: 4 },
  ]),
  { name: "answers 501", forge: () => answer("501 Not Implemented"), want: "unverified server-error 3", attempts: 1 },
  { name: "answers 599", forge: () => answer("599 Odd"), want: "unverified server-error 3", attempts: 1 },
  { name: "answers 418", forge: () => answer("418 Teapot"), want: "unverified bad-response 3", says: /418/, attempts: 1 },
  { name: "answers 503, then refuses the token", forge: () => first(answer("503 Busy"), play("bad-token")), want: "unverified token-rejected 3", attempts: 2 },
  { name: "answers 503, then speaks no HTTP", forge: () => first(answer("503 Busy"), (socket) => void socket.end("nonsense\r\n\r\n")), want: "unverified bad-response 3", attempts: 2 },
  { name: "asks to wait a second", forge: () => first(answer("503 Busy", { "retry-after": "1" })), want: "in-sync 0", says: /in 1 s, as the forge asked/ },
  { name: "asks to wait until a date", forge: () => first(answer("429 Slow", { "retry-after": new Date(Date.now() - 5000).toUTCString() })), want: "in-sync 0", says: /retry +1 of 3: / },
  {
    name: "asks to wait for ever",
    forge: () => first(answer("503 Busy", { "retry-after": "99999999999999999999" })),
    want: "unverified server-error 3",
    says: /asked to wait \d+ s, more than the deadline leaves/,
    attempts: 1,
  },
  {
    name: "asks to wait until a far date",
    forge: () => first(answer("503 Busy", { "retry-after": "Fri, 31 Dec 9999 23:59:59 GMT" })),
    want: "unverified server-error 3",
    says: /more than the deadline leaves/,
  },
  { name: "asks to wait in words", forge: () => first(answer("503 Busy", { "retry-after": "soon" })), want: "in-sync 0", attempts: 3 },
  { name: "asks to wait until a year alone, which is no date of HTTP", forge: () => first(answer("503 Busy", { "retry-after": "9999" + " AD" })), want: "in-sync 0" },
  { name: "asks to wait until a date without sense", forge: () => first(answer("503 Busy", { "retry-after": "Foo, 99 GMT" })), want: "in-sync 0" },
  {
    name: "asks to wait longer than the deadline while it retries",
    forge: () => answer("503 Busy", { "retry-after": "1" }),
    want: "unverified server-error 3",
    env: { SYNC_TIMEOUT_SECONDS: "1.5" },
    says: /more than the deadline leaves/,
  },
  // The commit's answer.
  { name: "answers the commit with no JSON", forge: () => on("commit", answer("200 OK", JSON_TYPE, "<html>")), want: "unverified bad-response 3", says: /no commit id/, attempts: 1 },
  { name: "answers the commit without a sha", forge: () => on("commit", answer("200 OK", JSON_TYPE, "{}")), want: "unverified bad-response 3", says: /no commit id/ },
  { name: "answers the commit with a path for a sha", forge: () => on("commit", answer("200 OK", JSON_TYPE, '{"sha":"../../../../user"}')), want: "unverified bad-response 3", says: /no commit id/ },
  { name: "answers the commit with a short sha", forge: () => on("commit", answer("200 OK", JSON_TYPE, '{"sha":"9d3b4a7"}')), want: "unverified bad-response 3" },
  { name: "answers the commit with a list", forge: () => on("commit", answer("200 OK", JSON_TYPE, `[{"sha":"${COMMIT}"}]`)), want: "unverified bad-response 3" },
  {
    name: "answers the commit without end",
    forge: () =>
      on("commit", (socket) => {
        const flood = () => {
          while (socket.writable && socket.write(Buffer.alloc(65536, " ")));
        };
        socket.on("drain", flood);
        socket.write("HTTP/1.1 200 OK\r\n\r\n");
        flood();
      }),
    want: "unverified too-large 3",
    says: /more than 1048576/,
  },
  { name: "answers the commit of a sha256 repository", forge: () => on("commit", answer("200 OK", JSON_TYPE, `{"sha":"${"AB".repeat(32)}"}`)), want: "in-sync 0", says: /commit ababababab\)/ },
];

const ECHO = Buffer.from(STAND_IN_TOKEN).toString("base64");

/** A forge, or whatever stands before it, that repeats the token wherever the gate might quote it. */
const ECHOES: { name: string; forge: () => Play; want: string }[] = [
  { name: "an error's message", forge: () => answer("401 No", {}, JSON.stringify({ message: `no ${STAND_IN_TOKEN} ${ECHO}` })), want: "unverified token-rejected 3" },
  { name: "a redirect's target", forge: () => answer("302 Found", { location: `http://127.0.0.1:1/${STAND_IN_TOKEN}/${ECHO}?${STAND_IN_TOKEN}` }), want: "unverified redirected 3" },
  { name: "a redirect's user name", forge: () => answer("302 Found", { location: `http://${STAND_IN_TOKEN}@127.0.0.1:1/` }), want: "unverified redirected 3" },
  { name: "a redirect's host", forge: () => answer("302 Found", { location: `http://${STAND_IN_TOKEN}/` }), want: "unverified redirected 3" },
  {
    name: "a moved repository's name",
    forge: () => answer("301 Moved", { location: `/api/v1/repos/a/${STAND_IN_TOKEN}/git/commits/main?stat=false&verification=false&files=false` }),
    want: "unverified redirected 3",
  },
  { name: "the file's type", forge: () => on("file", answer("200 OK", { "content-type": `text/html; x=${STAND_IN_TOKEN}` })), want: "unverified bad-response 3" },
  { name: "the object's kind", forge: () => on("file", answer("200 OK", { "x-gitea-object-type": STAND_IN_TOKEN })), want: "unverified bad-response 3" },
  {
    name: "the file's type, at the edge of what is quoted",
    forge: () => on("file", answer("200 OK", { "content-type": `text/html; ${"x".repeat(270)}${STAND_IN_TOKEN}` })),
    want: "unverified bad-response 3",
  },
  { name: "the encoding", forge: () => on("file", answer("200 OK", { "content-encoding": STAND_IN_TOKEN })), want: "unverified bad-response 3" },
  { name: "an answer that is no HTTP", forge: () => (socket) => void socket.end(`${STAND_IN_TOKEN}\r\n\r\n`), want: "unverified bad-response 3" },
  { name: "a message at the edge of what is quoted", forge: () => answer("400 Bad", {}, JSON.stringify({ message: `${"x".repeat(280)}${STAND_IN_TOKEN}` })), want: "unverified bad-response 3" },
];

describe("the token is not printed when it comes back in", () => {
  for (const { name, forge, want } of ECHOES) {
    test(name, async () => {
      const server = await startForge(forge());
      const ran = await gate(["--json"], envFor(server.url, { SYNC_DEBUG: "1" }));
      await server.close();
      assert.equal(statusLine(JSON.parse(ran.stdout)), want, ran.stderr);
      assert.doesNotMatch(ran.stderr, /stand-in-tok/, "not even its beginning");
    });
  }
});

describe("when the forge", { concurrency: 8 }, () => {
  for (const { name, forge, want, says = /./, env = {}, attempts } of FAULTS) {
    test(`${name}: ${want}`, async () => {
      const server = await startForge(forge());
      const ran = await gate(["--json"], envFor(server.url, env));
      await server.close();
      const document = JSON.parse(ran.stdout);
      assert.equal(statusLine(document), want, ran.stderr);
      assert.match(ran.stderr, says);
      if (attempts !== undefined) assert.equal(document.attempts, attempts, ran.stderr);
    });
  }
});

/** A proxy that hands every CONNECT on to its target, as it is asked to. */
function tunnel(asked: { target: string }, socket: Socket): void {
  const [host = "", port = ""] = asked.target.split(":");
  const target = connect(Number(port), host, () => {
    socket.write("HTTP/1.1 200 Connection established\r\n\r\n");
    target.pipe(socket).pipe(target);
  });
  socket.on("close", () => target.destroy());
}

describe("a proxy", () => {
  const forge = useForge(playRepository);
  const proxy = useForge((socket, asked) => tunnel(asked, socket));
  const strict = useForge((socket) => void socket.end("HTTP/1.1 407 Proxy Authentication Required\r\n\r\n"));
  const mute = useForge(() => {});
  const rude = useForge((socket) => void socket.end());
  const mad = useForge((socket) => void socket.end("HTTP/1.1 200 OK\r\n\r\nnonsense"));
  const rows: { name: string; env: () => Env; want: string; tunnels: number }[] = [
    { name: "is used", env: () => ({ HTTP_PROXY: proxy.url }), want: "in-sync 0", tunnels: 2 },
    { name: "is used by its lower-case name first", env: () => ({ http_proxy: proxy.url, HTTP_PROXY: strict.url }), want: "in-sync 0", tunnels: 2 },
    { name: "is passed by for a host of NO_PROXY", env: () => ({ HTTP_PROXY: strict.url, NO_PROXY: "127.0.0.1" }), want: "in-sync 0", tunnels: 0 },
    { name: "for https: alone is not used for http:", env: () => ({ HTTPS_PROXY: strict.url }), want: "in-sync 0", tunnels: 0 },
    { name: "that refuses is named", env: () => ({ HTTP_PROXY: strict.url }), want: "unverified unreachable 3", tunnels: 0 },
    { name: "that is not there is named", env: () => ({ HTTP_PROXY: "http://127.0.0.1:1" }), want: "unverified unreachable 3", tunnels: 0 },
    { name: "that hangs up after the request", env: () => ({ HTTP_PROXY: rude.url }), want: "unverified unreachable 3", tunnels: 0 },
    { name: "that speaks nonsense in the tunnel", env: () => ({ HTTP_PROXY: mad.url }), want: "unverified unreachable 3", tunnels: 0 },
    { name: "that is silent ends with the deadline", env: () => ({ HTTP_PROXY: mute.url, SYNC_TIMEOUT_SECONDS: "0.4" }), want: "unverified timeout 3", tunnels: 0 },
    { name: "without a scheme is a wrong setting", env: () => ({ HTTP_PROXY: "proxy:3128" }), want: "usage 2", tunnels: 0 },
    { name: "of another scheme is a wrong setting", env: () => ({ HTTP_PROXY: "socks5://proxy:1080" }), want: "usage 2", tunnels: 0 },
    { name: "that is no URL is a wrong setting", env: () => ({ HTTP_PROXY: "http://" }), want: "usage 2", tunnels: 0 },
    { name: "with a broken escape in its password is a wrong setting", env: () => ({ HTTP_PROXY: "http://me:%zz@127.0.0.1:1" }), want: "usage 2", tunnels: 0 },
    { name: "for https: is not looked at for http:", env: () => ({ HTTPS_PROXY: "nonsense" }), want: "in-sync 0", tunnels: 0 },
    { name: "for http: is not used for https:", env: () => ({ HTTP_PROXY: proxy.url, SYNC_CANONICAL_SERVER: "https://127.0.0.1:1" }), want: "unverified unreachable 3", tunnels: 0 },
  ];
  for (const { name, env, want, tunnels } of rows) {
    test(`${name}: ${want}`, async () => {
      const before = proxy.forge.asked.length;
      assert.equal(statusLine(await verdictOf([], envFor(forge.url, env()))), want);
      assert.equal(proxy.forge.asked.length - before, tunnels);
    });
  }
  test("that hangs up is not stormed", () => {
    for (const { forge } of [rude, mad]) assert.ok(forge.asked.length <= 40, `${forge.asked.length} connections`);
  });
  test("is named where it may read the token", async () => {
    assert.match((await gate([], envFor(forge.url, { HTTP_PROXY: proxy.url }))).stdout, /^token .*HTTP_PROXY, where it is used, may read it/m);
    const tls = envFor("https://127.0.0.1:1", { HTTPS_PROXY: strict.url });
    assert.match((await gate([], tls)).stdout, /^token .*HTTPS_PROXY, where it is used, sees no header/m);
  });
  test("sees no token", () => {
    for (const { method, headers } of [...proxy.forge.asked, ...strict.forge.asked, ...mute.forge.asked]) {
      assert.equal(method, "CONNECT");
      assert.equal(headers.get("authorization"), undefined);
    }
  });
});

describe("TLS", () => {
  const pem = { key: readFileSync("fixtures/tls/key.pem"), cert: readFileSync("fixtures/tls/cert.pem") };
  const secure = () => startForge(playRepository, createTlsServer(pem), "https");
  const mute = useForge(() => {});
  test("with a self-signed certificate is unreachable, at once and without the token", async () => {
    const forge = await secure();
    const ran = await gate(["--json"], envFor(forge.url));
    await forge.close();
    const document = JSON.parse(ran.stdout);
    assert.equal(statusLine(document), "unverified unreachable 3");
    assert.match(ran.stderr, /DEPTH_ZERO_SELF_SIGNED_CERT.*NODE_EXTRA_CA_CERTS/);
    assert.equal(document.attempts, 1);
    assert.deepEqual(forge.asked, []);
  });
  test("with a private authority works by NODE_EXTRA_CA_CERTS, through a proxy as well", async () => {
    const forge = await secure();
    const proxy = await startForge((socket, asked) => tunnel(asked, socket));
    const env = envFor(forge.url, { NODE_EXTRA_CA_CERTS: "fixtures/tls/cert.pem" });
    const direct = await run(command(), env);
    const proxied = await run(command(), { ...env, HTTPS_PROXY: proxy.url });
    await Promise.all([forge.close(), proxy.close()]);
    assert.deepEqual([direct.exitCode, proxied.exitCode], [0, 0], direct.stdout + proxied.stdout);
    assert.deepEqual([forge.asked.length, proxy.asked.length], [4, 2]);
  });
  test("to a server that speaks plain HTTP is unreachable, at once", async () => {
    const server = createServer((socket) => socket.on("error", () => {}).end("HTTP/1.1 400 Bad Request\r\n\r\n"));
    await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
    const address = server.address();
    assert.ok(typeof address === "object" && address !== null);
    const document = await verdictOf([], envFor(`https://127.0.0.1:${address.port}`));
    server.close();
    assert.equal(statusLine(document), "unverified unreachable 3");
    assert.equal(document.attempts, 1);
  });
  test("to a server that never shakes hands ends with the deadline", async () => {
    const env = envFor(mute.url.replace("http:", "https:"), { SYNC_TIMEOUT_SECONDS: "0.4" });
    assert.equal(statusLine(await verdictOf([], env)), "unverified timeout 3");
  });
});

describe("a redirect", () => {
  const to = (status: string, location: string) => answer(status, { location });
  const API = "/api/v1/repos/molecule-ai";
  const COMMIT_ASK = "/git/commits/main?stat=false&verification=false&files=false";
  const FILE_ASK = `/raw/internal/providers/providers.yaml?ref=${COMMIT}`;
  const moved = (location: string, status = "301 Moved Permanently") => first(to(status, location));
  const followed: { name: string; forge: () => Play; attempts: number }[] = [
    { name: "of a moved repository (307)", forge: () => moved(`${API}/controlplane${COMMIT_ASK}`, "307 Temporary Redirect"), attempts: 3 },
    { name: "of a moved repository (301)", forge: () => moved(`${API}/controlplane${COMMIT_ASK}`), attempts: 3 },
    { name: "of a repository of another owner", forge: () => moved(`/api/v1/repos/new/name${COMMIT_ASK}`), attempts: 3 },
    { name: "twice", forge: () => first(to("301 Moved", `${API}/b${COMMIT_ASK}`), to("301 Moved", `${API}/c${COMMIT_ASK}`)), attempts: 4 },
    { name: "between the two requests", forge: () => first(playRepository, to("301 Moved", `${API}/b${FILE_ASK}`)), attempts: 3 },
  ];
  for (const { name, forge, attempts } of followed) {
    test(`is followed: ${name}`, async () => {
      const server = await startForge(forge());
      const ran = await gate(["--json"], envFor(server.url));
      await server.close();
      assert.equal(ran.exitCode, 0, ran.stderr);
      assert.match(ran.stderr, /^moved .*set SYNC_CANONICAL_REPO/m);
      assert.equal(JSON.parse(ran.stdout).attempts, attempts);
    });
  }
  test("once followed holds for the second request, and is named in the report", async () => {
    const server = await startForge(moved(`/api/v1/repos/new/name${COMMIT_ASK}`));
    const ran = await gate(["--json"], envFor(server.url));
    await server.close();
    assert.equal(server.asked[2]?.target, `/api/v1/repos/new/name${FILE_ASK}`);
    assert.equal(JSON.parse(ran.stdout).canonical.repo, "new/name");
  });

  const elsewhere = useForge(playRepository);
  const refused: { name: string; forge: () => Play; says: RegExp }[] = [
    { name: "to another origin", forge: () => moved(`${elsewhere.url}${API}/b${COMMIT_ASK}`), says: /leads to "http:\/\/127\.0\.0\.1:\d+\/api\/v1\/repos\/molecule-ai\/b/ },
    { name: "to another host without a scheme", forge: () => moved(`//evil.example${API}/b${COMMIT_ASK}`), says: /http:\/\/evil\.example/ },
    { name: "to another scheme", forge: () => moved(`https://127.0.0.1${API}/b${COMMIT_ASK}`), says: /https:/ },
    { name: "to a sign-in page", forge: () => moved("/user/login", "303 See Other"), says: /\/user\/login/ },
    { name: "to another file", forge: () => moved(`${API}/b/raw/other`), says: /other/ },
    { name: "to another query", forge: () => moved(`${API}/b/git/commits/main?ref=x`), says: /leads to/ },
    { name: "to another API", forge: () => moved(`/api/v9/repos/molecule-ai/b${COMMIT_ASK}`), says: /leads to/ },
    { name: "to a path above the API", forge: () => moved(`${API}/b/../../../../../x${COMMIT_ASK}`), says: /leads to/ },
    { name: "to a repository without a name", forge: () => moved(`/api/v1/repos/a/${COMMIT_ASK}`), says: /leads to/ },
    { name: "to itself", forge: () => moved(`${API}/molecule-controlplane${COMMIT_ASK}`), says: /on and on/ },
    { name: "a third time", forge: () => first(...["b", "c", "d"].map((name) => to("301 Moved", `${API}/${name}${COMMIT_ASK}`))), says: /on and on/ },
    { name: "to no place", forge: () => answer("302 Found"), says: /names no place/ },
    { name: "to nonsense", forge: () => moved("http://["), says: /names no place/ },
  ];
  for (const { name, forge, says } of refused) {
    test(`is refused: ${name}`, async () => {
      const server = await startForge(forge());
      const ran = await gate(["--json"], envFor(server.url));
      await server.close();
      assert.equal(statusLine(JSON.parse(ran.stdout)), "unverified redirected 3", ran.stderr);
      assert.match(ran.stderr, says);
      assert.equal(elsewhere.forge.asked.length, 0, "the other origin was asked");
    });
  }
});

describe("a server on a sub-path", () => {
  test("is asked there, and its redirects are read there", async () => {
    const place = "/git/api/v1/repos/a/b/git/commits/main?stat=false&verification=false&files=false";
    const server = await startForge(first(answer("301 Moved", { location: place })));
    const ran = await gate([], envFor(`${server.url}/git/`));
    await server.close();
    assert.equal(ran.exitCode, 0, ran.stdout);
    assert.deepEqual(
      server.asked.map(({ target }) => target.slice(0, 27)),
      ["/git/api/v1/repos/molecule-", "/git/api/v1/repos/a/b/git/c", "/git/api/v1/repos/a/b/raw/i"],
    );
  });
});

// ─────────────────────────────── files ───────────────────────────────

describe("the copy and the local canonical", () => {
  const link = join(scratch, "link.yaml");
  before(() => symlinkSync(join(ROOT, CANONICAL), link));
  const rows: { name: string; argv: string[]; env?: Env; want: string; says: RegExp }[] = [
    { name: "no copy", argv: ["--canonical", CANONICAL, "--copy", "none.yaml"], want: "unverified copy-unreadable 3", says: /there is no such file/ },
    { name: "a copy below a file", argv: ["--canonical", CANONICAL, "--copy", `${CANONICAL}/x`], want: "unverified copy-unreadable 3", says: /not a directory/ },
    { name: "a copy with too long a name", argv: ["--canonical", CANONICAL, "--copy", "x".repeat(300)], want: "unverified copy-unreadable 3", says: /ENAMETOOLONG/ },
    { name: "a directory as the copy", argv: ["--canonical", CANONICAL, "--copy", "fixtures"], want: "unverified copy-unreadable 3", says: /it is a directory/ },
    { name: "a symbolic link as the copy", argv: ["--canonical", CANONICAL, "--copy", link], want: "unverified copy-unreadable 3", says: /it is a symbolic link/ },
    { name: "a device as the copy", argv: ["--canonical", CANONICAL, "--copy", "/dev/null"], want: "unverified copy-unreadable 3", says: /not a regular file/ },
    { name: "a copy that cannot be read to its end", argv: ["--canonical", CANONICAL, "--copy", "/proc/self/mem"], want: "unverified copy-unreadable 3", says: /EIO/ },
    {
      name: "a copy whose size is a lie",
      argv: ["--canonical", CANONICAL, "--copy", "/proc/cpuinfo"],
      env: { SYNC_MAX_BYTES: "10" },
      want: "unverified too-large 3",
      says: /more bytes than it says, more than 10/,
    },
    { name: "a copy over the limit", argv: LOCAL, env: { SYNC_MAX_BYTES: "794" }, want: "unverified too-large 3", says: /795 bytes, more than 794/ },
    { name: "no local canonical", argv: ["--canonical", "none.yaml", "--copy", CANONICAL], want: "unverified file-not-found 3", says: /there is no such file/ },
    {
      name: "a local canonical over the limit",
      argv: ["--canonical", CANONICAL, "--copy", "fixtures/responses/crlf-file.http"],
      env: { SYNC_MAX_BYTES: "794" },
      want: "unverified too-large 3",
      says: /795 bytes/,
    },
    { name: "a Git LFS pointer as the local canonical", argv: ["--canonical", join(scratch, "lfs"), "--copy", CANONICAL], want: "unverified bad-response 3", says: /Git LFS/ },
  ];
  before(() => scratchFile("lfs", "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"));
  for (const { name, argv, env = {}, want, says } of rows) {
    test(`${name}: ${want}`, async () => {
      assert.equal(statusLine(await verdictOf(argv, env)), want);
      assert.match((await gate(argv, env)).stdout, says);
    });
  }
  test("a file whose size is a lie is read whole", async () => {
    assert.equal(statusLine(await verdictOf(["--canonical", "/proc/version", "--copy", "/proc/version"])), "in-sync 0");
  });
  test("without a copy nothing is asked and no token is sent", async () => {
    const forge = await startForge(playRepository);
    assert.equal(statusLine(await verdictOf(["--copy", "none"], envFor(forge.url))), "unverified copy-unreadable 3");
    await forge.close();
    assert.deepEqual(forge.asked, []);
  });
  test("a link to the local canonical is followed", async () => {
    assert.equal(statusLine(await verdictOf(["--canonical", link, "--copy", CANONICAL])), "in-sync 0");
  });
});

// ───────────────────────────── comparison ─────────────────────────────

describe("the first differing line", () => {
  const rows = [
    { name: "the first", copy: "a\nb\n", canonical: "x\nb\n", want: 1 },
    { name: "the last", copy: "a\nb\nc\n", canonical: "a\nb\nx\n", want: 3 },
    { name: "past the end of a copy that stops", copy: "a\nb\n", canonical: "a\nb\nc\n", want: 3 },
    { name: "the line that the copy has more", copy: "a\nb\nc\n", canonical: "a\nb\n", want: 3 },
    { name: "a line that lacks its end", copy: "a\nb", canonical: "a\nb\n", want: 2 },
    { name: "a line with another end", copy: "a\r\nb\r\n", canonical: "a\nb\n", want: 1 },
    { name: "a line that became longer", copy: "a\nbb\n", canonical: "a\nb\n", want: 2 },
    { name: "of an empty copy", copy: "", canonical: "a\n", want: 1 },
    { name: "of an empty canonical", copy: "a\n", canonical: "", want: 1 },
  ];
  for (const { name, copy, canonical, want } of rows) {
    test(`is ${name}`, () => assert.equal(firstDifferingLine(Buffer.from(copy), Buffer.from(canonical)), want));
  }
});

describe("the verdict", () => {
  const trusted: Context = { event: "push", branch: 1, trusted: true, why: "" };
  const untrusted: Context = { event: "pull_request", branch: 3, trusted: false, why: "" };
  const a = { bytes: Buffer.from("a"), sha256: "ca978112ca1b" };
  const b = { bytes: Buffer.from("b"), sha256: "3e23e8160039" };
  const lost = new Failure({ status: "unverified", reason: "copy-unreadable", message: "gone", remedy: "" });
  const wrong = new Failure({ status: "usage", message: "wrong", remedy: "" });
  const base = {
    context: trusted,
    token: "present",
    tokenCounts: true,
    copy: a,
    canonical: a,
    pin: null,
    names: { copy: "", canonical: "" },
  } as const;
  const pinOf = (sha256: string) => ({ path: "pin", sha256, bytes: Buffer.from(sha256), offset: 0 });
  const noPin = new Failure({ status: "unverified", reason: "pin-unreadable", message: "no", remedy: "" });
  const rows = [
    { name: "same bytes", evidence: base, want: ["in-sync"] },
    { name: "other bytes", evidence: { ...base, canonical: b }, want: ["drift"] },
    { name: "same bytes, no token needed", evidence: { ...base, token: "missing", tokenCounts: false }, want: ["in-sync"] },
    { name: "no copy", evidence: { ...base, copy: lost, canonical: null }, want: ["unverified"] },
    { name: "no canonical", evidence: { ...base, canonical: lost }, want: ["unverified"] },
    { name: "no canonical for want of a setting, and no copy", evidence: { ...base, copy: lost, canonical: wrong }, want: ["usage", "unverified"] },
    { name: "no token in a trusted context", evidence: { ...base, token: "missing", copy: null, canonical: null }, want: ["token-missing"] },
    { name: "no token in an untrusted context", evidence: { ...base, context: untrusted, token: "missing", copy: null, canonical: null }, want: ["skipped"] },
    { name: "no token in an untrusted context, and no copy", evidence: { ...base, context: untrusted, token: "missing", copy: lost, canonical: null }, want: ["unverified", "skipped"] },
    { name: "a malformed token in an untrusted context", evidence: { ...base, context: untrusted, token: "malformed", copy: null, canonical: null }, want: ["unverified"] },
    { name: "same bytes, and the pin", evidence: { ...base, pin: pinOf(a.sha256) }, want: ["in-sync"] },
    { name: "same bytes, and another pin", evidence: { ...base, pin: pinOf(b.sha256) }, want: ["pin-mismatch", "in-sync"] },
    { name: "same bytes, and no pin to read", evidence: { ...base, pin: noPin }, want: ["unverified", "in-sync"] },
    { name: "other bytes, the pin of the copy", evidence: { ...base, canonical: b, pin: pinOf(a.sha256) }, want: ["drift"] },
    { name: "other bytes, the pin of the canonical", evidence: { ...base, canonical: b, pin: pinOf(b.sha256) }, want: ["drift", "pin-mismatch"] },
    { name: "other bytes, and no pin to read", evidence: { ...base, canonical: b, pin: noPin }, want: ["drift", "unverified"] },
    { name: "no canonical, and another pin", evidence: { ...base, canonical: lost, pin: pinOf(b.sha256) }, want: ["pin-mismatch", "unverified"] },
    { name: "no token in a trusted context, and another pin", evidence: { ...base, token: "missing", canonical: null, pin: pinOf(b.sha256) }, want: ["token-missing", "pin-mismatch"] },
    { name: "no token in an untrusted context, and the pin", evidence: { ...base, context: untrusted, token: "missing", canonical: null, pin: pinOf(a.sha256) }, want: ["skipped"] },
    {
      name: "no token in an untrusted context, and another pin",
      evidence: { ...base, context: untrusted, token: "missing", canonical: null, pin: pinOf(b.sha256) },
      want: ["pin-mismatch", "skipped"],
    },
    { name: "no token in an untrusted context, and no pin to read", evidence: { ...base, context: untrusted, token: "missing", canonical: null, pin: noPin }, want: ["unverified", "skipped"] },
    { name: "nothing at all", evidence: { ...base, copy: null, canonical: null }, want: ["unverified"] },
    { name: "a copy alone", evidence: { ...base, canonical: null }, want: ["unverified"] },
  ] as const;
  for (const { name, evidence, want } of rows) {
    test(`on ${name}: ${want.join(", then ")}`, () =>
      assert.deepEqual(
        judge(evidence).map(({ status }) => status),
        want,
      ));
  }
});

// ──────────────────────── pin and diagnosis ────────────────────────

const CANONICAL_SUM = "b54630fe7d7fee356fea8bc3d224b9dd31fdbe2bd7f004e299ff4f75254a9795";
const DRIFTED_SUM = "9ccc1c93c3426520f36cce9e61bde0dadeb00c180605e2340e46bd4d30226edd";
const OTHER_SUM = "0".repeat(64);

describe("the pin file", () => {
  const good = [
    { name: "the sum alone", content: CANONICAL_SUM },
    { name: "a sha256sum file", content: `${CANONICAL_SUM}  providers.yaml\n` },
    { name: "a Go constant", content: `package x\n\nconst canonicalSHA256 = "${CANONICAL_SUM}"\n` },
    { name: "capitals", content: CANONICAL_SUM.toUpperCase() },
    { name: "bytes that are no UTF-8 around it", content: Buffer.concat([Buffer.from([0xff, 0xfe, 0x20]), Buffer.from(CANONICAL_SUM)]) },
    { name: "longer and shorter words of hex beside it", content: `${"a".repeat(65)} ${"b".repeat(63)} ${CANONICAL_SUM}` },
  ];
  for (const { name, content } of good) {
    test(`is read from ${name}`, async () => {
      const pin = scratchFile("pin-good", content);
      const document = await verdictOf([...LOCAL, "--pin", pin]);
      assert.equal(statusLine(document), "in-sync 0");
      assert.deepEqual(document.pin, { path: pin, sha256: CANONICAL_SUM });
    });
  }
  const bad: { name: string; content: string; says: RegExp }[] = [
    { name: "no sum", content: "nothing", says: /no word of 64 hex digits/ },
    { name: "an empty file", content: "", says: /no word of 64 hex digits/ },
    { name: "63 digits", content: CANONICAL_SUM.slice(1), says: /no word/ },
    { name: "65 digits", content: `${CANONICAL_SUM}0`, says: /no word/ },
    { name: "a sum within a word", content: `x${CANONICAL_SUM}`, says: /no word/ },
    { name: "a sum before a word's end", content: `${CANONICAL_SUM}_old`, says: /no word/ },
    { name: "two sums", content: `${CANONICAL_SUM} ${OTHER_SUM}`, says: /2 words of 64 hex digits/ },
    { name: "the same sum twice", content: `${CANONICAL_SUM} ${CANONICAL_SUM}`, says: /2 words of 64 hex digits/ },
  ];
  for (const { name, content, says } of bad) {
    test(`is refused with ${name}`, async () => {
      const ran = await gate([...LOCAL, "--pin", scratchFile("pin-bad", content)]);
      assert.equal(ran.exitCode, 3);
      assert.match(ran.stdout, /^::error::unverified \(pin-unreadable\): /m);
      assert.match(ran.stdout, says);
    });
  }
  test("is refused where there is none", async () => {
    assert.equal(statusLine(await verdictOf(LOCAL, { SYNC_PIN_PATH: join(scratch, "none") })), "unverified pin-unreadable 3");
  });
  test("is refused as a link", async () => {
    const link = join(scratch, "pin-link");
    symlinkSync(scratchFile("pin-target", CANONICAL_SUM), link);
    assert.equal(statusLine(await verdictOf([...LOCAL, "--pin", link])), "unverified pin-unreadable 3");
  });
});

describe("the diagnosis", () => {
  const rows: { name: string; copy: string; pin: string; want: string; moved: string | null; says: RegExp; also: RegExp }[] = [
    { name: "all agree", copy: CANONICAL, pin: CANONICAL_SUM, want: "in-sync 0", moved: null, says: /byte for byte, and the pin names it/, also: /^/ },
    {
      name: "the pin was not bumped",
      copy: CANONICAL,
      pin: OTHER_SUM,
      want: "pin-mismatch 1",
      moved: null,
      says: /the copy was re-synced and the pin was not bumped\. Bump the pin/,
      also: /^also +in-sync: /m,
    },
    { name: "the canonical moved", copy: DRIFTED, pin: DRIFTED_SUM, want: "drift 1", moved: "canonical", says: /The canonical moved: .*Take the new canonical over, re-sync/, also: /^/ },
    { name: "the copy was edited by hand", copy: DRIFTED, pin: CANONICAL_SUM, want: "drift 1", moved: "copy", says: /The copy was edited by hand: .*Revert the edit/, also: /^also +pin-mismatch: /m },
    { name: "both moved", copy: DRIFTED, pin: OTHER_SUM, want: "drift 1", moved: "both", says: /Both moved: .*into the canonical first/, also: /^also +pin-mismatch: /m },
  ];
  for (const { name, copy, pin, want, moved, says, also } of rows) {
    test(`says that ${name}`, async () => {
      const argv = ["--canonical", CANONICAL, "--copy", copy, "--pin", scratchFile("pin", pin)];
      const document = await verdictOf(argv);
      assert.deepEqual([statusLine(document), document.moved], [want, moved]);
      const { stdout } = await gate(argv);
      assert.match(stdout, says);
      assert.match(stdout, also);
    });
  }
  test("without a pin cannot tell", async () => {
    const document = await verdictOf(["--canonical", CANONICAL, "--copy", DRIFTED]);
    assert.deepEqual([document.moved, document.firstDifferingLine], [null, 8]);
    assert.match(String(document.message), /Without a pin nobody can tell which side moved/);
  });
  test("is made without a token as well", async () => {
    const argv = ["--replay", "fixtures/events/pr-fork-synchronize.json", "--copy", DRIFTED, "--pin", scratchFile("pin", CANONICAL_SUM)];
    const { exitCode, stdout } = await gate(argv);
    assert.equal(exitCode, 1);
    assert.match(stdout, /^::error::pin-mismatch: .*edited by hand, or re-synced without bumping the pin/m);
    assert.match(stdout, /^also +skipped: /m);
  });
  test("lets a fork's pull request pass with its warning where the pin agrees", async () => {
    const argv = ["--replay", "fixtures/events/pr-fork-synchronize.json", "--copy", CANONICAL, "--pin", scratchFile("pin", CANONICAL_SUM)];
    assert.equal(statusLine(await verdictOf(argv)), "skipped 0");
  });
  test("needs the copy for the pin, even on a fork's pull request", async () => {
    const argv = ["--replay", "fixtures/events/pr-fork-synchronize.json", "--copy", "none", "--pin", scratchFile("pin", CANONICAL_SUM)];
    assert.equal(statusLine(await verdictOf(argv)), "unverified copy-unreadable 3");
  });
});

// ──────────────────────── what differs, in words ────────────────────────

const HEADER = ["--- canonical", "+++ copy"];

function difference(canonical: string | Buffer, copy: string | Buffer): Promise<Difference> {
  return explainDifference(Buffer.from(canonical), Buffer.from(copy), { header: HEADER, mask: (same) => same });
}

/** Numbered lines. */
function numbered(count: number, prefix = ""): string {
  return Array.from({ length: count }, (_, index) => `${prefix}${index + 1}\n`).join("");
}

describe("the diff", () => {
  const ten = numbered(10);
  const rows: { name: string; canonical: string; copy: string; want: string[] }[] = [
    { name: "a changed line", canonical: ten, copy: ten.replace("5\n", "five\n"), want: ["@@ -2,7 +2,7 @@", " 2", " 3", " 4", "-5", "+five", " 6", " 7", " 8"] },
    { name: "a line too many at the end", canonical: ten, copy: `${ten}11\n`, want: ["@@ -8,3 +8,4 @@", " 8", " 9", " 10", "+11"] },
    { name: "a line missing at the start", canonical: ten, copy: ten.slice(2), want: ["@@ -1,4 +1,3 @@", "-1", " 2", " 3", " 4"] },
    {
      name: "two places far apart",
      canonical: numbered(30),
      copy: numbered(30).replace("\n5\n", "\nx\n").replace("\n25\n", "\ny\n"),
      want: ["@@ -2,7 +2,7 @@", " 2", " 3", " 4", "-5", "+x", " 6", " 7", " 8", "@@ -22,7 +22,7 @@", " 22", " 23", " 24", "-25", "+y", " 26", " 27", " 28"],
    },
    { name: "an empty copy", canonical: "a\n", copy: "", want: ["@@ -1,1 +0,0 @@", "-a"] },
    { name: "an empty canonical", canonical: "", copy: "a\nb\n", want: ["@@ -0,0 +1,2 @@", "+a", "+b"] },
    { name: "a line that lost its end and more", canonical: "a\nb\n", copy: "a\nc", want: ["@@ -1,2 +1,2 @@", " a", "-b", "+c", "\\ No newline at end of file"] },
    { name: "lines after a blank first one", canonical: "\na\n", copy: "\nb\n", want: ["@@ -1,2 +1,2 @@", " ", "-a", "+b"] },
    { name: "a repeated line", canonical: "a\na\nb\n", copy: "a\na\na\nb\n", want: ["@@ -1,3 +1,4 @@", " a", " a", "+a", " b"] },
  ];
  for (const { name, canonical, copy, want } of rows) {
    test(`shows ${name}`, async () => assert.deepEqual(await difference(canonical, copy), { lines: [...HEADER, ...want], leftOut: 0 }));
  }

  const sentences: { name: string; canonical: string | Buffer; copy: string | Buffer; want: RegExp }[] = [
    { name: "line endings", canonical: "a\nb\n", copy: "a\r\nb\r\n", want: /nothing but line endings \(carriage returns: 0 in the canonical, 2 in the copy; check \.gitattributes\)\.$/ },
    { name: "line endings that change places", canonical: "a\r\nb\nc\n", copy: "a\nb\r\nc\n", want: /nothing but line endings \(carriage returns: 1 in the canonical, 1 in the copy/ },
    { name: "the last line's ending", canonical: "a\n", copy: "a\r\n", want: /nothing but line endings \(carriage returns: 0 in the canonical, 1 in the copy/ },
    { name: "line endings of old Macs", canonical: "a\nb\n", copy: "a\rb\r", want: /nothing but line endings \(carriage returns: 0 in the canonical, 2 in the copy/ },
    { name: "a byte-order mark", canonical: "a\n", copy: "\ufeffa\n", want: /nothing but a byte-order mark, which the copy has and the canonical has not\.$/ },
    { name: "a final newline", canonical: "a\n", copy: "a", want: /nothing but a final newline, which the canonical has and the copy has not\.$/ },
    { name: "all three", canonical: "\ufeffa\nb\n", copy: "a\r\nb", want: /nothing but line endings .* and a byte-order mark, .* and a final newline, / },
    { name: "a copy with a NUL", canonical: "a", copy: "a\0", want: /^The copy is not UTF-8 text/ },
    { name: "a canonical that is no UTF-8", canonical: Buffer.from([0xc3, 0x28]), copy: "a", want: /^The canonical is not UTF-8 text/ },
    { name: "two binary sides", canonical: "\0", copy: "\0\0", want: /^Neither side is UTF-8 text/ },
  ];
  for (const { name, canonical, copy, want } of sentences) {
    test(`is a sentence for ${name}`, async () => {
      const found = await difference(canonical, copy);
      assert.ok("sentence" in found);
      assert.match(found.sentence, want);
    });
  }

  test("is cut to 200 lines, and counts the rest", async () => {
    const found = await difference(numbered(150, "a"), numbered(150, "b"));
    assert.ok("lines" in found);
    assert.deepEqual([found.lines.length, found.leftOut, found.lines[199], found.lines[2]], [200, 103, "+b47", "@@ -1,150 +1,150 @@"]);
  });
  test("is cut to 64 KiB, and its lines to 1000 characters", async () => {
    const long = (letter: string) => `${letter.repeat(5000)}\n`.repeat(100);
    const found = await difference(long("a"), long("b"));
    assert.ok("lines" in found);
    assert.deepEqual([found.lines.length, found.leftOut, found.lines[3]], [68, 135, `-${"a".repeat(999)}…`]);
  });
  test("is true, if not the smallest, where the two have nothing in common", async () => {
    const found = await difference(`0\n${numbered(3000, "a")}z\n`, `0\n${numbered(2000, "b")}z\n`);
    assert.ok("lines" in found);
    assert.deepEqual(found.lines.slice(2, 5), ["@@ -1,3002 +1,2002 @@", "-0", "-a1"]);
    assert.deepEqual([found.lines.length, found.leftOut], [200, 3 + 3002 + 2002 - 200]);
  });
  test("has the numbers of an empty side, where it is not the smallest", async () => {
    const [come, gone] = [await difference("", numbered(21_000)), await difference(numbered(21_000), "")];
    assert.ok("lines" in come && "lines" in gone);
    assert.deepEqual([come.lines[2], gone.lines[2]], ["@@ -0,0 +1,21000 @@", "@@ -1,21000 +0,0 @@"]);
  });
  test("keeps three lines of context behind a hunk that could slide", async () => {
    const entries = (names: string) => [...names].map((name) => `- ${name}\n  a: 1\n  b: 2\n`).join("");
    const found = await difference(entries("abcdefgh"), entries("abdefgh"));
    assert.deepEqual(found, { lines: [...HEADER, "@@ -4,9 +4,6 @@", " - b", "   a: 1", "   b: 2", "-- c", "-  a: 1", "-  b: 2", " - d", "   a: 1", "   b: 2"], leftOut: 0 });
  });
  test("finds the small change in a large file", async () => {
    const found = await difference(numbered(30_000), numbered(30_000).replace("\n15000\n", "\nx\n"));
    assert.deepEqual(found, { lines: [...HEADER, "@@ -14997,7 +14997,7 @@", " 14997", " 14998", " 14999", "-15000", "+x", " 15001", " 15002", " 15003"], leftOut: 0 });
  });
  test("shows both sides where one is short", async () => {
    const found = await difference("only\n", numbered(30_000, "b"));
    assert.ok("lines" in found);
    assert.deepEqual(found.lines.slice(2, 6), ["@@ -1,1 +1,30000 @@", "-only", "+b1", "+b2"]);
    assert.equal(found.leftOut, 3 + 1 + 30_000 - 200);
  });
  test("counts a last line without its newline", async () => {
    const found = await difference(`x`, numbered(30_000, "b"));
    assert.ok("lines" in found);
    assert.equal(found.lines[2], "@@ -1,1 +1,30000 @@");
  });

  const LIMIT = 10 * 1024 * 1024;
  const large: { name: string; canonical: () => string; copy: () => string; first: string }[] = [
    { name: "two unrelated files of the size limit", canonical: () => numbered(1_400_000, "a").slice(0, LIMIT), copy: () => numbered(1_400_000, "b").slice(0, LIMIT), first: "-a1" },
    { name: "nothing but newlines", canonical: () => "\n".repeat(LIMIT), copy: () => "x\n".repeat(LIMIT / 2), first: "-" },
    { name: "a single line of the size limit", canonical: () => "x".repeat(LIMIT), copy: () => `${"x".repeat(LIMIT - 1)}y`, first: `-${"x".repeat(999)}…` },
    { name: "40,000 lines of which the last changed", canonical: () => numbered(40_000), copy: () => numbered(40_000).replace("\n40000\n", "\nx\n"), first: " 39997" },
  ];
  for (const { name, canonical, copy, first } of large) {
    test(`is bounded for ${name}`, async () => {
      const found = await difference(canonical(), copy());
      assert.ok("lines" in found);
      assert.equal(found.lines[3], first);
      assert.ok(found.lines.length <= 200);
    });
  }
  test("names the line exactly where only the last of 40,000 changed", () => {
    const copy = numbered(40_000).replace("\n40000\n", "\nx\n");
    assert.equal(firstDifferingLine(Buffer.from(copy), Buffer.from(numbered(40_000))), 40_000);
  });

  test("can be undone: applied to the canonical it gives the copy", async () => {
    const lines = fc.array(fc.constantFrom("a", "b", "c", "", "d e"), { maxLength: 40 }).map((list) => list.map((line) => `${line}\n`).join(""));
    await fc.assert(
      fc.asyncProperty(lines, lines, async (canonical, copy) => {
        fc.pre(canonical !== copy);
        const found = await difference(canonical, copy);
        if ("lines" in found) assert.equal(patch(canonical, found.lines), copy);
        else assert.match(found.sentence, /final newline/);
      }),
      { numRuns: 500 },
    );
  });
  /** Applies a unified diff by its own numbers. */
  function patch(text: string, diff: readonly string[]): string {
    const old = text.split("\n");
    const out: string[] = [];
    let next = 0;
    for (const line of diff.slice(2)) {
      const range = /^@@ -(\d+),(\d+) /.exec(line);
      if (range !== null) {
        const start = Number(range[1]) - (range[2] === "0" ? 0 : 1);
        out.push(...old.slice(next, start));
        next = start;
      } else if (line.startsWith("+")) out.push(line.slice(1));
      else {
        assert.equal(old[next], line.slice(1));
        if (line.startsWith(" ")) out.push(line.slice(1));
        next += 1;
      }
    }
    return [...out, ...old.slice(next)].join("\n");
  }
});

describe("the diff in the log", () => {
  test("stands between stop-commands and its word, and is inert itself", async () => {
    const hostileFile = scratchFile("hostile.yaml", `a: 1\n::error::one\n  ::set-env name=A::b\n##[error]two\nx: "\u001b[31m \u202e"\t\r\nb: a::b\n`);
    const { stdout } = await gate(["--canonical", scratchFile("plain.yaml", "a: 2\n"), "--copy", hostileFile]);
    const lines = stdout.split("\n");
    const stop = lines.findIndex((line) => line.startsWith("::stop-commands::"));
    const word = lines[stop]?.slice("::stop-commands::".length) ?? "";
    assert.match(word, /^[\da-f-]{36}$/);
    const resume = lines.indexOf(`::${word}::`);
    assert.deepEqual(lines.slice(stop + 4, resume), ["-a: 2", "+a: 1", "+::error::one", "+  ::set-env name=A::b", "+# #[error]two", '+x: "\\u{1b}[31m \\u{202e}"\\t\\r', "+b: a::b"]);
    assert.equal(annotations(stdout).length, 1);
  });
  test("has no command in a context line either, as GitHub trims blanks", async () => {
    const [old, now] = [scratchFile("old.yaml", "::error::x\n  ::warning::y\na: 1\n"), scratchFile("now.yaml", "::error::x\n  ::warning::y\na: 2\n")];
    const { stdout } = await gate(["--canonical", old, "--copy", now]);
    assert.match(stdout, /^ : :error::x\n {3}: :warning::y\n-a: 1$/m);
  });
  test("says how many lines were left out", async () => {
    const { stdout } = await gate(["--canonical", scratchFile("a.txt", numbered(300, "a")), "--copy", scratchFile("b.txt", numbered(300, "b"))]);
    assert.match(stdout, /^difference 403 more lines left out$/m);
  });
  test("does not repeat the token that a file holds", async () => {
    const token = "0123456789abcdef0123456789abcdef01234567";
    const [old, now] = [scratchFile("old.yaml", "a: 1\n"), scratchFile("now.yaml", `a: ${"y".repeat(980)}${token}\n`)];
    const { stdout } = await gate(["--canonical", old, "--copy", now], { AUTO_SYNC_TOKEN: token });
    assert.doesNotMatch(stdout, /0123456/);
  });
  test("does not repeat the token in a line that is full of it, nor as a name in the JSON", async () => {
    const token = "tok_SECRET_0123456789abcdef0123456789abcd";
    const [old, now] = [scratchFile("old.yaml", "providers: []\n"), scratchFile("now.yaml", `providers: [{name: ${token}}]\nx: yy${token.repeat(200)}\n`)];
    const { stdout, stderr } = await gate(["--canonical", old, "--copy", now, "--json"], { AUTO_SYNC_TOKEN: token });
    assert.doesNotMatch(stdout + stderr, /tok_SECRET/);
  });
  test("is a sentence for line endings, without a word on the same data", async () => {
    const { stdout } = await gate(["--canonical", scratchFile("lf", "a: 1\n"), "--copy", scratchFile("crlf", "a: 1\r\n")]);
    assert.match(stdout, /^difference The two differ in nothing but line endings/m);
    assert.doesNotMatch(stdout, /^summary/m);
  });
});

const NONE = { missing: [], extra: [], changed: {} };

describe("the summary by name", () => {
  const rows: { name: string; canonical: string; copy: string; providers?: object; runtimes?: object; others?: string[] }[] = [
    { name: "a provider missing in the copy", canonical: "providers: [{name: b}, {name: a}, {name: c}]", copy: "providers: [{name: c}]", providers: { ...NONE, missing: ["a", "b"] } },
    { name: "a provider extra in the copy", canonical: "providers: [{name: a}]", copy: "providers: [{name: a}, {name: z}, {name: y}]", providers: { ...NONE, extra: ["y", "z"] } },
    {
      name: "the keys of a changed provider",
      canonical: "providers: [{name: a, x: 1, y: [1, {z: 2}], gone: 1}]",
      copy: "providers: [{name: a, x: 2, y: [1, {z: 3}], come: 1}]",
      providers: { ...NONE, changed: { a: ["come", "gone", "x", "y"] } },
    },
    { name: "a renamed provider", canonical: "providers: [{name: a, x: 1}]", copy: "providers: [{name: b, x: 1}]", providers: { missing: ["a"], extra: ["b"], changed: {} } },
    { name: "runtimes", canonical: "runtimes: {a: {x: 1}, b: {y: 1}, c: {}}", copy: "runtimes: {a: {x: 2}, b: {y: 1}, d: {}}", runtimes: { missing: ["c"], extra: ["d"], changed: { a: ["x"] } } },
    { name: "runtimes that are no mappings", canonical: "runtimes: {a: [x], b: y, c: {}}", copy: "runtimes: {a: [z], b: y, c: }", runtimes: { ...NONE, changed: { a: [], c: [] } } },
    { name: "another key of the file", canonical: "version: 1\nz: 1\nproviders: []", copy: "version: 2\ny: 1\nproviders: []", others: ["version", "y", "z"] },
    { name: "a section that came", canonical: "a: 1", copy: "a: 1\nproviders: [{name: x}]\nruntimes: {r: }", providers: { ...NONE, extra: ["x"] }, runtimes: { ...NONE, extra: ["r"] } },
    { name: "a section that became null", canonical: "providers: [{name: x}]", copy: "providers:", providers: { ...NONE, missing: ["x"] } },
    { name: "keys that are numbers or null", canonical: "1: a\n~: b", copy: "1: b\n~: b", others: ["1"] },
    {
      name: "names of the prototype",
      canonical: "providers: [{name: __proto__, a: 1}]\nruntimes: {constructor: {}}",
      copy: "providers: [{name: __proto__, a: 2}]\nruntimes: {}",
      providers: { ...NONE, changed: JSON.parse('{"__proto__":["a"]}') },
      runtimes: { ...NONE, missing: ["constructor"] },
    },
    { name: "large integers that are not the same", canonical: "a: 9007199254740993", copy: "a: 9007199254740992", others: ["a"] },
    { name: "nothing for another order", canonical: "b: 1\nproviders: [{name: a, x: 1}, {name: b}]", copy: "providers: [{name: b}, {x: 1, name: a}]\nb: 1" },
    { name: "nothing for other comments, quotes and styles", canonical: "a: [x, 'y'] # z", copy: 'a:\n- "x"\n- y' },
    {
      name: "what an alias stands for",
      canonical: "providers: [{name: a, x: &x [1]}, {name: b, x: *x}]",
      copy: "providers: [{name: a, x: [1]}, {name: b, x: [2]}]",
      providers: { ...NONE, changed: { b: ["x"] } },
    },
  ];
  for (const { name, canonical, copy, providers = NONE, runtimes = NONE, others = [] } of rows) {
    test(`finds ${name}`, async () => {
      assert.deepEqual(await summarise(Buffer.from(canonical), Buffer.from(copy)), { summary: { providers, runtimes }, others });
    });
  }

  const bomb = `a: &a [x, x, x, x, x, x, x, x, x]\n${["b a", "c b", "d c", "e d", "f e"].map((pair) => `${pair[0]}: &${pair[0]} [${`*${pair[2]}, `.repeat(9)}]`).join("\n")}`;
  const leftOut: { name: string; copy: string; why: RegExp }[] = [
    { name: "what is no YAML", copy: "a: b: c", why: /the copy is not YAML: / },
    { name: "a key given twice", copy: "providers: [{name: a, x: 1, x: 2}]", why: /the copy has the key 'x' twice/ },
    { name: "a key that is no plain value", copy: "? [a]\n: 1", why: /a key that is not a plain value/ },
    { name: "a bomb of aliases", copy: bomb, why: /alias/ },
    { name: "a directive, which could ask for another YAML", copy: `%YAML 1.1\n---\na: 1${":1".repeat(100_000)}`, why: /the copy has a YAML directive/ },
    { name: "a tag on a mapping", copy: "a: !!set {b, c}", why: /the copy has a tag/ },
    { name: "a tag on a value", copy: "a: !!timestamp 2001-01-01", why: /the copy has a tag/ },
    { name: "keys that read the same", copy: 'runtimes: {1: a, "1": b}', why: /two keys of one mapping read the same/ },
    { name: "more aliases than it is worth", copy: `a: &a 1\nb: [${"*a, ".repeat(201)}]`, why: /the copy has more than 200 aliases/ },
    { name: "several documents", copy: "a: 1\n---\nb: 1", why: /not YAML/ },
    { name: "a scalar", copy: "just text", why: /the copy is not a mapping/ },
    { name: "an empty file", copy: "", why: /the copy is not a mapping/ },
    { name: "providers that are no list", copy: "providers: {a: {}}", why: /providers of the copy is not a list/ },
    { name: "an entry without a name", copy: "providers: [{id: a}]", why: /a provider of the copy has no name/ },
    { name: "an entry with an empty name", copy: "providers: [{name: ''}]", why: /has no name/ },
    { name: "an entry that is no mapping", copy: "providers: [a]", why: /has no name/ },
    { name: "two entries of one name", copy: "providers: [{name: a}, {name: a}]", why: /two providers of one name/ },
    { name: "runtimes that are no mapping", copy: "runtimes: [a]", why: /runtimes of the copy is not a mapping/ },
    { name: "nesting beyond the stack", copy: "[".repeat(100_000), why: /stack/ },
    { name: "more than it is worth", copy: `a: ${"x".repeat(262_144)}`, why: /the copy has more than 262144 bytes/ },
  ];
  for (const { name, copy, why } of leftOut) {
    test(`is left out for ${name}, and the verdict stands`, async () => {
      const found = await summarise(Buffer.from("providers: [{name: a}]"), Buffer.from(copy));
      assert.ok("leftOut" in found, JSON.stringify(found));
      assert.match(found.leftOut, why);
      const argv = ["--canonical", scratchFile("good.yaml", "providers: [{name: a}]"), "--copy", scratchFile("bad.yaml", copy)];
      const document = await verdictOf(argv);
      assert.deepEqual([statusLine(document), document.summary], ["drift 1", null]);
      assert.match((await gate(argv)).stdout, /^summary +left out: /m);
    });
  }
  test("names the canonical when that is the broken one", async () => {
    assert.deepEqual(await summarise(Buffer.from("a: b: c"), Buffer.from("")).then((found) => "leftOut" in found && /the canonical is not YAML/.test(found.leftOut)), true);
  });
  test("is told in lines of the log", async () => {
    const names = Array.from({ length: 25 }, (_, index) => `{name: p${String(index).padStart(2, "0")}}`).join(", ");
    const canonical = scratchFile("told-old.yaml", `v: 1\nproviders: [${names}, {name: q, x: 1, y: 2}, {name: r, x: 1}]\nruntimes: {a: [1]}\n`);
    const copy = scratchFile("told-now.yaml", "v: 2\nproviders: [{name: q, x: 2, y: 3}, {name: new}, {name: r, x: 1}]\nruntimes: {a: [2]}\n");
    const { stdout } = await gate(["--canonical", canonical, "--copy", copy]);
    const shown = Array.from({ length: 20 }, (_, index) => `"p${String(index).padStart(2, "0")}"`).join(", ");
    assert.ok(stdout.includes(`\nsummary    providers: missing in the copy: ${shown} and 5 more; extra in the copy: "new"; changed: "q" ("x", "y")\n`), stdout);
    assert.ok(stdout.includes('\nsummary    runtimes: changed: "a"\n'), stdout);
    assert.ok(stdout.includes('\nsummary    other keys of the file that differ: "v"\n'), stdout);
  });
  test("says when the data is the same", async () => {
    const { stdout } = await gate(["--canonical", scratchFile("same-old.yaml", "a: 1 # x\n"), "--copy", scratchFile("same-now.yaml", "a: 1 # y\n")]);
    assert.match(stdout, /^summary +the same data, in another order/m);
  });
});

// ─────────────────────────────── re-sync ───────────────────────────────

describe("--write", () => {
  /** A folder with an old copy and its pin, as a re-sync finds them. */
  function workTree(name: string, files: { copy?: string | Buffer; pin?: string } = {}): { copy: string; pin: string; argv: string[] } {
    const folder = join(scratch, name);
    mkdirSync(folder, { recursive: true });
    const [copy, pin] = [join(folder, "providers.yaml"), join(folder, "pin.go")];
    if (files.copy !== undefined) writeFileSync(copy, files.copy);
    if (files.pin !== undefined) writeFileSync(pin, files.pin);
    return { copy, pin, argv: ["--write", "--canonical", CANONICAL, "--copy", copy, ...(files.pin === undefined ? [] : ["--pin", pin])] };
  }
  const OLD = readFileSync(DRIFTED);
  const GO = (sum: string) => `package providers\n\n// \u00fc\nconst canonicalSHA256 = "${sum}"\n`;

  test("replaces the copy, bumps the pin, keeps both modes, and says what to do next", async () => {
    const { copy, pin, argv } = workTree("write", { copy: OLD, pin: GO(DRIFTED_SUM.toUpperCase()) });
    chmodSync(copy, 0o640);
    chmodSync(pin, 0o755);
    const { exitCode, stdout } = await gate(argv);
    assert.equal(exitCode, 0, stdout);
    assert.deepEqual(readFileSync(copy), BODY);
    assert.equal(readFileSync(pin, "utf8"), GO(CANONICAL_SUM));
    assert.deepEqual([statSync(copy).mode & 0o7777, statSync(pin).mode & 0o7777], [0o640, 0o755]);
    assert.match(stdout, /^verdict +in-sync: The copy is the canonical file again: wrote ".*providers\.yaml" and ".*pin\.go"\. Next: .*go generate \.\/\.\.\.\), then commit/m);
    assert.deepEqual(readdirSync(join(scratch, "write")).sort(), ["pin.go", "providers.yaml"]);
  });
  test("reports the copy and the pin as they are then", async () => {
    const { argv } = workTree("report", { copy: OLD, pin: GO(DRIFTED_SUM) });
    const { copy, pin } = await verdictOf(argv);
    assert.match(JSON.stringify(copy), new RegExp(`"bytes":795,"sha256":"${CANONICAL_SUM}"`));
    assert.match(JSON.stringify(pin), new RegExp(`"sha256":"${CANONICAL_SUM}"`));
  });
  test("touches nothing when nothing is to do", async () => {
    const { copy, pin, argv } = workTree("nothing", { copy: BODY, pin: GO(CANONICAL_SUM) });
    const before = [statSync(copy).ino, statSync(pin).ino];
    const { stdout } = await gate(argv);
    assert.match(stdout, /in-sync: .*nothing was written/);
    assert.deepEqual([statSync(copy).ino, statSync(pin).ino], before);
  });
  test("bumps the pin alone where the copy is in sync", async () => {
    const { copy, pin, argv } = workTree("bump", { copy: BODY, pin: GO(OTHER_SUM) });
    const before = statSync(copy).ino;
    assert.match((await gate(argv)).stdout, /wrote ".*pin\.go"\./);
    assert.equal(statSync(copy).ino, before);
    assert.equal(readFileSync(pin, "utf8"), GO(CANONICAL_SUM));
  });
  test("creates a copy that is missing, and its folder", async () => {
    const { copy } = workTree("missing");
    const deeper = join(copy, "..", "a", "b", "providers.yaml");
    assert.equal((await gate(["--write", "--canonical", CANONICAL, "--copy", deeper])).exitCode, 0);
    assert.deepEqual(readFileSync(deeper), BODY);
  });
  test("fetches, with the token, where no local file is given", async () => {
    const forge = await startForge(playRepository);
    const { copy } = workTree("fetch", { copy: OLD });
    const ran = await gate(["--write", "--copy", copy], envFor(forge.url));
    await forge.close();
    assert.equal(ran.exitCode, 0, ran.stdout);
    assert.deepEqual(readFileSync(copy), BODY);
  });

  const refused: { name: string; make: () => { copy: string; argv: string[] }; env?: Env; want: string; says: RegExp }[] = [
    {
      name: "through a symbolic link",
      make: () => {
        const tree = workTree("link");
        symlinkSync(scratchFile("link-target", OLD), tree.copy);
        return tree;
      },
      want: "unverified copy-unreadable 3",
      says: /symbolic link/,
    },
    {
      name: "through a dangling link",
      make: () => {
        const tree = workTree("dangling");
        symlinkSync(join(scratch, "nowhere"), tree.copy);
        return tree;
      },
      want: "unverified copy-unreadable 3",
      says: /symbolic link/,
    },
    {
      name: "over a directory",
      make: () => {
        const tree = workTree("directory");
        mkdirSync(tree.copy);
        return tree;
      },
      want: "unverified copy-unreadable 3",
      says: /directory/,
    },
    { name: "where the pin holds no sum", make: () => workTree("no-sum", { copy: OLD, pin: "none" }), want: "unverified pin-unreadable 3", says: /no word/ },
    { name: "where the pin holds two sums", make: () => workTree("two-sums", { copy: OLD, pin: `${OTHER_SUM} ${OTHER_SUM}` }), want: "unverified pin-unreadable 3", says: /2 words/ },
    {
      name: "without a token",
      make: () => ({ ...workTree("no-token", { copy: OLD }), argv: ["--write", "--copy", join(scratch, "no-token", "providers.yaml")] }),
      want: "token-missing 1",
      says: /Provision/,
    },
  ];
  for (const { name, make, env = {}, want, says } of refused) {
    test(`writes nothing ${name}`, async () => {
      const { copy, argv } = make();
      const before = lstatSync(copy).isFile() ? readFileSync(copy) : lstatSync(copy).ino;
      assert.equal(statusLine(await verdictOf(argv, env)), want);
      assert.match((await gate(argv, env)).stdout, says);
      assert.deepEqual(lstatSync(copy).isFile() ? readFileSync(copy) : lstatSync(copy).ino, before);
    });
  }
  test("writes nothing from a damaged transfer", async () => {
    const forge = await startForge(fileWith((raw) => raw.replace("schema_version: 1", "schema_version: 2")));
    const { copy } = workTree("damaged", { copy: OLD });
    const ran = await gate(["--write", "--copy", copy], envFor(forge.url));
    await forge.close();
    assert.equal(ran.exitCode, 3);
    assert.deepEqual(readFileSync(copy), OLD);
  });
  test("writes nothing when there is neither a copy nor a canonical", async () => {
    const { copy } = workTree("neither");
    assert.equal(statusLine(await verdictOf(["--write", "--canonical", "none", "--copy", copy])), "unverified file-not-found 3");
    assert.equal(existsSync(copy), false);
  });
  test("says so when the copy cannot be written, and leaves nothing behind", async () => {
    const name = "x".repeat(220);
    const copy = join(scratch, name);
    const { exitCode, stdout } = await gate(["--write", "--canonical", CANONICAL, "--copy", copy]);
    assert.equal(exitCode, 3);
    assert.match(stdout, /unverified \(copy-unreadable\): Cannot write .*ENAMETOOLONG\. Nothing was changed\./);
  });
  test("says so when the copy's folder is a file", async () => {
    const { exitCode, stdout } = await gate(["--write", "--canonical", CANONICAL, "--copy", join(scratchFile("file", ""), "copy")]);
    assert.equal(exitCode, 3);
    assert.match(stdout, /copy-unreadable/);
  });
  test("says what was written before when the pin cannot be", async () => {
    const { copy } = workTree("half", { copy: OLD });
    const pin = scratchFile("y".repeat(220), OTHER_SUM);
    const { exitCode, stdout } = await gate(["--write", "--canonical", CANONICAL, "--copy", copy, "--pin", pin]);
    assert.equal(exitCode, 3);
    assert.match(stdout, /unverified \(pin-unreadable\): Cannot write .*ENAMETOOLONG\. ".*providers\.yaml" was written before\./);
    assert.deepEqual(readFileSync(copy), BODY);
  });

  test("leaves each file old or new, whole, wherever it is killed", async () => {
    const preload = scratchFile(
      "kill.mjs",
      `import fs from "node:fs";
       import { syncBuiltinESMExports } from "node:module";
       let left = Number(process.env.KILL_AT);
       for (const name of ["openSync", "fchmodSync", "writeFileSync", "fsyncSync", "closeSync", "renameSync"]) {
         const real = fs[name];
         const strike = () => { if (process.env.KILL_AT && --left < 0) process.kill(process.pid, "SIGKILL"); };
         fs[name] = (...args) => { strike(); if (name === "writeFileSync") fs.writeSync(args[0], args[1], 0, 9, 0), strike(); return real(...args); };
       }
       syncBuiltinESMExports();`,
    );
    const seen = new Set<string>();
    let outcome = "";
    for (let at = 0; outcome !== "null"; at += 1) {
      const { copy, pin, argv } = workTree(`kill-${at}`, { copy: OLD, pin: GO(DRIFTED_SUM) });
      const [file = "", ...args] = measured(...argv);
      const child = spawn(file, ["--import", preload, ...args], { cwd: ROOT, env: { NODE_V8_COVERAGE: "", KILL_AT: String(at) } });
      outcome = String((await closed(child))[1]);
      const state = [readFileSync(copy).equals(OLD) ? "old" : "new", readFileSync(pin, "utf8") === GO(DRIFTED_SUM) ? "old" : "new"];
      if (state[0] === "new") assert.deepEqual(readFileSync(copy), BODY);
      if (state[1] === "new") assert.equal(readFileSync(pin, "utf8"), GO(CANONICAL_SUM));
      seen.add(state.join());
      const checked = await verdictOf(["--canonical", CANONICAL, "--copy", copy, "--pin", pin]);
      const expected: Record<string, string> = { "old,old": "drift 1", "new,old": "pin-mismatch 1", "new,new": "in-sync 0" };
      assert.equal(statusLine(checked), expected[state.join()], `killed at ${at}: ${state}`);
      assert.ok(at < 40, "the run comes to its end");
    }
    assert.deepEqual([...seen].sort(), ["new,new", "new,old", "old,old"]);
  });
});

// ─────────────────────────────── report ───────────────────────────────

describe("the log", () => {
  const forge = useForge(playRepository);
  test("in sync has a line for the context and for each side, and no annotation", async () => {
    const { stdout, stderr } = await gate([], envFor(forge.url));
    assert.deepEqual(stdout.split("\n"), [
      `context    event "push": branch 1 of the case table, trusted: the repository's own context, where the secret should be`,
      `copy       "fixtures/providers.yaml": 795 bytes, sha256 b54630fe7d7f`,
      `token      present, sent to ${forge.url} and nowhere else`,
      `canonical  "internal/providers/providers.yaml" of "molecule-ai/molecule-controlplane" at "main" (commit 9d3b4a7278): 795 bytes, sha256 b54630fe7d7f`,
      "verdict    in-sync: The copy is the canonical file, byte for byte.",
    ]);
    assert.equal(stderr, "");
  });
  test("drifted has one annotation with the place, both sums, repository, ref, commit and the way out", async () => {
    const { stdout } = await gate([], envFor(forge.url, { SYNC_COPY_PATH: DRIFTED }));
    const [annotation = "", ...more] = annotations(stdout);
    assert.deepEqual(more, []);
    assert.match(annotation, /^::error file=fixtures\/providers-drifted\.yaml,line=8::drift: /);
    for (const part of ["first in line 8", "copy 9ccc1c93c342", "canonical b54630fe7d7f", "molecule-ai/molecule-controlplane", '"main"', "9d3b4a7278", "re-sync"]) {
      assert.ok(annotation.includes(part), `${part} in ${annotation}`);
    }
  });
  test("holds no command from a hostile setting", async () => {
    const hostile = "x\n::error::pwned\r##[error]y ::set-env name=A::b";
    const ran = await gate(["--event-name", hostile, "--copy", hostile, "--canonical", hostile]);
    assert.deepEqual(annotations(ran.stdout).length, 1);
    assert.doesNotMatch(ran.stdout, /##\[|pwned::|\r/);
    assert.equal(ran.stdout.split("\n").length, 2);
  });
  test("shortens what is endless", async () => {
    const { stdout } = await gate([], { GITHUB_EVENT_NAME: "x".repeat(100_000) });
    assert.ok(stdout.length < 2000, `${stdout.length} characters`);
    assert.match(stdout, /xxx…"/);
  });
  test("repeats no token that a setting holds by mistake", async () => {
    const env = {
      AUTO_SYNC_TOKEN: "0123456789abcdef0123456789abcdef01234567",
      SYNC_CANONICAL_REPO: "0123456789abcdef0123456789abcdef01234567",
    };
    assert.match((await gate([], env)).stdout, /SYNC_CANONICAL_REPO: it is "\*\*\*"/);
  });
});

describe("the step's outputs", () => {
  const forge = useForge(playRepository);
  /** Reads a GITHUB_OUTPUT file as a runner does. */
  function parseOutputs(text: string): Record<string, string> {
    const outputs: Record<string, string> = {};
    const lines = text.split("\n");
    while (lines.length > 1) {
      const [name = "", word = ""] = (lines.shift() ?? "").split("<<");
      const end = lines.indexOf(word);
      outputs[name] = lines.splice(0, end).join("\n");
      lines.shift();
    }
    return outputs;
  }
  async function outputsOf(argv: string[], env: Env = {}): Promise<Record<string, string>> {
    const file = scratchFile("outputs", "");
    await gate(argv, { ...env, GITHUB_OUTPUT: file });
    return parseOutputs(readFileSync(file, "utf8"));
  }
  test("say everything that a later step may ask", async () => {
    assert.deepEqual(await outputsOf([], envFor(forge.url)), {
      status: "in-sync",
      reason: "",
      "exit-code": "0",
      branch: "1",
      trusted: "true",
      event: "push",
      "copy-sha256": CANONICAL_SUM,
      "canonical-sha256": CANONICAL_SUM,
      "canonical-commit": COMMIT,
    });
  });
  test("are empty where nothing is known", async () => {
    const nothing = { branch: "", trusted: "", event: "", "copy-sha256": "", "canonical-sha256": "", "canonical-commit": "" };
    assert.deepEqual(await outputsOf(["--bogus"]), { status: "usage", reason: "", "exit-code": "2", ...nothing });
  });
  test("name the reason", async () => {
    const outputs = await outputsOf(["--canonical", "none", "--copy", CANONICAL]);
    assert.deepEqual([outputs.status, outputs.reason, outputs["exit-code"], outputs["canonical-commit"]], ["unverified", "file-not-found", "3", ""]);
  });
  test("cannot be ended by an event's name", async () => {
    const outputs = await outputsOf(["--event-name", "x\nstatus=in-sync\nEOF\nstatus<<x\n"]);
    assert.deepEqual([outputs.status, outputs.event], ["token-missing", "x\\nstatus=in-sync\\nEOF\\nstatus<<x\\n"]);
  });
  test("have another delimiter each time", async () => {
    const file = scratchFile("delimiters", "");
    await gate(LOCAL, { GITHUB_OUTPUT: file });
    await gate(LOCAL, { GITHUB_OUTPUT: file });
    const words = readFileSync(file, "utf8").match(/(?<=^status<<).*$/gm) ?? [];
    assert.equal(new Set(words).size, 2);
  });
  for (const name of ["GITHUB_OUTPUT", "GITHUB_STEP_SUMMARY"]) {
    for (const [what, path] of [
      ["a directory", scratch],
      ["a folder that is not there", join(scratch, "none", "file")],
    ] as const) {
      test(`cost a line of the log when ${name} is ${what}`, async () => {
        const { exitCode, stdout } = await gate(LOCAL, { [name]: path });
        assert.equal(exitCode, 0);
        assert.match(stdout, new RegExp(`^note +Cannot write ${name} .*The verdict stands\\.$`, "m"));
      });
    }
  }
});

describe("the step summary", () => {
  async function summaryOf(argv: string[], env: Env = {}): Promise<string> {
    const file = scratchFile("summary.md", "");
    await gate(argv, { ...env, GITHUB_STEP_SUMMARY: file });
    return readFileSync(file, "utf8");
  }
  test("has the verdict in its first line, a table of the sides, and the diff", async () => {
    const pin = scratchFile("pin", OTHER_SUM);
    const lines = (await summaryOf(["--canonical", CANONICAL, "--copy", DRIFTED, "--pin", pin])).split("\n");
    assert.match(lines[0] ?? "", /^\*\*drift\*\*: The copy .*Both moved&#58; the pin names neither/);
    assert.deepEqual(lines.slice(1, 6), [
      "",
      "| side | where | bytes | sha256 |",
      "| --- | --- | --- | --- |",
      `| copy | fixtures/providers-drifted&#46;yaml | 798 | \`${DRIFTED_SUM}\` |`,
      `| canonical | "fixtures/providers&#46;yaml" | 795 | \`${CANONICAL_SUM}\` |`,
    ]);
    assert.match(lines[6] ?? "", /^\| pin \| .* \| 64 \| `0{64}` \|$/);
    assert.equal(lines[8], "```diff");
    assert.ok(lines.includes("+    protocol: anthropic-v2"));
    assert.equal(lines.at(-3), "```");
  });
  test("is a line where nothing was read", async () => {
    assert.match(await summaryOf(["--event-name", "push"]), /^\*\*token-missing\*\*: The secret AUTO&#95;SYNC&#95;TOKEN is missing.*\n\n$/);
  });
  test("is a line for a wrong flag", async () => {
    assert.match(await summaryOf(["--bogus"]), /^\*\*usage\*\*: Cannot read the flags&#58; .*\n\n$/);
  });
  test("says it in words where there is no diff", async () => {
    assert.match(await summaryOf(["--canonical", scratchFile("lf", "a\n"), "--copy", scratchFile("crlf", "a\r\n")]), /nothing but line endings/);
  });
  test("counts what was left out", async () => {
    const argv = ["--canonical", scratchFile("a.txt", numbered(300, "a")), "--copy", scratchFile("b.txt", numbered(300, "b"))];
    assert.match(await summaryOf(argv), /^403 more lines left out$/m);
  });
  test("has a fence that its content cannot close", async () => {
    const text = await summaryOf(["--canonical", scratchFile("plain", "x\n"), "--copy", scratchFile("ticks", "```\n`````\n# no\n")]);
    assert.equal(text.match(/^``````(diff)?$/gm)?.length, 2);
  });
  test("has no mark of Markdown from a path", async () => {
    const text = await summaryOf(["--canonical", CANONICAL, "--copy", "a|b](javascript:x)<img src=x>`*_@me#1\\"]);
    assert.doesNotMatch(text.replaceAll(/&#\d+;|\*\*unverified\*\*/g, ""), /[|<>[\]()`*_@#\\]/);
  });
  test("stays under 256 KiB, whatever the files are", async () => {
    const line = `${"\u202e".repeat(3000)}\n`;
    const argv = ["--canonical", scratchFile("wild-old", line.repeat(100)), "--copy", scratchFile("wild-now", `x${line}`.repeat(300))];
    const text = await summaryOf(argv);
    assert.ok(Buffer.byteLength(text) < 256 * 1024, `${Buffer.byteLength(text)} bytes`);
  });
});

describe("the JSON document of a drift", () => {
  test("has the line, what moved, the pin and the summary", async () => {
    const pin = scratchFile("pin", CANONICAL_SUM);
    const { moved, firstDifferingLine, pin: named, summary, canonical } = await verdictOf(["--canonical", CANONICAL, "--copy", DRIFTED, "--pin", pin]);
    assert.deepEqual(
      { moved, firstDifferingLine, named, summary, canonical },
      {
        moved: "copy",
        firstDifferingLine: 8,
        named: { path: pin, sha256: CANONICAL_SUM },
        summary: { providers: { ...NONE, changed: { anthropic: ["protocol"] } }, runtimes: NONE },
        canonical: { server: null, repo: null, ref: null, commit: null, path: CANONICAL, bytes: 795, sha256: CANONICAL_SUM },
      },
    );
  });
  test("has the path of a pin that could not be read", async () => {
    assert.deepEqual((await verdictOf([...LOCAL, "--pin", "none"])).pin, { path: "none", sha256: null });
  });
});

describe("--explain", () => {
  const rows: { name: string; argv: string[]; says: RegExp[] }[] = [
    { name: "a trusted event", argv: ["--event-name", "schedule"], says: [/branch 1 of the case table, trusted/, /^with .*compares/m, /^without .*token-missing, exit code 1/m] },
    { name: "a fork's pull request", argv: ["--replay", "fixtures/events/pr-fork-synchronize.json"], says: [/branch 3 of the case table, untrusted/, /^without .*skipped, exit code 0.*pin/m] },
    { name: "a local canonical", argv: ["--event-name", "push", "--canonical", "none"], says: [/^without .*compares.*local file stands in/m] },
  ];
  for (const { name, argv, says } of rows) {
    test(`says what happens for ${name}, and exits with 0`, async () => {
      const { exitCode, stdout } = await gate(["--explain", ...argv], { GITHUB_OUTPUT: "/dev/full" });
      assert.equal(exitCode, 0);
      for (const pattern of says) assert.match(stdout, pattern);
      assert.deepEqual(annotations(stdout), []);
    });
  }
  test("refuses a replay that is not there", async () => assert.equal((await gate(["--explain", "--replay", "none"])).exitCode, 2));
});

describe("a side of one byte", () => {
  test("is one byte long", async () => {
    const file = scratchFile("one", "x");
    assert.match((await gate(["--canonical", file, "--copy", file])).stdout, /^copy .*: 1 byte, /m);
  });
});

describe("the JSON document", () => {
  const forge = useForge(playRepository);
  test("has every key when the sides were compared", async () => {
    const { elapsedMs, ...document } = await verdictOf([], envFor(forge.url));
    assert.equal(typeof elapsedMs, "number");
    const sha256 = "b54630fe7d7fee356fea8bc3d224b9dd31fdbe2bd7f004e299ff4f75254a9795";
    assert.deepEqual(document, {
      schema: 1,
      status: "in-sync",
      reason: null,
      exitCode: 0,
      event: "push",
      branch: 1,
      trusted: true,
      message: "The copy is the canonical file, byte for byte.",
      remedy: "",
      copy: { path: CANONICAL, bytes: 795, sha256 },
      canonical: {
        server: forge.url,
        repo: "molecule-ai/molecule-controlplane",
        ref: "main",
        commit: COMMIT,
        path: "internal/providers/providers.yaml",
        bytes: 795,
        sha256,
      },
      pin: null,
      moved: null,
      firstDifferingLine: null,
      summary: null,
      attempts: 2,
    });
  });
  test("has null for what is not known", async () => {
    const { elapsedMs, message, remedy, ...document } = await verdictOf(["--bogus"]);
    assert.deepEqual(document, {
      schema: 1,
      status: "usage",
      reason: null,
      exitCode: 2,
      event: null,
      branch: null,
      trusted: null,
      copy: { path: null, bytes: null, sha256: null },
      canonical: { server: null, repo: null, ref: null, commit: null, path: null, bytes: null, sha256: null },
      pin: null,
      moved: null,
      firstDifferingLine: null,
      summary: null,
      attempts: 0,
    });
  });
  test("is alone on standard output, the log on standard error", async () => {
    const { stdout, stderr } = await gate(["--json"], { GITHUB_EVENT_NAME: "schedule" });
    assert.doesNotThrow(() => JSON.parse(stdout));
    assert.match(stderr, /^::error::token-missing/m);
  });
  const inertRows = [
    { name: "a command", text: "::error::x", want: '"\\u003a\\u003aerror\\u003a\\u003ax"' },
    { name: "three colons", text: ":::", want: '"\\u003a\\u003a\\u003a"' },
    { name: "the old form of a command", text: "##[error]", want: '"\\u0023\\u0023[error]"' },
    { name: "what turns text around", text: "\u202e\u0085", want: '"\\u202e\\u0085"' },
    { name: "nothing in a plain text", text: "a: b #1", want: '"a: b #1"' },
  ];
  for (const { name, text, want } of inertRows) {
    test(`escapes ${name}`, () => {
      assert.equal(
        toJson(text, (same) => same),
        want,
      );
      assert.equal(JSON.parse(toJson(text, (same) => same)), text);
    });
  }
});

// ──────────────────────────────── main ────────────────────────────────

describe("an exception that nobody expected", () => {
  const token = "0123456789abcdef0123456789abcdef01234567";
  const broken = (error: unknown, debug = "") =>
    new Proxy<Record<string, string>>(
      {},
      {
        get: (_, name) => {
          if (name === "SYNC_DEBUG") return debug;
          if (name === "AUTO_SYNC_TOKEN") return token;
          if (name === "SYNC_MAX_BYTES") throw error;
          return "";
        },
      },
    );
  test("is red, with its message and without its stack or the token", async () => {
    const { exitCode, stdout } = await gate([], broken(new Error(`boom ${token}`)));
    assert.equal(exitCode, 3);
    assert.match(stdout, /^::error::unverified: Cannot finish: "boom \*\*\*"\. .*SYNC_DEBUG=1/);
    assert.doesNotMatch(stdout, /sync-providers\.test|0123456789/);
  });
  test("is red in the middle of a fetch, too", async () => {
    const lines: string[] = [];
    const exitCode = await main([], envFor("http://127.0.0.1:1"), (line) => {
      if (line.startsWith("token")) throw new Error("no room");
      lines.push(line);
    });
    assert.equal(exitCode, 3);
    assert.match(lines.at(-1) ?? "", /^::error::unverified: Cannot finish: "no room"/);
  });
  test("shows its stack on demand", async () => {
    const { stdout } = await gate([], broken(new Error(`boom ${token}`), "1"));
    assert.match(stdout, /^debug .*sync-providers\.test/m);
    assert.doesNotMatch(stdout, /0123456789/);
  });
  test("may be no error at all", async () => {
    assert.match((await gate([], broken("plain text", "1"))).stdout, /Cannot finish: "plain text"/);
  });
  test("of a missing package says how to install it", async () => {
    const error = Object.assign(new Error("no undici"), { code: "ERR_MODULE_NOT_FOUND" });
    assert.match((await gate([], broken(error))).stdout, /npm ci --omit=dev/);
  });
});

describe("the real command", { concurrency: 4 }, () => {
  const forge = useForge(playRepository);
  const rows: { name: string; args: string[]; env?: () => Env; want: number; says: RegExp }[] = [
    { name: "in sync", args: [], env: () => envFor(forge.url), want: 0, says: /^verdict {4}in-sync/m },
    { name: "drifted", args: ["--copy", DRIFTED], env: () => envFor(forge.url), want: 1, says: /^::error file=.*::drift/m },
    { name: "without a token", args: ["--event-name", "schedule"], want: 1, says: /^::error::token-missing/m },
    { name: "a fork without a token", args: ["--replay", "fixtures/events/pr-fork-synchronize.json"], want: 0, says: /^::warning::skipped/m },
    { name: "a wrong flag", args: ["--no-such"], want: 2, says: /^::error::usage/m },
    { name: "an unreadable copy", args: ["--canonical", CANONICAL, "--copy", "none"], want: 3, says: /^::error::unverified \(copy-unreadable\)/m },
  ];
  before(async () => {
    const made = await run([process.execPath, ".ci/bundle.mjs", scratch]);
    assert.match(made.stdout, /^[\da-f]{64} {2}.*sync-providers\.mjs {2}\d+ bytes$/m);
  });
  const starts = [
    { start: "the source", command },
    { start: "the bundle", command: (...args: string[]) => [process.execPath, join(scratch, "sync-providers.mjs"), ...args] },
  ];
  for (const { start, command } of starts) {
    for (const { name, args, env = () => ({}), want, says } of rows) {
      test(`${start}, ${name}: exit code ${want}`, async () => {
        const ran = await run(command(...args), env());
        assert.equal(ran.exitCode, want, ran.stdout + ran.stderr);
        assert.match(ran.stdout, says);
        assert.equal(ran.stderr, "");
      });
    }
  }
  test("loads undici for a fetch, and not to say token-missing", async () => {
    const trace = { NODE_DEBUG: "module,esm" };
    const missing = await run(command("--event-name", "push"), trace);
    assert.equal(missing.exitCode, 1);
    assert.doesNotMatch(missing.stderr, /node_modules\/undici/);
    assert.match((await run(command(), { ...envFor(forge.url), ...trace })).stderr, /node_modules\/undici/);
  });
  test("runs under node's own loader as well", async () => {
    assert.match((await run(measured("--version"), MEASURED)).stdout, /^1\.0\.0/);
  });
  test("keeps its exit code when the reader goes away", async () => {
    const [file = "", ...args] = measured();
    const child = spawn(file, args, { cwd: ROOT, stdio: ["ignore", "pipe", "pipe"], env: MEASURED });
    child.stdout.destroy();
    child.stderr.destroy();
    assert.deepEqual(await closed(child), [1, null]);
  });
  test("runs where a folder of its name lies beside it", async () => {
    const folder = join(scratch, "beside");
    mkdirSync(join(folder, "sync-providers"), { recursive: true });
    symlinkSync(join(ROOT, "sync-providers.ts"), join(folder, "sync-providers.ts"));
    const ran = await run([process.execPath, TSX, join(folder, "sync-providers"), "--no-such-flag"]);
    assert.equal(ran.exitCode, 2, ran.stdout + ran.stderr);
  });
  test("is red when it ends on its way, without a verdict", async () => {
    const preload = scratchFile("never.mjs", `import fs from "node:fs/promises"; import { syncBuiltinESMExports } from "node:module"; fs.open = () => new Promise(() => {}); syncBuiltinESMExports();`);
    const ran = await run([process.execPath, "--import", preload, ...measured(...LOCAL).slice(1)], { SYNC_TIMEOUT_SECONDS: "0.1" });
    assert.equal(ran.exitCode, 3, ran.stdout);
    assert.doesNotMatch(ran.stdout, /^verdict/m);
  });
  test("is red when a library throws outside of every promise, without stack or token", async () => {
    const preload = scratchFile(
      "throws.mjs",
      `import fs from "node:fs/promises"; import { syncBuiltinESMExports } from "node:module"; const real = fs.open; fs.open = (...args) => { setTimeout(() => { throw new Error("boom " + process.env.AUTO_SYNC_TOKEN) }); return new Promise((resolve) => setTimeout(resolve, 200)).then(() => real(...args)); }; syncBuiltinESMExports();`,
    );
    for (const token of [STAND_IN_TOKEN, ""]) {
      const env = { ...MEASURED, ...(token === "" ? {} : { AUTO_SYNC_TOKEN: token }) };
      const ran = await run([process.execPath, "--import", preload, ...measured(...LOCAL).slice(1)], env);
      assert.equal(ran.exitCode, 3, ran.stdout);
      assert.match(ran.stderr, /^::error::unverified: Cannot finish: "boom (\*\*\*|undefined)"\. .*report it\.$/m);
      assert.doesNotMatch(ran.stderr, /^ +at /m);
    }
  });
  test("runs through a link and under a shortened name, and not when it is imported", async () => {
    const link = join(scratch, "gate.ts");
    symlinkSync(join(ROOT, "sync-providers.ts"), link);
    assert.match((await run([process.execPath, TSX, link, "--version"])).stdout, /^1\.0\.0/);
    assert.match((await run([process.execPath, TSX, "sync-providers", "--version"])).stdout, /^1\.0\.0/);
    const imports = [process.execPath, "--import", "./.ci/loader.mjs", "--input-type=module", "-e", 'await import("./sync-providers.ts")'];
    const imported = await run(imports, MEASURED);
    assert.deepEqual([imported.exitCode, imported.stdout, imported.stderr], [0, "", ""]);
    for (const unknown of ["no-such-script", "fixtures"]) {
      assert.match((await run([...imports, unknown, "--version"], MEASURED)).stdout, /^1\.0\.0/);
    }
  });
  test("npm start shows the gate in sync on the loopback", async () => {
    const ran = await run([process.execPath, TSX, "fixtures/forge.ts"]);
    assert.equal(ran.exitCode, 0, ran.stderr);
    assert.match(ran.stdout, /^verdict {4}in-sync/m);
    assert.match(ran.stdout, /exit code 0, after 2 requests/);
  });
  test("ends with its verdict, whatever is still open", async () => {
    const open = await startForge((socket, asked) => {
      const bytes = response(kindOf(asked) === "commit" ? "commit-of-branch" : "ok-at-commit");
      socket.write(Buffer.from(bytes.toString("latin1").replace("Connection: close\r\n", ""), "latin1"));
    });
    const ran = await run(command(), envFor(open.url, { SYNC_TIMEOUT_SECONDS: "86400" }));
    assert.equal(ran.exitCode, 0, ran.stdout);
    await open.close();
  });
  test("takes no more memory for an endless answer than for the limit", async () => {
    const chunk = Buffer.alloc(1 << 20, "x");
    let sent = 0;
    const flood = await startForge(
      on("file", (socket) => {
        const pour = () => {
          do sent += chunk.length;
          while (socket.writable && socket.write(chunk));
        };
        socket.on("drain", pour);
        socket.write("HTTP/1.1 200 OK\r\n\r\n");
        pour();
      }),
    );
    const peak = scratchFile("peak.mjs", `process.on("exit", () => console.error(process.resourceUsage().maxRSS));`);
    const small = await run([process.execPath, "--import", peak, ...measured("--canonical", CANONICAL, "--copy", CANONICAL).slice(1)]);
    const endless = await run([process.execPath, "--import", peak, ...measured().slice(1)], envFor(flood.url, { SYNC_TIMEOUT_SECONDS: "60" }));
    await flood.close();
    assert.match(endless.stdout, /unverified \(too-large\)/);
    const [least, most] = [Number(small.stderr), Number(endless.stderr)];
    assert.ok(least > 0 && most < least + 100 * 1024, `peaks of ${least} and ${most} KiB, ${sent} bytes offered`);
  });
  test("is interrupted by the signal's default", async () => {
    const silent = await startForge(() => {});
    const child = spawn(process.execPath, ["--import", "tsx", "sync-providers.ts"], {
      cwd: ROOT,
      env: { NODE_V8_COVERAGE: "", ...envFor(silent.url, { SYNC_TIMEOUT_SECONDS: "30" }) },
    });
    while (silent.asked.length === 0) await new Promise((resolve) => setTimeout(resolve, 20));
    child.kill("SIGTERM");
    assert.deepEqual(await closed(child), [null, "SIGTERM"]);
    await silent.close();
  });
});

// ───────────────────────────── properties ─────────────────────────────

/** What a runner takes for a command in a log: act's published grammar, and GitHub's. */
function commandsIn(log: string): string[] {
  const lines = log.split(/[\r\n]/);
  const act = lines.filter((line) => /^::([^ ]+)( (.+))?::([^\r\n]*)/.test(line) || /^##\[/.test(line));
  const github = lines.filter((line) => line.trimStart().startsWith("::") || line.includes("##["));
  return [...new Set([...act, ...github])];
}

const hostile = fc.oneof(
  fc.string({ unit: "binary" }),
  fc.string({ unit: fc.constantFrom(":", "#", "[", "]", " ", "\n", "\r", "%", ",", "\u2028", "\u0085", "\t", "error", "stop-commands", "a", '"') }),
);

describe("for any text", () => {
  test("inert leaves no command and no control character", () => {
    fc.assert(
      fc.property(hostile, (text) => {
        assert.deepEqual(commandsIn(inert(text)), []);
        assert.doesNotMatch(inert(text), /[\p{Cc}\p{Cf}\p{Zl}\p{Zp}]|::/u);
      }),
      { numRuns: 1000 },
    );
  });
  test("escaping can be undone by the published rule", () => {
    const undo = (text: string) => text.replaceAll("%0D", "\r").replaceAll("%0A", "\n").replaceAll("%3A", ":").replaceAll("%2C", ",").replaceAll("%25", "%");
    fc.assert(
      fc.property(hostile, (text) => {
        assert.equal(undo(escapeData(text)), text);
        assert.equal(undo(escapeProperty(text)), text);
        assert.doesNotMatch(escapeData(text), /[\r\n]/);
        assert.doesNotMatch(escapeProperty(text), /[\r\n:,]/);
      }),
      { numRuns: 1000 },
    );
  });
  test("the JSON document says the same and holds no command", () => {
    fc.assert(
      fc.property(hostile, (text) => {
        const json = toJson({ text }, (same) => same);
        assert.deepEqual(JSON.parse(json), { text });
        assert.deepEqual(commandsIn(json), []);
        assert.doesNotMatch(json, /::/);
      }),
      { numRuns: 1000 },
    );
  });
  test("in the event's name, the copy's path and the canonical's, a runner sees the one annotation", async () => {
    await fc.assert(
      fc.asyncProperty(hostile, hostile, async (text, other) => {
        const { stdout } = await gate([`--event-name=x${text}`, `--copy=${other}y`, `--canonical=${text}z`]);
        const [annotation = "", ...more] = commandsIn(stdout);
        assert.deepEqual(more, []);
        assert.match(annotation, /^::error::unverified \(copy-unreadable\): (?!.*::)/);
      }),
      { numRuns: 200 },
    );
  });
  test("in a payload, a runner sees the one annotation", async () => {
    await fc.assert(
      fc.asyncProperty(hostile, hostile, async (text, other) => {
        const event = { pull_request: { head: { repo: { full_name: text } }, base: { repo: { full_name: other } } } };
        const { stdout } = await gate(["--replay", scratchFile("hostile.json", JSON.stringify({ event_name: "pull_request", event }))]);
        assert.equal(commandsIn(stdout).length, 1);
        assert.match(commandsIn(stdout)[0] ?? "", /^::(error::token-missing|warning::skipped): /);
      }),
      { numRuns: 200 },
    );
  });
  test("in a server's answers, a runner sees the one annotation", async () => {
    let said = "";
    const header = (text: string) => text.replace(/[^\x20-\x7e]/g, "");
    const forge = await startForge((socket, asked) => {
      const plays = [
        answer("403 No", JSON_TYPE, JSON.stringify({ message: said })),
        answer("302 Found", { location: `http://x/${header(said)}` }),
        on("file", answer("200 OK", { "content-type": `json ${header(said)}` })),
        on("file", answer("200 OK", { "x-gitea-object-type": `x${header(said)}` })),
      ];
      plays[said.length % plays.length]?.(socket, asked);
    });
    await fc.assert(
      fc.asyncProperty(hostile, async (text) => {
        said = text;
        const { stdout } = await gate([], envFor(forge.url));
        assert.equal(commandsIn(stdout).length, 1, stdout);
      }),
      { numRuns: 200 },
    );
    await forge.close();
  });
});

describe("for any JSON", () => {
  const repo = fc.oneof(
    fc.constant(null),
    fc.jsonValue(),
    fc.record(
      { id: fc.oneof(fc.integer({ min: -1, max: 2 }), fc.jsonValue()), full_name: fc.oneof(fc.constantFrom("", "o/a", "O/A", "o/b"), fc.jsonValue()), fork: fc.oneof(fc.boolean(), fc.jsonValue()) },
      { requiredKeys: [] },
    ),
  );
  const side = fc.oneof(fc.jsonValue(), fc.record({ label: fc.oneof(fc.constantFrom("", "x"), fc.jsonValue()), repo }, { requiredKeys: [] }));
  const payload = fc.oneof(fc.jsonValue(), fc.record({ pull_request: fc.oneof(fc.jsonValue(), fc.record({ head: side, base: side }, { requiredKeys: [] })) }));

  /** What could make rules 1 to 5 say fork, each by itself. An answer of untrusted must rest on one of them. */
  function couldBeFork(value: unknown): boolean {
    const at = (...keys: string[]) =>
      keys.reduce<unknown>((inner, key) => (typeof inner === "object" && inner !== null && !Array.isArray(inner) && Object.hasOwn(inner, key) ? Reflect.get(inner, key) : undefined), value);
    const [head, base] = [(key: string) => at("pull_request", "head", "repo", key), (key: string) => at("pull_request", "base", "repo", key)] as const;
    const differ = (key: string, fold: (text: unknown) => unknown) => fold(head(key)) !== fold(base(key));
    return (
      at("pull_request", "head", "label") === "" ||
      at("pull_request", "head", "repo") === null ||
      (typeof head("id") === "number" && typeof base("id") === "number" && differ("id", (id) => id)) ||
      (typeof head("full_name") === "string" && typeof base("full_name") === "string" && differ("full_name", (name) => String(name).toLowerCase())) ||
      head("fork") === true
    );
  }

  test("the classifier answers, and says untrusted only where a rule says so", () => {
    fc.assert(
      fc.property(payload, (value) => {
        const context = classify("pull_request", { value });
        assert.equal(context.trusted, context.branch !== 3);
        assert.ok(context.trusted || couldBeFork(value), context.why);
      }),
      { numRuns: 5000 },
    );
  });
  test("any other event is trusted", () => {
    fc.assert(
      fc.property(fc.string(), payload, (event, value) => {
        fc.pre(event !== "pull_request");
        assert.equal(classify(event, { value }).trusted, true);
      }),
    );
  });
});

// ────────────────────────────── workflow ──────────────────────────────

describe("the workflow", () => {
  const text = readFileSync(".gitea/workflows/sync-providers-yaml.yml", "utf8");
  const workflow = parseYaml(text);
  const steps = jobsOf(text).flatMap(stepsOf);
  test("listens to the table's branches 1 to 3 and to nothing else", () => {
    assert.deepEqual(workflow.on, {
      pull_request: { types: ["opened", "synchronize", "reopened"] },
      push: { branches: ["main", "staging"] },
      schedule: [{ cron: "37 4 * * *" }],
      workflow_dispatch: null,
    });
  });
  test("reads contents and no more, one run per ref, with a timeout", () => {
    assert.deepEqual(workflow.permissions, { contents: "read" });
    assert.equal(workflow.concurrency.group, "sync-providers-yaml-${{ github.ref }}");
    assert.deepEqual(
      jobsOf(text).map((job) => job["timeout-minutes"]),
      [10],
    );
  });
  test("checks out by commit, without leaving credentials", () => {
    assert.deepEqual(steps[0], {
      uses: "actions/checkout@de0fac2e4500dabe0009e67214ff5f5447ce83dd",
      with: { "persist-credentials": false },
    });
    assert.match(text, /de0fac2e4500dabe0009e67214ff5f5447ce83dd # v6\.0\.2$/m);
  });
  test("hands the secret to the last step alone", () => {
    assert.deepEqual(
      steps.map((step) => step.env),
      [undefined, undefined, { AUTO_SYNC_TOKEN: "${{ secrets.AUTO_SYNC_TOKEN }}" }],
    );
    assert.equal(text.split("secrets.").length, 2);
  });
  test("runs plain commands", () => {
    assert.deepEqual(
      steps.map((step) => step.run),
      [undefined, "npm ci --omit=dev", "npx tsx sync-providers.ts"],
    );
  });
  test("has no way to be skipped or to pass red", () => {
    assert.doesNotMatch(text, /paths|continue-on-error|pull_request_target|\bif:/);
  });
  const rows = [
    { name: "a trusted context", replay: "schedule", want: 1, says: /token-missing/ },
    { name: "an untrusted context", replay: "pr-fork-synchronize", want: 0, says: /skipped/ },
  ];
  for (const { name, replay, want, says } of rows) {
    test(`its gate step ends with ${want} in ${name}`, async () => {
      const event = scratchFile(`step-${replay}.json`, JSON.stringify(captured(replay).event));
      const env = { GITHUB_EVENT_NAME: captured(replay).event_name, GITHUB_EVENT_PATH: event };
      const ran = await run(["bash", "-e", "-c", String(steps.at(-1)?.run)], env);
      assert.equal(ran.exitCode, want, ran.stdout);
      assert.match(ran.stdout, says);
    });
  }
});

/** A workflow file, read as the rules below want it: foreign data, narrowed where it is used. */
function workflowOf(text: string): Record<string, unknown> {
  return recordOf(parseDocument(text, { uniqueKeys: false }).toJS());
}

function recordOf(value: unknown): Record<string, unknown> {
  return typeof value === "object" && value !== null ? Object.fromEntries(Object.entries(value)) : {};
}

function jobsOf(text: string): Record<string, unknown>[] {
  return Object.values(recordOf(workflowOf(text).jobs)).map(recordOf);
}

function stepsOf(job: Record<string, unknown>): Record<string, unknown>[] {
  return Array.isArray(job.steps) ? job.steps.map(recordOf) : [];
}

/** What a workflow must not be, the outage that it prevents, and one that is so. */
const WORKFLOW_RULES: { rule: string; prevents: string; isBroken: (text: string) => boolean; broken: (good: string) => string }[] = [
  {
    rule: "has no key twice",
    prevents: "Gitea drops such a workflow without a word: the gate does not run, and nothing is red",
    isBroken: (text) => parseDocument(text).errors.length > 0,
    broken: (good) => `${good}\non: push\n`,
  },
  {
    rule: "has no inputs for workflow_dispatch",
    prevents: "older Gitea cannot read them and drops the workflow",
    isBroken: (text) => recordOf(recordOf(workflowOf(text).on).workflow_dispatch).inputs !== undefined,
    broken: (good) => good.replace(/^ {2}workflow_dispatch:\n/m, "").replace(/^on:\n/m, "on:\n  workflow_dispatch:\n    inputs: {a: {type: string}}\n"),
  },
  {
    rule: "has no slash in its name",
    prevents: "the name is part of the commit status, whose parts a slash separates: a required check by that name never matches",
    isBroken: (text) => String(workflowOf(text).name).includes("/"),
    broken: (good) => good.replace(/^name: /m, "name: a/"),
  },
  {
    rule: "pins every action by its commit",
    prevents: "a tag can be moved to code that reads the secret",
    isBroken: (text) =>
      jobsOf(text)
        .flatMap(stepsOf)
        .some(({ uses }) => uses !== undefined && !/^[\w.-]+\/[\w./-]+@[\da-f]{40}$/.test(String(uses))),
    broken: (good) => good.replace(/@[\da-f]{40}/, "@v6"),
  },
  {
    rule: "has no expression in a command",
    prevents: "a branch's name would be run as a shell command",
    isBroken: (text) =>
      jobsOf(text)
        .flatMap(stepsOf)
        .some(({ run }) => String(run).includes("${{")),
    broken: (good) => good.replace(/ run: /, " run: echo ${{ github.head_ref }} && "),
  },
  {
    rule: "says its permissions",
    prevents: "the job's own token could write to the repository",
    isBroken: (text) => workflowOf(text).permissions === undefined,
    broken: (good) => good.replace("permissions:", "permission:"),
  },
  {
    rule: "says its concurrency",
    prevents: "a dozen pushes hold a dozen runners",
    isBroken: (text) => workflowOf(text).concurrency === undefined,
    broken: (good) => good.replace("concurrency:", "concurrent:"),
  },
  {
    rule: "has a timeout for every job",
    prevents: "a job that hangs holds its runner for hours",
    isBroken: (text) => jobsOf(text).some((job) => job["timeout-minutes"] === undefined),
    broken: (good) => good.replace("timeout-minutes:", "timeout:"),
  },
  {
    rule: "does not continue on an error",
    prevents: "a red gate would be shown green",
    isBroken: (text) => text.includes("continue-on-error"),
    broken: (good) => good.replace(/ run: /, " continue-on-error: true\n        run: "),
  },
  {
    rule: "filters no paths",
    prevents: "a required check that does not run blocks the queue, or counts as passed",
    isBroken: (text) => Object.values(recordOf(workflowOf(text).on)).some((event) => Object.keys(recordOf(event)).some((key) => key.startsWith("paths"))),
    broken: (good) => good.replace(/^ {4}branches:/m, "    paths: [a]\n    branches:"),
  },
  {
    rule: "keeps secrets to the environment of a step",
    prevents: "every other step, and every action in it, could read them",
    isBroken: (text) =>
      text.split("secrets.").length - 1 !==
      jobsOf(text)
        .flatMap(stepsOf)
        .reduce((count, { env }) => count + JSON.stringify(env ?? {}).split("secrets.").length - 1, 0),
    broken: (good) => good.replace(/^permissions:/m, "env:\n  A: ${{ secrets.A }}\npermissions:"),
  },
  {
    rule: "has no job whose steps can all be skipped",
    prevents: "a job in which nothing ran is green",
    isBroken: (text) => jobsOf(text).some((job) => job.if !== undefined || stepsOf(job).every((step) => step.if !== undefined)),
    broken: (good) => good.replace(/^( {4})timeout-minutes:/m, "$1if: github.actor\n$1timeout-minutes:"),
  },
];

describe("every workflow", () => {
  for (const file of readdirSync(".gitea/workflows")) {
    const good = readFileSync(`.gitea/workflows/${file}`, "utf8");
    for (const { rule, prevents, isBroken, broken } of WORKFLOW_RULES) {
      test(`${file} ${rule}, or else: ${prevents}`, () => {
        assert.equal(isBroken(good), false);
        assert.notEqual(broken(good), good);
        assert.equal(isBroken(broken(good)), true, "the rule sees a workflow that breaks it");
      });
    }
  }
});

describe("the README", () => {
  const readme = readFileSync("README.md", "utf8");
  test("has the examples and the table of events that the gate makes", async () => {
    assert.equal(await renderReadme(readme), readme, "npm run examples makes them anew");
  });
  test("has an example of every status", () => {
    for (const status of Object.keys(STATUSES)) assert.match(readme, new RegExp(`^\`${status}\`, exit code \\d: `, "m"));
  });
  test("names every setting of the help", async () => {
    const { stdout } = await gate(["--help"]);
    for (const [name] of stdout.matchAll(/\b(SYNC|AUTO|GITHUB)_[A-Z_]+|--[a-z-]+/g)) assert.ok(readme.includes(name), name);
  });
  test("starts with the two commands", () => {
    assert.deepEqual(
      [...readme.matchAll(/```sh\n([\s\S]*?)```/g)].slice(0, 2).map(([, code]) => code),
      ["npm ci && npm start\n", "npm cit\n"],
    );
  });
});

describe("the packages", () => {
  const lock = JSON.parse(readFileSync("package-lock.json", "utf8"));
  const packages: [string, Record<string, unknown>][] = Object.entries<Record<string, unknown>>(lock.packages).filter(([path]) => path !== "");
  test("are pinned by version and sum, without an address", () => {
    for (const [path, { version, integrity, resolved }] of packages) {
      assert.deepEqual([typeof version, typeof integrity, resolved], ["string", "string", undefined], path);
    }
  });
  test("that a runner installs are ten at the most", () => {
    const installed = packages.filter(([, { dev, devOptional, os, optional }]) => !dev && !devOptional && os === undefined && !optional);
    assert.deepEqual(installed.map(([path]) => path.replace("node_modules/", "")).sort(), ["diff", "esbuild", "is-network-error", "p-retry", "tsx", "undici", "yaml"]);
  });
});

describe("the reasons", () => {
  test("are those of the README's table", () => {
    const table = readFileSync("README.md", "utf8").match(/^\| `([a-z-]+)` \|.*\|$/gm) ?? [];
    for (const reason of Object.keys(REMEDIES))
      assert.ok(
        table.some((row) => row.startsWith(`| \`${reason}\` |`)),
        reason,
      );
  });
});
