"""Train TR-Net from photographs and fakes to a measured file, and measure the reference statistics of its views."""

import copy
import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from backend import images, weights
from backend.counterfactual.traces import likeness
from backend.detectors import registry
from backend.errors import UserError
from backend.progress import Step, finish
from backend.trace_removal import losses, references
from backend.trace_removal.network import TRNet
from backend.trace_removal.trnet import ENTRY
from backend.training import curves, datasets, harness, pairs, reports, starting
from backend.training.pairs import Pairs
from backend.training.sheets import with_sheets
from backend.training.trnet import TRNetTask
from backend.training.trnet_settings import TRNetSettings

OnStep = Callable[[Step], None]
RECIPES = {"embedded": "trnet", "paper": "trnet_paper", "code": "trnet_code"}  # to the settings file
MEASURED = 200  # held-out pairs of each kind
REFERENCED = 2000  # pictures of each group, as the paper averages
BATCH = 32


def train_trnet(
    data: Path,
    folders: Sequence[Path],
    out: Path,
    on_step: OnStep,
    *,
    recipe: str = "embedded",
    initial: str | None = None,
    **changes: Any,
) -> reports.Report:
    """Train TR-Net on pairs, measure it on held-out pairs, and write `out` (a .safetensors file).

    No detector takes part.

    Args:
        data: Photographs.
        folders: Folders of fakes made from them, with `train/` and `val/`.
        out: Where the weights go; the run's folder, its curves and the report lie beside it.
        on_step: Called at every step.
        recipe: One of `RECIPES`.
        initial: Weights to start from; the discriminators start anew.
        changes: Settings that differ from those of the recipe's file.

    Raises:
        UserError: There is no such recipe, or a setting has no such name.
    """
    settings = settings_of(recipe, **changes)
    training, held_out = _pairs(data, folders, settings.size)
    task = TRNetTask(training, settings, held_out)
    if initial:
        label = starting.load(initial, ENTRY, (task.network, task.average))
        settings = dataclasses.replace(settings, initial=label)
    elif settings.kept_share < 1:
        raise UserError("kept_share mixes weights with those that a run starts from.", "Name them with --initial.")
    before = copy.deepcopy(task.average).cpu().state_dict()
    folder = out.parent / f"{ENTRY}-run"
    run = finish(with_sheets(harness.train(task, folder, settings, checkpoint_every=200), folder), on_step)
    losses = folder / "losses.csv"  # none where weights are only measured anew
    drawn = {"curves": str(curves.draw(losses, folder / "curves.png"))} if losses.exists() else {}
    mixes = settings.kept_share < 1  # batch statistics, too, which are then not measured anew
    network = task.average.eval() if mixes else task.finished()
    network = network.to("cpu", memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    half = weights.rounded_to_half(_mixed(network.state_dict(), before, settings.kept_share))
    network.load_state_dict(half)
    weights.save_half(out, half)
    options: dict[str, Any] = {
        "width": settings.width,
        "statistics": settings.statistics,
        "residual": settings.residual,
        "bound": settings.bound,
        "grain": settings.grain,
        "by_contrast": settings.by_contrast,
    }
    options |= {"settings": {key: value for key, value in asdict(settings).items() if key not in options}}
    metrics = measured(network, held_out)
    report = reports.write(
        out.with_suffix(".json"), metrics, run, {ENTRY: out}, {ENTRY: options | {"measured": metrics}}
    )
    return report | drawn


def _mixed(after: Mapping[str, Tensor], before: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
    """Return weights and batch statistics between those before and after a run (Wortsman et al. 2109.01903)."""
    return {
        name: before[name].lerp(value, share) if value.is_floating_point() else value for name, value in after.items()
    }


def settings_of(recipe: str, **changes: Any) -> TRNetSettings:
    """Read the settings of a recipe.

    Raises:
        UserError: There is no such recipe, or a setting has no such name.
    """
    return harness.read_settings(TRNetSettings, harness.recipe_file(RECIPES, recipe, "TR-Net"), **changes)


@torch.no_grad()
def measured(network: TRNet, held_out: Pairs) -> dict[str, dict[str, float]]:
    """Measure 8-bit removals of held-out fakes, by kind.

    Returns:
        By kind: `psnr` in dB and `ssim` of removal and fake (mean), their deviations, `count`, and how far the
        power spectrum of fake and removal is from the photograph's (mean squared difference of natural logarithms).
    """
    found = {}
    for kind in held_out.kinds:
        chosen = held_out.of(kind)
        if not len(chosen):
            continue
        alike, before, after = [], [], []
        stride = max(1, len(chosen) // MEASURED)
        for real, fake in zip(chosen.real[::stride].split(BATCH), chosen.fake[::stride].split(BATCH), strict=True):
            made = (network.remove(fake.float() / 255) * 255).round() / 255
            alike += [likeness(_pixels(one), images.to_array(two)) for one, two in zip(fake, made, strict=True)]
            wanted = real.float() / 255
            before.append(float(losses.profile_loss("log", wanted, fake.float() / 255)))
            after.append(float(losses.profile_loss("log", wanted, made)))
        # Of a picture that did not change at all there is no PSNR to average.
        psnr = np.array([one["psnr"] for one in alike if one["psnr"] is not None])
        ssim = np.array([one["ssim"] for one in alike])
        found[kind] = {
            "psnr": round(float(psnr.mean()), 2),
            "psnr_std": round(float(psnr.std()), 2),
            "ssim": round(float(ssim.mean()), 4),
            "ssim_std": round(float(ssim.std()), 4),
            "spectrum_before": round(float(np.mean(before)), 3),
            "spectrum_after": round(float(np.mean(after)), 3),
            "count": len(alike),
        }
    return found


def measure_references(
    data: Path, folders: Sequence[Path], out: Path, on_step: OnStep, *, attention_count: int = 200
) -> reports.Report:
    """Average the traces of photographs and of every kind of fake, and write `out` (a .safetensors file).

    Args:
        data: Photographs.
        folders: Folders of fakes, with `train/` and `val/`; the training ones are measured.
        out: Where the arrays go; the report lies beside it.
        on_step: Called at every step.
        attention_count: Pictures of each group whose attention is averaged.
    """
    photographs, _ = datasets.split(data, registry.EMBEDDED_SIZE)
    groups: dict[str, list[Tensor]] = {references.REAL: [photographs.pictures]}
    for folder in folders:
        made = datasets.load(folder / "train", registry.EMBEDDED_SIZE)
        kinds = np.array([name.split("/")[0] for name in made.names])
        for kind in dict.fromkeys(kinds.tolist()):
            groups.setdefault(kind, []).append(made.pictures[torch.from_numpy(np.flatnonzero(kinds == kind))])
    pictures = {group: _thinned(torch.cat(parts)) for group, parts in groups.items()}
    detectors = [name for name in registry.loadable() if registry.card(name).cam_layer]
    started = time.perf_counter()
    found = finish(references.build(pictures, detectors, attention_count=attention_count), on_step)
    weights.save_half(out, found.tensors())
    settings = {"pictures": found.count, "attention": attention_count}
    run = harness.Run(0, time.perf_counter() - started, {}, settings)
    files, options = {references.ENTRY: out}, {references.ENTRY: found.options()}
    return reports.write(out.with_suffix(".json"), {"bytes": out.stat().st_size}, run, files, options)


def _pairs(data: Path, folders: Sequence[Path], size: int) -> tuple[Pairs, Pairs]:
    photographs, held_out = datasets.split(data, size)
    training = pairs.load(photographs, [folder / "train" for folder in folders])
    return training, pairs.load(held_out, [folder / "val" for folder in folders], kinds=training.kinds)


def _thinned(pictures: Tensor) -> Tensor:
    return pictures[:: max(1, len(pictures) // REFERENCED)][:REFERENCED]


def _pixels(picture: Tensor) -> np.ndarray:
    return picture.permute(1, 2, 0).numpy()
