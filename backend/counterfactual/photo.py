"""The counterfactual of one photo: face, inversion, search, what changed, the re-test, and back into the photo.

`CounterfactualBundle` is its stored form: what the app shows, keeps for its examples and hands out as a zip.
"""

import json
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from backend import alignment, faces, images, provenance, similarity, weights
from backend.alignment import AlignedFace, CroppedPhoto, DetectorView
from backend.counterfactual import changes
from backend.counterfactual.search import SearchResult, SearchSettings, search
from backend.detectors import predict, registry
from backend.detectors.base import Card, Detector
from backend.detectors.gradcam import CamMap, grad_cam_or_reason
from backend.errors import UserError
from backend.generators import inversion
from backend.generators.inversion import Inverter
from backend.generators.refinement import Refined, Tuned
from backend.progress import Job, Step, counted
from backend.runtime import MODEL_LOCK, device


@dataclass(frozen=True, eq=False)
class PhotoCounterfactual:
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
    search: SearchResult
    original: np.ndarray
    inversion: np.ndarray
    counterfactual: np.ndarray
    residual: changes.Residual
    residual_inversion: changes.Residual
    cams: CamMap
    change: changes.LatentChange
    regions: list[changes.RegionChange]
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
            parts.append(changes.regions_in_words(self.regions))
            parts.append(predict.retest_in_words(self.retest))
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
            "refined": _gain_of(found.refined),
            "tuned": _gain_of(found.tuned),
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
        call = predict.describe_call(self.p_pasted, "it")
        return (
            f"Put back into the photo, the face was found and cut out anew: the detector {call} ({self.p_pasted:.2f})."
        )


def find_counterfactual(
    photo: np.ndarray,
    detector_name: str,
    settings: SearchSettings | None = None,
    face_number: int | None = None,
    *,
    inverter: Inverter | None = None,
) -> Job[PhotoCounterfactual]:
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
    found = faces.find_faces(photo)
    face = faces.choose_face(found, face_number)
    detector = _load_detector(detector_name)
    inverter = inverter or inversion.load_embedded_inverter()
    aligned = alignment.align_face(photo, face, inverter.template, inverter.size)
    source = CroppedPhoto(photo, aligned)
    view = source.view(detector.card.template, detector.card.input_size)
    outcome = yield from counted(search(inverter, detector, images.to_tensor(aligned.crop), settings, view), total)

    counterfactual = images.to_array(outcome.counterfactual)
    drawn = images.to_array(outcome.inversion)
    yield Step(total - 2, total, "What changed is measured.", outcome.counterfactual)
    cams = _grad_cams(detector, torch.cat([outcome.original, outcome.counterfactual]), view)
    landmarks = face.landmarks @ aligned.matrix[:, :2].T + aligned.matrix[:, 2]
    drawn_likeness = similarity.psnr_and_ssim(aligned.crop, drawn)
    yield Step(total - 1, total, "The other detectors are asked.", outcome.counterfactual)
    scores = predict.retest(outcome.original, outcome.counterfactual, detector_name, sources=source)
    yield Step(total, total, "The face is put back into the photo and looked for again.", outcome.counterfactual)
    pasted = photo.copy() if outcome.already_real[0] else alignment.paste_back(photo, counterfactual, aligned)
    return PhotoCounterfactual(
        photo=photo,
        face_number=face_number or 1,
        face_count=len(found),
        problem=faces.face_problem(face, photo.shape),
        aligned=aligned,
        card=detector.card,
        search=outcome,
        original=aligned.crop,
        inversion=drawn,
        counterfactual=counterfactual,
        residual=changes.signed_residual(aligned.crop, counterfactual),
        residual_inversion=changes.signed_residual(aligned.crop, drawn),
        cams=cams,
        change=changes.measure_latent_change(outcome.codes_start, outcome.codes),
        regions=changes.changed_regions(aligned.crop, counterfactual, landmarks),
        metrics=similarity.psnr_and_ssim(aligned.crop, counterfactual)
        | {f"{name}_inversion": value for name, value in drawn_likeness.items()},
        retest={name: (float(before[0]), float(after[0])) for name, (before, after) in scores.items()},
        pasted=pasted,
        p_pasted=_judge_pasted(pasted, face, detector, inverter),
        hashes=weights.model_hashes([*inverter.entries, detector_name, *scores]),
        versions=weights.package_versions(),
        seconds=time.perf_counter() - started,
    )


def _gain_of(done: Refined | Tuned | None) -> dict[str, float | str] | None:
    if done is None:
        return None
    gained: dict[str, float | str] = {
        "psnr_before": float(done.psnr_before[0]),
        "psnr_after": float(done.psnr_after[0]),
        "seconds": done.seconds,
    }
    return gained if isinstance(done, Refined) else gained | {"perceptual": done.perceptual}


def _load_detector(name: str) -> Detector:
    known = registry.loadable()
    if name not in known:
        raise UserError(f"There is no detector named {name}.", f"Choose one of: {', '.join(known)}.")
    return registry.load(name)


