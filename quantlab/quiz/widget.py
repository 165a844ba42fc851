"""The practice quiz in a notebook: Python holds the truth, practice.js shows and collects."""

from __future__ import annotations

import html
import re
from importlib import resources
from typing import TYPE_CHECKING, Any

import anywidget
import traitlets

from quantlab.quiz.marking import LABELS
from quantlab.quiz.runner import HOW_TO_ANSWER, letter

if TYPE_CHECKING:
    from quantlab.quiz.runner import Practice


def read_style() -> str:
    """Return the widgets' shared style sheet, if there is one, and the quiz's own."""
    files = [
        resources.files("quantlab") / "widgets" / "style.css",
        resources.files("quantlab.quiz") / "practice.css",
    ]
    return "\n".join(file.read_text(encoding="utf-8") for file in files if file.is_file())


class PracticeWidget(anywidget.AnyWidget):
    """View of a Practice object; all marking happens in the kernel.

    Messages from the page: ``{"kind": "answer" | "hint" | "new", "id": ..., "value": ...}``.
    Everything shown travels in the two traits, so that several views agree.
    """

    _esm = (resources.files("quantlab.quiz") / "practice.js").read_text(encoding="utf-8")
    _css = read_style()
    title = traitlets.Unicode().tag(sync=True)
    questions = traitlets.List().tag(sync=True)
    state = traitlets.Dict().tag(sync=True)

    def __init__(self, quiz: Practice) -> None:
        self.quiz = quiz
        title = f"Practice: {quiz.bank.title}"
        super().__init__(title=title, questions=page_questions(quiz), state=page_state(quiz))
        self.on_msg(self.receive)

    def receive(self, _: Any, message: dict[str, Any], __: Any = None) -> None:
        """Act on a message of the page and send back what to show."""
        name, kind = message["id"], message["kind"]
        if kind == "answer":
            self.quiz.grade(name, message.get("value"))
        elif kind == "hint":
            self.quiz.next_hint(name)
        elif kind == "new":
            self.quiz.draw_again(name)
        self.refresh()

    def refresh(self) -> None:
        """Send questions and states to the page."""
        self.questions = page_questions(self.quiz)
        self.state = page_state(self.quiz)


def page_questions(quiz: Practice) -> list[dict[str, Any]]:
    """Return what the page shows of each question: never a key."""
    pages = []
    for name, progress in quiz.progress.items():
        variant, question = progress.variant, progress.variant.question
        pages.append(
            {
                "id": name,
                "type": question["type"],
                "stem": to_html(variant.stem),
                "how": HOW_TO_ANSWER[question["type"]],
                "unit": question.get("unit", ""),
                "options": lettered(variant.shown),
                "items": lettered(question.get("items", [])),
                "categories": lettered(question.get("categories", [])),
                "hints": len(question["hints"]),
                "fresh": bool(question.get("params")),
                "counter": progress.counter,
            }
        )
    return pages


def lettered(entries: list[dict[str, Any]]) -> list[dict[str, str]]:
    """Return ids and texts with the letter that the text API takes."""
    return [
        {"id": entry["id"], "letter": letter(place), "html": to_html(entry["text"], inline=True)}
        | {"text": entry["text"]}
        for place, entry in enumerate(entries)
    ]


def page_state(quiz: Practice) -> dict[str, dict[str, Any]]:
    """Return state, feedback and hints of each question for the page."""
    return {
        name: {
            "state": progress.feedback.state,
            "label": LABELS[progress.feedback.state],
            "text": to_html(str(progress.feedback), inline=True),
            "hints": [to_html(hint, inline=True) for hint in quiz.hints(name)],
        }
        for name, progress in quiz.progress.items()
    }


def to_html(markdown: str, *, inline: bool = False) -> str:
    """Render the little Markdown of a bank: fenced and inline code, bold, emphasis, paragraphs.

    Examples
    --------
    >>> to_html("is `a < b` **true**?")
    '<p>is <code>a &lt; b</code> <strong>true</strong>?</p>'
    """
    pieces = re.split(r"(```.*?```)", markdown.strip(), flags=re.DOTALL)
    blocks = []
    for piece in pieces:
        if piece.startswith("```"):
            code = re.sub(r"^```\w*\n?|\n?```$", "", piece)
            blocks.append(f"<pre><code>{html.escape(code, quote=False)}</code></pre>")
        else:
            parts = [part for part in re.split(r"\n\s*\n", piece.strip()) if part]
            blocks += [
                inline_html(part) if inline else f"<p>{inline_html(part)}</p>" for part in parts
            ]
    return "".join(blocks)


def inline_html(text: str) -> str:
    """Render inline code, bold and emphasis; code is left alone inside."""
    parts = re.split(r"`([^`]+)`", text)
    for place, part in enumerate(parts):
        safe = html.escape(part, quote=False)
        if place % 2:
            parts[place] = f"<code>{safe}</code>"
        else:
            bold = re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", safe, flags=re.DOTALL)
            parts[place] = re.sub(r"(?<![\w*])\*([^*\s][^*]*)\*(?!\w)", r"<em>\1</em>", bold)
    return "".join(parts)


def mimebundle(widget: PracticeWidget, text: str) -> Any:
    """Return the widget's view with the questions as the plain text for pages without a kernel."""
    bundle = widget._repr_mimebundle_()
    data, metadata = bundle if isinstance(bundle, tuple) else (bundle, {})
    return {**(data or {}), "text/plain": text}, metadata
