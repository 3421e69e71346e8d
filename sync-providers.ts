/**
 * sync-providers: fails a workflow when a repository's copy of providers.yaml differs from the canonical file.
 * The canonical file is in another, private repository on a Gitea or Forgejo server, by default the one that runs
 * the job.
 *
 *   npx tsx sync-providers.ts --help
 *
 * A run that compared nothing never passes. The one exception is a pull request from a fork: forks get no
 * secrets, so the gate prints a warning and passes.
 *
 *   argv, env -> settings -> context (case table) -> evidence (copy, pin, canonical file) -> verdicts -> report
 *
 * No step changes what an earlier step made; `main` connects them. The sections, from the parts to the whole
 * (every function stands above the code that calls it):
 *
 *   1. Statuses and verdicts     5. Context: the case table     9. Verdicts         13. Alarm: one issue
 *   2. Text                      6. Gitea client               10. Differences      14. Main
 *   3. Settings                  7. Canonical file             11. Re-sync          15. Process
 *   4. Files                     8. Evidence                   12. Report
 */

import { constants, isUtf8 } from "node:buffer";
import { createHash, randomUUID } from "node:crypto";
import * as fs from "node:fs";
import { type FileHandle, open } from "node:fs/promises";
import { BlockList, isIP, isIPv6, type Socket } from "node:net";
import { dirname, join, normalize, relative } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { isDeepStrictEqual, parseArgs } from "node:util";
import { setFlagsFromString } from "node:v8";
import type { buildConnector, Client, Dispatcher } from "undici";

// ------------------------------------------------------------------------------------------------
// 1. Statuses and verdicts
// ------------------------------------------------------------------------------------------------

/** The version of the gate, the same as in package.json. It is part of the User-Agent. */
export const VERSION = "2.0.0";

/** Every status with its exit code. If several apply, the first one in this table is the verdict. */
export const STATUSES = {
  usage: { exitCode: 2, annotation: "error", meaning: "a flag or setting is wrong" },
  drift: { exitCode: 1, annotation: "error", meaning: "the copy and the canonical file differ" },
  "token-missing": { exitCode: 1, annotation: "error", meaning: "a trusted run has no token" },
  "pin-mismatch": { exitCode: 1, annotation: "error", meaning: "the copy is not what the pin says" },
  unverified: { exitCode: 3, annotation: "error", meaning: "nothing could be compared" },
  skipped: { exitCode: 0, annotation: "warning", meaning: "a pull request from a fork, without a token" },
  "in-sync": { exitCode: 0, annotation: "none", meaning: "the copy and the canonical file are the same" },
} as const;

export type Status = keyof typeof STATUSES;

/** Every reason for `unverified`, with what to do about it. If several apply, the first one is the verdict. */
export const REMEDIES = {
  "copy-unreadable": "Check SYNC_COPY_PATH and the checkout. To create a first copy, run with --write.",
  "pin-unreadable": "Check SYNC_PIN_PATH: the file must contain exactly one word of 64 hex digits.",
  "write-failed": "Check the permissions and the free space of that folder.",
  "token-malformed": "Set the secret again: the token alone, without quotes, spaces or line breaks.",
  "token-rejected": "The token was revoked or has expired. Make a new one and store it as AUTO_SYNC_TOKEN.",
  "token-scope": "Give the token the scope read:repository, and its user access to the repository.",
  "repo-not-visible":
    "Check SYNC_CANONICAL_REPO and the token's access. With SYNC_ANONYMOUS=1 the repository must be public.",
  "repo-archived": "Set SYNC_CANONICAL_REPO to the repository that replaced it.",
  "ref-not-found": "Check SYNC_CANONICAL_REF: it must be a branch, a tag or a commit.",
  "file-not-found": "Check SYNC_CANONICAL_PATH (or --canonical): the file may have been moved.",
  redirected: "Set SYNC_CANONICAL_SERVER and SYNC_CANONICAL_REPO to the new place.",
  "too-large": "Check that this is the right file, or raise SYNC_MAX_BYTES.",
  unreachable: "Check SYNC_CANONICAL_SERVER, the network and the proxy, then rerun.",
  timeout: "Rerun. If it happens again, check the server and the network, or raise SYNC_TIMEOUT_SECONDS.",
  "server-error": "Rerun later. If it happens again, look at the server's log.",
  "bad-response": "Check SYNC_CANONICAL_SERVER and what is in front of the server.",
} as const;

export type Reason = keyof typeof REMEDIES;

/** Which side of a drift the pin matches. */
export type PinMatches = "copy" | "canonical" | "neither";

/** What was found, and what to do about it (may be empty). */
interface Finding {
  readonly message: string;
  readonly remedy: string;
}

export type Verdict =
  | (Finding & { readonly status: Exclude<Status, "drift" | "unverified"> })
  | (Finding & {
      readonly status: "drift";
      /** Counted from 1. */
      readonly firstDifferingLine: number;
      /** Null without a pin. */
      readonly pinMatches: PinMatches | null;
    })
  | (Finding & {
      readonly status: "unverified";
      /** Null after an unexpected exception. */
      readonly reason: Reason | null;
    });

/** The verdict, then the others that also apply. */
export type Verdicts = readonly [Verdict, ...Verdict[]];

/** Set if a request may be sent again. */
interface RetryHint {
  /** How long the server asked to wait, in milliseconds. */
  readonly afterMs: number;
}

/** An expected failure: a setting, a file, the network or the server is at fault, not the gate. */
export class Failure extends Error {
  readonly verdict: Verdict;
  readonly retryHint: RetryHint | undefined;

  constructor(verdict: Verdict, retryHint?: RetryHint) {
    super(verdict.message);
    this.verdict = verdict;
    this.retryHint = retryHint;
  }
}

function usageFailure(message: string, remedy: string): Failure {
  return new Failure({ status: "usage", message, remedy });
}

interface FailureDetails {
  readonly message: string;
  /** Instead of the usual remedy of the reason. */
  readonly remedy?: string | undefined;
  readonly retryHint?: RetryHint | undefined;
}

function unverifiedFailure(reason: Reason, { message, remedy, retryHint }: FailureDetails): Failure {
  return new Failure(
    { status: "unverified", reason, message, remedy: remedy ?? REMEDIES[reason] },
    retryHint,
  );
}

function reasonOf(verdict: Verdict): Reason | null {
  return verdict.status === "unverified" ? verdict.reason : null;
}

/** Orders verdicts: by the table of statuses, then by the table of reasons. */
function compareVerdicts(a: Verdict, b: Verdict): number {
  const statuses = Object.keys(STATUSES);
  const byStatus = statuses.indexOf(a.status) - statuses.indexOf(b.status);
  if (byStatus !== 0) {
    return byStatus;
  }
  const reasons = Object.keys(REMEDIES);
  return reasons.indexOf(String(reasonOf(a))) - reasons.indexOf(String(reasonOf(b)));
}

/** Sorts verdicts by precedence. Without any, nothing was compared, and that never passes. */
function toVerdicts(verdicts: readonly Verdict[]): Verdicts {
  const [first, ...others] = [...verdicts].sort(compareVerdicts);
  if (first === undefined) {
    return [{ status: "unverified", reason: null, message: "Nothing was compared.", remedy: "" }];
  }
  return [first, ...others];
}

// ------------------------------------------------------------------------------------------------
// 2. Text: redaction, escaping, quoting
// ------------------------------------------------------------------------------------------------

/** Replaces secrets by `***`. */
export type Redact = (text: string) => string;

/** The allowed length of a token. Shorter text could be part of ordinary words; a longer one is no token. */
const TOKEN_LENGTH = { min: 8, max: 4096 };

/** A secret as it may appear in text: as it is, in base64 (alone), and percent-encoded. */
function formsOfSecret(secret: string): string[] {
  const bytes = Buffer.from(secret);
  const base64 = bytes.toString("base64").replace(/=+$/, "");
  // The text of the bytes, because encodeURIComponent throws on half a surrogate pair.
  return [secret, base64, bytes.toString("base64url"), encodeURIComponent(bytes.toString())];
}

/**
 * Returns a function that redacts the given secrets, in upper or lower case. It is used where text comes in: after
 * a cut or an escape, a part of a secret would no longer be recognized.
 */
export function createRedactor(secrets: readonly string[]): Redact {
  const redacted = secrets.filter(({ length }) => length >= TOKEN_LENGTH.min && length <= TOKEN_LENGTH.max);
  if (redacted.length === 0) {
    return (text) => text;
  }
  const forms = redacted.flatMap(formsOfSecret);
  // The longest first, because one form may begin with another.
  forms.sort((a, b) => b.length - a.length);
  const pattern = new RegExp(forms.map((form) => form.replace(/\W/g, "\\$&")).join("|"), "gi");
  return (text) => text.replace(pattern, "***");
}

function escapeCharacter(character: string): string {
  const names: Readonly<Record<string, string>> = { "\t": "\\t", "\n": "\\n", "\r": "\\r" };
  return names[character] ?? `\\u{${Number(character.codePointAt(0)).toString(16)}}`;
}

/**
 * Makes control, format and line-breaking characters visible, and breaks up `##[`, which runners obey anywhere
 * in a line. Text that was escaped before stays the same.
 */
