"""The training loop: settings, schedule, checkpoints, exact resumption, losses, sample sheets and the report.

A task computes each step from its number alone: data order, augmentation and noise come from seeds. So a run that is
stopped and resumed gives the same weights as one that was not.
"""

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import pydantic
import torch
from pydantic import BeforeValidator
from torch import Tensor, nn
from torch.nn import functional as F

from backend import face_packs, images, runtime, weights
from backend.errors import UserError
from backend.face_packs import Photographs
from backend.progress import Job, Running, Step, finish
from backend.settings import validation_error

SETTINGS_FOLDER = Path(__file__).parent / "settings"
INSTALLED = "installed"  # in place of a file: the weights of the registry's entry
SHEET_FACES = 8
CURVE_COLUMNS = 3
CURVE_SIZE = (3.2, 2.0)  # inches of one plot
# Names that settings had before, which the command line still takes.
OLD_NAMES = {
    "history": "degradation",
    "own": "architectures",
    "beside": "compared_with",
    "weight_named": "weight_source_real",
    "weight_untouched": "weight_original",
    "disturbed": "degraded_share",
    "saved": "as_jpeg",
    "ahead": "pretraining_steps",
    "batch_ahead": "pretraining_batch",
    "lr_ahead": "pretraining_lr",
    "kept_share": "mixing_share",
    "bfloat16": "precision",
}
# `auto` is bfloat16 where the device computes it itself, and float32 elsewhere. Settings once said true or false.
PrecisionSetting = Annotated[
    Literal["auto", "float32", "bfloat16"],
    BeforeValidator(lambda value: {True: "auto", False: "float32"}[value] if isinstance(value, bool) else value),
]
Report = dict[str, Any]
OnStep = Callable[[Step], None]
S = TypeVar("S")


@dataclass(frozen=True)
class Stage:
    resolution: int  # side of the pictures in pixels
    batch: int
    rate: float


class Schedule:
    """Stages one after the other, and a learning rate that falls to a tenth at the end.

    Args:
        stages: Rows of resolution, steps, batch size and rate.
        decay_share: Share of all steps, in [0, 1], in which the rate falls; they are the last ones.
    """

    def __init__(self, stages: Sequence[Sequence[float]], decay_share: float) -> None:
        self.stages = stages
        self.decay_share = decay_share
        self.total = sum(int(row[1]) for row in stages)

    def at(self, number: int) -> Stage:
        factor = self.decay(number)
        for resolution, steps, batch, rate in self.stages:
            if number < steps:
                return Stage(int(resolution), int(batch), rate * factor)
            number -= int(steps)
        raise IndexError("the run has fewer steps")

    def decay(self, number: int) -> float:
        """Return the factor on the rates of step `number`, from 1 down to 0.1."""
        start = self.total * (1 - self.decay_share)
        return float(0.1 ** max(0.0, (number - start) / max(1.0, self.total - start)))


class TrainingTask:
    total: int  # steps of the whole run
    computes_in: str = "float32"  # of its networks, and why
    modules: dict[str, nn.Module]  # saved in checkpoints
    optimizers: dict[str, torch.optim.Optimizer]

    def step(self, number: int) -> Mapping[str, float | Tensor]:
        """Train one step and return its losses, as numbers or as tensors () without gradient."""
        raise NotImplementedError

    def preview(self) -> Tensor | None:
        """Return a sheet of samples (1, 3, H, W) in [0, 1], or None."""
        return None


@dataclass(frozen=True)
class TrainingRun:
    steps: int
    seconds: float
    losses: dict[str, float]
    settings: dict[str, Any]


def find_recipe(recipes: Mapping[str, str], name: str, owner: str) -> str:
    """Return the settings file of a recipe; `owner` says in a message whose recipes they are.

    Raises:
        UserError: There is no such recipe.
    """
    if name not in recipes:
        raise UserError(f"There is no recipe named {name} for {owner}.", f"Recipes: {', '.join(recipes)}.")
    return recipes[name]


def run_folder(out: Path, name: str, recipe: str, default: str) -> Path:
    """Return the folder of a run's checkpoints; a recipe other than the default is part of its name."""
    return out / (f"{name}-run" if recipe == default else f"{name}-{recipe}-run")


