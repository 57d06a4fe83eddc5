"""From edited codes to the picture that a detector judges: exact, or a cheaper draft while a search runs.

StyleGAN2 holds a picture at every resolution and adds the finer ones on top (Karras et al. 2020, section 4.1). For a
step, a detector that reads 256 pixels needs only the picture of that size, unless an open row acts only on larger
ones. A draft is such a picture, and on CUDA its layers compute in half precision. What is kept is always drawn and
judged again at full size and in float32.

Two composites: `reconstruction` is the generator's own drawing, as in Artifact-Eraser; it mixes what inversion loses
with what the search changes. `transfer` adds to the photo's face only what the search changed, so that a face the
generator draws badly keeps its pixels.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from backend import runtime
from backend.alignment import DetectorView, resize_square
from backend.detectors.base import Detector
from backend.generators.inversion import Inverter
from backend.generators.stylegan2 import FeatureOffset, Partial, row_count

Composite = Literal["transfer", "reconstruction"]
COMPOSITES: tuple[Composite, ...] = get_args(Composite)
Precision = Literal["auto", "float32", "bfloat16", "float16"]
DTYPES: dict[str, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
HALVES_FROM = 256  # pixels; smaller drawings do not keep a GPU busy, so half precision would save no time


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
    if kind == "reconstruction":
        return resize_square(drawn, size).clamp(0, 1)
    return (original + resize_square(drawn - drawn_start, size)).clamp(0, 1)


def as_saved(pictures: Tensor) -> Tensor:
    """Round pictures in [0, 1] to the 8 bits in which they are saved; gradients ignore the rounding.

    The detector then judges exactly the saved pixels, and the search still has a gradient.
    """
    rounded = (pictures.detach() * 255).round() / 255
    # Only the first term has a value: the difference is zero to the last bit.
    return rounded + (pictures - pictures.detach())


@dataclass(frozen=True)
class RenderingEffort:
    """How much work a drawing is."""

    resolution: int  # side of the drawing in pixels
    dtype: torch.dtype  # of the feature maps

    @property
    def precision(self) -> str:
        return next(name for name, dtype in DTYPES.items() if dtype == self.dtype)


def draft_effort(
    inverter: Inverter, input_size: int, opened: Sequence[int], *, truncate: bool, precision: Precision
) -> RenderingEffort:
    """Return the cheapest effort that a search can use.

    Args:
        inverter: The generator.
        input_size: Side in pixels of the detector's input.
        opened: Rows that may change.
        truncate: Stop at the smallest resolution that is at least `input_size` and on which every open row acts.
        precision: Type of the layers; `auto` takes half precision on CUDA for drawings of 256 pixels and more.
    """
    resolution = inverter.size
    while truncate and resolution // 2 >= max(8, input_size) and row_count(resolution // 2) > max(opened):
        resolution //= 2
    if precision != "auto":
        return RenderingEffort(resolution, DTYPES[precision])
    target = inverter.latent_average.device
    if target.type != "cuda" or resolution < HALVES_FROM:
        return RenderingEffort(resolution, torch.float32)
    return RenderingEffort(resolution, torch.bfloat16 if runtime.fast_bfloat16(target) else torch.half)


def half_precision(target: torch.device, dtype: torch.dtype) -> AbstractContextManager[object]:
    """Let a detector compute in half precision where `dtype` asks for it, except in layers that need float32."""
    return nullcontext() if dtype == torch.float32 else torch.autocast(target.type, dtype=dtype)


@dataclass(frozen=True, eq=False)
class _Start:
    """The drawing and the picture before any change."""

    partial: Partial  # what does not depend on open rows
    drawn: Tensor  # (N, 3, R, R), unclamped
    base: Tensor  # the picture, (N, 3, R, R) in [0, 1]


@dataclass(frozen=True, eq=False)
class Judge:
    """A detector, and its crop of the faces, all of one photo; None where it sees the faces themselves."""

    detector: Detector
    view: DetectorView | None = None

    def log_odds(self, pictures: Tensor) -> Tensor:
        """Return log-odds of fake (n,) of pictures (n, 3, H, W) in [0, 1]."""
        return self.detector.logit_fake(pictures if self.view is None else self.view.of(pictures))


class Renderer:
    """Draws edited codes of several faces and asks detectors about them.

    Args:
        inverter: The generator.
        judges: Who judges the drawings.
        faces: (N, 3, H, W) in [0, 1], rounded to 8 bits.
        start: Codes before any change, (N, rows, 512).
        opened: Rows that may change.
        composite: How a drawing becomes a picture.
        effort: Work of a draft.
        offset: What the faces have beside their codes; None where codes alone describe them.
    """

    def __init__(
        self,
        inverter: Inverter,
        judges: Sequence[Judge],
        faces: Tensor,
        start: Tensor,
        opened: Sequence[int],
        composite: Composite,
        effort: RenderingEffort,
        offset: FeatureOffset | None = None,
    ) -> None:
        self.inverter, self.faces, self.composite = inverter, faces, composite
        self.judges = [Judge(judge.detector, judge.view and judge.view.to(faces.device)) for judge in judges]
        self.effort = effort
        with torch.no_grad():
            partial = inverter.begin(start, opened[0], offset=offset)
            drawn = inverter.synthesize_from(partial, start, clamp=False)
            self.exact = _Start(partial, drawn, drawn.clamp(0, 1) if composite == "reconstruction" else faces)
            self.draft = self.exact
            if self.drafts:
                if effort.dtype != torch.float32:
                    partial = inverter.begin(start, opened[0], dtype=effort.dtype, offset=offset)
                drawn = inverter.synthesize_from(partial, start, resolution=effort.resolution, clamp=False)
                self.draft = _Start(partial, drawn, resize_square(self.exact.base, effort.resolution))

    @property
    def drafts(self) -> bool:
        """Whether a draft differs from the exact picture."""
        return self.effort != RenderingEffort(self.inverter.size, torch.float32)

    def inversion(self) -> Tensor:
        """Return the generator's own drawing of the faces, as it is saved."""
        return as_saved(compose_picture("reconstruction", self.faces, self.exact.drawn, self.exact.drawn))

    def ask(self, pictures: Tensor) -> Tensor:
        """Return the judges' log-odds of fake (n, judges) of pictures (n, 3, H, W) in [0, 1]."""
        return torch.stack([judge.log_odds(pictures) for judge in self.judges], dim=1)

    def draw(self, rows: Sequence[Tensor], chosen: Tensor) -> tuple[Tensor, Tensor]:
        """Draw codes as they would be saved, and ask the judges.

        Args:
            rows: The codes, one tensor (n, 512) a row.
            chosen: Which faces they belong to, (n,).

        Returns:
            Pictures (n, 3, H, W) in [0, 1], and log-odds of fake (n, judges).
        """
        drawn = self.inverter.synthesize_from(self._partial(self.exact, chosen), rows, clamp=False)
        composed = compose_picture(self.composite, self.faces[chosen], drawn, self.exact.drawn[chosen])
        picture = as_saved(composed).contiguous(memory_format=torch.channels_last)  # faster convolutions
        return picture, self.ask(picture)

    def sketch(self, rows: Sequence[Tensor], chosen: Tensor) -> tuple[Tensor, Tensor]:
        """Draw a draft of codes, and ask the judges; arguments as for `draw`.

        The change that the codes make at the draft's size is added to the resized exact start, so that a search begins
        with the same picture as it would without drafts.

        Returns:
            Drafts (n, 3, R, R) in [0, 1], not rounded, and log-odds of fake (n, judges).
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
