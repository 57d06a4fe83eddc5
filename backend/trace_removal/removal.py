"""Remove the traces of a face with TR-Net: as an attack on faces, and for one face of a photo (arXiv 2203.11433).

A removal asks all detectors before and after, puts the face back into the photo, and saves it again in four ways to
see whether the verdicts come back. `RemovalBundle` is the stored form: the app shows it, keeps it for its examples and
offers it as a zip file.
"""

import functools
import io
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from backend import alignment, images, provenance, runtime, similarity, weights
from backend.alignment import CroppedPhoto, LocatedFace, locate_again
from backend.attacks.base import Attacked, judge_attack, mask_region, restore_outside
from backend.attacks.registry import register_attack
from backend.counterfactual import changes
from backend.detectors import predict, registry
from backend.detectors.base import THRESHOLD, Detector, Verdict, verdict
from backend.detectors.predict import VERDICT_WORDS, format_p_fake, suggest_detector
from backend.errors import UserError
from backend.progress import Job, Step, mapped
from backend.provenance import FaceResult
from backend.registration import Registered
from backend.runtime import MODEL_LOCK, device, frozen
from backend.trace_removal import references
from backend.trace_removal.network import TRNet
from backend.trace_removal.references import References
from backend.trace_removal.views import TraceView, draw_views

REMOVER_HINT = "Write for example --set 'removers=[\"tenth=DIR/trnet.safetensors\"]'."
TRNET_ENTRY = "trnet"
WEAKEST_STRENGTH, STRONGEST_STRENGTH = 0.25, 2.0
STRENGTHS = ("trnet_half", "trnet_more", "trnet_most")  # attacks that trade likeness for effect
TRNET_COMMAND = "python -m backend train trnet --data DIR --fakes DIR --out trnet.safetensors --install"
VISIBLE_SSIM = 0.97  # SSIM below which a change to a smooth face shows at the size of the page
RESIDUAL_FORM_NOTE = "This TR-Net adds to the picture; the published form draws it anew."
REMOVAL_STEPS = 4
REMOVAL_RECORD = "removal.json"
NO_REFERENCES_NOTE = (
    "The views of the traces need reference statistics, which are not installed; "
    f"build them: {references.REFERENCES_COMMAND}"
)


@dataclass(frozen=True)
class TRNetSettings:
    """Settings of one pass; those before `strength` describe the network that was used, see `TRNet`.

    Args:
        strength: Factor on the network's change, in [0.25, 2]; it was trained for 1.
        seed: Recorded; the noise depends on the picture alone.
    """

    width: float = 1.0
    residual: bool = False
    bound: float = 1.0
    grain: float = 0.0
    by_contrast: bool = False
    strength: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not WEAKEST_STRENGTH <= self.strength <= STRONGEST_STRENGTH:
            raise UserError(
                f"TR-Net's strength cannot be {self.strength}.", f"Give {WEAKEST_STRENGTH} to {STRONGEST_STRENGTH}."
            )


def load_trnet() -> TRNet:
    """Return the process's one copy of the trained network, frozen, on the app's device.

    Raises:
        UserError: There is no entry, or its model file is missing or damaged.
    """
    return runtime.load_once(TRNET_ENTRY, _load_trained_trnet)


def _load_trained_trnet() -> TRNet:
    network = build_trnet(weights.find_entry(TRNET_ENTRY).options)
    weights.load_into(network, TRNET_ENTRY)
    return network.to(device())


def build_trnet(options: Any) -> TRNet:
    """Return the untrained network that the options of a registry entry describe."""
    optional = {name: options[name] for name in ("bound", "grain", "by_contrast") if name in options}
    return TRNet(options["width"], statistics=options["statistics"], residual=options["residual"], **optional)


def settings_of_network(network: TRNet, strength: float = 1.0) -> TRNetSettings:
    """Return the settings of a pass; raises UserError where the strength is out of range."""
    return TRNetSettings(network.width, network.residual, network.bound, network.grain, network.by_contrast, strength)


