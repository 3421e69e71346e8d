/**
 * All tests of the gate: the case table and its permutations first, because they are the specification, then the other
 * tables in the order of the sections of sync-providers.ts, then the workflows and the documents.
 *
 *   npm test                          everything, with coverage
 *   npm run test:row -- "expired"     the tests whose names contain this text
 */

import { deepEqual, equal, match, notEqual, ok } from "node:assert/strict";
import { spawn } from "node:child_process";
import { createHash } from "node:crypto";
import { chmodSync, copyFileSync, existsSync, readdirSync, readFileSync, statSync, symlinkSync } from "node:fs";
import { connect, createServer } from "node:net";
import { join, relative, resolve } from "node:path";
import * as node from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { parse } from "yaml";
import { createFolder } from "./fixtures/folder.ts";
import { gateCommand, type Run, runCommand, runGate } from "./fixtures/gate.ts";
import {
  hangUp,
  play,
  playEdited,
  REFUSED_TOKEN,
  type Responder,
  readResponse,
  respond,
  respondError,
  respondJson,
  type ServerScript,
  send,
  stall,
  startGitea,
  TOKEN,
} from "./fixtures/gitea-server.ts";
import { classify, type Env, main } from "./sync-providers.ts";

// ------------------------------------------------------------------------------------------------
// Rows
// ------------------------------------------------------------------------------------------------

const OWN_TEXT = readFileSync("sync-providers.test.ts", "utf8");
/** `npm run test:row` names it, literally. */
const WANTED_NAME = process.argv[2] ?? "";
let testCount = 0;

function test(name: string, run: (name: string) => unknown): void {
  testRow(name, name, run);
}

/** A test with a time limit. A failure begins with the line of its row, which is where the text, or its beginning, is. */
function testRow(name: string, text: string, run: (name: string) => unknown): void {
  if (!name.includes(WANTED_NAME)) {
    return;
  }
  testCount += 1;
  node.test(name, { timeout: 30_000 }, async () => {
    try {
      await run(name);
    } catch (error) {
      let found = text;
      while (!OWN_TEXT.includes(found)) {
        found = found.slice(0, -1);
      }
      const line = OWN_TEXT.slice(0, OWN_TEXT.indexOf(found)).split("\n").length;
      throw new Error(`sync-providers.test.ts:${line}`, { cause: error });
    }
  });
}

const suites: (() => void)[] = [];

/** Tests that run side by side, as the suites do: most of them wait for a timer or a process. */
function describe(name: string, define: () => void): void {
  suites.push(() => node.describe(name, { concurrency: 8 }, define));
}

/** The canonical file of the captured responses, and the same after somebody edited line 8. */
const CANONICAL_PATH = "fixtures/providers.yaml";
const DRIFTED_PATH = "fixtures/providers-drifted.yaml";
const CANONICAL = readFileSync(CANONICAL_PATH);
const DRIFTED = readFileSync(DRIFTED_PATH);
const CANONICAL_SHA256 = "b54630fe7d7fee356fea8bc3d224b9dd31fdbe2bd7f004e299ff4f75254a9795";
const DRIFTED_SHA256 = "9ccc1c93c3426520f36cce9e61bde0dadeb00c180605e2340e46bd4d30226edd";
const OTHER_SHA256 = "0".repeat(64);
const LFS_POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n";
/** 10 MiB, the limit. */
const MAX_FILE = Buffer.alloc(10_485_760, " ");

const TOO_LARGE = Buffer.concat([MAX_FILE, Buffer.from(" ")]);

/** Parts of rows. */
const NO_TOKEN = { AUTO_SYNC_TOKEN: "" };
const REFUSED = { AUTO_SYNC_TOKEN: REFUSED_TOKEN };
const DRIFT = { SYNC_COPY_PATH: DRIFTED_PATH };
/** Nothing listens on port 1. */
const DOWN = { SYNC_CANONICAL_SERVER: "http://127.0.0.1:1" };
const GITHUB = { GITHUB_SERVER_URL: "https://github.com" };
const DEFAULT_SERVER = { SYNC_CANONICAL_SERVER: "", GITHUB_SERVER_URL: "SERVER" };
const LOCAL = ["--canonical", CANONICAL_PATH];
const STALE = '\npin        "DIR/pin": sha256 000000000000, does not match the copy\n';
const NOT_VISIBLE =
  '\nrefused    "molecule-ai/molecule-controlplane" does not exist on SERVER, or the user of the token';

function withPin(content: string | Buffer, env: Env) {
  return { env: { ...env, SYNC_PIN_PATH: "DIR/pin" }, files: { pin: content } };
}

function stalePin(env: Env) {
  return withPin(OTHER_SHA256, env);
}

function copyOf(content: string | Buffer) {
  return { env: { SYNC_COPY_PATH: "DIR/copy" }, files: { copy: content } };
}

/** A rate limit with this Retry-After. */
function wait(seconds: string | number): Responder {
  return respond(429, { headers: { "retry-after": `${seconds}` } });
}

/** A proxy that opens a tunnel, and then does nothing. */
const openSilently: Responder = (socket) => void socket.write("HTTP/1.1 200 OK\r\n\r\n");

/** A run of the gate, and what comes of it. In texts, DIR is its temporary folder, REL the relative path of it, and SERVER the URL of the server. */
interface Row {
  /** A sentence that somebody would search for. */
  readonly name: string;
  readonly args?: readonly string[];
  /** Added to the environment of a push with a token, whose copy is in sync. */
  readonly env?: Env;
  /** What the server does. Default: it is the captured repository. */
  readonly server?: ServerScript;
  /** The files of DIR. */
  readonly files?: Readonly<Record<string, string | Buffer>>;
  /** The symbolic links of DIR, called `link` and `dangling`. */
  readonly links?: Readonly<Record<string, string>>;
  /** The status, or the reason of `unverified`. */
  readonly want: string;
  /** How many requests the server gets. */
  readonly requests?: number;
  /** What the log says, the verdict included. */
  readonly log?: RegExp | string;
  readonly notInLog?: RegExp;
  /** The files that the run changed or created, with their content. */
  readonly written?: Readonly<Record<string, string | Buffer>>;
}

/** The annotation of a status. That of every other one is `::error::`. */
const ANNOTATIONS: Readonly<Record<string, string>> = { "in-sync": "", written: "", skipped: "::warning::" };

/** The environment of a push. */
function pushEnv(serverUrl: string) {
  return {
    GITHUB_EVENT_NAME: "push",
    AUTO_SYNC_TOKEN: TOKEN,
    SYNC_CANONICAL_SERVER: serverUrl,
    SYNC_COPY_PATH: CANONICAL_PATH,
  };
}

/** The same with a short deadline, so that the pauses between four attempts take 2.8 s. */
function hastyEnv(serverUrl: string) {
  return { ...pushEnv(serverUrl), SYNC_TIMEOUT_SECONDS: "12" };
}

/** Runs a row. The name is the one of its verdict. */
async function checkRow({ args = [], env = {}, server, files = {}, links, ...want }: Omit<Row, "name">, name?: string) {
  using gitea = await startGitea(server);
  using folder = createFolder(files, links);
  const path = { DIR: folder.path, REL: relative(".", folder.path) };
  const fill = (text: string) =>
    text.replaceAll("DIR", path.DIR).replaceAll("REL", path.REL).replaceAll("SERVER", gitea.url);
  const given: Record<string, string | undefined> = hastyEnv(gitea.url);
  for (const [key, value] of Object.entries(env)) {
    given[key] = value && fill(value);
  }
  const run = await runGate(args.map(fill), given);
  checkVerdict(run, want, name, { [path.REL]: "REL", [path.DIR]: "DIR", [gitea.url]: "SERVER" });
  if (want.requests !== undefined) {
    equal(gitea.requests.length, want.requests, run.log);
  }
  const expected = { ...files, ...want.written };
  for (const [file, content] of Object.entries(expected)) {
    equal(readFileSync(join(path.DIR, file), "latin1"), Buffer.from(content).toString("latin1"), file);
  }
  const found = readdirSync(path.DIR, { recursive: true, encoding: "utf8" });
  const isFile = (file: string) => !/^(link|dangling)\b/.test(file) && statSync(join(path.DIR, file)).isFile();
  deepEqual(found.filter(isFile).sort(), Object.keys(expected).sort());
}

/** The whole verdict of every test that has one, by the name of the test: the sentences of the gate on one page. */
const VERDICTS: Readonly<Record<string, unknown>> = JSON.parse(readFileSync("fixtures/verdicts.json", "utf8"));
const CODES: Readonly<Record<string, number>> = {
  ...{ "in-sync": 0, written: 0, skipped: 0, drift: 1, "token-missing": 1, "pin-mismatch": 1, usage: 2, unverified: 3 },
};

