// Left: input channels by their largest |x|, those above the threshold in float. Right: the error.
function powersOfTen(low, high) {
  const ticks = [];
  for (let power = Math.ceil(Math.log10(low)); 10 ** power <= high; power++) ticks.push(10 ** power);
  return ticks.length > 1 ? ticks : logTicks(low, high);
}

function channels(stage, { sizes }, threshold) {
  const positive = sizes.filter((size) => size > 0);
  const low = Math.min(...positive, threshold) / 1.4;
  const high = Math.max(...positive, threshold) * 1.4;
  const { X, Y } = axes(stage, { box: [64, 40, 372, 330], x: [-1, sizes.length], y: [low, high], log: true,
    xTicks: [], yTicks: powersOfTen(low, high), xLabel: "input channel, largest first", yLabel: "largest |x|" });
  sizes.forEach((size, j) => {
    const [x, y] = [X(j), Y(Math.max(low, size))];
    if (size >= threshold) svg(stage, "path", { d: `M${x} ${y - 4}l3.8 6.8h-7.6Z`, fill: "var(--ql-vermillion)" });
    else svg(stage, "circle", { cx: x, cy: y, r: 2.4, fill: "var(--ql-blue)" });
  });
  svg(stage, "path", { d: `M64 ${Y(threshold)}H372`, stroke: "currentColor", "stroke-dasharray": "6 4" });
  svg(stage, "text", { x: 372, y: 31, "text-anchor": "end" }, "▲ float · ● int8");
}

function errorCurve(stage, { choices, errors }, at) {
  const thresholds = choices.threshold;
  const ends = [thresholds[0], thresholds[thresholds.length - 1]].map(Math.log10);
  const { X, Y } = axes(stage, { box: [440, 40, 706, 330], x: ends, y: [0, 1.08 * Math.max(...errors)],
    xTicks: [], xLabel: "threshold", yLabel: "error, % of the output" });
  const place = (k) => X(Math.log10(thresholds[k]));
  for (const tick of powersOfTen(thresholds[0], thresholds[thresholds.length - 1]))
    svg(stage, "text", { x: X(Math.log10(tick)), y: 346, "text-anchor": "middle" }, String(tick));
  const points = errors.map((value, k) => `${place(k)} ${Y(value)}`);
  svg(stage, "path", { d: `M${points.join("L")}`, fill: "none", stroke: "currentColor", "stroke-width": 1.8 });
  errors.forEach((value, k) => svg(stage, "circle", { cx: place(k), cy: Y(value), r: k === at ? 7 : 3,
    fill: k === at ? "var(--ql-vermillion)" : "currentColor" }));
}

function draw({ threshold }, stage, { table }) {
  const at = table.choices.threshold.indexOf(threshold);
  channels(stage, table, threshold);
  errorCurve(stage, table, at);
  return {
    sentence: table.sentences[at],
    header: ["threshold", "channels in float", "error, %", "bytes", "% of float16"],
    rows: () => table.choices.threshold.map((value, k) =>
      [value, table.kept[k], table.errors[k], table.bytes[k], ((100 * table.bytes[k]) / table.half).toFixed(1)]),
  };
}

export default {
  render({ model, el }) {
    const self = widget({ model, el }, { title: "Threshold slider", height: 372, draw });
    slider(self, { key: "threshold", label: "Threshold", values: () => self.table.choices.threshold });
    self.redraw();
    return self.stop;
  },
};
