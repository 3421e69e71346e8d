/**
 * sync-providers: turns a workflow red when a repository's copy of providers.yaml is no longer, byte for
 * byte, the canonical file of another, private repository on the same forge (Gitea, Forgejo).
 *
 *   npx tsx sync-providers.ts [--help]
 *
 * Exit codes: 0 the copy is in sync, or a fork's pull request came without the secret (a warning); 1 drift, a
 * wrong pin, or no token; 2 a flag or a setting is wrong; 3 nothing could be compared.
 *
 * Bottom-up: text, settings, files, case table, wire, verdict, difference, re-sync, report, alarm, main.
 */

import { isUtf8 } from "node:buffer";
import { createHash, randomUUID } from "node:crypto";
import { setMaxListeners } from "node:events";
import * as fs from "node:fs";
import { lstat, open } from "node:fs/promises";
import { Socket } from "node:net";
import { basename, dirname, join, relative } from "node:path";
// Deno's global timers have neither refresh() nor unref().
import { clearTimeout, setTimeout } from "node:timers";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { isDeepStrictEqual, parseArgs } from "node:util";
import { setFlagsFromString } from "node:v8";
import type { Dispatcher } from "undici";

// ───────────────────────────── statuses ─────────────────────────────

/** The version of the gate, as `--version` and the `User-Agent` say it; equal to the one in package.json. */
export const VERSION = "1.1.0";

/**
 * Every status the gate can end with: its exit code, the level of its annotation, what becomes of the alarm,
 * and what it says in a sentence. The order is the order of precedence: when several hold, the first is the
 * verdict.
 */
export const STATUSES = {
  usage: { exitCode: 2, level: "error", alarm: "leave", means: "a flag or a setting is wrong" },
  drift: { exitCode: 1, level: "error", alarm: "raise", means: "the bytes of copy and canonical differ" },
  "token-missing": { exitCode: 1, level: "error", alarm: "raise", means: "no token in a trusted context" },
  "pin-mismatch": { exitCode: 1, level: "error", alarm: "raise", means: "the copy is not what the pin says" },
  unverified: { exitCode: 3, level: "error", alarm: "by reason", means: "nothing could be compared" },
  skipped: { exitCode: 0, level: "warning", alarm: "leave", means: "a fork's pull request without a token" },
  "in-sync": { exitCode: 0, level: "none", alarm: "close", means: "copy and canonical are the same bytes" },
} as const;

/** The reasons of `unverified` that last until somebody acts, with what the reader of the log can do. */
const LASTING = {
  "copy-unreadable":
    "Check SYNC_COPY_PATH, and that the checkout ran. For a first copy run the gate with --write.",
  "pin-unreadable": "Check SYNC_PIN_PATH: the file must hold exactly one sha256, a word of 64 hex digits.",
  "token-malformed": "Set AUTO_SYNC_TOKEN again: the token alone, without quotes or line breaks.",
  "token-rejected":
    "Make a new token, as this one was revoked or has expired, and set the secret AUTO_SYNC_TOKEN.",
  "token-scope": "Give AUTO_SYNC_TOKEN the scope read:repository, for a user who may read the repository.",
  "repo-not-visible":
    "Check SYNC_CANONICAL_REPO and the user's access. The forge also hides it from a token for public " +
    "repositories alone (its access must be All), and from a user without the enforced second factor.",
  "ref-not-found": "Check SYNC_CANONICAL_REF: a branch, a tag or a commit of the canonical repository.",
  "file-not-found": "Check SYNC_CANONICAL_PATH (or --canonical): was the file moved, or is it a directory?",
  redirected: "Set SYNC_CANONICAL_SERVER and SYNC_CANONICAL_REPO to where the repository is now.",
  "too-large": "Check that it is the right file, or raise SYNC_MAX_BYTES.",
} as const;

/** The reasons of `unverified` that may pass by themselves: the alarm is left as it is. */
const PASSING = {
  unreachable:
    "Check name, port, proxy and certificate (NODE_EXTRA_CA_CERTS) of SYNC_CANONICAL_SERVER, then rerun.",
  timeout: "Rerun; if it lasts, look at the forge and the network, or raise SYNC_TIMEOUT_SECONDS.",
  "server-error": "Rerun later, as the forge is unwell or busy, and look at its log if it lasts.",
  "bad-response":
    "Check SYNC_CANONICAL_SERVER and whatever stands between the runner and the forge, then rerun.",
} as const;

/** Every reason of `unverified`, with what the reader of the log can do about it. */
export const REMEDIES = { ...LASTING, ...PASSING } as const;

/** Why nothing could be compared: a key of {@link REMEDIES}. */
export type Reason = keyof typeof REMEDIES;

/** Which side of a drift is no longer what the pin names. */
export type Moved = "canonical" | "copy" | "both";

/** What the gate concludes. `message` is what was found, `remedy` is what to do next (may be empty). */
export interface Verdict {
  readonly status: keyof typeof STATUSES;
  readonly message: string;
  readonly remedy: string;
  /** Of `unverified`; absent after an exception that nobody expected. */
  readonly reason?: Reason;
  /** Of `drift`: the first line of the copy that differs. */
  readonly line?: number;
  /** Of `drift`: null when no pin can tell. */
  readonly moved?: Moved | null;
}

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
function settle<T>(work: Promise<T>): Promise<T | Failure> {
  return work.catch((error: unknown) => (error instanceof Failure ? error : Promise.reject(error)));
}

// ───────────────────────── text and foreign data ─────────────────────────

export type Redact = (text: string) => string;

/** Longest piece of foreign text that goes into a line, in characters: enough for a path or an error. */
const QUOTE_LIMIT = 300;
/** Shorter secrets are not redacted: they would blot out ordinary words. No forge issues either length. */
const SECRET_LENGTH = { min: 8, max: 4096 };

/**
 * Returns a function that takes secrets out of any text: as they are (in any case), in base64 and
 * percent-encoded. It belongs where foreign text comes in: after a cut or an escape, a part of a secret would
 * be left.
 */
export function createRedactor(secrets: readonly string[]): Redact {
  const formsOf = (bytes: Buffer) => {
    const text = bytes.toString();
    return [text, bytes.toString("base64"), bytes.toString("base64url"), encodeURIComponent(text)];
  };
  const isRedacted = ({ length }: string) => length >= SECRET_LENGTH.min && length <= SECRET_LENGTH.max;
  const forms = secrets.filter(isRedacted).flatMap((secret) => formsOf(Buffer.from(secret)));
  if (forms.length === 0) return (text) => text;
  // The longest first: one may begin as another does.
  const patterns = forms.map((form) => form.replace(/[^\w]/g, "\\$&")).sort((a, b) => b.length - a.length);
  const pattern = new RegExp(patterns.join("|"), "gi");
  return (text) => text.replace(pattern, "***");
}

/**
 * Makes text harmless for a log that runners read commands from: control, format and line-breaking characters
 * become visible escapes, and neither `::` nor `##[` is left (act splits a command at the last `::`, GitHub
 * at the first, and obeys `##[` anywhere). Nothing is deleted, so no two harmless parts can join to something
 * harmful.
 */
export function escapeForLog(text: string): string {
  const spelled = text.replace(/\[([\da-f:]{0,39})::([\da-f:]{0,39})\]/gi, spellOutAddress);
  return escapeLogLine(spelled).replace(/:(?=:)/g, ": ");
}

