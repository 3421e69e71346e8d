/** What the benchmark and the runtimes share: a scratch folder and the bundle. */

import { mkdtempSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { runCommand, TSX } from "../fixtures/gate-runner.ts";

/** A folder for this run. The importing script must remove it. */
export const SCRATCH = mkdtempSync(join(tmpdir(), "sync-providers-"));

/** Makes the bundle in the scratch folder and returns its path. */
export async function makeBundle(): Promise<string> {
  const { exitCode, stderr } = await runCommand([process.execPath, TSX, ".ci/bundle.ts", SCRATCH]);
  if (exitCode !== 0) {
    throw new Error(`Cannot make the bundle: ${stderr}`);
  }
  return join(SCRATCH, "sync-providers.mjs");
}
