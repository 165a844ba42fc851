"""Which type each tensor of a model gets under a preset such as Q4_K_M, as llama-quantize chooses.

A preset is a base type with exceptions: matrices that hurt most when they are rounded (values,
the down projection, the head) get more bits, in the layers where that pays. Rows that do not fill
the blocks of a type fall back to another one, and this file says so.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from quantlab.gguf.codec import TYPES  # from codec: only then are the types defined

FALLBACK = {  # for rows that do not fill whole blocks of 256
    "Q2_K": "Q4_0",
    "Q3_K": "Q4_0",
    "Q4_K": "Q5_0",
    "Q5_K": "Q5_1",
    "Q6_K": "Q8_0",
    "IQ4_XS": "IQ4_NL",
    "TQ1_0": "Q4_0",
    "TQ2_0": "Q4_0",
}


@dataclass(frozen=True)
class Sizes:
    """What the rules ask of a model.

    Attributes
    ----------
    layers, heads, kv_heads : int
    tied : bool
        The embedding is also the output head.
    imatrix : bool
        Tensors will be quantized with an importance matrix.
    """

    layers: int
    heads: int
    kv_heads: int
    tied: bool
    imatrix: bool = False

    @property
    def sharing(self) -> int:
        """Query heads that share one key/value head."""
        return self.heads // self.kv_heads

    def more(self, i: int) -> bool:
        """Tell whether layer ``i`` is one that gets more bits: the ends, and every third between.

        Examples
        --------
        >>> [i for i in range(16) if Sizes(16, 8, 8, tied=True).more(i)]
        [0, 1, 4, 7, 10, 13, 14, 15]
        """
        eighth = self.layers // 8
        return i < eighth or i >= 7 * self.layers // 8 or (i - eighth) % 3 == 2


Rule = Callable[[int, Sizes], str | None]  # layer, sizes -> type, or None for the base


def always(name: str) -> Rule:
    """Return the rule that gives every layer the type ``name``."""
    return lambda i, sizes: name


def when(name: str, condition: Callable[[int, Sizes], bool], otherwise: str | None = None) -> Rule:
    """Return the rule that gives the type ``name`` where the condition holds."""
    return lambda i, sizes: name if condition(i, sizes) else otherwise


def first_eighth(i: int, sizes: Sizes) -> bool:
    """Tell whether layer ``i`` is among the first n/8."""
    return i < sizes.layers // 8


def grouped(i: int, sizes: Sizes) -> bool:
    """Tell whether four or more query heads share a value head: small, so its bits cost little."""
    return sizes.sharing >= 4


def many(i: int, sizes: Sizes) -> bool:
    """Tell whether layer ``i`` is one that gets more bits."""
    return sizes.more(i)


@dataclass(frozen=True)
class Preset:
    """A base type and the exceptions from it.

    Attributes
    ----------
    base : str
        Type of every matrix that no exception names.
    file_type : int
        The preset's number in ``general.file_type``.
    attn_v, ffn_down, attn_output : Rule, or None
    embedding, head : str, or None for the base
        Of ``token_embd`` when it is not the head as well, and of the head.
    """

    base: str
    file_type: int
    attn_v: Rule | None = None
    ffn_down: Rule | None = None
    attn_output: Rule | None = None
    embedding: str | None = None
    head: str | None = "Q6_K"


Q5_IN_FIRST_EIGHTH = when("Q5_K", first_eighth)
MORE = when("Q6_K", many)
IQ_VALUES = when("Q5_K", grouped)
IQ_DOWN = when("Q5_K", lambda i, sizes: first_eighth(i, sizes) and not sizes.imatrix)


def better_down(name: str) -> Rule:
    """Return the rule of Q4_0 and Q5_0: the type with minima in the first layers, given imatrix."""
    return when(name, lambda i, sizes: sizes.imatrix and first_eighth(i, sizes))


PRESETS: dict[str, Preset] = {
    "F32": Preset("F32", 0, head=None),
    "F16": Preset("F16", 1, head=None),
    "BF16": Preset("BF16", 32, head=None),
    "Q8_0": Preset("Q8_0", 7, head="Q8_0"),
    "Q6_K": Preset("Q6_K", 18),
    "Q5_K_M": Preset("Q5_K", 17, attn_v=MORE, ffn_down=MORE),
    "Q5_K_S": Preset("Q5_K", 16),
    "Q5_1": Preset("Q5_1", 9),
    "Q5_0": Preset("Q5_0", 8, ffn_down=better_down("Q5_1")),
    "Q4_K_M": Preset("Q4_K", 15, attn_v=MORE, ffn_down=MORE),
    "Q4_K_S": Preset(
        "Q4_K", 14, attn_v=when("Q5_K", lambda i, _: i < 4), ffn_down=Q5_IN_FIRST_EIGHTH
    ),
    "Q4_1": Preset("Q4_1", 3),
    "Q4_0": Preset("Q4_0", 2, ffn_down=better_down("Q4_1")),
    "IQ4_NL": Preset("IQ4_NL", 25, attn_v=IQ_VALUES, ffn_down=IQ_DOWN),
    "IQ4_XS": Preset("IQ4_XS", 30, attn_v=IQ_VALUES, ffn_down=IQ_DOWN),
    "Q3_K_L": Preset(
        "Q3_K", 13, attn_v=always("Q5_K"), ffn_down=always("Q5_K"), attn_output=always("Q5_K")
    ),
    "Q3_K_M": Preset(
        "Q3_K",
        12,
        attn_v=when("Q5_K", lambda i, _: i < 2, "Q4_K"),
        ffn_down=when("Q5_K", lambda i, sizes: i < sizes.layers // 16, "Q4_K"),
        attn_output=always("Q4_K"),
    ),
    "Q3_K_S": Preset("Q3_K", 11),
    "Q2_K": Preset(
        "Q2_K",
        10,
        attn_v=when("Q4_K", grouped, "Q3_K"),
        ffn_down=always("Q3_K"),
        attn_output=always("Q3_K"),
    ),
    "TQ1_0": Preset("TQ1_0", 36, embedding="Q4_K"),
    "TQ2_0": Preset("TQ2_0", 37, embedding="Q4_K"),
    # Ours: llama-quantize's preset of this type, 38, is for mixtures of experts.
    "MXFP4": Preset("MXFP4", 38, embedding="Q8_0", head="Q8_0"),
}


def find_preset(name: str) -> tuple[str, Preset]:
    """Return a preset and its name as written here; a ValueError that guesses if there is none.

    Examples
    --------
    >>> find_preset("q4_k_m")[1].base
    'Q4_K'
    """
    if name.upper() in PRESETS:
        return name.upper(), PRESETS[name.upper()]
    guess = difflib.get_close_matches(name.upper(), PRESETS, n=1, cutoff=0.5)
    hint = f"did you mean {guess[0]!r}? " if guess else ""
    raise ValueError(f"unknown GGUF preset {name!r}; {hint}known: {', '.join(PRESETS)}")


def is_quantized(name: str, shape: Sequence[int]) -> bool:
    """Tell whether a preset speaks of this tensor; norms, biases and tables of angles stay F32.

    Examples
    --------
    >>> is_quantized("blk.0.attn_q.weight", (64, 64)), is_quantized("blk.0.attn_norm.weight", (64,))
    (True, False)
    """
    kept = name.endswith("_norm.weight") or "ffn_gate_inp" in name or name == "position_embd.weight"
    return name.endswith("weight") and len(shape) in (2, 3) and not kept


def wanted_type(name: str, preset: Preset, sizes: Sizes) -> str:
    """Return the type that the preset's rules give a matrix, whatever its rows look like.

    Parameters
    ----------
    name : str
        In GGUF's words, such as ``blk.3.ffn_down.weight``.
    """
    if name == "output.weight" or (name == "token_embd.weight" and sizes.tied):
        return preset.head or preset.base
    if name == "token_embd.weight":
        return preset.embedding or preset.base
    parts = name.split(".")
    if parts[0] != "blk":
        return preset.base
    kind = parts[2]
    rules = {
        "attn_v": preset.attn_v,
        "ffn_down": preset.ffn_down,
        "attn_output": preset.attn_output,
    }
    rule = rules.get(kind)
    found = (rule(int(parts[1]), sizes) if rule else None) or preset.base
    seventy_billion = sizes.layers == 80 and sizes.heads != sizes.kv_heads
    if kind == "attn_v" and seventy_billion and found in ("Q3_K", "Q4_K"):
        return "Q5_K"
    return found


def fitting_type(wanted: str, columns: int) -> tuple[str, str]:
    """Return the type that rows of ``columns`` weights get, and why it is not the wanted one.

    Examples
    --------
    >>> fitting_type("Q4_K", 96)
    ('Q5_0', 'rows of 96 weights do not fill blocks of 256 (Q4_K)')
    >>> fitting_type("Q4_K", 512)
    ('Q4_K', '')
    """
    size = TYPES[wanted].size
    if columns % size == 0:
        return wanted, ""
    found = FALLBACK.get(wanted, "F16")
    if columns % TYPES[found].size:
        return "F16", f"rows of {columns} weights do not fill blocks of {size} ({wanted}) or 32"
    return found, f"rows of {columns} weights do not fill blocks of {size} ({wanted})"
