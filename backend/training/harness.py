"""What every training run shares: settings, checkpoints, exact resumption, a CSV of every loss.

A task holds its modules and optimisers and computes one step from the step's number alone (data order,
augmentation and noise come from seeds), so a run that is stopped and resumed gives the same weights as one
that was not.
"""

import csv
import json
import math
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar, get_args, get_origin, get_type_hints

import torch
from torch import nn

from backend.errors import UserError
from backend.progress import Job, Step

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

SETTINGS = Path(__file__).parent / "settings"
S = TypeVar("S")


class Task(Protocol):
    """A model in training."""

    total: int

    def modules(self) -> Mapping[str, nn.Module]:
        """Return what a checkpoint holds, by name."""

    def optimizers(self) -> Mapping[str, torch.optim.Optimizer]:
        """Return the optimisers, by name."""

    def step(self, number: int) -> Mapping[str, float | torch.Tensor]:
        """Train one step and return its losses, as numbers or as tensors () without gradient."""

    def preview(self) -> torch.Tensor | None:
        """Return a sheet of samples (1, 3, H, W) in [0, 1], or nothing."""


@dataclass(frozen=True)
class Run:
    """What a finished run reports."""

    steps: int
    seconds: float
    losses: dict[str, float]
    settings: dict[str, Any]


def recipe_file(recipes: Mapping[str, str], name: str, of: str) -> str:
    """Return the settings file of a recipe; `of` says whose recipes they are.

    Raises:
        UserError: There is no such recipe.
    """
    if name not in recipes:
        raise UserError(f"There is no recipe named {name} for {of}.", f"Recipes: {', '.join(recipes)}.")
    return recipes[name]


def run_folder(out: Path, name: str, recipe: str, usual: str) -> Path:
    """Return where a run of a recipe keeps its checkpoints; recipes other than the usual one are named."""
    return out / (f"{name}-run" if recipe == usual else f"{name}-{recipe}-run")


def read_settings(kind: type[S], name: str, **changes: Any) -> S:
    """Read `settings/NAME.toml` into the dataclass `kind`; keyword arguments that are not None win.

    Raises:
        UserError: There is no setting of a name.
    """
    values = tomllib.loads((SETTINGS / f"{name}.toml").read_text(encoding="utf-8"))
    return kind(**checked(kind, values | checked(kind, changes)))


