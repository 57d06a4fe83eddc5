"""The `train` commands: each reads its settings file, trains (or resumes), measures, and writes safetensors."""

import argparse
import dataclasses
import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

from backend import weights
from backend.detectors import registry
from backend.detectors.card import Card, Detector
from backend.errors import UserError
from backend.generators import inversion
from backend.progress import Job, Step, finish
from backend.training import datasets, detector, encoder, fakes, generator, harness, install, measure, principal_codes
from backend.training.datasets import Photographs
from backend.training.ganprintr import GanprintrSettings, GanprintrTask, copying

TRAIN, VALIDATION, WILD = "real-train*", "real-val*", "wild*"
CALIBRATION_PART = 20  # one photograph in so many is kept from training, to set thresholds
MEASURING_PART = 5  # of the wild pack, one in so many only measures
AGAINST = {"ciplab_photoshop": "ciplab_real"}
CODES = "codes.safetensors"
FALSE_ALARMS = 0.04  # share of calibration photographs that the threshold lets pass as fake
Report = dict[str, Any]
OnStep = Callable[[Step], None]


def train_generator(data: Path, out: Path, on_step: OnStep, **changes: Any) -> Report:
    """Train the generator and write it, and the codes that an encoder run starts from, to the folder `out`."""
    settings = harness.read_settings(generator.GeneratorSettings, "generator", **changes)
    photographs, held_out = _split(data, settings.size)
    task = generator.GeneratorTask(photographs.pictures, settings, _shown(held_out))
    run = finish(_with_sheets(harness.train(task, out / "generator-run", settings), out / "generator-run"), on_step)
    file = out / "generator.safetensors"
    weights.save_half(file, task.finished())
    save_file({key: value.contiguous() for key, value in task.codes.state_dict().items()}, out / CODES)
    shape = {
        "size": settings.size,
        "mapping_layers": settings.mapping_layers,
        "channels": settings.channels,
        "template": "embedded",
    }
    return _report(out / "generator.json", run.losses, run, {"generator": file}, {"generator": shape})


def train_encoder(data: Path, out: Path, on_step: OnStep, *, codes: Path | None, **changes: Any) -> Report:
    """Train the encoder against the generator in `weights/` and write it to the folder `out`.

    `codes` is the file that the generator's run left beside it; without it, pictures alone are trained on.
    """
    settings = harness.read_settings(encoder.EncoderSettings, "encoder", **changes)
    options = weights.entry("generator").options
    photographs, held_out = _split(data, options["size"])
    tensors = weights.load_entry("generator")
    drawing = inversion.generator_from(tensors, options)
    task = encoder.EncoderTask(
        photographs.pictures,
        settings,
        _shown(held_out),
        generator=drawing,
        codes=principal_codes.load(codes) if codes else None,
        latent_average=tensors["latent_average"][0],
        size=options["size"],
    )
    run = finish(_with_sheets(harness.train(task, out / "encoder-run", settings), out / "encoder-run"), on_step)
    file = out / "encoder.safetensors"
    encoded = dict(task.average.state_dict())
    weights.save_half(file, encoded)
    shape = {"input_size": settings.input_size, "width": settings.width}
    inverter = inversion.from_tensors(tensors, encoded, options, shape, "generator")
    metrics = measure.inversion(inverter, held_out.pictures)
    return _report(out / "encoder.json", metrics, run, {"encoder": file}, {"encoder": shape})


def train_fakes(data: Path, out: Path, on_step: OnStep, *, per_kind: int, seed: int, packs: str, kinds: str) -> Report:
    """Write fakes made from the photographs in `data` to the folder `out`."""
    unknown = set(kinds.split(",")) - set(fakes.KINDS)
    if unknown:
        raise UserError(f"There is no kind of fake named {', '.join(unknown)}.", f"Kinds: {', '.join(fakes.KINDS)}.")
    inverter = None if kinds == "swap" else inversion.load().to(torch.device("cpu"))
    photographs = datasets.load(data, registry.EMBEDDED_SIZE, packs)
    made = finish(
        fakes.build(photographs, out, inverter, fakes.FakesSettings(per_kind, seed, tuple(kinds.split(",")))), on_step
    )
    return {"metrics": made.counts | {"skipped": made.skipped}, "files": {"manifest": str(out / "manifest.csv")}}


