"""From edited codes to the picture that a detector judges: exactly, or as a cheaper draft while a search is under way.

StyleGAN2 holds a picture at every resolution and adds the finer ones on top (Karras et al. 2020, section 4.1). A
detector that reads 256 pixels needs no more than that picture for a step, provided that no open row is read only
beyond it. A draft is such a picture, and on CUDA its layers compute in half precision; what is kept is always drawn and
judged again at full size and in float32.

Two composites: `reconstruction` is the generator's own drawing, as in Artifact-Eraser; it mixes what inversion loses
with what the search changes. `transfer` adds to the photo's face only what the search changed, so that a face the
generator draws badly keeps its pixels.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from backend.alignment import DetectorView, resize_square
from backend.detectors.base import Detector
from backend.generators.inversion import Inverter
from backend.generators.stylegan2 import Partial, row_count

Composite = Literal["transfer", "reconstruction"]

COMPOSITES: tuple[Composite, ...] = ("transfer", "reconstruction")


def compose_picture(kind: Composite, original: Tensor, drawn: Tensor, drawn_start: Tensor) -> Tensor:
    """Return the counterfactual picture before it is rounded to 8 bits.

    Args:
        kind: `transfer`: clamp(original + drawn - drawn_start); `reconstruction`: clamp(drawn).
        original: The face (N, 3, H, W) in [0, 1].
        drawn: What the generator draws from the edited codes, (N, 3, S, S), unclamped.
        drawn_start: What it drew from the codes before the search, (N, 3, S, S), unclamped.

    Returns:
        (N, 3, H, W) in [0, 1].
    """
    size = original.shape[-1]
    picture = (
        resize_square(drawn, size) if kind == "reconstruction" else original + resize_square(drawn - drawn_start, size)
    )
    return picture.clamp(0, 1)


def as_saved(pictures: Tensor) -> Tensor:
    """Round pictures in [0, 1] to the 8 bits in which they are saved; gradients pass as if they were not rounded.

    A detector then judges exactly the saved pixels while the search still sees a slope.
    """
    rounded = (pictures.detach() * 255).round() / 255
    # Only the first term has a value: the difference is zero to the last bit.
    return rounded + (pictures - pictures.detach())


Precision = Literal["auto", "float32", "bfloat16", "float16"]

DTYPES: dict[str, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

HALVES_FROM = 256  # pixels; a smaller drawing keeps no GPU busy, so halves would save nothing


@dataclass(frozen=True)
class RenderingEffort:
    """How much work a drawing is.

    Args:
        resolution: Side of the drawing in pixels.
        dtype: Type of the feature maps.
    """

    resolution: int
    dtype: torch.dtype

    @property
    def precision(self) -> str:
        """Return the name of the type."""
        return next(name for name, dtype in DTYPES.items() if dtype == self.dtype)


def draft_effort(
    inverter: Inverter, input_size: int, opened: Sequence[int], *, truncate: bool, precision: Precision
) -> RenderingEffort:
    """Return the least work with which a search can be made.

    Args:
        inverter: The generator.
        input_size: Side in pixels of what the detector reads.
        opened: Rows that may change.
        truncate: Stop at the smallest resolution that is at least `input_size` and for which every open row is read.
        precision: Type of the layers; `auto` takes halves on CUDA for drawings of 256 pixels and more.
    """
    resolution = inverter.size
    while truncate and resolution // 2 >= max(8, input_size) and row_count(resolution // 2) > max(opened):
        resolution //= 2
    if precision != "auto":
        return RenderingEffort(resolution, DTYPES[precision])
    target = inverter.latent_average.device
    if target.type != "cuda" or resolution < HALVES_FROM:
        return RenderingEffort(resolution, torch.float32)
    # Older cards compute bfloat16 slowly, in software.
    return RenderingEffort(
        resolution, torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.half
    )


def half_precision(target: torch.device, dtype: torch.dtype) -> AbstractContextManager[object]:
    """Let a detector compute in halves, where they are asked for, except for what needs float32."""
    return nullcontext() if dtype == torch.float32 else torch.autocast(target.type, dtype=dtype)


@dataclass(frozen=True, eq=False)
class _Start:
    """A drawing before any change.

    Args:
        partial: What does not depend on open rows.
        drawn: The whole, (N, 3, R, R), unclamped.
        base: The picture before any change, (N, 3, R, R) in [0, 1].
    """

    partial: Partial
    drawn: Tensor
    base: Tensor


class Renderer:
    """Draws edited codes of several faces and asks the detector about them.

    Args:
        inverter: Draws.
        detector: Is asked.
        faces: (N, 3, H, W) in [0, 1], rounded to 8 bits.
        start: Codes before any change, (N, rows, 512).
        opened: Rows that may change.
        composite: How a drawing becomes a picture.
        view: What the detector sees of pictures, of one photo; None where it sees the pictures themselves.
        effort: Work of a draft.
    """

    def __init__(
        self,
        inverter: Inverter,
        detector: Detector,
        faces: Tensor,
        start: Tensor,
        opened: Sequence[int],
        composite: Composite,
        view: DetectorView | None,
        effort: RenderingEffort,
    ) -> None:
        self.inverter, self.detector, self.faces, self.composite = inverter, detector, faces, composite
        self.view = None if view is None else view.to(faces.device)
        self.effort = effort
        with torch.no_grad():
            partial = inverter.begin(start, opened[0])
            drawn = inverter.synthesize_from(partial, start, clamp=False)
            own = composite == "reconstruction"
            self.exact = _Start(partial, drawn, drawn.clamp(0, 1) if own else faces)
            self.draft = self.exact
            if self.drafts:
                rough = (
                    partial if effort.dtype == torch.float32 else inverter.begin(start, opened[0], dtype=effort.dtype)
                )
                small = inverter.synthesize_from(rough, start, resolution=effort.resolution, clamp=False)
                self.draft = _Start(rough, small, resize_square(self.exact.base, effort.resolution))

    @property
    def drafts(self) -> bool:
        """Whether a draft differs from the exact picture."""
        return self.effort != RenderingEffort(self.inverter.size, torch.float32)

    def inversion(self) -> Tensor:
        """Return the generator's own drawing of the faces, as it is saved."""
        return as_saved(compose_picture("reconstruction", self.faces, self.exact.drawn, self.exact.drawn))

    def ask(self, pictures: Tensor) -> Tensor:
        """Return the detector's log-odds of fake (n,) of pictures (n, 3, H, W) in [0, 1]."""
        return self.detector.logit_fake(pictures if self.view is None else self.view.of(pictures))

    def draw(self, rows: Sequence[Tensor], chosen: Tensor) -> tuple[Tensor, Tensor]:
        """Draw codes as they would be saved, and ask the detector.

        Args:
            rows: The codes, one tensor (n, 512) a row.
            chosen: Which faces they belong to, (n,).

        Returns:
            Pictures (n, 3, H, W) in [0, 1], and log-odds of fake (n,).
        """
        drawn = self.inverter.synthesize_from(self._partial(self.exact, chosen), rows, clamp=False)
        composed = compose_picture(self.composite, self.faces[chosen], drawn, self.exact.drawn[chosen])
        picture = as_saved(composed).contiguous(memory_format=torch.channels_last)  # faster convolutions
        return picture, self.ask(picture)

    def sketch(self, rows: Sequence[Tensor], chosen: Tensor) -> tuple[Tensor, Tensor]:
        """Draw a draft of codes, and ask the detector; arguments as for `draw`.

        What the codes change at the draft's size is added to the start as it is at full size, so that a search begins
        with the picture that it would begin with otherwise.

        Returns:
            Drafts (n, 3, R, R) in [0, 1], not rounded, and log-odds of fake (n,).
        """
        start, effort = self.draft, self.effort
        partial = self._partial(start, chosen)
        drawn = self.inverter.synthesize_from(partial, rows, resolution=effort.resolution, clamp=False)
        picture = (start.base[chosen] + drawn - start.drawn[chosen]).clamp(0, 1)
        picture = picture.contiguous(memory_format=torch.channels_last)
        with half_precision(picture.device, effort.dtype):
            return picture, self.ask(picture).float()

    def _partial(self, start: _Start, chosen: Tensor) -> Partial:
        return start.partial if len(chosen) == len(self.faces) else start.partial.select(chosen)