def _grad_cams(detector: Detector, crops: torch.Tensor, view: DetectorView | None) -> CamMap:
    """Return the maps over crops (N, 3, H, W), also where the detector sees another crop than these."""
    if view is None:
        return grad_cam_or_reason(detector, crops.to(device()))
    found = grad_cam_or_reason(detector, view.of(crops).to(device()))
    return replace(found, maps=view.maps_back(found.maps))


def _judge_pasted(pasted: np.ndarray, face: faces.Face, detector: Detector, inverter: Inverter) -> float | None:
    """Find, align and judge the face again, as anyone would who is given only the photo."""
    again = faces.find_face_again(pasted, face)
    if again is None:
        return None
    aligned = alignment.align_face(pasted, again, inverter.template, inverter.size)
    with MODEL_LOCK, torch.no_grad():
        crop = images.to_tensor(aligned.crop).to(device())
        return float(detector.p_fake(predict.cut_for_detector(detector.card, crop, CroppedPhoto(pasted, aligned)))[0])


FACE_PICTURES = ("crop", "inversion", "counterfactual")

CAM_MAPS = ("cam_before", "cam_after")

CAM_COLOURS = "cividis"  # its brightness rises steadily, for every kind of colour vision and in print

CAM_OPACITY = 0.55


@dataclass(frozen=True, eq=False)
class CounterfactualBundle:
    """Everything that is shown of a story.

    Args:
        record: What `Story.record` returned.
        photo: The whole photo, uint8 (H, W, 3).
        aligned: The face in it.
        faces: `crop`, `inversion` and `counterfactual`, uint8 (S, S, 3), without a mark.
        maps: `cam_before` and `cam_after`, uint8 (S, S), 255 where they are largest; an empty map is left out.
    """

    record: dict[str, Any]
    photo: np.ndarray
    aligned: AlignedFace
    faces: dict[str, np.ndarray]
    maps: dict[str, np.ndarray]

    def residual(self) -> changes.Residual:
        """Return the signed difference of counterfactual and crop."""
        from backend.counterfactual import changes  # what it imports would keep the app's page waiting

        return changes.signed_residual(self.faces["crop"], self.faces["counterfactual"])

    def pictures(self) -> dict[str, np.ndarray]:
        """Return all pictures, uint8 (H, W, 3), without a mark; of them, only `crop` is not made by the app.

        `crop`, `inversion`, `counterfactual`, `residual`, the maps that are not empty, and `photo` with the changed
        face in it; `crop` alone where nothing was searched. App, zip and command line all show these.
        """
        if self.record["already_real"]:
            return {"crop": self.faces["crop"]}
        drawn = dict(self.faces)
        drawn["residual"] = self.residual().picture
        for name, under in zip(CAM_MAPS, (drawn["crop"], drawn["counterfactual"]), strict=True):
            if name in self.maps:
                drawn[name] = overlay_cam(under, self.maps[name])
        drawn["photo"] = alignment.paste_back(self.photo, drawn["counterfactual"], self.aligned)
        return drawn

    def zip(self) -> bytes:
        """Return a zip file with the record and every picture, marked where the app made it."""
        return provenance.zip_record(self.record, self.pictures(), own=("crop",))  # the visitor's own pixels

    def save(self, folder: Path) -> list[Path]:
        """Write what `load` needs, without visible marks, and return the files."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in provenance.unmarked_files({**self.faces, **self.maps}, self.record, "story.json").items():
            (folder / name).write_bytes(content)
        return sorted(folder.iterdir())


def bundle_counterfactual(story: "PhotoCounterfactual") -> CounterfactualBundle:
    """Return the bundle of a story that was just told."""
    faces = {"crop": story.original, "inversion": story.inversion, "counterfactual": story.counterfactual}
    maps = {
        name: np.rint(strength * 255).astype(np.uint8)
        for name, strength, empty in zip(CAM_MAPS, story.cams.maps, story.cams.empty, strict=True)
        if not empty
    }
    return CounterfactualBundle(story.record(), story.photo, story.aligned, faces, maps)


def load_counterfactual(folder: Path, photo: np.ndarray, aligned: AlignedFace) -> CounterfactualBundle:
    """Read what `Bundle.save` wrote.

    Args:
        folder: Where it lies.
        photo: The photo that it is about.
        aligned: The face in it.
    """
    record = json.loads((folder / "story.json").read_text(encoding="utf-8"))
    drawn = {path.stem: images.read(path) for path in folder.glob("*.png")}
    faces = {name: drawn[name] for name in FACE_PICTURES if name in drawn}
    maps = {name: drawn[name][..., 0] for name in CAM_MAPS if name in drawn}
    return CounterfactualBundle(record, photo, aligned, faces, maps)


def overlay_cam(picture: np.ndarray, strength: np.ndarray) -> np.ndarray:
    """Lay a map, uint8 (H, W), in colours over a picture, uint8 (S, S, 3)."""
    import matplotlib as mpl  # its import would keep the app's page waiting

    height, width = picture.shape[:2]
    sized = np.asarray(Image.fromarray(strength).resize((width, height), Image.Resampling.BILINEAR))
    colours = mpl.colormaps[CAM_COLOURS](sized)[..., :3] * 255
    return np.rint((1 - CAM_OPACITY) * picture + CAM_OPACITY * colours).astype(np.uint8)