/** Checks how a run ended. The names replace what differs from run to run. */
function checkVerdict(
  run: Run,
  want: Pick<Row, "want" | "log" | "notInLog">,
  testName?: string,
  names: Readonly<Record<string, string>> = {},
): void {
  const replace = (text: string) => {
    const replaced = Object.entries(names).reduce((result, [from, to]) => result.replaceAll(from, to), text);
    // Node 24 adds a hint to the message of OpenSSL.
    const sameWords = replaced.replace(/; if the root CA [^"]*/, "");
    return sameWords.replaceAll(process.cwd(), "CWD").replace(/\d{4}-\d\d-\d\dT\d\d:[\d:.]+Z/, "NOW");
  };
  const log = replace(run.log);
  const verdict = replace(run.verdict);
  const label = want.want in CODES ? want.want : `unverified (${want.want})`;
  equal(verdict.slice(0, label.length + 2), `${label}: `, log);
  const annotation = /^::(error|warning)::/.exec(run.lastLine)?.[0] ?? "";
  equal(annotation, ANNOTATIONS[label] ?? "::error::", log);
  equal(run.exitCode, CODES[want.want] ?? 3);
  if (testName !== undefined && want.want !== "in-sync") {
    equal(verdict, VERDICTS[testName], "fixtures/verdicts.json has another verdict");
  }
  const { log: wanted = "", notInLog } = want;
  ok(typeof wanted === "string" ? log.includes(wanted) : wanted.test(log), `${wanted} is not in\n${log}`);
  ok(notInLog === undefined || !notInLog.test(log), log);
}

const BUNDLE = "dist/sync-providers.mjs";

node.before(async () => {
  const { exitCode, log } = await runCommand(["npm", "run", "bundle"]);
  equal(exitCode, 0, log);
});

/** What makes a started process count for the coverage. */
const COVERAGE = { NODE_V8_COVERAGE: process.env.NODE_V8_COVERAGE };

/** The gate as the tests import it: compiled, without tsx. */
function measuredCommand(nodeFlags: readonly string[], ...args: readonly string[]): string[] {
  return [process.execPath, ...nodeFlags, "dist/test/sync-providers.js", ...args];
}

/** One test for each row. The prefix makes the name complete. */
function testRows(prefix: string, rows: readonly Row[]): void {
  describe(prefix, () => {
    for (const row of rows) {
      testRow(`${prefix}: ${row.name}`, row.name, (name) => checkRow(row, name));
    }
  });
}

// ------------------------------------------------------------------------------------------------
// The case table
// ------------------------------------------------------------------------------------------------

/** The files in fixtures/events by their case, as the server decided about the secret. */
const CAPTURED_EVENTS = {
  1: "push-main push-staging push-tag schedule workflow-dispatch",
  2: "pr-same-closed pr-same-forked-base pr-same-opened pr-same-reopened pr-same-synchronize",
  3: "pr-agit-opened pr-deleted-fork-labeled pr-fork-synchronize pr-from-parent",
  4: "branch-created branch-deleted fork-created issue-opened pr-fork-comment pr-fork-target pr-same-review release-published",
};
const CAPTURED_CASES = new Map(
  Object.entries(CAPTURED_EVENTS).flatMap(([number, names]) => names.split(" ").map((name) => [name, Number(number)])),
);

function readEvent(name: string) {
  return JSON.parse(readFileSync(`fixtures/events/${name}.json`, "utf8"));
}

describe("the case table, on captured events", () => {
  test("every captured event is in the table", () => {
    const names = readdirSync("fixtures/events").map((file) => file.replace(".json", ""));
    deepEqual(names.sort(), [...CAPTURED_CASES.keys()].sort());
  });

  for (const [name, want] of CAPTURED_CASES) {
    const { event_name, event, secret_arrived } = readEvent(name);
    test(`captured event ${name} is case ${want}`, () => {
      ok(Object.keys(event).length > 0, "the capture has a payload");
      equal(classify(event_name, event).case, want);
    });
    if (event_name === "pull_request") {
      test(`captured event ${name}: the server sent the secret if and only if a token is expected`, () => {
        equal(classify(event_name, event).case !== 3, secret_arrived);
      });
    }
  }
});

describe("every case with every token and every state of the canonical file", () => {
  /** One event for each case, and for each way to decide it. */
  const events = `push-main schedule workflow-dispatch pr-same-opened pr-same-forked-base pr-agit-opened
    pr-deleted-fork-labeled pr-fork-synchronize pr-from-parent pr-fork-target pr-fork-comment issue-opened`;
  const missing = { same: "token-missing", different: "token-missing", unreachable: "token-missing" };
  const skipped = { same: "skipped", different: "skipped", unreachable: "skipped" };
  const compared = { same: "in-sync", different: "drift", unreachable: "unreachable" };
  const tokens = [
    { name: "no token", token: "", expected: missing, fork: skipped },
    { name: "a right token", token: TOKEN, expected: compared, fork: compared },
    {
      name: "a wrong token",
      token: "wrong-token-0123456789",
      expected: { same: "token-rejected", different: "token-rejected", unreachable: "unreachable" },
      fork: { same: "skipped", different: "skipped", unreachable: "unreachable" },
    },
    {
      name: "a refused token",
      token: REFUSED_TOKEN,
      expected: { same: "repo-not-visible", different: "repo-not-visible", unreachable: "unreachable" },
      fork: { same: "skipped", different: "skipped", unreachable: "unreachable" },
    },
  ];
  const canonicalFiles = [
    { state: "same", env: { SYNC_COPY_PATH: CANONICAL_PATH } },
    { state: "different", env: { SYNC_COPY_PATH: DRIFTED_PATH } },
    // Nothing listens on port 1.
    { state: "unreachable", env: { SYNC_CANONICAL_SERVER: "http://127.0.0.1:1" } },
  ] as const;
  for (const event of events.split(/\s+/)) {
    const { event_name, event: payload } = readEvent(event);
    const number = CAPTURED_CASES.get(event);
    for (const { name, token, expected, fork } of tokens) {
      for (const { state, env } of canonicalFiles) {
        const want = number === 3 ? fork[state] : expected[state];
        testRow(
          `${event} (case ${number}), ${name}, canonical file ${state}: ${want}`,
          "every case with every token",
          () => {
            const run = { GITHUB_EVENT_NAME: event_name, GITHUB_EVENT_PATH: "DIR/event.json", AUTO_SYNC_TOKEN: token };
            return checkRow({ env: { ...env, ...run }, files: { "event.json": JSON.stringify(payload) }, want });
          },
        );
      }
    }
  }
});

describe("the rules for pull requests", () => {
  const repos = (head: unknown, base: unknown = { id: 1 }) => {
    return { pull_request: { head: { repo: head }, base: { repo: base } } };
  };
  const both = (id: unknown, flag: boolean) => repos({ id, fork: flag }, { id });
  const sides = (head: object, base: object) => {
    return { pull_request: { head: { ...head, repo: { id: 1 } }, base: { ...base, repo: { id: 1 } } } };
  };
  const agit = sides({ label: "" }, {});
  const same = (fact: string) => ({ want: 2, why: `the same repository: ${fact}` });
  const fork = (fact: string) => ({ want: 3, why: `a fork: ${fact}` });
  const runner = "The operator of the runner must look into that.";
  const unknown = { want: 4, why: "the payload does not say where the pull request comes from", remedy: runner };
  const isAgit = fork("head.label is empty (pushed to refs/for/, the AGit flow)");
  const isDeleted = fork("head.repo is null (the fork was deleted)");
  const isFork = fork("head.repo.fork is true");
  const isSame = same("head.repo.fork is false");
  const oneId = same("head.repo.id is 1, base.repo.id is 1");
  const twoIds = fork("head.repo.id is 2, base.repo.id is 1");
  const largestId = same("head.repo.id is 9007199254740991, base.repo.id is 9007199254740991");
  const rows = [
    // In the order of the rules.
    { name: "an empty head.label is a fork, even with equal ids", payload: agit, ...isAgit },
    { name: "a blank head.label is not empty", payload: sides({ label: " " }, {}), ...oneId },
    { name: "an empty label of the base does not matter", payload: sides({}, { label: "" }), ...oneId },
    { name: "a head.repo that is null is a deleted fork", payload: repos(null), ...isDeleted },
    { name: "equal ids are one repository, whatever the flag", payload: both(1, true), ...oneId },
    { name: "different ids are a fork, whatever the flag", payload: repos({ id: 2, fork: false }), ...twoIds },
    { name: "the largest safe integer is an id", payload: both(9_007_199_254_740_991, true), ...largestId },
    { name: "larger ids, which could be rounded, are ignored", payload: both(9_007_199_254_740_992, true), ...isFork },
    { name: "a head id of 0 is ignored", payload: repos({ id: 0, fork: false }), ...isSame },
    { name: "a base id of 0 is ignored", payload: repos({ id: 1, fork: true }, { id: 0 }), ...isFork },
    { name: "negative ids are ignored", payload: both(-1, true), ...isFork },
    { name: "ids given as text are ignored", payload: both("1", true), ...isFork },
    { name: "fractional ids are ignored", payload: both(1.5, true), ...isFork },
    { name: "the flag alone can say fork", payload: repos({ fork: true }, null), ...isFork },
    { name: "the flag alone can deny it", payload: repos({ fork: false }, null), ...isSame },
    { name: "the flag as text says nothing", payload: repos({ fork: "true" }), ...unknown },
    { name: "the flag of the base says nothing", payload: repos({}, { fork: true }), ...unknown },
    { name: "a head.repo that is missing is not null", payload: repos(undefined), ...unknown },
    { name: "a head.repo that is a list says nothing", payload: repos([{ fork: true }]), ...unknown },
    { name: "a payload that is a list says nothing", payload: [agit], ...unknown },
    { name: "a payload that is null says nothing", payload: null, ...unknown },
    { name: "inherited keys say nothing", payload: Object.create(agit), ...unknown },
  ];
  for (const { name, payload, want, ...context } of rows) {
    testRow(`pull request: ${name} (case ${want})`, name, () => {
      deepEqual(classify("pull_request", payload), { event: "pull_request", case: want, ...context });
    });
  }

  const inItself = { want: 1, why: "it runs in the repository itself" };
  const other = { why: "the gate does not know this event", remedy: "Remove it from the workflow's triggers." };
  const none = { why: "GITHUB_EVENT_NAME is not set", remedy: "Pass the runner's environment to the step." };
  const events = [
    { event: "push", ...inItself },
    { event: "schedule", ...inItself },
    { event: "workflow_dispatch", ...inItself },
    { event: "pull_request_target", want: 4, ...other },
    { event: "Pull_Request", want: 4, ...other },
    { event: "toString", want: 4, ...other },
    { event: "", want: 4, ...none },
  ];
  for (const { want, ...context } of events) {
    testRow(`the event ${JSON.stringify(context.event)} is case ${want}, whatever its payload`, "the event $", () => {
      deepEqual(classify(context.event, agit), { ...context, case: want });
    });
  }
});

// ------------------------------------------------------------------------------------------------
// Sections 1 and 2: main and verdicts
// ------------------------------------------------------------------------------------------------

testRows("the first failure is the verdict", [
  { name: "a wrong setting, then no copy", env: { SYNC_CANONICAL_REPO: "a", SYNC_COPY_PATH: "none" }, want: "usage" },
  { name: "an unreadable copy, then no token", env: { ...NO_TOKEN, SYNC_COPY_PATH: "none" }, want: "copy-unreadable" },
  { name: "a bad pin file, then requests", env: { SYNC_PIN_PATH: "none" }, want: "pin-unreadable", requests: 0 },
  { name: "no token, then a stale pin file, logged", ...stalePin(NO_TOKEN), want: "token-missing", log: STALE },
  { name: "no server, then a stale pin file, logged", ...stalePin(DOWN), want: "unreachable", log: STALE },
]);

{
  const fork = { args: ["--replay", "fixtures/events/pr-fork-synchronize.json"] };
  const answer = (every: Responder) => ({ ...fork, server: { every } });
  const kong = respondJson(404, { message: "no Route matched" });
  const apisix = respondJson(404, { error_msg: "404 Route Not Found" });
  const urlOnly = respondJson(401, { url: "https://git.example.com/api/swagger" });
  const noTexts = respondJson(403, { message: { toString: 1 }, url: ["a"] });
  const restore = "git fetch URL BRANCH && git checkout FETCH_HEAD -- COPY PIN";
  testRows("a fork", [
    { name: "a refused token (404) counts as none", ...fork, env: REFUSED, want: "skipped", log: NOT_VISIBLE },
    { name: "a rejected token (401) counts as none", ...answer(play("bad-token")), want: "skipped", requests: 1 },
    { name: "a token without the scope (403) counts as none", ...answer(play("token-without-scope")), want: "skipped" },
    {
      name: "at the last request too",
      ...fork,
      server: { file: play("token-without-scope") },
      want: "skipped",
      requests: 3,
    },
    { name: "a 403 of Cloudflare is none", ...answer(play("made-cloudflare-1010")), want: "not-gitea", requests: 1 },
    { name: "a 404 of Kong (no url) is none", ...answer(kong), want: "not-gitea", requests: 4 },
    { name: "a 404 of APISIX (neither) is no refusal", ...answer(apisix), want: "not-gitea", requests: 4 },
    { name: "a 401 without a message is no refusal", ...answer(urlOnly), want: "not-gitea", requests: 1 },
    { name: "a 403 whose message is no text is no refusal", ...answer(noTexts), want: "not-gitea", requests: 1 },
    { name: "a missing ref", ...fork, server: { commit: play("commit-of-missing-ref") }, want: "ref-not-found" },
    { name: "a missing file is no refusal", ...fork, server: { file: play("missing-file") }, want: "file-not-found" },
    { name: "a rate limit is no refusal", ...answer(play("made-cloudflare-1015")), want: "rate-limited" },
    { name: "a stale pin file", ...fork, ...stalePin(NO_TOKEN), want: "pin-mismatch", notInLog: /read -rs/ },
    { name: "a stale pin file, with a refused token", ...fork, ...stalePin(REFUSED), want: "pin-mismatch" },
    { name: "a pin file that agrees", ...fork, ...withPin(CANONICAL_SHA256, NO_TOKEN), want: "skipped", requests: 0 },
    { name: "a drift, without that token", ...fork, env: DRIFT, want: "drift", log: `branch: ${restore}\n` },
  ]);
}

{
  const run = (event: string) => ({
    env: { ...NO_TOKEN, GITHUB_EVENT_NAME: event },
    want: "token-missing",
    requests: 0,
  });
  const unknown = 'event      "issue_comment": case 4, a token is expected: the gate does not know this event\n';
  const other = { AUTO_SYNC_TOKEN: " ", SYNC_CANONICAL_REPO: "acme/registry" };
  testRows("a missing token", [
    { name: "on a schedule", ...run("schedule") },
    { name: "of another repository, blank", env: other, want: "token-missing" },
    { name: "on an event that the gate does not know", ...run("issue_comment"), log: unknown },
    { name: "without an event name", ...run(""), log: 'event      "": case 4, a token is expected: GITHUB_' },
  ]);
}

describe("unexpected errors", () => {
  /** Runs `main` with a log whose first line cannot be written. */
  async function runWithError(error: unknown): Promise<string[]> {
    const lines: string[] = [];
    const env = { AUTO_SYNC_TOKEN: TOKEN, SYNC_CANONICAL_SERVER: "https://git.example.com" };
    const exitCode = await main([], env, (line) => {
      lines.push(line);
      if (lines.length === 1) {
        throw error;
      }
    });
    equal(exitCode, 3);
    return lines.slice(1);
  }

  const verdict = (text: string) =>
    `::error::unverified: Nothing was compared: there was an unexpected error (${text}). Please report it, with the stack above.`;

  test("an exception that nothing expects is unverified without a reason, with its redacted stack", async () => {
    const lines = await runWithError(new RangeError(`no room for ${TOKEN}.`));
    equal(lines[0], "stack      RangeError: no room for ***.");
    match(lines[1] ?? "", /^stack {10}at /);
    equal(lines.at(-1), verdict("no room for ***"));
  });

  test("an error of several addresses names each of them", async () => {
    const lines = await runWithError(new AggregateError([new Error("no a."), new Error("no b:")]));
    equal(lines.at(-1), verdict("no a; no b"));
  });

  test("a thrown value that is no error has no stack", async () => {
    deepEqual(await runWithError("text"), ["stack      text", verdict("text")]);
  });
});

describe("packages that are not installed", () => {
  /** Starts the compiled gate with other code in the place of these packages. */
  async function runWith(packages: Readonly<Record<string, string>>, args: readonly string[], env: Env): Promise<Run> {
    const toUrl = (code: string) => `data:text/javascript,${encodeURIComponent(code)}`;
    const urls = Object.entries(packages).map(([name, code]) => [name, code === "" ? `not-${name}` : toUrl(code)]);
    const hooks = `const urls = new Map(${JSON.stringify(urls)});
      export async function resolve(name, context, next) {
        return next(urls.get(name) ?? name, context);
      }`;
    const register = `import { register } from "node:module"; register(${JSON.stringify(toUrl(hooks))});`;
    return runCommand(measuredCommand(["--import", toUrl(register)], ...args), { ...env, ...COVERAGE });
  }

  test("without undici the verdict is one line", async () => {
    const run = await runWith({ undici: "" }, [], pushEnv("http://127.0.0.1:1"));
    equal(run.exitCode, 3);
    match(run.verdict, /^unverified: Nothing was compared: a package is not installed \(.*not-undici.*\)\. /);
    match(run.verdict, / Run npm ci --omit=dev --ignore-scripts before the gate\.$/);
    ok(!run.log.includes("\nstack"), run.log);
  });

  test("without any package a missing token is found, because a package is loaded only when it is needed", async () => {
    const env = { ...pushEnv("http://127.0.0.1:1"), AUTO_SYNC_TOKEN: "" };
    checkVerdict(await runWith({ undici: "", diff: "" }, [], env), { want: "token-missing" });
  });

  test("without diff a copy in sync passes", async () => {
    using gitea = await startGitea();
    checkVerdict(await runWith({ diff: "" }, [], pushEnv(gitea.url)), { want: "in-sync" });
  });

  test("without diff a drift stays a drift, and a line says why there is no diff", async () => {
    const args = ["--canonical", CANONICAL_PATH, "--copy", DRIFTED_PATH];
    const run = await runWith({ diff: "" }, args, {});
    checkVerdict(run, { want: "drift", log: /^diff {7}none: Cannot find package /m });
  });

  test("another library called undici is not blamed on the network or a proxy", async () => {
    const env = { ...pushEnv("https://git.example.com"), HTTPS_PROXY: "http://127.0.0.1:1" };
    const run = await runWith({ undici: "export const a = 1;" }, [], env);
    equal(run.exitCode, 3);
    match(run.verdict, /^unverified: Nothing was compared: there was an unexpected error \(undici\.ProxyAgent is not/);
    match(run.log, /^stack {6}TypeError: /m);
  });

  test("an error without a code is not blamed on the network", async () => {
    const undici = `export class Client { on() { return this; } destroy() {} }
      export const request = async () => { throw new RangeError("out of memory"); };`;
    const run = await runWith({ undici }, [], pushEnv("http://127.0.0.1:1"));
    match(run.verdict, /^unverified: Nothing was compared: there was an unexpected error \(out of memory\)\. /);
  });

  test("a run that ends before its verdict has the exit code 3", async () => {
    const undici = `export class Client { on() { return this; } destroy() {} }
      globalThis.setTimeout = () => {};
      export const request = () => new Promise(() => {});`;
    const run = await runWith({ undici }, [], pushEnv("http://127.0.0.1:1"));
    equal(run.exitCode, 3);
    match(run.lastLine, /^source /);
  });
});

// ------------------------------------------------------------------------------------------------
// Section 3: settings
// ------------------------------------------------------------------------------------------------

testRows("accepted settings", [
  { name: "blank is unset", env: { SYNC_CANONICAL_REF: "", SYNC_PIN_PATH: " " }, want: "in-sync", notInLog: /^pin/m },
  { name: "white space around one", env: { SYNC_CANONICAL_REPO: " a/b\n" }, want: "in-sync", log: 'in "a/b" at' },
  { name: "white space around a token", env: { AUTO_SYNC_TOKEN: ` ${TOKEN}\n` }, want: "in-sync" },
  { name: "a token of 8 characters", env: { AUTO_SYNC_TOKEN: "abcdefgh" }, want: "token-rejected" },
  { name: "an hour, the longest time", env: { SYNC_TIMEOUT_SECONDS: "3600" }, want: "in-sync" },
  { name: "60 s by default", env: { SYNC_TIMEOUT_SECONDS: "" }, server: { every: wait(46) }, want: "rate-limited" },
  { name: "dots and dashes in owner/name", env: { SYNC_CANONICAL_REPO: "a.b-c/_d" }, want: "in-sync" },
  { name: "names that begin with dots", env: { SYNC_CANONICAL_PATH: ".a/..b/..." }, want: "in-sync" },
  { name: "--copy wins over SYNC_COPY_PATH", args: ["--copy", CANONICAL_PATH], env: DRIFT, want: "in-sync" },
  { name: "SYNC_CANONICAL_SERVER, as under act", env: GITHUB, want: "in-sync", log: " on SERVER (SYNC_CANONICAL_" },
  { name: "GITHUB_SERVER_URL", env: DEFAULT_SERVER, want: "in-sync", log: " on SERVER (GITHUB_SERVER_URL)" },
]);

{
  const values = {
    AUTO_SYNC_TOKEN: [
      "seven77",
      "***",
      "token 0123456",
      "tok\ten-123",
      '"quoted-token"',
      "'quoted-token'",
      "tökén-1234",
    ],
    SYNC_CANONICAL_REPO: ["name", "a/b/c", "a/", "../b", "a/..", "./b", "a/b?c", "a b/c"],
    SYNC_CANONICAL_PATH: ["/etc/passwd", "a/../b", "./a", "a//b", "a/"],
    SYNC_CANONICAL_REF: ["..", ".", "a/../b", "/a"],
    SYNC_TIMEOUT_SECONDS: ["0", "-1", "1m", "3601", "Infinity"],
  };
  const refused = Object.entries(values).flatMap(([setting, texts]) => {
    return texts.map((text) => ({ name: `${setting}=${JSON.stringify(text)}`, env: { [setting]: text } }));
  });
  testRows(
    "refused settings",
    refused.map((row): Row => ({ ...row, want: "usage", requests: 0 })),
  );
}

{
  const local = ["--canonical", "fixtures/providers-copy.yaml"];
  const plain = { SYNC_CANONICAL_SERVER: "http://gitea:3000" };
  const servers =
    `git.example.com ftp://a https://a// https://a/? https://a/# https:\\\\a https://a/api/v1 https://github.com
    https://api.github.com/x https://GitHub.com. https://github.com:443 http://gitea:3000 http://127.0.0.1.example.com
    http://localhost.example.com http://[::2]`.split(/\s+/);
  const proxies = [
    "http://me:hunter2@[",
    "ftp://me:hunter2@x",
    "socks5://me:hunter2@x",
    "me:hunter2%zz@x",
    "me:hunter2%ff@x",
  ];
  const password = { SYNC_CANONICAL_SERVER: "https://me:hunter2@a", AUTO_SYNC_TOKEN: "" };
  const tls = (value: string) => ({ env: { NODE_TLS_REJECT_UNAUTHORIZED: value } });
  testRows("a server that must not be sent the token", [
    ...["", "https://a b", ...servers].map((value): Row => {
      const env = { SYNC_CANONICAL_SERVER: "", GITHUB_SERVER_URL: value, SYNC_ALLOW_HTTP: "yes" };
      return { name: `"${value}" is refused`, env, want: "usage" };
    }),
    { name: "one with a password, even if no token is sent", env: password, want: "usage", notInLog: /hunter2/ },
    { name: "NODE_TLS_REJECT_UNAUTHORIZED=0, before any request", ...tls("0"), want: "usage", requests: 0 },
    { name: "not with NODE_TLS_REJECT_UNAUTHORIZED=1", ...tls("1"), want: "in-sync" },
    { name: "plain http: without a token is allowed", env: { ...plain, AUTO_SYNC_TOKEN: "" }, want: "token-missing" },
    { name: "with --canonical plain http: is not refused", args: local, env: plain, want: "in-sync" },
    ...proxies.map((value): Row => {
      const env = { SYNC_CANONICAL_SERVER: "https://git.example.com", HTTPS_PROXY: value };
      return {
        name: `the proxy ${value}, whose password is not printed`,
        env,
        want: "usage",
        notInLog: /hunter2|^source/m,
      };
    }),
  ]);
}

{
  const files = { "real/deep/file": CANONICAL_SHA256, "real/file": CANONICAL_SHA256 };
  const linked = { files, links: { link: "real/deep" }, want: "usage", requests: 0 };
  const pinIsCopy = (path: string, pin: string) => ({ env: { SYNC_COPY_PATH: path, SYNC_PIN_PATH: pin } });
  const spelled = pinIsCopy(CANONICAL_PATH, `fixtures/../${CANONICAL_PATH}`);
  const created = pinIsCopy("DIR/new", "DIR/./new");
  const local = ["--canonical", "DIR/link/file"];
  const copy = { SYNC_COPY_PATH: "DIR/real/deep/file" };
  const throughLink = { files: { "real/file": CANONICAL }, links: { link: "real" } };
  testRows("paths", [
    { name: "the pin file is the copy by another spelling", ...spelled, ...linked },
    { name: "the pin file is the copy that --write would create", args: ["--write"], ...created, ...linked },
    { name: "the pin file is the copy through a link", ...pinIsCopy("DIR/real/deep/file", "DIR/link/file"), ...linked },
    { name: "--canonical is the copy, which would compare nothing", args: ["--canonical", CANONICAL_PATH], ...linked },
    { name: "--canonical is the copy by a link", args: local, env: copy, ...linked },
    { name: "a relative path of the copy through a link", env: { SYNC_COPY_PATH: "REL/link/file" }, ...linked },
    { name: "a relative path of a new copy through a link", args: ["--write", "--copy", "REL/link/new"], ...linked },
    { name: "a relative path through a link and back", env: { SYNC_COPY_PATH: "REL/link/../file" }, ...linked },
    { name: "a relative path of the pin file through a link", env: { SYNC_PIN_PATH: "REL/link/file" }, ...linked },
    {
      name: "an absolute one through a link",
      env: { SYNC_COPY_PATH: "DIR/link/file" },
      ...throughLink,
      want: "in-sync",
    },
  ]);
}

testRows("flags", [
  { name: "an unknown flag", args: ["--token=x"], want: "usage" },
  { name: "an argument", args: ["fixtures"], want: "usage" },
  { name: "a flag without its value", args: ["--copy"], want: "usage" },
  { name: "--write with --replay", args: ["--write", "--replay", "none"], want: "usage" },
]);

const VERSION = JSON.parse(readFileSync("package.json", "utf8")).version;

const HELP = `sync-providers ${VERSION}

Usage: COMMAND [flags]

Flags
  --write             re-sync: replace the copy, and the sha256 in the pin file
  --replay FILE       replay a captured event: its payload alone, or an object with event_name and event
  --canonical FILE    compare with a local file: nothing is fetched
  --copy FILE         overrides SYNC_COPY_PATH
  --help

Environment (an empty variable counts as unset)
  GITHUB_EVENT_NAME, GITHUB_EVENT_PATH   the event, as the runner sets them
  AUTO_SYNC_TOKEN         the token that reads the canonical repository
  SYNC_CANONICAL_SERVER   the server of the canonical repository; default: GITHUB_SERVER_URL
  SYNC_CANONICAL_REPO     default: molecule-ai/molecule-controlplane
  SYNC_CANONICAL_PATH     default: internal/providers/providers.yaml
  SYNC_CANONICAL_REF      a branch, refs/tags/NAME or a full commit id; default: main
  SYNC_COPY_PATH          default: workspace-server/internal/providers/providers.yaml
  SYNC_PIN_PATH           a file that contains the sha256 of the copy; default: no pin file is checked
  SYNC_ALLOW_HTTP         1: allow plain http: to another machine (the token is sent unencrypted)
  SYNC_TIMEOUT_SECONDS    seconds before giving up on the server; default: 60
  HTTPS_PROXY, HTTP_PROXY, ALL_PROXY, NO_PROXY, NODE_EXTRA_CA_CERTS`;

describe("--help", () => {
  test("--help is printed whole, even beside a wrong setting and a wrong flag", async () => {
    const { exitCode, log } = await runGate(["--no-such-flag", "--help"], { SYNC_TIMEOUT_SECONDS: "never" });
    equal(exitCode, 0);
    equal(log.replace(/^Usage: .* \[flags\]$/m, "Usage: COMMAND [flags]"), HELP);
  });

  test("--help names every variable that the gate reads, and no other", () => {
    const source = readFileSync("sync-providers.ts", "utf8").replace(/function help[\s\S]*?\n}/, "");
    const read = source.match(/\b(SYNC|GITHUB|AUTO_SYNC|NODE_EXTRA)_[A-Z_]+\b/g);
    const named = HELP.match(/\b(SYNC|GITHUB|AUTO_SYNC|NODE_EXTRA)_[A-Z_]+\b/g);
    deepEqual([...new Set(named)].sort(), [...new Set(read)].sort());
  });

  test("--help names the command that was started", async () => {
    const source = await runCommand(gateCommand("--help"));
    match(source.log, /^Usage: npx --no tsx sync-providers\.ts \[flags\]$/m);
    const bundle = await runCommand([process.execPath, BUNDLE, "--help"]);
    match(bundle.log, /^Usage: node dist\/sync-providers\.mjs \[flags\]$/m);
  });

  test("source, bundle and package have one version, and name it first", () => {
    match(readFileSync("sync-providers.ts", "utf8"), new RegExp(`^/\\*\\*\\n \\* sync-providers ${VERSION}: `));
    match(
      readFileSync(BUNDLE, "utf8"),
      new RegExp(`^/\\* sync-providers ${VERSION}, SPDX-License-Identifier: MIT \\*/`),
    );
  });
});

// ------------------------------------------------------------------------------------------------
// Section 4: the event
// ------------------------------------------------------------------------------------------------

{
  const fork = '{"pull_request":{"head":{"label":""}}}';
  const run = { ...NO_TOKEN, GITHUB_EVENT_NAME: "pull_request", GITHUB_EVENT_PATH: "DIR/event.json" };
  const file = (text: string) => ({ env: run, files: { "event.json": text } });
  const noPath = { ...run, GITHUB_EVENT_PATH: "" };
  const push = { ...run, GITHUB_EVENT_NAME: "push" };
  const isFork = 'event      "pull_request": case 3, no token is expected: a fork: head.label is empty (';
  const isPush = 'event      "push": case 1, a token is expected: it runs in the repository itself\n';
  testRows("the event file", [
    { name: "of a fork", ...file(fork), want: "skipped", log: isFork },
    { name: "with a byte-order mark", ...file(`\ufeff${fork}`), want: "skipped" },
    { name: "that is missing", env: run, want: "token-missing" },
    { name: "that is not named", env: noPath, want: "token-missing" },
    { name: "that breaks off, unquoted", ...file('{"private'), want: "token-missing", notInLog: /private/ },
    { name: "that is a list", ...file(`[${fork}]`), want: "token-missing" },
    { name: "of a push, which is not read", env: push, want: "token-missing", log: isPush },
  ]);

  const args = ["--replay", "DIR/event.json"];
  const pushed = { "event.json": '{"event_name":"push","event":{}}' };
  const local = { args: [...args, ...LOCAL], files: pushed };
  const named = { "event.json": `{"event_name":"pull_request","event":${fork}}` };
  const noName = { ...NO_TOKEN, GITHUB_EVENT_NAME: "" };
  testRows("a replay", [
    { name: "its own name wins over GITHUB_EVENT_NAME", args, env: NO_TOKEN, files: named, want: "skipped" },
    { name: "a payload alone, with GITHUB_EVENT_NAME", args, env: run, files: { "event.json": fork }, want: "skipped" },
    { name: "a payload alone, without it", args, env: noName, files: { "event.json": fork }, want: "usage" },
    { name: "--canonical does not replace the token", ...local, env: { ...NO_TOKEN, ...DRIFT }, want: "token-missing" },
    { name: "with a token and --canonical nothing is sent", ...local, env: DRIFT, want: "drift", requests: 0 },
    { name: "a file that is not JSON, and is not quoted", args, files: { "event.json": "private" }, want: "usage" },
  ]);
}

// ------------------------------------------------------------------------------------------------
// Section 5: the copy and the pin file
// ------------------------------------------------------------------------------------------------

testRows("the copy", [
  { name: "that is missing", env: { SYNC_COPY_PATH: "none" }, want: "copy-unreadable" },
  { name: "that is missing, and named by --copy", args: ["--copy", "none"], want: "copy-unreadable" },
  { name: "that is a folder", env: { SYNC_COPY_PATH: "fixtures" }, want: "copy-unreadable" },
  { name: "that is a device", env: { SYNC_COPY_PATH: "/dev/null" }, want: "copy-unreadable" },
  { name: "that is a Git LFS pointer", ...copyOf(LFS_POINTER), want: "not-a-file", requests: 0 },
  { name: "of 10 MiB and a byte", ...copyOf(TOO_LARGE), want: "too-large", requests: 0 },
]);

{
  const copy = { SYNC_COPY_PATH: "fixtures/providers-copy.yaml" };
  const pin = (content: string | Buffer) => ({ args: LOCAL, ...withPin(content, copy) });
  const constant = `package providers\n\nconst canonicalSHA256 = "${CANONICAL_SHA256}"\n`;
  const beside = `${"a".repeat(65)} ${"b".repeat(63)} ${CANONICAL_SHA256}`;
  const notUtf8 = Buffer.from(`\xff\xfe ${CANONICAL_SHA256}`, "latin1");
  const agrees = {
    want: "in-sync",
    log: "\nin-sync: The copy matches the canonical file byte for byte, and the pin file agrees.",
  };
  const command = /^ {2}SYNC_COPY_PATH=fixtures\/providers-copy\.yaml SYNC_PIN_PATH=DIR\/pin .* --write --canonical /m;
  const unreadable = { want: "pin-unreadable" };
  testRows("the pin file", [
    { name: "the sum alone", ...pin(CANONICAL_SHA256), want: "in-sync", log: "b54630fe7d7f, matches the copy\n" },
    { name: "the output of sha256sum", ...pin(`${CANONICAL_SHA256}  a.yaml\n`), ...agrees },
    { name: "a Go constant", ...pin(constant), ...agrees },
    { name: "in capitals", ...pin(CANONICAL_SHA256.toUpperCase()), ...agrees },
    { name: "among bytes that are not UTF-8", ...pin(notUtf8), ...agrees },
    { name: "beside longer and shorter words of hex", ...pin(beside), ...agrees },
    { name: "a stale sum of a copy in sync", ...pin(OTHER_SHA256), want: "pin-mismatch", log: command },
    { name: "no sum", ...pin("none"), ...unreadable },
    { name: "one sum twice", ...pin(`${OTHER_SHA256} ${OTHER_SHA256}`), ...unreadable },
    { name: "two sums, the right one first", ...pin(`${CANONICAL_SHA256}\n${OTHER_SHA256}\n`), ...unreadable },
    { name: "a sum after a letter", ...pin(`x${OTHER_SHA256}`), ...unreadable },
    { name: "a sum before an underscore", ...pin(`${OTHER_SHA256}_`), ...unreadable },
    { name: "a missing file", args: LOCAL, env: { ...copy, SYNC_PIN_PATH: "DIR/pin" }, ...unreadable },
  ]);
}

{
  const links = { files: { file: CANONICAL_SHA256 }, links: { link: "file", dangling: "none" } };
  const copy = { ...links, want: "copy-unreadable" };
  const target = { files: { file: CANONICAL }, links: { link: "file" }, want: "in-sync" };
  testRows("a symbolic link", [
    { name: "as the copy", args: ["--copy", "DIR/link"], ...copy },
    { name: "as the copy, in a re-sync", args: [...LOCAL, "--write", "--copy", "DIR/link"], ...copy },
    { name: "to nowhere as the copy, in a re-sync", args: [...LOCAL, "--write", "--copy", "DIR/dangling"], ...copy },
    { name: "as the pin file", env: { SYNC_PIN_PATH: "DIR/link" }, ...links, want: "pin-unreadable" },
    { name: "as --canonical", args: ["--canonical", "DIR/link"], ...target, log: 'the local file "DIR/link"; ' },
  ]);
}

// ------------------------------------------------------------------------------------------------
// Section 6: the canonical file
// ------------------------------------------------------------------------------------------------

const COMMIT = "9d3b4a72788a6379345cb98a6f593008fa6c74ae";

describe("the three requests", () => {
  test("repository, commit and file are requested in this order, each with the token in one header", async () => {
    using gitea = await startGitea();
    const env = { SYNC_CANONICAL_REF: "release/1.0", SYNC_CANONICAL_PATH: "a b/ü?.yaml" };
    const { log } = await runGate([], { ...hastyEnv(`${gitea.url}/`), ...env });
    const base = "GET /api/v1/repos/molecule-ai/molecule-controlplane";
    deepEqual(
      gitea.requests.map(({ method, target }) => `${method} ${target}`),
      [
        base,
        `${base}/git/commits/refs%2Fheads%2Frelease%2F1.0?stat=false&verification=false&files=false`,
        `${base}/raw/a%20b/%C3%BC%3F.yaml?ref=${COMMIT}`,
      ],
      log,
    );
    for (const { headers } of gitea.requests) {
      equal(headers.get("authorization"), `token ${TOKEN}`);
      equal([...headers.values()].join().split(TOKEN).length, 2);
      equal(headers.get("accept-encoding"), "identity");
      equal(headers.get("cache-control"), "no-cache");
      equal(headers.get("user-agent"), "sync-providers");
    }
    const source = `source     "a b/ü?.yaml" in "molecule-ai/molecule-controlplane" at "release/1.0" on ${gitea.url}/ (SYNC_CANONICAL_SERVER), with AUTO_SYNC_TOKEN`;
    equal(log.split("\n")[2], source);
    equal(log.split("\n")[3], `canonical  795 bytes, sha256 b54630fe7d7f, commit ${COMMIT}`);
  });

  test("a server below a path is asked below that path", async () => {
    using gitea = await startGitea();
    const { log } = await runGate([], hastyEnv(`${gitea.url}/git`));
    equal(gitea.requests[0]?.target, "/git/api/v1/repos/molecule-ai/molecule-controlplane", log);
  });

  const refs = [
    { ref: "main", target: "refs%2Fheads%2Fmain" },
    { ref: "v1.0", target: "refs%2Fheads%2Fv1.0" },
    { ref: "refs/tags/v1.0", target: "refs%2Ftags%2Fv1.0" },
    { ref: "refs/heads/main", target: "refs%2Fheads%2Fmain" },
    { ref: "9d3b4a7", target: "refs%2Fheads%2F9d3b4a7" },
    { ref: COMMIT, target: COMMIT },
    { ref: COMMIT.toUpperCase(), target: COMMIT },
  ];
  for (const { ref, target } of refs) {
    testRow(`the ref ${ref} is asked for as ${target}`, "the ref $", async () => {
      using gitea = await startGitea();
      const { log } = await runGate([], { ...hastyEnv(gitea.url), SYNC_CANONICAL_REF: ref });
      equal(gitea.requests[1]?.target.split(/commits\/|\?/)[1], target, log);
      equal(gitea.requests.length, 3, log);
    });
  }
});

{
  const commitAnswers: ServerScript = {
    // Like Gitea, which prefers a tag for a bare name: the tag's commit has another file.
    commit: (socket, request) => {
      const isBranch = request.target.includes("refs%2Fheads%2Fmain");
      respondJson(200, { sha: isBranch ? COMMIT : "1".repeat(40) })(socket, request);
    },
    file: (socket, request) => play(request.target.includes(COMMIT) ? "ok-at-commit" : "empty-file")(socket, request),
  };
  const repository = (from: string, to: string) => ({
    server: { repository: playEdited("repo-visible", (raw) => raw.replace(from, to)) },
  });
  const mirror = repository('"mirror":false', '"mirror":true ');
  const ref = (name: string, commit: Responder) => ({ env: { SYNC_CANONICAL_REF: name }, server: { commit } });
  const sha256 = "a".repeat(64);
  const missing = { commit: play("commit-of-missing-ref"), file: play("gitea-1.25.4-missing-ref") };
  const lastUpdate = `, commit ${COMMIT}, a mirror updated "NOW"\n`;
  testRows("the repository and the commit", [
    { name: "a tag named main does not hide a drift", ...copyOf(""), server: commitAnswers, want: "drift" },
    { name: "a tag named main does not hide the branch", server: commitAnswers, want: "in-sync" },
    { name: "archived", ...repository('archived":false', 'archived":true '), want: "repo-archived", requests: 1 },
    { name: "a pull mirror", ...mirror, want: "in-sync", log: lastUpdate },
    { name: "a list in its place", server: { repository: respondJson(200, []) }, want: "not-gitea" },
    { name: "a missing ref, for which Gitea 1.25.4 sends a file", server: missing, want: "ref-not-found", requests: 2 },
    { name: "a missing commit", ...ref("f".repeat(40), play("commit-of-missing-sha")), want: "ref-not-found" },
    { name: "a ref Git does not allow (422)", ...ref("v~1", respondError(422, "not valid")), want: "ref-not-found" },
    { name: "a commit id", ...ref(COMMIT, play("commit-of-sha")), want: "in-sync" },
    { name: "another commit than was asked for", ...ref("a".repeat(40), play("commit-of-sha")), want: "not-gitea" },
    { name: "a sha256 commit id", ...ref(sha256, respondJson(200, { sha: sha256 })), want: "in-sync" },
    ...["", "9d3b4a7", "../../../../user", "g".repeat(40), "a".repeat(41), 1, undefined].map((sha): Row => {
      return {
        name: `${JSON.stringify(sha)} is no commit id`,
        ...ref("main", respondJson(200, { sha })),
        want: "not-gitea",
      };
    }),
  ]);
}

{
  const file = (responder: Responder) => ({ server: { file: responder } });
  const withETag = (etag: string) => file(respond(200, { headers: { etag }, body: CANONICAL }));
  const edited = (from: string | RegExp, to: string) =>
    file(playEdited("ok-at-commit", (raw) => raw.replace(from, to)));
  const stripped = edited(/Etag: .*\r\n/i, "Server: nginx\r\nVia: 1.1 x\r\n");
  const proven = (body: Buffer) => {
    const id = createHash("sha1").update(`blob ${body.length}\0`).update(body).digest("hex");
    return { file: respond(200, { headers: { etag: `"${id}"` }, body }) };
  };
  const copy = copyOf(MAX_FILE);
  const hour = { SYNC_TIMEOUT_SECONDS: "3600" };
  const sha256 = "c6b8d6b4e5115944594d71ec9fcc912ab741df9fa990b25e8846ef309e91f96b";
  testRows("the file", [
    { name: "does not exist at that commit", ...file(play("missing-file")), want: "file-not-found" },
    { name: "is a folder", ...file(play("directory")), want: "file-not-found" },
    { name: "in chunks", ...file(play("made-chunks")), want: "in-sync" },
    { name: "ends with the connection", ...file(play("made-until-close")), want: "in-sync" },
    { name: "is empty", ...file(play("empty-file")), want: "drift" },
    { name: "with a weak ETag", ...withETag('W/"e8edcdc409a79ecafa8c21f09ebc471ef430aa42"'), want: "in-sync" },
    { name: "with -gzip in its ETag", ...withETag('"e8edcdc409a79ecafa8c21f09ebc471ef430aa42-gzip"'), want: "in-sync" },
    { name: "with the blob id of a sha256 repository", ...withETag(`"${sha256}"`), want: "in-sync" },
    { name: "with a flipped byte", ...edited("version: 1", "version: 2"), want: "unproven", notInLog: /anthropic/ },
    { name: "with another blob id, in a weak ETag", ...withETag(`W/"${"0".repeat(64)}"`), want: "unproven" },
    { name: "with an ETag that is no blob id", ...withETag('"5f3a-31b"'), want: "unproven" },
    { name: "without the ETag, which a proxy removed", ...stripped, want: "unproven" },
    { name: "breaks off with the connection", ...file(play("made-until-close-part")), want: "unproven" },
    { name: "is compressed, unasked", ...file(play("made-gzip-chunked")), want: "unproven" },
    { name: "is from a cache", ...edited("Connection: close", "Age: 60"), want: "unproven", requests: 3 },
    { name: "is from a cache that has just asked", ...edited("Connection: close", "Age: 0"), want: "in-sync" },
    { name: "is a page (200)", ...file(play("made-anubis")), want: "unproven" },
    { name: "is a symbolic link", ...file(play("symlink")), want: "not-a-file" },
    { name: "is a Git LFS pointer", ...file(play("lfs-pointer")), want: "not-a-file" },
    { name: "has exactly 10 MiB", ...copy, env: { ...copy.env, ...hour }, server: proven(MAX_FILE), want: "in-sync" },
    { name: "has 10 MiB and a byte", env: hour, server: proven(TOO_LARGE), want: "too-large", requests: 3 },
    { name: "has no end", env: hour, server: { file: sendEndless }, want: "too-large" },
  ]);

  const local = (content: Buffer | string) => ({ args: ["--canonical", "DIR/a"], files: { a: content } });
  const both = { args: ["--canonical", "DIR/a"], env: copy.env, files: { a: MAX_FILE, copy: MAX_FILE } };
  const inSync = { args: ["--canonical", "fixtures/providers-copy.yaml"], want: "in-sync", requests: 0 };
  testRows("a local canonical file", [
    { name: "needs no token, and nothing is sent", env: NO_TOKEN, ...inSync, notInLog: /^source/m },
    { name: "does not exist", args: ["--canonical", "none"], want: "file-not-found" },
    { name: "is a Git LFS pointer", ...local(LFS_POINTER), want: "not-a-file" },
    { name: "has 10 MiB and a byte", ...local(TOO_LARGE), want: "too-large" },
    { name: "has exactly 10 MiB, like the copy", ...both, want: "in-sync" },
  ]);
}

/** A body without end, as fast as the socket takes it. */
function sendEndless(...[socket]: Parameters<Responder>): void {
  const pour = () => {
    while (socket.writable && socket.write(Buffer.alloc(1 << 20, " "))) {
      // The socket takes more.
    }
  };
  socket.on("drain", pour);
  socket.write("HTTP/1.1 200 OK\r\n\r\n");
  pour();
}

// ------------------------------------------------------------------------------------------------
// Section 7: requests
// ------------------------------------------------------------------------------------------------

{
  const answer = (every: Responder) => ({ server: { every } });
  const allowed = {
    repository: play("gitea-1.26.4-job-token-canonical-repo-allowed"),
    commit: play("gitea-1.26.4-job-token-canonical-commit-allowed"),
    file: play("gitea-1.26.4-job-token-canonical-file-allowed"),
  };
  const withheld = answer(play("gitea-1.26.4-job-token-canonical-repo-withheld"));
  const unscoped = answer(play("gitea-1.25.4-token-without-scope"));
  const forbidden = answer(respondError(403, "user should have a permission to read the repo"));
  testRows("the server's own errors", [
    { name: "an expired token (401)", ...answer(play("bad-token")), want: "token-rejected", requests: 1 },
    { name: "an expired token at a prompt", args: ["--write"], ...answer(play("bad-token")), want: "token-rejected" },
    { name: "an unscoped token (403)", ...answer(play("token-without-scope")), want: "token-forbidden", requests: 1 },
    { name: "a token without the scope on Gitea 1.25.4", ...unscoped, want: "token-forbidden" },
    { name: "another 403", ...forbidden, want: "token-forbidden" },
    { name: "a hidden repository (404)", ...answer(play("repo-invisible")), want: "repo-not-visible", requests: 1 },
    { name: "a job's own token on Gitea 1.26.4, withheld", ...withheld, want: "repo-not-visible" },
    { name: "a job's own token on Gitea 1.26.4, allowed", server: allowed, want: "in-sync" },
  ]);

  const redirect = (status: number, location: string) => answer(respond(status, { headers: { location } }));
  const api = "/api/v1/repos/molecule-ai/molecule-controlplane";
  const renamed = "https://new.example/git/api/v1/repos/acme/registry?a=b";
  testRows("a redirect is never followed", [
    { name: "a renamed repository (307)", ...answer(play("renamed")), want: "repo-moved", requests: 1 },
    { name: "a renamed repository on Gitea 1.25.4 (301)", ...answer(play("gitea-1.25.4-renamed")), want: "repo-moved" },
    { name: "to another server", ...redirect(301, `https://new.example${api}`), want: "repo-moved" },
    { name: "to another server, with a new name", ...redirect(308, renamed), want: "repo-moved" },
    { name: "to a sign-on (302)", ...redirect(302, "https://sso.example/login"), want: "not-gitea", requests: 1 },
    { name: "to itself", ...redirect(301, api), want: "not-gitea" },
    { name: "300 with a Location", ...redirect(300, "/a"), want: "not-gitea" },
    { name: "304 without a Location", ...answer(respond(304)), want: "not-gitea" },
    { name: "to what is no URL", ...redirect(301, "http://["), want: "not-gitea" },
    { name: "to an impossible name", ...redirect(301, "/api/v1/repos/acme/$(touch%20x)/raw"), want: "not-gitea" },
  ]);

  const all = (answers: Readonly<Record<string, Responder>>, want: string, requests: number) => {
    return Object.entries(answers).map(([name, every]): Row => ({ name, server: { every }, want, requests }));
  };
  const pages = {
    "Cloudflare 1010 blocks the user agent": play("made-cloudflare-1010"),
    "a Cloudflare challenge": play("made-cloudflare-challenge"),
    "nginx asks for a password": play("made-nginx-401-basic"),
    "Anubis sends its page": play("made-anubis"),
    "a sign-in page": play("made-sign-in-page"),
    "GitLab (401, a message alone)": respondJson(401, { message: "401 Unauthorized" }),
    "JSON that breaks off": respond(403, { body: '{"message":' }),
  };
  const errors = {
    "Cloudflare 520": play("made-cloudflare-520"),
    "Cloudflare 521": play("made-cloudflare-521"),
    "Cloudflare 522": play("made-cloudflare-522"),
    "Cloudflare 523": play("made-cloudflare-523"),
    "Cloudflare 524": play("made-cloudflare-524"),
    "Cloudflare 525": play("made-cloudflare-525"),
    "Cloudflare 526": play("made-cloudflare-526"),
    "Cloudflare 1033 (530), the tunnel is down": play("made-cloudflare-1033"),
    "nginx 502": play("made-nginx-502"),
    "HAProxy 503": play("made-haproxy-503"),
    "Traefik 502": play("made-traefik-502"),
    "Traefik 504": play("made-traefik-504"),
    "Caddy 502 with an empty body": play("made-caddy-502"),
    "a Gitea that fails (500) is not called down": respondError(500, "database is locked"),
  };
  const missing = {
    "Traefik has no route while Gitea restarts (404)": play("made-traefik-404"),
    "nginx has no route (404)": play("made-nginx-404"),
    "Kong has no route (404)": respondJson(404, { message: "no Route matched" }),
  };
  const restarted = { server: { every: [play("made-traefik-404")] }, want: "in-sync", requests: 4 };
  const retried = '\nretry      in 0.4 s: something other than Gitea answered (404 "404 page not found")\n';
  testRows("in front of the server", [
    ...all(pages, "not-gitea", 1),
    ...all(errors, "server-error", 4),
    ...all(missing, "not-gitea", 4),
    { name: "Traefik has no route, then Gitea is up again", ...restarted, log: retried },
    { name: "a rate limit of a day", ...answer(play("made-cloudflare-1015")), want: "rate-limited", requests: 1 },
  ]);

  const statuses = (codes: readonly number[]) => Object.fromEntries(codes.map((n) => [`${n}`, respond(n)]));
  testRows("a status", [
    ...all(statuses([201, 204, 206, 400, 405, 409, 410, 418, 451]), "not-gitea", 1),
    ...all(statuses([408, 501, 503, 599]), "server-error", 4),
  ]);

  const early = "HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n";
  const hinted = { repository: playEdited("repo-visible", (raw) => `${early}${raw}`) };
  const doubles =
    /^retry {6}in 0\.4 s: .*\(503 ""\)\nretry {6}in 0\.8 s: .*\nretry {6}in 1\.6 s: .*\n(verdict|::error)/m;
  const once = (seconds: string) => ({ server: { every: [wait(seconds)] }, want: "in-sync" });
  const twoSeconds = { env: { SYNC_TIMEOUT_SECONDS: "2" } };
  const late: Responder = async (socket, request) => {
    await sleep(1500);
    play("repo-visible")(socket, request);
  };
  const shortened = { server: { repository: [wait("8"), late], commit: stall() }, want: "timeout" };
  const threeTimes = () => ({ repository: [hangUp(), hangUp(), hangUp()], file: [hangUp(), hangUp(), hangUp()] });
  testRows("retries", [
    { name: "the pause doubles with every attempt", ...answer(respond(503)), want: "server-error", log: doubles },
    { name: "four for each request", server: threeTimes(), want: "in-sync", requests: 9 },
    { name: "Retry-After in seconds", ...once("1"), log: 'in 1.0 s: the server limits requests (429 "";' },
    { name: "none without its whole time", ...twoSeconds, ...answer(wait("1.5")), want: "rate-limited", requests: 1 },
    { name: "Retry-After as a date is the usual pause", ...once("Mon, 23 Nov 2099 14:48:15 GMT"), log: "in 0.4 s: " },
    { name: "a negative Retry-After is the usual pause", ...once("-5"), log: "in 0.4 s: " },
    { name: "103 Early Hints are skipped", server: hinted, want: "in-sync" },
  ]);

  describe("the deadline", () => {
    test("retries: the last request gets what is left until the deadline", () => {
      return checkRow({ ...shortened, log: /sent 0 bytes of the answer within [012]\.\d s of the 12 s/ });
    });
  });

  const second = { env: { SYNC_TIMEOUT_SECONDS: "1" } };
  const twentySeconds = { env: { SYNC_TIMEOUT_SECONDS: "20" } };
  const dripping: Responder = (socket) => {
    socket.write("HTTP/1.1 200 OK\r\nContent-Length: 795\r\n\r\n");
    const timer = setInterval(() => socket.write("x"), 20);
    socket.on("close", () => clearInterval(timer));
  };
  const stopping: Responder = (socket) => void socket.write("HTTP/1.1 200 OK\r\nContent-Length: 795\r\n\r\nabc");
  const reset: Responder = (socket) => void socket.resetAndDestroy();
  const flood = send(`HTTP/1.1 200 OK\r\nx: ${"y".repeat(200_000)}`);
  const cut = playEdited("ok-at-commit", (raw) => raw.slice(0, -1));
  const lost = { want: "unreachable", requests: 4 };
  const lostFile = (file: Responder) => ({ server: { file }, want: "unreachable", requests: 6 });
  const silentOnce = "in 0.4 s: SERVER accepted the connection, but sent 0 bytes of the answer within 3.0 s";
  testRows("the connection", [
    { name: "the job's own machine, where nothing listens", env: DOWN, want: "unreachable" },
    { name: "a server that is down", env: { SYNC_CANONICAL_SERVER: "https://0.0.0.0:1" }, want: "unreachable" },
    { name: "a server that hangs up", ...answer(hangUp()), ...lost },
    { name: "a server that hangs up once", server: { every: [hangUp()] }, want: "in-sync", requests: 4 },
    { name: "a server that resets the connection", ...answer(reset), ...lost },
    { name: "a server that says nothing", ...twentySeconds, ...answer(stall()), want: "timeout", requests: 3 },
    { name: "a server silent once", server: { every: [stall()] }, want: "in-sync", requests: 4, log: silentOnce },
    { name: "a file that stops in the middle", server: { file: stopping }, want: "timeout" },
    { name: "a file that is shorter than its length", ...lostFile(cut) },
    { name: "chunks that break off", ...lostFile(play("made-chunks-cut")) },
    { name: "a broken chunk size", ...lostFile(play("made-broken-chunk-size")) },
    { name: "two different lengths", ...lostFile(play("made-two-lengths")) },
    { name: "an answer that is not HTTP", ...answer(play("made-no-http")), ...lost },
    { name: "headers without end", ...answer(flood), ...lost },
  ]);

  describe("the connection, in words that differ", () => {
    test("the connection: a file that drips for longer than an attempt may take", () => {
      return checkRow({ ...second, server: { file: dripping }, want: "timeout", log: /sent \d+ bytes of/ });
    });

    test("the connection: a name that is unknown", () => {
      const log =
        /"getaddrinfo \w+ git\.invalid" \(\w+\)\. If the host name is wrong, correct SYNC_CANONICAL_SERVER\. /;
      return checkRow({ env: { SYNC_CANONICAL_SERVER: "https://git.invalid" }, want: "unreachable", log });
    });
  });
}

describe("connections", () => {
  test("every request has a connection of its own, which is closed", async () => {
    const open = new Set<unknown>();
    const playOpen = (name: string): Responder => {
      const raw = readResponse(name).toString("latin1").replace("Connection: close", "Keep-Alive: timeout=600");
      return (socket) => {
        open.add(socket);
        socket.on("close", () => open.delete(socket));
        socket.write(Buffer.from(raw, "latin1"));
      };
    };
    using gitea = await startGitea({
      repository: playOpen("repo-visible"),
      commit: playOpen("commit-of-branch"),
      file: playOpen("ok-at-commit"),
    });
    const { exitCode, log } = await runGate([], hastyEnv(gitea.url));
    equal(exitCode, 0, log);
    equal(gitea.connections, 3, log);
    for (let round = 0; open.size > 0 && round < 200; round += 1) {
      await sleep(10);
    }
    equal(open.size, 0, "a connection stayed open for two seconds");
  });

  test("an answer in chunks of one byte with long extensions needs no more memory than the limit", async () => {
    const extension = "x".repeat(10_000);
    const body = `${`1;${extension}\r\na\r\n`.repeat(2000)}0\r\n\r\n`;
    using gitea = await startGitea({ file: send(`HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n${body}`) });
    const before = process.memoryUsage().arrayBuffers;
    const { verdict } = await runGate([], hastyEnv(gitea.url));
    match(verdict, /^unverified \(unproven\): .* \(2000 bytes; /);
    ok(process.memoryUsage().arrayBuffers - before < 200_000_000);
  });
});

/** A server that is no Gitea: it calls this for each connection. */
async function listen(onConnection: Parameters<typeof createServer>[1]) {
  const server = createServer(onConnection);
  await new Promise<void>((listening) => server.listen(0, "127.0.0.1", listening));
  const address = server.address();
  ok(typeof address === "object" && address !== null);
  return { port: address.port, [Symbol.dispose]: () => void server.close() };
}

describe("TLS", () => {
  /** Runs the command with the certificate of the stand-in as an extra authority. */
  async function runWithAuthority(url: string) {
    const env = { ...pushEnv(url), NODE_EXTRA_CA_CERTS: "fixtures/tls/valid.pem", ...COVERAGE };
    return runCommand(measuredCommand([]), env);
  }

  for (const certificate of ["valid", "expired", "issued"] as const) {
    const kind = { valid: "a self-signed one", expired: "an expired one", issued: "one of an unknown issuer" }[
      certificate
    ];
    test(`TLS: of the certificates, ${kind} is final`, async (name) => {
      using gitea = await startGitea({}, { certificate });
      const run = await runGate([], hastyEnv(gitea.url));
      checkVerdict(run, { want: "certificate", notInLog: /^retry/m }, name, { [gitea.url]: "SERVER" });
      equal(gitea.requests.length, 0, run.log);
    });
  }

  test("TLS: of the certificates, one of another host is final", async (name) => {
    using gitea = await startGitea({}, { certificate: "valid" });
    const url = gitea.url.replace("127.0.0.1", "localhost");
    const run = await runWithAuthority(url);
    checkVerdict(run, { want: "certificate", notInLog: /^retry/m }, name, { [url]: "SERVER" });
    equal(gitea.requests.length, 0, run.log);
  });

  test("TLS: an issuer that is still unknown with NODE_EXTRA_CA_CERTS is final, and the verdict says that it is set", async (name) => {
    using gitea = await startGitea({}, { certificate: "issued" });
    checkVerdict(await runWithAuthority(gitea.url), { want: "certificate" }, name, { [gitea.url]: "SERVER" });
  });

  test("TLS: the certificate of a proxy is checked too", async () => {
    using proxy = await startGitea({}, { certificate: "valid" });
    const run = await runGate([], { ...hastyEnv("https://a.test"), HTTPS_PROXY: proxy.url });
    checkVerdict(run, { want: "certificate", log: "through the proxy in HTTPS_PROXY is not accepted" });
  });

  test("TLS: with NODE_EXTRA_CA_CERTS the certificate is accepted", async () => {
    using gitea = await startGitea({}, { certificate: "valid" });
    checkVerdict(await runWithAuthority(gitea.url), { want: "in-sync" });
  });

  test("TLS: a server that speaks plain HTTP is not blamed on its certificate", async () => {
    using server = await listen((socket) => {
      socket.once("data", () => socket.end("HTTP/1.1 400 Bad Request\r\n\r\n"));
    });
    const run = await runGate([], hastyEnv(`https://127.0.0.1:${server.port}`));
    checkVerdict(run, {
      want: "unreachable",
      log: /\(ERR_SSL_WRONG_VERSION_NUMBER\)\. No TLS is spoken there\. If the URL is wrong, set SYNC_CANONICAL_SERVER\. If not, the operator of the server must act\.$/,
      notInLog: /certificate/,
    });
    const proxy = { HTTPS_PROXY: `https://localhost:${server.port}` };
    const proxied = await runGate([], { ...hastyEnv("https://a.test"), ...proxy });
    checkVerdict(proxied, { want: "unreachable", log: "set SYNC_CANONICAL_SERVER or HTTPS_PROXY. If not, " });
  });

  test("TLS: a server that never answers the handshake could not be reached", async (name) => {
    using server = await listen(() => {});
    const url = `https://127.0.0.1:${server.port}`;
    const run = await runGate([], hastyEnv(url));
    checkVerdict(run, { want: "timeout" }, name, { [url]: "SERVER" });
    const late = await runGate([], { ...hastyEnv(url), SYNC_TIMEOUT_SECONDS: "0.001" });
    match(late.log, /could not be reached within 0\.0 s of the 0\.001 s/);
  });
});

describe("proxies, as with curl", () => {
  const proxied = "proxy-refused";
  const direct = "unreachable";
  // Port 1 of this machine, by an address that does not count as the loopback.
  const https = { SYNC_CANONICAL_SERVER: "https://0.0.0.0:1" };
  const http = { SYNC_CANONICAL_SERVER: "http://0.0.0.0:1", SYNC_ALLOW_HTTP: "1" };
  const used = { ...https, HTTPS_PROXY: "PROXY" };
  const port80 = { SYNC_CANONICAL_SERVER: "http://0.0.0.0", SYNC_ALLOW_HTTP: "1", HTTP_PROXY: "PROXY" };
  const named = { SYNC_CANONICAL_SERVER: "https://gitea.test", HTTPS_PROXY: "PROXY" };
  const port443 = { SYNC_CANONICAL_SERVER: "https://0.0.0.0", HTTPS_PROXY: "PROXY" };
  const rows: { name: string; env: Env; want: string }[] = [
    { name: "HTTPS_PROXY is used for https:", env: used, want: proxied },
    { name: "https_proxy is used for https:", env: { ...https, https_proxy: "PROXY" }, want: proxied },
    { name: "HTTP_PROXY is not used for https:", env: { ...https, HTTP_PROXY: "PROXY" }, want: direct },
    { name: "HTTP_PROXY is used for http:", env: { ...http, HTTP_PROXY: "PROXY" }, want: proxied },
    { name: "http_proxy is used for http:", env: { ...http, http_proxy: "PROXY" }, want: proxied },
    { name: "HTTPS_PROXY is not used for http:", env: { ...http, HTTPS_PROXY: "PROXY" }, want: direct },
    { name: "ALL_PROXY is used for https:", env: { ...https, ALL_PROXY: "PROXY" }, want: proxied },
    { name: "all_proxy is used for http:", env: { ...http, all_proxy: "PROXY" }, want: proxied },
    { name: "HTTPS_PROXY wins over ALL_PROXY", env: { ...used, ALL_PROXY: "x:1" }, want: proxied },
    { name: "https_proxy wins", env: { ...https, https_proxy: "PROXY", HTTPS_PROXY: "x:1" }, want: proxied },
    { name: "an empty https_proxy is unset", env: { ...used, https_proxy: " " }, want: proxied },
    { name: "a proxy without a scheme is http://", env: { ...https, HTTPS_PROXY: "HOST" }, want: proxied },
    { name: "NO_PROXY exempts a host", env: { ...used, NO_PROXY: "0.0.0.0" }, want: direct },
    { name: "no_proxy exempts a host with its port", env: { ...used, no_proxy: "x,0.0.0.0:1" }, want: direct },
    { name: "no_proxy wins over NO_PROXY", env: { ...used, no_proxy: "x", NO_PROXY: "*" }, want: proxied },
    { name: "NO_PROXY exempts the hosts of a domain, here 0.0.0", env: { ...used, NO_PROXY: "0.0.0" }, want: direct },
    { name: "NO_PROXY may begin with a dot", env: { ...used, NO_PROXY: ".0.0.0" }, want: direct },
    { name: "NO_PROXY may begin with *.", env: { ...used, NO_PROXY: "*.0.0.0" }, want: direct },
    { name: "NO_PROXY=* exempts every host", env: { ...used, NO_PROXY: " * " }, want: direct },
    { name: "a * beside others exempts nothing", env: { ...used, NO_PROXY: "*,x" }, want: proxied },
    { name: "NO_PROXY does not exempt another port", env: { ...used, NO_PROXY: "0.0.0.0:2" }, want: proxied },
    { name: "NO_PROXY knows the port of https:", env: { ...port443, NO_PROXY: "0.0.0.0:443" }, want: direct },
    { name: "NO_PROXY knows the port of http:", env: { ...port80, NO_PROXY: "0.0.0.0:80" }, want: direct },
    { name: "NO_PROXY does not match other names", env: { ...named, NO_PROXY: "tea.test,,.x" }, want: proxied },
    { name: "a SOCKS proxy, if exempt", env: { ...https, HTTPS_PROXY: "socks5://x", NO_PROXY: "*" }, want: direct },
  ];
  for (const { name, env, want } of rows) {
    testRow(`proxy: ${name}`, name, async () => {
      using proxy = await startGitea({ every: respond(407) });
      const given: Record<string, string | undefined> = hastyEnv("");
      for (const [key, value] of Object.entries(env)) {
        given[key] = value?.replace("PROXY", proxy.url).replace("HOST", proxy.url.replace("http://", ""));
      }
      const run = await runGate([], given);
      checkVerdict(run, { want });
      // A wrong password, sent again, could lock an account.
      equal(proxy.connections, want === proxied ? 1 : 0, run.log);
    });
  }

  const faults = {
    "answers 407": { tunnel: respond(407), want: "proxy-refused" },
    "answers 403": { tunnel: respond(403), want: "proxy-refused" },
    "answers 502": { tunnel: respond(502), want: "unreachable" },
    "hangs up": { tunnel: hangUp(), want: "unreachable" },
    "ends the connection without an answer": { tunnel: send(""), want: "unreachable" },
    "stays silent": { tunnel: stall(), want: "timeout" },
    "opens the tunnel and hangs up": { tunnel: send("HTTP/1.1 200 OK\r\n\r\n"), want: "unreachable" },
    "opens the tunnel and stays silent": { tunnel: openSilently, want: "timeout" },
  };
  for (const [fault, { tunnel, want }] of Object.entries(faults)) {
    const verb = want === "proxy-refused" ? "one connection" : "a connection for each attempt, and no more";
    const check = async (name: string) => {
      using proxy = await startGitea({ tunnel });
      const env = { ...hastyEnv("https://gitea.test"), HTTPS_PROXY: proxy.url, SYNC_TIMEOUT_SECONDS: "20" };
      const run = await runGate([], env);
      checkVerdict(run, { want }, name);
      equal(proxy.connections, run.log.split("\nretry ").length, run.log);
      equal(proxy.connections === 1, want === "proxy-refused", run.log);
    };
    testRow(`proxy: a proxy that ${fault} gets ${verb}`, fault, check);
  }

  test("proxy: a proxy that is down is named", async (name) => {
    const run = await runGate([], { ...hastyEnv("https://gitea.test"), HTTPS_PROXY: "http://127.0.0.1:1" });
    checkVerdict(run, { want: "unreachable" }, name);
  });

  test("proxy: none is used for the loopback", async () => {
    using gitea = await startGitea();
    const env = { ...hastyEnv(gitea.url), HTTP_PROXY: "http://x:1", ALL_PROXY: "http://x:1" };
    checkVerdict(await runGate([], env), { want: "in-sync", notInLog: /proxy/ });
  });

  const plain = { ...hastyEnv("http://gitea.test"), SYNC_ALLOW_HTTP: "1" };

  test("proxy: plain http: goes through it without a tunnel, and the log says so", async () => {
    using proxy = await startGitea();
    const log =
      /^source .* on http:\/\/gitea\.test \(SYNC_CANONICAL_SERVER\), with AUTO_SYNC_TOKEN through the proxy in http_proxy$/m;
    checkVerdict(await runGate([], { ...plain, http_proxy: proxy.url }), { want: "in-sync", log });
    equal(proxy.requests[0]?.target, "http://gitea.test/api/v1/repos/molecule-ai/molecule-controlplane");
  });

  test("proxy: an error of a proxy for plain http: is not blamed on Gitea alone", async (name) => {
    using proxy = await startGitea({ every: respond(502) });
    checkVerdict(await runGate([], { ...plain, http_proxy: proxy.url }), { want: "server-error" }, name);
  });

  test("proxy: the size of an answer through it is limited too", async () => {
    using proxy = await startGitea({ file: sendEndless });
    checkVerdict(await runGate([], { ...plain, http_proxy: proxy.url }), { want: "too-large" });
  });

  /** Runs the command with a proxy that opens a tunnel to the stand-in, whatever is asked for. */
  async function runThroughTunnel(server: string, credentials: string) {
    using gitea = await startGitea({}, { certificate: "valid" });
    const tunnel: Responder = (socket) => {
      const upstream = connect(Number(new URL(gitea.url).port), "127.0.0.1", () => {
        socket.write("HTTP/1.1 200 Connection established\r\n\r\n");
        upstream.pipe(socket).pipe(upstream);
      });
      upstream.on("error", () => socket.destroy());
    };
    using proxy = await startGitea({ tunnel });
    const HTTPS_PROXY = proxy.url.replace("//", `//${credentials}@`);
    const env = { ...pushEnv(server), HTTPS_PROXY, NODE_EXTRA_CA_CERTS: "fixtures/tls/valid.pem", ...COVERAGE };
    return { run: await runCommand(measuredCommand([]), env), proxy, gitea };
  }

  test("proxy: https: goes through a tunnel, with the user name and password for the proxy", async () => {
    const { run, proxy } = await runThroughTunnel("https://gitea.test", "me:p%25%C3%A4");
    checkVerdict(run, { want: "in-sync" });
    const targets = proxy.requests.map(({ method, target }) => `${method} ${target}`);
    deepEqual(targets, ["CONNECT gitea.test:443", "CONNECT gitea.test:443", "CONNECT gitea.test:443"]);
    equal(proxy.requests[0]?.headers.get("proxy-authorization"), "Basic bWU6cCXDpA==");
    equal(proxy.requests[0]?.headers.get("authorization"), undefined);
  });

  test("proxy: the certificate of the server is checked through the tunnel", async () => {
    const { run, gitea } = await runThroughTunnel("https://other.test", "me:x");
    const log = "the certificate of https://other.test through the proxy in HTTPS_PROXY is not accepted";
    checkVerdict(run, { want: "certificate", log });
    equal(gitea.requests.length, 0, run.log);
  });

  test("proxy: the tunnel to an IPv6 address has its brackets", async () => {
    using proxy = await startGitea({ every: respond(403) });
    const { log } = await runGate([], { ...hastyEnv("https://[2001:db8::1]"), HTTPS_PROXY: proxy.url });
    equal(proxy.requests[0]?.target, "[2001:db8::1]:443", log);
  });
});

{
  const answer = (every: Responder) => ({ server: { every } });
  const message = (text: string) => ({ ...answer(respondError(401, text)), want: "token-rejected" });
  const escaped = respond(401, { body: `{"message":"\\u0073${TOKEN.slice(1)}","url":"x"}` });
  const page = respond(403, { body: `<title>${TOKEN}</title>` });
  const header = respond(403, { headers: { server: TOKEN } });
  const location = respond(302, { headers: { location: `/${TOKEN}` } });
  const etag = { file: respond(200, { headers: { etag: `"${TOKEN}"` } }) };
  const odd = { AUTO_SYNC_TOKEN: "abc##[def::ghi" };
  const lineBreak = { AUTO_SYNC_TOKEN: `${TOKEN}\n` };
  const long = message(`${"x".repeat(60)}${TOKEN}${"y".repeat(300)}`);
  const inSetting = { AUTO_SYNC_TOKEN: "providers", SYNC_COPY_PATH: "" };
  testRows("the token is redacted", [
    { name: "in a message of the server", ...message(`no ${TOKEN}!`), log: '401 "no ***!"' },
    { name: "in a message with JSON escapes", ...answer(escaped), want: "token-rejected", log: '401 "***"' },
    { name: "in the title of a page", ...answer(page), want: "not-gitea", log: '403 "***"' },
    { name: "in the Server header", ...answer(header), want: "not-gitea", log: 'server: "***"' },
    { name: "in the Location of a redirect", ...answer(location), want: "not-gitea", log: 'redirects to "/***"' },
    { name: "in an ETag", server: etag, want: "unproven", log: 'with the ETag "***",' },
    { name: "where a long message is cut", ...long, log: `401 "${"x".repeat(60)}***y`, notInLog: /stand-in/ },
    { name: "if it has what the log breaks up", env: odd, ...message("no abc##[def::ghi"), log: '401 "no ***"' },
    { name: "without the line break at its end", env: lineBreak, ...message(TOKEN), log: '401 "***"' },
    { name: "but not in settings", env: inSetting, want: "copy-unreadable", log: '/***/***.yaml" cannot' },
    { name: "unless it is too short", env: { AUTO_SYNC_TOKEN: "usage" }, want: "usage", log: "::usage: AUTO_SYNC_" },
  ]);
}

// ------------------------------------------------------------------------------------------------
// Section 8: comparison
// ------------------------------------------------------------------------------------------------

{
  const crlf = CANONICAL.toString().replaceAll("\n", "\r\n");
  const crlfPin = { copy: crlf, pin: createHash("sha256").update(crlf).digest("hex") };
  const named = (name: string) => ({ args: LOCAL, env: { SYNC_COPY_PATH: `DIR/${name}` }, files: { [name]: crlf } });
  const content = (text: string) => ({ ...copyOf(text), args: LOCAL, want: "drift" });
  const noDiff = { log: /^diff {7}none: only line endings differ$/m, notInLog: /^@@/m };
  const changed = /\ndiff {7}none: only line endings differ\n[\s\S]*so the canonical file has probably changed/;
  const bothPaths = { SYNC_COPY_PATH: "DIR/copy", SYNC_PIN_PATH: "DIR/pin" };
  const pin = (sha256: string) => ({ args: LOCAL, ...withPin(sha256, DRIFT), want: "drift" });
  const notGit = { notInLog: /gitattributes/ };
  const canonical = { args: ["--canonical", "DIR/a"], files: { a: crlf } };
  const latin1Files = { a: Buffer.from([0xfe]), copy: Buffer.from([0xff]) };
  const latin1 = { ...canonical, env: { SYNC_COPY_PATH: "DIR/copy" }, files: latin1Files };
  testRows("a drift", [
    { name: "without a pin file", args: LOCAL, env: DRIFT, want: "drift" },
    { name: "the pin file matches the copy", ...pin(DRIFTED_SHA256) },
    { name: "the pin file matches the canonical file", ...pin(CANONICAL_SHA256) },
    { name: "the pin file matches neither", ...pin(OTHER_SHA256) },
    { name: "of line endings, with a rule and no diff", ...named("a/copy.yaml"), want: "drift", ...noDiff },
    { name: "of line endings, in a name with blanks", ...named('my [a]/x "#! y.yaml'), want: "drift" },
    { name: "of line endings, in a name that is not English", ...named("نام.yaml"), want: "drift" },
    { name: "of line endings, in the canonical file", ...canonical, want: "drift" },
    {
      name: "of line endings, with a pin file",
      args: LOCAL,
      env: bothPaths,
      files: crlfPin,
      want: "drift",
      log: changed,
      ...notGit,
    },
    { name: "of bytes that are not UTF-8", ...latin1, want: "drift" },
    { name: "of a carriage return alone", ...content(`\r${crlf}`), ...notGit },
    { name: "of a final newline and line endings", ...content(crlf.trimEnd()), ...notGit },
    { name: "from a captured file with CRLF", server: { file: play("crlf-file") }, want: "drift" },
  ]);
}

// ------------------------------------------------------------------------------------------------
// Section 9: diff and re-sync
// ------------------------------------------------------------------------------------------------

/** Compares two texts, and returns the lines between the canonical file and the re-sync. */
async function diff(copy: string | Buffer, canonical: string | Buffer): Promise<string[]> {
  using folder = createFolder({ copy, canonical });
  const args = ["--copy", join(folder.path, "copy"), "--canonical", join(folder.path, "canonical")];
  const { log } = await runGate(args, {});
  const lines = log.replaceAll(folder.path, "DIR").split("\n");
  const end = lines.findIndex((line) => line.startsWith("To re-sync, "));
  return lines.slice(lines.findIndex((line) => line.startsWith("canonical ")) + 1, end);
}

/** `1\n2\n…` */
function numbers(count: number): string {
  return Array.from({ length: count }, (_, index) => `${index + 1}\n`).join("");
}

describe("the diff", () => {
  const names = "--- in the copy DIR/copy\n+++ in the canonical file DIR/canonical\n";
  const ten = " 5\n 6\n 7\n 8\n 9\n 10\n 11\n 12\n 13\n 14\n-x\n+15\n 16\n 17\n 18\n 19\n 20\n 21\n 22\n 23\n 24\n 25";
  const hidden = ["a\u2028\u200c\u0085\u3164\n", "a\u00adb\u{e0041}\n"] as const;
  const commands = ["  ::warning::a\n##[error]b##[c]d\n", "  ::warning::a\n::error::b\nx: \u001b[31m\t\r\n"] as const;
  const commandLines = "   : :warning::a\n-# #[error]b# #[c]d\n+::error::b\n+x: \\u{1b}[31m\t\\u{d}";
  /** The copy, the canonical file, and the lines of the diff after the names. */
  const rows: Readonly<Record<string, readonly [string, string, string]>> = {
    "ten lines around a change": [numbers(30).replace("\n15\n", "\nx\n"), numbers(30), `@@ -5,21 +5,21 @@\n${ten}`],
    "a line is missing in the copy": ["1\n", "1\n2\n", "@@ -1,1 +1,2 @@\n 1\n+2"],
    "an empty copy": ["", "1\n", "@@ -0,0 +1,1 @@\n+1"],
    "a missing final newline": ["1", "1\n", "@@ -1,1 +1,1 @@\n-1\n\\ No newline at end of file\n+1"],
    "a byte-order mark": ["\ufeff1\n", "1\n", "@@ -1,1 +1,1 @@\n-\\u{feff}1\n+1"],
    "spaces that are not ASCII": ["a\u00a0b\n", "a\u3000b\n", "@@ -1,1 +1,1 @@\n-a\\u{a0}b\n+a\\u{3000}b"],
    "white space at the end of a line": ["a\n\n", "a  \n\n", "@@ -1,2 +1,2 @@\n-a\n+a \\u{20}\n "],
    "hidden characters": [...hidden, "@@ -1,1 +1,1 @@\n-a\\u{2028}\\u{200c}\\u{85}\\u{3164}\n+a\\u{ad}b\\u{e0041}"],
    "commands of a runner": [...commands, `@@ -1,2 +1,3 @@\n${commandLines}`],
  };
  for (const [name, [copy, canonical, want]] of Object.entries(rows)) {
    testRow(`diff: ${name}`, name, async () => equal((await diff(copy, canonical)).join("\n"), names + want));
  }

  test("diff: none if one of the files is not UTF-8", async () => {
    const latin1 = Buffer.from([0xc3, 0x28]);
    deepEqual(await diff(latin1, "1\n"), ["diff       none: the files are not UTF-8 text, or too large"]);
    deepEqual(await diff("1\n", latin1), ["diff       none: the files are not UTF-8 text, or too large"]);
  });

  test("diff: 200 lines are printed, and after them a line that says how many were omitted", async () => {
    const lines = await diff("", numbers(198));
    deepEqual([lines.length, lines[199], lines[200]], [201, "+197", "lines omitted: 1"]);
    equal((await diff("", numbers(197))).at(-1), "+197");
  });

  test("diff: a line of the log is cut after 4,000 characters, in the middle", async () => {
    const lines = await diff(`a: ${"x".repeat(5000)}y\n`, "a: 1\n");
    match(lines.find((line) => line.startsWith("-a")) ?? "", /^-a: x{1994} … x{1997}y$/);
  });
});

describe("files that a library needs long for", () => {
  /** Lines that no two files have in common. */
  const unrelated = (seed: string) => {
    let text = "";
    for (let hash = seed; text.length < 1_000_000; ) {
      hash = createHash("md5").update(hash).digest("hex");
      text += `${hash.slice(0, 8)}\n`;
    }
    return text;
  };
  const tooMuch = "diff       none: the files differ too much\n";
  /** The copy, the canonical file, and what the log says. */
  const rows: Readonly<Record<string, readonly [string, string, string]>> = {
    // Without the option of the library this one takes longer than a test may.
    "two unrelated files of 1 MB": [unrelated("a"), unrelated("b"), tooMuch],
    "a line of 1 MB": ["x".repeat(1_000_000), "y".repeat(1_000_000), "\n\\ No newline at end of file\n"],
    "files of 2 MiB and a byte": [
      " ".repeat(2_097_151),
      "ab",
      "diff       none: the files are not UTF-8 text, or too large\n",
    ],
    "nested keys of YAML": [`${"{? ".repeat(400)}a\n`, "a: 1\n", "\n+a: 1\n"],
  };
  for (const [name, [copy, canonical, log]] of Object.entries(rows)) {
    const check = async () => {
      using folder = createFolder({ copy, canonical });
      const args = ["--copy", join(folder.path, "copy"), "--canonical", join(folder.path, "canonical")];
      checkVerdict(await runCommand(measuredCommand([], ...args), COVERAGE), { want: "drift", log });
    };
    testRow(`a drift is printed in a few seconds: ${name}`, name, check);
  }
});

describe("the re-sync command", () => {
  /** The line before the verdict. */
  const commandOf = ({ log }: Run) => log.split("\n").at(-2) ?? "";
  const hidden = "  (the command cannot be shown: it is too long, or has characters that the log changes)";

  const read = "  read -rs AUTO_SYNC_TOKEN; export AUTO_SYNC_TOKEN;";

  test("re-sync: it names every setting that decides what is compared, and nothing else", async () => {
    using gitea = await startGitea();
    const names = {
      SYNC_CANONICAL_REPO: "acme/registry",
      SYNC_CANONICAL_PATH: "a b.yaml",
      SYNC_CANONICAL_REF: "it's'$1",
    };
    const files = { SYNC_COPY_PATH: DRIFTED_PATH, SYNC_PIN_PATH: "fixtures/providers.sha256" };
    const other = { SYNC_ALLOW_HTTP: "1", SYNC_CANONICAL_TOKEN: "hunter2-other" };
    const run = await runGate([], { ...hastyEnv(gitea.url), ...names, ...files, ...other });
    deepEqual(run.log.split("\n").slice(-4, -1), [
      `To re-sync, paste this line into bash or zsh, in an up-to-date clone with the gate's packages, in the directory that is "${process.cwd()}" here.`,
      'Then paste a token that can read "acme/registry" (nothing is shown). Commit and push what is written.',
      `${read} SYNC_CANONICAL_SERVER=${gitea.url} SYNC_CANONICAL_REPO=acme/registry SYNC_CANONICAL_PATH='a b.yaml' SYNC_CANONICAL_REF='it'\\''s'\\''$1' SYNC_ALLOW_HTTP=1 SYNC_COPY_PATH=fixtures/providers-drifted.yaml SYNC_PIN_PATH=fixtures/providers.sha256 node dist/test/sync-providers.test.js --write; unset AUTO_SYNC_TOKEN`,
    ]);
  });

  test("re-sync: it names the defaults too, so that variables of a developer's shell do not change them", async () => {
    using gitea = await startGitea();
    using folder = createFolder({ "workspace-server/internal/providers/providers.yaml": DRIFTED });
    copyFileSync("sync-providers.ts", join(folder.path, "sync-providers.ts"));
    symlinkSync(resolve("node_modules"), join(folder.path, "node_modules"));
    const tsx = [process.execPath, "node_modules/tsx/dist/cli.mjs", "sync-providers.ts"];
    const env = { GITHUB_EVENT_NAME: "push", GITHUB_SERVER_URL: gitea.url, AUTO_SYNC_TOKEN: TOKEN };
    equal(
      commandOf(await runCommand(tsx, env, folder.path)),
      `${read} SYNC_CANONICAL_SERVER=${gitea.url} SYNC_CANONICAL_REPO=molecule-ai/molecule-controlplane SYNC_CANONICAL_PATH=internal/providers/providers.yaml SYNC_CANONICAL_REF=main SYNC_COPY_PATH=workspace-server/internal/providers/providers.yaml SYNC_PIN_PATH='' npx --no tsx sync-providers.ts --write; unset AUTO_SYNC_TOKEN`,
    );
  });

  test("re-sync: with --canonical it needs no token and no settings of the server", async () => {
    using folder = createFolder({ "a copy": DRIFTED });
    const args = ["--canonical", CANONICAL_PATH, "--copy", join(folder.path, "a copy")];
    const { log } = await runGate(args, { SYNC_CANONICAL_SERVER: "https://git.example.com" });
    deepEqual(log.replace(`='${folder.path}`, "='DIR").split("\n").slice(-3, -1), [
      "To re-sync, update the checkout of the canonical file, then run this. Commit and push what is written.",
      "  SYNC_COPY_PATH='DIR/a copy' SYNC_PIN_PATH='' node dist/test/sync-providers.test.js --write --canonical fixtures/providers.yaml",
    ]);
  });

  for (const shell of ["bash", "zsh"]) {
    if (isInstalled(shell)) {
      test(`re-sync: it can be pasted into ${shell} whatever its variables, reads the token, and the next run passes`, async () => {
        using gitea = await startGitea();
        using folder = createFolder({ "it's a '$copy.yaml": DRIFTED, pin: DRIFTED_SHA256 });
        const env = {
          ...pushEnv(gitea.url),
          SYNC_COPY_PATH: join(folder.path, "it's a '$copy.yaml"),
          SYNC_PIN_PATH: join(folder.path, "pin"),
        };
        const command = commandOf(await runCommand(gateCommand(), env));
        const developer = { SYNC_CANONICAL_REF: "old", SYNC_COPY_PATH: "other", SYNC_CANONICAL_REPO: "a/b" };
        const paste = `printf '%s\\n' '${TOKEN}' | { eval "$COMMAND"; echo "left: $AUTO_SYNC_TOKEN" >&2; }`;
        const run = await runCommand([shell, "-c", paste], { ...developer, COMMAND: command });
        checkVerdict(run, { want: "written" });
        equal(run.stderr, "left: \n");
        checkVerdict(await runCommand(gateCommand(), env), { want: "in-sync", log: /and the pin file agrees\.$/ });
      });
    }
  }

  const paths = {
    "with an invisible character is not shown": "a\u200cb",
    "that a line would cut is not shown": `${"a/".repeat(1950)}b`,
    "with the text of the token is not shown": `${TOKEN}/x`,
    "with a tab, at which a shell completes, is not shown": "a\tb",
    "of 3,000 characters is shown whole": `${"a/".repeat(1500)}b`,
  };
  for (const [name, path] of Object.entries(paths)) {
    const check = async () => {
      using gitea = await startGitea();
      const run = await runGate([], { ...hastyEnv(gitea.url), ...DRIFT, SYNC_CANONICAL_PATH: path });
      const isShown = commandOf(run).includes(` SYNC_CANONICAL_PATH=${path} `);
      equal(isShown ? "shown" : commandOf(run), name.endsWith("shown whole") ? "shown" : hidden);
    };
    testRow(`re-sync: a command ${name}`, name, check);
  }

  test("re-sync: if it is not known how the gate was started, it is the command of the README", async () => {
    using gitea = await startGitea();
    const flags = ["--input-type=module", "-e", 'await import("./dist/test/sync-providers.js")'];
    const env = { ...pushEnv(gitea.url), SYNC_COPY_PATH: DRIFTED_PATH, ...COVERAGE };
    const command = commandOf(await runCommand([process.execPath, ...flags], env));
    match(command, / npx --no tsx sync-providers\.ts --write; unset AUTO_SYNC_TOKEN$/);
  });
});

{
  const constant = (sha256: string) => Buffer.from(`// \xfc\nconst canonicalSHA256 = "${sha256}"\n`, "latin1");
  const write = { args: ["--write", "--copy", "DIR/copy"], env: { SYNC_PIN_PATH: "DIR/pin" } };
  const without = (args: readonly string[]) => ({ args: ["--write", "--copy", "DIR/copy", ...args] });
  const both = { copy: DRIFTED, pin: constant(DRIFTED_SHA256.toUpperCase()) };
  const bothWritten = { copy: CANONICAL, pin: constant(CANONICAL_SHA256) };
  const bothLogged =
    'copy       "DIR/copy": 798 bytes, sha256 9ccc1c93c342\npin        "DIR/pin": sha256 9ccc1c93c342, matches';
  const stale = { files: { copy: CANONICAL, pin: OTHER_SHA256 }, written: { pin: CANONICAL_SHA256 } };
  const differs = { files: { copy: DRIFTED, pin: CANONICAL_SHA256 }, written: { copy: CANONICAL } };
  const inSync = { files: { copy: CANONICAL, pin: CANONICAL_SHA256 }, want: "in-sync" };
  const nothing = "in-sync: The copy already matches the canonical file, so nothing was written.";
  const created = { written: { copy: CANONICAL }, want: "written" };
  const local = { env: NO_TOKEN, files: { copy: DRIFTED }, written: { copy: CANONICAL }, requests: 0 };
  const damaged = { file: playEdited("ok-at-commit", (raw) => raw.replace("version: 1", "version: 2")) };
  const pointer = { copy: LFS_POINTER, pin: DRIFTED_SHA256 };
  const below = (path: string) => ({ args: ["--write", "--copy", path], want: "write-failed" });
  testRows("a re-sync", [
    { name: "writes both files", ...write, files: both, want: "written", written: bothWritten, log: bothLogged },
    { name: "writes a stale pin file", ...write, ...stale, want: "written" },
    { name: "writes a copy that differs", ...write, ...differs, want: "written" },
    { name: "writes nothing if nothing differs", ...write, ...inSync, log: nothing },
    { name: "creates a missing copy", ...without([]), ...created, log: "copy       none yet\n" },
    { name: "creates no folder", ...below("DIR/new/copy") },
    { name: "creates nothing without a canonical file", ...without(["--canonical", "none"]), want: "file-not-found" },
    { name: "needs no token with --canonical", ...without(LOCAL), ...local, want: "written" },
    { name: "needs a token", ...write, env: NO_TOKEN, files: { copy: DRIFTED }, want: "token-missing" },
    { name: "writes nothing from a damaged file", ...write, server: damaged, files: both, want: "unproven" },
    { name: "writes nothing over a Git LFS pointer", ...write, files: pointer, want: "not-a-file" },
    { name: "writes nothing with a bad pin", ...write, files: { copy: DRIFTED, pin: "a" }, want: "pin-unreadable" },
    { name: "cannot write below a file", ...below("DIR/file/copy"), files: { file: "" } },
    { name: "cannot write below /proc", ...below("/proc/none") },
  ]);

  describe("a re-sync of the file system", () => {
    test("a re-sync keeps the mode and the inode of the copy", async () => {
      using folder = createFolder({ copy: DRIFTED });
      const copy = join(folder.path, "copy");
      chmodSync(copy, 0o640);
      const { ino } = statSync(copy);
      const { exitCode, log } = await runGate(["--write", "--copy", copy, ...LOCAL], {});
      equal(exitCode, 0, log);
      deepEqual(readFileSync(copy), CANONICAL);
      deepEqual([statSync(copy).mode & 0o7777, statSync(copy).ino], [0o640, ino]);
    });

    test("a re-sync whose second file cannot be written says which one was", async (name) => {
      using folder = createFolder({ copy: DRIFTED, pin: DRIFTED_SHA256 });
      const env = { SYNC_COPY_PATH: join(folder.path, "copy"), SYNC_PIN_PATH: join(folder.path, "pin") };
      const code = `import fs from "node:fs"; import { syncBuiltinESMExports } from "node:module";
      const { writeFileSync } = fs;
      fs.writeFileSync = (path, bytes) => {
        if (path.endsWith("pin")) throw new Error("ENOSPC: no space left on device, write");
        writeFileSync(path, bytes);
      };
      syncBuiltinESMExports();`;
      const url = `data:text/javascript,${encodeURIComponent(code)}`;
      const run = await runCommand(measuredCommand(["--import", url], "--write", ...LOCAL), { ...env, ...COVERAGE });
      checkVerdict(run, { want: "write-failed" }, name, { [folder.path]: "DIR" });
      deepEqual(readFileSync(join(folder.path, "copy")), CANONICAL);
    });
  });
}

// ------------------------------------------------------------------------------------------------
// Section 10: text
// ------------------------------------------------------------------------------------------------

{
  const message = (text: string) => ({ server: { every: respondError(401, text) }, want: "token-rejected" });
  const command =
    /^verdict .* \(401 "\\u\{a\}::error::x # #\[e\]y 1%"\)\..*\n::error::.* \(401 "\\u\{a\}: :error: :x # #\[e\]y 1%25"\)\./m;
  const long = /^verdict {4}.* \(401 "x{900}"\)\. .*\n::error::unverified .*x … x.* AUTO_SYNC_TOKEN\.$/m;
  const ipv6 = { SYNC_CANONICAL_SERVER: "http://[2001:db8::1]:3000" };
  const whole =
    /^verdict {4}usage: SYNC_CANONICAL_SERVER is "http:\/\/\[2001:db8::1\]:3000": .*\n::error::.*\[2001:db8: :1\]/m;
  const name = { SYNC_COPY_PATH: "x\n::error::y" };
  testRows("foreign text", [
    { name: "a command does not become one, and is whole before", ...message("\n::error::x ##[e]y 1%"), log: command },
    { name: "a quote does not end the quotation", ...message('a "b" c'), log: `401 "a 'b' c")` },
    { name: "a long message is cut, and is whole before", ...message("x".repeat(900)), log: long },
    { name: "an IPv6 address is whole before", env: ipv6, want: "usage", log: whole },
    { name: "a file name is not a command", env: name, want: "copy-unreadable", log: 'copy "x\\u{a}: :error: :y"' },
  ]);

  describe("a long message", () => {
    test("foreign text: a message of 10 MB of control characters is cut before it is made visible", async () => {
      using gitea = await startGitea({ every: respondError(401, "\u0007".repeat(1_700_000)) });
      const { log } = await runGate([], { ...hastyEnv(gitea.url), SYNC_TIMEOUT_SECONDS: "60" });
      match(log, /^verdict {4}unverified \(token-rejected\): /m);
      ok(log.length < 50_000);
    });
  });
}

// ------------------------------------------------------------------------------------------------
// Section 11: start
// ------------------------------------------------------------------------------------------------

function isInstalled(name: string): boolean {
  return (process.env.PATH ?? "").split(":").some((path) => existsSync(join(path, name)));
}

describe("the real command", () => {
  const [major = 0, minor = 0] = process.versions.node.split(".").map(Number);
  const starts: Record<string, string[]> = {
    "the source under tsx": gateCommand(),
    "the source, compiled": measuredCommand([]),
    "the bundle under node": [process.execPath, BUNDLE],
    ...((major > 22 || (major === 22 && minor >= 18)) && {
      "the source under node alone": [process.execPath, "sync-providers.ts"],
    }),
  };
  const fork = ["--replay", "fixtures/events/pr-fork-synchronize.json"];
  const rows = [
    { args: [], env: {}, want: "in-sync" },
    { args: ["--copy", DRIFTED_PATH], env: {}, want: "drift" },
    { args: [], env: NO_TOKEN, want: "token-missing" },
    { args: fork, env: NO_TOKEN, want: "skipped" },
    { args: ["--no-such-flag"], env: {}, want: "usage" },
    { args: ["--copy", "none"], env: {}, want: "copy-unreadable" },
  ];
  for (const [start, command] of Object.entries(starts)) {
    for (const { args, env, want } of rows) {
      const check = async () => {
        using gitea = await startGitea();
        const run = await runCommand([...command, ...args], { ...pushEnv(gitea.url), ...env, ...COVERAGE });
        checkVerdict(run, { want });
        equal(run.stderr, "");
      };
      testRow(`${start}: ${want}`, start, check);
    }
  }

  const importing = [process.execPath, "--input-type=module", "-e", 'await import("./dist/test/sync-providers.js")'];
  const piped = `"$0" --input-type=module - < ${BUNDLE}`;
  const commands = {
    "by a symbolic link": [process.execPath, "DIR/link.js"],
    "by a name without its ending": [process.execPath, "node_modules/tsx/dist/cli.mjs", "sync-providers"],
    "from standard input": ["bash", "-c", piped, process.execPath],
    "by a script that is no file": [...importing, "no-such-script"],
    "by a script that is a folder": [...importing, "fixtures"],
    "by the import of another script": [...importing, "package.json"],
  };
  for (const [name, command] of Object.entries(commands)) {
    const runs = name !== "by the import of another script";
    const check = async () => {
      using folder = createFolder({}, { "link.js": resolve("dist/test/sync-providers.js") });
      const env = { GITHUB_EVENT_NAME: "push", SYNC_COPY_PATH: CANONICAL_PATH, ...COVERAGE };
      const started = command.map((word) => word.replace("DIR", folder.path));
      const run = await runCommand(started, env);
      equal(run.exitCode, runs ? 1 : 0, run.log);
      equal(run.lastLine.startsWith("::error::token-missing: "), runs, run.log);
    };
    testRow(`started ${name}, the gate ${runs ? "runs" : "does not run"}`, name, check);
  }

  test("a reader that closes the pipe early does not change the exit code", async () => {
    const [file = "", ...args] = measuredCommand([], ...LOCAL, "--copy", "fixtures/providers-copy.yaml");
    const child = spawn(file, args, { env: { ...COVERAGE }, stdio: ["ignore", "pipe", "inherit"] });
    child.stdout.destroy();
    equal(await new Promise((end) => child.on("close", end)), 0);
  });

  test("a slow reader gets the whole log", async () => {
    const lines = (letter: string) => `${letter.repeat(900)}\n`.repeat(200);
    using folder = createFolder({ copy: lines("a"), canonical: lines("b") });
    const args = ["--copy", join(folder.path, "copy"), "--canonical", join(folder.path, "canonical")];
    const slowly = ["bash", "-c", 'set -o pipefail; "$@" | (sleep 1; cat)', "bash"];
    const run = await runCommand([...slowly, ...measuredCommand([], ...args)], COVERAGE);
    checkVerdict(run, { want: "drift" });
    ok(run.log.length > 150_000);
  });

  test("if the log cannot be written, the exit code is 3", async () => {
    const code = 'data:text/javascript,console.log = () => { throw new Error("full"); };';
    equal((await runCommand(measuredCommand(["--import", code], ...LOCAL), COVERAGE)).exitCode, 3);
  });

  test("the process ends with its verdict, although a server never answers the TLS handshake", async () => {
    using gitea = await startGitea({ every: stall() });
    const env = { ...hastyEnv(gitea.url.replace("http:", "https:")), SYNC_TIMEOUT_SECONDS: "0.5" };
    checkVerdict(await runCommand(gateCommand(), env), { want: "timeout" });
  });

  test("the process ends with its verdict, although a proxy keeps its tunnel open", async () => {
    using proxy = await startGitea({ tunnel: openSilently });
    const env = { ...hastyEnv("https://gitea.test"), HTTPS_PROXY: proxy.url, SYNC_TIMEOUT_SECONDS: "0.5" };
    checkVerdict(await runCommand(gateCommand(), env), { want: "timeout" });
  });
});

// ------------------------------------------------------------------------------------------------
// The workflows
// ------------------------------------------------------------------------------------------------

const GATE = ".gitea/workflows/sync-providers-yaml.yml";
const BUNDLE_VARIANT = ".gitea/examples/sync-providers-yaml.bundle.yml";
const MATRIX_VARIANT = ".gitea/examples/sync-providers-yaml.matrix.yml";
const CI = ".gitea/workflows/ci.yml";

type Mapping = Readonly<Record<string, unknown>>;

function toMapping(value: unknown = {}): Mapping {
  ok(typeof value === "object" && value !== null && !Array.isArray(value), `not a mapping: ${value}`);
  return { ...value };
}

function toMappings(value: unknown): readonly Mapping[] {
  ok(Array.isArray(value), `not a list: ${value}`);
  return value.map(toMapping);
}

/** What the rules look at. */
function parseWorkflow(text: string) {
  const root = toMapping(parse(text));
  const jobs = Object.values(toMapping(root.jobs)).map(toMapping);
  const steps = jobs.flatMap((job) => toMappings(job.steps));
  const [checkout, install, gate, last] = steps.map((step) => step);
  return {
    text,
    root,
    jobs,
    steps,
    checkout: toMapping(checkout),
    install: toMapping(install),
    gate: toMapping(gate),
    last: toMapping(last),
  };
}

interface Rule {
  readonly name: string;
  /** What happens without the rule. */
  readonly prevents: string;
  readonly holds: (workflow: ReturnType<typeof parseWorkflow>) => boolean;
  /** Changes of the text that break the rule. */
  readonly broken: readonly (readonly [part: string | RegExp, by: string])[];
}

const hasKeys = (value: unknown, keys: string) => Object.keys(toMapping(value)).sort().join(" ") === keys;

/** Rules for every workflow. No linter knows them. */
const RULES: readonly Rule[] = [
  {
    name: "its name has no slash",
    prevents: "a slash separates the parts of a commit status, so a required check of this name never matches",
    holds: ({ root }) => !String(root.name).includes("/"),
    broken: [[/^name: /m, "name: a/"]],
  },
  {
    name: "every action is pinned by its commit",
    prevents: "a tag can be moved to code that reads the secret",
    holds: ({ steps }) => steps.every(({ uses }) => uses === undefined || /@[\da-f]{40}$/.test(String(uses))),
    broken: [[/@[\da-f]{40}/, "@v6"]],
  },
  {
    name: "no command contains an expression",
    prevents: "the name of a branch would be run as a shell command",
    holds: ({ steps }) => steps.every(({ run }) => !String(run).includes("${{")),
    broken: [[/ run: /, " run: echo ${{ github.head_ref }} && "]],
  },
  {
    name: "it may read contents, and a job at most write issues",
    prevents: "the job's own token could write to the repository",
    holds: ({ root, text }) => {
      return JSON.stringify(root.permissions) === '{"contents":"read"}' && !/^ *(?!issues)\S+: write/m.test(text);
    },
    broken: [["contents: read", "contents: write"]],
  },
  {
    name: "runs of another event or ref are kept apart, and only runs of pull requests are cancelled",
    prevents: "a scheduled run cancels the push run of main, which is a failed commit status",
    holds: ({ root }) => {
      return (
        JSON.stringify(root.concurrency) ===
        `{"group":"${root.name}-\${{ github.event_name }}-\${{ github.ref }}","cancel-in-progress":"\${{ github.event_name == 'pull_request' }}"}`
      );
    },
    broken: [
      ["-${{ github.event_name }}", ""],
      [/cancel-in-progress: .*/, "cancel-in-progress: true"],
    ],
  },
  {
    name: "every job has a time limit",
    prevents: "a job that hangs keeps its runner for hours",
    holds: ({ jobs }) => jobs.every((job) => job["timeout-minutes"] !== undefined),
    broken: [["    timeout-minutes:", "    timeout:"]],
  },
  {
    name: "the checkout leaves no credentials behind",
    prevents: "an installed package could push with them",
    holds: ({ checkout }) => JSON.stringify(checkout.with) === '{"persist-credentials":false}',
    broken: [["persist-credentials: false", "persist-credentials: true"]],
  },
];

/** Rules for the workflow of the gate. */
const GATE_RULES: readonly Rule[] = [
  {
    name: "it listens to the events of cases 1 to 3, and to no other",
    prevents: "code of a fork would run with the secret, or a night would pass unchecked",
    holds: ({ root }) => hasKeys(root.on, "pull_request push schedule workflow_dispatch"),
    broken: [["  pull_request:", "  pull_request_target:"]],
  },
  {
    name: "pull requests and pushes have the same paths",
    prevents: "a change would be checked before the merge but not after it, or the reverse",
    holds: ({ root }) => {
      const { pull_request, push } = toMapping(root.on);
      return JSON.stringify(toMapping(pull_request).paths) === JSON.stringify(toMapping(push).paths);
    },
    broken: [["      - '.gitea/workflows/sync-providers-yaml.yml'\n", ""]],
  },
  {
    name: "the workflow, its job and its steps have the keys that are known here, and no other",
    prevents:
      "a key such as if, continue-on-error, shell, defaults or working-directory makes a step pass that did nothing",
    holds: ({ root, jobs, steps, checkout, install, gate, last }) => {
      return (
        steps.length === 4 &&
        jobs.length === 1 &&
        hasKeys(root, "concurrency jobs name on permissions") &&
        hasKeys(jobs[0], "env name permissions runs-on steps timeout-minutes") &&
        hasKeys(checkout, "uses with") &&
        hasKeys(install, "name run timeout-minutes") &&
        hasKeys(gate, "env name run timeout-minutes") &&
        hasKeys(last, "env if name run")
      );
    },
    broken: [
      [" run: npx", " continue-on-error: true\n        run: npx"],
      [" run: npx", " if: failure()\n        run: npx"],
      [" run: npx", " shell: bash -c 'exit 0' {0}\n        run: npx"],
      [" run: npx", " working-directory: fixtures\n        run: npx"],
      ["    timeout-minutes: 10", "    if: github.actor\n    timeout-minutes: 10"],
      ["    timeout-minutes: 10", "    continue-on-error: true\n    timeout-minutes: 10"],
      [/^permissions:/m, "defaults:\n  run:\n    shell: bash -c 'exit 0' {0}\npermissions:"],
      ["      - name: Install", "      - run: exit 0\n      - name: Install"],
    ],
  },
  {
    name: "its commands are those that are known here",
    prevents: "a failure would be ignored, nothing would run, or code of a package would run before the gate",
    holds: ({ install, gate }) => {
      return install.run === "npm ci --omit=dev --ignore-scripts" && gate.run === "npx tsx sync-providers.ts";
    },
    broken: [
      ["run: npx tsx sync-providers.ts", "run: npx tsx sync-providers.ts || true"],
      [" --ignore-scripts", ""],
    ],
  },
  {
    name: "the long steps have time limits of their own, which leave time for the last one",
    prevents: "a hang would tell nobody: Gitea up to 1.26 ignores the limit of the job",
    holds: ({ install, gate, jobs }) => {
      return [install, gate, jobs[0]].map((part) => part?.["timeout-minutes"]).join() === "5,5,10";
    },
    broken: [[/ +timeout-minutes: 5\n +env/, "        env"]],
  },
  {
    name: "the secret is in the environment of the gate's step only",
    prevents: "every other step, and every action in it, could read it",
    holds: ({ text, gate }) => {
      const isOnce = text.match(/secrets\b/g)?.length === 1;
      return isOnce && toMapping(gate.env).AUTO_SYNC_TOKEN === "${{ secrets.AUTO_SYNC_TOKEN }}";
    },
    broken: [
      [/^permissions:/m, "env:\n  A: ${{ secrets.A }}\npermissions:"],
      ["          TOKEN: ", "          B: ${{ secrets['AUTO_SYNC_TOKEN'] }}\n          TOKEN: "],
      ["secrets.AUTO_SYNC_TOKEN", "secrets.OTHER"],
    ],
  },
  {
    name: "the gate's step uses no cache of tsx, and fetches no package",
    prevents: "another user of a shared runner could replace the compiled code, or npx would run what the registry has",
    holds: ({ gate }) => {
      const { AUTO_SYNC_TOKEN: _, ...others } = toMapping(gate.env);
      return JSON.stringify(others) === '{"TSX_DISABLE_CACHE":"1","NPM_CONFIG_YES":"false"}';
    },
    broken: [
      ['TSX_DISABLE_CACHE: "1"', 'TSX_DISABLE_CACHE: "0"'],
      ['NPM_CONFIG_YES: "false"', 'NPM_CONFIG_YES: "true"'],
    ],
  },
  {
    name: "the job's own token is in the environment of the last step only",
    prevents: "the code of packages would run beside a token that can write issues",
    holds: ({ text, last }) => {
      const isOnce = text.match(/git(hub|ea)\W*token|gitea\b(?!\/)/gi)?.length === 1;
      return isOnce && toMapping(last.env).TOKEN === "${{ github.token }}";
    },
    broken: [
      ["AUTO_SYNC_TOKEN: ", "JOB_TOKEN: ${{ github.token }}\n          AUTO_SYNC_TOKEN: "],
      ["AUTO_SYNC_TOKEN: ", "JOB_TOKEN: ${{ github['token'] }}\n          AUTO_SYNC_TOKEN: "],
      ["AUTO_SYNC_TOKEN: ", "JOB_TOKEN: ${{ gitea.token }}\n          AUTO_SYNC_TOKEN: "],
    ],
  },
  {
    name: "the last step runs after a failed scheduled run, and only then, and its job may write issues",
    prevents: "nobody would notice a failed night",
    holds: ({ last, jobs }) => {
      const isAllowed = JSON.stringify(jobs[0]?.permissions) === '{"contents":"read","issues":"write"}';
      return isAllowed && last.if === "failure() && github.event_name == 'schedule'";
    },
    broken: [
      ["failure() && ", ""],
      ["issues: write", "issues: read"],
    ],
  },
];

describe("rules for workflows", () => {
  // Gitea is named in comments only.
  const read = (path: string) => readFileSync(path, "utf8").replace(/^ *#.*Gitea.*\n/gm, "");
  const applied = { [GATE]: [...RULES, ...GATE_RULES], [CI]: RULES };
  for (const [path, rules] of Object.entries(applied)) {
    const text = read(path);
    for (const { name, prevents, holds, broken } of rules) {
      testRow(`${path}: ${name}`, name, () => {
        ok(holds(parseWorkflow(text)), prevents);
        for (const [part, by] of broken) {
          const changed = text.replace(part, () => by);
          notEqual(changed, text, `the change found its place: ${by}`);
          equal(holds(parseWorkflow(changed)), false, `the rule holds in spite of ${by}`);
        }
      });
    }
  }
});

describe("the drop-in for the workflow of molecule-core", () => {
  const { root, jobs, text } = parseWorkflow(readFileSync(GATE, "utf8"));

  test("the commit status has the name that branch protection knows, and bp-required is right above the job", () => {
    const status = "sync-providers-yaml / Compare synced providers.yaml against controlplane canonical";
    equal(`${root.name} / ${jobs[0]?.name}`, status);
    match(text, /\n {2}# bp-required: pending #718\n {2}compare:\n/);
  });

  test("the triggers are those of the workflow that it replaces, with the pin file and the files of the gate", () => {
    const paths = [
      "workspace-server/internal/providers/providers.yaml",
      "workspace-server/internal/providers/sync_canonical_test.go",
      ".gitea/workflows/sync-providers-yaml.yml",
      "sync-providers.ts",
      "package.json",
      "package-lock.json",
    ];
    deepEqual(root.on, {
      pull_request: { types: ["opened", "synchronize", "reopened"], paths },
      push: { branches: ["main", "staging"], paths },
      schedule: [{ cron: "23 4 * * *" }],
      workflow_dispatch: null,
    });
  });

  test("its names are the defaults of the gate", () => {
    deepEqual(jobs[0]?.env, {
      SYNC_CANONICAL_SERVER: "${{ github.server_url }}",
      SYNC_CANONICAL_REPO: "molecule-ai/molecule-controlplane",
      SYNC_CANONICAL_PATH: "internal/providers/providers.yaml",
      SYNC_CANONICAL_REF: "main",
      SYNC_COPY_PATH: "workspace-server/internal/providers/providers.yaml",
      SYNC_PIN_PATH: "workspace-server/internal/providers/sync_canonical_test.go",
    });
  });
});

describe("the variants", () => {
  const withoutComments = (path: string) => readFileSync(path, "utf8").replace(/^ *#(?! bp-).*\n/gm, "");

  test("the bundle variant differs in what installs and starts the gate, and in nothing else", () => {
    const source = withoutComments(GATE)
      .replaceAll(/ +- '(sync-providers\.ts|package\.json)'\n/g, "")
      .replaceAll("'package-lock.json'", "'.gitea/sync-providers.mjs'")
      .replace(/ +- name: Install the gate\n.*\n.*\n/, "")
      .replace('          TSX_DISABLE_CACHE: "1"\n          NPM_CONFIG_YES: "false"\n', "")
      .replace("npx tsx sync-providers.ts", "node .gitea/sync-providers.mjs");
    equal(withoutComments(BUNDLE_VARIANT), source);
  });

  const { jobs, root } = parseWorkflow(readFileSync(MATRIX_VARIANT, "utf8"));
  const { "fail-fast": failFast, matrix } = toMapping(jobs[0]?.strategy);
  const pairs = toMappings(toMapping(matrix).include);

  test("the matrix variant differs in its pairs, and in nothing else", () => {
    const [pair] = pairs;
    const single = withoutComments(MATRIX_VARIANT)
      .replace(/ {4}strategy:\n( {6}.*\n)+/, "")
      .replaceAll(/ +- '.*models\.yaml.*'\n/g, "")
      .replace("Compare ${{ matrix.name }} against its", "Compare synced providers.yaml against controlplane")
      .replace(" canonical file\n    runs-on", " canonical\n    runs-on")
      .replace(" failed for ${{ matrix.name }}\n", " failed\n")
      .replace(/\$\{\{ matrix\.([\w-]+) \}\}/g, (_all, key) => String(pair?.[key]));
    equal(single, withoutComments(GATE));
  });

  test("a pair that fails does not cancel the others, and its issue has a title of its own", () => {
    equal(failFast, false);
    const { last } = parseWorkflow(readFileSync(MATRIX_VARIANT, "utf8"));
    equal(toMapping(last.env).TITLE, "The scheduled run of sync-providers-yaml failed for ${{ matrix.name }}");
  });

  test("each pair has its own commit status, and its files are in the paths", () => {
    equal(pairs.map(({ name }) => name).join(), "providers.yaml,models.yaml");
    const paths = JSON.stringify(toMapping(toMapping(root.on).push).paths);
    for (const { copy, pin } of pairs) {
      ok(paths.includes(JSON.stringify(copy)) && paths.includes(JSON.stringify(pin)));
    }
  });
});

describe("the last step of the workflow", () => {
  const { last } = parseWorkflow(readFileSync(GATE, "utf8"));
  const { TITLE: title, HELP: help } = toMapping(last.env);

  /** Runs the script of the step as the runner does, with a curl that notes its arguments and does not pause. */
  async function runLastStep(issuesUrl: string, home?: string) {
    using folder = createFolder({
      curl: `#!/bin/sh\necho "$0 $*" >> "${"$"}{0%/*}/args"\nPATH="${"$"}{PATH#*:}" exec curl "$@" --retry-delay 1\n`,
    });
    chmodSync(join(folder.path, "curl"), 0o755);
    const env = {
      AUTO_SYNC_TOKEN: TOKEN,
      TOKEN,
      ISSUES: issuesUrl,
      RUN: "https://git.example.com/acme/app/actions/runs/7?by_index=1",
      TITLE: String(title),
      HELP: String(help),
      HOME: home ?? folder.path,
      PATH: `${folder.path}:${process.env.PATH}`,
    };
    const script = ["bash", "--noprofile", "--norc", "-e", "-o", "pipefail", "-c", String(last.run)];
    const run = await runCommand(script, env);
    return { ...run, args: readFileSync(join(folder.path, "args"), "utf8") };
  }

  test("its links lead to the run itself and to the issues of the repository", () => {
    const { ISSUES, RUN } = toMapping(last.env);
    const repository = "${{ github.server_url }}/${{ github.repository }}";
    equal(RUN, `${repository}/actions/runs/\${{ github.run_number }}?by_index=1`);
    equal(ISSUES, "${{ github.api_url }}/repos/${{ github.repository }}/issues");
  });

  test("a failed night opens one issue, the next none, and after it was closed the next opens a new one", async () => {
    let open: unknown[] = [{ number: 1, title: "Another issue", body: `It quotes "${title}".` }];
    const created: unknown[] = [];
    using gitea = await startGitea({
      issues: (socket, request) => {
        if (request.method === "POST") {
          created.push(JSON.parse(request.body));
          open = [{ number: 1, title }];
          respondJson(201, { number: 1 })(socket, request);
        } else {
          respondJson(200, open)(socket, request);
        }
      },
    });
    const url = `${gitea.url}/api/v1/repos/acme/app/issues`;
    const first = await runLastStep(url);
    equal(first.exitCode, 0, first.stderr);
    deepEqual(created, [
      {
        title: "The scheduled run of sync-providers-yaml failed",
        body: "See https://git.example.com/acme/app/actions/runs/7?by_index=1. The log of the step that failed says what to do. Documents are in molecule-ai/sync-providers. Nothing more is reported while this issue is open: close it when the cause is fixed.",
      },
    ]);
    equal((await runLastStep(url)).log, "The issue is open already.");
    equal(created.length, 1);
    open = [];
    await runLastStep(url);
    equal(created.length, 2);
    ok(gitea.requests.every(({ headers }) => headers.get("authorization") === `token ${TOKEN}`));
    ok(!first.args.includes(TOKEN), "the token is in an argument");
    match(first.args, / -q -fsS .* --max-time 30 /);
  });

  test("a verbose in ~/.curlrc does not print the token", async () => {
    using folder = createFolder({ ".curlrc": "verbose\n" });
    using gitea = await startGitea({ issues: respondJson(200, [{ title }]) });
    const run = await runLastStep(`${gitea.url}/api/v1/repos/acme/app/issues`, folder.path);
    deepEqual([run.exitCode, run.stderr], [0, ""]);
  });

  test("the captured answer of Gitea 1.26.4 without issues opens one, and one about something else does not matter", async () => {
    for (const name of ["gitea-1.26.4-job-token-issues-none", "gitea-1.26.4-job-token-issues-one"]) {
      using gitea = await startGitea({ issues: [play(name), play("gitea-1.26.4-job-token-issue-created")] });
      const run = await runLastStep(`${gitea.url}/api/v1/repos/acme/app/issues`);
      equal(run.exitCode, 0, run.log);
      deepEqual(
        gitea.requests.map(({ method }) => method),
        ["GET", "POST"],
      );
      const query = "state=open&type=issues&limit=50&q=sync-providers-yaml";
      equal(gitea.requests[0]?.target, `/api/v1/repos/acme/app/issues?${query}`);
    }
  });

  test("a 502 is tried again", async () => {
    using gitea = await startGitea({ issues: [respond(502), respondJson(200, []), respondJson(201, {})] });
    const run = await runLastStep(`${gitea.url}/api/v1/repos/acme/app/issues`);
    equal(run.exitCode, 0, run.stderr);
    equal(gitea.requests.length, 3);
  });

  const page = (status: number, body: string) => respond(status, { headers: { "content-type": "text/html" }, body });
  const moved = (status: number) => respond(status, { headers: { location: "/x" } });
  const none = respondJson(200, []);
  const unread = "The list of issues cannot be read.";
  const unopened = "The issue cannot be opened.";
  const trackers: Readonly<Record<string, readonly [string, ...Responder[]]>> = {
    "hangs up": ["", hangUp()],
    "answers 403": ["", respond(403)],
    "redirects the list (301)": [unread, moved(301)],
    "answers the list with a page (200)": [unread, page(200, "<html>Sign in</html>")],
    "answers the list with a page that quotes the title": [unread, page(200, `<p>{"title":"${title}"}</p>`)],
    "answers the list with an object": [unread, respondJson(200, { message: "x" })],
    "answers the list with 202": [unread, respondJson(202, [])],
    "does not take the issue (403)": ["", none, respond(403)],
    "redirects the creation (302)": [unopened, none, moved(302)],
    "answers the creation with a page (200)": [unopened, none, page(200, "<html>Sign in</html>")],
  };
  for (const [name, [log, ...issues]] of Object.entries(trackers)) {
    const check = async () => {
      using gitea = await startGitea({ issues });
      const run = await runLastStep(`${gitea.url}/api/v1/repos/acme/app/issues`);
      notEqual(run.exitCode, 0, run.log);
      equal(run.log, log);
    };
    testRow(`a tracker that ${name} fails the step`, name, check);
  }
});

// ------------------------------------------------------------------------------------------------
// The documents and the packages
// ------------------------------------------------------------------------------------------------

const README = readFileSync("README.md", "utf8");

/** The code block of the README that contains this text. */
function codeOf(part: string): string {
  const blocks = README.split(/^```.*\n/m).filter((text, index) => index % 2 === 1 && text.includes(part));
  equal(blocks.length, 1, part);
  return (blocks[0] ?? "").trimEnd();
}

describe("the README", () => {
  test("what a failed run looks like is what it prints", async () => {
    using gitea = await startGitea({ every: play("repo-invisible") });
    const env = {
      GITHUB_EVENT_NAME: "schedule",
      AUTO_SYNC_TOKEN: TOKEN,
      SYNC_CANONICAL_SERVER: gitea.url,
      SYNC_COPY_PATH: CANONICAL_PATH,
    };
    const { log } = await runCommand(gateCommand(), env);
    equal(log.replaceAll(gitea.url, "https://git.example.com"), codeOf('event      "schedule"'));
  });

  test("the replay is skipped, as the README says", async () => {
    const [, replay = ""] = codeOf("--replay").split("\n");
    checkVerdict(await runCommand(["bash", "-c", replay]), { want: "skipped" });
  });

  test("its table of results has every status with its exit code", () => {
    const rows = [...README.matchAll(/^\| `([a-z-]+)` \| (\d) \|/gm)].map(([, status, code]) => [status, Number(code)]);
    deepEqual(rows, Object.entries(CODES));
  });

  test("every variable that it names is one of --help", () => {
    const named = new Set(README.match(/\b(SYNC|GITHUB)_[A-Z_]+\b/g));
    deepEqual(
      [...named].filter((name) => !HELP.includes(name)),
      [],
    );
  });

  for (const path of ["README.md", "CONTRIBUTING.md", "SECURITY.md", "fixtures/README.md"]) {
    test(`${path}: every link leads to a file or a heading`, () => {
      const text = readFileSync(path, "utf8");
      for (const [, target = ""] of text.matchAll(/\]\(([^)]+)\)/g)) {
        const [file = "", heading = ""] = target.split("#");
        const linked = join(path, "..", file === "" ? (path.split("/").at(-1) ?? "") : file);
        ok(existsSync(linked), target);
        const headings = readFileSync(linked, "utf8")
          .toLowerCase()
          .matchAll(/^#+ (.*)$/gm);
        const anchors = [...headings].map(([, words = ""]) => words.replace(/[^\w -]/g, "").replaceAll(" ", "-"));
        ok(heading === "" || anchors.includes(heading), target);
      }
    });
  }
});

describe("the steps of adopting the gate", () => {
  const otherNames = `
    export SYNC_CANONICAL_REPO=acme/registry
    export SYNC_CANONICAL_PATH=config/models.yaml
    export SYNC_CANONICAL_REF=release/1.0
    export SYNC_COPY_PATH=vendor/models/models.yaml`;
  const pin = "export SYNC_PIN_PATH=vendor/pins/models.sha256";
  const source = "cp ../sync-providers/{sync-providers.ts,";
  const bundle = "cp ../sync-providers/dist/sync-providers.mjs";

  /** Runs the steps in a new repository beside a clone of this project, whose packages are installed. */
  async function adopt(root: string, steps: { variant: string; names: string; isCore?: boolean }): Promise<Run> {
    using gitea = await startGitea();
    const script = `
      set -eu
      npm() {
        if [ "$1" = pkg ]; then command npm "$@"; return; fi
        mkdir node_modules && ln -s "$PROJECT"/node_modules/{*,.bin} node_modules
      }
      cd "$ROOT" && ln -s "$PROJECT" sync-providers && mkdir repository && cd repository
      git init -q . && git config user.name gate && git config user.email gate@example.com
      git switch -q -c sync-providers
      ${codeOf(steps.variant)}
      ${codeOf("export SYNC_CANONICAL_SERVER=")}
      ${steps.names}
      export SYNC_CANONICAL_SERVER=${gitea.url}
      ${steps.isCore === true ? "" : codeOf("rename.sh")}
      ${codeOf("$gate --write").replace("unset", "true")}
      test -z "$(git status --porcelain)"
      GITHUB_EVENT_NAME=push $gate`;
    const withoutInstall = script.replace("(cd ../sync-providers && npm ci && npm run bundle)", "");
    const project = { PROJECT: resolve("."), ROOT: root, AUTO_SYNC_TOKEN: TOKEN };
    return await runCommand(["bash", "-c", withoutInstall], project);
  }

  const readAdopted = (root: string) =>
    readFileSync(join(root, "repository/.gitea/workflows/sync-providers-yaml.yml"), "utf8");

  const rows = [
    { name: "the source, with a pin file", variant: source, names: `${otherNames}\n${pin}`, pin: true },
    { name: "the bundle, with a pin file", variant: bundle, names: `${otherNames}\n${pin}`, pin: true },
    { name: "the source, no pin file", variant: source, names: `${otherNames}\nexport SYNC_PIN_PATH=`, pin: false },
  ];
  for (const { name, pin: hasPin, ...steps } of rows) {
    testRow(`${name}, at other names, up to a run that passes and a clean work tree`, name, async () => {
      using folder = createFolder();
      const run = await adopt(folder.path, steps);
      checkVerdict(run, { want: "in-sync" });
      equal(run.verdict.endsWith("and the pin file agrees."), hasPin);
      const { root, jobs, text } = parseWorkflow(readAdopted(folder.path));
      const { SYNC_CANONICAL_SERVER: _, ...env } = toMapping(jobs[0]?.env);
      deepEqual(env, {
        SYNC_CANONICAL_REPO: "acme/registry",
        SYNC_CANONICAL_PATH: "config/models.yaml",
        SYNC_CANONICAL_REF: "release/1.0",
        SYNC_COPY_PATH: "vendor/models/models.yaml",
        ...(hasPin && { SYNC_PIN_PATH: "vendor/pins/models.sha256" }),
      });
      equal(jobs[0]?.name, "Compare models.yaml against its canonical file");
      ok(!/bp-required|controlplane|workspace-server/.test(text), text);
      const { paths } = toMapping(toMapping(root.on).push);
      const pinPaths = hasPin ? ["vendor/pins/models.sha256"] : [];
      deepEqual(Array.isArray(paths) && paths.slice(0, -1).slice(0, pinPaths.length + 2), [
        "vendor/models/models.yaml",
        ...pinPaths,
        ".gitea/workflows/sync-providers-yaml.yml",
      ]);
    });
  }

  test("with the names of molecule-core the workflow is not changed", async () => {
    using folder = createFolder();
    await adopt(folder.path, { variant: bundle, names: "", isCore: true });
    equal(readAdopted(folder.path), readFileSync(BUNDLE_VARIANT, "utf8"));
  });

  for (const path of [
    "my configs/a.yaml",
    "a&b.yaml",
    "a#b.yaml",
    "@a.yaml",
    "it's.yaml",
    "[a]/b.yaml",
    "./a.yaml",
    "a|b",
  ]) {
    test(`the script refuses the name ${path}, and changes nothing`, async () => {
      using folder = createFolder({ "workflow.yml": readFileSync(GATE) });
      const names = { SYNC_CANONICAL_SERVER: "https://a:1", SYNC_CANONICAL_REPO: "a/b", SYNC_CANONICAL_REF: "main" };
      const env = { ...names, SYNC_CANONICAL_PATH: "a", SYNC_COPY_PATH: path };
      const run = await runCommand([".gitea/examples/rename.sh", join(folder.path, "workflow.yml")], env);
      equal(run.exitCode, 1);
      equal(run.stderr, `"${path}" has other characters than letters, digits and ._-/: or begins with ./\n`);
      equal(readFileSync(join(folder.path, "workflow.yml"), "utf8"), readFileSync(GATE, "utf8"));
    });
  }
});

describe("the fixtures", () => {
  const own = OWN_TEXT + readFileSync("fixtures/gitea-server.ts", "utf8");
  test("every response is played by a row", () => {
    const names = readdirSync("fixtures/responses").map((file) => file.replace(".http", ""));
    deepEqual(
      names.filter((name) => !own.includes(`"${name}"`)),
      [],
    );
  });

  test("npm start shows a run that passes", async () => {
    const { exitCode, log } = await runCommand(["npm", "start", "--silent"]);
    equal(exitCode, 0, log);
    match(log, /\nin-sync: .*\n\(exit code 0\)$/);
  });

  test("npm start -- drift shows a run that fails, the re-sync and a run that passes, on less than a page", async () => {
    const { exitCode, log } = await runCommand(["npm", "start", "--silent", "--", "drift"]);
    equal(exitCode, 0, log);
    match(log, /\n::error::drift: [\s\S]*\nwritten: Wrote [\s\S]*\nin-sync: .*\n\(exit code 0\)$/);
    ok(log.split("\n").length < 60);
  });
});

describe("the packages", () => {
  const lock = toMapping(JSON.parse(readFileSync("package-lock.json", "utf8")));
  const packages = Object.entries(toMapping(lock.packages)).filter(([path]) => path !== "");

  test("the lock file has a version and an integrity sum for each package, and no address", () => {
    for (const [path, value] of packages) {
      const { version, integrity, resolved } = toMapping(value);
      deepEqual([typeof version, typeof integrity, typeof resolved], ["string", "string", "undefined"], path);
    }
  });

  test("a runner installs four packages beside esbuild's binaries", () => {
    const installed = packages.filter(([, value]) => {
      const { dev, os, optional } = toMapping(value);
      return [dev, os, optional].every((mark) => mark === undefined);
    });
    deepEqual(installed.map(([path]) => path.replace("node_modules/", "")).sort(), [
      "diff",
      "esbuild",
      "tsx",
      "undici",
    ]);
  });

  test("CI runs the README's test command", () => {
    match(readFileSync(".ci/run", "utf8"), /^npm cit$/m);
    match(README, /^npm cit$/m);
    match(readFileSync(CI, "utf8"), /run: bash \.ci\/run$/m);
  });
});

node.describe("sync-providers", { concurrency: 4 }, () => {
  for (const suite of suites) {
    suite();
  }
});

ok(testCount > 0, `no test has "${WANTED_NAME}" in its name`);
