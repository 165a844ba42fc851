"""Block explorer (module 06): which weights a byte of a ggml block feeds, and the reverse."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from quantlab.gguf.block_type import BlockType, find_type
from quantlab.gguf.codec import dequantize, quantize
from quantlab.plot import Picture
from quantlab.plot_blocks import block_map, span
from quantlab.widgets.base import Widget
from quantlab.widgets.block_formula import FORMULAS

TRIALS = 8  # random blocks whose bits are flipped: a code of 0 hides what its scale feeds
Spans = list[list[int]]  # [first, stop] pairs
Groups = list[tuple[list[int], Spans]]  # bits of a byte, and the weights that they feed


class BlockExplorer(Widget):
    """The bytes of a block above its weights: choose one, and see what it is tied to.

    Parameters
    ----------
    weights : (n,) floats, optional
        Each type quantizes the first of them, as many as its block holds. By default 256 normal
        weights of a fixed seed.
    types : names of ggml types whose formula is known here
    type : name of the one to start with; by default the first
    byte, weight : index of what to look from at the start; by default a byte of weight 0's code

    Raises
    ------
    ValueError
        If there are too few weights for a block, or no formula of a type.
    """

    script = "block_explorer"

    def __init__(
        self,
        weights: ArrayLike | None = None,
        types: Iterable[str] = tuple(FORMULAS),
        *,
        type: str | None = None,
        **look: int,
    ) -> None:
        row = np.random.default_rng(0).standard_normal(256) / 50 if weights is None else weights
        entries = [entry(find_type(name), np.asarray(row, np.float32)) for name in types]
        table = {"types": {one["name"]: one for one in entries}}
        super().__init__(table, type=entries[0]["name"] if type is None else type, **look)

    def choices(self, position: Mapping[str, Any]) -> dict[str, Sequence[Any]]:
        """Return the types, and the bytes and weights of the present one."""
        here = self.table["types"].get(position["type"], {"data": [], "codes": []})
        places = {"byte": range(len(here["data"])), "weight": range(len(here["codes"]))}
        return {"type": list(self.table["types"]), "look": ["byte", "weight"], **places}

    def checked(self, change: Mapping[str, Any]) -> dict[str, Any]:
        """Return the position after a change; we look from the byte or weight that it names."""
        named = [name for name in ("byte", "weight") if name in change]
        change = {"look": named[-1], **change} if named else change
        if "type" in change:  # another block: begin at the code of its first weight
            start = self.table["types"].get(change["type"], {"start": 0})["start"]
            change = {"type": "", "look": "byte", "byte": start, "weight": 0, **change}
        return super().checked(change)

    @property
    def entry(self) -> dict[str, Any]:
        """The present type: its bytes, fields, codes, ties and sentences."""
        return self.table["types"][self.position["type"]]

    @property
    def sentence(self) -> str:
        """What the present byte feeds, or what the present weight is made of."""
        look = self.position["look"]
        return self.entry["sentences"][look][self.position[look]]

    def picture(self) -> Picture:
        """Return the block's bytes above its codes, both ends of the tie framed."""
        position, here = self.position, self.entry
        if position["look"] == "byte":
            lit_bytes = {position["byte"]}
            lit_weights = expand(s for _, spans in here["feeds"][position["byte"]] for s in spans)
        else:
            lit_weights = {position["weight"]}
            lit_bytes = set(sources(here["feeds"], position["weight"]))
        fields = {name: (first, stop) for name, first, stop in here["fields"]}
        return block_map(here["data"], fields, here["codes"], lit_bytes=lit_bytes,
                         lit_weights=lit_weights, name=here["name"])  # fmt: skip