def checked(kind: type, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the changes that are not None.

    Raises:
        UserError: `kind`, a dataclass of settings, has none of a name, or a value is not of its kind.
    """
    types = get_type_hints(kind)
    known = {entry.name for entry in fields(kind)}
    unknown = set(changes) - known
    if unknown:
        raise UserError(
            f"There is no setting named {', '.join(sorted(unknown))}.", f"Settings: {', '.join(sorted(known))}."
        )
    given = {key: value for key, value in changes.items() if value is not None}
    for key, value in given.items():
        wanted = types[key]
        if wanted is bool and not isinstance(value, bool):
            raise UserError(f"{key} is either true or false, not {value}.", f"For example: --set {key}=false.")
        if wanted is int and (isinstance(value, bool) or not isinstance(value, int)):
            raise UserError(f"{key} is a whole number, not {value}.", f"For example: --set {key}=8.")
        if wanted is float and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise UserError(f"{key} is a number, not {value}.", f"For example: --set {key}=0.5.")
        if get_origin(wanted) is Literal and value not in get_args(wanted):
            choices = ", ".join(str(one) for one in get_args(wanted))
            raise UserError(f"{key} cannot be {value}.", f"Choose among: {choices}.")
    return given


def save_checkpoint(task: Task, folder: Path, step: int) -> Path:
    """Write modules, optimisers and the step's number; an interrupted write leaves the old file."""
    path = folder / "checkpoint.pt"
    state = {
        "step": step,
        "modules": {name: module.state_dict() for name, module in task.modules().items()},
        "optimizers": {name: optimizer.state_dict() for name, optimizer in task.optimizers().items()},
    }
    temporary = path.with_suffix(".tmp")
    torch.save(state, temporary)
    temporary.replace(path)
    return path


def load_checkpoint(task: Task, folder: Path) -> int:
    """Restore a task from its folder and return the number of steps already done (0 without a file).

    Raises:
        UserError: The folder holds a run of another kind.
    """
    path = folder / "checkpoint.pt"
    if not path.exists():
        return 0
    state = torch.load(path, map_location="cpu", weights_only=True)
    if set(state["modules"]) != set(task.modules()):
        raise UserError("The checkpoint in this folder is of another kind of run.", "Give another folder with --out.")
    try:
        for name, module in task.modules().items():
            module.load_state_dict(state["modules"][name])
    except RuntimeError:
        raise UserError(
            "The checkpoint in this folder is of networks of another form.",
            "Give another folder with --out, or the settings of the run with --set.",
        ) from None
    for name, optimizer in task.optimizers().items():
        implementation = optimizer.param_groups[0].get("fused")
        optimizer.load_state_dict(state["optimizers"][name])
        for group in optimizer.param_groups:
            group["fused"] = implementation  # a choice of the code, not of the checkpoint
    return int(state["step"])


def train(
    task: Task,
    folder: Path,
    settings: object,
    *,
    checkpoint_every: int = 500,
    log_every: int = 20,
    minutes: float = math.inf,
) -> Job[Run]:
    """Train a task to its last step, or for some minutes, resuming from `folder` if it holds a checkpoint."""
    folder.mkdir(parents=True, exist_ok=True)
    described: dict[str, Any] = asdict(settings)  # type: ignore[call-overload]
    start = load_checkpoint(task, folder)
    (folder / "settings.json").write_text(json.dumps(described, indent=1), encoding="utf-8")
    log = LossLog(folder / "losses.csv", start)
    begun = time.perf_counter()
    window: dict[str, list[float | torch.Tensor]] = {}
    means: dict[str, float] = {}
    done = start
    try:
        for number in range(start, task.total):
            for name, value in task.step(number).items():
                window.setdefault(name, []).append(value)
            done = number + 1
            ends = done == task.total or time.perf_counter() - begun > 60 * minutes
            if done % log_every == 0 or ends:
                means = {name: float(sum(values) / len(values)) for name, values in window.items()}
                window.clear()
                log.write(done, time.perf_counter() - begun, means)
                described_losses = ", ".join(f"{name} {value:.4f}" for name, value in means.items())
                yield Step(done, task.total, described_losses, values=means)
            if done % checkpoint_every == 0:
                save_checkpoint(task, folder, done)
                sheet = task.preview()
                if sheet is not None:
                    yield Step(done, task.total, "checkpoint", preview=sheet)
            if ends:
                break
    finally:
        if done > start:
            save_checkpoint(task, folder, done)
    return Run(done, time.perf_counter() - begun, means, described)


class LossLog:
    """A CSV with one line a window; lines after the step a run resumes from are dropped."""

    def __init__(self, path: Path, start: int) -> None:
        self.path = path
        self.rows: list[dict[str, str]] = []
        if path.exists():
            with path.open(newline="", encoding="utf-8") as file:
                self.rows = [row for row in csv.DictReader(file) if int(row["step"]) <= start]

    def write(self, step: int, seconds: float, losses: Mapping[str, float]) -> None:
        """Append one line and write the file anew, so that new columns can appear."""
        values = {name: f"{value:.6g}" for name, value in losses.items()}
        self.rows.append({"step": str(step), "seconds": f"{seconds:.1f}"} | values)
        columns = list(dict.fromkeys(name for row in self.rows for name in row))
        with self.path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(self.rows)


def update_average(average: nn.Module, current: nn.Module, decay: float) -> None:
    """Move an exponential moving average of the weights one step; buffers are copied."""
    with torch.no_grad():
        for kept, weight in zip(average.parameters(), current.parameters(), strict=True):
            kept.lerp_(weight, 1 - decay)
        for old, new in zip(average.buffers(), current.buffers(), strict=True):
            old.copy_(new)