function escapeControls(text: string): string {
  return text.replace(/[\p{Cc}\p{Cf}\p{Cs}\p{Zl}\p{Zp}]/gu, escapeCharacter).replace(/##(?=\[)/g, "# #");
}

/** Escapes foreign text that is a line of its own. Runners obey `::` at the start of a line. */
export function escapeLine(text: string): string {
  return escapeControls(text).replace(/^(\s*):(?=:)/, "$1: ");
}

/** Escapes foreign text inside a message. No `::` is left: act ends a command's properties at the last one. */
export function escapeMessage(text: string): string {
  return escapeControls(text).replace(/:(?=:)/g, ": ");
}

/** Cuts escaped text to a length. */
function truncate(text: string, limit: number): string {
  return text.length > limit ? `${text.slice(0, limit)}…` : text;
}

/** Enough for an ordinary path or error message. */
const QUOTE_LIMIT = 120;

/** Foreign text inside a sentence: escaped, cut, in double quotes. */
export function quote(text: string): string {
  // One more character than is shown, so that a cut is marked. The rest of a long text need not be escaped.
  const beginning = text.slice(0, QUOTE_LIMIT + 1);
  return `"${truncate(escapeMessage(beginning), QUOTE_LIMIT).replaceAll('"', "'")}"`;
}

/** Escapes the message of a workflow command (https://github.com/actions/toolkit, command.ts). */
export function escapeData(text: string): string {
  return text.replaceAll("%", "%25").replaceAll("\r", "%0D").replaceAll("\n", "%0A");
}

/** Escapes a property of a workflow command (the same source). */
export function escapeProperty(text: string): string {
  return escapeData(text).replaceAll(":", "%3A").replaceAll(",", "%2C");
}

/** A fenced block of Markdown. The fence is longer than any run of backticks inside, so nothing ends it early. */
function fencedBlock(language: string, lines: readonly string[]): string[] {
  let length = 3;
  for (const backticks of lines.join("\n").match(/`+/g) ?? []) {
    length = Math.max(length, backticks.length + 1);
  }
  const fence = "`".repeat(length);
  return [fence + language, ...lines, fence];
}

/** Foreign text as code in a cell of a Markdown table. */
function codeCell(text: string): string {
  return `\`${escapeMessage(text).replaceAll("`", "'").replaceAll("|", "\\|")}\``;
}

/** Quotes a word for a POSIX shell. */
function quoteForShell(word: string): string {
  return /^[\w./:@%+=-]+$/.test(word) ? word : `'${word.replaceAll("'", "'\\''")}'`;
}

/**
 * Quotes a path as a pattern of .gitattributes: globs are escaped, and a pattern with white space, a quote or a
 * backslash is quoted in the style of C (gitattributes(5)).
 */
function quoteForGitAttributes(path: string): string {
  const pattern = normalize(path).replace(/[\\*?[\]]|^!/g, "\\$&");
  return /[\s"\\]|^#/.test(pattern) ? `"${pattern.replace(/["\\]/g, "\\$&")}"` : pattern;
}

function formatSeconds(ms: number): string {
  return `${Math.ceil(ms / 100) / 10} s`;
}

/** The beginning of a hash, for people. */
function shortHash(hash: string): string {
  return hash.slice(0, 12);
}

function isRecord(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

function isList(value: unknown): value is unknown[] {
  return Array.isArray(value);
}

/** Reads a value inside foreign data, by own keys only (never a prototype's). Undefined if there is none. */
function valueAt(data: unknown, keys: readonly string[]): unknown {
  let value = data;
  for (const key of keys) {
    if (!isRecord(value) || !Object.hasOwn(value, key)) {
      return undefined;
    }
    value = value[key];
  }
  return value;
}

/** Parses foreign JSON and redacts its strings. Undefined if it is not JSON. A byte-order mark is ignored. */
function parseJson(bytes: Buffer, redact: Redact): unknown {
  const text = bytes.toString().replace(/^\uFEFF/, "");
  try {
    return JSON.parse(text, (_key, value: unknown) => (typeof value === "string" ? redact(value) : value));
  } catch {
    return undefined;
  }
}

/** The `code` of an error of Node, undici or OpenSSL, or else its name. */
function errorCode(error: unknown): string {
  if (!(error instanceof Error)) {
    return typeof error;
  }
  return "code" in error && typeof error.code === "string" ? error.code : error.name;
}

/** The message of an error. An AggregateError (several addresses failed) has none, but its parts do. */
function errorText(error: unknown): string {
  if (error instanceof AggregateError) {
    return error.errors.map(errorText).join("; ");
  }
  return error instanceof Error ? error.message : String(error);
}

/** What every step may use and none may change. */
export interface Tools {
  /** Prints a line that begins with a label: `copy       "a.yaml": 12 bytes`. */
  readonly log: (label: string, text: string) => void;
  /** Prints a line. */
  readonly print: (line: string) => void;
  readonly redact: Redact;
  /** `performance.now()` at the start of the run, in milliseconds. */
  readonly startedAt: number;
}

// ------------------------------------------------------------------------------------------------
// 3. Settings
// ------------------------------------------------------------------------------------------------

/** The environment, like `process.env`. */
export type Env = Readonly<Record<string, string | undefined>>;

/** A token from the environment. A malformed one has no value here, so it cannot be sent or printed. */
export type Token =
  | { readonly kind: "usable"; readonly value: string }
  | { readonly kind: "malformed" }
  | { readonly kind: "missing" };

/** How the text of an option becomes its value. */
interface ValueType {
  /** Returns undefined for text that it cannot use. */
  readonly parse: (text: string) => unknown;
  /** What the text must be, for messages. */
  readonly expected: string;
}

const textType = { parse: (text: string) => text, expected: "text" } satisfies ValueType;

const switchType = {
  parse(text: string): boolean | undefined {
    return text === "1" || text === "0" ? text === "1" : undefined;
  },
  expected: "1 or 0",
} satisfies ValueType;

const tokenType = {
  parse(text: string): Token {
    if (text === "") {
      return { kind: "missing" };
    }
    const isRightLength = text.length >= TOKEN_LENGTH.min && text.length <= TOKEN_LENGTH.max;
    const isPlain = /^[\x21-\x7e]+$/.test(text) && !/^["']|["']$/.test(text);
    return isRightLength && isPlain ? { kind: "usable", value: text } : { kind: "malformed" };
  },
  expected: "a token",
} satisfies ValueType;

/** Seconds, as milliseconds. */
const secondsType = {
  parse(text: string): number | undefined {
    const seconds = Number(text);
    return /^\d+(\.\d+)?$/.test(text) && seconds > 0 && seconds <= 86_400 ? seconds * 1000 : undefined;
  },
  expected: "a number above 0, at most 86400",
} satisfies ValueType;

const bytesType = {
  parse(text: string): number | undefined {
    const bytes = Number(text);
    return /^\d+$/.test(text) && bytes > 0 && bytes <= 1_073_741_824 ? bytes : undefined;
  },
  expected: "a whole number above 0, at most 1073741824",
} satisfies ValueType;

const refType = {
  parse(text: string): string | undefined {
    return /^\.{1,2}$|\p{Cc}/u.test(text) ? undefined : text;
  },
  expected: "a branch, a tag or a commit",
} satisfies ValueType;

/** A path inside a repository. A URL parser would remove empty segments, `.` and `..` (RFC 3986, 5.2.4). */
const repositoryPathType = {
  parse(text: string): string | undefined {
    const hasBadSegment = text.split("/").some((segment) => /^\.{0,2}$/.test(segment));
    return hasBadSegment || /\p{Cc}/u.test(text) ? undefined : text;
  },
  expected: 'a path without a leading slash and without ".."',
} satisfies ValueType;

const repositoryType = {
  parse(text: string): string | undefined {
    return /^[\w.-]+\/[\w.-]+$/.test(text) ? repositoryPathType.parse(text) : undefined;
  },
  expected: "owner/name",
} satisfies ValueType;

/** One row of the table: a flag, a setting, or both. */
interface Option {
  /** The name of the flag, without dashes. */
  readonly flag?: string;
  /** What follows the flag, for --help. Switches have none. */
  readonly operand?: string;
  /** The environment variable. */
  readonly setting?: string;
  readonly type: ValueType;
  readonly default?: string;
  readonly help: string;
  /** When the re-sync command repeats this setting. Default: never. */
  readonly repeatInResync?: "always" | "to fetch";
}

/** Every flag and setting. `--help` and the table in the README are printed from this table. */
export const OPTIONS = {
  eventName: {
    flag: "event-name",
    operand: "NAME",
    setting: "GITHUB_EVENT_NAME",
    type: textType,
    default: "",
    help: "the event of the run",
  },
  eventPath: {
    flag: "event",
    operand: "FILE",
    setting: "GITHUB_EVENT_PATH",
    type: textType,
    help: "the event's payload",
  },
  secret: {
    setting: "AUTO_SYNC_TOKEN",
    type: tokenType,
    default: "",
    help: "the token that reads the canonical repository",
  },
  jobToken: {
    setting: "SYNC_JOB_TOKEN",
    type: tokenType,
    default: "",
    help: "the job's own token, for --alarm, and to read if AUTO_SYNC_TOKEN is not set",
  },
  anonymous: {
    setting: "SYNC_ANONYMOUS",
    type: switchType,
    default: "0",
    help: "1: the canonical repository is public, send no token",
    repeatInResync: "to fetch",
  },
  canonicalServer: {
    setting: "SYNC_CANONICAL_SERVER",
    type: textType,
    help: "the server of the canonical repository; default: GITHUB_SERVER_URL",
    repeatInResync: "to fetch",
  },
  repo: {
    setting: "SYNC_CANONICAL_REPO",
    type: repositoryType,
    default: "molecule-ai/molecule-controlplane",
    help: "the canonical repository",
    repeatInResync: "to fetch",
  },
  path: {
    setting: "SYNC_CANONICAL_PATH",
    type: repositoryPathType,
    default: "internal/providers/providers.yaml",
    help: "the canonical file in that repository",
    repeatInResync: "to fetch",
  },
  ref: {
    setting: "SYNC_CANONICAL_REF",
    type: refType,
    default: "main",
    help: "the branch, tag or commit of the canonical file",
    repeatInResync: "to fetch",
  },
  canonicalFile: {
    flag: "canonical",
    operand: "FILE",
    type: textType,
    help: "a local canonical file: nothing is fetched, and no token is needed",
  },
  copyPath: {
    flag: "copy",
    operand: "FILE",
    setting: "SYNC_COPY_PATH",
    type: textType,
    default: "workspace-server/internal/providers/providers.yaml",
    help: "the copy",
    repeatInResync: "always",
  },
  pinPath: {
    flag: "pin",
    operand: "FILE",
    setting: "SYNC_PIN_PATH",
    type: textType,
    help: "the file that contains the sha256 of the copy; default: no pin is checked",
    repeatInResync: "always",
  },
  timeoutMs: {
    setting: "SYNC_TIMEOUT_SECONDS",
    type: secondsType,
    default: "60",
    help: "the deadline of the comparison",
    repeatInResync: "to fetch",
  },
  maxBytes: {
    setting: "SYNC_MAX_BYTES",
    type: bytesType,
    default: "10485760",
    help: "the size limit of a file",
    repeatInResync: "always",
  },
  allowHttp: {
    setting: "SYNC_ALLOW_HTTP",
    type: switchType,
    default: "0",
    help: "1: allow plain http: to another machine (the token is sent unencrypted)",
    repeatInResync: "to fetch",
  },
  replayPath: {
    flag: "replay",
    operand: "FILE",
    type: textType,
    help: "a captured event: its payload, or an object with event_name and event",
  },
  write: {
    flag: "write",
    type: switchType,
    default: "0",
    help: "re-sync: replace the copy and update the pin",
  },
  alarm: {
    flag: "alarm",
    type: switchType,
    default: "0",
    help: "keep one issue up to date (default branch)",
  },
  json: { flag: "json", type: switchType, default: "0", help: "print JSON on stdout, and the log on stderr" },
  help: { flag: "help", type: switchType, default: "0", help: "print this help" },
  version: { flag: "version", type: switchType, default: "0", help: "print the version" },
  jobServer: { setting: "GITHUB_SERVER_URL", type: textType, help: "the server that runs the job" },
  jobRepo: { setting: "GITHUB_REPOSITORY", type: textType, default: "", help: "the repository of the job" },
  jobRef: { setting: "GITHUB_REF", type: textType, default: "", help: "the branch or tag of the job" },
  outputPath: { setting: "GITHUB_OUTPUT", type: textType, help: "the file for the step's outputs" },
  stepSummaryPath: {
    setting: "GITHUB_STEP_SUMMARY",
    type: textType,
    help: "the file for the step's summary",
  },
} as const satisfies Readonly<Record<string, Option>>;

type OptionName = keyof typeof OPTIONS;
type Parsed<Name extends OptionName> = Exclude<
  ReturnType<(typeof OPTIONS)[Name]["type"]["parse"]>,
  undefined
>;

/** The values of the table: undefined only where there is no default. */
type OptionValues = {
  readonly [Name in OptionName]: (typeof OPTIONS)[Name] extends { readonly default: string }
    ? Parsed<Name>
    : Parsed<Name> | undefined;
};

/** A proxy, and the environment variable that names it. */
export interface Proxy {
  /** Without user name and password. */
  readonly url: URL;
  readonly setting: string;
  /** `user:password` */
  readonly login: string | undefined;
}

/** A server that can be sent requests. */
export interface Server {
  /** The base URL, without a slash at the end. */
  readonly url: string;
  readonly proxy: Proxy | undefined;
}

/** The server that runs the job. Only the alarm needs it, so a wrong URL does not stop the comparison. */
type JobServer =
  | { readonly kind: "usable"; readonly server: Server }
  | { readonly kind: "unusable"; readonly why: string };

/** The settings of a run, checked. */
export interface Settings extends Omit<OptionValues, "canonicalServer" | "jobServer"> {
  /** Undefined if nothing can be fetched. */
  readonly canonicalServer: Server | undefined;
  readonly jobServer: JobServer;
  /** True if the event name comes from --event-name, which wins over the name in a captured event. */
  readonly hasEventNameFlag: boolean;
  /** The command that re-syncs the copy with the settings of this run. */
  readonly resyncCommand: string;
}

/** Flags that cannot be used together. */
const CONTRADICTIONS = [
  { flag: "replay", others: ["event", "write", "alarm"] },
  { flag: "alarm", others: ["write", "canonical"] },
];

/** The text of `--help`. */
export function formatHelp(): string {
  const lines = [
    "Usage: npx tsx sync-providers.ts [flags]",
    "",
    "Compares a repository's copy of providers.yaml with the canonical file, byte for byte.",
    "",
    "Settings and flags (a flag wins over its environment variable; an empty variable counts as unset):",
  ];
  for (const option of Object.values<Option>(OPTIONS)) {
    const flag = option.flag === undefined ? "" : `--${option.flag} ${option.operand ?? ""}`.trim();
    const names = [option.setting ?? "", flag].filter((name) => name !== "");
    const hasDefault = option.type !== switchType && option.default !== undefined && option.default !== "";
    lines.push(`  ${names.join(", ")}`);
    lines.push(`      ${option.help}${hasDefault ? `; default: ${option.default}` : ""}`);
  }
  lines.push(
    "  HTTPS_PROXY, HTTP_PROXY",
    "      the proxy (http: or https:) for an https: or http: server; the lower-case name takes precedence",
    "  NO_PROXY",
    "      servers that need no proxy: host, .suffix or *, each with an optional port",
    "  NODE_EXTRA_CA_CERTS",
    "      a file with more trusted certificates, read by Node",
  );
  lines.push("", "Exit codes and statuses (if several apply, the first one is the verdict):");
  for (const [status, { exitCode, meaning }] of Object.entries(STATUSES)) {
    lines.push(`  ${exitCode}  ${status.padEnd(14)} ${meaning}`);
  }
  return lines.join("\n");
}

/** The flags that were given, by name. */
type Flags = Readonly<Record<string, string | boolean | undefined>>;

/** Parses the flags. Throws `usage` for flags that cannot be used. */
function parseFlags(argv: readonly string[]): Flags {
  const options: Record<string, { type: "string" | "boolean" }> = {};
  for (const { flag, operand } of Object.values<Option>(OPTIONS)) {
    if (flag !== undefined) {
      options[flag] = { type: operand === undefined ? "boolean" : "string" };
    }
  }
  let flags: Flags;
  try {
    flags = parseArgs({ args: [...argv], options }).values as Flags;
  } catch (error) {
    // Only the first sentence: the others explain positional arguments, and there are none.
    const sentence = errorText(error).replace(/(\.\s|\n)[\s\S]*$/, "");
    throw usageFailure(`Cannot read the flags: ${quote(sentence)}.`, "See --help.");
  }
  for (const { flag, others } of CONTRADICTIONS) {
    const other = others.find((name) => flags[name] !== undefined);
    if (flags[flag] !== undefined && other !== undefined) {
      throw usageFailure(`Cannot use --${flag} and --${other} together.`, "Remove one of them.");
    }
  }
  return flags;
}

/** The value of an environment variable, trimmed; undefined if it is empty or unset. */
function readVariable(env: Env, name: string): string | undefined {
  const value = env[name]?.trim();
  return value === "" ? undefined : value;
}

/** The text of an option, from its flag, its setting, or its default. */
function textOfOption(
  { flag, setting, default: fallback }: Option,
  flags: Flags,
  env: Env,
): string | undefined {
  const given = flag === undefined ? undefined : flags[flag];
  if (given === true) {
    return "1";
  }
  if (typeof given === "string") {
    if (given.trim() === "") {
      throw usageFailure(`Cannot use --${flag}: the value is empty.`, "Give it a value.");
    }
    return given;
  }
  const variable = setting === undefined ? undefined : readVariable(env, setting);
  return variable ?? fallback;
}

const LOOPBACK = new BlockList();
LOOPBACK.addSubnet("127.0.0.0", 8, "ipv4");
LOOPBACK.addAddress("::1", "ipv6");

/** The host of a URL, without the brackets of an IPv6 address. */
function hostOf({ hostname }: URL): string {
  return hostname.replace(/^\[|\]$/g, "");
}

function isLoopback(url: URL): boolean {
  const host = hostOf(url);
  if (isIP(host) === 0) {
    return host === "localhost" || host === "localhost.";
  }
  return LOOPBACK.check(host, isIPv6(host) ? "ipv6" : "ipv4");
}

/** What is wrong with the URL of a server, or undefined. */
function serverFault(text: string, allowHttp: boolean): string | undefined {
  if (!URL.canParse(text) || /[\s\\]/.test(text)) {
    return "it is not a URL";
  }
  const url = new URL(text);
  if (url.protocol !== "https:" && url.protocol !== "http:") {
    return "it is neither an https: nor an http: URL";
  }
  if (url.username !== "" || url.password !== "") {
    return "it contains a user name or a password";
  }
  if (/[?#]/.test(text)) {
    return "it contains a query or a fragment";
  }
  if (/(^|\.)github\.com\.?$/.test(url.hostname)) {
    return "GitHub's API is not supported, only that of Gitea and Forgejo";
  }
  if (url.protocol === "http:" && !allowHttp && !isLoopback(url)) {
    return "plain http: would send the token unencrypted (SYNC_ALLOW_HTTP=1 allows it)";
  }
  return undefined;
}

function portOf({ port, protocol }: { port: string; protocol: string }): string {
  if (port !== "") {
    return port;
  }
  return protocol === "https:" ? "443" : "80";
}

/** True if NO_PROXY exempts the server: `*`, a host, or a `.suffix`, each with or without a port. */
function isExemptFromProxy(noProxy: string, server: URL): boolean {
  for (const entry of noProxy.toLowerCase().split(/[\s,]+/)) {
    const port = /(?<=[^:]):(\d+)$/.exec(entry)?.[1];
    const name = port === undefined ? entry : entry.slice(0, -port.length - 1);
    const host = name.replace(/^\*\./, ".").replace(/^\[|\]$/g, "");
    const isSamePort = port === undefined || port === portOf(server);
    const isSameHost = host.startsWith(".") ? hostOf(server).endsWith(host) : host === hostOf(server);
    if (isSamePort && (isSameHost || host === "*")) {
      return true;
    }
  }
  return false;
}

/** A proxy from an environment variable. Undefined if it cannot be used. */
function parseProxy({ setting, text }: { setting: string; text: string }): Proxy | undefined {
  try {
    const url = new URL(text);
    const login = `${decodeURIComponent(url.username)}:${decodeURIComponent(url.password)}`;
    const hasLogin = url.username !== "";
    url.username = "";
    url.password = "";
    const isSupported = url.protocol === "http:" || url.protocol === "https:";
    return isSupported ? { url, setting, login: hasLogin ? login : undefined } : undefined;
  } catch {
    // It is not a URL, or the user name or password has a broken percent-escape.
    return undefined;
  }
}

/**
 * The environment variable that names the proxy for a server. The lower-case names win. A server on the loopback is never reached through a proxy, which would take `localhost` for its own machine.
 */
function findProxySetting(env: Env, server: URL): { setting: string; text: string } | undefined {
  const noProxy = readVariable(env, "no_proxy") ?? readVariable(env, "NO_PROXY") ?? "";
  if (isLoopback(server) || isExemptFromProxy(noProxy, server)) {
    return undefined;
  }
  const names = server.protocol === "https:" ? ["https_proxy", "HTTPS_PROXY"] : ["http_proxy", "HTTP_PROXY"];
  for (const setting of names) {
    const text = readVariable(env, setting);
    if (text !== undefined) {
      return { setting, text };
    }
  }
  return undefined;
}

interface ServerSetting {
  readonly setting: string;
  readonly text: string;
  readonly allowHttp: boolean;
  /** False if nothing is sent: then it does not matter whether the proxy can be used. */
  readonly needsProxy: boolean;
}

const SERVER_REMEDY = "Set it to the base URL of the server, such as https://git.example.com.";

/** Reads the URL of a server and its proxy. Throws `usage`. */
function readServer(env: Env, { setting, text, allowHttp, needsProxy }: ServerSetting): Server {
  const fault = serverFault(text, allowHttp);
  if (fault !== undefined) {
    throw usageFailure(`Cannot use ${setting}: ${fault}.`, SERVER_REMEDY);
  }
  const url = text.replace(/\/+$/, "");
  const proxySetting = findProxySetting(env, new URL(url));
  if (proxySetting === undefined || !needsProxy) {
    return { url, proxy: undefined };
  }
  const proxy = parseProxy(proxySetting);
  if (proxy === undefined) {
    throw usageFailure(
      `Cannot use ${proxySetting.setting}: it is not the URL of an http: or https: proxy.`,
      "Set it to http://host:port, or exempt the server with NO_PROXY.",
    );
  }
  return { url, proxy };
}

/** The server of the canonical repository: SYNC_CANONICAL_SERVER, or else the one that runs the job. */
function readCanonicalServer(env: Env, values: OptionValues): Server | undefined {
  const { canonicalServer, jobServer, allowHttp, anonymous, secret, jobToken, canonicalFile, replayPath } =
    values;
  const isFetched = canonicalFile === undefined;
  const hasToken = anonymous || secret.kind === "usable";
  const needsProxy = isFetched && (hasToken || jobToken.kind === "usable");
  if (canonicalServer !== undefined) {
    return readServer(env, {
      setting: "SYNC_CANONICAL_SERVER",
      text: canonicalServer,
      allowHttp,
      needsProxy,
    });
  }
  // A replay chooses the token as a runner would, and that depends on the server.
  if (jobServer !== undefined && (isFetched || replayPath !== undefined)) {
    return readServer(env, { setting: "GITHUB_SERVER_URL", text: jobServer, allowHttp, needsProxy });
  }
  if (isFetched && hasToken) {
    throw usageFailure("Neither SYNC_CANONICAL_SERVER nor GITHUB_SERVER_URL is set.", SERVER_REMEDY);
  }
  return undefined;
}

function readJobServer(env: Env, { jobServer: text, allowHttp, alarm }: OptionValues): JobServer {
  const setting = "GITHUB_SERVER_URL";
  if (text === undefined) {
    return { kind: "unusable", why: `${setting} is not set` };
  }
  try {
    return { kind: "usable", server: readServer(env, { setting, text, allowHttp, needsProxy: alarm }) };
  } catch (error) {
    return { kind: "unusable", why: errorText(error).replace(/\.$/, "") };
  }
}

type OptionTexts = Readonly<Record<string, string | undefined>>;

/** The command that re-syncs: it repeats the settings of this run that matter for it and are not the default. */
function formatResyncCommand(command: string, texts: OptionTexts): string {
  const isLocal = texts.canonicalFile !== undefined;
  const words: string[] = [];
  if (!isLocal && texts.canonicalServer === undefined && texts.jobServer !== undefined) {
    words.push(`SYNC_CANONICAL_SERVER=${quoteForShell(texts.jobServer)}`);
  }
  for (const [name, { setting, default: fallback, repeatInResync }] of Object.entries<Option>(OPTIONS)) {
    const text = texts[name];
    const matters = repeatInResync === "always" || (repeatInResync === "to fetch" && !isLocal);
    if (matters && text !== undefined && text !== fallback) {
      words.push(`${setting}=${quoteForShell(text)}`);
    }
  }
  words.push(command, "--write");
  if (texts.canonicalFile !== undefined) {
    words.push("--canonical", quoteForShell(texts.canonicalFile));
  }
  return words.join(" ");
}

/** What the settings are read from. */
interface SettingsSource {
  readonly flags: Flags;
  readonly env: Env;
  /** How a person would start the gate again. */
  readonly command: string;
  readonly redact: Redact;
}

/** Reads and checks all settings. Throws a `usage` failure that names the setting. */
export function readSettings({ flags, env, command, redact }: SettingsSource): Settings {
  const texts: Record<string, string> = {};
  const parsed: Record<string, unknown> = {};
  for (const [name, option] of Object.entries<Option>(OPTIONS)) {
    const text = textOfOption(option, flags, env);
    if (text === undefined) {
      continue;
    }
    // A token must be read as it is. Everything else may be printed, so secrets in it are redacted.
    texts[name] = option.type === tokenType ? text : redact(text);
    parsed[name] = option.type.parse(texts[name]);
    if (parsed[name] === undefined) {
      // The message does not repeat the text, which may contain a password.
      const remedy = `Set it to ${option.type.expected}.`;
      throw usageFailure(`Cannot use ${option.setting}: it is not ${option.type.expected}.`, remedy);
    }
  }
  // The loop parsed every option with its own type, which the compiler cannot see.
  const values = parsed as unknown as OptionValues;
  return {
    ...values,
    canonicalServer: readCanonicalServer(env, values),
    jobServer: readJobServer(env, values),
    hasEventNameFlag: flags["event-name"] !== undefined,
    resyncCommand: formatResyncCommand(command, texts),
  };
}

// ------------------------------------------------------------------------------------------------
// 4. Files: the copy, the pin, a local canonical file
// ------------------------------------------------------------------------------------------------

/** The content of a file. */
export interface FileContent {
  readonly path: string;
  readonly bytes: Buffer;
  /** In hex. */
  readonly sha256: string;
}

/** The canonical file: a local one, or one from the server. */
export interface Canonical extends FileContent {
  /** Null for a local file. */
  readonly commit: string | null;
  /** True if a blob id proves that these are the file's own bytes, or if the file is a local one. */
  readonly isProven: boolean;
}

/** The pin: a sha256 inside a file, in lower case, and its place in that file. */
export interface Pin {
  readonly path: string;
  readonly sha256: string;
  readonly fileBytes: Buffer;
  /** In bytes. */
  readonly offset: number;
}

/** An input of the comparison. */
export type Input<T> =
  | { readonly kind: "read"; readonly value: T }
  | { readonly kind: "failed"; readonly failure: Failure }
  | { readonly kind: "not needed"; readonly why: string };

/** Turns an expected failure into a value, so that the other inputs are still read. */
async function toInput<T>(work: Promise<T>): Promise<Input<T>> {
  try {
    return { kind: "read", value: await work };
  } catch (error) {
    if (error instanceof Failure) {
      return { kind: "failed", failure: error };
    }
    throw error;
  }
}

/** An error of the file system in plain words. */
function describeFileError(error: unknown): string {
  const texts: Readonly<Record<string, string>> = {
    ENOENT: "no such file or directory",
    ENOTDIR: "a part of the path is not a directory",
    EACCES: "permission denied",
    ELOOP: "it is a symbolic link",
  };
  return texts[errorCode(error)] ?? errorText(error);
}

/** The code of the system's error for a file that is too large. */
const TOO_LARGE = "EFBIG";

interface FileToRead {
  readonly path: string;
  readonly maxBytes: number;
  /** A link in a repository could make the gate read another file of the runner. Folders may be links. */
  readonly links: "follow" | "refuse";
}

async function readBytes(file: FileHandle, maxBytes: number): Promise<Buffer> {
  const chunks: Buffer[] = [];
  const options = { end: maxBytes - 1, autoClose: false, highWaterMark: 1_048_576 };
  for await (const chunk of file.createReadStream(options)) {
    chunks.push(chunk);
  }
  return Buffer.concat(chunks);
}

/** Reads a regular file. Never waits for a named pipe. Throws errors of the file system. */
async function readRegularFile({ path, maxBytes, links }: FileToRead): Promise<Buffer> {
  const { O_RDONLY, O_NONBLOCK, O_NOFOLLOW } = fs.constants;
  const file = await open(path, O_RDONLY | O_NONBLOCK | (links === "follow" ? 0 : O_NOFOLLOW));
  try {
    const stat = await file.stat();
    if (!stat.isFile()) {
      throw new Error(stat.isDirectory() ? "it is a directory" : "it is not a regular file");
    }
    // Files in /proc have a size of 0, and some have no end, so one byte more than the limit is read at most.
    const bytes = stat.size > maxBytes ? undefined : await readBytes(file, maxBytes + 1);
    if (bytes === undefined || bytes.length > maxBytes) {
      const size = stat.size > 0 ? `${stat.size} bytes, ` : "";
      throw Object.assign(new Error(`it has ${size}more than the limit of ${maxBytes} bytes`), {
        code: TOO_LARGE,
      });
    }
    return bytes;
  } finally {
    await file.close();
  }
}

/** Reads a file of the comparison. `name` and `reason` are used in the failure. */
async function readInputFile(
  file: FileToRead,
  { name, reason }: { name: string; reason: Reason },
): Promise<Buffer> {
  try {
    return await readRegularFile(file);
  } catch (error) {
    const message = `Cannot read the ${name} ${quote(file.path)}: ${describeFileError(error)}.`;
    throw unverifiedFailure(errorCode(error) === TOO_LARGE ? "too-large" : reason, { message });
  }
}

function toFileContent(path: string, bytes: Buffer): FileContent {
  return { path, bytes, sha256: createHash("sha256").update(bytes).digest("hex") };
}

/** True for a Git LFS pointer (https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md). */
function isLfsPointer(bytes: Buffer): boolean {
  const firstLine = "version https://git-lfs.github.com/spec/v1\n";
  return bytes.subarray(0, firstLine.length).equals(Buffer.from(firstLine));
}

async function readCopy({ copyPath: path, maxBytes }: Settings): Promise<FileContent> {
  const reason = "copy-unreadable";
  const bytes = await readInputFile({ path, maxBytes, links: "refuse" }, { name: "copy", reason });
  if (isLfsPointer(bytes)) {
    throw unverifiedFailure(reason, {
      message: `Cannot use the copy ${quote(path)}: it is a Git LFS pointer.`,
      remedy: "Check out with lfs: true, or keep the file out of Git LFS.",
    });
  }
  return toFileContent(path, bytes);
}

/** Reads the pin. It may be anywhere in its file: in a Go constant, in the output of sha256sum. */
async function readPin(path: string, { maxBytes }: Settings): Promise<Pin> {
  const reason = "pin-unreadable";
  const limit = Math.min(maxBytes, constants.MAX_STRING_LENGTH);
  const fileBytes = await readInputFile({ path, maxBytes: limit, links: "refuse" }, { name: "pin", reason });
  // In Latin-1 every byte is one character, so the index of a match is an offset in the bytes.
  const matches = [...fileBytes.toString("latin1").matchAll(/(?<!\w)[\da-f]{64}(?!\w)/gi)];
  const match = matches[0];
  if (match === undefined || matches.length > 1) {
    const problem = `it contains ${matches.length} words of 64 hex digits`;
    throw unverifiedFailure(reason, { message: `Cannot use the pin ${quote(path)}: ${problem}.` });
  }
  return { path, sha256: match[0].toLowerCase(), fileBytes, offset: match.index };
}

async function readLocalCanonical(path: string, { maxBytes }: Settings): Promise<Canonical> {
  const naming = { name: "canonical file", reason: "file-not-found" } as const;
  const bytes = await readInputFile({ path, maxBytes, links: "follow" }, naming);
  if (isLfsPointer(bytes)) {
    const message = `Cannot use the canonical file ${quote(path)}: it is a Git LFS pointer.`;
    throw unverifiedFailure("bad-response", { message, remedy: "Fetch the file with git lfs pull." });
  }
  return { ...toFileContent(path, bytes), commit: null, isProven: true };
}

/** True if there is nothing at the path, not even a dangling link. */
function isMissing(path: string): boolean {
  try {
    fs.lstatSync(path);
    return false;
  } catch (error) {
    return errorCode(error) === "ENOENT";
  }
}

/** Device and inode of a file, or undefined if it cannot be found. */
function identityOfFile(path: string): string | undefined {
  try {
    const { dev, ino } = fs.statSync(path, { bigint: true });
    return `${dev}:${ino}`;
  } catch {
    return undefined;
  }
}

/** Throws `usage` if two of the files are one file. A file compared with itself proves nothing. */
function checkDifferentFiles({ copyPath, pinPath, canonicalFile }: Settings): void {
  const paths = { copy: copyPath, pin: pinPath, "canonical file": canonicalFile };
  const names = new Map<string, string>();
  for (const [name, path] of Object.entries(paths)) {
    const identity = path === undefined ? undefined : identityOfFile(path);
    if (identity === undefined) {
      continue;
    }
    const other = names.get(identity);
    if (other !== undefined) {
      throw usageFailure(`The ${other} and the ${name} are the same file.`, "Use a different file for each.");
    }
    names.set(identity, name);
  }
}

// ------------------------------------------------------------------------------------------------
// 5. Context: the case table
// ------------------------------------------------------------------------------------------------

/** A row of the case table, for the event of this run. */
export interface Context {
  /** Empty if there is none. */
  readonly event: string;
  readonly case: 1 | 2 | 3 | 4;
  /** Decides what a missing token means, and whether the job token may be used. */
  readonly trusted: boolean;
  /** Why it is this case. */
  readonly why: string;
}

/** The payload of an event, or why it cannot be used. */
export type Payload =
  | { readonly kind: "read"; readonly value: unknown }
  | { readonly kind: "unusable"; readonly why: string };

/** Where a pull request comes from; unknown if the payload does not tell. */
interface PullRequestSource {
  readonly from: "same repository" | "fork" | "unknown";
  readonly why: string;
}

/** True for what can be an id. Larger numbers are rounded, so two different ids could be equal. */
function isPositiveInteger(value: unknown): value is number {
  return Number.isSafeInteger(value) && Number(value) > 0;
}

function isNonEmptyString(value: unknown): value is string {
  return typeof value === "string" && value !== "";
}

function sameOrFork(isSame: boolean, why: string): PullRequestSource {
  return { from: isSame ? "same repository" : "fork", why };
}

/**
 * Compares the repositories of a pull request. The flag `head.repo.fork` comes last: it says whether the head
 * is a fork of anything, so it is true for a base's own branches if the base is a fork (measured on Gitea
 * 1.22.6 and 1.25.4).
 */
function findPullRequestSource(payload: unknown): PullRequestSource {
  const head = valueAt(payload, ["pull_request", "head", "repo"]);
  const base = valueAt(payload, ["pull_request", "base", "repo"]);
  if (valueAt(payload, ["pull_request", "head", "label"]) === "") {
    return sameOrFork(false, "head.label is empty (pushed to refs/for/, AGit)");
  }
  if (head === null) {
    return sameOrFork(false, "head.repo is null (the fork was deleted)");
  }
  const headId = valueAt(head, ["id"]);
  const baseId = valueAt(base, ["id"]);
  if (isPositiveInteger(headId) && isPositiveInteger(baseId)) {
    return sameOrFork(headId === baseId, `head.repo.id is ${headId}, base.repo.id is ${baseId}`);
  }
  const headName = valueAt(head, ["full_name"]);
  const baseName = valueAt(base, ["full_name"]);
  if (isNonEmptyString(headName) && isNonEmptyString(baseName)) {
    const isSame = headName.toLowerCase() === baseName.toLowerCase();
    return sameOrFork(isSame, `head.repo is ${quote(headName)}, base.repo is ${quote(baseName)}`);
  }
  const flag = valueAt(head, ["fork"]);
  if (typeof flag === "boolean") {
    return sameOrFork(!flag, `head.repo.fork is ${flag}`);
  }
  return { from: "unknown", why: "the payload has no usable id, full_name or fork flag of head.repo" };
}

const NO_PAYLOAD = "there is no payload (GITHUB_EVENT_PATH is not set)";

/**
 * The case table. If the payload does not tell, the run is trusted, so a missing token fails it. Only pull requests
 * need the payload.
 */
export function classify(event: string, payload?: Payload): Context {
  if (event === "push" || event === "schedule" || event === "workflow_dispatch") {
    return { event, case: 1, trusted: true, why: "it runs in the repository itself" };
  }
  if (event === "") {
    return { event, case: 4, trusted: true, why: "there is no event name" };
  }
  if (event !== "pull_request") {
    return { event, case: 4, trusted: true, why: "the case table does not name this event" };
  }
  if (payload === undefined) {
    return { event, case: 4, trusted: true, why: NO_PAYLOAD };
  }
  if (payload.kind === "unusable") {
    return { event, case: 4, trusted: true, why: payload.why };
  }
  const { from, why } = findPullRequestSource(payload.value);
  switch (from) {
    case "same repository":
      return { event, case: 2, trusted: true, why: `same repository: ${why}` };
    case "fork":
      return { event, case: 3, trusted: false, why: `fork: ${why}` };
    case "unknown":
      return { event, case: 4, trusted: true, why };
  }
}

/** GitHub's limit for the payload of a webhook. */
const MAX_PAYLOAD_BYTES = 26_214_400;

async function readPayload(path: string, redact: Redact): Promise<Payload> {
  try {
    const bytes = await readRegularFile({ path, maxBytes: MAX_PAYLOAD_BYTES, links: "follow" });
    const value = parseJson(bytes, redact);
    if (isRecord(value)) {
      return { kind: "read", value };
    }
    return { kind: "unusable", why: `the event file ${quote(path)} is not a JSON object` };
  } catch (error) {
    const why = `the event file ${quote(path)} cannot be read: ${describeFileError(error)}`;
    return { kind: "unusable", why };
  }
}

/** The context of a captured event: an object with `event_name` and `event`, or a payload and --event-name. */
async function replayContext(path: string, settings: Settings, redact: Redact): Promise<Context> {
  const { eventName, hasEventNameFlag } = settings;
  const captured = await readPayload(path, redact);
  const remedy = "Check the file. A payload alone needs --event-name.";
  if (captured.kind === "unusable") {
    throw usageFailure(`Cannot replay: ${captured.why}.`, remedy);
  }
  const event = valueAt(captured.value, ["event"]);
  const capturedName = valueAt(captured.value, ["event_name"]);
  if (event !== undefined && isNonEmptyString(capturedName)) {
    const name = hasEventNameFlag ? eventName : capturedName;
    return classify(name, { kind: "read", value: event });
  }
  if (eventName === "") {
    throw usageFailure(`Cannot replay ${quote(path)}: it does not name its event.`, remedy);
  }
  return classify(eventName, captured);
}

async function readContext(settings: Settings, redact: Redact): Promise<Context> {
  const { replayPath, eventName, eventPath } = settings;
  if (replayPath !== undefined) {
    return replayContext(replayPath, settings, redact);
  }
  if (eventName === "pull_request" && eventPath !== undefined) {
    return classify(eventName, await readPayload(eventPath, redact));
  }
  return classify(eventName);
}

// ------------------------------------------------------------------------------------------------
// 6. Gitea client
// ------------------------------------------------------------------------------------------------

/** What a status means if the server itself sent it. */
type Meanings = Readonly<Record<number, Reason>>;

/** A request to the API. */
interface ApiRequest {
  /** What the request is for, for messages: `get the commit of "main"`. */
  readonly action: string;
  /** Below `/api/v1`, percent-encoded. */
  readonly path: string;
  /** What other statuses mean for this request. */
  readonly meanings?: Meanings;
  readonly maxBytes?: number;
  /** Only for requests that change something. */
  readonly change?: { readonly method: "POST" | "PATCH"; readonly body: Readonly<Record<string, string>> };
}

const TOKEN_MEANINGS: Meanings = { 401: "token-rejected", 403: "token-scope" };
const ANONYMOUS_MEANINGS: Meanings = { 401: "repo-not-visible", 403: "repo-not-visible" };

/** A response, with secrets redacted from its headers. */
interface ApiResponse {
  readonly status: number;
  readonly headers: Readonly<Record<string, string>>;
  /** Empty if the body of an error could not be read whole. */
  readonly body: Buffer;
}

/** A page of 50 issues has some 200 KB. The limit is for a server that never stops. */
const MAX_JSON_BYTES = 8_388_608;
const MAX_RETRIES = 3;
/** How long a server may be silent, as a part of the deadline. It leaves time for other attempts. */
const SILENCE_SHARE = 1 / 4;
/** The pause before the first retry, as a part of the deadline: 0.5 s of 60 s, and up to twice that at random. */
const PAUSE_SHARE = 1 / 120;
/** Node tries each address of a name for 250 ms by default, which is not enough for a slow network. */
const ADDRESS_OPTIONS = { autoSelectFamily: true, autoSelectFamilyAttemptTimeout: 2500 };

/** Retry after the usual pause. */
const RETRY_NOW: RetryHint = { afterMs: 0 };

function toWords(text: string): ReadonlySet<string> {
  return new Set(text.split(/\s+/));
}

/** Error codes of a connection, from Node and undici. Such errors may pass by themselves. */
const NETWORK_CODES = toWords(
  `EACCES EADDRNOTAVAIL EAFNOSUPPORT EAI_AGAIN EAI_FAIL ECONNABORTED ECONNREFUSED ECONNRESET EHOSTDOWN EHOSTUNREACH EINVAL ENETDOWN
   ENETRESET ENETUNREACH ENOTFOUND EPERM EPIPE ETIMEDOUT UND_ERR_INFO UND_ERR_SOCKET`,
);

/**
 * Errors of a certificate (https://nodejs.org/api/tls.html, "X509 certificate error codes"), UNSPECIFIED, which Node
 * uses for the others, and EPROTO.
 */
const TLS_CODES = toWords(
  `CERT_CHAIN_TOO_LONG CERT_HAS_EXPIRED CERT_NOT_YET_VALID CERT_REJECTED CERT_REVOKED CERT_SIGNATURE_FAILURE
   CERT_UNTRUSTED CRL_HAS_EXPIRED CRL_NOT_YET_VALID CRL_SIGNATURE_FAILURE DEPTH_ZERO_SELF_SIGNED_CERT EPROTO
   ERROR_IN_CERT_NOT_AFTER_FIELD ERROR_IN_CERT_NOT_BEFORE_FIELD ERROR_IN_CRL_LAST_UPDATE_FIELD
   ERROR_IN_CRL_NEXT_UPDATE_FIELD HOSTNAME_MISMATCH INVALID_CA INVALID_PURPOSE PATH_LENGTH_EXCEEDED
   SELF_SIGNED_CERT_IN_CHAIN UNABLE_TO_DECODE_ISSUER_PUBLIC_KEY UNABLE_TO_DECRYPT_CERT_SIGNATURE
   UNABLE_TO_DECRYPT_CRL_SIGNATURE UNABLE_TO_GET_CRL UNABLE_TO_GET_ISSUER_CERT
   UNABLE_TO_GET_ISSUER_CERT_LOCALLY UNABLE_TO_VERIFY_LEAF_SIGNATURE UNSPECIFIED`,
);

/** Errors of undici for a response that is not HTTP. For some statuses its parser fails an assertion. */
const PROTOCOL_CODES = toWords("ERR_ASSERTION HTTPParserError UND_ERR_HEADERS_OVERFLOW");
/** Messages of undici's SocketError for a response that it does not expect (lib/dispatcher/client-h1.js). */
const PROTOCOL_TEXTS: readonly string[] = ["bad response", "bad upgrade"];
/** Errors of undici for a response that ends too early. */
const INCOMPLETE_CODES = toWords("HPE_INVALID_EOF_STATE UND_ERR_RES_CONTENT_LENGTH_MISMATCH");

function isTlsError(code: string): boolean {
  return TLS_CODES.has(code) || /^ERR_(SSL|TLS)_/.test(code);
}

function isProtocolError(code: string, text: string): boolean {
  return PROTOCOL_CODES.has(code) || PROTOCOL_TEXTS.includes(text) || code.startsWith("HPE_");
}

/** What to do about an error of the connection. */
function connectionRemedy(code: string, { url }: Server): string {
  if (code === "CERT_HAS_EXPIRED" || code === "CERT_NOT_YET_VALID") {
    return "Check the server's certificate and the runner's clock.";
  }
  if (isTlsError(code)) {
    return "Check the server's certificate. For a CA of your own, set NODE_EXTRA_CA_CERTS.";
  }
  if (isLoopback(new URL(url))) {
    return "Set SYNC_CANONICAL_SERVER: in a container, this address is the container itself.";
  }
  return REMEDIES.unreachable;
}

function describeProxy({ proxy }: Server): string {
  return proxy === undefined ? "" : ` through the proxy ${quote(proxy.url.host)}`;
}

/** What the failure of a request depends on. */
interface RequestState {
  readonly action: string;
  readonly server: Server;
  /** True once the headers of the response have arrived. */
  readonly isAnswered: boolean;
  readonly redact: Redact;
}

/** An error of the network or of TLS. TLS errors are not retried. */
function connectionFailure(error: unknown, { server, redact }: RequestState): Failure {
  const code = errorCode(error);
  const problem = `${isTlsError(code) ? "TLS error " : ""}${code}, ${quote(redact(errorText(error)))}`;
  return unverifiedFailure("unreachable", {
    message: `Cannot reach the server ${quote(server.url)}${describeProxy(server)}: ${problem}.`,
    remedy: connectionRemedy(code, server),
    retryHint: isTlsError(code) ? undefined : RETRY_NOW,
  });
}

/** An error of a request, as a failure. Unexpected exceptions are returned as they are. */
function toFailureIfExpected(error: unknown, state: RequestState): unknown {
  if (error instanceof Failure) {
    return error;
  }
  const { action, server, isAnswered, redact } = state;
  const code = errorCode(error);
  const text = redact(errorText(error));
  const isProtocol = isProtocolError(code, text);
  const isConnection = NETWORK_CODES.has(code) || isTlsError(code);
  if (INCOMPLETE_CODES.has(code) || (isAnswered && (isProtocol || isConnection))) {
    const message = `Cannot ${action}: the response is incomplete (${code}).`;
    return unverifiedFailure("bad-response", { message, retryHint: RETRY_NOW });
  }
  if (isProtocol) {
    const message = `Cannot ${action}${describeProxy(server)}: the response is not HTTP (${code}, ${quote(text)}).`;
    return unverifiedFailure("bad-response", { message });
  }
  return isConnection ? connectionFailure(error, state) : error;
}

/** A proxy's refusal. A 4xx is final: a wrong password, sent again, could lock an account. */
function proxyFailure(status: number, { url, setting }: Proxy): Failure {
  return unverifiedFailure("unreachable", {
    message: `Cannot reach the server: the proxy ${quote(url.host)} answered ${status}.`,
    remedy:
      status === 407 ? `Check the user name and password in ${setting}.` : `Check ${setting} and the proxy.`,
    retryHint: status >= 500 ? RETRY_NOW : undefined,
  });
}

/** Opens a tunnel through a proxy (CONNECT, RFC 9110, 9.3.6). undici's ProxyAgent reconnects without end. */
async function openTunnel(proxy: Proxy, target: buildConnector.Options): Promise<Socket> {
  const authority = `${target.hostname}:${portOf(target)}`;
  const headers: Record<string, string> = { host: authority };
  if (proxy.login !== undefined) {
    headers["proxy-authorization"] = `Basic ${Buffer.from(proxy.login).toString("base64")}`;
  }
  const { request: send } = await (proxy.url.protocol === "https:"
    ? import("node:https")
    : import("node:http"));
  const proxyHost = hostOf(proxy.url);
  // By default Node would check the proxy's certificate against the Host header, which names the target.
  const servername = isIP(proxyHost) === 0 ? proxyHost : "";
  const options = {
    method: "CONNECT",
    path: authority,
    headers,
    servername,
    agent: false,
    ...ADDRESS_OPTIONS,
  };
  return new Promise((resolve, reject) => {
    const request = send(proxy.url, options);
    request.once("connect", (response, socket) => {
      const { statusCode = 0 } = response;
      if (statusCode >= 200 && statusCode <= 299) {
        resolve(socket as Socket);
      } else {
        socket.destroy();
        reject(proxyFailure(statusCode, proxy));
      }
    });
    request.once("error", reject);
    request.end();
  });
}

/** Makes undici connect through a proxy. `connect` adds TLS to the tunnel. */
function tunnelConnector(proxy: Proxy, connect: buildConnector.connector): buildConnector.connector {
  return (options, callback) => {
    const onTunnel = (httpSocket: Socket) => {
      if (options.protocol === "https:") {
        connect({ ...options, httpSocket }, callback);
      } else {
        callback(null, httpSocket);
      }
    };
    openTunnel(proxy, options).then(onTunnel, (error: Error) => callback(error, null));
  };
}

function isSuccess({ change }: ApiRequest, status: number): boolean {
  return status === 200 || (status === 201 && change !== undefined);
}

/** Reads a body, and stops at the limit. */
async function readBody(
  body: AsyncIterable<Buffer>,
  { maxBytes, action, onProgress }: { maxBytes: number; action: string; onProgress: () => void },
): Promise<Buffer> {
  const chunks: Buffer[] = [];
  let length = 0;
  for await (const chunk of body) {
    onProgress();
    length += chunk.length;
    if (length > maxBytes) {
      throw unverifiedFailure("too-large", {
        message: `Cannot ${action}: it has more than ${maxBytes} bytes.`,
      });
    }
    chunks.push(chunk);
  }
  return Buffer.concat(chunks);
}

/** `Retry-After` in milliseconds: seconds, or a date (RFC 9110, 10.2.3). 0 without one. */
function retryAfterMs({ "retry-after": text = "", date = "" }: ApiResponse["headers"]): number {
  if (/^\d+$/.test(text)) {
    // Longer than any deadline, and still a number that can be printed.
    return Math.min(Number(text), 1e9) * 1000;
  }
  // Relative to the server's clock, because the runner's may differ.
  const serverTime = Date.parse(date);
  const now = Number.isNaN(serverTime) ? Date.now() : serverTime;
  const waitMs = Date.parse(text) - now;
  return Number.isNaN(waitMs) ? 0 : Math.max(0, waitMs);
}

/** The name that a server, or what is in front of it, gives itself. */
function describeSender({ headers }: ApiResponse): string {
  return headers.server === undefined ? "" : ` (Server: ${quote(headers.server)})`;
}

/** The title of an HTML page, or undefined. A title that is cut is none, because a secret could be cut too. */
function titleOf(page: string): string | undefined {
  return /<title>([^<]*)</i.exec(page)?.[1]?.trim();
}

/** What a response says: the message of Gitea's JSON, the title of a page, or the beginning of the text. */
function describeResponse(response: ApiResponse, redact: Redact): string {
  const { status, body } = response;
  const message = valueAt(parseJson(body, redact), ["message"]);
  if (typeof message === "string") {
    return `the server answered ${status}, ${quote(message.replace(/\.$/, ""))}`;
  }
  const text = redact(body.toString()).trim();
  const shown = titleOf(text) ?? text;
  return `the answer is ${status}, ${shown === "" ? "without text" : quote(shown)}${describeSender(response)}`;
}

/** The path of a URL without percent-escapes. Empty if they are broken. */
function decodePath(path: string): string {
  try {
    return decodeURIComponent(path);
  } catch {
    return "";
  }
}

export interface ClientOptions {
  readonly server: Server;
  /** `owner/name` */
  readonly repo: string;
  /** Undefined if no token is sent. */
  readonly token: string | undefined;
  /** The deadline, as `performance.now()` counts, in milliseconds. */
  readonly endsAt: number;
  readonly tools: Tools;
}

/** Sends requests to the API of one server, about one repository, on one connection, until one deadline. */
export class GiteaClient {
  readonly repo: string;
  readonly tools: Tools;
  readonly #options: ClientOptions;
  readonly #budgetMs: number;
  #connection: Client | undefined;
  #attempts = 0;

  constructor(options: ClientOptions) {
    this.repo = options.repo;
    this.tools = options.tools;
    this.#options = options;
    this.#budgetMs = options.endsAt - performance.now();
  }

  /** How many requests were sent. */
  get attempts(): number {
    return this.#attempts;
  }

  close(): void {
    void this.#connection?.destroy();
    this.#connection = undefined;
  }

  #remainingMs(): number {
    return this.#options.endsAt - performance.now();
  }

  #urlOf(request: ApiRequest): URL {
    return new URL(`${this.#options.server.url}/api/v1${request.path}`);
  }

  /** The connection. It is opened with the first request, and opened again after a failure. */
  async #connect(): Promise<Client> {
    if (this.#connection === undefined) {
      const undici = await import("undici");
      // undici parses HTTP in WebAssembly. V8 would optimize it in the background, and Node waits for that
      // when it exits: half of the time of a run.
      setFlagsFromString("--liftoff-only");
      const { url, proxy } = this.#options.server;
      // undici's own timeouts are a second coarse, and none covers the whole request.
      const connector = undici.buildConnector({ timeout: 0, ...ADDRESS_OPTIONS });
      const connect = proxy === undefined ? connector : tunnelConnector(proxy, connector);
      this.#connection = new undici.Client(new URL(url).origin, {
        connect,
        headersTimeout: 0,
        bodyTimeout: 0,
      });
    }
    return this.#connection;
  }

  /** Ends a connection with a failure when nothing arrives for a while, or when the deadline has passed. */
  #watch(connection: Client, action: string): { onProgress: () => void; stop: () => void } {
    const silenceMs = this.#budgetMs * SILENCE_SHARE;
    const end = (problem: string, retryHint?: RetryHint) => {
      const message = `Cannot ${action}: ${problem}.`;
      void connection.destroy(unverifiedFailure("timeout", { message, retryHint }));
    };
    let timer: NodeJS.Timeout | undefined;
    const stop = () => clearTimeout(timer);
    const onProgress = () => {
      stop();
      const remainingMs = this.#remainingMs();
      if (silenceMs < remainingMs) {
        timer = setTimeout(end, silenceMs, `nothing arrived for ${formatSeconds(silenceMs)}`, RETRY_NOW);
      } else {
        timer = setTimeout(end, remainingMs, "the deadline has passed");
      }
    };
    onProgress();
    return { onProgress, stop };
  }

  #requestOptions(request: ApiRequest): Dispatcher.RequestOptions {
    const { token } = this.#options;
    const { action, change } = request;
    const { pathname, search } = this.#urlOf(request);
    return {
      method: change?.method ?? "GET",
      path: pathname + search,
      headers: {
        "accept-encoding": "identity",
        "user-agent": `sync-providers/${VERSION}`,
        ...(token === undefined ? {} : { authorization: `token ${token}` }),
        ...(change === undefined ? {} : { "content-type": "application/json" }),
      },
      body: change === undefined ? null : this.tools.redact(JSON.stringify(change.body)),
      // Other statuses below 200 are skipped (RFC 9110, 15.2). 100 and 101 would fail an assertion in undici.
      onInfo: ({ statusCode }) => {
        if (statusCode <= 101) {
          throw unverifiedFailure("bad-response", {
            message: `Cannot ${action}: the answer is ${statusCode}.`,
          });
        }
      },
    };
  }

  /** Sends a request once and reads the response. Throws a Failure, or an unexpected exception. */
  async #exchange(request: ApiRequest, connection: Client, onProgress: () => void): Promise<ApiResponse> {
    const { action, maxBytes = MAX_JSON_BYTES } = request;
    const { redact } = this.tools;
    const headers: Record<string, string> = {};
    let status: number | undefined;
    try {
      this.#attempts += 1;
      const response = await connection.request(this.#requestOptions(request));
      status = response.statusCode;
      onProgress();
      for (const [name, value] of Object.entries(response.headers)) {
        headers[name] = redact(Array.isArray(value) ? value.join(", ") : String(value));
      }
      // An error is read as text, and a text cannot be as long as a file.
      const limit = isSuccess(request, status) ? maxBytes : Math.min(maxBytes, MAX_JSON_BYTES);
      const body = await readBody(response.body, { maxBytes: limit, action, onProgress });
      return { status, headers, body };
    } catch (error) {
      this.close();
      const isAnswered = status !== undefined;
      const failure = toFailureIfExpected(error, {
        action,
        server: this.#options.server,
        isAnswered,
        redact,
      });
      if (status !== undefined && !isSuccess(request, status) && failure instanceof Failure) {
        // Without its body, the status of an error decides alone.
        return { status, headers, body: Buffer.alloc(0) };
      }
      throw failure;
    }
  }

  /** Redirects are never followed: the token must not go anywhere else. */
  #redirectFailure({ action }: ApiRequest, location: string, from: URL): Failure {
    const to = location !== "" && URL.canParse(location, from.href) ? new URL(location, from) : undefined;
    if (to === undefined || !/^https?:$/.test(to.protocol)) {
      return unverifiedFailure("redirected", {
        message: `Cannot ${action}: the redirect has no usable Location.`,
      });
    }
    // Redacted again, because a URL can spell a secret with percent-escapes, and its parser decodes host names.
    const place = quote(this.tools.redact(`${to.origin}${decodePath(to.pathname)}`));
    return unverifiedFailure("redirected", { message: `Cannot ${action}: it was redirected to ${place}.` });
  }

  /** Throws a Failure for every status except 200 (and 201 for a change): the table of answers. */
  #checkStatus(request: ApiRequest, response: ApiResponse): void {
    const { action, meanings } = request;
    const { token } = this.#options;
    const { redact } = this.tools;
    const { status, headers, body } = response;
    if (isSuccess(request, status)) {
      return;
    }
    if ([301, 302, 303, 307, 308].includes(status)) {
      throw this.#redirectFailure(request, headers.location ?? "", this.#urlOf(request));
    }
    const message = `Cannot ${action}: ${describeResponse(response, redact)}.`;
    // Only Gitea's errors are JSON objects. Anything else comes from something in front of the server.
    if ([401, 403, 404, 422].includes(status) && isRecord(parseJson(body, redact))) {
      const general = token === undefined ? ANONYMOUS_MEANINGS : TOKEN_MEANINGS;
      throw unverifiedFailure(meanings?.[status] ?? general[status] ?? "bad-response", { message });
    }
    if (status === 501 || status === 505) {
      throw unverifiedFailure("server-error", { message });
    }
    if (status === 408 || status === 429 || (status >= 500 && status <= 599)) {
      throw unverifiedFailure("server-error", { message, retryHint: { afterMs: retryAfterMs(headers) } });
    }
    // A proxy answers 404 while the server restarts.
    throw unverifiedFailure("bad-response", { message, retryHint: status === 404 ? RETRY_NOW : undefined });
  }

  /** Waits before a retry. Throws if the deadline leaves no time for it. */
  async #pauseBeforeRetry(retry: number, failure: Failure, { afterMs }: RetryHint): Promise<void> {
    const pauseMs = this.#budgetMs * PAUSE_SHARE * 2 ** (retry - 1) * (1 + Math.random());
    const waitMs = Math.max(afterMs, pauseMs);
    if (waitMs < this.#remainingMs()) {
      const progress = `${retry} of ${MAX_RETRIES} in ${formatSeconds(waitMs)}`;
      this.tools.log("retry", `${progress}: ${failure.message}`);
      await sleep(waitMs);
      return;
    }
    if (afterMs === 0) {
      throw failure;
    }
    const wait = `It asked to wait ${formatSeconds(afterMs)}, which is beyond the deadline.`;
    throw unverifiedFailure("server-error", { message: `${failure.message} ${wait}` });
  }

  /** Sends a request once, within the time limits. Throws a Failure for every answer that is not a success. */
  async #sendOnce(request: ApiRequest): Promise<ApiResponse> {
    const connection = await this.#connect();
    const { onProgress, stop } = this.#watch(connection, request.action);
    try {
      const response = await this.#exchange(request, connection, onProgress);
      this.#checkStatus(request, response);
      return response;
    } finally {
      stop();
    }
  }

  /** Sends a request. Sends it again after a failure that may pass by itself. Throws a Failure. */
  async send(request: ApiRequest): Promise<ApiResponse> {
    // Nobody knows whether a change that got no answer was made, so it is never sent again.
    const maxRetries = request.change === undefined ? MAX_RETRIES : 0;
    for (let retry = 1; retry <= maxRetries; retry += 1) {
      try {
        return await this.#sendOnce(request);
      } catch (error) {
        if (!(error instanceof Failure) || error.retryHint === undefined) {
          throw error;
        }
        await this.#pauseBeforeRetry(retry, error, error.retryHint);
      }
    }
    return this.#sendOnce(request);
  }

  /** Sends a request and parses the JSON of its response. Throws a Failure if it is not of the given type. */
  async sendForJson<T>(
    request: ApiRequest,
    { isExpected, expected }: { isExpected: (value: unknown) => value is T; expected: string },
  ): Promise<{ value: T; headers: ApiResponse["headers"] }> {
    const response = await this.send(request);
    const { redact } = this.tools;
    const value = parseJson(response.body, redact);
    if (isExpected(value)) {
      return { value, headers: response.headers };
    }
    const problem = `${describeResponse(response, redact)}, which is not ${expected}`;
    throw unverifiedFailure("bad-response", { message: `Cannot ${request.action}: ${problem}.` });
  }
}

