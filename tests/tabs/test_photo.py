"""Steps 1 and 2 of every tab: what is shown of a photo, and that it is the photo that was chosen last."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import gradio as gr
import numpy as np
import pytest

import app
from backend import examples, images
from backend.alignment import AlignedFace
from backend.detectors import predict
from backend.detectors.predict import JudgedFace
from backend.faces import Face
from tabs import photo
from tabs.photo import BLUE, MOVING, ChosenPhoto, PhotoStep
from tests import pictures

RGB = tuple(bytes.fromhex(BLUE[1:]))


def judged_face(number: int, box: tuple[int, int, int, int]) -> JudgedFace:
    crop = np.zeros((8, 8, 3), np.uint8)
    aligned = AlignedFace(crop, np.eye(2, 3), "embedded", resampled=False, face=Face(box, 1.0, np.zeros((5, 2))))
    return JudgedFace(number, aligned, None, {})


@pytest.fixture
def step(monkeypatch):
    monkeypatch.setattr(examples, "load_examples", list)
    with gr.Blocks():
        return PhotoStep()


def write_file(folder: Path, name: str, content: bytes) -> str:
    (folder / name).write_bytes(content)
    return str(folder / name)


def test_a_verdict_on_an_earlier_photo_is_not_shown(step, tmp_path, monkeypatch):
    first, second = (write_file(tmp_path, f"{name}.png", pictures.encode(pictures.ramp(), "PNG")) for name in "ab")
    chosen = ChosenPhoto()
    step._choose(chosen, first)

    def slow(_):
        step._choose(chosen, second)  # while the detectors are asked about the first
        return [judged_face(1, (4, 4, 30, 30))]

    monkeypatch.setattr(predict, "judge_faces", slow)
    assert set(step._look(chosen)) == {step.faces}
    monkeypatch.setattr(predict, "judge_faces", lambda *_: [judged_face(1, (4, 4, 30, 30))])
    assert len(step._look(chosen)[step.faces]) == 1


def test_a_second_photo_is_not_dropped_while_the_first_is_judged():
    demo = app.build()
    looking = [
        event for event in demo.fns.values() if getattr(event.fn, "__name__", "") in {"_look", "_look_where_needed"}
    ]
    assert len(looking) == 2 and {event.trigger_mode for event in looking} == {"multiple"}


@pytest.mark.parametrize(("limit", "side"), [(20_000_000, 2200), (5_000_000, 1100), (1_500_000, 550)])
def test_a_photo_handed_back_as_png_can_be_uploaded_again(monkeypatch, limit, side):
    noise = np.random.default_rng(0).integers(0, 256, (2400, 2400, 3), dtype=np.uint8)
    monkeypatch.setattr(photo, "SETTINGS", replace(photo.SETTINGS, max_bytes=limit))
    returned = photo._convert_for_browser(noise)
    assert returned.shape == (side, side, 3)
    assert len(images.encode_png(returned)) <= limit


def test_an_example_is_the_photo_chosen_last(step, tmp_path, monkeypatch):
    path = tmp_path / "example.png"
    path.write_bytes(pictures.encode(pictures.ramp(), "PNG"))
    chosen = ChosenPhoto("upload")
    step.examples = [SimpleNamespace(photo_path=path)]
    monkeypatch.setattr(examples, "is_stale", lambda _: True)
    step._example(chosen, SimpleNamespace(index=0), None)
    assert chosen.path == str(path)
    step._forget(chosen)
    assert chosen.path is None
    assert set(step._look(chosen)) == {step.faces}  # nothing is said of a photo that was taken away in the meantime


def test_several_faces_carry_their_numbers():
    plain = np.full((300, 300, 3), 200, np.uint8)
    boxes = [(20, 30, 120, 130), (160, 40, 240, 120)]
    picture = photo._number_faces(plain, boxes)
    for x0, y0, *_ in boxes:
        assert tuple(picture[y0, x0]) == RGB
        assert (picture[y0 : y0 + 15, x0 : x0 + 12] > 240).all(-1).any()  # of the number itself
    assert np.array_equal(photo._number_faces(plain, boxes[:1]), plain)


@pytest.mark.parametrize(("kind", "moves"), [("GIF", True), ("WEBP", True), ("TIFF", False)])
def test_the_page_says_that_only_the_first_frame_of_an_animation_was_judged(step, tmp_path, monkeypatch, kind, moves):
    monkeypatch.setattr(predict, "judge_faces", lambda *_: [judged_face(1, (4, 4, 30, 30))])
    path = write_file(tmp_path, f"picture.{kind.lower()}", pictures.animation(kind))
    assert step._look(ChosenPhoto(path))[step.moving].visible == moves and step.moving.value == MOVING