def train_detector(name: str, data: Path, fakes_dir: Path, out: Path, on_step: OnStep, **changes: Any) -> Report:
    """Train one embedded detector, calibrate it, measure it, and write `out` (a .safetensors file)."""
    options = changes.pop("options", {})
    settings = harness.read_settings(detector.DetectorSettings, "detector", **changes)
    card = _untrained_card(name)
    training, calibrating, held_out = _examples(data, fakes_dir, card.input_size)
    torch.manual_seed(settings.seed)
    network = registry.build_embedded(name, options)
    task = detector.DetectorTask(network, card, training, settings)
    run = finish(harness.train(task, out.parent / f"{name}-run", settings, checkpoint_every=200), on_step)
    average = task.average.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    half = {
        key: value.half().float() if value.is_floating_point() else value for key, value in average.state_dict().items()
    }
    average.load_state_dict(half)
    scores = measure.log_odds(Detector(average, card).eval(), calibrating.pictures)
    fake = calibrating.kinds != detector.REAL
    threshold, temperature = measure.calibration(scores, fake, false_alarms=FALSE_ALARMS)
    ready = Detector(average, card, temperature=temperature, threshold=threshold).eval()
    rates = measure.error_rates(ready, held_out, AGAINST)
    weights.save_half(out, half)
    calibration = {"threshold": round(threshold, 4), "temperature": round(temperature, 4), "errors": rates}
    return _report(out.with_suffix(".json"), {"errors": rates}, run, {name: out}, {name: options | calibration})


def train_ganprintr(data: Path, out: Path, on_step: OnStep, **changes: Any) -> Report:
    """Train GANprintR's autoencoder on photographs alone and write `out` (a .safetensors file)."""
    settings = harness.read_settings(GanprintrSettings, "ganprintr", **changes)
    photographs, held_out = _split(data, settings.size)
    task = GanprintrTask(photographs.pictures, settings, _shown(held_out))
    folder = out.parent / "ganprintr-run"
    run = finish(_with_sheets(harness.train(task, folder, settings), folder), on_step)
    network = task.average.half().float()  # as it is stored
    weights.save_half(out, network.state_dict())
    metrics = copying(network, held_out.pictures)
    options = {"latent": settings.latent} | metrics
    return _report(out.with_suffix(".json"), metrics, run, {"ganprintr": out}, {"ganprintr": options})


def _split(data: Path, size: int) -> tuple[Photographs, Photographs]:
    """Read training and validation photographs; a folder without packs gives one in twenty to validation."""
    if list(data.glob("*.tar")):
        return datasets.load(data, size, TRAIN), datasets.load(data, size, VALIDATION)
    everything = datasets.load(data, size)
    held = [datasets.one_in(CALIBRATION_PART, name) for name in everything.names]
    indices = range(len(held))
    return everything.subset([i for i in indices if not held[i]]), everything.subset([i for i in indices if held[i]])


