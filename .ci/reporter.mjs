/** For node's test runner: prints the failures, then the totals, but not the rows that passed. */

import { Readable } from "node:stream";
import { spec } from "node:test/reporters";

const SHOWN = new Set(["test:fail", "test:stdout", "test:stderr"]);

/** @param {AsyncIterable<import("node:test/reporters").TestEvent>} events */
export default async function* report(events) {
  /** @type {string[]} */
  const totals = [];
  const shown = Readable.from(events).filter(({ type, data }) => {
    // Diagnostics of single tests are nested deeper.
    if (type === "test:diagnostic" && data.nesting === 0) {
      totals.push(`# ${data.message}\n`);
    }
    return SHOWN.has(type);
  });
  yield* shown.pipe(new spec());
  yield totals.join("");
}
