/**
 * sync-providers 3.1.0: fails a workflow when a repository's copy of a file differs from the canonical file in another
 * repository, by default on the same Gitea server.
 *
 *   npx --no tsx sync-providers.ts --help
 *
 * It needs Node 20.18.1 or later, the packages tsx, undici and diff, and a token with the scope read:repository.
 *
 * A run that compares nothing fails, with one exception: a pull request from a fork gets no secrets, so without a token
 * that can read the canonical repository it passes with a warning.
 *
 * The token is read in section 3, and sent in section 7, in one header of each request, to one server. Section 10
 * redacts it in every line of the log.
 *
 * The pin file is optional: it contains the sha256 of the copy, and a re-sync updates it. When the files differ, it
 * shows which of them changed. A stale pin file also fails the run.
 *
 * The sections are in the order of a run. Within a section, callers come before the functions they call.
 *
 *   1. Main        4. Event: the case table        7. Requests              10. Text
 *   2. Verdicts    5. The copy and the pin file    8. Comparison            11. Start
 *   3. Settings    6. The canonical file           9. Diff and re-sync
 *
 * SPDX-License-Identifier: MIT
 */

import { isUtf8 } from "node:buffer";
import { createHash } from "node:crypto";
import * as fs from "node:fs";
import { basename, dirname, isAbsolute, join, relative, resolve } from "node:path";
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
    write(help());
    return 0;
  }
  const print = createPrint(env, write);
  let verdict: Verdict;
  try {
    const settings = readSettings(argv, env);
    verdict = settings.write ? await resync(settings, print) : await check(settings, print);
  } catch (error) {
    verdict = toVerdict(error, print);
  }
  printVerdict(verdict, print);
  return EXIT_CODES[verdict.status];
}

/** Compares the copy with the canonical file, and prints what the verdict is based on. */
async function check(settings: Settings, print: Print): Promise<Verdict> {
  const context = readContext(settings);
  const isFork = context.case === 3;
  const expected = isFork ? "no token is expected" : "a token is expected";
  print(`event      ${quote(context.event)}: case ${context.case}, ${expected}: ${context.why}`);
  const copy = readCopy(settings);
  const pin = readPin(settings);
  printFiles(copy, pin, print);
  if (lacksToken(settings)) {
    return isFork ? verdictOnFork(copy, pin, "it has no token") : tokenMissing(context, settings);
  }
  let canonical: FileContent;
  try {
    canonical = await readCanonical(settings, print);
  } catch (error) {
    const isRefused = error instanceof Failure && REFUSALS.includes(String(error.verdict.reason));
    if (!isFork || !isRefused) {
      throw error;
    }
    // A fork's job may have a token of its own, which cannot read the canonical repository. It counts as none.
    print(`refused    ${error.message}`);
    return verdictOnFork(copy, pin, "the server refused its token");
  }
  const verdict = compare(copy, pin, canonical);
  if (verdict.status === "drift") {
    await printDiff(copy, canonical, print);
  }
  if (verdict.status !== "in-sync") {
    printResync(settings, isFork, print);
  }
  return verdict;
}

/** Writes the canonical file over the copy, and its sha256 into the pin file. */
async function resync(settings: Settings, print: Print): Promise<Verdict> {
  if (lacksToken(settings)) {
    const message = "AUTO_SYNC_TOKEN is not set, so nothing was written.";
    const remedy = `Run this in bash or zsh, paste the token, then repeat the command: ${READ_TOKEN}`;
    return { status: "token-missing", message, remedy };
  }
  const copy = exists(settings.copyPath) ? readCopy(settings) : undefined;
  const pin = readPin(settings);
  printFiles(copy, pin, print);
  const canonical = await readCanonical(settings, print);
  const written: string[] = [];
  // The copy first: if writing the pin file then fails, the next run reports it.
  if (copy?.sha256 !== canonical.sha256) {
    writeFile(settings.copyPath, canonical.bytes, written);
  }
  if (pin !== undefined && pin.sha256 !== canonical.sha256) {
    writeFile(pin.path, Buffer.from(pin.text.replace(SHA256_WORD, canonical.sha256), "latin1"), written);
  }
  if (written.length === 0) {
    const message = "The copy already matches the canonical file, so nothing was written.";
    return { status: "in-sync", message, remedy: "" };
  }
  const remedy = "Regenerate what is built from the copy, commit everything together, and push.";
  return { status: "written", message: `Wrote ${written.join(" and ")}.`, remedy };
}

// ------------------------------------------------------------------------------------------------
// 2. Verdicts
// ------------------------------------------------------------------------------------------------

/** Every status with its exit code. */
const EXIT_CODES = {
  "in-sync": 0, // the copy and the canonical file are the same bytes, and the pin file, if any, agrees
  written: 0, // a re-sync changed the copy, the pin file or both
  skipped: 0, // a pull request from a fork, without a token for the canonical repository: nothing was compared
  drift: 1, // the bytes differ
  "token-missing": 1, // a token was expected, or is needed for a re-sync
  "pin-mismatch": 1, // the copy is not what the pin file says
  usage: 2, // a flag or setting is wrong
  unverified: 3, // nothing was compared
} as const;

type Status = keyof typeof EXIT_CODES;

/** The result of a run. */
interface Verdict {
  readonly status: Status;
  /** Set if the status is `unverified`, unless the gate or its installation is at fault. */
  readonly reason?: string;
  /** What was found. If the status is `unverified`, a part of a sentence: the cause. */
  readonly message: string;
  /** What to do about it, and who does it, if it is not the reader. May be empty. */
  readonly remedy: string;
}

/** An expected failure: a setting, a file, the network or the server is at fault, not the gate. */
class Failure extends Error {
  readonly verdict: Verdict;
  /** The shortest wait before another attempt, in milliseconds. Infinity: another attempt cannot help. */
  readonly minWaitMs: number;

  constructor(verdict: Verdict, minWaitMs = Infinity) {
    super(verdict.message);
    this.verdict = verdict;
    this.minWaitMs = minWaitMs;
  }
}

function usageFailure(message: string, remedy: string): Failure {
  return new Failure({ status: "usage", message, remedy });
}

function failure(reason: string, message: string, remedy: string, minWaitMs?: number): Failure {
  return new Failure({ status: "unverified", reason, message, remedy }, minWaitMs);
}

/** The reasons for which Gitea refuses a token. */
const REFUSALS = ["token-rejected", "token-forbidden", "repo-not-visible"];

/** Turns an exception into a verdict that never passes. */
function toVerdict(error: unknown, print: Print): Verdict {
  if (error instanceof Failure) {
    return error.verdict;
  }
  if (errorCode(error).endsWith("MODULE_NOT_FOUND")) {
    const message = `a package is not installed (${errorText(error)})`;
    return { status: "unverified", message, remedy: "Run npm ci --omit=dev --ignore-scripts before the gate." };
  }
  for (const line of String(error instanceof Error ? error.stack : error).split("\n")) {
    print(`stack      ${line}`);
  }
  const message = `there was an unexpected error (${errorText(error)})`;
  return { status: "unverified", message, remedy: "Please report it, with the stack above." };
}

/** Prints the verdict, the last line of the log: as an annotation, if the run failed or was skipped. */
function printVerdict({ status, reason, message, remedy }: Verdict, print: Print): void {
  const label = reason === undefined ? status : `${status} (${reason})`;
  const finding = status === "unverified" ? `Nothing was compared: ${message}.` : message;
  const failed = EXIT_CODES[status] > 0 ? "error" : undefined;
  print(`${label}: ${finding} ${remedy}`.trim(), status === "skipped" ? "warning" : failed);
}

// ------------------------------------------------------------------------------------------------
// 3. Settings
// ------------------------------------------------------------------------------------------------

const VERSION = "3.1.0";

const DEFAULTS: Env = {
  SYNC_CANONICAL_REPO: "molecule-ai/molecule-controlplane",
  SYNC_CANONICAL_PATH: "internal/providers/providers.yaml",
  SYNC_CANONICAL_REF: "main",
  SYNC_COPY_PATH: "workspace-server/internal/providers/providers.yaml",
  SYNC_TIMEOUT_SECONDS: "60",
};