def _shown(photographs: Photographs) -> torch.Tensor:
    """Return eight pictures for sample sheets."""
    return photographs.pictures[:: max(1, len(photographs) // 8)][:8]


def _examples(data: Path, fakes_dir: Path, size: int) -> tuple[detector.Examples, detector.Examples, detector.Examples]:
    """Return examples for training, for setting the threshold, and held out for the error rates."""
    real, real_held = _split(data, size)
    parts: list[list[Row]] = [[], [], []]
    parts[2] = [Row(picture, detector.REAL, "", "") for picture in real_held.pictures]
    for name, picture in zip(real.names, real.pictures, strict=True):
        held = datasets.one_in(CALIBRATION_PART, name)
        parts[1 if held else 0].append(Row(picture, detector.REAL, name, ""))
    for target, folder in ((0, fakes_dir / "train"), (2, fakes_dir / "val")):
        made = datasets.load(folder, size)
        origin = fakes.origins(folder)
        for name, picture in zip(made.names, made.pictures, strict=True):
            held = target == 0 and datasets.one_in(CALIBRATION_PART, origin.get(name) or name)
            parts[1 if held else target].append(Row(picture, name.split("/")[0], name, origin.get(name, "")))
    if list(data.glob(f"{WILD}.tar")):
        wild = datasets.load(data, size, WILD)
        for name, picture in zip(wild.names, wild.pictures, strict=True):
            kind = name.split("/")[0]
            measures = datasets.one_in(MEASURING_PART, name)
            label = detector.REAL if kind.endswith("_real") and not measures else kind
            parts[2 if measures else 0].append(Row(picture, label, name, ""))
    return tuple(_as_examples(part) for part in parts)  # type: ignore[return-value]


class Row(NamedTuple):
    """One labelled picture with its name and the name of the photograph it was made from."""

    picture: torch.Tensor
    kind: str
    name: str
    origin: str


def _as_examples(rows: list[Row]) -> detector.Examples:
    where = {row.name: index for index, row in enumerate(rows) if row.kind == detector.REAL}
    origins = np.array([where.get(row.origin, -1) if row.origin else -1 for row in rows])
    return detector.Examples(torch.stack([row.picture for row in rows]), np.array([row.kind for row in rows]), origins)


def _untrained_card(name: str) -> Card:
    architecture = registry.ARCHITECTURES[name]
    return Card(
        name=name,
        title=architecture.title,
        paper=architecture.paper,
        weights=name,
        input_size=registry.EMBEDDED_SIZE,
        mean=(architecture.mean,) * 3,
        std=(architecture.std,) * 3,
        outputs=architecture.outputs,
        cam_layer=architecture.cam_layer,
        trained_on="",
        licence="",
        errors=(),
        known_failures="",
    )


def _with_sheets(job: Job[harness.Run], folder: Path) -> Job[harness.Run]:
    """Write every sample sheet that a run yields."""
    while True:
        try:
            step = next(job)
        except StopIteration as stop:
            return stop.value
        if step.preview is not None:
            pixels = (step.preview[0].permute(1, 2, 0) * 255).round().byte().numpy()
            Image.fromarray(pixels).save(folder / f"sheet-{step.number:06d}.png")
        yield step


def _report(path: Path, metrics: Report, run: harness.Run, files: dict[str, Path], options: Report) -> Report:
    report = {
        "metrics": metrics,
        "seconds": round(run.seconds, 1),
        "run": dataclasses.asdict(run),
        "files": {name: str(file) for name, file in files.items()},
        "sha256": {name: weights.file_hash(file) for name, file in files.items()},
        "options": options,
    }
    path.write_text(json.dumps(report, indent=1), encoding="utf-8")
    return report


def run(options: argparse.Namespace, on_step: OnStep) -> Report:
    """Run the `train` command that the command line names; a request to end saves a checkpoint first."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    data, out, seed = options.data, options.out, options.seed
    if options.what == "generator":
        report = train_generator(data, out, on_step, seed=seed)
    elif options.what == "encoder":
        report = train_encoder(data, out, on_step, codes=options.codes, seed=seed)
    elif options.what == "ganprintr":
        report = train_ganprintr(data, out, on_step, steps=options.steps, seed=seed)
    elif options.what == "fakes":
        report = train_fakes(
            data, out, on_step, per_kind=options.per_kind, seed=seed, packs=options.packs, kinds=options.kinds
        )
    else:
        if options.name not in registry.names() or options.fakes is None:
            raise UserError("Name a detector and its fakes.", f"Detectors: {', '.join(registry.names())}; --fakes DIR.")
        report = train_detector(options.name, data, options.fakes, out, on_step, steps=options.steps, seed=seed)
    if options.install and options.what != "fakes":
        for name, file in report["files"].items():
            install.install(name, Path(file), report["options"][name])
    return report
