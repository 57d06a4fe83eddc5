"""Train one detector from its data to a calibrated, measured file.

Training minimises binary cross-entropy, or the losses of the detector's paper. Every objective takes the network, its
normalised pictures, the batch and the card, and returns log-odds of fake (N,) and the terms of the loss by name;
training minimises their sum. The losses are float32, whatever the network computes in. NF learns nothing: its
fingerprints, the mean noise residuals of the fakes of every maker, are measured in one pass.
"""

import copy
import json
import math
import shlex
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import StrictBool
from torch import Tensor, nn
from torch.nn import functional as F

from backend import runtime, weights
from backend.attacks.registry import get_attack
from backend.detectors import registry
from backend.detectors.base import LOG_ODDS, Card, Detector
from backend.detectors.dct_a import DCTA
from backend.detectors.nf import NoiseFingerprints
from backend.detectors.sbi import from_imagenet, imagenet_file
from backend.errors import UserError
from backend.progress import finish
from backend.signals import wiener_residual
from backend.training import calibration as training_calibration
from backend.training import data as training_data
from backend.training import degradation, install, loop
from backend.training.augmentation import UNVARIED, Variation
from backend.training.calibration import calibrate_detector
from backend.training.data import LabelledBatch, LabelledBatches, LabelledPictures, add_attacked, stack_images
from backend.training.degradation import Defence, DefenceName, Degradation
from backend.training.forgeries import LEARN_FORGERIES, ForgeryBatches
from backend.training.loop import Arithmetic, OnStep, PrecisionSetting, TrainingTask

FITTED_BATCHES = 64  # whose pictures standardise DCT-A's spectra
LEAST_DEVIATION = 1e-3
MAX_FINGERPRINTED = 2000  # fakes of each maker, as TR-Net's paper averages (arXiv 2203.11433, section 3.3)
IMAGENET = "imagenet"  # in place of a file: weights that a package carries
MEASURED_ONLY = {"nf"}  # measured in one pass over the fakes, without steps of training
COMPARED_WITH = {"ciplab_photoshop": "ciplab_real"}
OPTION_SETTINGS = ("steps", "defence", "initial", "adversarial", "seed")  # settings that have an option of their own
DEFENCE_SUFFIXES: dict[DefenceName, str] = {"shipped": "", "none": "_plain", "weak": "_weak"}
DEFENCE_WORDS: dict[DefenceName, str] = {
    "shipped": "with mild random changes of framing, colours and sharpness, noise and JPEG on every picture",
    "none": "saved alike, without blur, crop, noise or other JPEG: the undefended detector of TR-Net's paper",
    "weak": "with strong random blur, crop, JPEG and noise: the weak defence of TR-Net's paper",
}
Terms = dict[str, Tensor]
Objective = Callable[[nn.Module, Tensor, LabelledBatch, Card], tuple[Tensor, Terms]]


def binary_objective(network: nn.Module, inputs: Tensor, batch: LabelledBatch, card: Card) -> tuple[Tensor, Terms]:
    """Binary cross-entropy of the log-odds."""
    log_odds = LOG_ODDS[card.outputs](network(inputs).float())
    return log_odds, {"cross_entropy": F.binary_cross_entropy_with_logits(log_odds, batch.labels)}


def patch_objective(network: nn.Module, inputs: Tensor, batch: LabelledBatch, card: Card) -> tuple[Tensor, Terms]:
    """Cross-entropy of every patch, labelled like its picture (Chai et al. 2020, section 3.1)."""
    maps = network(inputs).float()  # fake first, then real
    classes = (1 - batch.labels).long()[:, None, None].expand(-1, *maps.shape[-2:])
    return LOG_ODDS[card.outputs](maps), {"patches": F.cross_entropy(maps, classes)}


