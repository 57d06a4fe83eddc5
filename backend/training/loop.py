"""The training loop: settings, schedule, checkpoints, exact resumption, losses, sample sheets and the report.

A task holds its modules and optimisers and computes one step from the step's number alone (data order, augmentation
and noise come from seeds), so a run that is stopped and resumed gives the same weights as one that was not.
"""

import csv
import dataclasses
import json
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar, get_args, get_origin, get_type_hints

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backend import face_packs, images, weights
from backend.errors import UserError
from backend.face_packs import Photographs
from backend.progress import Job, Running, Step

_OnStep = Callable[[Step], None]


@dataclass(frozen=True)
class Stage:
    """What one step does.

    Args:
        resolution: Side of the pictures in pixels.
        batch: Pictures.
        rate: Learning rate.
    """

    resolution: int
    batch: int
    rate: float


class Schedule:
    """Stages one after the other, and a rate that falls to a tenth at the end.

    Args:
        stages: Rows of resolution, steps, batch size and rate.
        decay_share: The last share of all steps, in [0, 1], in which the rate falls.
    """

    def __init__(self, stages: Sequence[Sequence[float]], decay_share: float) -> None:
        self.stages = stages
        self.decay_share = decay_share
        self.total = sum(int(row[1]) for row in stages)

    def at(self, number: int) -> Stage:
        """Return what step `number` does."""
        factor = self.decay(number)
        for resolution, steps, batch, rate in self.stages:
            if number < steps:
                return Stage(int(resolution), int(batch), rate * factor)
            number -= int(steps)
        raise IndexError("the run has fewer steps")

    def decay(self, number: int) -> float:
        """Return what the rates of step `number` are multiplied with, from 1 down to 0.1."""
        start = self.total * (1 - self.decay_share)
        return float(0.1 ** max(0.0, (number - start) / max(1.0, self.total - start)))


if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


SETTINGS_FOLDER = Path(__file__).parent / "settings"

S = TypeVar("S")


class TrainingTask(Protocol):
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
class TrainingRun:
    """What a finished run reports."""

    steps: int
    seconds: float
    losses: dict[str, float]
    settings: dict[str, Any]


def find_recipe(recipes: Mapping[str, str], name: str, of: str) -> str:
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
    values = tomllib.loads((SETTINGS_FOLDER / f"{name}.toml").read_text(encoding="utf-8"))
    return kind(**check_settings(kind, values | check_settings(kind, changes)))


def check_settings(kind: type, changes: Mapping[str, Any]) -> dict[str, Any]:
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


def save_checkpoint(task: TrainingTask, folder: Path, step: int) -> Path:
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


def load_checkpoint(task: TrainingTask, folder: Path) -> int:
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


def train_task(
    task: TrainingTask,
    folder: Path,
    settings: object,
    *,
    checkpoint_every: int = 500,
    log_every: int = 20,
    minutes: float = math.inf,
) -> Job[TrainingRun]:
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
    return TrainingRun(done, time.perf_counter() - begun, means, described)


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


Report = dict[str, Any]


def write_report(path: Path, metrics: Report, run: TrainingRun, files: dict[str, Path], options: Report) -> Report:
    """Write the report of a finished run and return it.

    Args:
        path: Where it goes.
        metrics: What was measured on held-out pictures.
        run: The run.
        files: Model files by the name under which they are installed.
        options: Options of the registry's entry, by the same names.
    """
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


SHOWN_FACES = 8


def write_sheets(job: Job[TrainingRun], folder: Path) -> Job[TrainingRun]:
    """Pass a run's steps on, and write every preview as a PNG to `folder`; closing this closes the run."""
    with Running(job) as running:
        for step in running:
            if step.preview is not None:
                (folder / f"sheet-{step.number:06d}.png").write_bytes(images.encode_png(images.to_array(step.preview)))
            yield step
    return running.result


