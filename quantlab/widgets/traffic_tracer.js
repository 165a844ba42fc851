// Left: each element of the four arrays, the bluer the more often touched. Right: bytes moved so far.
const LOOK = { codes: "var(--ql-blue)", scale: "var(--ql-orange)", x: "var(--ql-green)", y: "var(--ql-purple)" };
const LABEL = { codes: "codes (bytes)", scale: "scales", x: "x, the activations", y: "y, the outputs" };

function grid(stage, name, state, shape, { top, most }) {
  const [rows, columns] = shape.length === 2 ? shape : [1, shape[0]];
  const [wide, high] = [Math.min(26, 420 / columns), rows === 1 ? 20 : 14];
  const counts = state.touched[name], latest = new Set(state.latest[name] || []);
  svg(stage, "text", { x: 20, y: top + 11, class: "ql-strong" }, LABEL[name]);
  const times = Math.max(...counts);
  svg(stage, "text", { x: 440, y: top + 11, "text-anchor": "end" }, `touched up to ${times} times`);
  counts.forEach((count, place) => {
    const [x, y] = [20 + (place % columns) * wide, top + 18 + Math.floor(place / columns) * high];
    const look = latest.has(place) ? { stroke: "currentColor", "stroke-width": 2 } : { stroke: "currentColor", "stroke-opacity": 0.25 };
    svg(stage, "rect", { x, y, width: wide - 2, height: high - 2, fill: LOOK[name],
      "fill-opacity": count === 0 ? 0.03 : 0.15 + (0.8 * count) / most, ...look });
  });
  return top + 18 + rows * high + 12;
}

function bars(stage, table, state) {
  const names = Object.keys(state.moved);
  const finals = Object.values(table.runs).map((run) => Object.values(run.at(-1).moved).reduce((a, b) => a + b));
  const most = Math.max(...finals);
  const Y = (bytes) => 330 - (290 * bytes) / most;
  svg(stage, "text", { x: 500, y: 18, class: "ql-strong" }, "bytes moved");
  let base = 0;
  names.forEach((name) => {
    const size = state.moved[name];
    svg(stage, "rect", { x: 530, y: Y(base + size), width: 70, height: Y(base) - Y(base + size),
      fill: LOOK[name], stroke: "currentColor", "stroke-width": 0.7 });
    if (Y(base) - Y(base + size) > 12) svg(stage, "text", { x: 608, y: (Y(base) + Y(base + size)) / 2 + 4 }, `${name} ${size}`);
    base += size;
  });
  svg(stage, "path", { d: `M510 ${Y(table.once)}H690`, stroke: "currentColor", "stroke-dasharray": "5 4" });
  svg(stage, "text", { x: 690, y: Y(table.once) - 5, "text-anchor": "end" }, `each byte once: ${table.once}`);
  svg(stage, "path", { d: "M510 330H690", class: "ql-axis" });
  svg(stage, "text", { x: 565, y: 350, "text-anchor": "middle" }, `${base} bytes`);
}

function draw({ step, tile }, stage, { table }) {
  const state = table.runs[tile][step];
  const most = Math.max(1, ...Object.values(table.runs[tile].at(-1).touched).flat());
  let top = 8;
  for (const name of Object.keys(table.shapes)) top = grid(stage, name, state, table.shapes[name], { top, most });
  bars(stage, table, state);
  return {
    sentence: state.sentence,
    header: ["rows at a time", "codes", "scales", "x", "y", "bytes in all"],
    rows: () => table.choices.tile.map((size) => {
      const { moved } = table.runs[size][step];
      return [size, moved.codes, moved.scale, moved.x, moved.y, Object.values(moved).reduce((a, b) => a + b)];
    }),
  };
}

export default {
  render({ model, el }) {
    const self = widget({ model, el }, { title: "Traffic tracer", height: 370, draw });
    slider(self, { key: "step", label: "Progress of the loop", values: () => self.table.choices.step });
    slider(self, { key: "tile", label: "Rows at a time", values: () => self.table.choices.tile });
    self.redraw();
    return self.stop;
  },
};
