"""Quantization-aware training: an ordinary training loop on a model that rounds as it goes.

What makes it QAT is the model: its weights and activations pass through grids with straight-through
gradients (``quantlab.fake_quant``), and it starts from trained weights and calibrated ranges.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quantlab.fake_quant import Quantizer
from quantlab.training import Adam, LearnedWeight, cosine

Loss = Callable[..., Tensor]


class Trained(LearnedWeight):
    """The parameters of a model, and those of its grids at their own rate: what ``Adam`` takes."""

    def __init__(self, model: nn.Module, rate: float, grid_rate: float) -> None:
        super().__init__()
        self.model, self.rate, self.grid_rate = model, rate, grid_rate

    def rates(self) -> list[tuple[list[nn.Parameter], float]]:
        """Return every parameter that learns."""
        quantizers = (m for m in self.model.modules() if isinstance(m, Quantizer))
        grids = {id(p): p for quantizer in quantizers for p in quantizer.parameters()}
        others = [p for p in self.model.parameters() if p.requires_grad and id(p) not in grids]
        return [(others, self.rate), (list(grids.values()), self.grid_rate)]


def train_classifier(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    epochs: int,
    learning_rate: float = 0.005,
    grid_rate: float | None = None,
    batch_size: int = 64,
    loss: Loss = F.cross_entropy,
    teacher: nn.Module | None = None,
    penalty: float = 0.0,
    before_epoch: Callable[[int], object] | None = None,
    seed: int = 0,
) -> list[float]:
    """Train a classifier, float or fake-quantized, in place: Adam, cosine to zero.

    Parameters
    ----------
    model : nn.Module
        A float model, or a twin from ``prepare``, calibrated: then this is QAT.
    images, labels : (samples, ...) tensor, (samples,) LongTensor
    epochs, learning_rate, batch_size
    grid_rate : float, or None
        Of the parameters of grids, LSQ's steps and PACT's clips; None: ``learning_rate``. Adam
        moves each parameter by about its rate, whatever the size of its gradient: a step of 0.01
        wants a smaller one than a weight of 0.3.
    loss : function of (logits, labels), or, with a teacher, of (logits, teacher logits, labels)
        With a teacher for instance ``ql.distillation_loss``.
    teacher : nn.Module, optional
        Its logits, in evaluation mode, are given to ``loss``.
    penalty : float
        Times the sum of the quantizers' penalties (PACT: alpha squared), added to the loss.
    before_epoch : function of the epoch's number, optional
        For instance ``lambda epoch: epoch == 5 and ql.freeze_ranges(twin)``.
    seed : int
        Of the order of samples.

    Returns
    -------
    list of float
        The mean loss of each epoch, penalties left out. The model is in evaluation mode again.

    Raises
    ------
    ValueError
        If there are no epochs or no samples, counts differ, or the loss is not finite.

    Examples
    --------
    >>> x = torch.eye(2).repeat(8, 1)
    >>> net = nn.Linear(2, 2)
    >>> losses = train_classifier(net, x, torch.arange(2).repeat(8), epochs=40, learning_rate=0.1)
    >>> losses[-1] < losses[0], accuracy(net, x, torch.arange(2).repeat(8))
    (True, 1.0)
    """
    check_samples(images, labels, epochs)
    grid_rate = learning_rate if grid_rate is None else grid_rate
    answers = None if teacher is None else teacher_logits(teacher, images)
    optimizer = Adam({"model": Trained(model, learning_rate, grid_rate)})
    generator = torch.Generator().manual_seed(seed)
    losses, step, steps = [], 0, epochs * -(-len(images) // batch_size)
    for epoch in range(epochs):
        if before_epoch is not None:
            before_epoch(epoch)
        model.train()
        total = 0.0
        for batch in torch.randperm(len(images), generator=generator).split(batch_size):
            known = (labels[batch],) if answers is None else (answers[batch], labels[batch])
            error = loss(model(images[batch]), *known)
            total += error.item() * len(batch)
            (error + penalty * penalties(model) if penalty else error).backward()
            optimizer.step(cosine(step / steps))
            step += 1
        losses.append(total / len(images))
        check_loss(losses)
    model.eval()
    return losses


def penalties(model: nn.Module) -> Tensor:
    """Return the sum of the quantizers' penalties."""
    found = [m.penalty() for m in model.modules() if isinstance(m, Quantizer)]
    return torch.stack(found).sum()


@torch.no_grad()
def teacher_logits(teacher: nn.Module, images: Tensor, batch_size: int = 256) -> Tensor:
    """Return a model's logits in evaluation mode; its mode is put back."""
    training = teacher.training
    teacher.eval()
    try:
        return torch.cat([teacher(batch) for batch in images.split(batch_size)])
    finally:
        teacher.train(training)


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor, *, batch_size: int = 256) -> float:
    """Return the share of images whose largest logit is the label's; runs in evaluation mode.

    Examples
    --------
    >>> accuracy(nn.Identity(), torch.eye(2), torch.tensor([0, 0]))
    0.5
    """
    logits = teacher_logits(model, images, batch_size)
    return (logits.argmax(-1) == labels).double().mean().item()


def check_samples(images: Tensor, labels: Tensor, epochs: int) -> None:
    """Raise a ValueError unless there is something to train on, and a number of epochs."""
    if isinstance(epochs, bool) or not isinstance(epochs, int) or epochs < 1:
        raise ValueError(f"epochs is {epochs!r}; choose a positive integer")
    if len(images) == 0 or labels.shape != (len(images),):
        raise ValueError(
            f"images have shape {tuple(images.shape)} and labels {tuple(labels.shape)}; "
            "pass one label for each image, at least one"
        )


def check_loss(losses: list[float]) -> None:
    """Raise a ValueError if the latest loss is NaN or infinite."""
    if not losses[-1] < float("inf"):
        raise ValueError(f"the loss is {losses[-1]} in epoch {len(losses)}; lower learning_rate")
