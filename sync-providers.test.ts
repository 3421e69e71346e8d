/**
 * All tests of the gate. This file has the case table and every permutation of event, fork, token and canonical
 * state; the other tables are in fixtures/tests, in the order of the sections of sync-providers.ts.
 *
 * One row alone:
 *
 *   node --enable-source-maps --import ./.ci/loader.mjs --test --test-name-pattern="Cloudflare 521" \
 *     sync-providers.test.ts
 */

import { deepEqual, equal } from "node:assert/strict";
import { readdirSync } from "node:fs";
import { after, before, describe, test } from "node:test";
import fc from "fast-check";
import { CANONICAL_PATH, CANONICAL_TOKEN, DRIFTED_PATH, JOB_TOKEN } from "./fixtures/contents.ts";
import { CAPTURED_CASES, CASE_ROWS, type Case, readCapturedEvent } from "./fixtures/events.ts";
import { runForDocument } from "./fixtures/gate-runner.ts";
import { type GiteaServer, playPublicRepository, playResponse, startGitea } from "./fixtures/gitea-server.ts";
import { temporaryFile } from "./fixtures/temporary-files.ts";
import { classify } from "./sync-providers.ts";

// The same random inputs in every run, so that a failure is about the change that is tested.
fc.configureGlobal({ seed: 20_261_123 });

describe("the case table, on captured events", () => {
  test("every file in fixtures/events has its case", () => {
    const files = readdirSync("fixtures/events").map((file) => file.replace(/\.json$/, ""));
    deepEqual(files.sort(), Object.keys(CAPTURED_CASES).sort());
  });

  for (const [name, want] of Object.entries(CAPTURED_CASES)) {
    const { event_name, event, secret_arrived } = readCapturedEvent(name);
    test(`captured event ${name} is case ${want}`, () => {
      const context = classify(event_name, { kind: "read", value: event });
      equal(context.case, want, context.why);
      equal(context.trusted, want !== 3);
    });
    if (event_name === "pull_request") {
      test(`captured event ${name}: the server gave it the secret exactly if it is trusted`, () => {
        equal(secret_arrived, want !== 3);
      });
    }
  }
});

/** What a run with a token comes to, by the state of the canonical file. */
const COMPARED = { same: "in-sync", different: "drift", unreachable: "unverified: unreachable" } as const;
const SKIPPED = { same: "skipped", different: "skipped", unreachable: "skipped" } as const;
const MISSING = { same: "token-missing", different: "token-missing", unreachable: "token-missing" } as const;
const MALFORMED = {
  same: "unverified: token-malformed",
  different: "unverified: token-malformed",
  unreachable: "unverified: token-malformed",
} as const;
/** Every kind of token, and what becomes of it in a trusted run and in a pull request from a fork. */
const TOKENS = [
  { name: "no token", env: {}, trusted: MISSING, fork: SKIPPED },
  { name: "an empty token", env: { AUTO_SYNC_TOKEN: "" }, trusted: MISSING, fork: SKIPPED },
  { name: "a blank token", env: { AUTO_SYNC_TOKEN: " \t\n" }, trusted: MISSING, fork: SKIPPED },
  {
    name: "a malformed token",
    env: { AUTO_SYNC_TOKEN: "to ken-with-a-blank" },
    trusted: MALFORMED,
    fork: MALFORMED,
  },
  { name: "a token", env: { AUTO_SYNC_TOKEN: ` ${CANONICAL_TOKEN}\n` }, trusted: COMPARED, fork: COMPARED },
  { name: "the job token", env: { SYNC_JOB_TOKEN: `${JOB_TOKEN}\n` }, trusted: COMPARED, fork: SKIPPED },
  { name: "a public repository", env: { SYNC_ANONYMOUS: "1" }, trusted: COMPARED, fork: COMPARED },
];

interface PermutationEvent {
  readonly name: string;
  readonly case: Case;
  readonly event_name: string;
  readonly event: unknown;
}

function listEvents(): PermutationEvent[] {
  const events: PermutationEvent[] = [];
  for (const [name, row] of Object.entries(CAPTURED_CASES)) {
    events.push({ name: `captured ${name}`, case: row, ...readCapturedEvent(name) });
  }
  for (const { name, payload, want } of CASE_ROWS) {
    events.push({ name, case: want.case, event_name: "pull_request", event: payload });
  }
  return events;
}

describe("every event, fork or not, with every token and every state of the canonical file", () => {
  let server: GiteaServer;
  before(async () => {
    server = await startGitea({
      every: (socket, request) => {
        const known = [undefined, `token ${CANONICAL_TOKEN}`, `token ${JOB_TOKEN}`];
        const isKnown = known.includes(request.headers.get("authorization"));
        const responder = isKnown ? playPublicRepository() : playResponse("bad-token");
        responder(socket, request);
      },
    });
  });
  after(() => server.close());

  const states = [
    { state: "same", env: () => ({ SYNC_COPY_PATH: CANONICAL_PATH, GITHUB_SERVER_URL: server.url }) },
    { state: "different", env: () => ({ SYNC_COPY_PATH: DRIFTED_PATH, GITHUB_SERVER_URL: server.url }) },
    {
      state: "unreachable",
      // Nothing listens on port 1. The short deadline keeps the pauses short.
      env: () => ({
        SYNC_COPY_PATH: CANONICAL_PATH,
        GITHUB_SERVER_URL: "http://127.0.0.1:1",
        SYNC_TIMEOUT_SECONDS: "0.5",
      }),
    },
  ] as const;

  /** Replays the event with the token in every state of the canonical file. */
  async function checkPermutation(event: PermutationEvent, token: (typeof TOKENS)[number]): Promise<void> {
    const { event_name, event: payload } = event;
    const replay = ["--replay", temporaryFile(JSON.stringify({ event_name, event: payload }))];
    for (const { state, env } of states) {
      const want = event.case === 3 ? token.fork[state] : token.trusted[state];
      const earlierRequests = server.requests.length;
      const { status, reason, case: row, trusted } = await runForDocument(replay, { ...env(), ...token.env });
      equal(reason === null ? status : `${status}: ${reason}`, want, `canonical state: ${state}`);
      equal(row, event.case);
      equal(trusted, event.case !== 3);
      const isFetched = want === "in-sync" || want === "drift";
      equal(
        server.requests.length - earlierRequests,
        isFetched ? 3 : 0,
        `requests, canonical state: ${state}`,
      );
    }
  }

  for (const event of listEvents()) {
    for (const token of TOKENS) {
      test(`${event.name} (case ${event.case}), ${token.name}`, () => checkPermutation(event, token));
    }
  }
});

// The other tables, in the order of the sections of sync-providers.ts.
import "./fixtures/tests/text.test.ts";
import "./fixtures/tests/settings.test.ts";
import "./fixtures/tests/files.test.ts";
import "./fixtures/tests/context.test.ts";
import "./fixtures/tests/requests.test.ts";
import "./fixtures/tests/tokens.test.ts";
import "./fixtures/tests/verdicts.test.ts";
import "./fixtures/tests/differences.test.ts";
import "./fixtures/tests/resync.test.ts";
import "./fixtures/tests/report.test.ts";
import "./fixtures/tests/alarm.test.ts";
import "./fixtures/tests/command.test.ts";
import "./fixtures/tests/workflows.test.ts";
import "./fixtures/tests/documents.test.ts";
import "./fixtures/tests/damage.test.ts";
