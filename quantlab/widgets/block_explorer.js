// Two grids, the block's bytes and its weights' codes, and below them the bits that tie them.
const HUES = ["blue", "orange", "green", "vermillion", "purple", "sky"];
const LINES = ["solid", "dashed", "double", "dotted", "groove", "ridge"]; // no field depends on its color
const PAIR = ["sky", "orange"]; // what the low and the high bits of a byte feed, as in style.css
const WIDE = 32; // cells in a line: a sub-block of Q4_K is one line of weights
const STEP = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: WIDE, ArrowUp: -WIDE, Home: -1e9, End: 1e9 };

function inside(spans, weight) {
  return spans.some(([first, stop]) => weight >= first && weight < stop);
}

function fieldOf(entry, byte) {
  return entry.fields.findIndex(([, first, stop]) => byte >= first && byte < stop);
}

// byte -> its bits, each with the number of its group: those that feed the same weights.
function tied(entry, { look, byte, weight }) {
  const from = look === "byte" ? [byte] : entry.data.map((_, k) => k);
  return from.map((k) => {
    const bits = Array(8).fill(-1);
    entry.feeds[k].forEach(([places, spans], group) => {
      if (look === "byte" || inside(spans, weight)) for (const place of places) bits[place] = group;
    });
    return { byte: k, bits };
  }).filter(({ bits }) => bits.some((group) => group >= 0));
}

// One list of cells: a single stop of the Tab key, arrow keys inside, the mouse alike.
function grid(self, key, label) {
  const list = html("div", { class: "ql-cells", role: "listbox", tabindex: "0", "aria-label": label,
    "aria-multiselectable": "true" });
  list.addEventListener("keydown", (event) => {
    if (!(event.key in STEP)) return;
    event.preventDefault();
    const { look, [key]: now } = self.position();
    const next = now + (look === key ? STEP[event.key] : 0);
    self.move({ [key]: Math.max(0, Math.min(list.children.length - 1, next)) });
  });
  list.addEventListener("focus", () => self.move({ [key]: self.position()[key] }));
  list.addEventListener("pointerover", (event) => {
    const at = [...list.children].indexOf(event.target);
    const { look, [key]: now } = self.position();
    if (at >= 0 && (look !== key || at !== now)) self.move({ [key]: at });
  });
  return list;
}

function fill(list, texts, style) {
  list.replaceChildren(...texts.map((text, k) => html("span", { role: "option", class: "ql-cell",
    id: `${list.id}-${k}`, ...style(k) }, text)));
}

// Mark the cells that `groupOf` gives a group, and the one that we look from.
function mark(list, groupOf, here) {
  [...list.children].forEach((cell, k) => {
    const group = groupOf(k);
    const lit = group < 0 ? "" : String(Math.min(group, 1));
    if ((cell.dataset.lit ?? "") === lit && cell.classList.contains("ql-here") === (k === here)) return;
    if (lit) cell.dataset.lit = lit;
    else delete cell.dataset.lit;
    cell.classList.toggle("ql-here", k === here);
    cell.setAttribute("aria-selected", String(lit !== ""));
  });
  if (here >= 0) list.setAttribute("aria-activedescendant", `${list.id}-${here}`);
  else list.removeAttribute("aria-activedescendant");
}

function rebuild({ bytes, codes, legend }, entry) {
  const edge = (field) => `border-bottom: 4px ${LINES[field]} var(--ql-${HUES[field]})`;
  fill(bytes, entry.data.map((byte) => byte.toString(16).toUpperCase().padStart(2, "0")),
    (k) => ({ style: edge(fieldOf(entry, k)), "aria-label": entry.sentences.byte[k].split(" feed ")[0] }));
  fill(codes, entry.codes.map(String), (i) => ({ "aria-label": `weight ${i}, ${entry.values[i]}` }));
  legend.replaceChildren(...entry.fields.map(([name, first, stop], k) => html("span",
    { style: `${edge(k)}; margin-right: 14px` },
    `${name}: ${stop - first} bytes`)));
}

