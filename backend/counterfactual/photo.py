"""Counterfactual of one face in a photo: invert, search, measure the change, ask other detectors, paste it back.

`CounterfactualBundle` is the stored form: the app shows it, keeps it for its examples and offers it as a zip file.
"""

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from backend import alignment, images, provenance, similarity, weights
from backend.alignment import DetectorView, LocatedFace, locate_again
from backend.counterfactual import changes
from backend.counterfactual.rendering import Judge
from backend.counterfactual.search import SearchResult, SearchSettings, search
from backend.detectors import combination, predict, registry
from backend.detectors.base import THRESHOLD, Card, Detector
from backend.detectors.gradcam import CamMap, grad_cam_or_reason
from backend.errors import UserError
from backend.generators import inversion
from backend.generators.inversion import Inverter
from backend.generators.refinement import Refined, Tuned
from backend.markup import join_in_words
from backend.progress import Job, Step, counted
from backend.provenance import FaceResult
from backend.runtime import MODEL_LOCK, device

COUNTERFACTUAL_RECORD = "counterfactual.json"
CAM_MAPS = ("cam_before", "cam_after")
CAM_COLOURS = "cividis"  # its brightness rises steadily, for every kind of colour vision and in print
CAM_OPACITY = 0.55
MOST_ALLIES = 2


@dataclass(frozen=True, eq=False, kw_only=True)
class PhotoCounterfactual(FaceResult):
    """The result for one photo and one detector; pictures are uint8 (H, W, 3).

    Args:
        search: The search, with N = 1.
        inversion: The crop as the generator redraws it.
        counterfactual: The crop after the search.
        residual: Signed difference, counterfactual - original.
        residual_inversion: Signed difference, inversion - original: what the generator loses.
        cams: Grad-CAM of original and counterfactual, N = 2, towards fake.
        regions: Where the pixels changed, the most changed part of the face first.
        looks: What anybody can see of it, by region.
        fine_share: Share of the change's energy above an eighth of the sampling rate; None where no pixel differs.
        metrics: `psnr` (dB) and `ssim` of counterfactual and original, `psnr_inversion` and `ssim_inversion` of
            inversion and original; a PSNR is None where no pixel differs.
        retest: p_fake of original and counterfactual by the detectors that were not attacked.
        pasted: The photo with the counterfactual in it.
        p_pasted: p_fake of the face after it is found and aligned again in `pasted`; None where no face was found.
        held_out: The detector that was kept out of the search on purpose, to test its result.
    """

    card: Card
    search: SearchResult
    inversion: np.ndarray
    counterfactual: np.ndarray
    residual: changes.Residual
    residual_inversion: changes.Residual
    cams: CamMap
    change: changes.LatentChange
    regions: list[changes.RegionChange]
    looks: list[changes.LookChange]
    fine_share: float | None
    metrics: dict[str, float | None]
    retest: dict[str, tuple[float, float]]
    pasted: np.ndarray
    p_pasted: float | None
    held_out: str | None = None

    @property
    def p_fake(self) -> dict[str, float]:
        """p_fake of the crop, its inversion and the counterfactual."""
        return {name: float(values[0]) for name, values in self.search.p_fake.items()}

    @property
    def flipped(self) -> bool:
        """Whether the face was called fake before and is below the threshold after."""
        return bool(self.search.flipped[0])

    @property
    def already_real(self) -> bool:
        """Whether the face was below the threshold at the start, so that nothing was searched."""
        return bool(self.search.already_real[0])

    @property
    def summary(self) -> str:
        """The result in one paragraph."""
        refined, tuned = self.search.refined, self.search.tuned
        before = (self.facts.summary, refined.summary if refined else "", tuned.summary if tuned else "")
        parts = [*filter(None, before), self.search.summary]
        if not self.already_real:
            parts.append(changes.looks_in_words(self.looks))
            parts.append(changes.regions_in_words(self.regions))
            parts += filter(None, (self._allies_in_words(), self._held_out_in_words()))
            parts.append(predict.retest_in_words(self.retest))
            parts.append(self._pasted_in_words())
        return " ".join(parts)

    def record(self) -> dict[str, Any]:
        """Return the result as plain values for JSON, for programs and for saved pictures."""
        result = self.search
        return {
            "detector": self.card.name,
            "generator": result.generator,
            "p_fake": self.p_fake,
            "flipped": self.flipped,
            "already_real": self.already_real,
            "flipped_by_inversion": bool(result.flipped_by_inversion[0]),
            "used_log_odds": bool(result.used_log_odds[0]),
            "steps": int(result.steps[0]),
            "epsilon": result.epsilon,
            "lengths": list(result.row_lengths),
            "level": result.level,
            "composite": result.settings.composite,
            "searched": {
                "resolution": result.resolution,
                "full_size": result.full_size,
                "precision": result.precision,
                "fell_back": bool(result.fell_back[0]),
            },
            "refined": _gain_of(result.refined),
            "tuned": _gain_of(result.tuned),
            "trajectory": [round(value, 6) for value in result.trajectory[:, 0].tolist()],
            "allies": {
                name: {"original": float(a[0]), "inversion": float(b[0]), "counterfactual": float(c[0])}
                for name, (a, b, c) in result.allies.items()
            },
            "held_out": self.held_out,
            "retest": {name: {"original": a, "counterfactual": b} for name, (a, b) in self.retest.items()},
            "p_pasted": self.p_pasted,
            "metrics": self.metrics,
            "gain": self.residual.gain,
            "latent_change": {
                "rows": self.change.rows[0].tolist(),
                "levels": {level: float(values[0]) for level, values in self.change.levels.items()},
            },
            "regions": [asdict(region) for region in self.regions],
            "looks": [asdict(look) for look in self.looks],
            "fine_share": self.fine_share,
            "cam_empty": {"original": bool(self.cams.empty[0]), "counterfactual": bool(self.cams.empty[1])},
            "cam_missing": self.cams.missing,
            "settings": asdict(result.settings),
            **self.base_record(),
            "summary": self.summary,
        }

    def _allies_in_words(self) -> str:
        if not self.search.allies:
            return ""
        titles = join_in_words([registry.card(name).title for name in self.search.allies])
        turned = sum(float(after[0]) < THRESHOLD for _, _, after in self.search.allies.values())
        return f"It was searched against {titles} as well; {turned} of {len(self.search.allies)} see no signs now."

    def _held_out_in_words(self) -> str:
        if self.held_out is None or self.held_out not in self.retest:
            return ""
        title, after = registry.card(self.held_out).title, self.retest[self.held_out][1]
        verdict = "sees no signs now either" if after < THRESHOLD else "still sees signs"
        return f"{title} was kept out of the search as a test: it {verdict} ({after:.2f})."

    def _pasted_in_words(self) -> str:
        if self.p_pasted is None:
            return "Put back into the photo, the face is not found again."
        call = predict.describe_call(self.p_pasted, "it")
        return (
            f"Put back into the photo, the face was found and cut out anew: the detector {call} ({self.p_pasted:.2f})."
        )