function help(): string {
  return `\
sync-providers ${VERSION}

Usage: ${startCommand()} [flags]

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
  SYNC_CANONICAL_REPO     default: ${DEFAULTS.SYNC_CANONICAL_REPO}
  SYNC_CANONICAL_PATH     default: ${DEFAULTS.SYNC_CANONICAL_PATH}
  SYNC_CANONICAL_REF      a branch, refs/tags/NAME or a full commit id; default: ${DEFAULTS.SYNC_CANONICAL_REF}
  SYNC_COPY_PATH          default: ${DEFAULTS.SYNC_COPY_PATH}
  SYNC_PIN_PATH           a file that contains the sha256 of the copy; default: no pin file is checked
  SYNC_ALLOW_HTTP         1: allow plain http: to another machine (the token is sent unencrypted)
  SYNC_TIMEOUT_SECONDS    seconds before giving up on the server; default: ${DEFAULTS.SYNC_TIMEOUT_SECONDS}
  HTTPS_PROXY, HTTP_PROXY, ALL_PROXY, NO_PROXY, NODE_EXTRA_CA_CERTS`;
}

/** Reads and checks the settings. Throws a `usage` failure. */
function readSettings(argv: readonly string[], env: Env): Settings {
  const parsed = parseSettings(argv, env);
  checkSettings(parsed);
  checkFiles(parsed);
  const sendsToken = parsed.token !== "" && parsed.localCanonical === undefined;
  return { ...parsed, proxy: sendsToken ? checkServer(parsed) : undefined };
}

type Settings = ParsedSettings & { readonly proxy: Proxy | undefined };
type ParsedSettings = Readonly<ReturnType<typeof parseSettings>>;

/** Variables that are not set become empty strings. */
function parseSettings(argv: readonly string[], env: Env) {
  const flags = parseFlags(argv);
  const variable = (name: string) => env[name]?.trim() || DEFAULTS[name] || "";
  const timeoutMs = 1000 * Number(variable("SYNC_TIMEOUT_SECONDS"));
  return {
    /** Re-sync instead of comparing. */
    write: flags.write ?? false,
    eventName: variable("GITHUB_EVENT_NAME"),
    eventPath: variable("GITHUB_EVENT_PATH"),
    /** A captured event that replaces the one of the run. */
    replayPath: flags.replay,
    token: variable("AUTO_SYNC_TOKEN"),
    /** The base URL of the server the token is sent to. */
    server: variable("SYNC_CANONICAL_SERVER") || variable("GITHUB_SERVER_URL"),
    /** The variable it came from. */
    serverSetting: variable("SYNC_CANONICAL_SERVER") === "" ? "GITHUB_SERVER_URL" : "SYNC_CANONICAL_SERVER",
    allowHttp: variable("SYNC_ALLOW_HTTP") === "1",
    /** `owner/name` of the canonical repository. */
    repo: variable("SYNC_CANONICAL_REPO"),
    /** The canonical file in that repository. */
    canonicalPath: variable("SYNC_CANONICAL_PATH"),
    /** A branch, a tag or a commit of that repository. */
    ref: variable("SYNC_CANONICAL_REF"),
    /** A local file that replaces the one on the server. */
    localCanonical: flags.canonical,
    copyPath: flags.copy ?? variable("SYNC_COPY_PATH"),
    /** The flag or variable it came from. */
    copySetting: flags.copy === undefined ? "SYNC_COPY_PATH" : "--copy",
    pinPath: variable("SYNC_PIN_PATH"),
    timeoutMs,
    /** When to give up on the server, on the clock of `performance.now()`. */
    deadline: performance.now() + timeoutMs,
    env,
  };
}

function parseFlags(argv: readonly string[]) {
  const file = { type: "string" } as const;
  const options = { write: { type: "boolean" }, replay: file, canonical: file, copy: file } as const;
  try {
    return parseArgs({ args: [...argv], options }).values;
  } catch (error) {
    // Keep the first sentence. The rest is about positional arguments, which the gate does not take.
    const [sentence] = errorText(error).split(". ");
    throw usageFailure(`Cannot read the flags: ${sentence}.`, "See --help.");
  }
}

function ensure(isRight: boolean, message: string, remedy: string): asserts isRight {
  if (!isRight) {
    throw usageFailure(message, remedy);
  }
}

function checkSettings(settings: ParsedSettings): void {
  const { write, replayPath, token, server, serverSetting, repo, canonicalPath, ref, timeoutMs, env } = settings;
  ensure(!write || replayPath === undefined, "--write and --replay cannot be combined.", "A replay writes nothing.");
  const problem = token === "" ? undefined : findTokenProblem(token);
  ensure(problem === undefined, `AUTO_SYNC_TOKEN is not a token: it ${problem}.`, "Store only the token itself.");
  // Checked even if nothing is sent, because the re-sync command repeats the URL.
  ensure(!server.includes("@"), `The URL in ${serverSetting} contains a user name or a password.`, "Remove them.");
  const seconds = env.SYNC_TIMEOUT_SECONDS ?? "";
  const rules = [
    ["SYNC_CANONICAL_REPO", repo, /^[\w.-]+\/[\w.-]+$/.test(repo) && isCleanPath(repo), "owner/name"],
    ["SYNC_CANONICAL_PATH", canonicalPath, isCleanPath(canonicalPath), "a path inside a repository"],
    ["SYNC_CANONICAL_REF", ref, isCleanPath(ref), "a branch, refs/tags/NAME or a full commit id"],
    ["SYNC_TIMEOUT_SECONDS", seconds, timeoutMs > 0 && timeoutMs <= 3_600_000, "a number above 0, at most 3600"],
  ] as const;
  for (const [setting, value, isRight, expected] of rules) {
    ensure(isRight, `${setting} is ${quote(value)}, not ${expected}.`, "Correct or remove it.");
  }
}

/** Redacting a shorter token could blank out ordinary words of the log. */
const MIN_TOKEN_LENGTH = 8;

