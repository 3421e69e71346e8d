/** What the benchmark and the runtimes share: how the gate is started, and what it said. */
import { spawn } from "node:child_process";
import { mkdtempSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";

/** The project's folder, in which every command runs. */
export const ROOT = fileURLToPath(new URL("..", import.meta.url));
/** tsx's own script: `npx tsx` without npx. */
export const TSX = fileURLToPath(import.meta.resolve("tsx/cli"));
/** A folder for this run alone, which is every command's home; whoever imports this removes it. */
export const SCRATCH = mkdtempSync(join(tmpdir(), "sync-providers-"));

/** Runs a command with this environment alone; its exit code, what it printed, its milliseconds. */
export function runCommand([command, ...args], env = {}) {
  return new Promise((resolve, reject) => {
    const startedAt = performance.now();
    const child = spawn(command, args, { cwd: ROOT, env: { PATH: process.env.PATH, HOME: SCRATCH, ...env } });
    const printed = { stdout: "", stderr: "" };
    for (const stream of ["stdout", "stderr"]) {
      child[stream].on("data", (chunk) => {
        printed[stream] += chunk;
      });
    }
    child.on("error", reject);
    child.on("close", (exitCode) => resolve({ exitCode, ...printed, ms: performance.now() - startedAt }));
  });
}

/** Makes the bundle in the scratch folder and returns its path. */
export async function makeBundle() {
  const { exitCode, stderr } = await runCommand([process.execPath, ".ci/bundle.mjs", SCRATCH]);
  if (exitCode !== 0) throw new Error(`Cannot make the bundle: ${stderr}`);
  return join(SCRATCH, "sync-providers.mjs");
}
