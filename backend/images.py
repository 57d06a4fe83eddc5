"""Turn picture files into pixels and pixels into PNG, or into JPEG as photographs are saved.

Photographs were JPEG files before they became data; fakes made from them, and pictures that came out of an attack,
were not. A detector finds that difference before any trace of forgery, so training and evaluation save both alike.
"""

import contextlib
import functools
import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, PngImagePlugin, UnidentifiedImageError
from torch import Tensor

from backend.errors import UserError
from backend.settings import SETTINGS

GREY = (0.299, 0.587, 0.114)  # brightness of red, green and blue (ITU-R BT.601)
# Decoders of rare formats are the least tested ones, so no other format is ever tried.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "HEIF", "AVIF")
MIN_SIDE = 32  # pixels
# Browsers and photo viewers show a cut-out on a white page: this is the picture that the visitor knows.
BACKGROUND = (255, 255, 255, 255)
JPEG_QUALITY = 90  # at which the packs of photographs are stored, as JPEG with halved colours
_OTHER_FILE = "Use a JPEG, PNG, WebP or HEIC photo."

# Pillow's own limit would otherwise refuse what the settings allow.
Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS or 0, SETTINGS.max_pixels)


def read(source: bytes | Path | str) -> np.ndarray:
    """Decode a picture file, given as its content or path, into upright pixels.

    Colour profiles are not applied, because that would change the very values that detectors look at.

    Returns:
        uint8 (H, W, 3), RGB; of an animation, the first frame; what is transparent becomes white.

    Raises:
        UserError: It is not a picture of a known kind, is damaged, or is too large or too small.
    """
    content = source if isinstance(source, bytes) else _read_file(Path(source))
    if not content:
        raise UserError("The file is empty.", _OTHER_FILE)
    _check_bytes(len(content))
    register_heif()
    try:
        return _decode(content)
    except UserError:
        raise
    except UnidentifiedImageError as error:
        raise UserError("This file is not a picture that can be read here.", _OTHER_FILE) from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _too_many_pixels() from error
    except MemoryError as error:
        raise UserError("There is not enough memory for this picture.", "Use a smaller copy of it.") from error
    except Exception as error:  # decoders raise anything on damaged data, and all of it means the same
        raise UserError("The picture is damaged or incomplete.", "Save it again, or use another copy of it.") from error


