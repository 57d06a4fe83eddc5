"""The whole way of one photo: face, inversion, search, what changed, the other detectors, and back into the photo."""

import time
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch

from backend import alignment, faces, images, made_with, verdicts
from backend.counterfactual import regions, retest, traces
from backend.counterfactual.cam import CamMap, grad_cam_or_reason
from backend.counterfactual.outcome import Search
from backend.counterfactual.search import SearchSettings, search
from backend.detectors import registry
from backend.detectors.card import Card, Detector
from backend.errors import UserError
from backend.generators import inversion
from backend.generators.inversion import Inverter
from backend.generators.refinement import Refined
from backend.generators.tuning import Tuned
from backend.progress import Job, Step, counted
from backend.runtime import MODEL_LOCK, device
from backend.views import Source, View


@dataclass(frozen=True, eq=False)
class Story:
    """Everything that is told about one photo and one detector; pictures are uint8 (H, W, 3).

    Args:
        photo: The photo.
        face_number: Which face was taken, from 1, the largest first.
        face_count: How many were found.
        problem: Why the result should not be trusted, one sentence, or None.
        aligned: The crop that the detector saw, and where it lies in the photo.
        card: The detector's card.
        search: The search, with N = 1.
        original: The crop.
        inversion: The generator's own drawing of it.
        counterfactual: The crop after the search.
        residual: Signed difference, counterfactual - original.
        residual_inversion: Signed difference, inversion - original: what the generator loses.
        cams: Grad-CAM of original and counterfactual, N = 2, towards fake.
        change: How far the codes moved.
        regions: Where the pixels changed, the most changed part of the face first.
        metrics: `psnr`, `ssim` of counterfactual and original, and the same of the inversion as `psnr_inversion`,
            `ssim_inversion`; a PSNR is None where no pixel differs.
        retest: p_fake of original and counterfactual by the detectors that were not attacked.
        pasted: The photo with the counterfactual in it.
        p_pasted: p_fake of the face found, aligned and judged anew in `pasted`; None where no face was found.
        hashes: SHA-256 of the model files used, by registry name.
        versions: Versions of the packages that matter.
        seconds: Time taken.
    """

    photo: np.ndarray
    face_number: int
    face_count: int
    problem: str | None
    aligned: alignment.AlignedFace
    card: Card
    search: Search
    original: np.ndarray
    inversion: np.ndarray
    counterfactual: np.ndarray
    residual: traces.Residual
    residual_inversion: traces.Residual
    cams: CamMap
    change: traces.LatentChange
    regions: list[regions.RegionChange]
    metrics: dict[str, float | None]
    retest: dict[str, tuple[float, float]]
    pasted: np.ndarray
    p_pasted: float | None
    hashes: dict[str, str]
    versions: dict[str, str]
    seconds: float

    @property
    def p_fake(self) -> dict[str, float]:
        """Return p_fake of the crop, of its inversion and of the counterfactual."""
        return {name: float(values[0]) for name, values in self.search.p_fake.items()}

    @property
    def flipped(self) -> bool:
        """Whether the face was called fake before and is called real after."""
        return bool(self.search.flipped[0])

    @property
    def already_real(self) -> bool:
        """Whether the face was called real to begin with, so that nothing was searched."""
        return bool(self.search.already_real[0])

    @property
    def summary(self) -> str:
        """Tell the story in one paragraph of plain words."""
        parts = []
        if self.face_count > 1:
            which = "the largest" if self.face_number == 1 else f"number {self.face_number}"
            parts.append(f"{self.face_count} faces were found; {which} was taken.")
        if self.problem:
            parts.append(self.problem)
        if self.search.refined is not None:
            parts.append(self.search.refined.summary)
        if self.search.tuned is not None:
            parts.append(self.search.tuned.summary)
        parts.append(self.search.summary)
        if not self.already_real:
            parts.append(regions.in_words(self.regions))
            parts.append(retest.in_words(self.retest))
            parts.append(self._pasted_in_words())
        return " ".join(parts)

    def record(self) -> dict[str, Any]:
        """Return what a program reads and what a saved picture carries, as plain values for JSON."""
        found = self.search
        return {
            "detector": self.card.name,
            "generator": found.generator,
            "p_fake": self.p_fake,
            "flipped": self.flipped,
            "already_real": self.already_real,
            "flipped_by_inversion": bool(found.flipped_by_inversion[0]),
            "used_log_odds": bool(found.used_log_odds[0]),
            "steps": int(found.steps[0]),
            "epsilon": found.epsilon,
            "lengths": list(found.row_lengths),
            "level": found.level,
            "composite": found.settings.composite,
            "searched": {
                "resolution": found.resolution,
                "full_size": found.full_size,
                "precision": found.precision,
                "fell_back": bool(found.fell_back[0]),
            },
            "refined": _gained(found.refined),
            "tuned": _gained(found.tuned),
            "trajectory": [round(value, 6) for value in found.trajectory[:, 0].tolist()],
            "retest": {name: {"original": a, "counterfactual": b} for name, (a, b) in self.retest.items()},
            "p_pasted": self.p_pasted,
            "metrics": self.metrics,
            "gain": self.residual.gain,
            "latent_change": {
                "rows": self.change.rows[0].tolist(),
                "levels": {level: float(values[0]) for level, values in self.change.levels.items()},
            },
            "regions": [{"region": one.region, "share": one.share, "area": one.area} for one in self.regions],
            "cam_empty": {"original": bool(self.cams.empty[0]), "counterfactual": bool(self.cams.empty[1])},
            "cam_missing": self.cams.missing,
            "face": {
                "number": self.face_number,
                "count": self.face_count,
                "box": [float(value) for value in self.aligned.face.box],
                "problem": self.problem,
                "resampled": self.aligned.resampled,
            },
            "settings": asdict(found.settings),
            "weights": self.hashes,
            "versions": self.versions,
            "seconds": self.seconds,
            "summary": self.summary,
        }

    def _pasted_in_words(self) -> str:
        if self.p_pasted is None:
            return "Put back into the photo, the face is not found again."
        call = verdicts.call(self.p_pasted, "it")
        return (
            f"Put back into the photo, the face was found and cut out anew: the detector {call} ({self.p_pasted:.2f})."
        )