/** Secret managers may leave quotes, and people paste too much or too little. Undefined if there is no problem. */
function findTokenProblem(token: string): string | undefined {
  const problems = [
    [/\s/.test(token), "contains white space"],
    [/["']/.test(token), "contains quotes"],
    [/[^\x21-\x7e]/.test(token), "contains characters that are not ASCII"],
    [token.length < MIN_TOKEN_LENGTH, `has fewer than ${MIN_TOKEN_LENGTH} characters`],
  ] as const;
  return problems.find(([applies]) => applies)?.[1];
}

/** False if a segment is empty, "." or "..": a URL parser would resolve it, and request a different path. */
function isCleanPath(path: string): boolean {
  return path.split("/").every((segment) => !/^\.{0,2}$/.test(segment));
}

function checkFiles({ copyPath, copySetting, pinPath, localCanonical = "" }: ParsedSettings): void {
  for (const [setting, path] of Object.entries({ [copySetting]: copyPath, SYNC_PIN_PATH: pinPath })) {
    const message = `${setting} is ${quote(path)}, which leads through a symbolic link, possibly out of the checkout.`;
    const hasNoLink = isAbsolute(path) || toRealPath(dirname(path)) === resolve(toRealPath("."), dirname(path));
    ensure(hasNoLink, message, "Set it to the path without the link.");
  }
  for (const [setting, path] of Object.entries({ SYNC_PIN_PATH: pinPath, "--canonical": localCanonical })) {
    const isOther = path === "" || toRealPath(path) !== toRealPath(copyPath);
    const message = `${setting} and ${copySetting} are the same file, ${quote(path)}.`;
    ensure(isOther, message, `Correct ${setting}, or remove it.`);
  }
}

function toRealPath(path: string): string {
  return fs.existsSync(path) ? fs.realpathSync.native(path) : resolve(fs.realpathSync.native("."), path);
}

/** Returns the proxy. Throws a `usage` failure if it cannot be used, or if the token must not be sent to the server. */
function checkServer(settings: ParsedSettings): Proxy | undefined {
  const { server, serverSetting, allowHttp, env } = settings;
  const what = `${serverSetting} is ${quote(server)}`;
  const remedy = "Set SYNC_CANONICAL_SERVER to the base URL of your Gitea server, such as https://git.example.com.";
  const url = URL.canParse(server) ? new URL(server) : undefined;
  const isBase = /^https?:/.test(url?.protocol ?? "") && !/[?#\s\\]|[^:]\/\/|\/api\/v1/.test(server);
  ensure(url !== undefined && isBase, `${what}, which is not the base URL of a server.`, remedy);
  ensure(!/(^|\.)github\.com\.?$/.test(url.hostname), `${what}, which is not a Gitea server.`, remedy);
  const isSafe = url.protocol === "https:" || isLoopback(url) || allowHttp;
  const https = "Set SYNC_CANONICAL_SERVER to its https: URL. On a network you trust, you can set SYNC_ALLOW_HTTP=1.";
  ensure(isSafe, `${what}: plain http would send the token unencrypted.`, https);
  const risk = "NODE_TLS_REJECT_UNAUTHORIZED=0 is set: anyone who intercepts the connection would get the token.";
  const trust = "Remove it. For a private certificate authority, set NODE_EXTRA_CA_CERTS to its certificate.";
  ensure(env.NODE_TLS_REJECT_UNAUTHORIZED !== "0", risk, trust);
  const proxy = findProxy(url, env);
  const format = "Set it to http://host:port, or http://user:password@host:port with percent-encoding.";
  const isUsable = proxy === undefined || isProxyUrl(proxy.url);
  ensure(isUsable, `${proxy?.setting} is not set to the URL of an HTTP proxy.`, format);
  return proxy;
}

function isLoopback({ hostname }: URL): boolean {
  return /^(localhost|127(\.\d+){3}|\[::1\])$/.test(hostname);
}

/** A proxy, and the variable it came from. */
type Proxy = { readonly setting: string; readonly url: string };

/** The proxy for a server. Undefined if there is none. */
function findProxy(url: URL, env: Env): Proxy | undefined {
  const scheme = url.protocol === "https:" ? "https" : "http";
  const names = [`${scheme}_proxy`, `${scheme.toUpperCase()}_PROXY`, "all_proxy", "ALL_PROXY"];
  const setting = names.find((name) => env[name]?.trim()) ?? "";
  const text = env[setting]?.trim() ?? "";
  // Never for the loopback: plain http: is allowed there because it does not leave this machine.
  if (text === "" || isLoopback(url) || isExempt(url, (env.no_proxy || env.NO_PROXY || "").trim())) {
    return undefined;
  }
  return { setting, url: text.includes("://") ? text : `http://${text}` };
}

/** Reads NO_PROXY as undici's EnvHttpProxyAgent does, which does not tell its decision, and the log has to. */
function isExempt({ hostname, port, protocol }: URL, noProxy: string): boolean {
  const serverPort = port || (protocol === "https:" ? "443" : "80");
  const isListed = (entry: string) => {
    const [host = "", entryPort = serverPort] = entry.toLowerCase().split(/:(?=\d+$)/);
    return host !== "" && entryPort === serverPort && `.${hostname}`.endsWith(`.${host.replace(/^\*?\./, "")}`);
  };
  return noProxy === "*" || noProxy.split(/[\s,]+/).some(isListed);
}

/** False also if undici could not decode user name and password. */
function isProxyUrl(text: string): boolean {
  try {
    return /^https?:/.test(decodeURI(new URL(text).href));
  } catch {
    return false;
  }
}

/** A local canonical file needs no token, except in a replay, which treats a missing token as the run would. */
function lacksToken({ token, localCanonical, replayPath }: Settings): boolean {
  return token === "" && (localCanonical === undefined || replayPath !== undefined);
}

// ------------------------------------------------------------------------------------------------
// 4. Event: the case table
// ------------------------------------------------------------------------------------------------

/** The case of the table that applies to a run, why, and in case 4 what to do about it. */
export type Context = Readonly<{ event: string; case: 1 | 2 | 3 | 4; why: string; remedy?: string }>;

/**
 * The context of this run, or of a captured event: the output of `toJSON(github)`, or only its payload if
 * GITHUB_EVENT_NAME is set. Throws a `usage` failure if there is nothing to replay.
 */
function readContext({ eventName, eventPath, replayPath }: Settings): Context {
  if (replayPath !== undefined) {
    const captured = readJson("--replay", replayPath);
    const name = valueAt(captured, "event_name");
    const isNamed = typeof name === "string";
    ensure(isNamed || eventName !== "", `${quote(replayPath)} does not name its event.`, "Set GITHUB_EVENT_NAME.");
    return isNamed ? classify(name, valueAt(captured, "event")) : classify(eventName, captured);
  }
  if (eventName !== "pull_request") {
    return classify(eventName, undefined);
  }
  try {
    return classify(eventName, readJson("GITHUB_EVENT_PATH", eventPath));
  } catch (error) {
    return {
      event: eventName,
      case: 4,
      why: errorText(error),
      remedy: "The operator of the runner must look into that.",
    };
  }
}

function readJson(setting: string, path: string): unknown {
  try {
    return JSON.parse(fs.readFileSync(path, "utf8").replace(/^\uFEFF/, ""));
  } catch (error) {
    // Node's message about a syntax error would quote the file.
    const problem = error instanceof SyntaxError ? "it is not JSON" : errorText(error);
    throw usageFailure(`${setting} ${quote(path)} cannot be read (${problem}).`, "Correct it.");
  }
}

/**
 * The case table. Only pull requests need the payload, which is the event JSON.
 *
 *   1  push, schedule, workflow_dispatch         a token is expected: it runs in the repository itself
 *   2  pull_request from the same repository     a token is expected: it gets the secrets
 *   3  pull_request from a fork                  no token is expected: it gets no secrets
 *   4  anything else, or a payload that does not say where a pull request comes from: a token is expected, so that a
 *      missing one fails the run
 */
export function classify(event: string, payload: unknown): Context {
  if (event === "push" || event === "schedule" || event === "workflow_dispatch") {
    return { event, case: 1, why: "it runs in the repository itself" };
  }
  if (event !== "pull_request") {
    const unset = { why: "GITHUB_EVENT_NAME is not set", remedy: "Pass the runner's environment to the step." };
    const unknown = { why: "the gate does not know this event", remedy: "Remove it from the workflow's triggers." };
    return { event, case: 4, ...(event === "" ? unset : unknown) };
  }
  const from = (fork: boolean, fact: string): Context => {
    return { event, case: fork ? 3 : 2, why: `${fork ? "a fork" : "the same repository"}: ${fact}` };
  };
  const head = valueAt(payload, "pull_request", "head", "repo");
  if (valueAt(payload, "pull_request", "head", "label") === "") {
    return from(true, "head.label is empty (pushed to refs/for/, the AGit flow)");
  }
  if (head === null) {
    return from(true, "head.repo is null (the fork was deleted)");
  }
  const headId = valueAt(head, "id");
  const baseId = valueAt(payload, "pull_request", "base", "repo", "id");
  if (isId(headId) && isId(baseId)) {
    return from(headId !== baseId, `head.repo.id is ${headId}, base.repo.id is ${baseId}`);
  }
  // For a payload that somebody shortened. In a real one the flag can mislead: it says whether the head is a fork of
  // anything, so it is true for the branches of a repository that is a fork itself (measured on Gitea 1.22 to 1.27).
  const flag = valueAt(head, "fork");
  if (typeof flag === "boolean") {
    return from(flag, `head.repo.fork is ${flag}`);
  }
  const why = "the payload does not say where the pull request comes from";
  return { event, case: 4, why, remedy: "The operator of the runner must look into that." };
}

/** JSON.parse rounds larger integers, so two different ids could be equal. */
function isId(value: unknown): value is number {
  return Number.isSafeInteger(value) && Number(value) > 0;
}

/** The verdict on a run that should have a token. */
function tokenMissing({ event, why, remedy }: Context, { repo }: Settings): Verdict {
  const provision = `Provision AUTO_SYNC_TOKEN (read scope on ${repo.split("/")[1]})`;
  const store = `${provision}: an admin stores it as a secret of this repository, and the step passes it in its env.`;
  const correct = `${remedy} If the run should have a token: ${provision}.`;
  const problem = remedy === undefined ? "" : `, and ${why}`;
  const message = `AUTO_SYNC_TOKEN is not set (event ${quote(event)})${problem}, so nothing was compared.`;
  return { status: "token-missing", message, remedy: remedy === undefined ? store : correct };
}

/** The verdict on a pull request from a fork, whose copy can only be compared with the pin file. */
function verdictOnFork(copy: FileContent, pin: PinFile | undefined, why: string): Verdict {
  if (pin !== undefined && pin.sha256 !== copy.sha256) {
    const message = `The pin file ${quote(pin.path)} does not contain the sha256 of the copy.`;
    const author = `If this pull request changes one of them, its author must restore both from the target branch`;
    const remedy = `${author} (${RESTORE}). If not, a maintainer must re-sync that branch.`;
    return { status: "pin-mismatch", message, remedy };
  }
  const message = `This pull request is from a fork, and ${why}, so nothing was compared.`;
  const merge = "If it changes the copy, the run after the merge fails unless the canonical file has the same change.";
  return { status: "skipped", message, remedy: `${merge} If it does not, no action is needed.` };
}

/** What a contributor can do without a token. Not `origin`, which is the fork in a clone of it. */
const RESTORE = "git fetch URL BRANCH && git checkout FETCH_HEAD -- COPY PIN";

// ------------------------------------------------------------------------------------------------
// 5. The copy and the pin file
// ------------------------------------------------------------------------------------------------

/** A file of the comparison. The sha256 is in hex. */
type FileContent = { readonly path: string; readonly bytes: Buffer; readonly sha256: string };

/**
 * A file that contains the sha256 of the copy: in a Go constant, or as `sha256sum` prints it. Here the sha256 is in
 * lower case, and `text` is the whole file in Latin-1, in which every byte is one character.
 */
type PinFile = { readonly path: string; readonly sha256: string; readonly text: string };

function readCopy({ copyPath, copySetting }: Settings): FileContent {
  const source = { name: "copy", path: copyPath, setting: copySetting, reason: "copy-unreadable" };
  const remedy = "Check out with lfs: true. Or exempt it in .gitattributes, delete the copy, and run with --write.";
  return toFileContent(source, readRegularFile(source), remedy);
}

const SHA256_WORD = /(?<!\w)[\da-f]{64}(?!\w)/gi;

/** Undefined if no pin file is set. */
function readPin({ pinPath: path }: Settings): PinFile | undefined {
  if (path === "") {
    return undefined;
  }
  const source = { name: "pin file", path, setting: "SYNC_PIN_PATH", reason: "pin-unreadable" };
  const text = readRegularFile(source).toString("latin1");
  const sums = text.match(SHA256_WORD) ?? [];
  const [sha256 = ""] = sums;
  if (sums.length !== 1) {
    const remedy = "It must contain exactly one word of 64 hex digits: correct it or SYNC_PIN_PATH.";
    throw failure("pin-unreadable", `the pin file ${quote(path)} contains ${sums.length} sha256 sums`, remedy);
  }
  return { path, sha256: sha256.toLowerCase(), text };
}

/** Far larger than any list of providers. */
const MAX_FILE_BYTES = 10 * 1024 * 1024;

/** A file of the checkout: its name, the flag or variable its path came from, and the reason if it is unreadable. */
type LocalFile = { readonly name: string; readonly path: string; readonly setting: string; readonly reason: string };

/** Reads a file of the checkout. Throws a Failure. */
function readRegularFile({ name, path, setting, reason }: LocalFile): Buffer {
  const what = `the ${name} ${quote(path)}`;
  try {
    const stat = fs.lstatSync(path);
    if (stat.isSymbolicLink()) {
      // Of a link, Git stores the path of its target, not the contents.
      throw failure(reason, `${what} is a symbolic link`, `Replace it with a file, or set ${setting} to its target.`);
    }
    if (!stat.isFile()) {
      throw failure(reason, `${what} is not a regular file`, `Set ${setting} to the file itself.`);
    }
    if (stat.size > MAX_FILE_BYTES) {
      const cause = `${what} has ${stat.size} bytes, and the limit is ${MAX_FILE_BYTES}`;
      const remedy = `Correct ${setting} if it is wrong. If not, the file is too large for the gate.`;
      throw failure("too-large", cause, remedy);
    }
    return fs.readFileSync(path);
  } catch (error) {
    if (error instanceof Failure) {
      throw error;
    }
    const cause = `${what} cannot be read in ${quote(process.cwd())} (${errorText(error)})`;
    const first = name === "copy" ? " For a first copy, run with --write." : "";
    throw failure(reason, cause, `Correct ${setting} if the path is wrong; otherwise, correct the checkout.${first}`);
  }
}

/** Throws for a Git LFS pointer (https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md). */
function toFileContent({ name, path }: Pick<LocalFile, "name" | "path">, bytes: Buffer, remedy: string): FileContent {
  if (bytes.toString("latin1", 0, 100).startsWith("version https://git-lfs.github.com/spec/")) {
    throw failure("not-a-file", `the ${name} ${quote(path)} is a Git LFS pointer, not the file`, remedy);
  }
  return { path, bytes, sha256: createHash("sha256").update(bytes).digest("hex") };
}

/** Also true for a dangling link: reading it then fails, and nothing is written through it. */
function exists(path: string): boolean {
  try {
    return fs.lstatSync(path) !== undefined;
  } catch {
    return false;
  }
}

/** Writes a file of the checkout in place (not atomically: Git has the old version), and adds it to the list. */
function writeFile(path: string, bytes: Buffer, written: string[]): void {
  try {
    fs.writeFileSync(path, bytes);
  } catch (error) {
    const done = written.length === 0 ? "nothing else" : written.join(" and ");
    const cause = `${quote(path)} could not be written, or only in part (${errorText(error)}); this run wrote ${done}`;
    const remedy = "Check its directory, the permissions and the free space, then run the command again.";
    throw failure("write-failed", cause, remedy);
  }
  written.push(quote(path));
}

function printFiles(copy: FileContent | undefined, pin: PinFile | undefined, print: Print): void {
  print(`copy       ${copy === undefined ? "none yet" : `${quote(copy.path)}: ${describeBytes(copy)}`}`);
  if (pin !== undefined) {
    const relation = pin.sha256 === copy?.sha256 ? "matches the copy" : "does not match the copy";
    print(`pin        ${quote(pin.path)}: sha256 ${pin.sha256.slice(0, 12)}, ${relation}`);
  }
}

function describeBytes({ bytes, sha256 }: FileContent): string {
  return `${bytes.length} bytes, sha256 ${sha256.slice(0, 12)}`;
}

// ------------------------------------------------------------------------------------------------
// 6. The canonical file
// ------------------------------------------------------------------------------------------------

async function readCanonical(settings: Settings, print: Print): Promise<FileContent> {
  const { localCanonical, repo, canonicalPath, ref, server, serverSetting } = settings;
  if (localCanonical !== undefined) {
    // A link is followed: the file may be in a checkout of its own.
    const path = toRealPath(localCanonical);
    const local = { name: "canonical file", path, setting: "--canonical", reason: "file-not-found" };
    const file = toFileContent(local, readRegularFile(local), "Run git lfs pull in its repository.");
    print(`canonical  ${describeBytes(file)}, the local file ${quote(localCanonical)}; no token is sent`);
    return file;
  }
  const source = `${quote(canonicalPath)} in ${quote(repo)} at ${quote(ref)} on ${server} (${serverSetting})`;
  print(`source     ${source}, with AUTO_SYNC_TOKEN${viaProxy(settings)}`);
  return fetchCanonical(settings, print);
}

/**
 * Fetches the file in three requests, so that every 404 has one meaning. The file is requested by commit, because for a
 * ref that does not exist Gitea 1.25 sends the file of the default branch.
 */
async function fetchCanonical(settings: Settings, print: Print): Promise<FileContent> {
  const { repo, canonicalPath, ref } = settings;
  const repository = await fetchRepository(settings, print);
  const sha = await fetchCommitId(settings, print);
  const response = await get(settings, print, {
    path: `/repos/${repo}/raw/${canonicalPath.split("/").map(encodeURIComponent).join("/")}?ref=${sha}`,
    reason: "file-not-found",
    cause: `${quote(repo)} has no file ${quote(canonicalPath)} at ${quote(ref)}, commit ${sha.slice(0, 10)}`,
    remedy: '"getBlobForEntry" is a directory or a submodule: name a file. If not, ask the owner for the new path.',
  });
  // First that these are the bytes of the blob, then that the blob is a file.
  checkBlobId(response);
  if (response.headers["x-gitea-object-type"] === "symlink") {
    const target = quote(response.body.toString());
    const cause = `${quote(canonicalPath)} in ${quote(repo)} is a symbolic link to ${target} (relative to its directory)`;
    throw failure("not-a-file", cause, "Set SYNC_CANONICAL_PATH to the file that it leads to.");
  }
  const untrack = `The owner of ${quote(repo)} must take it out of Git LFS there. Or correct SYNC_CANONICAL_PATH.`;
  const file = toFileContent({ name: "canonical file", path: canonicalPath }, response.body, untrack);
  const mirror = repository.mirror === true ? `, a mirror updated ${JSON.stringify(repository.mirror_updated)}` : "";
  print(`canonical  ${describeBytes(file)}, commit ${sha}${mirror}`);
  return file;
}

async function fetchRepository(settings: Settings, print: Print): Promise<Readonly<Record<string, unknown>>> {
  const { repo, server } = settings;
  const repository = await getJson(settings, print, {
    path: `/repos/${repo}`,
    reason: "repo-not-visible",
    cause: `${quote(repo)} does not exist on ${server}, or the user of the token cannot see it`,
    remedy: "If SYNC_CANONICAL_REPO is right, its owner must give that user Read access. If not, correct it.",
  });
  if (repository.archived === true) {
    const cause = `${quote(repo)} is archived, so its file can no longer change, and a comparison would prove nothing`;
    const remedy = "Ask its owner to unarchive it, or set SYNC_CANONICAL_REPO to the repository that replaced it.";
    throw failure("repo-archived", cause, remedy);
  }
  return repository;
}

/** An object id of Git: a sha1 or a sha256 in hex. */
const OBJECT_ID = /^([\da-f]{40}|[\da-f]{64})$/;

/** Asks for a branch by its full name, because for a bare one Gitea prefers a tag (measured on 1.22.6 and 1.27.0). */
async function fetchCommitId(settings: Settings, print: Print): Promise<string> {
  const { repo, ref } = settings;
  const id = OBJECT_ID.test(ref.toLowerCase()) ? ref.toLowerCase() : undefined;
  const fullRef = id ?? (ref.startsWith("refs/") ? ref : `refs/heads/${ref}`);
  const { sha } = await getJson(settings, print, {
    path: `/repos/${repo}/git/commits/${encodeURIComponent(fullRef)}?stat=false&verification=false&files=false`,
    reason: "ref-not-found",
    cause: `${quote(repo)} has no ${quote(fullRef)}`,
    remedy: "Set SYNC_CANONICAL_REF to a branch that exists, to refs/tags/NAME for a tag, or to a full commit id.",
  });
  if (typeof sha !== "string" || !OBJECT_ID.test(sha) || (id !== undefined && sha !== id)) {
    const cause = `the answer about ${quote(fullRef)} does not contain its commit id`;
    throw failure("not-gitea", cause, "The operator of the server must look into it.");
  }
  return sha;
}

/**
 * Throws if the answer is not the whole file: Gitea sends its blob id as the ETag, the hash of `blob <length>\0` and
 * the bytes (gitformat-object). This detects truncation, rewriting, and a page in place of the file. A proxy may add to
 * the ETag (`W/`, `-gzip`).
 */
function checkBlobId(response: ApiResponse): void {
  const { headers, body } = response;
  const etag = String(headers.etag ?? "");
  const blob = Buffer.concat([Buffer.from(`blob ${body.length}\0`), body]);
  const ids = ["sha1", "sha256"].map((name) => createHash(name).update(blob).digest("hex"));
  if (ids.some((id) => etag.includes(id))) {
    return;
  }
  const isBlobId = /[\da-f]{40}/.test(etag);
  const wrong = `with the ETag ${etag}, which is not ${isBlobId ? "its" : "a"} blob id`;
  const found = etag === "" ? "without an ETag" : wrong;
  const facts = [`${body.length} bytes`, `blob id ${ids[0]}`, ...listFacts(response)];
  const cause = `the file came ${found}, so its bytes are not proven to be Gitea's (${facts.join("; ")})`;
  const fault = isBlobId ? "changes the file" : "removes or replaces the ETag";
  const remedy = `Something between Gitea and the runner ${fault}: its operator must stop that for /api/v1.`;
  throw failure("unproven", cause, remedy);
}

// ------------------------------------------------------------------------------------------------
// 7. Requests
// ------------------------------------------------------------------------------------------------

/**
 * A GET request to the API. The path is below `/api/v1`, percent-encoded. The others are for the failure if Gitea has
 * no such thing.
 */
type ApiRequest = { readonly path: string; readonly reason: string; readonly cause: string; readonly remedy: string };

const MAX_ATTEMPTS = 4;
/** The share of the time that an attempt may take: 15 s of 60 s, so that three fit. */
const ATTEMPT_SHARE = 1 / 4;
/** The pause before the second attempt: 2 s of 60 s. It doubles with every attempt. */
const PAUSE_SHARE = 1 / 30;

/** Sends a request for a JSON object. Throws a Failure. */
async function getJson(settings: Settings, print: Print, request: ApiRequest): Promise<Record<string, unknown>> {
  const response = await get(settings, print, request);
  if (!isRecord(response.json)) {
    throw notGiteaFailure(settings, `something other than Gitea answered (${describeAnswer(response)})`, response);
  }
  return response.json;
}

/** Sends a request, and sends it again after a failure that may go away on its own. Throws a Failure. */
async function get(settings: Settings, print: Print, request: ApiRequest): Promise<ApiResponse> {
  const { timeoutMs, deadline } = settings;
  for (let attempt = 1; attempt < MAX_ATTEMPTS; attempt += 1) {
    try {
      return await getOnce(settings, request);
    } catch (error) {
      const minWaitMs = error instanceof Failure ? error.minWaitMs : Infinity;
      const waitMs = Math.max(minWaitMs, timeoutMs * PAUSE_SHARE * 2 ** (attempt - 1));
      // Only if a whole attempt still fits.
      if (performance.now() + waitMs + timeoutMs * ATTEMPT_SHARE > deadline) {
        throw error;
      }
      print(`retry      in ${(waitMs / 1000).toFixed(1)} s: ${errorText(error)}`);
      await sleep(waitMs);
    }
  }
  return getOnce(settings, request);
}

/** Sends a request once, on a connection of its own, and gives up when the attempt's time is up. */
async function getOnce(settings: Settings, request: ApiRequest): Promise<ApiResponse> {
  const { server, token, deadline, timeoutMs } = settings;
  const undici = await import("undici");
  const progress: Progress = { isConnected: false, length: 0 };
  const dispatcher = createDispatcher(undici, settings, progress);
  const headers = {
    "accept-encoding": "identity",
    authorization: `token ${token}`,
    // A cached response could name an old commit.
    "cache-control": "no-cache",
    // Cloudflare may block the agents of libraries, and Anubis challenges those of browsers.
    "user-agent": "sync-providers",
  };
  // A busy machine can come back from a pause after the deadline.
  const limitMs = Math.max(0, Math.min(deadline - performance.now(), timeoutMs * ATTEMPT_SHARE));
  let timer: NodeJS.Timeout | undefined;
  // undici's timeouts and signals cover neither the connection to a proxy nor the whole response.
  const timeout = new Promise<never>((_resolve, reject) => {
    timer = setTimeout(() => reject(timeoutFailure(settings, limitMs, progress)), limitMs);
  });
  try {
    const answer = undici
      .request(`${server.replace(/\/$/, "")}/api/v1${request.path}`, { dispatcher, headers })
      .then((data) => readResponse(data, progress))
      .catch((error) => Promise.reject(networkFailure(error, settings)));
    const response = await Promise.race([answer, timeout]);
    checkStatus(settings, request, response);
    return response;
  } finally {
    clearTimeout(timer);
    // Closes the connection at once, without waiting for an answer.
    void dispatcher.destroy();
  }
}

/** How far an attempt got, for the message of a timeout: whether it connected, and the length of the body so far. */
type Progress = { isConnected: boolean; length: number };

function timeoutFailure(settings: Settings, limitMs: number, { isConnected, length }: Progress): Failure {
  const { server, timeoutMs } = settings;
  const sent = `accepted the connection, but sent ${length} bytes of the answer`;
  const cause = `${server}${viaProxy(settings)} ${isConnected ? sent : "could not be reached"}`;
  const limit = `${(limitMs / 1000).toFixed(1)} s of the ${timeoutMs / 1000} s in SYNC_TIMEOUT_SECONDS`;
  const network =
    "If the server is up, raise SYNC_TIMEOUT_SECONDS, or have the network's operator look for a firewall.";
  const slow = "Rerun, or raise SYNC_TIMEOUT_SECONDS. If that does not help, the operator of the server must act.";
  return failure("timeout", `${cause} within ${limit}`, isConnected ? slow : network, 0);
}

/** Makes the connections of one attempt. */
function createDispatcher(undici: typeof import("undici"), settings: Settings, progress: Progress): Dispatcher {
  // undici's limits are off: that of an attempt is enough. By default Node tries each address of a name for 250 ms,
  // which is not enough for a slow network.
  const connect = { timeout: 0, autoSelectFamilyAttemptTimeout: 2500 };
  const limits = { maxResponseSize: MAX_FILE_BYTES, headersTimeout: 0, bodyTimeout: 0 };
  const factory = (origin: string | URL, options: Client.Options) => {
    const client = new undici.Client(origin, { ...options, ...limits });
    client.on("connect", () => Object.assign(progress, { isConnected: true }));
    // By default undici 7 reconnects without end if a proxy hangs up.
    return client.on("connectionError", (_origin, _targets, error) => void client.destroy(error));
  };
  const { server, proxy } = settings;
  if (proxy === undefined) {
    return factory(new URL(server).origin, { connect });
  }
  // Like curl: http: goes through the proxy as it is, https: through a tunnel.
  return new undici.ProxyAgent({ uri: proxy.url, proxyTunnel: false, proxyTls: connect, requestTls: connect, factory });
}

function viaProxy({ proxy }: Settings): string {
  return proxy === undefined ? "" : ` through the proxy in ${proxy.setting}`;
}

/** Reads the whole response. `json` is undefined if the body is not JSON. */
async function readResponse(response: Dispatcher.ResponseData, progress: Progress) {
  const chunks: AsyncIterable<Uint8Array> = response.body;
  // Into one buffer, because each chunk, however small, is a view of a large one.
  const buffer = Buffer.alloc(MAX_FILE_BYTES);
  for await (const chunk of chunks) {
    buffer.set(chunk, progress.length);
    progress.length += chunk.length;
  }
  const body = buffer.subarray(0, progress.length);
  return { status: response.statusCode, headers: response.headers, body, json: parseJson(body) };
}

type ApiResponse = Awaited<ReturnType<typeof readResponse>>;

/** The failure for an error of the network, of TLS, of a proxy or of HTTP. Other errors are returned as they are. */
function networkFailure(error: unknown, settings: Settings): unknown {
  const { server, proxy } = settings;
  const code = errorCode(error);
  const text = errorText(error);
  // Without a code, errorCode() is a name such as "TypeError". undici's HTTPParserError has no code either.
  if (/(?<!Parser)Error$/.test(code)) {
    return error;
  }
  if (code === "UND_ERR_RES_EXCEEDED_MAX_SIZE") {
    const remedy = "Correct SYNC_CANONICAL_PATH if it is wrong. If not, the file is too large for the gate.";
    return failure("too-large", `the answer is larger than ${MAX_FILE_BYTES} bytes`, remedy);
  }
  if (/^(?!ERR_SSL).*(CERT|VERIFY|PRX_TLS)/.test(code)) {
    const cause = `the certificate of ${server}${viaProxy(settings)} is not accepted: ${quote(text)}`;
    return failure("certificate", cause, certificateRemedy(code, settings));
  }
  const status = /^Proxy .*\((\d{3})\)/.exec(text)?.[1] ?? "";
  if (status.startsWith("4")) {
    const cause = `the proxy in ${proxy?.setting} refused the connection to ${server} with ${status}`;
    const change = status === "407" ? "correct the credentials in its URL" : "make the proxy allow the server";
    const remedy = `The operator of the runner must ${change}, or list the server in NO_PROXY.`;
    // Final: a wrong password, sent again, could lock an account.
    return failure("proxy-refused", cause, remedy);
  }
  if (status !== "") {
    const cause = `the proxy in ${proxy?.setting} could not connect to ${server}: it answered ${status}`;
    return failure("unreachable", cause, "If the server is up, the operator of the proxy must look into it.", 0);
  }
  const cause = `the connection to ${server}${viaProxy(settings)} failed: ${quote(text)} (${code})`;
  return failure("unreachable", cause, connectionRemedy(code, settings), 0);
}

function connectionRemedy(code: string, { server, proxy }: Settings): string {
  const setting = proxy?.setting ?? "SYNC_CANONICAL_SERVER";
  if (/^(ENOTFOUND|EAI_)/.test(code)) {
    return `If the host name is wrong, correct ${setting}. If not, the operator of the runner's name server must help.`;
  }
  if (code === "ECONNREFUSED") {
    const job = `That is the job's own machine: set ${setting} to an address that jobs can reach.`;
    const other = `Nothing listens there. If host and port in ${setting} are right, the operator of that service must start it.`;
    return isLoopback(new URL(proxy?.url ?? server)) ? job : other;
  }
  if (/WRONG_VERSION|HPE_|HTTPParser/.test(code)) {
    const urls = proxy === undefined ? setting : `SYNC_CANONICAL_SERVER or ${setting}`;
    const protocol = code.includes("SSL") ? "TLS" : "HTTP";
    return `No ${protocol} is spoken there. If the URL is wrong, set ${urls}. If not, the operator of the server must act.`;
  }
  return "Rerun. If it happens again, the operator of the server, or of the network in between, must look into it.";
}

function certificateRemedy(code: string, { env }: Settings): string {
  if (/^CERT_(HAS_EXPIRED|NOT_YET_VALID)$/.test(code)) {
    return `The operator of the server must renew it, unless the runner's clock (${new Date().toISOString()}) is wrong.`;
  }
  if (/ALTNAME|PRX_TLS/.test(code)) {
    return "Use a host name that the certificate has, or have the operator of the server add this one.";
  }
  const trust = `set NODE_EXTRA_CA_CERTS (${env.NODE_EXTRA_CA_CERTS ? "it is set" : "not set yet"}) to a file with`;
  const own = `If your organisation runs the issuer, ${trust} the issuer's certificate (Node ignores the system's store).`;
  return code === "DEPTH_ZERO_SELF_SIGNED_CERT"
    ? `If the operator of the server confirms its fingerprint, ${trust} this certificate.`
    : `${own} If not, the operator of the server must send the whole chain.`;
}

/** Throws a Failure for every status except 200. */
function checkStatus(settings: Settings, request: ApiRequest, response: ApiResponse): void {
  const { status, headers, json } = response;
  if (status === 200 && !(Number(headers.age) > 0)) {
    return;
  }
  const answer = describeAnswer(response);
  if (status === 200) {
    const remedy = "The operator of the proxy in front of Gitea must exempt /api/v1 from its cache.";
    throw failure("unproven", `a cache sent an answer that is ${headers.age} s old`, remedy);
  }
  if (status >= 300 && status <= 399) {
    // Never followed: the token must not go anywhere else.
    throw redirectFailure(settings, response);
  }
  // Every error of Gitea's API has these two (Gitea 1.22 to 1.27). Other servers send one or none.
  const isGitea = typeof valueAt(json, "message") === "string" && typeof valueAt(json, "url") === "string";
  if (isGitea && (status === 401 || status === 403)) {
    throw tokenFailure(settings, status, answer);
  }
  if (isGitea && (status === 404 || status === 422)) {
    throw failure(request.reason, `${request.cause} (${answer})`, request.remedy);
  }
  if (status === 408 || status === 429 || status >= 500) {
    throw serverFailure(settings, answer, response);
  }
  throw notGiteaFailure(settings, `something other than Gitea answered (${answer})`, response);
}

function serverFailure(settings: Settings, answer: string, { status, headers }: ApiResponse): Failure {
  const waitMs = 1000 * (Number(headers["retry-after"]) || 0);
  const again = "If it happens again, the operator of the server";
  if (status === 429) {
    const remedy = `Rerun ${waitMs > 0 ? "after that time" : "later"}. ${again} must raise the limit for the runner.`;
    const cause = `the server limits requests (${answer}; SYNC_TIMEOUT_SECONDS: ${settings.timeoutMs / 1000})`;
    return failure("rate-limited", cause, remedy, waitMs);
  }
  const down = "Gitea, or something between it and the runner, is down or restarting: rerun in a few minutes.";
  const remedy = `${status === 500 ? "Rerun." : down} ${again} must look into it.`;
  return failure("server-error", `the server answered with an error${viaProxy(settings)} (${answer})`, remedy, waitMs);
}

/** The failure for a redirect: to a repository that was renamed, to a server that has moved, or to any other page. */
function redirectFailure(settings: Settings, response: ApiResponse): Failure {
  const { repo, server } = settings;
  const location = String(response.headers.location ?? "");
  const url = URL.canParse(location, server) ? new URL(location, server) : new URL(server);
  const name = /\/api\/v1\/repos\/([\w.-]+\/[\w.-]+)(?=\/|$)/.exec(url.pathname)?.[1];
  const isSameServer = url.origin === new URL(server).origin;
  const cause = `the server redirects to ${quote(location)} (${response.status})`;
  if (name === undefined || (isSameServer && name === repo)) {
    return notGiteaFailure(settings, `${cause}, which is not Gitea's API`, response);
  }
  const rename = name === repo ? "" : ` Set SYNC_CANONICAL_REPO to ${name}.`;
  const base = quote(url.href.slice(0, url.href.indexOf("/api/v1")));
  const token = "and AUTO_SYNC_TOKEN to a token of that server";
  const move = isSameServer ? "" : ` If you trust ${base}, set SYNC_CANONICAL_SERVER to it, ${token}.`;
  return failure("repo-moved", cause, `The address has changed.${move}${rename}`);
}

/** Gitea's own refusal of the token. */
function tokenFailure({ write, repo }: Settings, status: number, answer: string): Failure {
  const store = "An admin must store a new one, with the scope read:repository, as the secret AUTO_SYNC_TOKEN.";
  const renew = write ? "Enter another one (scope read:repository)." : store;
  if (status === 401) {
    return failure("token-rejected", `the token is wrong, revoked or expired (${answer})`, renew);
  }
  const remedy = answer.includes("scope") ? renew : "The repository's owner must give the token's user Read access.";
  return failure("token-forbidden", `the token, or its user, may not read ${quote(repo)} (${answer})`, remedy);
}

/** Something other than Gitea answered: a sign-in page or a firewall, or a gateway that does not route to Gitea. */
function notGiteaFailure({ server }: Settings, cause: string, answer: Pick<ApiResponse, "status" | "json">): Failure {
  const { status, json } = answer;
  const page = "let the runner through to /api/v1 (past a sign-in page, a firewall or a challenge)";
  const obstacle = status === 404 || (status === 200 && json !== undefined) ? "route /api/v1 to Gitea" : page;
  const operator = `If ${server} is your Gitea, the operator of the proxy or gateway in front of it must ${obstacle}.`;
  const restart = status === 404 ? "If Gitea is restarting, rerun in a few minutes. " : "";
  const remedy = `${restart}${operator} If not, set SYNC_CANONICAL_SERVER.`;
  return failure("not-gitea", cause, remedy, status === 404 ? 0 : Infinity);
}

/** What an answer says: its status, its text, and who sent it. */
function describeAnswer(response: ApiResponse): string {
  return [`${response.status} ${quote(findText(response))}`, ...listFacts(response)].join("; ");
}

/** What the headers say about the sender, and about who was on the way. */
function listFacts({ headers }: ApiResponse): string[] {
  const known = ["server", "via", "content-encoding", "retry-after"].filter((name) => headers[name] !== undefined);
  return known.map((name) => `${name}: ${quote(String(headers[name]))}`);
}

/** The message of an error of Gitea, the title of a page, or else the first line. */
function findText({ body, json }: ApiResponse): string {
  const message = valueAt(json, "message");
  if (typeof message === "string") {
    return message;
  }
  const text = body.toString().trim();
  return /<title>([^<]*)</i.exec(text)?.[1]?.trim() ?? text.replace(/\n.*/s, "");
}

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

/** Compares the copy with the canonical file, byte for byte, and then with the pin file. */
function compare(copy: FileContent, pin: PinFile | undefined, canonical: FileContent): Verdict {
  if (!copy.bytes.equals(canonical.bytes)) {
    return drift(copy, pin, canonical);
  }
  if (pin !== undefined && pin.sha256 !== copy.sha256) {
    const message = `The copy matches the canonical file, but the pin file ${quote(pin.path)} does not contain its sha256.`;
    return {
      status: "pin-mismatch",
      message,
      remedy: `Re-sync, or replace the sum in the pin file with ${copy.sha256}.`,
    };
  }
  const pinned = pin === undefined ? "" : ", and the pin file agrees";
  return { status: "in-sync", message: `The copy matches the canonical file byte for byte${pinned}.`, remedy: "" };
}

function drift(copy: FileContent, pin: PinFile | undefined, canonical: FileContent): Verdict {
  const problem = `The copy ${quote(copy.path)} differs from the canonical file`;
  if (pin?.sha256 === copy.sha256) {
    const message = `${problem}. The pin file matches the copy, so the canonical file has probably changed since the last re-sync.`;
    return { status: "drift", message, remedy: "Read the diff, then re-sync." };
  }
  if (differsOnlyInLineEndings(copy, canonical)) {
    return { status: "drift", message: `${problem} only in line endings.`, remedy: exemptFromGit(copy.path) };
  }
  const keep = "If the edit is wanted, make it in the canonical file first. Then re-sync: it overwrites the copy.";
  if (pin?.sha256 === canonical.sha256) {
    const message = `${problem}. The pin file matches the canonical file, so the copy was edited, by hand or by a formatter.`;
    return { status: "drift", message, remedy: keep };
  }
  const neither = pin === undefined ? "" : " The pin file matches neither file: both changed, or it is stale.";
  return { status: "drift", message: `${problem}.${neither}`, remedy: `Read the diff. ${keep}` };
}

function differsOnlyInLineEndings(copy: FileContent, canonical: FileContent): boolean {
  const normalize = ({ bytes }: FileContent) => bytes.toString("latin1").replaceAll("\r\n", "\n");
  return normalize(copy) === normalize(canonical);
}

/** Beside the copy, the rule overrides those of parent directories. A wildcard replaces what would need quotes. */
function exemptFromGit(path: string): string {
  const line = `${basename(path).replace(/[^\p{L}\p{N}._-]+/gu, "*")} -text`;
  const file = join(dirname(path), ".gitattributes");
  return `Git or an editor converts them: append the line ${quote(line)} to ${quote(file)}, re-sync, and commit both files.`;
}

// ------------------------------------------------------------------------------------------------
// 9. Diff and re-sync
// ------------------------------------------------------------------------------------------------

const MAX_DIFF_LINES = 200;
/** Of both files. The library takes seconds, and a gigabyte, for ten times as much. */
const MAX_DIFF_BYTES = 2 * 1024 * 1024;

/** Prints a unified diff from the copy to the canonical file, which is what a re-sync changes, or why there is none. */
async function printDiff(copy: FileContent, canonical: FileContent, print: Print): Promise<void> {
  try {
    for (const line of await unifiedDiff(copy, canonical)) {
      print(line);
    }
  } catch (error) {
    print(`diff       none: ${errorText(error)}`);
  }
}

async function unifiedDiff(copy: FileContent, canonical: FileContent): Promise<string[]> {
  if (differsOnlyInLineEndings(copy, canonical)) {
    return ["diff       none: only line endings differ"];
  }
  if (copy.bytes.length + canonical.bytes.length > MAX_DIFF_BYTES || !isUtf8(copy.bytes) || !isUtf8(canonical.bytes)) {
    return ["diff       none: the files are not UTF-8 text, or too large"];
  }
  const { createTwoFilesPatch, FILE_HEADERS_ONLY } = await import("diff");
  const names = [`in the copy ${copy.path}`, `in the canonical file ${canonical.path}`] as const;
  // After the timeout, in milliseconds, the library gives up.
  const options = { context: 10, timeout: 2000, headerOptions: FILE_HEADERS_ONLY };
  const patch = createTwoFilesPatch(...names, `${copy.bytes}`, `${canonical.bytes}`, undefined, undefined, options);
  const lines = patch?.replace(/\n$/, "").split("\n") ?? ["diff       none: the files differ too much"];
  const omitted = lines.length - MAX_DIFF_LINES;
  return omitted > 0 ? [...lines.slice(0, MAX_DIFF_LINES), `lines omitted: ${omitted}`] : lines;
}

/** Prints how to re-sync: one line that works when pasted, with every setting that decides what is compared. */
function printResync(settings: Settings, isFork: boolean, print: Print): void {
  const { token, server, repo, canonicalPath, ref, copyPath, pinPath, allowHttp, localCanonical } = settings;
  const files = { SYNC_COPY_PATH: copyPath, SYNC_PIN_PATH: pinPath };
  const remote = {
    SYNC_CANONICAL_SERVER: server,
    SYNC_CANONICAL_REPO: repo,
    SYNC_CANONICAL_PATH: canonicalPath,
    SYNC_CANONICAL_REF: ref,
    ...(allowHttp && { SYNC_ALLOW_HTTP: "1" }),
  };
  const variables = localCanonical === undefined ? { ...remote, ...files } : files;
  const assignments = Object.entries(variables).map(([name, value]) => `${name}=${quoteForShell(value)}`);
  const write = `${assignments.join(" ")} ${startCommand()} --write`;
  const clone = `an up-to-date clone with the gate's packages, in the directory that is ${quote(process.cwd())} here`;
  let command = `  ${write} --canonical ${quoteForShell(localCanonical ?? "")}`;
  if (localCanonical === undefined) {
    command = `  ${READ_TOKEN}; ${write}; unset AUTO_SYNC_TOKEN`;
    print(`To re-sync, paste this line into bash or zsh, in ${clone}.`);
    print(`Then paste a token that can read ${quote(repo)} (nothing is shown). Commit and push what is written.`);
  } else {
    print("To re-sync, update the checkout of the canonical file, then run this. Commit and push what is written.");
  }
  // Exactly as it is, or not at all.
  const isExact = toLine(command, token) === command && !command.includes("\t");
  print(isExact ? command : "  (the command cannot be shown: it is too long, or has characters that the log changes)");
  if (isFork) {
    print(`Without that token, restore the files from the target branch: ${RESTORE}`);
  }
}

const READ_TOKEN = "read -rs AUTO_SYNC_TOKEN; export AUTO_SYNC_TOKEN";

/** The command that a person would type. */
function startCommand(): string {
  const path = relative(process.cwd(), process.argv[1] ?? "sync-providers.ts");
  return `${path.endsWith(".ts") ? "npx --no tsx" : "node"} ${quoteForShell(path)}`;
}

/** A word for a POSIX shell. */
function quoteForShell(word: string): string {
  return /^[\w./:@%+-]+$/.test(word) ? word : `'${word.replaceAll("'", "'\\''")}'`;
}

// ------------------------------------------------------------------------------------------------
// 10. Text
// ------------------------------------------------------------------------------------------------

/** Prints a line of the log, or an annotation, which is a command that the runner obeys. */
type Print = (text: string, annotation?: "error" | "warning") => void;

const MAX_LINE_LENGTH = 4000;
/** Without `::error::`. Longer annotations are hard to read in a browser. */
const MAX_ANNOTATION_LENGTH = 380;

/** Everything except the help text is printed here. */
function createPrint({ AUTO_SYNC_TOKEN = "" }: Env, write: (line: string) => void): Print {
  return (text, annotation) => {
    const line = toLine(text, AUTO_SYNC_TOKEN.trim());
    if (annotation === undefined) {
      return write(line);
    }
    const escaped = line.replaceAll("%", "%25");
    // act, the engine of Gitea's runner, would end the properties of the command at the last "::".
    const data = cut(escaped.replace(/:(?=:)/g, ": "), MAX_ANNOTATION_LENGTH);
    if (data !== escaped) {
      write(`verdict    ${line}`);
    }
    write(`::${annotation}::${data}`);
  };
}

/** Redacts the token, then cuts the line and makes it inert, so that no part of the token remains at a cut. */
function toLine(text: string, token: string): string {
  const redacted = token.length < MIN_TOKEN_LENGTH ? text : text.replaceAll(token, "***");
  return makeInert(cut(redacted, MAX_LINE_LENGTH));
}

/** Characters other than a tab that are not seen or look like a space, and white space at the end of a longer line. */
const INVISIBLE_CHARACTERS = /(?![ \t])[\p{C}\p{Z}\p{Default_Ignorable_Code_Point}]|(?<=.)[ \t]$/gu;

/** Makes invisible characters visible, and breaks up what a runner would obey: `::` at the start, `##[` anywhere. */
function makeInert(line: string): string {
  const show = (character: string) => `\\u{${character.codePointAt(0)?.toString(16)}}`;
  const visible = line.replace(INVISIBLE_CHARACTERS, show);
  return visible.replace(/^(\s*):(?=:)/, "$1: ").replaceAll("##[", "# #[");
}

/** Cuts out the middle, because a verdict ends with what to do. */
function cut(text: string, maxLength: number): string {
  const half = maxLength / 2 - 2;
  return text.length > maxLength ? `${text.slice(0, half)} … ${text.slice(-half)}` : text;
}

/** Quotes untrusted text. */
function quote(text: string): string {
  return `"${text.replaceAll('"', "'")}"`;
}

/** The first line of an error's message, without a full stop. If several addresses failed, the messages of all. */
function errorText(error: unknown): string {
  if (error instanceof AggregateError) {
    return error.errors.map(errorText).join("; ");
  }
  const [line = ""] = (error instanceof Error ? error.message : String(error)).split("\n");
  // Without what Node adds to the errors of files (the sentence around it names the path), and OpenSSL to its own.
  return line.replace(/(, \w+ '[^']*')?[.:]?$/, "").replace(/^\w+:error:(?:[^:]*:){3}([^:]*):.*$/, "OpenSSL: $1");
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
  // For a run whose event loop is empty before its verdict.
  process.exitCode = EXIT_CODES.unverified;
  main(process.argv.slice(2), process.env, console.log)
    // The log could not be written: only the exit code can tell.
    .catch(() => EXIT_CODES.unverified)
    .then((exitCode) => {
      // Exit once the log is flushed. A connection that a library left behind would keep the process alive.
      process.stdout.write("", () => process.exit(exitCode));
    });
}
