// Left: inputs above, weights below, loudest input first. Right: the output error at each ratio.
function columns(stage, { box, values, limits, fill, yLabel, marker }) {
  const [low, high] = limits;
  const { X, Y } = axes(stage, { box, x: [-1, values.length], y: [low, high], log: true, xTicks: [],
    yTicks: powers(low, high), xLabel: marker === "circle" ? "" : "column, loudest input first", yLabel });
  values.forEach((value, j) => {
    const [x, y] = [X(j), Y(Math.max(low, value))];
    if (marker === "circle") svg(stage, "circle", { cx: x, cy: y, r: 2.6, fill });
    else svg(stage, "path", { d: `M${x} ${y - 3.4}l3.2 5.8h-6.4Z`, fill });
  });
}

// Powers of ten inside the limits, or of two where there is none.
function powers(low, high) {
  for (const base of [10, 2]) {
    const ticks = [];
    for (let k = Math.ceil(Math.log(low) / Math.log(base)); base ** k <= high; k++) ticks.push(base ** k);
    if (ticks.length > 1) return ticks.filter((_, k) => k % Math.ceil(ticks.length / 6) === 0);
  }
  return [low, high];
}

// One pair of limits for all ratios, so that moving the slider moves the points and not the axis.
function limits(matrix) {
  const positive = matrix.flat().filter((value) => value > 0);
  if (positive.length === 0) return [0.5, 2];
  const [low, high] = [Math.min(...positive), Math.max(...positive)];
  return [low / 1.3, high * 1.3];
}

function errors(stage, { choices, percent }, at) {
  const best = percent.indexOf(Math.min(...percent));
  const top = Math.max(110, 1.05 * Math.max(...percent));
  const { X, Y } = axes(stage, { box: [470, 40, 706, 372], x: [-0.02, 0.97], y: [0, top],
    xTicks: [0, 0.25, 0.5, 0.75, 0.95], xLabel: "ratio", yLabel: "output error, % of ratio 0" });
  svg(stage, "path", { d: `M${X(0)} ${Y(100)}H${X(0.95)}`, stroke: "currentColor", "stroke-dasharray": "2 4" });
  const points = percent.map((value, k) => `${X(choices.ratio[k])} ${Y(value)}`);
  svg(stage, "path", { d: `M${points.join("L")}`, fill: "none", stroke: "currentColor", "stroke-width": 1.8 });
  percent.forEach((value, k) => svg(stage, "circle", { cx: X(choices.ratio[k]), cy: Y(value),
    r: k === at ? 7 : 3, fill: k === at ? "var(--ql-vermillion)" : "currentColor" }));
  svg(stage, "path", { d: `M${X(choices.ratio[best])} ${Y(percent[best]) - 10}l-6 -11h12Z`, fill: "var(--ql-vermillion)" });
  svg(stage, "text", { x: X(choices.ratio[best]), y: Y(percent[best]) - 26, "text-anchor": "middle" }, "least");
}

function draw({ ratio }, stage, self) {
  const { table } = self;
  const at = table.choices.ratio.indexOf(ratio);
  self.limits ??= { inputs: limits(table.inputs), weights: limits(table.weights) };
  columns(stage, { box: [64, 40, 412, 190], values: table.inputs[at], limits: self.limits.inputs,
    fill: "var(--ql-orange)", yLabel: "inputs: mean |x| / s", marker: "circle" });
  columns(stage, { box: [64, 228, 412, 372], values: table.weights[at], limits: self.limits.weights,
    fill: "var(--ql-blue)", yLabel: "weights: largest |w| · s", marker: "triangle" });
  errors(stage, table, at);
  const span = (values) => `${Math.min(...values).toPrecision(3)} to ${Math.max(...values).toPrecision(3)}`;
  return {
    sentence: table.sentences[at],
    header: ["ratio", "output error", "% of ratio 0", "inputs / s", "largest weights · s"],
    rows: () => table.choices.ratio.map((value, k) =>
      [value, table.losses[k].toPrecision(3), table.percent[k], span(table.inputs[k]), span(table.weights[k])]),
  };
}

export default {
  render({ model, el }) {
    const self = widget({ model, el }, { title: "Ratio slider", height: 412, draw });
    slider(self, { key: "ratio", label: "Ratio", values: () => self.table.choices.ratio });
    self.redraw();
    return self.stop;
  },
};
