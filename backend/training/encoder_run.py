"""`train encoder` and `train joint`: the encoder against the generator in `weights/`, and both together."""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from backend import weights
from backend.generators import inversion
from backend.progress import Step, finish
from backend.training import datasets, harness, measure, principal_codes, reports, sheets, starting
from backend.training.datasets import Photographs
from backend.training.encoder import EncoderSettings, EncoderTask
from backend.training.joint import JointSettings, JointTask

# Name to the settings file, by how the generator was trained.
RECIPES = {"regression": "encoder", "adversarial": "encoder_adversarial"}


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
        label = starting.load(initial, "encoder", (task.encoder, task.average))
        settings = dataclasses.replace(settings, initial=label)
    folder = out / ("encoder-run" if recipe == "regression" else f"encoder-{recipe}-run")
    run = finish(sheets.with_sheets(harness.train(task, folder, settings, minutes=minutes), folder), on_step)
    return _written(out, "encoder", run, task, settings, tensors, held_out)


def train_joint(
    data: Path, out: Path, on_step: Callable[[Step], None], *, minutes: float = math.inf, **changes: Any
) -> reports.Report:
    """Fine-tune the encoder and the generator in `weights/` together and write both to the folder `out`."""
    settings = harness.read_settings(JointSettings, "joint", **changes)
    photographs, held_out, tensors, drawing = _given(data)
    task = JointTask(photographs.pictures, settings, sheets.shown(held_out), **drawing)
    label = starting.load(starting.INSTALLED, "encoder", (task.encoder, task.average))
    settings = dataclasses.replace(settings, initial=label)
    folder = out / "joint-run"
    run = finish(sheets.with_sheets(harness.train(task, folder, settings, minutes=minutes), folder), on_step)
    drawn = {f"generator.{key}": value.cpu() for key, value in task.generator_average.state_dict().items()}
    return _written(out, "joint", run, task, settings, tensors | drawn, held_out)


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
    shapes: dict[str, Any] = {"encoder": {"input_size": settings.input_size, "width": settings.width}}
    weights.save_half(files["encoder"], encoded)
    if name == "joint":
        files["generator"], shapes["generator"] = out / "generator.safetensors", {}
        weights.save_half(files["generator"], tensors)
    inverter = inversion.from_tensors(tensors, encoded, options, shapes["encoder"], "generator")
    metrics = measure.inversion(inverter, held_out.pictures)
    return reports.write(out / f"{name}.json", metrics, run, files, shapes)
