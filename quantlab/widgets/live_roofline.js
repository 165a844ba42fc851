// A roof of one slope and one level, the chosen product where it touches it, and measured points.
const EDGE = [0.25, 2048]; // operations for each byte

function draw({ form, batch, cache }, stage, { table }) {
  const here = table.states[form][batch][cache];
  const bandwidth = table.read[cache];
  const peak = table.peak[table.kind[form]];
  const points = table.points;
  const lowest = Math.min(EDGE[0] * table.read.cold, ...points.map((p) => p[2])) / 1e9;
  const highest = Math.max(...Object.values(table.peak), ...points.map((p) => p[2])) / 1e9;
  const left = Math.min(EDGE[0], ...points.map((p) => p[1] / 1.5));
  const right = Math.max(EDGE[1], ...points.map((p) => p[1] * 1.5));
  const ticks = [];
  for (let p = Math.floor(Math.log10(lowest)); 10 ** p <= 2 * highest; p++) ticks.push(10 ** p);
  const box = [70, 34, 700, 280];
  const map = axes(stage, { box, x: [Math.log2(left), Math.log2(right)], y: [ticks[0], 2 * highest],
    log: true, yTicks: ticks, xTicks: [], xLabel: "operations for each byte moved",
    yLabel: "billion operations a second" });
  const X = (value) => map.X(Math.log2(value));
  const Y = (value) => map.Y(value / 1e9);
  for (let k = Math.ceil(Math.log2(left)); 2 ** k <= right; k += 2)
    svg(stage, "text", { x: X(2 ** k), y: box[3] + 16, "text-anchor": "middle" }, String(2 ** k));
  const corner = peak / bandwidth;
  const start = Math.max(left, (ticks[0] * 1e9) / bandwidth);
  svg(stage, "path", { d: `M${X(start)} ${Y(start * bandwidth)}L${X(corner)} ${Y(peak)}H${box[2]}`,
    fill: "none", stroke: "var(--ql-blue)", "stroke-width": 2.5 });
  svg(stage, "text", { x: X(corner) + 8, y: Y(peak) - 7 }, `${(peak / 1e9).toPrecision(3)} Gop/s (${table.kind[form]})`);
  svg(stage, "text", { x: X(start) + 62, y: Y(start * bandwidth) - 4 }, `${(bandwidth / 1e9).toPrecision(3)} GB/s (${cache})`);
  svg(stage, "path", { d: `M${X(here.intensity)} ${box[3]}V${Y(here.speed)}`, stroke: "currentColor",
    "stroke-width": 1, "stroke-dasharray": "3 4" });
  svg(stage, "circle", { cx: X(here.intensity), cy: Y(here.speed), r: 7, fill: "var(--ql-vermillion)", stroke: "currentColor" });
  points.forEach(([name, at, speed], k) => {
    svg(stage, "path", { d: `M${X(at)} ${Y(speed) - 7}l7 7l-7 7l-7 -7Z`, fill: "var(--ql-green)", stroke: "currentColor" });
    svg(stage, "text", { x: X(at) + 10, y: Y(speed) + 4 }, String.fromCharCode(97 + k));
    svg(stage, "text", { x: box[2] - 4, y: box[3] - 10 - 16 * (points.length - 1 - k), "text-anchor": "end" },
      `◆ ${String.fromCharCode(97 + k)} ${name}`);
  });
  return {
    sentence: here.sentence,
    header: ["batch", "operations a byte", "at most, Gop/s", "tokens/s"],
    rows: () => table.choices.batch.map((b) => {
      const state = table.states[form][b][cache];
      return [b, state.intensity.toPrecision(3), (state.speed / 1e9).toPrecision(3), state.tokens.toPrecision(3)];
    }),
  };
}

export default {
  render({ model, el }) {
    const self = widget({ model, el }, { title: "Live roofline", height: 320, draw });
    const { form, batch, cache } = self.table.choices;
    picker(self, { key: "form", label: "Weights", values: form });
    picker(self, { key: "cache", label: "They come from", values: cache,
      text: (name) => (name === "cold" ? "memory (cold)" : "cache (hot)") });
    slider(self, { key: "batch", label: "Batch", values: () => batch, text: (b) => `${b} tokens at a time` });
    self.redraw();
    return self.stop;
  },
};