def feeds(type: str | type[BlockType], seed: int = 0) -> NDArray[np.bool_]:
    """Find which weights each bit of a block feeds: flip it, and see which of them change.

    Returns
    -------
    (8 * bytes, weights) bool array
        Row 8 k + b belongs to bit b of byte k, counted from the lowest.

    Examples
    --------
    >>> import numpy as np
    >>> np.flatnonzero(feeds("Q4_0")[8 * 2 + 4]).tolist()  # byte 2, bit 4: the first high half
    [16]
    """
    cls = find_type(type)
    rng, nbytes = np.random.default_rng(seed), cls.layout.itemsize
    bits = np.arange(8 * nbytes)
    found = np.zeros((len(bits), cls.size), bool)
    for _ in range(TRIALS):
        block = np.frombuffer(rng.bytes(nbytes), np.uint8).copy()
        record = block.view(cls.layout)
        for name, (kind, *_) in (cls.layout.fields or {}).items():
            if kind == np.dtype("<f2"):  # far from overflow, whichever bit is flipped
                record[name] = rng.uniform(0.5, 1)
        flipped = np.repeat(block[None], len(bits), axis=0)
        flipped[bits, bits // 8] ^= (1 << bits % 8).astype(np.uint8)
        before, after = dequantize(block[None], cls), dequantize(flipped, cls)
        found |= before.view(np.uint32) != after.view(np.uint32)  # as bits: -0.0 is not 0.0
    return found


def entry(cls: type[BlockType], row: NDArray[np.float32]) -> dict[str, Any]:
    """Return all that the browser needs to know of one block."""
    name = cls.__name__
    if name not in FORMULAS:
        raise ValueError(f"no formula of {name} is known here; choose from {', '.join(FORMULAS)}")
    if row.ndim != 1 or len(row) < cls.size:
        raise ValueError(f"a {name} block holds {cls.size} weights; the row has shape {row.shape}")
    data = quantize(row[: cls.size], cls)
    symbols, weights = FORMULAS[name](data.view(cls.layout)[0])
    values = dequantize(data, cls).tolist()
    here = {
        "name": name,
        "fields": [
            [field, offset, offset + kind.itemsize]
            for field, (kind, offset, *_) in (cls.layout.fields or {}).items()
        ],
        "data": data.tolist(),
        "codes": [code for code, _ in weights],
        "symbols": symbols,
        "formulas": [text for _, text in weights],
        "values": [f"{value:.4g}" for value in values],
        "feeds": [groups_of(byte) for byte in feeds(cls).reshape(len(data), 8, cls.size)],
    }
    here["start"] = min(k for k, groups in enumerate(here["feeds"]) if feeds_only(groups, 0))
    here["sentences"] = {
        "byte": [byte_sentence(here, k) for k in range(len(data))],
        "weight": [weight_sentence(here, i) for i in range(cls.size)],
    }
    return here


def groups_of(byte: NDArray[np.bool_]) -> Groups:
    """Return the eight bits of a byte, (8, weights), grouped by the weights that they feed."""
    groups: dict[bytes, tuple[list[int], Spans]] = {}
    for bit, weights in enumerate(byte):
        edges = np.flatnonzero(np.diff(weights, prepend=False, append=False)).reshape(-1, 2)
        groups.setdefault(weights.tobytes(), ([], edges.tolist()))[0].append(bit)
    return list(groups.values())


def expand(spans: Iterable[Sequence[int]]) -> set[int]:
    """Return the numbers in [first, stop] pairs."""
    return {i for first, stop in spans for i in range(first, stop)}


def feeds_only(groups: Groups, weight: int) -> bool:
    """Tell whether some bits of a byte belong to this weight alone: its code."""
    return any(spans == [[weight, weight + 1]] for _, spans in groups)


def sources(ties: Sequence[Groups], weight: int) -> dict[int, list[int]]:
    """Return byte -> bits that feed a weight."""
    found = {}
    for k, groups in enumerate(ties):
        hits = [bits for bits, spans in groups if any(a <= weight < b for a, b in spans)]
        if hits:
            found[k] = sorted(bit for bits in hits for bit in bits)
    return found


def byte_sentence(here: Mapping[str, Any], k: int) -> str:
    """Say what a byte holds, and which weights its bits feed; with the values if they are few."""
    groups = here["feeds"][k]
    parts = [f"{bits_text(bits)} feed {weights_text(spans)}" for bits, spans in groups]
    text = (
        f"{here['name']} byte {k} of {len(here['data'])}, in {place(here, k)}, is "
        f"0x{here['data'][k]:02X} = {here['data'][k]:08b}: {', '.join(parts)}"
    )
    fed = sorted(expand(s for _, spans in groups for s in spans))
    if len(fed) > 4:
        return f"{text}."
    values = [f"weight {i} = {here['formulas'][i]} = {here['values'][i]}" for i in fed]
    return f"{text}; {', '.join(values)}."


def weight_sentence(here: Mapping[str, Any], i: int) -> str:
    """Say what a weight is worth, by which formula, and from which bits."""
    parts = [
        f"byte {k} ({place(here, k)})" + ("" if len(bits) == 8 else f" {bits_text(bits)}")
        for k, bits in sources(here["feeds"], i).items()
    ]
    return (
        f"{here['name']} weight {i} of {len(here['codes'])} = {here['symbols']} = "
        f"{here['formulas'][i]} = {here['values'][i]}; it is fed by {', '.join(parts)}."
    )


def place(here: Mapping[str, Any], k: int) -> str:
    """Return a byte's field, with its number there if the field has several."""
    name, first, stop = next(f for f in here["fields"] if f[1] <= k < f[2])
    return name if stop - first <= 2 else f"{name}[{k - first}]"


def bits_text(bits: Sequence[int]) -> str:
    """Return bits in words.

    Examples
    --------
    >>> bits_text([4, 5, 6, 7]), bits_text([3])
    ('bits 4-7', 'bit 3')
    """
    if len(bits) == 1:
        return f"bit {bits[0]}"
    runs = np.split(bits, np.flatnonzero(np.diff(bits) > 1) + 1)
    return "bits " + " and ".join(span(int(run[0]), int(run[-1]) + 1) for run in runs)


def weights_text(spans: Spans) -> str:
    """Return weights in words.

    Examples
    --------
    >>> weights_text([[5, 6]]), weights_text([[0, 32], [64, 96]])
    ('weight 5', 'weights 0-31 and 64-95')
    """
    if not spans:
        return "no weight"
    one = len(spans) == 1 and spans[0][1] - spans[0][0] == 1
    return ("weight " if one else "weights ") + " and ".join(span(*pair) for pair in spans)
