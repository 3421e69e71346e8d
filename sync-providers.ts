/**
 * sync-providers: turns a workflow red when a repository's copy of providers.yaml is no longer, byte for
 * byte, the canonical file of another, private repository on the same forge (Gitea, Forgejo).
 *
 *   npx tsx sync-providers.ts [--help]
 *
 * Exit codes: 0 the copy is in sync, or a fork's pull request came without the secret (a warning);
 * 1 the copy drifted, its pin is wrong, or the token is missing; 2 a flag or a setting is wrong; 3 nothing could
 * be compared.
 *
 * The way through the file is the way of the data, below what all share (statuses, text): settings, files, case
 * table, wire, comparison, what differs in words, re-sync, report, main.
 */

import { createHash, randomUUID } from "node:crypto";
import { addAbortListener } from "node:events";
import {
  closeSync,
  fchmodSync,
  fsyncSync,
  lstatSync,
  mkdirSync,
  openSync,
  realpathSync,
  renameSync,
  rmSync,
  statSync,
  writeFileSync,
} from "node:fs";
import { constants, type FileHandle, lstat, open } from "node:fs/promises";
import { basename, dirname, join, resolve } from "node:path";
// Deno's global timers have neither refresh() nor unref().
import { clearTimeout, setTimeout } from "node:timers";
import { fileURLToPath } from "node:url";
import { isDeepStrictEqual, parseArgs } from "node:util";

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
  "pin-mismatch": { exitCode: 1, level: "error", means: "the copy is not what the pin says" },
  unverified: { exitCode: 3, level: "error", means: "nothing could be compared; the reason says why" },
  skipped: {
    exitCode: 0,
    level: "warning",
    means: "a fork's pull request came without the secret; nothing was fetched",
  },
  "in-sync": { exitCode: 0, level: "none", means: "copy and canonical are the same bytes" },
} as const;