def source_objective(network: nn.Module, inputs: Tensor, batch: LabelledBatch, card: Card) -> tuple[Tensor, Terms]:
    """Cross-entropy over the sources (Yu et al. 2019, section 3); a fake of unknown source is any but real."""
    sources = list(network.sources)  # type: ignore[arg-type]
    log_p = network(inputs).float().log_softmax(1)
    losses = [
        -row[sources.index(kind)] if kind in sources else -row[1:].logsumexp(0)
        for row, kind in zip(log_p, batch.kinds, strict=True)
    ]
    return LOG_ODDS[card.outputs](log_p), {"sources": torch.stack(losses).mean()}


def mask_objective(network: nn.Module, inputs: Tensor, batch: LabelledBatch, card: Card) -> tuple[Tensor, Terms]:
    """Binary cross-entropy of the picture, and of its parts."""
    assert batch.masks is not None
    raw, parts = network.forward_with_mask(inputs)  # type: ignore[operator]
    log_odds = LOG_ODDS[card.outputs](raw.float())
    loss = F.binary_cross_entropy_with_logits(log_odds, batch.labels)
    return log_odds, {"cross_entropy": loss, "mask": F.binary_cross_entropy_with_logits(parts.float(), batch.masks)}


def extras_objective(network: nn.Module, inputs: Tensor, batch: LabelledBatch, card: Card) -> tuple[Tensor, Terms]:
    """Binary cross-entropy, flooded at the level of the network if it has one, and the network's further losses."""
    raw, extras = network.forward_with_extras(inputs, batch.labels)  # type: ignore[operator]
    log_odds = LOG_ODDS[card.outputs](raw.float())
    loss = F.binary_cross_entropy_with_logits(log_odds, batch.labels)
    level = getattr(network, "flood", 0.0)
    return log_odds, {"cross_entropy": (loss - level).abs() + level} | {
        name: term.float() for name, term in extras.items()
    }


OBJECTIVES: dict[str, Objective] = {  # all others: binary
    "patch_cnn": patch_objective,
    "lf": source_objective,
    "mat": extras_objective,
    "sbi": mask_objective,
    "recce": extras_objective,
}


@dataclass(frozen=True)
class DetectorSettings:
    """Settings of one run; `settings/detector.toml` explains them."""

    steps: int
    batch: int
    lr: float
    weight_decay: float
    warmup: int
    average_decay: float
    shares: dict[str, float]  # kind of fake to its share of the fakes in a batch
    partial_share: float  # share of the swaps that are kept in a part of the face only
    shift: int = 0  # of the training pictures of shipped detectors, in pixels
    colours: float = 0.0  # how far their contrast and brightness may change
    compared_with: dict[str, list[str]] = field(default_factory=dict)  # source of fakes to those of their photographs
    degradation: dict[str, float] = field(default_factory=dict)  # values of `Degradation`
    seed: int = 0
    betas: tuple[float, float] = (0.9, 0.999)
    defence: DefenceName = "shipped"
    adversarial: str = ""  # attack on the fakes that are added, for the strong defence
    adversarial_share: float = 0.5  # how often an attacked fake replaces a fake
    initial: str = ""  # what the weights start from; random if empty
    precision: PrecisionSetting = "auto"  # of the forward pass; weights and losses are float32
    mirrored: StrictBool = False  # whether the trained detector judges a picture together with its mirror image
    architectures: dict[str, dict[str, Any]] = field(default_factory=dict)  # settings by architecture


def read_detector_settings(architecture: str, **changes: Any) -> DetectorSettings:
    """Read the settings of an architecture; keyword arguments that are not None win.

    Raises:
        UserError: An unknown setting is named, or a value has the wrong type.
    """
    common = loop.read_settings(DetectorSettings, "detector")
    special, changed = common.architectures.get(architecture, {}), loop.check_names(DetectorSettings, changes)
    if changed.get("defence", "shipped") == "none":  # the paper's undefended detectors judge only the picture
        special = {key: value for key, value in special.items() if key != "mirrored"}
    return loop.build_settings(DetectorSettings, asdict(common) | {"architectures": {}} | special | changed)


def build_defence(settings: DetectorSettings) -> Defence:
    return degradation.defence_named(settings.defence, Degradation(**settings.degradation))  # type: ignore[arg-type]


