"""Token windows for calibration and for measuring."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

STORYTELLER = Path(__file__).parent / "models" / "storyteller"
END = "<|endoftext|>"


class Encoder(Protocol):
    """What this file asks of a tokenizer."""

    def encode(self, text: str) -> list[int]:
        """Return ids, the begin token first."""
        ...


def read_stories(path: str | Path) -> list[str]:
    """Return the texts of a file that are separated by ``<|endoftext|>``, stripped.

    Raises
    ------
    ValueError
        If the file is missing, not UTF-8, or holds no text.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text (byte {error.start})") from error
    stories = [story.strip() for story in text.split(END) if story.strip()]
    if not stories:
        raise ValueError(f"{path} holds no text")
    return stories


def token_windows(tokenizer: Encoder, texts: list[str], samples: int, length: int) -> Tensor:
    """Cut texts, joined with the begin token before each, into windows.

    Returns
    -------
    (samples, length) LongTensor

    Raises
    ------
    ValueError
        If samples or length is not positive, or the texts are too short.
    """
    if samples < 1 or length < 2:
        raise ValueError(
            f"asked for {samples} windows of {length}; need >= 1 window of >= 2 tokens"
        )
    stream = [token for text in texts for token in tokenizer.encode(text)]
    if len(stream) < samples * length:
        raise ValueError(
            f"the text holds {len(stream)} tokens, {samples} windows of {length} need "
            f"{samples * length}; ask for at most {len(stream) // length} windows"
        )
    return torch.tensor(stream[: samples * length]).view(samples, length)


def calibration_set(
    tokenizer: Encoder, samples: int = 64, length: int = 256, *, path: str | Path | None = None
) -> Tensor:
    """Return windows of the embedded calibration stories, or of the text file ``path``.

    Returns
    -------
    (samples, length) LongTensor

    Raises
    ------
    ValueError
        If the text is too short or cannot be read.

    Examples
    --------
    >>> import quantlab as ql
    >>> model, tokenizer = ql.load("storyteller")
    >>> ql.calibration_set(tokenizer, samples=4, length=128).shape
    torch.Size([4, 128])
    """
    return token_windows(
        tokenizer, read_stories(path or STORYTELLER / "calibration.txt"), samples, length
    )


def test_set(
    tokenizer: Encoder, samples: int = 32, length: int = 256, *, path: str | Path | None = None
) -> Tensor:
    """Return windows of the embedded evaluation stories, which share none with calibration.

    Returns
    -------
    (samples, length) LongTensor

    Raises
    ------
    ValueError
        If the text is too short or cannot be read.
    """
    return token_windows(
        tokenizer, read_stories(path or STORYTELLER / "evaluation.txt"), samples, length
    )


setattr(test_set, "__test__", False)  # noqa: B010  pytest would collect the name


def check_tokens(tokens: Tensor | None, vocabulary: int | None = None) -> Tensor:
    """Return ``tokens`` if it is a non-empty (samples, length) tensor of valid ids.

    Raises
    ------
    ValueError
        If it is not; the message names shape, dtype or the id out of range.
    """
    if not isinstance(tokens, Tensor) or tokens.dtype not in (torch.int64, torch.int32):
        kind = tokens.dtype if isinstance(tokens, Tensor) else type(tokens).__name__
        raise ValueError(f"data is {kind}; pass token ids, a LongTensor (samples, length)")
    if tokens.ndim != 2 or tokens.numel() == 0 or tokens.shape[1] < 2:
        raise ValueError(
            f"data has shape {tuple(tokens.shape)}; pass (samples, length >= 2), not empty"
        )
    low, high = int(tokens.min()), int(tokens.max())
    if low < 0 or (vocabulary is not None and high >= vocabulary):
        bad = low if low < 0 else high
        raise ValueError(f"data holds token id {bad}; the vocabulary is 0..{(vocabulary or 0) - 1}")
    return tokens
