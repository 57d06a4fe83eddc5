import numpy as np
import pytest
import torch
from saliency.core import INPUT_OUTPUT_GRADIENTS, XRAI, XRAIParameters
from torch import nn

from backend.detectors.base import Detector
from backend.explain import xrai
from backend.explain.base import MaskedFace, Question
from backend.explain.explanation import ExplainSettings, explain
from backend.progress import finish
from tests.patch_toys import face, in_patch, patch_detector
from tests.toys import grey, toy_detector

STEPS = 6


def ask(picture, detector, steps=STEPS, **options):
    masked = MaskedFace(picture, picture, detector, bfloat16=False, **options)
    size = picture.shape[2:]
    return finish(xrai.xrai(Question(masked, torch.zeros(size, dtype=torch.long), steps))), masked


def test_the_map_is_that_of_the_package():
    picture, detector = face(), patch_detector()
    raw, masked = ask(picture, detector, batch=4)

    def call(pictures, call_model_args=None, expected_keys=None):
        leaf = torch.from_numpy(pictures).permute(0, 3, 1, 2).float().requires_grad_()
        (gradient,) = torch.autograd.grad(detector.logit_fake(leaf).sum(), leaf)
        return {INPUT_OUTPUT_GRADIENTS: gradient.permute(0, 2, 3, 1).numpy()}

    expected = XRAI().GetMask(
        picture[0].permute(1, 2, 0).double().numpy(), call, batch_size=4, extra_parameters=XRAIParameters(steps=STEPS)
    )
    assert np.abs(raw.saliency.numpy() - expected).max() < 1e-5 * np.abs(expected).max()
    assert masked.inferences.images == 2 * STEPS and masked.inferences.calls == 4
    assert in_patch(raw.saliency)


def test_attributions_add_up_to_the_difference_of_the_log_odds(monkeypatch):
    # Brightness is linear, so that integrated gradients are exact with any number of steps.
    picture = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    detector = toy_detector(size=16)
    captured = []
    monkeypatch.setattr(xrai, "_grow", lambda picture, attribution: captured.append(attribution) or torch.zeros(16, 16))
    ask(picture, detector)
    low, high = (
        detector.logit_fake(torch.full_like(picture, float(value))) for value in (picture.min(), picture.max())
    )
    difference = detector.logit_fake(picture) - (low + high) / 2
    assert float(captured[0].sum()) == pytest.approx(float(difference), abs=1e-4)


@pytest.mark.parametrize("picture", [grey(200), torch.rand(1, 3, 8, 8)])
def test_without_regions_or_slope_there_is_no_map(picture):
    class Constant(nn.Module):
        def forward(self, images):
            return torch.full((len(images), 1), 3.0)

    detector = Detector(Constant(), toy_detector().card).eval()
    result = finish(explain(picture, detector, ExplainSettings(method="xrai")))
    assert result.degenerate and result.reason and (result.saliency == 0).all()
