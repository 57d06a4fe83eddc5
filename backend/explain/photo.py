"""Explain one face of a photo: the map, the parts of the face it names, drawings and files, and the expected time.

Maps are drawn in colours that every kind of colour vision tells apart.
"""

import functools
import io
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from backend import images, provenance, weights
from backend.alignment import LocatedFace
from backend.attacks.nes import NESSettings
from backend.counterfactual.changes import RESIDUAL_GAINS, Residual, amplify_difference
from backend.detectors import registry as detectors_registry
from backend.detectors.base import DIRECTION_WORDS
from backend.detectors.inference import WORTH_COMPILING, BatchedDetector, compiled_copy
from backend.explain.base import EXPLAINERS, stretched
from backend.explain.deletion import Curves, CurveSettings, deletion_curves
from backend.explain.explanation import ExplainSettings, Explanation, attack_passes, explain, map_variants
from backend.explain.segments import places_in_words, segment_parts
from backend.explain.sufficiency import Sufficiency, SufficiencySettings, measure_sufficiency
from backend.progress import Job
from backend.provenance import FaceResult
from backend.runtime import MODEL_LOCK

SEQUENTIAL = "cividis"
DIVERGING = "PuOr"  # orange against, white nothing, purple for
OPACITY = 0.6
SMALL_GAINS = (1000, 500, 200)  # for changes of less than one of 255 steps
NUMBER_HEIGHT = 0.06  # of a number in a picture, as a share of the picture's height
OUTLINE, UNDERLINE = (255, 255, 255), (0, 0, 0)  # white with a black edge shows on every picture
ENLARGED = 4  # how much larger than the crop its pictures are, so that the mark covers little
PROBE_PICTURES = WORTH_COMPILING - 1  # in the batches that measure the detector's speed, so few that none compiles
PROBES = 2  # such batches; the faster counts
WITH_GRADIENT = 3  # forward passes that one forward and backward pass costs
OVERHEAD = 0.5  # seconds in which the detector does not work


def relative_map(explanation: Explanation) -> np.ndarray:
    """Scale a map as all maps are drawn.

    Returns:
        float32 (H, W): signed maps in [-1, 1], divided by the largest absolute value; others in [0, 1] from the least
        value to the largest; all 0 where there is nothing to show.
    """
    values = explanation.saliency.numpy().astype(np.float32)
    if explanation.degenerate:
        return np.zeros_like(values)
    if explanation.signed:
        largest = float(np.abs(values).max())
        return values / largest if largest else values
    return stretched(torch.from_numpy(values)).numpy()


def colour_map(explanation: Explanation) -> np.ndarray:
    """Draw a map in colours, uint8 (H, W, 3)."""
    return np.rint(_map_colours(relative_map(explanation), signed=explanation.signed) * 255).astype(np.uint8)


def overlay_map(picture: np.ndarray, explanation: Explanation, opacity: float = OPACITY) -> np.ndarray:
    """Lay a map over a picture; where a signed map is 0, the picture stays as it is.

    Args:
        picture: uint8 (H, W, 3) of any size; the map is enlarged to it.
        explanation: The map.
        opacity: Opacity of the map where it is strongest, in [0, 1].

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
    """Outline `segments` of `labels` (h, w) in a picture, and number them from 1 in the order given.

    The picture is uint8 (H, W, 3) of any size, and so is the result.
    """
    from skimage.segmentation import find_boundaries

    height, width = picture.shape[:2]
    numbers = np.isin(labels.numpy(), list(segments)) * (labels.numpy() + 1)
    regions = np.asarray(Image.fromarray(numbers.astype(np.int32)).resize((width, height), Image.Resampling.NEAREST))
    outlined = picture.copy()
    outlined[find_boundaries(regions, mode="thick")] = UNDERLINE
    outlined[find_boundaries(regions, mode="inner")] = OUTLINE
    return _number_regions(outlined, [regions == segment + 1 for segment in segments])


def _number_regions(picture: np.ndarray, regions: Sequence[np.ndarray]) -> np.ndarray:
    """Write 1, 2, ... into regions (H, W), each where it is farthest from the region's edge."""
    from scipy.ndimage import distance_transform_edt

    numbered = Image.fromarray(picture)
    pen, size = ImageDraw.Draw(numbered), NUMBER_HEIGHT * picture.shape[0]
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
    return np.asarray(numbered)


