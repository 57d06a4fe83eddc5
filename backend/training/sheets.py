"""Write the sample sheets that a training run yields."""

from pathlib import Path

from torch import Tensor

from backend import images
from backend.progress import Job, Running
from backend.training import harness
from backend.training.datasets import Photographs

SHOWN = 8


def with_sheets(job: Job[harness.Run], folder: Path) -> Job[harness.Run]:
    """Pass a run's steps on, and write every preview as a PNG to `folder`; closing this closes the run."""
    with Running(job) as running:
        for step in running:
            if step.preview is not None:
                (folder / f"sheet-{step.number:06d}.png").write_bytes(images.encode_png(images.to_array(step.preview)))
            yield step
    return running.result


def shown(photographs: Photographs) -> Tensor:
    """Return the pictures for sample sheets, uint8 (K, 3, S, S)."""
    return photographs.pictures[:: max(1, len(photographs) // SHOWN)][:SHOWN]