/** What most responses of the API are. */
const JSON_OBJECT = { isExpected: isRecord, expected: "a JSON object" };
const JSON_LIST = { isExpected: isList, expected: "a JSON list" };

// ------------------------------------------------------------------------------------------------
// 7. Canonical file: three requests
// ------------------------------------------------------------------------------------------------

async function checkRepository(client: GiteaClient): Promise<void> {
  const request = {
    action: `get the repository ${quote(client.repo)}`,
    path: `/repos/${client.repo}`,
    meanings: { 404: "repo-not-visible" },
  } as const;
  const { value } = await client.sendForJson(request, JSON_OBJECT);
  if (value.archived === true) {
    const message = `The repository ${quote(client.repo)} is archived, so its file can no longer change.`;
    throw unverifiedFailure("repo-archived", { message });
  }
}

/** An object id of Git: a sha1 or a sha256 in hex. */
const OBJECT_ID = /^([\da-f]{40}|[\da-f]{64})$/i;

/** The commit of a ref. The file is requested by commit: for an unknown ref Gitea 1.25.4 sends another file. */
async function getCommit(client: GiteaClient, ref: string): Promise<string> {
  const action = `get the commit of ${quote(ref)}`;
  const query = "?stat=false&verification=false&files=false";
  const path = `/repos/${client.repo}/git/commits/${encodeURIComponent(ref)}${query}`;
  // 422 means that Git allows no such name.
  const meanings = { 404: "ref-not-found", 422: "ref-not-found" } as const;
  const { value } = await client.sendForJson({ action, path, meanings }, JSON_OBJECT);
  const { sha } = value;
  if (typeof sha === "string" && OBJECT_ID.test(sha)) {
    return sha.toLowerCase();
  }
  throw unverifiedFailure("bad-response", { message: `Cannot ${action}: the response has no commit id.` });
}