def applied_settings(settings: TRNetSettings, network: TRNet | None = None) -> TRNetSettings:
    """Complete settings with the options of the network (None: the trained one)."""
    return replace(settings_of_network(network or load_trnet(), settings.strength), seed=settings.seed)


def _register_trnet(
    name: str, order: int, title: str, strength: float = 1.0, *, compared: bool = False
) -> Callable[[Registered], Registered]:
    """Return a decorator that registers TR-Net at one strength as an attack."""
    return register_attack(
        name,
        title=title,
        paper="Liu et al. 2022, arXiv 2203.11433",
        needs="trained weights",
        settings=TRNetSettings(strength=strength),
        entry=TRNET_ENTRY,
        compared=compared,
        complete=applied_settings,
        order=order,
    )


@_register_trnet("trnet", 90, "TR-Net", compared=True)
@_register_trnet("trnet_half", 91, "TR-Net, half its change", 0.5)
@_register_trnet("trnet_more", 92, "TR-Net, 1.75 times its change", 1.75)  # keeps a little more likeness than GANprintR
@_register_trnet("trnet_most", 93, "TR-Net, twice its change", STRONGEST_STRENGTH)
def attack_with_trnet(
    images: Tensor,
    detector: Detector,
    settings: TRNetSettings | None = None,
    mask: Tensor | None = None,
    *,
    network: TRNet | None = None,
) -> Job[Attacked]:
    """Pass faces through TR-Net; the detector only judges before and after.

    Args:
        images: Faces (N, 3, H, W) in [0, 1].
        detector: Judges the faces; TR-Net was not trained on it.
        settings: None takes the defaults.
        mask: 1 where pixels may change, (H, W) or (N, 1, H, W); everywhere by default.
        network: None takes the trained one.

    Raises:
        UserError: The model file is missing or damaged.
    """
    started = time.perf_counter()
    network = network or load_trnet()
    settings = applied_settings(settings or TRNetSettings(), network)
    original = images.detach().to(detector.mean.device)
    region = mask_region(mask, original)
    with frozen(network, detector), MODEL_LOCK, torch.no_grad():
        changed = restore_outside(network.remove(original, settings.strength), original, region)
        result = judge_attack("TR-Net", original, changed, detector, settings, started=started)
    yield Step(1, 1, "The face passed through TR-Net.", changed[:1].cpu())
    return result


