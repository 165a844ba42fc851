"""What the browser tests do to a widget: press keys, measure, try the traps."""

MEASURE = """(root) => {
  const slider = root.querySelector('input[type=range]');
  const picture = root.querySelector('svg');
  window.qlTimes = [];
  if (root.dataset.measured) return;
  root.dataset.measured = 'yes';
  let pressed = null;
  slider.addEventListener('keydown', () => { pressed = performance.now(); }, true);
  new MutationObserver(() => {
    const began = pressed;
    pressed = null;
    if (began !== null)
      requestAnimationFrame(() => window.qlTimes.push(performance.now() - began));
  }).observe(picture, { attributes: true, attributeFilter: ['aria-label'] });
}"""
FOCUSABLE = "input, button, select, textarea, [tabindex], a[href], summary"
TRAPS = ["d", "d", "a", "b", "x", "m", "y", "ArrowUp", "ArrowDown", "ArrowLeft", "ArrowRight"]
TRAPS += ["Enter", "Shift+Enter", "Control+Enter", "0", "0", "c", "v", "z", "Shift+M", "j", "k"]


def percentile(times, share):
    return sorted(times)[min(len(times) - 1, int(share * len(times)))]


def key_times(page, root, presses=44, budget=100, runs=3):
    """Milliseconds from a key press on the slider to the frame that shows the new picture.

    The calmest of up to three runs: a machine busy with something else is not the widget's fault,
    and a slow widget is slow in each of them.
    """
    calmest = None
    for _ in range(runs):
        root.evaluate(MEASURE)
        root.locator("input[type=range]").first.focus()
        for press in range(presses):
            # to and fro, so that each press changes the picture wherever the slider starts
            page.keyboard.press("ArrowRight" if press % 2 else "ArrowLeft")
            page.wait_for_function(f"window.qlTimes.length > {press}", timeout=5_000)
        times = page.evaluate("window.qlTimes")
        if calmest is None or percentile(times, 0.95) < percentile(calmest, 0.95):
            calmest = times
        if percentile(calmest, 0.95) <= budget:
            break
    return calmest


def trapped(lab, root):
    """Press each trap key in each focusable element; return those that changed the notebook."""
    caught = []
    for index in range(root.locator(FOCUSABLE).count()):
        element = root.locator(FOCUSABLE).nth(index)
        if not element.is_visible():
            continue
        name = element.evaluate("node => node.outerHTML.slice(0, 80)")
        element.focus()
        before = lab.cells()
        for key in TRAPS:
            element.focus()
            lab.page.keyboard.press(key)
            if lab.cells() != before:
                caught.append((name, key))
                before = lab.cells()
        if element.get_attribute("data-lm-suppress-shortcuts") != "true":
            caught.append((name, "lacks data-lm-suppress-shortcuts"))
    return caught