/** The blob id in the ETag of a response, in lower case. Other ETags say nothing about the bytes. */
function blobIdOf({ headers }: ApiResponse): string | undefined {
  const text = /^(?:W\/)?"([\da-f]+)"$/i.exec(headers.etag ?? "")?.[1] ?? "";
  return OBJECT_ID.test(text) ? text.toLowerCase() : undefined;
}

/** True if the bytes have the blob id: the hash of `blob <length>\0` and the bytes (gitformat-object). */
function hasBlobId(bytes: Buffer, id: string): boolean {
  const hash = createHash(id.length === 40 ? "sha1" : "sha256");
  return hash.update(`blob ${bytes.length}\0`).update(bytes).digest("hex") === id;
}

/** What is wrong with a response that should be the bytes of the canonical file, or undefined. */
function canonicalFault(response: ApiResponse, copy: Input<FileContent>): string | undefined {
  const { headers, body } = response;
  const type = headers["content-type"] ?? "";
  const encodings = [headers["content-encoding"] ?? "identity", headers["transfer-encoding"] ?? "chunked"];
  const object = headers["x-gitea-object-type"] ?? "file";
  if (/html|json/i.test(type)) {
    return `its type is ${quote(type)}`;
  }
  if (!encodings.every((encoding) => /^(identity|chunked)$/i.test(encoding))) {
    return `it is encoded (${quote(encodings.join(", "))})`;
  }
  if (object !== "file") {
    return `it is a ${quote(object)}`;
  }
  if (isLfsPointer(body)) {
    return "it is a Git LFS pointer";
  }
  const blobId = blobIdOf(response);
  if (blobId !== undefined) {
    return hasBlobId(body, blobId) ? undefined : `its bytes do not have the blob id ${shortHash(blobId)}`;
  }
  // Any page could be this answer. It counts only if it is the copy.
  const isCopy = copy.kind === "read" && body.length > 0 && body.equals(copy.value.bytes);
  return isCopy ? undefined : "no blob id (ETag) proves that it is the file";
}