@dataclass(frozen=True, eq=False, kw_only=True)
class Removal(FaceResult):
    """One face without its traces, and what the detectors say of it; pictures are uint8 (H, W, 3).

    Args:
        removed: The crop after TR-Net.
        pasted: The photo with `removed` in it.
        p_fake: By detector, p_fake of crop and removal; TR-Net was trained on none of the detectors.
        p_pasted: By detector, p_fake of the face found and cut out again in `pasted`; None where no face was found.
        difference: Signed difference, removed - original.
        metrics: `psnr` in dB (None where no pixel differs) and `ssim` of both crops.
    """

    removed: np.ndarray
    pasted: np.ndarray
    p_fake: dict[str, tuple[float, float]]
    p_pasted: dict[str, float] | None
    difference: changes.Residual
    metrics: dict[str, float | None]
    settings: TRNetSettings

    @property
    def turned(self) -> list[str]:
        """The detectors whose p_fake fell below the threshold."""
        return [name for name, (before, after) in self.p_fake.items() if after < THRESHOLD <= before]

    @property
    def summary(self) -> str:
        """What happened, in one paragraph."""
        parts = (self.facts.summary, self._verdicts_in_words(), self._pasted_in_words(), self._change_in_words())
        return " ".join(filter(None, parts))

    def record(self) -> dict[str, Any]:
        """Return the result as plain values for JSON, for programs and for saved pictures."""
        return {
            "p_fake": _scores_record(self.p_fake),
            "p_pasted": self.p_pasted,
            "turned": self.turned,
            "metrics": self.metrics,
            "gain": self.difference.gain,
            "settings": asdict(self.settings),
            **self.base_record(),
            "summary": self.summary,
        }

    def _change_in_words(self) -> str:
        psnr, ssim = self.metrics["psnr"], self.metrics["ssim"]
        if psnr is None:
            return "TR-Net left the face as it was."
        text = (
            f"TR-Net changed the face by up to {self.difference.largest:.3g} of 255 levels: PSNR {psnr:.1f} dB, "
            f"SSIM {ssim:.3f} (1 = the same)."
        )
        if self.settings.strength != 1:
            text += f" The change is {self.settings.strength:g} times what TR-Net was trained to make."
        if ssim is not None and ssim < VISIBLE_SSIM:
            text += " Look closely: a change of this size can be seen, so a turned verdict may be due to what you see."
        return f"{text} {RESIDUAL_FORM_NOTE}" if self.settings.residual else text

    def _verdicts_in_words(self) -> str:
        if not self.p_fake:
            return "There is no detector to ask."
        verdicts = [(verdict(before), verdict(after)) for before, after in self.p_fake.values()]
        former_fakes = [after for before, after in verdicts if before == "signs"]
        newly = sum(before != "signs" and after == "signs" for before, after in verdicts)
        text = "No detector saw signs of forgery in the face to begin with."
        if former_fakes:
            text = _former_fakes_in_words(former_fakes)
        if newly:
            text += f" {newly} that saw none before now {'does' if newly == 1 else 'do'}."
        return f"{text} TR-Net has seen none of the {len(self.p_fake)} detectors in training."

    def _pasted_in_words(self) -> str:
        if self.p_pasted is None:
            return "Put back into the photo, the face is not found again."
        verdicts = [verdict(score) for score in self.p_pasted.values()]
        return (
            f"Put back into the photo, found and cut out anew, all {len(verdicts)} detectors: "
            f"{verdicts.count('signs')} see signs of forgery, {verdicts.count('unsure')} are unsure, and "
            f"{verdicts.count('no_known_signs')} see no signs that they know."
        )


def _former_fakes_in_words(verdicts: list[Verdict]) -> str:
    """Describe the new verdicts of the detectors, at least one, that saw signs of forgery in the face."""
    still, none, unsure = (verdicts.count(word) for word in ("signs", "no_known_signs", "unsure"))
    if still == len(verdicts):
        if still == 1:
            return "The 1 detector that saw signs still does: this verdict does not hang on what TR-Net removes."
        return f"All {still} detectors that saw signs still do: these verdicts do not hang on what TR-Net removes."
    which = "1 detector" if len(verdicts) == 1 else f"{len(verdicts)} detectors"
    return (
        f"Of {which} that saw signs of forgery, {still} still {'does' if still == 1 else 'do'}, {none} no longer "
        f"{'does' if none == 1 else 'do'} and {unsure} {'is' if unsure == 1 else 'are'} unsure."
    )


