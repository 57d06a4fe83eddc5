import numpy as np
import pytest
import torch
from torch import nn

from backend import faces, similarity
from backend.counterfactual import changes
from backend.detectors.base import Detector
from backend.detectors.gradcam import grad_cam
from tests.toys import grey, hooks, toy_detector

LANDMARKS = np.array([[47, 54], [81, 54], [64, 75], [51, 92], [77, 92]], dtype=np.float64)


def even(level: int, size: int = 16) -> np.ndarray:
    return np.full((size, size, 3), level, dtype=np.uint8)


def test_residual_keeps_its_sign_and_does_not_wrap():
    brighter, darker = changes.signed_residual(even(250), even(255)), changes.signed_residual(even(3), even(0))
    assert np.allclose(brighter.values, 5 / 255) and np.allclose(darker.values, -3 / 255)
    red, _, blue = brighter.picture[0, 0].astype(int)
    assert blue > red  # purple
    red, _, blue = darker.picture[0, 0].astype(int)
    assert red > blue  # orange
    assert brighter.gain == 50 and brighter.largest == 5  # 5/255 * 50 = 0.98, and 100 would leave the range
    assert "x 50" in brighter.caption


def test_a_change_of_colour_alone_is_drawn():
    changed = even(100)
    changed[:8, :, 0], changed[:8, :, 2] = 130, 70
    residual = changes.signed_residual(even(100), changed)
    assert np.allclose(residual.values[:8], 20 / 255) and not residual.values[8:].any()
    assert residual.largest == 30


def test_no_change_is_reported_and_drawn_plain():
    residual = changes.signed_residual(even(9), even(9))
    assert residual.caption == "No pixel changed."
    assert (residual.picture == residual.picture[0, 0]).all()


def test_latent_change_by_row_and_level():
    start = torch.zeros(2, 12, 512)
    codes = start.clone()
    codes[0, 4:8] = -0.5
    codes[1, 0] = 1.0
    change = changes.measure_latent_change(start, codes)
    assert change.rows[0].tolist() == [0] * 4 + [0.5] * 4 + [0] * 4
    assert {level: values.tolist() for level, values in change.levels.items()} == {
        "S": [0, 0.25],
        "M": [0.5, 0],
        "D": [0, 0],
    }


def test_likeness():
    assert similarity.psnr_and_ssim(even(7), even(7)) == {"psnr": None, "ssim": 1.0}
    assert similarity.psnr_and_ssim(even(100), even(110))["psnr"] == pytest.approx(20 * np.log10(255 / 10))


def test_regions_cover_every_pixel_once():
    masks = faces.region_masks(LANDMARKS, (128, 128))
    assert (sum(mask.astype(int) for mask in masks.values()) == 1).all()
    assert masks["eyes"][54, 47] and masks["nose"][74, 64] and masks["mouth"][92, 64]
    assert masks["skin"][75, 40] and masks["surround"][2, 2]


def test_the_changed_region_is_named():
    original = even(100, 128)
    changed = original.copy()
    changed[88:96, 56:72] = 140
    regions = changes.changed_regions(original, changed, LANDMARKS)
    assert regions[0].region == "mouth" and regions[0].share == 1.0
    assert sum(region.area for region in regions) == pytest.approx(1.0)
    assert "the mouth (100%" in changes.regions_in_words(regions)
    assert changes.regions_in_words(changes.changed_regions(original, original, LANDMARKS)) == "No pixel changed."


def test_cam_has_the_value_of_the_formula():
    # Channel 0 has weight slope / pixels > 0, channel 1 has none: the map is the brightness, scaled to its range.
    picture = torch.zeros(1, 3, 8, 8)
    picture[..., 4:] = 1.0
    cam = grad_cam(toy_detector(), picture)
    assert cam.maps.shape == (1, 8, 8) and not cam.empty[0]
    assert np.allclose(cam.maps[0], picture[0, 0].numpy(), atol=1e-4)


def test_an_empty_cam_is_not_stretched():
    cam = grad_cam(toy_detector(), grey(100, 200), towards="real")
    assert cam.empty.all() and (cam.maps == 0).all()
    assert "no map" in cam.note


