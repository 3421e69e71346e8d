/**
 * The tables, in the order of sync-providers.ts. Every expected value is written out. Most rows call `main`
 * in this process; a few run the real command. Servers listen on the loopback only.
 */

import { deepEqual, doesNotMatch, equal, match, ok } from "node:assert/strict";
import { type ChildProcess, spawn } from "node:child_process";
import {
  chmodSync,
  linkSync,
  lstatSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import type { Server } from "node:net";
import { networkInterfaces } from "node:os";
import { join, relative } from "node:path";
import { before, describe, test } from "node:test";
import { createServer as createTlsServer } from "node:tls";
import fc from "fast-check";
import { renderDocuments } from "./fixtures/examples.ts";
import {
  type Issue,
  JOB_REPO,
  JOB_TOKEN,
  kindOf,
  type Play,
  play,
  playForge,
  playJson,
  playRepository,
  STAND_IN_TOKEN,
  startForge,
} from "./fixtures/forge.ts";
import { fuzz } from "./fixtures/fuzz.ts";
import {
  ASK,
  against,
  alarmed,
  annotations,
  answer,
  assertNoPiece,
  at,
  BASE,
  BODY,
  BOTH,
  behind,
  busy,
  CANONICAL,
  CANONICAL_SUM,
  COMMIT,
  type Content,
  captured,
  chunks,
  close,
  closed,
  command,
  commandsIn,
  contentOf,
  couldBeFork,
  cutOff,
  DRIFTED,
  DRIFTED_SUM,
  difference,
  drifted,
  drip,
  each,
  echo,
  edit,
  endless,
  endlessHead,
  endlessJson,
  endOf,
  ends,
  envFor,
  FETCH,
  FORK,
  fifty,
  file,
  filesOf,
  fileTagged,
  fileUnder,
  fileWith,
  fileWithout,
  first,
  flipped,
  forAnyText,
  forgeFor,
  forkNamed,
  formsOf,
  gate,
  goPin,
  halfFile,
  hangUp,
  html,
  hung,
  issue,
  JOB,
  jobForge,
  json,
  keepOpen,
  kept,
  killed,
  LOOK,
  lastLine,
  late,
  leaky,
  leftOpen,
  linkTo,
  MARKER,
  MEASURED,
  made,
  measured,
  movedIssues,
  NEW,
  named,
  never,
  night,
  noCommit,
  numbered,
  OLD,
  OPEN,
  OTHER_SUM,
  on,
  onCommit,
  PUSH,
  page,
  paged,
  pair,
  patch,
  pausing,
  payloads,
  plainServer,
  pour,
  preloaded,
  pull,
  ROOT,
  rawIssue,
  refused,
  rejected,
  relayTo,
  repos,
  repository,
  reset,
  resetLate,
  run,
  saying,
  scratch,
  scratchFile,
  seesOne,
  settingsOf,
  silence,
  spelled,
  spelledOut,
  stateOf,
  statusOf,
  summaryOf,
  TSX,
  temp,
  throwing,
  to,
  tunnel,
  USER,
  unwell,
  useForge,
  verdictOf,
  versus,
  withheld,
  within,
  workTree,
} from "./fixtures/harness.ts";
import { GATE, GATE_RULES, RULES, workflowOf } from "./fixtures/workflow-rules.ts";
import {
  type Context,
  classify,
  createRedactor,
  type Env,
  type Evidence,
  escapeData,
  escapeForLog,
  escapeLogLine,
  escapeProperty,
  Failure,
  firstDifferingLine,
  judge,
  main,
  type Payload,
  REMEDIES,
  STATUSES,
  summarize,
  toJson,
  VERSION,
} from "./sync-providers.ts";

// The same inputs in every run: a red test is to be about the change that is tested.
fc.configureGlobal({ seed: 20_261_123 });

// ── statuses and text ──

describe("the statuses", () => {
  test("stand in their order, with exit codes and levels", () => {
    const rows = Object.entries(STATUSES).map(([status, { exitCode, level }]) => [status, exitCode, level]);
    deepEqual(rows, [
      ["usage", 2, "error"],
      ["drift", 1, "error"],
      ["token-missing", 1, "error"],
      ["pin-mismatch", 1, "error"],
      ["unverified", 3, "error"],
      ["skipped", 0, "warning"],
      ["in-sync", 0, "none"],
    ]);
  });
  test("have a version that is the package's", () =>
    equal(VERSION, JSON.parse(readFileSync("package.json", "utf8")).version));
});

describe("escaping for the log", () => {
  const rows: [text: string, inMessage: string, ofLine?: string][] = [
    ["a: b, 100% ✓", "a: b, 100% ✓"],
    ["::error::x", ": :error: :x", ": :error::x"],
    [" ::error::x", " : :error: :x", " : :error::x"],
    ["+::::", "+: : : :", "+::::"],
    ["x ##[error]y ###[z]", "x # #[error]y ## #[z]"],
    ["a\r\nb\tc\u2028d", "a\\r\\nb\\tc\\u{2028}d"],
    ["\u001b[31mred\u0007\u009b", "\\u{1b}[31mred\\u{7}\\u{9b}"],
    ["a\u202eb\u200bc\ufeff", "a\\u{202e}b\\u{200b}c\\u{feff}"],
    ["a\ud800b", "a\\u{d800}b"],
    ["http://[::1]:80", "http://[0:0:0:0:0:0:0:1]:80", "http://[::1]:80"],
    ["[fe80::a:1]", "[fe80:0:0:0:0:0:a:1]", "[fe80::a:1]"],
  ];
  for (const [text, inMessage, ofLine = inMessage] of rows) {
    test(`of ${JSON.stringify(text)} in a message`, () => equal(escapeForLog(text), inMessage));
    test(`of ${JSON.stringify(text)} as a line`, () => equal(escapeLogLine(text), ofLine));
  }
});

describe("escaping of workflow commands", () => {
  const rows: [text: string, data: string, property: string][] = [
    ["a b", "a b", "a b"],
    ["5%\r\n", "5%25%0D%0A", "5%25%0D%0A"],
    ["a:b,c", "a:b,c", "a%3Ab%2Cc"],
    ["%0A", "%250A", "%250A"],
  ];
  for (const [text, ...want] of rows)
    test(JSON.stringify(text), () => deepEqual([escapeData(text), escapeProperty(text)], want));
});

describe("the redaction", () => {
  const rows: [name: string, secrets: string[], text: string, want: string][] = [
    ["the secret itself", ["0123456789abcdef"], "at 0123456789abcdef.", "at ***."],
    ["the secret in capitals", ["0123456789abcdef"], "at 0123456789ABCDEF.", "at ***."],
    ["base64", ["secret-token"], "c2VjcmV0LXRva2Vu", "***"],
    ["URL-safe base64", ["~~~???~~~"], "fn5-Pz8_fn5-", "***"],
    ["a percent-encoded secret", ["tok{en}1234"], "tok%7Ben%7D1234", "***"],
    ["a secret of a pattern's marks", ["a.*(b)[c]$"], "a.*(b)[c]$ axxb", "*** axxb"],
    ["a secret that begins as another", ["abcdefgh", "abcdefgh12345678"], "x abcdefgh12345678", "x ***"],
    ["two secrets", ["first-secret", "other-secret"], "first-secret, other-secret", "***, ***"],
    ["no word as short as this", ["token"], "token-missing", "token-missing"],
    ["nothing without a secret", ["", ""], "abc", "abc"],
  ];
  each("blots out", rows, (secrets, text, want) => equal(createRedactor(secrets)(text), want));
});

// ── settings ──

const LOCAL = ["--canonical", CANONICAL, "--copy", CANONICAL];

describe("settings and flags", () => {
  const accepted: Env[] = [
    { SYNC_TIMEOUT_SECONDS: "", SYNC_MAX_BYTES: " ", SYNC_CANONICAL_SERVER: "", SYNC_ALLOW_HTTP: "" },
    { SYNC_TIMEOUT_SECONDS: "86400", SYNC_MAX_BYTES: "1073741824" },
    { SYNC_TIMEOUT_SECONDS: "0.5", SYNC_MAX_BYTES: "795" },
    { AUTO_SYNC_TOKEN: "in ner", SYNC_JOB_TOKEN: "in ner" },
    { GITHUB_SERVER_URL: "http://gitea:3000" },
    { SYNC_CANONICAL_SERVER: "https://example.com/git/" },
    { SYNC_CANONICAL_SERVER: "http://127.1.2.3:80" },
    { SYNC_CANONICAL_SERVER: "http://[0:0::1]:80" },
    { SYNC_CANONICAL_SERVER: "http://localhost:3000" },
    { SYNC_CANONICAL_SERVER: "http://gitea:3000", SYNC_ALLOW_HTTP: "1" },
    { SYNC_CANONICAL_REPO: "a.b-c/_d", SYNC_CANONICAL_PATH: "a..b/ü %.yaml" },
    { SYNC_CANONICAL_REF: "release/1.0" },
  ];
  for (const env of accepted)
    test(`accepts ${JSON.stringify(env)}`, async () => equal(await statusOf(LOCAL, env), "in-sync 0"));
  test("take the copy by setting, or by a flag, which wins", async () => {
    const [argv, env] = [["--canonical", CANONICAL], { SYNC_COPY_PATH: DRIFTED }];
    const outside = [...argv, "--copy", `fixtures/../${CANONICAL}`];
    equal(await statusOf(argv, env), "drift 1");
    equal(await statusOf(outside, env), "in-sync 0");
  });

  const SERVER = "SYNC_CANONICAL_SERVER";
  const refused: [setting: string, texts: string[], says: RegExp][] = [
    [SERVER, ["git.example.com", "https://a b", "https:\\\\a", "https://a\tb"], /it is not a URL/],
    [SERVER, ["ftp://a"], /it is neither/],
    [SERVER, ["https://me@a", "https://:pw@a", "https://me:hunter2@a.example"], /it holds a user name/],
    [SERVER, ["https://a/?", "https://a/#"], /it holds a query/],
    [SERVER, ["http://127.0.0.1.example.com"], /SYNC_ALLOW_HTTP=1/],
    ["GITHUB_SERVER_URL", ["http://gitea:3000"], /SYNC_ALLOW_HTTP=1/],
    ["SYNC_ALLOW_HTTP", ["yes"], /it is "yes"/],
    ["SYNC_CANONICAL_REPO", ["name", "a/b/c", "../b", "a/.", "a/b?c"], /it is ".*owner\/name/],
    ["SYNC_CANONICAL_REPO", ["https://me:hunter2@a.example/o/n", "me:hunter2@o/n"], /or holds a credential/],
    ["SYNC_CANONICAL_PATH", ["/etc/passwd", "a/../b", "./a", "a\nb"], /it is ".*without "\.\."/],
    ["SYNC_CANONICAL_REF", ["..", "a\u0000b"], /it is ".*a branch, a tag/],
    ["SYNC_TIMEOUT_SECONDS", ["0", "-1", "1m", "0x10", "86401"], /it is ".*86400/],
    ["SYNC_MAX_BYTES", ["0", "1.5", "1073741825"], /it is ".*1073741824/],
  ];
  for (const [setting, texts, says] of refused) {
    for (const text of texts) {
      test(`refuse ${setting}=${JSON.stringify(text)}`, async () => {
        const ran = await gate([], { [setting]: text });
        match(endOf(ran), RegExp(`^2 ::error::usage: Cannot use the setting ${setting}: .*${says.source}`));
        doesNotMatch(ran.stdout, /hunter2|a\.example/);
      });
    }
  }

  const pairs = ["replay=a event=b", "replay=a write", "explain write", "explain json"];
  const ofAlarm = ["alarm write", "alarm replay=a", "alarm explain", "alarm canonical=a"];
  const contradictions = [...pairs, ...ofAlarm].map((pair): (typeof wrong)[number] => {
    const [one = "", other = ""] = pair.split(" ").map((flag) => `--${flag}`);
    return [[one, other], RegExp(`The flags ${one} and ${other} contradict`.replaceAll(/=./g, ""))];
  });
  const wrong: [argv: string[], says: RegExp][] = [
    [["--token=x"], /Unknown option '--token'/],
    [["fixtures"], /Unexpected argument 'fixtures'/],
    [["--copy"], /--copy <value>/],
    [["--replay", ""], /--replay is empty/],
    [["--copy", "fixtures/a", "--pin", "fixtures/../fixtures/a"], /copy and the pin .* are one file/],
    [["--replay", "no.json"], /replay "no\.json": there is no such file/],
    [["--replay", "fixtures"], /replay "fixtures": it is a directory/],
    [["--replay", "package.json"], /a bare payload.*--event-name/],
    [["--replay", CANONICAL], /not JSON.*--event-name/],
  ];
  for (const [argv, says] of [...wrong, ...contradictions]) {
    test(`refuse ${argv.join(" ")}`, async () => {
      const { exitCode, stdout, stderr } = await gate(argv);
      match(`${exitCode} ${lastLine(`${stdout}\n${stderr}`)}`, RegExp(`^2 ::error::usage: .*${says.source}`));
    });
  }

  const unset = /^2 ::error::usage: The setting SYNC_CANONICAL_SERVER is not set/;
  ends("refuse", [["to fetch without a server", [], unset, { AUTO_SYNC_TOKEN: "x" }]]);
  test("--help names every flag and every setting", async () => {
    const flags = "event-name event copy canonical replay pin explain write alarm json".split(" ");
    const settings = ["AUTO_SYNC_TOKEN", "SYNC_JOB_TOKEN", "SYNC_PIN_PATH", "SYNC_DEBUG"];
    const { exitCode, stdout } = await gate(["--help"]);
    equal(exitCode, 0);
    for (const word of [...flags.map((flag) => `  --${flag} `), ...settings]) ok(stdout.includes(word), word);
  });
  test("--version prints it alone", async () => equal((await gate(["--version"])).stdout, VERSION));
});

// ── case table ──

/** The row of every file in fixtures/events, written down from what the forge did. Row 3 is not trusted. */
const ROWS = {
  1: "push-main push-staging push-tag schedule workflow-dispatch",
  2: "pr-same-closed pr-same-forked-base pr-same-opened pr-same-reopened pr-same-synchronize",
  3: "pr-agit-opened pr-deleted-fork-labeled pr-fork-synchronize pr-from-parent",
  4: `branch-created branch-deleted fork-created issue-opened pr-fork-comment pr-fork-target pr-same-review
      release-published`,
};
const CAPTURED = Object.entries(ROWS).flatMap(([row, names]) =>
  names.split(/\s+/).map((name) => ({ row: Number(row), name, capture: captured(name) })),
);

const AGIT = { pull_request: { head: { label: "", repo: null } } };
const PROTOTYPE = '{"__proto__":{"pull_request":{"head":{"label":""}}}}';

const UNUSABLE = [
  { repo_id: -1 },
  { repo: false },
  { repo: { fork: "true" } },
  { repo: [BASE] },
  [AGIT],
  null,
];

type Made = [branch: 2 | 3 | 4, name: string, payload: Payload, why: RegExp];

/** Made by hand: each row is about one rule, in the table's order, and about what falls through it. */
const PAYLOADS: Made[] = [
  // Rule 1: the empty label.
  [3, "an empty label before equal ids", pull({ label: "", repo: BASE }), /AGit/],
  [2, "a blank label, which is not empty", pull({ label: " ", repo: BASE }), /id/],
  [2, "a label that is null", pull({ label: null, repo: BASE }), /id/],
  [2, "an empty label of the base", pull({ label: "x", repo: BASE }, { label: "", repo: BASE }), /id/],
  // Rule 2: no head repository any more.
  [3, "a head repository that is null", pull({ label: "x", repo: null }), /deleted/],
  [3, "a head repository that is null, without a base", pull({ repo: null }, null), /deleted/],
  // Rule 3: the ids.
  [2, "equal ids before different names", repos({ id: 1, full_name: "o/x", fork: true }), /is 1, .* is 1/],
  [3, "different ids before equal names", repos({ ...BASE, id: 2, fork: false }), /is 2, .* is 1/],
  [2, "the largest id", repos({ id: 9007199254740991 }, { id: 9007199254740991 }), /id/],
  // Rule 4: the names, where an id is unusable.
  [2, "a head id of 0", repos({ ...BASE, id: 0 }), /"o\/base"/],
  [3, "a base id of 0", repos({ id: 1, full_name: "o/x" }, { ...BASE, id: 0 }), /"o\/x"/],
  ...["1", -1, 1.5, 2 ** 53].map(
    (id): Made => [3, `the ids ${id}`, repos({ id, full_name: "o/x" }, { ...BASE, id }), /"o\/x"/],
  ),
  [2, "names that differ in case alone", repos({ full_name: "O/Base" }), /"O\/Base"/],
  [2, "a base name in capitals", repos({ full_name: "o/base" }, { full_name: "O/BASE" }), /"O\/BASE"/],
  [2, "names before the flag", repos({ full_name: "o/base", fork: true }), /"o\/base"/],
  // Rule 5: the flag.
  [3, "an empty head name", repos({ full_name: "", fork: true }), /fork is true/],
  [2, "an empty base name", repos({ full_name: "o/x", fork: false }, { full_name: "" }), /fork is false/],
  [3, "names as numbers", repos({ full_name: 1, fork: true }, { full_name: 1 }), /fork is true/],
  [2, "the flag alone, without a base", pull({ repo: { fork: false } }, undefined), /fork is false/],
  // Rule 6: it cannot be told.
  ...UNUSABLE.map((head): Made => [4, `the head ${JSON.stringify(head)}`, pull(head), /no usable/]),
  [4, "the flag of the base alone", repos({}, { fork: true }), /no usable/],
  [4, "a pull request that is null", { value: { pull_request: null } }, /no usable/],
  [4, "an empty object", { value: {} }, /no usable/],
  [4, "keys of the prototype", { value: JSON.parse(PROTOTYPE) }, /no usable/],
  [4, "inherited keys", { value: Object.create(AGIT) }, /no usable/],
  ...[[AGIT], null, "pull_request"].map(
    (value): Made => [4, `the payload ${JSON.stringify(value)}`, { value }, /not an object/],
  ),
  [4, "no payload", { missing: "nothing there" }, /nothing there/],
];

describe("the case table, on captured events", () => {
  test("has a row for every file", () => {
    const files = readdirSync("fixtures/events").map((file) => file.replace(/\.json$/, ""));
    deepEqual(files.sort(), CAPTURED.map(({ name }) => name).sort());
  });
  for (const { row: want, name, capture } of CAPTURED) {
    const { event_name, event, secret_arrived } = capture;
    test(`${want === 3 ? "does not trust" : "trusts"} ${name}`, () => {
      const { branch, trusted } = classify(event_name, { value: event });
      deepEqual([branch, trusted], [want, want !== 3]);
    });
    if (event_name === "pull_request")
      test(`agrees with the forge on ${name}`, () => equal(want !== 3, secret_arrived));
  }
});

describe("the case table, on payloads made by hand", () => {
  for (const [want, name, payload, says] of PAYLOADS) {
    test(`${want === 3 ? "does not trust" : "trusts"} ${name}`, () => {
      const { branch, trusted, why } = classify("pull_request", payload);
      deepEqual([branch, trusted], [want, want !== 3], why);
      match(why, says);
    });
  }
});

describe("the case table, on event names", () => {
  const rows: [branch: number, why: RegExp, events: string[]][] = [
    [1, /own context/, ["push", "schedule", "workflow_dispatch"]],
    [4, /does not name/, ["pull_request_target", "Pull_Request", " push", "constructor"]],
    [4, /outside of a workflow/, ["", " \t"]],
  ];
  for (const [row, says, events] of rows) {
    for (const name of events) {
      test(`trusts ${JSON.stringify(name)}, whatever its payload`, () => {
        const { branch, trusted, event, why } = classify(name, { value: AGIT });
        deepEqual([branch, trusted, event], [row, true, name]);
        match(why, says);
      });
    }
  }
});

describe("the event's file", () => {
  const fork = JSON.stringify(AGIT);
  const rows: [name: string, path: string, why: RegExp, want?: string][] = [
    ["a payload", temp(fork), /AGit/, "skipped 0"],
    ["a byte-order mark before the JSON", temp(`\ufeff${fork}`), /AGit/, "skipped 0"],
    ["no file", "none.json", /there is no such file/],
    ["a directory", scratch, /it is a directory/],
    ["a device", "/dev/zero", /not a regular file/],
    ["half a JSON", temp(fork.slice(0, -1)), /not JSON/],
    ["an empty file", temp(""), /not JSON/],
    ["JSON nested beyond the stack", temp("[".repeat(2_000_000)), /not JSON/],
    ["a huge file", temp(Buffer.alloc(26_214_401, " ")), /26214401 bytes/],
    ["an array", temp(`[${fork}]`), /not an object/],
  ];
  for (const [name, path, why, want = "token-missing 1"] of rows) {
    test(`with ${name}: ${want}`, async () => {
      const env = { GITHUB_EVENT_NAME: "pull_request", GITHUB_EVENT_PATH: path };
      equal(await statusOf([], env), want);
      match((await gate(["--event-name", "pull_request", "--event", path])).stdout, why);
    });
  }
  test("is read for a pull request alone, and missed there", async () => {
    const other = await gate([], { GITHUB_EVENT_NAME: "push", GITHUB_EVENT_PATH: "/dev/zero" });
    doesNotMatch(other.stdout, /zero|regular/);
    const { stdout } = await gate([], { GITHUB_EVENT_NAME: "pull_request" });
    match(stdout, /no payload was given \(GITHUB_EVENT_PATH\).*\n::error::token-missing/s);
  });
});

describe("the replay", () => {
  const bare = JSON.stringify({ pull_request: { head: { label: "" } } });
  const capture = `{"event_name":"pull_request","event":${bare}}`;
  const named = ["--event-name", "pull_request"];
  const rows: [name: string, content: string, want: string, argv?: string[], env?: Env][] = [
    ["a capture", capture, "skipped 0"],
    ["a capture, with a token", capture, "in-sync 0", [], { AUTO_SYNC_TOKEN: "x" }],
    ["a capture, before the runner's own event", capture, "skipped 0", [], { GITHUB_EVENT_NAME: "push" }],
    ["a capture, with another name by flag", capture, "token-missing 1", PUSH],
    ["a capture without a name", `{"event_name":"","event":${bare}}`, "token-missing 1"],
    ["a push beside a drift", '{"event_name":"push","event":1}', "token-missing 1", ["--copy", DRIFTED]],
    ["a bare payload, named by flag", bare, "skipped 0", named],
    ["a bare payload, named by setting", bare, "skipped 0", [], { GITHUB_EVENT_NAME: "pull_request" }],
    ["a broken payload, named by flag", "{", "token-missing 1", named],
    ["a capture whose name is a number", `{"event_name":1,"event":${bare}}`, "usage 2"],
    ["a capture without its event", `{"event_name":"push"}`, "usage 2"],
  ];
  each("of", rows, async (content, want, argv = [], env = {}) => {
    equal(await statusOf(["--replay", temp(content), ...LOCAL, ...argv], env), want);
  });
});

// ── every permutation ──

/** What a token comes to by the canonical's state: in sync, drifted, unreachable. */
type Outcome = readonly [string, string, string];
const COMPARED: Outcome = ["in-sync 0", "drift 1", "unverified unreachable 3"];
const SKIPPED = always("skipped 0");
const MISSING = always("token-missing 1");
const REFUSED = always("unverified token-malformed 3");

function always(status: string): Outcome {
  return [status, status, status];
}

/** The secret, the job's token, and what becomes of them in a trusted context and in another. */
const TOKENS: { secret?: string; job?: string; trusted: Outcome; untrusted: Outcome }[] = [
  { trusted: MISSING, untrusted: SKIPPED },
  { secret: "", trusted: MISSING, untrusted: SKIPPED },
  { secret: " \t\n", trusted: MISSING, untrusted: SKIPPED },
  { secret: "to ken-with-a-blank", trusted: REFUSED, untrusted: REFUSED },
  { secret: ` ${STAND_IN_TOKEN}\n`, trusted: COMPARED, untrusted: COMPARED },
  { secret: " ", job: `${STAND_IN_TOKEN}\n`, trusted: COMPARED, untrusted: SKIPPED },
];

describe("every event by every token by every canonical", () => {
  let connections = 0;
  const plain = plainServer().on("connection", () => {
    connections += 1;
  });
  const good = useForge(playRepository);
  // Unreachable by https: at once, without a back-off to be waited for.
  const gone = useForge(silence, plain);
  const asked = () => connections + good.forge.asked.length;
  const secure = () => at(gone.url.replace("http:", "https:"));
  const canonicals = () => [at(good.url), { ...at(good.url), ...OTHER }, secure()];
  const byHand = PAYLOADS.map(([row, name, payload]) => {
    const event = "value" in payload ? payload.value : null;
    return { row, name: `${name}, by hand`, capture: { event_name: "pull_request", event } };
  });
  for (const { row, name, capture } of [...CAPTURED, ...byHand]) {
    test(`${row === 3 ? "untrusted" : "trusted"}: ${name}`, async () => {
      const replay = ["--replay", temp(JSON.stringify(capture))];
      for (const { secret, job, trusted, untrusted } of TOKENS) {
        const outcome = row === 3 ? untrusted : trusted;
        const tokens = { AUTO_SYNC_TOKEN: secret, SYNC_JOB_TOKEN: job, ...within("30") };
        for (const [index, canonical] of canonicals().entries()) {
          const before = asked();
          const got = await statusOf(replay, envFor("", { ...canonical, ...tokens }));
          const what = `secret ${secret}, job's ${job}, canonical ${index}`;
          equal(got, outcome[index], what);
          equal(asked() > before, outcome === COMPARED, `${what}: asked with a token only`);
        }
      }
    });
  }
});

describe("a missing token", () => {
  const onSchedule = { GITHUB_EVENT_NAME: "schedule" };
  const provision =
    /^::error::token-missing: .*"schedule".*Provision AUTO_SYNC_TOKEN \(read scope on molecule-controlplane\)/;
  const pinned = [...FORK, "--pin", "fixtures/providers.sha256", "--copy", CANONICAL];
  const rows: [name: string, argv: string[], env: Env, exitCode: number, says: RegExp][] = [
    ["in a trusted context is an error with its remedy", [], onSchedule, 1, provision],
    ["without an event name is an error", [], {}, 1, /^::error::token-missing: .*\(no event\)/],
    ["on a fork is a warning", FORK, {}, 0, /^::warning::skipped: (?!.*pin).*nothing was compared/],
    ["on a fork speaks of a pin", pinned, {}, 0, /^::warning::skipped: .*nothing .* is what the pin says/],
  ];
  each("", rows, async (argv, env, want, says) => {
    const { exitCode, stdout } = await gate(argv, env);
    const [annotation = "", ...more] = annotations(stdout);
    deepEqual([exitCode, more], [want, []]);
    match(annotation, says);
  });
});

describe("a malformed token", () => {
  const long = { AUTO_SYNC_TOKEN: "a".repeat(100_000) };
  ends("is", [["longer than any", [], /^3 ::error::unverified \(token-malformed\): .*too long/, long]]);
  const forge = useForge(playRepository);
  for (const mark of [" ", "\t", "\n", "\u0007", "\u007f", "ö", "\u00a0", "\u200b"]) {
    test(`with ${JSON.stringify(mark)} in it is not sent`, async () => {
      const token = `stand-in-token${mark}of-the-forge`;
      for (const tokens of [{ AUTO_SYNC_TOKEN: token }, { AUTO_SYNC_TOKEN: "", SYNC_JOB_TOKEN: token }]) {
        const env = envFor(forge.url, { SYNC_JOB_TOKEN: STAND_IN_TOKEN, ...tokens });
        equal(await statusOf([], env), "unverified token-malformed 3");
      }
      equal(forge.forge.asked.length, 0);
    });
  }
});

// ── the wire ──

describe("the fetch", () => {
  const forge = useForge(playRepository);
  test("asks for the commit, then for the file", async () => {
    const names = { SYNC_CANONICAL_REF: "release/1.0", SYNC_CANONICAL_PATH: "a b/ü?.yaml" };
    const { exitCode, stdout } = await gate([], envFor(forge.url, names));
    equal(exitCode, 0, stdout);
    const base = "GET /api/v1/repos/molecule-ai/molecule-controlplane";
    const query = "?stat=false&verification=false&files=false";
    deepEqual(
      forge.forge.asked.map(({ method, target }) => `${method} ${target}`),
      [`${base}/git/commits/release%2F1.0${query}`, `${base}/raw/a%20b/%C3%BC%3F.yaml?ref=${COMMIT}`],
    );
    for (const { headers } of forge.forge.asked) {
      equal(headers.get("authorization"), `token ${STAND_IN_TOKEN}`);
      equal(headers.get("accept-encoding"), "identity");
      equal(headers.get("user-agent"), `sync-providers/${VERSION}`);
    }
  });
});

describe("one connection", () => {
  let connections = 0;
  const seen = new Set<unknown>();
  const forge = useForge((socket, asked) => {
    if (!seen.has(socket)) connections += 1;
    seen.add(socket);
    socket.on("close", () => seen.delete(socket));
    keepOpen(socket, asked);
  });
  test("serves both requests, and is closed with the verdict", async () => {
    equal(await statusOf([], envFor(forge.url)), "in-sync 0");
    equal(connections, 1);
    while (seen.size > 0) await new Promise((resolve) => setTimeout(resolve, 10));
  });
});

/** `git hash-object` of the canonical fixture, and in a sha256 repository. */
const RIGHT = '"e8edcdc409a79ecafa8c21f09ebc471ef430aa42"';
const SHA256 = '"c6b8d6b4e5115944594d71ec9fcc912ab741df9fa990b25e8846ef309e91f96b"';
const WRONG = `"${"0".repeat(40)}"`;

const OTHER = { SYNC_COPY_PATH: DRIFTED };
const VAGUE = { SYNC_CANONICAL_REF: "v~1" };
const FITS = { SYNC_MAX_BYTES: "795" };
const TOO_MANY = { SYNC_MAX_BYTES: "794", SYNC_COPY_PATH: "fixtures/responses/crlf-file.http" };
const PART = /it may be a part of the file/;
const PAST = /asked to wait \d+ s, more than the deadline leaves/;

const BAD = "bad-response";

type Fault = [name: string, forge: Play, want: string, says?: RegExp, env?: Env];

/**
 * What the forge does, and what the gate makes of it: a reason of `unverified`, or a status with its exit
 * code. `x4` is the number of requests in all.
 */
const FAULTS: Fault[] = [
  // The connection.
  ["hangs up for ever", hangUp, "unreachable x4"],
  ["is not there", silence, "unreachable x4", /ECONNREFUSED/, at("http://127.0.0.1:1")],
  ["is not there by IPv6", silence, "unreachable", /^::.*\[(0:){7}1\]:1\b/m, at("http://[::1]:1")],
  ["has an unknown name", silence, "unreachable", /no-such-host/, at("https://no-such-host.invalid")],
  ["hangs up once", first(hangUp), "in-sync 0 x3", /retry +1 of 3/],
  ["resets before the answer", reset, "unreachable", /ECONNRESET/],
  ["resets during the answer", on("file", resetLate), BAD, /broke off/],
  ["is silent", silence, "timeout", /./, within("0.4")],
  ["is silent once", first(silence), "in-sync 0 x3", /nothing came for 1 s/],
  ["speaks no HTTP", play("made-no-http"), "bad-response x1", /HTTPParserError/],
  ["sends headers without end", endlessHead, BAD, /HEADERS_OVERFLOW/],
  // The body's end.
  ["drips", on("file", drip("200 OK\r\nContent-Length: 795", "x", 50)), "timeout", /./, within("0.6")],
  ["answers in two halves, slowly", on("file", pausing), "in-sync 0 x2", /./, within("8")],
  ["stops short of the length", fileWith(cutOff), "bad-response x5", /broke off/],
  ["stops short, and was to stay", fileWith((raw) => cutOff(kept(raw))), "bad-response x5", /broke off/],
  ["stops short once", first(playRepository, halfFile), "in-sync 0 x3", /retry/],
  ["sends more than the length", fileWith((raw) => raw.replace(": 795", ": 794")), BAD],
  ["announces two lengths", made("two-lengths"), BAD],
  ["breaks off its chunks", made("chunks-cut"), BAD, /broke off/],
  ["breaks off its chunks before a close", made("chunks-cut-close"), "bad-response x5", /broke off/],
  ["sends a broken chunk size", made("broken-chunk-size"), BAD, /HTTPParserError/],
  // Proven whole by length, by last chunk, by blob id; or the copy's own bytes.
  ...Object.entries({
    chunks,
    length: fileWithout("Etag"),
    "blob id": fileWithout("Content-Length"),
  }).flatMap(([proof, forge]): Fault[] => [
    [`proves by ${proof}`, forge, "in-sync 0"],
    [`proves another file by ${proof}`, forge, "drift 1", /./, OTHER],
  ]),
  ["proves nothing", made("until-close"), "in-sync 0"],
  ["proves nothing of another file", made("until-close"), BAD, PART, OTHER],
  ["proves nothing to an empty copy", made("until-close-no-bytes"), BAD, PART, { SYNC_COPY_PATH: temp("") }],
  ...["part", "no-bytes", "http-1.0", "identity", "sign-in"].map(
    (what): Fault => [`proves nothing: ${what}`, made(`until-close-${what}`), "bad-response x2", PART],
  ),
  // The size.
  ["announces just the limit", playRepository, "in-sync 0", /./, FITS],
  ["sends just the limit unannounced", chunks, "in-sync 0", /./, FITS],
  ["announces too much", playRepository, "too-large x2", /795 bytes, more than 794 bytes/, TOO_MANY],
  ["sends too much unannounced", chunks, "too-large", /more than 794 bytes/, TOO_MANY],
  ["sends the file without end", on("file", endless), "too-large", /it has more than 10485760 bytes/],
  ["sends the commit without end", on("commit", endless), "too-large", /it has more than 1048576 bytes/],
  // The bytes.
  ["flips a byte", flipped, "bad-response x2", /blob id e8edcdc409a7/],
  ["names a wrong blob id weakly", fileTagged(`W/${WRONG}`), BAD, /blob id 0000/],
  ["names a wrong one second", fileTagged(`${RIGHT}\r\nEtag: ${WRONG}`), BAD, /blob id 0000/],
  ["names a wrong sha256", fileTagged(SHA256.replace("c6", "06")), BAD, /blob id 06b8/],
  ...[`W/${RIGHT}`, RIGHT.toUpperCase(), SHA256, `"gzip-${RIGHT.slice(1)}`, WRONG.slice(1, -1)].map(
    (tag): Fault => [`has the ETag ${tag}`, fileTagged(tag), "in-sync 0"],
  ),
  ["sends an empty file", file("empty-file"), "drift 1", /line=1/],
  ["sends a symbolic link", file("symlink"), BAD, /"symlink"/],
  ["sends a Git LFS pointer", file("lfs-pointer"), BAD, /Git LFS/],
  ["sends JSON", file("contents-endpoint"), BAD, /application\/json/],
  ["sends HTML", fileUnder("content-type", "text/html"), BAD, /text\/html/],
  ["sends HTML in capitals", fileUnder("content-type", "TEXT/HTML"), BAD, /TEXT\/HTML/],
  ["sends gzip unasked", fileUnder("content-encoding", "gzip"), BAD, /"gzip;/],
  ["names the encoding twice", made("two-encodings"), BAD, /"identity, gzip;/],
  ["compresses the transfer", made("gzip-chunked"), BAD, /gzip, chunked"/],
  ["does so under identity", made("identity-over-gzip-chunked"), BAD, /gzip, chunked"/],
  ["names the encoding that was asked for", fileUnder("content-encoding", "Identity"), "in-sync 0"],
  // The statuses.
  ["refuses the token", play("bad-token"), "token-rejected x1", /401, saying "user does not exist/],
  ["refuses the token for the file", file("bad-token"), "token-rejected"],
  ["misses the scope", play("token-without-scope"), "token-scope x1", /read:repository/],
  ["misses it on 1.25", play("gitea-1.25.4-token-without-scope"), "token-scope", /scope=read:user"/],
  ["hides all", play("repo-invisible"), "repo-not-visible x2", /"molecule-ai.* for public .* second factor/],
  ["has no such ref", on("commit", noCommit), "ref-not-found", /"main"/],
  ["cannot read a ref", on("commit", answer("422 No")), "ref-not-found", /"v~1"/, VAGUE],
  ["has no such file", file("missing-file"), "file-not-found", /providers\.yaml/],
  ["has a directory there", file("directory"), "file-not-found", /directory/],
  ["takes the token back", first(noCommit, play("bad-token")), "token-rejected"],
  ["denies the repository", first(noCommit, play("token-without-scope")), "token-scope"],
  ...["204 No Content", "206 Partial Content", "304 Not Modified"].map(
    (status): Fault => [`answers ${status}`, on("file", answer(status)), "bad-response x2", /answered [23]/],
  ),
  ...["no", '{"message":1}', '{"message":""}'].map(
    (body): Fault => [`answers 400 and ${body}`, answer("400 No", {}, body), BAD, /answered 400\./],
  ),
  ["answers 401 with an endless body", drip("401 No", "x".repeat(4000), 5), "token-rejected"],
  ["answers 401, its body never comes", answer("401 No", { "content-length": "10" }), "token-rejected"],
  ["answers 418", answer("418 Teapot"), "bad-response x1", /418/],
  ["answers 501", answer("501 Not Implemented"), "server-error x1"],
  ["answers 599", answer("599 Odd"), "server-error x1"],
  ["answers 101", answer("101 Yes", { connection: "upgrade", upgrade: "x" }), "bad-response x1"],
  ...["000", "099", "100", "103", "199", "600", "999"].map(
    (status): Fault => [`answers ${status}`, answer(`${status} Odd`), "bad-response x1"],
  ),
  // Retries.
  ...[429, 500, 502, 503, 504].flatMap((status): Fault[] => [
    [`answers ${status} once`, first(answer(`${status} No`)), "in-sync 0 x3", RegExp(`1 of 3: .*${status}`)],
    [`answers ${status} for ever`, answer(`${status} No`), "server-error x4", RegExp(`${status}`)],
  ]),
  ["answers 503, then refuses the token", first(answer("503 No"), play("bad-token")), "token-rejected x2"],
  ["answers 503, then speaks no HTTP", first(answer("503 No"), play("made-no-http")), "bad-response x2"],
  ["asks to wait a second", busy("1"), "in-sync 0 x3", /in 1 s, as the forge asked/],
  ["asks to wait again", answer("503 No", { "retry-after": "1" }), "server-error", PAST, within("1.5")],
  ...["9".repeat(20), "Fri, 31 Dec 9999 23:59:59 GMT"].map(
    (wait): Fault => [`asks to wait ${wait}`, busy(wait), "server-error x1", PAST],
  ),
  // A past date, no date of HTTP, and no date at all.
  ...["Sun, 06 Nov 1994 08:49:37 GMT", "9999 AD", "Foo, 99 GMT", "soon"].map(
    (wait): Fault => [`asks to wait ${wait}`, busy(wait), "in-sync 0 x3", /retry +1 of 3: /],
  ),
  // The commit's answer.
  ...["<html>", "{}", '{"sha":"../../../../user"}', '{"sha":"9d3b4a7"}', `[{"sha":"${COMMIT}"}]`].map(
    (text): Fault => [`has the commit ${text}`, onCommit(text), "bad-response x1", /no commit id/],
  ),
  ["has a sha256 commit", onCommit(`{"sha":"${"AB".repeat(32)}"}`), "in-sync 0", /commit ababababab\)/],
];

describe("when the forge", { concurrency: 8 }, () => {
  each("", FAULTS, async (forge, want, says = /./, env = {}) => {
    const [status = "", attempts] = want.split(" x");
    const { got, document, stderr } = await against(forge, env);
    equal(got, spelled(status), stderr);
    match(stderr, says);
    if (attempts !== undefined) equal(document.attempts, Number(attempts), stderr);
  });
});

// ── redaction ──

/** Of letters that no log has, of characters that escapes change, and of the shape of a commit's id. */
const SECRET = "zQ7xKvW9jYpXqJ3fGhZ5";
const MARKED = 'zQ"8::x%4{Z}k~w?9V_u&6Hf<';
const HEX = "5be0cd19137e2179f3bcc908a54ff53a9b05688c";
/** One character more, and what follows is cut off in the middle. */
const EDGE = "x".repeat(280);

/**
 * Where a token comes back in: from the forge, or in the settings; and what is reached, so that it is quoted.
 */
const LEAKS: [name: string, leak: (token: string) => Play | Env, want?: string][] = [
  ["an error's message", (it) => saying(JSON.stringify(formsOf(it).join()))],
  ["an error's message, cut", (it) => saying(JSON.stringify(EDGE + it))],
  ["an error's escapes, cut", (it) => saying(spelledOut(EDGE + it))],
  ["a redirect's path, parted by a tab", (it) => to(`/${it.slice(0, 9)}\t${it.slice(9)}`), "redirected"],
  ["a redirect's path and query", (it) => to(`http://127.0.0.1:1/${it}?${it}`), "redirected"],
  ["a redirect's path, cut", (it) => to(`/${EDGE.slice(25)}${it}`), "redirected"],
  ["a redirect's path, encoded", (it) => to(`/${encodeURIComponent(it)}`), "redirected"],
  ["a redirect's user name", (it) => to(`http://${it}@127.0.0.1:1/`), "redirected"],
  ["a redirect's host", (it) => to(`http://${it}/`), "redirected"],
  ["a moved repository", (it) => to(`/api/v1/repos/a/${it}${ASK}`), "redirected"],
  ["a type, cut", (it) => fileUnder("content-type", `html${EDGE}${it}`)],
  ["an object's kind", (it) => fileUnder("x-gitea-object-type", it)],
  ["an encoding", (it) => fileUnder("content-encoding", it)],
  ["what is no HTTP", (it) => (socket) => void socket.end(`${it}\r\n\r\n`)],
  ["a commit's id", () => answer("200 OK", {}, `{"sha":"${HEX}"}`)],
  ["a commit's id in capitals", () => answer("200 OK", {}, `{"sha":"${HEX.toUpperCase()}"}`)],
  ["the copy's path, cut", (it) => ({ SYNC_COPY_PATH: EDGE + it }), "copy-unreadable"],
  ["the ref", (it) => ({ SYNC_CANONICAL_REF: it }), "unreachable"],
  ["the event's name", (it) => ({ GITHUB_EVENT_NAME: it }), "unreachable"],
  ["a payload, cut", (it) => forkNamed(EDGE + it), "unreachable"],
];

describe("no piece of a token is printed that comes back in", { concurrency: 8 }, () => {
  const pairs = [[SECRET, SECRET, HEX] as const, [MARKED, HEX, MARKED] as const];
  for (const [name, leak, want = "bad-response"] of LEAKS)
    for (const [token, AUTO_SYNC_TOKEN, SYNC_JOB_TOKEN] of pairs)
      test(`${name}: ${want}, of ${token}`, async () => {
        const play = leak(token);
        const [forge, env] = typeof play === "function" ? [play, {}] : [hangUp, play];
        const files = { GITHUB_OUTPUT: temp(""), GITHUB_STEP_SUMMARY: temp("") };
        const all = { AUTO_SYNC_TOKEN, SYNC_JOB_TOKEN, SYNC_DEBUG: "1", ...files, ...env };
        const { got, stdout, stderr } = await against(forge, all);
        equal(got, spelled(want), stderr);
        const texts = Object.values(files).map((path) => readFileSync(path, "utf8"));
        assertNoPiece([stdout, stderr, ...texts].join(), [AUTO_SYNC_TOKEN, SYNC_JOB_TOKEN]);
      });
});

// ── proxy, TLS and redirects ──

const NOWHERE = "http://127.0.0.1:1";

describe("a proxy", () => {
  const forge = useForge(playRepository);
  const proxy = useForge(tunnel);
  const strict = useForge((socket) => void socket.end("HTTP/1.1 407 Proxy Authentication Required\r\n\r\n"));
  const mute = useForge(silence);
  const rude = useForge((socket) => void socket.end());
  const mad = useForge((socket) => void socket.end("HTTP/1.1 200 OK\r\n\r\nnonsense"));
  // A name that only the proxy knows.
  const rows: [name: string, proxy: { readonly url: string }, want: string, tunnels?: number, env?: Env][] = [
    ["is used", proxy, "in-sync 0", 2, { http_proxy: undefined }],
    ["is used by its lower-case name first", proxy, "in-sync 0", 2, { HTTP_PROXY: "nonsense" }],
    ["for http: is not used for https:", proxy, "unreachable", 0, at("https://0.0.0.0:1")],
    ["that refuses", strict, "unreachable"],
    ["that is not there", { url: NOWHERE }, "unreachable"],
    ["that hangs up after the request", rude, "unreachable"],
    ["that speaks nonsense in the tunnel", mad, "unreachable"],
    ["that is silent", mute, "timeout", 0, within("0.4")],
    ["without a scheme", { url: "proxy:3128" }, "usage 2"],
    ["of another scheme", { url: "socks5://proxy:1080" }, "usage 2"],
    ["that is no URL", { url: "http://" }, "usage 2"],
    ["with a broken escape in its password", { url: "http://me:%zz@127.0.0.1:1" }, "usage 2"],
  ];
  each("", rows, async (used, want, tunnels = 0, more = {}) => {
    const before = proxy.forge.asked.length;
    const env = { ...named("forge.test", forge.url), HTTP_PROXY: used.url, http_proxy: used.url, ...more };
    equal(await statusOf([], envFor("", env)), spelled(want));
    equal(proxy.forge.asked.length - before, tunnels);
  });

  const all = { HTTP_PROXY: NOWHERE, http_proxy: NOWHERE };
  // The last host is this machine, and yet no loopback address.
  const direct: [host: string, env: Env][] = [
    ["127.0.0.1", all],
    ["localhost", all],
    ["[::1]", all],
    ["0.0.0.0", { ...all, NO_PROXY: "0.0.0.0" }],
    ["0.0.0.0", { HTTPS_PROXY: NOWHERE }],
    ["0.0.0.0", { HTTPS_PROXY: "nonsense" }],
  ];
  const hasIpv6 = JSON.stringify(networkInterfaces()).includes('"::1"');
  for (const [host, env] of direct.filter(([host]) => hasIpv6 || host !== "[::1]")) {
    test(`is not used for http://${host} with ${Object.keys(env).join()}`, async () => {
      const relay = await relayTo(forge.url, host);
      const got = await statusOf([], envFor(relay.url, { ...env, SYNC_ALLOW_HTTP: "1" }));
      relay.close();
      equal(got, "in-sync 0");
    });
  }
  test("that hangs up is not stormed", () => {
    for (const { forge } of [rude, mad]) ok(forge.asked.length <= 40);
  });
  test("is named beside the token", async () => {
    const env = { ...named("forge.test", forge.url), HTTP_PROXY: proxy.url };
    match((await gate([], envFor("", env))).stdout, /^token .*a proxy can read it only .* plain http:/m);
    doesNotMatch((await gate([], envFor(forge.url))).stdout, /proxy/);
  });
  test("sees no token", () => {
    for (const { method, headers } of [proxy, strict, mute].flatMap(({ forge }) => forge.asked)) {
      equal(method, "CONNECT");
      equal(headers.get("authorization"), undefined);
    }
  });
});

describe("TLS", () => {
  const pem = { key: readFileSync("fixtures/tls/key.pem"), cert: readFileSync("fixtures/tls/cert.pem") };
  const selfSigned = /DEPTH_ZERO_SELF_SIGNED_CERT.*NODE_EXTRA_CA_CERTS/;
  const rows: [name: string, tls: Server, says: RegExp][] = [
    ["with a self-signed certificate", createTlsServer(pem), selfSigned],
    ["to a server that speaks plain HTTP", plainServer(), /SSL/],
  ];
  each("", rows, async (tls, says) => {
    const { got, asked, stderr, document } = await against(playRepository, {}, { tls });
    deepEqual([got, document.attempts, asked], ["unverified unreachable 3", 1, []]);
    match(stderr, says);
  });
  const mute = useForge(silence);
  test("to a server that never shakes hands", async () => {
    const env = envFor(mute.url.replace("http:", "https:"), within("0.4"));
    equal(await statusOf([], env), "unverified timeout 3");
  });
  test("works with NODE_EXTRA_CA_CERTS, by a proxy, too", async () => {
    const forge = await startForge(playRepository, createTlsServer(pem), "https");
    const proxy = await startForge(tunnel);
    const env = envFor(forge.url, { NODE_EXTRA_CA_CERTS: "fixtures/tls/cert.pem" });
    const direct = await run(command(), env);
    const behind = { ...named("forge.test", forge.url), HTTPS_PROXY: proxy.url, ...MEASURED };
    const proxied = await run(measured(), { ...env, ...behind });
    await Promise.all([forge.close(), proxy.close()]);
    deepEqual([direct.exitCode, proxied.exitCode], [0, 0], direct.stdout + proxied.stdout);
    deepEqual([forge.asked.length, proxy.asked.length], [4, 2]);
  });
});

describe("a redirect", () => {
  const API = "/api/v1/repos/molecule-ai";
  const FILE = `/raw/internal/providers/providers.yaml?ref=${COMMIT}`;
  const followed: [name: string, forge: Play, attempts: number][] = [
    ["of a moved repository (307)", first(to(`${API}/controlplane${ASK}`, "307 Temporary Redirect")), 3],
    ["of a moved repository (301)", first(to(`${API}/controlplane${ASK}`)), 3],
    ["twice", first(to(`${API}/b${ASK}`), to(`${API}/c${ASK}`)), 4],
    ["between the two requests", first(playRepository, to(`${API}/b${FILE}`)), 3],
  ];
  each("is followed:", followed, async (forge, attempts) => {
    const { got, document, stderr } = await against(forge);
    deepEqual([got, document.attempts], ["in-sync 0", attempts], stderr);
    match(stderr, /^moved .*set SYNC_CANONICAL_REPO/m);
  });
  test("to another owner holds for the file", async () => {
    const { asked, document } = await against(first(to(`/api/v1/repos/new/name${ASK}`)));
    deepEqual([asked[2], document.canonical.repo], [`/api/v1/repos/new/name${FILE}`, "new/name"]);
  });
  test("is read below a server's path", async () => {
    const { got, asked } = await against(first(to(`/git/api/v1/repos/a/b${ASK}`)), {}, { path: "/git/" });
    equal(got, "in-sync 0");
    deepEqual(
      asked.map((target) => target.slice(0, 27)),
      ["/git/api/v1/repos/molecule-", "/git/api/v1/repos/a/b/git/c", "/git/api/v1/repos/a/b/raw/i"],
    );
  });

  const elsewhere = useForge(playRepository);
  const there = (location: string) => first(to(location, "302 Found"));
  const refused: [name: string, forge: Play, says?: RegExp][] = [
    ["to another host", there(`//evil.example${API}/b${ASK}`), /leads to "http:\/\/evil\.example/],
    ["to another scheme", there(`https://127.0.0.1${API}/b${ASK}`), /leads to "https:/],
    ["to a sign-in page", there("/user/login"), /\/user\/login/],
    ["to another file", there(`${API}/b/raw/other`), /other/],
    ["to another query", there(`${API}/b/git/commits/main?ref=x`)],
    ["to another API", there(`/api/v9/repos/molecule-ai/b${ASK}`)],
    ["to a path above the API", there(`${API}/b/../../../../../x${ASK}`)],
    ["to a repository without a name", there(`/api/v1/repos/a/${ASK}`)],
    ["to itself", there(`${API}/molecule-controlplane${ASK}`), /on and on/],
    ["to no place", there(""), /names no place/],
    ["to nonsense", there("http://["), /names no place/],
    ["without a place", first(answer("302 Found")), /names no place/],
    ["a third time", first(...["b", "c", "d"].map((name) => to(`${API}/${name}${ASK}`))), /on and on/],
  ];
  const isRefused = async (forge: Play, says = /leads to "/) => {
    const { got, stderr } = await against(forge);
    equal(got, "unverified redirected 3", stderr);
    match(stderr, says);
  };
  each("is refused:", refused, isRefused);
  test("is refused: to another origin, which is not asked", async () => {
    const says = /leads to "http:\/\/127\.0\.0\.1:\d+\/api\/v1\/repos\/molecule-ai\/b/;
    await isRefused(first(to(`${elsewhere.url}${API}/b${ASK}`)), says);
    deepEqual(elsewhere.forge.asked, []);
  });
});

// ── files ──

describe("the copy and the local canonical", () => {
  const lfs = temp("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n");
  const link = linkTo(join(ROOT, CANONICAL));
  const kernel = "/proc/version";
  ends("are compared, or not:", [
    ["a link as the canonical", ["--canonical", link, "--copy", CANONICAL], /^0 .*in-sync/],
    ["files whose size is a lie", ["--canonical", kernel, "--copy", kernel], /^0 .*in-sync/],
    ["no copy", versus("none"), /^3 .*copy-unreadable.*there is no such file/],
    ["a copy below a file", versus(`${CANONICAL}/x`), /^3 .*copy-unreadable.*not a directory/],
    ["a copy of too long a name", versus("x".repeat(300)), /^3 .*copy-unreadable.*name is too long/],
    ["a directory", versus("fixtures"), /^3 .*copy-unreadable.*it is a directory/],
    ["a link as the copy", versus(link), /^3 .*copy-unreadable.*it is a symbolic link/],
    ["a device", versus("/dev/null"), /^3 .*copy-unreadable.*not a regular file/],
    ["a copy that breaks off", versus("/proc/self/mem"), /^3 .*copy-unreadable.*EIO/],
    ["too large a lie", versus("/proc/cpuinfo"), /^3 .*\(too-large\): .* 10\./, { SYNC_MAX_BYTES: "10" }],
    ["too large a copy", LOCAL, /^3 .*too-large.*795 bytes, more than 794/, { SYNC_MAX_BYTES: "794" }],
    ["no canonical", ["--canonical", "none", "--copy", CANONICAL], /^3 .*file-not-found.*no such file/],
    ["too large a canonical", versus(lfs), /^3 .*too-large.*canonical.*795/, { SYNC_MAX_BYTES: "794" }],
    ["an LFS pointer", ["--canonical", lfs, "--copy", CANONICAL], /^3 .*bad-response.*Git LFS/],
  ]);
  test("without a copy nothing is asked and no token is sent", async () => {
    const { url, asked } = await forgeFor(playRepository);
    const { reason } = await verdictOf(["--copy", "none"], envFor(url));
    deepEqual([reason, asked], ["copy-unreadable", []]);
  });
});

describe("one file is not two", () => {
  const root = mkdtempSync(join(scratch, "one-"));
  const [copy, hard, folder, linked] = [`${root}/copy`, `${root}/hard`, `${root}/in`, `${root}/linked`];
  mkdirSync(folder);
  symlinkSync(folder, linked);
  for (const path of [copy, `${folder}/copy`, `${root}/other`]) writeFileSync(path, DRIFTED_SUM);
  linkSync(copy, hard);
  const twins: [by: string, one: string, other: string][] = [
    ["the same path", copy, copy],
    ["another spelling", copy, `${root}/./in/../copy`],
    ["a linked folder", `${folder}/copy`, `${linked}/copy`],
    ["a hard link", copy, hard],
    ["a symbolic link", copy, linkTo(copy)],
    ["a linked folder, where no file is yet", `${folder}/new`, `${linked}/new`],
    ["a linked folder, where no folder is yet", `${folder}/new/a`, `${linked}/new/a`],
  ];
  const other = `${root}/other`;
  const uses: [what: string, argv: (one: string, other: string) => string[]][] = [
    ["copy and pin", (one, other) => versus(one, "--pin", other)],
    ["copy and pin of a re-sync", (one, other) => versus(one, "--pin", other, "--write")],
    ["copy and canonical", (one, other) => ["--copy", one, "--canonical", other, "--write"]],
    ["pin and canonical", (one, two) => ["--copy", other, "--pin", one, "--canonical", two, "--write"]],
  ];
  const tree = () => readdirSync(root, { recursive: true }).sort();
  for (const [what, argv] of uses)
    each(`refuses ${what} by`, twins, async (one, other) => {
      const before = tree();
      const { exitCode, stdout } = await gate(argv(one, other));
      deepEqual([exitCode, tree(), readFileSync(copy, "utf8")], [2, before, DRIFTED_SUM]);
      match(lastLine(stdout), /^::error::usage: .* are one file/);
    });
  ends("compares", [["a copy and a link to it", ["--copy", copy, "--canonical", hard], /^0 .*in-sync/]]);
});

// ── comparison ──

describe("the first differing line", () => {
  const rows: [name: string, copy: string, canonical: string, want: number][] = [
    ["the first", "a\nb\n", "x\nb\n", 1],
    ["the last", "a\nb\nc\n", "a\nb\nx\n", 3],
    ["past the end of a copy that stops", "a\nb\n", "a\nb\nc\n", 3],
    ["the line that the copy has more", "a\nb\nc\n", "a\nb\n", 3],
    ["a line that lacks its end", "a\nb", "a\nb\n", 2],
    ["a line with another end", "a\r\nb\r\n", "a\nb\n", 1],
    ["a line that became longer", "a\nbb\n", "a\nb\n", 2],
    ["of an empty copy", "", "a\n", 1],
    ["of an empty canonical", "a\n", "", 1],
    ["the last of 40,000", numbered(39_999), numbered(40_000), 40_000],
  ];
  each("is", rows, (copy, canonical, want) =>
    equal(firstDifferingLine(Buffer.from(copy), Buffer.from(canonical)), want),
  );
});

describe("the verdict", () => {
  const push: Context = { event: "push", branch: 1, trusted: true, why: "" };
  const context: Context = { event: "pull_request", branch: 3, trusted: false, why: "" };
  const pinned = { path: "pin", offset: 0 };
  const side = (name: string) => ({ name, bytes: Buffer.from(name), sha256: name, ...pinned });
  const [a, b] = [side("a"), side("b")];
  const [pin, stale] = [a, b];
  const lost = (status: "unverified" | "usage") => new Failure({ status, message: "gone", remedy: "" });
  const [gone, wrong] = [lost("unverified"), lost("usage")];
  const sides = { copy: a, canonical: a, pin: null };
  const base: Evidence = { ...sides, context: push, token: "secret", requiresToken: true, command: "" };
  const noToken = { token: "missing", canonical: null } as const;
  const fork = { ...noToken, context };
  const rows: [name: string, evidence: Partial<Evidence>, want: string][] = [
    ["same bytes", {}, "in-sync"],
    ["same bytes, by the job's token", { token: "job" }, "in-sync"],
    ["other bytes", { canonical: b }, "drift"],
    ["same bytes, no token needed", { token: "missing", requiresToken: false }, "in-sync"],
    ["no copy", { copy: gone, canonical: null }, "unverified"],
    ["no canonical", { canonical: gone }, "unverified"],
    ["no copy, a setting wrong", { copy: gone, canonical: wrong }, "usage, unverified"],
    ["no token, trusted", { ...noToken, copy: null }, "token-missing"],
    ["no token, untrusted", { ...fork, copy: null }, "skipped"],
    ["no token, untrusted, no copy", { ...fork, copy: gone }, "unverified, skipped"],
    ["a malformed token, untrusted", { ...fork, token: "malformed" }, "unverified"],
    ["same bytes, the pin", { pin }, "in-sync"],
    ["same bytes, another pin", { pin: stale }, "pin-mismatch, in-sync"],
    ["same bytes, no pin to read", { pin: gone }, "unverified, in-sync"],
    ["other bytes, the pin of the copy", { canonical: b, pin }, "drift"],
    ["other bytes, the pin of the canonical", { canonical: b, pin: stale }, "drift, pin-mismatch"],
    ["other bytes, no pin to read", { canonical: b, pin: gone }, "drift, unverified"],
    ["no canonical, another pin", { canonical: gone, pin: stale }, "pin-mismatch, unverified"],
    ["no token, trusted, another pin", { ...noToken, pin: stale }, "token-missing, pin-mismatch"],
    ["no token, untrusted, the pin", { ...fork, pin }, "skipped"],
    ["no token, untrusted, another pin", { ...fork, pin: stale }, "pin-mismatch, skipped"],
    ["no token, untrusted, no pin to read", { ...fork, pin: gone }, "unverified, skipped"],
    ["nothing at all", { copy: null, canonical: null }, "unverified"],
    ["a copy alone", { canonical: null }, "unverified"],
  ];
  each("on", rows, (evidence, want) => {
    const found = judge({ ...base, ...evidence }).map(({ status }) => status);
    equal(found.join(", "), want);
  });
  const spoken: [name: string, pin: Evidence["pin"], says: RegExp][] = [
    ["it agreed", pin, /The copy is what the pin says\.$/],
    ["none was set", null, /^(?!.*\bpin\b)/],
    ["it could not be read", gone, /^(?!.*\bpin\b)/],
  ];
  each("of a fork speaks of the pin as it is, where", spoken, (pin, says) => {
    const skipped = judge({ ...base, ...fork, pin }).find(({ status }) => status === "skipped");
    match(skipped?.message ?? "", says);
  });
});

describe("the pin file", () => {
  const noUtf8 = Buffer.concat([Buffer.from([0xff, 0xfe, 0x20]), Buffer.from(CANONICAL_SUM)]);
  const good: [name: string, content: string | Buffer][] = [
    ["the sum alone", CANONICAL_SUM],
    ["a sha256sum file", `${CANONICAL_SUM}  providers.yaml\n`],
    ["a Go constant", `package x\n\nconst canonicalSHA256 = "${CANONICAL_SUM}"\n`],
    ["capitals", CANONICAL_SUM.toUpperCase()],
    ["bytes that are no UTF-8 around it", noUtf8],
    ["longer and shorter words of hex", `${"a".repeat(65)} ${"b".repeat(63)} ${CANONICAL_SUM}`],
  ];
  each("is read from", good, async (content) => {
    const path = temp(content);
    const { status, pin } = await verdictOf([...LOCAL, "--pin", path]);
    deepEqual([status, pin], ["in-sync", { path, sha256: CANONICAL_SUM }]);
  });
  const bad: [name: string, content: string, found: string][] = [
    ["no sum", "nothing", "no word"],
    ["nothing", "", "no word"],
    ["63 digits", CANONICAL_SUM.slice(1), "no word"],
    ["65 digits", `${CANONICAL_SUM}0`, "no word"],
    ["a sum within a word", `x${CANONICAL_SUM}`, "no word"],
    ["a sum before a word's end", `${CANONICAL_SUM}_old`, "no word"],
    ["two sums", `${CANONICAL_SUM} ${OTHER_SUM}`, "2 words"],
    ["a sum twice", `${CANONICAL_SUM} ${CANONICAL_SUM}`, "2 words"],
  ];
  const refused = (found: string) => new RegExp(`^3 ::error::unverified \\(pin-unreadable\\): .*${found}`);
  for (const [name, content, found] of bad)
    ends("is refused:", [[name, [...LOCAL, "--pin", temp(content)], refused(found)]]);
  ends("is refused:", [
    ["none", LOCAL, refused("no such file"), { SYNC_PIN_PATH: "none" }],
    ["a link", [...LOCAL, "--pin", linkTo(temp(CANONICAL_SUM))], refused("symbolic link")],
  ]);
});

describe("the diagnosis", () => {
  const [right, old, other] = [CANONICAL_SUM, DRIFTED_SUM, OTHER_SUM].map((sum) => ["--pin", temp(sum)]);
  type Row = [copy: string, pin: string[] | undefined, want: RegExp, moved: string | null, also: string];
  const rows: [name: string, ...Row][] = [
    ["all agree", CANONICAL, right, /^0 .*in-sync: .*, and the pin names it/, null, ""],
    ["the pin was not bumped", CANONICAL, other, /^1 .*:pin-mismatch: .*not bumped\. Do: /, null, "in-sync"],
    ["the canonical moved", DRIFTED, old, /^1 .*:drift: .*The canonical moved: .*\. Do: /, "canonical", ""],
    ["the copy was edited", DRIFTED, right, /^1 .*:drift: .*edited by hand: .* Do: /, "copy", "pin-mismatch"],
    ["both moved", DRIFTED, other, /^1 .*:drift: .*Both moved: .*\. Do: /, "both", "pin-mismatch"],
    ["no pin can tell", DRIFTED, [], /^1 .*:drift: .*Without a pin nobody can tell which/, null, ""],
  ];
  each("says that", rows, async (copy, pin = [], want, moved, also) => {
    const ran = await gate(versus(copy, ...pin));
    match(endOf(ran), want);
    equal(/^also +([a-z-]+): /m.exec(ran.stdout)?.[1] ?? "", also);
    const document = await verdictOf(versus(copy, ...pin));
    deepEqual([document.moved, document.firstDifferingLine], [moved, copy === DRIFTED ? 8 : null]);
  });
  const pinned = [...FORK, "--pin", temp(CANONICAL_SUM), "--copy"];
  ends("of a fork's pull request", [
    ["refuses an edit", [...pinned, DRIFTED], /^1 .*pin-mismatch: .*edited by hand, or re-synced/],
    ["needs the copy", [...pinned, "none"], /^3 .*\(copy-unreadable\)/],
  ]);
});

describe("the remedy", () => {
  const settings = `SYNC_CANONICAL_SERVER=${repository.url} SYNC_CANONICAL_REF=main SYNC_COPY_PATH=${DRIFTED}`;
  const wanted = new RegExp(`^1 .* Do: ${settings} npx tsx sync-providers\\.ts --write `);
  const main = { ...FETCH, SYNC_CANONICAL_REF: "main" };
  ends("names", [["a fetch's settings", ["--copy", DRIFTED], wanted, main]]);
  test("is a command for a shell, and mends both", async () => {
    const root = join(scratch, "it's $(false) `here`; & 100%");
    mkdirSync(root);
    const [copy, pin] = [join(root, "a copy"), join(root, 'pin "1"')];
    writeFileSync(copy, "old");
    writeFileSync(pin, OTHER_SUM);
    const again = measured().join(" ");
    const { stdout } = await gate(versus(copy, "--pin", pin), {}, { command: again });
    const [, remedy = ""] = / Do: (SYNC_COPY_PATH=.* SYNC_PIN_PATH=.*) \(/.exec(lastLine(stdout)) ?? [];
    ok(remedy.includes(` ${again} --write --canonical ${CANONICAL}`), stdout);
    const { exitCode, stderr } = await run(["bash", "-c", remedy.replaceAll("%25", "%")], MEASURED);
    equal(exitCode, 0, stderr);
    deepEqual([readFileSync(copy), readFileSync(pin, "utf8")], [BODY, CANONICAL_SUM]);
  });
});

// ── what differs, in words ──

describe("the diff", () => {
  const [ten, thirty, many] = [numbered(10), numbered(30), numbered(30_000)];
  const two = thirty.replace("\n5\n", "\nx\n").replace("\n25\n", "\ny\n");
  const TWO = "@@ -2,7 +2,7 @@| 2| 3| 4|-5|+x| 6| 7| 8|@@ -22,7 +22,7 @@| 22| 23| 24|-25|+y| 26| 27| 28";
  const list = (names: string) => [...names].map((name) => `- ${name}\n  a: 1\n  b: 2\n`).join("");
  const SLID = "@@ -4,9 +4,6 @@| - b|   a: 1|   b: 2|-- c|-  a: 1|-  b: 2| - d|   a: 1|   b: 2";
  const SMALL = "@@ -14997,7 +14997,7 @@| 14997| 14998| 14999|-15000|+x| 15001| 15002| 15003";
  const rows: [name: string, canonical: string, copy: string, want: string][] = [
    ["a line changed", ten, ten.replace("5\n", "x\n"), "@@ -2,7 +2,7 @@| 2| 3| 4|-5|+x| 6| 7| 8"],
    ["a line missing at the start", ten, ten.slice(2), "@@ -1,4 +1,3 @@|-1| 2| 3| 4"],
    ["two places far apart", thirty, two, TWO],
    ["an empty copy", "a\n", "", "@@ -1,1 +0,0 @@|-a"],
    ["an empty canonical", "", "a\nb\n", "@@ -0,0 +1,2 @@|+a|+b"],
    ["a lost end and more", "a\nb\n", "a\nc", "@@ -1,2 +1,2 @@| a|-b|+c|\\ No newline at end of file"],
    ["a repeated line", "a\na\nb\n", "a\na\na\nb\n", "@@ -1,3 +1,4 @@| a| a|+a| b"],
    ["context behind a hunk that could slide", list("abcdefgh"), list("abdefgh"), SLID],
    ["a small change in a large file", many, many.replace("\n15000\n", "\nx\n"), SMALL],
  ];
  each("shows", rows, async (canonical, copy, want) => {
    const { lines, said } = await difference(canonical, copy);
    deepEqual([lines.join("|"), said], [want, ""]);
  });

  const ending = (old: number, now: number) =>
    `line endings (carriage returns: ${old} in the canonical, ${now} in the copy; check .gitattributes)`;
  const mark = (side: string) => `a byte-order mark (only the ${side} has it)`;
  const final = (side: string) => `a final newline (only the ${side} has it)`;
  const nothingBut: [name: string, canonical: string, copy: string, want: string[]][] = [
    ["line endings", "a\nb\n", "a\r\nb\r\n", [ending(0, 2)]],
    ["line endings that change places", "a\r\nb\nc\n", "a\nb\r\nc\n", [ending(1, 1)]],
    ["the last line's ending", "a\n", "a\r\n", [ending(0, 1)]],
    ["line endings of old Macs", "a\nb\n", "a\rb\r", [ending(0, 2)]],
    ["a byte-order mark", "a\n", "\ufeffa\n", [mark("copy")]],
    ["a final newline", "a\n", "a", [final("canonical")]],
    ["a final newline of two bytes", "a\nb\r\n", "a\nb", [final("canonical")]],
    ["mark and last line's ending", "a\n", "\ufeffa\r\n", [ending(0, 1), mark("copy")]],
    ["mark and final newline", "\ufeffa", "a\n", [mark("canonical"), final("copy")]],
    ["all three", "\ufeffa\nb\n", "a\r\nb", [ending(0, 1), mark("canonical"), final("canonical")]],
  ];
  each("is a sentence for", nothingBut, async (canonical, copy, want) => {
    const said = `The two differ in nothing but ${want.join(" and ")}.`;
    deepEqual(await difference(canonical, copy), { lines: [], said });
  });
  const noText: [name: string, canonical: string | Buffer, copy: string, want: RegExp][] = [
    ["a copy with a NUL", "a", "a\0", /^The copy is not UTF-8 text/],
    ["a canonical that is no UTF-8", Buffer.from([0xc3, 0x28]), "a", /^The canonical is not UTF-8 text/],
    ["two binary sides", "\0", "\0\0", /^Neither side is UTF-8 text/],
  ];
  each("is a sentence for", noText, async (canonical, copy, want) =>
    match((await difference(canonical, copy)).said, want),
  );

  const MOST = 10 * 1024 * 1024;
  const wide = (letter: string) => `${letter.repeat(5000)}\n`.repeat(100);
  const unlike = (letter: string) => numbered(1_400_000, letter).slice(0, MOST);
  const line = "x".repeat(MOST - 1);
  type Cut = [canonical: string, copy: string, first: string, lines: number, left: string];
  const cut: [name: string, ...Cut][] = [
    ["200 lines", numbered(150, "a"), numbered(150, "b"), "@@ -1,150 +1,150 @@|-a1", 198, "103"],
    ["64 KiB", wide("a"), wide("b"), `@@ -1,100 +1,100 @@|-${"a".repeat(999)}…`, 66, "135"],
    ["many edits", `0\n${numbered(3000, "a")}`, `0\n${numbered(2000)}`, "@@ -2,3000 +2,2000", 198, "4803"],
    ["a short side and a long", "x\n", many, "@@ -1,1 +1,30000 @@|-x|+1", 102, "29900"],
    ["a last line without its end", "x", many, "@@ -1,1 +1,30000 @@|-x", 102, "29900"],
    ["an empty canonical", "", many, "@@ -0,0 +1,30000 @@|+1", 101, "29900"],
    ["an empty copy", many, "", "@@ -1,30000 +0,0 @@|-1", 101, "29900"],
    ["unrelated files", unlike("a"), unlike("b"), "@@ -1,1288", 198, ""],
    ["newlines", "\n".repeat(MOST), "x\n".repeat(MOST / 2), "@@ -1,10485760 +1,5242880 @@|-|-", 198, ""],
    ["one endless line", `${line}x`, `${line}y`, `@@ -1,1 +1,1 @@|-${"x".repeat(999)}…`, 3, ""],
  ];
  each("is bounded, and counts what it leaves out:", cut, async (canonical, copy, first, count, left) => {
    const { lines, said } = await difference(canonical, copy);
    deepEqual([lines.join("|").slice(0, first.length), lines.length], [first, count]);
    ok(said.startsWith(left), said);
  });

  test("applied to the canonical gives the copy", async () => {
    const words = fc.constantFrom("a\n", "b\n", "c\n", "\n", "d e\n");
    const text = fc.array(words, { maxLength: 40 }).map((list) => list.join(""));
    const property = fc.asyncProperty(text, text, async (canonical, copy) => {
      fc.pre(canonical !== copy);
      const { lines, said } = await difference(canonical, copy);
      if (lines.length > 0) equal(patch(canonical, lines), copy);
      else match(said, /final newline/);
    });
    await fc.assert(property, { numRuns: 500 });
  });
});

describe("the diff in the log", () => {
  test("stands between stop-commands, harmless itself", async () => {
    const commands = "::error::one\n  ::set-env name=A::b\n##[error]two\n";
    const { stdout } = await gate(pair("a: 2\n", `a: 1\n${commands}x: "\u001b[31m \u202e"\t\r\n`));
    const [, , diff = ""] = /^::stop-commands::([\da-f-]{36})\n([\s\S]*)\n::\1::\n/m.exec(stdout) ?? [];
    const escaped = ["+::error::one", "+  ::set-env name=A::b", "+# #[error]two"];
    const lines = ["-a: 2", "+a: 1", ...escaped, '+x: "\\u{1b}[31m \\u{202e}"\\t\\r'];
    deepEqual(diff.split("\n").slice(3), lines);
    equal(annotations(stdout).length, 1);
  });
  const lines = (last: string) => `::error::x\n  ::warning::y\na: ${last}\n`;
  const rows: [name: string, argv: string[], says: RegExp, never: RegExp][] = [
    ["no command in its context", pair(lines("1"), lines("2")), /^ : :error::x\n {3}: :warning/m, /^ *::w/m],
    ["the number left out", pair(numbered(300, "a"), numbered(300)), /^difference 403 more lines/m, /^$/],
    ["no names for line endings", pair("a: 1\n", "a: 1\r\n"), /^difference .*line endings/m, /^summary/m],
    ["no more than is true", pair("a: 1 # x", "a: 1 # y"), /^summary +nothing .* by name/m, /order/],
  ];
  each("has", rows, async (argv, says, never) => {
    const { stdout } = await gate(argv);
    match(stdout, says);
    doesNotMatch(stdout, never);
  });
});

/** A token whose parts are easily found, and which Markdown would read. */
const HUSH = "tok_HUSH_0123456789abcdef0123456789abcd";
const LIMITS = { ms: 3000, redact: createRedactor([HUSH]) };

describe("no part of a token is printed", () => {
  const far = "x".repeat(280) + HUSH;
  const rows: [name: string, copy: string][] = [
    ["in a line that is cut behind it", `a: ${"y".repeat(980)}${HUSH}\n`],
    ["in a line that is full of it", `x: yy${HUSH.repeat(200)}\n`],
    ["as a name", `providers: [{name: ${HUSH}}]\n`],
    ["in other case", `providers: [{name: ${HUSH.toUpperCase()}}]\n`],
    ["after 280 characters of a name", `providers: [{name: ${far}}]\n`],
    ["in a key given twice", `runtimes: {${far}: 1, ${far}: 2}\n`],
    ["in what is no YAML", `"${far}\n`],
  ];
  each("that stands", rows, async (copy) => {
    const GITHUB_STEP_SUMMARY = temp("");
    const argv = [...pair("providers: []\n", copy), "--json"];
    const { stdout, stderr } = await gate(argv, { AUTO_SYNC_TOKEN: HUSH, GITHUB_STEP_SUMMARY });
    doesNotMatch(stdout + stderr + readFileSync(GITHUB_STEP_SUMMARY), /HUSH/i);
  });
  test("where it is all that differs", async () => {
    const { stdout } = await gate(pair(`a: ${HUSH}`, `a: ${HUSH.toUpperCase()}`), { AUTO_SYNC_TOKEN: HUSH });
    match(stdout, /^difference The two differ in a secret, which is not shown\.$/m);
    doesNotMatch(stdout, /HUSH/i);
  });
  test("that YAML's escapes spell", async () => {
    const spelled = `"${far.replace("t", "\\x74").replace("H", "\\u0048")}"`;
    const list = (value: number) =>
      `[{name: ${spelled}, ${spelled}: ${value}}]\nruntimes: {${spelled}: ${value}}`;
    const file = (value: number) => Buffer.from(`${spelled}: ${value}\nproviders: ${list(value)}`);
    const others = [file(2), Buffer.from("a: 1"), Buffer.from(`{${spelled}: 1, ${spelled}: 2}`)];
    const found = await Promise.all(others.map((other) => summarize([file(1), other], LIMITS)));
    match(JSON.stringify(found), /\*\*\*/);
    doesNotMatch(JSON.stringify(found), /USH/);
  });
  test("that Markdown's escapes break", async () => {
    const { url } = await forgeFor(saying(`"no ${HUSH} here"`, "403 No"));
    match(await summaryOf([], envFor(url, { AUTO_SYNC_TOKEN: HUSH })), /no &#42;&#42;&#42; here/);
  });
});

const NONE = { missing: [], extra: [], changed: {} };

describe("the summary by name", () => {
  const p = (providers: object) => ({ providers: { ...NONE, ...providers }, runtimes: NONE });
  const r = (runtimes: object) => ({ providers: NONE, runtimes: { ...NONE, ...runtimes } });
  const o = (...others: string[]) => ({ others: others.map((name) => `"${name}"`).join(", ") });
  const named = (entry: string) => `providers: [{name: a, ${entry}}]`;
  const aliases = (uses: number) => `a: &a 1\nb: [${"*a, ".repeat(uses)}]`;
  const PROTO = JSON.parse('{"__proto__":[]}');
  type Found = { providers?: object; runtimes?: object; others?: string };
  type Row = [canonical: string, copy: string, want: Found];
  const rows: [name: string, ...Row][] = [
    ["providers missing", "providers: [{name: b}, {name: a}]", "providers: []", p({ missing: ["a", "b"] })],
    ["providers extra", "providers: []", "providers: [{name: z}, {name: y}]", p({ extra: ["y", "z"] })],
    ["changed keys", named("x: 1, b: 1"), named("x: 2, c: 1"), p({ changed: { a: ["b", "c", "x"] } })],
    ["a change far within", named("y: [1, {z: 2}]"), named("y: [1, {z: 3}]"), p({ changed: { a: ["y"] } })],
    ["a new name", named("x: 1"), "providers: [{name: b}]", p({ missing: ["a"], extra: ["b"] })],
    ["runtimes", "runtimes: {c: {}}", "runtimes: {d: {}}", r({ missing: ["c"], extra: ["d"] })],
    ["a changed one", "runtimes: {a: {x: 1}}", "runtimes: {a: {x: 2}}", r({ changed: { a: ["x"] } })],
    ["ones that are no mappings", "runtimes: {a: [x]}", "runtimes: {a: }", r({ changed: { a: [] } })],
    ["other keys", "version: 1\nz: 1\nproviders: []", "version: 2\ny: 1", o("version", "y", "z")],
    ["a section that came", "a: 1", "a: 1\nruntimes: {r: }", r({ extra: ["r"] })],
    ["a section that became null", named("x: 1"), "providers:", p({ missing: ["a"] })],
    ["keys that are numbers or null", "1: a\n~: b", "1: b\n~: b", o("1")],
    ["constructor", "runtimes: {constructor: {}}", "runtimes: {}", r({ missing: ["constructor"] })],
    ["__proto__", "runtimes: {__proto__: 1}", "runtimes: {__proto__: 2}", r({ changed: PROTO })],
    ["large integers", "a: 9007199254740993", "a: 9007199254740992", o("a")],
    ["nothing in another order", `a: 1\n${named("x: 1")}`, "providers: [{x: 1, name: a}]\na: 1", {}],
    ["nothing in another style", "a: [x, 'y'] # z", 'a:\n- "x"\n- y', {}],
    ["what an alias stands for", "a: &x 1\nb: *x", "a: 1\nb: 2", o("b")],
    ["what nine aliases stand for", "b: 1", aliases(9), o("a", "b")],
    ["what a directive changes", "%YAML 1.1\n---\na: 010", "a: 010", o("a")],
    ["a file as large as it is worth", "a: 1", `a: ${"x".repeat(98_301)}`, o("a")],
  ];
  each("finds", rows, async (canonical, copy, { providers = NONE, runtimes = NONE, others }) => {
    const { sections, said } = await summarize([Buffer.from(canonical), Buffer.from(copy)], LIMITS);
    deepEqual(sections, { providers, runtimes });
    equal(/^other keys .* differ: (.*)$/m.exec(said.join("\n"))?.[1], others);
  });

  const nested = ([one, other]: string) => `${one}: &${one} [${`*${other}, `.repeat(9)}]\n`;
  const bomb = `a: &a [x, x, x, x, x, x, x, x, x]\n${["ba", "cb", "dc", "ed", "fe"].map(nested).join("")}`;
  const leftOut: [name: string, copy: string, why: string][] = [
    ["what is no YAML", "a: b: c", "Nested mappings"],
    ["a key given twice", "providers: [{name: a, x: 1, x: 2}]", "unique"],
    ["a bomb of aliases", bomb, "alias"],
    ["an alias used more than it is worth", aliases(11), "alias"],
    ["more keys than it is worth", numbered(1500, "k").replaceAll("\n", ": 1\n"), "too many keys"],
    ["several documents", "a: 1\n---\nb: 1", "multiple documents"],
    ["a scalar", "just text", "not a mapping"],
    ["an empty file", "", "not a mapping"],
    ["providers that are no list", "providers: {a: {}}", "not a list"],
    ["an entry without a name", "providers: [{id: a}]", "one has none"],
    ["an entry with an empty name", "providers: [{name: ''}]", "one has none"],
    ["an entry that is no mapping", "providers: [a]", "one has none"],
    ["two entries of one name", "providers: [{name: a}, {name: a}]", "two providers have one name"],
    ["runtimes that are no mapping", "runtimes: [a]", "not a mapping"],
    ["nesting beyond the stack", "[".repeat(90_000), "nested too deep"],
    ["more than it is worth", `a: ${"x".repeat(98_302)}`, "98305"],
  ];
  each("is left out, and the verdict stands, for", leftOut, async (copy, why) => {
    const { stdout, stderr } = await gate([...pair(named("x: 1"), copy), "--json"]);
    const { status, summary } = JSON.parse(stdout);
    deepEqual([status, summary], ["drift", null]);
    match(stderr, new RegExp(`^summary +left out: .*${why}`, "m"));
  });
  const short: [name: string, bytes: number, ms: number, isMade: boolean][] = [
    ["all within a long deadline", 98_304, 60_000, true],
    ["what 750 ms are enough for", 49_152, 750, true],
    ["more than that", 49_153, 750, false],
    ["anything behind the deadline", 10, -1, false],
  ];
  each("is made or left out for", short, async (bytes, ms, isMade) => {
    const files = [Buffer.from("a: 1"), Buffer.from(`a: ${"x".repeat(bytes - 3)}`)] as const;
    equal((await summarize(files, { ...LIMITS, ms })).sections !== null, isMade);
  });
  test("is left out where the canonical is the broken one", async () => {
    const { said } = await summarize([Buffer.from("a: b: c"), Buffer.from("a: 1")], LIMITS);
    match(said.join(), /^left out: "Nested mappings/);
  });
  test("is told in lines of the log", async () => {
    const names = Array.from({ length: 25 }, (_, index) => `p${String(index).padStart(2, "0")}`);
    const old = `${names.map((name) => `{name: ${name}}`).join()}, {name: q, x: 1, y: 2}, {name: r, x: 1}`;
    const file = (v: number, list: string) => `v: ${v}\nproviders: [${list}]\nruntimes: {a: [${v}]}\n`;
    const now = file(2, "{name: q, x: 2, y: 3}, {name: new}, {name: r, x: 1}");
    const { stdout } = await gate(pair(file(1, old), now));
    const shown = names.slice(0, 20).map((name) => `"${name}"`);
    const others = 'extra in the copy: "new"; changed: "q" ("x", "y")';
    deepEqual(stdout.match(/(?<=^summary {4}).*$/gm), [
      `providers: missing in the copy: ${shown.join(", ")} and 5 more; ${others}`,
      'runtimes: changed: "a"',
      'other keys of the file that differ: "v"',
    ]);
  });
});

// ── re-sync ──

describe("--write", () => {
  test("replaces the copy, bumps the pin, and keeps both modes", async () => {
    const { folder, copy, pin, local } = workTree({ copy: OLD, pin: goPin(DRIFTED_SUM.toUpperCase()) });
    const modes = [0o640, 0o755] as const;
    chmodSync(copy, modes[0]);
    chmodSync(pin, modes[1]);
    const document = await verdictOf(local);
    deepEqual([readFileSync(copy), readFileSync(pin, "utf8")], [BODY, goPin(CANONICAL_SUM)]);
    deepEqual([statSync(copy).mode & 0o7777, statSync(pin).mode & 0o7777], modes);
    equal(readdirSync(folder).length, 2);
    match(String(document.remedy), /go generate.*commit/);
    deepEqual(document.copy, { path: copy, bytes: 795, sha256: CANONICAL_SUM });
    deepEqual(document.pin, { path: pin, sha256: CANONICAL_SUM });
  });
  const pins = { right: goPin(CANONICAL_SUM), stale: goPin(OTHER_SUM) };
  const says: [name: string, content: Content, says: RegExp, written: string[]][] = [
    ["nothing", { copy: BODY, pin: pins.right }, /already: nothing was written\.$/, []],
    ["the pin alone", { copy: BODY, pin: pins.stale }, /already: wrote "[^"]*pin\.go"\. /, ["pin.go"]],
    ["the copy, without a pin", { copy: OLD }, /now: wrote "[^"]*"\. No pin was bumped/, ["providers.yaml"]],
    ["a new copy", {}, /now: wrote "[^"]*yaml"\. No pin was bumped/, ["providers.yaml"]],
    ["the copy alone", { copy: OLD, pin: pins.right }, /now: wrote "[^"]*yaml"\. Do/, ["providers.yaml"]],
  ];
  each("touches, and says so,", says, async (content, says, written) => {
    const { folder, local } = workTree(content);
    const inodes = () => readdirSync(folder).map((name) => [name, statSync(join(folder, name)).ino] as const);
    const before = new Map(inodes());
    match(lastLine((await gate(local)).stdout), says);
    const changed = inodes().flatMap(([name, inode]) => (before.get(name) === inode ? [] : [name]));
    deepEqual(changed, written);
    const pin = content.pin === undefined ? {} : { "pin.go": Buffer.from(pins.right).toString("latin1") };
    deepEqual(contentOf(folder), { ...pin, "providers.yaml": BODY.toString("latin1") });
  });
  for (const path of ["a/folder/that/is/not/there", "y".repeat(240)])
    test(`creates a missing copy ${path}`, async () => {
      const copy = join(workTree().folder, path);
      equal((await gate(versus(copy, "--write"))).exitCode, 0);
      deepEqual(readFileSync(copy), BODY);
    });

  const noId = fileWithout("Etag");
  const fetched: [name: string, forge: Play, content: Content, want: RegExp][] = [
    ["a proven copy", playRepository, { copy: OLD }, /^0 .*now: wrote/],
    ["nothing damaged", flipped, { copy: OLD }, /^3 .*bad-response.*blob id/],
    ["nothing without a blob id", noId, { copy: OLD }, /^3 .*bad-response.*blob id \(ETag\)/],
    ["no pin without one", noId, { copy: BODY, pin: OTHER_SUM }, /^3 .*bad-response.*blob id/],
    ["no new copy without one", noId, {}, /^3 .*bad-response.*blob id/],
    ["nothing where all is well without one", noId, { copy: BODY }, /^0 .*nothing was written/],
  ];
  each("writes, from a forge,", fetched, async (play, content, want) => {
    const { folder, argv } = workTree(content);
    const before = contentOf(folder);
    const { url } = await forgeFor(play);
    const ran = await gate(argv, envFor(url));
    match(endOf(ran), want);
    const wrote = { "providers.yaml": BODY.toString("latin1") };
    deepEqual(contentOf(folder), ran.exitCode === 0 ? wrote : before);
  });

  const refused: [name: string, make: (copy: string) => void, want: RegExp, content?: Content][] = [
    ["through a link", (copy) => symlinkSync(temp(OLD), copy), /^3 .*copy-unreadable.*symbolic link/],
    ["through a dangling one", (copy) => symlinkSync("none", copy), /^3 .*copy-unreadable.*symbolic link/],
    ["over a directory", mkdirSync, /^3 .*copy-unreadable.*directory/],
    ["beside a pin without a sum", () => {}, /^3 .*pin-unreadable.*no word/, { copy: OLD, pin: "none" }],
    ["beside one with two", () => {}, /^3 .*2 words/, { copy: OLD, pin: `${OTHER_SUM} ${OTHER_SUM}` }],
  ];
  each<[(copy: string) => void, RegExp, Content?]>("writes nothing", refused, async (make, want, content) => {
    const { folder, copy, local } = workTree(content);
    make(copy);
    const before = lstatSync(copy);
    match(endOf(await gate(local)), want);
    deepEqual([lstatSync(copy).ino, lstatSync(copy).mtimeMs], [before.ino, before.mtimeMs], folder);
  });
  test("writes nothing without a token, nor from nothing", async () => {
    const [tree, empty] = [workTree({ copy: OLD }), workTree()];
    equal(await statusOf(tree.argv), "token-missing 1");
    deepEqual(readFileSync(tree.copy), OLD);
    const { reason } = await verdictOf([...empty.argv, "--canonical", "none"]);
    deepEqual([reason, readdirSync(empty.folder)], ["file-not-found", []]);
  });
  const tooLong = join(scratch, "made", "y".repeat(300));
  ends("says so when the copy cannot be written:", [
    ["below a file", versus(join(temp(""), "copy"), "--write"), /^3 .*copy-unreadable.*not a directory/],
    ["too long a name", versus(tooLong, "--write"), /^3 .*copy-unreadable.*too long\. No file was changed/],
  ]);
  test("has then made a folder, and leaves nothing else behind", () =>
    deepEqual(readdirSync(join(scratch, "made")), []));
  test("says what was written before when the pin cannot be", async () => {
    const { copy } = workTree({ copy: OLD });
    // A file that can be read, in a folder in which nobody can make one.
    const argv = measured("--write", ...versus(copy, "--pin", "/proc/self/environ"));
    const ran = await run(argv, { ...MEASURED, SUM: OTHER_SUM });
    match(endOf(ran), /^3 .*pin-unreadable.*yaml" was written before/);
    deepEqual(readFileSync(copy), BODY);
  });

  test("leaves each file old or new wherever it is killed", async () => {
    const start = killed();
    const wanted = { "old old": "drift 1", "new old": "pin-mismatch 1", "new new": "in-sync 0" };
    const seen = new Map<string, string>();
    let signal: string | null = "";
    for (let at = 0; signal !== null && at < 40; at += 1) {
      const tree = workTree({ copy: OLD, pin: goPin(DRIFTED_SUM) });
      ({ signal } = await run([...start, ...tree.local], { KILL_AT: `${at}` }));
      seen.set(stateOf(tree), await statusOf(versus(tree.copy, "--pin", tree.pin)));
    }
    deepEqual([signal, Object.fromEntries(seen)], [null, wanted]);
  });
});

// ── report ──

describe("the log", () => {
  const PLACE = `"molecule-ai/molecule-controlplane" at "main" (commit 9d3b4a7278)`;
  test("in sync has a line for each side, and no annotation", async () => {
    const { stdout, stderr } = await gate([], FETCH);
    const want = [
      `context    event "push": row 1 of the case table, trusted: the repository's own context, where the secret should be`,
      `copy       "fixtures/providers.yaml": 795 bytes, sha256 b54630fe7d7f`,
      `token      AUTO_SYNC_TOKEN, the secret, sent to ${repository.url} and nowhere else`,
      `canonical  "internal/providers/providers.yaml" of ${PLACE}: 795 bytes, sha256 b54630fe7d7f`,
      "verdict    in-sync: The copy is the canonical file, byte for byte.",
    ];
    deepEqual([stdout.split("\n"), stderr], [want, ""]);
  });
  test("drifted has one annotation", async () => {
    const { stdout } = await gate(["--copy", DRIFTED], FETCH);
    const place = "::error file=fixtures/providers-drifted.yaml,line=8::drift: ";
    const sums = "first in line 8 (sha256: copy 9ccc1c93c342, canonical b54630fe7d7f)";
    deepEqual(annotations(stdout), [lastLine(stdout)]);
    for (const part of [place, sums, " --write "]) ok(lastLine(stdout).includes(part), part);
    ok(stdout.includes(PLACE));
  });
  test("holds no command from a hostile setting", async () => {
    const text = "x\n::error::pwned\r##[error]y ::set-env name=A::b";
    const { stdout } = await gate(["--event-name", text, "--copy", text, "--canonical", text]);
    deepEqual([annotations(stdout).length, stdout.split("\n").length], [1, 2]);
    doesNotMatch(stdout, /##\[|pwned::|\r/);
  });
  test("shortens what is endless", async () => {
    const { stdout } = await gate([], { GITHUB_EVENT_NAME: "x".repeat(100_000) });
    match(stdout, /^.{0,600}xxx…".{0,600}\n.{0,2000}$/s);
  });
  const held = { AUTO_SYNC_TOKEN: HUSH, SYNC_CANONICAL_REPO: HUSH };
  ends("repeats no token", [["that a setting holds by mistake", [], /CANONICAL_REPO: it is "\*\*\*"/, held]]);
  test("says one byte of one byte", async () =>
    match((await gate(pair("x", "x"))).stdout, /^copy .*: 1 byte, /m));
});

describe("the step's outputs", () => {
  const empty = {
    ...{ status: "usage", reason: "", "exit-code": "2", branch: "", trusted: "", event: "" },
    ...{ "copy-sha256": "", "canonical-sha256": "", "canonical-commit": "" },
  };
  const inSync = {
    ...{ status: "in-sync", reason: "", "exit-code": "0", branch: "1", trusted: "true", event: "push" },
    ...{ "copy-sha256": CANONICAL_SUM, "canonical-sha256": CANONICAL_SUM, "canonical-commit": COMMIT },
  };
  const name = "x\nstatus=drift\nEOF\nstatus<<x\n";
  const escaped = { ...inSync, branch: "4", event: "x\\nstatus=drift\\nEOF\\nstatus<<x\\n" };
  const rows: [name: string, argv: string[], want: Record<string, string>][] = [
    ["say all that a later step may ask", [], inSync],
    ["are empty where nothing is known", ["--bogus"], empty],
    ["name the reason", ["--canonical", "none"], { status: "unverified", reason: "file-not-found" }],
    ["are not ended by an event's name", ["--event-name", name], escaped],
  ];
  each("", rows, async (argv, want) => {
    const { outputs } = await filesOf(argv, FETCH);
    deepEqual({ ...outputs, ...want }, outputs);
    deepEqual(Object.keys(outputs), Object.keys(empty));
  });
  test("have another delimiter each time", async () => {
    const GITHUB_OUTPUT = temp("");
    for (let round = 0; round < 2; round += 1) await gate(LOCAL, { GITHUB_OUTPUT });
    equal(new Set(readFileSync(GITHUB_OUTPUT, "utf8").match(/(?<=^status<<).*$/gm)).size, 2);
  });
  for (const name of ["GITHUB_OUTPUT", "GITHUB_STEP_SUMMARY"])
    for (const path of [scratch, "/none/a"])
      test(`cost a line of the log when ${name} cannot be ${path}`, async () => {
        const { exitCode, stdout } = await gate(LOCAL, { [name]: path });
        match(`${exitCode} ${stdout}`, RegExp(`^0 .*\nnote +.* ${name} .*The verdict stands`, "s"));
      });
});

describe("the step summary", () => {
  test("has the verdict, a table of the sides, and the diff", async () => {
    const [first = "", ...lines] = (await summaryOf(versus(DRIFTED, "--pin", temp(OTHER_SUM)))).split("\n");
    match(first, /^\*\*drift\*\*&#58; The copy .*Both moved&#58; the pin names neither/);
    const copy = `| copy | "fixtures/providers-drifted&#46;yaml" | 798 | \`${DRIFTED_SUM}\` |`;
    const canonical = `| canonical | "fixtures/providers&#46;yaml" | 795 | \`${CANONICAL_SUM}\` |`;
    const head = ["", "| side | where | bytes | sha256 |", "| --- | --- | --- | --- |"];
    deepEqual(lines.slice(0, 5), [...head, copy, canonical]);
    match(lines[5] ?? "", /^\| pin \| .* \| 64 \| `0{64}` \|$/);
    deepEqual([lines[7], lines.at(-3)], ["```diff", "```"]);
    ok(lines.includes("+    protocol: anthropic-v2"));
  });
  const bold = pair("a: 1", "runtimes: {'**a** <b>': 1}");
  const rows: [name: string, argv: string[], want: RegExp][] = [
    ["a line where nothing was read", PUSH, /^\*\*token-missing\*\*.*AUTO&#95;.*\n\n$/],
    ["a line for a wrong flag", ["--bogus"], /^\*\*usage\*\*&#58; Cannot read the flags&#58; .*\n\n$/],
    ["words where there is no diff", pair("a\n", "a\r\n"), /nothing but line endings/],
    ["the number of what is left out", pair(numbered(300, "a"), numbered(300)), / 403 more lines left out$/m],
    ["a fence that nothing closes", pair("x\n", "```\n`````\n# no\n"), /^`{6}diff$[\s\S]*^`{6}$/m],
    ["hostile names in it", bold, /^`{3}diff$[\s\S]*^summary.*"\*\*a\*\* <b>"$[\s\S]*^`{3}$/m],
  ];
  each("has", rows, async (argv, want) => match(await summaryOf(argv), want));
  test("has no mark of Markdown from a path", async () => {
    const text = await summaryOf(versus("a|b](javascript:x)<img src=x>`*_@me#1\\$x$"));
    doesNotMatch(text.replaceAll(/&#\d+;|\*\*unverified\*\*/g, ""), /[|<>[\]()`*_@#\\$]/);
  });
  test("stays under 256 KiB, whatever the files are", async () => {
    const line = `${"\u202e".repeat(3000)}\n`;
    const text = await summaryOf(pair(line.repeat(100), `x${line}`.repeat(300)));
    ok(Buffer.byteLength(text) < 256 * 1024, `${Buffer.byteLength(text)} bytes`);
  });
});

describe("the JSON document", () => {
  const unmoved = { moved: null, firstDifferingLine: null };
  const nothing = { schema: 1, reason: null, ...unmoved, summary: null, pin: null };
  const sum = { bytes: 795, sha256: CANONICAL_SUM };
  const noForge = { server: null, repo: null, ref: null, commit: null };
  const place = { repo: "molecule-ai/molecule-controlplane", ref: "main", commit: COMMIT };
  test("has every key when the sides were compared", async () => {
    const { elapsedMs, ...document } = await verdictOf([], FETCH);
    equal(typeof elapsedMs, "number");
    deepEqual(document, {
      ...{ ...nothing, event: "push", branch: 1, trusted: true, token: "secret", attempts: 2 },
      ...{ status: "in-sync", exitCode: 0, remedy: "" },
      message: "The copy is the canonical file, byte for byte.",
      copy: { path: CANONICAL, ...sum },
      canonical: { server: repository.url, ...place, path: "internal/providers/providers.yaml", ...sum },
    });
  });
  test("has null for what is not known", async () => {
    const { elapsedMs, message, remedy, ...document } = await verdictOf(["--bogus"]);
    const unknown = { path: null, bytes: null, sha256: null };
    deepEqual(document, {
      ...{ ...nothing, event: null, branch: null, trusted: null, token: null, attempts: 0 },
      ...{ status: "usage", exitCode: 2, copy: unknown, canonical: { ...noForge, ...unknown } },
    });
  });
  test("has the summary, and the path of a pin that cannot be read", async () => {
    const { pin, summary, canonical } = await verdictOf(versus(DRIFTED, "--pin", "none"));
    const providers = { ...NONE, changed: { anthropic: ["protocol"] } };
    deepEqual(pin, { path: "none", sha256: null });
    deepEqual(summary, { providers, runtimes: NONE });
    deepEqual(canonical, { ...noForge, path: CANONICAL, ...sum });
  });
  test("is alone on standard output, the log on standard error", async () => {
    const { stdout, stderr } = await gate(["--json"], { GITHUB_EVENT_NAME: "schedule" });
    equal(JSON.parse(stdout).status, "token-missing");
    match(lastLine(stderr), /^::error::token-missing/);
  });
  const escaped: [name: string, text: string, want: string][] = [
    ["a command", "::error::x", '"\\u003a\\u003aerror\\u003a\\u003ax"'],
    ["three colons", ":::", '"\\u003a\\u003a\\u003a"'],
    ["the old form of a command", "##[error]", '"\\u0023\\u0023[error]"'],
    ["what turns text around", "\u202e\u0085", '"\\u202e\\u0085"'],
    ["nothing in a plain text", "a: b #1", '"a: b #1"'],
  ];
  each("escapes", escaped, (text, want) => equal(toJson(text), want));
});

describe("--explain", () => {
  const rows: [name: string, argv: string[], says: RegExp][] = [
    ["a trusted event", PUSH, /row 1 .* trusted.*\nbranch +1 of 4.*\nwithout .*missing, exit code 1/s],
    ["a fork's pull request", FORK, /row 3 .*, untrusted[\s\S]*^without .*skipped, exit code 0.*pin/m],
    ["a local canonical", ["--canonical", "none"], /^with .*compares[\s\S]*^without .*compares.*local file/m],
  ];
  each("says in plain text what happens for", rows, async (argv, says) => {
    const { exitCode, stdout } = await gate(["--explain", ...argv], { GITHUB_OUTPUT: "/dev/full" });
    deepEqual([exitCode, annotations(stdout)], [0, []]);
    match(stdout, says);
  });
  ends("refuses", [["a replay that is not there", ["--explain", "--replay", "none"], /^2 ::error::usage/]]);
});

// ── main ──

describe("an exception that nobody expected", () => {
  const missing = Object.assign(new Error("no undici"), { code: "ERR_MODULE_NOT_FOUND" });
  const boom = new Error(`boom ${HUSH}`);
  const rows: [name: string, error: unknown, debug: string, says: RegExp, never: RegExp][] = [
    ["is red, without its stack", boom, "", /finish: "boom \*\*\*"\. .*SYNC_DEBUG=1/, /HUSH|test\.ts/],
    ["shows its stack on demand", boom, "1", /^debug .*\.test\.ts/m, /HUSH/],
    ["may be no error at all", "plain text", "1", /Cannot finish: "plain text"/, /^debug/m],
    ["names all of several", new AggregateError([new Error("a"), new Error("b")]), "", /"a; b"/, /^debug/m],
    ["says how to install a missing package", missing, "", /npm ci --omit=dev/, /^debug/m],
  ];
  each("", rows, async (error, SYNC_DEBUG, says, never) => {
    const how = { crashed: Promise.reject(error) };
    const { exitCode, stdout } = await gate(LOCAL, { AUTO_SYNC_TOKEN: HUSH, SYNC_DEBUG }, how);
    deepEqual([exitCode, annotations(stdout)], [3, [lastLine(stdout)]]);
    match(stdout, says);
    doesNotMatch(stdout, never);
  });
  test("is red in the middle of a fetch, too", async () => {
    const lines: string[] = [];
    const exitCode = await main([], FETCH, (line) => {
      if (line.startsWith("token")) throw new Error("no room");
      lines.push(line);
    });
    match(`${exitCode} ${lines.at(-1)}`, /^3 ::error::unverified: Cannot finish: "no room"/);
  });
});

describe("the real command", { concurrency: 4 }, () => {
  const bundle = join(scratch, "sync-providers.mjs");
  const moved = /^1 ::error file=.*::drift: .* Do: .* (npx tsx sync-providers\.ts|node \S+\.mjs) --write \(/;
  const pinned = [...LOCAL, "--pin", "fixtures/providers-old.sha256"];
  const rows: [name: string, args: string[], want: RegExp, env?: Env][] = [
    ["in sync", [], /^0 verdict {4}in-sync: .*\.$/, FETCH],
    ["drifted", ["--copy", DRIFTED], moved, FETCH],
    ["without a token", PUSH, /^1 ::error::token-missing: /],
    ["another pin", pinned, /^1 ::error::pin-mismatch: /],
    ["a fork without a token", FORK, /^0 ::warning::skipped: /],
    ["a wrong flag", ["--no-such"], /^2 ::error::usage: /],
    ["an unreadable copy", versus("none"), /^3 ::error::unverified \(copy-unreadable\): /],
  ];
  before(async () => {
    const { stdout } = await run([process.execPath, ".ci/bundle.mjs", scratch]);
    match(stdout, /^[\da-f]{64} {2}.*sync-providers\.mjs {2}\d+ bytes$/m);
  });
  const starts: [start: string, command: string[], again: string][] = [
    ["the source", command(), "npx tsx sync-providers.ts"],
    ["the bundle", [process.execPath, bundle], `node ${relative(ROOT, bundle)}`],
  ];
  for (const [start, command, again] of starts)
    each<[string[], RegExp, Env?]>(`ends with its verdict, ${start},`, rows, async (args, want, env) => {
      const ran = await run([...command, ...args], env);
      const { stdout } = ran;
      match(endOf(ran), want);
      equal(ran.stderr, "");
      equal(annotations(stdout).length, want.source.includes("in-sync") ? 0 : 1);
      if (want === moved) ok(stdout.includes(` ${again} --write (`), stdout);
    });
  const runners: [name: string, preload: string, again: RegExp][] = [
    ["tsx", "", / npx tsx sync-providers\.ts --write /],
    ["deno", "globalThis.Deno = {};", / deno run -A sync-providers\.ts --write /],
  ];
  each("names what it was started by:", runners, async (preload, again) => {
    const path = scratchFile(preload === "" ? "tsx.mjs" : "deno.mjs", preload);
    const argv = [process.execPath, "--import", path, ...measured(...versus(DRIFTED)).slice(1)];
    match((await run(argv, MEASURED)).stdout, again);
  });
  test("in its own repository needs no setting to be named", async () => {
    const { folder } = workTree();
    const copy = join(folder, "workspace-server/internal/providers/providers.yaml");
    mkdirSync(join(copy, ".."), { recursive: true });
    writeFileSync(copy, OLD);
    const start = ["bash", "-c", 'cd "$0" && exec "$@"', folder, process.execPath];
    const named = async (path: string) => {
      const { stdout } = await run([...start, path, "--canonical", join(ROOT, CANONICAL)]);
      return / Do: (.*) --write --canonical /.exec(lastLine(stdout))?.[1];
    };
    equal(await named(bundle), "node ../sync-providers.mjs");
    writeFileSync(join(folder, "the gate.mjs"), readFileSync(bundle));
    equal(await named("the gate.mjs"), "node 'the gate.mjs'");
  });
  test("loads undici for a fetch alone, yaml and diff for a drift alone", async () => {
    const loaded = async (args: string[], env: Env) => {
      const { stderr } = await run(command(...args), { ...env, NODE_DEBUG: "module,esm" });
      return ["undici", "yaml", "diff"].filter((name) => stderr.includes(`node_modules/${name}/`)).join();
    };
    const drift = await loaded(["--copy", DRIFTED], FETCH);
    deepEqual([await loaded(PUSH, {}), await loaded([], FETCH), drift], ["", "undici", "undici,yaml,diff"]);
  });
  test("keeps its exit code when the reader goes away", async () => {
    const [file = "", ...args] = measured();
    const child = spawn(file, args, { cwd: ROOT, stdio: ["ignore", "pipe", "pipe"], env: MEASURED });
    child.stdout.destroy();
    child.stderr.destroy();
    deepEqual(await closed(child), [1, null]);
  });
  test("gives a slow reader every line", async () => {
    const list = (letter: string) => numbered(150, `- name: ${letter}${"z".repeat(500)}`);
    const argv = pair(`providers:\n${list("a")}`, `providers:\n${list("b")}`);
    const slow = ["bash", "-c", 'set -o pipefail; "$@" 2> >(sleep 1; cat >&2) | (sleep 1; cat)', "bash"];
    const { exitCode, stdout, stderr } = await run([...slow, ...measured("--json", ...argv)], MEASURED);
    ok(stdout.length > 65_536 && stderr.length > 65_536, `${stdout.length}, ${stderr.length}`);
    deepEqual([exitCode, JSON.parse(stdout).status], [1, "drift"]);
    match(lastLine(stderr), /^::error file=.*::drift: /);
  });
  const exits: [name: string, builtin: string, code: string, want: RegExp][] = [
    ["red at once when a library throws", "fs/promises", never(hung), /^3 ::error::un.*"boom \*\*\*"/],
    ["red when it ends on its way", "fs/promises", never(""), /^3 context /],
    ["as it was when one throws late", "process", late(throwing), /^0 .*in-sync/],
    ["as it was when a promise breaks late", "process", late('void Promise.reject("late")'), /^0 .*in-sync/],
    ["not held by a timer or a server", "net", leftOpen, /^0 .*in-sync/],
  ];
  each("is", exits, async (builtin, code, want) => {
    const env = { ...MEASURED, AUTO_SYNC_TOKEN: STAND_IN_TOKEN };
    const ran = await run([...preloaded(builtin, code), ...LOCAL], env);
    match(endOf(ran), want);
    doesNotMatch(ran.stdout, /^ +at /m);
    equal(ran.stderr, "");
  });
  test("has one document when a library throws", async () => {
    const argv = [...preloaded("fs/promises", never(hung)), "--json", ...LOCAL];
    const { exitCode, stdout, stderr } = await run(argv, MEASURED);
    deepEqual([exitCode, JSON.parse(stdout).exitCode, annotations(stderr).length], [3, 3, 1]);
  });
  test("runs by a link or a shortened name, and not by an import", async () => {
    const version = { exitCode: 0, signal: null, stdout: `${VERSION}\n`, stderr: "" };
    // A folder of the script's name lies beside it.
    const { folder } = workTree();
    mkdirSync(join(folder, "sync-providers"));
    symlinkSync(join(ROOT, "sync-providers.ts"), join(folder, "sync-providers.ts"));
    const links = [linkTo(join(ROOT, "sync-providers.ts")), "sync-providers", join(folder, "sync-providers")];
    const loader = [process.execPath, "--import", "./.ci/loader.mjs", "--input-type=module"];
    const imports = [...loader, "-e", 'await import("./sync-providers.ts")'];
    const unknown = ["no-such-script", "fixtures"].map((name) => [...imports, name]);
    for (const start of [...links.map((link) => [process.execPath, TSX, link]), measured(), ...unknown])
      deepEqual(await run([...start, "--version"], start.includes(TSX) ? {} : MEASURED), version);
    deepEqual(await run(imports, MEASURED), { ...version, stdout: "" });
  });
  test("runs from standard input", async () => {
    const { exitCode } = await run(["bash", "-c", `node --input-type=module < ${bundle}`]);
    equal(exitCode, 1, "a gate that does not run is green");
  });
  test("npm start shows the gate in sync on the loopback", async () => {
    const { exitCode, stdout } = await run([process.execPath, TSX, "fixtures/forge.ts"]);
    match(`${exitCode} ${stdout}`, /^0 .*\nverdict {4}in-sync.*exit code 0, after 2 requests/s);
  });
  test("ends while the forge keeps the connection", async () => {
    const { url } = await forgeFor(keepOpen);
    match(endOf(await run(command(), envFor(url, within("86400")))), /^0 .*in-sync/);
  });
  test("takes no more memory than for the limit", async () => {
    const { url } = await forgeFor(on("file", pour));
    const start = preloaded("fs", 'process.on("exit", () => console.error(process.resourceUsage().maxRSS));');
    const small = await run([...start, ...LOCAL]);
    const large = await run(start, envFor(url, within("60")));
    match(large.stdout, /unverified \(too-large\)/);
    const [least, most] = [Number(small.stderr), Number(large.stderr)];
    ok(least > 0 && most < least + 100 * 1024, `peaks of ${least} and ${most} KiB`);
  });
  test("is interrupted by the signal's default", async () => {
    let child: ChildProcess | null = null;
    const silent = await forgeFor(() => child?.kill("SIGTERM"));
    const env = { NODE_V8_COVERAGE: "", ...envFor(silent.url, within("30")) };
    child = spawn(process.execPath, ["--import", "tsx", "sync-providers.ts"], { cwd: ROOT, env });
    deepEqual(await closed(child), [null, "SIGTERM"]);
  });
});

// ── properties ──

describe("for any text", () => {
  test("the log's escapes leave no command", () =>
    forAnyText((text) => {
      deepEqual([commandsIn(escapeForLog(text)), commandsIn(escapeLogLine(text))], [[], []]);
      doesNotMatch(escapeForLog(text), /[\p{Cc}\p{Cf}\p{Zl}\p{Zp}]|::/u);
    }));
  test("escaping can be undone by the published rule", () => {
    const marks: Record<string, string> = { "0D": "\r", "0A": "\n", "3A": ":", "2C": ",", "25": "%" };
    const undo = (text: string) => text.replace(/%(0D|0A|3A|2C|25)/g, (_, code) => marks[code] ?? "");
    forAnyText((text) => {
      deepEqual([undo(escapeData(text)), undo(escapeProperty(text))], [text, text]);
      doesNotMatch(escapeData(text), /[\r\n]/);
      doesNotMatch(escapeProperty(text), /[\r\n:,]/);
    });
  });
  test("the JSON document says the same and holds no command", () =>
    forAnyText((text) => {
      const json = toJson({ text });
      deepEqual([JSON.parse(json), commandsIn(json), json.includes("::")], [{ text }, [], false]);
    }));
  test("in names and paths, a runner sees one annotation", () =>
    seesOne(
      (text, other) => gate([`--event-name=x${text}`, `--copy=${other}y`, `--canonical=${text}z`]),
      /^::error::unverified \(copy-unreadable\): (?!.*::)/,
    ));
  test("in a payload, a runner sees one annotation", () =>
    seesOne((head, base) => {
      const { value: event } = repos({ full_name: head }, { full_name: base });
      const replay = scratchFile("hostile.json", JSON.stringify({ event_name: "pull_request", event }));
      return gate(["--replay", replay]);
    }, /^::(error::token-missing|warning::skipped): /));
  test("in a server's answers, a runner sees one annotation", async () => {
    let said = "";
    const { url } = await forgeFor((...at) => echo(said)(...at));
    const answered = (text: string) => {
      said = text;
      return gate([], envFor(url));
    };
    await seesOne(answered, /^::error::unverified/);
  });
});

describe("for any JSON", () => {
  test("the classifier says untrusted only where a rule does", () => {
    let forks = 0;
    const property = fc.property(payloads, (value) => {
      const { trusted, branch, why } = classify("pull_request", { value });
      forks += trusted ? 0 : 1;
      equal(trusted, branch !== 3);
      ok(trusted || couldBeFork(value), why);
    });
    fc.assert(property, { numRuns: 5000 });
    ok(forks > 100, `${forks} forks`);
  });
  test("any other event is trusted", () => {
    const events = fc.string().filter((event) => event !== "pull_request");
    fc.assert(fc.property(events, payloads, (event, value) => classify(event, { value }).trusted));
  });
});

// ── workflow ──

describe("every workflow", () => {
  for (const file of readdirSync(".gitea/workflows")) {
    const good = readFileSync(`.gitea/workflows/${file}`, "utf8");
    for (const [rule, prevents, holds, ...changes] of file === GATE ? [...RULES, ...GATE_RULES] : RULES)
      test(`${file} ${rule}, or else: ${prevents}`, () => {
        ok(holds(workflowOf(good)));
        for (const [part, by] of changes) ok(!holds(workflowOf(good.replace(part, by))), by);
      });
  }
  const rows: [name: string, replay: string, want: RegExp][] = [
    ["a trusted context", "schedule", /^1 ::error::token-missing/],
    ["an untrusted context", "pr-fork-synchronize", /^0 ::warning::skipped/],
  ];
  each("runs the gate in", rows, async (replay, want) => {
    const { event_name: GITHUB_EVENT_NAME, event } = captured(replay);
    const env = { GITHUB_EVENT_NAME, GITHUB_EVENT_PATH: temp(JSON.stringify(event)) };
    const { steps } = workflowOf(readFileSync(`.gitea/workflows/${GATE}`, "utf8"));
    match(endOf(await run(["bash", "-e", "-c", steps.at(-1)?.run ?? ""], env)), want);
  });
});

describe("the documents", () => {
  test("have the examples that the gate makes", async () => {
    for (const [path, text] of await renderDocuments())
      equal(readFileSync(path, "utf8"), text, `npm run examples makes ${path} anew`);
  });
  test("name every status, reason and setting", async () => {
    const readme = readFileSync("README.md", "utf8");
    const settings = (await gate(["--help"])).stdout.match(/\b(SYNC|AUTO|GITHUB)_[A-Z_]+|--[a-z-]+/g) ?? [];
    for (const name of [...Object.keys(STATUSES), ...Object.keys(REMEDIES), ...settings])
      ok(readme.includes(name), name);
    match(readme, /```sh\nnpm ci && npm start\n```[\s\S]*```sh\nnpm cit\n```/);
  });
});

describe("the packages", () => {
  const lock: { packages: Record<string, Record<string, unknown>> } = JSON.parse(
    readFileSync("package-lock.json", "utf8"),
  );
  const locked = Object.entries(lock.packages).filter(([path]) => path !== "");
  test("are pinned by version and sum, without an address", () => {
    for (const [path, { version, integrity, resolved }] of locked)
      deepEqual([typeof version, typeof integrity, resolved], ["string", "string", undefined], path);
  });
  test("that a runner installs are seven", () => {
    const isOther = ["dev", "devOptional", "os", "optional"];
    const installed = locked.filter(([, entry]) => isOther.every((key) => !entry[key]));
    const names = installed.map(([path]) => path.replace("node_modules/", "")).sort();
    deepEqual(names, ["diff", "esbuild", "is-network-error", "p-retry", "tsx", "undici", "yaml"]);
  });
});

// ── the job's own token ──

const BROKEN = { SYNC_JOB_TOKEN: "broken token-of-the-job" };

describe("the job's own token", { concurrency: 8 }, () => {
  const [jobs, secrets] = ["0 in-sync job, job commit file", "0 in-sync secret, secret commit file"];
  const missing = "1 token-missing missing, ";
  const replay = (event: string) => ["--replay", `fixtures/events/${event}.json`];
  const [same, fork] = [replay("pr-same-opened"), replay("pr-fork-synchronize")];
  const rows: [uses: string, want: string, env: Env, argv?: string[], answer?: Play][] = [
    ["the job's", jobs, JOB],
    ["the job's for a blank secret", jobs, { ...JOB, AUTO_SYNC_TOKEN: " \n" }],
    ["the job's for the same repository", jobs, JOB, same],
    ["the secret before the job's", secrets, BOTH],
    ["the secret that a fork has", secrets, BOTH, fork],
    ["the job's where no runner names a forge", jobs, { ...JOB, GITHUB_SERVER_URL: undefined }],
    ["none at another forge", missing, { ...JOB, GITHUB_SERVER_URL: "https://git.example.com" }],
    ["none where the runner's address is none", missing, { ...JOB, GITHUB_SERVER_URL: "nonsense" }],
    ["none for a fork", "0 skipped missing, ", JOB, fork],
    ["none", missing, {}],
    ["none for a rejected secret", "3 token-rejected secret, secret commit", BOTH, [], rejected],
    ["the job's: 404", `${missing}job commit repo`, JOB, [], withheld],
    ["the job's: 401", `${missing}job commit`, JOB, [], rejected],
    ["the job's: 403", `${missing}job commit`, JOB, [], refused],
    ["the job's: 403, file", `${missing}job commit file`, JOB, [], jobForge("file", refused)],
    ["the job's: no ref", "3 ref-not-found job, job commit repo", JOB, [], jobForge("commit", withheld)],
    ["the job's: no file", "3 file-not-found job, job commit file", JOB, [], jobForge("file", withheld)],
    ["the job's: drift", "1 drift job, job commit file", JOB, [], drifted],
    ["the job's: 500", "3 server-error job, job commit", JOB, [], unwell],
    ["the job's: a hang-up", "3 unreachable job, job commit", JOB, [], hangUp],
    ["the job's: silence", "3 timeout job, job commit", { ...JOB, ...within("1") }, [], silence],
  ];
  const remedies = /Provision AUTO_SYNC_TOKEN \(read scope on molecule-controlplane\).*SYNC_JOB_TOKEN/;
  for (const [uses, want, env, argv = [], answer = jobForge()] of rows)
    test(`uses ${uses}`, async () => {
      const forge = await forgeFor(answer);
      const none = { AUTO_SYNC_TOKEN: "", SYNC_JOB_TOKEN: "", SYNC_COPY_PATH: CANONICAL };
      const ran = await gate([...argv, "--json"], settingsOf(forge.url, { ...none, ...env }));
      const { status, reason, token } = JSON.parse(ran.stdout);
      const bearers = forge.asked.map(({ headers }) => headers.get("authorization"));
      const whose = bearers.map((one) => (one === `token ${JOB_TOKEN}` ? "job" : "secret"));
      const asked = [...new Set([...whose, ...forge.asked.map(kindOf)])].join(" ");
      equal(`${ran.exitCode} ${reason ?? status} ${token}, ${asked}`, want);
      const [error, ...more] = annotations(ran.stderr);
      deepEqual([error === undefined, more], [status === "in-sync", []], ran.stderr);
      equal(remedies.test(error ?? ""), status === "token-missing");
      equal(/^token +SYNC_JOB_TOKEN, .* sent to http/m.test(ran.stderr), asked.startsWith("job"));
    });

  const explained: [name: string, argv: string[], want: RegExp][] = [
    ["where it is trusted", same, /^job .*: compares: .*; token-missing 1 where.*^token +job,/ms],
    ["without a server", PUSH, /^token +job, in this environment$/m],
    ["for a fork", fork, /^job .*: not tried, .*^token +missing,/ms],
  ];
  each("is explained", explained, async (argv, want) =>
    match((await gate(["--explain", ...argv], JOB)).stdout, want),
  );
});

// ── the alarm ──

describe("the alarm", { concurrency: 8 }, () => {
  test("gives a silent forge up, and says so", async () => {
    const { asked, said } = await night({ to: /issues/, answer: silence });
    deepEqual([...new Set(asked)], LOOK);
    match(said, /^note +Cannot (finish within|get the open issues: nothing came for) .*$/);
  });

  test("is not kept for a wrong setting", async () => {
    const ran = await gate(["--alarm", "--copy", DRIFTED, "--pin", DRIFTED]);
    match(endOf(ran), /^2 ::error::usage/);
    doesNotMatch(ran.stdout, /^(alarm|note)/m);
  });
  test("does without the number of the run", async () => {
    const issues: Issue[] = [];
    await night({ issues, env: { GITHUB_RUN_NUMBER: "" } });
    match(issues[0]?.body ?? "", /^Run of an unknown number: \[Actions\]/m);
  });

  const foreign = issue(1, { user: { id: 1, login: "somebody" } });
  const another = issue(1, { body: `<!-- sync-providers: ${DRIFTED}.old -->` });
  const states: [name: string, issues: Issue[], pages: number[], drift: string[], sync: string[]][] = [
    ["no issue", [], [], [NEW], []],
    ["an open one", [issue(1)], [], [edit(1)], close(1)],
    ["somebody else's", [foreign], [], [NEW], []],
    ["several", [foreign, issue(2), issue(3)], [], [edit(2)], close(2)],
    ["one closed by hand", [issue(1, { state: "closed" })], [], [NEW], []],
    ["a pull request", [issue(1, { isPull: true })], [], [NEW], []],
    ["another copy's", [another], [], [NEW], []],
    ["one on page 2", behind(50), [2], [edit(1)], close(1)],
    ["one on page 3", behind(100), [2, 3], [edit(1)], close(1)],
  ];
  for (const [name, issues, pages, drift, sync] of states)
    test(`keeps ${name} in step`, async () => {
      const [same, look] = [structuredClone(issues), [...LOOK, ...pages.map(page)]];
      deepEqual((await night({ issues })).asked, [...look, ...drift]);
      deepEqual((await night({ issues: same, canonical: drifted })).asked, [...look, ...sync]);
    });

  test("opens, edits, closes and opens anew, night after night", async () => {
    const issues: Issue[] = [];
    let canonical = playRepository;
    const forge = await forgeFor((...at) => playForge(issues, canonical)(...at));
    const steps: [said: string, asked: string[], env?: Env, canonical?: Play][] = [
      ["issue 1 opened", [NEW]],
      ["issue 1 says so already", []],
      ["issue 1 edited", [edit(1)], { GITHUB_RUN_NUMBER: "8" }],
      ["issue 1 closed: in sync again", close(1), {}, drifted],
      ["no issue is open, and none is needed", [], {}, drifted],
      ["issue 2 opened", [NEW], { GITHUB_EVENT_NAME: "workflow_dispatch" }],
    ];
    for (const [said, asked, env, file = playRepository] of steps) {
      const start = forge.asked.length;
      canonical = file;
      const { stdout } = await gate(["--alarm"], settingsOf(forge.url, env));
      deepEqual(alarmed(forge.asked.slice(start)), [...LOOK, ...asked]);
      ok(stdout.includes(`\nalarm      ${said}\n`), stdout);
      // As a browser sends it.
      for (const one of issues) one.body = `${one.body.replaceAll("\n", "\r\n")}\r\n`;
    }
    const link = `Run 7: [Actions](${forge.url}/${JOB_REPO}/actions)`;
    deepEqual(issues[0]?.comments, [`In sync again. ${link}`]);
    const sums = `- copy: \`${DRIFTED_SUM}\`\r\n- canonical: \`${CANONICAL_SUM}\`\r\n- commit: \`${COMMIT}\``;
    const [verdict, ...body] = issues[1]?.body.split("\r\n\r\n") ?? [];
    match(verdict ?? "", /^\*\*drift\*\*&#58; The copy .* Do&#58; SYNC&#95;(?!.*anthropic)/);
    deepEqual(body, [sums, link, `${MARKER}\r\n`]);
  });

  const numbers = ['"../1"', '"1"', "-1", "0", "1.5", "1e309", "9007199254740993"].map((n) => rawIssue(n));
  const [ME, LIST, CREATE] = [/user$/, /^GET .*issues/, /^POST .*issues$/];
  const places: [what: string, to: RegExp, before: string[], request: string, tries: number][] = [
    ["user", ME, [], USER, 4],
    ["list", LIST, [USER], page(1), 4],
    ["new issue", CREATE, LOOK, NEW, 1],
    ["change", /^PATCH/, LOOK, edit(1), 1],
  ];
  const faults: [name: string, answer: Play, tries: number, said: RegExp][] = [
    ["403", leaky("403 Forbidden"), 1, /^note .*403, saying "[*]{3}.* issues: write/],
    ["404", withheld, 1, /^note .*404/],
    ["500", leaky("500 Internal Server Error"), 4, /^note .*500, saying "[*]{3}/],
    ["a hang-up", hangUp, 4, /^note .*UND_ERR_SOCKET/],
    ["a redirect", movedIssues, 1, /^note .*the redirect/],
    ["HTML", html, 1, /^note +Cannot use/],
    ["JSON without end", endlessJson, 1, /^note .* more than (1048576|4194304) bytes/],
  ];
  const [opened, edited, note] = [/^alarm +issue 1 opened$/, /^alarm +issue 1 edited$/, /^note +Cannot use/];
  const [second, pages] = [[...LOOK, page(2)], Array.from(Array(100), (_, at) => page(at + 1))];
  const answers: [name: string, to: RegExp, answer: Play, asked: string[], said: RegExp][] = [
    ["silence for the new issue", CREATE, silence, OPEN, /^note .*nothing came for 2.5 s/],
    ["pages without end", LIST, json(fifty), [USER, ...pages], /^note .*100 pages/],
    ["a list that is none", LIST, json("{}"), LOOK, note],
    ["a user without an id", ME, json("{}"), LOOK, note],
    ["a user's id in words", ME, json('{"id":"-2"}'), LOOK, note],
    ["a user's id past all integers", ME, json('{"id":1e309}'), LOOK, note],
    ["a hostile login", ME, json('{"id":-2,"login":"::error::@all"}'), OPEN, opened],
    ["numbers that are none", LIST, json(`[${numbers}]`), OPEN, opened],
    ["users that are none", LIST, json(`[${rawIssue("1", '"-2"')},null,7,[]]`), OPEN, opened],
    ["a new number that is none", CREATE, json('{"number":"../1"}'), OPEN, /unknown number opened$/],
    ["a total too high", LIST, paged("X-Total-Count: 99\r\n"), [...second, page(3), edit(1)], edited],
    ["a total too low", LIST, paged("X-Total-Count: 1\r\n"), [...second, edit(1)], edited],
  ];
  for (const [name, answer, tries, said] of faults)
    for (const [what, to, before, request, most] of places) {
      const asked = [...before, ...Array<string>(Math.min(tries, most)).fill(request)];
      answers.push([`${name} for the ${what}`, to, answer, asked, said]);
    }
  each("is answered by", answers, async (to, answer, asked, said) => {
    const ran = await night({ to, answer, issues: asked.includes(edit(1)) ? [issue(1)] : [] });
    deepEqual([ran.asked, ran.said.split("\n").length], [asked, 1]);
    match(ran.said, said);
  });

  const verdicts: [verdict: string, asked: string[], env?: Env, canonical?: Play, crash?: boolean][] = [
    ["drift", OPEN],
    ["token-missing", OPEN, { AUTO_SYNC_TOKEN: "" }],
    ["pin-mismatch", OPEN, { SYNC_PIN_PATH: "fixtures/providers.sha256" }, drifted],
    ["copy-unreadable", OPEN, { SYNC_COPY_PATH: "no.yaml" }],
    ["pin-unreadable", OPEN, { SYNC_PIN_PATH: "no.sha256" }, drifted],
    ["token-malformed", OPEN, { AUTO_SYNC_TOKEN: "a b" }],
    ["token-rejected", OPEN, { AUTO_SYNC_TOKEN: "revoked-token" }],
    ["token-scope", OPEN, {}, refused],
    ["repo-not-visible", OPEN, {}, withheld],
    ["ref-not-found", OPEN, {}, jobForge("commit", withheld)],
    ["file-not-found", OPEN, {}, jobForge("file", withheld)],
    ["redirected", OPEN, {}, movedIssues],
    ["too-large", OPEN, { SYNC_MAX_BYTES: "9" }],
    ["unreachable", [], {}, hangUp],
    ["timeout", [], within("0.001")],
    ["server-error", [], {}, unwell],
    ["bad-response", [], {}, html],
    ["unverified", [], {}, drifted, true],
    ["usage", [], { SYNC_CANONICAL_SERVER: "https://forge.invalid", HTTPS_PROXY: "proxy" }],
    ["in-sync", LOOK, {}, drifted],
  ];
  for (const [verdict, asked, env = {}, canonical = playRepository, crash = false] of verdicts)
    test(`does what is due after ${verdict}`, async () => {
      const ran = await night({ env, canonical, crash });
      deepEqual([ran.reason, ran.asked], [verdict, asked]);
    });

  const off: [name: string, env: Env, said: RegExp][] = [
    ["on a push", { GITHUB_EVENT_NAME: "push" }, /^$/],
    ["on a pull request", { GITHUB_EVENT_NAME: "pull_request" }, /^$/],
    ["without a token", { SYNC_JOB_TOKEN: "" }, /^alarm .* no usable SYNC_JOB_TOKEN$/],
    ["with a malformed token", BROKEN, /^alarm .* no usable SYNC_JOB_TOKEN$/],
    ["without a repository", { GITHUB_REPOSITORY: "" }, /^alarm .* no usable GITHUB_REPOSITORY$/],
    ["without a server", { GITHUB_SERVER_URL: "" }, /^alarm .* no usable GITHUB_SERVER_URL$/],
    ["with a repository that climbs", { GITHUB_REPOSITORY: "../x" }, /^note .*GITHUB_REPOSITORY.*$/],
    ["with a server in clear", { GITHUB_SERVER_URL: "http://forge.test" }, /^note .*GITHUB_SERVER_URL.*$/],
    ["with a server that is down", { GITHUB_SERVER_URL: "http://127.0.0.1:1" }, /^note .*ECONNREFUSED.*$/],
  ];
  each("asks for nothing", off, async (env, want) => {
    const { asked, said } = await night({ env });
    deepEqual(asked, []);
    match(said, want);
  });

  const words = playJson("403 Forbidden", '{"message":"@me #1 </b>\\n](x) `x` ![x] ~~ ::error::"}');
  test("mentions nobody and marks nothing up", async () => {
    const [issues, path]: [Issue[], string] = [[], scratchFile("a-->b@me #1.yaml", "")];
    await night({ issues, canonical: words, env: { SYNC_COPY_PATH: path, GITHUB_RUN_NUMBER: "7\n@me" } });
    const [title, lines] = [issues[0]?.title, issues[0]?.body.split("\n") ?? []];
    equal(title, `sync-providers: unverified of ${scratch}/a--%3eb%40me %231.yaml`);
    equal(lines.pop(), `<!-- sync-providers: ${scratch}/a--%3Eb@me%20#1.yaml -->`);
    match(lines.join(), /^\*\*unverified\*\* &#40;.*&#64;me &#35;1.*Run of an unknown number: \[/);
    doesNotMatch(lines[0]?.slice(14).replace(/&#\d+;/g, "") ?? "", /[&<>@#*_`~|![\]()\\:.]/);
  });
});

test("npm start -- drift shows how an issue is opened and closed", async () => {
  const ran = await run([process.execPath, TSX, "fixtures/forge.ts", "drift"]);
  equal(ran.exitCode, 0, ran.stderr);
  match(ran.stdout, /Issue 1: sync-providers: drift of .*\nIssue 1 is closed, with the comment: In sync/s);
});

// ── random damage ──

describe("whatever is damaged on the way", () => {
  test("green means that the file's own bytes arrived", async () => {
    const { failures, seen } = await fuzz({ rounds: 150, seed: 3 });
    deepEqual(failures, []);
    ok(seen.includes("in-sync") && seen.includes("unverified bad-response") && seen.includes("drift"));
  });
});
