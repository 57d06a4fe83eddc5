"""Mark every picture that leaves the app, with a visible sign and a record in the file, and pack pictures with it.

Where the settings name a certificate and a key, the files carry Content Credentials too.
"""

import io
import json
import zipfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from backend import credentials, images
from backend.alignment import AlignedFace, FaceFacts
from backend.credentials import SOFTWARE
from backend.weights import package_versions

SIGN = "AI-edited"
NOTE = (
    "This picture was altered by a program that shows how face-forgery detectors work. "
    "It is not a photograph and shows nothing that happened."
)
RECORD_KEY = "Record"
_HEIGHT_SHARE = 0.03  # of the picture's shorter side: small in a photo, still readable when it is shown reduced
_SMALLEST, _LEGIBLE = 7, 10  # font sizes in pixels
_PLATE = (0, 0, 0, 180)  # on a white wall, dark enough for white letters
_LETTERS = (255, 255, 255, 255)


@dataclass(frozen=True, eq=False, kw_only=True)
class FaceResult:
    """What every result about one face of a photo holds.

    Args:
        aligned: The crop that the models saw, and where it lies in the photo.
        weights: SHA-256 of the model files used, by registry name.
    """

    facts: FaceFacts
    aligned: AlignedFace
    weights: dict[str, str]
    versions: dict[str, str] = field(default_factory=package_versions)
    seconds: float

    @property
    def original(self) -> np.ndarray:
        """The crop before any change, uint8 (S, S, 3)."""
        return self.aligned.crop

    def base_record(self) -> dict[str, Any]:
        return {
            "face": {
                "number": self.facts.number,
                "count": self.facts.count,
                "box": [float(value) for value in self.aligned.face.box],
                "problem": self.facts.problem,
                "resampled": self.aligned.resampled,
            },
            "weights": self.weights,
            "versions": self.versions,
            "seconds": self.seconds,
        }


def mark_picture(array: np.ndarray) -> np.ndarray:
    """Return a copy of uint8 (H, W, 3) pixels with a small sign at the bottom left; all else is unchanged."""
    height, width = array.shape[:2]
    plate = _plate(width, height)
    place = (0, height - plate.height)
    patch = Image.fromarray(array[place[1] :, : plate.width]).convert("RGBA")
    marked = array.copy()
    marked[place[1] :, : plate.width] = np.asarray(Image.alpha_composite(patch, plate).convert("RGB"))
    return marked


def marked_image(array: np.ndarray, record: dict[str, Any]) -> Image.Image:
    """Return uint8 (H, W, 3) pixels with the visible sign, as a picture that takes the record into its PNG file.

    The app's picture components write the texts of a picture into the file that a visitor can save.
    """
    picture = Image.fromarray(mark_picture(array))
    picture.info.update(_texts(record))
    return _SignedImage(picture) if credentials.signs() else picture


def marked_png(array: np.ndarray, record: dict[str, Any]) -> bytes:
    """Encode uint8 (H, W, 3) pixels as PNG with the visible sign and the record."""
    return unmarked_png(mark_picture(array), record)


def marked_mp4(frames: Sequence[np.ndarray], rate: float, record: dict[str, Any]) -> bytes:
    """Encode frames, uint8 (H, W, 3), as MP4 with the visible sign on every one of them and the record."""
    return unmarked_mp4([mark_picture(frame) for frame in frames], rate, record)


def unmarked_mp4(frames: Sequence[np.ndarray], rate: float, record: dict[str, Any]) -> bytes:
    """Encode frames, uint8 (H, W, 3), without the visible sign, as MP4 with the record (for research)."""
    from backend import video  # its package would keep the app's page waiting

    text = json.dumps(record, default=_json_value, ensure_ascii=False)
    content = video.encode_mp4(frames, rate, {"title": SIGN, "comment": NOTE, "description": text})
    return credentials.sign(content, "video/mp4")


def unmarked_png(array: np.ndarray, record: dict[str, Any]) -> bytes:
    """Encode uint8 (H, W, 3) pixels, without the visible sign, as PNG with the record (for research)."""
    return credentials.sign(images.encode_png(array, _texts(record)), "image/png")


