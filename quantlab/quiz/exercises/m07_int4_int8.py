"""Module 07: a word of nibbles, the corrected dot product, safe lengths, a test that can fail."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from quantlab.accumulators import safe_terms
from quantlab.packing import pack_codes
from quantlab.quiz.check import Exercise
from quantlab.quiz.expect import Wrong, call, expect, show

Product = Callable[[Tensor, Tensor, int, int], Any]

ROWS = (
    [1, 2, 3, 4, 5, 6, 7, 8],
    [0] * 8,
    [15] * 8,
    [0, 0, 0, 0, 0, 0, 0, 9],
    [7, 0, 15, 1, 8, 12, 3, 10],
)


def word_of(codes: list[int]) -> int:
    """Return the library's bytes of eight codes as one number."""
    return int.from_bytes(
        bytes(pack_codes(torch.tensor(codes, dtype=torch.uint8), 4).tolist()), "little"
    )


def check_pack(answer: Any) -> None:
    """Compare words; name the usual orders."""
    for codes in ROWS:
        word, right = call(answer, list(codes)), word_of(codes)
        if isinstance(word, str):
            raise Wrong(f"expected a number such as 0x21, yours is the text {show(word)}")
        if word == right:
            continue
        swapped = [codes[k ^ 1] for k in range(8)]
        if word == word_of(codes[::-1]):
            raise Wrong(
                f"{codes}: the first code belongs in the *lowest* four bits, not the highest"
            )
        if word == word_of(swapped):
            raise Wrong(f"{codes}: within each byte the first code takes the low nibble")
        if isinstance(word, int) and word + 2**32 == right:
            raise Wrong(f"{codes}: the word is unsigned; yours is negative: {word}")
        expect(word, right, f"pack({codes})", reveal=True)


def pack(codes: list[int]) -> int:
    """Put code k into bits 4k .. 4k + 3."""
    word = 0
    for k, code in enumerate(codes):
        word |= code << 4 * k
    return word


def corrected_dot(q: Tensor, p: Tensor, z: int, y: int) -> int:
    """Sum (q - z)(p - y) over four sums, of which one runs over products."""
    q, p = q.long(), p.long()
    return int((q * p).sum() - z * p.sum() - y * q.sum() + len(q) * z * y)


def plain_dot(q: Tensor, p: Tensor, z: int, y: int) -> int:
    """Drop the correction: the control that must fail."""
    return int((q.long() * p.long()).sum())


def without_last_term(q: Tensor, p: Tensor, z: int, y: int) -> int:
    """Forget K z y."""
    q, p = q.long(), p.long()
    return int((q * p).sum() - z * p.sum() - y * q.sum())


def swapped_zeros(q: Tensor, p: Tensor, z: int, y: int) -> int:
    """Give each sum the zero point of its own codes."""
    return corrected_dot(q, p, y, z)


NAMED: list[tuple[Product, str]] = [
    (plain_dot, "this is the sum of products of codes; the zero points are still in it"),
    (without_last_term, "K z y is missing: z was subtracted from both sums, once too often"),
    (swapped_zeros, "z belongs to q, so it multiplies the sum of p; y multiplies the sum of q"),
]


