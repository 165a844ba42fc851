// Top: each weight, divided, then rounded to a level. Below: the error, beside plain rounding's.
const COLORS = ["var(--ql-blue)", "var(--ql-orange)", "var(--ql-green)", "var(--ql-purple)"];
const DASHES = ["none", "7 3", "2 3", "8 3 2 3"];

function places(self, position) {
  return ["gamma", "beta", "s2", "s3"].map((name) => self.table.choices[name].indexOf(position[name]));
}

function at(nested, indices) {
  return indices.reduce((part, index) => part[index], nested);
}

function errorAt(table, indices) {
  const size = table.choices.gamma.length;
  return table.errors[indices.reduce((sum, index) => sum * size + index, 0)];
}

function grid(stage, { X, table, step }) {
  const half = 2 ** (table.bits - 1);
  for (let code = -half; code < half; code++) {
    svg(stage, "path", { d: `M${X(code * step)} 205v20`, stroke: "currentColor", "stroke-width": 2 });
    svg(stage, "text", { x: X(code * step), y: 242, "text-anchor": "middle" }, String(code));
  }
  ["weight W", "divided W\u2032", "level"].forEach((name, row) => {
    svg(stage, "path", { d: `M110 ${55 + 80 * row}H700`, class: "ql-grid" });
    svg(stage, "text", { x: 100, y: 59 + 80 * row, "text-anchor": "end" }, name);
  });
}

function paths(stage, { X, table, step, divided, codes }) {
  table.weights.forEach((weight, k) => {
    const look = { stroke: COLORS[k % 4], "stroke-dasharray": DASHES[k % 4], fill: "none", "stroke-width": 2.5 };
    const stops = [weight, divided[k], codes[k] * step].map((value, row) => [X(value), 55 + 80 * row]);
    svg(stage, "path", { d: `M${stops.map((stop) => stop.join(" ")).join("L")}`, ...look });
    for (const [cx, cy] of stops) svg(stage, "circle", { cx, cy, r: 5, fill: COLORS[k % 4] });
    const mark = k === table.element ? `w${k + 1} (s2)` : `w${k + 1}`;
    svg(stage, "text", { x: stops[0][0], y: 40, "text-anchor": "middle" }, mark);
  });
}

function bars(stage, table, indices) {
  const middle = indices.map(() => (table.choices.gamma.length - 1) / 2);
  const rows = [["now", errorAt(table, indices)], ["plain rounding", errorAt(table, middle)]];
  const most = Math.max(...rows.map((row) => Number(row[1]))) || 1;
  svg(stage, "text", { x: 110, y: 278, class: "ql-strong" }, "Error");
  rows.forEach(([name, error], index) => {
    const y = 288 + 26 * index;
    svg(stage, "text", { x: 100, y: y + 15, "text-anchor": "end" }, name);
    svg(stage, "rect", { x: 110, y, width: (Number(error) / most) * 480, height: 18,
      fill: index ? "none" : "var(--ql-blue)", stroke: "currentColor" });
    svg(stage, "text", { x: 118 + (Number(error) / most) * 480, y: y + 15 }, error);
  });
}

function draw(position, stage, self) {
  const { table } = self;
  const indices = places(self, position);
  const [gamma, beta, s2, s3] = indices;
  const [step, divided] = [table.steps[gamma][beta], table.divided[s2][s3]];
  const codes = at(table.codes, indices);
  const half = 2 ** (table.bits - 1);
  const most = Math.max(...table.steps.flat());
  const [low, high] = [-half * most, (half - 1) * most];
  const X = (value) => 130 + ((value - low) / (high - low)) * 550;
  grid(stage, { X, table, step });
  paths(stage, { X, table, step, divided, codes });
  bars(stage, table, indices);
  const plain = errorAt(table, indices.map(() => (table.choices.gamma.length - 1) / 2));
  return {
    sentence: `Step ${step.toFixed(4)}, codes ${codes.join(" ")}, error ${errorAt(table, indices)}; `
      + `plain rounding has ${plain}.`,
    header: ["weight", "W", "W\u2032", "W\u2032 / s", "code", "level"],
    rows: () => table.weights.map((weight, k) => [`w${k + 1}`, weight, divided[k],
      (divided[k] / step).toFixed(3), codes[k], (codes[k] * step).toFixed(4)]),
  };
}

export default {
  render({ model, el }) {
    const self = widget({ model, el }, { title: "AdaScale sliders", height: 350, draw });
    const labels = { gamma: "\u03b3, upper end", beta: "\u03b2, lower end", s2: "s2, one weight", s3: "s3, the row" };
    for (const [key, label] of Object.entries(labels))
      slider(self, { key, label, values: () => self.table.choices[key] });
    self.redraw();
    return self.stop;
  },
};
