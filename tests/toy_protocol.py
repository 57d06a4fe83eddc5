"""A protocol whose numbers can be computed by hand, with pictures, a folder of them, and ways to fail."""

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from backend import images
from backend.alignment import AlignedFace, CroppedPhoto, LocatedFace
from backend.errors import UserError
from backend.evaluate import plots
from backend.evaluate.dataset import open_data
from backend.evaluate.metrics.base import mean
from backend.evaluate.plots import Series
from backend.evaluate.protocols.base import Protocol, ProtocolConfig, Values, make_item
from backend.evaluate.tables import Column, Table
from backend.faces import Face
from backend.settings import validated

LANDMARKS = np.array([[10, 12], [22, 12], [16, 18], [12, 24], [20, 24]], dtype=np.float64)


@validated
@dataclass(frozen=True)
class ToyConfig(ProtocolConfig):
    factors: Values[int] = (1, 2)
    pause: float = 0.0
    deadly: str = ""  # sample at which a worker dies, until the file `survived` exists
    survived: str = ""
    broken: str = ""  # sample that raises


class ToyProtocol(Protocol):
    """Measures factor * mean grey level."""

    config: ToyConfig

    name = "toy"
    title = "Toy"
    about = "Mean grey levels."
    source = "None."

    @classmethod
    def preset(cls, name):
        return ToyConfig(fakes=2 if name == "quick" else None, reals=None)

    def problem(self, data, name):
        return "It is number 0." if name.endswith("0.png") else None

    def items(self, data):
        return [make_item(sample.name, factor=factor) for sample in data.samples for factor in self.config.factors]

    def run_item(self, item, data):
        yield from ()
        time.sleep(self.config.pause)
        if item.sample == self.config.deadly and not Path(self.config.survived).exists():
            Path(self.config.survived).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if item.sample == self.config.broken:
            raise ZeroDivisionError("broken")
        sample = data.by_name[item.sample]
        level = float(images.read(data.path(item.sample)).mean())
        if level > 250:
            raise UserError("The picture is white.")
        row = {"sample": sample.name, "label": sample.label, "family": sample.family or "real"}
        return [
            row | {"factor": item.options["factor"], "level": level * item.options["factor"], "seconds": time.time()}
        ]

    def tables(self, rows):
        kinds = sorted({(row["family"], row["factor"]) for row in rows})
        body = [
            (family, f"x{factor}", mean(r["level"] for r in rows if (r["family"], r["factor"]) == (family, factor)))
            for family, factor in kinds
        ]
        columns = (Column("family", "Family"), Column("factor", "Factor"), Column("level", "Level"))
        return [Table("levels", "Mean levels", columns, tuple(body), by_family=True)]

    def plots(self, rows):
        series = [Series("all", [row["factor"] for row in rows], [row["level"] for row in rows])]
        return [plots.draw_points("levels", "Levels", "Levels by factor.", series, x_label="factor", y_label="level")]


def write_picture(path, level):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((32, 32, 3), level, np.uint8)).save(path)


def whole_picture(data, name):
    """Return a picture as the face that was found in it, whose place is all of it."""
    pixels = images.read(data.path(name))
    place = Face((0.0, 0.0, 32.0, 32.0), 1.0, LANDMARKS)
    aligned = AlignedFace(pixels, np.eye(2, 3), "embedded", resampled=False, face=place)
    return CroppedPhoto(LocatedFace(pixels, place), aligned)


def toy_data(folder, count=3, white=False):
    """Write `count` real pictures of 10, 20, ... and fakes of two families of 100, 110, ... and 200, 205, ..."""
    for number in range(count):
        write_picture(folder / f"real/{number}.png", 10 * (number + 1))
        write_picture(folder / f"fake/swap/{number}.png", 100 + 10 * number)
        write_picture(folder / f"fake/drawn/{number}.png", 200 + 5 * number)
    if white:
        write_picture(folder / "real/white.png", 255)
    return open_data(folder, folder)
