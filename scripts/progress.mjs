// Progress of long work for scripts that run before any package is installed: a bar on a terminal, a line every tenth
// elsewhere.
const WIDTH = 28;

/** `12.3 s`, `2 min 05 s`. */
export function duration(ms) {
  if (ms < 60_000) return `${(ms / 1000).toFixed(1)} s`;
  const seconds = Math.round(ms / 1000);
  return `${Math.floor(seconds / 60)} min ${String(seconds % 60).padStart(2, "0")} s`;
}

/**
 * @param {string} label
 * @param {{ isTTY?: boolean, write(text: string): unknown }} [stream]
 */
export function progressBar(label, stream = process.stderr) {
  let lastTenth = -1;
  let lastPercent = -1;
  let open = false;
  return {
    /** @param {number} fraction of the whole, 0 to 1 */
    update(fraction) {
      const percent = Math.floor(Math.min(1, Math.max(0, fraction)) * 100);
      if (percent <= lastPercent) return;
      lastPercent = percent;
      if (stream.isTTY) {
        const filled = Math.round((percent / 100) * WIDTH);
        stream.write(`\r  ${label} [${"=".repeat(filled)}${" ".repeat(WIDTH - filled)}] ${percent} %`);
        open = true;
      } else if (Math.floor(percent / 10) > lastTenth) {
        lastTenth = Math.floor(percent / 10);
        stream.write(`  ${label} ${percent} %\n`);
      }
    },
    /** Clears the bar, so that the next line starts at the margin. */
    end() {
      if (open) stream.write("\r\x1b[K");
      open = false;
    },
  };
}

/** Runs one named step and prints its time; `work` resolves with a short remark such as `up to date`, or nothing. */
export async function step(title, work) {
  const started = performance.now();
  const remark = await work();
  process.stderr.write(`  ${title}: ${remark ?? "done"} (${duration(performance.now() - started)})\n`);
}
