"""Distillation: let a quantized student learn from the float model's whole answer."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def distillation_loss(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor,
    *,
    temperature: float = 4.0,
    share: float = 0.5,
) -> Tensor:
    """Return (1 - share) * cross entropy + share * T^2 * KL(teacher || student) at temperature T.

    Both distributions are softmax(logits / T). T^2 keeps the size of the gradient when T changes.

    Parameters
    ----------
    student, teacher : (samples, classes) logits
        No gradient reaches the teacher.
    labels : (samples,) LongTensor
    temperature : float > 0
    share : 0..1
        Of the teacher; 0 is plain cross entropy.

    Raises
    ------
    ValueError
        If the shapes disagree, or temperature or share is out of range.

    References
    ----------
    Hinton et al., arXiv:1503.02531v1, section 2.

    Examples
    --------
    >>> import torch
    >>> logits = torch.tensor([[2.0, 0.0]])
    >>> distillation_loss(logits, logits, torch.tensor([0]), share=1.0).item()
    0.0
    """
    if student.shape != teacher.shape:
        raise ValueError(
            f"student has shape {tuple(student.shape)}, teacher {tuple(teacher.shape)}; "
            "pass logits of the same samples and classes"
        )
    if not temperature > 0 or not 0 <= share <= 1:
        raise ValueError(
            f"temperature is {temperature!r} and share {share!r}; choose temperature > 0 and a "
            "share from 0 to 1"
        )
    T = temperature
    soft = F.log_softmax(teacher.detach() / T, dim=-1)
    divergence = F.kl_div(
        F.log_softmax(student / T, dim=-1), soft, reduction="batchmean", log_target=True
    )
    return (1 - share) * F.cross_entropy(student, labels) + share * T * T * divergence
