"""Explain one face of a photo: find it, cut it out, explain it, name the places, draw the map, and how long that takes.

Maps are drawn in colours that every kind of colour vision tells apart.
"""

import functools
import io
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from backend import images, provenance, weights
from backend.alignment import LocatedFace
from backend.attacks.nes import NESSettings
from backend.detectors import registry as detectors_registry
from backend.detectors.predict import BatchedDetector
from backend.explain.base import EXPLAINERS
from backend.explain.deletion import CurveSettings
from backend.explain.explanation import NAMED, ExplainSettings, Explanation, attack_passes, explain, map_variants
from backend.explain.segments import places_in_words, rank_scores, segment_parts
from backend.explain.sufficiency import SufficiencySettings
from backend.progress import Job
from backend.provenance import FaceResult
from backend.runtime import MODEL_LOCK

if TYPE_CHECKING:
    from backend.counterfactual.changes import Residual
    from backend.explain.deletion import Curves
    from backend.explain.sufficiency import Sufficiency


SEQUENTIAL = "cividis"

DIVERGING = "PuOr"  # orange against, white nothing, purple for

OPACITY = 0.6

SMALL_GAINS = (1000, 500, 200)  # for changes of less than one of 255 steps

NUMBER_HEIGHT = 0.06  # height of a number in a picture, in sides of it

OUTLINE, UNDERLINE = (255, 255, 255), (0, 0, 0)  # white with a black edge shows on every picture


def relative_map(explanation: Explanation) -> np.ndarray:
    """Put a map on the one scale that all maps are drawn on.

    Returns:
        float32 (H, W): in [-1, 1] for signed maps, divided by the largest absolute value; in [0, 1] for others, from
        the least value to the largest; all 0 where there is nothing to show.
    """
    values = explanation.saliency.numpy().astype(np.float32)
    if explanation.degenerate:
        return np.zeros_like(values)
    if explanation.signed:
        largest = float(np.abs(values).max())
        return values / largest if largest else values
    low, high = float(values.min()), float(values.max())
    return (values - low) / (high - low) if high > low else np.zeros_like(values)


def colour_map(explanation: Explanation) -> np.ndarray:
    """Draw a map in colours, uint8 (H, W, 3)."""
    return np.rint(_map_colours(relative_map(explanation), signed=explanation.signed) * 255).astype(np.uint8)


def overlay_map(picture: np.ndarray, explanation: Explanation, opacity: float = OPACITY) -> np.ndarray:
    """Lay a map over a picture; where a signed map is 0, the picture stays as it is.

    Args:
        picture: uint8 (H, W, 3) of any size; the map is enlarged to it.
        explanation: The map.
        opacity: Of the map where it is strongest, in [0, 1].

    Returns:
        uint8 (H, W, 3); the picture itself where there is nothing to show.
    """
    if explanation.degenerate:
        return picture.copy()
    values = _enlarge_map(relative_map(explanation), picture.shape[:2])
    strength = np.abs(values) if explanation.signed else np.ones_like(values)
    share = (opacity * strength)[..., None]
    colours = _map_colours(values, signed=explanation.signed) * 255
    return np.rint((1 - share) * picture + share * colours).astype(np.uint8)


def outline_segments(picture: np.ndarray, labels: Tensor, segments: Sequence[int]) -> np.ndarray:
    """Outline segments in a picture, and number them from 1 in the order given.

    Args:
        picture: uint8 (H, W, 3) of any size.
        labels: Segment of every pixel (h, w).
        segments: Which to outline.

    Returns:
        uint8 (H, W, 3).
    """
    from skimage.segmentation import find_boundaries

    height, width = picture.shape[:2]
    chosen = np.isin(labels.numpy(), list(segments)) * (labels.numpy() + 1)
    sized = np.asarray(Image.fromarray(chosen.astype(np.int32)).resize((width, height), Image.Resampling.NEAREST))
    drawn = picture.copy()
    drawn[find_boundaries(sized, mode="thick")] = UNDERLINE
    drawn[find_boundaries(sized, mode="inner")] = OUTLINE
    return _number_regions(drawn, [sized == segment + 1 for segment in segments])