def remove_traces(located: LocatedFace, strength: float = 1.0, *, network: TRNet | None = None) -> Job[Removal]:
    """Pass one face of a photo through TR-Net and ask all detectors before and after.

    Args:
        located: The face.
        strength: Factor on the network's change; it was trained for 1.
        network: None takes the trained one.

    Raises:
        UserError: There is no trained network, or the strength is out of range.
    """
    started = time.perf_counter()
    network = network or load_trnet()
    settings = settings_of_network(network, strength)
    yield Step(0, REMOVAL_STEPS, "Cutting out the face.")
    source = predict.embedded_crop(located)
    photo, aligned = located.photo, source.aligned
    original = images.to_tensor(aligned.crop)
    yield Step(1, REMOVAL_STEPS, "Removing the traces.", original)
    with MODEL_LOCK, frozen(network):
        removed = images.to_array(network.remove(original.to(device()), strength))
    changed = images.to_tensor(removed)
    pasted = alignment.paste_back(photo, removed, aligned)
    yield Step(2, REMOVAL_STEPS, "Putting the face back and finding it again.", changed)
    located_again = locate_again(pasted, located)
    crops, sources = [aligned.crop, removed], [source] * 2
    if located_again is not None:
        sources.append(predict.embedded_crop(located_again))
        crops.append(sources[-1].aligned.crop)
    yield Step(3, REMOVAL_STEPS, "Asking all detectors.", changed)
    scores = predict.predict_p_fake(torch.cat([images.to_tensor(crop) for crop in crops]), sources=sources)
    yield Step(4, REMOVAL_STEPS, "All detectors have answered.", changed)
    return Removal(
        facts=located.facts,
        aligned=aligned,
        removed=removed,
        pasted=pasted,
        p_fake={name: (values[0], values[1]) for name, values in scores.items()},
        p_pasted=None if located_again is None else {name: values[2] for name, values in scores.items()},
        difference=changes.signed_residual(aligned.crop, removed),
        metrics=similarity.psnr_and_ssim(aligned.crop, removed),
        settings=settings,
        weights=weights.model_hashes([TRNET_ENTRY, *scores]),
        seconds=time.perf_counter() - started,
    )


@dataclass(frozen=True)
class Resave:
    """The verdicts after one way of saving again."""

    name: str  # for programs
    title: str
    p_fake: dict[str, tuple[float, float]]  # by detector, of original and removal, both saved again


def _encode_and_decode(image: Image.Image, kind: str, quality: int) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, kind, quality=quality)
    return Image.open(buffer).convert("RGB")


def _halve_and_enlarge(image: Image.Image) -> Image.Image:
    half = (max(1, round(image.width / 2)), max(1, round(image.height / 2)))
    return image.resize(half, Image.Resampling.BICUBIC).resize(image.size, Image.Resampling.BICUBIC)


RESAVE_KINDS: dict[str, tuple[str, Callable[[Image.Image], Image.Image]]] = {
    "jpeg_90": ("JPEG 90", functools.partial(_encode_and_decode, kind="JPEG", quality=90)),
    "jpeg_75": ("JPEG 75", functools.partial(_encode_and_decode, kind="JPEG", quality=75)),
    "webp_80": ("WebP 80", functools.partial(_encode_and_decode, kind="WEBP", quality=80)),
    "half_size": ("half size and back", _halve_and_enlarge),
}


def judge_resaves(
    original: np.ndarray, removed: np.ndarray, detectors: list[str] | None = None, source: CroppedPhoto | None = None
) -> list[Resave]:
    """Save a face and its removal again in every way, and ask the detectors.

    Args:
        original: The face, uint8 (S, S, 3).
        removed: The same after TR-Net.
        detectors: Their names; None takes all loadable ones.
        source: The photo of the face. For a detector with another crop, that crop is cut from the photo with the
            removal in it, and saved again.
    """
    names = registry.loadable() if detectors is None else detectors
    both = torch.cat([images.to_tensor(original), images.to_tensor(removed)])
    p_fake: dict[str, list[float]] = {}
    for group in predict.group_by_crop(names).values():
        views = predict.cut_for_detector(registry.card(group[0]), both, source)
        crops = [Image.fromarray(images.to_array(picture)) for picture in views]
        saved = [save(crop) for _, save in RESAVE_KINDS.values() for crop in crops]
        p_fake |= predict.predict_p_fake(torch.cat([images.to_tensor(np.asarray(picture)) for picture in saved]), group)
    scores = {name: p_fake[name] for name in names}
    return [
        Resave(name, title, {detector: (values[2 * row], values[2 * row + 1]) for detector, values in scores.items()})
        for row, (name, (title, _)) in enumerate(RESAVE_KINDS.items())
    ]


