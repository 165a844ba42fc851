"""The 1,797 handwritten digits of scikit-learn, 8x8 pixels: real data without a download."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

TEST = 500


@dataclass(frozen=True, eq=False)
class DigitImages:
    """Images and labels, split by a seed.

    Attributes
    ----------
    images, test_images : (samples, 1, 8, 8) float32 tensors, 0 to 1
    labels, test_labels : (samples,) int64 tensors
    """

    images: Tensor
    labels: Tensor
    test_images: Tensor
    test_labels: Tensor


def digit_images(seed: int = 0, *, test: int = TEST) -> DigitImages:
    """Load the digits: 1,297 for training and 500 for testing, mixed by a seed.

    Raises
    ------
    ModuleNotFoundError
        If scikit-learn is missing; it comes with ``quantlab[notebook]``.

    Examples
    --------
    >>> data = digit_images()
    >>> tuple(data.images.shape), tuple(data.test_images.shape)
    ((1297, 1, 8, 8), (500, 1, 8, 8))
    """
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "the digits come with scikit-learn: pip install 'quantlab[notebook]'"
        ) from None
    pixels, targets = load_digits(return_X_y=True)
    order = torch.randperm(len(targets), generator=torch.Generator().manual_seed(seed))
    images = torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 8, 8)[order] / 16
    labels = torch.tensor(targets, dtype=torch.int64)[order]
    return DigitImages(images[test:], labels[test:], images[:test], labels[:test])
