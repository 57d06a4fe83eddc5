"""`train encoder --from`: fine-tune a published encoder on a folder of faces, and write it as it was published."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from backend import alignment, faces, images, weights
from backend.errors import UserError
from backend.generators import inversion, official
from backend.generators.inversion import Inverter
from backend.progress import Job, Step, finish
from backend.training import datasets, harness, reports, sheets
from backend.training.datasets import Photographs
from backend.training.finetune import FinetuneSettings, FinetuneTask, losses_here

FILE = "e4e_finetuned.pt"


def finetune_encoder(
    source: str, data: Path, out: Path, on_step: Callable[[Step], None], **changes: Any
) -> reports.Report:
    """Fine-tune the encoder of a published e4e checkpoint and write it, with its decoder, to the folder `out`.

    Args:
        source: The file, or the name of a model that was fetched.
        data: Folder of photographs, each with a face.
        out: Where checkpoint, sheets, report and result go.
        on_step: Called at every step.
        changes: Settings other than those of `settings/finetune.toml`.

    Raises:
        UserError: The file is no such checkpoint, or there are too few faces.
    """
    settings = harness.read_settings(FinetuneSettings, "finetune", **changes)
    inverter = _load(source)
    photographs = finish(aligned(data, inverter), on_step)
    held = [datasets.one_in(datasets.HELD_PART, name) for name in photographs.names]
    held[-1] = held[-1] or not any(held)  # something has to be measured on
    training, held_out = (
        photographs.subset([place for place, one in enumerate(held) if one == wanted]) for wanted in (False, True)
    )
    settings = dataclasses.replace(settings, initial=inverter.name)
    losses = losses_here(inverter.template)
    for sentence in losses.left_out:
        on_step(Step(0, settings.steps, sentence))
    task = FinetuneTask(training.pictures, settings, held_out.pictures, inverter, losses)
    before = task.psnr()
    folder = out / "finetune-run"
    run = finish(sheets.with_sheets(harness.train(task, folder, settings, log_every=1), folder), on_step)
    file = out / FILE
    torch.save(task.checkpoint(), file)
    metrics = {"psnr_before": before, "psnr": task.psnr(), "faces": len(photographs), "held_out": len(held_out)}
    report = reports.write(out / "finetune.json", metrics, run, {"encoder": file}, {"encoder": {"initial": source}})
    gained = f"from {before:.1f} to {metrics['psnr']:.1f} dB PSNR on {len(held_out)} held-out faces"
    parts = [f"The encoder was fine-tuned for {run.steps} steps on {len(training)} faces: {gained}.", *losses.left_out]
    parts.append(f"Use it with: python -m backend weights fetch ffhq_1024 --from {file}")
    return report | {"left_out": list(losses.left_out), "summary": " ".join(parts)}


def aligned(data: Path, inverter: Inverter) -> Job[Photographs]:
    """Cut the largest face out of every photograph in a folder, in the position that the generator knows.

    Raises:
        UserError: There are fewer than two.
    """
    size = inverter.encoder.input_size
    names, crops = [], []
    everything = sorted(datasets.encoded(data))
    for number, (name, content) in enumerate(everything, 1):
        photo = images.read(content)
        found = faces.find(photo)
        if found:
            names.append(name)
            crops.append(alignment.align(photo, found[0], inverter.template, size).crop)
        yield Step(number, len(everything), f"Faces are cut out: {len(names)} of {number} photographs have one.")
    if len(names) < 2:
        raise UserError(
            f"Only {len(names)} of {len(everything)} photographs has a face.", "Name a folder with at least two faces."
        )
    return Photographs(names, torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).contiguous())


def _load(source: str) -> Inverter:
    """Return an inverter of one's own, which may be trained, from a file or from what was fetched."""
    if source in weights.entries():
        return official.from_tensors(weights.load_entry(source), source)
    return inversion.from_official(Path(source))
