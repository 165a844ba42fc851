// Three rows of cells: the eight codes, the four bytes as they lie in memory, the word's eight digits.
const FILLS = ["blue", "orange", "green", "vermillion", "purple", "sky", "blue", "orange"];
const digit = (value) => value.toString(16).toUpperCase();

function cells(stage, { y, label, texts, colors, chosen, gap }) {
  svg(stage, "text", { x: 20, y: y - 9, class: "ql-label" }, label);
  texts.forEach((text, k) => {
    const x = 20 + k * 70 + (gap ? 34 * Math.floor(k / 2) : 0);
    svg(stage, "rect", { x, y, width: 62, height: 40, rx: 4, fill: `var(--ql-${FILLS[colors[k]]})`,
      "fill-opacity": colors[k] === chosen ? 0.5 : 0.16, stroke: "currentColor",
      "stroke-width": colors[k] === chosen ? 2.4 : 0.6 });
    svg(stage, "text", { x: x + 31, y: y + 20, "text-anchor": "middle", class: "ql-strong" }, text);
    svg(stage, "text", { x: x + 31, y: y + 34, "text-anchor": "middle" }, `code ${colors[k]}`);
  });
}

function draw(position, stage, { table }) {
  const places = table.orders[position.order];
  const codes = places.map((_, k) => position[`c${k}`]);
  const held = places.map((_, nibble) => places.indexOf(nibble)); // nibble -> code in it
  const digits = held.map((k) => digit(codes[k]));
  cells(stage, { y: 30, label: "the codes, in order", texts: codes.map(String),
    colors: codes.map((_, k) => k), chosen: position.code });
  const memory = [0, 2, 4, 6].flatMap((low) => [low + 1, low]); // a byte is written high digit first
  cells(stage, { y: 116, label: "four bytes in memory, as a hex dump prints them", gap: true,
    texts: memory.map((n) => digits[n]), colors: memory.map((n) => held[n]), chosen: position.code });
  const word = [7, 6, 5, 4, 3, 2, 1, 0];
  cells(stage, { y: 202, label: "the same four bytes, read as one little-endian 32-bit word",
    texts: word.map((n) => digits[n]), colors: word.map((n) => held[n]), chosen: position.code });
  const dump = [0, 2, 4, 6].map((low) => digits[low + 1] + digits[low]).join(" ");
  const hex = word.map((n) => digits[n]).join("");
  return {
    sentence: `Codes ${codes.join(" ")}, ${position.order}: bytes ${dump} in memory, the little-endian word ${hex}.`,
    header: ["code", "value", "nibble", "byte", "half"],
    rows: () => codes.map((value, k) =>
      [k, value, places[k], places[k] >> 1, places[k] % 2 ? "high" : "low"]),
  };
}

export default {
  render({ model, el }) {
    const self = widget({ model, el }, { title: "Nibble packer", height: 256, draw });
    const { choices } = self.table;
    picker(self, { key: "order", label: "Order", values: choices.order });
    picker(self, { key: "code", label: "Change code", values: choices.code });
    const id = `ql-control-${++count}`;
    const range = html("input", { type: "range", min: 0, max: 15, step: 1, id });
    const box = html("input", { type: "number", min: 0, max: 15, step: 1, "aria-label": "Value, as a number" });
    const set = (value) => self.move({ [`c${self.position().code}`]: Math.max(0, Math.min(15, Math.round(value))) });
    range.addEventListener("input", () => set(Number(range.value)));
    box.addEventListener("change", () => (box.value === "" ? self.redraw() : set(Number(box.value))));
    self.controls.append(html("div", { class: "ql-control" }, html("label", { for: id }, "Value"), range, box));
    self.updates.push((position) => {
      range.value = box.value = position[`c${position.code}`];
      range.setAttribute("aria-valuetext", `code ${position.code} is ${range.value}`);
    });
    self.redraw();
    return self.stop;
  },
};