@dataclass(frozen=True)
class Team:
    """The detectors beside the one that is asked about.

    Args:
        allies: Those that the picture should turn too.
        held_out: One that the search does not look at, to test its result; None where no other called the face fake.
    """

    allies: tuple[str, ...] = ()
    held_out: str | None = None


def ask_team(located: LocatedFace, attacked: str) -> Team:
    """Ask the members of the combined answer about a face, and choose a team as `choose_team` does."""
    combined = combination.read_combination()
    if combined is None:
        return Team()
    source = predict.embedded_crop(located)
    answers = predict.predict_p_fake(images.to_tensor(source.aligned.crop), list(combined.names), source)
    return choose_team({name: values[0] for name, values in answers.items()}, attacked)


def choose_team(p_fake: Mapping[str, float], attacked: str) -> Team:
    """Choose a team from the members of the combined answer that call a face fake, by their p_fake in [0, 1].

    The strongest of the others is held out; up to `MOST_ALLIES` others are searched against.
    """
    combined = combination.read_combination()
    if combined is None:
        return Team()
    areas = combined.fitted.get("candidates", {})
    others = [name for name in combined.names if name != attacked and p_fake.get(name, 0.0) >= THRESHOLD]
    others.sort(key=lambda name: -areas.get(name, 0.0))
    return Team(tuple(others[1 : 1 + MOST_ALLIES]), others[0]) if others else Team()