/** The same for a line of its own, which keeps the `::` that no runner takes for the start of a command. */
export function escapeLogLine(text: string): string {
  return text
    .replace(/[\p{Cc}\p{Cf}\p{Cs}\p{Zl}\p{Zp}]/gu, escapeCharacter)
    .replace(/##(?=\[)/g, "# #")
    .replace(/^(\s*):(?=:)/, "$1: ");
}

const ESCAPES: Readonly<Record<string, string>> = { "\t": "\\t", "\n": "\\n", "\r": "\\r" };
function escapeCharacter(character: string): string {
  return ESCAPES[character] ?? `\\u{${Number(character.codePointAt(0)).toString(16)}}`;
}

/** An IPv6 address with the zeros that its `::` stands for: the same address, and it needs no escapes. */
function spellOutAddress(_: string, start: string, end: string): string {
  const groupsOf = (part: string) => part.split(":").filter((group) => group !== "");
  const [before, after] = [groupsOf(start), groupsOf(end)];
  const zeros = Array<string>(Math.max(0, 8 - before.length - after.length)).fill("0");
  return `[${[...before, ...zeros, ...after].join(":")}]`;
}

/** Foreign text on one line: harmless, and no longer than the limit, whatever the escapes made of it. */
function truncate(text: string): string {
  const shown = escapeForLog(text.slice(0, QUOTE_LIMIT));
  return shown.length > QUOTE_LIMIT || text.length > QUOTE_LIMIT ? `${shown.slice(0, QUOTE_LIMIT)}…` : shown;
}

/** Foreign text as it stands inside a message: truncated, in double quotes. */
export function quote(text: string): string {
  return `"${truncate(text).replaceAll('"', "'")}"`;
}

/** Escapes the message of a workflow command (https://github.com/actions/toolkit, command.ts; act too). */
export function escapeData(text: string): string {
  return text.replaceAll("%", "%25").replaceAll("\r", "%0D").replaceAll("\n", "%0A");
}

/** Escapes a property of a workflow command. */
export function escapeProperty(text: string): string {
  return escapeData(text).replaceAll(":", "%3A").replaceAll(",", "%2C");
}

/** Every mark that Markdown or HTML could read in a line becomes a character reference: it looks the same. */
function escapeMarkdown(text: string): string {
  return text.replace(/[&<>\\`*_[\]()#!|~@:.$]/g, (mark) => `&#${mark.charCodeAt(0)};`);
}

function quoteForShell(text: string): string {
  return /^[\w./:@%+=-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`;
}

function isRecord(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

/** The value at a path of own keys (never of a prototype) in foreign data, or undefined. */
function valueAt(value: unknown, ...keys: string[]): unknown {
  const step = (inner: unknown, key: string) =>
    isRecord(inner) && Object.hasOwn(inner, key) ? inner[key] : undefined;
  return keys.reduce(step, value);
}

/**
 * Foreign JSON with the secrets taken out of its strings. Undefined for any error of the parser, its stack's
 * depth too. A byte-order mark before the JSON is tolerated.
 */
function parseJson(bytes: Buffer, redact: Redact): unknown {
  try {
    const text = bytes.toString().replace(/^\uFEFF/, "");
    return JSON.parse(text, (_, value: unknown) => (typeof value === "string" ? redact(value) : value));
  } catch {
    return undefined;
  }
}

/** The `code` that Node, undici and OpenSSL put on their errors, or else the error's name. */
function codeOf(error: unknown): string {
  if (!(error instanceof Error)) return typeof error;
  return "code" in error && typeof error.code === "string" ? error.code : error.name;
}

/** Node joins an IPv6 address and a port by a bare colon; several addresses that failed have no message. */
function textOf(error: unknown): string {
  if (error instanceof AggregateError) return error.errors.map(textOf).join("; ");
  const text = error instanceof Error ? error.message : String(error);
  return text.replace(/ ([\da-f:]{0,39}::[\da-f:]{0,39}):(\d+)/gi, " [$1]:$2");
}

/** An id of the forge's. Unsafe integers are none: two of them may have become equal by rounding. */
function isId(value: unknown): value is number {
  return Number.isSafeInteger(value) && Number(value) > 0;
}

function plural(count: number, noun: string): string {
  return `${count} ${noun}${count === 1 ? "" : "s"}`;
}

function label(name: string, text: string): string {
  return `${name.padEnd(10)} ${text}`;
}

// ───────────────────────────── settings ─────────────────────────────

/** The environment, as `process.env` has it. */
export type Env = Readonly<Record<string, string | undefined>>;

/** A token as it arrived. The value of a malformed one is empty, so that it can reach nothing. */
type Token = { readonly kind: "missing" | "malformed" | "present"; readonly value: string };

/** Everything the run is told from outside, checked. Paths are relative to the current directory. */
export type Settings = ReturnType<typeof readSettings>;

const VALUE = { type: "string" } as const;
const SWITCH = { type: "boolean" } as const;
const FILES = { event: VALUE, canonical: VALUE, copy: VALUE, pin: VALUE, replay: VALUE };
const MODES = { explain: SWITCH, write: SWITCH, alarm: SWITCH, json: SWITCH, help: SWITCH, version: SWITCH };
const FLAGS = { "event-name": VALUE, ...FILES, ...MODES };

/** Two sources of one event; a rehearsal that would change something; two answers on one standard output. */
const CONTRADICTIONS = {
  replay: ["event", "write"],
  explain: ["write", "json"],
  alarm: ["write", "replay", "explain", "canonical"],
} as const;

type Flags = ReturnType<typeof parseArgs<{ options: typeof FLAGS }>>["values"];

const DEFAULT_REPO = "molecule-ai/molecule-controlplane";
const DEFAULT_PATH = "internal/providers/providers.yaml";
const DEFAULT_COPY = "workspace-server/internal/providers/providers.yaml";

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
  --alarm             keep one issue of this repository in step with a scheduled run's verdict
  --json              one JSON document on standard output, the log on standard error
  --help, --version

Settings (environment; an empty one counts as unset):
  AUTO_SYNC_TOKEN         the secret that reads the canonical repository (never a flag)
  SYNC_JOB_TOKEN          the job's own token: tried where the secret is missing, and keeps the alarm's issue
  SYNC_CANONICAL_SERVER   default: GITHUB_SERVER_URL
  SYNC_CANONICAL_REPO     default: ${DEFAULT_REPO}
  SYNC_CANONICAL_PATH     default: ${DEFAULT_PATH}
  SYNC_CANONICAL_REF      default: main
  SYNC_COPY_PATH          default: ${DEFAULT_COPY}
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

function parseFlags(argv: readonly string[]): Flags {
  let flags: Flags;
  try {
    flags = parseArgs({ args: [...argv], options: FLAGS }).values;
  } catch (error) {
    const [sentence = ""] = textOf(error).split(/\.\s|\n/, 1);
    throw usage(`Cannot read the flags: ${truncate(sentence)}.`, "See --help.");
  }
  for (const [flag, value] of Object.entries(flags))
    if (String(value).trim() === "") throw usage(`The flag --${flag} is empty.`, "Give it a value.");
  for (const one of ["replay", "explain", "alarm"] as const)
    for (const other of flags[one] === undefined ? [] : CONTRADICTIONS[one])
      if (flags[other] !== undefined)
        throw usage(`The flags --${one} and --${other} contradict each other.`, "Give one of them.");
  return flags;
}

/**
 * Checks the environment. Throws a `usage` {@link Failure} that names the setting; the value itself is shown
 * only where it cannot hold a credential.
 */
function readSettings(flags: Flags, env: Env) {
  const read = (name: string, rule: { or: string; wanted: string; is: (text: string) => boolean }) => {
    const text = env[name] ?? rule.or;
    if (rule.is(text)) return text;
    const found = /[@:]/.test(text) ? "is a URL or holds a credential" : `is ${quote(text)}`;
    throw usage(`Cannot use the setting ${name}: it ${found}.`, `Set it to ${rule.wanted}, or leave it out.`);
  };
  const isSwitch = (text: string) => text === "0" || text === "1";
  const allowHttp = read("SYNC_ALLOW_HTTP", { or: "0", wanted: "1", is: isSwitch }) === "1";
  const wanted = 'a path without a leading slash and without ".."';
  const isSeconds = (text: string) => isAmount(text, { max: 86_400, pattern: /^\d+(\.\d+)?$/ });
  const isBytes = (text: string) => isAmount(text, { max: 2 ** 30, pattern: /^\d+$/ });
  const seconds = { or: "60", wanted: "a number above 0, 86400 at most", is: isSeconds };
  const bytes = { or: "10485760", wanted: "a whole number above 0, 1073741824 at most", is: isBytes };
  // The workflow's own setting is always checked; the runner's only where it is used.
  const server = env.SYNC_CANONICAL_SERVER === undefined ? "GITHUB_SERVER_URL" : "SYNC_CANONICAL_SERVER";
  const url = server === "GITHUB_SERVER_URL" && flags.canonical !== undefined ? undefined : env[server];
  return {
    eventName: flags["event-name"] ?? env.GITHUB_EVENT_NAME ?? "",
    eventFlag: flags["event-name"],
    eventPath: flags.event ?? env.GITHUB_EVENT_PATH,
    replay: flags.replay,
    canonicalFile: flags.canonical,
    server: url === undefined ? null : checkServer(server, url, allowHttp),
    allowHttp,
    repo: read("SYNC_CANONICAL_REPO", { or: DEFAULT_REPO, wanted: "owner/name", is: isRepoName }),
    path: read("SYNC_CANONICAL_PATH", { or: DEFAULT_PATH, wanted, is: isPath }),
    ref: read("SYNC_CANONICAL_REF", { or: "main", wanted: "a branch, a tag or a commit", is: isRef }),
    copyPath: flags.copy ?? env.SYNC_COPY_PATH ?? DEFAULT_COPY,
    pinPath: flags.pin ?? env.SYNC_PIN_PATH,
    timeoutMs: 1000 * Number(read("SYNC_TIMEOUT_SECONDS", seconds)),
    maxBytes: Number(read("SYNC_MAX_BYTES", bytes)),
    write: flags.write ?? false,
    alarm: flags.alarm ?? false,
  };
}

function isRepoName(text: string): boolean {
  return /^[\w.-]+\/[\w.-]+$/.test(text) && isPath(text);
}

/** No segment is empty, or one that a URL parser would take away (RFC 3986, dot segments). */
function isPath(text: string): boolean {
  return isRef(text) && text.split("/").every((segment) => !/^\.{0,2}$/.test(segment));
}

function isRef(text: string): boolean {
  return !/^\.\.?$|[\p{Cc}\p{Cs}]/u.test(text);
}

function isAmount(text: string, { max, pattern }: { max: number; pattern: RegExp }): boolean {
  return pattern.test(text) && Number(text) > 0 && Number(text) <= max;
}

/** The settings as the gate reads them: trimmed, an empty one unset, without the tokens. */
function cleanEnv(env: Env, redact: Redact): Env {
  const clean = Object.entries(env).map(([name, value = ""]) => [name, redact(value.trim())] as const);
  const isKept = ([name, value]: readonly [string, string]) =>
    value !== "" && name !== "AUTO_SYNC_TOKEN" && name !== "SYNC_JOB_TOKEN";
  return Object.fromEntries(clean.filter(isKept));
}

function readToken(text: string): Token {
  const value = text.trim();
  const isUsable = /^[\x21-\x7e]+$/.test(value) && value.length <= SECRET_LENGTH.max;
  if (isUsable) return { kind: "present", value };
  return { kind: value === "" ? "missing" : "malformed", value: "" };
}

/** A base URL without its trailing slashes. One that is refused is not printed: it may hold a credential. */
function checkServer(name: string, text: string, allowHttp: boolean): string {
  const found = faultOf(text, allowHttp);
  if (found === null) return text.replace(/\/+$/, "");
  const remedy = "Set the forge's base URL, such as https://git.example.com.";
  throw usage(`Cannot use the setting ${name}: it ${found}.`, remedy);
}

function faultOf(text: string, allowHttp: boolean): string | null {
  if (!URL.canParse(text) || /[\s\\\p{Cc}]/u.test(text)) return "is not a URL";
  const { protocol, username, password } = new URL(text);
  if (protocol !== "https:" && protocol !== "http:") return "is neither an https: nor an http: URL";
  if (username !== "" || password !== "") return "holds a user name or a password";
  if (/[?#]/.test(text)) return "holds a query or a fragment";
  if (protocol === "https:" || allowHttp || isLoopback(text)) return null;
  return "is plain http: to another machine: the token would travel in clear (SYNC_ALLOW_HTTP=1 allows it)";
}

/** Sound because the URL parser has brought every way to write an IP address to this one form. */
function isLoopback(url: string): boolean {
  return /^(localhost\.?|\[::1\]|\[::ffff:7f.*\]|127(\.\d+){3})$/.test(new URL(url).hostname);
}

/**
 * The proxy for the server's scheme, empty for none; the lower-case names win, as in undici and curl. None is
 * asked for the loopback: it would take `localhost` for its own machine, and read what is sent in clear.
 */
function readProxy(env: Env, server: string) {
  const name = server.startsWith("https:") ? "HTTPS_PROXY" : "HTTP_PROXY";
  const url = isLoopback(server) ? "" : (env[name.toLowerCase()] ?? env[name] ?? "");
  // undici decodes the password, and would throw at a broken escape.
  const isUsable = /^https?:\/\//i.test(url) && URL.canParse(url) && !/%(?![\da-f]{2})/i.test(url);
  if (url === "" || isUsable) return { url, none: env.no_proxy ?? env.NO_PROXY ?? "" };
  const remedy = "Set the proxy's URL with its scheme, http://host:port.";
  throw usage(`Cannot use the setting ${name}: it is not a URL.`, remedy);
}

// ─────────────────────────────── files ───────────────────────────────

/** One side of the comparison: how messages call it (quoted, harmless), its bytes, their sum in hex. */
export interface Side {
  readonly name: string;
  readonly bytes: Buffer;
  readonly sha256: string;
}

/** The pin file, and the sha256 that it names in lower-case hex; `offset` is its place in `bytes`. */
export interface Pin extends Side {
  readonly path: string;
  readonly offset: number;
}

const ERRNO: Readonly<Record<string, string>> = {
  ENOENT: "there is no such file",
  ENOTDIR: "a part of the path is not a directory",
  EACCES: "permission denied",
  ELOOP: "it is a symbolic link",
  ENAMETOOLONG: "its name is too long",
};
function errnoText(error: unknown): string {
  return ERRNO[codeOf(error)] ?? codeOf(error);
}

/**
 * Reads a regular file, and never waits for a named pipe. `refuse` makes the error out of what was found. A
 * link is refused where it could point anywhere on the runner.
 */
async function readRegularFile(
  path: string,
  options: { limit: number; link: "follow" | "refuse"; refuse: (found: string, reason?: Reason) => Failure },
): Promise<Buffer> {
  const { limit, link, refuse } = options;
  const { O_RDONLY, O_NONBLOCK, O_NOFOLLOW } = fs.constants;
  try {
    const file = await open(path, O_RDONLY | O_NONBLOCK | (link === "follow" ? 0 : O_NOFOLLOW));
    try {
      const stat = await file.stat();
      if (!stat.isFile()) throw refuse(stat.isDirectory() ? "it is a directory" : "it is not a regular file");
      const bytes = stat.size > limit ? null : await file.readFile();
      if (bytes !== null && bytes.length <= limit) return bytes;
      throw refuse(`it has ${plural(bytes?.length ?? stat.size, "byte")}, more than ${limit}`, "too-large");
    } finally {
      await file.close();
    }
  } catch (error) {
    throw error instanceof Failure ? error : refuse(errnoText(error));
  }
}

function sideOf(name: string, bytes: Buffer): Side {
  return { name, bytes, sha256: createHash("sha256").update(bytes).digest("hex") };
}

/** Reads the copy. Null where a re-sync is to create it; a dangling link is there. */
async function readCopy({ copyPath, maxBytes, write }: Settings): Promise<Side | null> {
  const name = quote(copyPath);
  const refuse = (found: string, reason: Reason = "copy-unreadable") =>
    unverified(reason, `Cannot read the copy ${name}: ${found}.`);
  if (write && (await lstat(copyPath).catch(codeOf)) === "ENOENT") return null;
  return sideOf(name, await readRegularFile(copyPath, { limit: maxBytes, link: "refuse", refuse }));
}

/** Reads the pin. The place of the sum in it is not prescribed: a Go constant, a sha256sum file. */
async function readPin(path: string, limit: number): Promise<Pin> {
  const refuse = (found: string) =>
    unverified("pin-unreadable", `Cannot read the pin ${quote(path)}: ${found}.`);
  const bytes = await readRegularFile(path, { limit, link: "refuse", refuse });
  // Latin-1 keeps every byte in its place.
  const words = [...bytes.toString("latin1").matchAll(/(?<!\w)[\da-f]{64}(?!\w)/gi)];
  const [word] = words;
  if (word === undefined) throw refuse("it holds no word of 64 hex digits");
  if (words.length > 1) throw refuse(`it holds ${words.length} words of 64 hex digits, and may hold one`);
  return { name: quote(path), path, sha256: word[0].toLowerCase(), bytes, offset: word.index };
}

async function readLocalCanonical(path: string, limit: number): Promise<Side> {
  const refuse = (found: string, reason: Reason = "file-not-found") =>
    unverified(reason, `Cannot read the canonical file ${quote(path)}: ${found}.`);
  const bytes = await readRegularFile(path, { limit, link: "follow", refuse });
  refuseLfsPointer(bytes, quote(path));
  return sideOf(quote(path), bytes);
}

/** https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md: the first line of every pointer file. */
function refuseLfsPointer(bytes: Buffer, name: string): void {
  if (!bytes.subarray(0, 43).equals(Buffer.from("version https://git-lfs.github.com/spec/v1\n"))) return;
  throw unverified("bad-response", `Cannot use ${name}: it is a Git LFS pointer, not the file's own bytes.`);
}

/**
 * Refuses copy and pin that are one file, and for a re-sync any two of the three: another spelling, a linked
 * folder or a hard link hides it from a comparison of paths.
 */
function refuseSameFile({ copyPath, pinPath, canonicalFile, write }: Settings): void {
  const files = { copy: copyPath, pin: pinPath, "canonical file": write ? canonicalFile : undefined };
  const names = new Map<string, string>();
  for (const [name, path] of Object.entries(files)) {
    if (path === undefined) continue;
    const other = names.get(identityOf(path));
    const found = `The ${other} and the ${name} ${quote(path)} are one file.`;
    if (other !== undefined) throw usage(found, "Give each a file of its own.");
    names.set(identityOf(path), name);
  }
}

/** Device and inode, or where there is no file yet, its name below those of its folder. */
function identityOf(path: string): string {
  try {
    const { dev, ino } = fs.statSync(path, { bigint: true });
    return `${dev}:${ino}`;
  } catch {
    // Whoever reads or writes it will say what is wrong with it.
    return `${identityOf(dirname(path))}/${basename(path)}`;
  }
}

// ───────────────────────────── case table ─────────────────────────────

/** What the case table says of an event (empty when there is none): its row, and why, without a full stop. */
export interface Context {
  readonly event: string;
  readonly branch: 1 | 2 | 3 | 4;
  /** Trust decides one thing only: whether a missing token is red. */
  readonly trusted: boolean;
  readonly why: string;
}

/** The payload of an event as parsed JSON, or why there is none. */
export type Payload = { readonly value: unknown } | { readonly missing: string };

const OWN_EVENTS: ReadonlySet<string> = new Set(["push", "schedule", "workflow_dispatch"]);

/**
 * The case table. A pull request is of the same repository or of a fork by the identity of the two, not by
 * the flag `head.repo.fork`, which says whether the head is a fork of anything: on a base that is itself a
 * fork it is true for the base's own branches. Measured on Gitea (fixtures/README.md). What cannot be told is
 * trusted, so that a missing token is red.
 */
export function classify(event: string, payload: Payload): Context {
  const is = (branch: Context["branch"], why: string) => ({ event, branch, trusted: branch !== 3, why });
  if (OWN_EVENTS.has(event)) return is(1, "the repository's own context, where the secret should be");
  if (event.trim() === "") return is(4, "outside of a workflow, a missing token is an error");
  if (event !== "pull_request")
    return is(4, "the table does not name this event, so a missing token is an error");
  const source = "missing" in payload ? payload : comparePullRequestRepos(payload.value);
  if ("missing" in source) return is(4, `it cannot be told whether it is a fork's: ${source.missing}`);
  if (source.same) return is(2, `a pull request of the same repository: ${source.by}`);
  return is(3, `a fork's pull request, which gets no secret: ${source.by}`);
}

type PullRequestSource = { same: boolean; by: string } | { missing: string };

/** The six rules of identity, in their order. Any shape that a rule cannot use falls through to the next. */
function comparePullRequestRepos(payload: unknown): PullRequestSource {
  const head = valueAt(payload, "pull_request", "head");
  const repos = [valueAt(head, "repo"), valueAt(payload, "pull_request", "base", "repo")] as const;
  if (valueAt(head, "label") === "")
    return { same: false, by: "head.label is empty (pushed to refs/for/, AGit)" };
  if (repos[0] === null) return { same: false, by: "head.repo is null (the fork was deleted)" };
  const [headId, baseId] = repos.map((repo) => valueAt(repo, "id"));
  if (isId(headId) && isId(baseId))
    return { same: headId === baseId, by: `head.repo.id is ${headId}, base.repo.id is ${baseId}` };
  const [headName, baseName] = repos.map((repo) => valueAt(repo, "full_name"));
  if (isName(headName) && isName(baseName)) {
    const same = headName.toLowerCase() === baseName.toLowerCase();
    return { same, by: `head.repo is ${quote(headName)}, base.repo is ${quote(baseName)}` };
  }
  const flag = valueAt(repos[0], "fork");
  if (typeof flag === "boolean") return { same: !flag, by: `head.repo.fork is ${flag}` };
  const found = isRecord(payload)
    ? "has no usable id, full_name or fork flag of head.repo"
    : "is not an object";
  return { missing: `the payload ${found}` };
}

function isName(value: unknown): value is string {
  return typeof value === "string" && value !== "";
}

/** The context of this run. Only `pull_request` needs its payload: for any other it is not read. */
async function readContext(settings: Settings, redact: Redact): Promise<Context> {
  const { replay, eventName, eventPath } = settings;
  if (replay !== undefined) return readReplay(replay, settings, redact);
  if (eventName !== "pull_request") return classify(eventName, { missing: "not read" });
  if (eventPath === undefined)
    return classify(eventName, { missing: "no payload was given (GITHUB_EVENT_PATH)" });
  const payload = await settle(readPayload(eventPath, "payload", redact));
  return classify(eventName, payload instanceof Failure ? { missing: payload.message } : payload);
}

/**
 * A captured event in the runner's place: an object with `event_name` and `event` (what `toJSON(github)`
 * prints), or a bare payload with the event's name beside it. A flag wins over the captured name.
 */
async function readReplay(path: string, settings: Settings, redact: Redact): Promise<Context> {
  const payload = await readPayload(path, "replay", redact);
  const captured = "value" in payload ? payload.value : undefined;
  const [name, value] = [valueAt(captured, "event_name"), valueAt(captured, "event")];
  if (typeof name === "string" && value !== undefined) return classify(settings.eventFlag ?? name, { value });
  if (settings.eventName !== "") return classify(settings.eventName, payload);
  const found = "missing" in payload ? payload.missing : "it is a bare payload";
  throw usage(`Cannot tell the event of the replay ${quote(path)}: ${found}.`, "Name it with --event-name.");
}

async function readPayload(path: string, what: "payload" | "replay", redact: Redact): Promise<Payload> {
  const refuse = (found: string) =>
    usage(`Cannot read the ${what} ${quote(path)}: ${found}.`, "Check the path.");
  // GitHub's own limit for a webhook's payload.
  const bytes = await readRegularFile(path, { limit: 26_214_400, link: "follow", refuse });
  const value = parseJson(bytes, redact);
  return value === undefined ? { missing: "the payload is not JSON" } : { value };
}

// ────────────────────────────── the run ──────────────────────────────

/** Which token a run has: the secret, the job's own in its place, none, or one that cannot be used. */
export type TokenKind = "secret" | "job" | "missing" | "malformed";

/** What is known of a run, however far it came. A {@link Failure} stands where something could not be had. */
class Run {
  readonly startedAt = performance.now();
  readonly redact: Redact;
  readonly env: Env;
  readonly secret: Token;
  readonly jobToken: Token;
  readonly log: (line: string) => void;
  readonly command: string;
  attempts = 0;
  settings: Settings | null = null;
  context: Context | null = null;
  token: TokenKind | null = null;
  copy: Side | Failure | null = null;
  canonical: Side | Canonical | Failure | null = null;
  pin: Pin | Failure | null = null;
  difference: Difference = { lines: [], said: "" };
  summary: Summary | null = null;

  constructor(env: Env, command: string, print: (line: string) => void) {
    const { AUTO_SYNC_TOKEN: secret = "", SYNC_JOB_TOKEN: jobToken = "" } = env;
    this.redact = createRedactor([secret.trim(), jobToken.trim()]);
    this.env = cleanEnv(env, this.redact);
    this.secret = readToken(secret);
    this.jobToken = readToken(jobToken);
    this.command = command;
    this.log = (line) => print(this.redact(line));
  }
}

/** The job's own token stands in for a missing secret, but not for a fork, nor at a forge not its own. */
function tokenOf({ secret, jobToken, env }: Run, { trusted }: Context, { server }: Settings): TokenKind {
  if (secret.kind !== "missing") return secret.kind === "present" ? "secret" : "malformed";
  const originOf = (url: string | null) => (url !== null && URL.canParse(url) ? new URL(url).origin : null);
  const isForeign = originOf(env.GITHUB_SERVER_URL ?? server) !== originOf(server);
  if (jobToken.kind === "missing" || !trusted || (isForeign && server !== null)) return "missing";
  return jobToken.kind === "present" ? "job" : "malformed";
}

// ─────────────────────────────── wire ───────────────────────────────

/** The canonical file as the forge has it at one commit. */
export interface Canonical extends Side {
  /** `owner/name` where it was found: another than the setting's when the repository has moved. */
  readonly repo: string;
  readonly commit: string;
  /** What proves that the bytes are all there: git's name for them, the end that HTTP announced, nothing. */
  readonly proof: "blob id" | "framing" | "none";
}

/** What is carried from request to request to one forge, with one token and one deadline. */
interface Session {
  readonly run: Run;
  readonly server: string;
  readonly token: string;
  readonly proxy: ReturnType<typeof readProxy>;
  readonly ms: number;
  readonly endsAt: number;
  readonly end: AbortController;
  repo: string;
  redirectsLeft: number;
  dispatcher: Dispatcher | null;
  sockets: number;
}

/** A request below `/api/v1`. */
interface ApiRequest {
  readonly what: string;
  /** Percent-encoded; `{repo}` in it is the session's repository. */
  readonly path: string;
  readonly limit?: number;
  /** A change is asked for once: nobody knows whether a lost one was carried out. */
  readonly change?: { readonly method: "POST" | "PATCH"; readonly body: Readonly<Record<string, string>> };
}

/** An answer, free of the secrets. `said` is its status, with Gitea's own words of an error. */
interface ApiResponse {
  readonly status: number;
  readonly headers: Readonly<Record<string, string>>;
  readonly bytes: Buffer;
  readonly said: string;
}

/** A commit's JSON has some 2 KB; the limit is for a server that never stops. */
const JSON_LIMIT = 1_048_576;
/** How much of an error's body is read, and for how long: the status says it all but the forge's words. */
const ERROR_BODY = { bytes: 65_536, ms: 1000 };
const MAX_RETRIES = 3;
const MAX_REDIRECTS = 2;
/** More than any honest attempt makes. Behind a proxy that hangs up undici makes thousands. */
const MAX_SOCKETS = 6;
/** A part of the deadline, so that a silent first attempt leaves time for others. */
const IDLE_TIMEOUT_SHARE = 1 / 4;
/** The first back-off is one to two of these; at the default deadline half a second to one second. */
const BACKOFF_SHARE = 1 / 120;

const TRANSIENT_STATUSES: ReadonlySet<number> = new Set([429, 500, 502, 503, 504]);
const REDIRECTS: ReadonlySet<number> = new Set([301, 302, 303, 307, 308]);

async function withSession<T>(
  run: Run,
  to: Pick<Session, "server" | "token" | "repo" | "endsAt" | "redirectsLeft">,
  work: (session: Session) => Promise<T>,
): Promise<T> {
  const ms = Math.max(1, to.endsAt - performance.now());
  const proxy = readProxy(run.env, to.server);
  const end = new AbortController();
  const session: Session = { ...to, run, ms, proxy, end, dispatcher: null, sockets: 0 };
  const seconds = Math.round(to.endsAt - run.startedAt) / 1000;
  const late = unverified("timeout", `Cannot finish within ${seconds} s: the deadline has passed.`);
  const timer = setTimeout(() => end.abort(late), ms);
  try {
    return await work(session);
  } finally {
    clearTimeout(timer);
    void session.dispatcher?.destroy();
    end.abort();
  }
}

/**
 * Fetches the canonical file: first the commit that the ref names, then the file at that commit. Asked for
 * the file at a ref that does not exist, Gitea 1.25.4 answers with the default branch's file (see
 * fixtures/responses/gitea-1.25.4-missing-ref.http); pinned by a commit it cannot. Throws a {@link Failure}.
 */
async function fetchCanonical(session: Session, { path, ref, maxBytes }: Settings): Promise<Canonical> {
  const commit = await resolveCommit(session, ref);
  const raw = `/repos/{repo}/raw/${path.split("/").map(encodeURIComponent).join("/")}?ref=${commit}`;
  const request = { what: "the file", path: raw, limit: maxBytes };
  const response = await send(session, request);
  const { repo } = session;
  const name = `${quote(path)} of ${quote(repo)} at ${quote(ref)} (commit ${commit.slice(0, 10)})`;
  if (response.status === 404) throw unverified("file-not-found", `Cannot find the file ${name}.`);
  requireOk(response, request);
  return { ...sideOf(name, response.bytes), repo, commit, proof: proofOf(response) };
}

async function resolveCommit(session: Session, ref: string): Promise<string> {
  const query = "?stat=false&verification=false&files=false";
  const path = `/repos/{repo}/git/commits/${encodeURIComponent(ref)}${query}`;
  const request = { what: `the commit of ${quote(ref)}`, path };
  const response = await send(session, request);
  // 422 is what Gitea says to a ref that it cannot read as one, such as main~1.
  if (response.status === 404 || response.status === 422) {
    const question = { what: "the repository", path: "/repos/{repo}" };
    const repository = await send(session, question);
    const name = quote(session.repo);
    if (repository.status === 404)
      throw unverified("repo-not-visible", `Cannot see the repository ${name}: the forge answered 404.`);
    requireOk(repository, question);
    throw unverified("ref-not-found", `Cannot find the ref ${quote(ref)} in the repository ${name}.`);
  }
  requireOk(response, request);
  const sha = valueAt(parseJson(response.bytes, session.run.redact), "sha");
  if (typeof sha === "string" && OBJECT_ID.test(sha)) return sha.toLowerCase();
  throw unverified("bad-response", `Cannot use the answer for ${request.what}: it holds no commit id.`);
}

const OBJECT_ID = /^(?:[\da-f]{40}|[\da-f]{64})$/i;

function unfit(found: string): Failure {
  return unverified("bad-response", `Cannot use the forge's answer for the file: ${found}.`);
}

/** Refuses a 200 that does not carry the file's own bytes, and says what proves that they are all of them. */
function proofOf({ headers, bytes }: ApiResponse): Canonical["proof"] {
  const { "content-type": type = "", "x-gitea-object-type": object = "file", etag = "" } = headers;
  if (/html|json/i.test(type)) throw unfit(`its type is ${quote(type)}`);
  if (object !== "file") throw unfit(`the path is of the kind ${quote(object)}, not a file`);
  refuseLfsPointer(bytes, "the forge's answer for the file");
  // Gitea's ETag is the blob id. Any other (a proxy's own) says nothing about the bytes.
  const ids = [...etag.matchAll(/"([^"]*)"/g)].map(([, id = ""]) => id).filter((id) => OBJECT_ID.test(id));
  for (const id of new Set(ids)) {
    const hash = createHash(id.length === 40 ? "sha1" : "sha256").update(`blob ${bytes.length}\0`);
    if (hash.update(bytes).digest("hex") !== id.toLowerCase())
      throw unfit(`its bytes do not have the blob id ${id} of its ETag, so they were damaged on the way`);
  }
  if (ids.length > 0) return "blob id";
  const isFramed = "content-length" in headers || /chunked/i.test(headers["transfer-encoding"] ?? "");
  return isFramed ? "framing" : "none";
}

const REASONS_BY_STATUS: Readonly<Record<number, Reason>> = { 401: "token-rejected", 403: "token-scope" };
/** Turns every status but 200 (201 for a change) into the {@link Failure} that it means. */
function requireOk(response: ApiResponse, { what, change }: ApiRequest): void {
  const { status, headers } = response;
  if (status !== 200 && (status !== 201 || change === undefined)) {
    const otherwise = status >= 500 && status <= 599 ? "server-error" : "bad-response";
    const message = `Cannot get ${what}: ${response.said}.`;
    throw unverified(REASONS_BY_STATUS[status] ?? otherwise, message);
  }
  const { "content-encoding": content = "identity", "transfer-encoding": transfer = "identity" } = headers;
  if (/^identity$/i.test(content) && /^(identity|chunked)$/i.test(transfer)) return;
  const found = `it is encoded (${quote(`${content}; ${transfer}`)})`;
  throw unverified("bad-response", `Cannot use the forge's answer for ${what}: ${found}.`);
}

/** One request with its retries and redirects. Statuses other than 5xx, 429 and 3xx are the caller's. */
async function send(session: Session, request: ApiRequest): Promise<ApiResponse> {
  const { default: pRetry } = await import("p-retry");
  const response = await pRetry(() => attempt(session, request), {
    retries: request.change === undefined ? MAX_RETRIES : 0,
    minTimeout: session.ms * BACKOFF_SHARE,
    randomize: true,
    signal: session.end.signal,
    shouldRetry: ({ error, retriesConsumed }) => awaitRetry(session, error, retriesConsumed + 1),
  });
  if (!REDIRECTS.has(response.status)) return response;
  followRedirect(session, request, response.headers.location ?? "");
  return send(session, request);
}

function urlOf({ server }: Session, { path }: ApiRequest, repo: string): URL {
  return new URL(`${server}/api/v1${path.replace("{repo}", repo)}`);
}

async function ask(session: Session, request: ApiRequest) {
  const response = await send(session, request);
  requireOk(response, request);
  const value = parseJson(response.bytes, session.run.redact);
  if (value !== undefined) return { value, headers: response.headers };
  throw unverified("bad-response", `Cannot use the forge's answer for ${request.what}: it is not JSON.`);
}

/**
 * Takes over the repository's new name from a redirect, or throws `redirected`. A redirect is followed only
 * to the same request of another repository of the same origin: the token goes nowhere else.
 */
function followRedirect(session: Session, request: ApiRequest, location: string): void {
  const refuse = (found: string) =>
    unverified("redirected", `Cannot follow the redirect for ${request.what}: ${found}.`);
  const from = urlOf(session, request, session.repo);
  // Redacted as the parser reads it, which joins what a tab has parted, and again as it decodes a host.
  const joined = session.run.redact(location.replaceAll("\t", ""));
  if (joined === "" || !URL.canParse(joined, from.href)) throw refuse("it names no place");
  const to = new URL(session.run.redact(new URL(joined, from).href));
  const place = quote(`${to.origin}${to.pathname}`);
  const repos = new URL(`${session.server}/api/v1/repos/`).pathname;
  const repo = to.pathname.slice(repos.length).split("/", 2).join("/");
  const isSame = isRepoName(repo) && to.href === urlOf(session, request, repo).href;
  if (!isSame) throw refuse(`it leads to ${place}`);
  if (repo === session.repo || session.redirectsLeft === 0) throw refuse(`it leads on and on, to ${place}`);
  const moved = `the repository ${quote(session.repo)} is now ${quote(repo)}`;
  session.run.log(label("moved", `${moved}: set SYNC_CANONICAL_REPO to that`));
  session.repo = repo;
  session.redirectsLeft -= 1;
}

/** Logs the retry and waits as long as the forge asked for; the back-off comes on top. */
async function awaitRetry(session: Session, error: unknown, count: number): Promise<boolean> {
  if (!(error instanceof Failure) || error.retryAfterMs === null) return false;
  const wait = error.retryAfterMs;
  const asked = `${Math.ceil(wait / 1000)} s`;
  if (wait > 0 && wait >= session.endsAt - performance.now()) {
    const found = `it asked to wait ${asked}, more than the deadline leaves`;
    throw unverified("server-error", `${error.message.replace(/\.$/, "")}, and ${found}.`);
  }
  const pause = wait === 0 ? "" : ` in ${asked}, as the forge asked`;
  session.run.log(label("retry", `${count} of ${MAX_RETRIES}${pause}: ${error.message}`));
  await sleep(wait, undefined, { ref: false });
  return true;
}

/** One attempt: connect, ask, read the whole body. Throws a {@link Failure}, or what nobody expected. */
async function attempt(session: Session, request: ApiRequest): Promise<ApiResponse> {
  const { what } = request;
  const ms = session.ms * IDLE_TIMEOUT_SHARE;
  const idle = new AbortController();
  const silence = `nothing came for ${Math.ceil(ms / 100) / 10} s`;
  const quiet = unverified("timeout", `Cannot get ${what}: ${silence}.`, 0);
  const timer = setTimeout(() => idle.abort(quiet), ms).unref();
  const signal = AbortSignal.any([session.end.signal, idle.signal]);
  session.sockets = 0;
  session.run.attempts += 1;
  // A race, as undici does not reject an aborted request that is still connecting.
  const raced = Promise.race([
    exchange(session, request, { signal, onProgress: () => timer.refresh() }),
    new Promise<never>((_, reject) => signal.addEventListener("abort", () => reject(signal.reason))),
  ]);
  try {
    const response = await raced.finally(() => clearTimeout(timer));
    if (!TRANSIENT_STATUSES.has(response.status)) return response;
    const wait = retryAfter(response.headers["retry-after"] ?? "");
    throw unverified("server-error", `Cannot get ${what}: ${response.said}.`, wait);
  } catch (error) {
    void session.dispatcher?.destroy();
    session.dispatcher = null;
    throw error;
  }
}

/** The request and its answer, free of the secrets. Throws a {@link Failure}. */
async function exchange(
  session: Session,
  request: ApiRequest,
  { signal, onProgress }: { signal: AbortSignal; onProgress: () => void },
): Promise<ApiResponse> {
  const { ms, run, repo } = session;
  const { what, limit = JSON_LIMIT } = request;
  let isAnswered = false;
  try {
    const undici = await import("undici");
    session.dispatcher ??= createDispatcher(session, undici);
    const options = { ...optionsOf(session, request), dispatcher: session.dispatcher, signal };
    const answer = await undici.request(urlOf(session, request, repo), options);
    isAnswered = true;
    onProgress();
    const { statusCode: status, body } = answer;
    const clean = (value: string | string[] = "") => run.redact([value].flat().join(", "));
    const named = Object.entries(answer.headers).map(([name, value]) => [name, clean(value)] as const);
    const headers: ApiResponse["headers"] = Object.fromEntries(named);
    const read = (most: number) => readBody(body, { what, limit: most, headers, onProgress });
    let said = `the forge answered ${status}`;
    if (status === 200 || status === 201) return { status, headers, bytes: await read(limit), said };
    const nothing = Buffer.alloc(0);
    const patience = sleep(Math.min(ERROR_BODY.ms, ms / 8), nothing, { ref: false });
    const bytes = await Promise.race([read(ERROR_BODY.bytes).catch(() => nothing), patience]);
    body.destroy();
    const message = valueAt(parseJson(bytes, run.redact), "message");
    if (isName(message)) said += `, saying ${quote(message)}`;
    return { status, headers, bytes, said };
  } catch (error) {
    throw toFailure(error, { what, isAnswered, redact: run.redact });
  }
}

function optionsOf({ run, token }: Session, { what, change }: ApiRequest) {
  const type = change === undefined ? {} : { "content-type": "application/json" };
  const agent = { "accept-encoding": "identity", "user-agent": `sync-providers/${VERSION}` };
  return {
    method: change?.method ?? "GET",
    headers: { authorization: `token ${token}`, ...agent, ...type },
    body: change === undefined ? null : run.redact(JSON.stringify(change.body)),
    // A status below 200. Thrown at once: undici would go on to an assertion.
    onInfo: ({ statusCode }: { statusCode: number }) => {
      throw unverified("bad-response", `Cannot get ${what}: the forge answered ${statusCode}.`);
    },
  };
}

/** Counts while it reads, so that an endless body costs no more memory than the limit. */
async function readBody(
  body: AsyncIterable<Buffer>,
  at: { what: string; limit: number; headers: ApiResponse["headers"]; onProgress: () => void },
): Promise<Buffer> {
  const { what, limit, headers, onProgress } = at;
  const tooLarge = (found: string) => unverified("too-large", `Cannot get ${what}: ${found} ${limit} bytes.`);
  const declared = Number.parseInt(headers["content-length"] ?? "", 10);
  if (declared > limit) throw tooLarge(`it has ${declared} bytes, more than`);
  // Room that is not written to costs nothing; one piece of it saves a second copy.
  const room = Buffer.allocUnsafe(Number.isNaN(declared) ? limit : declared);
  let length = 0;
  for await (const chunk of body) {
    onProgress();
    if (length + chunk.length > limit) throw tooLarge("it has more than");
    length += chunk.copy(room, length);
  }
  return room.subarray(0, length);
}

/** undici's own time-outs are off: they know no total, and are a second coarse. */
function createDispatcher(session: Session, undici: typeof import("undici")): Dispatcher {
  // undici's parser is WebAssembly: V8 would optimise it in the background, and node waits for that when it
  // exits, half of a run. The quick code is as good for two small answers.
  setFlagsFromString("--liftoff-only");
  const build = undici.buildConnector({ timeout: 0 });
  const { signal } = session.end;
  setMaxListeners(0, signal);
  const connect: typeof build = (options, callback) => {
    session.sockets += 1;
    // undici connects again and again after an error of the socket; after any other it gives the request up.
    const lost = Object.assign(new Error("lost again and again"), { code: "ECONNABORTED" });
    if (signal.aborted || session.sockets > MAX_SOCKETS) return callback(lost, null);
    const socket: unknown = build(options, callback);
    // undici forgets one that still connects. With an error: else its end would be taken for an answer's.
    if (socket instanceof Socket) signal.addEventListener("abort", () => socket.destroy(lost));
  };
  return new undici.EnvHttpProxyAgent({
    connections: 1,
    httpProxy: session.proxy.url,
    httpsProxy: session.proxy.url,
    noProxy: session.proxy.none,
    headersTimeout: 0,
    bodyTimeout: 0,
    connect,
    clientFactory: (origin) => new undici.Pool(origin, { connect }),
    requestTls: { timeout: 0 },
  });
}

/** `Retry-After` in milliseconds: seconds or a date (RFC 9110, 10.2.3); 0 when none can be read. */
function retryAfter(text: string): number {
  if (/^\d+$/.test(text)) return Math.min(Number(text), 1e9) * 1000;
  const date = / GMT$/.test(text) ? Date.parse(text) : Number.NaN;
  return Number.isNaN(date) ? 0 : Math.max(0, date - Date.now());
}

/** Not HTTP, or more header than HTTP has. */
const PROTOCOL_CODE = /^(HPE_|HTTPParserError$|UND_ERR_HEADERS_OVERFLOW$|ERR_ASSERTION$)/;
/** What may pass: the system's codes (ECONNREFUSED, EAI_AGAIN), undici's for a lost connection or a proxy. */
const TRANSIENT_CODE = /^(E(?!RR_)[A-Z_]+|UND_ERR_(SOCKET|ABORTED))$/;
/** The body ended before the length that was declared, or went on behind it. */
const LENGTH_CODE = "UND_ERR_RES_CONTENT_LENGTH_MISMATCH";

/**
 * Tells a broken connection from a broken answer by the error's code. Once headers have come it is the answer
 * that is broken: undici reports a reset like a missing end.
 */
function toFailure(error: unknown, at: { what: string; isAnswered: boolean; redact: Redact }): Failure {
  if (error instanceof Failure) return error;
  const [code, text] = [codeOf(error), at.redact(textOf(error))];
  const found = `Cannot get ${at.what}: ${code}, ${quote(text)}.`;
  // An end that comes too early is a parser's error where the connection was to close.
  if (at.isAnswered || code === LENGTH_CODE || /Invalid EOF/.test(text))
    return unverified("bad-response", `Cannot get ${at.what}: the body broke off (${code}).`, 0);
  // The text is what undici says to a status 100 and to 101.
  const isProtocol = PROTOCOL_CODE.test(code) || /^bad (response|upgrade)$/.test(text);
  if (isProtocol) return unverified("bad-response", found);
  // A certificate or a handshake does not mend itself between two attempts.
  return unverified("unreachable", found, TRANSIENT_CODE.test(code) ? 0 : null);
}

// ───────────────────────────── verdict ─────────────────────────────

/**
 * All that the verdict rests on. A {@link Failure} stands where something could not be had; null, where it
 * was not due.
 */
export interface Evidence {
  readonly context: Context;
  readonly token: TokenKind;
  /** Whether a missing token counts: not where a local file stands in, unless it is a replay. */
  readonly requiresToken: boolean;
  readonly copy: Side | Failure | null;
  readonly canonical: Side | Failure | null;
  readonly pin: Pin | Failure | null;
  readonly command: string;
}

type Verdicts = [Verdict, ...Verdict[]];

/** Everything that holds, the verdict first: never empty, in the order of {@link STATUSES}. Pure. */
export function judge(evidence: Evidence): Verdicts {
  const { copy, canonical, pin } = evidence;
  const failures = [copy, canonical, pin].map((part) => (part instanceof Failure ? part.verdict : null));
  const all = [...failures, judgeToken(evidence), judgeSides(evidence), judgePin(evidence)];
  const found = all.filter((verdict) => verdict !== null);
  const order = Object.keys(STATUSES);
  const [first, ...others] = found.sort((a, b) => order.indexOf(a.status) - order.indexOf(b.status));
  // The last line of defence: evidence without any finding is not green.
  return [first ?? { status: "unverified", message: "Nothing was compared.", remedy: "" }, ...others];
}

const PROVISION = [
  "Provision AUTO_SYNC_TOKEN (read scope on molecule-controlplane) as a secret of this repository or owner,",
  "in this step's env; or, on Gitea 1.26 and later, let this repository's jobs read the canonical one",
  "(organisation Settings, Actions, General, cross-repository access), and hand over SYNC_JOB_TOKEN.",
].join(" ");

function judgeToken({ context, token, requiresToken, copy, pin }: Evidence): Verdict | null {
  if (!requiresToken || token === "secret" || token === "job") return null;
  if (token === "malformed") {
    const found = "it is too long, or holds white space, control or non-ASCII characters. It was not sent";
    const name = "the secret AUTO_SYNC_TOKEN (or, without it, SYNC_JOB_TOKEN)";
    return unverified("token-malformed", `Cannot use ${name}: ${found}.`).verdict;
  }
  if (context.trusted) {
    const event = context.event === "" ? "no event" : `the event ${quote(context.event)}`;
    const found = `The secret AUTO_SYNC_TOKEN is missing in a trusted context (${event})`;
    const message = `${found}, so nothing was compared with the canonical.`;
    return { status: "token-missing", message, remedy: PROVISION };
  }
  const isPinned = isHad(copy) && isHad(pin) && copy.sha256 === pin.sha256;
  const agrees = isPinned ? " The copy is what the pin says." : "";
  const message = "A fork's pull request gets no secret, so nothing was compared with the canonical.";
  const remedy = "Nothing: the push after the merge is compared.";
  return { status: "skipped", message: message + agrees, remedy };
}

const REGENERATE = "then go generate ./... and commit";
const KEEP_EDIT = `${REGENERATE}; to keep an edit of the copy, change the canonical first`;

/** What a drift means by which side moved, and what to do beside re-syncing. */
const DIAGNOSES = {
  canonical: { found: "The canonical moved: the pin still names the copy.", next: REGENERATE },
  copy: { found: "The copy was edited by hand: the pin still names the canonical.", next: KEEP_EDIT },
  both: { found: "Both moved: the pin names neither.", next: KEEP_EDIT },
  unknown: { found: "Without a pin nobody can tell which side moved.", next: KEEP_EDIT },
} as const;

function judgeSides({ copy, canonical, pin, command }: Evidence): Verdict | null {
  if (!isHad(copy) || !isHad(canonical)) return null;
  const pinned = isHad(pin) ? pin.sha256 : null;
  const agrees = pinned === copy.sha256 ? ", and the pin names it" : "";
  const message = `The copy is the canonical file, byte for byte${agrees}.`;
  if (copy.bytes.equals(canonical.bytes)) return { status: "in-sync", message, remedy: "" };
  const line = firstDifferingLine(copy.bytes, canonical.bytes);
  const moved = pinned === null ? null : whoMoved(pinned, { copy: copy.sha256, canonical: canonical.sha256 });
  const { found, next } = DIAGNOSES[moved ?? "unknown"];
  const sums = `sha256: copy ${short(copy)}, canonical ${short(canonical)}`;
  const differ = `The copy ${copy.name} differs from the canonical, first in line ${line} (${sums}).`;
  return { status: "drift", line, moved, message: `${differ} ${found}`, remedy: `${command} (${next}).` };
}

function whoMoved(pinned: string, { copy, canonical }: { copy: string; canonical: string }): Moved {
  if (pinned === copy) return "canonical";
  return pinned === canonical ? "copy" : "both";
}

function judgePin({ copy, canonical, pin, command }: Evidence): Verdict | null {
  if (!isHad(copy) || !isHad(pin) || pin.sha256 === copy.sha256) return null;
  const differ = `The pin ${pin.name} names the sha256 ${short(pin)}, and ${copy.name} has ${short(copy)}`;
  const isResynced = isHad(canonical) && canonical.sha256 === copy.sha256;
  const found = isResynced
    ? ", which is the canonical's: the copy was re-synced and the pin was not bumped"
    : ": the copy was edited by hand, or re-synced without bumping the pin";
  const effect = isResynced ? "bumps the pin" : "reverts an edit, and bumps the pin";
  const remedy = `${command} (${effect}), then commit.`;
  return { status: "pin-mismatch", message: `${differ}${found}.`, remedy };
}

function isHad<T extends Side>(part: T | Failure | null): part is T {
  return part !== null && !(part instanceof Failure);
}

function short(side: { sha256: string }): string {
  return side.sha256.slice(0, 12);
}

/** The first line of the copy that is not the canonical's, from 1; one past the end of a copy that stops. */
export function firstDifferingLine(copy: Buffer, canonical: Buffer): number {
  return 1 + countLines(copy.subarray(0, commonPrefix(copy, canonical)));
}

function commonPrefix(a: Buffer, b: Buffer): number {
  const end = Math.min(a.length, b.length);
  let length = 0;
  while (length < end && a[length] === b[length]) length += 1;
  return length;
}

const NEWLINE = 0x0a;

function countLines(bytes: Buffer): number {
  let count = 0;
  for (let at = bytes.indexOf(NEWLINE); at !== -1; at = bytes.indexOf(NEWLINE, at + 1)) count += 1;
  return count;
}

// ──────────────────────── what differs, in words ────────────────────────

/** A unified diff, shortened, of foreign text. `said` is a sentence beside it or in its place, or empty. */
export interface Difference {
  readonly lines: string[];
  readonly said: string;
}

/** What is printed of a diff. */
const DIFF_LIMIT = { lines: 200, bytes: 65_536, lineLength: 1000 };
/** What the smallest diff is looked for in, and how far: the cost grows with the square of the edits. */
const SEARCH_LIMIT = { bytes: 2_097_152, edits: 1000 };
/** What is looked at as text: more does not fit into a string. */
const TEXT_LIMIT = 2 ** 28;

/** Says how to come from the canonical to the copy, with bounded work, however large or unlike they are. */
export async function explainDifference(canonical: Side, copy: Side, redact: Redact): Promise<Difference> {
  const [old, now] = [decodeText(canonical.bytes), decodeText(copy.bytes)];
  if (old === null || now === null) {
    const which = old === now ? "Neither side is" : `The ${old === null ? "canonical" : "copy"} is not`;
    return { lines: [], said: `${which} UTF-8 text of a size to print, so there is no diff to show.` };
  }
  const said = describeFormat(old, now);
  if (said !== null) return { lines: [], said };
  const { formatPatch, OMIT_HEADERS, structuredPatch } = await import("diff");
  const header = [`--- canonical ${canonical.name}`, `+++ copy ${copy.name}`];
  const isSmall = Math.max(canonical.bytes.length, copy.bytes.length) <= SEARCH_LIMIT.bytes;
  const options = { context: 3, maxEditLength: SEARCH_LIMIT.edits };
  const patch = isSmall ? structuredPatch("", "", redact(old), redact(now), "", "", options) : undefined;
  if (patch === undefined) return limitDiff(header, replaceRest([canonical.bytes, copy.bytes], redact));
  if (patch.hunks.length === 0) return { lines: [], said: "The two differ in a secret, which is not shown." };
  const lines = formatPatch(patch, OMIT_HEADERS).split("\n").slice(0, -1);
  return limitDiff(header, { lines, count: lines.length });
}

/** Null for what is not text: invalid UTF-8, or a NUL in it. */
function decodeText(bytes: Buffer): string | null {
  return bytes.length <= TEXT_LIMIT && isUtf8(bytes) && !bytes.includes(0) ? bytes.toString() : null;
}

/** A sentence where the two differ in line endings, byte-order mark or final newline alone; else null. */
function describeFormat(canonical: string, copy: string): string | null {
  const unmark = (text: string) => text.replace(/^\ufeff/, "");
  const unend = (text: string) => text.replace(/(\r\n?|\n)$/, "");
  const plain = (text: string) => unend(unmark(text)).replace(/\r\n?/g, "\n");
  if (plain(canonical) !== plain(copy)) return null;
  const onlyOne = (has: (text: string) => boolean, what: string) =>
    has(canonical) === has(copy) ? [] : [`${what} (only the ${has(copy) ? "copy" : "canonical"} has it)`];
  const final = onlyOne((text) => unend(text) !== text, "a final newline");
  const rest = (text: string) => (final.length > 0 ? unend(unmark(text)) : unmark(text));
  const [old, now] = [canonical, copy].map((text) => text.split("\r").length - 1);
  const counts = `carriage returns: ${old} in the canonical, ${now} in the copy`;
  const endings = `line endings (${counts}; check .gitattributes)`;
  const mark = onlyOne((text) => unmark(text) !== text, "a byte-order mark");
  const parts = [...(rest(canonical) === rest(copy) ? [] : [endings]), ...mark, ...final];
  return `The two differ in nothing but ${parts.join(" and ")}.`;
}

/** A true diff, if not the smallest: from where they part, the canonical goes and the copy comes. */
function replaceRest([old, now]: readonly [Buffer, Buffer], redact: Redact) {
  const common = old.subarray(0, commonPrefix(old, now));
  const [start, first] = [common.lastIndexOf(NEWLINE) + 1, countLines(common) + 1];
  const partOf = (sign: string, bytes: Buffer) => {
    const rest = bytes.subarray(start);
    const count = countLines(rest) + (rest.length > 0 && rest.at(-1) !== NEWLINE ? 1 : 0);
    const head = rest.subarray(0, DIFF_LIMIT.bytes);
    // In whole lines, so that no secret is cut; of a longer line all that is shown is whole.
    const end = head.length < rest.length ? head.lastIndexOf(NEWLINE) : -1;
    const shown = redact(head.subarray(0, end > 0 ? end : head.length).toString());
    const lines = shown.split("\n", Math.min(count, DIFF_LIMIT.lines / 2));
    return {
      range: `${first - (count === 0 ? 1 : 0)},${count}`,
      count,
      lines: lines.map((line) => sign + line),
    };
  };
  const [gone, come] = [partOf("-", old), partOf("+", now)];
  const head = `@@ -${gone.range} +${come.range} @@`;
  return { lines: [head, ...gone.lines, ...come.lines], count: 1 + gone.count + come.count };
}

function limitDiff(header: readonly string[], { lines, count }: { lines: string[]; count: number }) {
  const shown: string[] = [];
  let bytes = 0;
  for (const line of [...header, ...lines].slice(0, DIFF_LIMIT.lines)) {
    const safe = escapeLogLine(line);
    const cut = safe.length > DIFF_LIMIT.lineLength ? `${safe.slice(0, DIFF_LIMIT.lineLength)}…` : safe;
    bytes += Buffer.byteLength(cut) + 1;
    if (bytes > DIFF_LIMIT.bytes) break;
    shown.push(cut);
  }
  const omitted = header.length + count - shown.length;
  return { lines: shown, said: omitted > 0 ? `${plural(omitted, "more line")} left out` : "" };
}

/** The names of a section's entries that differ, each list sorted. */
export interface SectionSummary {
  readonly missing: string[];
  readonly extra: string[];
  /** Keys of the entry that differ, by its name; none where an entry is not a mapping. */
  readonly changed: Record<string, string[]>;
}

/** What differs by name (`missing`, `extra` are the copy's), null where that cannot be told; and in words. */
export interface Summary {
  readonly sections: { readonly providers: SectionSummary; readonly runtimes: SectionSummary } | null;
  readonly said: string[];
}

/**
 * What the YAML library is given: bytes, comparisons of keys with each other, and uses of one anchor. Its
 * work grows with the square of what they bound; the worst that two files can do within them takes about
 * `ms`.
 */
const SUMMARY_LIMIT = { bytes: 98_304, keyComparisons: 1_000_000, aliases: 10, ms: 3000 };
/** How much of a summary's line is printed, and how many names in each of its lists. */
const SUMMARY_LINE = { length: 4000, names: 20 };

type Entries = Readonly<Record<string, unknown>>;

/**
 * Summarizes canonical and copy by name, in about `ms` milliseconds at the worst. Advisory: whatever is wrong
 * with the two only costs the summary.
 */
export async function summarize(
  files: readonly [Buffer, Buffer],
  { ms, redact }: { ms: number; redact: Redact },
): Promise<Summary> {
  const limit = Math.floor(SUMMARY_LIMIT.bytes * Math.sqrt(Math.min(1, Math.max(0, ms) / SUMMARY_LIMIT.ms)));
  const longest = Math.max(...files.map((bytes) => bytes.length));
  try {
    if (longest > limit) throw new Error(`a file of ${longest} bytes may take too long: ${limit} at most`);
    const [old, now] = [await parseYaml(files[0]), await parseYaml(files[1])];
    const providers = compareEntries(byName(old.providers), byName(now.providers), redact);
    const runtimes = compareEntries(mapping(old.runtimes), mapping(now.runtimes), redact);
    const others = differingKeys(old, now).filter((key) => key !== "providers" && key !== "runtimes");
    const named = others.map((key) => quote(redact(key)));
    const rest = named.length > 0 ? [`other keys of the file that differ: ${listOf(named)}`] : [];
    const said = [
      ...describeSection("providers", providers),
      ...describeSection("runtimes", runtimes),
      ...rest,
    ];
    return {
      sections: { providers, runtimes },
      said: said.map((line) => line.slice(0, SUMMARY_LINE.length)),
    };
  } catch (error) {
    return { sections: null, said: [`left out: ${quote(redact(textOf(error)))}`] };
  }
}

async function parseYaml(bytes: Buffer): Promise<Entries> {
  const { isScalar, parse } = await import("yaml");
  let left = SUMMARY_LIMIT.keyComparisons;
  const text = bytes.toString();
  // The library recurses, and a stack that is used up can abort the process.
  if (/(?:[[{]\s*){50}|(?:[-?:] +){50}|^ {500}/m.test(text)) throw new Error("a file is nested too deep");
  const value: unknown = parse(text, {
    intAsBigInt: true,
    logLevel: "error",
    prettyErrors: false,
    maxAliasCount: SUMMARY_LIMIT.aliases,
    uniqueKeys: (a, b) => {
      left -= 1;
      if (left < 0) throw new Error("a file has too many keys");
      return isScalar(a) && isScalar(b) && a.value === b.value;
    },
  });
  return mapping(value ?? "nothing");
}

function byName(list: unknown): Entries {
  if (!Array.isArray(list ?? [])) throw new Error("the providers are not a list");
  const entries = [list ?? []].flat().map((entry: unknown) => [valueAt(entry, "name"), entry] as const);
  const names = new Set(entries.map(([name]) => name).filter(isName));
  if (names.size < entries.length) throw new Error("two providers have one name, or one has none");
  return Object.fromEntries(entries);
}

function mapping(value: unknown): Entries {
  if (isRecord(value ?? {})) return Object.fromEntries(Object.entries(value ?? {}));
  throw new Error("the file or its runtimes are not a mapping");
}

function compareEntries(canonical: Entries, copy: Entries, redact: Redact): SectionSummary {
  const keys = differingKeys(canonical, copy);
  const inBoth = keys.filter((key) => Object.hasOwn(canonical, key) && Object.hasOwn(copy, key));
  const keysOf = (name: string) => differingKeys(canonical[name], copy[name]).map(redact);
  return {
    missing: keys.filter((key) => !Object.hasOwn(copy, key)).map(redact),
    extra: keys.filter((key) => !Object.hasOwn(canonical, key)).map(redact),
    changed: Object.fromEntries(inBoth.map((name) => [redact(name), keysOf(name)])),
  };
}

/** Sorted; none where one of the two is not a mapping. */
function differingKeys(canonical: unknown, copy: unknown): string[] {
  if (!isRecord(canonical) || !isRecord(copy)) return [];
  const keys = new Set([...Object.keys(canonical), ...Object.keys(copy)]);
  const differs = (key: string) => !isDeepStrictEqual(valueAt(canonical, key), valueAt(copy, key));
  return [...keys].filter(differs).sort();
}

function describeSection(name: string, { missing, extra, changed }: SectionSummary): string[] {
  const keysOf = (keys: string[]) => (keys.length > 0 ? ` (${listOf(keys.map(quote))})` : "");
  const changes = Object.entries(changed).map(([entry, keys]) => quote(entry) + keysOf(keys));
  const [gone, come] = [missing.map(quote), extra.map(quote)];
  const lists = Object.entries({ "missing in the copy": gone, "extra in the copy": come, changed: changes });
  const parts = lists.flatMap(([what, names]) => (names.length > 0 ? [`${what}: ${listOf(names)}`] : []));
  return parts.length > 0 ? [`${name}: ${parts.join("; ")}`] : [];
}

function listOf(names: readonly string[]): string {
  const rest = names.length - SUMMARY_LINE.names;
  return names.slice(0, SUMMARY_LINE.names).join(", ") + (rest > 0 ? ` and ${rest} more` : "");
}

// ─────────────────────────────── re-sync ───────────────────────────────

/**
 * Replaces a file at once or not at all: a temporary file beside it, flushed, then renamed over it. A link in
 * its place would be replaced, never followed. Throws what the system says.
 */
function replaceFile(path: string, bytes: Buffer): void {
  fs.mkdirSync(dirname(path), { recursive: true });
  const temporary = join(dirname(path), `.sync-${randomUUID()}.tmp`);
  try {
    const mode = fs.lstatSync(path, { throwIfNoEntry: false })?.mode;
    fs.writeFileSync(temporary, bytes, { flag: "wx", flush: true, mode: (mode ?? 0o666) & 0o777 });
    if (mode !== undefined) fs.chmodSync(temporary, mode & 0o7777);
    fs.renameSync(temporary, path);
  } catch (error) {
    fs.rmSync(temporary, { force: true });
    throw error;
  }
}

function replacePinnedSum({ bytes, offset }: Pin, sha256: string): Buffer {
  const [before, after] = [bytes.subarray(0, offset), bytes.subarray(offset + sha256.length)];
  return Buffer.concat([before, Buffer.from(sha256), after]);
}

/**
 * Writes the canonical bytes over the copy, then its sum into the pin, so that an interruption leaves a pin
 * that the gate reports. Writes only what is proven and differs; null where evidence is missing.
 */
function resync(run: Run, { copyPath }: Settings): Verdict | null {
  const { copy, canonical, pin } = run;
  if (!isHad(canonical) || copy instanceof Failure || pin instanceof Failure) return null;
  const written: string[] = [];
  const write = (reason: Reason, path: string, bytes: Buffer) => {
    try {
      replaceFile(path, bytes);
    } catch (error) {
      const before = written.length === 0 ? "No file was changed" : `${written.join()} was written before`;
      throw unverified(reason, `Cannot write ${quote(path)}: ${errnoText(error)}. ${before}.`);
    }
    written.push(quote(path));
  };
  const isCopyOld = copy === null || copy.sha256 !== canonical.sha256;
  const isPinOld = pin !== null && pin.sha256 !== canonical.sha256;
  if ((isCopyOld || isPinOld) && "proof" in canonical && canonical.proof !== "blob id")
    throw unfit("it names no blob id (ETag), and only what that proves is written: no file was changed");
  if (isCopyOld) write("copy-unreadable", copyPath, canonical.bytes);
  run.copy = { ...canonical, name: quote(copyPath) };
  if (isPinOld) {
    const bytes = replacePinnedSum(pin, canonical.sha256);
    write("pin-unreadable", pin.path, bytes);
    run.pin = { ...pin, bytes, sha256: canonical.sha256 };
  }
  const state = `The copy is the canonical file ${isCopyOld ? "now" : "already"}`;
  const done = written.length === 0 ? "nothing was written" : `wrote ${written.join(" and ")}`;
  const unpinned = pin === null ? " No pin was bumped, as SYNC_PIN_PATH is not set." : "";
  const next = "Regenerate what is built from the copy (go generate ./...), then commit it all together.";
  const remedy = written.length === 0 ? "" : next;
  return { status: "in-sync", message: `${state}: ${done}.${unpinned}`, remedy };
}

// ─────────────────────────────── report ───────────────────────────────

function describeContext({ event, branch, trusted, why }: Context): string {
  const name = event === "" ? "no event" : `event ${quote(event)}`;
  const trust = trusted ? "trusted" : "untrusted";
  return label("context", `${name}: row ${branch} of the case table, ${trust}: ${why}`);
}

function describeSide(what: string, { name, bytes, sha256 }: Side): string {
  return label(what, `${name}: ${plural(bytes.length, "byte")}, sha256 ${short({ sha256 })}`);
}

function explain(context: Context, token: TokenKind, isTokenDue: boolean): string[] {
  const compares = "compares: in-sync 0, drift 1, or unverified 3 when nothing can be compared";
  const local = `${compares}, as a local file stands in`;
  const job = context.trusted
    ? `${compares}; token-missing 1 where it may not read the canonical repository`
    : "not tried, as the forge gives a fork's job no access";
  const missing = context.trusted
    ? "token-missing, exit code 1: an error, nothing is fetched"
    : "skipped, exit code 0: a warning, nothing is fetched; a pin that does not agree is red all the same";
  return [
    describeContext(context),
    label("branch", `${context.branch} of 4, as the output and the JSON field of that name have it`),
    label("with", `AUTO_SYNC_TOKEN: ${compares}`),
    label("job", `SYNC_JOB_TOKEN in its place, at its own forge: ${isTokenDue ? job : local}`),
    label("without", `AUTO_SYNC_TOKEN: ${isTokenDue ? missing : local}`),
    label("token", `${token}, in this environment`),
  ];
}

/** `status (reason): what happened, which side moved. Do: what to do next`, on one harmless line. */
function formatVerdict({ status, reason, message, remedy }: Verdict): string {
  const next = remedy === "" ? "" : ` Do: ${remedy}`;
  return escapeForLog(`${status}${reason === undefined ? "" : ` (${reason})`}: ${message}${next}`);
}

function formatAnnotation(run: Run, verdict: Verdict): string {
  const { level } = STATUSES[verdict.status];
  if (level === "none") return label("verdict", formatVerdict(verdict));
  const path = escapeProperty(escapeForLog(run.settings?.copyPath ?? ""));
  const place = verdict.line === undefined ? "" : ` file=${path},line=${verdict.line}`;
  return `::${level}${place}::${escapeData(formatVerdict(verdict))}`;
}

function formatMarkdown(verdict: Verdict): string {
  return `**${verdict.status}**${escapeMarkdown(formatVerdict(verdict).slice(verdict.status.length))}`;
}

/**
 * Tells what was found, to people, to the runner's files and to the alarm's issue; the verdict last, because
 * a log is read from its end. Returns the JSON document.
 */
async function report(run: Run, [verdict, ...others]: Verdicts): Promise<Document> {
  const document = documentOf(run, verdict);
  const { lines: diff, said } = run.difference;
  const named = run.summary?.said ?? [];
  const none = diff.length > 0 ? ["nothing differs by name: the diff shows what does"] : [];
  const names = named.length > 0 ? named : none;
  const summary = names.map((line) => label("summary", line));
  const rest = said === "" ? [] : [label("difference", said)];
  // No command in the diff is obeyed until the random word returns.
  const word = randomUUID();
  const guarded = diff.length > 0 ? [`::stop-commands::${word}`, ...diff, `::${word}::`] : [];
  for (const { status, message } of others) run.log(label("also", escapeForLog(`${status}: ${message}`)));
  for (const line of [...summary, ...guarded, ...rest]) run.log(line);
  append(run, "GITHUB_OUTPUT", formatOutputs(document));
  append(run, "GITHUB_STEP_SUMMARY", formatStepSummary(run, verdict, [...summary, ...diff, ...rest]));
  await keepAlarm(run, verdict, document);
  run.log(formatAnnotation(run, verdict));
  return document;
}

/** Appends to a file of the runner's. That it cannot be written costs a line of the log, not the verdict. */
function append(run: Run, name: "GITHUB_OUTPUT" | "GITHUB_STEP_SUMMARY", text: string): void {
  const path = run.env[name];
  if (path === undefined) return;
  const { O_WRONLY, O_APPEND, O_CREAT, O_NONBLOCK } = fs.constants;
  try {
    const file = fs.openSync(path, O_WRONLY | O_APPEND | O_CREAT | O_NONBLOCK);
    fs.writeFileSync(file, run.redact(text));
    fs.closeSync(file);
  } catch (error) {
    run.log(label("note", `Cannot write ${name} ${quote(path)}: ${errnoText(error)}. The verdict stands.`));
  }
}

type Document = ReturnType<typeof documentOf>;

/** The JSON document, schema 1. What is not known is null. */
function documentOf(run: Run, { status, reason, message, remedy, line, moved }: Verdict) {
  const { settings, context } = run;
  const sums = (part: Side | Failure | null) => {
    const had = isHad(part) ? part : null;
    return { bytes: had?.bytes.length ?? null, sha256: had?.sha256 ?? null };
  };
  const { canonical } = run;
  const found = canonical !== null && "commit" in canonical ? canonical : null;
  const forge = settings?.canonicalFile === undefined ? settings : null;
  return {
    schema: 1,
    status,
    reason: reason ?? null,
    exitCode: STATUSES[status].exitCode,
    event: context?.event || null,
    branch: context?.branch ?? null,
    trusted: context?.trusted ?? null,
    token: run.token,
    message: escapeForLog(message),
    remedy: escapeForLog(remedy),
    copy: { path: settings?.copyPath ?? null, ...sums(run.copy) },
    canonical: {
      server: forge?.server ?? null,
      repo: found?.repo ?? forge?.repo ?? null,
      ref: forge?.ref ?? null,
      commit: found?.commit ?? null,
      path: forge?.path ?? settings?.canonicalFile ?? null,
      ...sums(canonical),
    },
    pin: settings?.pinPath === undefined ? null : { path: settings.pinPath, sha256: sums(run.pin).sha256 },
    moved: moved ?? null,
    firstDifferingLine: line ?? null,
    summary: run.summary?.sections ?? null,
    attempts: run.attempts,
    elapsedMs: Math.round(performance.now() - run.startedAt),
  };
}

/** The step's outputs, each between random delimiters, so that no value can end its own. */
function formatOutputs(document: Document): string {
  const { status, reason, exitCode, branch, trusted, event, copy, canonical } = document;
  const known = { status, reason, "exit-code": exitCode, branch, trusted, event: truncate(event ?? "") };
  const sums = { "copy-sha256": copy.sha256, "canonical-sha256": canonical.sha256 };
  const word = `end-${randomUUID()}`;
  const outputs = Object.entries({ ...known, ...sums, "canonical-commit": canonical.commit });
  return outputs.map(([name, value]) => `${name}<<${word}\n${value ?? ""}\n${word}\n`).join("");
}

/** The verdict, the sides, what differs by name, and the diff, as Markdown that foreign text cannot leave. */
function formatStepSummary(run: Run, verdict: Verdict, shown: readonly string[]): string {
  const row = (what: string, { name, bytes, sha256 }: Side) =>
    `| ${what} | ${escapeMarkdown(name)} | ${bytes.length} | \`${sha256}\` |`;
  const sides = Object.entries({ copy: run.copy, canonical: run.canonical, pin: run.pin });
  const rows = sides.flatMap(([what, side]) => (isHad(side) ? [row(what, side)] : []));
  const head = ["", "| side | where | bytes | sha256 |", "| --- | --- | --- | --- |"];
  const runs = shown.flatMap((line) => line.match(/`+/g) ?? []).map((ticks) => ticks.length);
  const fence = "`".repeat(Math.max(2, ...runs) + 1);
  const table = rows.length > 0 ? [...head, ...rows] : [];
  const block = shown.length > 0 ? ["", `${fence}diff`, ...shown, fence] : [];
  return [formatMarkdown(verdict), ...table, ...block, "\n"].join("\n");
}

/** JSON that is inert on a runner: its escapes mean the same characters, no line of it holds a command. */
export function toJson(document: unknown): string {
  const escapeUnit = (unit: string) => `\\u${unit.charCodeAt(0).toString(16).padStart(4, "0")}`;
  const special = /:{2,}|##(?=\[)|[\u007f-\u009f\p{Cf}\p{Zl}\p{Zp}]/gu;
  return JSON.stringify(document, null, 2).replace(special, (text) => text.replace(/[\s\S]/g, escapeUnit));
}

// ─────────────────────────────── alarm ───────────────────────────────

/** The runs that nobody looks at: Gitea tells nobody when they fail. */
const UNATTENDED_EVENTS: ReadonlySet<string> = new Set(["schedule", "workflow_dispatch"]);
/** At least as long as this, whatever the run's deadline leaves. */
const ALARM_MS = 10_000;
/** Gitea's largest page; the pages are bounded in case they never end. */
const ISSUES = { perPage: 50, maxPages: 100, bytes: 4_194_304 };

/** What becomes of the issue. Could not check is not drift: such a verdict leaves it as it is. */
function alarmOf({ status, reason }: Verdict): "raise" | "close" | "leave" {
  const { alarm } = STATUSES[status];
  if (alarm !== "by reason") return alarm;
  return reason !== undefined && reason in LASTING ? "raise" : "leave";
}

/** Keeps one issue in step with the verdict, which never depends on it: what goes wrong is logged. */
async function keepAlarm(run: Run, verdict: Verdict, document: Document): Promise<void> {
  const { settings, context, jobToken, env } = run;
  if (!settings?.alarm || !UNATTENDED_EVENTS.has(context?.event ?? "")) return;
  const alarm = alarmOf(verdict);
  if (alarm === "leave") return run.log(label("alarm", "left as it is: nothing was compared"));
  const { GITHUB_SERVER_URL: url = "", GITHUB_REPOSITORY: repo = "" } = env;
  const needs = { SYNC_JOB_TOKEN: jobToken.value, GITHUB_SERVER_URL: url, GITHUB_REPOSITORY: repo };
  const lacks = Object.entries(needs).flatMap(([name, value]) => (value === "" ? [name] : []));
  if (lacks.length > 0) return run.log(label("alarm", `off: no usable ${lacks.join(", ")}`));
  try {
    const server = checkServer("GITHUB_SERVER_URL", url, settings.allowHttp);
    if (!isRepoName(repo)) throw usage("Cannot use GITHUB_REPOSITORY: it is not owner/name.", "");
    const endsAt = Math.max(run.startedAt + settings.timeoutMs, performance.now() + ALARM_MS);
    const job = { path: settings.copyPath, number: env.GITHUB_RUN_NUMBER ?? "", place: `${server}/${repo}` };
    const text = issueOf(verdict, document, job);
    const to = { server, token: jobToken.value, repo, endsAt, redirectsLeft: 0 };
    run.log(label("alarm", await withSession(run, to, (session) => syncIssue(session, alarm, text))));
  } catch (error) {
    const found = run.redact(textOf(error));
    const advice = "The job needs issues: write, and the repository its issues";
    run.log(label("note", `${escapeForLog(found)} The alarm was not kept: the verdict stands. ${advice}.`));
  }
}

/** What the issue says: no diff, no names from the canonical, which is private; the issue may be public. */
function issueOf(verdict: Verdict, document: Document, job: { path: string; number: string; place: string }) {
  const { copy, canonical } = document;
  // encodeURI leaves no ">" that could end the comment.
  const marker = `<!-- sync-providers: ${encodeURI(job.path)} -->`;
  const number = /^\d+$/.test(job.number) ? job.number : "of an unknown number";
  const run = `Run ${number}: [Actions](${encodeURI(job.place)}/actions)`;
  const sums = Object.entries({ copy: copy.sha256, canonical: canonical.sha256, commit: canonical.commit });
  const known = sums.flatMap(([name, sum]) => (sum === null ? [] : [`- ${name}: \`${sum}\``]));
  const body = [formatMarkdown(verdict), "", ...known, "", run, "", marker].join("\n");
  // No Markdown, but Gitea reads mentions and numbers of issues in a title.
  const plain = job.path.replace(/[^\w./ -]/gu, (mark) => `%${Buffer.from(mark).toString("hex")}`);
  return { title: `sync-providers: ${verdict.status} of ${plain}`.slice(0, 200), body, marker, run };
}

async function syncIssue(session: Session, alarm: "raise" | "close", text: ReturnType<typeof issueOf>) {
  const { title, body, marker, run } = text;
  const change = (method: "POST" | "PATCH", path: string, content: Readonly<Record<string, string>>) => {
    const what = method === "POST" && path === "" ? "a new issue" : "the change of the issue";
    return ask(session, { what, path: `/repos/{repo}/issues${path}`, change: { method, body: content } });
  };
  const issue = await findIssue(session, marker);
  if (alarm === "close") {
    if (issue === null) return "no issue is open, and none is needed";
    await change("POST", `/${issue.number}/comments`, { body: `In sync again. ${run}` });
    await change("PATCH", `/${issue.number}`, { state: "closed" });
    return `issue ${issue.number} closed: in sync again`;
  }
  if (issue === null) {
    const number = valueAt(await change("POST", "", { title, body }), "value", "number");
    return `issue ${isId(number) ? number : "of an unknown number"} opened`;
  }
  if (issue.body.replaceAll("\r\n", "\n").trim() === body) return `issue ${issue.number} says so already`;
  await change("PATCH", `/${issue.number}`, { title, body });
  return `issue ${issue.number} edited`;
}

/** The open issue of the lowest number that the token's own user wrote and that holds the marker, or null. */
async function findIssue(session: Session, marker: string): Promise<{ number: number; body: string } | null> {
  const me = valueAt((await ask(session, { what: "the token's user", path: "/user" })).value, "id");
  const [what, limit] = ["the open issues", ISSUES.bytes];
  let [found, seen]: [{ number: number; body: string } | null, number] = [null, 0];
  for (let page = 1; page <= ISSUES.maxPages; page += 1) {
    const path = `/repos/{repo}/issues?state=open&type=issues&limit=${ISSUES.perPage}&page=${page}`;
    const { value: issues, headers } = await ask(session, { what, path, limit });
    if (!Number.isSafeInteger(me) || !Array.isArray(issues))
      throw unverified("bad-response", `Cannot use the forge's answer for ${what} or the token's user.`);
    for (const issue of issues) {
      const [number, body] = [valueAt(issue, "number"), valueAt(issue, "body")];
      const isOurs = valueAt(issue, "user", "id") === me && valueAt(issue, "state") === "open";
      if (!isOurs || !isId(number) || typeof body !== "string" || !body.includes(marker)) continue;
      if (found === null || number < found.number) found = { number, body };
    }
    seen += issues.length;
    const isLast = issues.length < ISSUES.perPage && seen >= Number(headers["x-total-count"] ?? seen);
    if (issues.length === 0 || isLast) return found;
  }
  throw unverified("too-large", `Cannot find the issue in the first ${ISSUES.maxPages} pages of them.`);
}

// ──────────────────────────────── main ────────────────────────────────

/** Where the lines go: `stdout` is the log, or with `--json` the document alone. One call is one line. */
export type Writer = (line: string, stream: "stdout" | "stderr") => void;

/**
 * The gate as a function: the arguments (without node and script), the environment, and a writer of lines in;
 * the exit code out. `command` is how a person would run it again; `crashed` rejects with what was thrown
 * outside of every promise, which is the verdict then. It never throws, unless the writer does.
 */
export async function main(
  argv: readonly string[],
  env: Env,
  write: Writer,
  { command = "npx tsx sync-providers.ts", crashed = new Promise<never>(() => {}) } = {},
): Promise<number> {
  const isJson = argv.includes("--json");
  const run = new Run(env, command, (line) => write(line, isJson ? "stderr" : "stdout"));
  let found: Verdicts | null;
  try {
    found = await Promise.race([decide(run, argv.map(run.redact)), crashed]);
  } catch (error) {
    found = [error instanceof Failure ? error.verdict : unexpected(run, error)];
  }
  if (found === null) return 0;
  const document = await report(run, found);
  if (isJson) write(run.redact(toJson(document)), "stdout");
  return document.exitCode;
}

/** An exception that nobody foresaw: red, with its message; its stack only on demand. */
function unexpected(run: Run, error: unknown): Verdict {
  const stack = error instanceof Error && run.env.SYNC_DEBUG === "1" ? String(error.stack).split("\n") : [];
  for (const line of stack) run.log(label("debug", escapeForLog(run.redact(line))));
  const remedy = codeOf(error).endsWith("MODULE_NOT_FOUND")
    ? "Install what the gate needs first: npm ci --omit=dev."
    : "Rerun with SYNC_DEBUG=1 and report what it prints: this is a fault of the gate.";
  return { status: "unverified", message: `Cannot finish: ${quote(run.redact(textOf(error)))}.`, remedy };
}

/** The verdict, or null where only words were asked for. Throws a {@link Failure}, or the unexpected. */
async function decide(run: Run, argv: readonly string[]): Promise<Verdicts | null> {
  const flags = parseFlags(argv);
  const print = (lines: readonly string[]) => {
    for (const line of lines) run.log(line);
    return null;
  };
  if (flags.help || flags.version) return print(flags.help ? HELP.split("\n") : [VERSION]);
  const settings = readSettings(flags, run.env);
  run.settings = settings;
  if (!flags.explain) return conclude(run, settings);
  const context = await readContext(settings, run.redact);
  return print(explain(context, tokenOf(run, context, settings), requiresToken(settings)));
}

async function conclude(run: Run, settings: Settings): Promise<Verdicts> {
  refuseSameFile(settings);
  const context = await readContext(settings, run.redact);
  run.context = context;
  run.token = tokenOf(run, context, settings);
  run.log(describeContext(context));
  await gather(run, settings, run.token);
  const written = settings.write ? resync(run, settings) : null;
  if (written !== null) return [written];
  const { token, copy, canonical, pin } = run;
  const command = resyncCommand(run, settings);
  const evidence = { context, token, requiresToken: requiresToken(settings), copy, canonical, pin, command };
  // A re-sync that could not be made compares nothing.
  const rest = { copy: isHad(copy) ? null : copy, canonical: isHad(canonical) ? null : canonical };
  const found = judge(settings.write ? { ...evidence, ...rest } : evidence);
  if (found[0].status === "drift" && isHad(copy) && isHad(canonical)) {
    const ms = run.startedAt + settings.timeoutMs - performance.now();
    run.summary = await summarize([canonical.bytes, copy.bytes], { ms, redact: run.redact });
    run.difference = await explainDifference(canonical, copy, run.redact);
  }
  return found;
}

/** Whether a missing token counts: a local file needs none, but a replay rehearses what a runner would do. */
function requiresToken({ canonicalFile, replay }: Settings): boolean {
  return canonicalFile === undefined || replay !== undefined;
}

/** The command that re-syncs, with the settings of this run: without its pin a copy would be red again. */
function resyncCommand({ command, env }: Run, settings: Settings): string {
  const { copyPath, pinPath, canonicalFile, server } = settings;
  const isTold = ([name]: readonly [string, unknown]) => /^SYNC_(ALLOW|CANONICAL|MAX)_/.test(name);
  const all = Object.entries({ SYNC_CANONICAL_SERVER: server, ...env });
  const told = canonicalFile === undefined ? all.filter(isTold) : [];
  const copy = copyPath === DEFAULT_COPY ? "" : copyPath;
  const words = [...told, ["SYNC_COPY_PATH", copy] as const, ["SYNC_PIN_PATH", pinPath] as const];
  const set = words.flatMap(([name, value]) => (value ? [`${name}=${quoteForShell(value)}`] : []));
  const local = canonicalFile === undefined ? [] : ["--canonical", quoteForShell(canonicalFile)];
  return [...set, command, "--write", ...local].join(" ");
}

function requireServer({ server }: Settings): string {
  if (server !== null) return server;
  const unset = "The setting SYNC_CANONICAL_SERVER is not set, nor is GITHUB_SERVER_URL.";
  throw usage(unset, "Set the forge's base URL, such as https://git.example.com.");
}

/** Gathers the evidence, with its lines in the log. Without a pin the copy is read only to compare. */
async function gather(run: Run, settings: Settings, token: TokenKind): Promise<void> {
  const { canonicalFile, pinPath, maxBytes } = settings;
  const compares = token === "secret" || token === "job" || !requiresToken(settings);
  if (compares && canonicalFile === undefined) requireServer(settings);
  if (compares || pinPath !== undefined) run.copy = await settle(readCopy(settings));
  if (isHad(run.copy)) run.log(describeSide("copy", run.copy));
  if (pinPath !== undefined) run.pin = await settle(readPin(pinPath, maxBytes));
  if (isHad(run.pin)) run.log(label("pin", `${run.pin.name}: sha256 ${short(run.pin)}`));
  if (!compares || run.copy instanceof Failure) return;
  if (canonicalFile !== undefined) run.canonical = await settle(readLocalCanonical(canonicalFile, maxBytes));
  else if (token === "job") await tryJobToken(run, settings);
  else run.canonical = await settle(fetchWith(run, settings, "secret"));
  if (isHad(run.canonical)) run.log(describeSide("canonical", run.canonical));
}

const JOB_REFUSED: ReadonlySet<unknown> = new Set(["token-rejected", "token-scope", "repo-not-visible"]);
/** Where the forge does not let the job's own token read, it is as if it had not been tried. */
async function tryJobToken(run: Run, settings: Settings): Promise<void> {
  run.canonical = await settle(fetchWith(run, settings, "job"));
  const { canonical } = run;
  if (!(canonical instanceof Failure) || !JOB_REFUSED.has(canonical.verdict.reason)) return;
  run.log(label("token", `the job's own may not read it: ${canonical.message}`));
  run.canonical = null;
  run.token = "missing";
}

/** Fetches the canonical file and says with which token; refuses what may be a part of it. */
async function fetchWith(run: Run, settings: Settings, whose: "secret" | "job"): Promise<Canonical> {
  const { repo, timeoutMs } = settings;
  const server = requireServer(settings);
  const token = whose === "secret" ? run.secret.value : run.jobToken.value;
  const name = whose === "secret" ? "AUTO_SYNC_TOKEN, the secret" : "SYNC_JOB_TOKEN, the job's own";
  const endsAt = run.startedAt + timeoutMs;
  const to = { server, token, repo, endsAt, redirectsLeft: MAX_REDIRECTS };
  const canonical = await withSession(run, to, (session) => {
    // Through a tunnel a proxy sees what is sent only where there is no TLS.
    const via = session.proxy.url === "" ? "" : " (a proxy can read it only where the server is plain http:)";
    run.log(label("token", `${name}, sent to ${server} and nowhere else${via}`));
    return fetchCanonical(session, settings);
  });
  const isTheCopy = isHad(run.copy) && canonical.bytes.length > 0 && run.copy.bytes.equals(canonical.bytes);
  if (canonical.proof !== "none" || isTheCopy) return canonical;
  throw unfit("it names no length, chunks or blob id, so it may be a part of the file");
}

/**
 * True when this file is what was run, not imported. What came by no name (standard input), or by one that is
 * no file, was started in a way unknown here: then it runs, for a gate that does not run is green.
 */
function isMain(script: string): boolean {
  const self = fileURLToPath(import.meta.url);
  if (script === "") return !fs.existsSync(self);
  if (fs.statSync(script, { throwIfNoEntry: false })?.isFile() !== true) return true;
  return fs.realpathSync.native(script) === fs.realpathSync.native(self);
}

const [, script = ""] = process.argv;
if (isMain(script)) {
  // Red until the verdict says otherwise: a run that ends on its way has compared nothing.
  process.exitCode = STATUSES.unverified.exitCode;
  // Nothing cancels a name lookup, and even process.exit() waits for it, by default 10 s for each silent name
  // server. glibc reads this at the first lookup; the gate's own retries make up for it.
  process.env.RES_OPTIONS ??= "timeout:1 attempts:1";
  // Whoever reads may go away early (EPIPE); the exit code still says it all.
  for (const stream of [process.stdout, process.stderr]) stream.on("error", () => {});
  let isOver = false;
  const write: Writer = (line, stream) => void (isOver || process[stream].write(`${line}\n`));
  // After the verdict nothing counts, whatever a library left behind; a slow reader still gets every line.
  const end = (exitCode: number) => {
    isOver = true;
    process.stdout.write("", () => process.stderr.write("", () => process.exit(exitCode)));
  };
  const crashed = new Promise<never>((_, reject) => process.on("uncaughtException", reject));
  const isTsx = process.execArgv.some((argument) => argument.includes("tsx"));
  const runner = "Deno" in globalThis ? "deno run -A" : isTsx ? "npx tsx" : "node";
  const command = `${runner} ${quoteForShell(relative(process.cwd(), script))}`;
  // No top-level await: in a package that is not "type": "module", tsx runs this file as CommonJS.
  main(process.argv.slice(2), process.env, write, { command, crashed }).then(end);
}
