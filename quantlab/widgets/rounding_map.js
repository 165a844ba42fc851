// Left: every weight, darker the nearer to the middle between two levels; arrows where it was turned.
// Right: the output error after each turned weight.
function shade(stage, matrix, [left, top, right, bottom]) {
  const [wide, high] = [(right - left) / matrix[0].length, (bottom - top) / matrix.length];
  matrix.forEach((row, i) => row.forEach((value, j) => svg(stage, "rect", { x: left + j * wide,
    y: top + i * high, width: wide - 0.6, height: high - 0.6, fill: "currentColor", "fill-opacity": 0.03 + 0.7 * value })));
  svg(stage, "rect", { x: left, y: top, width: right - left, height: bottom - top, class: "ql-axis" });
  return { wide, high };
}

function arrows(stage, turned, [left, top], { wide, high }) {
  const size = Math.min(wide, high) * 0.36;
  turned.forEach(([row, column, direction]) => {
    const [x, y] = [left + (column + 0.5) * wide, top + (row + 0.5) * high];
    const tip = direction > 0 ? -size : size;
    svg(stage, "path", { d: `M${x} ${y + tip}L${x + size} ${y - tip}H${x - size}Z`, stroke: "currentColor",
      "stroke-width": 0.8, fill: direction > 0 ? "var(--ql-orange)" : "var(--ql-blue)" });
  });
}

function map(stage, table, step) {
  const box = [20, 34, 440, 240];
  svg(stage, "text", { x: 20, y: 14, class: "ql-strong" }, "Weights rounded away from their nearest level");
  arrows(stage, table.order.slice(0, step), box, shade(stage, table.distance, box));
  [["up", 1], ["down", -1]].forEach(([name, direction], index) => {
    arrows(stage, [[0, 0, direction]], [20 + 90 * index, 250], { wide: 22, high: 22 });
    svg(stage, "text", { x: 46 + 90 * index, y: 266 }, name);
  });
  svg(stage, "text", { x: 210, y: 266 }, "darker: nearer to the middle");
}

function savings(stage, table, step) {
  const { errors } = table;
  const most = Math.max(...errors) || 1;
  const { X, Y } = axes(stage, { box: [520, 34, 706, 222], x: [0, Math.max(1, errors.length - 1)],
    y: [0, most * 1.05], xTicks: niceTicks(0, Math.max(1, errors.length - 1), 4).filter(Number.isInteger),
    xLabel: "weights turned", yLabel: "output error" });
  const points = errors.map((error, k) => `${X(k)} ${Y(error)}`);
  const look = { fill: "none", stroke: "var(--ql-blue)" };
  svg(stage, "path", { d: `M${points.join("L")}`, ...look, opacity: 0.35, "stroke-width": 1.5 });
  svg(stage, "path", { d: `M${points.slice(0, step + 1).join("L")}`, ...look, "stroke-width": 2.5 });
  svg(stage, "circle", { cx: X(step), cy: Y(errors[step]), r: 5, fill: "var(--ql-orange)", stroke: "currentColor" });
}

function draw({ step }, stage, self) {
  const { table } = self;
  map(stage, table, step);
  savings(stage, table, step);
  return {
    sentence: table.sentences[step],
    header: ["weights turned", "row", "column", "direction", "output error"],
    rows: () => table.errors.map((error, k) => (k === 0 ? [0, "", "", "", error]
      : [k, table.order[k - 1][0], table.order[k - 1][1], table.order[k - 1][2] > 0 ? "up" : "down", error])),
  };
}

export default {
  render({ model, el }) {
    const self = widget({ model, el }, { title: "Rounding map", height: 290, draw });
    slider(self, { key: "step", label: "Weights turned", values: () => self.table.choices.step });
    self.redraw();
    return self.stop;
  },
};