def turned(array: np.ndarray, degrees: int) -> np.ndarray:
    """Return a picture (H, W, 3) turned clockwise by 0, 90, 180 or 270 degrees; every pixel keeps its values."""
    return np.ascontiguousarray(np.rot90(array, -degrees // 90))


def to_tensor(array: np.ndarray) -> Tensor:
    """Convert uint8 (H, W, 3) pixels into float32 (1, 3, H, W) in [0, 1]."""
    return torch.from_numpy(np.array(array)).permute(2, 0, 1)[None].contiguous().float() / 255


def to_array(tensor: Tensor) -> np.ndarray:
    """Convert one picture (1, 3, H, W) or (3, H, W) in [0, 1] into uint8 (H, W, 3), clamped and rounded."""
    picture = tensor.detach().reshape(tensor.shape[-3:]).float().nan_to_num().clamp(0, 1)
    return (picture * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous().cpu().numpy()


def round_to_bytes(values: np.ndarray) -> np.ndarray:
    """Return grey levels of any kind as uint8, rounded and cut off at 0 and 255."""
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def encode_png(array: np.ndarray, text: dict[str, str] | None = None, *, colours: int | None = None) -> bytes:
    """Encode uint8 (H, W, 3) pixels as PNG, with `text` as its metadata.

    Without loss, unless `colours` says how many may be kept, at most 256: enough for a diagram, and half as large.
    """
    chunks = PngImagePlugin.PngInfo()
    for key, value in (text or {}).items():
        chunks.add_text(key, value)
    buffer = io.BytesIO()
    picture = Image.fromarray(array)
    if colours is not None:
        picture = picture.quantize(colours, dither=Image.Dither.NONE)
    picture.save(buffer, format="PNG", pnginfo=chunks, optimize=colours is not None)
    return buffer.getvalue()


def _read_file(path: Path) -> bytes:
    try:
        _check_bytes(path.stat().st_size)
        return path.read_bytes()
    except (OSError, ValueError) as error:
        raise UserError("The picture file could not be opened.", "Check its name, or choose it again.") from error


def _check_bytes(count: int) -> None:
    if count > SETTINGS.max_bytes:
        limit = SETTINGS.max_bytes / 1e6
        raise UserError(f"The picture file is larger than {limit:g} MB.", "Use a smaller copy of it.")


def _check_size(width: int, height: int) -> None:
    if width * height > SETTINGS.max_pixels:
        raise _too_many_pixels()
    if min(width, height) < MIN_SIDE:
        raise UserError(
            f"The picture is only {width} by {height} pixels.",
            f"Use one that is at least {MIN_SIDE} pixels wide and high.",
        )


def _too_many_pixels() -> UserError:
    limit = SETTINGS.max_pixels / 1e6
    return UserError(f"The picture has more than {limit:g} million pixels.", "Use a smaller copy of it.")


@functools.cache
def register_heif() -> None:
    """Teach the decoder HEIC on the first picture, so that importing this file stays cheap."""
    import pillow_heif

    pillow_heif.register_heif_opener()


def _decode(content: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(content), formats=FORMATS) as picture:
        _check_size(*picture.size)
        picture.load()
        with contextlib.suppress(Exception):  # a damaged camera record does not spoil the pixels
            ImageOps.exif_transpose(picture, in_place=True)
        return _to_rgb(picture)


def _to_rgb(picture: Image.Image) -> np.ndarray:
    if picture.mode in {"I", "F"} or picture.mode.startswith("I;16"):
        grey = _to_eight_bits(np.asarray(picture), sixteen=picture.mode.startswith("I;16"))
        return np.repeat(grey[..., None], 3, axis=2)
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, BACKGROUND), picture)
    return np.array(picture.convert("RGB"))


def _to_eight_bits(values: np.ndarray, *, sixteen: bool) -> np.ndarray:
    """Scale deep grey values (H, W) to uint8.

    A 16-bit file says its range. A 32-bit one does not, so the usual full scales are tried, and the values' own
    range is used where none fits.
    """
    # In place and in single precision: half a gigabyte less for the largest picture that is taken.
    scaled = np.nan_to_num(values.astype(np.float32), copy=False, posinf=0.0, neginf=0.0)
    low, high = float(scaled.min()), float(scaled.max())
    full = 0.0
    if sixteen:
        full = 65535.0
    elif low >= 0:
        scales = (1.0, 255.0, 65535.0) if values.dtype.kind == "f" else (255.0, 65535.0)
        full = next((scale for scale in scales if high <= scale), 0.0)
    if not full:
        scaled -= low
        full = max(high - low, 1e-9)
    scaled *= 255 / full
    return np.rint(scaled, out=scaled).astype(np.uint8)


def like_photograph(picture: np.ndarray, quality: int = JPEG_QUALITY) -> np.ndarray:
    """Return uint8 (H, W, 3) as it is read from such a file; what came from one hardly changes."""
    return np.array(as_jpeg(Image.fromarray(picture), quality))


def like_photographs(pictures: Tensor, quality: int = JPEG_QUALITY) -> Tensor:
    """Return uint8 (N, 3, H, W) as they are read from such files."""
    if not len(pictures):
        return pictures
    saved = [
        like_photograph(np.ascontiguousarray(picture.permute(1, 2, 0).cpu().numpy()), quality) for picture in pictures
    ]
    return torch.from_numpy(np.stack(saved)).permute(0, 3, 1, 2)


def as_jpeg(image: Image.Image, quality: int, subsampling: int = 2) -> Image.Image:
    """Return the picture after one JPEG encoding (subsampling 0 = 4:4:4, 1 = 4:2:2, 2 = 4:2:0)."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality, subsampling=subsampling)
    return Image.open(io.BytesIO(buffer.getvalue())).convert("RGB")