def find_counterfactual(
    located: LocatedFace,
    detector_name: str,
    settings: SearchSettings | None = None,
    *,
    team: Team | None = None,
    inverter: Inverter | None = None,
) -> Job[PhotoCounterfactual]:
    """Search a counterfactual for one face of a photo and measure what changed.

    Args:
        located: The face.
        detector_name: One of `registry.loadable()`.
        settings: None takes the defaults.
        team: Which further detectors the picture should turn, and which one tests it; None searches against one alone.
        inverter: Generator and encoder; None takes the embedded ones.

    Raises:
        UserError: There is no such detector, a model file is missing, or a setting is out of range.
    """
    started = time.perf_counter()
    settings = settings or SearchSettings()
    settings.check()
    total = settings.total + 3
    detector = load_detector(detector_name)
    inverter = inverter or inversion.load_embedded_inverter()
    source = located.cropped(inverter.template, inverter.size)
    photo, aligned = located.photo, source.aligned
    judges = [
        Judge(judge, source.view(judge.card.template, judge.card.input_size))
        for judge in (detector, *(load_detector(name) for name in (team.allies if team else ())))
    ]
    view = judges[0].view
    job = search(inverter, detector, images.to_tensor(aligned.crop), settings, view, allies=judges[1:])
    result = yield from counted(job, total)

    counterfactual = images.to_array(result.counterfactual)
    inverted = images.to_array(result.inversion)
    yield Step(total - 2, total, "Measuring what changed.", result.counterfactual)
    cams = _grad_cams(detector, torch.cat([result.original, result.counterfactual]), view)
    yield Step(total - 1, total, "Asking the other detectors.", result.counterfactual)
    attacked = [detector_name, *result.allies]
    scores = predict.retest(result.original, result.counterfactual, attacked, sources=source)
    yield Step(total, total, "Putting the face back into the photo and finding it again.", result.counterfactual)
    pasted = photo.copy() if result.already_real[0] else alignment.paste_back(photo, counterfactual, aligned)
    return PhotoCounterfactual(
        facts=located.facts,
        aligned=aligned,
        card=detector.card,
        search=result,
        inversion=inverted,
        counterfactual=counterfactual,
        residual=changes.signed_residual(aligned.crop, counterfactual),
        residual_inversion=changes.signed_residual(aligned.crop, inverted),
        cams=cams,
        change=changes.measure_latent_change(result.codes_start, result.codes),
        regions=changes.changed_regions(aligned.crop, counterfactual, aligned.landmarks),
        looks=changes.measure_looks(aligned.crop, counterfactual, aligned.landmarks),
        fine_share=_number(changes.fine_share(result.original, result.counterfactual)[0]),
        metrics=similarity.psnr_and_ssim(aligned.crop, counterfactual)
        | {f"{name}_inversion": value for name, value in similarity.psnr_and_ssim(aligned.crop, inverted).items()},
        retest={name: (float(before[0]), float(after[0])) for name, (before, after) in scores.items()},
        pasted=pasted,
        p_pasted=_judge_pasted(pasted, located, detector, inverter),
        held_out=team.held_out if team else None,
        weights=weights.model_hashes([*inverter.entries, *attacked, *scores]),
        seconds=time.perf_counter() - started,
    )


def _number(value: torch.Tensor) -> float | None:
    return None if value.isnan() else round(float(value), 6)


def _gain_of(refinement: Refined | Tuned | None) -> dict[str, float | str] | None:
    if refinement is None:
        return None
    gain: dict[str, float | str] = {
        "psnr_before": float(refinement.psnr_before[0]),
        "psnr_after": float(refinement.psnr_after[0]),
        "seconds": refinement.seconds,
    }
    return gain if isinstance(refinement, Refined) else gain | {"perceptual": refinement.perceptual}


def load_detector(name: str) -> Detector:
    """Load a detector; raises UserError where none has this name."""
    names = registry.loadable()
    if name not in names:
        raise UserError(f"There is no detector named {name}.", f"Choose one of: {', '.join(names)}.")
    return registry.load(name)


def _grad_cams(detector: Detector, crops: torch.Tensor, view: DetectorView | None) -> CamMap:
    """Return the maps over crops (N, 3, H, W), even where the detector sees a different crop."""
    if view is None:
        return grad_cam_or_reason(detector, crops.to(device()))
    cams = grad_cam_or_reason(detector, view.of(crops).to(device()))
    return replace(cams, maps=view.maps_back(cams.maps))