// The bits of each tied byte, highest first; filled ones belong to what we look from.
function draw(position, stage, self) {
  const entry = self.table.types[position.type];
  const ties = tied(entry, position);
  const wide = Math.min(34, (694 - 12 * ties.length) / (8 * ties.length));
  ties.forEach(({ byte, bits }, place) => {
    const left = 20 + place * (8 * wide + 12);
    svg(stage, "text", { x: left, y: 16, class: "ql-label" },
      ties.length > 5 ? `byte ${byte}` : `byte ${byte}, ${entry.fields[fieldOf(entry, byte)][0]}`);
    const look = { y: 24, width: wide, height: 28, stroke: "currentColor" };
    for (let bit = 7, x = left; bit >= 0; bit--, x += wide) {
      const on = bits[bit] >= 0; // in the color of the weights that they feed, or of their field
      const hue = position.look === "byte" ? PAIR[Math.min(bits[bit], 1)] : HUES[fieldOf(entry, byte)];
      svg(stage, "rect", { x, ...look, fill: on ? `var(--ql-${hue})` : "none", "fill-opacity": 0.5,
        "stroke-dasharray": position.look === "byte" && bits[bit] > 0 ? "4 3" : "none", "stroke-width": on ? 1.4 : 0.3 });
      svg(stage, "text", { x: x + wide / 2, y: 43, "text-anchor": "middle", opacity: on ? 1 : 0.45 },
        (entry.data[byte] >> bit) & 1);
    }
  });
  const worth = position.look === "weight" ? `weight ${position.weight} = `
    + `${entry.formulas[position.weight]} = ${entry.values[position.weight]}` : `weight = ${entry.symbols}`;
  svg(stage, "text", { x: 20, y: 78, style: "font-size:14px;font-weight:650" }, worth);
  return {
    sentence: entry.sentences[position.look][position[position.look]],
    header: ["weight", "code", "formula", "value"],
    rows: () => entry.codes.map((code, i) => [i, code, entry.formulas[i], entry.values[i]]),
  };
}

export default {
  render({ model, el }) {
    const self = widget({ model, el }, { title: "Block explorer", height: 92, draw });
    const plain = self.move;
    self.move = (change) => { // what was touched last is what we look from
      const look = ["byte", "weight"].filter((key) => key in change).pop();
      plain(look && !("look" in change) ? { look, ...change } : change);
    };
    const { types } = self.table;
    const id = `ql-block-${++count}`;
    const parts = { bytes: grid(self, "byte", "Bytes"), codes: grid(self, "weight", "Codes of the weights"),
      legend: html("p", { class: "ql-label" }) };
    for (const name of ["bytes", "codes"]) parts[name].id = `${id}-${name}`;
    self.stage.before(parts.legend, parts.bytes, html("p", { class: "ql-label" }, "codes of the weights"), parts.codes);
    picker(self, { key: "type", label: "Type", values: Object.keys(types),
      change: (type) => ({ type, look: "byte", byte: types[type].start, weight: 0 }) });
    slider(self, { key: "byte", label: "Byte", values: ({ type }) => types[type].data.map((_, k) => k) });
    slider(self, { key: "weight", label: "Weight", values: ({ type }) => types[type].codes.map((_, i) => i) });
    let shown = "";
    self.updates.push((position) => {
      const entry = types[position.type];
      if (position.type !== shown) rebuild(parts, entry);
      shown = position.type;
      const { look, byte, weight } = position;
      const ties = Object.fromEntries(tied(entry, position).map((tie) => [tie.byte, tie]));
      mark(parts.bytes, (k) => (k in ties ? 0 : -1), look === "byte" ? byte : -1);
      mark(parts.codes, (i) => (look === "weight" ? (i === weight ? 0 : -1)
        : entry.feeds[byte].findIndex(([, spans]) => inside(spans, i))), look === "weight" ? weight : -1);
    });
    self.redraw();
    return self.stop;
  },
};