def resaves_in_words(before: Mapping[str, tuple[float, float]], resaves: list[Resave]) -> str:
    """Say in one sentence whether verdicts come back; `before` has p_fake of original and removal by detector."""
    changed = [name for name, (original, removed) in before.items() if verdict(original) == "signs" != verdict(removed)]
    if not changed:
        called_fake = any(verdict(original) == "signs" for original, _ in before.values())
        reason = "Every detector that saw signs still does" if called_fake else "No detector saw signs in the face"
        return f"{reason}, so there is no verdict that saving again could bring back."
    counts = [
        f"{sum(verdict(resave.p_fake[name][1]) == 'signs' for name in changed)} after {resave.title}"
        for resave in resaves
    ]
    which = "the one detector that no longer does" if len(changed) == 1 else f"the {len(changed)} that no longer do"
    return f"Of {which}, these see signs again when it is saved again: {', '.join(counts)}."


def _scores_record(p_fake: dict[str, tuple[float, float]]) -> dict[str, dict[str, float]]:
    return {name: {"original": before, "removed": after} for name, (before, after) in p_fake.items()}


@dataclass(frozen=True, eq=False)
class RemovalBundle:
    """Everything that is shown of a removal.

    Args:
        record: Of the removal, with `resaves`, `resaves_summary`, `views` (name, title and sentence of each),
            `views_note` (why there are none, or None) and `attention` (the detector whose attention is shown).
        faces: `crop` and `removed`, uint8 (S, S, 3), without a mark.
        views: By name, uint8 (H, W, 3), each with the face before and after.
        pasted: The photo with the changed face in it, uint8 (H, W, 3).
    """

    record: dict[str, Any]
    faces: dict[str, np.ndarray]
    views: dict[str, np.ndarray]
    pasted: np.ndarray

    def difference(self) -> changes.Residual:
        return changes.signed_residual(self.faces["crop"], self.faces["removed"])

    def pictures(self) -> dict[str, np.ndarray]:
        """Return all pictures, uint8 (H, W, 3), without a mark; the app made all of them except `crop`."""
        return {**self.faces, "difference": self.difference().picture, "photo": self.pasted, **self.views}

    def zip(self) -> bytes:
        """Return a zip file with the record and every picture, marked where the app made it."""
        return provenance.zip_record(self.record, self.pictures(), own=("crop",), text=self.text())

    def text(self) -> str:
        """Return the summary, every verdict and the effect of saving again, as plain text."""
        lines = [
            f"{registry.card(name).title}: {_verdict_in_words(scores['original'])} before, "
            f"{_verdict_in_words(scores['removed'])} after"
            for name, scores in self.record["p_fake"].items()
        ]
        verdicts = "\n".join(["What every detector says (probability of fake, 0 to 1):", *lines])
        return "\n\n".join([self.record["summary"], verdicts, self.record["resaves_summary"]])

    def save(self, folder: Path) -> list[Path]:
        """Write what `load_removal` needs, without visible marks, and return the files."""
        pictures = {"removed": self.faces["removed"], **self.views}
        return provenance.save_unmarked(folder, pictures, self.record, REMOVAL_RECORD, self.views)


def _verdict_in_words(p_fake: float) -> str:
    return f"{format_p_fake(p_fake)} ({VERDICT_WORDS[verdict(p_fake)].lower()})"


def run_removal(
    located: LocatedFace,
    detector: str | None = None,
    *,
    strength: float = 1.0,
    network: TRNet | None = None,
    known: References | None = None,
) -> Job[RemovalBundle]:
    """Remove the traces of one face, save it again in four ways, and draw the traces that are left.

    Args:
        located: The face.
        detector: Whose attention is shown; None takes the first that calls the face fake.
        strength: Factor on TR-Net's change; it was trained for 1.
        network: None takes the trained one.
        known: Reference statistics; None takes the installed ones.

    Raises:
        UserError: There is no trained network, or the strength is out of range.
    """
    removing = remove_traces(located, strength, network=network)
    removal = yield from mapped(removing, lambda step: replace(step, total=6))
    yield Step(4, 6, "Saving the face again in four ways.", images.to_tensor(removal.removed))
    resaves = judge_resaves(removal.original, removal.removed, source=predict.embedded_crop(located))
    yield Step(5, 6, "Drawing the traces.", images.to_tensor(removal.removed))
    before = {name: values[0] for name, values in removal.p_fake.items() if registry.card(name).cam_layer}
    attention = detector or suggest_detector(before)
    if known is None and references.REFERENCES_ENTRY in weights.read_entries():
        known = references.load_references()
    pictures = {"Before": removal.original, "After": removal.removed}
    views = draw_views(pictures, known, attention) if known is not None and attention is not None else []
    return bundle_removal(removal, resaves, views, attention)