def read_settings(kind: type[S], name: str, **changes: Any) -> S:
    """Read `settings/NAME.toml` into the dataclass `kind`; keyword arguments that are not None win.

    Raises:
        UserError: An unknown setting is named, or a value has the wrong type.
    """
    values = weights.read_toml(SETTINGS_FOLDER / f"{name}.toml")
    return build_settings(kind, values | check_names(kind, changes))


def build_settings(kind: type[S], values: Mapping[str, Any]) -> S:
    """Build the dataclass `kind` from values by name.

    Raises:
        UserError: A setting is unknown, or a value has the wrong type.
    """
    try:
        return pydantic.TypeAdapter(kind).validate_python(check_names(kind, values))
    except pydantic.ValidationError as error:
        raise validation_error(error) from None


def check_names(kind: type, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the changes that are not None, old names replaced by current ones.

    Raises:
        UserError: `kind`, a dataclass of settings, has no such setting.
    """
    names = {field.name for field in fields(kind)}
    changes = {key if key in names else OLD_NAMES.get(key, key): value for key, value in changes.items()}
    if unknown := sorted(set(changes) - names):
        raise UserError(f"There is no setting named {', '.join(unknown)}.", f"Settings: {', '.join(sorted(names))}.")
    return {key: value for key, value in changes.items() if value is not None}


def save_checkpoint(task: TrainingTask, folder: Path, step: int) -> Path:
    """Write modules, optimisers and the step's number; an interrupted write leaves the old file."""
    path = folder / "checkpoint.pt"
    state = {
        "step": step,
        "modules": {name: module.state_dict() for name, module in task.modules.items()},
        "optimizers": {name: optimizer.state_dict() for name, optimizer in task.optimizers.items()},
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
    if set(state["modules"]) != set(task.modules):
        raise UserError("The checkpoint in this folder is of another kind of run.", "Give another folder with --out.")
    try:
        for name, module in task.modules.items():
            module.load_state_dict(state["modules"][name])
    except RuntimeError:
        raise UserError(
            "The checkpoint in this folder has a different architecture.",
            "Give another folder with --out, or the settings of the run with --set.",
        ) from None
    for name, optimizer in task.optimizers.items():
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
    values: dict[str, Any] = asdict(settings) | {"computed_in": task.computes_in}  # type: ignore[call-overload]
    start = load_checkpoint(task, folder)
    (folder / "settings.json").write_text(json.dumps(values, indent=1), encoding="utf-8")
    log = LossLog(folder / "losses.csv", start)
    started = time.perf_counter()
    window: dict[str, list[float | Tensor]] = {}
    means: dict[str, float] = {}
    done = start
    yield Step(start, task.total, f"The networks compute in {task.computes_in}.")
    try:
        for number in range(start, task.total):
            for name, value in task.step(number).items():
                window.setdefault(name, []).append(value)
            done = number + 1
            ends = done == task.total or time.perf_counter() - started > 60 * minutes
            if done % log_every == 0 or ends:
                means = {name: float(sum(parts) / len(parts)) for name, parts in window.items()}
                window.clear()
                text = ", ".join(f"{name} {value:.4f}" for name, value in means.items())
                log.write(done, time.perf_counter() - started, means)
                yield Step(done, task.total, text, values=means)
            if done % checkpoint_every == 0:
                save_checkpoint(task, folder, done)
                if (sheet := task.preview()) is not None:
                    yield Step(done, task.total, "checkpoint", preview=sheet)
            if ends:
                break
    finally:
        if done > start:
            save_checkpoint(task, folder, done)
    return TrainingRun(done, time.perf_counter() - started, means, values)


class LossLog:
    """A CSV with one row per window; rows after the step from which a run resumes are dropped."""

    def __init__(self, path: Path, start: int) -> None:
        import pandas as pd

        self.path = path
        written = path.exists() and path.stat().st_size > 0  # a run may have been stopped while it wrote
        self.table = pd.read_csv(path, dtype=str) if written else pd.DataFrame({"step": []}, dtype=str)
        self.table = self.table[self.table["step"].astype(int) <= start]

    def write(self, step: int, seconds: float, losses: Mapping[str, float]) -> None:
        """Append a row and rewrite the file, because columns may be new."""
        import pandas as pd

        row = {"step": str(step), "seconds": f"{seconds:.1f}"} | {name: f"{loss:.6g}" for name, loss in losses.items()}
        self.table = pd.concat([self.table, pd.DataFrame([row])])
        self.table.to_csv(self.path, index=False)


def draw_curves(table: Path, out: Path) -> Path:
    """Write a PNG with a curve for every column of a loss table, and return its path."""
    import pandas as pd
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    losses = pd.read_csv(table, index_col="step").drop(columns="seconds")
    count = max(1, -(-losses.shape[1] // CURVE_COLUMNS))
    figure = Figure(figsize=(CURVE_SIZE[0] * CURVE_COLUMNS, CURVE_SIZE[1] * count), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(count, CURVE_COLUMNS, squeeze=False).ravel()
    for axes in grid[losses.shape[1] :]:
        axes.set_axis_off()
    for axes, (name, values) in zip(grid, losses.items(), strict=False):
        axes.plot(values.dropna(), linewidth=1)
        axes.set_title(name, fontsize=9)
        axes.tick_params(labelsize=8)
    figure.savefig(out)
    return out


def run_task(task: TrainingTask, folder: Path, settings: object, on_step: OnStep, **options: Any) -> TrainingRun:
    """Train a task to its end, as `train_task` does, and write its previews to `folder`."""
    return finish(write_sheets(train_task(task, folder, settings, **options), folder), on_step)


def write_sheets(job: Job[TrainingRun], folder: Path) -> Job[TrainingRun]:
    """Pass a run's steps on, and write every preview as a PNG to `folder`; closing this closes the run."""
    with Running(job) as running:
        for step in running:
            if step.preview is not None:
                (folder / f"sheet-{step.number:06d}.png").write_bytes(images.encode_png(images.to_array(step.preview)))
            yield step
    return running.result


def write_report(path: Path, metrics: Report, run: TrainingRun, files: dict[str, Path], options: Report) -> Report:
    """Write the report of a finished run and return it.

    Files, and the options of their registry entries, are given by the names under which they are installed.
    """
    report = {
        "metrics": metrics,
        "seconds": round(run.seconds, 1),
        "run": asdict(run),
        "files": {name: str(file) for name, file in files.items()},
        "sha256": {name: weights.file_hash(file) for name, file in files.items()},
        "options": options,
    }
    path.write_text(json.dumps(report, indent=1), encoding="utf-8")
    return report


def load_initial(
    source: str,
    name: str,
    networks: Sequence[nn.Module],
    prefix: str = "",
    *,
    without: str | None = None,
    adapt: Callable[[Mapping[str, Tensor], Any], Mapping[str, Tensor]] | None = None,
) -> str:
    """Load weights into networks of one architecture, and return the file's name and hash.

    Args:
        source: A file, or `installed` for the registry's entry.
        name: Name of that entry.
        networks: The network in training and its average.
        prefix: Prefix of the tensor names to load; it is removed.
        without: Prefix of tensors in the networks that stay as they are.
        adapt: Turns the tensors of the file into those of a network.

    Raises:
        UserError: There is no such file, or it holds another network.
    """
    path = weights.find_entry(name).path if source == INSTALLED else Path(source)
    state = weights.read_checkpoint(path)
    tensors = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    try:
        for network in networks:
            kept = {key: value for key, value in network.state_dict().items() if without and key.startswith(without)}
            loaded = {key: value for key, value in tensors.items() if not (without and key.startswith(without))}
            loaded = dict(adapt(loaded, network)) if adapt else loaded
            network.load_state_dict(loaded | kept, strict=True)  # halves become floats, as in the network
    except RuntimeError:
        raise UserError(
            f"The weights in {path.name} are of another network than the one to be trained.",
            "Give a file that the same command wrote, or leave out --initial.",
        ) from None
    return f"{path.name}, sha256 {weights.file_hash(path)}"


@dataclass(frozen=True)
class Arithmetic:
    """How a device computes."""

    device: torch.device
    dtype: torch.dtype  # of feature maps; R1 and path lengths differentiate twice, in float32
    compiled: bool  # of networks that are not differentiated twice

    @classmethod
    def for_device(
        cls, device: torch.device, *, compiled: bool = False, precision: PrecisionSetting = "auto"
    ) -> "Arithmetic":
        """Return how a device computes with these settings; only CUDA gains from compiling."""
        half = precision == "bfloat16" or (precision == "auto" and runtime.fast_bfloat16(device))
        return cls(device, torch.bfloat16 if half else torch.float32, compiled and device.type == "cuda")

    def in_words(self) -> str:
        """Say what networks compute in, and why."""
        if self.dtype == torch.float32:
            slow = not runtime.fast_bfloat16(self.device)
            return "float32: this device does not compute bfloat16 itself" if slow else "float32"
        return "bfloat16" if runtime.fast_bfloat16(self.device) else "bfloat16, which is slow on this device"

    def compile(self, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return torch.compile(function) if self.compiled else function

    def autocast(self) -> torch.autocast:
        """Return a context in which networks compute with `dtype`, as far as that is safe."""
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    def generator_for(self, seed: int, number: int) -> torch.Generator:
        return step_generator(seed, number, self.device)


def step_generator(seed: int, number: int, device: torch.device | str = "cpu") -> torch.Generator:
    """Return the random numbers of step `number` of the run with a seed."""
    return torch.Generator(device).manual_seed(seed * 1_000_003 + number)


def draw_faces(pictures: Tensor, batch: int, seed: int, number: int) -> Tensor:
    """Return the faces (batch, 3, S, S) in [-1, 1] of one step, half of them mirrored, on the pictures' device."""
    chosen = pictures[face_packs.draw_indices(len(pictures), batch, seed=seed, step=number)]
    flips = (torch.rand(batch, 1, 1, 1, generator=step_generator(seed, number)) < 0.5).to(pictures.device)
    return torch.where(flips, chosen.flip(3), chosen).float() / 127.5 - 1


def update_weights(
    optimizer: torch.optim.Optimizer, loss: Tensor, rate: float | None = None, *, max_norm: float = 5.0
) -> None:
    """Take one step of an optimiser, at a new rate if given, with gradients clipped to the norm `max_norm`."""
    if rate is not None:
        set_rate(optimizer, rate)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    for group in optimizer.param_groups:
        nn.utils.clip_grad_norm_(group["params"], max_norm)
    optimizer.step()


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate


def update_average(average: nn.Module, current: nn.Module, decay: float, number: int | None = None) -> None:
    """Move an exponential moving average of the weights one step; buffers are copied.

    Given the step's `number`, the first steps decay faster, so that the start is soon forgotten.
    """
    if number is not None:
        decay = min(decay, (1 + number) / (10 + number))
    with torch.no_grad():
        for mean, weight in zip(average.parameters(), current.parameters(), strict=True):
            mean.lerp_(weight, 1 - decay)
        for old, new in zip(average.buffers(), current.buffers(), strict=True):
            old.copy_(new)


def shrink_pictures(faces: Tensor, size: int) -> Tensor:
    """Average (N, 3, S, S) pictures down to `size` pixels."""
    return faces if faces.shape[-1] == size else F.interpolate(faces, size=(size, size), mode="area")


def pick_shown(photographs: Photographs) -> Tensor:
    """Return the pictures for sample sheets, uint8 (K, 3, S, S)."""
    return thin_pictures(photographs.pictures, SHEET_FACES)


def thin_pictures(pictures: Tensor, count: int) -> Tensor:
    """Return at most `count` pictures at regular distances."""
    return pictures[:: max(1, len(pictures) // count)][:count]


def join_sheet(*rows: Tensor) -> Tensor:
    """Stack rows of faces (K, 3, S, S) in [-1, 1] into one picture (1, 3, H, W) in [0, 1]."""
    joined = torch.cat([torch.cat(list(row.cpu()), dim=2) for row in rows], dim=1)
    return (joined[None] / 2 + 0.5).clamp(0, 1)