async function getFile(
  client: GiteaClient,
  { settings, commit, copy }: { settings: Settings; commit: string; copy: Input<FileContent> },
): Promise<Canonical> {
  const { path, maxBytes } = settings;
  const action = `get the file ${quote(path)}`;
  const encodedPath = path.split("/").map(encodeURIComponent).join("/");
  const response = await client.send({
    action,
    path: `/repos/${client.repo}/raw/${encodedPath}?ref=${commit}`,
    meanings: { 404: "file-not-found" },
    maxBytes,
  });
  const fault = canonicalFault(response, copy);
  if (fault !== undefined) {
    // Only a page's title is quoted: the rest could be lines of the canonical file, which is private.
    const beginning = response.body.subarray(0, MAX_JSON_BYTES).toString();
    const title = titleOf(client.tools.redact(beginning));
    const page = title === undefined ? "" : `, ${quote(title)}`;
    const problem = `the answer is 200${page}${describeSender(response)}, but ${fault}`;
    throw unverifiedFailure("bad-response", { message: `Cannot ${action}: ${problem}.` });
  }
  return { ...toFileContent(path, response.body), commit, isProven: blobIdOf(response) !== undefined };
}

// ------------------------------------------------------------------------------------------------
// 8. Evidence
// ------------------------------------------------------------------------------------------------

/** Which token a run uses. */
export type TokenSource = "anonymous" | "secret" | "job" | "malformed" | "missing";

/** True if the canonical repository is on the server that runs the job. The job's token goes nowhere else. */
function isOnJobServer({ canonicalServer, jobServer }: Settings): boolean {
  if (canonicalServer === undefined || jobServer.kind === "unusable") {
    return false;
  }
  return new URL(canonicalServer.url).href === new URL(jobServer.server.url).href;
}

/** Chooses the token source of a run. */
export function chooseTokenSource(settings: Settings, { trusted }: Context): TokenSource {
  const { anonymous, secret, jobToken } = settings;
  if (anonymous) {
    return "anonymous";
  }
  if (secret.kind !== "missing") {
    return secret.kind === "usable" ? "secret" : "malformed";
  }
  if (!trusted || jobToken.kind === "missing" || !isOnJobServer(settings)) {
    return "missing";
  }
  return jobToken.kind === "usable" ? "job" : "malformed";
}

/** The token to send; undefined if none is sent. */
function tokenOf(source: TokenSource, { secret, jobToken }: Settings): string | undefined {
  if (source === "secret" && secret.kind === "usable") {
    return secret.value;
  }
  return source === "job" && jobToken.kind === "usable" ? jobToken.value : undefined;
}

/** False if a local file replaces the fetch. A replay shows what a runner would do, and that needs a token. */
function needsToken({ canonicalFile, replayPath }: Settings): boolean {
  return canonicalFile === undefined || replayPath !== undefined;
}

function hasNeededToken(settings: Settings, source: TokenSource): boolean {
  return !needsToken(settings) || (source !== "missing" && source !== "malformed");
}

/** Why the job token is not used although it is set. */
function describeUnusedJobToken({ jobToken, jobServer }: Settings, { trusted }: Context): string {
  if (jobToken.kind === "missing") {
    return "";
  }
  if (!trusted) {
    return "; SYNC_JOB_TOKEN is not used in a run that is not trusted";
  }
  const why = jobServer.kind === "usable" ? "SYNC_CANONICAL_SERVER is not GITHUB_SERVER_URL" : jobServer.why;
  return `; SYNC_JOB_TOKEN is not used, because ${why}`;
}

function describeTokenSource(source: TokenSource, settings: Settings, context: Context): string {
  const { canonicalFile, canonicalServer } = settings;
  if (!needsToken(settings)) {
    return `${source}: none is needed, because the canonical file is local`;
  }
  const receiver = canonicalFile === undefined ? `for ${quote(canonicalServer?.url ?? "")} only` : "not sent";
  switch (source) {
    case "anonymous":
      return "anonymous: the canonical repository is public, so no token is sent";
    case "secret":
      return `secret: AUTO_SYNC_TOKEN, ${receiver}`;
    case "job":
      return `job: SYNC_JOB_TOKEN, because AUTO_SYNC_TOKEN is not set, ${receiver}`;
    case "malformed":
      return "malformed: it cannot be a token, so it is not sent";
    case "missing":
      return `missing: AUTO_SYNC_TOKEN is not set${describeUnusedJobToken(settings, context)}`;
  }
}

/** Everything the verdict depends on. */
export interface Evidence {
  readonly context: Context;
  readonly tokenSource: TokenSource;
  readonly copy: Input<FileContent>;
  readonly pin: Input<Pin>;
  readonly canonical: Input<Canonical>;
  /** How many requests were sent. */
  readonly attempts: number;
}

function plural(count: number, noun: string): string {
  return count === 1 ? `1 ${noun}` : `${count} ${noun}s`;
}

function describeFile({ path, bytes, sha256 }: FileContent): string {
  return `${quote(path)}: ${plural(bytes.length, "byte")}, sha256 ${shortHash(sha256)}`;
}

function describeCanonical(canonical: Canonical, { repo, ref }: Settings): string {
  const { commit } = canonical;
  const origin = commit === null ? "local" : `from ${quote(repo)} at ${quote(ref)}, commit ${commit}`;
  return `${describeFile(canonical)}, ${origin}`;
}

function describePin({ path, sha256 }: Pin): string {
  return `${quote(path)}: sha256 ${shortHash(sha256)}`;
}

async function gatherCopy(settings: Settings): Promise<Input<FileContent>> {
  if (settings.write && isMissing(settings.copyPath)) {
    return { kind: "not needed", why: `${quote(settings.copyPath)} does not exist yet` };
  }
  return toInput(readCopy(settings));
}

async function gatherPin(settings: Settings): Promise<Input<Pin>> {
  if (settings.pinPath === undefined) {
    return { kind: "not needed", why: "not checked, because SYNC_PIN_PATH is not set" };
  }
  return toInput(readPin(settings.pinPath, settings));
}

/** What is needed to get the canonical file. */
interface FetchOptions {
  readonly settings: Settings;
  readonly tokenSource: TokenSource;
  readonly copy: Input<FileContent>;
  readonly tools: Tools;
}

interface FetchResult {
  readonly canonical: Input<Canonical>;
  readonly attempts: number;
}

/** Fetches the canonical file. First the repository, then the commit, so that every 404 has one meaning. */
async function fetchCanonical(
  server: Server,
  { settings, tokenSource, copy, tools }: FetchOptions,
): Promise<FetchResult> {
  const { repo, ref, timeoutMs } = settings;
  const token = tokenOf(tokenSource, settings);
  const client = new GiteaClient({ server, repo, token, endsAt: tools.startedAt + timeoutMs, tools });
  const fetchFile = async () => {
    await checkRepository(client);
    const commit = await getCommit(client, ref);
    return getFile(client, { settings, commit, copy });
  };
  try {
    return { canonical: await toInput(fetchFile()), attempts: client.attempts };
  } finally {
    client.close();
  }
}

async function gatherCanonical(options: FetchOptions): Promise<FetchResult> {
  const { settings, tokenSource, copy } = options;
  const { canonicalFile, canonicalServer } = settings;
  if (copy.kind === "failed") {
    return {
      canonical: { kind: "not needed", why: "not read, because the copy cannot be read" },
      attempts: 0,
    };
  }
  const isAllowed = hasNeededToken(settings, tokenSource);
  if (canonicalFile !== undefined && isAllowed) {
    return { canonical: await toInput(readLocalCanonical(canonicalFile, settings)), attempts: 0 };
  }
  if (canonicalServer === undefined || !isAllowed) {
    return {
      canonical: { kind: "not needed", why: "not read, because there is no usable token" },
      attempts: 0,
    };
  }
  return fetchCanonical(canonicalServer, options);
}

/** The server's refusal of the job token, or undefined. A wrong name of the repository looks the same. */
function findJobTokenRefusal(source: TokenSource, canonical: Input<Canonical>): Failure | undefined {
  if (source !== "job" || canonical.kind !== "failed") {
    return undefined;
  }
  const reason = reasonOf(canonical.failure.verdict);
  const isRefused = reason === "token-rejected" || reason === "token-scope" || reason === "repo-not-visible";
  return isRefused ? canonical.failure : undefined;
}

interface LoggedInput<T> {
  readonly input: Input<T>;
  readonly describe: (value: T) => string;
}

/** Logs an input. A failure is not logged here, because it is part of the verdict. */
function logInput<T>(tools: Tools, label: string, { input, describe }: LoggedInput<T>): void {
  if (input.kind === "read") {
    tools.log(label, describe(input.value));
  } else if (input.kind === "not needed") {
    tools.log(label, input.why);
  }
}

