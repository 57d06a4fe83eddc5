"""What training pictures go through: the weak defence of TR-Net's paper, and the one save that all have in common."""

import numpy as np
import pytest
from PIL import Image

from backend.images import as_jpeg, like_photograph
from backend.training import degradation


def picture(size=128):
    rows, columns = np.mgrid[0:size, 0:size]
    waves = 127 + 60 * np.sin(rows / 5)[..., None] * np.cos(columns / 7)[..., None] * np.array([1.0, 0.8, 0.6])
    return np.clip(waves + np.random.default_rng(0).normal(0, 5, (size, size, 3)), 0, 255).astype(np.uint8)


def psnr(first, second):
    return 10 * np.log10(255**2 / np.square(first.astype(float) - second).mean())


def test_noise_of_the_paper_has_the_psnr_of_its_table():
    # A deviation drawn from U(5, 20) gives 26.78 dB on average, a variance would give 37.5.
    grey = np.full((64, 64, 3), 128, np.uint8)
    randomness = np.random.default_rng(1)
    drawn = [psnr(grey, degradation.add_noise(grey, deviation, randomness)) for deviation in np.linspace(5, 20, 61)]
    assert np.mean(drawn) == pytest.approx(26.78, abs=0.15)


def test_blur_keeps_even_pictures_and_is_the_gaussian_of_the_reference():
    even = np.full((32, 32, 3), 77, np.uint8)
    assert np.array_equal(degradation.blur_picture(even, 9), even)
    dot = np.zeros((9, 9, 3), np.uint8)
    dot[4, 4] = 255
    side = np.exp(-1 / 32)  # weight one pixel away at a deviation of 4, relative to the centre
    centre = 255 / (1 + 2 * side) ** 2
    assert degradation.blur_picture(dot, 3)[4, 4, 0] == round(centre)
    assert degradation.blur_picture(dot, 3)[4, 5, 0] == round(centre * side)
    assert degradation.blur_picture(dot, 3)[4, 6, 0] == 0


def test_cropping_cuts_half_of_the_share_off_every_edge():
    ramp = np.repeat(np.arange(128, dtype=np.uint8)[None, :, None], 128, 0).repeat(3, 2)
    cropped = degradation.crop_picture(ramp, 20.0)
    assert cropped.shape == ramp.shape
    assert abs(int(cropped[64, 0, 0]) - 12) <= 1
    assert abs(int(cropped[64, -1, 0]) - 115) <= 1


def test_steps_come_in_the_order_of_the_paper_and_half_of_the_time(monkeypatch):
    calls = []

    def record(name):
        return lambda image, *_: (calls.append(name), image)[1]

    for name in ("blur_picture", "crop_picture", "compress_picture", "add_noise"):
        monkeypatch.setattr(degradation, name, record(name))
    counts = dict.fromkeys(("blur_picture", "crop_picture", "compress_picture", "add_noise"), 0)
    for seed in range(400):
        calls.clear()
        degradation.weak_defence(picture(8), np.random.default_rng(seed))
        assert calls == [name for name in counts if name in calls]
        for name in calls:
            counts[name] += 1
    assert all(160 <= count <= 240 for count in counts.values())


def test_drawn_strengths_stay_in_their_ranges(monkeypatch):
    strengths = {"blur_picture": set(), "crop_picture": set(), "compress_picture": set(), "add_noise": set()}
    for name, values in strengths.items():
        monkeypatch.setattr(degradation, name, lambda image, value, *_, values=values: (values.add(value), image)[1])
    for seed in range(400):
        degradation.weak_defence(picture(8), np.random.default_rng(seed))
    assert strengths["blur_picture"] == {3, 5, 7, 9}
    assert 5 <= min(strengths["crop_picture"]) < 6 and 19 < max(strengths["crop_picture"]) <= 20
    assert 10 <= min(strengths["compress_picture"]) < 15 and 70 < max(strengths["compress_picture"]) <= 74
    assert 5 <= min(strengths["add_noise"]) < 6 and 19 < max(strengths["add_noise"]) <= 20


@pytest.mark.parametrize("name", ["none", "weak", "shipped"])
def test_every_defence_gives_the_same_picture_for_the_same_seed(name):
    defence = degradation.defence_named(name)
    first, second = (defence(picture(), np.random.default_rng(7)) for _ in range(2))
    assert np.array_equal(first, second)
    assert first.shape == (128, 128, 3) and first.dtype == np.uint8
    assert np.array_equal(first, like_photograph(picture())) == (name == "none")


def test_what_was_saved_like_the_photographs_hardly_changes_when_it_is_saved_again():
    def change(image):
        return np.abs(image.astype(int) - like_photograph(image)).mean()

    photograph = np.asarray(as_jpeg(Image.fromarray(picture()), 90))  # as the packs of photographs hold them
    assert np.array_equal(like_photograph(picture()), photograph)
    assert change(photograph) < 0.1 * change(picture())