def read_record(content: bytes) -> dict[str, Any] | None:
    """Return the record in a PNG file that this app wrote, and None for every other file."""
    try:
        with Image.open(io.BytesIO(content), formats=["PNG"]) as picture:
            record = json.loads(picture.info[RECORD_KEY])
    except Exception:  # noqa: BLE001 - any file at all may be asked about, and a damaged one has no record
        return None
    return record if isinstance(record, dict) else None


class _SignedImage(Image.Image):
    """A picture whose PNG file is signed; the app's picture components write the file by themselves."""

    def __init__(self, picture: Image.Image) -> None:
        super().__init__()
        self.__dict__.update(picture.__dict__)

    def save(self, fp: Any, format: str | None = None, **options: Any) -> None:  # noqa: A002 - Pillow's name
        if str(format).upper() == "PNG" and hasattr(fp, "write"):
            unsigned = io.BytesIO()
            super().save(unsigned, format, **options)
            fp.write(credentials.sign(unsigned.getvalue(), "image/png"))
        else:
            super().save(fp, format, **options)


def _texts(record: dict[str, Any]) -> dict[str, str]:
    text = json.dumps(record, default=_json_value, ensure_ascii=False)
    return {"Software": SOFTWARE, "Comment": NOTE, RECORD_KEY: text}


def _json_value(value: Any) -> Any:
    """Turn what JSON does not know, such as the numbers of arrays, into what it does."""
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    return str(value)


def _plate(width: int, height: int) -> Image.Image:
    """Draw the sign on its plate, as large as fits into a picture of this size."""
    size = max(_LEGIBLE, round(_HEIGHT_SHARE * min(width, height)))
    while True:
        font = ImageFont.load_default(size=size)
        left, top, right, bottom = font.getbbox(SIGN)
        margin = max(2, size // 4)
        plate_width, plate_height = int(right - left) + 2 * margin, int(bottom - top) + 2 * margin
        if size <= _SMALLEST or (plate_width <= width and plate_height <= height):
            break
        size = max(_SMALLEST, int(size * min(width / plate_width, height / plate_height, 0.95)))
    plate = Image.new("RGBA", (min(plate_width, width), min(plate_height, height)), _PLATE)
    ImageDraw.Draw(plate).text((margin - left, margin - top), SIGN, font=font, fill=_LETTERS)
    return plate


def zip_record(
    record: dict[str, Any], pictures: Mapping[str, np.ndarray], own: Collection[str] = (), text: str | None = None
) -> bytes:
    """Return a zip file with `record.json`, the same for people in `summary.txt`, and one PNG a picture.

    Args:
        record: Plain values for JSON, with a `summary`; marked pictures carry it too.
        pictures: By name, uint8 (H, W, 3).
        own: Names of the pictures that are the visitor's own pixels; they are not marked.
        text: Content of `summary.txt` (default: the record's summary).
    """
    files: dict[str, bytes | str] = {
        "summary.txt": f"{text or record['summary']}\n",
        "record.json": json.dumps(record, indent=1),
    }
    for name, picture in pictures.items():
        files[f"{name}.png"] = images.encode_png(picture) if name in own else marked_png(picture, record)
    return zip_files(files)


def zip_files(files: Mapping[str, bytes | str]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, content in files.items():
            packed.writestr(name, content)
    return buffer.getvalue()


def save_unmarked(
    folder: Path,
    pictures: Mapping[str, np.ndarray],
    record: dict[str, Any],
    record_name: str,
    diagrams: Collection[str] = (),
) -> list[Path]:
    """Write pictures and record as the app stores its own examples, without visible marks, and return the files.

    Those named in `diagrams` keep 256 colours; all others are stored without loss.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, picture in pictures.items():
        colours = picture if picture.ndim == 3 else np.repeat(picture[..., None], 3, axis=2)
        limit = 256 if name in diagrams else None
        (folder / f"{name}.png").write_bytes(images.encode_png(colours, _texts({"kind": name}), colours=limit))
    (folder / record_name).write_bytes((json.dumps(record, indent=1) + "\n").encode())
    return sorted(folder.iterdir())
