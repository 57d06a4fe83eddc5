"""Tests of the visible sign and the record."""

import io
from pathlib import Path

import gradio as gr
import numpy as np
import pytest
from PIL import Image

from backend import images, provenance
from tests import pictures

RECORD = {"detector": "xception", "steps": 40, "p_fake": {"original": 0.93}, "words": "café ☕"}


@pytest.mark.parametrize("shape", [(128, 128), (32, 32), (32, 400), (400, 32), (1024, 1024), (3000, 4000)])
@pytest.mark.parametrize("level", [0, 128, 255])
def test_sign_is_small_and_stands_out(shape: tuple[int, int], level: int) -> None:
    picture = np.full((*shape, 3), level, np.uint8)
    marked = provenance.mark_picture(picture)
    assert marked.shape == picture.shape
    assert (picture == level).all()
    rows, columns = np.nonzero((marked != picture).any(axis=2))
    sign = marked[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1].astype(int)
    assert sign.max() - sign.min() > 100
    assert columns.min() <= max(3, 0.05 * shape[1])
    assert rows.max() > 0.95 * shape[0] - 3
    if min(shape) >= 128:
        assert rows.min() > 0.85 * shape[0]
        assert sign.shape[0] >= 7
        assert sign.shape[0] * sign.shape[1] < 0.06 * shape[0] * shape[1]


def test_marked_png_carries_all() -> None:
    picture = pictures.noise(128, 128)
    content = provenance.marked_png(picture, RECORD)
    assert np.array_equal(images.read(content), provenance.mark_picture(picture))
    assert provenance.read_record(content) == RECORD
    with Image.open(io.BytesIO(content)) as file:
        assert file.info["Software"] == provenance.SOFTWARE
        assert "not a photograph" in file.info["Comment"]


def test_a_picture_saved_from_the_page_carries_all() -> None:
    picture = pictures.noise(128, 128)
    marked = provenance.marked_image(picture, RECORD)
    image, gallery = gr.Image(format="png"), gr.Gallery(format="png")
    for file in (image.postprocess(marked).path, gallery.postprocess([(marked, "caption")]).root[0].image.path):
        content = Path(file).read_bytes()
        assert np.array_equal(images.read(content), provenance.mark_picture(picture))
        assert provenance.read_record(content) == RECORD


def test_png_without_sign_is_exact() -> None:
    picture = pictures.noise(64, 64)
    content = provenance.unmarked_png(picture, RECORD)
    assert np.array_equal(images.read(content), picture)
    assert provenance.read_record(content) == RECORD


def test_numbers_of_arrays_are_plain() -> None:
    record = {"score": np.float32(0.5), "box": np.array([1, 2])}
    assert provenance.read_record(provenance.unmarked_png(pictures.ramp(), record)) == {"score": 0.5, "box": [1, 2]}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"text",
        images.encode_png(pictures.ramp()),
        images.encode_png(pictures.ramp(), {"Record": "{broken"}),
        images.encode_png(pictures.ramp(), {"Record": "[1]"}),
        pictures.encode(pictures.ramp(), "JPEG"),
    ],
)
def test_other_files_have_no_record(content: bytes) -> None:
    assert provenance.read_record(content) is None