def operands(terms: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return seeded uint8 codes."""
    generator = torch.Generator().manual_seed(seed)
    pair = torch.randint(0, 256, (2, terms), generator=generator).to(torch.uint8)
    return pair[0], pair[1]


def check_corrected(answer: Any) -> None:
    """Compare exact integers; recognize a lost term, swapped zero points, and uint8 products."""
    for terms, z, y in ((4, 3, 200), (1, 0, 9), (64, 128, 128), (1000, 77, 131), (16, 0, 0)):
        q, p = operands(terms, terms)
        value, right = call(answer, q.clone(), p.clone(), z, y), corrected_dot(q, p, z, y)
        if value == right:
            continue
        what = f"{terms} codes, z = {z}, y = {y}"
        for product, reason in NAMED:
            if value == product(q, p, z, y):
                raise Wrong(f"{what}: {reason}")
        narrow = (q * p).long().sum() - z * p.sum() - y * q.sum() + terms * z * y
        if value == int(narrow):
            raise Wrong(
                f"{what}: q * p of uint8 tensors wraps at 256; widen both with .long() first"
            )
        expect(value, right, what, reveal=True)


def largest_safe_k(a: tuple[int, int], b: tuple[int, int], bits: int) -> int:
    """Return how often the worst product fits, on each side of zero."""
    products = [x * y for x in a for y in b]
    limits = []
    if max(products) > 0:
        limits.append((2 ** (bits - 1) - 1) // max(products))
    if min(products) < 0:
        limits.append(2 ** (bits - 1) // -min(products))
    return min(limits)


def check_safe(answer: Any) -> None:
    """Compare on ranges whose worst product is positive, negative, or at a corner."""
    cases = (
        ((-127, 127), (-127, 127), 32),
        ((-128, 127), (-128, 127), 32),
        ((0, 255), (-128, 127), 32),
        ((-8, 7), (-8, 7), 16),
        ((0, 1), (-128, 1), 16),
        ((-3, 1), (0, 5), 24),
    )
    for a, b, bits in cases:
        value, right = call(answer, a, b, bits), safe_terms(a, b, bits)
        what = f"codes {a} and {b}, {bits} bits"
        if value == right:
            continue
        if isinstance(value, float):
            raise Wrong(f"{what}: expected an integer, yours is {value:g}; use // on integers")
        if isinstance(value, int) and right is not None and value == right + 1:
            raise Wrong(
                f"{what}: {value} terms already wrap in the worst case; mind the largest number"
            )
        expect(value, right, what, reveal=True)


def agrees(product: Product, symmetric: bool) -> bool:
    """Try a product on seeded codes, with zero points of 0 or with two different ones."""
    generator = torch.Generator().manual_seed(0)
    if symmetric:
        q, p, z, y = *torch.randint(-128, 128, (2, 64), generator=generator), 0, 0
    else:
        q, p, z, y = *torch.randint(0, 256, (2, 64), generator=generator), 100, 131
    return bool(product(q, p, z, y) == int(((q - z) * (p - y)).sum()))


def check_agrees(answer: Any) -> None:
    """Hand the learner's test a right product and three wrong ones."""
    expected = [
        (corrected_dot, True, True, "the right product, symmetric data"),
        (corrected_dot, False, True, "the right product, asymmetric data"),
        (plain_dot, True, True, "without corrections, both zero points 0: that is right there"),
        (plain_dot, False, False, "without corrections, asymmetric data: your test must fail it"),
        (without_last_term, False, False, "without K z y: your test must fail it"),
        (swapped_zeros, False, False, "zero points exchanged: your test must fail it (let z != y)"),
    ]
    for product, symmetric, right, what in expected:
        verdict = call(answer, product, symmetric)
        if isinstance(verdict, Tensor) and verdict.numel() == 1:
            verdict = bool(verdict)
        if not isinstance(verdict, bool):
            raise Wrong(f"expected True or False, yours is {show(verdict)}")
        if verdict != right:
            raise Wrong(f"{what}; yours says {verdict}")


EXERCISES = [
    Exercise(
        "a",
        "Write pack(codes): eight 4-bit codes as one unsigned 32-bit number, the first one lowest.",
        difficulty=1,
        importance=5,
        minutes=8,
        check=check_pack,
        hints=[
            "code k takes the bits 4k .. 4k + 3",
            "shift each code to its place and combine them with |",
            "word |= code << 4 * k, beginning with word = 0",
        ],
        solution=pack,
        wrong=[
            lambda codes: pack(codes[::-1]),
            lambda codes: pack([codes[k ^ 1] for k in range(8)]),
            lambda codes: sum(code * 10**k for k, code in enumerate(codes)),
            lambda codes: hex(pack(codes)),
            lambda codes: pack(codes) - 2**32 if codes[7] > 7 else pack(codes),
            lambda codes: pack(codes[:4]),
        ],
    ),
    Exercise(
        "b",
        "Write corrected_dot(q, p, z, y): the sum of (q - z)(p - y) from four sums over the codes.",
        difficulty=2,
        importance=5,
        minutes=12,
        check=check_corrected,
        hints=[
            "multiply (q - z)(p - y) out before you sum",
            "sum qp - z sum p - y sum q + K z y",
            "widen first: q, p = q.long(), p.long(); K is len(q)",
        ],
        solution=corrected_dot,
        wrong=[
            plain_dot,
            without_last_term,
            swapped_zeros,
            lambda q, p, z, y: int(
                (q * p).long().sum() - z * p.sum() - y * q.sum() + len(q) * z * y
            ),
            lambda q, p, z, y: corrected_dot(q, p, -z, -y),
        ],
    ),
    Exercise(
        "c",
        "Write largest_safe_k(a, b, bits): how many products always fit a signed accumulator.",
        difficulty=2,
        importance=4,
        minutes=10,
        check=check_safe,
        hints=[
            "the largest and the smallest product lie at the ends of the two ranges",
            "a signed accumulator holds -2**(bits - 1) .. 2**(bits - 1) - 1",
            "the smaller of (2**(bits - 1) - 1) // largest and 2**(bits - 1) // -smallest",
        ],
        solution=largest_safe_k,
        wrong=[
            lambda a, b, bits: 2**bits // max(x * y for x in a for y in b),
            lambda a, b, bits: 2 ** (bits - 1) // max(abs(x * y) for x in a for y in b),
            lambda a, b, bits: (2 ** (bits - 1) - 1) // max(abs(x * y) for x in a for y in b),
            lambda a, b, bits: (2 ** (bits - 1) - 1) // max(a[1] * b[1], 1),
            lambda a, b, bits: (2 ** (bits - 1) - 1) / max(abs(x * y) for x in a for y in b),
        ],
    ),
    Exercise(
        "d",
        "Write agrees(product, symmetric): a test that an uncorrected product fails, unless both "
        "zero points are 0.",
        difficulty=3,
        importance=5,
        minutes=12,
        check=check_agrees,
        hints=[
            "draw codes, choose zero points, and compare with ((q - z) * (p - y)).sum()",
            "symmetric: signed codes, z = y = 0; else codes 0..255 and two *different* zero points",
            "return bool(product(q, p, z, y) == int(((q - z) * (p - y)).sum()))",
        ],
        solution=agrees,
        wrong=[
            lambda product, symmetric: agrees(product, True),
            lambda product, symmetric: agrees(product, False),
            lambda product, symmetric: True,
            lambda product, symmetric: (
                symmetric or product is corrected_dot or product is swapped_zeros
            ),
            lambda product, symmetric: "yes",
        ],
    ),
]