def bundle_removal(
    removal: Removal, resaves: list[Resave], views: list[TraceView], attention: str | None
) -> RemovalBundle:
    record = removal.record() | {
        "resaves": {resave.name: _scores_record(resave.p_fake) for resave in resaves},
        "resaves_summary": resaves_in_words(removal.p_fake, resaves),
        "views": [{"name": view.name, "title": view.title, "sentence": view.sentence} for view in views],
        "views_note": None if views else NO_REFERENCES_NOTE,
        "attention": attention,
    }
    faces = {"crop": removal.original, "removed": removal.removed}
    return RemovalBundle(record, faces, {view.name: view.picture for view in views}, removal.pasted)


def load_removal(folder: Path, located: LocatedFace) -> RemovalBundle:
    """Read what `RemovalBundle.save` wrote about a face."""
    record = json.loads((folder / REMOVAL_RECORD).read_text(encoding="utf-8"))
    aligned = predict.embedded_crop(located).aligned
    faces = {"crop": aligned.crop, "removed": images.read(folder / "removed.png")}
    views = {view["name"]: images.read(folder / f"{view['name']}.png") for view in record["views"]}
    return RemovalBundle(record, faces, views, alignment.paste_back(located.photo, faces["removed"], aligned))


@dataclass(frozen=True)
class Remover:
    """A TR-Net in a file that `python -m backend train trnet` wrote, with its report beside it."""

    name: str  # in the tables
    path: Path  # the weights (.safetensors)

    def load(self) -> TRNet:
        """Return the process's one copy.

        Raises:
            UserError: File or report is missing or damaged.
        """
        return runtime.load_once(f"remover {self.path}", self._load)

    def hash(self) -> str:
        """Return the SHA-256 of the weights.

        Raises:
            UserError: There is no such file.
        """
        if not self.path.is_file():
            raise UserError(f"There is no file {self.path.name} for the TR-Net {self.name}.", REMOVER_HINT)
        return weights.file_hash(self.path)

    def _load(self) -> TRNet:
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        self.hash()
        try:
            report = json.loads(self.path.with_suffix(".json").read_text(encoding="utf-8"))
            network = build_trnet(report["options"][TRNET_ENTRY])
            network.load_state_dict(load_file(self.path))
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError):
            raise UserError(
                f"The TR-Net {self.name} cannot be loaded from {self.path.name}.",
                "Keep the .json file that training wrote beside the weights.",
            ) from None
        return network.eval().requires_grad_(requires_grad=False).to(device())


def parse_removers(texts: tuple[str, ...]) -> tuple[Remover, ...]:
    """Read NAME=PATH texts; raises UserError where one has another form, or two have the same name."""
    removers: list[Remover] = []
    for text in texts:
        name, _, path = text.partition("=")
        if not name or not path or name in {remover.name for remover in removers}:
            raise UserError(f"The TR-Net {text} needs a file and a name that no other has.", REMOVER_HINT)
        removers.append(Remover(name, Path(path).expanduser()))
    return tuple(removers)


def require_trnet() -> None:
    """Raise UserError, with the command that trains TR-Net, where the registry has no entry for it."""
    if TRNET_ENTRY not in weights.read_entries():
        raise UserError("TR-Net is not trained yet, so no traces can be removed.", f"Train it with: {TRNET_COMMAND}.")