def pick_shown(photographs: Photographs) -> Tensor:
    """Return the pictures for sample sheets, uint8 (K, 3, S, S)."""
    return photographs.pictures[:: max(1, len(photographs) // SHOWN_FACES)][:SHOWN_FACES]


INSTALLED = "installed"


def load_initial(
    given: str,
    name: str,
    networks: Sequence[nn.Module],
    prefix: str = "",
    *,
    without: str | None = None,
    adapt: Callable[[Mapping[str, Tensor], Any], Mapping[str, Tensor]] | None = None,
) -> str:
    """Load weights, in float16 or float32, into networks of one kind, and return which they were.

    Args:
        given: A file, or `installed` for the registry's entry.
        name: Name of that entry.
        networks: The network in training and its average.
        prefix: What the names of the file's tensors begin with; others are left out.
        without: What the names of a network's tensors begin with that stay as they are.
        adapt: Makes tensors for a network out of the file's.

    Raises:
        UserError: There is no such file, or it holds another network.
    """
    path = weights.find_entry(name).path if given == INSTALLED else Path(given)
    state = weights.read_checkpoint(path)
    own = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    try:
        for network in networks:
            kept = {key: value for key, value in network.state_dict().items() if without and key.startswith(without)}
            taken = {key: value for key, value in own.items() if not (without and key.startswith(without))}
            taken = dict(adapt(taken, network)) if adapt else taken
            network.load_state_dict(taken | kept, strict=True)  # halves become floats, as in the network
    except RuntimeError:
        raise UserError(
            f"The weights in {path.name} are of another network than the one to be trained.",
            "Give a file that the same command wrote, or leave out --initial.",
        ) from None
    return f"{path.name}, sha256 {weights.file_hash(path)}"


CURVE_COLUMNS = 3

CURVE_SIZE = (3.2, 2.0)  # inches of one plot


def draw_curves(table: Path, out: Path) -> Path:
    """Write a PNG with one curve a column over the step, and return its path."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with table.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    names = [name for name in rows[0] if name not in {"step", "seconds"}] if rows else []
    count = max(1, -(-len(names) // CURVE_COLUMNS))
    figure = Figure(figsize=(CURVE_SIZE[0] * CURVE_COLUMNS, CURVE_SIZE[1] * count), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(count, CURVE_COLUMNS, squeeze=False).ravel()
    for axes in grid[len(names) :]:
        axes.set_axis_off()
    for axes, name in zip(grid, names, strict=False):
        known = [row for row in rows if row[name]]
        axes.plot([int(row["step"]) for row in known], [float(row[name]) for row in known], linewidth=1)
        axes.set_title(name, fontsize=9)
        axes.tick_params(labelsize=8)
    figure.savefig(out)
    return out


@dataclass(frozen=True)
class Arithmetic:
    """How a device computes.

    Args:
        device: Where.
        dtype: Of feature maps; what R1 and path lengths differentiate twice stays float32.
        compiled: Whether networks are compiled where they are not differentiated twice.
    """

    device: torch.device
    dtype: torch.dtype
    compiled: bool

    @classmethod
    def of(cls, device: torch.device, *, compiled: bool, bfloat16: bool = False) -> "Arithmetic":
        """Return bfloat16 where CUDA computes with it or where it is asked for, float32 elsewhere.

        Only CUDA gains from compiling.
        """
        cuda = device.type == "cuda"
        half = bfloat16 or (cuda and torch.cuda.is_bf16_supported())
        return cls(device, torch.bfloat16 if half else torch.float32, compiled and cuda)

    def ready(self, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """Return the function, compiled if that is wanted."""
        return torch.compile(function) if self.compiled else function

    def narrow(self) -> torch.autocast:
        """Return a context in which networks compute with `dtype`, as far as that is safe."""
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    def randomness(self, seed: int, number: int) -> torch.Generator:
        """Return the random numbers of one step."""
        return torch.Generator(self.device).manual_seed(seed * 1_000_003 + number)


def draw_faces(pictures: Tensor, batch: int, seed: int, number: int) -> Tensor:
    """Return the faces (batch, 3, S, S) in [-1, 1] of one step, half of them mirrored, on the pictures' device."""
    randomness = torch.Generator().manual_seed(seed * 1_000_003 + number)
    chosen = pictures[face_packs.draw_indices(len(pictures), batch, seed=seed, step=number)]
    flips = (torch.rand(batch, 1, 1, 1, generator=randomness) < 0.5).to(pictures.device)
    return torch.where(flips, chosen.flip(3), chosen).float() / 127.5 - 1


def update_weights(optimizer: torch.optim.Optimizer, loss: Tensor, rate: float, *, longest: float = 5.0) -> None:
    """Make one step of an optimiser at a rate, with gradients no longer than `longest`."""
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    for group in optimizer.param_groups:
        nn.utils.clip_grad_norm_(group["params"], longest)
    optimizer.step()


def shrink_pictures(faces: Tensor, size: int) -> Tensor:
    """Average (N, 3, S, S) pictures down to `size` pixels."""
    return faces if faces.shape[-1] == size else F.interpolate(faces, size=(size, size), mode="area")


def join_sheet(*rows: Tensor) -> Tensor:
    """Put rows of faces (K, 3, S, S) in [-1, 1] below each other, as one picture (1, 3, H, W) in [0, 1]."""
    joined = torch.cat([torch.cat(list(row), dim=2) for row in rows], dim=1)
    return (joined[None] / 2 + 0.5).clamp(0, 1)