def _number_regions(picture: np.ndarray, regions: Sequence[np.ndarray]) -> np.ndarray:
    """Write 1, 2, ... into regions (H, W), each where it is farthest from the region's edge."""
    from scipy.ndimage import distance_transform_edt

    drawn = Image.fromarray(picture)
    pen, size = ImageDraw.Draw(drawn), NUMBER_HEIGHT * picture.shape[0]
    for number, region in enumerate(regions, start=1):
        inside = distance_transform_edt(np.pad(region, 1))[1:-1, 1:-1]
        farthest = np.argwhere(inside == inside.max())
        row, column = farthest[len(farthest) // 2]
        pen.text(
            (int(column), int(row)),
            str(number),
            fill=OUTLINE,
            font=ImageFont.load_default(max(8.0, size)),
            anchor="mm",
            stroke_width=max(1, round(size / 8)),
            stroke_fill=UNDERLINE,
        )
    return np.asarray(drawn)


def draw_scale(*, signed: bool, width: int = 256, height: int = 16) -> np.ndarray:
    """Draw the scale of `relative` from left to right, uint8 (height, width, 3)."""
    values = np.linspace(-1.0 if signed else 0.0, 1.0, width, dtype=np.float32)
    return np.rint(np.repeat(_map_colours(values[None], signed=signed), height, axis=0) * 255).astype(np.uint8)


def scale_words(explanation: Explanation) -> str:
    """Say in one sentence what the colours mean, with the numbers at both ends."""
    if explanation.degenerate:
        return "There is no map to show."
    low, high = float(explanation.saliency.min()), float(explanation.saliency.max())
    if explanation.signed:
        largest = max(abs(low), abs(high))
        towards = explanation.settings.towards
        other = "real" if towards == "fake" else "fake"
        return (
            f"Purple speaks for {towards}, orange for {other}, unchanged parts for neither; full colour is "
            f"{largest:.2g} in this map's own units."
        )
    return f"Dark blue is this map's least value ({low:.2g}), yellow its largest ({high:.2g}), in its own units."


def reference_difference(face: Tensor, explanation: Explanation) -> "Residual | None":
    """Return what the adversarial image changes, amplified, with the gain; None without one.

    Args:
        face: (1, 3, H, W) in [0, 1].
        explanation: Holds the reference.
    """
    if explanation.reference != "adversarial" or explanation.reference_image is None:
        return None
    from backend.counterfactual.changes import (
        RESIDUAL_GAINS,  # imports what draws maps
        amplify_difference,
    )

    # Not rounded to 8 bits: an attack may change less than one step of them.
    change = 255 * (explanation.reference_image - face.cpu())[0].permute(1, 2, 0).numpy()
    return amplify_difference(change, (*SMALL_GAINS, *RESIDUAL_GAINS))


def _map_colours(values: np.ndarray, *, signed: bool) -> np.ndarray:
    import matplotlib as mpl  # takes a while to import

    found: np.ndarray = mpl.colormaps[DIVERGING](values / 2 + 0.5) if signed else mpl.colormaps[SEQUENTIAL](values)
    return found[..., :3]


def _enlarge_map(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    if values.shape == size:
        return values
    return np.asarray(Image.fromarray(values).resize((size[1], size[0]), Image.Resampling.BILINEAR))


ENLARGED = 4  # how much larger than the crop its pictures are, so that the mark covers little


@dataclass(frozen=True, eq=False, kw_only=True)
class ExplainedPhoto(FaceResult):
    """An explanation of a face in a photo.

    Args:
        explanation: The map.
        parts: Names of the parts of the face that each segment falls in.
        proof: The test of the map, where it was asked for and there was a map of the verdict that the detector gave.
        curves: The deletion and insertion curves that go with the test.
    """

    explanation: Explanation
    parts: list[tuple[str, ...]]
    proof: "Sufficiency | None"
    curves: "Curves | None" = None

    @property
    def top(self) -> list[int]:
        """Return the segments that speak most for the verdict, the strongest first."""
        scores = self.explanation.segment_scores
        if self.explanation.degenerate:
            return []
        best = rank_scores(scores)[:NAMED].tolist()
        return [segment for segment in best if scores[segment] > 0 or not self.explanation.signed]

    @property
    def summary(self) -> str:
        """Tell in one paragraph of plain words what was done and found."""
        parts = [self.facts.summary] if self.facts.summary else []
        parts.append(self.explanation.summary)
        if self.top:
            parts.append(f"They lie here: {places_in_words(self.top, self.parts)}.")
        if self.proof is not None:
            parts.append(self.proof.summary)
        return " ".join(parts)

    def record(self) -> dict[str, Any]:
        """Return what a program reads and what a saved picture carries, as plain values for JSON."""
        scores = self.explanation.segment_scores
        return (
            self.base_record()
            | self.explanation.record()
            | {
                "regions": [
                    {"segment": one, "score": float(scores[one]), "parts": list(self.parts[one])} for one in self.top
                ],
                "proof": None if self.proof is None else _sufficiency_record(self.proof),
                "curves": None if self.curves is None else _curves_record(self.curves),
                "scale": scale_words(self.explanation),
                "summary": self.summary,
            }
        )

    def drawings(self) -> dict[str, np.ndarray]:
        """Return the pictures of the result, uint8 (H, W, 3), without a mark."""
        side = ENLARGED * self.aligned.crop.shape[0]
        crop = np.asarray(Image.fromarray(self.aligned.crop).resize((side, side), Image.Resampling.LANCZOS))
        made = self.explanation
        laid = overlay_map(crop, made)
        drawn = {"overlay": outline_segments(laid, made.labels, self.top)}
        if not made.degenerate:
            drawn["map_picture"] = colour_map(made)
        if made.reference_image is not None:
            drawn["reference"] = images.to_array(made.reference_image)
        if (difference := self.difference) is not None:
            drawn["difference"] = difference.picture
        return drawn

    @cached_property
    def difference(self) -> "Residual | None":
        """What the adversarial image changes, amplified; None without one."""
        return reference_difference(images.to_tensor(self.aligned.crop), self.explanation)


def explain_photo(
    located: LocatedFace,
    detector_name: str,
    settings: ExplainSettings | None = None,
    proof: "SufficiencySettings | None" = None,
) -> Job[ExplainedPhoto]:
    """Explain what a detector says of one face of a photo.

    Args:
        located: The face.
        detector_name: A detector with an entry in the registry.
        settings: Settings of the explanation.
        proof: Test the map with these settings, and follow the score along it; None leaves both out.

    Yields:
        The steps of the explanation, and then those of the test.

    Raises:
        UserError: There is no such detector, no model file, or a setting is out of its range.
    """
    settings = settings or ExplainSettings()
    detector = detectors_registry.load(detector_name)
    aligned = located.aligned(detector.card.template, detector.card.input_size)
    crop = images.to_tensor(aligned.crop)
    made = yield from explain(crop, detector, settings)
    tested = followed = None
    # The test moves the verdict that the detector gave; a map of the other one has another meaning.
    if proof is not None and not made.degenerate and made.explains_verdict:
        from backend.explain.deletion import deletion_curves
        from backend.explain.sufficiency import measure_sufficiency

        tested = yield from measure_sufficiency(crop, detector, made.saliency, made.labels, proof)
        followed = yield from deletion_curves(crop, detector, made.saliency)
    return ExplainedPhoto(
        facts=located.facts,
        aligned=aligned,
        weights=weights.model_hashes([made.detector]),
        seconds=made.seconds,
        explanation=made,
        parts=segment_parts(made.labels, aligned.landmarks),
        proof=tested,
        curves=followed,
    )


def _sufficiency_record(proof: "Sufficiency") -> dict[str, Any]:
    """Return sufficiency by number of segments, and that of random ones; None where there is no result."""
    controls = proof.random_mean if proof.settings.draws else proof.values * float("nan")
    pairs = zip(proof.settings.tops, proof.values.tolist(), controls.tolist(), strict=True)
    return {
        "sufficiency": [
            {"k": k, "value": _number_or_none(value), "random": _number_or_none(random)} for k, value, random in pairs
        ],
        "predicted": proof.predicted,
        "attack": proof.attack,
        "settings": asdict(proof.settings),
        "images": proof.image_count,
        "calls": proof.call_count,
        "seconds": proof.seconds,
        "summary": proof.summary,
    }


def _curves_record(curves: "Curves") -> dict[str, Any]:
    """Return the areas and the points of both curves."""
    return {
        "deletion_auc": curves.deletion_auc,
        "insertion_auc": curves.insertion_auc,
        "fractions": curves.fractions.tolist(),
        "deletion": curves.deletion.tolist(),
        "insertion": curves.insertion.tolist(),
        "fill": curves.settings.fill,
        "images": curves.image_count,
        "calls": curves.call_count,
        "seconds": curves.seconds,
        "summary": curves.summary,
    }


def _number_or_none(value: float) -> float | None:
    return value if value == value else None  # noqa: PLR0124 - only a missing value differs from itself


def explanation_files(made: ExplainedPhoto, record: dict[str, Any]) -> dict[str, bytes]:
    """Return the files by name; every picture but the crop, which the app did not make, carries mark and record."""
    saved = io.BytesIO()
    np.save(saved, made.explanation.saliency.numpy())
    drawn = {f"{name}.png": provenance.marked_png(picture, record) for name, picture in made.drawings().items()}
    return {"map.npy": saved.getvalue(), "crop.png": images.encode_png(made.aligned.crop), **drawn}


PROBE_PICTURES = 16  # pictures

WITH_GRADIENT = 3  # forward passes that one forward and backward pass costs

OVERHEAD = 0.5  # seconds that the detector does not work


def expected_seconds(detector: str, settings: ExplainSettings, proof: SufficiencySettings | None = None) -> float:
    """Return about how many seconds a map takes, and its test and curves with it where there is one."""
    passes = float(EXPLAINERS[settings.method].pictures(settings.preset))
    if settings.reference == "adversarial" and EXPLAINERS[settings.method].references:
        passes += attack_passes(settings)
    if proof is not None:
        passes += _test_passes(proof) + 2 * (CurveSettings().steps + 1)
    return OVERHEAD + passes * seconds_a_picture(detector)


def expected_comparison_seconds(detector: str, settings: ExplainSettings, proof: SufficiencySettings) -> float:
    """Return about how many seconds all maps take, which share one attack, with one test each."""
    kinds = [replace(settings, method=name) for name, _ in map_variants()]
    passes = sum(EXPLAINERS[one.method].pictures(one.preset) + _test_passes(proof) for one in kinds)
    return OVERHEAD * len(kinds) + (passes + attack_passes(settings)) * seconds_a_picture(detector)


def _test_passes(proof: SufficiencySettings) -> float:
    """Return the passes of all attacks of a test; few of them, in so little of the face, end before their time."""
    attacks = len(proof.tops) * (1 + proof.draws)
    if isinstance(proof.attack, NESSettings):
        return attacks * proof.attack.iterations * (2 * proof.attack.probes + 1)
    return attacks * proof.attack.steps * WITH_GRADIENT


@functools.lru_cache(maxsize=32)
def seconds_a_picture(detector: str) -> float:
    """Measure one forward pass of a batch, once a detector and process."""
    judge = BatchedDetector(detectors_registry.load(detector))
    size = detectors_registry.card(detector).input_size
    faces = torch.rand(PROBE_PICTURES, 3, size, size, generator=torch.Generator().manual_seed(0)).to(judge.device)
    with MODEL_LOCK:  # waiting for another visitor's job is not measured
        judge.logit_fake(faces[:1])
        started = time.perf_counter()
        judge.logit_fake(faces)
        return (time.perf_counter() - started) / PROBE_PICTURES
