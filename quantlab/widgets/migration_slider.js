// Left: ranges of inputs above, of weights below, loudest input first. Right: the error at each alpha.
function channels(stage, { box, values, limits, fill, yLabel, marker }) {
  const [low, high] = limits;
  const { X, Y } = axes(stage, { box, x: [-1, values.length], y: [low, high], log: true, xTicks: [],
    yTicks: powers(low, high), xLabel: marker === "circle" ? "" : "channel, loudest input first", yLabel });
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

// One pair of limits for all strengths, so that moving the slider moves the points and not the axis.
function limits(matrix) {
  const positive = matrix.flat().filter((value) => value > 0);
  if (positive.length === 0) return [0.5, 2];
  const [low, high] = [Math.min(...positive), Math.max(...positive)];
  return [low / 1.3, high * 1.3];
}

function errorCurve(stage, { choices, errors, before }, at) {
  const best = errors.indexOf(Math.min(...errors));
  const top = 1.15 * Math.max(before, ...errors);
  const { X, Y } = axes(stage, { box: [470, 40, 706, 372], x: [-0.02, 1.02], y: [0, top],
    xTicks: [0, 0.25, 0.5, 0.75, 1], xLabel: "alpha", yLabel: "output error, %" });
  svg(stage, "path", { d: `M${X(0)} ${Y(before)}H${X(1)}`, stroke: "currentColor", "stroke-dasharray": "2 4" });
  svg(stage, "text", { x: X(0.5), y: Y(before) - 8, "text-anchor": "middle" }, "no scales");
  const points = errors.map((value, k) => `${X(choices.alpha[k])} ${Y(value)}`);
  svg(stage, "path", { d: `M${points.join("L")}`, fill: "none", stroke: "currentColor", "stroke-width": 1.8 });
  errors.forEach((value, k) => svg(stage, "circle", { cx: X(choices.alpha[k]), cy: Y(value),
    r: k === at ? 7 : 3, fill: k === at ? "var(--ql-vermillion)" : "currentColor" }));
  svg(stage, "path", { d: `M${X(choices.alpha[best])} ${Y(errors[best]) - 10}l-6 -11h12Z`, fill: "var(--ql-vermillion)" });
}

function draw({ alpha }, stage, self) {
  const { table } = self;
  const at = table.choices.alpha.indexOf(alpha);
  self.limits ??= { inputs: limits(table.inputs), weights: limits(table.weights) };
  channels(stage, { box: [64, 40, 412, 190], values: table.inputs[at], limits: self.limits.inputs,
    fill: "var(--ql-orange)", yLabel: "inputs: max |x| / s", marker: "circle" });
  channels(stage, { box: [64, 228, 412, 372], values: table.weights[at], limits: self.limits.weights,
    fill: "var(--ql-blue)", yLabel: "weights: max |w| · s", marker: "triangle" });
  errorCurve(stage, table, at);
  const span = (values) => `${Math.min(...values).toPrecision(3)} to ${Math.max(...values).toPrecision(3)}`;
  return {
    sentence: table.sentences[at],
    header: ["alpha", "output error, %", "inputs / s", "weights · s"],
    rows: () => table.choices.alpha.map((value, k) =>
      [value, table.errors[k], span(table.inputs[k]), span(table.weights[k])]),
  };
}

export default {
  render({ model, el }) {
    const self = widget({ model, el }, { title: "Migration slider", height: 412, draw });
    slider(self, { key: "alpha", label: "Alpha", values: () => self.table.choices.alpha });
    self.redraw();
    return self.stop;
  },
};
