"""Where a visitor's pictures and runs lie, so that one that was stopped can go on, and how they are handed out."""

import hashlib
import json
import shutil
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

from backend import samples
from backend.errors import UserError
from backend.evaluate.archives import Limits
from backend.evaluate.data import Dataset
from backend.evaluate.layouts import open_data
from backend.weights import file_hash

if TYPE_CHECKING:
    from backend.evaluate.protocols.protocol import Protocol

LIMITS = Limits(files=5_000, total=500_000_000)  # of a visitor's zip: others share the disk
KEPT = (".csv", ".json", ".html", ".tex", ".png", ".svg")
SAMPLE = "sample"


def folder_for(session: Path, source: Path | None) -> Path:
    """Return the folder for all that comes from a visitor's zip, or from the sample set where there is none.

    What came from another zip is deleted: every visitor fills the disk with one zip at most.

    Raises:
        UserError: The zip has gone meanwhile.
    """
    if source and not source.is_file():
        raise UserError("Your zip file was deleted after an hour.", "Choose it again.")
    name = file_hash(source)[:16] if source else SAMPLE
    folder = session / "evaluate" / name
    folder.mkdir(parents=True, exist_ok=True)
    for other in folder.parent.iterdir():
        if source and other.name not in (name, SAMPLE):
            shutil.rmtree(other, ignore_errors=True)
    return folder


def pictures(folder: Path, source: Path | None) -> Dataset:
    """Return the pictures of a visitor's zip, or the sample set where there is none.

    Args:
        folder: Where they are unpacked or drawn, once; see `folder_for`.
        source: The zip.

    Raises:
        UserError: The zip is refused, or has no pictures.
    """
    return open_data(source or samples.draw(folder / SAMPLE), folder, LIMITS)


def run_folder(folder: Path, protocol: "Protocol") -> Path:
    """Return the folder of a run below `folder`: the same in one visit for the same protocol, settings and models."""
    models = [protocol.settings(), protocol.hashes(), protocol.measures()]  # a visitor may fetch others in between
    digest = hashlib.sha256(json.dumps(models, sort_keys=True).encode())
    return folder / "runs" / f"{protocol.name}-{digest.hexdigest()[:16]}"


def zipped(run: Path) -> Path:
    """Write the reports of a run to one zip file beside it and return the file."""
    file = run.with_suffix(".zip")
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as packed:
        for path in sorted(run.rglob("*")):
            if path.is_file() and path.suffix in KEPT:
                packed.write(path, path.relative_to(run).as_posix())
    return file