def build_batches(
    architecture: str, examples: LabelledPictures, settings: DetectorSettings
) -> LabelledBatches | ForgeryBatches:
    if architecture in LEARN_FORGERIES:
        return ForgeryBatches(
            examples,
            size=settings.batch,
            shares=settings.shares,
            seed=settings.seed,
            colours=settings.colours,
            compared_with=settings.compared_with,
        )
    return LabelledBatches(
        examples,
        size=settings.batch,
        shares=settings.shares,
        defence=build_defence(settings),
        partial_share=settings.partial_share,
        adversarial_share=settings.adversarial_share,
        seed=settings.seed,
        variation=Variation(settings.shift, settings.colours) if settings.defence == "shipped" else UNVARIED,
        compared_with=settings.compared_with,
    )


class DetectorTask(TrainingTask):
    def __init__(
        self,
        network: nn.Module,
        card: Card,
        examples: LabelledPictures,
        settings: DetectorSettings,
        objective: Objective = binary_objective,
    ) -> None:
        torch.manual_seed(settings.seed)
        self.card, self.settings, self.objective = card, settings, objective
        self.arithmetic = Arithmetic.for_device(runtime.device(), precision=settings.precision)
        self.device, self.computes_in = self.arithmetic.device, self.arithmetic.in_words()
        self.batches = build_batches(card.name, examples, settings)
        layout = torch.channels_last
        self.network = network.to(self.device, memory_format=layout).train()  # type: ignore[call-overload]
        self.average = copy.deepcopy(network).eval().requires_grad_(False)
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(), settings.lr, betas=settings.betas, weight_decay=settings.weight_decay, fused=True
        )
        self.mean = torch.tensor(card.mean, device=self.device).view(1, 3, 1, 1)
        self.std = torch.tensor(card.std, device=self.device).view(1, 3, 1, 1)
        self.modules = {"network": self.network, "average": self.average}
        self.optimizers = {"network": self.optimizer}
        self.total = settings.steps

    def finished(self) -> nn.Module:
        return self.average

    def step(self, number: int) -> dict[str, float]:
        settings = self.settings
        batch = self.batches.draw(number)
        batch = replace(batch, images=batch.images.to(self.device), labels=batch.labels.to(self.device))
        inputs = ((batch.images - self.mean) / self.std).contiguous(memory_format=torch.channels_last)
        with self.arithmetic.autocast():
            log_odds, terms = self.objective(self.network, inputs, batch, self.card)
        loss = torch.stack(list(terms.values())).sum()
        loop.update_weights(self.optimizer, loss, settings.lr * self._rate(number))
        loop.update_average(self.average, self.network, settings.average_decay, number)
        accuracy = ((log_odds > 0) == (batch.labels > 0.5)).float().mean()
        figures = {"loss": loss.item(), "accuracy": accuracy.item()}
        return figures | ({name: term.item() for name, term in terms.items()} if len(terms) > 1 else {})

    def _rate(self, number: int) -> float:
        settings = self.settings
        rise = min(1.0, (number + 1) / settings.warmup)
        return rise * (0.5 * (1 + math.cos(math.pi * number / settings.steps)) * 0.99 + 0.01)


