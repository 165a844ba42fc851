// Perplexity against bytes for each measured model; two sliders pick one.
const MARKS = ["circle", "square", "triangle", "diamond", "cross"];
const HUES = ["blue", "orange", "green", "vermillion", "purple"];

function mark(parent, kind, x, y, r, attributes) {
  const shapes = {
    circle: `M${x - r} ${y}a${r} ${r} 0 1 0 ${2 * r} 0a${r} ${r} 0 1 0 ${-2 * r} 0Z`,
    square: `M${x - r} ${y - r}h${2 * r}v${2 * r}h${-2 * r}Z`,
    triangle: `M${x} ${y - r * 1.2}l${r * 1.2} ${r * 2.1}h${-r * 2.4}Z`,
    diamond: `M${x} ${y - r * 1.3}l${r * 1.3} ${r * 1.3}l${-r * 1.3} ${r * 1.3}l${-r * 1.3} ${-r * 1.3}Z`,
    cross: `M${x - r} ${y - r}l${2 * r} ${2 * r}M${x + r} ${y - r}l${-2 * r} ${2 * r}`,
  };
  return svg(parent, "path", { d: shapes[kind], ...attributes });
}

function megabytes(nbytes) {
  return nbytes >= 1e9 ? `${(nbytes / 1e9).toPrecision(3)} GB` : `${(nbytes / 1e6).toPrecision(3)} MB`;
}

function groupName(group) {
  return group ? `groups of ${group}` : "whole rows";
}

function drawCurve(stage, { rows, reference, choices }, now) {
  const most = Math.max(reference.nbytes, ...rows.map((row) => row.nbytes));
  const worst = Math.max(...rows.map((row) => row.perplexity));
  const best = Math.min(reference.perplexity, ...rows.map((row) => row.perplexity));
  const log = worst > 2 * best;
  const y = log ? [best / 1.25, worst * 1.2] : [best - 0.08 * (worst - best), worst + 0.08 * (worst - best)];
  const { X, Y } = axes(stage, { box: [58, 26, 470, 262], x: [0, (most / 1e6) * 1.05], y, log,
    xLabel: "size of the weights in MB", yLabel: "perplexity (lower is better)" });
  const at = (row) => [X(row.nbytes / 1e6), Y(row.perplexity)];
  const [fx, fy] = at(reference);
  svg(stage, "path", { d: `M58 ${fy}H470`, stroke: "currentColor", "stroke-dasharray": "6 4", opacity: 0.6 });
  mark(stage, "diamond", fx, fy, 5, { fill: "currentColor" });
  svg(stage, "text", { x: fx, y: fy - 11, "text-anchor": "middle" }, "float");
  choices.group.forEach((group, index) => {
    const color = `var(--ql-${HUES[index % HUES.length]})`;
    const chosen = group === now.group;
    const series = rows.filter((row) => row.group === group).sort((a, b) => a.nbytes - b.nbytes);
    const d = "M" + series.map((row) => at(row).join(" ")).join("L");
    const look = { stroke: color, "stroke-width": chosen ? 2.5 : 1.2, opacity: chosen ? 1 : 0.55 };
    svg(stage, "path", { d, fill: "none", ...look });
    for (const row of series) mark(stage, MARKS[index % MARKS.length], ...at(row), 4, { fill: color, ...look });
    const ly = 40 + 18 * index;
    mark(stage, MARKS[index % MARKS.length], 372, ly - 4, 4, { fill: color, ...look, opacity: 1 });
    svg(stage, "text", { x: 384, y: ly, class: chosen ? "ql-strong" : "" }, groupName(group));
  });
  const [cx, cy] = at(now);
  svg(stage, "path", { d: `M58 ${cy}H${cx}V262`, fill: "none", stroke: "currentColor", "stroke-dasharray": "2 3" });
  svg(stage, "circle", { cx, cy, r: 10, fill: "none", stroke: "currentColor", "stroke-width": 2.5 });
}

function bar(stage, y, label, nbytes, most, fill) {
  const width = Math.max(2, (190 * nbytes) / most);
  svg(stage, "text", { x: 515, y: y - 7 }, label);
  svg(stage, "rect", { x: 515, y, width, height: 22, rx: 3, fill });
  const inside = width > 110;
  svg(stage, "text", { x: inside ? 522 : 521 + width, y: y + 15.5, class: "ql-strong",
    ...(inside ? { style: "fill:#fff" } : {}) }, megabytes(nbytes));
}

function draw(position, stage, { table }) {
  const now = table.rows.find((row) => row.bits === position.bits && row.group === position.group);
  const { reference } = table;
  drawCurve(stage, table, now);
  const most = Math.max(reference.nbytes, now.nbytes);
  bar(stage, 46, "float", reference.nbytes, most, "#5B6270");
  bar(stage, 104, `${now.bits} bits, ${groupName(now.group)}`, now.nbytes, most, "var(--ql-blue)");
  const facts = [
    [(+now.bits_per_weight.toPrecision(4)).toString(), "bits per weight"],
    [(reference.nbytes / now.nbytes).toFixed(2), "times smaller"],
    [(+now.perplexity.toPrecision(4)).toString(), "perplexity"],
  ];
  facts.forEach(([number, unit], index) => {
    svg(stage, "text", { x: 515, y: 174 + 36 * index, style: "font-size:24px;font-weight:650" }, number);
    svg(stage, "text", { x: 520 + 15 * number.length, y: 174 + 36 * index }, unit);
  });
  return {
    sentence: now.sentence,
    header: ["bits", "group", "bits per weight", "bytes", "perplexity"],
    rows: () => [["float", "", "", reference.nbytes, reference.perplexity]].concat(
      table.rows.map((row) => [row.bits, row.group || "row", row.bits_per_weight, row.nbytes, row.perplexity])),
  };
}

export default {
  render({ model, el }) {
    const sample = html("p", { class: "ql-text" });
    const self = widget({ model, el }, { title: "Memory dial", height: 300, draw, extra: [sample] });
    const { choices, rows } = self.table;
    slider(self, { key: "bits", label: "Bits", values: () => choices.bits });
    slider(self, { key: "group", label: "Group size", values: () => choices.group, text: groupName });
    self.updates.push(({ bits, group }) => {
      sample.textContent = rows.find((row) => row.bits === bits && row.group === group).text;
      sample.hidden = sample.textContent === "";
    });
    self.redraw();
    return self.stop;
  },
};
