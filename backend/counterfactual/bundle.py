"""A finished story as pictures and numbers: what the app shows, stores for its examples and hands out as a zip."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from backend import alignment, images, packing
from backend.alignment import AlignedFace

if TYPE_CHECKING:
    from backend.counterfactual.story import Story
    from backend.counterfactual.traces import Residual

FACES = ("crop", "inversion", "counterfactual")
MAPS = ("cam_before", "cam_after")
COLOURS = "cividis"  # its brightness rises steadily, for every kind of colour vision and in print
OPACITY = 0.55


@dataclass(frozen=True, eq=False)
class Bundle:
    """Everything that is shown of a story.

    Args:
        record: What `Story.record` returned.
        photo: The whole photo, uint8 (H, W, 3).
        aligned: The face in it.
        faces: `crop`, `inversion` and `counterfactual`, uint8 (S, S, 3), without a mark.
        maps: `cam_before` and `cam_after`, uint8 (S, S), 255 where they are largest; an empty map is left out.
    """

    record: dict[str, Any]
    photo: np.ndarray
    aligned: AlignedFace
    faces: dict[str, np.ndarray]
    maps: dict[str, np.ndarray]

    def residual(self) -> "Residual":
        """Return the signed difference of counterfactual and crop."""
        from backend.counterfactual import traces  # what it imports would keep the app's page waiting

        return traces.residual(self.faces["crop"], self.faces["counterfactual"])

    def pictures(self) -> dict[str, np.ndarray]:
        """Return all pictures, uint8 (H, W, 3), without a mark; of them, only `crop` is not made by the app.

        `crop`, `inversion`, `counterfactual`, `residual`, the maps that are not empty, and `photo` with the changed
        face in it; `crop` alone where nothing was searched. App, zip and command line all show these.
        """
        if self.record["already_real"]:
            return {"crop": self.faces["crop"]}
        drawn = dict(self.faces)
        drawn["residual"] = self.residual().picture
        for name, under in zip(MAPS, (drawn["crop"], drawn["counterfactual"]), strict=True):
            if name in self.maps:
                drawn[name] = overlay(under, self.maps[name])
        drawn["photo"] = alignment.paste_back(self.photo, drawn["counterfactual"], self.aligned)
        return drawn

    def zip(self) -> bytes:
        """Return a zip file with the record and every picture, marked where the app made it."""
        return packing.zipped(self.record, self.pictures(), own=("crop",))  # the visitor's own pixels

    def save(self, folder: Path) -> list[Path]:
        """Write what `load` needs, without visible marks, and return the files."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in packing.unmarked({**self.faces, **self.maps}, self.record, "story.json").items():
            (folder / name).write_bytes(content)
        return sorted(folder.iterdir())


def of(story: "Story") -> Bundle:
    """Return the bundle of a story that was just told."""
    faces = {"crop": story.original, "inversion": story.inversion, "counterfactual": story.counterfactual}
    maps = {
        name: np.rint(strength * 255).astype(np.uint8)
        for name, strength, empty in zip(MAPS, story.cams.maps, story.cams.empty, strict=True)
        if not empty
    }
    return Bundle(story.record(), story.photo, story.aligned, faces, maps)


def load(folder: Path, photo: np.ndarray, aligned: AlignedFace) -> Bundle:
    """Read what `Bundle.save` wrote.

    Args:
        folder: Where it lies.
        photo: The photo that it is about.
        aligned: The face in it.
    """
    record = json.loads((folder / "story.json").read_text(encoding="utf-8"))
    drawn = {path.stem: images.read(path) for path in folder.glob("*.png")}
    faces = {name: drawn[name] for name in FACES if name in drawn}
    maps = {name: drawn[name][..., 0] for name in MAPS if name in drawn}
    return Bundle(record, photo, aligned, faces, maps)


def overlay(picture: np.ndarray, strength: np.ndarray) -> np.ndarray:
    """Lay a map, uint8 (H, W), in colours over a picture, uint8 (S, S, 3)."""
    import matplotlib as mpl  # its import would keep the app's page waiting

    height, width = picture.shape[:2]
    sized = np.asarray(Image.fromarray(strength).resize((width, height), Image.Resampling.BILINEAR))
    colours = mpl.colormaps[COLOURS](sized)[..., :3] * 255
    return np.rint((1 - OPACITY) * picture + OPACITY * colours).astype(np.uint8)
