// Shared by all widgets, in front of each NAME.js: elements, controls, data table, axes.
const SVG = "http://www.w3.org/2000/svg";
const FOCUSABLE = new Set(["input", "select", "button"]);
let count = 0;

// Each element that can take the focus tells JupyterLab to keep its shortcuts to itself.
function html(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (FOCUSABLE.has(tag) || "tabindex" in attributes)
    element.setAttribute("data-lm-suppress-shortcuts", "true");
  element.append(...children);
  return element;
}

function svg(parent, tag, attributes = {}, text = "") {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (text !== "") element.textContent = text;
  parent.append(element);
  return element;
}

// draw(position, stage) returns { sentence, header, rows: () => lists of cells }.
function widget({ model, el }, { title, height, draw, extra = [] }) {
  const stage = document.createElementNS(SVG, "svg");
  stage.setAttribute("viewBox", `0 0 720 ${height}`);
  stage.setAttribute("role", "img");
  const controls = html("div", { class: "ql-controls" });
  const readout = html("p", { class: "ql-readout", role: "status" });
  const numbers = html("div", { class: "ql-numbers", tabindex: "0", role: "region", hidden: "" });
  numbers.setAttribute("aria-label", `${title}: numbers`);
  const toggle = html("button", { type: "button", class: "ql-toggle", "aria-expanded": "false" });
  const root = html("section", { class: "ql-widget", "aria-label": title });
  root.append(html("p", { class: "ql-title" }, title), controls, stage, readout, ...extra);
  root.append(toggle, numbers);
  root.addEventListener("keydown", (event) => event.stopPropagation());
  el.append(root);

  const self = { table: model.get("table"), controls, stage, updates: [] };
  self.position = () => model.get("position");
  self.move = (change) => {
    model.set("position", { ...model.get("position"), ...change });
    model.save_changes();
  };
  self.redraw = () => {
    const position = self.position();
    for (const update of self.updates) update(position);
    stage.replaceChildren();
    const drawn = draw(position, stage, self);
    stage.setAttribute("aria-label", drawn.sentence);
    readout.textContent = drawn.sentence;
    toggle.textContent = numbers.hidden ? "Show the numbers as a table" : "Hide the table";
    if (!numbers.hidden) numbers.replaceChildren(tableOf(drawn.header, drawn.rows()));
  };
  toggle.addEventListener("click", () => {
    numbers.hidden = !numbers.hidden;
    toggle.setAttribute("aria-expanded", String(!numbers.hidden));
    self.redraw();
  });
  model.on("change:position", self.redraw);
  self.stop = () => model.off("change:position", self.redraw);
  return self;
}

function tableOf(header, rows) {
  const head = html("tr", {}, ...header.map((name) => html("th", { scope: "col" }, name)));
  const body = rows.map((row) => html("tr", {}, ...row.map((cell) => html("td", {}, String(cell)))));
  return html("table", {}, html("thead", {}, head), html("tbody", {}, ...body));
}

// A slider over the listed values, and a box that takes the same value as a number.
function slider(self, { key, label, values, text = String }) {
  const id = `ql-control-${++count}`;
  const range = html("input", { type: "range", min: 0, step: 1, id });
  const box = html("input", { type: "number", step: "any", "aria-label": `${label}, as a number` });
  const to = (index) => {
    const list = values(self.position());
    self.move({ [key]: list[Math.max(0, Math.min(list.length - 1, index))] });
  };
  const nearest = (wanted) =>
    values(self.position()).reduce(
      (best, value, index, list) =>
        Math.abs(value - wanted) < Math.abs(list[best] - wanted) ? index : best, 0);
  range.addEventListener("input", () => to(Number(range.value)));
  box.addEventListener("change", () => (box.value === "" ? self.redraw() : to(nearest(box.value))));
  box.addEventListener("keydown", (event) => {
    const step = { ArrowUp: 1, ArrowDown: -1 }[event.key];
    if (step === undefined) return;
    event.preventDefault();
    to(nearest(box.value) + step);
  });
  self.controls.append(html("div", { class: "ql-control" }, html("label", { for: id }, label), range, box));
  self.updates.push((position) => {
    const list = values(position);
    range.max = list.length - 1;
    range.value = list.indexOf(position[key]);
    range.setAttribute("aria-valuetext", text(position[key]));
    box.value = position[key];
  });
}

// A list to choose from; changing it may move other controls too.
function picker(self, { key, label, values, text = String, change = (value) => ({ [key]: value }) }) {
  const id = `ql-control-${++count}`;
  const options = values.map((value, index) => html("option", { value: index }, text(value)));
  const select = html("select", { id }, ...options);
  select.addEventListener("change", () => self.move(change(values[Number(select.value)])));
  self.controls.append(html("div", { class: "ql-control" }, html("label", { for: id }, label), select));
  self.updates.push((position) => (select.value = values.indexOf(position[key])));
}

function niceTicks(low, high, wanted = 5) {
  const raw = (high - low) / wanted;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = power * ([1, 2, 5, 10].find((factor) => factor * power >= raw) ?? 10);
  const ticks = [];
  for (let k = Math.ceil(low / step - 1e-9); k * step <= high * (1 + 1e-9); k++) ticks.push(k * step);
  return ticks;
}

function logTicks(low, high) {
  const ticks = [];
  for (let power = 10 ** Math.floor(Math.log10(low)); power <= high; power *= 10)
    for (const factor of [1, 2, 5]) if (factor * power >= low && factor * power <= high) ticks.push(factor * power);
  return ticks;
}

// Axes in box [left, top, right, bottom]; returns the maps of x and y to the picture.
function axes(parent, { box, x, y, xLabel, yLabel, log = false, xTicks, yTicks }) {
  const [left, top, right, bottom] = box;
  const f = log ? Math.log : (value) => value;
  const X = (value) => left + ((value - x[0]) / (x[1] - x[0])) * (right - left);
  const Y = (value) => bottom - ((f(value) - f(y[0])) / (f(y[1]) - f(y[0]))) * (bottom - top);
  for (const tick of yTicks ?? (log ? logTicks(...y) : niceTicks(...y))) {
    svg(parent, "line", { x1: left, x2: right, y1: Y(tick), y2: Y(tick), class: "ql-grid" });
    svg(parent, "text", { x: left - 6, y: Y(tick) + 4, "text-anchor": "end" }, String(+tick.toPrecision(3)));
  }
  for (const tick of xTicks ?? niceTicks(...x))
    svg(parent, "text", { x: X(tick), y: bottom + 16, "text-anchor": "middle" }, String(+tick.toPrecision(3)));
  svg(parent, "path", { d: `M${left} ${top}V${bottom}H${right}`, class: "ql-axis" });
  svg(parent, "text", { x: (left + right) / 2, y: bottom + 33, "text-anchor": "middle" }, xLabel);
  svg(parent, "text", { x: left - 4, y: top - 9, class: "ql-label" }, yLabel);
  return { X, Y };
}
