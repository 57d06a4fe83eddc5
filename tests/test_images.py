"""Tests of reading and writing picture files."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from backend import images
from backend.errors import UserError
from backend.settings import ROOT, SETTINGS
from tests import pictures

RAMP = pictures.ramp()


def refusal(source: bytes | Path | str) -> UserError:
    """Return the error of a picture that must be refused, after a check of its words."""
    with pytest.raises(UserError) as caught:
        images.read(source)
    check_words(caught.value)
    return caught.value


def check_words(error: UserError) -> None:
    """Check that both texts are single plain sentences without a path or a name from the code."""
    for text in (error.message, error.hint):
        assert text[0].isupper()
        assert text.endswith(".")
        assert not any(sign in text for sign in "\n/\\<>_")
        assert "Error" not in text
        assert "PIL" not in text


def set_limits(monkeypatch: pytest.MonkeyPatch, **limits: Any) -> None:
    """Replace the limits of this process."""
    monkeypatch.setattr(images, "SETTINGS", dataclasses.replace(SETTINGS, **limits))


@pytest.mark.parametrize(("kind", "options"), [("PNG", {}), ("BMP", {}), ("TIFF", {}), ("WEBP", {"lossless": True})])
def test_lossless_kinds_are_exact(kind: str, options: dict[str, object]) -> None:
    assert np.array_equal(images.read(pictures.encode(RAMP, kind, **options)), RAMP)


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "HEIF", "AVIF"])
def test_lossy_kinds_are_close(kind: str) -> None:
    read = images.read(pictures.encode(RAMP, kind, quality=95))
    assert read.dtype == np.uint8
    assert read.shape == RAMP.shape
    assert np.abs(read.astype(int) - RAMP).mean() < 4


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_first_frame_of_animation(kind: str) -> None:
    assert np.array_equal(images.read(pictures.animation(kind)), RAMP)


def test_first_frame_of_gif() -> None:
    read = images.read(pictures.animation("GIF"))
    assert np.abs(read.astype(int) - RAMP).mean() < 12


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP", "HEIF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied(kind: str, orientation: int) -> None:
    undo = {
        1: RAMP,
        2: RAMP[:, ::-1],
        3: RAMP[::-1, ::-1],
        4: RAMP[::-1],
        5: RAMP.transpose(1, 0, 2),
        6: np.rot90(RAMP, 1),
        7: RAMP[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(RAMP, -1),
    }
    content = pictures.with_orientation(np.ascontiguousarray(undo[orientation]), orientation, kind)
    read = images.read(content)
    assert read.shape == RAMP.shape
    assert np.abs(read.astype(int) - RAMP).mean() < 6


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_damaged_camera_record_is_ignored() -> None:
    content = pictures.encode(RAMP, "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01\x12\0\x03", quality=95)
    assert images.read(content).shape == RAMP.shape


@pytest.mark.parametrize("mode", ["L", "P", "1", "LA", "RGBA", "CMYK"])
def test_colour_kinds(mode: str) -> None:
    picture = Image.fromarray(RAMP).convert(mode)
    read = images.read(pictures.encode(picture, "TIFF" if mode == "CMYK" else "PNG"))
    assert np.array_equal(read, np.asarray(picture.convert("RGB")))


def test_inverted_cmyk_jpeg() -> None:
    content = pictures.encode(Image.fromarray(RAMP).convert("CMYK"), "JPEG", quality=95)
    assert b"Adobe" in content
    assert np.abs(images.read(content).astype(int) - RAMP).mean() < 6


def test_transparent_becomes_white() -> None:
    clear = np.dstack([RAMP, np.full(RAMP.shape[:2], 255, np.uint8)])
    clear[:, :32, 3] = 0
    read = images.read(pictures.encode(clear, "PNG"))
    assert (read[:, :32] == 255).all()
    assert np.array_equal(read[:, 32:], RAMP[:, 32:])


def test_transparent_colour_of_palette() -> None:
    picture = Image.fromarray(np.tile(np.arange(64, dtype=np.uint8) % 4, (40, 1)), mode="P")
    picture.putpalette([0, 0, 0, 10, 20, 30, 40, 50, 60, 70, 80, 90])
    read = images.read(pictures.encode(picture, "PNG", transparency=0))
    assert read[0, :4].tolist() == [[255, 255, 255], [10, 20, 30], [40, 50, 60], [70, 80, 90]]


@pytest.mark.parametrize("make", [pictures.deep_png, pictures.deep_tiff])
def test_sixteen_bits_keep_their_range(make: object) -> None:
    deep = RAMP.astype(np.uint16) * 257
    assert callable(make)
    grey = images.read(make(deep[..., 0]))
    assert np.array_equal(grey, np.repeat(RAMP[..., :1], 3, axis=2))
    assert np.array_equal(images.read(make(deep)), RAMP)


@pytest.mark.parametrize(
    ("kind", "scale"),
    [("float32", 1 / 255), ("float32", 1), ("float32", 257), ("int32", 1), ("int32", 257), ("uint32", 257)],
)
def test_thirty_two_bits_of_grey(kind: str, scale: float) -> None:
    values = RAMP[..., 0].astype(np.float64)
    values[0, 0] = 255
    read = images.read(pictures.deep_tiff((values * scale).astype(kind)))
    assert np.array_equal(read[..., 1], values.astype(np.uint8))


def test_unusual_values_use_their_own_range() -> None:
    values = np.linspace(-3, 7, 40 * 64, dtype=np.float32).reshape(40, 64)
    values[1, 1] = np.nan
    read = images.read(pictures.deep_tiff(values))
    assert (read.min(), read.max()) == (0, 255)
    assert images.read(pictures.deep_tiff(np.full((40, 64), -5, np.int32))).max() == 0


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"hello, this is text",
        b"<svg xmlns='http://www.w3.org/2000/svg'><rect/></svg>",
        b"%PDF-1.7\n%\xe2\xe3",
        b"\xff\xd8\xff\xe0",
        b"\x89PNG\r\n\x1a\n",
        b"P6 40 40 255\n" + bytes(4800),
        bytes(1000),
    ],
)
def test_other_files_are_refused(content: bytes) -> None:
    refusal(content)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "HEIF", "BMP"])
def test_cut_files_are_refused(kind: str) -> None:
    content = pictures.encode(pictures.noise(64, 64), kind)
    refusal(content[: len(content) // 2])


def test_rare_formats_are_not_opened() -> None:
    for kind in ("PPM", "TGA", "ICO", "PCX", "JPEG2000"):
        refusal(pictures.encode(RAMP, kind))


def test_limit_on_bytes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    content = pictures.encode(RAMP, "PNG")
    set_limits(monkeypatch, max_bytes=len(content))
    assert np.array_equal(images.read(content), RAMP)
    set_limits(monkeypatch, max_bytes=len(content) - 1)
    path = tmp_path / "photo.png"
    path.write_bytes(content)
    assert "larger" in refusal(content).message
    assert "larger" in refusal(path).message


def test_limit_on_pixels_comes_before_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    content = pictures.encode(RAMP, "PNG")
    set_limits(monkeypatch, max_pixels=RAMP.shape[0] * RAMP.shape[1])
    assert np.array_equal(images.read(content), RAMP)
    set_limits(monkeypatch, max_pixels=RAMP.shape[0] * RAMP.shape[1] - 1)
    monkeypatch.setattr(Image.Image, "load", lambda _: pytest.fail("decoded"))
    assert "pixels" in refusal(content).message


def test_a_higher_limit_is_not_cut_by_the_decoder() -> None:
    code = "from PIL import Image; import backend.images; print(Image.MAX_IMAGE_PIXELS)"
    environment = {**os.environ, "MAX_UPLOAD_PIXELS": "300000000"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "300000000"


@pytest.mark.filterwarnings("ignore")
def test_bombs_are_refused() -> None:
    for side in (8_000, 10_000, 60_000):
        bomb = pictures.encode(Image.new("1", (side, side)), "PNG") if side < 20_000 else forged_size(side)
        assert "million pixels" in refusal(bomb).message


def forged_size(side: int) -> bytes:
    """Return a small BMP whose header names a huge size."""
    content = bytearray(pictures.encode(RAMP, "BMP"))
    content[18:26] = side.to_bytes(4, "little") * 2
    return bytes(content)


def test_full_memory_is_reported_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(images, "_to_rgb", fail)
    assert "memory" in refusal(pictures.encode(RAMP, "PNG")).message


def test_size_limits() -> None:
    assert "31" in refusal(pictures.encode(pictures.ramp(31, 200), "PNG")).message
    assert images.read(pictures.encode(pictures.ramp(32, 32), "PNG")).shape == (32, 32, 3)
    assert images.read(pictures.encode(pictures.ramp(32, 9000), "PNG")).shape == (32, 9000, 3)


def test_paths(tmp_path: Path) -> None:
    path = tmp_path / "named wrongly.jpg"
    path.write_bytes(pictures.encode(RAMP, "PNG"))
    assert np.array_equal(images.read(path), RAMP)
    assert np.array_equal(images.read(str(path)), RAMP)
    refusal(tmp_path)
    refusal(tmp_path / "missing.png")
    refusal("a\0b")


@pytest.mark.filterwarnings("ignore")
def test_damaged_files_are_read_or_refused() -> None:
    refused = 0
    for content in pictures.damaged(200, seed=7):
        try:
            read = images.read(content)
        except UserError as error:
            check_words(error)
            refused += 1
        else:
            assert read.dtype == np.uint8
            assert read.shape[2] == 3
    assert refused > 100


def test_png_round_trip_is_exact() -> None:
    picture = pictures.noise(50, 70)
    assert np.array_equal(images.read(images.encode_png(picture, {"Title": "café ☕"})), picture)


def test_tensor_round_trip_is_exact() -> None:
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, axis=2)
    tensor = images.to_tensor(levels)
    assert tensor.shape == (1, 3, 16, 16)
    assert tensor.dtype == torch.float32
    assert (tensor.min(), tensor.max()) == (0, 1)
    assert np.array_equal(images.to_array(tensor), levels)


def test_to_array_rounds_and_clamps() -> None:
    tensor = torch.tensor([-1.0, 0.6 / 255, 1.4 / 255, 254.6 / 255, 9.0, float("nan")]).expand(1, 3, 1, 6)
    assert images.to_array(tensor)[0, :, 0].tolist() == [0, 1, 1, 255, 255, 0]


def test_read_only_pixels_become_tensors() -> None:
    picture = pictures.ramp()
    picture.setflags(write=False)
    assert images.to_tensor(picture).shape == (1, 3, 40, 64)
