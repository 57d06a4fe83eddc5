"""What a counterfactual changed: the signed residual, the codes' change, and how alike the pictures are."""

from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor

from backend.counterfactual import levels

GAINS = (100, 50, 20, 10, 5, 2, 1)
COVERED = 99.5  # percent of the pixels that the gain must not cut off
MAP = "PuOr"  # orange and purple differ for every kind of colour vision


@dataclass(frozen=True, eq=False)
class Residual:
    """Signed, amplified difference of two pictures.

    Args:
        values: Mean absolute change of the three colours, with the sign of their sum, float32 (H, W) in [-1, 1].
        picture: The same in colours, uint8 (H, W, 3): orange darker, white unchanged, purple brighter.
        gain: Factor by which `picture` exaggerates.
        largest: Largest absolute change of any one colour value, in 8-bit steps.
    """

    values: np.ndarray
    picture: np.ndarray
    gain: int
    largest: float

    @property
    def caption(self) -> str:
        """Say how to read the picture."""
        if self.largest == 0:
            return "No pixel changed."
        return (
            f"Changes x {self.gain}: orange became darker on the whole, purple brighter, white stayed. "
            f"The largest change is {self.largest:.3g} of 255."
        )


@dataclass(frozen=True, eq=False)
class LatentChange:
    """Mean absolute change of codes, |w - w0| (Artifact-Eraser, appendix, figure 3).

    Args:
        rows: (N, rows).
        levels: (N,) by level.
    """

    rows: Tensor
    levels: dict[str, Tensor]


def residual(original: np.ndarray, counterfactual: np.ndarray) -> Residual:
    """Subtract two uint8 pictures (H, W, 3) with their sign, and choose a gain that shows the difference."""
    # Unsigned subtraction would wrap around at 256.
    return amplified(counterfactual.astype(np.int16) - original.astype(np.int16))


def amplified(difference: np.ndarray, gains: Sequence[int] = GAINS) -> Residual:
    """Draw a signed difference (H, W, 3), in 8-bit steps, with the largest gain that shows most of it."""
    # The mean of signed changes would hide that a pixel changed its colour and kept its brightness.
    sign = np.where(difference.sum(axis=2) < 0, -1, 1)
    values = (sign * np.abs(difference).mean(axis=2) / 255).astype(np.float32)
    strong = float(np.percentile(np.abs(values), COVERED)) or float(np.abs(values).max())
    gain = next((gain for gain in gains if strong * gain <= 1), 1)
    shade = np.clip(values * gain, -1, 1) / 2 + 0.5
    colours = mpl.colormaps[MAP](shade)[..., :3]
    return Residual(values, np.rint(colours * 255).astype(np.uint8), gain, float(np.abs(difference).max()))


def latent_change(start: Tensor, codes: Tensor) -> LatentChange:
    """Return by row and by level how far codes (N, rows, 512) moved."""
    rows = (codes - start).abs().mean(dim=2)
    count = rows.shape[1]
    return LatentChange(rows, {level: rows[:, levels.rows_of(level, count)].mean(dim=1) for level in levels.LEVELS})


def likeness(original: np.ndarray, other: np.ndarray) -> dict[str, float | None]:
    """Return PSNR in dB (None where no pixel differs) and SSIM in [-1, 1] of two uint8 pictures (H, W, 3)."""
    same = np.array_equal(original, other)
    psnr = None if same else float(peak_signal_noise_ratio(original, other, data_range=255))
    ssim = float(structural_similarity(original, other, channel_axis=2, data_range=255))
    return {"psnr": psnr, "ssim": ssim}
