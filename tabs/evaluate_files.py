"""Where a visitor's runs lie, so that one that was stopped can go on, and how they are handed out."""

import hashlib
import zipfile
from pathlib import Path

KEPT = (".csv", ".json", ".html", ".tex", ".png", ".svg")


def folder_for(session: Path, source: Path | None, protocol: str) -> Path:
    """Return the folder of a run: the same for the same pictures and protocol in one visit."""
    digest = hashlib.sha256(source.read_bytes() if source else b"sample").hexdigest()[:16]
    return session / "runs" / f"{protocol}-{digest}"


def zipped(run: Path) -> Path:
    """Write the reports of a run to one zip file beside it, without the pictures, and return the file."""
    file = run.with_suffix(".zip")
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as packed:
        for path in sorted(run.rglob("*")):
            inside = path.relative_to(run)
            if path.is_file() and path.suffix in KEPT and inside.parts[0] not in {"data", "sample"}:
                packed.write(path, inside.as_posix())
    return file
