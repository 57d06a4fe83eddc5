"""What a detector sees of a photo while a crop of it changes.

A generator draws one crop of a face; detectors were trained on crops of their own, wider or larger. A view is the
detector's own crop of the photo, to which every change of the generator's crop is added where it lies. Gradients go
through it, and where nothing changed it is the photo's own pixels.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from backend import alignment, images
from backend.alignment import AlignedFace


@dataclass(frozen=True, eq=False)
class View:
    """A detector's own crop of one photo.

    Args:
        original: The crop, (1, 3, S, S) in [0, 1].
        crop: The generator's crop of the same photo before any change, (1, 3, C, C) in [0, 1].
        theta: Where the view lies in the crop, (1, 2, 3), as `affine_grid` wants it.
        back: The inverse of `theta`, (1, 2, 3).
        weights: How much of a change arrives, (1, 1, S, S) in [0, 1]; it falls smoothly at the crop's edge.
        side: Size in pixels at which the crop is as fine as the view.
    """

    original: Tensor
    crop: Tensor
    theta: Tensor
    back: Tensor
    weights: Tensor
    side: int

    def to(self, device: torch.device) -> "View":
        """Return the same on a device."""
        return View(
            original=self.original.to(device),
            crop=self.crop.to(device),
            theta=self.theta.to(device),
            back=self.back.to(device),
            weights=self.weights.to(device),
            side=self.side,
        )

    def of(self, crops: Tensor) -> Tensor:
        """Return what is seen of changed crops (N, 3, C', C') in [0, 1]: (N, 3, S, S) in [0, 1], differentiable."""
        change = crops - resized(self.crop, crops.shape[-1])
        if self.side < crops.shape[-1]:  # sampling a finer picture point by point would alias
            change = resized(change, self.side)
        return (self.original + self.weights * _sampled(change, self.theta, self.original.shape[-1])).clamp(0, 1)

    def maps_back(self, maps: np.ndarray) -> np.ndarray:
        """Return maps (N, S, S) over the view as maps over the crop, (N, S, S); 0 where the view does not reach."""
        found = torch.from_numpy(maps)[:, None].to(self.back)
        return _sampled(found, self.back, maps.shape[-1])[:, 0].cpu().numpy().astype(maps.dtype)


@dataclass(frozen=True, eq=False)
class Source:
    """A photo and the crop of it that is changed, from which every detector's view can be cut.

    Args:
        photo: uint8 (H, W, 3).
        aligned: The crop.
    """

    photo: np.ndarray
    aligned: AlignedFace

    def view(self, template: str, size: int) -> View | None:
        """Return the view of a detector that wants faces of `size` pixels in the position `template`.

        None where this is the crop itself.
        """
        if (template, size) == (self.aligned.template, len(self.aligned.crop)):
            return None
        seen = alignment.align(self.photo, self.aligned.face, template, size)
        matrix, weights = alignment.between(seen, self.aligned)
        theta = _theta(matrix, size, len(self.aligned.crop))
        inverse = np.linalg.inv(np.vstack([theta, [0, 0, 1]]))[:2]
        return View(
            original=images.to_tensor(seen.crop),
            crop=images.to_tensor(self.aligned.crop),
            theta=torch.from_numpy(theta[None]).float(),
            back=torch.from_numpy(inverse[None]).float(),
            weights=torch.from_numpy(weights)[None, None],
            # One pixel of the view is this many of the crop, of which the crop then has so many fewer.
            side=max(1, round(len(self.aligned.crop) / float(abs(np.linalg.det(matrix[:, :2])) ** 0.5))),
        )


def resized(pictures: Tensor, size: int) -> Tensor:
    """Bring square pictures (N, C, H, W) to `size` pixels, antialiased."""
    if pictures.shape[-2:] == (size, size):
        return pictures
    return F.interpolate(pictures, size=(size, size), mode="bilinear", antialias=True, align_corners=False)


def _sampled(pictures: Tensor, theta: Tensor, size: int) -> Tensor:
    grid = F.affine_grid(theta.expand(len(pictures), -1, -1), [len(pictures), 1, size, size], align_corners=False)
    return F.grid_sample(pictures, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def _theta(matrix: np.ndarray, size: int, other: int) -> np.ndarray:
    """Turn a matrix between pixels of pictures of `size` and `other` into one between coordinates in [-1, 1]."""
    linear = matrix[:, :2] * size / other
    centre = matrix[:, :2].sum(axis=1) * size / 2 + matrix[:, 2]
    return np.column_stack([linear, 2 * centre / other - 1])
