// How full the accumulator is, in percent on a log scale, over the number of terms.
function path(points) {
  return `M${points.map(([x, y]) => `${x} ${y}`).join("L")}`;
}

function draw({ operands, bits, terms }, stage, { table }) {
  const here = table.operands[operands][bits];
  const capacity = 2 ** (bits - 1);
  const at = here.terms.indexOf(terms);
  const share = (sum) => Math.max(1e-4, (100 * Math.abs(sum)) / capacity);
  const X = (k) => Math.log2(k);
  const top = Math.max(...here.worst.map(share), 1000);
  const low = Math.min(...here.worst.map(share), 1) / 2;
  const box = [76, 34, 700, 270];
  const ticks = [];
  for (let p = Math.ceil(Math.log10(low)); 10 ** p <= top; p++) ticks.push(10 ** p);
  const map = axes(stage, { box, x: [0, 19], y: [low, top], log: true, yTicks: ticks,
    xTicks: [], xLabel: "terms of the sum", yLabel: `size of the sum, % of what int${bits} holds` });
  for (const p of [0, 4, 8, 12, 16, 19])
    svg(stage, "text", { x: map.X(p), y: 286, "text-anchor": "middle" }, (2 ** p).toLocaleString("en-US"));
  const full = map.Y(100);
  svg(stage, "path", { d: `M${box[0]} ${full}H${box[2]}`, stroke: "var(--ql-vermillion)", "stroke-width": 2 });
  svg(stage, "text", { x: box[0] + 8, y: full - 6 }, "full: beyond this line the sum wraps");
  const worst = here.worst.map((sum, k) => [map.X(X(here.terms[k])), map.Y(share(sum))]);
  const random = here.random.map((sum, k) => [map.X(X(here.terms[k])), map.Y(Math.max(low, share(sum)))]);
  svg(stage, "path", { d: path(worst), fill: "none", stroke: "var(--ql-blue)", "stroke-width": 2 });
  svg(stage, "path", { d: path(random), fill: "none", stroke: "var(--ql-orange)", "stroke-width": 2, "stroke-dasharray": "5 4" });
  for (const [x, y] of random) svg(stage, "path", { d: `M${x} ${y - 4}l4 7h-8Z`, fill: "var(--ql-orange)" });
  for (const [x, y] of worst) svg(stage, "circle", { cx: x, cy: y, r: 3, fill: "var(--ql-blue)" });
  svg(stage, "circle", { cx: worst[at][0], cy: worst[at][1], r: 8, fill: "none", stroke: "currentColor", "stroke-width": 2 });
  svg(stage, "text", { x: box[2] - 4, y: box[3] - 26, "text-anchor": "end" }, "● worst codes   ▲ random codes");
  return {
    sentence: `${operands} in int${bits}, ${here.sentences[at]}`,
    header: ["terms", "worst sum", "accumulator holds", "random sum"],
    rows: () => here.terms.map((k, place) =>
      [k, here.worst[place], here.held[place], here.random[place]]),
  };
}

export default {
  render({ model, el }) {
    const self = widget({ model, el }, { title: "Overflow meter", height: 310, draw });
    const { operands, widths } = self.table;
    const start = (name, bits) => ({ operands: name, bits, terms: operands[name][bits].start });
    picker(self, { key: "operands", label: "Codes", values: Object.keys(operands),
      change: (name) => start(name, self.position().bits) });
    picker(self, { key: "bits", label: "Accumulator", values: widths, text: (bits) => `int${bits}`,
      change: (bits) => start(self.position().operands, bits) });
    slider(self, { key: "terms", label: "Terms", values: ({ operands: name, bits }) => operands[name][bits].terms,
      text: (k) => `${k} terms` });
    self.redraw();
    return self.stop;
  },
};
