/**
 * All tests of the gate: the case table and its permutations first, because they are the specification, then the other
 * tables in the order of the sections of sync-providers.ts, then the workflows and the documents.
 *
 *   npm test                                  everything, with coverage
 *   npm run test:row -- "expired token"       the rows whose names match
 */

import { deepEqual, equal, match, notEqual, ok } from "node:assert/strict";
import { spawn } from "node:child_process";
import { createHash } from "node:crypto";
import { chmodSync, copyFileSync, existsSync, readdirSync, readFileSync, statSync, symlinkSync } from "node:fs";
import { connect, createServer } from "node:net";
import { join, resolve } from "node:path";
import { before, describe, test } from "node:test";
import { setImmediate } from "node:timers/promises";
import fc from "fast-check";
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
  respondJson,
  type ServerScript,
  send,
  stall,
  startGitea,
  TOKEN,
} from "./fixtures/gitea-server.ts";
import { classify, type Env, main, type Reason, type Status } from "./sync-providers.ts";

// ------------------------------------------------------------------------------------------------
// Rows
// ------------------------------------------------------------------------------------------------

/** The canonical file of the captured responses, and the same after somebody edited line 8. */
const CANONICAL_PATH = "fixtures/providers.yaml";
const DRIFTED_PATH = "fixtures/providers-drifted.yaml";
const CANONICAL = readFileSync(CANONICAL_PATH);
const DRIFTED = readFileSync(DRIFTED_PATH);
const CANONICAL_SHA256 = "b54630fe7d7fee356fea8bc3d224b9dd31fdbe2bd7f004e299ff4f75254a9795";
const DRIFTED_SHA256 = "9ccc1c93c3426520f36cce9e61bde0dadeb00c180605e2340e46bd4d30226edd";
const OTHER_SHA256 = "0".repeat(64);
const LFS_POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n";

/** A run of the gate, and what comes of it. */
interface Row {
  /** A sentence that somebody would search for. */
  readonly name: string;
  readonly args?: readonly string[];
  /** Added to the environment of a push with a token, whose copy is in sync. */
  readonly env?: Env;
  /** What the server does. Default: it is the captured repository. */
  readonly server?: ServerScript;
  /** Files of a temporary folder, which args and env call DIR. */
  readonly files?: Readonly<Record<string, string | Buffer>>;
  /** The status, or the reason of `unverified`. */
  readonly want: Exclude<Status, "unverified"> | Reason;
  /** How many requests the server gets. */
  readonly requests?: number;
  /** What the log says, the verdict included. */
  readonly log?: RegExp | string;
  readonly notInLog?: RegExp;
  /** The files that the run changed or created, with their content. */
  readonly written?: Readonly<Record<string, string | Buffer>>;
}

/** The exit code of every status except `unverified`, and its annotation. */
const STATUSES: Readonly<Record<string, { exitCode: number; prefix: string }>> = {
  "in-sync": { exitCode: 0, prefix: "" },
  written: { exitCode: 0, prefix: "" },
  skipped: { exitCode: 0, prefix: "::warning::" },
  drift: { exitCode: 1, prefix: "::error::" },
  "token-missing": { exitCode: 1, prefix: "::error::" },
  "pin-mismatch": { exitCode: 1, prefix: "::error::" },
  usage: { exitCode: 2, prefix: "::error::" },
};

/** The environment of a push. With this deadline the pauses between four attempts take 1.4 s. */
function pushEnv(serverUrl: string): Env {
  return {
    GITHUB_EVENT_NAME: "push",
    AUTO_SYNC_TOKEN: TOKEN,
    SYNC_CANONICAL_SERVER: serverUrl,
    SYNC_COPY_PATH: CANONICAL_PATH,
    SYNC_TIMEOUT_SECONDS: "6",
  };
}

async function checkRow({ args = [], env = {}, server, files = {}, ...want }: Omit<Row, "name">) {
  using gitea = await startGitea(server);
  using folder = createFolder(files);
  const inFolder = (text: string) => text.replaceAll("DIR", folder.path);
  const given: Record<string, string | undefined> = pushEnv(gitea.url);
  for (const [name, value] of Object.entries(env)) {
    given[name] = value && inFolder(value);
  }
  const run = await runGate(args.map(inFolder), given);
  checkVerdict(run, want);
  if (want.requests !== undefined) {
    equal(gitea.requests.length, want.requests, run.log);
  }
  const expected = { ...files, ...want.written };
  for (const [name, content] of Object.entries(expected)) {
    equal(readFileSync(join(folder.path, name), "latin1"), Buffer.from(content).toString("latin1"), name);
  }
  const found = readdirSync(folder.path, { recursive: true, encoding: "utf8" });
  const isFile = (name: string) => statSync(join(folder.path, name)).isFile();
  deepEqual(found.filter(isFile).sort(), Object.keys(expected).sort());
}

function checkVerdict({ exitCode, log, verdict }: Run, { want, ...says }: Pick<Row, "want" | "log" | "notInLog">) {
  const status = STATUSES[want];
  const start = status === undefined ? `::error::unverified (${want}): ` : `${status.prefix}${want}: `;
  equal(verdict.slice(0, start.length), start, log);
  equal(exitCode, status?.exitCode ?? 3);
  const { log: wanted = "", notInLog } = says;
  ok(typeof wanted === "string" ? log.includes(wanted) : wanted.test(log), `${wanted} is not in\n${log}`);
  ok(notInLog === undefined || !notInLog.test(log), log);
}

const BUNDLE = "dist/sync-providers.mjs";

