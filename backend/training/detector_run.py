"""Train one detector from its data to a calibrated, measured file."""

import json
import shlex
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from backend import weights
from backend.detectors import registry
from backend.detectors.card import Card, Detector
from backend.progress import Step, finish
from backend.saving import like_photographs
from backend.trace_removal.attacks import named
from backend.training import description, detector, harness, honesty, labelled, measure, recipes, reports, starting
from backend.training.attacked import with_attacked
from backend.training.defences import Name
from backend.training.detector import DetectorSettings

AGAINST = {"ciplab_photoshop": "ciplab_real"}
FALSE_ALARMS = 0.04  # share of calibration photographs that the threshold lets pass as fake
MORE_ALARMS = 0.025  # share that saving, blurring or resizing them may add; honesty.MOST_MORE with a margin
SUFFIXES: dict[Name, str] = {"shipped": "", "none": "_plain", "weak": "_weak"}
STRONG = "_strong"
SAID = ("steps", "defence", "initial", "adversarial", "seed")  # settings that have an option of their own
HOW: dict[Name, str] = {
    "shipped": "with mild random changes of framing, colours and sharpness, noise and JPEG on every picture",
    "none": "saved alike, without blur, crop, noise or other JPEG: the undefended detector of TR-Net's paper",
    "weak": "with strong random blur, crop, JPEG and noise: the weak defence of TR-Net's paper",
}


def entry_name(architecture: str, defence: Name, *, strong: bool = False) -> str:
    """Return the name under which a detector trained in this way is installed."""
    return architecture + SUFFIXES[defence] + (STRONG if strong else "")