def _judge_pasted(pasted: np.ndarray, located: LocatedFace, detector: Detector, inverter: Inverter) -> float | None:
    """Find, align and judge the face again, as someone who has only the photo would."""
    located_again = locate_again(pasted, located)
    if located_again is None:
        return None
    source = located_again.cropped(inverter.template, inverter.size)
    with MODEL_LOCK, torch.no_grad():
        crop = images.to_tensor(source.aligned.crop).to(device())
        return float(detector.p_fake(predict.cut_for_detector(detector.card, crop, source))[0])


@dataclass(frozen=True, eq=False)
class CounterfactualBundle:
    """What the app shows and stores of a counterfactual.

    Args:
        record: What `PhotoCounterfactual.record` returned.
        faces: `crop`, `inversion` and `counterfactual`, uint8 (S, S, 3), without a mark.
        maps: `cam_before` and `cam_after`, uint8 (S, S), 255 where they are largest; an empty map is left out.
        pasted: The photo with the counterfactual in it, uint8 (H, W, 3).
    """

    record: dict[str, Any]
    faces: dict[str, np.ndarray]
    maps: dict[str, np.ndarray]
    pasted: np.ndarray

    def residual(self) -> changes.Residual:
        return changes.signed_residual(self.faces["crop"], self.faces["counterfactual"])

    def pictures(self) -> dict[str, np.ndarray]:
        """Return all pictures, uint8 (H, W, 3), without a mark; the app made all of them except `crop`.

        They are the faces, `residual`, the maps that are not empty, and `photo` with the changed face in it; only
        `crop` where nothing was searched.
        """
        if self.record["already_real"]:
            return {"crop": self.faces["crop"]}
        pictures = self.faces | {"residual": self.residual().picture}
        for name, face in zip(CAM_MAPS, ("crop", "counterfactual"), strict=True):
            if name in self.maps:
                pictures[name] = overlay_cam(self.faces[face], self.maps[name])
        return pictures | {"photo": self.pasted}

    def zip(self) -> bytes:
        """Return a zip file with the record and every picture, marked where the app made it."""
        return provenance.zip_record(self.record, self.pictures(), own=("crop",))  # the visitor's own picture

    def save(self, folder: Path) -> list[Path]:
        """Write what `load_counterfactual` needs, without visible marks, and return the files."""
        pictures = {name: picture for name, picture in {**self.faces, **self.maps}.items() if name != "crop"}
        return provenance.save_unmarked(folder, pictures, self.record, COUNTERFACTUAL_RECORD)


def bundle_counterfactual(result: PhotoCounterfactual) -> CounterfactualBundle:
    faces = {"crop": result.original, "inversion": result.inversion, "counterfactual": result.counterfactual}
    maps = {
        name: np.rint(strength * 255).astype(np.uint8)
        for name, strength, empty in zip(CAM_MAPS, result.cams.maps, result.cams.empty, strict=True)
        if not empty
    }
    return CounterfactualBundle(result.record(), faces, maps, result.pasted)


def load_counterfactual(folder: Path, located: LocatedFace) -> CounterfactualBundle:
    """Read what `CounterfactualBundle.save` wrote; the embedded generator must have changed the face."""
    record = json.loads((folder / COUNTERFACTUAL_RECORD).read_text(encoding="utf-8"))
    pictures = {path.stem: images.read(path) for path in folder.glob("*.png")}
    aligned = predict.embedded_crop(located).aligned
    faces = {"crop": aligned.crop, **{name: pictures[name] for name in ("inversion", "counterfactual")}}
    maps = {name: pictures[name][..., 0] for name in CAM_MAPS if name in pictures}
    pasted = alignment.paste_back(located.photo, faces["counterfactual"], aligned)
    return CounterfactualBundle(record, faces, maps, pasted)


def overlay_cam(picture: np.ndarray, strength: np.ndarray) -> np.ndarray:
    """Lay a map, uint8 (H, W), in colours over a picture, uint8 (S, S, 3)."""
    import matplotlib as mpl  # imported here so that the app's page opens sooner

    height, width = picture.shape[:2]
    sized = np.asarray(Image.fromarray(strength).resize((width, height), Image.Resampling.BILINEAR))
    colours = mpl.colormaps[CAM_COLOURS](sized)[..., :3] * 255
    return np.rint((1 - CAM_OPACITY) * picture + CAM_OPACITY * colours).astype(np.uint8)
