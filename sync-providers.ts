/**
 * sync-providers: fails a workflow when a repository's copy of a file differs from the canonical file, which is in
 * another repository, by default on the same Gitea or Forgejo server.
 *
 *   npx tsx sync-providers.ts --help
 *
 * Only one kind of run passes without a comparison: a pull request from a fork, because forks get no secrets. If it has
 * no token that can read the canonical repository, the gate prints a warning and passes.
 *
 * The token is read in section 3, and sent in section 7, in one header to one server. Section 10 redacts it in everything
 * that is printed.
 *
 * The pin, if there is one, is a file that contains the sha256 of the copy. After a drift it helps to tell which file has changed.
 *
 * The sections are in the order of a run. Within a section, callers stand above the functions that they call.
 *
 *   1. Main        4. Context: the case table    7. Requests              10. Text
 *   2. Verdicts    5. The copy and the pin       8. Comparison            11. Start
 *   3. Settings    6. The canonical file         9. What a drift prints
 */

import { isUtf8 } from "node:buffer";
import { createHash } from "node:crypto";
import * as fs from "node:fs";
import { dirname, relative } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import type { Client, Dispatcher } from "undici";

// ------------------------------------------------------------------------------------------------
// 1. Main
// ------------------------------------------------------------------------------------------------

/** The environment, like `process.env`. */
export type Env = Readonly<Record<string, string | undefined>>;

/** Runs the gate. Writes the log line by line, and returns the exit code of the process. */
export async function main(argv: readonly string[], env: Env, write: (line: string) => void): Promise<number> {
  if (argv.includes("--help")) {
    write(HELP);
    return 0;
  }
  const print = createPrint(env, write);
  let verdict: Verdict;
  try {
    const settings = readSettings(argv, env);
    verdict = settings.write ? await resync(settings, print) : await check(settings, print);
    if (verdict.status === "drift" || verdict.status === "pin-mismatch") {
      printResyncCommand(settings, print);
    }
  } catch (error) {
    verdict = toVerdict(error, print);
  }
  printVerdict(verdict, print);
  return EXIT_CODES[verdict.status];
}

/** Compares the copy with the canonical file, and prints what the verdict is based on. */
async function check(settings: Settings, print: Print): Promise<Verdict> {
  const context = readContext(settings);
  print(`context    ${describeContext(context)}`);
  const copy = readCopy(settings);
  print(`copy       ${describeFile(copy)}`);
  const pin = readPin(settings);
  print(`pin        ${describePin(pin, copy)}`);
  if (lacksToken(settings)) {
    print("token      AUTO_SYNC_TOKEN is not set");
    return context.trusted ? tokenMissing(context, settings) : skip(copy, pin);
  }
  let canonical: CanonicalFile;
  try {
    canonical = await readCanonical(settings, print);
  } catch (error) {
    if (context.trusted || !isRefusal(error)) {
      throw error;
    }
    // A fork's job may have a token that cannot read this repository. It counts as no token.
    print(`refused    ${error.message}`);
    return skip(copy, pin);
  }
  const verdict = compare(copy, pin, canonical);
  if (verdict.status === "drift") {
    await explainDrift(copy, canonical, print);
  }
  return verdict;
}

/** Writes the canonical file over the copy, and its sha256 into the pin. */
async function resync(settings: Settings, print: Print): Promise<Verdict> {
  const { copyPath } = settings;
  if (lacksToken(settings)) {
    const message = "AUTO_SYNC_TOKEN is not set, so nothing was written.";
    return { status: "token-missing", message, remedy: TOKEN_PROMPT };
  }
  const copy = exists(copyPath) ? readCopy(settings) : undefined;
  const pin = readPin(settings);
  const canonical = await readCanonical(settings, print);
  const written: string[] = [];
  // The copy first: if writing the pin then fails, the next run reports it.
  if (copy?.sha256 !== canonical.sha256) {
    writeFile(copyPath, canonical.bytes);
    written.push(quote(copyPath));
  }
  if (pin !== undefined && pin.sha256 !== canonical.sha256) {
    writeFile(pin.path, Buffer.from(pin.text.replace(SHA256_WORD, canonical.sha256), "latin1"));
    written.push(quote(pin.path));
  }
  if (written.length === 0) {
    const message = "The copy matches the canonical file, so nothing was written.";
    return { status: "in-sync", message, remedy: "" };
  }
  return {
    status: "written",
    message: `Wrote ${written.join(" and ")}.`,
    remedy: "Regenerate what is built from the copy, and commit everything together.",
  };
}

// ------------------------------------------------------------------------------------------------
// 2. Verdicts
// ------------------------------------------------------------------------------------------------

/** Every status with its exit code. */
export const EXIT_CODES = {
  "in-sync": 0, // the copy and the canonical file are the same bytes, and the pin, if any, agrees
  written: 0, // a re-sync changed the copy, the pin or both
  skipped: 0, // a pull request from a fork, without a token: nothing was compared
  drift: 1, // the bytes differ
  "token-missing": 1, // a trusted run, or a re-sync, without a token
  "pin-mismatch": 1, // the copy is not what the pin says
  usage: 2, // a flag or setting is wrong
  unverified: 3, // there is no valid comparison; the reason says why
} as const;

export type Status = keyof typeof EXIT_CODES;

/** Every reason for `unverified`, with what to do about it. */
export const REMEDIES = {
  "copy-unreadable": "Check SYNC_COPY_PATH and the checkout. For a first copy, run with --write.",
  "pin-unreadable": "Check SYNC_PIN_PATH: the file must contain exactly one word of 64 hex digits.",
  "write-failed": "Check the permissions and the free space.",
  "token-rejected": "The token is wrong, revoked or expired. Make a new one and store it as AUTO_SYNC_TOKEN.",
  "token-scope": "Give the token the scope read:repository, and its user access to the repository.",
  "repo-not-visible": "Check SYNC_CANONICAL_REPO, and that the token's user may read that repository.",
  "repo-archived": "Set SYNC_CANONICAL_REPO to the repository that replaced it.",
  "ref-not-found": "Check SYNC_CANONICAL_REF: it must be a branch, a tag or a commit.",
  "file-not-found": "Check SYNC_CANONICAL_PATH (or --canonical): the file may have been moved.",
  redirected: "Set SYNC_CANONICAL_SERVER and SYNC_CANONICAL_REPO to the new place.",
  "too-large": "Check that this is the right file.",
  unreachable: "Check SYNC_CANONICAL_SERVER, the network and the proxy, then rerun.",
  timeout: "Rerun. If it happens again, check the server and the network, or raise SYNC_TIMEOUT_SECONDS.",
  "server-error": "Rerun later. If it happens again, look at the server's log.",
  "bad-response": "Check SYNC_CANONICAL_SERVER and what is in front of the server.",
} as const;