/** Reads the copy, the pin and the canonical file, and logs a line for each. */
async function gatherEvidence(settings: Settings, context: Context, tools: Tools): Promise<Evidence> {
  const tokenSource = chooseTokenSource(settings, context);
  tools.log("token", describeTokenSource(tokenSource, settings, context));
  const copy = await gatherCopy(settings);
  logInput(tools, "copy", { input: copy, describe: describeFile });
  const pin = await gatherPin(settings);
  logInput(tools, "pin", { input: pin, describe: describePin });
  const { canonical, attempts } = await gatherCanonical({ settings, tokenSource, copy, tools });
  logInput(tools, "canonical", {
    input: canonical,
    describe: (value) => describeCanonical(value, settings),
  });
  const refusal = findJobTokenRefusal(tokenSource, canonical);
  if (refusal !== undefined) {
    const doubt = `It cannot read ${quote(settings.repo)}, or the repository has another name.`;
    tools.log("token", `SYNC_JOB_TOKEN was refused: ${refusal.message} ${doubt}`);
  }
  return { context, tokenSource, copy, pin, canonical, attempts };
}

// ------------------------------------------------------------------------------------------------
// 9. Verdicts
// ------------------------------------------------------------------------------------------------

const NEWLINE = 0x0a;
const CARRIAGE_RETURN = 0x0d;

function countNewlines(bytes: Buffer): number {
  let count = 0;
  let index = bytes.indexOf(NEWLINE);
  while (index !== -1) {
    count += 1;
    index = bytes.indexOf(NEWLINE, index + 1);
  }
  return count;
}

function commonPrefixLength(a: Buffer, b: Buffer): number {
  const end = Math.min(a.length, b.length);
  let length = 0;
  while (length < end && a[length] === b[length]) {
    length += 1;
  }
  return length;
}

/** The number of the first line that differs, from 1. */
export function findFirstDifferingLine(a: Buffer, b: Buffer): number {
  return 1 + countNewlines(a.subarray(0, commonPrefixLength(a, b)));
}

/** The length of the line ending (CRLF, CR or LF) at an index, in bytes; 0 if there is none. */
function lineEndingLength(bytes: Buffer, index: number): number {
  if (bytes[index] === CARRIAGE_RETURN) {
    return bytes[index + 1] === NEWLINE ? 2 : 1;
  }
  return bytes[index] === NEWLINE ? 1 : 0;
}

/** True if two different files have the same lines. Works on bytes, because strings are limited to 512 MiB. */
export function differOnlyInLineEndings(a: Buffer, b: Buffer): boolean {
  let indexA = 0;
  let indexB = 0;
  while (indexA < a.length && indexB < b.length) {
    const endingA = lineEndingLength(a, indexA);
    const endingB = lineEndingLength(b, indexB);
    const isSame = endingA === 0 ? a[indexA] === b[indexB] : endingB > 0;
    if (!isSame) {
      return false;
    }
    indexA += Math.max(endingA, 1);
    indexB += Math.max(endingB, 1);
  }
  return indexA === a.length && indexB === b.length && !a.equals(b);
}

function tokenMissing(message: string, { repo }: Settings): Verdict {
  const name = repo.split("/")[1];
  return { status: "token-missing", message, remedy: `Provision AUTO_SYNC_TOKEN (read scope on ${name}).` };
}

/** The verdict on the token, if it is missing, malformed or, as the job token, refused. */
function judgeToken(evidence: Evidence, settings: Settings): Verdict | undefined {
  const { context, tokenSource, canonical } = evidence;
  const event = context.event === "" ? "no event" : `event ${quote(context.event)}`;
  const unset = `AUTO_SYNC_TOKEN is not set (${event})`;
  const refusal = findJobTokenRefusal(tokenSource, canonical);
  if (refusal !== undefined) {
    const problem = `the job token cannot read ${quote(settings.repo)}, or the repository has another name`;
    return tokenMissing(`${unset}, and ${problem}.`, settings);
  }
  if (hasNeededToken(settings, tokenSource)) {
    return undefined;
  }
  if (tokenSource === "malformed") {
    const name = settings.secret.kind === "malformed" ? "AUTO_SYNC_TOKEN" : "SYNC_JOB_TOKEN";
    const { min, max } = TOKEN_LENGTH;
    const problem = `it must be ${min} to ${max} printable ASCII characters, without spaces or surrounding quotes`;
    return unverifiedFailure("token-malformed", { message: `Cannot use ${name}: ${problem}.` }).verdict;
  }
  if (settings.write) {
    return tokenMissing(`${unset}, so nothing was written.`, settings);
  }
  if (context.trusted) {
    const run = context.event === "pull_request" ? "pull request" : "run";
    const why = context.case === 4 ? ` The ${run} counts as trusted, because ${context.why}.` : "";
    return tokenMissing(`${unset}, so nothing was compared.${why}`, settings);
  }
  return undefined;
}

/** The verdicts on what could not be read: inputs that failed, and the token. */
function judgeObstacles(evidence: Evidence, settings: Settings): Verdict[] {
  const { copy, pin, canonical, tokenSource } = evidence;
  // A refusal of the job token is reported as a missing token.
  const refusal = findJobTokenRefusal(tokenSource, canonical);
  const verdicts: Verdict[] = [];
  for (const input of [copy, pin, canonical]) {
    if (input.kind === "failed" && input.failure !== refusal) {
      verdicts.push(input.failure.verdict);
    }
  }
  const onToken = judgeToken(evidence, settings);
  if (onToken !== undefined) {
    verdicts.push(onToken);
  }
  return verdicts;
}

function findPinMatches(pin: Pin, copy: FileContent, canonical: FileContent): PinMatches {
  if (pin.sha256 === copy.sha256) {
    return "copy";
  }
  return pin.sha256 === canonical.sha256 ? "canonical" : "neither";
}

const PIN_SENTENCES: Readonly<Record<PinMatches, string>> = {
  copy: "The pin matches the copy: either the canonical file changed, or copy and pin were edited together.",
  canonical: "The pin matches the canonical file: the copy was edited by hand.",
  neither: "The pin matches neither: the canonical file changed and the copy was edited, or the pin is old.",
};

function judgeDrift(copy: FileContent, canonical: Canonical, pin: Input<Pin>): Verdict {
  const firstDifferingLine = findFirstDifferingLine(copy.bytes, canonical.bytes);
  const pinMatches = pin.kind === "read" ? findPinMatches(pin.value, copy, canonical) : null;
  const drift = { status: "drift", firstDifferingLine, pinMatches } as const;
  if (differOnlyInLineEndings(copy.bytes, canonical.bytes)) {
    const message = `The copy ${quote(copy.path)} differs from the canonical file only in line endings.`;
    const line = `${quoteForGitAttributes(copy.path)} -text`;
    const remedy = `Add this line to .gitattributes, then re-sync: ${truncate(escapeMessage(line), QUOTE_LIMIT)}`;
    return { ...drift, message, remedy };
  }
  const problem = `The copy ${quote(copy.path)} differs from the canonical file at line ${firstDifferingLine}.`;
  const message = pinMatches === null ? problem : `${problem} ${PIN_SENTENCES[pinMatches]}`;
  const remedy = "Re-sync the copy; to keep an edit, change the canonical file first.";
  return { ...drift, message, remedy };
}

function judgePin(pin: Pin, copy: FileContent, canonical: Input<Canonical>): Verdict {
  const cause =
    canonical.kind === "read"
      ? "The copy is the canonical file, so the pin was not updated."
      : "The copy was edited by hand, or re-synced without updating the pin.";
  const sums = `${quote(pin.path)} says ${shortHash(pin.sha256)}, but the copy is ${shortHash(copy.sha256)}`;
  return { status: "pin-mismatch", message: `The pin is wrong: ${sums}. ${cause}`, remedy: "Re-sync." };
}

/** The verdict on a difference between copy, canonical file and pin. A drift says which side the pin matches. */
function judgeDifference({ copy, pin, canonical }: Evidence): Verdict | undefined {
  if (copy.kind !== "read") {
    return undefined;
  }
  if (canonical.kind === "read" && !copy.value.bytes.equals(canonical.value.bytes)) {
    return judgeDrift(copy.value, canonical.value, pin);
  }
  if (pin.kind === "read" && pin.value.sha256 !== copy.value.sha256) {
    return judgePin(pin.value, copy.value, canonical);
  }
  return undefined;
}

/** The verdict of a run in which nothing is wrong. Undefined if it may not pass. */
function judgePassed({ copy, pin, canonical, context, tokenSource }: Evidence): Verdict | undefined {
  const pinned = pin.kind === "read" ? " The pin agrees." : "";
  if (copy.kind === "read" && canonical.kind === "read") {
    const message = `The copy is the canonical file, byte for byte.${pinned}`;
    return { status: "in-sync", message, remedy: "" };
  }
  if (copy.kind === "read" && !context.trusted && tokenSource === "missing") {
    const message = `A pull request from a fork gets no secrets, so nothing was compared.${pinned}`;
    return { status: "skipped", message, remedy: "No action needed: the push after the merge is compared." };
  }
  return undefined;
}

/** Everything that applies, the verdict first. */
export function judge(evidence: Evidence, settings: Settings): Verdicts {
  const verdicts = judgeObstacles(evidence, settings);
  const difference = judgeDifference(evidence);
  if (difference !== undefined) {
    verdicts.push(difference);
  }
  const passed = verdicts.length === 0 ? judgePassed(evidence) : undefined;
  return toVerdicts(passed === undefined ? verdicts : [passed]);
}

// ------------------------------------------------------------------------------------------------
// 10. Differences: the diff, and the summary by name
// ------------------------------------------------------------------------------------------------

/** The printed part of a diff. Line length in characters. */
const DIFF_LIMIT = { lines: 200, bytes: 65_536, lineLength: 1000 };
/** The smallest diff is searched for within these limits: the work grows with the square of the edits. */
const SEARCH_LIMIT = { bytes: 2_097_152, edits: 1000 };

/** The two sides of a drift. */
interface Sides {
  readonly copy: FileContent;
  readonly canonical: FileContent;
}

/** UTF-8 text without NUL, or undefined. */
function decodeText(bytes: Buffer): string | undefined {
  return isUtf8(bytes) && !bytes.includes(0) ? bytes.toString() : undefined;
}

const BYTE_ORDER_MARK = "\ufeff";

/** A sentence if only line endings, the byte-order mark or the final newline differ; undefined otherwise. */
function describeFormatDifference(a: string, b: string): string | undefined {
  const withNewlines = (text: string) => text.replace(/\r\n?/g, "\n");
  const withoutMark = (text: string) => (text.startsWith(BYTE_ORDER_MARK) ? text.slice(1) : text);
  const withoutEnd = (text: string) => withoutMark(text).replace(/(\r\n|\r|\n)$/, "");
  if (withNewlines(withoutEnd(a)) !== withNewlines(withoutEnd(b))) {
    return undefined;
  }
  if (withNewlines(a) === withNewlines(b)) {
    return "The two files differ only in line endings.";
  }
  const parts: string[] = [];
  if (withoutEnd(a) !== withoutEnd(b)) {
    parts.push("line endings");
  }
  if (a.startsWith(BYTE_ORDER_MARK) !== b.startsWith(BYTE_ORDER_MARK)) {
    parts.push("byte-order mark");
  }
  if (withoutMark(a).slice(withoutEnd(a).length) !== withoutMark(b).slice(withoutEnd(b).length)) {
    parts.push("final newline");
  }
  return `The two files differ only in: ${parts.join(", ")}.`;
}

/** Escapes the lines of a diff and cuts them to the limits. Says how many lines are left out. */
function limitDiff(lines: readonly string[]): string[] {
  const limited: string[] = [];
  let bytes = 0;
  // Room for the line that counts the others.
  for (const line of lines.slice(0, DIFF_LIMIT.lines - 1)) {
    const beginning = line.slice(0, DIFF_LIMIT.lineLength + 1);
    const escaped = truncate(escapeLine(beginning), DIFF_LIMIT.lineLength);
    bytes += Buffer.byteLength(escaped) + 1;
    if (bytes > DIFF_LIMIT.bytes - 100) {
      break;
    }
    limited.push(escaped);
  }
  if (limited.length < lines.length) {
    limited.push(`\\ ${plural(lines.length - limited.length, "more line")}`);
  }
  return limited;
}

/** A unified diff from the copy to the canonical file: what a re-sync changes. A sentence if there is none. */
export async function diffSides({ copy, canonical }: Sides, redact: Redact): Promise<string[]> {
  const copyText = decodeText(copy.bytes);
  const canonicalText = decodeText(canonical.bytes);
  if (copyText === undefined || canonicalText === undefined) {
    return ["There is no diff, because a file is not UTF-8 text."];
  }
  const sentence = describeFormatDifference(copyText, canonicalText);
  if (sentence !== undefined) {
    return [sentence];
  }
  const line = findFirstDifferingLine(copy.bytes, canonical.bytes);
  const noDiff = `There is no small diff. The first line that differs is line ${line}.`;
  if (Math.max(copy.bytes.length, canonical.bytes.length) > SEARCH_LIMIT.bytes) {
    return [noDiff];
  }
  const { formatPatch, OMIT_HEADERS, structuredPatch } = await import("diff");
  const options = { context: 3, maxEditLength: SEARCH_LIMIT.edits };
  const patch = structuredPatch("", "", redact(copyText), redact(canonicalText), "", "", options);
  if (patch === undefined) {
    return [noDiff];
  }
  if (patch.hunks.length === 0) {
    return ["The two files differ only in a secret."];
  }
  const hunks = formatPatch(patch, OMIT_HEADERS).replace(/\n$/, "").split("\n");
  return limitDiff([`--- copy ${quote(copy.path)}`, `+++ canonical ${quote(canonical.path)}`, ...hunks]);
}

/** What differs in one section of the file, by the names of its entries. */
export interface SectionSummary {
  readonly missing: string[];
  readonly extra: string[];
  /** The keys that differ, by the name of their entry. */
  readonly changed: Readonly<Record<string, string[]>>;
}

/** What differs by name. */
export interface Summary {
  readonly providers: SectionSummary;
  readonly runtimes: SectionSummary;
}

/**
 * A larger or more deeply nested file has no summary. The YAML library would take too long, and deep nesting can
 * abort the process, which no `catch` prevents.
 */
