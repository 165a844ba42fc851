// A tree of modules: to the right of each name its bytes and its share of all products.
const ROW = 17;
const TOP = 34;

function looks(stage) {
  const defs = svg(stage, "defs");
  const make = (fill, d, width) => {
    const id = `ql-tree-${++count}`;
    const pattern = svg(defs, "pattern", { id, width: 7, height: 7, patternUnits: "userSpaceOnUse" });
    svg(pattern, "rect", { width: 7, height: 7, fill });
    svg(pattern, "path", { d, stroke: "#1F2430", "stroke-width": width });
    return `url(#${id})`;
  };
  return {
    float: "transparent",
    int8: make("var(--ql-sky)", "M-1 8L8 -1M-2 2L2 -2M5 9L9 5", 1),
    narrow: make("var(--ql-orange)", "M2 3.5h2", 2),
  };
}

function kindOf(stored) {
  if (stored.startsWith("float")) return "float";
  return stored === "int8" ? "int8" : "narrow";
}

function bar(stage, { x, y, width, row, fills }) {
  if (!row.stored) return svg(stage, "rect", { x, y: y + 5, width, height: 4, fill: "currentColor", opacity: 0.35 });
  return svg(stage, "rect", { x, y, width: Math.max(1.5, width), height: ROW - 4,
    fill: fills[kindOf(row.stored)], stroke: "currentColor", "stroke-width": 0.8 });
}

function legend(stage, rows, fills) {
  const kinds = [...new Set(rows.filter((row) => row.stored).map((row) => row.stored))];
  kinds.forEach((stored, k) => {
    svg(stage, "rect", { x: 10 + 86 * k, y: 4, width: 20, height: 13, fill: fills[kindOf(stored)],
      stroke: "currentColor", "stroke-width": 0.8 });
    svg(stage, "text", { x: 36 + 86 * k, y: 15 }, stored);
  });
}

function draw({ version }, stage, { table }) {
  const rows = table.trees[version - 1];
  const widest = Math.max(...rows.map((row) => row.macs));
  const fills = looks(stage);
  legend(stage, rows, fills);
  svg(stage, "text", { x: 222, y: 22, class: "ql-label" }, "kilobytes as stored");
  svg(stage, "text", { x: 486, y: 22, class: "ql-label" }, "% of all products");
  rows.forEach((row, k) => {
    const y = TOP + ROW * k;
    const size = (180 * row.nbytes) / table.most;
    const share = (150 * row.macs) / widest;
    svg(stage, "text", { x: 10 + 16 * row.depth, y: y + 11, class: row.stored ? "" : "ql-strong" }, row.label);
    bar(stage, { x: 222, y, width: size, row, fills });
    svg(stage, "text", { x: 228 + size, y: y + 11 }, (row.nbytes / 1000).toPrecision(3));
    bar(stage, { x: 486, y, width: share, row, fills });
    svg(stage, "text", { x: 492 + share, y: y + 11 }, row.macs.toFixed(1));
  });
  return {
    sentence: table.sentences[version - 1],
    header: ["module", "stored", "bytes", "% of products"],
    rows: () => rows.map((row) => ["· ".repeat(row.depth) + row.label, row.stored || "", row.nbytes, row.macs]),
  };
}

export default {
  render({ model, el }) {
    const { trees, names, choices } = model.get("table");
    const height = TOP + ROW * Math.max(...trees.map((rows) => rows.length)) + 8;
    const self = widget({ model, el }, { title: "Module tree", height, draw });
    slider(self, { key: "version", label: "Version", values: () => choices.version, text: (v) => names[v - 1] });
    self.redraw();
    return self.stop;
  },
};