def explain_photo(
    photo: np.ndarray,
    detector_name: str,
    settings: SearchSettings | None = None,
    face_number: int | None = None,
    *,
    inverter: Inverter | None = None,
) -> Job[Story]:
    """Search a counterfactual for one face of a photo and gather what there is to tell.

    Args:
        photo: uint8 (H, W, 3), RGB.
        detector_name: One of `registry.loadable()`.
        settings: Settings of the search.
        face_number: Which face, from 1, the largest first; None takes the largest.
        inverter: Generator and encoder; None takes the embedded ones.

    Raises:
        UserError: There is no such detector, no face, no model file, or a setting is out of its range.
    """
    started = time.perf_counter()
    settings = settings or SearchSettings()
    settings.check()
    total = settings.total + 3
    found = faces.find(photo)
    face = faces.choose(found, face_number)
    detector = _detector(detector_name)
    inverter = inverter or inversion.load()
    aligned = alignment.align(photo, face, inverter.template, inverter.size)
    source = Source(photo, aligned)
    view = source.view(detector.card.template, detector.card.input_size)
    outcome = yield from counted(search(inverter, detector, images.to_tensor(aligned.crop), settings, view), total)

    counterfactual = images.to_array(outcome.counterfactual)
    drawn = images.to_array(outcome.inversion)
    yield Step(total - 2, total, "What changed is measured.", outcome.counterfactual)
    cams = _cams(detector, torch.cat([outcome.original, outcome.counterfactual]), view)
    landmarks = face.landmarks @ aligned.matrix[:, :2].T + aligned.matrix[:, 2]
    drawn_likeness = traces.likeness(aligned.crop, drawn)
    yield Step(total - 1, total, "The other detectors are asked.", outcome.counterfactual)
    scores = retest.retest(outcome.original, outcome.counterfactual, detector_name, sources=source)
    yield Step(total, total, "The face is put back into the photo and looked for again.", outcome.counterfactual)
    pasted = photo.copy() if outcome.already_real[0] else alignment.paste_back(photo, counterfactual, aligned)
    return Story(
        photo=photo,
        face_number=face_number or 1,
        face_count=len(found),
        problem=faces.problem(face, photo.shape),
        aligned=aligned,
        card=detector.card,
        search=outcome,
        original=aligned.crop,
        inversion=drawn,
        counterfactual=counterfactual,
        residual=traces.residual(aligned.crop, counterfactual),
        residual_inversion=traces.residual(aligned.crop, drawn),
        cams=cams,
        change=traces.latent_change(outcome.codes_start, outcome.codes),
        regions=regions.changed_regions(aligned.crop, counterfactual, landmarks),
        metrics=traces.likeness(aligned.crop, counterfactual)
        | {f"{name}_inversion": value for name, value in drawn_likeness.items()},
        retest={name: (float(before[0]), float(after[0])) for name, (before, after) in scores.items()},
        pasted=pasted,
        p_pasted=_judge_again(pasted, face, detector, inverter),
        hashes=made_with.hashes([*inverter.entries, detector_name, *scores]),
        versions=made_with.versions(),
        seconds=time.perf_counter() - started,
    )


def _gained(done: Refined | Tuned | None) -> dict[str, float | str] | None:
    if done is None:
        return None
    gained: dict[str, float | str] = {
        "psnr_before": float(done.psnr_before[0]),
        "psnr_after": float(done.psnr_after[0]),
        "seconds": done.seconds,
    }
    return gained if isinstance(done, Refined) else gained | {"perceptual": done.perceptual}


def _detector(name: str) -> Detector:
    known = registry.loadable()
    if name not in known:
        raise UserError(f"There is no detector named {name}.", f"Choose one of: {', '.join(known)}.")
    return registry.load(name)


def _cams(detector: Detector, crops: torch.Tensor, view: View | None) -> CamMap:
    """Return the maps over crops (N, 3, H, W), also where the detector sees another crop than these."""
    if view is None:
        return grad_cam_or_reason(detector, crops.to(device()))
    found = grad_cam_or_reason(detector, view.of(crops).to(device()))
    return replace(found, maps=view.maps_back(found.maps))


def _judge_again(pasted: np.ndarray, face: faces.Face, detector: Detector, inverter: Inverter) -> float | None:
    """Find, align and judge the face again, as anyone would who is given only the photo."""
    again = faces.find_again(pasted, face)
    if again is None:
        return None
    aligned = alignment.align(pasted, again, inverter.template, inverter.size)
    with MODEL_LOCK, torch.no_grad():
        crop = images.to_tensor(aligned.crop).to(device())
        return float(detector.p_fake(verdicts.seen_by(detector.card, crop, Source(pasted, aligned)))[0])
