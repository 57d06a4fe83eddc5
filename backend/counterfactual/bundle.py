"""A finished story as pictures and texts: what the app shows, stores for its examples and hands out as a zip."""

import io
import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from PIL import Image

from backend import alignment, images, provenance
from backend.alignment import AlignedFace
from backend.counterfactual import traces

FACES = ("crop", "inversion", "counterfactual")
MAPS = ("cam_before", "cam_after")
COLOURS = "cividis"  # its brightness rises steadily, for every kind of colour vision and in print
OPACITY = 0.55


@dataclass(frozen=True, eq=False)
class Bundle:
    """Everything that is shown of a story.

    Args:
        record: Its numbers, for programs.
        texts: A text by picture, and `summary`, `regions`, `retest`, `settings`.
        photo: The whole photo, uint8 (H, W, 3).
        aligned: The face in it.
        faces: `crop`, `inversion` and `counterfactual`, uint8 (S, S, 3), without a mark.
        maps: `cam_before` and `cam_after`, uint8 (S, S), 255 where they are largest; an empty map is left out.
    """

    record: dict[str, Any]
    texts: dict[str, str]
    photo: np.ndarray
    aligned: AlignedFace
    faces: dict[str, np.ndarray]
    maps: dict[str, np.ndarray]

    def pictures(self) -> dict[str, np.ndarray]:
        """Return all pictures, uint8 (H, W, 3), without a mark; of them, only `crop` is not made by the app."""
        if self.record["already_real"]:
            return {"crop": self.faces["crop"]}
        drawn = dict(self.faces)
        drawn["residual"] = traces.residual(drawn["crop"], drawn["counterfactual"]).picture
        for name, under in zip(MAPS, (drawn["crop"], drawn["counterfactual"]), strict=True):
            if name in self.maps:
                drawn[name] = overlay(under, self.maps[name])
        drawn["pasted"] = alignment.paste_back(self.photo, drawn["counterfactual"], self.aligned)
        return drawn

    def zip(self) -> bytes:
        """Return a zip file with the record and every picture, marked where the app made it."""
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as packed:
            packed.writestr("record.json", json.dumps({"record": self.record, "texts": self.texts}, indent=1))
            for name, picture in self.pictures().items():
                made = images.encode_png if name == "crop" else provenance.marked_png
                packed.writestr(f"{name}.png", made(picture, {} if name == "crop" else self.record))
        return buffer.getvalue()

    def save(self, folder: Path) -> list[Path]:
        """Write what `load` needs, without visible marks, and return the files."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, picture in {**self.faces, **self.maps}.items():
            colours = picture if picture.ndim == 3 else np.repeat(picture[..., None], 3, axis=2)
            (folder / f"{name}.png").write_bytes(provenance.png(colours, {"kind": name}))
        text = json.dumps({"record": self.record, "texts": self.texts}, indent=1)
        (folder / "story.json").write_text(text + "\n", encoding="utf-8")
        return sorted(folder.iterdir())


def load(folder: Path, photo: np.ndarray, aligned: AlignedFace) -> Bundle:
    """Read what `Bundle.save` wrote.

    Args:
        folder: Where it lies.
        photo: The photo that it is about.
        aligned: The face in it.
    """
    said = json.loads((folder / "story.json").read_text(encoding="utf-8"))
    drawn = {path.stem: images.read(path) for path in folder.glob("*.png")}
    faces = {name: drawn[name] for name in FACES if name in drawn}
    maps = {name: drawn[name][..., 0] for name in MAPS if name in drawn}
    return Bundle(said["record"], said["texts"], photo, aligned, faces, maps)


def overlay(picture: np.ndarray, strength: np.ndarray) -> np.ndarray:
    """Lay a map, uint8 (H, W), in colours over a picture, uint8 (S, S, 3)."""
    height, width = picture.shape[:2]
    sized = np.asarray(Image.fromarray(strength).resize((width, height), Image.Resampling.BILINEAR))
    colours = matplotlib.colormaps[COLOURS](sized)[..., :3] * 255
    return np.rint((1 - OPACITY) * picture + OPACITY * colours).astype(np.uint8)
