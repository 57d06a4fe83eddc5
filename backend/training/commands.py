"""The `train` commands: each reads its settings file, trains (or resumes), measures, and writes safetensors."""

import argparse
import dataclasses
import shlex
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from backend import arguments, weights
from backend.detectors import registry
from backend.errors import UserError
from backend.generators import inversion
from backend.progress import Step, finish
from backend.training import (
    datasets,
    description,
    detector_run,
    encoder,
    fakes,
    finetune_run,
    generator,
    harness,
    install,
    measure,
    principal_codes,
    reports,
    starting,
    trnet_run,
)
from backend.training.datasets import Photographs
from backend.training.ganprintr import GanprintrSettings, GanprintrTask, copying
from backend.training.sheets import with_sheets

CODES = "codes.safetensors"
UNCHANGEABLE = {"fakes", "references"}  # what they do, their own options say
OnStep = Callable[[Step], None]


def train_generator(
    data: Path, out: Path, on_step: OnStep, *, initial: str | None = None, **changes: Any
) -> reports.Report:
    """Train the generator and write it, and the codes that an encoder run starts from, to the folder `out`."""
    settings = harness.read_settings(generator.GeneratorSettings, "generator", **changes)
    photographs, held_out = datasets.split(data, settings.size)
    task = generator.GeneratorTask(photographs.pictures, settings, _shown(held_out))
    if initial:
        label = starting.load(initial, "generator", (task.generator, task.average), "generator.")
        settings = dataclasses.replace(settings, initial=label)
    run = finish(with_sheets(harness.train(task, out / "generator-run", settings), out / "generator-run"), on_step)
    file = out / "generator.safetensors"
    weights.save_half(file, task.finished())
    save_file({key: value.contiguous() for key, value in task.codes.state_dict().items()}, out / CODES)
    shape = {
        "size": settings.size,
        "mapping_layers": settings.mapping_layers,
        "channels": settings.channels,
        "template": "embedded",
    }
    return reports.write(out / "generator.json", run.losses, run, {"generator": file}, {"generator": shape})


def train_encoder(
    data: Path, out: Path, on_step: OnStep, *, codes: Path | None, initial: str | None = None, **changes: Any
) -> reports.Report:
    """Train the encoder against the generator in `weights/` and write it to the folder `out`.

    `codes` is the file that the generator's run left beside it; without it, pictures alone are trained on.
    """
    settings = harness.read_settings(encoder.EncoderSettings, "encoder", **changes)
    options = weights.entry("generator").options
    photographs, held_out = datasets.split(data, options["size"])
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
    if initial:
        label = starting.load(initial, "encoder", (task.encoder, task.average))
        settings = dataclasses.replace(settings, initial=label)
    run = finish(with_sheets(harness.train(task, out / "encoder-run", settings), out / "encoder-run"), on_step)
    file = out / "encoder.safetensors"
    encoded = dict(task.average.state_dict())
    weights.save_half(file, encoded)
    shape = {"input_size": settings.input_size, "width": settings.width}
    inverter = inversion.from_tensors(tensors, encoded, options, shape, "generator")
    metrics = measure.inversion(inverter, held_out.pictures)
    return reports.write(out / "encoder.json", metrics, run, {"encoder": file}, {"encoder": shape})


def train_fakes(
    data: Path, out: Path, on_step: OnStep, *, per_kind: int, seed: int, packs: str, kinds: str
) -> reports.Report:
    """Write fakes made from the photographs in `data` to the folder `out`."""
    unknown = set(kinds.split(",")) - set(fakes.KINDS)
    if unknown:
        raise UserError(f"There is no kind of fake named {', '.join(unknown)}.", f"Kinds: {', '.join(fakes.KINDS)}.")
    if packs != "*" and not list(data.glob(f"{packs}.tar")):
        raise UserError(f"There is no pack named {packs}.tar in {data.name}.", "Leave out --packs for a plain folder.")
    inverter = None if kinds == "swap" else inversion.load()
    photographs = datasets.load(data, registry.EMBEDDED_SIZE, packs)
    made = finish(
        fakes.build(photographs, out, inverter, fakes.FakesSettings(per_kind, seed, tuple(kinds.split(",")))), on_step
    )
    return {"metrics": made.counts | {"skipped": made.skipped}, "files": {"manifest": str(out / "manifest.csv")}}


