"""Module tree (module 09): which layers a way of quantizing reaches, in bytes and in products."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from quantlab.layer_table import LayerCost, layer_costs
from quantlab.plot import Picture, module_tree
from quantlab.widgets.base import Widget

SKIPPED = ("conv", "module", "base")  # last parts of a path that only repeat the kind of layer
MOST_ROWS = 40


class ModuleTree(Widget):
    """A slider over versions of one network, drawn as a tree with bars.

    Parameters
    ----------
    versions : name -> model
        The float model first; others quantized in some way.
    example : (1, ...) tensor
        One sample.
    version : at the start, counted from 1

    Raises
    ------
    ValueError
        If there is no version, or the tree has more than 40 rows.
    """

    script = "module_tree"

    def __init__(
        self, versions: Mapping[str, nn.Module], example: Tensor, *, version: int = 1
    ) -> None:
        if not versions:
            raise ValueError("there is no version to draw; pass {'float': model, ...}")
        trees = [tree(layer_costs(model, example)) for model in versions.values()]
        if len(trees[0]) > MOST_ROWS:
            raise ValueError(f"the tree has {len(trees[0])} rows, more than {MOST_ROWS}")
        whole = total(trees[0])
        table = {
            "choices": {"version": list(range(1, len(versions) + 1))},
            "names": list(versions),
            "trees": trees,
            "most": max(row["nbytes"] for rows in trees for row in rows),
            "sentences": [
                describe(name, rows, whole) for name, rows in zip(versions, trees, strict=True)
            ],
        }
        super().__init__(table, version=version)

    @property
    def sentence(self) -> str:
        """What the present version reached."""
        return self.table["sentences"][self.position["version"] - 1]

    def picture(self) -> Picture:
        """Return the tree of the present version."""
        at = self.position["version"] - 1
        most = self.table["most"] / 1000
        return module_tree(self.table["trees"][at], title=self.table["names"][at], most=most)


def tree(costs: list[LayerCost]) -> list[dict[str, Any]]:
    """Return the rows of a tree: each layer below the modules that hold it.

    A module that holds one layer only is not drawn apart from it.
    """
    macs = sum(cost.macs for cost in costs)
    paths = {cost.name: path(cost.name) for cost in costs}
    rows: list[dict[str, Any]] = []
    drawn: set[tuple[str, ...]] = set()
    for cost in costs:
        parts = paths[cost.name]
        for depth in range(1, len(parts)):
            inside = [one for one in costs if paths[one.name][:depth] == parts[:depth]]
            if parts[:depth] not in drawn:
                drawn.add(parts[:depth])
                rows.append(row(parts[:depth], inside, macs, stored=""))
        rows.append(row(parts, [cost], macs, stored=cost.stored))
    return rows


def path(name: str) -> tuple[str, ...]:
    """Return a layer's place in the tree, without parts that say nothing new."""
    parts = [part for part in name.split(".") if part not in (*SKIPPED, "body")]
    return tuple(parts or [name or "model"])


def row(
    parts: tuple[str, ...], costs: list[LayerCost], macs: int, *, stored: str
) -> dict[str, Any]:
    """Return one row: a layer, or the sum of those inside a module."""
    return {
        "label": parts[-1],
        "depth": len(parts) - 1,
        "stored": stored,
        "macs": round(100 * sum(cost.macs for cost in costs) / macs, 2),
        "nbytes": sum(cost.nbytes for cost in costs),
    }


def total(rows: list[dict[str, Any]]) -> int:
    """Return the bytes of all layers."""
    return sum(row["nbytes"] for row in rows if row["stored"])


def describe(name: str, rows: list[dict[str, Any]], whole: int) -> str:
    """Say what a version reached, beside the first one."""
    layers = [row for row in rows if row["stored"]]
    held = [row for row in layers if not row["stored"].startswith("float")]
    share = sum(row["macs"] for row in held)
    return (
        f"{name}: {len(held)} of {len(layers)} layers hold integers, {share:.1f} % of all "
        f"products; the layers take {total(rows) / 1000:.1f} kB, {100 * total(rows) / whole:.0f} % "
        "of the first version."
    )