export type Reason = keyof typeof REMEDIES;

/** The result of a run. */
export interface Verdict {
  readonly status: Status;
  /** Set if the status is `unverified`, except after an exception that is not a Failure. */
  readonly reason?: Reason;
  /** What was found. */
  readonly message: string;
  /** What to do about it. May be empty. */
  readonly remedy: string;
}

/** An expected failure: a setting, a file, the network or the server is at fault, not the gate. */
class Failure extends Error {
  readonly verdict: Verdict;
  /** How long to wait before another attempt, in milliseconds. Undefined if another attempt cannot help. */
  readonly retryAfterMs: number | undefined;

  constructor(verdict: Verdict, retryAfterMs?: number) {
    super(verdict.message);
    this.verdict = verdict;
    this.retryAfterMs = retryAfterMs;
  }
}

function usage(message: string, remedy: string): Failure {
  return new Failure({ status: "usage", message, remedy });
}

function unverified(reason: Reason, message: string, remedy: string = REMEDIES[reason]): Failure {
  return new Failure({ status: "unverified", reason, message, remedy });
}

/** A failure that may pass by itself. */
function transient(reason: Reason, message: string, retryAfterMs = 0): Failure {
  return new Failure({ status: "unverified", reason, message, remedy: REMEDIES[reason] }, retryAfterMs);
}

/** True if the server does not know the token, or does not let it read the repository. */
function isRefusal(error: unknown): error is Failure {
  const refusals: readonly unknown[] = ["token-rejected", "token-scope", "repo-not-visible"];
  return error instanceof Failure && refusals.includes(error.verdict.reason);
}

/** The verdict on an exception. An unexpected one never passes. */
function toVerdict(error: unknown, print: Print): Verdict {
  if (error instanceof Failure) {
    return error.verdict;
  }
  if (errorCode(error).endsWith("MODULE_NOT_FOUND")) {
    const message = `A package is not installed: ${errorText(error)}.`;
    return { status: "unverified", message, remedy: "Run npm ci --omit=dev." };
  }
  for (const line of String(error instanceof Error ? error.stack : error).split("\n")) {
    print(`stack      ${line}`);
  }
  const message = `Unexpected error: ${errorText(error)}.`;
  return { status: "unverified", message, remedy: "Please report it, with the stack above." };
}

/** Prints the verdict, the last line of the log: as an annotation, if the run failed or was skipped. */
function printVerdict({ status, reason, message, remedy }: Verdict, print: Print): void {
  const name = reason === undefined ? status : `${status} (${reason})`;
  const text = `${name}: ${message} ${remedy}`.trim();
  if (status === "skipped") {
    print(text, "warning");
  } else if (EXIT_CODES[status] > 0) {
    print(text, "error");
  } else {
    print(text);
  }
}

// ------------------------------------------------------------------------------------------------
// 3. Settings
// ------------------------------------------------------------------------------------------------

const DEFAULTS = {
  SYNC_CANONICAL_REPO: "molecule-ai/molecule-controlplane",
  SYNC_CANONICAL_PATH: "internal/providers/providers.yaml",
  SYNC_CANONICAL_REF: "main",
  SYNC_COPY_PATH: "workspace-server/internal/providers/providers.yaml",
  SYNC_TIMEOUT_SECONDS: "60",
} as const;

const HELP = `\
Usage: npx tsx sync-providers.ts [flags]

Compares a repository's copy of a file with the canonical file in another repository, byte for byte.

Flags
  --write             re-sync: replace the copy, and the sha256 in the pin
  --replay FILE       replay a captured event: its payload alone, or an object with event_name and event
  --canonical FILE    compare with a local file: nothing is fetched
  --copy FILE         overrides SYNC_COPY_PATH
  --help

Environment (an empty variable counts as unset)
  GITHUB_EVENT_NAME, GITHUB_EVENT_PATH   the event, as the runner sets them
  AUTO_SYNC_TOKEN         the token that reads the canonical repository
  SYNC_CANONICAL_SERVER   the server of the canonical repository; default: GITHUB_SERVER_URL
  SYNC_CANONICAL_REPO     default: ${DEFAULTS.SYNC_CANONICAL_REPO}
  SYNC_CANONICAL_PATH     default: ${DEFAULTS.SYNC_CANONICAL_PATH}
  SYNC_CANONICAL_REF      a branch, tag or commit; default: ${DEFAULTS.SYNC_CANONICAL_REF}
  SYNC_COPY_PATH          default: ${DEFAULTS.SYNC_COPY_PATH}
  SYNC_PIN_PATH           a file that contains the sha256 of the copy; default: no pin is checked
  SYNC_ALLOW_HTTP         1: allow plain http: to another machine (the token is sent unencrypted)
  SYNC_TIMEOUT_SECONDS    when to give up on the server; default: ${DEFAULTS.SYNC_TIMEOUT_SECONDS}
  HTTPS_PROXY, HTTP_PROXY, ALL_PROXY, NO_PROXY, NODE_EXTRA_CA_CERTS

Exit codes
  0  in-sync, written, or skipped (a pull request from a fork, without a token)
  1  drift, token-missing, pin-mismatch
  2  usage: a flag or setting is wrong
  3  unverified: there is no valid comparison`;

/** Reads and checks the settings. A variable that is not set is empty. Throws a `usage` failure. */
function readSettings(argv: readonly string[], env: Env) {
  const flags = parseFlags(argv);
  const variable = (name: string, fallback = "") => env[name]?.trim() || fallback;
  const settings = {
    /** Re-sync instead of comparing. */
    write: flags.write ?? false,
    eventName: variable("GITHUB_EVENT_NAME"),
    eventPath: variable("GITHUB_EVENT_PATH"),
    /** A captured event that replaces the one of the run. */
    replayPath: flags.replay,
    token: variable("AUTO_SYNC_TOKEN"),
    /** The base URL of the server that is sent the token. */
    server: variable("SYNC_CANONICAL_SERVER", variable("GITHUB_SERVER_URL")),
    allowHttp: variable("SYNC_ALLOW_HTTP") === "1",
    /** `owner/name` of the canonical repository. */
    repo: variable("SYNC_CANONICAL_REPO", DEFAULTS.SYNC_CANONICAL_REPO),
    /** The canonical file in that repository. */
    canonicalPath: variable("SYNC_CANONICAL_PATH", DEFAULTS.SYNC_CANONICAL_PATH),
    /** A branch, a tag or a commit of that repository. */
    ref: variable("SYNC_CANONICAL_REF", DEFAULTS.SYNC_CANONICAL_REF),
    /** A local file that replaces the one on the server. */
    localCanonical: flags.canonical,
    copyPath: flags.copy ?? variable("SYNC_COPY_PATH", DEFAULTS.SYNC_COPY_PATH),
    pinPath: variable("SYNC_PIN_PATH"),
    timeoutMs: 1000 * Number(variable("SYNC_TIMEOUT_SECONDS", DEFAULTS.SYNC_TIMEOUT_SECONDS)),
    env,
  };
  checkSettings(settings);
  return settings;
}

