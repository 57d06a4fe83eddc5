"""Pictures for the tests, all made in memory; both photographs are in the public domain and come with packages."""

import functools
import io
import random
import struct
import zlib

import matplotlib.cbook
import numpy as np
import pillow_heif
import skimage.data
from PIL import Image, ImageDraw

from backend import images

ORIENTATION = 0x0112


@functools.cache
def astronaut() -> np.ndarray:
    """Return a photo (512, 512, 3) with one face of 89 pixels."""
    return skimage.data.astronaut()


@functools.cache
def hopper() -> np.ndarray:
    """Return a photo (600, 512, 3) with one face of 184 pixels."""
    return images.read(str(matplotlib.cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)))


def two_people() -> np.ndarray:
    """Return a photo (600, 1024, 3): the smaller face on the left, the larger one on the right."""
    left = np.pad(astronaut(), ((0, 88), (0, 0), (0, 0)), mode="edge")
    return np.concatenate([left, hopper()], axis=1)


def drawing() -> np.ndarray:
    """Return a drawing (200, 200, 3) of a house."""
    picture = Image.new("RGB", (200, 200), "white")
    pen = ImageDraw.Draw(picture)
    pen.rectangle((50, 90, 150, 180), outline="black", width=3)
    pen.polygon([(40, 90), (100, 30), (160, 90)], outline="black", fill="red")
    return np.array(picture)


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Return random pixels (height, width, 3)."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def ramp(height: int = 40, width: int = 64) -> np.ndarray:
    """Return soft colours (height, width, 3), which lossy formats keep well."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    channels = [x / width, y / height, (x + y) / (width + height)]
    return np.rint(np.stack(channels, axis=-1) * 220 + 15).astype(np.uint8)


def encode(picture: np.ndarray | Image.Image, kind: str, **options: object) -> bytes:
    """Return the picture as a file of this kind."""
    if kind == "HEIF":
        pillow_heif.register_heif_opener()
    buffer = io.BytesIO()
    source = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    source.save(buffer, format=kind, **options)
    return buffer.getvalue()


def animation(kind: str) -> bytes:
    """Return three frames of which the first is the ramp."""
    frames = [Image.fromarray(array) for array in (255 - ramp(), ramp()[::-1].copy())]
    lossless = {"lossless": True} if kind == "WEBP" else {}
    return encode(ramp(), kind, save_all=True, append_images=frames, duration=100, **lossless)


def with_orientation(picture: np.ndarray, orientation: int, kind: str) -> bytes:
    """Return a file whose pixels are stored as they are and whose record names an orientation."""
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    if kind == "HEIF":  # where the orientation is a property of its own; the encoder takes it from the source
        source = Image.fromarray(picture)
        source.info["exif"] = exif.tobytes()
        return encode(source, kind)
    return encode(picture, kind, exif=exif)


def deep_png(values: np.ndarray) -> bytes:
    """Return a 16-bit PNG of uint16 (H, W) grey or (H, W, 3) colour, which the usual encoder cannot write."""
    height, width = values.shape[:2]
    header = struct.pack(">IIBBBBB", width, height, 16, 0 if values.ndim == 2 else 2, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    body = b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + body


def deep_tiff(values: np.ndarray) -> bytes:
    """Return an uncompressed TIFF of (H, W) or (H, W, 3) numbers of any type."""
    height, width = values.shape[:2]
    channels = 1 if values.ndim == 2 else 3
    data = values.tobytes()
    kind = {"u": 1, "i": 2, "f": 3}[values.dtype.kind]
    entries = 10
    bits_at = 8 + 2 + entries * 12 + 4
    bits = struct.pack("<3H", *[values.dtype.itemsize * 8] * 3)
    bits_field = (258, 3, 1, values.dtype.itemsize * 8) if channels == 1 else (258, 3, 3, bits_at)
    fields = [
        (256, 4, 1, width),
        (257, 4, 1, height),
        bits_field,
        (259, 3, 1, 1),
        (262, 3, 1, 1 if channels == 1 else 2),
        (273, 4, 1, bits_at + len(bits)),
        (277, 3, 1, channels),
        (278, 4, 1, height),
        (279, 4, 1, len(data)),
        (339, 3, 1, kind),
    ]
    table = b"".join(struct.pack("<HHII", *field) for field in fields)
    return b"II*\0" + struct.pack("<IH", 8, entries) + table + struct.pack("<I", 0) + bits + data


def damaged(count: int, seed: int) -> list[bytes]:
    """Return damaged files: flipped bytes, cut ends, and the start of one file before the rest of another."""
    chance = random.Random(seed)
    files = [encode(ramp(), kind) for kind in ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "HEIF")]
    return [_damage(chance, chance.choice(files), chance.choice(files)) for _ in range(count)]


def _damage(chance: random.Random, content: bytes, other: bytes) -> bytes:
    kind = chance.randrange(3)
    if kind == 0:
        changed = bytearray(content)
        for _ in range(chance.randint(1, 20)):
            # Half of the flips hit the header, where they do most harm.
            end = len(changed) if chance.random() < 0.5 else min(len(changed), 64)
            changed[chance.randrange(end)] = chance.randrange(256)
        return bytes(changed)
    if kind == 1:
        return content[: chance.randrange(len(content))]
    start = chance.randint(4, 64)
    return content[:start] + other[start:]