class FingerprintTask(TrainingTask):
    """One pass over the fakes; the defence acts on every fake before its residual is taken."""

    def __init__(self, network: NoiseFingerprints, examples: LabelledPictures, settings: DetectorSettings) -> None:
        self.network = network.to(runtime.device())
        self.examples, self.settings = examples, settings
        self.defence = build_defence(settings)
        self.order: list[tuple[int, int]] = []
        for place, source in enumerate(network.sources):
            members = np.flatnonzero(examples.kinds == source)
            if not len(members):
                raise UserError(f"There are no fakes of the kind {source}.", "Give a folder that has them.")
            drawn = np.random.default_rng([settings.seed, place]).permutation(members)[:MAX_FINGERPRINTED]
            self.order += [(place, int(index)) for index in drawn]
        self.counts = [sum(place == other for other, _ in self.order) for place in range(len(network.sources))]
        self.modules, self.optimizers = {"network": self.network}, {}
        self.total = -(-len(self.order) // settings.batch)

    @torch.no_grad()
    def step(self, number: int) -> dict[str, float]:
        """Add the residuals of one batch of fakes, each divided by its maker's number of fakes."""
        batch = self.settings.batch
        part = self.order[number * batch : (number + 1) * batch]
        pictures = []
        for _, index in part:
            picture = np.ascontiguousarray(self.examples.pictures[index].permute(1, 2, 0).numpy())
            pictures.append(self.defence(picture, np.random.default_rng([self.settings.seed, index])))
        fingerprints = self.network.fingerprints
        residuals = wiener_residual(stack_images(pictures).to(fingerprints.device))
        for (place, _), residual in zip(part, residuals, strict=True):
            fingerprints[place] += residual / self.counts[place]
        return {"residual": float(residuals.square().mean().sqrt())}

    def finished(self) -> nn.Module:
        """Return the network with fingerprints of unit power."""
        self.network.normalise()
        return self.network


@torch.no_grad()
def prepare_network(network: nn.Module, batches: LabelledBatches | ForgeryBatches) -> None:
    """Set the mean and standard deviation of every coefficient in DCT-A's log spectrum from the first batches."""
    if not isinstance(network, DCTA):
        return
    total = torch.zeros_like(network.mean, dtype=torch.float64)
    squares, count = torch.zeros_like(total), 0
    for number in range(FITTED_BATCHES):
        spectra: Tensor = network.log_spectrum(batches.draw(number).images * 255).double()
        total += spectra.sum(0)
        squares += spectra.square().sum(0)
        count += len(spectra)
    mean = total / count
    network.mean.copy_(mean)
    network.std.copy_((squares / count - mean.square()).clamp_min(0).sqrt().clamp_min(LEAST_DEVIATION))


def build_detector_task(
    architecture: str, network: nn.Module, card: Card, examples: LabelledPictures, settings: DetectorSettings
) -> DetectorTask | FingerprintTask:
    """Return the task that trains, or measures, a network of an architecture."""
    if isinstance(network, NoiseFingerprints):
        return FingerprintTask(network, examples, settings)
    return DetectorTask(network, card, examples, settings, OBJECTIVES.get(architecture, binary_objective))


def train_detector(
    architecture: str,
    data: Path,
    folders: Sequence[Path],
    out: Path,
    on_step: OnStep,
    *,
    photographs: str,
    initial: str | None = None,
    **changes: Any,
) -> loop.Report:
    """Train one embedded detector, calibrate it, measure it, and write `out` (a .safetensors file).

    The architecture is one of `registry.names()`. `data` holds photographs and fakes by others, `folders` hold fakes in
    `train/` and `val/`, and `photographs` describes the photographs. The run's folder and the report lie beside `out`.
    `initial` is a file, `installed` for the entry of the same name, or None for random weights. `changes` are settings
    that differ from the settings file. With `steps=0` and `installed`, weights are only calibrated and measured again.
    """
    settings = read_detector_settings(architecture, **changes)
    name = architecture + DEFENCE_SUFFIXES[settings.defence] + ("_strong" if settings.adversarial else "")
    only_measures = settings.steps == 0 and initial == loop.INSTALLED
    if only_measures and changes.get("mirrored") is None:
        settings = replace(settings, mirrored=weights.find_entry(name).options.get("mirrored", False))
    card = replace(untrained_card(architecture), mirrored=settings.mirrored)
    split = training_data.read_labelled(data, folders, card.input_size)
    if settings.adversarial:
        attacked = add_attacked(split.training, settings.adversarial, seed=settings.seed)
        split = replace(split, training=finish(attacked, on_step))
    torch.manual_seed(settings.seed)
    network = registry.build_embedded(architecture, {})
    initial = initial or settings.initial
    if initial == IMAGENET:
        adapt = from_imagenet
        loop.load_initial(str(imagenet_file()), name, [network], adapt=adapt)  # the package has but one version
    elif initial:
        settings = replace(settings, initial=loop.load_initial(initial, name, [network]))
    else:
        prepare_network(network, build_batches(architecture, split.training, settings))
    task = build_detector_task(architecture, network, card, split.training, settings)
    run = finish(loop.train_task(task, out.parent / f"{name}-run", settings, checkpoint_every=200), on_step)
    trained = task.finished().to("cpu", memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    half = weights.rounded_to_half(trained.state_dict())
    trained.load_state_dict(half)
    calibration = calibrate_detector(trained, card, split.calibrating, architecture, settings.defence)
    ready = Detector(trained, card, **calibration).eval()
    alarms = training_calibration.measure_false_alarms(
        ready, split.measuring.of_kind(training_data.REAL), training_calibration.changes_for(architecture)
    )
    rates = training_calibration.measure_error_rates(ready, split.measuring, COMPARED_WITH)
    same_source = training_calibration.compare_same_source(ready, split.measuring)
    weights.save_half(out, half)
    kinds = list(settings.shares) if architecture in LEARN_FORGERIES else split.training.kinds.tolist()
    learned = install.describe_training_data(photographs, kinds)
    facts = _describe_entry(architecture, settings, photographs, learned)
    if only_measures:  # the weights keep their source
        entry = weights.find_entry(name)
        facts |= {"source": entry.source, "trained_on": entry.options["trained_on"]}
    figures = {"errors": rates, "false_alarms": alarms, "same_source": same_source}
    return loop.write_report(out.with_suffix(".json"), figures, run, {name: out}, {name: calibration | figures | facts})


def untrained_card(architecture: str) -> Card:
    """Return the card of a detector that has no weights yet."""
    facts = registry.ARCHITECTURES[architecture]
    return Card(
        name=architecture,
        title=facts.title,
        paper=facts.paper,
        weights=architecture,
        input_size=registry.EMBEDDED_SIZE,
        mean=registry.channel_values(facts.mean),
        std=registry.channel_values(facts.std),
        outputs=facts.outputs,
        cam_layer=facts.cam_layer,
        trained_on="",
        licence="",
        errors=(),
        known_failures="",
    )


def _describe_entry(architecture: str, settings: DetectorSettings, photographs: str, learned: str) -> dict[str, Any]:
    """Return the facts of the registry entry apart from the calibration."""
    defaults = asdict(read_detector_settings(architecture, defence=settings.defence))
    given = asdict(settings) | {"initial": settings.initial.split(",", maxsplit=1)[0]}
    options: dict[str, Any] = {} if architecture in MEASURED_ONLY else {"steps": settings.steps}
    options |= {"defence": settings.defence} if settings.defence != "shipped" else {}
    options |= {name: given[name] for name in ("initial", "adversarial", "seed") if given[name] != defaults[name]}
    command = f"python -m backend train detector {architecture}"
    command += "".join(f" --{name} {value}" for name, value in options.items())
    for key, value in given.items():
        if key not in OPTION_SETTINGS and value != defaults[key]:
            command += f" --set {shlex.quote(f'{key}={json.dumps(value)}')}"
    facts: dict[str, Any] = {"source": f"{command}, on {photographs}", "defence": settings.defence}
    facts |= {"trained_on": learned, "mirrored": settings.mirrored}
    if settings.defence == "shipped" and not settings.adversarial:
        return facts
    title = registry.ARCHITECTURES[architecture].title
    attacked = ""
    if settings.adversarial:
        attack = get_attack(settings.adversarial).title
        attacked = f", with fakes after {attack} among the fakes: the strong defence of TR-Net's paper"
    defence = {"none": "undefended", "weak": "weak defence", "shipped": "own defence"}[settings.defence]
    return facts | {
        "use": "evaluate",
        "architecture": architecture,
        "title": f"{title}, {defence}{' and strong defence' if settings.adversarial else ''}",
        "trained_on": f"{learned}; {DEFENCE_WORDS[settings.defence]}{attacked}",
    }