def train_detector(
    architecture: str,
    data: Path,
    folders: Sequence[Path],
    out: Path,
    on_step: Callable[[Step], None],
    *,
    photographs: str,
    initial: str | None = None,
    **changes: Any,
) -> reports.Report:
    """Train one embedded detector, calibrate it, measure it, and write `out` (a .safetensors file).

    Args:
        architecture: One of `registry.names()`.
        data: Photographs, and fakes by others.
        folders: Folders of fakes with `train/` and `val/`.
        out: Where the weights go; the run's folder and the report lie beside it.
        on_step: Called at every step.
        photographs: What the photographs are, in words.
        initial: What the weights start from: a file, `installed` for the entry of the same name, or random.
        changes: Settings that differ from those of the settings file. With `steps=0` and `installed`, weights are
            only calibrated and measured anew.
    """
    settings = detector.settings_for(architecture, **changes)
    name = entry_name(architecture, settings.defence, strong=bool(settings.adversarial))
    anew = settings.steps == 0 and initial == starting.INSTALLED
    if anew and changes.get("mirrored") is None:
        settings = replace(settings, mirrored=weights.entry(name).options.get("mirrored", False))
    card = replace(untrained_card(architecture), mirrored=settings.mirrored)
    split = labelled.read(data, folders, card.input_size)
    if settings.adversarial:
        attacked = with_attacked(split.training, settings.adversarial, seed=settings.seed)
        split = replace(split, training=finish(attacked, on_step))
    torch.manual_seed(settings.seed)
    network = registry.build_embedded(architecture, {})
    if initial:
        settings = replace(settings, initial=starting.load(initial, name, [network]))
    else:
        recipes.prepare(network, detector.batches_of(split.training, settings))
    task = recipes.task(architecture, network, card, split.training, settings)
    run = finish(harness.train(task, out.parent / f"{name}-run", settings, checkpoint_every=200), on_step)
    trained = task.finished().to("cpu", memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    half = weights.rounded_to_half(trained.state_dict())
    trained.load_state_dict(half)
    calibration = _calibration(trained, card, split.calibrating, architecture, settings.defence)
    ready = Detector(trained, card, **calibration).eval()
    alarms = honesty.false_alarms(ready, split.measuring.of(labelled.REAL))
    rates = measure.error_rates(ready, split.measuring, AGAINST)
    same_source = honesty.same_source(ready, split.measuring)
    weights.save_half(out, half)
    learned = description.examples(photographs, split.training.kinds.tolist())
    facts = _facts(architecture, settings, photographs, learned)
    if anew:  # where the weights come from stays
        entry = weights.entry(name)
        facts |= {"source": entry.source, "trained_on": entry.options["trained_on"]}
    figures = {"errors": rates, "false_alarms": alarms, "same_source": same_source}
    return reports.write(out.with_suffix(".json"), figures, run, {name: out}, {name: calibration | figures | facts})


def untrained_card(architecture: str) -> Card:
    """Return the card of a detector that has no weights yet."""
    facts = registry.ARCHITECTURES[architecture]
    return Card(
        name=architecture,
        title=facts.title,
        paper=facts.paper,
        weights=architecture,
        input_size=registry.EMBEDDED_SIZE,
        mean=registry.channels(facts.mean),
        std=registry.channels(facts.std),
        outputs=facts.outputs,
        cam_layer=facts.cam_layer,
        trained_on="",
        licence="",
        errors=(),
        known_failures="",
    )


def _calibration(
    network: nn.Module, card: Card, examples: labelled.Examples, architecture: str, defence: Name
) -> dict[str, float]:
    """Return threshold and temperature; that of a defended detector holds for photographs saved again, too."""
    untuned, photographs = Detector(network, card).eval(), examples.of(labelled.REAL)
    fake = examples.kinds != labelled.REAL
    saved = measure.log_odds(untuned, like_photographs(examples.pictures))  # where fakes count, both classes end alike
    as_they_are = saved[~fake] if defence == "none" else measure.log_odds(untuned, photographs)
    if architecture in recipes.BALANCED:
        threshold = measure.balanced_threshold(saved, fake)
    else:
        threshold = measure.threshold(as_they_are, false_alarms=FALSE_ALARMS)
    if defence != "none":
        after = [measure.log_odds(untuned, honesty.changed(photographs, change)) for change in honesty.CHANGES]
        threshold = honesty.steady_threshold(threshold, as_they_are, after, MORE_ALARMS)
    temperature = measure.temperature(saved - threshold, fake)
    return {"threshold": float(f"{threshold:.5g}"), "temperature": float(f"{temperature:.5g}")}


def _facts(architecture: str, settings: DetectorSettings, photographs: str, learned: str) -> dict[str, Any]:
    """Return what the registry's entry says beyond the calibration."""
    command = f"python -m backend train detector {architecture}"
    if architecture not in recipes.MEASURED:
        command += f" --steps {settings.steps}"
    if settings.defence != "shipped":
        command += f" --defence {settings.defence}"
    if settings.initial:
        command += f" --initial {settings.initial.split(',', maxsplit=1)[0]}"
    if settings.adversarial:
        command += f" --adversarial {settings.adversarial}"
    usual = asdict(detector.settings_for(architecture, defence=settings.defence))
    if settings.seed != usual["seed"]:
        command += f" --seed {settings.seed}"
    for key, value in asdict(settings).items():
        if key not in SAID and value != usual[key]:
            command += f" --set {shlex.quote(f'{key}={json.dumps(value)}')}"
    facts: dict[str, Any] = {"source": f"{command}, on {photographs}", "defence": settings.defence}
    facts |= {"trained_on": learned, "mirrored": settings.mirrored}
    if settings.defence == "shipped" and not settings.adversarial:
        return facts
    title = registry.ARCHITECTURES[architecture].title
    attacked = ""
    if settings.adversarial:
        attack = named(settings.adversarial).title
        attacked = f", with fakes after {attack} among the fakes: the strong defence of TR-Net's paper"
    how = {"none": "undefended", "weak": "weak defence", "shipped": "own defence"}[settings.defence]
    return facts | {
        "architecture": architecture,
        "title": f"{title}, {how}{' and strong defence' if settings.adversarial else ''}",
        "trained_on": f"{learned}; {HOW[settings.defence]}{attacked}",
    }
