"""The `train` commands: each reads its settings file, trains (or resumes), measures, and writes safetensors."""

import argparse
import shlex
import signal
from pathlib import Path
from typing import Any

from backend import face_packs, fakes, settings
from backend.detectors import registry
from backend.errors import UserError
from backend.generators import inversion
from backend.progress import finish
from backend.training import detector, finetune, install, loop, trnet
from backend.training.encoder import train_encoder, train_joint
from backend.training.ganprintr import train_ganprintr
from backend.training.generator import train_generator
from backend.training.loop import _OnStep

UNCHANGEABLE = {"fakes", "references"}  # what they do, their own options say


def train_fakes(
    data: Path, out: Path, on_step: _OnStep, *, per_kind: int, seed: int, packs: str, kinds: str, redrawn: float
) -> loop.Report:
    """Write fakes made from the photographs in `data` to the folder `out`."""
    unknown = set(kinds.split(",")) - set(fakes.FAKE_KINDS)
    if unknown:
        raise UserError(
            f"There is no kind of fake named {', '.join(unknown)}.", f"Kinds: {', '.join(fakes.FAKE_KINDS)}."
        )
    if packs != "*" and not list(data.glob(f"{packs}.tar")):
        raise UserError(f"There is no pack named {packs}.tar in {data.name}.", "Leave out --packs for a plain folder.")
    if not 0 <= redrawn <= 1:
        raise UserError("--redrawn is a share of the swaps.", "Give a number from 0 to 1.")
    inverter = None if kinds == "swap" and not redrawn else inversion.load_embedded_inverter()
    photographs = face_packs.load_photographs(data, registry.EMBEDDED_SIZE, packs)
    settings = fakes.FakesSettings(per_kind, seed, tuple(kinds.split(",")), redrawn=redrawn)
    made = finish(fakes.build_fakes(photographs, out, inverter, settings), on_step)
    return {"metrics": made.counts | {"skipped": made.skipped}, "files": {"manifest": str(out / "manifest.csv")}}


def _refuse_conflicts(options: argparse.Namespace) -> None:
    """Refuse arguments that exclude each other."""
    if options.source and (options.what != "encoder" or options.install or options.initial or options.codes):
        raise UserError(
            "--from belongs to `train encoder`, without --install, --initial and --codes.",
            "See: python -m backend train --help",
        )
    if options.recipe is not None and (
        options.what not in {"generator", "encoder", "joint", "trnet"} or options.source
    ):
        raise UserError(
            "--recipe belongs to generator, encoder, joint and trnet.", "See: python -m backend train --help"
        )
    if options.minutes is not None and (options.what not in {"generator", "encoder", "joint"} or options.source):
        raise UserError("--minutes belongs to generator, encoder and joint.", "See: python -m backend train --help")
    if options.what == "joint" and options.initial:
        raise UserError("joint starts from the installed weights.", "Leave out --initial.")


def _recipe_and_minutes(options: argparse.Namespace) -> dict[str, Any]:
    """Return recipe and minutes, where they are given."""
    chosen = {"recipe": options.recipe, "minutes": options.minutes}
    return {name: value for name, value in chosen.items() if value is not None}


def _generator_or_encoder(options: argparse.Namespace, on_step: _OnStep, given: dict[str, Any]) -> loop.Report:
    """Train the embedded generator, encoder or both, or fine-tune a published encoder, with changed settings."""
    data, out, given = options.data, options.out, given | {"seed": options.seed}
    if options.source:
        return finetune.finetune_encoder(options.source, data, out, on_step, **given)
    given |= _recipe_and_minutes(options)
    if options.what == "joint":
        return train_joint(data, out, on_step, codes=options.codes, **given)
    if options.what == "generator":
        return train_generator(data, out, on_step, initial=options.initial, codes=options.codes, **given)
    return train_encoder(data, out, on_step, codes=options.codes, initial=options.initial, **given)


def run_train(options: argparse.Namespace, on_step: _OnStep) -> loop.Report:
    """Run the `train` command that the command line names; a request to end saves a checkpoint first."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    data, out, seed = options.data, options.out, options.seed
    _refuse_conflicts(options)
    given = settings.parse_setting_changes(options.set) | ({} if options.steps is None else {"steps": options.steps})
    if given and options.what in UNCHANGEABLE:
        raise UserError(f"{options.what} has no settings file.", "Leave out --set and --steps.")
    trained_on = "" if options.what == "fakes" else install.describe_photographs(data, options.describe)
    if options.what in {"generator", "encoder", "joint"}:
        report = _generator_or_encoder(options, on_step, given)
    elif options.what == "ganprintr":
        report = train_ganprintr(data, out, on_step, seed=seed, **given)
    elif options.what == "fakes":
        chosen = {"per_kind": options.per_kind, "packs": options.packs, "kinds": options.kinds}
        report = train_fakes(data, out, on_step, seed=seed, redrawn=options.redrawn, **chosen)
    elif options.what in {"trnet", "references"}:
        if not options.fakes:
            raise UserError("Name the fakes with --fakes DIR.", "DIR is a folder that `train fakes` wrote.")
        if options.what == "trnet":
            given |= {"initial": options.initial, "seed": seed} | _recipe_and_minutes(options)
            report = trnet.train_trnet(data, options.fakes, out, on_step, **given)
        else:
            report = trnet.measure_references(data, options.fakes, out, on_step)
    else:
        if options.name not in registry.names() or not options.fakes:
            raise UserError("Name a detector and its fakes.", f"Detectors: {', '.join(registry.names())}; --fakes DIR.")
        report = detector.train_detector(
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
            facts = {"source": f"{_typed_command(options)}, on {trained_on}"} | report["options"][name]
            install.install_weights(name, Path(file), facts, trained_on)
        if {"generator", "encoder"} & set(report["files"]):
            install.note_visibility()
    return report


def _typed_command(options: argparse.Namespace) -> str:
    """Return the command that was given, as far as it decides the weights, without the folders of this machine."""
    words = ["python -m backend train", options.what, *([options.name] if options.name else [])]
    if options.initial:
        words += ["--initial", Path(options.initial).name]
    if options.recipe:
        words += ["--recipe", options.recipe]
    if options.minutes is not None:
        words += ["--minutes", f"{options.minutes:g}"]
    if options.steps is not None:
        words += ["--steps", str(options.steps)]
    for change in options.set or []:
        words += ["--set", shlex.quote(change)]
    return " ".join(words)
