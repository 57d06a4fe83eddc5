"""`train encoder` and `train joint`: the encoder against the generator in `weights/`, and both together."""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from backend import weights
from backend.errors import UserError
from backend.generators import inversion
from backend.progress import Step, finish
from backend.training import datasets, growing, harness, measure, principal_codes, reports, sheets, starting
from backend.training.datasets import Photographs
from backend.training.encoder import EncoderSettings, EncoderTask
from backend.training.joint import JointSettings, JointTask

# Name to the settings file, by how the generator was, or is, trained.
RECIPES = {"regression": "encoder", "adversarial": "encoder_adversarial"}
JOINT_RECIPES = {"adversarial": "joint", "regression": "joint_regression"}


def train_encoder(
    data: Path,
    out: Path,
    on_step: Callable[[Step], None],
    *,
    codes: Path | None,
    recipe: str = "regression",
    initial: str | None = None,
    minutes: float = math.inf,
    **changes: Any,
) -> reports.Report:
    """Train the encoder against the generator in `weights/` and write it to the folder `out`.

    `codes` is the file that the generator's run left beside it; without it, pictures alone are trained on. The other
    arguments are those of `generator_run.train_generator`.
    """
    settings = harness.read_settings(EncoderSettings, harness.recipe_file(RECIPES, recipe, "the encoder"), **changes)
    photographs, held_out, tensors, drawing = _given(data)
    task = EncoderTask(
        photographs.pictures,
        settings,
        sheets.shown(held_out),
        codes=principal_codes.load(codes) if codes else None,
        **drawing,
    )
    if initial:
        if initial == starting.INSTALLED:
            _check_looks(settings)
        label = starting.load(initial, "encoder", (task.encoder, task.average), adapt=growing.grown)
        settings = dataclasses.replace(settings, initial=label)
    folder = harness.run_folder(out, "encoder", recipe, "regression")
    run = finish(sheets.with_sheets(harness.train(task, folder, settings, minutes=minutes), folder), on_step)
    return _written(out, "encoder", run, task, settings, tensors, held_out)


def train_joint(
    data: Path,
    out: Path,
    on_step: Callable[[Step], None],
    *,
    codes: Path | None = None,
    recipe: str = "adversarial",
    minutes: float = math.inf,
    **changes: Any,
) -> reports.Report:
    """Fine-tune the encoder and the generator in `weights/` together and write both to the folder `out`.

    `codes` is what the generator's run left beside it; a linear path that the installed encoder lacks is fitted to it.
    The other arguments are those of `generator_run.train_generator`; a recipe is one of `JOINT_RECIPES`.

    Raises:
        UserError: A linear path is to be fitted, and no codes are given.
    """
    file = harness.recipe_file(JOINT_RECIPES, recipe, "joint training")
    settings = harness.read_settings(JointSettings, file, **changes)
    photographs, held_out, tensors, drawing = _given(data)
    _check_looks(settings)
    task = JointTask(photographs.pictures, settings, sheets.shown(held_out), **drawing)
    known = weights.entry("encoder").options.get("linear", 0)
    missing = "linear." if settings.linear and not known else None
    if missing and not codes:
        raise UserError("The installed encoder has no linear path yet.", "Add --codes, or --set linear=0.")
    label = starting.load(
        starting.INSTALLED, "encoder", (task.encoder, task.average), without=missing, adapt=growing.grown
    )
    if missing and codes:
        task.begin_linear(principal_codes.load(codes))
    settings = dataclasses.replace(settings, initial=label)
    folder = harness.run_folder(out, "joint", recipe, "adversarial")
    run = finish(sheets.with_sheets(harness.train(task, folder, settings, minutes=minutes), folder), on_step)
    return _written(out, "joint", run, task, settings, tensors | task.finished(), held_out)


def _check_looks(settings: EncoderSettings) -> None:
    """Refuse to go on with fewer looks than the installed encoder has learned: nothing in its weights would tell."""
    known = weights.entry("encoder").options.get("feedback", [])
    if len(settings.feedback) < len(known):
        raise UserError(
            f"The installed encoder looks at a face {len(known) + 1} times.", f"Add --set feedback={known}."
        )


def _given(data: Path) -> tuple[Photographs, Photographs, dict[str, Tensor], dict[str, Any]]:
    """Return photographs, held-out ones, the tensors of the generator in `weights/`, and what a task needs of it."""
    options, tensors = weights.entry("generator").options, weights.load_entry("generator")
    drawing = {
        "generator": inversion.generator_from(tensors, options),
        "latent_average": tensors["latent_average"][0],
        "size": options["size"],
    }
    return *datasets.split(data, options["size"]), tensors, drawing


def _written(
    out: Path,
    name: str,
    run: harness.Run,
    task: EncoderTask,
    settings: EncoderSettings,
    tensors: dict[str, Tensor],
    held_out: Photographs,
) -> reports.Report:
    """Write the encoder, for a joint run the generator too, and the report NAME.json with the inversion's figures."""
    options = weights.entry("generator").options
    encoded = {key: value.cpu() for key, value in task.average.state_dict().items()}
    files = {"encoder": out / "encoder.safetensors"}
    shape = {name: getattr(settings, name) for name in (*inversion.SHAPE, "feedback")}
    shapes: dict[str, Any] = {"encoder": shape}
    weights.save_half(files["encoder"], encoded)
    if name == "joint":
        files["generator"], shapes["generator"] = out / "generator.safetensors", {}
        weights.save_half(files["generator"], tensors)
    inverter = inversion.from_tensors(tensors, encoded, options, shapes["encoder"], "generator")
    metrics = measure.inversion(inverter, held_out.pictures)
    return reports.write(out / f"{name}.json", metrics, run, files, shapes)
