"""`train generator`: by a recipe of one's choice, from nothing or from trained weights."""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from backend import weights
from backend.errors import UserError
from backend.progress import Step, finish
from backend.training import datasets, harness, principal_codes, reports, sheets, starting
from backend.training.adversarial import AdversarialSettings, AdversarialTask
from backend.training.generator import GeneratorSettings, GeneratorTask
from backend.training.principal_codes import PrincipalCodes

CODES = "codes.safetensors"
# Name to the settings file: a regression, StyleGAN2's training, or the latter as the second half of the former.
RECIPES = {"regression": "generator", "adversarial": "generator_adversarial", "continued": "generator_continued"}


def train_generator(
    data: Path,
    out: Path,
    on_step: Callable[[Step], None],
    *,
    recipe: str = "regression",
    initial: str | None = None,
    codes: Path | None = None,
    minutes: float = math.inf,
    **changes: Any,
) -> reports.Report:
    """Train the generator and write it, and the codes that an encoder run starts from, to the folder `out`.

    Args:
        data: Folder of aligned faces.
        out: Where weights, checkpoints, sheets and report go.
        on_step: Called at every step.
        recipe: One of `RECIPES`.
        initial: Weights to start from.
        codes: For the recipe continued: the codes that the run before it left beside those weights.
        minutes: After which it stops; the same call goes on from there.
        changes: Settings other than those of the recipe's file.

    Raises:
        UserError: There is no such recipe, or it continues weights and none are given.
    """
    settings = settings_of(recipe, initial, **changes)
    if recipe == "continued" and not initial:
        raise UserError("The recipe continued needs trained weights.", "Add --initial installed, or a file.")
    if codes and recipe != "continued":
        raise UserError("For the generator, --codes belongs to --recipe continued.", "Leave out --codes.")
    photographs, held_out = datasets.split(data, settings.size)
    known = principal_codes.load(codes) if codes else None
    task = task_of(settings, photographs.pictures, sheets.shown(held_out), known)
    if initial:
        fitted = "style." if recipe == "regression" else None  # which fits the mapping at its end in any case
        label = starting.load(initial, "generator", (task.generator, task.average), "generator.", without=fitted)
        settings = dataclasses.replace(settings, initial=label)
    folder = harness.run_folder(out, "generator", recipe, "regression")
    job = harness.train(task, folder, settings, checkpoint_every=task.checkpoint_every, minutes=minutes)
    run = finish(sheets.with_sheets(job, folder), on_step)
    file = out / "generator.safetensors"
    weights.save_half(file, task.finished())
    if task.codes is not None:
        save_file({key: value.cpu().contiguous() for key, value in task.codes.state_dict().items()}, out / CODES)
    shape = {
        "size": settings.size,
        "mapping_layers": settings.mapping_layers,
        "channels": settings.channels,
        "template": "embedded",
    }
    return reports.write(out / "generator.json", run.losses, run, {"generator": file}, {"generator": shape})


def settings_of(recipe: str, initial: str | None = None, **changes: Any) -> GeneratorSettings | AdversarialSettings:
    """Read the settings of a recipe; a discriminator joins installed weights in the shape that they have.

    Raises:
        UserError: There is none of that name.
    """
    file = harness.recipe_file(RECIPES, recipe, "the generator")
    if recipe == "regression":
        return harness.read_settings(GeneratorSettings, file, **changes)
    if initial == starting.INSTALLED:
        options = weights.entry("generator").options
        changes = {name: options[name] for name in ("size", "mapping_layers", "channels")} | changes
    return harness.read_settings(AdversarialSettings, file, **changes)


def task_of(
    settings: GeneratorSettings | AdversarialSettings, pictures: Tensor, held_out: Tensor, codes: PrincipalCodes | None
) -> GeneratorTask | AdversarialTask:
    """Return the task for settings of either kind."""
    if isinstance(settings, GeneratorSettings):
        return GeneratorTask(pictures, settings, held_out)
    return AdversarialTask(pictures, settings, held_out, codes)