const SUMMARY_LIMIT = { bytes: 98_304, aliases: 100 };
const DEEP_NESTING = /(?:[[{]\s*){50}|(?:[-?:] +){50}|^ {500}/m;
/** How many names are printed of each list, and how many characters of a line. */
const PRINT_LIMIT = { names: 20, lineLength: 2000 };

type Entries = ReadonlyMap<string, unknown>;

async function parseYaml(bytes: Buffer): Promise<Record<string, unknown>> {
  const text = bytes.toString();
  if (bytes.length > SUMMARY_LIMIT.bytes || DEEP_NESTING.test(text)) {
    throw new Error("a file is too large or too deeply nested");
  }
  const { parse } = await import("yaml");
  const document: unknown = parse(text, {
    // As numbers, two large integers could become equal by rounding.
    intAsBigInt: true,
    logLevel: "error",
    prettyErrors: false,
    maxAliasCount: SUMMARY_LIMIT.aliases,
    // Without this the work grows with the square of the number of keys.
    uniqueKeys: false,
    // Without these two, sets and mappings as keys take minutes to compare or to turn into text.
    stringKeys: true,
    resolveKnownTags: false,
  });
  if (!isRecord(document)) {
    throw new Error("a file is not a YAML mapping");
  }
  return document;
}

/** The runtimes, by name. */
function runtimesOf({ runtimes = {} }: Record<string, unknown>): Entries {
  if (!isRecord(runtimes)) {
    throw new Error("the runtimes are not a mapping");
  }
  return new Map(Object.entries(runtimes));
}

/** The providers, by name. */
function providersOf({ providers = [] }: Record<string, unknown>): Entries {
  if (!isList(providers)) {
    throw new Error("the providers are not a list");
  }
  const entries = new Map<string, unknown>();
  for (const provider of providers) {
    const name = valueAt(provider, ["name"]);
    if (!isNonEmptyString(name) || entries.has(name)) {
      throw new Error("a provider's name is missing or used twice");
    }
    entries.set(name, provider);
  }
  return entries;
}

function differingKeys(a: unknown, b: unknown): string[] {
  if (!isRecord(a) || !isRecord(b)) {
    return [];
  }
  const keys = [...new Set([...Object.keys(a), ...Object.keys(b)])].sort();
  return keys.filter((key) => !isDeepStrictEqual(valueAt(a, [key]), valueAt(b, [key])));
}

function summarizeSection(copy: Entries, canonical: Entries, redact: Redact): SectionSummary {
  const missing: string[] = [];
  const changed: [string, string[]][] = [];
  for (const [name, entry] of canonical) {
    if (!copy.has(name)) {
      missing.push(redact(name));
    } else if (!isDeepStrictEqual(entry, copy.get(name))) {
      changed.push([redact(name), differingKeys(entry, copy.get(name)).map(redact)]);
    }
  }
  const extra = [...copy.keys()].filter((name) => !canonical.has(name)).map(redact);
  return { missing: missing.sort(), extra: extra.sort(), changed: Object.fromEntries(changed.sort()) };
}

/**
 * Summarizes the differences by the names of providers and runtimes. Throws if the files are too large, too
 * deeply nested, not YAML, or have no such names.
 */
export async function summarize({ copy, canonical }: Sides, redact: Redact): Promise<Summary> {
  const ofCopy = await parseYaml(copy.bytes);
  const ofCanonical = await parseYaml(canonical.bytes);
  return {
    providers: summarizeSection(providersOf(ofCopy), providersOf(ofCanonical), redact),
    runtimes: summarizeSection(runtimesOf(ofCopy), runtimesOf(ofCanonical), redact),
  };
}

function formatNames(names: readonly string[]): string {
  const rest = names.length - PRINT_LIMIT.names;
  const shown = names.slice(0, PRINT_LIMIT.names).join(", ");
  return rest > 0 ? `${shown} and ${rest} more` : shown;
}

/** One line about a section, or none if nothing differs. */
function formatSection(section: string, { missing, extra, changed }: SectionSummary): string[] {
  const parts: string[] = [];
  if (missing.length > 0) {
    parts.push(`missing in the copy: ${formatNames(missing.map(quote))}`);
  }
  if (extra.length > 0) {
    parts.push(`only in the copy: ${formatNames(extra.map(quote))}`);
  }
  const changes: string[] = [];
  for (const [name, keys] of Object.entries(changed)) {
    changes.push(keys.length > 0 ? `${quote(name)} (${formatNames(keys.map(quote))})` : quote(name));
  }
  if (changes.length > 0) {
    parts.push(`changed: ${formatNames(changes)}`);
  }
  return parts.length > 0 ? [truncate(`${section}: ${parts.join("; ")}`, PRINT_LIMIT.lineLength)] : [];
}

function formatSummary({ providers, runtimes }: Summary): string[] {
  const lines = [...formatSection("providers", providers), ...formatSection("runtimes", runtimes)];
  return lines.length > 0 ? lines : ["no provider or runtime differs"];
}

/** What explains a drift to a person. */
interface Explanation {
  readonly summary: Summary | null;
  readonly summaryLines: readonly string[];
  readonly diffLines: readonly string[];
}

const NO_EXPLANATION: Explanation = { summary: null, summaryLines: [], diffLines: [] };

/** Explains a drift. If there can be no diff or summary, a line says why, and the verdict stays. */
async function explainDrift(sides: Sides, redact: Redact): Promise<Explanation> {
  let summary: Summary | null = null;
  let summaryLines: string[];
  let diffLines: string[];
  try {
    summary = await summarize(sides, redact);
    summaryLines = formatSummary(summary);
  } catch (error) {
    summaryLines = [`none: ${quote(redact(errorText(error)))}`];
  }
  try {
    diffLines = await diffSides(sides, redact);
  } catch (error) {
    diffLines = [`There is no diff: ${quote(redact(errorText(error)))}.`];
  }
  return { summary, summaryLines, diffLines };
}

/** Explains the verdict of a run, if it is a drift. */
async function explainVerdict(
  verdict: Verdict,
  evidence: Evidence | null,
  redact: Redact,
): Promise<Explanation> {
  if (verdict.status !== "drift" || evidence?.copy.kind !== "read" || evidence.canonical.kind !== "read") {
    return NO_EXPLANATION;
  }
  return explainDrift({ copy: evidence.copy.value, canonical: evidence.canonical.value }, redact);
}

// ------------------------------------------------------------------------------------------------
// 11. Re-sync
// ------------------------------------------------------------------------------------------------

/** Errors of a file system that does not support an operation (CIFS, vfat, FUSE), or does not permit it. */
const UNSUPPORTED_CODES = toWords("EINVAL ENOSYS ENOTSUP EOPNOTSUPP EPERM");

function ifSupported(operation: () => void): void {
  try {
    operation();
  } catch (error) {
    if (!UNSUPPORTED_CODES.has(errorCode(error))) {
      throw error;
    }
  }
}

/** Creates a folder and its parents. `mkdirSync(path, { recursive: true })` never returns below /proc/sys. */
function createFolder(path: string): void {
  if (!fs.existsSync(path)) {
    createFolder(dirname(path));
    fs.mkdirSync(path);
  }
}

/** Writes a temporary file with the owner and mode of the file that it will replace. */
function writeTemporary(temporary: string, path: string, bytes: Buffer): void {
  const old = fs.lstatSync(path, { throwIfNoEntry: false });
  const file = fs.openSync(temporary, "wx", old?.mode ?? 0o666);
  try {
    fs.writeFileSync(file, bytes);
    if (old !== undefined) {
      // First the owner: changing it resets bits of the mode.
      ifSupported(() => fs.fchownSync(file, old.uid, old.gid));
      ifSupported(() => fs.fchmodSync(file, old.mode & 0o7777));
    }
    ifSupported(() => fs.fsyncSync(file));
  } finally {
    fs.closeSync(file);
  }
}

/** Removes a temporary file after a failure. If that fails too, the returned sentence says so. */
function removeTemporary(path: string): string {
  try {
    fs.rmSync(path, { force: true });
    return "";
  } catch {
    return ` The temporary file ${quote(path)} is left behind.`;
  }
}

/** A file to be replaced. */
interface Change {
  readonly path: string;
  readonly bytes: Buffer;
}

/** Writes all new content beside the files, then renames each over its file. Returns what failed. */
function replaceFiles(changes: readonly Change[]): Failure | undefined {
  const staged: { path: string; temporary: string }[] = [];
  let current = "";
  let done = "No file was changed.";
  try {
    for (const { path, bytes } of changes) {
      current = path;
      const temporary = join(dirname(path), `.sync-${randomUUID()}.tmp`);
      createFolder(dirname(path));
      staged.push({ path, temporary });
      writeTemporary(temporary, path, bytes);
    }
    for (const { path, temporary } of staged) {
      current = path;
      fs.renameSync(temporary, path);
      done = `${quote(path)} was already written.`;
    }
  } catch (error) {
    const leftovers = staged.map(({ temporary }) => removeTemporary(temporary)).join("");
    const message = `Cannot write ${quote(current)}: ${describeFileError(error)}. ${done}${leftovers}`;
    return unverifiedFailure("write-failed", { message });
  }
  return undefined;
}

function replacePin({ fileBytes, offset }: Pin, sha256: string): Buffer {
  const before = fileBytes.subarray(0, offset);
  const after = fileBytes.subarray(offset + sha256.length);
  return Buffer.concat([before, Buffer.from(sha256), after]);
}

/** The files that a re-sync must change. The copy comes first, so the next run detects an interruption. */
function changesOf({ copy, pin }: Evidence, canonical: Canonical, { copyPath }: Settings): Change[] {
  const changes: Change[] = [];
  if (copy.kind !== "read" || copy.value.sha256 !== canonical.sha256) {
    changes.push({ path: copyPath, bytes: canonical.bytes });
  }
  if (pin.kind === "read" && pin.value.sha256 !== canonical.sha256) {
    changes.push({ path: pin.value.path, bytes: replacePin(pin.value, canonical.sha256) });
  }
  return changes;
}

/** What a check or a re-sync found. */
interface Checked {
  /** After a re-sync, the evidence of what was written. */
  readonly evidence: Evidence;
  readonly verdicts: Verdicts;
}

/** Writes the canonical file over the copy, and its sha256 into the pin, unless something could not be read. */
function resync(evidence: Evidence, settings: Settings): Checked {
  const { pin, canonical } = evidence;
  const obstacles = judgeObstacles(evidence, settings);
  if (obstacles.length > 0 || canonical.kind !== "read") {
    return { evidence, verdicts: toVerdicts(obstacles) };
  }
  const changes = changesOf(evidence, canonical.value, settings);
  if (changes.length === 0) {
    const message = "The copy is the canonical file: nothing was written.";
    return { evidence, verdicts: [{ status: "in-sync", message, remedy: "" }] };
  }
  if (!canonical.value.isProven) {
    const message = "Cannot write the canonical file: no blob id (ETag) proves that it is whole.";
    return { evidence, verdicts: [unverifiedFailure("bad-response", { message }).verdict] };
  }
  const failure = replaceFiles(changes);
  if (failure !== undefined) {
    return { evidence, verdicts: [failure.verdict] };
  }
  const message = `Wrote ${changes.map(({ path }) => quote(path)).join(" and ")}.`;
  const remedy =
    "Regenerate what is built from the copy (in molecule-core: go generate ./...), then commit everything together.";
  const { bytes, sha256 } = canonical.value;
  const newCopy = { kind: "read", value: { path: settings.copyPath, bytes, sha256 } } as const;
  const newPin = pin.kind === "read" ? { ...pin, value: { ...pin.value, sha256 } } : pin;
  return {
    evidence: { ...evidence, copy: newCopy, pin: newPin },
    verdicts: [{ status: "in-sync", message, remedy }],
  };
}

// ------------------------------------------------------------------------------------------------
// 12. Report: log, annotation, JSON, outputs, step summary
// ------------------------------------------------------------------------------------------------

/** What is known at the end of a run. Null is what a failed run did not reach. */
interface Result {
  readonly settings: Settings | null;
  readonly evidence: Evidence | null;
  readonly verdicts: Verdicts;
  readonly explanation: Explanation;
}

/** `status (reason): message` */
function formatFinding(status: Status, reason: Reason | null, message: string): string {
  return reason === null ? `${status}: ${message}` : `${status} (${reason}): ${message}`;
}

/** `status (reason): what was found. What to do.` */
function formatVerdict(verdict: Verdict): string {
  const text = `${verdict.message} ${verdict.remedy}`.trim();
  return escapeMessage(formatFinding(verdict.status, reasonOf(verdict), text));
}

/** The last line of the log: an annotation, or a plain line if the run passed. */
function formatAnnotation({ verdicts, settings }: Result): string {
  const verdict = verdicts[0];
  const { annotation } = STATUSES[verdict.status];
  if (annotation === "none") {
    return formatVerdict(verdict);
  }
  const path = escapeProperty(escapeMessage(settings?.copyPath ?? ""));
  const place = verdict.status === "drift" ? ` file=${path},line=${verdict.firstDifferingLine}` : "";
  return `::${annotation}${place}::${escapeData(formatVerdict(verdict))}`;
}

/** The command that re-syncs, or null if a re-sync does not fix the verdict. */
function resyncCommandFor({ verdicts, settings }: Result): string | null {
  const { status } = verdicts[0];
  const isFixed = status === "drift" || status === "pin-mismatch";
  return isFixed && settings !== null ? escapeLine(settings.resyncCommand) : null;
}

/** Where the canonical file is. */
function locationOfCanonical({ evidence, settings }: Result) {
  if (settings === null || settings.canonicalFile !== undefined) {
    return { server: null, repo: null, ref: null, commit: null, path: settings?.canonicalFile ?? null };
  }
  const { canonicalServer, repo, ref, path } = settings;
  const input = evidence?.canonical;
  const commit = input?.kind === "read" ? input.value.commit : null;
  return { server: canonicalServer?.url ?? null, repo, ref, commit, path };
}

function sizeAndHash(input: Input<FileContent> | undefined): { bytes: number | null; sha256: string | null } {
  if (input?.kind !== "read") {
    return { bytes: null, sha256: null };
  }
  return { bytes: input.value.bytes.length, sha256: input.value.sha256 };
}

/** The JSON document of `--json`, schema 2. What is not known is null. */
function toDocument(result: Result, startedAt: number) {
  const { settings, evidence, verdicts, explanation } = result;
  const [verdict, ...others] = verdicts;
  const pin = evidence?.pin;
  return {
    schema: 2,
    status: verdict.status,
    reason: reasonOf(verdict),
    exitCode: STATUSES[verdict.status].exitCode,
    event: evidence?.context.event || null,
    case: evidence?.context.case ?? null,
    trusted: evidence?.context.trusted ?? null,
    token: evidence?.tokenSource ?? null,
    message: escapeMessage(verdict.message),
    remedy: escapeMessage(verdict.remedy),
    command: resyncCommandFor(result),
    copy: { path: settings?.copyPath ?? null, ...sizeAndHash(evidence?.copy) },
    canonical: { ...locationOfCanonical(result), ...sizeAndHash(evidence?.canonical) },
    pin: { path: settings?.pinPath ?? null, sha256: pin?.kind === "read" ? pin.value.sha256 : null },
    pinMatches: verdict.status === "drift" ? verdict.pinMatches : null,
    firstDifferingLine: verdict.status === "drift" ? verdict.firstDifferingLine : null,
    also: others.map((other) => ({
      status: other.status,
      reason: reasonOf(other),
      message: escapeMessage(other.message),
    })),
    summary: explanation.summary,
    attempts: evidence?.attempts ?? 0,
    elapsedMs: Math.round(performance.now() - startedAt),
  };
}

type Document = ReturnType<typeof toDocument>;

/** JSON in which no runner finds a command: the escapes mean the same characters. */
function toJson(document: Document): string {
  const escapeUnits = (text: string) => {
    return text.replace(/[\s\S]/g, (unit) => `\\u${unit.charCodeAt(0).toString(16).padStart(4, "0")}`);
  };
  const special = /:{2,}|##(?=\[)|[\u007f-\u009f\p{Cf}\p{Zl}\p{Zp}]/gu;
  return JSON.stringify(document, null, 2).replace(special, escapeUnits);
}

/** The step's outputs. The delimiter is random, so that no value can end early. */
function formatOutputs(document: Document): string {
  const outputs = {
    status: document.status,
    reason: document.reason,
    "exit-code": document.exitCode,
    case: document.case,
    trusted: document.trusted,
    event: escapeMessage(document.event ?? ""),
    "copy-sha256": document.copy.sha256,
    "canonical-sha256": document.canonical.sha256,
    "canonical-commit": document.canonical.commit,
  };
  const delimiter = `end-${randomUUID()}`;
  const lines: string[] = [];
  for (const [name, value] of Object.entries(outputs)) {
    lines.push(`${name}<<${delimiter}`, String(value ?? ""), delimiter);
  }
  return `${lines.join("\n")}\n`;
}

function formatAlso({ also }: Document): string[] {
  return also.map(({ status, reason, message }) => formatFinding(status, reason, message));
}

/** The step summary, in Markdown. Foreign text is only in fences and code. */
function formatStepSummary(result: Result, document: Document): string {
  const { summaryLines, diffLines } = result.explanation;
  const { copy, canonical, pin, command } = document;
  const lines = fencedBlock("text", [formatVerdict(result.verdicts[0]), ...formatAlso(document)]);
  lines.push("", "| side | path | sha256 |", "| --- | --- | --- |");
  for (const [side, { path, sha256 }] of Object.entries({ copy, canonical, pin })) {
    if (path !== null && sha256 !== null) {
      lines.push(`| ${side} | ${codeCell(path)} | \`${sha256}\` |`);
    }
  }
  if (diffLines.length > 0) {
    lines.push("", ...fencedBlock("diff", [...summaryLines, ...diffLines]));
  }
  if (command !== null) {
    lines.push("", ...fencedBlock("sh", [command]));
  }
  return `${lines.join("\n")}\n`;
}

/** Appends to a file of the runner. Throws instead of waiting for the reader of a named pipe. */
function appendToRunnerFile(path: string, text: string): void {
  const { O_APPEND, O_CREAT, O_WRONLY, O_NONBLOCK } = fs.constants;
  const file = fs.openSync(path, O_APPEND | O_CREAT | O_WRONLY | O_NONBLOCK, 0o666);
  try {
    fs.writeFileSync(file, text);
  } finally {
    fs.closeSync(file);
  }
}

/** Does work that may fail: then a line says so, and the verdict is the same. */
async function bestEffort(tools: Tools, loss: string, work: () => void | Promise<void>): Promise<void> {
  try {
    await work();
  } catch (error) {
    const problem = truncate(escapeMessage(tools.redact(errorText(error))), PRINT_LIMIT.lineLength);
    tools.log("note", `${loss}: ${problem.replace(/\.$/, "")}. The verdict is not affected.`);
  }
}

function printDiff(diffLines: readonly string[], { print }: Tools): void {
  // The runner obeys no command in the diff until the random word returns.
  const word = randomUUID();
  print(`::stop-commands::${word}`);
  for (const line of diffLines) {
    print(line);
  }
  print(`::${word}::`);
}

function printCommand(command: string, settings: Settings, { print }: Tools): void {
  const { anonymous, canonicalFile, repo } = settings;
  if (!anonymous && canonicalFile === undefined) {
    print(
      `The re-sync needs AUTO_SYNC_TOKEN in the shell, a token with the scope read:repository on ${repo}.`,
    );
    print(
      "To keep it out of the shell's history, enter it with: read -rs AUTO_SYNC_TOKEN; export AUTO_SYNC_TOKEN",
    );
  }
  print("To re-sync, run:");
  print(`  ${command}`);
}

/** Prints what is known beside the verdict. */
function printDetails({ settings, explanation }: Result, document: Document, tools: Tools): void {
  for (const line of formatAlso(document)) {
    tools.log("also", line);
  }
  for (const line of explanation.summaryLines) {
    tools.log("summary", line);
  }
  if (explanation.diffLines.length > 0) {
    printDiff(explanation.diffLines, tools);
  }
  if (document.command !== null && settings !== null) {
    printCommand(document.command, settings, tools);
  }
}

/** Reports a result: details, outputs, step summary, and last the verdict. */
async function report(result: Result, document: Document, tools: Tools): Promise<void> {
  const { outputPath, stepSummaryPath } = result.settings ?? {};
  await bestEffort(tools, "The details are incomplete", () => printDetails(result, document, tools));
  if (outputPath !== undefined) {
    const work = () => appendToRunnerFile(outputPath, formatOutputs(document));
    await bestEffort(tools, "GITHUB_OUTPUT was not written", work);
  }
  if (stepSummaryPath !== undefined) {
    const work = () => appendToRunnerFile(stepSummaryPath, formatStepSummary(result, document));
    await bestEffort(tools, "GITHUB_STEP_SUMMARY was not written", work);
  }
  tools.print(formatAnnotation(result));
}

// ------------------------------------------------------------------------------------------------
// 13. Alarm: one issue, for runs that nobody watches
// ------------------------------------------------------------------------------------------------

/** The alarm always gets this long, even if the comparison used up the deadline. */
const MIN_ALARM_MS = 10_000;
/** Gitea's largest page. */
const ISSUES_PER_PAGE = 50;

/** What the alarm does after a run, or why it does nothing. */
type AlarmPlan =
  | { readonly kind: "none"; readonly why: string }
  | {
      readonly kind: "update" | "close";
      readonly server: Server;
      readonly repo: string;
      readonly token: string;
      readonly copyPath: string;
      /** The deadline of the comparison. */
      readonly timeoutMs: number;
    };

interface Issue {
  readonly number: number;
  readonly body: string;
}

/** What the issue should say. */
interface IssueText {
  readonly title: string;
  readonly body: string;
  /** The last line of the body: it says which copy the issue is about. */
  readonly marker: string;
  /** The page that lists the runs. */
  readonly actionsUrl: string;
}

/** Why this run says nothing about the default branch, or undefined if it does. */
async function whyNotDefaultBranch(settings: Settings, redact: Redact): Promise<string | undefined> {
  const { eventName, eventPath, jobRef } = settings;
  // The server starts scheduled runs on the default branch only.
  if (eventName === "schedule") {
    return undefined;
  }
  if (eventName !== "push" && eventName !== "workflow_dispatch") {
    return `the event ${quote(eventName)} says nothing about the default branch`;
  }
  if (eventPath === undefined) {
    return NO_PAYLOAD;
  }
  const payload = await readPayload(eventPath, redact);
  if (payload.kind === "unusable") {
    return payload.why;
  }
  const branch = valueAt(payload.value, ["repository", "default_branch"]);
  if (!isNonEmptyString(branch)) {
    return "the payload does not name the default branch";
  }
  return jobRef === `refs/heads/${branch}`
    ? undefined
    : `GITHUB_REF ${quote(jobRef)} is not the default branch`;
}

/** Decides what the alarm does: a run that passed closes the issue, a failed one opens or updates it. */
async function planAlarm(settings: Settings | null, status: Status, redact: Redact): Promise<AlarmPlan> {
  if (settings === null || status === "usage") {
    return { kind: "none", why: "a flag or setting is wrong" };
  }
  const { eventName, jobToken, jobServer, jobRepo: repo, copyPath, timeoutMs } = settings;
  const isPassed = STATUSES[status].exitCode === 0;
  if (eventName === "push" && !isPassed) {
    return { kind: "none", why: "the person who pushed sees the failure" };
  }
  if (jobToken.kind !== "usable") {
    return { kind: "none", why: `SYNC_JOB_TOKEN is ${jobToken.kind}` };
  }
  if (jobServer.kind === "unusable") {
    return { kind: "none", why: jobServer.why };
  }
  if (repositoryType.parse(repo) === undefined) {
    return { kind: "none", why: "GITHUB_REPOSITORY is missing or not owner/name" };
  }
  const why = await whyNotDefaultBranch(settings, redact);
  if (why !== undefined) {
    return { kind: "none", why };
  }
  const kind = isPassed ? "close" : "update";
  return { kind, server: jobServer.server, repo, token: jobToken.value, copyPath, timeoutMs };
}

/** The text of the issue. No diff and no provider names: the canonical file is private, the issue may not be. */
function formatIssue(
  verdict: Verdict,
  document: Document,
  { path, actionsUrl }: { path: string; actionsUrl: string },
): IssueText {
  const { copy, canonical, command, status } = document;
  // encodeURI leaves no ">" that could end the comment.
  const marker = `<!-- sync-providers: ${encodeURI(path)} -->`;
  const lines = fencedBlock("text", [formatVerdict(verdict), ...formatAlso(document)]);
  if (command !== null) {
    const token = document.token === "anonymous" ? "" : " with AUTO_SYNC_TOKEN in the shell";
    lines.push("", `To re-sync, run this${token}:`, "", ...fencedBlock("sh", [command]));
  }
  lines.push("");
  const hashes = { copy: copy.sha256, canonical: canonical.sha256, commit: canonical.commit };
  for (const [name, hash] of Object.entries(hashes)) {
    if (hash !== null) {
      lines.push(`- ${name}: \`${hash}\``);
    }
  }
  lines.push(`- runs: ${actionsUrl}`, "", marker);
  // Gitea finds mentions and issue numbers in a title too.
  const title = `sync-providers: ${status} of ${path.replace(/[^\w./ -]/gu, "_")}`;
  return { title: truncate(title, 200), body: lines.join("\n"), marker, actionsUrl };
}

/** Reads an issue of a list. Undefined unless it is open, written by the token's user, and ends with the marker. */
function parseOwnIssue(
  issue: unknown,
  { userId, marker }: { userId: number; marker: string },
): Issue | undefined {
  const number = valueAt(issue, ["number"]);
  const text = valueAt(issue, ["body"]);
  const isOpen = valueAt(issue, ["state"]) === "open";
  const isOwn = valueAt(issue, ["user", "id"]) === userId;
  if (!isOpen || !isOwn || !isPositiveInteger(number) || typeof text !== "string") {
    return undefined;
  }
  const body = text.replaceAll("\r\n", "\n").trimEnd();
  const lastLine = body.slice(body.lastIndexOf("\n") + 1);
  return lastLine === marker ? { number, body } : undefined;
}

async function getUserId(client: GiteaClient): Promise<number> {
  const action = "get the user of SYNC_JOB_TOKEN";
  const { value } = await client.sendForJson({ action, path: "/user" }, JSON_OBJECT);
  // Gitea's user of job tokens has the id -2.
  if (typeof value.id === "number" && Number.isSafeInteger(value.id)) {
    return value.id;
  }
  throw unverifiedFailure("bad-response", { message: `Cannot ${action}: the response has no id.` });
}

/** Finds the open issue of the lowest number that this gate wrote about this copy. Reads all pages. */
async function findIssue(client: GiteaClient, marker: string): Promise<Issue | undefined> {
  const userId = await getUserId(client);
  let lowest: Issue | undefined;
  let seen = 0;
  let isLastPage = false;
  for (let page = 1; !isLastPage; page += 1) {
    const path = `/repos/${client.repo}/issues?state=open&type=issues&limit=${ISSUES_PER_PAGE}&page=${page}`;
    const { value: items, headers } = await client.sendForJson(
      { action: "get the open issues", path },
      JSON_LIST,
    );
    for (const item of items) {
      const issue = parseOwnIssue(item, { userId, marker });
      if (issue !== undefined && (lowest === undefined || issue.number < lowest.number)) {
        lowest = issue;
      }
    }
    seen += items.length;
    // A server may have smaller pages than requested, so a short page is not always the last one.
    const total = Number(headers["x-total-count"] ?? 0);
    isLastPage = items.length === 0 || (items.length < ISSUES_PER_PAGE && seen >= total);
  }
  return lowest;
}

/** Closes the issue. Returns what was done. */
async function closeIssue(client: GiteaClient, { marker, actionsUrl }: IssueText): Promise<string> {
  const issue = await findIssue(client, marker);
  if (issue === undefined) {
    return "no issue is open";
  }
  const name = `issue ${issue.number}`;
  const path = `/repos/${client.repo}/issues/${issue.number}`;
  // First the state: a comment on an issue that stays open would repeat with every run.
  await client.sendForJson(
    { action: `close ${name}`, path, change: { method: "PATCH", body: { state: "closed" } } },
    JSON_OBJECT,
  );
  const comment = { body: `The check passes again: ${actionsUrl}` };
  await client.sendForJson(
    { action: `comment on ${name}`, path: `${path}/comments`, change: { method: "POST", body: comment } },
    JSON_OBJECT,
  );
  return `closed ${name}: the check passes again`;
}

/** Opens or updates the issue. Returns what was done. */
async function updateIssue(client: GiteaClient, { title, body, marker }: IssueText): Promise<string> {
  const issue = await findIssue(client, marker);
  const path = `/repos/${client.repo}/issues`;
  if (issue === undefined) {
    const change = { method: "POST", body: { title, body } } as const;
    await client.sendForJson({ action: "open an issue", path, change }, JSON_OBJECT);
    return "opened a new issue";
  }
  const name = `issue ${issue.number}`;
  if (issue.body === body) {
    return `${name} is up to date`;
  }
  const change = { method: "PATCH", body: { title, body } } as const;
  await client.sendForJson(
    { action: `update ${name}`, path: `${path}/${issue.number}`, change },
    JSON_OBJECT,
  );
  return `updated ${name}`;
}

/** Opens, updates or closes the issue, and logs what was done, or why nothing was. */
async function runAlarm(result: Result, document: Document, tools: Tools): Promise<void> {
  const plan = await planAlarm(result.settings, document.status, tools.redact);
  if (plan.kind === "none") {
    tools.log("alarm", `no issue is opened, updated or closed: ${plan.why}`);
    return;
  }
  const { server, repo, token, copyPath: path, timeoutMs } = plan;
  const endsAt = Math.max(tools.startedAt + timeoutMs, performance.now() + MIN_ALARM_MS);
  const client = new GiteaClient({ server, repo, token, endsAt, tools });
  try {
    const actionsUrl = `${server.url}/${repo}/actions`;
    const text = formatIssue(result.verdicts[0], document, { path, actionsUrl });
    const done = plan.kind === "close" ? await closeIssue(client, text) : await updateIssue(client, text);
    tools.log("alarm", done);
  } finally {
    client.close();
  }
}

// ------------------------------------------------------------------------------------------------
// 14. Main
// ------------------------------------------------------------------------------------------------

/** What `main` needs of the process that runs it. */
export interface Host {
  /** Writes a line. */
  readonly write: (stream: "stdout" | "stderr", line: string) => void;
  /** How a person would start the gate again. */
  readonly command: string;
  /** Rejects with an exception that no promise caught. */
  readonly crashed: Promise<never>;
}

/** The verdict on an exception. An unexpected one never passes; its stack is printed. */
function toVerdict(error: unknown, tools: Tools): Verdict {
  if (error instanceof Failure) {
    return error.verdict;
  }
  if (error instanceof Error) {
    for (const line of String(error.stack).split("\n")) {
      tools.log("stack", tools.redact(line));
    }
  }
  const message = `Unexpected error: ${quote(tools.redact(errorText(error)))}.`;
  const remedy =
    "Install the dependencies again (npm ci --omit=dev). If it happens again, report it with the stack above.";
  return { status: "unverified", reason: null, message, remedy };
}

/** Gathers the evidence, re-syncs if asked to, and judges. */
async function checkCopy(settings: Settings, tools: Tools): Promise<Checked> {
  checkDifferentFiles(settings);
  const context = await readContext(settings, tools.redact);
  const event = context.event === "" ? "no event" : `event ${quote(context.event)}`;
  const trust = context.trusted ? "trusted" : "not trusted";
  tools.log("context", `${event}: case ${context.case}, ${trust}: ${context.why}`);
  const evidence = await gatherEvidence(settings, context, tools);
  return settings.write ? resync(evidence, settings) : { evidence, verdicts: judge(evidence, settings) };
}

/** The tokens, also without quotes around them: a token in quotes is malformed, but still a secret. */
function secretsIn({ AUTO_SYNC_TOKEN = "", SYNC_JOB_TOKEN = "" }: Env): string[] {
  const tokens = [AUTO_SYNC_TOKEN.trim(), SYNC_JOB_TOKEN.trim()];
  return [...tokens, ...tokens.map((token) => token.replace(/^["']|["']$/g, "").trim())];
}

/** Runs the gate. Returns the exit code. */
export async function main(argv: readonly string[], env: Env, host: Host): Promise<number> {
  const redact = createRedactor(secretsIn(env));
  // Not from the parsed flags: a wrong flag is reported in this form too.
  const isJson = argv.includes("--json");
  const isAlarm = argv.includes("--alarm");
  // Redacted a last time here, in case a secret came in by an unknown way.
  const print = (line: string) => host.write(isJson ? "stderr" : "stdout", escapeControls(redact(line)));
  const log = (label: string, text: string) => print(`${label.padEnd(10)} ${text}`);
  const tools: Tools = { log, print, redact, startedAt: performance.now() };
  let settings: Settings | null = null;
  let evidence: Evidence | null = null;
  let verdicts: Verdicts;
  try {
    const flags = parseFlags(argv.map(redact));
    if (flags.help === true || flags.version === true) {
      host.write("stdout", flags.help === true ? formatHelp() : VERSION);
      return 0;
    }
    settings = readSettings({ flags, env, command: host.command, redact });
    ({ evidence, verdicts } = await Promise.race([checkCopy(settings, tools), host.crashed]));
  } catch (error) {
    verdicts = [toVerdict(error, tools)];
  }
  const explanation = await explainVerdict(verdicts[0], evidence, redact);
  const result: Result = { settings, evidence, verdicts, explanation };
  const document = toDocument(result, tools.startedAt);
  if (isAlarm) {
    await bestEffort(tools, "The alarm failed", () => runAlarm(result, document, tools));
  }
  await report(result, document, tools);
  if (isJson) {
    host.write("stdout", redact(toJson(document)));
  }
  return document.exitCode;
}

// ------------------------------------------------------------------------------------------------
// 15. Process
// ------------------------------------------------------------------------------------------------

/** True if this file was started, not imported. In doubt it runs, because a gate that does not run would pass. */
function shouldRun(script: string): boolean {
  const self = fileURLToPath(import.meta.url);
  // Code from standard input or from -e has a URL that names no file.
  if (!fs.existsSync(self)) {
    return true;
  }
  if (script === "") {
    return false;
  }
  const isFile = fs.statSync(script, { throwIfNoEntry: false })?.isFile() === true;
  return !isFile || fs.realpathSync.native(script) === fs.realpathSync.native(self);
}

/** How the gate was started, as a command. */
function startCommand(script: string): string {
  const path = quoteForShell(relative(process.cwd(), script));
  if ("Deno" in globalThis) {
    return `deno run -A ${path}`;
  }
  const isTsx = process.execArgv.some((argument) => argument.includes("tsx"));
  return isTsx ? `npx tsx ${path}` : `node ${path}`;
}

function runAsProcess(script: string): void {
  // A run that ends before its verdict has compared nothing.
  process.exitCode = STATUSES.unverified.exitCode;
  // Even process.exit() waits for a name lookup, 10 s for each silent name server. glibc reads this variable.
  process.env.RES_OPTIONS ??= "timeout:1 attempts:3";
  let isOver = false;
  const write: Host["write"] = (stream, line) => {
    if (!isOver) {
      process[stream].write(`${line}\n`);
    }
  };
  // The reader may close the pipe early (EPIPE). The exit code still tells the verdict.
  process.stdout.on("error", () => {});
  process.stderr.on("error", () => {});
  const crashed = new Promise<never>((_resolve, reject) => {
    process.on("uncaughtException", reject);
  });
  const exit = (exitCode: number): void => {
    isOver = true;
    // When both streams have taken everything, nothing that a library left behind may delay the end.
    process.stdout.write("", () => process.stderr.write("", () => process.exit(exitCode)));
  };
  // No top-level await: in a package that is not "type": "module", tsx runs this file as CommonJS.
  main(process.argv.slice(2), process.env, { write, command: startCommand(script), crashed }).then(
    exit,
    (error) => {
      write("stderr", `::error::unverified: The report failed (${errorCode(error)}).`);
      exit(STATUSES.unverified.exitCode);
    },
  );
}

const startedScript = process.argv[1] ?? "";
if (shouldRun(startedScript)) {
  runAsProcess(startedScript);
}