before(async () => {
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
  describe(prefix, { concurrency: 16 }, () => {
    for (const row of rows) {
      test(`${prefix}: ${row.name}`, () => checkRow(row));
    }
  });
}

// ------------------------------------------------------------------------------------------------
// The case table
// ------------------------------------------------------------------------------------------------

/** The case of every file in fixtures/events, as the server decided about the secret. */
const CAPTURED_EVENTS: Readonly<Record<string, 1 | 2 | 3 | 4>> = {
  "push-main": 1,
  "push-staging": 1,
  "push-tag": 1,
  schedule: 1,
  "workflow-dispatch": 1,
  "pr-same-closed": 2,
  "pr-same-forked-base": 2,
  "pr-same-opened": 2,
  "pr-same-reopened": 2,
  "pr-same-synchronize": 2,
  "pr-agit-opened": 3,
  "pr-deleted-fork-labeled": 3,
  "pr-fork-synchronize": 3,
  "pr-from-parent": 3,
  "branch-created": 4,
  "branch-deleted": 4,
  "fork-created": 4,
  "issue-opened": 4,
  "pr-fork-comment": 4,
  "pr-fork-target": 4,
  "pr-same-review": 4,
  "release-published": 4,
};

describe("the case table, on captured events", () => {
  for (const file of readdirSync("fixtures/events")) {
    const { event_name, event, secret_arrived } = JSON.parse(readFileSync(`fixtures/events/${file}`, "utf8"));
    const want = CAPTURED_EVENTS[file.replace(".json", "")];
    test(`captured event ${file} is case ${want}`, () => {
      const context = classify(event_name, event);
      deepEqual([context.case, context.trusted], [want, want !== 3]);
    });
    if (event_name === "pull_request") {
      test(`captured event ${file}: the server sent the secret if and only if the event is trusted`, () => {
        equal(classify(event_name, event).trusted, secret_arrived);
      });
    }
  }
});

describe("every captured event with every token and every state of the canonical file", {
  concurrency: 16,
}, () => {
  const missing = { same: "token-missing", different: "token-missing", unreachable: "token-missing" } as const;
  const skipped = { same: "skipped", different: "skipped", unreachable: "skipped" } as const;
  const compared = { same: "in-sync", different: "drift", unreachable: "unreachable" } as const;
  const tokens = [
    { name: "no token", token: undefined, trusted: missing, fork: skipped },
    { name: "an empty token", token: "", trusted: missing, fork: skipped },
    {
      name: "a wrong token",
      token: "wrong-token-0123456789",
      trusted: { same: "token-rejected", different: "token-rejected", unreachable: "unreachable" },
      fork: { same: "skipped", different: "skipped", unreachable: "unreachable" },
    },
    { name: "a right token", token: TOKEN, trusted: compared, fork: compared },
    {
      name: "a refused token",
      token: REFUSED_TOKEN,
      trusted: { same: "repo-not-visible", different: "repo-not-visible", unreachable: "unreachable" },
      fork: { same: "skipped", different: "skipped", unreachable: "unreachable" },
    },
  ] as const;
  const canonicalFiles = [
    { state: "same", env: { SYNC_COPY_PATH: CANONICAL_PATH } },
    { state: "different", env: { SYNC_COPY_PATH: DRIFTED_PATH } },
    // Nothing listens on port 1.
    { state: "unreachable", env: { SYNC_CANONICAL_SERVER: "http://127.0.0.1:1" } },
  ] as const;
  for (const [event, number] of Object.entries(CAPTURED_EVENTS)) {
    for (const { name, token, trusted, fork } of tokens) {
      for (const { state, env } of canonicalFiles) {
        const want = number === 3 ? fork[state] : trusted[state];
        test(`${event} (case ${number}), ${name}, canonical file ${state}: ${want}`, () => {
          const args = ["--replay", `fixtures/events/${event}.json`];
          return checkRow({ args, env: { ...env, AUTO_SYNC_TOKEN: token }, want });
        });
      }
    }
  }
});

describe("the rules for pull requests", () => {
  const repos = (head: unknown, base: unknown = { id: 1 }) => {
    return { pull_request: { head: { repo: head }, base: { repo: base } } };
  };
  const agit = { pull_request: { head: { label: "", repo: { id: 1 } }, base: { repo: { id: 1 } } } };
  const nothing = /^the payload does not say where the pull request comes from$/;
  const rows = [
    // In the order of the rules.
    { name: "an empty head.label is a fork, even with equal ids", payload: agit, want: 3, why: /AGit/ },
    {
      name: "a blank head.label is not empty",
      payload: { pull_request: { head: { label: " ", repo: { id: 1 } }, base: { repo: { id: 1 } } } },
      want: 2,
      why: /id is 1/,
    },
    {
      name: "an empty label of the base does not matter",
      payload: { pull_request: { head: { repo: { id: 1 } }, base: { label: "", repo: { id: 1 } } } },
      want: 2,
      why: /id is 1/,
    },
    { name: "a head.repo that is null is a deleted fork", payload: repos(null), want: 3, why: /deleted/ },
    {
      name: "equal ids are the same repository, whatever the flag",
      payload: repos({ id: 1, fork: true }),
      want: 2,
      why: /^the same repository: head\.repo\.id is 1, base\.repo\.id is 1$/,
    },
    {
      name: "different ids are a fork, whatever the flag",
      payload: repos({ id: 2, fork: false }),
      want: 3,
      why: /^a fork: head\.repo\.id is 2, base\.repo\.id is 1$/,
    },
    {
      name: "the largest safe integer is an id",
      payload: repos({ id: 9007199254740991 }, { id: 9007199254740991 }),
      want: 2,
      why: /id is 9007199254740991/,
    },
    {
      name: "larger ids are ignored, because two could be rounded to one",
      payload: repos({ id: 9007199254740992, fork: true }, { id: 9007199254740992 }),
      want: 3,
      why: /fork is true/,
    },
    { name: "a head id of 0 is ignored", payload: repos({ id: 0, fork: false }), want: 2, why: /fork is false/ },
    {
      name: "a base id of 0 is ignored",
      payload: repos({ id: 1, fork: true }, { id: 0 }),
      want: 3,
      why: /fork is true/,
    },
    {
      name: "negative ids are ignored",
      payload: repos({ id: -1, fork: true }, { id: -1 }),
      want: 3,
      why: /fork is true/,
    },
    {
      name: "ids given as text are ignored",
      payload: repos({ id: "1", fork: true }, { id: "1" }),
      want: 3,
      why: /fork is true/,
    },
    {
      name: "fractional ids are ignored",
      payload: repos({ id: 1.5, fork: true }, { id: 1.5 }),
      want: 3,
      why: /fork is true/,
    },
    { name: "the flag alone can say fork", payload: repos({ fork: true }, null), want: 3, why: /fork is true/ },
    { name: "the flag alone can deny it", payload: repos({ fork: false }, null), want: 2, why: /fork is false/ },
    { name: "the flag as text says nothing", payload: repos({ fork: "true" }), want: 4, why: nothing },
    { name: "the flag of the base says nothing", payload: repos({}, { fork: true }), want: 4, why: nothing },
    { name: "a head.repo that is missing is not null", payload: repos(undefined), want: 4, why: nothing },
    { name: "a head.repo that is a list says nothing", payload: repos([{ fork: true }]), want: 4, why: nothing },
    { name: "a payload that is a list says nothing", payload: [agit], want: 4, why: nothing },
    { name: "a payload that is null says nothing", payload: null, want: 4, why: nothing },
    { name: "inherited keys say nothing", payload: Object.create(agit), want: 4, why: nothing },
  ];
  for (const { name, payload, want, why } of rows) {
    test(`pull request: ${name} (case ${want})`, () => {
      const context = classify("pull_request", payload);
      equal(context.case, want, context.why);
      equal(context.trusted, want !== 3);
      match(context.why, why);
    });
  }

  const events = [
    { event: "push", want: 1 },
    { event: "schedule", want: 1 },
    { event: "workflow_dispatch", want: 1 },
    { event: "pull_request_target", want: 4 },
    { event: "Pull_Request", want: 4 },
    { event: "constructor", want: 4 },
    { event: "", want: 4 },
  ];
  for (const { event, want } of events) {
    test(`the event ${JSON.stringify(event)} is case ${want}, whatever its payload`, () => {
      const context = classify(event, agit);
      deepEqual([context.case, context.trusted], [want, true]);
    });
  }
});

// ------------------------------------------------------------------------------------------------
// Sections 1 and 2: main and verdicts
// ------------------------------------------------------------------------------------------------

testRows("the first failure is the verdict", [
  {
    name: "a wrong setting comes before an unreadable copy",
    env: { SYNC_CANONICAL_REPO: "no-owner", SYNC_COPY_PATH: "none" },
    want: "usage",
  },
  {
    name: "an unreadable copy comes before a missing token, and nothing is sent",
    env: { SYNC_COPY_PATH: "none", AUTO_SYNC_TOKEN: "" },
    want: "copy-unreadable",
    requests: 0,
  },
  {
    name: "an unreadable pin comes before the requests",
    env: { SYNC_PIN_PATH: "none" },
    want: "pin-unreadable",
    requests: 0,
  },
  {
    name: "a missing token comes before a stale pin, which the log mentions",
    env: { SYNC_PIN_PATH: "DIR/pin", AUTO_SYNC_TOKEN: "" },
    files: { pin: OTHER_SHA256 },
    want: "token-missing",
    log: /^pin {8}".*": sha256 000000000000, does not match the copy$/m,
  },
  {
    name: "a server that is down comes before a stale pin, which the log mentions",
    env: { SYNC_PIN_PATH: "DIR/pin", SYNC_CANONICAL_SERVER: "http://127.0.0.1:1" },
    files: { pin: OTHER_SHA256 },
    want: "unreachable",
    log: /^pin {8}".*": sha256 000000000000, does not match the copy$/m,
  },
]);

testRows("a fork", [
  {
    name: "a fork with a refused token is skipped, and the log says what the server answered",
    args: ["--replay", "fixtures/events/pr-fork-synchronize.json"],
    env: { AUTO_SYNC_TOKEN: REFUSED_TOKEN },
    want: "skipped",
    log: /^refused {4}Cannot read the repository ".*": the answer is 404, "/m,
  },
  {
    name: "a fork with a token without the scope is skipped",
    args: ["--replay", "fixtures/events/pr-fork-synchronize.json"],
    server: { file: play("token-without-scope") },
    want: "skipped",
    requests: 3,
  },
  {
    name: "a fork whose request something in front of the server refuses is not skipped",
    args: ["--replay", "fixtures/events/pr-fork-synchronize.json"],
    server: { every: play("made-cloudflare-1010") },
    want: "bad-response",
  },
  {
    name: "a fork for which the file is missing is not skipped",
    args: ["--replay", "fixtures/events/pr-fork-synchronize.json"],
    server: { file: play("missing-file") },
    want: "file-not-found",
  },
  {
    name: "a fork without a token whose pin is stale is a pin-mismatch",
    args: ["--replay", "fixtures/events/pr-fork-synchronize.json"],
    env: { AUTO_SYNC_TOKEN: "", SYNC_PIN_PATH: "DIR/pin" },
    files: { pin: OTHER_SHA256 },
    want: "pin-mismatch",
    log: /The copy was edited by hand, or re-synced without the pin\. Re-sync\.$/,
  },
  {
    name: "a fork without a token whose pin agrees is skipped",
    args: ["--replay", "fixtures/events/pr-fork-synchronize.json"],
    env: { AUTO_SYNC_TOKEN: "", SYNC_PIN_PATH: "DIR/pin" },
    files: { pin: CANONICAL_SHA256 },
    want: "skipped",
    log: /^token {6}AUTO_SYNC_TOKEN is not set$/m,
  },
]);

testRows("a missing token", [
  {
    name: "the verdict names the event, and the repository that is set",
    env: { AUTO_SYNC_TOKEN: " ", GITHUB_EVENT_NAME: "schedule", SYNC_CANONICAL_REPO: "acme/registry" },
    want: "token-missing",
    log: /is not set \(event "schedule"\), so nothing was compared\. Provision AUTO_SYNC_TOKEN \(read scope on registry\)\.$/,
  },
  {
    name: "an unknown event says why the run counts as trusted",
    env: { AUTO_SYNC_TOKEN: "", GITHUB_EVENT_NAME: "release" },
    want: "token-missing",
    log: /counts as trusted, because the case table does not name this event\. Provision/,
  },
  {
    name: "without an event name nothing passes",
    env: { AUTO_SYNC_TOKEN: "", GITHUB_EVENT_NAME: "" },
    want: "token-missing",
    log: /\(no GITHUB_EVENT_NAME\).* counts as trusted/,
  },
]);

describe("unexpected errors", () => {
  test("an exception that nothing expects is unverified without a reason, with its stack", async () => {
    const lines: string[] = [];
    const exitCode = await main([], { AUTO_SYNC_TOKEN: TOKEN }, (line) => {
      lines.push(line);
      if (lines.length === 1) {
        throw new RangeError(`no room for ${TOKEN}.`);
      }
    });
    equal(exitCode, 3);
    match(lines[1] ?? "", /^stack {6}RangeError: no room for \*\*\*\.$/);
    match(lines[2] ?? "", /^stack {10}at /);
    match(lines.at(-1) ?? "", /^::error::unverified: Unexpected error: no room for \*\*\*\. Please report it/);
  });

  test("an error of several addresses names each of them", async () => {
    const lines: string[] = [];
    await main([], {}, (line) => {
      lines.push(line);
      if (lines.length === 1) {
        throw new AggregateError([new Error("no a."), new Error("no b.")]);
      }
    });
    match(lines.at(-1) ?? "", /^::error::unverified: Unexpected error: no a; no b\. Please/);
  });

  test("a thrown value that is no error has no stack", async () => {
    const lines: string[] = [];
    await main([], {}, (line) => {
      lines.push(line);
      if (lines.length === 1) {
        throw "text";
      }
    });
    deepEqual(lines.slice(1), [
      "stack      text",
      "::error::unverified: Unexpected error: text. Please report it, with the stack above.",
    ]);
  });
});

describe("packages that are not installed", { concurrency: 4 }, () => {
  /** Starts the compiled gate, in which these packages cannot be found. */
  async function runWithout(packages: string, args: readonly string[], env: Env): Promise<Run> {
    const hooks = `export async function resolve(name, context, next) {
      return next(${packages}.includes(name) ? "not-installed-" + name : name, context);
    }`;
    const register = `import { register } from "node:module";
      register(${JSON.stringify(`data:text/javascript,${encodeURIComponent(hooks)}`)});`;
    const url = `data:text/javascript,${encodeURIComponent(register)}`;
    return runCommand(measuredCommand(["--import", url], ...args), { ...env, ...COVERAGE });
  }

  test("without undici the verdict is one line", async () => {
    const run = await runWithout('["undici"]', [], pushEnv("http://127.0.0.1:1"));
    equal(run.exitCode, 3);
    match(run.verdict, /^::error::unverified: A package is not installed: .*undici.* Run npm ci --omit=dev\.$/);
    ok(!run.log.includes("\nstack"), run.log);
  });

  test("without any package a missing token is found, because a package is loaded only when it is needed", async () => {
    const env = { ...pushEnv("http://127.0.0.1:1"), AUTO_SYNC_TOKEN: "" };
    checkVerdict(await runWithout('["undici", "yaml", "diff"]', [], env), { want: "token-missing" });
  });

  test("without yaml and diff a copy in sync passes", async () => {
    using gitea = await startGitea();
    checkVerdict(await runWithout('["yaml", "diff"]', [], pushEnv(gitea.url)), { want: "in-sync" });
  });

  test("without yaml and diff a drift stays a drift", async () => {
    const args = ["--canonical", CANONICAL_PATH, "--copy", DRIFTED_PATH];
    const run = await runWithout('["yaml", "diff"]', args, {});
    checkVerdict(run, {
      want: "drift",
      log: /^summary {4}none: Cannot find package .*\ndiff {7}none: Cannot find/m,
    });
  });
});

// ------------------------------------------------------------------------------------------------
// Section 3: settings
// ------------------------------------------------------------------------------------------------

testRows("accepted settings", [
  {
    name: "empty and blank settings count as unset",
    env: { SYNC_CANONICAL_REF: "", SYNC_PIN_PATH: " " },
    want: "in-sync",
  },
  { name: "a token with white space around it", env: { AUTO_SYNC_TOKEN: ` ${TOKEN}\n` }, want: "in-sync" },
  { name: "a time with a fraction", env: { SYNC_TIMEOUT_SECONDS: "30.5" }, want: "in-sync" },
  { name: "an hour, the longest time", env: { SYNC_TIMEOUT_SECONDS: "3600" }, want: "in-sync" },
  { name: "dots and dashes in owner/name", env: { SYNC_CANONICAL_REPO: "a.b-c/_d" }, want: "in-sync" },
  {
    name: "--copy wins over SYNC_COPY_PATH",
    args: ["--copy", CANONICAL_PATH],
    env: { SYNC_COPY_PATH: DRIFTED_PATH },
    want: "in-sync",
  },
  {
    name: "SYNC_CANONICAL_SERVER wins over GITHUB_SERVER_URL, as under act",
    env: { GITHUB_SERVER_URL: "https://github.com" },
    want: "in-sync",
  },
]);

testRows(
  "refused settings",
  [
    {
      setting: "AUTO_SYNC_TOKEN",
      texts: ["seven77", "to ken-123", "tok\ten-123", '"quoted-token"', "'quoted-token'", "tökén-1234"],
    },
    {
      setting: "SYNC_CANONICAL_REPO",
      texts: ["name", "a/b/c", "a/", "../b", "a/..", "../..", "./b", "a/b?c", "a b/c"],
    },
    { setting: "SYNC_CANONICAL_PATH", texts: ["/etc/passwd", "a/../b", "./a", "a//b", "a/"] },
    { setting: "SYNC_CANONICAL_REF", texts: ["..", ".", "a/../b", "/a"] },
    { setting: "SYNC_TIMEOUT_SECONDS", texts: ["0", "-1", "1m", "3601", "Infinity"] },
  ].flatMap(({ setting, texts }) => {
    return texts.map((text): Row => {
      const log = new RegExp(`usage: Cannot use ${setting}[ .:]`);
      return {
        name: `${setting}=${JSON.stringify(text)}`,
        env: { [setting]: text },
        want: "usage",
        requests: 0,
        log,
      };
    });
  }),
);

testRows("flags", [
  {
    name: "an unknown flag is refused",
    args: ["--token=x"],
    want: "usage",
    log: /: Unknown option '--token'\. See --help\.$/,
  },
  { name: "--json of version 2 is refused", args: ["--json"], want: "usage", log: /Unknown option '--json'/ },
  { name: "an argument is refused", args: ["fixtures"], want: "usage", log: /Unexpected argument 'fixtures'/ },
  { name: "a flag without its value is refused", args: ["--copy"], want: "usage", log: /--copy <value>/ },
]);

describe("--help", () => {
  const names = `--write --replay --canonical --copy --help GITHUB_EVENT_NAME GITHUB_EVENT_PATH AUTO_SYNC_TOKEN
    SYNC_CANONICAL_SERVER SYNC_CANONICAL_REPO SYNC_CANONICAL_PATH SYNC_CANONICAL_REF SYNC_COPY_PATH SYNC_PIN_PATH
    SYNC_ALLOW_HTTP SYNC_TIMEOUT_SECONDS HTTPS_PROXY HTTP_PROXY ALL_PROXY NO_PROXY NODE_EXTRA_CA_CERTS`;
  for (const name of names.split(/\s+/)) {
    test(`--help names ${name}`, async () => {
      match((await runGate(["--help"], {})).log, new RegExp(`[ \n]${name}\\b`));
    });
  }

  test("--help works beside a wrong setting and a wrong flag", async () => {
    const { exitCode, log } = await runGate(["--no-such-flag", "--help"], { SYNC_TIMEOUT_SECONDS: "never" });
    equal(exitCode, 0);
    match(log, /^Usage: npx tsx sync-providers\.ts \[flags\]\n/);
    match(log, /^ {2}SYNC_CANONICAL_REPO +default: molecule-ai\/molecule-controlplane$/m);
  });
});

// ------------------------------------------------------------------------------------------------
// Section 4: context
// ------------------------------------------------------------------------------------------------

{
  const fork = '{"pull_request":{"head":{"label":""}}}';
  const pullRequest = { AUTO_SYNC_TOKEN: "", GITHUB_EVENT_NAME: "pull_request", GITHUB_EVENT_PATH: "DIR/event.json" };
  testRows("the event file", [
    { name: "the payload of a fork", env: pullRequest, files: { "event.json": fork }, want: "skipped" },
    {
      name: "a byte-order mark before the JSON",
      env: pullRequest,
      files: { "event.json": `\ufeff${fork}` },
      want: "skipped",
    },
    {
      name: "an event file that is missing: the verdict says why the pull request counts as trusted",
      env: pullRequest,
      want: "token-missing",
      log: /counts as trusted, because the payload cannot be read: ENOENT.* Provision AUTO_SYNC_TOKEN/,
    },
    {
      name: "no GITHUB_EVENT_PATH",
      env: { ...pullRequest, GITHUB_EVENT_PATH: "" },
      want: "token-missing",
      log: /because the payload cannot be read: ENOENT/,
    },
    {
      name: "half a JSON text, of which nothing is quoted",
      env: pullRequest,
      files: { "event.json": '{"private' },
      want: "token-missing",
      log: /because the payload cannot be read: "[^"]*event\.json" is not JSON/,
      notInLog: /private/,
    },
    {
      name: "a payload that is not an object",
      env: pullRequest,
      files: { "event.json": `[${fork}]` },
      want: "token-missing",
      log: /because the payload does not say where the pull request comes from/,
    },
    {
      name: "the event file of a push is not read",
      env: { ...pullRequest, GITHUB_EVENT_NAME: "push", GITHUB_EVENT_PATH: "none" },
      want: "token-missing",
      log: /^context {4}event "push": case 1, trusted: it runs in the repository itself$/m,
    },
  ]);

  const replay = { args: ["--replay", "DIR/event.json"], env: { AUTO_SYNC_TOKEN: "", GITHUB_EVENT_NAME: "" } };
  testRows("a replay", [
    {
      name: "the name of a captured event wins over GITHUB_EVENT_NAME",
      ...replay,
      env: { AUTO_SYNC_TOKEN: "", GITHUB_EVENT_NAME: "push" },
      files: { "event.json": `{"event_name":"pull_request","event":${fork}}` },
      want: "skipped",
    },
    {
      name: "a payload alone, with GITHUB_EVENT_NAME",
      ...replay,
      env: { AUTO_SYNC_TOKEN: "", GITHUB_EVENT_NAME: "pull_request" },
      files: { "event.json": fork },
      want: "skipped",
    },
    {
      name: "a payload alone, without GITHUB_EVENT_NAME",
      ...replay,
      files: { "event.json": fork },
      want: "usage",
      log: /it does not name its event\. Set GITHUB_EVENT_NAME\.$/,
    },
    {
      name: "--canonical does not replace the token of a replay",
      args: [...replay.args, "--canonical", CANONICAL_PATH],
      env: { ...replay.env, SYNC_COPY_PATH: DRIFTED_PATH },
      files: { "event.json": '{"event_name":"push","event":{}}' },
      want: "token-missing",
    },
    {
      name: "with a token and --canonical a replay compares, and sends nothing",
      args: [...replay.args, "--canonical", CANONICAL_PATH],
      env: { SYNC_COPY_PATH: DRIFTED_PATH },
      files: { "event.json": '{"event_name":"push","event":{}}' },
      want: "drift",
      requests: 0,
    },
    {
      name: "a replay writes nothing",
      args: [...replay.args, "--write"],
      files: { "event.json": fork },
      want: "usage",
      log: "A replay writes nothing.",
    },
    {
      name: "an empty name of a file",
      ...replay,
      args: ["--replay", ""],
      want: "usage",
      log: 'Cannot replay "": ENOENT',
    },
    { name: "no file to replay", ...replay, want: "usage", log: /Cannot replay ".*": ENOENT/ },
    {
      name: "a file to replay that is not JSON, and is not quoted",
      ...replay,
      files: { "event.json": "private" },
      want: "usage",
      log: /is not JSON\. Check the file\.$/,
      notInLog: /private/,
    },
  ]);
}

