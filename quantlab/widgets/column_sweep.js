// Left: how far each weight has moved, and the error of each column. Right: H, and the error so far.
const STYLE = { RTN: { color: "var(--ql-blue)", dash: "none" }, GPTQ: { color: "var(--ql-orange)", dash: "6 3" } };

// Orange for positive, blue with a minus sign for negative; the fuller, the larger.
function cells(stage, matrix, { box: [left, top, right, bottom], limit }) {
  const [wide, high] = [(right - left) / matrix[0].length, (bottom - top) / matrix.length];
  matrix.forEach((row, i) => row.forEach((value, j) => {
    const share = Math.min(1, Math.abs(value) / limit);
    const [x, y] = [left + j * wide, top + i * high];
    svg(stage, "rect", { x, y, width: wide - 0.6, height: high - 0.6, "fill-opacity": 0.06 + 0.94 * share,
      fill: value === 0 ? "currentColor" : value > 0 ? "var(--ql-orange)" : "var(--ql-blue)" });
    if (value < 0 && share > 0.2)
      svg(stage, "path", { d: `M${x + wide * 0.3} ${y + high / 2}h${wide * 0.4}`, stroke: "#fff", "stroke-width": 1.5 });
  }));
  svg(stage, "rect", { x: left, y: top, width: right - left, height: bottom - top, class: "ql-axis" });
  return wide;
}

function largest(matrix) {
  return Math.max(1e-300, ...matrix.flat(Infinity).map(Math.abs));
}

function movedWeights(stage, self, step) {
  const { table } = self;
  self.limit ??= largest(table.moved); // one color scale for all steps
  const box = [20, 34, 440, 200];
  svg(stage, "text", { x: 20, y: 14, class: "ql-strong" }, "How far each weight has moved");
  const wide = cells(stage, table.moved[step], { box, limit: self.limit });
  const edge = 20 + wide * step;
  svg(stage, "path", { d: `M${edge} 24V206`, stroke: "currentColor", "stroke-width": 2.5 });
  if (step > 2) svg(stage, "text", { x: edge - 6, y: 29, "text-anchor": "end" }, "rounded");
  if (step < table.hessian.length - 1) svg(stage, "text", { x: edge + 6, y: 29 }, "still free");
}

// H never changes, so its cells are made once and put back into each new picture.
function hessian(stage, self, step) {
  svg(stage, "text", { x: 500, y: 14, class: "ql-strong" }, "H: which inputs go together");
  const H = self.table.hessian;
  if (self.map) stage.append(self.map);
  else cells((self.map = svg(stage, "g")), H, { box: [500, 34, 666, 200], limit: largest(H) });
  if (step === 0) return;
  const wide = 166 / H.length;
  const look = { fill: "none", stroke: "currentColor", "stroke-width": 2 };
  svg(stage, "rect", { x: 500, y: 34 + wide * (step - 1), width: 166, height: wide, ...look });
  svg(stage, "text", { x: 672, y: 38 + wide * (step - 0.5) }, `row ${step - 1}`);
}

function columnBars(stage, table, step) {
  const names = Object.keys(table.columns);
  const number = table.hessian.length;
  const most = Math.max(...names.flatMap((name) => table.columns[name])) || 1;
  const { X, Y } = axes(stage, { box: [70, 258, 440, 400], x: [-0.5, number - 0.5], y: [0, most * 1.05],
    xTicks: [...Array(number).keys()].filter((j) => number <= 16 || j % 4 === 0),
    xLabel: "column", yLabel: "error of a column's weights" });
  const wide = (X(1) - X(0)) * 0.38;
  names.forEach((name, index) => table.columns[name].forEach((value, j) => {
    if (j >= step) return;
    svg(stage, "rect", { x: X(j) + (index - 1) * wide, y: Y(value), width: wide - 1, height: 400 - Y(value),
      fill: STYLE[name].color, stroke: "currentColor", "stroke-width": index });
  }));
}

function outputError(stage, table, step) {
  const names = Object.keys(table.errors);
  const most = Math.max(...names.flatMap((name) => table.errors[name])) || 1;
  const number = table.hessian.length;
  const { X, Y } = axes(stage, { box: [520, 258, 706, 400], x: [0, number], y: [0, most * 1.05],
    xTicks: niceTicks(0, number, 4), xLabel: "columns rounded", yLabel: "error of the output" });
  names.forEach((name, index) => {
    const points = table.errors[name].map((error, k) => `${X(k)} ${Y(error)}`);
    const look = { fill: "none", stroke: STYLE[name].color, "stroke-dasharray": STYLE[name].dash };
    svg(stage, "path", { d: `M${points.join("L")}`, ...look, opacity: 0.35, "stroke-width": 1.5 });
    svg(stage, "path", { d: `M${points.slice(0, step + 1).join("L")}`, ...look, "stroke-width": 2.5 });
    svg(stage, "circle", { cx: X(step), cy: Y(table.errors[name][step]), r: 5, fill: STYLE[name].color,
      stroke: "currentColor", "stroke-width": index });
    svg(stage, "path", { d: `M532 ${272 + 18 * index}h22`, ...look, "stroke-width": 3 });
    svg(stage, "text", { x: 560, y: 276 + 18 * index }, name);
  });
}

function draw({ step }, stage, self) {
  const { table } = self;
  movedWeights(stage, self, step);
  hessian(stage, self, step);
  columnBars(stage, table, step);
  outputError(stage, table, step);
  const { RTN, GPTQ } = table.errors;
  return {
    sentence: table.sentences[step],
    header: ["columns rounded", "output error, RTN", "output error, GPTQ", "moved, row by row"],
    rows: () => RTN.map((error, k) => [k, error, GPTQ[k], k === step
      ? table.moved[k].map((row) => row.map((value) => value.toPrecision(2)).join(" ")).join("; ") : ""]),
  };
}

export default {
  render({ model, el }) {
    const self = widget({ model, el }, { title: "Column sweep", height: 440, draw });
    slider(self, { key: "step", label: "Columns rounded", values: () => self.table.choices.step });
    self.redraw();
    return self.stop;
  },
};