/** Every reason of `unverified`, with what the reader of the log can do about it. */
export const REMEDIES = {
  "copy-unreadable": "Check SYNC_COPY_PATH, and that the checkout ran before the gate.",
  "pin-unreadable": "Check SYNC_PIN_PATH: the file must hold exactly one sha256, a word of 64 hex digits.",
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

/** Which side of a drift is no longer what the pin names. */
export type Moved = "canonical" | "copy" | "both";

/** What the gate concludes. `message` is what was found, `remedy` is what to do next (may be empty). */
export type Verdict = { message: string; remedy: string } & (
  | { status: "usage" | "token-missing" | "pin-mismatch" | "skipped" | "in-sync" }
  /** `line` is the first of the copy that differs; `moved` is null when no pin can tell. */
  | { status: "drift"; line: number; moved: Moved | null }
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
  return inertLine(text).replace(/:(?=:)/g, ": ");
}

/** The same for a line of its own, which keeps the `::` that no runner takes for the start of a command. */
export function inertLine(text: string): string {
  return text
    .replace(/[\p{Cc}\p{Cf}\p{Cs}\p{Zl}\p{Zp}]/gu, escapeCharacter)
    .replace(/##(?=\[)/g, "# #")
    .replace(/^(\s*):(?=:)/, "$1: ");
}

const ESCAPES: Readonly<Record<string, string>> = { "\t": "\\t", "\n": "\\n", "\r": "\\r" };

function escapeCharacter(character: string): string {
  return ESCAPES[character] ?? `\\u{${Number(character.codePointAt(0)).toString(16)}}`;
}

/** Foreign text on one line: inert, and no longer than the limit, whatever the escapes made of it. */
function brief(text: string): string {
  const shown = inert(text.slice(0, QUOTE_LIMIT));
  return shown.length > QUOTE_LIMIT || text.length > QUOTE_LIMIT ? `${shown.slice(0, QUOTE_LIMIT)}…` : shown;
}

/** Foreign text as it stands inside a message: brief, in double quotes. */
export function quote(text: string): string {
  return `"${brief(text).replaceAll('"', "'")}"`;
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
  const encodings = [
    bytes.toString("base64"),
    bytes.toString("base64url"),
    encodeURIComponent(bytes.toString()),
  ];
  const forms = new Set([
    secret,
    inert(secret),
    escapeData(secret),
    secret.replaceAll('"', "'"),
    ...encodings,
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
  /** The file that holds the copy's sha256, or null when none is checked. */
  readonly pinPath: string | null;
  /** The whole run's deadline. */
  readonly timeoutMs: number;
  /** The largest copy or canonical that is read. */
  readonly maxBytes: number;
  /** Re-sync instead of comparing. */
  readonly write: boolean;
}

/** The URL of a proxy, empty for none, and the list of the hosts that need none, as the usual variables have them. */
interface Proxy {
  readonly url: string;
  readonly none: string;
}

const FLAGS = {
  "event-name": { type: "string" },
  event: { type: "string" },
  canonical: { type: "string" },
  copy: { type: "string" },
  pin: { type: "string" },
  replay: { type: "string" },
  explain: { type: "boolean" },
  write: { type: "boolean" },
  json: { type: "boolean" },
  help: { type: "boolean" },
  version: { type: "boolean" },
} as const;

/** Two sources of one event; a rehearsal that would change files; two answers on one standard output. */
const CONTRADICTIONS = [
  ["replay", "event"],
  ["replay", "write"],
  ["explain", "write"],
  ["explain", "json"],
] as const;

type Flags = ReturnType<typeof parseArgs<{ options: typeof FLAGS }>>["values"];

const HELP = `Usage: npx tsx sync-providers.ts [flags]

Compares a repository's copy of providers.yaml with the canonical file, byte for byte.

Flags (a flag wins over its setting):
  --event-name NAME   the event, instead of GITHUB_EVENT_NAME
  --event FILE        its payload, instead of GITHUB_EVENT_PATH
  --copy FILE         the copy, instead of SYNC_COPY_PATH
  --canonical FILE    a local file stands in for the fetch: no token, no network
  --pin FILE          the file that holds the copy's sha256, instead of SYNC_PIN_PATH
  --replay FILE       a captured event: the payload itself, or an object with event_name and event
  --explain           say what the gate decides for the event, with and without a token; exit code 0
  --write             re-sync: replace the copy by the canonical file, then bump the pin
  --json              one JSON document on standard output, the log on standard error
  --help, --version

Settings (environment; an empty one counts as unset):
  AUTO_SYNC_TOKEN         the token that reads the canonical repository (never a flag)
  SYNC_CANONICAL_SERVER   default: GITHUB_SERVER_URL
  SYNC_CANONICAL_REPO     default: molecule-ai/molecule-controlplane
  SYNC_CANONICAL_PATH     default: internal/providers/providers.yaml
  SYNC_CANONICAL_REF      default: main
  SYNC_COPY_PATH          default: workspace-server/internal/providers/providers.yaml
  SYNC_PIN_PATH           default: none, no pin is checked
  SYNC_TIMEOUT_SECONDS    default: 60, the whole run's deadline
  SYNC_MAX_BYTES          default: 10485760
  SYNC_ALLOW_HTTP         1 allows plain http: to another machine (the token travels in clear)
  SYNC_DEBUG              1 prints the stack of an exception that nobody expected
  HTTPS_PROXY, HTTP_PROXY, NO_PROXY, NODE_EXTRA_CA_CERTS as elsewhere in Node

Verdicts and exit codes (when several hold, the first one counts):
${Object.entries(STATUSES)
  .map(([status, { exitCode, means }]) => `  ${exitCode}  ${status.padEnd(14)} ${means}`)
  .join("\n")}`;

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
  for (const [one, other] of CONTRADICTIONS) {
    if (flags[one] === undefined || flags[other] === undefined) continue;
    throw usage(`The flags --${one} and --${other} contradict each other.`, "Give one of them.");
  }
  const copyPath =
    flags.copy ?? setting(env, "SYNC_COPY_PATH", "workspace-server/internal/providers/providers.yaml");
  const pinPath = flags.pin ?? (setting(env, "SYNC_PIN_PATH", "") || null);
  if (pinPath !== null && resolve(pinPath) === resolve(copyPath)) {
    throw usage(
      "The settings SYNC_COPY_PATH and SYNC_PIN_PATH name one file.",
      "Give the pin a file of its own.",
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
    copyPath,
    pinPath,
    timeoutMs:
      1000 *
      readNumber(env, "SYNC_TIMEOUT_SECONDS", { pattern: /^\d+(\.\d+)?$/, fallback: 60, most: 86_400 }),
    maxBytes: readNumber(env, "SYNC_MAX_BYTES", { pattern: /^\d+$/, fallback: 10_485_760, most: 2 ** 30 }),
    write: flags.write ?? false,
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

/** The proxy for the server's scheme. The lower-case names win, as in undici and curl. */
function readProxy(env: Env, server: string): Proxy {
  const name = server.startsWith("https:") ? "HTTPS_PROXY" : "HTTP_PROXY";
  const url = setting(env, name.toLowerCase(), setting(env, name, ""));
  if (url !== "" && !isProxyUrl(url)) {
    throw usage(
      `Cannot use the setting ${name}: it is not a URL.`,
      "Set the proxy's URL with its scheme, http://host:port.",
    );
  }
  return { url, none: setting(env, "no_proxy", setting(env, "NO_PROXY", "")) };
}

function isProxyUrl(text: string): boolean {
  if (!/^https?:\/\//i.test(text) || !URL.canParse(text)) return false;
  const { username, password } = new URL(text);
  // undici decodes them, and would throw.
  return !/%(?![\da-f]{2})/i.test(username + password);
}

function readRepo(text: string): string {
  if (isRepoName(text)) return text;
  const found = /[@:]/.test(text) ? "is a URL or holds a credential" : `is ${quote(text)}`;
  throw usage(`Cannot use the setting SYNC_CANONICAL_REPO: it ${found}.`, "Set it to owner/name.");
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

/** The sha256 that the pin file names, and where in the file it stands. */
export interface Pin {
  readonly path: string;
  /** Lower-case hex, however the file writes it. */
  readonly sha256: string;
  readonly bytes: Buffer;
  /** Index of the first digit in `bytes`. */
  readonly offset: number;
}

/** The largest event payload that is read: GitHub's own limit for a webhook's is 25 MB. */
const EVENT_LIMIT = 26_214_400;

/** What the system's refusals mean. */
const ERRNO: Readonly<Record<string, string>> = {
  ENOENT: "there is no such file",
  ENOTDIR: "a part of the path is not a directory",
  EACCES: "permission denied",
  ELOOP: "it is a symbolic link",
};

function errnoText(error: unknown): string {
  const code = codeOf(error);
  return ERRNO[code] ?? code;
}

/**
 * Reads a regular file, never more than `limit` bytes, and never waits for a named pipe. `refuse` makes the
 * error out of what was found.
 */
async function readRegularFile(
  path: string,
  options: { limit: number; followLink: boolean; refuse: (found: string, tooLarge: boolean) => Failure },
): Promise<Buffer> {
  const flags = constants.O_RDONLY | constants.O_NONBLOCK | (options.followLink ? 0 : constants.O_NOFOLLOW);
  try {
    const file = await open(path, flags);
    try {
      const stat = await file.stat();
      if (!stat.isFile())
        throw options.refuse(stat.isDirectory() ? "it is a directory" : "it is not a regular file", false);
      const tooLarge = (size: string) => options.refuse(`it has ${size}, more than ${options.limit}`, true);
      if (stat.size > options.limit) throw tooLarge(plural(stat.size, "byte"));
      // The size may be a lie (/proc), or no longer true.
      const bytes = await readAtMost(file, { size: stat.size, limit: options.limit });
      if (bytes.length > options.limit) throw tooLarge("more bytes than it says");
      return bytes;
    } finally {
      await file.close();
    }
  } catch (error) {
    throw error instanceof Failure ? error : options.refuse(errnoText(error), false);
  }
}

/** Reads to the end of the file, or one byte past the limit. */
async function readAtMost(
  file: FileHandle,
  { size, limit }: { size: number; limit: number },
): Promise<Buffer> {
  const chunks: Buffer[] = [];
  for (let length = 0; length <= limit; ) {
    const room = Math.min(limit + 1 - length, Math.max(size + 1 - length, 65_536));
    const { bytesRead, buffer } = await file.read(Buffer.allocUnsafe(room), 0, room);
    if (bytesRead === 0) break;
    chunks.push(buffer.subarray(0, bytesRead));
    length += bytesRead;
  }
  const [only, ...more] = chunks;
  return only !== undefined && more.length === 0 ? only : Buffer.concat(chunks);
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

/** The copy, or null where a re-sync is to create it. */
async function readOldCopy(settings: Settings): Promise<Side | null> {
  return settings.write && (await isMissing(settings.copyPath)) ? null : readCopy(settings);
}

/** A dangling link is there; what cannot be looked at is not known to be missing. */
function isMissing(path: string): Promise<boolean> {
  return lstat(path).then(
    () => false,
    (error: unknown) => codeOf(error) === "ENOENT",
  );
}

/** Reads the pin. Neither its path nor the place of the sum in it is prescribed: a Go constant, a sha256sum file. */
async function readPin(path: string, limit: number): Promise<Pin> {
  const refuse = (found: string) =>
    unverified("pin-unreadable", `Cannot read the pin ${quote(path)}: ${found}.`);
  const bytes = await readRegularFile(path, { limit, followLink: false, refuse });
  // Latin-1 keeps every byte in its place.
  const words = [...bytes.toString("latin1").matchAll(/(?<!\w)[\da-f]{64}(?!\w)/gi)];
  const [word, ...more] = words;
  if (word === undefined) throw refuse("it holds no word of 64 hex digits");
  if (more.length > 0) throw refuse(`it holds ${words.length} words of 64 hex digits, and may hold one`);
  return { path, sha256: word[0].toLowerCase(), bytes, offset: word.index };
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
  /** The commit that the ref named, lower-case hex. */
  readonly commit: string;
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
  readonly proxy: Proxy;
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
  /** Aborts when more sockets were made than any honest course of requests needs. */
  readonly stormy: AbortSignal;
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
const ERROR_BODY = { bytes: 4096, ms: 1000 };
const MOST_RETRIES = 3;
const MOST_MOVES = 2;
/**
 * One for every request is the most that is needed: commit, file, repository, two moves. Behind a proxy that hangs
 * up undici makes thousands.
 */
const MOST_SOCKETS = 6;
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
    disconnect(fetching);
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
  requireFile(answer, fetching.mask);
  return answer.bytes;
}

/** Refuses a 200 that does not carry the file's own bytes. */
function requireFile(answer: Answer, mask: (text: string) => string): void {
  const refuse = (found: string) =>
    unverified("bad-response", `Cannot use the forge's answer for the file: ${found}.`);
  const type = headerOf(answer.headers, "content-type");
  if (/html|json/i.test(type)) throw refuse(`its type is ${quote(mask(type))}`);
  const object = headerOf(answer.headers, "x-gitea-object-type");
  if (object !== "" && object !== "file")
    throw refuse(`the path is of the kind ${quote(mask(object))}, not a file`);
  // Any other ETag (a proxy's own) says nothing about the bytes.
  for (const [, blobId = ""] of headerOf(answer.headers, "etag").matchAll(/"([^"]*)"/g)) {
    if (isObjectId(blobId) && blobIdOf(answer.bytes, blobId.length) !== blobId.toLowerCase()) {
      throw refuse(
        `its bytes do not have the blob id ${blobId} that its ETag names, so they were damaged on the way`,
      );
    }
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

const REASONS_BY_STATUS: ReadonlyMap<number, Reason> = new Map([
  [401, "token-rejected"],
  [403, "token-scope"],
]);

/** Turns every status but 200 into the {@link Failure} that it means. */
function requireOk(answer: Answer, what: string, fetching: Fetching): void {
  if (answer.status === 200) {
    const encoding =
      headerOf(answer.headers, "content-encoding") || headerOf(answer.headers, "transfer-encoding");
    if (/^(identity|chunked)?$/i.test(encoding)) return;
    throw unverified(
      "bad-response",
      `Cannot use the forge's answer for ${what}: it is encoded (${quote(fetching.mask(encoding))}).`,
    );
  }
  const reason =
    REASONS_BY_STATUS.get(answer.status) ?? (answer.status >= 500 ? "server-error" : "bad-response");
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
    `moved      the repository ${quote(fetching.repo)} is now ${quote(fetching.mask(repo))}: set SYNC_CANONICAL_REPO to that`,
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
  const first = attempt(fetching, ask);
  const outcome = await settle(first);
  if (!(outcome instanceof Failure)) return outcome;
  if (outcome.retryAfterMs === null) throw outcome;
  const { default: pRetry } = await import("p-retry");
  // p-retry's first call gets the attempt that has failed, so that the library is loaded only to retry.
  const made = [first];
  return pRetry(() => made.pop() ?? attempt(fetching, ask), {
    retries: MOST_RETRIES,
    minTimeout: deadline.ms * BACKOFF_PER_DEADLINE,
    randomize: true,
    signal: deadline.signal,
    shouldRetry: ({ error, retriesConsumed }) => awaitRetry(fetching, error, retriesConsumed + 1),
  });
}

/** Logs the retry and waits as long as the forge asked for; the back-off comes on top. */
async function awaitRetry(fetching: Fetching, error: unknown, count: number): Promise<boolean> {
  if (!(error instanceof Failure) || error.retryAfterMs === null) return false;
  const left = fetching.deadline.endsAt - performance.now();
  if (error.retryAfterMs > 0 && error.retryAfterMs >= left) {
    const wait = `it asked to wait ${Math.ceil(error.retryAfterMs / 1000)} s, more than the deadline leaves`;
    throw unverified("server-error", `${error.message.replace(/\.$/, "")}, and ${wait}.`);
  }
  const pause =
    error.retryAfterMs === 0 ? "" : ` in ${Math.ceil(error.retryAfterMs / 1000)} s, as the forge asked`;
  fetching.log(`retry      ${count} of ${MOST_RETRIES}${pause}: ${error.message}`);
  const { setTimeout: sleep } = await import("node:timers/promises");
  await sleep(error.retryAfterMs);
  return true;
}

/** One attempt: connect, ask, read the whole body. Throws a {@link Failure}, or what nobody expected. */
async function attempt(fetching: Fetching, ask: Ask): Promise<Answer> {
  fetching.deadline.signal.throwIfAborted();
  const connection = fetching.connection ?? (await connect(fetching.proxy));
  fetching.connection = connection;
  fetching.tally.attempts += 1;
  const watch = watchAttempt(fetching, ask, connection);
  try {
    // A race, so that the time-outs hold whatever becomes of undici's own promises.
    const answer = await Promise.race([exchange(fetching, ask, { connection, watch }), watch.brokenOff]);
    watch.stop();
    if (!RETRYABLE.has(answer.status)) return answer;
    const message = `Cannot get ${ask.what}: ${statusText(answer, fetching)}.`;
    throw unverified("server-error", message, retryAfter(answer.headers));
  } catch (error) {
    watch.stop();
    disconnect(fetching);
    throw error;
  }
}

/** What {@link attempt} races against its time-outs; as the loser it runs on until its socket is gone. */
async function exchange(
  fetching: Fetching,
  ask: Ask,
  { connection, watch }: { connection: Connection; watch: Watch },
): Promise<Answer> {
  const { request } = await import("undici");
  const at = { what: ask.what, answered: false, mask: fetching.mask };
  try {
    const url = urlOf(fetching, ask);
    const response = await request(url, { dispatcher: connection.dispatcher, headers: headersFor(fetching) });
    at.answered = true;
    watch.feed();
    const { statusCode: status, headers, body } = response;
    const errorMs = Math.min(ERROR_BODY.ms, (fetching.deadline.ms * SILENCE_PER_DEADLINE) / 2);
    const bytes =
      status === 200 ? await readBody(response, ask, watch.feed) : await readErrorBody(body, errorMs);
    return { status, headers, bytes };
  } catch (error) {
    throw explainBreak(error, at);
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
 * connecting. Every socket is made by the one connector, to the server or to the proxy; TLS to the server within a
 * proxy's tunnel stands on the proxy's socket and ends with it.
 */
async function connect(proxy: Proxy): Promise<Connection> {
  // undici's parser is WebAssembly. V8 would optimise it in the background, and node waits for that at its exit:
  // 100 ms, half of a run. The quick code is as good for two small answers.
  const { setFlagsFromString } = await import("node:v8");
  setFlagsFromString("--liftoff-only");
  const { buildConnector, EnvHttpProxyAgent, Pool } = await import("undici");
  const { Socket } = await import("node:net");
  const [end, storm] = [new AbortController(), new AbortController()];
  const build = buildConnector({ timeout: 0 });
  let sockets = 0;
  // A signal among the connector's options would not do: node brings a socket to life again that is made after the
  // abort, and undici, for a request that was aborted, makes one.
  const connector: typeof build = (options, callback) => {
    sockets += 1;
    if (sockets > MOST_SOCKETS) storm.abort();
    const socket: unknown = build(options, callback);
    // With an error: undici takes a socket that closes without one for the end of its answer.
    if (socket instanceof Socket) addAbortListener(end.signal, () => socket.destroy(new Error("ended")));
  };
  const dispatcher = new EnvHttpProxyAgent({
    httpProxy: proxy.url,
    httpsProxy: proxy.url,
    noProxy: proxy.none,
    connections: 1,
    headersTimeout: 0,
    bodyTimeout: 0,
    connect: connector,
    clientFactory: (origin) => new Pool(origin, { connect: connector }),
    requestTls: { timeout: 0 },
  });
  return { dispatcher, end, stormy: storm.signal };
}

/** Ends every socket at once, whatever undici still knows of it: an idle one would hold the exit back. */
function disconnect(fetching: Fetching): void {
  const connection = fetching.connection;
  fetching.connection = null;
  void connection?.dispatcher.destroy();
  connection?.end.abort();
}

/** Watches one attempt. */
interface Watch {
  /**
   * Rejects with the {@link Failure} when nothing arrived for a part of the deadline, at the deadline (at once where
   * that is past), or in a storm of connections.
   */
  readonly brokenOff: Promise<never>;
  /** Something arrived. */
  readonly feed: () => void;
  readonly stop: () => void;
}

function watchAttempt({ deadline }: Fetching, ask: Ask, { stormy }: Connection): Watch {
  const ms = deadline.ms * SILENCE_PER_DEADLINE;
  const broken = new AbortController();
  const silence = unverified("timeout", `Cannot get ${ask.what}: nothing came for ${ms / 1000} s.`, 0);
  const storm = unverified(
    "unreachable",
    `Cannot get ${ask.what}: the connection is lost again and again.`,
    0,
  );
  const brokenOff = new Promise<never>((_, reject) => {
    broken.signal.addEventListener("abort", () => reject(broken.signal.reason));
  });
  // The run's own deadline holds the process, this timer does not: the loser of the race may feed it once more.
  const timer = setTimeout(() => broken.abort(silence), ms).unref();
  const watched = [
    addAbortListener(deadline.signal, () => broken.abort(deadline.signal.reason)),
    addAbortListener(stormy, () => broken.abort(storm)),
  ];
  const stop = () => {
    clearTimeout(timer);
    for (const listener of watched) listener[Symbol.dispose]();
  };
  return { brokenOff, feed: () => timer.refresh(), stop };
}

/** Counts while it reads, so that an endless body costs no more memory than the limit. */
async function readBody(
  response: import("undici").Dispatcher.ResponseData,
  ask: Ask,
  feed: () => void,
): Promise<Buffer> {
  const tooLarge = (found: string) =>
    unverified("too-large", `Cannot get ${ask.what}: ${found} ${ask.limit} bytes.`);
  const declared = Number.parseInt(headerOf(response.headers, "content-length"), 10);
  if (declared > ask.limit) throw tooLarge(`it has ${declared} bytes, more than`);
  // Room that is not written to costs nothing; one piece of it saves a second copy.
  const room = Buffer.allocUnsafe(Number.isNaN(declared) ? ask.limit : declared);
  let length = 0;
  for await (const chunk of response.body) {
    feed();
    if (length + chunk.length > ask.limit) throw tooLarge("it has more than");
    length += chunk.copy(room, length);
  }
  return room.subarray(0, length);
}

/**
 * The first bytes of an error's body. The status has said it all, so a body that breaks off or does not come loses
 * nothing else.
 */
async function readErrorBody(
  body: AsyncIterable<Buffer> & { destroy: () => unknown },
  ms: number,
): Promise<Buffer> {
  const timer = setTimeout(() => body.destroy(), ms).unref();
  const chunks: Buffer[] = [];
  try {
    for await (const chunk of body) {
      chunks.push(chunk);
      if (Buffer.concat(chunks).length > ERROR_BODY.bytes) break;
    }
  } catch {
    // Only the forge's own words are lost.
  }
  clearTimeout(timer);
  return Buffer.concat(chunks).subarray(0, ERROR_BODY.bytes);
}

/** `Retry-After` in milliseconds: seconds or a date (RFC 9110, 10.2.3); 0 when there is none that can be read. */
function retryAfter(headers: HeaderFields): number {
  const text = headerOf(headers, "retry-after").trim();
  if (/^\d+$/.test(text)) return Math.min(Number(text), 1e9) * 1000;
  const date = / GMT$/.test(text) ? Date.parse(text) : Number.NaN;
  return Number.isNaN(date) ? 0 : Math.max(0, date - Date.now());
}

/** Not HTTP, or more header than HTTP has. */
const PROTOCOL_CODE = /^(HPE_|HTTPParserError$|UND_ERR_HEADERS_OVERFLOW$)/;
/** What may pass: the system's own codes (ECONNREFUSED, EAI_AGAIN), and undici's for a lost connection or a proxy. */
const PASSING_CODE = /^(E(?!RR_)[A-Z_]+|UND_ERR_(SOCKET|ABORTED))$/;
/** The body ended before the length that was declared, or went on behind it. */
const LENGTH_CODE = "UND_ERR_RES_CONTENT_LENGTH_MISMATCH";

/**
 * Tells a broken connection from a broken answer by the error's code. Once headers have come it is the answer
 * that is broken: undici reports a reset like a missing end.
 */
function explainBreak(
  error: unknown,
  at: { what: string; answered: boolean; mask: (text: string) => string },
): Failure {
  const code = codeOf(error);
  if (error instanceof Failure) return error;
  const found = `Cannot get ${at.what}: ${code}, ${quote(at.mask(textOf(error)))}.`;
  // An end that comes too early is a parser's error where the connection was to close.
  if (at.answered || code === LENGTH_CODE || /Invalid EOF/.test(textOf(error))) {
    return unverified("bad-response", `Cannot get ${at.what}: the body broke off (${code}).`, 0);
  }
  if (PROTOCOL_CODE.test(code)) return unverified("bad-response", found);
  // A certificate or a handshake does not mend itself between two attempts.
  return unverified("unreachable", found, PASSING_CODE.test(code) ? 0 : null);
}

// ───────────────────────────── comparison ─────────────────────────────

/**
 * All that the verdict rests on. A {@link Failure} stands where something could not be had; null, where it was
 * not due.
 */
export interface Evidence {
  readonly context: Context;
  readonly token: Token["kind"];
  /** Whether a missing token counts: not where a local file stands in for the fetch, unless it is a replay. */
  readonly tokenCounts: boolean;
  readonly copy: Side | Failure | null;
  readonly canonical: Side | Failure | null;
  readonly pin: Pin | Failure | null;
  /** How the messages name the two sides. */
  readonly names: { readonly copy: string; readonly canonical: string };
}

/** Everything that holds, the verdict first: never empty, in the order of {@link STATUSES}. Pure. */
export function judge(evidence: Evidence): [Verdict, ...Verdict[]] {
  const { copy, canonical, pin } = evidence;
  const failures = [copy, canonical, pin].filter((part) => part instanceof Failure);
  const found = [
    ...failures.map((failure) => failure.verdict),
    ...judgeToken(evidence),
    ...judgeSides(evidence),
    ...judgePin(evidence),
  ];
  const order = Object.keys(STATUSES);
  const [first, ...others] = found.sort((a, b) => order.indexOf(a.status) - order.indexOf(b.status));
  return [first ?? nothingCompared(), ...others];
}

/** The last line of defence: evidence without any finding is not green. */
function nothingCompared(): Verdict {
  return { status: "unverified", reason: null, message: "Nothing was compared.", remedy: "" };
}

const PROVISION = "Provision AUTO_SYNC_TOKEN (read scope on molecule-controlplane)";
const RESYNC = "re-sync with --write (npx tsx sync-providers.ts --write), then go generate ./... and commit";

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
        message: `The secret AUTO_SYNC_TOKEN is missing in a trusted context (${event}), so nothing was compared with the canonical.`,
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

function judgeSides({ copy, canonical, pin, names }: Evidence): Verdict[] {
  if (!isSide(copy) || !isSide(canonical)) return [];
  const pinned = pin === null || pin instanceof Failure ? null : pin.sha256;
  if (copy.bytes.equals(canonical.bytes)) {
    const agrees = pinned === copy.sha256 ? ", and the pin names it" : "";
    return [
      { status: "in-sync", message: `The copy is the canonical file, byte for byte${agrees}.`, remedy: "" },
    ];
  }
  const line = firstDifferingLine(copy.bytes, canonical.bytes);
  const moved = whichMoved(pinned, copy.sha256, canonical.sha256);
  const sums = `sha256: copy ${short(copy)}, canonical ${short(canonical)}`;
  const differ = `The copy ${names.copy} differs from the canonical ${names.canonical}, first in line ${line} (${sums}).`;
  return [{ status: "drift", line, moved, ...tellMoved(moved, differ) }];
}

function isSide(side: Side | Failure | null): side is Side {
  return side !== null && !(side instanceof Failure);
}

function short(side: { sha256: string }): string {
  return side.sha256.slice(0, 12);
}

function whichMoved(pinned: string | null, copy: string, canonical: string): Moved | null {
  if (pinned === null) return null;
  if (pinned === copy) return "canonical";
  return pinned === canonical ? "copy" : "both";
}

/** What happened, which side moved, what to do next: one sentence each for every row of the diagnosis. */
function tellMoved(moved: Moved | null, differ: string): { message: string; remedy: string } {
  switch (moved) {
    case "canonical":
      return {
        message: `${differ} The canonical moved: the pin still names the copy.`,
        remedy: `Take the new canonical over, ${RESYNC}.`,
      };
    case "copy":
      return {
        message: `${differ} The copy was edited by hand: the pin still names the canonical.`,
        remedy: `Revert the edit; a change belongs into the canonical first, then ${RESYNC}.`,
      };
    case "both":
      return {
        message: `${differ} Both moved: the pin names neither.`,
        remedy: `Bring what was edited by hand into the canonical first, then ${RESYNC}.`,
      };
    case null:
      return {
        message: `${differ} Without a pin nobody can tell which side moved.`,
        remedy: `If the copy was edited by hand, revert that; if the canonical moved, ${RESYNC}.`,
      };
  }
}

function judgePin({ copy, canonical, pin, names }: Evidence): Verdict[] {
  if (!isSide(copy) || pin === null || pin instanceof Failure || pin.sha256 === copy.sha256) return [];
  const differ = `The pin ${quote(pin.path)} names the sha256 ${short(pin)}, the copy ${names.copy} has ${short(copy)}`;
  if (isSide(canonical) && canonical.sha256 === copy.sha256) {
    return [
      {
        status: "pin-mismatch",
        message: `${differ}, which is the canonical's: the copy was re-synced and the pin was not bumped.`,
        remedy: "Bump the pin with --write (npx tsx sync-providers.ts --write), and commit.",
      },
    ];
  }
  return [
    {
      status: "pin-mismatch",
      message: `${differ}: the copy was edited by hand, or re-synced without bumping the pin.`,
      remedy: `Revert the edit, or ${RESYNC}.`,
    },
  ];
}

/**
 * The number of the first line of the copy that is not the canonical's, from 1; one past the end if the copy
 * just stops.
 */
export function firstDifferingLine(copy: Buffer, canonical: Buffer): number {
  return 1 + countLines(copy.subarray(0, commonPrefix(copy, canonical)));
}

function commonPrefix(a: Buffer, b: Buffer): number {
  const end = Math.min(a.length, b.length);
  let length = 0;
  while (length < end && a[length] === b[length]) length += 1;
  return length;
}

function commonSuffix(a: Buffer, b: Buffer): number {
  const end = Math.min(a.length, b.length);
  let length = 0;
  while (length < end && a[a.length - 1 - length] === b[b.length - 1 - length]) length += 1;
  return length;
}

const NEWLINE = 0x0a;

function countLines(bytes: Buffer): number {
  let count = 0;
  for (let at = bytes.indexOf(NEWLINE); at !== -1; at = bytes.indexOf(NEWLINE, at + 1)) count += 1;
  return count;
}

// ──────────────────────── what differs, in words ────────────────────────

/** A unified diff, shortened: its lines are foreign text. Or a sentence where a diff would say nothing. */
export type Difference =
  | { readonly lines: string[]; readonly leftOut: number }
  | { readonly sentence: string };

/** What is printed of a diff. */
const DIFF_LIMIT = { lines: 200, bytes: 65_536, lineLength: 1000 };
/** What a diff is searched for in, and how far: the cost grows with the square of the edits. */
const SEARCH_LIMIT = { lines: 20_000, bytes: 2_097_152, edits: 1000 };
const CONTEXT_LINES = 3;
/** Lines around what differs in a large file: room for the library to shift a hunk, and its context. */
const WIDE_MARGIN = 100;

/** Says how to come from the canonical to the copy. Its work is bounded, however large or unlike the two are. */
export async function explainDifference(
  canonical: Buffer,
  copy: Buffer,
  print: { header: readonly string[]; mask: (text: string) => string },
): Promise<Difference> {
  const old = decodeText(canonical);
  const now = decodeText(copy);
  if (old === null || now === null) {
    const which =
      old !== null ? "The copy is not" : now !== null ? "The canonical is not" : "Neither side is";
    return { sentence: `${which} UTF-8 text, so there is no diff to show.` };
  }
  return describeFormat(old, now) ?? limitDiff(await diffLines(canonical, copy), print);
}

/** Null for what is not text: invalid UTF-8, or a NUL in it. */
function decodeText(bytes: Buffer): string | null {
  if (bytes.includes(0)) return null;
  try {
    return new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes);
  } catch {
    return null;
  }
}

/** A sentence when the two differ in nothing but line endings, byte-order mark or final newline; else null. */
function describeFormat(canonical: string, copy: string): Difference | null {
  const bare = (text: string) => text.replace(/^\ufeff/, "").replace(/(\r\n?|\n)$/, "");
  const plain = (text: string) => bare(text).replace(/\r\n?/g, "\n");
  if (plain(canonical) !== plain(copy)) return null;
  const counts = [canonical, copy].map((text) => text.match(/\r/g)?.length ?? 0);
  const endings = `line endings (carriage returns: ${counts[0]} in the canonical, ${counts[1]} in the copy; check .gitattributes)`;
  const parts = [
    bare(canonical) === bare(copy) ? "" : endings,
    nameChange("a byte-order mark", canonical.startsWith("\ufeff"), copy.startsWith("\ufeff")),
    nameChange("a final newline", canonical.endsWith("\n"), copy.endsWith("\n")),
  ];
  const named = parts.filter((part) => part !== "");
  // What is left then is the last line's own ending.
  return { sentence: `The two differ in nothing but ${named.length === 0 ? endings : named.join(" and ")}.` };
}

function nameChange(what: string, was: boolean, is: boolean): string {
  return was === is
    ? ""
    : `${what}, which the ${is ? "copy" : "canonical"} has and the ${is ? "canonical" : "copy"} has not`;
}

/** The hunks of a unified diff; `rest` counts the lines that were not even made. */
interface Hunks {
  readonly lines: string[];
  readonly rest: number;
}

/**
 * Files of a usual size are compared whole; of larger ones, what differs with a wide margin around it. Where the
 * search would be dear, all that differs goes and comes.
 */
async function diffLines(canonical: Buffer, copy: Buffer): Promise<Hunks> {
  const margin = isSmall(canonical) && isSmall(copy) ? Number.POSITIVE_INFINITY : WIDE_MARGIN;
  const wide = windowOf(canonical, copy, margin);
  if (isSmall(wide.old) && isSmall(wide.now)) {
    const { structuredPatch } = await import("diff");
    const options = { context: CONTEXT_LINES, maxEditLength: SEARCH_LIMIT.edits };
    const patch = structuredPatch("", "", wide.old.toString(), wide.now.toString(), "", "", options);
    if (patch !== undefined) {
      return { lines: patch.hunks.flatMap((hunk) => formatHunk(hunk, wide.firstLine - 1)), rest: 0 };
    }
  }
  return replaceAll(windowOf(canonical, copy, CONTEXT_LINES));
}

function isSmall(bytes: Buffer): boolean {
  return bytes.length <= SEARCH_LIMIT.bytes && countLines(bytes) <= SEARCH_LIMIT.lines;
}

function formatHunk(
  hunk: { oldStart: number; oldLines: number; newStart: number; newLines: number; lines: string[] },
  offset: number,
): string[] {
  const range = (start: number, count: number) => `${start + offset - (count === 0 ? 1 : 0)},${count}`;
  return [
    `@@ -${range(hunk.oldStart, hunk.oldLines)} +${range(hunk.newStart, hunk.newLines)} @@`,
    ...hunk.lines,
  ];
}

/** A true diff, if not the smallest: every line of the window goes, every line of the other comes. */
function replaceAll({ old, now, firstLine }: Window): Hunks {
  const head = (part: Buffer, sign: string) =>
    splitLines(part, DIFF_LIMIT.lines).map((line) => `${sign}${line}`);
  const [oldCount, newCount] = [linesIn(old), linesIn(now)];
  const range = (count: number) => `${firstLine - (count === 0 ? 1 : 0)},${count}`;
  const lines = [
    `@@ -${range(oldCount)} +${range(newCount)} @@`,
    ...head(old, "-"),
    ...(oldCount < DIFF_LIMIT.lines ? head(now, "+") : []),
  ];
  return { lines, rest: 1 + oldCount + newCount - lines.length };
}

/** Lines, a last one without its newline included. */
function linesIn(bytes: Buffer): number {
  return countLines(bytes) + (bytes.length > 0 && bytes.at(-1) !== NEWLINE ? 1 : 0);
}

/** The first lines, each cut to what is shown of it. */
function splitLines(bytes: Buffer, most: number): string[] {
  const lines: string[] = [];
  for (let start = 0; start < bytes.length && lines.length < most; ) {
    const newline = bytes.indexOf(NEWLINE, start);
    const end = newline === -1 ? bytes.length : newline;
    lines.push(bytes.subarray(start, Math.min(end, start + 64 * DIFF_LIMIT.lineLength)).toString());
    start = end + 1;
  }
  return lines;
}

/** The part of both sides that differs, in whole lines, with a margin. What is before and after is common. */
interface Window {
  readonly old: Buffer;
  readonly now: Buffer;
  /** The number of its first line, from 1. */
  readonly firstLine: number;
}

function windowOf(canonical: Buffer, copy: Buffer, margin: number): Window {
  const prefix = commonPrefix(canonical, copy);
  const suffix = commonSuffix(canonical.subarray(prefix), copy.subarray(prefix));
  let start = lineStart(canonical, prefix);
  let end = lineEnd(canonical, canonical.length - suffix);
  for (let line = 0; line < margin && (start > 0 || end < canonical.length); line += 1) {
    start = lineStart(canonical, start - 1);
    end = lineEnd(canonical, end);
  }
  const after = canonical.length - end;
  return {
    old: canonical.subarray(start, end),
    now: copy.subarray(start, copy.length - after),
    firstLine: 1 + countLines(canonical.subarray(0, start)),
  };
}

/** Where the line begins that holds the index. */
function lineStart(bytes: Buffer, index: number): number {
  return index <= 0 ? 0 : bytes.lastIndexOf(NEWLINE, index - 1) + 1;
}

/** Behind the newline of the line that holds the index. */
function lineEnd(bytes: Buffer, index: number): number {
  const newline = bytes.indexOf(NEWLINE, index);
  return newline === -1 ? bytes.length : newline + 1;
}

/** Makes the first lines fit to print, up to the limits, and counts the rest. */
function limitDiff(
  { lines, rest }: Hunks,
  print: { header: readonly string[]; mask: (text: string) => string },
): Difference {
  const shown = [...print.header];
  let bytes = Buffer.byteLength(shown.join());
  for (const line of lines) {
    const safe = inertLine(print.mask(line).slice(0, DIFF_LIMIT.lineLength + 1));
    const isLong = safe.length > DIFF_LIMIT.lineLength || line.length > DIFF_LIMIT.lineLength;
    const cut = isLong ? `${safe.slice(0, DIFF_LIMIT.lineLength)}…` : safe;
    bytes += Buffer.byteLength(cut) + 1;
    if (shown.length === DIFF_LIMIT.lines || bytes > DIFF_LIMIT.bytes) break;
    shown.push(cut);
  }
  return { lines: shown, leftOut: lines.length + print.header.length - shown.length + rest };
}

/** The names of a section's entries that differ, each list sorted. */
export interface SectionSummary {
  readonly missing: string[];
  readonly extra: string[];
  /** Keys of the entry that differ, by its name; none where an entry is not a mapping. */
  readonly changed: Record<string, string[]>;
}

/** What differs by name. `missing` and `extra` are the copy's. */
export interface Summary {
  readonly providers: SectionSummary;
  readonly runtimes: SectionSummary;
}

/** The summary, with the other keys of the file that differ; or why there is none. */
export type Summarised =
  | { readonly summary: Summary; readonly others: string[] }
  | { readonly leftOut: string };

/** Parsing costs a second or so for each of these. */
const SUMMARY_LIMIT = 262_144;
/** For each alias the library looks through the whole file. */
const MOST_ALIASES = 200;

type Entries = ReadonlyMap<string, unknown>;

/** Summarises two YAML files by name. Advisory: whatever is wrong with them only costs the summary. */
export async function summarise(canonical: Buffer, copy: Buffer): Promise<Summarised> {
  try {
    const [old, now] = [await parseFile(canonical, "canonical"), await parseFile(copy, "copy")];
    const providers = compareEntries(listed(old, "canonical"), listed(now, "copy"));
    const runtimes = compareEntries(mapped(old, "canonical"), mapped(now, "copy"));
    const { missing, extra, changed } = compareEntries(old, now);
    const others = [...missing, ...extra, ...Object.keys(changed)].filter(
      (key) => key !== "providers" && key !== "runtimes",
    );
    return { summary: { providers, runtimes }, others: others.sort() };
  } catch (error) {
    return { leftOut: quote(textOf(error)) };
  }
}

async function parseFile(bytes: Buffer, name: string): Promise<Entries> {
  if (bytes.length > SUMMARY_LIMIT) throw new Error(`the ${name} has more than ${SUMMARY_LIMIT} bytes`);
  // A directive could ask for YAML 1.1, whose numbers in sixties are read in quadratic time.
  if (/^%/m.test(bytes.toString("latin1"))) throw new Error(`the ${name} has a YAML directive`);
  const { isScalar, parseDocument, visit } = await import("yaml");
  const options = { intAsBigInt: true, uniqueKeys: false, prettyErrors: false, logLevel: "error" } as const;
  const document = parseDocument(bytes.toString(), options);
  for (const error of document.errors) throw new Error(`the ${name} is not YAML: ${error.message}`);
  let aliases = 0;
  visit(document, {
    Alias() {
      aliases += 1;
      if (aliases > MOST_ALIASES) throw new Error(`the ${name} has more than ${MOST_ALIASES} aliases`);
    },
    Value(_, { tag }) {
      if (tag !== undefined) throw new Error(`the ${name} has a tag`);
    },
    Map(_, map) {
      if (map.tag !== undefined) throw new Error(`the ${name} has a tag`);
      // The library's own check compares every key with every other: a minute for 256 KiB of them.
      const seen = new Set<unknown>();
      for (const { key } of map.items) {
        if (!isScalar(key)) throw new Error(`the ${name} has a key that is not a plain value`);
        if (seen.has(key.value))
          throw new Error(`the ${name} has the key "${key.value}" twice in one mapping`);
        seen.add(key.value);
      }
    },
  });
  const value: unknown = document.toJS({ mapAsMap: true, maxAliasCount: 100 });
  if (value instanceof Map) return stringKeyed(value);
  throw new Error(`the ${name} is not a mapping`);
}

/** By the keys as text; 1 and "1" in one mapping could not be told apart. */
function stringKeyed(map: ReadonlyMap<unknown, unknown>): Entries {
  const entries = new Map([...map].map(([key, value]) => [String(key), value] as const));
  if (entries.size < map.size) throw new Error("two keys of one mapping read the same");
  return entries;
}

/** The entries of the list `providers`, by their names. */
function listed(file: Entries, name: string): Entries {
  const list = file.get("providers") ?? [];
  if (!Array.isArray(list)) throw new Error(`providers of the ${name} is not a list`);
  const entries = new Map<string, unknown>();
  for (const entry of list) {
    const key: unknown = entry instanceof Map ? entry.get("name") : undefined;
    if (typeof key !== "string" || key === "") throw new Error(`a provider of the ${name} has no name`);
    if (entries.has(key)) throw new Error(`the ${name} has two providers of one name`);
    entries.set(key, entry);
  }
  return entries;
}

/** The entries of the mapping `runtimes`. */
function mapped(file: Entries, name: string): Entries {
  const map = file.get("runtimes") ?? new Map();
  if (map instanceof Map) return stringKeyed(map);
  throw new Error(`runtimes of the ${name} is not a mapping`);
}

function compareEntries(canonical: Entries, copy: Entries): SectionSummary {
  const both = [...canonical.keys()].filter((name) => copy.has(name)).sort();
  const changed = both
    .filter((name) => !isDeepStrictEqual(canonical.get(name), copy.get(name)))
    .map((name) => [name, differingKeys(canonical.get(name), copy.get(name))] as const);
  return {
    missing: [...canonical.keys()].filter((name) => !copy.has(name)).sort(),
    extra: [...copy.keys()].filter((name) => !canonical.has(name)).sort(),
    changed: Object.fromEntries(changed),
  };
}

function differingKeys(canonical: unknown, copy: unknown): string[] {
  if (!(canonical instanceof Map && copy instanceof Map)) return [];
  const keys = new Set([...canonical.keys(), ...copy.keys()]);
  return [...keys]
    .filter((key) => !isDeepStrictEqual(canonical.get(key), copy.get(key)))
    .map(String)
    .sort();
}

// ─────────────────────────────── re-sync ───────────────────────────────

/**
 * Replaces a file at once or not at all: a temporary file beside it, flushed, then renamed over it. A symbolic
 * link in its place would be replaced, never followed. Throws what the system says.
 */
function replaceFile(path: string, bytes: Buffer): void {
  const folder = dirname(path);
  mkdirSync(folder, { recursive: true });
  const temporary = join(folder, `.${basename(path)}.${randomUUID()}.tmp`);
  const mode = lstatSync(path, { throwIfNoEntry: false })?.mode;
  try {
    const file = openSync(temporary, "wx");
    try {
      if (mode !== undefined) fchmodSync(file, mode & 0o7777);
      writeFileSync(file, bytes);
      fsyncSync(file);
    } finally {
      closeSync(file);
    }
    renameSync(temporary, path);
  } catch (error) {
    rmSync(temporary, { force: true });
    throw error;
  }
}

/**
 * Writes the canonical bytes over the copy, then its sum into the pin: in this order, so that an interruption
 * leaves a pin that the gate reports. Touches nothing that is as it should be, and nothing at all unless all the
 * evidence is there. Returns the paths that were written, or null where evidence is missing.
 */
function resync(settings: Settings, { copy, canonical, pin }: Evidence): string[] | null {
  if (!isSide(canonical) || copy instanceof Failure || pin instanceof Failure) return null;
  const written: string[] = [];
  const write = (reason: "copy-unreadable" | "pin-unreadable", path: string, bytes: Buffer) => {
    try {
      replaceFile(path, bytes);
    } catch (error) {
      const before = written.length === 0 ? "Nothing was changed" : `${written.join()} was written before`;
      throw unverified(reason, `Cannot write ${quote(path)}: ${errnoText(error)}. ${before}.`);
    }
    written.push(quote(path));
  };
  if (copy === null || !copy.bytes.equals(canonical.bytes))
    write("copy-unreadable", settings.copyPath, canonical.bytes);
  if (pin !== null && pin.sha256 !== canonical.sha256)
    write("pin-unreadable", pin.path, bump(pin, canonical.sha256));
  return written;
}

function tellWritten(written: readonly string[]): Verdict {
  if (written.length === 0) {
    const message = "The copy is the canonical file, byte for byte, so nothing was written.";
    return { status: "in-sync", message, remedy: "" };
  }
  return {
    status: "in-sync",
    message: `The copy is the canonical file again: wrote ${written.join(" and ")}.`,
    remedy: "Next: regenerate what is built from the copy (go generate ./...), then commit it all together.",
  };
}

function bump(pin: Pin, sha256: string): Buffer {
  const end = pin.offset + sha256.length;
  return Buffer.concat([pin.bytes.subarray(0, pin.offset), Buffer.from(sha256), pin.bytes.subarray(end)]);
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
  /** The runner's files for outputs and step summary; empty when it has none. */
  readonly files: { readonly output: string; readonly summary: string };
  settings: Settings | null;
  context: Context | null;
  copy: Side | null;
  canonical: Side | Canonical | null;
  /** How the messages name the canonical. */
  canonicalName: string;
  pin: Pin | null;
  difference: Difference | null;
  summarised: Summarised | null;
}

function logTo(run: Run): Log {
  return (line) => run.write(run.mask(line), run.json ? "stderr" : "stdout");
}

function label(name: string, text: string): string {
  return `${name.padEnd(10)} ${text}`;
}

function describeContext(context: Context): string {
  const event = context.event === "" ? "none" : quote(context.event);
  const trust = context.trusted ? "trusted" : "untrusted";
  return label(
    "context",
    `event ${event}: branch ${context.branch} of the case table, ${trust}: ${context.why}`,
  );
}

function describeSide(name: string, path: string, side: Side): string {
  return label(name, `${path}: ${plural(side.bytes.length, "byte")}, sha256 ${short(side)}`);
}

/** `"path" of "owner/name" at "ref" (commit 0123456789)`, or the local file's path. */
function nameCanonical(settings: Settings, side: Side | Canonical | Failure | null): string {
  if (settings.canonicalFile !== null) return quote(settings.canonicalFile);
  const found = side !== null && "commit" in side ? side : null;
  const commit = found === null ? "" : ` (commit ${found.commit.slice(0, 10)})`;
  return `${quote(settings.path)} of ${quote(found?.repo ?? settings.repo)} at ${quote(settings.ref)}${commit}`;
}

/** What the gate decides for an event, with and without a token, in words: no commands, no verdict. */
function explain(context: Context, tokenCounts: boolean): string[] {
  const compares = "compares: in-sync 0, drift 1, or unverified 3 when nothing can be compared";
  const pin = "a pin that does not agree is red all the same";
  const misses = context.trusted
    ? "token-missing, exit code 1: an error, nothing is fetched"
    : `skipped, exit code 0: a warning, nothing is fetched; ${pin}`;
  return [
    describeContext(context),
    label("with", `AUTO_SYNC_TOKEN: ${compares}`),
    label("without", `AUTO_SYNC_TOKEN: ${tokenCounts ? misses : `${compares}, as a local file stands in`}`),
  ];
}

/** Prints what was found, the verdict first, to people, to the runner's files and to whoever reads the JSON. */
function report(run: Run, [verdict, ...others]: [Verdict, ...Verdict[]]): number {
  const log = logTo(run);
  const { exitCode } = STATUSES[verdict.status];
  log(annotate(run, verdict));
  for (const other of others) log(label("also", inert(`${other.status}: ${run.mask(other.message)}`)));
  for (const line of describeSummary(run)) log(line);
  printDifference(run.difference, log);
  if (run.difference !== null) {
    log(
      label(
        "end",
        `${verdict.status}, exit code ${exitCode}: what happened and what to do stands above, in the line with ${verdict.status}:`,
      ),
    );
  }
  append(run, "GITHUB_OUTPUT", run.files.output, outputsOf(run, verdict));
  append(run, "GITHUB_STEP_SUMMARY", run.files.summary, stepSummary(run, verdict));
  if (run.json) run.write(toJson(documentOf(run, verdict), run.mask), "stdout");
  return exitCode;
}

/** `status (reason): what happened, which side moved, what to do next`, on one inert line. */
function tell(run: Run, verdict: Verdict): string {
  const reason = verdict.status === "unverified" && verdict.reason !== null ? ` (${verdict.reason})` : "";
  return inert(run.mask(`${verdict.status}${reason}: ${verdict.message} ${verdict.remedy}`.trimEnd()));
}

/** The verdict's line: an annotation, unless all is well. */
function annotate(run: Run, verdict: Verdict): string {
  const { level } = STATUSES[verdict.status];
  if (level === "none") return label("verdict", tell(run, verdict));
  const path = escapeProperty(inert(run.settings?.copyPath ?? ""));
  const place = verdict.status === "drift" ? ` file=${path},line=${verdict.line}` : "";
  return `::${level}${place}::${escapeData(tell(run, verdict))}`;
}

/** How much of a summary's line is printed, and how many names in each of its lists. */
const SUMMARY_LINE = { length: 4000, names: 20 };

function describeSummary({ summarised, difference }: Run): string[] {
  if (summarised === null) return [];
  if ("leftOut" in summarised) return [label("summary", `left out: ${summarised.leftOut}`)];
  const { summary, others } = summarised;
  const sections = [
    describeSection("providers", summary.providers),
    describeSection("runtimes", summary.runtimes),
    others.length === 0 ? "" : `other keys of the file that differ: ${nameList(others)}`,
  ].filter((line) => line !== "");
  if (sections.length > 0)
    return sections.map((line) => label("summary", line.slice(0, SUMMARY_LINE.length)));
  const isSaid = difference !== null && "sentence" in difference;
  return isSaid ? [] : [label("summary", "the same data, in another order or with other comments or quotes")];
}

function describeSection(name: string, { missing, extra, changed }: SectionSummary): string {
  const changes = Object.entries(changed).map(([entry, keys]) => ({ entry, keys }));
  const parts = [
    missing.length === 0 ? "" : `missing in the copy: ${nameList(missing)}`,
    extra.length === 0 ? "" : `extra in the copy: ${nameList(extra)}`,
    changes.length === 0
      ? ""
      : `changed: ${nameList(
          changes.map(({ entry }) => entry),
          (index) => keysOf(changes[index]?.keys),
        )}`,
  ].filter((part) => part !== "");
  return parts.length === 0 ? "" : `${name}: ${parts.join("; ")}`;
}

function keysOf(keys: readonly string[] = []): string {
  return keys.length === 0 ? "" : ` (${nameList(keys)})`;
}

function nameList(names: readonly string[], suffix: (index: number) => string = () => ""): string {
  const shown = names.slice(0, SUMMARY_LINE.names).map((name, index) => `${quote(name)}${suffix(index)}`);
  const rest = names.length - shown.length;
  return shown.join(", ") + (rest === 0 ? "" : ` and ${rest} more`);
}

/** The diff is foreign text in many lines: no command in it is obeyed until the random word returns. */
function printDifference(difference: Difference | null, log: Log): void {
  if (difference === null) return;
  if ("sentence" in difference) {
    log(label("difference", difference.sentence));
    return;
  }
  const word = randomUUID();
  log(`::stop-commands::${word}`);
  for (const line of difference.lines) log(line);
  log(`::${word}::`);
  if (difference.leftOut > 0) log(label("difference", `${plural(difference.leftOut, "more line")} left out`));
}

/** Appends to a file of the runner's. That it cannot be written costs a line of the log, not the verdict. */
function append(run: Run, name: string, path: string, text: string): void {
  if (path === "") return;
  // Synchronous: the thread pool may still be held by name look-ups. Without waiting for a pipe's reader.
  const flags = constants.O_WRONLY | constants.O_APPEND | constants.O_CREAT | constants.O_NONBLOCK;
  try {
    const file = openSync(path, flags);
    try {
      writeFileSync(file, run.mask(text));
    } finally {
      closeSync(file);
    }
  } catch (error) {
    logTo(run)(
      label("note", `Cannot write ${name} ${quote(path)}: ${errnoText(error)}. The verdict stands.`),
    );
  }
}

/** The step's outputs, each between random delimiters, so that no value can end its own. */
function outputsOf(run: Run, verdict: Verdict): string {
  const word = `end-${randomUUID()}`;
  const outputs = {
    status: verdict.status,
    reason: reasonOf(verdict),
    "exit-code": STATUSES[verdict.status].exitCode,
    branch: run.context?.branch ?? null,
    trusted: run.context?.trusted ?? null,
    event: run.context === null ? "" : brief(run.context.event),
    "copy-sha256": run.copy?.sha256,
    "canonical-sha256": run.canonical?.sha256,
    "canonical-commit": commitOf(run),
  };
  return Object.entries(outputs)
    .map(([name, value]) => `${name}<<${word}\n${value ?? ""}\n${word}\n`)
    .join("");
}

function reasonOf(verdict: Verdict): Reason | null {
  return verdict.status === "unverified" ? verdict.reason : null;
}

function commitOf({ canonical }: Run): string | null {
  return canonical !== null && "commit" in canonical ? canonical.commit : null;
}

/** The verdict, the sides, what differs by name, and the diff, as Markdown that foreign text cannot leave. */
function stepSummary(run: Run, verdict: Verdict): string {
  const rows = [
    ["copy", String(run.settings?.copyPath), run.copy],
    ["canonical", run.canonicalName, run.canonical],
    ["pin", String(run.pin?.path), run.pin],
  ] as const;
  const table = rows.flatMap(([name, place, side]) =>
    side === null
      ? []
      : [`| ${name} | ${escapeMarkdown(brief(place))} | ${side.bytes.length} | \`${side.sha256}\` |`],
  );
  const difference = run.difference !== null && "lines" in run.difference ? run.difference : null;
  const words = run.difference !== null && "sentence" in run.difference ? [run.difference.sentence] : [];
  const rest =
    difference !== null && difference.leftOut > 0
      ? [`${plural(difference.leftOut, "more line")} left out`]
      : [];
  const shown = [...describeSummary(run), ...(difference?.lines ?? []), ...words, ...rest];
  return [
    `**${verdict.status}**: ${escapeMarkdown(tell(run, verdict).slice(verdict.status.length).replace(/^: /, ""))}`,
    ...(table.length === 0
      ? []
      : ["", "| side | where | bytes | sha256 |", "| --- | --- | --- | --- |", ...table]),
    ...(shown.length === 0 ? [] : ["", ...fence(shown)]),
    "",
    "",
  ].join("\n");
}

/** Every mark that Markdown or HTML could read within a line becomes a character reference, and looks the same. */
function escapeMarkdown(text: string): string {
  return text.replace(/[&<>\\`*_[\]()#!|~@:.]/g, (mark) => `&#${mark.charCodeAt(0)};`);
}

/** A code block whose fence is longer than any run of backticks in it. */
function fence(lines: readonly string[]): string[] {
  const longest = Math.max(2, ...lines.flatMap((line) => line.match(/`+/g) ?? []).map((run) => run.length));
  const ticks = "`".repeat(longest + 1);
  return [`${ticks}diff`, ...lines, ticks];
}

/** The JSON document, schema 1. What is not known is null. */
function documentOf(run: Run, verdict: Verdict): Record<string, unknown> {
  const { settings, context, copy, pin } = run;
  const drift = verdict.status === "drift" ? verdict : null;
  const pinPath = settings?.pinPath ?? null;
  return {
    schema: 1,
    status: verdict.status,
    reason: reasonOf(verdict),
    exitCode: STATUSES[verdict.status].exitCode,
    event: context?.event || null,
    branch: context?.branch ?? null,
    trusted: context?.trusted ?? null,
    message: inert(run.mask(verdict.message)),
    remedy: verdict.remedy,
    copy: {
      path: settings?.copyPath ?? null,
      bytes: copy?.bytes.length ?? null,
      sha256: copy?.sha256 ?? null,
    },
    canonical: canonicalOf(run),
    pin: pinPath === null ? null : { path: pinPath, sha256: pin?.sha256 ?? null },
    moved: drift?.moved ?? null,
    firstDifferingLine: drift?.line ?? null,
    summary: run.summarised !== null && "summary" in run.summarised ? run.summarised.summary : null,
    attempts: run.tally.attempts,
    elapsedMs: Math.round(performance.now() - run.startedAt),
  };
}

/** The canonical of the document: a local file has a path and no server, repository, ref or commit. */
function canonicalOf(run: Run): Record<string, unknown> {
  const { settings, canonical } = run;
  const sums = { bytes: canonical?.bytes.length ?? null, sha256: canonical?.sha256 ?? null };
  const file = settings?.canonicalFile ?? null;
  if (settings === null || file !== null) {
    return { server: null, repo: null, ref: null, commit: null, path: file, ...sums };
  }
  const { server, ref, path } = settings;
  const repo = canonical !== null && "repo" in canonical ? canonical.repo : settings.repo;
  return { server, repo, ref, commit: commitOf(run), path, ...sums };
}

/** JSON that is inert on a runner: its escapes mean the same characters, and no line of it holds a command. */
export function toJson(document: unknown, mask: (text: string) => string): string {
  const text = JSON.stringify(
    document,
    (_, value: unknown) => (typeof value === "string" ? mask(value) : value),
    2,
  );
  return mask(text).replace(/:{2,}|##(?=\[)|[\u007f-\u009f\p{Cf}\p{Zl}\p{Zp}]/gu, escapeUnits);
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
  const run = startRun(argv, env, write);
  try {
    const flags = parseFlags(argv);
    if (flags.help || flags.version) return print(run, flags.help ? HELP.split("\n") : [VERSION]);
    const settings = readSettings(flags, env);
    run.settings = settings;
    if (flags.explain) return print(run, await explainEvent(settings));
    return report(run, await conclude(run, settings, env));
  } catch (error) {
    if (error instanceof Failure) return report(run, [error.verdict]);
    return report(run, [unexpected(run, error, env)]);
  }
}

function startRun(argv: readonly string[], env: Env, write: Writer): Run {
  return {
    json: argv.includes("--json"),
    startedAt: performance.now(),
    write,
    mask: masker((env.AUTO_SYNC_TOKEN ?? "").trim()),
    tally: { attempts: 0 },
    files: { output: setting(env, "GITHUB_OUTPUT", ""), summary: setting(env, "GITHUB_STEP_SUMMARY", "") },
    settings: null,
    context: null,
    copy: null,
    canonical: null,
    canonicalName: "",
    pin: null,
    difference: null,
    summarised: null,
  };
}

function print(run: Run, lines: readonly string[]): number {
  for (const line of lines) run.write(run.mask(line), "stdout");
  return 0;
}

async function explainEvent(settings: Settings): Promise<string[]> {
  const event = await readEvent(settings);
  return explain(classify(event.name, event.payload), isTokenDue(settings));
}

/** An exception that nobody foresaw: red, with its message; its stack only on demand. */
function unexpected(run: Run, error: unknown, env: Env): Verdict {
  const log = logTo(run);
  const stack = error instanceof Error ? String(error.stack) : "";
  if (env.SYNC_DEBUG === "1")
    for (const line of stack.split("\n")) log(`debug      ${inert(run.mask(line))}`);
  const remedy = codeOf(error).endsWith("MODULE_NOT_FOUND")
    ? "Install what the gate needs first: npm ci --omit=dev."
    : "This is a fault of the gate: rerun with SYNC_DEBUG=1 and report what it prints.";
  return {
    status: "unverified",
    reason: null,
    message: `Cannot finish: ${quote(run.mask(textOf(error)))}.`,
    remedy,
  };
}

/** From the settings to the verdict: gather, write if that is asked for, judge, say what differs. */
async function conclude(run: Run, settings: Settings, env: Env): Promise<[Verdict, ...Verdict[]]> {
  const evidence = await gather(run, settings, env);
  if (settings.write) return concludeWrite(run, settings, evidence);
  const found = judge(evidence);
  if (found[0].status === "drift" && run.copy !== null && run.canonical !== null) {
    run.summarised = await summarise(run.canonical.bytes, run.copy.bytes);
    const header = [`--- canonical ${evidence.names.canonical}`, `+++ copy ${evidence.names.copy}`];
    run.difference = await explainDifference(run.canonical.bytes, run.copy.bytes, { header, mask: run.mask });
  }
  return found;
}

/** What came of a re-sync. Where evidence is missing, that is the verdict: the sides are not compared then. */
function concludeWrite(run: Run, settings: Settings, evidence: Evidence): [Verdict, ...Verdict[]] {
  const written = resync(settings, evidence);
  if (written === null)
    return judge({ ...evidence, copy: failureOf(evidence.copy), canonical: failureOf(evidence.canonical) });
  run.copy = run.canonical;
  if (run.pin !== null && run.copy !== null) run.pin = { ...run.pin, sha256: run.copy.sha256 };
  return [tellWritten(written)];
}

function failureOf(side: Side | Failure | null): Failure | null {
  return side instanceof Failure ? side : null;
}

/** Gathers the evidence, step by step, each with its line in the log. */
async function gather(run: Run, settings: Settings, env: Env): Promise<Evidence> {
  const log = logTo(run);
  const deadline = startDeadline(run, settings);
  try {
    const event = await readEvent(settings);
    run.context = classify(event.name, event.payload);
    log(describeContext(run.context));
    const getCanonical = prepareCanonical(run, settings, { env, deadline });
    const sides = await gatherLocal(run, settings, getCanonical !== null);
    const isDue = getCanonical !== null && !(sides.copy instanceof Failure);
    const canonical = isDue ? await settle(getCanonical()) : null;
    const names = { copy: quote(settings.copyPath), canonical: nameCanonical(settings, canonical) };
    if (isSide(canonical)) {
      run.canonical = canonical;
      run.canonicalName = names.canonical;
      log(describeSide("canonical", names.canonical, canonical));
    }
    const token = { token: settings.token.kind, tokenCounts: isTokenDue(settings) };
    return { context: run.context, ...token, ...sides, canonical, names };
  } finally {
    deadline.stop();
  }
}

/** The copy and the pin. Without a pin the copy is read only where it will be compared. */
async function gatherLocal(
  run: Run,
  settings: Settings,
  compares: boolean,
): Promise<{ copy: Side | Failure | null; pin: Pin | Failure | null }> {
  const log = logTo(run);
  const { pinPath, copyPath, maxBytes } = settings;
  const copy = compares || pinPath !== null ? await settle(readOldCopy(settings)) : null;
  const pin = pinPath === null ? null : await settle(readPin(pinPath, maxBytes));
  if (isSide(copy)) {
    run.copy = copy;
    log(describeSide("copy", quote(copyPath), copy));
  }
  if (pin !== null && !(pin instanceof Failure)) {
    run.pin = pin;
    log(label("pin", `${quote(pin.path)}: sha256 ${short(pin)}`));
  }
  return { copy, pin };
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

/** Whether a missing token counts: a local file needs none, but a replay rehearses what a runner would do. */
function isTokenDue({ canonicalFile, replay }: Settings): boolean {
  return canonicalFile === null || replay !== null;
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
  const { canonicalFile, token } = settings;
  if (canonicalFile !== null && !isTokenDue(settings))
    return () => readLocalCanonical(canonicalFile, settings);
  if (token.kind !== "present") return null;
  if (canonicalFile !== null) return () => readLocalCanonical(canonicalFile, settings);
  const fetching = prepareFetch(run, settings, { ...world, token: token.value });
  return async () => {
    logTo(run)(
      label(
        "token",
        `present, sent to ${fetching.settings.server} and nowhere else${describeProxy(fetching)}`,
      ),
    );
    return fetchCanonical(fetching);
  };
}

/** Through a tunnel a proxy sees what is sent only where there is no TLS. */
function describeProxy({ proxy, settings }: Fetching): string {
  if (proxy.url === "") return "";
  return settings.server.startsWith("https:")
    ? " (HTTPS_PROXY, where it is used, sees no header)"
    : " (HTTP_PROXY, where it is used, may read it: http: is in clear)";
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
    proxy: readProxy(world.env, server),
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
 * that is no file (its name without the extension, its folder) was named in a way unknown here: then the gate
 * runs, for a gate that does not run is green.
 */
function isMain(script: string | undefined): boolean {
  if (script === undefined) return false;
  if (statSync(script, { throwIfNoEntry: false })?.isFile() !== true) return true;
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
  // What a library throws outside of every promise: red, whatever the verdict, and without its stack.
  let crashed = false;
  process.on("uncaughtException", (error) => {
    crashed = true;
    const found = quote(masker((process.env.AUTO_SYNC_TOKEN ?? "").trim())(textOf(error)));
    write(
      `::error::unverified: Cannot finish: ${escapeData(found)}. This is a fault of the gate: report it.`,
      "stderr",
    );
  });
  // No top-level await: in a package that is not "type": "module", tsx runs this file as CommonJS.
  main(process.argv.slice(2), process.env, write).then((exitCode) => {
    process.exitCode = crashed ? STATUSES.unverified.exitCode : exitCode;
  });
}