// ------------------------------------------------------------------------------------------------
// Section 5: the copy and the pin
// ------------------------------------------------------------------------------------------------

const LOCAL = ["--canonical", CANONICAL_PATH];

testRows("the copy", [
  {
    name: "a missing copy: the remedy for a first copy is --write",
    env: { SYNC_COPY_PATH: "none" },
    want: "copy-unreadable",
    log: /Cannot read the copy "none": ENOENT.*For a first copy, run with --write\.$/,
  },
  { name: "a directory", env: { SYNC_COPY_PATH: "fixtures" }, want: "copy-unreadable", log: /not a regular file/ },
  { name: "a device", env: { SYNC_COPY_PATH: "/dev/null" }, want: "copy-unreadable", log: /not a regular file/ },
  {
    name: "a Git LFS pointer",
    env: { SYNC_COPY_PATH: "DIR/copy" },
    files: { copy: LFS_POINTER },
    want: "copy-unreadable",
    log: /is a Git LFS pointer\. Check out with lfs: true/,
  },
  {
    name: "10 MiB and a byte",
    env: { SYNC_COPY_PATH: "DIR/copy" },
    files: { copy: Buffer.alloc(10_485_761) },
    want: "copy-unreadable",
    log: /it has 10485761 bytes, more than 10485760/,
  },
  {
    name: "just 10 MiB are read",
    args: LOCAL,
    env: { SYNC_COPY_PATH: "DIR/copy" },
    files: { copy: Buffer.alloc(10_485_760, 0xff) },
    want: "drift",
  },
]);

{
  const pin = { args: LOCAL, env: { SYNC_COPY_PATH: "fixtures/providers-copy.yaml", SYNC_PIN_PATH: "DIR/pin" } };
  const goConstant = `package providers\n\nconst canonicalSHA256 = "${CANONICAL_SHA256}"\n`;
  const beside = `${"a".repeat(65)} ${"b".repeat(63)} ${CANONICAL_SHA256}`;
  const notUtf8 = Buffer.from(`\xff\xfe ${CANONICAL_SHA256}`, "latin1");
  testRows("the pin", [
    { name: "the sum alone", ...pin, files: { pin: CANONICAL_SHA256 }, want: "in-sync", log: /The pin agrees\.$/ },
    { name: "the output of sha256sum", ...pin, files: { pin: `${CANONICAL_SHA256}  a.yaml\n` }, want: "in-sync" },
    { name: "a Go constant", ...pin, files: { pin: goConstant }, want: "in-sync" },
    { name: "in capitals", ...pin, files: { pin: CANONICAL_SHA256.toUpperCase() }, want: "in-sync" },
    { name: "among bytes that are not UTF-8", ...pin, files: { pin: notUtf8 }, want: "in-sync" },
    { name: "beside longer and shorter words of hex", ...pin, files: { pin: beside }, want: "in-sync" },
    {
      name: "a stale pin, although the copy matches the canonical file",
      ...pin,
      files: { pin: OTHER_SHA256 },
      want: "pin-mismatch",
      log: /The copy matches the canonical file; only the pin is stale\. Re-sync\.$/,
    },
    { name: "no sum", ...pin, files: { pin: "none" }, want: "pin-unreadable", log: /exactly one/ },
    { name: "two sums", ...pin, files: { pin: `${OTHER_SHA256} ${OTHER_SHA256}` }, want: "pin-unreadable" },
    { name: "a sum after a letter", ...pin, files: { pin: `x${OTHER_SHA256}` }, want: "pin-unreadable" },
    { name: "a sum before an underscore", ...pin, files: { pin: `${OTHER_SHA256}_` }, want: "pin-unreadable" },
    { name: "a missing file", ...pin, want: "pin-unreadable", log: /Cannot read the pin ".*": ENOENT/ },
    {
      name: "no SYNC_PIN_PATH",
      env: { SYNC_PIN_PATH: "" },
      want: "in-sync",
      log: /^pin {8}none: SYNC_PIN_PATH is not set$/m,
    },
  ]);
}

describe("symbolic links are refused", () => {
  const rows = [
    { name: "the copy", args: ["--copy", "DIR/link"], want: "copy-unreadable" },
    { name: "the copy, in a re-sync", args: ["--write", "--copy", "DIR/link"], want: "copy-unreadable" },
    {
      name: "the copy, in a re-sync, if the link leads nowhere",
      args: ["--write", "--copy", "DIR/dangling"],
      want: "copy-unreadable",
    },
    { name: "the pin", args: [], want: "pin-unreadable" },
  ] as const;
  for (const { name, args, want } of rows) {
    test(`a symbolic link is refused: ${name}`, async () => {
      using folder = createFolder({ file: CANONICAL_SHA256 });
      symlinkSync("file", join(folder.path, "link"));
      symlinkSync("none", join(folder.path, "dangling"));
      const inFolder = args.map((arg) => arg.replace("DIR", folder.path));
      const env = { SYNC_COPY_PATH: CANONICAL_PATH, SYNC_PIN_PATH: join(folder.path, "link") };
      const run = await runGate([...inFolder, ...LOCAL], env);
      checkVerdict(run, { want, log: /it is a symbolic link/ });
      deepEqual(readdirSync(folder.path).sort(), ["dangling", "file", "link"]);
    });
  }
});

// ------------------------------------------------------------------------------------------------
// Section 6: the canonical file
// ------------------------------------------------------------------------------------------------

testRows("a server that must not be sent the token", [
  {
    name: "a server with a password, even if no token is sent",
    env: { SYNC_CANONICAL_SERVER: "https://me:hunter2@a", AUTO_SYNC_TOKEN: "" },
    want: "usage",
    log: "The URL of the server contains a user name or a password. Remove them.",
    notInLog: /hunter2/,
  },
  { name: "no server", env: { SYNC_CANONICAL_SERVER: "" }, want: "usage", log: /Neither SYNC_CANONICAL_SERVER nor/ },
  ...["git.example.com", "https://a b", "ftp://a", "https://a/?", "https://a/#", "https:\\\\a"].map(
    (text): Row => ({
      name: `${text} is no plain URL`,
      env: { SYNC_CANONICAL_SERVER: text },
      want: "usage",
      log: /: The server is not a plain http: or https: URL\. Set SYNC_CANONICAL_SERVER/,
    }),
  ),
  ...["https://github.com", "https://api.github.com/x", "https://GitHub.com.", "https://github.com:443"].map(
    (text): Row => ({
      name: `${text} has another API`,
      env: { SYNC_CANONICAL_SERVER: "", GITHUB_SERVER_URL: text },
      want: "usage",
      log: /GitHub's API/,
    }),
  ),
  ...["http://gitea:3000", "http://127.0.0.1.example.com", "http://localhost.example.com", "http://[::2]"].map(
    (text): Row => ({
      name: `${text} would get the token unencrypted`,
      env: { SYNC_CANONICAL_SERVER: text, SYNC_ALLOW_HTTP: "yes" },
      want: "usage",
      log: /Plain http: .* SYNC_ALLOW_HTTP=1\.$/,
    }),
  ),
  {
    name: "NODE_TLS_REJECT_UNAUTHORIZED=0 is refused",
    env: { NODE_TLS_REJECT_UNAUTHORIZED: "0" },
    want: "usage",
    log: /Set NODE_EXTRA_CA_CERTS instead/,
  },
  {
    name: "a run without a token is not refused for plain http:",
    env: { SYNC_CANONICAL_SERVER: "http://gitea:3000", AUTO_SYNC_TOKEN: "" },
    want: "token-missing",
  },
  {
    name: "a run with --canonical is not refused for plain http:",
    args: ["--canonical", "fixtures/providers-copy.yaml"],
    env: { SYNC_CANONICAL_SERVER: "http://gitea:3000" },
    want: "in-sync",
    log: /^token {6}not sent: --canonical names a local file$/m,
  },
]);

describe("the three requests", () => {
  test("repository, commit and file are requested in this order, each with the token in one header", async () => {
    using gitea = await startGitea();
    const env = { SYNC_CANONICAL_REF: "release/1.0", SYNC_CANONICAL_PATH: "a b/ü?.yaml" };
    const { log } = await runGate([], { ...pushEnv(`${gitea.url}/`), ...env });
    const base = "GET /api/v1/repos/molecule-ai/molecule-controlplane";
    deepEqual(
      gitea.requests.map(({ method, target }) => `${method} ${target}`),
      [
        base,
        `${base}/git/commits/release%2F1.0?stat=false&verification=false&files=false`,
        `${base}/raw/a%20b/%C3%BC%3F.yaml?ref=9d3b4a72788a6379345cb98a6f593008fa6c74ae`,
      ],
    );
    for (const { headers } of gitea.requests) {
      equal(headers.get("authorization"), `token ${TOKEN}`);
      equal([...headers.values()].join().split(TOKEN).length, 2);
      equal(headers.get("accept-encoding"), "identity");
      equal(headers.get("user-agent"), "sync-providers");
    }
    match(log, new RegExp(`^token {6}AUTO_SYNC_TOKEN, sent to "${gitea.url}/" only$`, "m"));
    match(
      log,
      /^canonical {2}"a b\/ü\?\.yaml": 795 bytes, sha256 b54630fe7d7f, from ".*" at "release\/1\.0", commit 9d3b4a7/m,
    );
  });

  test("a server below a path is asked below that path", async () => {
    using gitea = await startGitea();
    await runGate([], pushEnv(`${gitea.url}/git`));
    equal(gitea.requests[0]?.target, "/git/api/v1/repos/molecule-ai/molecule-controlplane");
  });
});

testRows("the repository and the commit", [
  {
    name: "an archived repository proves nothing",
    server: { repository: playEdited("repo-visible", (raw) => raw.replace('"archived":false', '"archived":true ')) },
    want: "repo-archived",
    requests: 1,
  },
  {
    name: "a list in place of the repository",
    server: { repository: respondJson(200, []) },
    want: "bad-response",
    log: /the answer is 200, "\[\]", not a JSON object/,
  },
  {
    name: "a ref that does not exist, for which Gitea 1.25.4 sends the file of the default branch",
    server: { commit: play("commit-of-missing-ref"), file: play("gitea-1.25.4-missing-ref") },
    want: "ref-not-found",
    requests: 2,
  },
  { name: "a commit that does not exist", server: { commit: play("commit-of-missing-sha") }, want: "ref-not-found" },
  {
    name: "a ref that Git does not allow (422)",
    env: { SYNC_CANONICAL_REF: "v~1" },
    server: { commit: respondJson(422, { message: "not a valid ref" }) },
    want: "ref-not-found",
    log: /commit of "v~1": the answer is 422, "not a valid ref"/,
  },
  { name: "the commit of a commit id", server: { commit: play("commit-of-sha") }, want: "in-sync" },
  ...["", "9d3b4a7", "../../../../user", "g".repeat(40), "a".repeat(41)].map(
    (sha): Row => ({
      name: `${JSON.stringify(sha)} is no commit id`,
      server: { commit: respondJson(200, { sha }) },
      want: "bad-response",
      requests: 2,
      log: /the answer has no commit id/,
    }),
  ),
  {
    name: "an answer without a commit id",
    server: { commit: respondJson(200, {}) },
    want: "bad-response",
    log: /the answer has no commit id/,
  },
]);