def test_cam_leaves_the_detector_as_it_was():
    detector = toy_detector().train()
    grad_cam(detector, grey(100))
    assert detector.training and hooks(detector) == 0
    assert all(weight.requires_grad and weight.grad is None for weight in detector.parameters())


def test_cam_releases_its_hooks_when_it_fails():
    class Broken(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.features = nn.Conv2d(3, 1, 1)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            self.features(images)
            raise RuntimeError("broken")

    detector = Detector(Broken(), toy_detector().card)
    with pytest.raises(RuntimeError, match="broken"):
        grad_cam(detector, grey(100))
    assert hooks(detector) == 0


def face_of_one_colour() -> np.ndarray:
    return np.full((128, 128, 3), (120, 100, 90), dtype=np.uint8)


def region(name: str) -> np.ndarray:
    return faces.region_masks(LANDMARKS, (128, 128))[name]


def test_looks_are_measured_by_region_and_said_in_words(monkeypatch):
    face = face_of_one_colour()
    changed = face.copy()
    changed[region("eyes")] += 10  # the same for all colours: lighter, and as colourful as before
    changed[region("mouth"), 0] += 20  # red alone
    monkeypatch.setattr(changes, "NOTABLE_DETAIL", 2.0)  # their edges are new fine detail
    looks = {look.region: look for look in changes.measure_looks(face, changed, LANDMARKS)}
    assert looks["eyes"].shade == pytest.approx(10, abs=0.01) and looks["eyes"].colour == pytest.approx(0)
    assert looks["mouth"].shade == pytest.approx(0.299 * 20, abs=0.01)
    assert looks["mouth"].colour == pytest.approx(20)
    assert looks["surround"].words == []
    sentence = changes.looks_in_words([looks["eyes"], looks["mouth"], looks["surround"]])
    assert sentence.startswith("The eyes became lighter") and "the mouth became lighter and more colourful" in sentence
    back = changes.looks_in_words(changes.measure_looks(changed, face, LANDMARKS))
    assert "The eyes became darker" in back and "the mouth became darker and paler" in back


def test_noise_makes_sharper_and_its_removal_smoother():
    face = face_of_one_colour()
    randomness = np.random.default_rng(0)
    rough = face.astype(int)
    rough[region("skin")] += randomness.integers(-6, 7, (int(region("skin").sum()), 1))
    looks = {look.region: look.words for look in changes.measure_looks(face, rough.astype(np.uint8), LANDMARKS)}
    assert looks["skin"] == ["sharper"] and looks["surround"] == []
    looks = {look.region: look.words for look in changes.measure_looks(rough.astype(np.uint8), face, LANDMARKS)}
    assert looks["skin"] == ["smoother"]


def test_a_change_that_nobody_sees_is_called_so():
    face = face_of_one_colour()
    assert "No part of the face became visibly" in changes.looks_in_words(
        changes.measure_looks(face, face + 1, LANDMARKS)
    )


@pytest.mark.parametrize(("period", "share"), [(4, 1.0), (2, 1.0), (16, 0.0), (64, 0.0)])
def test_a_wave_is_fine_where_it_repeats_within_eight_pixels(period, share):
    wave = torch.sin(2 * torch.pi * torch.arange(64) / period + 0.5).expand(1, 3, 64, 64)
    flat = torch.full((1, 3, 64, 64), 0.5)
    for picture in (flat + 0.1 * wave, flat + 0.1 * wave.transpose(2, 3)):
        assert changes.fine_share(flat, picture).item() == pytest.approx(share, abs=1e-9)


def test_the_share_of_a_sum_of_two_waves_is_that_of_their_energies_and_no_change_has_none():
    places = torch.arange(64)
    coarse, fine = torch.sin(2 * torch.pi * places / 32), torch.sin(2 * torch.pi * places / 4)
    change = (3 * coarse + 1 * fine).expand(1, 3, 64, 64) * 0.01
    flat = torch.full((1, 3, 64, 64), 0.5)
    assert changes.fine_share(flat, flat + change).item() == pytest.approx(1 / 10, abs=1e-4)
    assert changes.fine_share(flat, flat).isnan().all()
