#!/usr/bin/env -S npx tsx
/**
 * sync-providers: turns a workflow red when a repository's copy of providers.yaml is no longer, byte for
 * byte, the canonical file of another, private repository on the same forge (Gitea, Forgejo).
 *
 *   npx tsx sync-providers.ts [--help]
 *
 * Exit codes: 0 the copy is in sync, or a fork's pull request came without the secret (a warning);
 * 1 the copy drifted, or the token is missing; 2 a flag or a setting is wrong; 3 nothing could be compared.
 *
 * The way through the file is the way of the data: settings, case table, wire, comparison, report, main.
 */

import { createHash } from "node:crypto";
import { existsSync, realpathSync } from "node:fs";
import { constants, open } from "node:fs/promises";
// Deno's global timers have neither refresh() nor unref().
import { clearTimeout, setTimeout } from "node:timers";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";

// ───────────────────────────── statuses ─────────────────────────────

/** The version of the gate, as `--version` and the `User-Agent` say it; equal to the one in package.json. */
export const VERSION = "1.0.0";

/**
 * Every status the gate can end with: its exit code, the level of its annotation, and what it says in a
 * sentence. The order is the order of precedence: when several hold, the first one is the verdict.
 */
export const STATUSES = {
  usage: { exitCode: 2, level: "error", means: "a flag or a setting is wrong" },
  drift: { exitCode: 1, level: "error", means: "the bytes of copy and canonical differ" },
  "token-missing": { exitCode: 1, level: "error", means: "a trusted context came without AUTO_SYNC_TOKEN" },
  unverified: { exitCode: 3, level: "error", means: "nothing could be compared; the reason says why" },
  skipped: {
    exitCode: 0,
    level: "warning",
    means: "a fork's pull request came without the secret; nothing was fetched",
  },
  "in-sync": { exitCode: 0, level: "none", means: "copy and canonical are the same bytes" },
} as const;

/** The name of a status: a key of {@link STATUSES}. */
export type Status = keyof typeof STATUSES;

/** Every reason of `unverified`, with what the reader of the log can do about it. */
export const REMEDIES = {
  "copy-unreadable": "Check SYNC_COPY_PATH, and that the checkout ran before the gate.",
  "token-malformed": "Set the secret AUTO_SYNC_TOKEN again: the token alone, without quotes or line breaks.",
  "token-rejected":
    "The token was revoked or has expired: make a new one and set the secret AUTO_SYNC_TOKEN.",
  "token-scope": "Give AUTO_SYNC_TOKEN the scope read:repository, for a user who may read the repository.",
  "repo-not-visible":
    "Check SYNC_CANONICAL_REPO, and that the token's user may read it: the forge hides what the user may not see.",
  "ref-not-found": "Check SYNC_CANONICAL_REF: a branch, a tag or a commit of the canonical repository.",
  "file-not-found": "Check SYNC_CANONICAL_PATH (or --canonical): was the file moved, or is it a directory?",
  unreachable:
    "Check that the runner reaches SYNC_CANONICAL_SERVER (name, port, proxy, certificate: NODE_EXTRA_CA_CERTS), then rerun.",
  timeout: "Rerun; if it lasts, look at the forge and the network, or raise SYNC_TIMEOUT_SECONDS.",
  "server-error": "The forge is unwell or busy: rerun later, and look at its log if it lasts.",
  redirected: "Set SYNC_CANONICAL_SERVER and SYNC_CANONICAL_REPO to where the repository is now.",
  "too-large": "Check that it is the right file, or raise SYNC_MAX_BYTES.",
  "bad-response":
    "That is not the file's bytes: check SYNC_CANONICAL_SERVER and whatever stands between the runner and the forge, then rerun.",
} as const;

/** Why nothing could be compared: a key of {@link REMEDIES}. */
export type Reason = keyof typeof REMEDIES;

/** What the gate concludes. `message` is what was found, `remedy` is what to do next (may be empty). */
export type Verdict = { message: string; remedy: string } & (
  | { status: "usage" | "token-missing" | "skipped" | "in-sync" }
  | { status: "drift"; line: number }
  /** A null reason: an exception that nobody expected. */
  | { status: "unverified"; reason: Reason | null }
);

/**
 * A fault that was foreseen. `retryAfterMs` is null when another attempt is pointless, else the time that
 * the forge asked to wait before it (0 when it asked for none).
 */
export class Failure extends Error {
  readonly verdict: Verdict;
  readonly retryAfterMs: number | null;

  constructor(verdict: Verdict, retryAfterMs: number | null = null) {
    super(verdict.message);
    this.verdict = verdict;
    this.retryAfterMs = retryAfterMs;
  }
}

function usage(message: string, remedy: string): Failure {
  return new Failure({ status: "usage", message, remedy });
}

function unverified(reason: Reason, message: string, retryAfterMs: number | null = null): Failure {
  return new Failure({ status: "unverified", reason, message, remedy: REMEDIES[reason] }, retryAfterMs);
}

/** Hands a foreseen {@link Failure} back as a value, so that the other evidence is still gathered. */
async function settle<T>(work: Promise<T>): Promise<T | Failure> {
  try {
    return await work;
  } catch (error) {
    if (error instanceof Failure) return error;
    throw error;
  }
}

// ───────────────────────── text and foreign data ─────────────────────────

/** Longest piece of foreign text that goes into a line, in characters: enough for a path or an error. */
const QUOTE_LIMIT = 300;

/** Tokens shorter than this are not masked: they would blot out ordinary words, and no forge issues them. */
const MASKED_LENGTH = 8;

/**
 * Makes text harmless for a log that runners read commands from: control, format and line-breaking characters
 * become visible escapes, and neither `::` nor `##[` is left (act splits a command at the last `::`, GitHub at
 * the first; GitHub also obeys `##[` anywhere in a line). Nothing is ever deleted, so no two harmless parts can
 * join to something harmful.
 */