{
  /** The canonical file with this ETag, and no other header. */
  const withETag = (etag: string): ServerScript => ({
    file: respond(200, { headers: { etag }, body: CANONICAL }),
  });
  testRows("the file", [
    {
      name: "a file that does not exist at that commit",
      server: { file: play("missing-file") },
      want: "file-not-found",
    },
    { name: "a directory in place of the file", server: { file: play("directory") }, want: "file-not-found" },
    { name: "a file in chunks", server: { file: play("made-chunks") }, want: "in-sync" },
    { name: "a file that ends with the connection", server: { file: play("made-until-close") }, want: "in-sync" },
    { name: "an empty file differs from the copy", server: { file: play("empty-file") }, want: "drift" },
    { name: "a weak ETag", server: withETag('W/"e8edcdc409a79ecafa8c21f09ebc471ef430aa42"'), want: "in-sync" },
    {
      name: "the blob id of a sha256 repository",
      server: withETag('"c6b8d6b4e5115944594d71ec9fcc912ab741df9fa990b25e8846ef309e91f96b"'),
      want: "in-sync",
    },
    {
      name: "the type application/json does not matter, if the blob id matches",
      server: { file: playEdited("ok-at-commit", (raw) => raw.replace("text/plain", "application/json")) },
      want: "in-sync",
    },
    {
      name: "another blob id",
      server: withETag(`"${"0".repeat(40)}"`),
      want: "bad-response",
      log: /read the file "internal\/providers\/providers\.yaml": the answer does not match the blob id in its ETag/,
      notInLog: /anthropic/,
    },
    { name: "another blob id of a sha256 repository", server: withETag(`"${"0".repeat(64)}"`), want: "bad-response" },
    { name: "an ETag that is no blob id", server: withETag('"gzip-1"'), want: "bad-response" },
    {
      name: "an ETag that a proxy stripped",
      server: { file: playEdited("ok-at-commit", (raw) => raw.replace(/Etag: .*\r\n/i, "")) },
      want: "bad-response",
    },
    {
      name: "one byte flipped on the way",
      server: { file: playEdited("ok-at-commit", (raw) => raw.replace("schema_version: 1", "schema_version: 2")) },
      want: "bad-response",
    },
    {
      name: "a file that breaks off with the connection",
      server: { file: play("made-until-close-part") },
      want: "bad-response",
    },
    { name: "a page in place of the file (200)", server: { file: play("made-anubis") }, want: "bad-response" },
    {
      name: "a compressed file that was not asked for",
      server: { file: play("made-gzip-chunked") },
      want: "bad-response",
    },
    { name: "a symbolic link", server: { file: play("symlink") }, want: "bad-response", log: /symbolic link/ },
    { name: "a Git LFS pointer", server: { file: play("lfs-pointer") }, want: "bad-response", log: /Git LFS pointer/ },
    {
      name: "a file without end",
      server: { file: sendEndless },
      env: { SYNC_TIMEOUT_SECONDS: "60" },
      want: "too-large",
      requests: 3,
      log: /larger than 10485760 bytes/,
    },
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

testRows("a local canonical file", [
  {
    name: "it needs no token, and nothing is sent",
    args: ["--canonical", "fixtures/providers-copy.yaml"],
    env: { AUTO_SYNC_TOKEN: "" },
    want: "in-sync",
    requests: 0,
  },
  {
    name: "it does not exist",
    args: ["--canonical", "none"],
    want: "file-not-found",
    log: /canonical file "none": ENOENT/,
  },
  { name: "it is a Git LFS pointer", args: ["--canonical", "DIR/a"], files: { a: LFS_POINTER }, want: "bad-response" },
  {
    name: "the copy itself, by another spelling, compares nothing",
    args: ["--canonical", "fixtures/../fixtures/providers.yaml"],
    want: "usage",
    log: /The copy and the canonical file are the same file/,
  },
]);

// ------------------------------------------------------------------------------------------------
// Section 7: requests
// ------------------------------------------------------------------------------------------------

testRows("the server's own errors", [
  {
    name: "an expired token (401)",
    server: { every: play("bad-token") },
    want: "token-rejected",
    requests: 1,
    log: /the answer is 401, "user does not exist.*The token is wrong, revoked or expired/,
  },
  { name: "a token that expires between two requests", server: { file: play("bad-token") }, want: "token-rejected" },
  {
    name: "a token without the scope (403)",
    server: { every: play("token-without-scope") },
    want: "token-scope",
    requests: 1,
    log: /required scope\(s\).*Give the token the scope read:repository/,
  },
  {
    name: "a token without the scope on Gitea 1.25.4",
    server: { every: play("gitea-1.25.4-token-without-scope") },
    want: "token-scope",
  },
  {
    name: "a repository that does not exist, or is not visible (404)",
    server: { every: play("repo-invisible") },
    want: "repo-not-visible",
    requests: 1,
  },
  {
    name: "the job's own token on Gitea 1.26.4, while access is withheld",
    server: { every: play("gitea-1.26.4-job-token-canonical-repo-withheld") },
    want: "repo-not-visible",
  },
  {
    name: "the job's own token on Gitea 1.26.4, when access is allowed",
    server: {
      repository: play("gitea-1.26.4-job-token-canonical-repo-allowed"),
      commit: play("gitea-1.26.4-job-token-canonical-commit-allowed"),
      file: play("gitea-1.26.4-job-token-canonical-file-allowed"),
    },
    want: "in-sync",
  },
  { name: "a JSON object without a message", server: { every: respondJson(401, {}) }, want: "token-rejected" },
  {
    name: "a message that is not text",
    server: { every: respondJson(403, { message: { toString: 1 } }) },
    want: "token-scope",
  },
  { name: "a JSON list is not the server's own word", server: { every: respondJson(401, []) }, want: "bad-response" },
  {
    name: "the beginning of a JSON object is not the server's own word",
    server: { every: respond(403, { body: '{"message":' }) },
    want: "bad-response",
  },
]);

testRows("a redirect is never followed", [
  {
    name: "a renamed repository (307): the message names the new place",
    server: { every: play("renamed") },
    want: "redirected",
    requests: 1,
    log: /redirected to ".*molecule-controlplane-renamed.*Set SYNC_CANONICAL_SERVER and SYNC_CANONICAL_REPO/,
  },
  {
    name: "a renamed repository on Gitea 1.25.4 (301)",
    server: { every: play("gitea-1.25.4-renamed") },
    want: "redirected",
    requests: 1,
  },
  {
    name: "a sign-in page on another host (302)",
    server: { every: respond(302, { headers: { location: "https://evil.example/login" } }) },
    want: "redirected",
    requests: 1,
    log: /"https:\/\/evil\.example\/login"/,
  },
  {
    name: "300 with a Location",
    server: { every: respond(300, { headers: { location: "/a" } }) },
    want: "redirected",
    log: 'redirected to "/a"',
  },
  { name: "without a Location it is no redirect", server: { every: respond(302) }, want: "bad-response" },
]);

{
  const final = [
    {
      name: "Cloudflare 1010 blocks the user agent",
      file: "made-cloudflare-1010",
      text: '403, "error code: 1010" (Server: "cloudflare")',
    },
    { name: "a Cloudflare challenge", file: "made-cloudflare-challenge", text: '403, "Just a moment' },
    {
      name: "nginx asks for a password",
      file: "made-nginx-401-basic",
      text: '401, "401 Authorization Required" (Server: "nginx")',
    },
    { name: "Anubis sends its page", file: "made-anubis", text: `200, "Making sure you&#39;re not a bot!"` },
    { name: "a sign-in page", file: "made-sign-in-page", text: '200, "Please log in"' },
  ];
  const passing = [
    { name: "Cloudflare 520", file: "made-cloudflare-520", text: "520: Web server is returning an unknown error" },
    { name: "Cloudflare 521", file: "made-cloudflare-521", text: "521: Web server is down" },
    { name: "Cloudflare 522", file: "made-cloudflare-522", text: "522: Connection timed out" },
    { name: "Cloudflare 523", file: "made-cloudflare-523", text: "523: Origin is unreachable" },
    { name: "Cloudflare 524", file: "made-cloudflare-524", text: "524: A timeout occurred" },
    { name: "Cloudflare 525", file: "made-cloudflare-525", text: "525: SSL handshake failed" },
    { name: "Cloudflare 526", file: "made-cloudflare-526", text: "526: Invalid SSL certificate" },
    {
      name: "Cloudflare 1033, the tunnel is down (530)",
      file: "made-cloudflare-1033",
      text: '530, "error code: 1033"',
    },
    { name: "nginx 502", file: "made-nginx-502", text: '502, "502 Bad Gateway"' },
    { name: "HAProxy 503", file: "made-haproxy-503", text: "503 Service Unavailable" },
    { name: "Traefik 502", file: "made-traefik-502", text: '502, "Bad Gateway"' },
    { name: "Traefik 504", file: "made-traefik-504", text: '504, "Gateway Timeout"' },
    { name: "Caddy 502 with an empty body", file: "made-caddy-502", text: '502, "" (Server: "Caddy")' },
  ];
  const missing = [
    {
      name: "Traefik has no route while the server restarts (404)",
      file: "made-traefik-404",
      text: '404, "404 page not found"',
    },
    { name: "nginx has no route (404)", file: "made-nginx-404", text: '404, "404 Not Found" (Server: "nginx")' },
  ];
  testRows("in front of the server", [
    ...final.map(
      ({ name, file, text }): Row => ({
        name,
        server: { every: play(file) },
        want: "bad-response",
        requests: 1,
        log: text,
      }),
    ),
    ...passing.map(
      ({ name, file, text }): Row => ({
        name,
        server: { every: play(file) },
        want: "server-error",
        requests: 4,
        log: text,
      }),
    ),
    ...missing.map(
      ({ name, file, text }): Row => ({
        name,
        server: { every: play(file) },
        want: "bad-response",
        requests: 4,
        log: text,
      }),
    ),
    ...[...passing, ...missing].map(({ name, file, text }): Row => {
      return {
        name: `${name}, then fine`,
        server: { every: [play(file)] },
        want: "in-sync",
        requests: 4,
        log: text,
      };
    }),
  ]);
}

testRows("status", [
  ...[201, 204, 206, 300, 304, 400, 405, 409, 410, 418, 451].map((status): Row => {
    const server = { every: respond(status) };
    return {
      name: `${status} is final`,
      server,
      want: "bad-response",
      requests: 1,
      log: `is ${status}, `,
    };
  }),
  ...[408, 429, 500, 501, 503, 599].map((status): Row => {
    const server = { every: respond(status) };
    return { name: `${status} is sent four times`, server, want: "server-error", requests: 4 };
  }),
  {
    name: "103 Early Hints before the answer are skipped",
    server: { repository: playEdited("repo-visible", (raw) => `HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n${raw}`) },
    want: "in-sync",
  },
]);

testRows("retries", [
  {
    name: "the pause doubles with every attempt",
    server: { every: respond(503) },
    want: "server-error",
    log: /^retry {6}in 0\.2 s: .*\nretry {6}in 0\.4 s: .*\nretry {6}in 0\.8 s: .*\n::error::/m,
  },
  {
    name: "each request has four attempts of its own",
    server: { repository: [hangUp(), hangUp(), hangUp()], file: [hangUp(), hangUp(), hangUp()] },
    want: "in-sync",
    requests: 9,
  },
  {
    name: "Retry-After in seconds is waited for",
    server: { every: [respond(429, { headers: { "retry-after": "1" } })] },
    want: "in-sync",
    log: /^retry {6}in 1\.0 s: /m,
  },
  {
    name: "Retry-After beyond the deadline ends the run at once (Cloudflare 1015)",
    server: { every: play("made-cloudflare-1015") },
    want: "server-error",
    requests: 1,
  },
  {
    name: "Retry-After as a date is the usual pause",
    server: { every: [respond(503, { headers: { "retry-after": "Mon, 23 Nov 2099 14:48:15 GMT" } })] },
    want: "in-sync",
    log: /^retry {6}in 0\.2 s: /m,
  },
  {
    name: "a negative Retry-After is the usual pause",
    server: { every: [respond(503, { headers: { "retry-after": "-5" } })] },
    want: "in-sync",
    log: /^retry {6}in 0\.2 s: /m,
  },
]);

testRows("the connection", [
  {
    name: "the server is down",
    env: { SYNC_CANONICAL_SERVER: "http://127.0.0.1:1" },
    want: "unreachable",
    log: "ECONNREFUSED",
  },
  { name: "the server hangs up", server: { every: hangUp() }, want: "unreachable", requests: 4, log: "UND_ERR_SOCKET" },
  { name: "the server hangs up once, then fine", server: { every: [hangUp()] }, want: "in-sync", requests: 4 },
  {
    name: "the server resets the connection",
    server: { every: (socket) => void socket.resetAndDestroy() },
    want: "unreachable",
    requests: 4,
    log: "ECONNRESET",
  },
  {
    name: "the server says nothing",
    server: { every: stall() },
    env: { SYNC_TIMEOUT_SECONDS: "0.6" },
    want: "timeout",
    log: /no complete answer in time \(SYNC_TIMEOUT_SECONDS is 0\.6\)\. Rerun\. .* SYNC_TIMEOUT_SECONDS\.$/,
  },
  {
    name: "the server says nothing once, then fine",
    server: { every: [stall()] },
    want: "in-sync",
    requests: 4,
    log: /^retry {6}in 0\.2 s: .*: no complete answer in time /m,
  },
  {
    name: "the server drips the file for longer than an attempt may take",
    server: {
      file: (socket) => {
        socket.write("HTTP/1.1 200 OK\r\nContent-Length: 795\r\n\r\n");
        const timer = setInterval(() => socket.write("x"), 20);
        socket.on("close", () => clearInterval(timer));
      },
    },
    env: { SYNC_TIMEOUT_SECONDS: "0.9" },
    want: "timeout",
  },
  {
    name: "the file is shorter than its length",
    server: { file: playEdited("ok-at-commit", (raw) => raw.slice(0, -1)) },
    want: "unreachable",
    requests: 6,
  },
  { name: "the chunks break off", server: { file: play("made-chunks-cut") }, want: "unreachable", requests: 6 },
  {
    name: "a broken chunk size",
    server: { file: play("made-broken-chunk-size") },
    want: "unreachable",
    log: "HTTPParserError",
  },
  {
    name: "two different lengths",
    server: { file: play("made-two-lengths") },
    want: "unreachable",
    log: "CONTENT_LENGTH_MISMATCH",
  },
  {
    name: "the answer is not HTTP",
    server: { every: play("made-no-http") },
    want: "unreachable",
    log: "HTTPParserError",
  },
  {
    name: "headers without end",
    server: { every: send(`HTTP/1.1 200 OK\r\nx: ${"y".repeat(200_000)}`) },
    want: "unreachable",
    log: "UND_ERR_HEADERS_OVERFLOW",
  },
]);

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
  equal((await runGate([], pushEnv(gitea.url))).exitCode, 0);
  equal(gitea.connections, 3);
  while (open.size > 0) {
    await setImmediate();
  }
});

describe("TLS", { concurrency: 4 }, () => {
  const rows = [
    { name: "a certificate that nobody trusts", certificate: "valid", code: "DEPTH_ZERO_SELF_SIGNED_CERT" },
    { name: "an expired certificate", certificate: "expired", code: "CERT_HAS_EXPIRED" },
  ] as const;
  for (const { name, certificate, code } of rows) {
    test(`TLS: ${name} is final, and the remedy names NODE_EXTRA_CA_CERTS and the clock`, async () => {
      using gitea = await startGitea({}, { certificate });
      const run = await runGate([], pushEnv(gitea.url));
      checkVerdict(run, { want: "unreachable", log: `${code}, `, notInLog: /^retry/m });
      match(run.verdict, /the runner's clock.*set NODE_EXTRA_CA_CERTS\.$/);
      equal(gitea.requests.length, 0);
    });
  }

  test("TLS: the certificate of another host is final", async () => {
    using gitea = await startGitea({}, { certificate: "valid" });
    const env = {
      ...pushEnv(gitea.url.replace("127.0.0.1", "localhost")),
      NODE_EXTRA_CA_CERTS: "fixtures/tls/valid.pem",
    };
    const run = await runCommand(gateCommand(), env);
    checkVerdict(run, {
      want: "unreachable",
      log: "ERR_TLS_CERT_ALTNAME_INVALID",
      notInLog: /^retry/m,
    });
    equal(gitea.requests.length, 0);
  });

  test("TLS: a server that speaks plain HTTP is not blamed on its certificate", async () => {
    await using server = createServer((socket) => {
      socket.once("data", () => socket.end("HTTP/1.1 400 Bad Request\r\n\r\n"));
    });
    await new Promise<void>((listening) => server.listen(0, "127.0.0.1", listening));
    const address = server.address();
    ok(typeof address === "object" && address !== null);
    const run = await runGate([], pushEnv(`https://127.0.0.1:${address.port}`));
    checkVerdict(run, { want: "unreachable", log: "ERR_SSL_", notInLog: /certificate/ });
  });

  test("TLS: with NODE_EXTRA_CA_CERTS the certificate is trusted", async () => {
    using gitea = await startGitea({}, { certificate: "valid" });
    const env = { ...pushEnv(gitea.url), NODE_EXTRA_CA_CERTS: "fixtures/tls/valid.pem" };
    checkVerdict(await runCommand(gateCommand(), env), { want: "in-sync" });
  });
});

describe("proxies, as with curl", { concurrency: 16 }, () => {
  const proxied = /407/;
  const direct = /ECONNREFUSED/;
  // Port 1 of this machine, by an address that does not count as the loopback.
  const https = { SYNC_CANONICAL_SERVER: "https://0.0.0.0:1" };
  const http = { SYNC_CANONICAL_SERVER: "http://0.0.0.0:1", SYNC_ALLOW_HTTP: "1" };
  const rows: { name: string; env: Env; want: RegExp }[] = [
    { name: "HTTPS_PROXY is used for https:", env: { ...https, HTTPS_PROXY: "PROXY" }, want: proxied },
    { name: "https_proxy is used for https:", env: { ...https, https_proxy: "PROXY" }, want: proxied },
    { name: "HTTP_PROXY is not used for https:", env: { ...https, HTTP_PROXY: "PROXY" }, want: direct },
    { name: "HTTP_PROXY is used for http:", env: { ...http, HTTP_PROXY: "PROXY" }, want: proxied },
    { name: "http_proxy is used for http:", env: { ...http, http_proxy: "PROXY" }, want: proxied },
    { name: "HTTPS_PROXY is not used for http:", env: { ...http, HTTPS_PROXY: "PROXY" }, want: direct },
    { name: "ALL_PROXY is used for https:", env: { ...https, ALL_PROXY: "PROXY" }, want: proxied },
    { name: "all_proxy is used for http:", env: { ...http, all_proxy: "PROXY" }, want: proxied },
    {
      name: "HTTPS_PROXY wins over ALL_PROXY",
      env: { ...https, HTTPS_PROXY: "PROXY", ALL_PROXY: "http://x:1" },
      want: proxied,
    },
    {
      name: "https_proxy wins over HTTPS_PROXY",
      env: { ...https, https_proxy: "PROXY", HTTPS_PROXY: "http://x:1" },
      want: proxied,
    },
    { name: "an empty https_proxy is unset", env: { ...https, https_proxy: " ", HTTPS_PROXY: "PROXY" }, want: proxied },
    { name: "a proxy without a scheme is http://", env: { ...https, HTTPS_PROXY: "HOST" }, want: proxied },
    { name: "NO_PROXY exempts a host", env: { ...https, HTTPS_PROXY: "PROXY", NO_PROXY: "0.0.0.0" }, want: direct },
    {
      name: "no_proxy exempts a host with its port",
      env: { ...https, HTTPS_PROXY: "PROXY", no_proxy: "x,0.0.0.0:1" },
      want: direct,
    },
    {
      name: "NO_PROXY exempts a domain with its hosts (here 0.0.0 with 0.0.0.0)",
      env: { ...https, HTTPS_PROXY: "PROXY", NO_PROXY: "0.0.0" },
      want: direct,
    },
    { name: "NO_PROXY=* exempts every host", env: { ...https, HTTPS_PROXY: "PROXY", NO_PROXY: "*" }, want: direct },
    {
      name: "NO_PROXY does not exempt another port",
      env: { ...https, HTTPS_PROXY: "PROXY", NO_PROXY: "0.0.0.0:2" },
      want: proxied,
    },
    {
      name: "a SOCKS proxy does not matter if NO_PROXY exempts the host",
      env: { ...https, HTTPS_PROXY: "socks5://x:1", NO_PROXY: "*" },
      want: direct,
    },
  ];
  for (const { name, env, want } of rows) {
    test(`proxy: ${name}`, async () => {
      using proxy = await startGitea({ every: respond(407) });
      const given: Record<string, string | undefined> = pushEnv("");
      for (const [key, value] of Object.entries(env)) {
        given[key] = value?.replace("PROXY", proxy.url).replace("HOST", proxy.url.replace("http://", ""));
      }
      checkVerdict(await runGate([], given), { want: "unreachable", log: want });
      // A wrong password, sent again, could lock an account.
      equal(proxy.connections, want === proxied ? 1 : 0);
    });
  }

  const broken = [
    { text: "http://me:hunter2@[", says: "Cannot use the proxy in HTTPS_PROXY: Invalid URL." },
    { text: "ftp://me:hunter2@proxy.example", says: "Cannot use the proxy in HTTPS_PROXY: Invalid URL protocol" },
    { text: "http://me:hunter2%zz@proxy.example", says: "Cannot use the proxy in HTTPS_PROXY: URI malformed." },
  ];
  for (const { text, says } of broken) {
    test(`proxy: ${text} is refused, and its password is not printed`, async () => {
      const run = await runGate([], { ...pushEnv("https://git.example.com"), HTTPS_PROXY: text });
      checkVerdict(run, { want: "usage", log: says, notInLog: /hunter2/ });
    });
  }

  test("proxy: none is used for the loopback", async () => {
    using gitea = await startGitea();
    const env = { ...pushEnv(gitea.url), HTTP_PROXY: "http://x:1", ALL_PROXY: "http://x:1" };
    checkVerdict(await runGate([], env), { want: "in-sync" });
  });

  test("proxy: plain http: goes through it without a tunnel", async () => {
    using proxy = await startGitea();
    const env = { SYNC_CANONICAL_SERVER: "http://gitea.test", SYNC_ALLOW_HTTP: "1", http_proxy: proxy.url };
    checkVerdict(await runGate([], { ...pushEnv(""), ...env }), { want: "in-sync" });
    equal(proxy.requests[0]?.target, "http://gitea.test/api/v1/repos/molecule-ai/molecule-controlplane");
  });

  test("proxy: the size of an answer through it is limited too", async () => {
    using proxy = await startGitea({ file: sendEndless });
    const env = { SYNC_CANONICAL_SERVER: "http://gitea.test", SYNC_ALLOW_HTTP: "1", http_proxy: proxy.url };
    checkVerdict(await runGate([], { ...pushEnv(""), ...env }), { want: "too-large" });
  });

  test("proxy: https: goes through a tunnel, with the user name and password for the proxy", async () => {
    using gitea = await startGitea({}, { certificate: "valid" });
    const tunnel: Responder = (socket) => {
      const port = Number(new URL(gitea.url).port);
      const upstream = connect(port, "127.0.0.1", () => {
        socket.write("HTTP/1.1 200 Connection established\r\n\r\n");
        upstream.pipe(socket).pipe(upstream);
      });
    };
    using proxy = await startGitea({ tunnel });
    const env = {
      ...pushEnv("https://gitea.test"),
      HTTPS_PROXY: proxy.url.replace("//", "//me:pass@"),
      NODE_EXTRA_CA_CERTS: "fixtures/tls/valid.pem",
    };
    checkVerdict(await runCommand(gateCommand(), env), { want: "in-sync" });
    deepEqual(
      proxy.requests.map(({ method, target }) => `${method} ${target}`),
      ["CONNECT gitea.test:443", "CONNECT gitea.test:443", "CONNECT gitea.test:443"],
    );
    equal(proxy.requests[0]?.headers.get("proxy-authorization"), "Basic bWU6cGFzcw==");
    equal(proxy.requests[0]?.headers.get("authorization"), undefined);
  });

  test("proxy: the tunnel to an IPv6 address has its brackets", async () => {
    using proxy = await startGitea({ every: respond(403) });
    await runGate([], { ...pushEnv("https://[2001:db8::1]"), HTTPS_PROXY: proxy.url });
    equal(proxy.requests[0]?.target, "[2001:db8::1]:443");
  });

  const faults: { name: string; tunnel: Responder; want: "unreachable" | "timeout" }[] = [
    { name: "hangs up", tunnel: hangUp(), want: "unreachable" },
    { name: "ends the connection without an answer", tunnel: send(""), want: "unreachable" },
    { name: "answers 502", tunnel: respond(502), want: "unreachable" },
    { name: "stays silent", tunnel: stall(), want: "timeout" },
    { name: "opens the tunnel and hangs up", tunnel: send("HTTP/1.1 200 OK\r\n\r\n"), want: "unreachable" },
    {
      name: "opens the tunnel and stays silent",
      tunnel: (socket) => void socket.write("HTTP/1.1 200 OK\r\n\r\n"),
      want: "timeout",
    },
  ];
  for (const { name, tunnel, want } of faults) {
    test(`proxy: a proxy that ${name} gets a connection for each attempt, and no more`, async () => {
      using proxy = await startGitea({ tunnel });
      const env = { ...pushEnv("https://gitea.test"), HTTPS_PROXY: proxy.url, SYNC_TIMEOUT_SECONDS: "3" };
      checkVerdict(await runGate([], env), { want });
      equal(proxy.connections, want === "unreachable" ? 4 : 3);
    });
  }
});

testRows("a server that repeats the token", [
  {
    name: "in its message",
    server: { every: respondJson(401, { message: `no ${TOKEN}!` }) },
    want: "token-rejected",
    log: '"no ***!"',
  },
  {
    name: "in its message, with JSON escapes",
    server: { every: respond(401, { body: `{"message":"\\u0073${TOKEN.slice(1)}"}` }) },
    want: "token-rejected",
    log: '401, "***"',
  },
  {
    name: "in the title of a page",
    server: { every: respond(403, { body: `<title>${TOKEN}</title>` }) },
    want: "bad-response",
    log: '403, "***"',
  },
  {
    name: "in the Server header",
    server: { every: respond(403, { headers: { server: TOKEN } }) },
    want: "bad-response",
    log: '(Server: "***")',
  },
  {
    name: "in the Location of a redirect",
    server: { every: respond(302, { headers: { location: `/${TOKEN}` } }) },
    want: "redirected",
    log: 'redirected to "/***"',
  },
  {
    name: "where its message is cut",
    server: { every: respondJson(401, { message: `${"x".repeat(80)}${TOKEN}${"y".repeat(300)}` }) },
    want: "token-rejected",
    notInLog: /stand-in/,
  },
]);

test("answers damaged at random pass only if the bytes of the file arrived", async () => {
  const names = { repository: "repo-visible", commit: "commit-of-branch", file: "ok-at-commit" } as const;
  const anyDamage = fc.record({
    kind: fc.constantFrom("repository", "commit", "file"),
    at: fc.double({ min: 0, max: 0.999, noNaN: true }),
    removed: fc.integer({ min: 0, max: 40 }),
    added: fc.string({ unit: "binary", maxLength: 20 }),
  });
  type Damage = typeof anyDamage extends fc.Arbitrary<infer T> ? T : never;
  const check = async ({ kind, at, removed, added }: Damage) => {
    const raw = readResponse(names[kind]);
    const start = Math.floor(at * raw.length);
    const damaged = Buffer.concat([raw.subarray(0, start), Buffer.from(added), raw.subarray(start + removed)]);
    using gitea = await startGitea({ [kind]: send(damaged) });
    const { exitCode, log } = await runGate([], pushEnv(gitea.url));
    const isWhole = kind !== "file" || damaged.subarray(-CANONICAL.length).equals(CANONICAL);
    ok(exitCode === 3 || (exitCode === 0 && isWhole), log);
    ok(!log.includes("\nstack"), log);
    return exitCode;
  };
  const exitCodes = await Promise.all(fc.sample(anyDamage, { numRuns: 300, seed: 20_261_126 }).map(check));
  deepEqual([...new Set(exitCodes)].sort(), [0, 3]);
});

// ------------------------------------------------------------------------------------------------
// Section 8: comparison
// ------------------------------------------------------------------------------------------------

{
  const drift = {
    args: LOCAL,
    env: { SYNC_COPY_PATH: DRIFTED_PATH, SYNC_PIN_PATH: "DIR/pin" },
    want: "drift",
  } as const;
  const crlf = CANONICAL.toString().replaceAll("\n", "\r\n");
  testRows("a drift", [
    {
      name: "without a pin it says what to do",
      args: LOCAL,
      env: { SYNC_COPY_PATH: DRIFTED_PATH },
      want: "drift",
      log: `::error::drift: The copy "${DRIFTED_PATH}" differs from the canonical file. Re-sync the copy; to keep an edit, change the canonical file first.`,
    },
    {
      name: "the pin matches the copy",
      ...drift,
      files: { pin: DRIFTED_SHA256 },
      log: "The pin matches the copy: either the canonical file changed, or",
    },
    {
      name: "the pin matches the canonical file",
      ...drift,
      files: { pin: CANONICAL_SHA256 },
      log: "The pin matches the canonical file: the copy was edited by hand.",
    },
    {
      name: "the pin matches neither",
      ...drift,
      files: { pin: OTHER_SHA256 },
      log: "The pin matches neither: both changed, or the pin is stale.",
    },
    {
      name: "only line endings differ: the remedy is a line in .gitattributes",
      args: LOCAL,
      env: { SYNC_COPY_PATH: "DIR/copy.yaml" },
      files: { "copy.yaml": crlf },
      want: "drift",
      log: /differs from the canonical file only in line endings\. Disable .*copy\.yaml -text" in \.gitattributes\), then re-sync\.$/,
    },
    {
      name: "a carriage return alone is more than a line ending",
      args: LOCAL,
      env: { SYNC_COPY_PATH: "DIR/copy.yaml" },
      files: { "copy.yaml": `\r${crlf}` },
      want: "drift",
      notInLog: /gitattributes/,
    },
    {
      name: "a missing final newline is more than a line ending",
      args: LOCAL,
      env: { SYNC_COPY_PATH: "DIR/copy.yaml" },
      files: { "copy.yaml": crlf.trimEnd() },
      want: "drift",
      notInLog: /gitattributes/,
    },
    { name: "CRLF in the canonical file", server: { file: play("crlf-file") }, want: "drift" },
  ]);
}

// ------------------------------------------------------------------------------------------------
// Section 9: what a drift prints
// ------------------------------------------------------------------------------------------------

/** Compares two texts, and returns the lines between the canonical file and the re-sync. */
async function explain(copy: string | Buffer, canonical: string | Buffer): Promise<string[]> {
  using folder = createFolder({ copy, canonical });
  const args = ["--copy", join(folder.path, "copy"), "--canonical", join(folder.path, "canonical")];
  const { log } = await runGate(args, {});
  const lines = log.replaceAll(folder.path, "DIR").split("\n");
  return lines.slice(lines.findIndex((line) => line.startsWith("canonical ")) + 1, lines.indexOf("To re-sync, run:"));
}

/** `1\n2\n…` */
function numbers(count: number): string {
  return Array.from({ length: count }, (_, index) => `${index + 1}\n`).join("");
}

describe("the summary", () => {
  const rows = [
    {
      name: "a provider that is missing in the copy",
      copy: "providers: [{name: b}]",
      canonical: "providers: [{name: a}, {name: b}]",
      want: "providers.a",
    },
    {
      name: "a provider that is only in the copy",
      copy: "providers: [{name: a}, {name: b}]",
      canonical: "providers: [{name: b}]",
      want: "providers.a",
    },
    {
      name: "a provider that changed deep inside",
      copy: "providers: [{name: a, x: [1]}, {name: b}]",
      canonical: "providers: [{name: a, x: [2]}, {name: b}]",
      want: "providers.a",
    },
    { name: "a runtime", copy: "runtimes: {a: {x: 1}}", canonical: "runtimes: {a: {x: 2}}", want: "runtimes.a" },
    {
      name: "other top-level keys",
      copy: "version: 1\nempty:\nmodels: {m: 1}",
      canonical: "version: 2\nempty: 0\nmodels: {m: 2}",
      want: "version, empty, models.m",
    },
    { name: "entries without a name, by their place", copy: "list: [a, b]", canonical: "list: [a, c]", want: "list.1" },
    { name: "a key that is given twice", copy: "a: 1\na: 2", canonical: "a: 1", want: "a" },
    { name: "an empty section", copy: "a: {}", canonical: "b: []", want: "a, b" },
    {
      name: "one of two entries with the same name",
      copy: "p: [{name: a, x: 1}, {name: a, x: 2}]",
      canonical: "p: [{name: a, x: 0}, {name: a, x: 2}]",
      want: "p.a",
    },
    { name: "a key called __proto__", copy: "a: {__proto__: 1}", canonical: "a: {__proto__: 2}", want: "a.__proto__" },
  ];
  for (const { name, copy, canonical, want } of rows) {
    test(`summary: ${name}`, async () => {
      equal((await explain(copy, canonical))[0], `summary    different entries: ${want}`);
    });
  }

  test("summary: a comment is no entry, so there is a diff alone", async () => {
    match((await explain("# a\nv: 1\n", "# b\nv: 1\n"))[0] ?? "", /^--- copy /);
  });

  const none = [
    {
      name: "a text that is not YAML",
      copy: "a: b: c",
      want: /^summary {4}none: Nested mappings are not allowed in compact mappings$/,
    },
    { name: "a list", copy: "- a", want: /^summary {4}none: a file is not a YAML mapping$/ },
    { name: "an empty file", copy: "", want: /^summary {4}none: a file is not a YAML mapping$/ },
    {
      name: "a file of more than 128 KiB",
      copy: `a: ${"x".repeat(131_072)}`,
      want: /^summary {4}none: a file is too large$/,
    },
    {
      name: "aliases that grow without end",
      copy: `a: &a [x]\nb: &b [${"*a,".repeat(99)}]\nc: [${"*b,".repeat(99)}]`,
      want: /^summary {4}none: .*alias/,
    },
  ];
  for (const { name, copy, want } of none) {
    test(`summary: none for ${name}, and the drift stays`, async () => {
      match((await explain(copy, "a: 1\n"))[0] ?? "", want);
    });
  }
});

describe("the diff", () => {
  const names = ["--- copy DIR/copy", "+++ canonical DIR/canonical"];
  const rows = [
    {
      name: "one line changed",
      copy: numbers(10).replace("5\n", "x\n"),
      canonical: numbers(10),
      want: [...names, "@@ -2,7 +2,7 @@", " 2", " 3", " 4", "-x", "+5", " 6", " 7", " 8"],
    },
    {
      name: "a line is missing in the copy",
      copy: "1\n",
      canonical: "1\n2\n",
      want: [...names, "@@ -1,1 +1,2 @@", " 1", "+2"],
    },
    { name: "an empty copy", copy: "", canonical: "1\n", want: [...names, "@@ -0,0 +1,1 @@", "+1"] },
    {
      name: "a missing final newline",
      copy: "1",
      canonical: "1\n",
      want: [...names, "@@ -1,1 +1,1 @@", "-1", "\\ No newline at end of file", "+1"],
    },
    {
      name: "bytes that are not UTF-8",
      copy: Buffer.from([0xc3, 0x28]),
      canonical: "1\n",
      want: ["diff       none: a file is not UTF-8 text"],
    },
    {
      name: "a canonical file that is not UTF-8",
      copy: "1\n",
      canonical: Buffer.from([0xc3, 0x28]),
      want: ["diff       none: a file is not UTF-8 text"],
    },
  ];
  for (const { name, copy, canonical, want } of rows) {
    test(`diff: ${name}`, async () => deepEqual((await explain(copy, canonical)).slice(1), want));
  }

  test("diff: after 200 lines, a line says how many were omitted", async () => {
    const lines = (await explain("", numbers(300))).slice(1);
    equal(lines.length, 201);
    equal(lines[199], "+197");
    equal(lines[200], "103 more lines omitted");
  });

  test("diff: just 200 lines are all printed", async () => {
    equal((await explain("", numbers(197))).at(-1), "+197");
  });
});

describe("files that a library needs long for", { concurrency: 2 }, () => {
  /** Lines that no two files have in common. */
  const unrelated = (seed: string) => {
    let text = "";
    for (let hash = seed; text.length < 2_000_000; ) {
      hash = createHash("md5").update(hash).digest("hex");
      text += `${hash.slice(0, 8)}\n`;
    }
    return text;
  };
  const rows = [
    {
      name: "128 KiB of errors",
      copy: "]".repeat(131_072),
      canonical: "a: 1\n",
      log: "summary    none: Unexpected flow-seq-end token",
    },
    {
      name: "two unrelated files of 2 MB",
      copy: unrelated("a"),
      canonical: unrelated("b"),
      log: "diff       none: the files differ too much\n",
    },
    {
      name: "a line of 3 MB",
      copy: "x".repeat(3_000_000),
      canonical: "y".repeat(3_000_000),
      log: "\n\\ No newline at end of file\n",
    },
  ];
  // Without the options for the libraries the first two take longer than the test may.
  for (const { name, copy, canonical, log } of rows) {
    test(`a drift is explained in a few seconds: ${name}`, { timeout: 20_000 }, async () => {
      using folder = createFolder({ copy, canonical });
      const args = ["--copy", join(folder.path, "copy"), "--canonical", join(folder.path, "canonical")];
      checkVerdict(await runCommand(measuredCommand([], ...args), COVERAGE), { want: "drift", log });
    });
  }
});

describe("the re-sync command", () => {
  /** The line before the verdict. */
  const commandOf = ({ log }: Run) => log.split("\n").at(-2)?.trim() ?? "";

  test("it repeats the settings that are not the defaults, and nothing else", async () => {
    using gitea = await startGitea();
    const env = {
      ...pushEnv(gitea.url),
      SYNC_COPY_PATH: DRIFTED_PATH,
      SYNC_PIN_PATH: "fixtures/providers.sha256",
      SYNC_CANONICAL_REPO: "acme/registry",
      SYNC_CANONICAL_PATH: "a b.yaml",
      SYNC_CANONICAL_REF: "it's/$1",
      SYNC_ALLOW_HTTP: "1",
      SYNC_CANONICAL_TOKEN: "hunter2-other",
    };
    const run = await runGate([], env);
    match(
      run.log,
      /^Enter a token in bash or zsh \(nothing is shown\): read -rs AUTO_SYNC_TOKEN; export AUTO_SYNC_TOKEN$/m,
    );
    equal(
      commandOf(run),
      `SYNC_CANONICAL_SERVER=${gitea.url} SYNC_CANONICAL_REPO=acme/registry SYNC_CANONICAL_PATH='a b.yaml' ` +
        `SYNC_CANONICAL_REF='it'\\''s/$1' SYNC_ALLOW_HTTP=1 SYNC_TIMEOUT_SECONDS=6 ` +
        "SYNC_COPY_PATH=fixtures/providers-drifted.yaml SYNC_PIN_PATH=fixtures/providers.sha256 " +
        "node dist/test/sync-providers.test.js --write",
    );
  });

  test("with --canonical it needs no token and no settings of the server", async () => {
    using folder = createFolder({
      "workspace-server/internal/providers/providers.yaml": DRIFTED,
      "its gate.ts": "",
    });
    copyFileSync("sync-providers.ts", join(folder.path, "its gate.ts"));
    symlinkSync(resolve("node_modules"), join(folder.path, "node_modules"));
    const tsx = [process.execPath, "node_modules/tsx/dist/cli.mjs", "its gate.ts"];
    const env = { SYNC_CANONICAL_SERVER: "https://git.example.com" };
    const run = await runCommand([...tsx, "--canonical", resolve(CANONICAL_PATH)], env, folder.path);
    equal(commandOf(run), `npx tsx 'its gate.ts' --write --canonical ${resolve(CANONICAL_PATH)}`);
    ok(!run.log.includes("Enter a token"));
  });

  test("it can be pasted, and the next run passes", async () => {
    using gitea = await startGitea();
    using folder = createFolder({ "it's a $copy.yaml": DRIFTED, pin: DRIFTED_SHA256 });
    const env = {
      ...pushEnv(gitea.url),
      SYNC_COPY_PATH: join(folder.path, "it's a $copy.yaml"),
      SYNC_PIN_PATH: join(folder.path, "pin"),
    };
    const command = commandOf(await runCommand(gateCommand(), env));
    checkVerdict(await runCommand(["bash", "-c", command], { AUTO_SYNC_TOKEN: TOKEN }), { want: "written" });
    checkVerdict(await runCommand(gateCommand(), env), { want: "in-sync", log: /The pin agrees\.$/ });
  });

  test("if it is not known how the gate was started, it is the command of the README", async () => {
    using gitea = await startGitea();
    const flags = ["--input-type=module", "-e", 'await import("./dist/test/sync-providers.js")'];
    const env = { ...pushEnv(gitea.url), SYNC_COPY_PATH: DRIFTED_PATH, ...COVERAGE };
    match(commandOf(await runCommand([process.execPath, ...flags], env)), / npx tsx sync-providers\.ts --write$/);
  });
});

// ------------------------------------------------------------------------------------------------
// Re-sync
// ------------------------------------------------------------------------------------------------

{
  const goConstant = (sha256: string) => Buffer.from(`// \xfc\nconst canonicalSHA256 = "${sha256}"\n`, "latin1");
  const write = { args: ["--write", "--copy", "DIR/copy"], env: { SYNC_PIN_PATH: "DIR/pin" } };
  testRows("a re-sync", [
    {
      name: "copy and pin are written",
      ...write,
      files: { copy: DRIFTED, pin: goConstant(DRIFTED_SHA256.toUpperCase()) },
      want: "written",
      written: { copy: CANONICAL, pin: goConstant(CANONICAL_SHA256) },
      log: /Wrote ".*copy" and ".*pin"\. Regenerate what is built from the copy/,
    },
    {
      name: "only the pin is stale",
      ...write,
      files: { copy: CANONICAL, pin: OTHER_SHA256 },
      want: "written",
      written: { pin: CANONICAL_SHA256 },
      log: /: Wrote ".*pin"\. /,
    },
    {
      name: "only the copy differs",
      ...write,
      files: { copy: DRIFTED, pin: CANONICAL_SHA256 },
      want: "written",
      written: { copy: CANONICAL },
      log: /: Wrote ".*copy"\. /,
    },
    {
      name: "nothing is to be done",
      ...write,
      files: { copy: CANONICAL, pin: CANONICAL_SHA256 },
      want: "in-sync",
      log: /nothing was written\.$/,
    },
    {
      name: "a missing copy is created, with its folders",
      args: ["--write", "--copy", "DIR/a/new/folder/copy"],
      want: "written",
      written: { "a/new/folder/copy": CANONICAL },
    },
    {
      name: "from a local canonical file, without a token",
      args: [...write.args, ...LOCAL],
      env: { AUTO_SYNC_TOKEN: "" },
      files: { copy: DRIFTED },
      want: "written",
      written: { copy: CANONICAL },
      requests: 0,
    },
    {
      name: "without a local canonical file no copy is created",
      args: ["--write", "--copy", "DIR/new/copy", "--canonical", "none"],
      want: "file-not-found",
    },
    {
      name: "without a token nothing is written",
      ...write,
      env: { AUTO_SYNC_TOKEN: "" },
      files: { copy: DRIFTED },
      want: "token-missing",
      log: /so nothing was written\. Enter a token/,
    },
    {
      name: "from a damaged file nothing is written",
      ...write,
      server: { file: playEdited("ok-at-commit", (raw) => raw.replace("schema_version: 1", "schema_version: 2")) },
      files: { copy: DRIFTED, pin: DRIFTED_SHA256 },
      want: "bad-response",
    },
    {
      name: "over a Git LFS pointer nothing is written",
      ...write,
      files: { copy: LFS_POINTER, pin: DRIFTED_SHA256 },
      want: "copy-unreadable",
    },
    {
      name: "beside an unreadable pin nothing is written",
      ...write,
      files: { copy: DRIFTED, pin: "none" },
      want: "pin-unreadable",
    },
    {
      name: "below a file no folder can be created",
      args: ["--write", "--copy", "DIR/file/copy"],
      files: { file: "" },
      want: "write-failed",
      log: /Cannot write ".*": E.*Check the permissions and the free space/,
    },
    { name: "below /proc no file can be created", args: ["--write", "--copy", "/proc/none"], want: "write-failed" },
  ]);

  test("a re-sync keeps the mode and the inode of the copy", async () => {
    using folder = createFolder({ copy: DRIFTED });
    const copy = join(folder.path, "copy");
    chmodSync(copy, 0o640);
    const { ino } = statSync(copy);
    equal((await runGate(["--write", "--copy", copy, ...LOCAL], {})).exitCode, 0);
    deepEqual(readFileSync(copy), CANONICAL);
    deepEqual([statSync(copy).mode & 0o7777, statSync(copy).ino], [0o640, ino]);
  });
}

// ------------------------------------------------------------------------------------------------
// Section 10: text
// ------------------------------------------------------------------------------------------------

testRows("foreign text", [
  {
    name: "a command in an error message does not become one",
    server: { every: respondJson(401, { message: "\n::error::x ##[error]y 100%" }) },
    want: "token-rejected",
    log: '401, "\\u{a}: :error: :x # #[error]y 100%25"',
  },
  {
    name: "a long error message is cut, and the remedy stays",
    server: { every: respondJson(401, { message: "x".repeat(5000) }) },
    want: "token-rejected",
    log: /x … x.*Make a new one and store it as AUTO_SYNC_TOKEN\.$/,
  },
  {
    name: "a name of a file that is a command",
    env: { SYNC_COPY_PATH: "x\n::error::y" },
    want: "copy-unreadable",
    log: 'Cannot read the copy "x\\u{a}: :error: :y"',
  },
  {
    name: "a default setting that contains the token is still a setting",
    env: { AUTO_SYNC_TOKEN: "providers", SYNC_COPY_PATH: "" },
    want: "copy-unreadable",
    log: 'Cannot read the copy "workspace-server/internal/***/***.yaml": ENOENT',
  },
  {
    name: "a token that is too short to be one is not redacted",
    env: { AUTO_SYNC_TOKEN: "usage" },
    want: "usage",
    log: /::usage: Cannot use AUTO_SYNC_TOKEN: it is shorter than 8 characters/,
  },
]);

test("lines of a diff that look like commands, or have control characters, are inert", async () => {
  const copy = "  ::warning::a\na: 1\n";
  const canonical = "  ::warning::a\na: 2\n::error::b\n##[error]c\nx: \u001b[31m \u202e\t\r\n";
  deepEqual((await explain(copy, canonical)).slice(4), [
    "   : :warning::a",
    "-a: 1",
    "+a: 2",
    "+::error::b",
    "+# #[error]c",
    "+x: \\u{1b}[31m \\u{202e}\t\\u{d}",
  ]);
});

test("a line of the log is cut after 1,000 characters", async () => {
  const lines = await explain(`a: ${"x".repeat(5000)}y\n`, "a: 1\n");
  match(lines.find((line) => line.startsWith("-a")) ?? "", /^-a: x{494} … x{497}y$/);
});

// ------------------------------------------------------------------------------------------------
// Section 11: start
// ------------------------------------------------------------------------------------------------

describe("the real command", { concurrency: 4 }, () => {
  const [major = 0, minor = 0] = process.versions.node.split(".").map(Number);
  const isInstalled = (name: string) =>
    (process.env.PATH ?? "").split(":").some((path) => existsSync(join(path, name)));
  const starts = [
    { name: "the source under tsx", command: gateCommand() },
    { name: "the source, compiled", command: measuredCommand([]) },
    { name: "the bundle under node", command: [process.execPath, BUNDLE] },
  ];
  if (major > 22 || (major === 22 && minor >= 18)) {
    starts.push({ name: "the source under node alone", command: [process.execPath, "sync-providers.ts"] });
  }
  if (isInstalled("deno")) {
    starts.push({ name: "the source under Deno", command: ["deno", "run", "-A", "sync-providers.ts"] });
  }
  const rows = [
    { name: "in sync", args: [], env: {}, want: "in-sync" },
    { name: "a drift", args: ["--copy", DRIFTED_PATH], env: {}, want: "drift" },
    { name: "no token", args: [], env: { AUTO_SYNC_TOKEN: "" }, want: "token-missing" },
    {
      name: "a fork without a token",
      args: ["--replay", "fixtures/events/pr-fork-synchronize.json"],
      env: { AUTO_SYNC_TOKEN: "" },
      want: "skipped",
    },
    { name: "a wrong flag", args: ["--no-such-flag"], env: {}, want: "usage" },
    { name: "no copy", args: ["--copy", "none"], env: {}, want: "copy-unreadable" },
  ] as const;
  for (const start of starts) {
    for (const { name, args, env, want } of rows) {
      test(`${start.name}: ${name}`, async () => {
        using gitea = await startGitea();
        const run = await runCommand([...start.command, ...args], {
          ...pushEnv(gitea.url),
          ...env,
          ...COVERAGE,
        });
        checkVerdict(run, { want });
        equal(run.stderr, "");
      });
    }
  }

  const importing = [process.execPath, "--input-type=module", "-e", 'await import("./dist/test/sync-providers.js")'];
  const startedAs = [
    { name: "by a symbolic link", command: [process.execPath, "DIR/link.js"], runs: true },
    {
      name: "by a name without its ending",
      command: [process.execPath, "node_modules/tsx/dist/cli.mjs", "sync-providers"],
      runs: true,
    },
    {
      name: "from standard input",
      command: ["bash", "-c", `"$0" --input-type=module - < ${BUNDLE}`, process.execPath],
      runs: true,
    },
    { name: "by a script that is no file", command: [...importing, "no-such-script"], runs: true },
    { name: "by a script that is a folder", command: [...importing, "fixtures"], runs: true },
    { name: "by the import of another script", command: [...importing, "package.json"], runs: false },
  ];
  for (const { name, command, runs } of startedAs) {
    test(`started ${name}, the gate ${runs ? "runs" : "does not run"}`, async () => {
      using folder = createFolder();
      symlinkSync(resolve("dist/test/sync-providers.js"), join(folder.path, "link.js"));
      const started = command.map((word) => word.replace("DIR", folder.path));
      const run = await runCommand(started, {
        GITHUB_EVENT_NAME: "push",
        SYNC_COPY_PATH: CANONICAL_PATH,
        ...COVERAGE,
      });
      equal(run.exitCode, runs ? 1 : 0, run.log);
      equal(run.verdict.startsWith("::error::token-missing: "), runs, run.log);
    });
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

  // Without process.exit() these would not end.
  const leftovers: { name: string; server: ServerScript; env: (url: string) => Env; want: Row["want"] }[] = [
    {
      name: "a server that never answers the TLS handshake",
      server: {},
      env: (url) => ({ SYNC_CANONICAL_SERVER: url.replace("http:", "https:"), SYNC_TIMEOUT_SECONDS: "0.5" }),
      want: "timeout",
    },
    {
      name: "a proxy whose tunnel stays silent",
      server: { tunnel: (socket) => void socket.write("HTTP/1.1 200 OK\r\n\r\n") },
      env: (url) => ({
        SYNC_CANONICAL_SERVER: "https://gitea.test",
        HTTPS_PROXY: url,
        SYNC_TIMEOUT_SECONDS: "0.5",
      }),
      want: "timeout",
    },
  ];
  for (const { name, server, env, want } of leftovers) {
    test(`the process ends with its verdict: ${name}`, { timeout: 30_000 }, async () => {
      using gitea = await startGitea(server);
      checkVerdict(await runCommand(gateCommand(), { ...pushEnv(gitea.url), ...env(gitea.url) }), { want });
    });
  }
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
  const gate = steps.find(({ env }) => toMapping(env).AUTO_SYNC_TOKEN !== undefined);
  return { text, root, jobs, steps, gate: toMapping(gate), last: toMapping(steps.at(-1)) };
}

interface Rule {
  readonly name: string;
  /** What happens without the rule. */
  readonly prevents: string;
  readonly holds: (workflow: ReturnType<typeof parseWorkflow>) => boolean;
  /** Changes of the text that break the rule. */
  readonly broken: readonly (readonly [part: string | RegExp, by: string])[];
}

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
    name: "runs of another event or ref are kept apart",
    prevents: "a scheduled run cancels the push run of main, which is a failed commit status",
    holds: ({ root }) => {
      return toMapping(root.concurrency).group === `${root.name}-\${{ github.event_name }}-\${{ github.ref }}`;
    },
    broken: [["-${{ github.event_name }}", ""]],
  },
  {
    name: "only runs of pull requests are cancelled",
    prevents: "the second of two quick pushes cancels the first, whose commit then has a failed status",
    holds: ({ root }) => {
      return toMapping(root.concurrency)["cancel-in-progress"] === "${{ github.event_name == 'pull_request' }}";
    },
    broken: [[/cancel-in-progress: .*/, "cancel-in-progress: true"]],
  },
  {
    name: "every job has a timeout",
    prevents: "a job that hangs keeps its runner for hours",
    holds: ({ jobs }) => jobs.every((job) => job["timeout-minutes"] !== undefined),
    broken: [["timeout-minutes:", "timeout:"]],
  },
  {
    name: "no job or step can be skipped, or pass although it failed, except the step about failed scheduled runs",
    prevents: "a job in which nothing ran passes",
    holds: ({ text }) => !/continue-on-error|\bif: (?!failure\(\) && github\.event_name == 'schedule'$)/m.test(text),
    broken: [
      [/ run: /, " continue-on-error: true\n        run: "],
      [/ run: /, " if: failure()\n        run: "],
      ["    timeout-minutes:", "    if: github.actor\n    timeout-minutes:"],
    ],
  },
  {
    name: "the checkout leaves no credentials behind",
    prevents: "an installed package could push with them",
    holds: ({ steps }) => JSON.stringify(steps[0]?.with) === '{"persist-credentials":false}',
    broken: [["persist-credentials: false", "persist-credentials: true"]],
  },
];

/** Rules for the workflows that run the gate. */
const GATE_RULES: readonly Rule[] = [
  {
    name: "it listens to the events of cases 1 to 3, and to no other",
    prevents: "code of a fork would run with the secret, or a night would pass unchecked",
    holds: ({ root }) => Object.keys(toMapping(root.on)).join() === "pull_request,push,schedule,workflow_dispatch",
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
    name: "the step of the gate runs the gate alone, always",
    prevents: "a failure would be ignored, or nothing would run",
    holds: ({ gate }) => {
      const commands = ["npx tsx sync-providers.ts", "node .gitea/sync-providers.mjs"];
      return commands.includes(String(gate.run)) && gate.if === undefined;
    },
    broken: [
      [/run: ((npx tsx|node) .*)/, "run: true"],
      [/run: (?=(npx tsx|node) )/, "if: failure() && github.event_name == 'schedule'\n        run: "],
    ],
  },
  {
    name: "the secret is in the environment of the gate's step only",
    prevents: "every other step, and every action in it, could read it",
    holds: ({ text, gate }) => {
      const isOnce = text.split("secrets.").length === 2;
      return isOnce && toMapping(gate.env).AUTO_SYNC_TOKEN === "${{ secrets.AUTO_SYNC_TOKEN }}";
    },
    broken: [
      [/^permissions:/m, "env:\n  A: ${{ secrets.A }}\npermissions:"],
      ["secrets.AUTO_SYNC_TOKEN", "secrets.OTHER"],
    ],
  },
  {
    name: "the job's own token is in the environment of the last step only",
    prevents: "the code of packages would run beside a token that can write issues",
    holds: ({ text, last }) => {
      return text.split("github.token").length === 2 && toMapping(last.env).TOKEN === "${{ github.token }}";
    },
    broken: [["AUTO_SYNC_TOKEN: ", "JOB_TOKEN: ${{ github.token }}\n          AUTO_SYNC_TOKEN: "]],
  },
  {
    name: "the last step runs after a failed scheduled run, and only then",
    prevents: "nobody would notice a failed night",
    holds: ({ last }) => last.if === "failure() && github.event_name == 'schedule'",
    broken: [["failure() && ", ""]],
  },
  {
    name: "its job may write issues",
    prevents: "the last step could not open the issue",
    holds: ({ jobs }) => jobs.every((job) => toMapping(job.permissions).issues === "write"),
    broken: [["issues: write", "issues: read"]],
  },
];

/** Rules for the workflows that install packages. */
const SOURCE_RULES: readonly Rule[] = [
  {
    name: "it installs without scripts and without development packages",
    prevents: "code of a package would run before the gate",
    holds: ({ steps }) => steps[1]?.run === "npm ci --omit=dev --ignore-scripts",
    broken: [[" --ignore-scripts", ""]],
  },
  {
    name: "tsx uses no cache",
    prevents: "another user of a shared runner could replace the compiled code in /tmp",
    holds: ({ gate }) => toMapping(gate.env).TSX_DISABLE_CACHE === "1",
    broken: [['TSX_DISABLE_CACHE: "1"', 'TSX_DISABLE_CACHE: "0"']],
  },
];

describe("rules for workflows", () => {
  const applied = [
    { path: GATE, rules: [...RULES, ...GATE_RULES, ...SOURCE_RULES] },
    { path: BUNDLE_VARIANT, rules: [...RULES, ...GATE_RULES] },
    { path: MATRIX_VARIANT, rules: [...RULES, ...GATE_RULES, ...SOURCE_RULES] },
    { path: CI, rules: RULES },
  ];
  for (const { path, rules } of applied) {
    const text = readFileSync(path, "utf8");
    for (const { name, prevents, holds, broken } of rules) {
      test(`${path}: ${name}`, () => ok(holds(parseWorkflow(text)), prevents));
      for (const [part, by] of broken) {
        test(`${path}: a broken variant fails the rule: ${name} (${JSON.stringify(by)})`, () => {
          const changed = text.replace(part, () => by);
          notEqual(changed, text, "the change found its place");
          equal(holds(parseWorkflow(changed)), false);
        });
      }
    }
  }
});

describe("the drop-in for the workflow of molecule-core", () => {
  const { root, jobs, text } = parseWorkflow(readFileSync(GATE, "utf8"));

  test("the commit status has the name that branch protection knows", () => {
    deepEqual(Object.keys(toMapping(root.jobs)), ["compare"]);
    equal(
      `${root.name} / ${jobs[0]?.name} (pull_request)`,
      "sync-providers-yaml / Compare synced providers.yaml against controlplane canonical (pull_request)",
    );
  });

  test("the comment bp-required stands right above the job", () => {
    match(text, /\n {2}# bp-required: pending #718\n {2}compare:\n/);
  });

  test("the triggers are those of the workflow that it replaces, with the pin and the files of the gate", () => {
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
});

describe("the variants", () => {
  const withoutComments = (path: string) => readFileSync(path, "utf8").replace(/^ *#(?! bp-).*\n/gm, "");

  test("the bundle variant differs in what installs and starts the gate, and in nothing else", () => {
    const source = withoutComments(GATE)
      .replaceAll(/ +- '(sync-providers\.ts|package\.json)'\n/g, "")
      .replaceAll("'package-lock.json'", "'.gitea/sync-providers.mjs'")
      .replace("      - name: Install the gate\n        run: npm ci --omit=dev --ignore-scripts\n", "")
      .replace('          TSX_DISABLE_CACHE: "1"\n', "")
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
      .replace(" canonical file\n", " canonical\n")
      .replace(/\$\{\{ matrix\.([\w-]+) \}\}/g, (_all, key) => String(pair?.[key]));
    equal(single, withoutComments(GATE));
  });

  test("a pair that fails does not cancel the others", () => equal(failFast, false));

  test("each pair has its own commit status, and its files are in the paths", () => {
    deepEqual(
      pairs.map(({ name }) => name),
      ["providers.yaml", "models.yaml"],
    );
    const paths = JSON.stringify(toMapping(toMapping(root.on).push).paths);
    for (const { copy, pin } of pairs) {
      ok(paths.includes(JSON.stringify(copy)) && paths.includes(JSON.stringify(pin)));
    }
  });
});

describe("the last step of the workflow", () => {
  const { last } = parseWorkflow(readFileSync(GATE, "utf8"));
  const title = "The scheduled run of sync-providers-yaml failed";

  /** Runs the script of the step as the runner does, with a curl that notes its arguments. */
  async function runLastStep(issuesUrl: string) {
    using folder = createFolder({
      curl: `#!/bin/sh\necho "$0 $*" >> "${"$"}{0%/*}/args"\nPATH="${"$"}{PATH#*:}" exec curl "$@"\n`,
    });
    chmodSync(join(folder.path, "curl"), 0o755);
    const env = {
      AUTO_SYNC_TOKEN: TOKEN,
      TOKEN,
      ISSUES: issuesUrl,
      RUNS: "https://git.example.com/acme/app/actions",
      TITLE: String(toMapping(last.env).TITLE),
      PATH: `${folder.path}:${process.env.PATH}`,
    };
    const run = await runCommand(
      ["bash", "--noprofile", "--norc", "-e", "-o", "pipefail", "-c", String(last.run)],
      env,
    );
    return { ...run, args: readFileSync(join(folder.path, "args"), "utf8") };
  }

  test("a failed night opens one issue, the next none, and after it was closed the next opens a new one", async () => {
    const issues: { title: string; body: string; isOpen: boolean }[] = [];
    using gitea = await startGitea({
      issues: (socket, request) => {
        if (request.method === "POST") {
          issues.push({ ...JSON.parse(request.body), isOpen: true });
          respondJson(201, { number: issues.length })(socket, request);
        } else {
          respondJson(
            200,
            issues.filter(({ isOpen }) => isOpen),
          )(socket, request);
        }
      },
    });
    const url = `${gitea.url}/api/v1/repos/acme/app/issues`;
    const first = await runLastStep(url);
    equal(first.exitCode, 0, first.stderr);
    deepEqual(issues, [
      {
        title,
        body: "See https://git.example.com/acme/app/actions, and close this issue when it is fixed.",
        isOpen: true,
      },
    ]);
    equal((await runLastStep(url)).log, "The issue is open already.");
    equal(issues.length, 1);
    issues[0] = { title, body: "", isOpen: false };
    await runLastStep(url);
    equal(issues.length, 2);
    ok(gitea.requests.every(({ headers }) => headers.get("authorization") === `token ${TOKEN}`));
    ok(!first.args.includes(TOKEN), "the token is in an argument");
  });

  test("the captured answer of Gitea 1.26.4 without issues opens one, and one about something else does not matter", async () => {
    for (const name of ["gitea-1.26.4-job-token-issues-none", "gitea-1.26.4-job-token-issues-one"]) {
      using gitea = await startGitea({ issues: [play(name), play("gitea-1.26.4-job-token-issue-created")] });
      equal((await runLastStep(`${gitea.url}/api/v1/repos/acme/app/issues`)).exitCode, 0);
      deepEqual(
        gitea.requests.map(({ method }) => method),
        ["GET", "POST"],
      );
      equal(gitea.requests[0]?.target, "/api/v1/repos/acme/app/issues?state=open&type=issues&q=sync-providers-yaml");
    }
  });

  const down: { name: string; issues: Responder[]; exitCode: number }[] = [
    { name: "hangs up", issues: [hangUp()], exitCode: 52 },
    { name: "answers 500", issues: [respond(500)], exitCode: 22 },
    { name: "does not take the issue", issues: [respondJson(200, []), respond(403)], exitCode: 22 },
  ];
  for (const { name, issues, exitCode } of down) {
    test(`a tracker that ${name} fails the step`, async () => {
      using gitea = await startGitea({ issues });
      equal((await runLastStep(`${gitea.url}/api/v1/repos/acme/app/issues`)).exitCode, exitCode);
    });
  }
});

// ------------------------------------------------------------------------------------------------
// The documents and the packages
// ------------------------------------------------------------------------------------------------

const README = readFileSync("README.md", "utf8");

/** The code in a marked block of the README. */
function codeOf(block: string): string {
  const [, code] =
    new RegExp(`<!-- ${block} -->\n\`\`\`\\w+\n([\\s\\S]*?)\n\`\`\`\n<!-- /${block} -->`).exec(README) ?? [];
  ok(code !== undefined, block);
  return code;
}

describe("the README", () => {
  test("what a failed run looks like is what it prints", async () => {
    using gitea = await startGitea();
    const env = {
      GITHUB_EVENT_NAME: "schedule",
      AUTO_SYNC_TOKEN: TOKEN,
      SYNC_CANONICAL_SERVER: gitea.url,
      SYNC_COPY_PATH: DRIFTED_PATH,
      SYNC_PIN_PATH: "fixtures/providers.sha256",
    };
    const { log } = await runCommand(gateCommand(), env);
    equal(log.replaceAll(gitea.url, "https://git.example.com"), codeOf("drift"));
  });

  test("the replay is skipped, as the README says", async () => {
    checkVerdict(await runCommand(["bash", "-c", codeOf("replay")]), { want: "skipped" });
  });

  const names = `in-sync written skipped drift token-missing pin-mismatch usage unverified copy-unreadable
    pin-unreadable write-failed token-rejected token-scope repo-not-visible repo-archived ref-not-found file-not-found
    redirected too-large unreachable timeout server-error bad-response AUTO_SYNC_TOKEN SYNC_CANONICAL_SERVER
    SYNC_CANONICAL_REPO SYNC_CANONICAL_PATH SYNC_CANONICAL_REF SYNC_COPY_PATH SYNC_PIN_PATH SYNC_ALLOW_HTTP
    SYNC_TIMEOUT_SECONDS GITHUB_EVENT_NAME GITHUB_EVENT_PATH NODE_EXTRA_CA_CERTS`;
  for (const name of names.split(/\s+/)) {
    test(`a table of the README names ${name}`, () => match(README, new RegExp(`^\\|[^|]*\`${name}\``, "m")));
  }

  for (const path of ["README.md", "CONTRIBUTING.md", "SECURITY.md"]) {
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

describe("the steps of adopting the gate", { concurrency: 4 }, () => {
  const otherNames = `
    export SYNC_CANONICAL_REPO=acme/registry
    export SYNC_CANONICAL_PATH=config/internal/providers/providers.yaml
    export SYNC_COPY_PATH=vendor/internal/providers/providers.yaml
    export SYNC_PIN_PATH=vendor/pins/models.sha256`;

  /** Runs the steps in a new repository beside a clone of this project, whose packages are installed. */
  async function adopt(root: string, { variant, names }: { variant: string; names: string }): Promise<Run> {
    using gitea = await startGitea();
    const script = `
      set -eu
      npm() {
        if [ "$1" = pkg ]; then command npm "$@"; return; fi
        mkdir node_modules && ln -s "$PROJECT"/node_modules/{*,.bin} node_modules
      }
      cd "$ROOT" && ln -s "$PROJECT" sync-providers && mkdir repository && cd repository
      git init -q . && git config user.name gate && git config user.email gate@example.com
      ${codeOf("names")}
      ${names}
      export SYNC_CANONICAL_SERVER=${gitea.url}
      ${codeOf(variant)}
      ${codeOf("rename")}
      ${codeOf("first-copy")}
      test -z "$(git status --porcelain)"
      GITHUB_EVENT_NAME=push $gate`;
    const withoutInstall = script.replace("(cd ../sync-providers && npm ci && npm run bundle)", "");
    const project = { PROJECT: resolve("."), ROOT: root, AUTO_SYNC_TOKEN: TOKEN };
    return await runCommand(["bash", "-c", withoutInstall], project);
  }

  for (const variant of ["bundle", "source"]) {
    test(`the ${variant}, at other names, up to a run that passes and a clean work tree`, async () => {
      using folder = createFolder();
      const run = await adopt(folder.path, { variant, names: otherNames });
      checkVerdict(run, { want: "in-sync", log: /The pin agrees\.$/ });
      match(
        run.log,
        /\nwritten: Wrote "vendor\/internal\/providers\/providers\.yaml" and "vendor\/pins\/models\.sha256"/,
      );
      const { root, jobs } = parseWorkflow(
        readFileSync(join(folder.path, "repository/.gitea/workflows/sync-providers-yaml.yml"), "utf8"),
      );
      deepEqual(jobs[0]?.env, {
        SYNC_CANONICAL_REPO: "acme/registry",
        SYNC_CANONICAL_PATH: "config/internal/providers/providers.yaml",
        SYNC_COPY_PATH: "vendor/internal/providers/providers.yaml",
        SYNC_PIN_PATH: "vendor/pins/models.sha256",
      });
      const { paths } = toMapping(toMapping(root.on).push);
      deepEqual(Array.isArray(paths) && paths.slice(0, 2), [
        "vendor/internal/providers/providers.yaml",
        "vendor/pins/models.sha256",
      ]);
    });
  }

  test("with the names of molecule-core the workflow is not changed", async () => {
    using folder = createFolder();
    await adopt(folder.path, { variant: "bundle", names: "" });
    const adopted = join(folder.path, "repository/.gitea/workflows/sync-providers-yaml.yml");
    equal(readFileSync(adopted, "utf8"), readFileSync(BUNDLE_VARIANT, "utf8"));
  });
});

describe("the fixtures", () => {
  const own = readFileSync("sync-providers.test.ts", "utf8") + readFileSync("fixtures/gitea-server.ts", "utf8");
  for (const file of readdirSync("fixtures/responses")) {
    test(`${file} is played by a row`, () => ok(own.includes(`"${file.replace(".http", "")}"`)));
  }

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

  test("a runner installs five packages beside esbuild's binaries", () => {
    const installed = packages.filter(([, value]) => {
      const { dev, os, optional } = toMapping(value);
      return [dev, os, optional].every((mark) => mark === undefined);
    });
    deepEqual(installed.map(([path]) => path.replace("node_modules/", "")).sort(), [
      "diff",
      "esbuild",
      "tsx",
      "undici",
      "yaml",
    ]);
  });

  test("CI runs the README's test command", () => {
    match(readFileSync(".ci/run", "utf8"), /^npm cit$/m);
    match(README, /^npm cit$/m);
    match(readFileSync(CI, "utf8"), /run: bash \.ci\/run$/m);
  });
});
