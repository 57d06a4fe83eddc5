"""The files of one explanation: the map as numbers, its marked pictures, and the crop."""

import io
from typing import Any

import numpy as np

from backend import images, provenance
from backend.explain.photo import ExplainedPhoto


def contents(made: ExplainedPhoto, record: dict[str, Any]) -> dict[str, bytes]:
    """Return the files by name; every picture but the crop, which the app did not make, carries mark and record."""
    saved = io.BytesIO()
    np.save(saved, made.explanation.saliency.numpy())
    drawn = {f"{name}.png": provenance.marked_png(picture, record) for name, picture in made.drawings().items()}
    return {"map.npy": saved.getvalue(), "crop.png": images.encode_png(made.aligned.crop), **drawn}
