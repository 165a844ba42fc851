// Shows a practice quiz and collects answers; Python marks them. See widget.py for the messages.

function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "html") node.innerHTML = value; // banks are ours, escaped in Python
    else node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

// JupyterLab's single-key shortcuts look at the focused element itself, not at its parents.
const guard = { "data-lm-suppress-shortcuts": "true" };

let serial = 0;
const fresh = (word) => `quantlab-${word}-${++serial}`;

function choice(kind, group, option, value = option.id) {
  const id = fresh("choice");
  return make("div", { class: "quiz-choice" },
    make("input", { type: kind, name: group, id, value, ...guard }),
    make("label", { for: id, html: `${option.letter ? option.letter + ") " : ""}${option.html}` }));
}

function menu(labelHtml, key, entries) {
  const id = fresh("menu");
  const select = make("select", { id, "data-key": key, ...guard }, make("option", { value: "" }, "choose"));
  for (const entry of entries) {
    select.append(make("option", { value: entry.id }, `${entry.letter}) ${entry.text}`));
  }
  return make("div", { class: "quiz-choice" }, make("label", { for: id, html: labelHtml }), select);
}

function textbox(question) {
  const id = fresh("text");
  const unit = question.unit ? ` (in ${question.unit})` : "";
  return make("div", { class: "quiz-choice" },
    make("label", { for: id }, `Your answer${unit}`),
    make("input", { type: "text", id, autocomplete: "off", spellcheck: "false", size: "16", ...guard }));
}

// Each kind of question: how to draw its inputs, and how to read them as the text that is recorded.
const checked = (box) => [...box.querySelectorAll("input:checked")].map((input) => input.value).join(" ");
const typed = { draw: (q) => [textbox(q)], read: (box) => box.querySelector("input").value };
const options = (kind) => ({
  draw: (q) => { const group = fresh("group"); return q.options.map((o) => choice(kind, group, o)); },
  read: checked,
});
const KINDS = {
  single: options("radio"),
  multi: options("checkbox"),
  true_false: {
    draw: (q) => {
      const truth = fresh("truth"), why = fresh("why");
      const row = (label, nodes) => make("div", { role: "radiogroup", "aria-label": label, class: "quiz-row" }, ...nodes);
      const values = ["true", "false"].map((word) => choice("radio", truth, { id: word, html: word }));
      const reasons = q.options.map((option) => choice("radio", why, option));
      return [row("true or false", values), make("p", {}, "because"), row("reason", reasons)];
    },
    read: checked,
  },
  ordering: {
    draw: (q) => [
      ...q.options.map((o) => make("p", { html: `${o.letter}) ${o.html}` })),
      ...q.options.map((_, place) => menu(`place ${place + 1}`, String(place), q.options)),
    ],
    read: (box) => [...box.querySelectorAll("select")].map((s) => s.value).filter(Boolean).join(" "),
  },
  matching: {
    draw: (q) => q.items.map((item) => menu(item.html, item.id, q.categories)),
    read: (box) => [...box.querySelectorAll("select")].filter((s) => s.value)
      .map((s) => `${s.dataset.key}=${s.value}`).join(" "),
  },
  numeric: typed, integer: typed, hex: typed, short: typed,
};

function drawQuestion(model, question, number) {
  const kind = KINDS[question.type];
  const inputs = make("div", { class: "quiz-inputs" }, ...kind.draw(question));
  const status = make("p", { role: "status", "aria-live": "polite", class: "quiz-status" });
  const hints = make("ul", { class: "quiz-hints", "aria-label": "Hints" });
  const send = (message) => model.send({ id: question.id, ...message });
  const button = (text, action, attributes = {}) => {
    const label = `${text}, question ${number}`;
    const node = make("button", { type: "button", "aria-label": label, "data-action": text, ...guard, ...attributes }, text);
    if (action) node.addEventListener("click", action);
    return node;
  };
  const buttons = make("div", { class: "quiz-buttons" }, button("Check", null, { type: "submit" }));
  if (question.hints) buttons.append(button("Hint", () => send({ kind: "hint" })));
  if (question.fresh) buttons.append(button("New numbers", () => send({ kind: "new" })));
  const form = make("form", { "data-question": question.id, "data-counter": question.counter, autocomplete: "off" },
    make("fieldset", {},
      make("legend", { html: `Question ${number}` }),
      make("div", { class: "quiz-stem", html: question.stem }),
      ...(kind === typed ? [make("p", { class: "quiz-how" }, `Answer: ${question.how}.`)] : []),
      inputs, buttons, status, hints));
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    send({ kind: "answer", value: kind.read(inputs) });
  });
  // Keys stay in the form: outside, "d d" deletes a cell and arrows move between cells.
  form.addEventListener("keydown", (event) => {
    event.stopPropagation();
    if (event.key === "Enter" && event.target.matches("input, select")) {
      event.preventDefault();
      form.requestSubmit();
    }
  });
  return form;
}

function showState(form, state) {
  if (!state) return;
  form.dataset.state = state.state;
  const status = form.querySelector("[role=status]");
  if (status.innerHTML !== state.text) status.innerHTML = state.text;
  form.querySelector(".quiz-hints").replaceChildren(...state.hints.map((hint) => make("li", { html: hint })));
}

function render({ model, el }) {
  const root = make("div", { class: "ql-widget ql-quiz", role: "group", "aria-label": model.get("title") },
    make("p", { class: "ql-title" }, model.get("title")));
  const summary = make("p", { class: "quiz-summary" });
  const forms = new Map();
  model.get("questions").forEach((question, place) => {
    forms.set(question.id, drawQuestion(model, question, place + 1));
    root.append(forms.get(question.id));
  });
  root.append(summary);
  el.append(root);

  const showStates = () => {
    const states = model.get("state");
    for (const [id, form] of forms) showState(form, states[id]);
    const solved = Object.values(states).filter((state) => state.state === "correct").length;
    summary.textContent = `${solved} of ${forms.size} correct`;
  };
  const redraw = () => {
    model.get("questions").forEach((question, place) => {
      const old = forms.get(question.id);
      if (Number(old.dataset.counter) === question.counter) return;
      const form = drawQuestion(model, question, place + 1);
      const focused = old.contains(document.activeElement) && document.activeElement.dataset.action;
      old.replaceWith(form);
      forms.set(question.id, form);
      if (focused) form.querySelector(`[data-action="${focused}"]`).focus();
    });
    showStates();
  };
  model.on("change:questions", redraw);
  model.on("change:state", showStates);
  showStates();
  return () => {
    model.off("change:questions", redraw);
    model.off("change:state", showStates);
  };
}

export default { render };
