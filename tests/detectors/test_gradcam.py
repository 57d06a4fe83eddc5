import dataclasses

import numpy as np
import pytest
import torch
from pytorch_grad_cam import GradCAM, GradCAMPlusPlus
from torch import nn
from torch.nn import functional

from backend.detectors.base import Detector
from backend.detectors.gradcam import _LogOdds, _raw_method, grad_cam
from backend.explain.explanation import ExplainSettings, explain
from backend.progress import finish
from tests.patch_toys import PATCH, face, in_patch, patch_detector
from tests.toys import hooks, toy_detector

PACKAGE = {"gradcam": GradCAM, "gradcampp": GradCAMPlusPlus}


class Convolutions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.features = nn.Sequential(nn.Conv2d(3, 6, 5, 2, 2), nn.ReLU(), nn.Conv2d(6, 8, 3, 2, 1), nn.ReLU())
        self.head = nn.Linear(8, 1)

    def forward(self, images):
        return self.head(self.features(images).mean((2, 3)))


@pytest.mark.parametrize("towards", ["fake", "real"])
@pytest.mark.parametrize("name", PACKAGE)
def test_the_map_is_that_of_the_package_in_both_directions(name, towards):
    detector = Detector(Convolutions(), toy_detector(size=32).card).eval()
    coarse = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(1))  # noise has no segments
    picture = functional.interpolate(coarse, size=32, mode="bilinear")
    result = finish(explain(picture, detector, ExplainSettings(method=name, towards=towards)))
    sign = 1 if towards == "fake" else -1
    cam = PACKAGE[name](_LogOdds(detector), [detector.cam_module()])
    expected = cam(picture.clone().requires_grad_(True), targets=[lambda scores: sign * scores[0]])[0]
    cam.activations_and_grads.release()
    assert not result.degenerate and not result.signed and result.reference is None
    assert np.abs(result.saliency.numpy() - expected).max() < 1e-4


@pytest.mark.parametrize("variant", ["Grad-CAM", "Grad-CAM++"])
def test_the_map_of_a_mirrored_detector_adds_what_the_mirror_image_shows_in_its_place(variant):
    once = Detector(Convolutions(), toy_detector(size=32).card).eval()
    both = Detector(once.network, dataclasses.replace(once.card, mirrored=True)).eval()
    pictures = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    maps = grad_cam(both, pictures, variant=variant).maps
    assert maps.shape == (2, 32, 32)
    assert np.allclose(grad_cam(both, pictures.flip(3), variant=variant).maps, maps[:, :, ::-1], atol=1e-3)
    assert np.abs(grad_cam(once, pictures, variant=variant).maps - maps).max() > 0.05


def test_in_grad_cam_both_halves_count_alike():
    once = Detector(Convolutions(), toy_detector(size=32).card).eval()
    both = Detector(once.network, dataclasses.replace(once.card, mirrored=True)).eval()
    pictures = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    both_map, once_map, mirrored_map = raw_map(both, pictures), raw_map(once, pictures), raw_map(once, pictures.flip(3))
    assert np.allclose(both_map, (once_map + mirrored_map[:, :, ::-1]) / 2, atol=1e-6)  # each has half of the gradient
    assert np.abs(both_map).max() > 1e-4


def raw_map(detector, pictures):
    cam = _raw_method("Grad-CAM")(_LogOdds(detector), [detector.cam_module()])
    cam.mirrored = detector.card.mirrored
    cam(pictures.clone().requires_grad_(True), targets=[lambda scores: scores[0]] * len(pictures))
    cam.activations_and_grads.release()
    return cam.raw


@pytest.mark.parametrize("name", PACKAGE)
def test_the_patch_is_found_and_nothing_speaks_against_it(name):
    detector = patch_detector()
    result = finish(explain(face(), detector, ExplainSettings(method=name)))
    assert in_patch(result.saliency) and result.explanation.images == 1 and result.explanation.calls == 1
    outside = result.saliency.clone()
    outside[PATCH] = 0
    assert outside.max() == 0
    against = finish(explain(face(), detector, ExplainSettings(method=name, towards="real")))
    assert against.degenerate and "against a forgery" in against.reason and (against.saliency == 0).all()
    assert hooks(detector) == 0


def test_a_detector_without_a_layer_says_so():
    detector = patch_detector()
    detector.card = dataclasses.replace(detector.card, cam_layer="")
    result = finish(explain(face(), detector, ExplainSettings(method="gradcam")))
    assert result.degenerate and "layer" in result.reason