def train_ganprintr(data: Path, out: Path, on_step: OnStep, **changes: Any) -> reports.Report:
    """Train GANprintR's autoencoder on photographs alone and write `out` (a .safetensors file)."""
    settings = harness.read_settings(GanprintrSettings, "ganprintr", **changes)
    photographs, held_out = datasets.split(data, settings.size)
    task = GanprintrTask(photographs.pictures, settings, _shown(held_out))
    folder = out.parent / "ganprintr-run"
    run = finish(with_sheets(harness.train(task, folder, settings), folder), on_step)
    network = task.average.half().float()  # as it is stored
    weights.save_half(out, network.state_dict())
    metrics = copying(network, held_out.pictures)
    options = {"latent": settings.latent} | metrics
    return reports.write(out.with_suffix(".json"), metrics, run, {"ganprintr": out}, {"ganprintr": options})


def _shown(photographs: Photographs) -> torch.Tensor:
    """Return eight pictures for sample sheets."""
    return photographs.pictures[:: max(1, len(photographs) // 8)][:8]


def _check(options: argparse.Namespace) -> None:
    """Refuse arguments that exclude each other."""
    if options.source and (options.what != "encoder" or options.install or options.initial or options.codes):
        raise UserError(
            "--from belongs to `train encoder`, without --install, --initial and --codes.",
            "See: python -m backend train --help",
        )


def _encoder(options: argparse.Namespace, on_step: OnStep, given: dict[str, Any]) -> reports.Report:
    """Train the embedded encoder, or fine-tune a published one, with changed settings."""
    data, out, seed = options.data, options.out, options.seed
    if options.source:
        return finetune_run.finetune_encoder(options.source, data, out, on_step, seed=seed, **given)
    return train_encoder(data, out, on_step, codes=options.codes, initial=options.initial, seed=seed, **given)


def run(options: argparse.Namespace, on_step: OnStep) -> reports.Report:
    """Run the `train` command that the command line names; a request to end saves a checkpoint first."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    data, out, seed = options.data, options.out, options.seed
    _check(options)
    given = arguments.changes(options.set) | ({} if options.steps is None else {"steps": options.steps})
    if given and options.what in UNCHANGEABLE:
        raise UserError(f"{options.what} has no settings file.", "Leave out --set and --steps.")
    trained_on = "" if options.what == "fakes" else description.photographs(data, options.describe)
    if options.what == "generator":
        report = train_generator(data, out, on_step, initial=options.initial, seed=seed, **given)
    elif options.what == "encoder":
        report = _encoder(options, on_step, given)
    elif options.what == "ganprintr":
        report = train_ganprintr(data, out, on_step, seed=seed, **given)
    elif options.what == "fakes":
        report = train_fakes(
            data, out, on_step, per_kind=options.per_kind, seed=seed, packs=options.packs, kinds=options.kinds
        )
    elif options.what in {"trnet", "references"}:
        if not options.fakes:
            raise UserError("Name the fakes with --fakes DIR.", "DIR is a folder that `train fakes` wrote.")
        if options.what == "trnet":
            report = trnet_run.train_trnet(data, options.fakes, out, on_step, seed=seed, **given)
        else:
            report = trnet_run.measure_references(data, options.fakes, out, on_step)
    else:
        if options.name not in registry.names() or not options.fakes:
            raise UserError("Name a detector and its fakes.", f"Detectors: {', '.join(registry.names())}; --fakes DIR.")
        report = detector_run.train_detector(
            options.name,
            data,
            options.fakes,
            out,
            on_step,
            photographs=trained_on,
            initial=options.initial,
            adversarial=options.adversarial,
            seed=seed,
            defence=options.defence,
            **given,
        )
    if options.install and options.what != "fakes":
        for name, file in report["files"].items():
            facts = {"source": f"{_command(options)}, on {trained_on}"} | report["options"][name]
            install.install(name, Path(file), facts, trained_on)
    return report


def _command(options: argparse.Namespace) -> str:
    """Return the command that was given, as far as it decides the weights, without the folders of this machine."""
    words = ["python -m backend train", options.what, *([options.name] if options.name else [])]
    if options.initial:
        words += ["--initial", Path(options.initial).name]
    if options.steps is not None:
        words += ["--steps", str(options.steps)]
    for change in options.set or []:
        words += ["--set", shlex.quote(change)]
    return " ".join(words)
