"""A zip file with a record and its pictures, marked wherever the app made them."""

import io
import json
import zipfile
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from backend import images, provenance


def zipped(
    record: dict[str, Any], pictures: Mapping[str, np.ndarray], own: Collection[str] = (), text: str | None = None
) -> bytes:
    """Return a zip file with `record.json`, the same for people in `summary.txt`, and one PNG a picture.

    Args:
        record: Plain values for JSON, with a `summary`; marked pictures carry it too.
        pictures: By name, uint8 (H, W, 3).
        own: Names of those that are the visitor's own pixels; they get no mark.
        text: What people read; the record's summary by default.
    """
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("summary.txt", f"{text or record['summary']}\n")
        packed.writestr("record.json", json.dumps(record, indent=1))
        for name, picture in pictures.items():
            content = images.encode_png(picture) if name in own else provenance.marked_png(picture, record)
            packed.writestr(f"{name}.png", content)
    return buffer.getvalue()


def unmarked(pictures: Mapping[str, np.ndarray], record: dict[str, Any], record_name: str) -> dict[str, bytes]:
    """Return the files that the app stores for its own examples, by name, without visible marks."""
    files = {}
    for name, picture in pictures.items():
        colours = picture if picture.ndim == 3 else np.repeat(picture[..., None], 3, axis=2)
        files[f"{name}.png"] = provenance.png(colours, {"kind": name})
    files[record_name] = (json.dumps(record, indent=1) + "\n").encode()
    return files
