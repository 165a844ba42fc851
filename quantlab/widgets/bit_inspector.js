// The bits of one code as buttons; its place among all values, and magnified.
const HUE = { sign: "vermillion", exponent: "green", mantissa: "blue", integer: "blue" };

function valueText(text) {
  return { Infinity: "∞", "-Infinity": "-∞" }[text] ?? text;
}

function pointer(stage, x, y) {
  svg(stage, "path", { d: `M${x} ${y}l-7 -13h14Z`, fill: "var(--ql-vermillion)" });
}

// All finite values between the ends; text at the ticks that fit.
function line(stage, values, { low, high, y, label, wide, marked, texts }) {
  const X = (value) => 30 + (660 * (value - low)) / (high - low || 1);
  svg(stage, "path", { d: `M20 ${y}H700`, class: "ql-axis" });
  svg(stage, "text", { x: 20, y: y - 46, class: "ql-label" }, label);
  const ticks = values.map((value) => `M${X(value)} ${y - 22}V${y}`).join("");
  svg(stage, "path", { d: ticks, stroke: "var(--ql-blue)", "stroke-width": wide });
  let free = -Infinity;
  for (const value of texts) {
    const text = String(+value.toPrecision(6));
    const half = 3.6 * text.length + 4;
    if (X(value) - half < free) continue;
    free = X(value) + half;
    svg(stage, "text", { x: X(value), y: y + 17, "text-anchor": "middle" }, text);
  }
  if (Number.isFinite(marked)) pointer(stage, X(marked), y - 24);
}

function draw({ format, code }, stage, { table }) {
  const { values, sentences } = table.formats[format];
  const finite = [...new Set(values.map(Number).filter(Number.isFinite))].sort((a, b) => a - b);
  const marked = Number(values[code]);
  const formula = sentences[code].split(": ").slice(1).join(": ").replace(/\.$/, "");
  svg(stage, "text", { x: 20, y: 26, style: "font-size:21px;font-weight:650" }, valueText(formula));
  const hex = code.toString(16).toUpperCase().padStart(2, "0");
  svg(stage, "text", { x: 700, y: 24, "text-anchor": "end" }, `code ${code} = 0x${hex}`);
  const [low, high] = [finite[0], finite[finite.length - 1]];
  line(stage, finite, { low, high, y: 110, wide: finite.length > 64 ? 0.8 : 1.6, marked,
    label: `all ${finite.length} values`, texts: niceTicks(low, high, 8) });
  if (Number.isFinite(marked)) {
    const index = finite.indexOf(marked);
    const near = finite.slice(Math.max(0, index - 6), index + 7);
    line(stage, near, { low: near[0], high: near[near.length - 1], y: 210, wide: 2, marked,
      label: "its neighbors", texts: near });
  } else {
    svg(stage, "text", { x: 20, y: 190 }, `${valueText(values[code])} has no place on the line.`);
  }
  return {
    sentence: sentences[code],
    header: ["code", "value"],
    rows: () => values.map((value, index) => [index, value]),
  };
}

// One button for each bit, grouped by field; pressing one flips it.
function bitButtons(self, holder, { format }) {
  const { fields } = self.table.formats[format];
  let shift = fields.reduce((sum, field) => sum + field[1], 0);
  const buttons = [];
  const groups = fields.map(([field, width]) => {
    const group = html("fieldset", { class: "ql-field" }, html("legend", {}, field));
    for (let k = 0; k < width; k++) {
      const weight = 2 ** --shift;
      const button = html("button", { type: "button", class: "ql-bit", "data-field": field });
      button.addEventListener("click", () => self.move({ code: self.position().code ^ weight }));
      buttons.push({ button, weight, name: `${field} bit ${width - k} of ${width}` });
      group.append(button);
    }
    return group;
  });
  holder.replaceChildren(...groups);
  return buttons;
}

export default {
  render({ model, el }) {
    const holder = html("div", { class: "ql-bits" });
    const self = widget({ model, el }, { title: "Bit inspector", height: 240, draw });
    self.stage.before(holder);
    const { formats } = self.table;
    picker(self, { key: "format", label: "Format", values: Object.keys(formats),
      change: (format) => ({ format, code: formats[format].one }) });
    slider(self, { key: "code", label: "Code", values: ({ format }) => formats[format].values.map((_, k) => k) });
    let shown = "";
    let buttons = [];
    self.updates.push((position) => {
      if (position.format !== shown) buttons = bitButtons(self, holder, position);
      shown = position.format;
      for (const { button, weight, name } of buttons) {
        const bit = position.code & weight ? 1 : 0;
        button.textContent = bit;
        button.setAttribute("aria-pressed", String(bit === 1));
        button.setAttribute("aria-label", `${name}: ${bit}`);
      }
    });
    self.redraw();
    return self.stop;
  },
};