def draw_scale(*, signed: bool, width: int = 256, height: int = 16) -> np.ndarray:
    """Draw the scale of `relative_map` from left to right, uint8 (height, width, 3)."""
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
            f"Purple speaks {DIRECTION_WORDS[towards]}, orange {DIRECTION_WORDS[other]}, unchanged parts for neither; "
            f"full colour is {largest:.2g} in this map's own units."
        )
    return f"Dark blue is this map's least value ({low:.2g}), yellow its largest ({high:.2g}), in its own units."


def reference_difference(face: Tensor, explanation: Explanation) -> Residual | None:
    """Amplify what the adversarial image changes in a face (1, 3, H, W) in [0, 1]; None without such an image."""
    if explanation.reference != "adversarial" or explanation.reference_image is None:
        return None
    # Not rounded to 8 bits: an attack may change less than one step of them.
    change = 255 * (explanation.reference_image - face.cpu())[0].permute(1, 2, 0).numpy()
    return amplify_difference(change, (*SMALL_GAINS, *RESIDUAL_GAINS))


def _map_colours(values: np.ndarray, *, signed: bool) -> np.ndarray:
    import matplotlib as mpl  # takes a while to import

    colours: np.ndarray = mpl.colormaps[DIVERGING](values / 2 + 0.5) if signed else mpl.colormaps[SEQUENTIAL](values)
    return colours[..., :3]