export function inert(text: string): string {
  return text
    .replace(/[\p{Cc}\p{Cf}\p{Cs}\p{Zl}\p{Zp}]/gu, escapeCharacter)
    .replace(/:(?=:)/g, ": ")
    .replace(/##(?=\[)/g, "# #");
}

const ESCAPES: Readonly<Record<string, string>> = { "\t": "\\t", "\n": "\\n", "\r": "\\r" };

function escapeCharacter(character: string): string {
  return ESCAPES[character] ?? `\\u{${Number(character.codePointAt(0)).toString(16)}}`;
}

/** Foreign text as it stands inside a message: inert, in double quotes, shortened. */
export function quote(text: string): string {
  const short = text.length > QUOTE_LIMIT ? `${text.slice(0, QUOTE_LIMIT)}…` : text;
  return `"${inert(short).replaceAll('"', "'")}"`;
}

/** Escapes the message of a workflow command: https://github.com/actions/toolkit (command.ts), same in act. */
export function escapeData(text: string): string {
  return text.replaceAll("%", "%25").replaceAll("\r", "%0D").replaceAll("\n", "%0A");
}

/** Escapes a property of a workflow command. */
export function escapeProperty(text: string): string {
  return escapeData(text).replaceAll(":", "%3A").replaceAll(",", "%2C");
}

/**
 * Returns a function that blots a secret out of any text: the secret as it is, in base64, and as the escapes
 * above change it. The gate never prints the token; this is for a server or a setting that repeats it.
 */
export function masker(secret: string): (text: string) => string {
  if (secret.length < MASKED_LENGTH) return (text) => text;
  const bytes = Buffer.from(secret);
  const forms = new Set([
    secret,
    inert(secret),
    escapeData(secret),
    bytes.toString("base64"),
    bytes.toString("base64url"),
  ]);
  return (text) => [...forms].reduce((masked, form) => masked.replaceAll(form, "***"), text);
}

function isRecord(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

/** The value at a path of own keys (never of a prototype) in foreign data, or undefined. */
function dig(value: unknown, ...keys: string[]): unknown {
  return keys.reduce<unknown>(
    (inner, key) => (isRecord(inner) && Object.hasOwn(inner, key) ? inner[key] : undefined),
    value,
  );
}

/** The `code` that Node, undici and OpenSSL put on their errors, or else the error's name. */
function codeOf(error: unknown): string {
  if (!(error instanceof Error)) return typeof error;
  return "code" in error && typeof error.code === "string" ? error.code : error.name;
}

function textOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}

function plural(count: number, noun: string): string {
  return `${count} ${noun}${count === 1 ? "" : "s"}`;
}

function isBlank(text: string | undefined): text is "" | undefined {
  return text === undefined || text.trim() === "";
}

// ───────────────────────────── settings ─────────────────────────────

/** The environment, as `process.env` has it. */
export type Env = Readonly<Record<string, string | undefined>>;

/** `AUTO_SYNC_TOKEN` as it arrived. A malformed one is kept nowhere, so that it can reach nothing. */
export type Token = { kind: "missing" } | { kind: "malformed" } | { kind: "present"; value: string };

/** Everything the run is told from outside, checked. Paths are relative to the current directory. */
export interface Settings {
  /** From the flag or the runner; empty when neither named one. */
  readonly eventName: string;
  /** From the flag alone, or null. */
  readonly eventFlag: string | null;
  /** The event's payload; empty when the runner named none. */
  readonly eventPath: string;
  /** A captured event to use in the runner's place, or null. */
  readonly replay: string | null;
  readonly token: Token;
  /** Base URL without a trailing slash, or null when neither the workflow nor the runner named one. */
  readonly server: string | null;
  /** `owner/name`. */
  readonly repo: string;
  /** Path of the canonical file within its repository. */
  readonly path: string;
  /** Branch, tag or commit. */
  readonly ref: string;
  /** A local file that stands in for the fetch, or null. */
  readonly canonicalFile: string | null;
  readonly copyPath: string;
  /** The whole run's deadline. */
  readonly timeoutMs: number;
  /** The largest copy or canonical that is read. */
  readonly maxBytes: number;
}

/** URLs of proxies, and the list of the hosts that need none, as the usual variables have them. */
interface Proxies {
  readonly http: string;
  readonly https: string;
  readonly none: string;
}

const FLAGS = {
  "event-name": { type: "string" },
  event: { type: "string" },
  canonical: { type: "string" },
  copy: { type: "string" },
  replay: { type: "string" },
  json: { type: "boolean" },
  help: { type: "boolean" },
  version: { type: "boolean" },
} as const;

type Flags = ReturnType<typeof parseArgs<{ options: typeof FLAGS }>>["values"];

const HELP = `Usage: npx tsx sync-providers.ts [flags]

Compares a repository's copy of providers.yaml with the canonical file, byte for byte.

Flags (a flag wins over its setting):
  --event-name NAME   the event, instead of GITHUB_EVENT_NAME
  --event FILE        its payload, instead of GITHUB_EVENT_PATH
  --copy FILE         the copy, instead of SYNC_COPY_PATH
  --canonical FILE    a local file stands in for the fetch: no token, no network
  --replay FILE       a captured event: the payload itself, or an object with event_name and event
  --json              one JSON document on standard output, the log on standard error
  --help, --version

Settings (environment; an empty one counts as unset):
  AUTO_SYNC_TOKEN         the token that reads the canonical repository (never a flag)
  SYNC_CANONICAL_SERVER   default: GITHUB_SERVER_URL
  SYNC_CANONICAL_REPO     default: molecule-ai/molecule-controlplane
  SYNC_CANONICAL_PATH     default: internal/providers/providers.yaml
  SYNC_CANONICAL_REF      default: main
  SYNC_COPY_PATH          default: workspace-server/internal/providers/providers.yaml
  SYNC_TIMEOUT_SECONDS    default: 60, the whole run's deadline
  SYNC_MAX_BYTES          default: 10485760
  SYNC_ALLOW_HTTP         1 allows plain http: to another machine (the token travels in clear)
  HTTPS_PROXY, HTTP_PROXY, NO_PROXY, NODE_EXTRA_CA_CERTS as elsewhere in Node

Exit codes: 0 in sync, or skipped for a fork's pull request; 1 drift or token missing;
2 wrong flag or setting; 3 nothing could be compared.`;

/** Reads the flags. Throws a `usage` {@link Failure}. */
function parseFlags(argv: readonly string[]): Flags {
  try {
    return parseArgs({ args: [...argv], options: FLAGS }).values;
  } catch (error) {
    const [sentence = ""] = textOf(error).split(/\.\s|\n/, 1);
    throw usage(`Cannot read the flags: ${inert(sentence)}.`, "See --help.");
  }
}

/**
 * Checks flags and environment. Throws a `usage` {@link Failure} that names the flag or setting; the value
 * itself is shown only where it cannot hold a credential.
 */
function readSettings(flags: Flags, env: Env): Settings {
  for (const [flag, value] of Object.entries(flags)) {
    if (typeof value === "string" && isBlank(value))
      throw usage(`The flag --${flag} is empty.`, "Give it a value.");
  }
  if (flags.replay !== undefined && flags.event !== undefined) {
    throw usage(
      "The flags --replay and --event contradict each other: both name the event.",
      "Give one of them.",
    );
  }
  const allowHttp = readSwitch(env, "SYNC_ALLOW_HTTP");
  const canonicalFile = flags.canonical ?? null;
  return {
    eventFlag: flags["event-name"] ?? null,
    eventName: flags["event-name"] ?? setting(env, "GITHUB_EVENT_NAME", ""),
    eventPath: flags.event ?? setting(env, "GITHUB_EVENT_PATH", ""),
    replay: flags.replay ?? null,
    token: readToken(env.AUTO_SYNC_TOKEN),
    server: readServer(env, { allowHttp, runners: canonicalFile === null }),
    repo: readRepo(setting(env, "SYNC_CANONICAL_REPO", "molecule-ai/molecule-controlplane")),
    path: readCanonicalPath(setting(env, "SYNC_CANONICAL_PATH", "internal/providers/providers.yaml")),
    ref: readRef(setting(env, "SYNC_CANONICAL_REF", "main")),
    canonicalFile,
    copyPath:
      flags.copy ?? setting(env, "SYNC_COPY_PATH", "workspace-server/internal/providers/providers.yaml"),
    timeoutMs:
      1000 *
      readNumber(env, "SYNC_TIMEOUT_SECONDS", { pattern: /^\d+(\.\d+)?$/, fallback: 60, most: 86_400 }),
    maxBytes: readNumber(env, "SYNC_MAX_BYTES", { pattern: /^\d+$/, fallback: 10_485_760, most: 2 ** 30 }),
  };
}

function setting(env: Env, name: string, fallback: string): string {
  const value = env[name];
  return isBlank(value) ? fallback : value.trim();
}

function readToken(raw: string | undefined): Token {
  if (isBlank(raw)) return { kind: "missing" };
  const value = raw.trim();
  return /^[\x21-\x7e]+$/.test(value) ? { kind: "present", value } : { kind: "malformed" };
}

function readSwitch(env: Env, name: string): boolean {
  const value = setting(env, name, "0");
  if (value === "1" || value === "0") return value === "1";
  throw usage(`Cannot use the setting ${name}: it is ${quote(value)}.`, "Set it to 1 or leave it out.");
}

function readNumber(
  env: Env,
  name: string,
  rule: { pattern: RegExp; fallback: number; most: number },
): number {
  const text = setting(env, name, String(rule.fallback));
  const value = Number(text);
  if (rule.pattern.test(text) && value > 0 && value <= rule.most) return value;
  throw usage(
    `Cannot use the setting ${name}: it is ${quote(text)}.`,
    `Set a number above 0, ${rule.most} at most, or leave it out for ${rule.fallback}.`,
  );
}

/**
 * The server's base URL. The workflow's own setting is always checked; the runner's `GITHUB_SERVER_URL` only
 * where it is used (`runners`). A URL that is refused is not printed: it may hold a credential.
 */
function readServer(env: Env, options: { allowHttp: boolean; runners: boolean }): string | null {
  const own = setting(env, "SYNC_CANONICAL_SERVER", "");
  const runners = options.runners ? setting(env, "GITHUB_SERVER_URL", "") : "";
  const [name, text] = own === "" ? ["GITHUB_SERVER_URL", runners] : ["SYNC_CANONICAL_SERVER", own];
  if (text === "") return null;
  const refuse = (found: string) =>
    usage(
      `Cannot use the setting ${name}: it ${found}.`,
      "Set the forge's base URL, such as https://git.example.com.",
    );
  if (!URL.canParse(text) || /[\s\\\p{Cc}]/u.test(text)) throw refuse("is not a URL");
  const url = new URL(text);
  if (url.protocol !== "https:" && url.protocol !== "http:")
    throw refuse("is neither an https: nor an http: URL");
  if (url.username !== "" || url.password !== "") throw refuse("holds a user name or a password");
  if (/[?#]/.test(text)) throw refuse("holds a query or a fragment");
  if (url.protocol === "http:" && !options.allowHttp && !isLoopback(url.hostname)) {
    throw refuse(
      "is a plain http: URL of another machine, so the token would travel in clear (SYNC_ALLOW_HTTP=1 allows it)",
    );
  }
  return `${url.origin}${url.pathname.replace(/\/+$/, "")}`;
}

/** Sound because the URL parser has brought every way to write an IP address to this one form. */
function isLoopback(hostname: string): boolean {
  return hostname === "localhost" || hostname === "[::1]" || /^127(\.\d+){3}$/.test(hostname);
}

/** The proxies to use, empty where there is none. The lower-case names win, as in undici and curl. */
function readProxies(env: Env): Proxies {
  const proxy = (name: string) => {
    const text = setting(env, name.toLowerCase(), setting(env, name, ""));
    if (text === "" || (URL.canParse(text) && /^https?:\/\//i.test(text))) return text;
    throw usage(
      `Cannot use the setting ${name}: it is not a URL.`,
      "Set the proxy's URL with its scheme, http://host:port.",
    );
  };
  return {
    http: proxy("HTTP_PROXY"),
    https: proxy("HTTPS_PROXY"),
    none: setting(env, "no_proxy", setting(env, "NO_PROXY", "")),
  };
}

function readRepo(text: string): string {
  if (isRepoName(text)) return text;
  throw usage(`Cannot use the setting SYNC_CANONICAL_REPO: it is ${quote(text)}.`, "Set it to owner/name.");
}

function isRepoName(text: string): boolean {
  const parts = text.split("/");
  return parts.length === 2 && parts.every((part) => /^[\w.-]+$/.test(part) && !isDots(part));
}

/** Whether a URL parser would take the segment away. */
function isDots(segment: string): boolean {
  return segment === "." || segment === "..";
}

function readCanonicalPath(text: string): string {
  const wellFormed = text.split("/").every((segment) => segment !== "" && !isDots(segment));
  if (wellFormed && !/[\p{Cc}\p{Cs}]/u.test(text)) return text;
  throw usage(
    `Cannot use the setting SYNC_CANONICAL_PATH: it is ${quote(text)}.`,
    'Set a path from the root of the repository, without a leading slash and without ".." in it.',
  );
}

function readRef(text: string): string {
  if (!isDots(text) && !/[\p{Cc}\p{Cs}]/u.test(text)) return text;
  throw usage(
    `Cannot use the setting SYNC_CANONICAL_REF: it is ${quote(text)}.`,
    "Set a branch, a tag or a commit.",
  );
}

// ─────────────────────────────── files ───────────────────────────────

/** One side of the comparison. */
export interface Side {
  readonly bytes: Buffer;
  /** Lower-case hex. */
  readonly sha256: string;
}

/** The largest event payload that is read: GitHub's own limit for a webhook's is 25 MB. */
const EVENT_LIMIT = 26_214_400;

const ERRNO: Readonly<Record<string, string>> = {
  ENOENT: "there is no such file",
  ENOTDIR: "a part of the path is not a directory",
  EACCES: "permission denied",
  ELOOP: "it is a symbolic link",
};

/**
 * Reads a regular file, never more than `limit` bytes, and never waits for a named pipe. `refuse` makes the
 * error out of what was found.
 */
async function readRegularFile(
  path: string,
  options: { limit: number; followLink: boolean; refuse: (found: string, tooLarge: boolean) => Failure },
): Promise<Buffer> {
  const flags = constants.O_RDONLY | constants.O_NONBLOCK | (options.followLink ? 0 : constants.O_NOFOLLOW);
  const refuseErrno = (error: unknown): never => {
    const code = codeOf(error);
    throw options.refuse(ERRNO[code] ?? code, false);
  };
  const file = await open(path, flags).catch(refuseErrno);
  try {
    const stat = await file.stat();
    if (!stat.isFile())
      throw options.refuse(stat.isDirectory() ? "it is a directory" : "it is not a regular file", false);
    if (stat.size > options.limit)
      throw options.refuse(`it has ${plural(stat.size, "byte")}, more than ${options.limit}`, true);
    return await file.readFile();
  } finally {
    await file.close();
  }
}

function sideOf(bytes: Buffer): Side {
  return { bytes, sha256: createHash("sha256").update(bytes).digest("hex") };
}

/** Reads the copy. A symbolic link is refused: a link is not a copy, and could point anywhere on the runner. */
async function readCopy(settings: Settings): Promise<Side> {
  return sideOf(
    await readRegularFile(settings.copyPath, {
      limit: settings.maxBytes,
      followLink: false,
      refuse: (found, tooLarge) =>
        unverified(
          tooLarge ? "too-large" : "copy-unreadable",
          `Cannot read the copy ${quote(settings.copyPath)}: ${found}.`,
        ),
    }),
  );
}

/** Reads the local file that stands in for the fetch. */
async function readLocalCanonical(path: string, settings: Settings): Promise<Side> {
  const bytes = await readRegularFile(path, {
    limit: settings.maxBytes,
    followLink: true,
    refuse: (found, tooLarge) =>
      unverified(
        tooLarge ? "too-large" : "file-not-found",
        `Cannot read the canonical file ${quote(path)}: ${found}.`,
      ),
  });
  refuseLfsPointer(bytes, quote(path));
  return sideOf(bytes);
}

/** https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md: the first line of every pointer file. */
function refuseLfsPointer(bytes: Buffer, name: string): void {
  if (!bytes.subarray(0, 43).equals(Buffer.from("version https://git-lfs.github.com/spec/v1\n"))) return;
  throw unverified("bad-response", `Cannot use ${name}: it is a Git LFS pointer, not the file's own bytes.`);
}

// ───────────────────────────── case table ─────────────────────────────

/** What the case table says of an event. */
export interface Context {
  /** Empty when the runner named none. */
  readonly event: string;
  /** The branch of the case table, 1 to 4. */
  readonly branch: 1 | 2 | 3 | 4;
  /** Trust decides one thing only: whether a missing token is red. */
  readonly trusted: boolean;
  /** A sentence without its full stop. */
  readonly why: string;
}

/** The payload of an event as parsed JSON, or why there is none. */
export type Payload = { readonly value: unknown } | { readonly missing: string };

const OWN_EVENTS: ReadonlySet<string> = new Set(["push", "schedule", "workflow_dispatch"]);

/**
 * The case table. A pull request is of the same repository or of a fork by the identity of the two
 * repositories, not by the flag `head.repo.fork`, which says whether the head is a fork of anything: on a base
 * that is itself a fork it is true for the base's own branches. Measured on Gitea 1.22.6 and 1.25.4; see
 * fixtures/README.md. What cannot be told is trusted, so that a missing token is red.
 */
export function classify(event: string, payload: Payload): Context {
  if (OWN_EVENTS.has(event)) {
    return {
      event,
      branch: 1,
      trusted: true,
      why: "the repository's own context, where the secret should be",
    };
  }
  if (event !== "pull_request") {
    const why =
      event.trim() === "" ? "no event name was given" : "an event that the case table does not name";
    return { event, branch: 4, trusted: true, why: `${why}, so it fails closed` };
  }
  const origin = "missing" in payload ? { missing: payload.missing } : headOf(payload.value);
  if ("missing" in origin) {
    return {
      event,
      branch: 4,
      trusted: true,
      why: `it cannot be told whether it is a fork's: ${origin.missing}`,
    };
  }
  return origin.same
    ? { event, branch: 2, trusted: true, why: `a pull request of the same repository: ${origin.by}` }
    : { event, branch: 3, trusted: false, why: `a fork's pull request, which gets no secret: ${origin.by}` };
}

type Origin = { same: boolean; by: string } | { missing: string };

/** The six rules of identity, in their order. Any shape that a rule cannot use falls through to the next. */
function headOf(payload: unknown): Origin {
  const head = dig(payload, "pull_request", "head");
  const repos = [dig(head, "repo"), dig(payload, "pull_request", "base", "repo")] as const;
  if (dig(head, "label") === "") return { same: false, by: "head.label is empty (AGit flow)" };
  if (repos[0] === null) return { same: false, by: "head.repo is null (the fork was deleted)" };
  const [headId, baseId] = repos.map((repo) => dig(repo, "id"));
  if (isId(headId) && isId(baseId)) {
    return { same: headId === baseId, by: `head.repo.id is ${headId}, base.repo.id is ${baseId}` };
  }
  const [headName, baseName] = repos.map((repo) => dig(repo, "full_name"));
  if (isName(headName) && isName(baseName)) {
    const same = headName.toLowerCase() === baseName.toLowerCase();
    return { same, by: `head.repo is ${quote(headName)}, base.repo is ${quote(baseName)}` };
  }
  const flag = dig(repos[0], "fork");
  if (typeof flag === "boolean") return { same: !flag, by: `head.repo.fork is ${flag}` };
  return {
    missing: isRecord(payload)
      ? "the payload has no usable id, full_name or fork flag of head.repo"
      : "the payload is not an object",
  };
}

/** Unsafe integers fall through: two of them may have become equal by rounding. */
function isId(value: unknown): value is number {
  return typeof value === "number" && Number.isSafeInteger(value) && value > 0;
}

function isName(value: unknown): value is string {
  return typeof value === "string" && value !== "";
}

/** An event: its name, and its payload where the case table needs one. */
interface Event {
  readonly name: string;
  readonly payload: Payload;
}

/** The event of this run. Only `pull_request` needs its payload: for any other it is not read. */
async function readEvent(settings: Settings): Promise<Event> {
  if (settings.replay !== null) return readReplay(settings.replay, settings);
  const { eventName: name, eventPath } = settings;
  if (name !== "pull_request") return { name, payload: { missing: "not read" } };
  if (eventPath === "") return { name, payload: { missing: "no payload was given (GITHUB_EVENT_PATH)" } };
  const bytes = await settle(readEventFile(eventPath, "payload"));
  return { name, payload: bytes instanceof Failure ? { missing: bytes.message } : parsePayload(bytes) };
}

/**
 * A captured event in the runner's place: an object with `event_name` and `event` (what `toJSON(github)`
 * prints), or a bare payload with the event's name beside it. A flag wins over the captured name.
 */
async function readReplay(path: string, names: Settings): Promise<Event> {
  const payload = parsePayload(await readEventFile(path, "replay"));
  const captured = "value" in payload ? dig(payload.value, "event_name") : undefined;
  const event = "value" in payload ? dig(payload.value, "event") : undefined;
  if (typeof captured === "string" && event !== undefined) {
    return { name: names.eventFlag ?? captured, payload: { value: event } };
  }
  if (names.eventName !== "") return { name: names.eventName, payload };
  const found = "missing" in payload ? payload.missing : "it is a bare payload";
  throw usage(`Cannot tell the event of the replay ${quote(path)}: ${found}.`, "Name it with --event-name.");
}

async function readEventFile(path: string, what: "payload" | "replay"): Promise<Buffer> {
  return readRegularFile(path, {
    limit: EVENT_LIMIT,
    followLink: true,
    refuse: (found) => usage(`Cannot read the ${what} ${quote(path)}: ${found}.`, "Check the path."),
  });
}

/** A byte-order mark before the JSON is tolerated. Any error of the parser, its stack's depth too, is "not JSON". */
function parsePayload(bytes: Buffer): Payload {
  try {
    const value: unknown = JSON.parse(bytes.toString("utf8").replace(/^\uFEFF/, ""));
    return { value };
  } catch {
    return { missing: "the payload is not JSON" };
  }
}

// ─────────────────────────────── wire ───────────────────────────────

/** The canonical file as the forge has it at one commit. */
export interface Canonical extends Side {
  /** `owner/name` where it was found: another than the setting's when the repository has moved. */
  readonly repo: string;
  /** The commit that the ref named, lower-case hex; null for a local file. */
  readonly commit: string | null;
}

/** Writes a plain line to the log. */
type Log = (line: string) => void;

/** The whole run's deadline. The signal's reason is the {@link Failure} to report. */
interface Deadline {
  readonly signal: AbortSignal;
  readonly ms: number;
  /** On the clock of `performance.now()`. */
  readonly endsAt: number;
}

/** What one fetch carries from request to request. */
interface Fetching {
  readonly settings: Settings & { readonly server: string };
  readonly token: string;
  readonly proxies: Proxies;
  readonly deadline: Deadline;
  readonly log: Log;
  readonly mask: (text: string) => string;
  /** Requests sent so far, by reference: the report wants it even when the fetch fails. */
  readonly tally: { attempts: number };
  repo: string;
  moves: number;
  connection: Connection | null;
}

/** undici's pool, and the signal that ends its sockets at whatever stage they are. */
interface Connection {
  readonly dispatcher: import("undici").Dispatcher;
  readonly end: AbortController;
}

/** A request below `/api/v1/repos/{owner}/{name}`. */
interface Ask {
  /** What the log calls it. */
  readonly what: string;
  /** Percent-encoded, with its leading slash, or empty for the repository itself. */
  readonly path: string;
  /** With its question mark, or empty. */
  readonly query: string;
  /** The largest body that is read, in bytes. */
  readonly limit: number;
}

interface Answer {
  readonly status: number;
  readonly headers: HeaderFields;
  readonly bytes: Buffer;
}

type HeaderFields = Readonly<Record<string, string | string[] | undefined>>;

/** A commit's JSON has some 2 KB; the limit is for a server that never stops. */
const JSON_LIMIT = 1_048_576;
/** As much of an error's body as is read, and for how long, for the message that the forge put there. */
const ERROR_BODY = { limit: 4096, ms: 1000 };
const MOST_RETRIES = 3;
const MOST_MOVES = 2;
/** A part of the deadline, so that a silent first attempt leaves time for others. */
const SILENCE_PER_DEADLINE = 1 / 4;
/** The first back-off is one to two of these; at the default deadline half a second to one second. */
const BACKOFF_PER_DEADLINE = 1 / 120;

const RETRYABLE: ReadonlySet<number> = new Set([429, 500, 502, 503, 504]);
const REDIRECTS: ReadonlySet<number> = new Set([301, 302, 303, 307, 308]);

/**
 * Fetches the canonical file: first the commit that the ref names, then the file at that commit. Asked for the
 * file at a ref that does not exist, Gitea 1.25.4 answers with the default branch's file (see
 * fixtures/responses/gitea-1.25.4-missing-ref.http); pinned by a commit it cannot. Throws a {@link Failure}.
 */
async function fetchCanonical(fetching: Fetching): Promise<Canonical> {
  try {
    const commit = await resolveCommit(fetching);
    const bytes = await fetchFile(fetching, commit);
    return { ...sideOf(bytes), repo: fetching.repo, commit };
  } finally {
    await disconnect(fetching);
  }
}

async function resolveCommit(fetching: Fetching): Promise<string> {
  const { ref } = fetching.settings;
  const answer = await get(fetching, {
    what: `the commit of ${quote(ref)}`,
    path: `/git/commits/${encodeURIComponent(ref)}`,
    query: "?stat=false&verification=false&files=false",
    limit: JSON_LIMIT,
  });
  if (answer.status === 404) throw await tellMissing(fetching);
  // What Gitea says to a ref that it cannot read as one, such as main~1.
  if (answer.status === 422) throw refNotFound(fetching);
  requireOk(answer, "the commit", fetching);
  const payload = parsePayload(answer.bytes);
  const sha = "value" in payload ? dig(payload.value, "sha") : undefined;
  if (typeof sha === "string" && isObjectId(sha)) return sha.toLowerCase();
  throw unverified(
    "bad-response",
    `Cannot use the forge's answer for the commit of ${quote(ref)}: it holds no commit id.`,
  );
}

function isObjectId(text: string): boolean {
  return /^(?:[\da-f]{40}|[\da-f]{64})$/i.test(text);
}

function refNotFound(fetching: Fetching): Failure {
  const { ref } = fetching.settings;
  return unverified(
    "ref-not-found",
    `Cannot find the ref ${quote(ref)} in the repository ${quote(fetching.repo)}.`,
  );
}

/** A 404 for the commit: the forge says the same of a repository that the token may not see. */
async function tellMissing(fetching: Fetching): Promise<Failure> {
  const answer = await get(fetching, { what: "the repository", path: "", query: "", limit: JSON_LIMIT });
  if (answer.status === 404) {
    const where = `the repository ${quote(fetching.repo)} on ${fetching.settings.server}`;
    return unverified("repo-not-visible", `Cannot see ${where}: the forge answered 404.`);
  }
  requireOk(answer, "the repository", fetching);
  return refNotFound(fetching);
}

async function fetchFile(fetching: Fetching, commit: string): Promise<Buffer> {
  const { path, ref, maxBytes } = fetching.settings;
  const answer = await get(fetching, {
    what: "the file",
    path: `/raw/${path.split("/").map(encodeURIComponent).join("/")}`,
    query: `?ref=${commit}`,
    limit: maxBytes,
  });
  if (answer.status === 404) {
    const where = `${quote(fetching.repo)} at ${quote(ref)} (commit ${commit.slice(0, 10)})`;
    throw unverified("file-not-found", `Cannot find the file ${quote(path)} in ${where}.`);
  }
  requireOk(answer, "the file", fetching);
  requireFile(answer);
  return answer.bytes;
}

/** Refuses a 200 that does not carry the file's own bytes. */
function requireFile(answer: Answer): void {
  const refuse = (found: string) =>
    unverified("bad-response", `Cannot use the forge's answer for the file: ${found}.`);
  const type = headerOf(answer.headers, "content-type");
  if (/html|json/i.test(type)) throw refuse(`its type is ${quote(type)}`);
  const object = headerOf(answer.headers, "x-gitea-object-type");
  if (object !== "" && object !== "file")
    throw refuse(`the path is of the kind ${quote(object)}, not a file`);
  const [, blobId = ""] = /^(?:W\/)?"([^"]*)"$/.exec(headerOf(answer.headers, "etag")) ?? [];
  // Any other ETag (a proxy's own) says nothing about the bytes.
  if (isObjectId(blobId) && blobIdOf(answer.bytes, blobId.length) !== blobId.toLowerCase()) {
    throw refuse(
      `its bytes do not have the blob id ${blobId} that its ETag names, so they were damaged on the way`,
    );
  }
  refuseLfsPointer(answer.bytes, "the forge's answer for the file");
}

/** Git's name for the bytes; a sha1 repository's has 40 digits, a sha256 repository's 64. */
function blobIdOf(bytes: Buffer, digits: number): string {
  const hash = createHash(digits === 40 ? "sha1" : "sha256");
  return hash.update(`blob ${bytes.length}\0`).update(bytes).digest("hex");
}

function headerOf(headers: HeaderFields, name: string): string {
  const value = headers[name];
  return Array.isArray(value) ? value.join(", ") : (value ?? "");
}

/** Turns every status but 200 into the {@link Failure} that it means. */
function requireOk(answer: Answer, what: string, fetching: Fetching): void {
  if (answer.status === 200) {
    const encoding = headerOf(answer.headers, "content-encoding");
    if (encoding === "" || encoding.toLowerCase() === "identity") return;
    throw unverified(
      "bad-response",
      `Cannot use the forge's answer for ${what}: it is encoded (${quote(encoding)}).`,
    );
  }
  const reason =
    answer.status === 401 ? "token-rejected" : answer.status === 403 ? "token-scope" : "bad-response";
  throw unverified(reason, `Cannot get ${what}: ${statusText(answer, fetching)}.`);
}

/** The status, with the message that Gitea puts into an error's JSON. */
function statusText(answer: Answer, fetching: Fetching): string {
  const payload = parsePayload(answer.bytes);
  const message = "value" in payload ? dig(payload.value, "message") : undefined;
  const said =
    typeof message === "string" && message !== "" ? `, saying ${quote(fetching.mask(message))}` : "";
  return `the forge answered ${answer.status}${said}`;
}

/** One request with its retries and redirects. Statuses other than 5xx, 429 and 3xx are the caller's. */
async function get(fetching: Fetching, ask: Ask): Promise<Answer> {
  const answer = await persist(fetching, ask);
  if (!REDIRECTS.has(answer.status)) return answer;
  followMove(fetching, ask, headerOf(answer.headers, "location"));
  return get(fetching, ask);
}

/**
 * Takes over the repository's new name from a redirect, or throws `redirected`. A redirect is followed only to
 * the same request of another repository of the same origin: the token goes nowhere else.
 */
function followMove(fetching: Fetching, ask: Ask, location: string): void {
  const { server } = fetching.settings;
  const refuse = (found: string) =>
    unverified("redirected", `Cannot follow the redirect for ${ask.what}: ${found}.`);
  if (location === "" || !URL.canParse(location, server)) throw refuse("it names no place");
  const from = urlOf(fetching, ask);
  const to = new URL(location, from);
  const place = quote(fetching.mask(`${to.origin}${to.pathname}`));
  const prefix = `${new URL(server).pathname.replace(/\/$/, "")}/api/v1/repos/`;
  const [owner = "", name = "", ...rest] = to.pathname.slice(prefix.length).split("/");
  const repo = `${owner}/${name}`;
  const isSameAsk = rest.join("/") === ask.path.slice(1) && to.search === ask.query;
  if (to.origin !== from.origin || !to.pathname.startsWith(prefix) || !isSameAsk || !isRepoName(repo)) {
    throw refuse(`it leads to ${place}`);
  }
  if (repo === fetching.repo || fetching.moves === MOST_MOVES)
    throw refuse(`it leads on and on, now to ${place}`);
  fetching.log(
    `moved      the repository ${quote(fetching.repo)} is now ${quote(repo)}: set SYNC_CANONICAL_REPO to that`,
  );
  fetching.repo = repo;
  fetching.moves += 1;
}

function urlOf(fetching: Fetching, ask: Ask): URL {
  return new URL(`${fetching.settings.server}/api/v1/repos/${fetching.repo}${ask.path}${ask.query}`);
}

/** Retries whole attempts, the body included, until an answer is there that another attempt would not change. */
async function persist(fetching: Fetching, ask: Ask): Promise<Answer> {
  const { deadline } = fetching;
  const { default: pRetry } = await import("p-retry");
  try {
    return await pRetry(() => attempt(fetching, ask), {
      retries: MOST_RETRIES,
      minTimeout: deadline.ms * BACKOFF_PER_DEADLINE,
      randomize: true,
      signal: deadline.signal,
      shouldRetry: ({ error, retriesConsumed }) => awaitRetry(fetching, error, retriesConsumed + 1),
    });
  } catch (error) {
    throw deadline.signal.aborted ? deadline.signal.reason : error;
  }
}

/** Logs the retry and waits as long as the forge asked for; the back-off comes on top. */
async function awaitRetry(fetching: Fetching, error: unknown, count: number): Promise<boolean> {
  if (!(error instanceof Failure) || error.retryAfterMs === null) return false;
  const left = fetching.deadline.endsAt - performance.now();
  if (error.retryAfterMs >= left) {
    const wait = `it asked to wait ${Math.ceil(error.retryAfterMs / 1000)} s, more than the deadline leaves`;
    throw unverified("server-error", `${error.message.replace(/\.$/, "")}, and ${wait}.`);
  }
  const pause =
    error.retryAfterMs === 0 ? "" : ` in ${Math.ceil(error.retryAfterMs / 1000)} s, as the forge asked`;
  fetching.log(`retry      ${count} of ${MOST_RETRIES}${pause}: ${error.message}`);
  await sleep(error.retryAfterMs, undefined, { signal: fetching.deadline.signal });
  return true;
}

/** One attempt: connect, ask, read the whole body. Throws a {@link Failure}, or what nobody expected. */
async function attempt(fetching: Fetching, ask: Ask): Promise<Answer> {
  const { request } = await import("undici");
  fetching.connection ??= await connect(fetching.proxies);
  const { dispatcher, end } = fetching.connection;
  const watch = watchSilence(fetching, ask);
  // undici lets go of a request that waits for its connection only when the connection ends.
  watch.signal.addEventListener("abort", () => end.abort(watch.signal.reason));
  const progress = { answered: false };
  fetching.tally.attempts += 1;
  try {
    const response = await request(urlOf(fetching, ask), {
      dispatcher,
      signal: watch.signal,
      headers: headersFor(fetching),
    });
    progress.answered = true;
    watch.feed();
    const { statusCode: status, headers, body } = response;
    const bytes = status === 200 ? await readBody(response, ask, watch.feed) : await readErrorBody(body);
    watch.stop();
    const answer = { status, headers, bytes };
    if (!RETRYABLE.has(status)) return answer;
    throw unverified(
      "server-error",
      `Cannot get ${ask.what}: ${statusText(answer, fetching)}.`,
      retryAfter(headers),
    );
  } catch (error) {
    watch.stop();
    await disconnect(fetching);
    if (watch.signal.aborted) throw watch.signal.reason;
    throw explainBreak(error, { what: ask.what, answered: progress.answered, mask: fetching.mask });
  }
}

function headersFor(fetching: Fetching): Record<string, string> {
  return {
    authorization: `token ${fetching.token}`,
    "accept-encoding": "identity",
    "user-agent": `sync-providers/${VERSION}`,
  };
}

/**
 * undici's own time-outs are off: they are a second coarse, know no total, and leave a socket that is still
 * connecting. The signal reaches into the connecting socket, TLS and the tunnel through a proxy included.
 */
async function connect(proxies: Proxies): Promise<Connection> {
  const { EnvHttpProxyAgent } = await import("undici");
  const end = new AbortController();
  const socket = { signal: end.signal, timeout: 0 };
  const dispatcher = new EnvHttpProxyAgent({
    httpProxy: proxies.http,
    httpsProxy: proxies.https,
    noProxy: proxies.none,
    connections: 1,
    headersTimeout: 0,
    bodyTimeout: 0,
    connect: socket,
    requestTls: socket,
    proxyTls: socket,
  });
  return { dispatcher, end };
}

/** Ends every socket at once: an idle one would hold the exit back. */
async function disconnect(fetching: Fetching): Promise<void> {
  const connection = fetching.connection;
  fetching.connection = null;
  connection?.end.abort();
  await connection?.dispatcher.destroy();
}

/** Aborts an attempt when nothing arrives for a part of the deadline, or at the deadline. */
function watchSilence(
  fetching: Fetching,
  ask: Ask,
): { signal: AbortSignal; feed: () => void; stop: () => void } {
  const { deadline } = fetching;
  const silence = new AbortController();
  const ms = deadline.ms * SILENCE_PER_DEADLINE;
  const message = `Cannot get ${ask.what}: nothing came for ${ms / 1000} s.`;
  const timer = setTimeout(() => silence.abort(unverified("timeout", message, 0)), ms);
  return {
    signal: AbortSignal.any([deadline.signal, silence.signal]),
    feed: () => timer.refresh(),
    stop: () => clearTimeout(timer),
  };
}

/** Counts while it reads, so that an endless body costs no more memory than the limit. */
async function readBody(
  response: import("undici").Dispatcher.ResponseData,
  ask: Ask,
  feed: () => void,
): Promise<Buffer> {
  const tooLarge = (found: string) =>
    unverified("too-large", `Cannot get ${ask.what}: ${found} ${ask.limit} bytes.`);
  const declared = Number(headerOf(response.headers, "content-length"));
  if (declared > ask.limit) throw tooLarge(`it has ${declared} bytes, more than`);
  const chunks: Buffer[] = [];
  let length = 0;
  for await (const chunk of response.body) {
    feed();
    length += chunk.length;
    if (length > ask.limit) throw tooLarge("it has more than");
    chunks.push(chunk);
  }
  return Buffer.concat(chunks, length);
}

/** The first bytes of an error's body. The status has said it all, so a body that breaks off loses nothing else. */
async function readErrorBody(body: AsyncIterable<Buffer> & { destroy: () => unknown }): Promise<Buffer> {
  const timer = setTimeout(() => body.destroy(), ERROR_BODY.ms);
  const chunks: Buffer[] = [];
  try {
    for await (const chunk of body) {
      chunks.push(chunk);
      if (Buffer.concat(chunks).length > ERROR_BODY.limit) break;
    }
  } catch {
    // Only the forge's own words are lost.
  } finally {
    clearTimeout(timer);
  }
  return Buffer.concat(chunks).subarray(0, ERROR_BODY.limit);
}

/** `Retry-After` in milliseconds: seconds or a date (RFC 9110, 10.2.3); 0 when there is none that can be read. */
function retryAfter(headers: HeaderFields): number {
  const text = headerOf(headers, "retry-after").trim();
  if (/^\d+$/.test(text)) return Number(text) * 1000;
  const date = / GMT$/.test(text) ? Date.parse(text) : Number.NaN;
  return Number.isNaN(date) ? 0 : Math.max(0, date - Date.now());
}

/** Certificates and handshakes do not mend themselves between two attempts. */
const TLS_CODE =
  /^(CERT_|ERR_TLS_|ERR_SSL_|DEPTH_ZERO_|SELF_SIGNED_|UNABLE_TO_|HOSTNAME_|INVALID_CA|UND_ERR_PRX_TLS)/;
/** Not HTTP, or more header than HTTP has. */
const PROTOCOL_CODE = /^(HPE_|HTTPParserError$|UND_ERR_HEADERS_OVERFLOW$)/;
/** The system's own (ECONNREFUSED, ENOTFOUND) and undici's. */
const NETWORK_CODE = /^(E[A-Z]|UND_ERR_(SOCKET|ABORTED|RES_CONTENT_LENGTH_MISMATCH)$)/;

/**
 * Tells a broken connection from a broken answer. Once headers have come it is the answer that is broken: undici
 * reports a reset like a missing end. What is neither stays as it is.
 */
function explainBreak(
  error: unknown,
  at: { what: string; answered: boolean; mask: (text: string) => string },
): unknown {
  const code = codeOf(error);
  const found = `Cannot get ${at.what}: ${code}, ${quote(at.mask(textOf(error)))}.`;
  if (PROTOCOL_CODE.test(code)) return unverified("bad-response", found);
  if (TLS_CODE.test(code)) return unverified("unreachable", found);
  if (!NETWORK_CODE.test(code)) return error;
  const broken = `Cannot get ${at.what}: the body broke off (${code}).`;
  return at.answered ? unverified("bad-response", broken, 0) : unverified("unreachable", found, 0);
}

// ───────────────────────────── comparison ─────────────────────────────

/** All that the verdict rests on. A {@link Failure} stands where a side should be and could not be had; null, where it was not due. */
export interface Evidence {
  readonly context: Context;
  readonly token: Token["kind"];
  /** Whether a missing token counts: not where a local file stands in for the fetch, unless it is a replay. */
  readonly tokenCounts: boolean;
  readonly copy: Side | Failure | null;
  readonly canonical: Side | Failure | null;
  /** How the messages name the two sides. */
  readonly names: { readonly copy: string; readonly canonical: string };
}

/** Everything that holds, the verdict first: never empty, in the order of {@link STATUSES}. Pure. */
export function judge(evidence: Evidence): [Verdict, ...Verdict[]] {
  const found = [...judgeToken(evidence), ...judgeSides(evidence)];
  const order = Object.keys(STATUSES);
  const [first, ...others] = found.sort((a, b) => order.indexOf(a.status) - order.indexOf(b.status));
  // Reached by no evidence that gather() can bring; it stands here so that nothing found is never green.
  return [first ?? nothingCompared(), ...others];
}

function nothingCompared(): Verdict {
  return { status: "unverified", reason: null, message: "Nothing was compared.", remedy: "" };
}

const PROVISION = "Provision AUTO_SYNC_TOKEN (read scope on molecule-controlplane)";

function judgeToken({ context, token, tokenCounts }: Evidence): Verdict[] {
  if (!tokenCounts || token === "present") return [];
  if (token === "malformed") {
    const found = "it holds white space, control or non-ASCII characters inside. It was not sent";
    return [unverified("token-malformed", `Cannot use the secret AUTO_SYNC_TOKEN: ${found}.`).verdict];
  }
  const event = context.event === "" ? "an event without a name" : `the event ${quote(context.event)}`;
  if (context.trusted) {
    return [
      {
        status: "token-missing",
        message: `The secret AUTO_SYNC_TOKEN is missing in a trusted context (${event}), so nothing was compared.`,
        remedy: `${PROVISION}: as a secret of this repository or its organisation, handed to this step's env.`,
      },
    ];
  }
  return [
    {
      status: "skipped",
      message: "A fork's pull request gets no secret, so nothing was compared with the canonical.",
      remedy: "The hermetic pin still guards hand edits, and the push after the merge is compared.",
    },
  ];
}

function judgeSides({ copy, canonical, names }: Evidence): Verdict[] {
  const failures = [copy, canonical]
    .filter((side) => side instanceof Failure)
    .map((failure) => failure.verdict);
  if (copy === null || canonical === null || copy instanceof Failure || canonical instanceof Failure)
    return failures;
  if (copy.bytes.equals(canonical.bytes)) {
    return [{ status: "in-sync", message: "The copy is the canonical file, byte for byte.", remedy: "" }];
  }
  const line = firstDifferingLine(copy.bytes, canonical.bytes);
  const sums = `copy ${copy.sha256.slice(0, 12)}, canonical ${canonical.sha256.slice(0, 12)}`;
  return [
    {
      status: "drift",
      line,
      message: `The copy ${names.copy} differs from the canonical ${names.canonical}, first in line ${line} (sha256: ${sums}).`,
      remedy:
        "To re-sync, replace the copy with the canonical file of that commit and commit it; edit the canonical only.",
    },
  ];
}

/** The number of the first line of the copy that is not the canonical's, from 1; one past the end if the copy just stops. */
export function firstDifferingLine(copy: Buffer, canonical: Buffer): number {
  const end = Math.min(copy.length, canonical.length);
  let line = 1;
  for (let index = 0; index < end && copy[index] === canonical[index]; index += 1) {
    if (copy[index] === 0x0a) line += 1;
  }
  return line;
}

// ─────────────────────────────── report ───────────────────────────────

/** Where the lines go: `stdout` is the log, or with `--json` the document alone. One call is one line. */
export type Writer = (line: string, stream: "stdout" | "stderr") => void;

/** What is known at the end of a run, however far it came. */
interface Run {
  readonly json: boolean;
  readonly startedAt: number;
  readonly write: Writer;
  readonly mask: (text: string) => string;
  readonly tally: { attempts: number };
  settings: Settings | null;
  context: Context | null;
  copy: Side | null;
  canonical: Side | Canonical | null;
}

function logTo(run: Run): Log {
  return (line) => run.write(run.mask(line), run.json ? "stderr" : "stdout");
}

function describeContext(context: Context): string {
  const event = context.event === "" ? "none" : quote(context.event);
  const trust = context.trusted ? "trusted" : "untrusted";
  return `context    event ${event}: branch ${context.branch} of the case table, ${trust}: ${context.why}`;
}

function describeSide(label: string, name: string, side: Side): string {
  return `${label.padEnd(10)} ${name}: ${plural(side.bytes.length, "byte")}, sha256 ${side.sha256.slice(0, 12)}`;
}

/** `"path" of "owner/name" at "ref" (commit 0123456789)`, or the local file's path. */
function nameCanonical(settings: Settings, side: Side | Canonical | Failure | null): string {
  if (settings.canonicalFile !== null) return quote(settings.canonicalFile);
  const found = side !== null && "commit" in side ? side : null;
  const commit = found?.commit ? ` (commit ${found.commit.slice(0, 10)})` : "";
  return `${quote(settings.path)} of ${quote(found?.repo ?? settings.repo)} at ${quote(settings.ref)}${commit}`;
}

/** Prints the verdict, and what else was found, to people and to whoever reads the JSON. */
function report(run: Run, found: readonly [Verdict, ...Verdict[]]): number {
  const [verdict] = found;
  logTo(run)(annotate(verdict, run.settings?.copyPath ?? ""));
  const { exitCode } = STATUSES[verdict.status];
  if (run.json) run.write(toJson(documentOf(run, verdict), run.mask), "stdout");
  return exitCode;
}

/** The verdict's line: what happened, then what to do; an annotation unless all is well. */
function annotate(verdict: Verdict, copyPath: string): string {
  const { level } = STATUSES[verdict.status];
  const reason = verdict.status === "unverified" && verdict.reason !== null ? ` (${verdict.reason})` : "";
  const line = inert(`${verdict.status}${reason}: ${verdict.message} ${verdict.remedy}`.trimEnd());
  if (level === "none") return `verdict    ${line}`;
  const place =
    verdict.status === "drift" ? ` file=${escapeProperty(inert(copyPath))},line=${verdict.line}` : "";
  return `::${level}${place}::${escapeData(line)}`;
}

/** The JSON document, schema 1. What is not known is null. */
function documentOf(run: Run, verdict: Verdict): Record<string, unknown> {
  const { settings, context, copy, canonical } = run;
  const fetched = canonical !== null && "commit" in canonical ? canonical : null;
  const isLocal = settings !== null && settings.canonicalFile !== null;
  return {
    schema: 1,
    status: verdict.status,
    reason: verdict.status === "unverified" ? verdict.reason : null,
    exitCode: STATUSES[verdict.status].exitCode,
    event: context?.event || null,
    branch: context?.branch ?? null,
    trusted: context?.trusted ?? null,
    message: verdict.message,
    remedy: verdict.remedy,
    copy: {
      path: settings?.copyPath ?? null,
      bytes: copy?.bytes.length ?? null,
      sha256: copy?.sha256 ?? null,
    },
    canonical: {
      server: isLocal ? null : (settings?.server ?? null),
      repo: isLocal ? null : (fetched?.repo ?? settings?.repo ?? null),
      ref: isLocal ? null : (settings?.ref ?? null),
      commit: fetched?.commit ?? null,
      path: settings?.canonicalFile ?? settings?.path ?? null,
      bytes: canonical?.bytes.length ?? null,
      sha256: canonical?.sha256 ?? null,
    },
    attempts: run.tally.attempts,
    elapsedMs: Math.round(performance.now() - run.startedAt),
  };
}

/** JSON that is inert on a runner: its escapes mean the same characters, and no line of it holds a command. */
export function toJson(document: unknown, mask: (text: string) => string): string {
  const text = JSON.stringify(
    document,
    (_, value: unknown) => (typeof value === "string" ? mask(value) : value),
    2,
  );
  return text.replace(/:{2,}|##(?=\[)|[\u007f-\u009f\p{Cf}\p{Zl}\p{Zp}]/gu, escapeUnits);
}

function escapeUnits(text: string): string {
  return text.replace(/[\s\S]/g, (unit) => `\\u${unit.charCodeAt(0).toString(16).padStart(4, "0")}`);
}

// ──────────────────────────────── main ────────────────────────────────

/**
 * The gate as a function: the arguments (without node and script), the environment, and a writer of lines in;
 * the exit code out. It never throws, unless the writer does.
 */
export async function main(argv: readonly string[], env: Env, write: Writer): Promise<number> {
  const run: Run = {
    json: argv.includes("--json"),
    startedAt: performance.now(),
    write,
    mask: masker((env.AUTO_SYNC_TOKEN ?? "").trim()),
    tally: { attempts: 0 },
    settings: null,
    context: null,
    copy: null,
    canonical: null,
  };
  try {
    const flags = parseFlags(argv);
    const answer = flags.help ? HELP : flags.version ? VERSION : null;
    if (answer === null) return report(run, judge(await gather(run, readSettings(flags, env), env)));
    for (const line of answer.split("\n")) write(line, "stdout");
    return 0;
  } catch (error) {
    if (error instanceof Failure) return report(run, [error.verdict]);
    return report(run, [unexpected(run, error, env)]);
  }
}

/** An exception that nobody foresaw: red, with its message; its stack only on demand. */
function unexpected(run: Run, error: unknown, env: Env): Verdict {
  const log = logTo(run);
  const stack = error instanceof Error ? String(error.stack) : "";
  if (env.SYNC_DEBUG === "1")
    for (const line of stack.split("\n")) log(`debug      ${inert(run.mask(line))}`);
  const remedy =
    codeOf(error) === "ERR_MODULE_NOT_FOUND"
      ? "Install what the gate needs first: npm ci --omit=dev."
      : "This is a fault of the gate: rerun with SYNC_DEBUG=1 and report what it prints.";
  return {
    status: "unverified",
    reason: null,
    message: `Cannot finish: ${quote(run.mask(textOf(error)))}.`,
    remedy,
  };
}

/** Gathers the evidence, step by step, each with its line in the log. */
async function gather(run: Run, settings: Settings, env: Env): Promise<Evidence> {
  const log = logTo(run);
  run.settings = settings;
  const deadline = startDeadline(run, settings);
  try {
    const event = await readEvent(settings);
    run.context = classify(event.name, event.payload);
    log(describeContext(run.context));
    const tokenCounts = settings.canonicalFile === null || settings.replay !== null;
    const evidence = { context: run.context, token: settings.token.kind, tokenCounts };
    const getCanonical = prepareCanonical(run, settings, { env, deadline });
    if (getCanonical === null)
      return { ...evidence, copy: null, canonical: null, names: { copy: "", canonical: "" } };
    const copy = await settle(readCopy(settings));
    const canonical = copy instanceof Failure ? null : await settle(getCanonical());
    const names = { copy: quote(settings.copyPath), canonical: nameCanonical(settings, canonical) };
    if (!(copy instanceof Failure)) {
      run.copy = copy;
      log(describeSide("copy", names.copy, copy));
    }
    if (canonical !== null && !(canonical instanceof Failure)) {
      run.canonical = canonical;
      log(describeSide("canonical", names.canonical, canonical));
    }
    return { ...evidence, copy, canonical, names };
  } finally {
    deadline.stop();
  }
}

function startDeadline(run: Run, settings: Settings): Deadline & { stop: () => void } {
  const controller = new AbortController();
  const message = `Cannot finish within ${settings.timeoutMs / 1000} s: the deadline has passed.`;
  const left = run.startedAt + settings.timeoutMs - performance.now();
  const timer = setTimeout(() => controller.abort(unverified("timeout", message)), left);
  return {
    signal: controller.signal,
    ms: settings.timeoutMs,
    endsAt: run.startedAt + settings.timeoutMs,
    stop: () => clearTimeout(timer),
  };
}

/**
 * The way to the canonical file, or null when the token that would lead there is missing or malformed. A
 * replay asks for the token even beside a local file, as it rehearses what a runner would do.
 */
function prepareCanonical(
  run: Run,
  settings: Settings,
  world: { env: Env; deadline: Deadline },
): (() => Promise<Side | Canonical>) | null {
  const { canonicalFile, replay, token } = settings;
  if (canonicalFile !== null && replay === null) return () => readLocalCanonical(canonicalFile, settings);
  if (token.kind !== "present") return null;
  if (canonicalFile !== null) return () => readLocalCanonical(canonicalFile, settings);
  const fetching = prepareFetch(run, settings, { ...world, token: token.value });
  return async () => {
    logTo(run)(`token      present, sent to ${fetching.settings.server} and nowhere else`);
    return fetchCanonical(fetching);
  };
}

/** Checks what a fetch needs before anything is read. Throws a `usage` {@link Failure}. */
function prepareFetch(
  run: Run,
  settings: Settings,
  world: { env: Env; deadline: Deadline; token: string },
): Fetching {
  const { server, repo } = settings;
  if (server === null) {
    const unset = "The setting SYNC_CANONICAL_SERVER is not set, nor is GITHUB_SERVER_URL.";
    throw usage(unset, "Set the forge's base URL, such as https://git.example.com.");
  }
  return {
    settings: { ...settings, server },
    token: world.token,
    proxies: readProxies(world.env),
    deadline: world.deadline,
    log: logTo(run),
    mask: run.mask,
    tally: run.tally,
    repo,
    moves: 0,
    connection: null,
  };
}

/**
 * True when this file is what was run, not imported. Case and links are the file system's to resolve. A script
 * that is no file was named without its extension, or in some way unknown here: then the gate runs, for a gate
 * that does not run is green.
 */
function isMain(script: string | undefined): boolean {
  if (script === undefined || !existsSync(script)) return script !== undefined;
  return realpathSync.native(script) === realpathSync.native(fileURLToPath(import.meta.url));
}

if (isMain(process.argv[1])) {
  // Red until the verdict says otherwise: a run that ends on its way has compared nothing.
  process.exitCode = STATUSES.unverified.exitCode;
  // Nothing cancels a name look-up of the system, and even process.exit() waits for it: by default 10 s for each
  // name server that is silent. glibc reads this at the first look-up; the gate's own retries make up for it.
  process.env.RES_OPTIONS ??= "timeout:1 attempts:1";
  // Whoever reads may go away early (EPIPE); the exit code still says it all.
  for (const stream of [process.stdout, process.stderr]) stream.on("error", () => {});
  const write: Writer = (line, stream) => process[stream].write(`${line}\n`);
  // No top-level await: in a package that is not "type": "module", tsx runs this file as CommonJS.
  main(process.argv.slice(2), process.env, write).then((exitCode) => {
    process.exitCode = exitCode;
  });
}
