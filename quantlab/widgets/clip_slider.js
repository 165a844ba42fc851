// Weights with the levels of a grid on the left, the two errors against the clip on the right.
function hatch(stage) {
  const id = `ql-hatch-${++count}`;
  const box = { id, width: 6, height: 6, patternUnits: "userSpaceOnUse", patternTransform: "rotate(45)" };
  const pattern = svg(svg(stage, "defs"), "pattern", box);
  svg(pattern, "rect", { width: 6, height: 6, fill: "var(--ql-orange)" });
  svg(pattern, "path", { d: "M0 0V6", stroke: "#fff", "stroke-width": 2 });
  return `url(#${id})`;
}

function weights(stage, { counts, edges }, { bits, clip }, cut) {
  const most = Math.max(...counts);
  const x = [Math.min(edges[0], -clip), Math.max(edges[edges.length - 1], clip)];
  const { X, Y } = axes(stage, { box: [52, 28, 350, 250], x, y: [0, most * 1.05],
    xTicks: niceTicks(...x, 4), xLabel: "weight", yLabel: "number of weights" });
  counts.forEach((number, index) => {
    const beyond = edges[index] < -clip || edges[index + 1] > clip;
    const left = X(edges[index]);
    svg(stage, "rect", { x: left, y: Y(number), width: Math.max(0.5, X(edges[index + 1]) - left - 0.5),
      height: 250 - Y(number), fill: beyond ? cut : "var(--ql-sky)" });
  });
  const middle = 2 ** (bits - 1) - 1;
  for (let k = -middle; k <= middle; k++)
    svg(stage, "path", { d: `M${X((k * clip) / middle)} ${bits > 5 ? 238 : 60}V250`, stroke: "var(--ql-vermillion)",
      "stroke-width": bits > 5 ? 0.5 : 1, "stroke-dasharray": bits > 5 ? "none" : "5 3" });
  for (const side of [-1, 1])
    svg(stage, "path", { d: `M${X(side * clip)} 36V250`, stroke: "currentColor", "stroke-width": 2 });
  svg(stage, "text", { x: 350, y: 19, "text-anchor": "end" }, `${2 * middle + 1} levels`);
}

function errors(stage, [percents, clipping, rounding], at, largest, cut) {
  const total = clipping.map((value, index) => value + rounding[index]);
  const best = total.indexOf(Math.min(...total));
  const top = Math.max(4 * total[best], Math.min(1.15 * total[at], Math.max(...total)), 1.1 * total[99]);
  const clips = percents.map((percent) => (percent / 100) * largest);
  const { X, Y } = axes(stage, { box: [430, 28, 708, 250], x: [0, largest], y: [0, top],
    xTicks: niceTicks(0, largest, 4), xLabel: "clip", yLabel: "mean squared error" });
  const shown = (value) => Y(Math.min(value, top));
  const outline = (values) => clips.map((clip, index) => `${X(clip)} ${shown(values[index])}`);
  const floor = [`${X(clips[99])} 250`, `${X(clips[0])} 250`];
  svg(stage, "path", { d: `M${[...outline(rounding), ...floor].join("L")}Z`, fill: "var(--ql-blue)" });
  svg(stage, "path", { d: `M${[...outline(total), ...outline(rounding).reverse()].join("L")}Z`, fill: cut });
  svg(stage, "path", { d: `M${outline(total).join("L")}`, fill: "none", stroke: "currentColor", "stroke-width": 1.8 });
  svg(stage, "path", { d: `M${X(clips[at])} 36V250`, stroke: "currentColor", "stroke-width": 2 });
  svg(stage, "circle", { cx: X(clips[at]), cy: shown(total[at]), r: 6, fill: "currentColor" });
  svg(stage, "path", { d: `M${X(clips[best])} ${Y(total[best]) - 4}l-6 -11h12Z`, fill: "var(--ql-vermillion)" });
  const legend = [["rounding", "var(--ql-blue)"], ["clipping", cut], ["least", "var(--ql-vermillion)"]];
  legend.forEach(([name, fill], index) => {
    svg(stage, "rect", { x: 450 + 90 * index, y: 294, width: 18, height: 11, fill });
    svg(stage, "text", { x: 473 + 90 * index, y: 304 }, name);
  });
}

function draw({ bits, clip }, stage, { table }) {
  const curve = table.curves[bits];
  const cut = hatch(stage);
  weights(stage, table, { bits, clip: (clip / 100) * table.largest }, cut);
  errors(stage, curve, clip - 1, table.largest, cut);
  const [percents, clipping, rounding, decibels, share] = curve;
  return {
    sentence: table.sentences[bits][clip - 1],
    header: ["clip %", "clipping", "rounding", "SQNR dB", "weights cut %"],
    rows: () => percents.map((percent, k) =>
      [percent, clipping[k].toPrecision(3), rounding[k].toPrecision(3), decibels[k].toFixed(2), (100 * share[k]).toFixed(2)]),
  };
}

export default {
  render({ model, el }) {
    const self = widget({ model, el }, { title: "Clip slider", height: 312, draw });
    const { choices } = self.table;
    picker(self, { key: "bits", label: "Bits", values: choices.bits });
    slider(self, { key: "clip", label: "Clip, % of the largest weight", values: () => choices.clip,
      text: (percent) => `${percent} %` });
    self.redraw();
    return self.stop;
  },
};