def _enlarge_map(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    if values.shape == size:
        return values
    return np.asarray(Image.fromarray(values).resize((size[1], size[0]), Image.Resampling.BILINEAR))


@dataclass(frozen=True, eq=False, kw_only=True)
class ExplainedPhoto(FaceResult):
    """An explanation of a face in a photo.

    Args:
        parts: Names of the parts of the face that each segment lies in.
        sufficiency: The test of the map, if requested and if the map explains the verdict that the detector gave.
        curves: The deletion and insertion curves that go with the test.
    """

    explanation: Explanation
    parts: list[tuple[str, ...]]
    sufficiency: Sufficiency | None
    curves: Curves | None = None

    @property
    def summary(self) -> str:
        parts = [self.facts.summary] if self.facts.summary else []
        parts.append(self.explanation.summary)
        if top := self.explanation.top_segments:
            parts.append(f"They lie here: {places_in_words(top, self.parts)}.")
        if self.sufficiency is not None:
            parts.append(self.sufficiency.summary)
        return " ".join(parts)

    def record(self) -> dict[str, Any]:
        """Return what JSON output and saved pictures hold, as plain values."""
        scores = self.explanation.segment_scores
        return (
            self.base_record()
            | self.explanation.record()
            | {
                "regions": [
                    {"segment": segment, "score": float(scores[segment]), "parts": list(self.parts[segment])}
                    for segment in self.explanation.top_segments
                ],
                "proof": self.sufficiency and self.sufficiency.record(),
                "curves": self.curves and self.curves.record(),
                "scale": scale_words(self.explanation),
                "summary": self.summary,
            }
        )

    def drawings(self) -> dict[str, np.ndarray]:
        """Return the pictures of the result, uint8 (H, W, 3), without a mark."""
        side = ENLARGED * self.aligned.crop.shape[0]
        crop = np.asarray(Image.fromarray(self.aligned.crop).resize((side, side), Image.Resampling.LANCZOS))
        explanation = self.explanation
        overlay = overlay_map(crop, explanation)
        pictures = {"overlay": outline_segments(overlay, explanation.labels, explanation.top_segments)}
        if not explanation.degenerate:
            pictures["map_picture"] = colour_map(explanation)
        if explanation.reference_image is not None:
            pictures["reference"] = images.to_array(explanation.reference_image)
        if self.difference is not None:
            pictures["difference"] = self.difference.picture
        return pictures

    @cached_property
    def difference(self) -> Residual | None:
        """What the adversarial image changes, amplified; None without one."""
        return reference_difference(images.to_tensor(self.aligned.crop), self.explanation)


def explain_photo(
    located: LocatedFace,
    detector_name: str,
    settings: ExplainSettings | None = None,
    sufficiency: SufficiencySettings | None = None,
) -> Job[ExplainedPhoto]:
    """Explain what a detector says of one face of a photo, and test the map if `sufficiency` is given.

    Raises:
        UserError: There is no such detector, or its file is missing.
    """
    settings = settings or ExplainSettings()
    detector = detectors_registry.load(detector_name)
    aligned = located.aligned(detector.card.template, detector.card.input_size)
    crop = images.to_tensor(aligned.crop)
    explanation = yield from explain(crop, detector, settings)
    test = curves = None
    # The test changes the verdict that the detector gave; a map of the other one has another meaning.
    if sufficiency is not None and not explanation.degenerate and explanation.explains_verdict:
        test = yield from measure_sufficiency(crop, detector, explanation.saliency, explanation.labels, sufficiency)
        curves = yield from deletion_curves(crop, detector, explanation.saliency)
    return ExplainedPhoto(
        facts=located.facts,
        aligned=aligned,
        weights=weights.model_hashes([explanation.detector]),
        seconds=explanation.seconds,
        explanation=explanation,
        parts=segment_parts(explanation.labels, aligned.landmarks),
        sufficiency=test,
        curves=curves,
    )


def explanation_files(explained: ExplainedPhoto, record: dict[str, Any]) -> dict[str, bytes]:
    """Return the files by name; pictures carry mark and record, except the crop, which the app did not make."""
    array = io.BytesIO()
    np.save(array, explained.explanation.saliency.numpy())
    pictures = {f"{name}.png": provenance.marked_png(picture, record) for name, picture in explained.drawings().items()}
    return {"map.npy": array.getvalue(), "crop.png": images.encode_png(explained.aligned.crop), **pictures}


def expected_seconds(detector: str, settings: ExplainSettings, sufficiency: SufficiencySettings | None = None) -> float:
    """Estimate the seconds of a map, with its test and curves where there is a test."""
    explainer = EXPLAINERS[settings.method]
    passes = float(explainer.pictures(settings.preset))
    if settings.reference == "adversarial" and explainer.references:
        passes += attack_passes(settings)
    if sufficiency is not None:
        passes += _test_passes(sufficiency) + 2 * (CurveSettings.steps + 1)
    return OVERHEAD + passes * seconds_a_picture(detector)


def expected_comparison_seconds(detector: str, settings: ExplainSettings, sufficiency: SufficiencySettings) -> float:
    """Estimate the seconds of all maps, which share one attack, with one test each."""
    costs = [EXPLAINERS[name].pictures(settings.preset) + _test_passes(sufficiency) for name, _ in map_variants()]
    return OVERHEAD * len(costs) + (sum(costs) + attack_passes(settings)) * seconds_a_picture(detector)


def _test_passes(settings: SufficiencySettings) -> float:
    """Return the passes of all attacks of a test; few of them, in so little of the face, stop early."""
    attacks = len(settings.tops) * (1 + settings.draws)
    if isinstance(settings.attack, NESSettings):
        return attacks * settings.attack.iterations * (2 * settings.attack.probes + 1)
    return attacks * settings.attack.steps * WITH_GRADIENT


def seconds_a_picture(detector: str) -> float:
    """Return the seconds of one forward pass per picture, measured once for each detector and for each form of it."""
    return _measured_seconds(detector, compiled_copy(detectors_registry.load(detector)) is not None)


@functools.lru_cache(maxsize=32)
def _measured_seconds(detector: str, compiled: bool) -> float:  # noqa: ARG001, FBT001 - measured again once compiled
    judge = BatchedDetector(detectors_registry.load(detector))
    size = detectors_registry.card(detector).input_size
    faces = torch.rand(PROBE_PICTURES, 3, size, size, generator=torch.Generator().manual_seed(0)).to(judge.device)
    seconds = []
    with MODEL_LOCK:  # waiting for another visitor's job is not measured
        for _ in range(PROBES):
            started = time.perf_counter()
            judge.logit_fake(faces)
            seconds.append((time.perf_counter() - started) / PROBE_PICTURES)
    return min(seconds)