type Settings = Readonly<ReturnType<typeof readSettings>>;

function parseFlags(argv: readonly string[]) {
  const options = {
    write: { type: "boolean" },
    replay: { type: "string" },
    canonical: { type: "string" },
    copy: { type: "string" },
  } as const;
  try {
    return parseArgs({ args: [...argv], options }).values;
  } catch (error) {
    // The other sentences of Node's message explain positional arguments, and there are none.
    const [sentence] = errorText(error).split(". ");
    throw usage(`Cannot read the flags: ${sentence}.`, "See --help.");
  }
}

function checkSettings(settings: Settings): void {
  const { write, replayPath, token, server, repo, canonicalPath, ref, timeoutMs } = settings;
  if (write && replayPath !== undefined) {
    throw usage("A replay writes nothing.", "Use --write or --replay alone.");
  }
  if (token !== "" && !isToken(token)) {
    const problem = `it is shorter than ${MIN_TOKEN_LENGTH} characters, or contains white space, quotes or non-ASCII text`;
    throw usage(`Cannot use AUTO_SYNC_TOKEN: ${problem}.`, "Store the token alone.");
  }
  if (server.includes("@")) {
    throw usage("The URL of the server contains a user name or a password.", "Remove them.");
  }
  if (!/^[\w.-]+\/[\w.-]+$/.test(repo) || !isCleanPath(repo)) {
    throw usage(`Cannot use SYNC_CANONICAL_REPO ${quote(repo)}.`, "Set it to owner/name.");
  }
  if (!isCleanPath(canonicalPath)) {
    const remedy = "Set it to a path inside the repository.";
    throw usage(`Cannot use SYNC_CANONICAL_PATH ${quote(canonicalPath)}.`, remedy);
  }
  if (!isCleanPath(ref)) {
    throw usage(`Cannot use SYNC_CANONICAL_REF ${quote(ref)}.`, "Set it to a branch, a tag or a commit.");
  }
  if (!(timeoutMs > 0 && timeoutMs <= 3_600_000)) {
    throw usage("Cannot use SYNC_TIMEOUT_SECONDS.", "Set it to a number above 0, at most 3600.");
  }
}

/** A shorter token could match ordinary words of the log, and redact them. */
const MIN_TOKEN_LENGTH = 8;

