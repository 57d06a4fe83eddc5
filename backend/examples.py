"""The app's examples: their pictures and the stored results that a click shows at once.

`python -m backend examples` draws them again. Three faces are the embedded generator's, two are swaps between such
faces, two are portraits in the public domain, so nobody's consent is needed and nothing has to be downloaded.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from backend import alignment, images, provenance, verdicts, weights
from backend.counterfactual.story import Story, explain_photo
from backend.detectors import registry
from backend.detectors.choice import suggested
from backend.faces import Face
from backend.generators import inversion
from backend.progress import finish
from backend.settings import SETTINGS
from backend.verdicts import JudgedFace

FOLDER = SETTINGS.weights_dir.parent / "examples"
STORED = ("crop", "inversion", "counterfactual")  # the rest is computed from these without a model
GENERATED, SWAPPED = 3, 2
TRUNCATION = 0.7
FIRST_SEED, LAST_SEED = 0, 80


@dataclass(frozen=True)
class Example:
    """A picture that a visitor can start from.

    Args:
        file: Its file name in the folder.
        label: What it shows and how it was made, in a few words.
        detector: Which detector the stored result explains.
        folder: Where it lies.
    """

    file: str
    label: str
    detector: str
    folder: Path

    @property
    def photo_path(self) -> Path:
        """Return the picture's file."""
        return self.folder / self.file

    @property
    def results(self) -> Path:
        """Return the folder of the stored result."""
        return self.folder / "results" / self.photo_path.stem

    def stored(self) -> dict[str, Any]:
        """Return everything that was stored but the pictures."""
        return json.loads((self.results / "record.json").read_text(encoding="utf-8"))
