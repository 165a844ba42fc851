// Left: the turned vector. Right: its rounding error at each angle, on a log scale.
function bars(stage, values, rms) {
  const most = Math.max(...values.map(Math.abs)) * 1.1;
  const { X, Y } = axes(stage, { box: [64, 40, 412, 332], x: [-1, values.length], y: [-most, most],
    xLabel: "coordinate", yLabel: "value (dotted: root mean square)" });
  for (const side of [-rms, rms])
    svg(stage, "path", { d: `M${X(-1)} ${Y(side)}H${X(values.length)}`, stroke: "currentColor", "stroke-dasharray": "2 4" });
  const stems = values.map((value, k) => `M${X(k)} ${Y(0)}V${Y(value)}`);
  svg(stage, "path", { d: stems.join(""), stroke: "var(--ql-blue)", "stroke-width": 1.2, fill: "none" });
}

function curve(stage, angles, errors, at) {
  const [low, high] = [Math.min(...errors) / 1.6, Math.max(...errors) * 1.6];
  const { X, Y } = axes(stage, { box: [478, 40, 706, 332], x: [0, 90], y: [low, high], log: true,
    xTicks: [0, 15, 30, 45, 60, 75, 90], xLabel: "angle, degrees (dashed: Hadamard)", yLabel: "rounding error, % of energy" });
  svg(stage, "path", { d: `M${X(45)} 40V332`, stroke: "currentColor", "stroke-dasharray": "5 5" });
  const points = errors.map((value, k) => `${X(angles[k])} ${Y(value)}`);
  svg(stage, "path", { d: `M${points.join("L")}`, fill: "none", stroke: "currentColor", "stroke-width": 1.8 });
  svg(stage, "circle", { cx: X(angles[at]), cy: Y(errors[at]), r: 7, fill: "var(--ql-vermillion)" });
}

function draw({ vector, angle }, stage, self) {
  const { table } = self;
  const angles = table.choices.angle;
  const at = angles.indexOf(angle);
  const values = table.values[vector][at];
  const measures = table.measures[vector];
  bars(stage, values, Math.sqrt(values.reduce((sum, v) => sum + v * v, 0) / values.length));
  curve(stage, angles, measures.map((row) => row[2]), at);
  return {
    sentence: `${vector}: ${table.sentences[vector][at]}`,
    header: ["degrees", "largest / root mean square", "kurtosis", "error, % of energy"],
    rows: () => angles.map((value, k) => [value, ...measures[k]]),
  };
}

export default {
  render({ model, el }) {
    const self = widget({ model, el }, { title: "Vector rotator", height: 372, draw });
    picker(self, { key: "vector", label: "Vector", values: self.table.choices.vector });
    slider(self, { key: "angle", label: "Angle", values: () => self.table.choices.angle, text: (angle) => `${angle} degrees` });
    self.redraw();
    return self.stop;
  },
};
