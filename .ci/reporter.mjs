/** For node's test runner: the failures, then the totals. Nobody reads a thousand rows that passed. */
import { Readable } from "node:stream";
import { spec } from "node:test/reporters";

const SHOWN = new Set(["test:fail", "test:stdout", "test:stderr"]);

export default async function* (events) {
  const totals = [];
  const shown = Readable.from(events).filter(({ type, data }) => {
    // What a test says of itself stands deeper.
    if (type === "test:diagnostic" && data.nesting === 0) totals.push(`# ${data.message}\n`);
    return SHOWN.has(type);
  });
  yield* shown.pipe(new spec());
  yield totals.join("");
}
