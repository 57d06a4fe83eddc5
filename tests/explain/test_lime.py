import numpy as np
import pytest
import torch
from lime.lime_base import LimeBase
from lime.lime_image import LimeImageExplainer

from backend.explain import lime
from backend.explain.base import MaskedFace, Question, segment_means
from backend.explain.segments import slic_segments
from backend.progress import finish
from tests.patch_toys import face, patch_detector, untextured

SAMPLES = 120


def kernel(distances):
    return np.sqrt(np.exp(-(distances**2) / 0.25**2))


@pytest.mark.parametrize("keep", [None, 10])
def test_the_fit_is_that_of_the_package(keep):
    random = np.random.RandomState(3)
    samples = random.randint(0, 2, (200, 40))
    samples[0] = 1
    answers = random.rand(200)
    distances = lime.distances(samples)
    _, weights, _, _ = LimeBase(kernel).explain_instance_with_data(
        samples, answers[:, None], distances, 0, keep or 100000, feature_selection="highest_weights"
    )
    expected = np.zeros(40)
    for segment, weight in weights:
        expected[segment] = weight
    assert np.abs(lime.fit_weights(samples, answers, keep) - expected).max() < 1e-9
    assert (lime.fit_weights(samples, answers, keep) != 0).sum() == (keep or 40)


def test_distances_are_the_packages():
    from sklearn.metrics import pairwise_distances

    samples = lime.draw_samples(50, 12, seed=1)
    samples[7] = 0
    expected = pairwise_distances(samples, samples[:1], metric="cosine").ravel()
    assert np.abs(lime.distances(samples) - expected).max() < 1e-12


@pytest.mark.parametrize("adversarial", [False, True])
def test_the_map_is_that_of_the_package(adversarial):
    picture, detector = face(), patch_detector()
    labels = slic_segments(picture[0], 50)
    reference = untextured() if adversarial else segment_means(picture, labels)
    raw = finish(lime.lime(Question(MaskedFace(picture, reference, detector, bfloat16=False), labels, SAMPLES, seed=5)))

    def classify(pictures):
        with torch.no_grad():
            p_fake = detector.p_fake(torch.from_numpy(pictures).permute(0, 3, 1, 2).float()).double().numpy()
        return np.stack([1 - p_fake, p_fake], axis=1)

    explanation = LimeImageExplainer(random_state=5).explain_instance(
        picture[0].permute(1, 2, 0).double().numpy(),
        classify,
        labels=(1,),
        top_labels=None,
        hide_color=reference[0].permute(1, 2, 0).double().numpy() if adversarial else None,
        num_samples=SAMPLES,
        segmentation_fn=lambda _: labels.numpy(),
        random_seed=0,
    )
    weights = dict(explanation.local_exp[1])
    expected = torch.tensor([weights[segment] for segment in range(len(weights))])[labels]
    assert (raw.saliency - expected).abs().max() < 1e-5
    assert raw.answers[0] == pytest.approx(float(detector.p_fake(picture).detach()[0]), abs=1e-6)


def test_a_segment_is_painted_in_its_mean_colour():
    picture = torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([[0, 0, 1, 1]] * 4)
    painted = segment_means(picture, labels)
    assert torch.allclose(painted[..., :2], picture[..., :2].mean((2, 3), keepdim=True).expand(-1, -1, 4, 2))
    assert torch.allclose(painted[..., 2:], picture[..., 2:].mean((2, 3), keepdim=True).expand(-1, -1, 4, 2))
