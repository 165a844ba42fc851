"""What all widgets share: a table computed once, a position in it, and three ways to be shown.

The browser redraws from the table, so a moved slider asks no kernel. Where there is no kernel
(GitHub, a printed page), or no anywidget, the same object shows as its Picture.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

from quantlab.plot_style import Picture

FOLDER = Path(__file__).parent
TABLE_LIMIT = 1_000_000  # bytes of JSON; more makes a notebook slow to open
VIEW = "application/vnd.jupyter.widget-view+json"


class Widget(ABC):
    """A picture with controls.

    A subclass sets ``script``, builds its table, and says what each position means
    (``choices``, ``sentence``, ``picture``).

    Parameters
    ----------
    table : what the browser draws from; plain lists, dicts, numbers and texts
    position : value of each control at the start

    Raises
    ------
    ValueError
        If the table exceeds 1 MB, or the position does not exist.
    """

    script: ClassVar[str]

    def __init__(self, table: dict[str, Any], **position: Any) -> None:
        nbytes = len(json.dumps(table, allow_nan=False))
        if nbytes > TABLE_LIMIT:
            raise ValueError(
                f"the table of {type(self).__name__} takes {nbytes:,} bytes, more than "
                f"{TABLE_LIMIT:,}; pass fewer rows, columns or positions"
            )
        self.table = table
        self._start: dict[str, Any] = {}
        self._view: Any = None
        self._start = self.checked(position)

    def choices(self, position: Mapping[str, Any]) -> dict[str, Sequence[Any]]:
        """Return control -> its values, at this position of the other controls."""
        return self.table["choices"]

    def checked(self, change: Mapping[str, Any]) -> dict[str, Any]:
        """Return the position after a change, or raise a ValueError that names the choices."""
        position = {**self.position, **change}
        choices = self.choices(position)
        for name, value in position.items():
            if name not in choices:
                raise ValueError(f"there is no control {name!r}; choose {', '.join(choices)}")
            if value not in choices[name]:
                some = ", ".join(str(choice) for choice in choices[name][:12])
                raise ValueError(f"{name} is {value!r}; choose one of {some}")
        return position

    @property
    def position(self) -> dict[str, Any]:
        """Value of each control, as last moved here or in the browser."""
        return dict(self._start if self._view is None else self._view.position)

    def move(self, **change: Any) -> None:
        """Set controls to other values; a widget on screen follows.

        Raises
        ------
        ValueError
            If there is no such control or value.
        """
        position = self.checked(change)
        if self._view is None:
            self._start = position
        else:
            self._view.position = position

    @property
    @abstractmethod
    def sentence(self) -> str:
        """What the picture shows at the present position, with its numbers."""

    @abstractmethod
    def picture(self) -> Picture:
        """Return the present position as a still picture."""

    def live(self) -> Any:
        """Return the anywidget of this object, made on first use.

        Raises
        ------
        ImportError
            If anywidget is not installed.
        """
        if self._view is None:
            self._view = view_class(self.script)(table=self.table, position=self._start)
        return self._view

    def __repr__(self) -> str:
        return self.sentence

    def _repr_mimebundle_(
        self, include: Any = None, exclude: Any = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the live view where anywidget is installed, and always image and sentence."""
        data, metadata = Picture(self.picture().figure, self.sentence)._repr_mimebundle_()
        if find_spec("anywidget") is None:
            return data, metadata
        live, about = self.live()._repr_mimebundle_()
        return {VIEW: live[VIEW], **data}, {**about, **metadata}


@cache
def view_class(script: str) -> type:
    """Return the anywidget class that runs ``script``.js behind the shared frame.js."""
    import anywidget
    import traitlets

    members = {
        "_esm": source("frame.js") + source(f"{script}.js"),
        "_css": source("style.css"),
        "table": traitlets.Dict().tag(sync=True),
        "position": traitlets.Dict().tag(sync=True),
    }
    return type(f"{script}_view", (anywidget.AnyWidget,), members)


def source(name: str) -> str:
    """Return the text of a file beside this one."""
    return (FOLDER / name).read_text(encoding="utf-8")
