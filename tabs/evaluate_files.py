"""Where a visitor's runs lie, so that one that was stopped can go on, and how they are handed out."""

import hashlib
import json
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

from backend.evaluate.archives import Limits

if TYPE_CHECKING:
    from backend.evaluate.protocols.protocol import Protocol

LIMITS = Limits(files=5_000, total=500_000_000)  # of a visitor's zip: others share the disk
KEPT = (".csv", ".json", ".html", ".tex", ".png", ".svg")


def folder_for(session: Path, source: Path | None, protocol: "Protocol") -> Path:
    """Return the folder of a run: the same in one visit for the same pictures, protocol, settings and models."""
    models = [protocol.settings(), protocol.hashes(), protocol.measures()]  # a visitor may fetch others in between
    digest = hashlib.sha256(json.dumps(models, sort_keys=True).encode())
    digest.update(source.read_bytes() if source else b"sample")
    return session / "runs" / f"{protocol.name}-{digest.hexdigest()[:16]}"


def zipped(run: Path) -> Path:
    """Write the reports of a run to one zip file beside it, without the pictures, and return the file."""
    file = run.with_suffix(".zip")
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as packed:
        for path in sorted(run.rglob("*")):
            inside = path.relative_to(run)
            if path.is_file() and path.suffix in KEPT and inside.parts[0] not in {"data", "sample"}:
                packed.write(path, inside.as_posix())
    return file
