"""How the kernels walk through GGUF blocks: sixteen sub-blocks of a row at a time.

A *sub-block* is 32 or 16 weights that share a scale: w = scale (code - offset) + shift. Sixteen
of them are a *chunk*: sixteen blocks of 32 weights, two super-blocks of 256 with sub-blocks of 32,
or one with sub-blocks of 16. A register holds 64 codes: 16-byte *pieces* of four sub-blocks. Four
sums of such registers, added up crosswise, leave one sub-block's dot product in each of sixteen
lanes. Which piece sits where follows from the file's order of bits, so that codes are unpacked
with the fewest shuffles; activations are laid out to match, once a call.
"""

from __future__ import annotations

from dataclasses import dataclass

from quantlab.kernels.tiles import LANES

PIECE = 16  # codes that stay together: a quarter of a register of 64 bytes
ACTIVATIONS = 32  # activations that share a scale, whatever the weight's type
Grouping = tuple[tuple[int, int, int, int], ...]  # sums -> the four sub-blocks of each

# sub-blocks of the four sums: of nibbles of two super-blocks; in the file's order
PAIRED: Grouping = tuple((first, first + 2, first + 4, first + 6) for first in (0, 1, 8, 9))
PLAIN: Grouping = tuple((k, k + 1, k + 2, k + 3) for k in range(0, 16, 4))


@dataclass(frozen=True)
class Layout:
    """What a kernel must know of a type besides how its bits become codes.

    Attributes
    ----------
    weights : weights of a sub-block, 32 or 16
    block_bytes : bytes of the type's block
    block_weights : weights of the type's block
    offset : the code that stands for zero
    groups : which four sub-blocks each of the four sums holds
    shift : 1, -1 or 0
        Weights are scale (code - offset) + shift * minimum; 0 has no minimum.
    signed : whether codes are signed bytes
    swapped : in which quarters of a register a sub-block's second half comes first (1)
    """

    weights: int
    block_bytes: int
    block_weights: int
    offset: int
    groups: Grouping
    shift: int = 0
    signed: bool = False
    swapped: tuple[int, int, int, int] = (0, 0, 0, 0)

    @property
    def chunk(self) -> int:
        """Weights of sixteen sub-blocks."""
        return LANES * self.weights

    @property
    def chunk_bytes(self) -> int:
        """Bytes of sixteen sub-blocks."""
        return self.chunk // self.block_weights * self.block_bytes

    @property
    def lanes(self) -> list[int]:
        """Which sub-block ends in each lane: sum k's quarter i ends in lane 4 i + k."""
        return [self.groups[lane % 4][lane // 4] for lane in range(LANES)]

    @property
    def pieces(self) -> list[int]:
        """The order of a chunk's 16-code pieces in the registers."""
        each = self.weights // PIECE
        return [
            each * s + (part ^ self.swapped[quarter])
            for group in self.groups
            for part in range(each)
            for quarter, s in enumerate(group)
        ]


LAYOUTS = {
    "Q4_0": Layout(32, 18, 32, 8, PLAIN),
    "Q4_1": Layout(32, 20, 32, 0, PLAIN, shift=1),
    "Q5_0": Layout(32, 22, 32, 16, PLAIN),
    "Q5_1": Layout(32, 24, 32, 0, PLAIN, shift=1),
    "Q8_0": Layout(32, 34, 32, 0, PLAIN, signed=True, swapped=(0, 1, 0, 0)),
    "Q4_K": Layout(32, 144, 256, 0, PAIRED, shift=-1),
    "Q5_K": Layout(32, 176, 256, 0, PAIRED, shift=-1),
    "Q6_K": Layout(16, 210, 256, 32, PLAIN),
}
