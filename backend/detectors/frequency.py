"""The discrete cosine transform of pictures, and the bands that F3-Net cuts its coefficients into."""

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor


@lru_cache(maxsize=8)
def _cosines(size: int) -> np.ndarray:
    index = np.arange(size)
    rows = np.cos(np.pi * index[:, None] * (index[None, :] + 0.5) / size) * np.sqrt(2 / size)
    rows[0] /= np.sqrt(2)
    return rows.astype(np.float32)


def dct_matrix(size: int) -> Tensor:
    """Return the orthonormal DCT-II matrix, float32 (size, size): row k holds the cosine of frequency k."""
    return torch.from_numpy(_cosines(size).copy())


def dct2(images: Tensor) -> Tensor:
    """Return the orthonormal DCT-II along both axes of (..., H, W); coefficient [0, 0] is the mean times sqrt(HW)."""
    height, width = images.shape[-2:]
    rows, columns = dct_matrix(height).to(images), dct_matrix(width).to(images)
    return rows @ images.contiguous() @ columns.T


def band(size: int, low: float, high: float) -> Tensor:
    """Return 1 where the frequencies i + j of a (size, size) DCT lie in [low, high], both ends included, else 0."""
    index = np.arange(size)
    total = index[:, None] + index[None, :]
    return torch.from_numpy(((total >= low) & (total <= high)).astype(np.float32))