/** False for text that is not a token: white space would break the header, and secret managers may leave quotes. */
function isToken(text: string): boolean {
  return text.length >= MIN_TOKEN_LENGTH && /^[\x21-\x7e]+$/.test(text) && !/["']/.test(text);
}

/** False if a segment is empty, "." or "..": a URL parser would resolve it, and ask for something else. */
function isCleanPath(path: string): boolean {
  return path.split("/").every((segment) => !/^\.{0,2}$/.test(segment));
}

/** A local canonical file needs no token, except in a replay, which treats a missing token as the run would. */
function lacksToken({ token, localCanonical, replayPath }: Settings): boolean {
  return token === "" && (localCanonical === undefined || replayPath !== undefined);
}

// ------------------------------------------------------------------------------------------------
// 4. Context: the case table
// ------------------------------------------------------------------------------------------------

/** The case of the table that applies to a run. */
export interface Context {
  readonly event: string;
  readonly case: 1 | 2 | 3 | 4;
  /** Decides what a missing token means: a trusted run should have one. */
  readonly trusted: boolean;
  /** Why it is this case. */
  readonly why: string;
}

/** The context of this run, or of a captured event. Throws a `usage` failure if there is nothing to replay. */
function readContext({ eventName, eventPath, replayPath }: Settings): Context {
  if (replayPath !== undefined) {
    return replayContext(replayPath, eventName);
  }
  if (eventName !== "pull_request") {
    return classify(eventName, undefined);
  }
  try {
    return classify(eventName, readJson(eventPath));
  } catch (error) {
    return createContext(eventName, { case: 4, why: `the payload cannot be read: ${errorText(error)}` });
  }
}

/** A captured event is what `toJSON(github)` prints, or the payload alone, with GITHUB_EVENT_NAME beside it. */
function replayContext(path: string, eventName: string): Context {
  let captured: unknown;
  try {
    captured = readJson(path);
  } catch (error) {
    throw usage(`Cannot replay ${quote(path)}: ${errorText(error)}.`, "Check the file.");
  }
  const capturedName = valueAt(captured, "event_name");
  if (typeof capturedName === "string") {
    return classify(capturedName, valueAt(captured, "event"));
  }
  if (eventName === "") {
    throw usage(`Cannot replay ${quote(path)}: it does not name its event.`, "Set GITHUB_EVENT_NAME.");
  }
  return classify(eventName, captured);
}

function readJson(path: string): unknown {
  const text = fs.readFileSync(path, "utf8").replace(/^\uFEFF/, "");
  try {
    return JSON.parse(text);
  } catch {
    // Node's message would quote the file.
    throw new Error(`${quote(path)} is not JSON`);
  }
}

/** The context of an event. Only pull requests need the payload, which is the event JSON. */
export function classify(event: string, payload: unknown): Context {
  return createContext(event, findCase(event, payload));
}

type Finding = Pick<Context, "case" | "why">;

function createContext(event: string, finding: Finding): Context {
  return { event, ...finding, trusted: finding.case !== 3 };
}

/**
 * The case table:
 *
 *   1  push, schedule, workflow_dispatch         trusted: it runs in the repository itself
 *   2  pull_request from the same repository     trusted: it gets the secrets
 *   3  pull_request from a fork                  not trusted: it gets no secrets
 *   4  anything else, or a payload that does not say where a pull request comes from: trusted, so that a missing token
 *      fails the run
 *
 * The flag `head.repo.fork` is the last resort: it says whether the head is a fork of anything, so it is true for the
 * branches of a repository that is a fork itself (measured on Gitea 1.22 to 1.27).
 */
function findCase(event: string, payload: unknown): Finding {
  if (event === "push" || event === "schedule" || event === "workflow_dispatch") {
    return { case: 1, why: "it runs in the repository itself" };
  }
  if (event !== "pull_request") {
    return { case: 4, why: "the case table does not name this event" };
  }
  const head = valueAt(payload, "pull_request", "head", "repo");
  const base = valueAt(payload, "pull_request", "base", "repo");
  if (valueAt(payload, "pull_request", "head", "label") === "") {
    return { case: 3, why: "a fork: head.label is empty (pushed to refs/for/, the AGit flow)" };
  }
  if (head === null) {
    return { case: 3, why: "a fork: head.repo is null (the fork was deleted)" };
  }
  const headId = valueAt(head, "id");
  const baseId = valueAt(base, "id");
  if (isId(headId) && isId(baseId)) {
    const ids = `head.repo.id is ${headId}, base.repo.id is ${baseId}`;
    return headId === baseId ? { case: 2, why: `the same repository: ${ids}` } : { case: 3, why: `a fork: ${ids}` };
  }
  switch (valueAt(head, "fork")) {
    case true:
      return { case: 3, why: "a fork: head.repo.fork is true" };
    case false:
      return { case: 2, why: "the same repository: head.repo.fork is false" };
    default:
      return { case: 4, why: "the payload does not say where the pull request comes from" };
  }
}

/** Unsafe integers are rounded, so two different ids could be equal. */
function isId(value: unknown): value is number {
  return Number.isSafeInteger(value) && Number(value) > 0;
}

function describeContext(context: Context): string {
  const trust = context.trusted ? "trusted" : "not trusted";
  return `${describeEvent(context.event)}: case ${context.case}, ${trust}: ${context.why}`;
}

function describeEvent(event: string): string {
  return event === "" ? "no GITHUB_EVENT_NAME" : `event ${quote(event)}`;
}

// ------------------------------------------------------------------------------------------------
// 5. The copy and the pin
// ------------------------------------------------------------------------------------------------

/** A file of the comparison. */
export interface FileContent {
  readonly path: string;
  readonly bytes: Buffer;
  /** In hex. */
  readonly sha256: string;
}

/** The sha256 of the copy, as somebody stored it: in a Go constant, or as `sha256sum` prints it. */
export interface Pin {
  readonly path: string;
  /** In hex, in lower case. */
  readonly sha256: string;
  /** The whole file in Latin-1, in which every byte is one character. */
  readonly text: string;
}

function readCopy({ copyPath }: Settings): FileContent {
  const bytes = readRegularFile(copyPath, "copy", "copy-unreadable");
  if (isLfsPointer(bytes)) {
    const remedy = "Check out with lfs: true, or keep the file out of Git LFS.";
    throw unverified("copy-unreadable", `The copy ${quote(copyPath)} is a Git LFS pointer.`, remedy);
  }
  return toFileContent(copyPath, bytes);
}

const SHA256_WORD = /(?<!\w)[\da-f]{64}(?!\w)/gi;

/** Undefined if no pin is set. */
function readPin({ pinPath: path }: Settings): Pin | undefined {
  if (path === "") {
    return undefined;
  }
  const text = readRegularFile(path, "pin", "pin-unreadable").toString("latin1");
  const [sha256, ...others] = text.match(SHA256_WORD) ?? [];
  if (sha256 === undefined || others.length > 0) {
    throw unverified("pin-unreadable", `The pin ${quote(path)} does not contain exactly one sha256.`);
  }
  return { path, sha256: sha256.toLowerCase(), text };
}

/** Far more than any list of providers has. */
const MAX_FILE_BYTES = 10 * 1024 * 1024;

/** Reads a file of the checkout. It must not be a symbolic link, which could lead out of the checkout. */
function readRegularFile(path: string, name: string, reason: Reason): Buffer {
  try {
    const stat = fs.lstatSync(path);
    if (!stat.isFile()) {
      throw new Error(stat.isSymbolicLink() ? "it is a symbolic link" : "it is not a regular file");
    }
    if (stat.size > MAX_FILE_BYTES) {
      throw new Error(`it has ${stat.size} bytes, more than ${MAX_FILE_BYTES}`);
    }
    return fs.readFileSync(path);
  } catch (error) {
    throw unverified(reason, `Cannot read the ${name} ${quote(path)}: ${errorText(error)}.`);
  }
}

/** True for a dangling link too, so that reading it fails, instead of writing through it. */
function exists(path: string): boolean {
  try {
    fs.lstatSync(path);
    return true;
  } catch {
    return false;
  }
}

/** Writes a file of the checkout in place. Git keeps the committed one. */
function writeFile(path: string, bytes: Buffer): void {
  try {
    fs.mkdirSync(dirname(path), { recursive: true });
    fs.writeFileSync(path, bytes);
  } catch (error) {
    throw unverified("write-failed", `Cannot write ${quote(path)}: ${errorText(error)}.`);
  }
}

/** True for a Git LFS pointer (https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md). */
function isLfsPointer(bytes: Buffer): boolean {
  return bytes.toString("latin1", 0, 100).startsWith("version https://git-lfs.github.com/spec/");
}

function toFileContent(path: string, bytes: Buffer): FileContent {
  return { path, bytes, sha256: createHash("sha256").update(bytes).digest("hex") };
}

function describeFile({ path, bytes, sha256 }: FileContent): string {
  return `${quote(path)}: ${bytes.length} bytes, sha256 ${sha256.slice(0, 12)}`;
}

function describePin(pin: Pin | undefined, copy: FileContent): string {
  if (pin === undefined) {
    return "none: SYNC_PIN_PATH is not set";
  }
  const relation = pin.sha256 === copy.sha256 ? "matches the copy" : "does not match the copy";
  return `${quote(pin.path)}: sha256 ${pin.sha256.slice(0, 12)}, ${relation}`;
}

// ------------------------------------------------------------------------------------------------
// 6. The canonical file
// ------------------------------------------------------------------------------------------------

/** The canonical file. Its path is the one in its repository. */
export interface CanonicalFile extends FileContent {
  /** Where it is from, for the log. */
  readonly origin: string;
}

async function readCanonical(settings: Settings, print: Print): Promise<CanonicalFile> {
  let canonical: CanonicalFile;
  if (settings.localCanonical === undefined) {
    checkServer(settings);
    print(`token      AUTO_SYNC_TOKEN, sent to ${quote(settings.server)} only`);
    canonical = await fetchCanonical(settings, print);
  } else {
    print("token      not sent: --canonical names a local file");
    canonical = readLocalCanonical(settings.localCanonical, settings.copyPath);
  }
  if (isLfsPointer(canonical.bytes)) {
    const message = `The canonical file ${quote(canonical.path)} is a Git LFS pointer.`;
    throw unverified("bad-response", message, "Keep the canonical file out of Git LFS.");
  }
  print(`canonical  ${describeFile(canonical)}, ${canonical.origin}`);
  return canonical;
}

/** Throws a `usage` failure for a server that must not be sent a token. */
function checkServer({ server, allowHttp, env }: Settings): void {
  const remedy = "Set SYNC_CANONICAL_SERVER to the base URL of the server, such as https://git.example.com.";
  if (server === "") {
    throw usage("Neither SYNC_CANONICAL_SERVER nor GITHUB_SERVER_URL is set.", remedy);
  }
  const url = URL.canParse(server) ? new URL(server) : undefined;
  if (url === undefined || !/^https?:$/.test(url.protocol) || /[?#\s\\]/.test(server)) {
    throw usage("The server is not a plain http: or https: URL.", remedy);
  }
  if (/(^|\.)github\.com\.?$/.test(url.hostname)) {
    throw usage("GitHub's API is not the one of Gitea and Forgejo.", remedy);
  }
  if (url.protocol === "http:" && !isLoopback(url) && !allowHttp) {
    throw usage("Plain http: would send the token unencrypted.", "Use https:, or set SYNC_ALLOW_HTTP=1.");
  }
  if (env.NODE_TLS_REJECT_UNAUTHORIZED === "0") {
    const problem = "NODE_TLS_REJECT_UNAUTHORIZED=0 would send the token to anyone who intercepts the connection.";
    throw usage(problem, "Set NODE_EXTRA_CA_CERTS instead.");
  }
}

function isLoopback({ hostname }: URL): boolean {
  return /^(localhost|127(\.\d+){3}|\[::1\])$/.test(hostname);
}

/**
 * Fetches the file in three requests, so that every 404 has one meaning. The file is requested by commit, because for a
 * ref that does not exist Gitea 1.25 sends the file of the default branch.
 */
async function fetchCanonical(settings: Settings, print: Print): Promise<CanonicalFile> {
  const { repo, canonicalPath, ref } = settings;
  const session: Session = { settings, print, deadline: performance.now() + settings.timeoutMs };
  const repository = await getJson(session, {
    action: `read the repository ${quote(repo)}`,
    path: `/repos/${repo}`,
    notFound: "repo-not-visible",
  });
  if (repository.archived === true) {
    throw unverified("repo-archived", `${quote(repo)} is archived: its file can no longer change.`);
  }
  const { sha } = await getJson(session, {
    action: `read the commit of ${quote(ref)}`,
    path: `/repos/${repo}/git/commits/${encodeURIComponent(ref)}?stat=false&verification=false&files=false`,
    notFound: "ref-not-found",
  });
  if (typeof sha !== "string" || !OBJECT_ID.test(sha)) {
    throw unverified("bad-response", `Cannot read the commit of ${quote(ref)}: the answer has no commit id.`);
  }
  const action = `read the file ${quote(canonicalPath)}`;
  const encodedPath = canonicalPath.split("/").map(encodeURIComponent).join("/");
  const response = await get(session, {
    action,
    path: `/repos/${repo}/raw/${encodedPath}?ref=${sha}`,
    notFound: "file-not-found",
  });
  if (!matchesBlobId(response)) {
    throw unverified("bad-response", `Cannot ${action}: the answer does not match the blob id in its ETag.`);
  }
  if (response.headers["x-gitea-object-type"] === "symlink") {
    throw unverified("bad-response", `Cannot ${action}: it is a symbolic link.`);
  }
  const origin = `from ${quote(repo)} at ${quote(ref)}, commit ${sha}`;
  return { ...toFileContent(canonicalPath, response.body), origin };
}

/** An object id of Git: a sha1 or a sha256 in hex. */
const OBJECT_ID = /^([\da-f]{40}|[\da-f]{64})$/;

/**
 * True if the answer is the whole file: Gitea sends its blob id as the ETag, the hash of `blob <length>\0` and the
 * bytes (gitformat-object). This detects what was cut off, rewritten or replaced by a page on the way.
 */
function matchesBlobId({ headers, body }: ApiResponse): boolean {
  const id = String(headers.etag).replace(/^W\//, "").replaceAll('"', "");
  if (!OBJECT_ID.test(id)) {
    return false;
  }
  const hash = createHash(id.length === 40 ? "sha1" : "sha256");
  return hash.update(`blob ${body.length}\0`).update(body).digest("hex") === id;
}

function readLocalCanonical(path: string, copyPath: string): CanonicalFile {
  const realPath = fs.existsSync(path) ? fs.realpathSync(path) : path;
  if (fs.existsSync(copyPath) && fs.realpathSync(copyPath) === realPath) {
    throw usage("The copy and the canonical file are the same file.", "Compare two files.");
  }
  const bytes = readRegularFile(realPath, "canonical file", "file-not-found");
  return { ...toFileContent(path, bytes), origin: "a local file" };
}

// ------------------------------------------------------------------------------------------------
// 7. Requests
// ------------------------------------------------------------------------------------------------

/** What the requests of a run share. */
interface Session {
  readonly settings: Settings;
  readonly print: Print;
  /** When to give up, on the clock of `performance.now()`. */
  readonly deadline: number;
}

/** A GET request to the API. */
interface ApiRequest {
  /** For messages: `read the commit of "main"`. */
  readonly action: string;
  /** Below `/api/v1`, percent-encoded. */
  readonly path: string;
  /** What a 404 of the server means. */
  readonly notFound: Reason;
}

interface ApiResponse {
  readonly status: number;
  readonly headers: Readonly<Record<string, string | string[] | undefined>>;
  readonly body: Buffer;
}

const MAX_ATTEMPTS = 4;
/** How much of the time one attempt may take: 20 s of 60 s. A broken name server alone can take 15 s. */
const ATTEMPT_SHARE = 1 / 3;
/** The pause before the second attempt: 2 s of 60 s. It doubles with every attempt. */
const PAUSE_SHARE = 1 / 30;

/** Sends a request for a JSON object. Throws a Failure. */
async function getJson(session: Session, request: ApiRequest): Promise<Record<string, unknown>> {
  const response = await get(session, request);
  const json = parseJson(response.body);
  if (!isRecord(json)) {
    const message = `Cannot ${request.action}: the answer is ${describeAnswer(response)}, not a JSON object.`;
    throw unverified("bad-response", message);
  }
  return json;
}

/** Sends a request, and sends it again after a failure that may pass by itself. Throws a Failure. */
async function get(session: Session, request: ApiRequest, attempt = 1): Promise<ApiResponse> {
  const { settings, print, deadline } = session;
  try {
    return await getOnce(session, request);
  } catch (error) {
    if (!(error instanceof Failure) || error.retryAfterMs === undefined || attempt === MAX_ATTEMPTS) {
      throw error;
    }
    const pauseMs = settings.timeoutMs * PAUSE_SHARE * 2 ** (attempt - 1);
    const waitMs = Math.max(error.retryAfterMs, pauseMs);
    if (performance.now() + waitMs >= deadline) {
      throw error;
    }
    print(`retry      in ${(waitMs / 1000).toFixed(1)} s: ${error.message}`);
    await sleep(waitMs);
    return get(session, request, attempt + 1);
  }
}

/** Sends a request once, on a connection of its own, and gives up when the time of an attempt is over. */
async function getOnce({ settings, deadline }: Session, request: ApiRequest): Promise<ApiResponse> {
  const limitMs = Math.min(deadline - performance.now(), settings.timeoutMs * ATTEMPT_SHARE);
  const seconds = settings.timeoutMs / 1000;
  const message = `Cannot ${request.action}: no complete answer in time (SYNC_TIMEOUT_SECONDS is ${seconds}).`;
  // Not in exchange(): a package that is not installed is not a fault of the network.
  const undici = await import("undici");
  const dispatcher = createDispatcher(undici, settings);
  let timer: NodeJS.Timeout | undefined;
  // undici's own timeouts cover neither the connection through a proxy nor the whole response.
  const timeout = new Promise<never>((_resolve, reject) => {
    timer = setTimeout(reject, limitMs, transient("timeout", message));
  });
  try {
    const response = await Promise.race([exchange(undici, dispatcher, settings, request), timeout]);
    checkStatus(request, response);
    return response;
  } finally {
    clearTimeout(timer);
    // Closes the connection at once, without waiting for an answer.
    void dispatcher.destroy();
  }
}

type Undici = typeof import("undici");

/** Connections that use the proxy of the environment, if there is one. */
function createDispatcher(undici: Undici, { server, env }: Settings): Dispatcher {
  const { name, url } = findProxy(new URL(server), env);
  try {
    return new undici.EnvHttpProxyAgent({
      httpProxy: url,
      httpsProxy: url,
      noProxy: (env.no_proxy || env.NO_PROXY || "").trim(),
      // As with curl, plain http: is sent to a proxy without a tunnel. For https: there always is one.
      proxyTunnel: false,
      // By default Node tries each address of a name for 250 ms, which is not enough for a slow network.
      connect: { timeout: 0, autoSelectFamilyAttemptTimeout: 2500 },
      factory: (origin, options: Client.Options) => {
        // The limit of an attempt replaces undici's timeouts.
        const limits = { maxResponseSize: MAX_FILE_BYTES, headersTimeout: 0, bodyTimeout: 0 };
        const client = new undici.Client(origin, { ...options, ...limits });
        // By default undici 7 connects again and again if a proxy hangs up.
        return client.on("connectionError", (_origin, _targets, error) => void client.destroy(error));
      },
    });
  } catch (error) {
    // The message does not repeat the URL, which may contain a password.
    throw usage(`Cannot use the proxy in ${name}: ${errorText(error)}.`, "Set it to http://host:port.");
  }
}

/** The proxy for a server, and the variable that names it. The URL is empty if there is none. */
function findProxy(server: URL, env: Env): { name: string; url: string } {
  const scheme = server.protocol === "https:" ? "https" : "http";
  const names = [`${scheme}_proxy`, `${scheme.toUpperCase()}_PROXY`, "all_proxy", "ALL_PROXY"];
  const name = names.find((variable) => env[variable]?.trim()) ?? "";
  const text = env[name]?.trim() ?? "";
  // Never for the loopback: plain http: is allowed there because it does not leave this machine.
  if (text === "" || isLoopback(server)) {
    return { name, url: "" };
  }
  return { name, url: text.includes("://") ? text : `http://${text}` };
}

/** Sends a request, and reads the whole response. Throws a Failure if there is none. */
async function exchange(
  undici: Undici,
  dispatcher: Dispatcher,
  { server, token }: Settings,
  { action, path }: ApiRequest,
): Promise<ApiResponse> {
  try {
    const response = await undici.request(`${server.replace(/\/+$/, "")}/api/v1${path}`, {
      dispatcher,
      headers: {
        "accept-encoding": "identity",
        authorization: `token ${token}`,
        // Cloudflare may block the agents of libraries, and Anubis challenges those of browsers.
        "user-agent": "sync-providers",
      },
    });
    const body = Buffer.from(await response.body.arrayBuffer());
    return { status: response.statusCode, headers: response.headers, body };
  } catch (error) {
    throw connectionFailure(error, action, server);
  }
}

/** An error of the network, of TLS, or of an answer that is not HTTP. */
function connectionFailure(error: unknown, action: string, server: string): Failure {
  const code = errorCode(error);
  const text = errorText(error);
  if (code === "UND_ERR_RES_EXCEEDED_MAX_SIZE") {
    return unverified("too-large", `Cannot ${action}: the answer is larger than ${MAX_FILE_BYTES} bytes.`);
  }
  const message = `Cannot ${action} at ${quote(server)}: ${code}, ${quote(text)}.`;
  if (/CERT|VERIFY/.test(code)) {
    const remedy =
      "Check the certificate and the runner's clock. Node ignores the system's CA store: set NODE_EXTRA_CA_CERTS.";
    return unverified("unreachable", message, remedy);
  }
  // A proxy's 4xx is final: a wrong password, sent again, could lock an account.
  const isFinal = /^Proxy .*\(4\d\d\)/.test(text);
  return isFinal ? unverified("unreachable", message) : transient("unreachable", message);
}

/** Throws a Failure for every status except 200. */
function checkStatus({ action, notFound }: ApiRequest, response: ApiResponse): void {
  const { status, headers, body } = response;
  if (status === 200) {
    return;
  }
  if (status >= 300 && status <= 399 && typeof headers.location === "string") {
    // Never followed: the token must not go anywhere else.
    throw unverified("redirected", `Cannot ${action}: it was redirected to ${quote(headers.location)}.`);
  }
  const message = `Cannot ${action}: the answer is ${describeAnswer(response)}.`;
  const meanings: Readonly<Record<number, Reason>> = {
    401: "token-rejected",
    403: "token-scope",
    404: notFound,
    422: notFound,
  };
  const reason = meanings[status];
  // Gitea's errors are JSON objects. Others are from something in front of it.
  if (reason !== undefined && isRecord(parseJson(body))) {
    throw unverified(reason, message);
  }
  if (status >= 500 || status === 408 || status === 429) {
    throw transient("server-error", message, 1000 * (Number(headers["retry-after"]) || 0));
  }
  // Something in front of the server may answer 404 while the server restarts.
  throw status === 404 ? transient("bad-response", message) : unverified("bad-response", message);
}

/** What an answer says: its status, its text, and who sent it. */
function describeAnswer({ status, headers, body }: ApiResponse): string {
  const sender = headers.server === undefined ? "" : ` (Server: ${quote(String(headers.server))})`;
  return `${status}, ${quote(findText(body))}${sender}`;
}

/** The message of an error of Gitea, the title of a page, or else the first line. */
function findText(body: Buffer): string {
  const message = valueAt(parseJson(body), "message");
  if (typeof message === "string") {
    return message;
  }
  const text = body.toString().trim();
  return /<title>([^<]*)</i.exec(text)?.[1]?.trim() ?? text.replace(/\n.*/s, "");
}

/** Undefined if it is not JSON. */
function parseJson(body: Buffer): unknown {
  try {
    return JSON.parse(body.toString());
  } catch {
    return undefined;
  }
}

// ------------------------------------------------------------------------------------------------
// 8. Comparison
// ------------------------------------------------------------------------------------------------

/** Compares the copy with the canonical file, byte for byte, and then with the pin. */
export function compare(copy: FileContent, pin: Pin | undefined, canonical: FileContent): Verdict {
  if (!copy.bytes.equals(canonical.bytes)) {
    return drift(copy, pin, canonical);
  }
  if (pin !== undefined && pin.sha256 !== copy.sha256) {
    return pinMismatch(pin, "The copy matches the canonical file; only the pin is stale.");
  }
  const pinned = pin === undefined ? "" : " The pin agrees.";
  const message = `The copy matches the canonical file byte for byte.${pinned}`;
  return { status: "in-sync", message, remedy: "" };
}

function drift(copy: FileContent, pin: Pin | undefined, canonical: FileContent): Verdict {
  const problem = `The copy ${quote(copy.path)} differs from the canonical file`;
  if (withUnixLineEndings(copy.bytes) === withUnixLineEndings(canonical.bytes)) {
    const line = quote(`${copy.path} -text`);
    const remedy = `Disable Git's line-ending conversion (${line} in .gitattributes), then re-sync.`;
    return { status: "drift", message: `${problem} only in line endings.`, remedy };
  }
  const message = `${problem}. ${explainWithPin(copy, pin, canonical)}`.trim();
  const remedy = "Re-sync the copy; to keep an edit, change the canonical file first.";
  return { status: "drift", message, remedy };
}

/** What the pin says about a drift: it was the sha256 of both files at the last re-sync. */
function explainWithPin(copy: FileContent, pin: Pin | undefined, canonical: FileContent): string {
  switch (pin?.sha256) {
    case undefined:
      return "";
    case copy.sha256:
      return "The pin matches the copy: either the canonical file changed, or copy and pin were edited together.";
    case canonical.sha256:
      return "The pin matches the canonical file: the copy was edited by hand.";
    default:
      return "The pin matches neither: both changed, or the pin is stale.";
  }
}

function withUnixLineEndings(bytes: Buffer): string {
  return bytes.toString("latin1").replaceAll("\r\n", "\n");
}

function pinMismatch(pin: Pin, cause: string): Verdict {
  const message = `The pin ${quote(pin.path)} is not the sha256 of the copy. ${cause}`;
  return { status: "pin-mismatch", message, remedy: "Re-sync." };
}

function tokenMissing(context: Context, { repo }: Settings): Verdict {
  const because = context.case === 4 ? ` The run counts as trusted, because ${context.why}.` : "";
  const event = describeEvent(context.event);
  return {
    status: "token-missing",
    message: `AUTO_SYNC_TOKEN is not set (${event}), so nothing was compared.${because}`,
    remedy: `Provision AUTO_SYNC_TOKEN (read scope on ${repo.split("/")[1]}).`,
  };
}

/** The verdict on a pull request from a fork without a token. The pin needs none. */
function skip(copy: FileContent, pin: Pin | undefined): Verdict {
  if (pin !== undefined && pin.sha256 !== copy.sha256) {
    return pinMismatch(pin, "The copy was edited by hand, or re-synced without the pin.");
  }
  return {
    status: "skipped",
    message: "This pull request from a fork has no token for the canonical repository, so nothing was compared.",
    remedy: "No action needed: the copy is compared after the merge.",
  };
}

// ------------------------------------------------------------------------------------------------
// 9. What a drift prints
// ------------------------------------------------------------------------------------------------

const MAX_DIFF_LINES = 200;
/** The search for a small diff stops after this. */
const DIFF_TIMEOUT_MS = 2000;
/** The YAML library takes seconds for larger files. */
const MAX_YAML_BYTES = 131_072;

/** Prints what differs. */
async function explainDrift(copy: FileContent, canonical: FileContent, print: Print): Promise<void> {
  await printLines("summary", () => summarize(copy, canonical), print);
  await printLines("diff", () => unifiedDiff(copy, canonical), print);
}

/** Prints an explanation. If that fails, the log says why, and the verdict stays. */
async function printLines(label: string, explain: () => Promise<string[]>, print: Print): Promise<void> {
  try {
    for (const line of await explain()) {
      print(line);
    }
  } catch (error) {
    print(`${label.padEnd(10)} none: ${errorText(error)}`);
  }
}

/** The names of the entries that differ. Throws if a file is not YAML, or too large. */
async function summarize(copy: FileContent, canonical: FileContent): Promise<string[]> {
  const ours = await readEntries(copy);
  const theirs = await readEntries(canonical);
  const names = new Set([...ours.keys(), ...theirs.keys()]);
  const different = [...names].filter((name) => ours.get(name) !== theirs.get(name));
  // None, if only comments or the format differ.
  return different.length === 0 ? [] : [`summary    different entries: ${different.join(", ")}`];
}

/** The entries of a YAML file as JSON, by section and name: `providers.anthropic`. */
async function readEntries({ bytes }: FileContent): Promise<ReadonlyMap<string, string>> {
  if (bytes.length > MAX_YAML_BYTES) {
    throw new Error("a file is too large");
  }
  const { parse } = await import("yaml");
  // Without these options the work grows with the square of the number of keys, and of the number of errors.
  const document: unknown = parse(bytes.toString(), { logLevel: "error", uniqueKeys: false, prettyErrors: false });
  if (!isRecord(document)) {
    throw new Error("a file is not a YAML mapping");
  }
  const entries = new Map<string, string>();
  for (const [section, content] of Object.entries(document)) {
    const children = typeof content === "object" && content !== null ? Object.entries(content) : [];
    if (children.length === 0) {
      entries.set(section, JSON.stringify(content));
    }
    for (const [key, entry] of children) {
      const name = `${section}.${valueAt(entry, "name") ?? key}`;
      // Several entries may have one name.
      entries.set(name, `${entries.get(name) ?? ""}${JSON.stringify(entry)}`);
    }
  }
  return entries;
}

/** A unified diff from the copy to the canonical file: what a re-sync changes. Throws if there is none. */
async function unifiedDiff(copy: FileContent, canonical: FileContent): Promise<string[]> {
  if (!isUtf8(copy.bytes) || !isUtf8(canonical.bytes)) {
    throw new Error("a file is not UTF-8 text");
  }
  const { createTwoFilesPatch, FILE_HEADERS_ONLY } = await import("diff");
  const patch = createTwoFilesPatch(
    `copy ${copy.path}`,
    `canonical ${canonical.path}`,
    copy.bytes.toString(),
    canonical.bytes.toString(),
    undefined,
    undefined,
    { context: 3, timeout: DIFF_TIMEOUT_MS, headerOptions: FILE_HEADERS_ONLY },
  );
  if (patch === undefined) {
    throw new Error("the files differ too much");
  }
  const lines = patch.replace(/\n$/, "").split("\n");
  const omitted = lines.length - MAX_DIFF_LINES;
  return omitted > 0 ? [...lines.slice(0, MAX_DIFF_LINES), `${omitted} more lines omitted`] : lines;
}

/** Prints how to re-sync: a command that repeats the settings of this run that are not the defaults. */
function printResyncCommand(settings: Settings, print: Print): void {
  const { server, repo, canonicalPath, ref, copyPath, pinPath, allowHttp, timeoutMs, localCanonical } = settings;
  const remote = {
    SYNC_CANONICAL_SERVER: server,
    SYNC_CANONICAL_REPO: repo,
    SYNC_CANONICAL_PATH: canonicalPath,
    SYNC_CANONICAL_REF: ref,
    SYNC_ALLOW_HTTP: allowHttp ? "1" : "",
    SYNC_TIMEOUT_SECONDS: String(timeoutMs / 1000),
  };
  const local = { SYNC_COPY_PATH: copyPath, SYNC_PIN_PATH: pinPath };
  const variables = localCanonical === undefined ? { ...remote, ...local } : local;
  const defaults: Readonly<Record<string, string>> = DEFAULTS;
  const words: string[] = [];
  for (const [name, value] of Object.entries(variables)) {
    if (value !== (defaults[name] ?? "")) {
      words.push(`${name}=${quoteForShell(value)}`);
    }
  }
  words.push(startCommand(), "--write");
  if (localCanonical === undefined) {
    print(TOKEN_PROMPT);
  } else {
    words.push("--canonical", quoteForShell(localCanonical));
  }
  print("To re-sync, run:");
  print(`  ${words.join(" ")}`);
}

const TOKEN_PROMPT =
  "Enter a token in bash or zsh (nothing is shown): read -rs AUTO_SYNC_TOKEN; export AUTO_SYNC_TOKEN";

/** How a person would start the gate again. */
function startCommand(): string {
  const path = relative(process.cwd(), process.argv[1] ?? "sync-providers.ts");
  return `${path.endsWith(".ts") ? "npx tsx" : "node"} ${quoteForShell(path)}`;
}

/** A word for a POSIX shell. */
function quoteForShell(word: string): string {
  return /^[\w./:@%+=-]+$/.test(word) ? word : `'${word.replaceAll("'", "'\\''")}'`;
}

// ------------------------------------------------------------------------------------------------
// 10. Text
// ------------------------------------------------------------------------------------------------

/** Prints a line of the log, or an annotation, which is a command that the runner obeys. */
type Print = (text: string, annotation?: "error" | "warning") => void;

const MAX_LINE_LENGTH = 1000;
/** Without `::error::`. Longer annotations are hard to read in a browser. */
const MAX_ANNOTATION_LENGTH = 380;

/**
 * Everything except the help text is printed here: redacted, made inert and cut, in this order, so that no part of a token
 * remains at a cut.
 */
function createPrint({ AUTO_SYNC_TOKEN = "" }: Env, write: (line: string) => void): Print {
  const token = AUTO_SYNC_TOKEN.trim();
  return (text, annotation) => {
    const redacted = token.length < MIN_TOKEN_LENGTH ? text : text.replaceAll(token, "***");
    const inert = makeInert(redacted);
    if (annotation === undefined) {
      write(cut(inert, MAX_LINE_LENGTH));
      return;
    }
    // act would end the properties of the command at the last "::".
    const data = inert.replaceAll("%", "%25").replace(/:(?=:)/g, ": ");
    write(`::${annotation}::${cut(data, MAX_ANNOTATION_LENGTH)}`);
  };
}

/** Makes control characters visible, and breaks up what a runner would obey: `::` at the start, `##[` anywhere. */
function makeInert(line: string): string {
  const visible = line.replace(/[\p{Cc}\p{Cf}\p{Zl}\p{Zp}]/gu, (character) => {
    return character === "\t" ? character : `\\u{${character.codePointAt(0)?.toString(16)}}`;
  });
  return visible.replace(/^(\s*):(?=:)/, "$1: ").replaceAll("##[", "# #[");
}

/** Cuts out the middle, because a verdict ends with what to do. */
function cut(text: string, maxLength: number): string {
  const half = maxLength / 2 - 2;
  return text.length > maxLength ? `${text.slice(0, half)} … ${text.slice(-half)}` : text;
}

/** Foreign text inside a sentence. */
function quote(text: string): string {
  return `"${text.replaceAll('"', "'")}"`;
}

/** The first line of an error's message, without a full stop. If several addresses failed, the messages of all. */
function errorText(error: unknown): string {
  if (error instanceof AggregateError) {
    return error.errors.map(errorText).join("; ");
  }
  return (error instanceof Error ? error.message : String(error)).replace(/[.:]?(\n.*)?$/s, "");
}

/** The `code` of an error of Node, undici or OpenSSL, or else its name. */
function errorCode(error: unknown): string {
  return isRecord(error) ? String(error.code ?? error.name) : "";
}

function isRecord(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

/** Reads a value inside foreign data, by own keys only. Undefined if there is none. */
function valueAt(data: unknown, ...keys: readonly string[]): unknown {
  let value = data;
  for (const key of keys) {
    value = isRecord(value) && Object.hasOwn(value, key) ? value[key] : undefined;
  }
  return value;
}

// ------------------------------------------------------------------------------------------------
// 11. Start
// ------------------------------------------------------------------------------------------------

/** False only if another script was started. When in doubt, run: a gate that does not run would pass. */
function isStarted(): boolean {
  const script = process.argv[1];
  const isFile = script !== undefined && fs.statSync(script, { throwIfNoEntry: false })?.isFile() === true;
  return !isFile || fs.realpathSync(script) === fs.realpathSync(fileURLToPath(import.meta.url));
}

if (isStarted()) {
  // For a run that ends before its verdict.
  process.exitCode = EXIT_CODES.unverified;
  // A reader such as `head` may close the pipe early. The exit code still tells the verdict.
  process.stdout.on("error", () => {});
  main(process.argv.slice(2), process.env, console.log)
    .catch(() => EXIT_CODES.unverified)
    .then((exitCode) => {
      // Exit once the log is flushed. A connection that a library left behind would keep the process alive.
      process.stdout.write("", () => process.exit(exitCode));
    });
}
