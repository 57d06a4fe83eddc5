"""MAT: its blocks by hand-computed values, its taps, its loss, its published keys."""

import pytest
import torch
from torch import Tensor

from backend.detectors.base import Detector
from backend.detectors.mat import (
    MAT,
    AttentionMaps,
    RegionIndependence,
    TextureEnhancement,
    attention_means,
    attention_sums,
    bilinear_attention_pooling,
    from_official,
)
from backend.errors import UserError
from tests.detectors.test_detectors import plain_card
from tests.published import assert_trains, cam_gradient, official_b4

BATCH_NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
HEADS = (
    "projection_local.0",
    "projection_local.2",
    "project_final",
    "ensemble_classifier_fc.0",
    "ensemble_classifier_fc.2",
)


@pytest.fixture
def slim() -> MAT:
    """Return a slim network."""
    torch.manual_seed(0)
    return MAT(0.25, 0.3)


@pytest.fixture(scope="module")
def published() -> MAT:
    """Return the network at its published size, without memory for its weights."""
    with torch.device("meta"):
        return MAT()


def published_keys() -> set[str]:
    """Return the keys of everything but the backbone, as published."""
    keys = {"attentions.mask", "attentions.conv2.weight"}
    keys |= {f"auxiliary_loss.{part}" for part in ("feature_centers", "alpha", "inner_margin")}
    convolutions = ["attentions.conv_extract", "texture_enhance.conv_extract", "texture_enhance.conv_last", *HEADS]
    convolutions += [f"texture_enhance.conv{number}" for number in range(4)]
    norms = ["attentions.bn1", "attentions.bn2", "texture_enhance.bn_last"]
    norms += [f"texture_enhance.bn{number}" for number in range(1, 5)]
    keys |= {f"{layer}.{part}" for layer in convolutions for part in ("weight", "bias")}
    return keys | {f"{layer}.{part}" for layer in norms for part in BATCH_NORM}


def official_state(network: MAT) -> dict[str, Tensor]:
    """Return the network's tensors under the authors' names."""
    state = {f"net.{key}": value for key, value in official_b4(network.net).items()}
    return state | {key: value for key, value in network.state_dict().items() if not key.startswith("net.")}


def test_published_size_and_keys(published: MAT) -> None:
    assert sum(weight.numel() for weight in published.parameters()) == 18_826_068
    assert {key for key in published.state_dict() if not key.startswith("net.")} == published_keys()
    shapes = {key: tuple(value.shape) for key, value in published.state_dict().items()}
    assert shapes["attentions.conv2.weight"] == (4, 160, 1, 1)
    assert shapes["texture_enhance.conv0.weight"] == (128, 32, 5, 5)
    assert shapes["texture_enhance.conv3.weight"] == (128, 96, 3, 3)
    assert shapes["projection_local.0.weight"] == (256, 128) and shapes["project_final.weight"] == (256, 1792)
    assert shapes["auxiliary_loss.feature_centers"] == (4, 32)


@pytest.mark.parametrize(("size", "taps"), [(256, (64, 16, 8)), (380, (95, 24, 12))])
def test_taps_of_the_published_size(published: MAT, size: int, taps: tuple[int, int, int]) -> None:
    texture, attended, final = published.eval()._taps(torch.zeros(1, 3, size, size, device="meta"))
    assert [features.shape[1:] for features in (texture, attended, final)] == [
        (32, taps[0], taps[0]),
        (160, taps[1], taps[1]),
        (1792, taps[2], taps[2]),
    ]


def test_every_key_of_the_official_checkpoint_is_matched(published: MAT) -> None:
    state = official_state(published)
    assert {"net._conv_stem.weight", "net._blocks.2._expand_conv.weight", "net._fc.bias"} <= state.keys()
    assert "net._blocks.1._expand_conv.weight" not in state  # the first stage expands nothing
    expected = published.state_dict()
    for checkpoint in (state, {"state_dict": state}):
        converted = from_official(checkpoint)
        assert converted.keys() == expected.keys()
        assert all(converted[key].shape == expected[key].shape for key in expected)
    marked = state | {"net._blocks.31._se_reduce.bias": torch.full((112,), 7.0)}
    assert (from_official(marked)["net.blocks.6.1.se.conv_reduce.bias"] == 7).all()


def test_official_checkpoint_is_matched_strictly(published: MAT) -> None:
    state = official_state(published)
    for extra in ("net._blocks.32._bn1.bias", "_conv_stem.weight", "module.project_final.bias"):
        with pytest.raises(UserError, match="does not have"):
            from_official(state | {extra: torch.zeros(1)})
    with pytest.raises(UserError, match="lacks"):
        from_official({"state_dict": {}})


@torch.no_grad()
def test_attention_is_positive_inside_and_zero_at_the_border() -> None:
    torch.manual_seed(0)
    attention = AttentionMaps(6, 3).eval()(torch.randn(2, 6, 24, 24))
    assert attention.shape == (2, 3, 24, 24) and (attention[..., 2:-2, 2:-2] > 0).all()
    attention[..., 2:-2, 2:-2] = 0
    assert (attention == 0).all()


def test_attention_pooling_by_hand() -> None:
    features = torch.tensor([[[1.0, 2.0], [3.0, 4.0]], [[0.0, 1.0], [0.0, 1.0]]])[None]
    attention = torch.tensor([[[1.0, 0.0], [1.0, 0.0]], [[0.0, 2.0], [0.0, 0.0]]])[None]
    torch.testing.assert_close(attention_sums(features, attention), torch.tensor([[[4.0, 0.0], [4.0, 2.0]]]))
    unit = torch.tensor([[[1.0, 0.0], [2 / 5**0.5, 1 / 5**0.5]]])
    torch.testing.assert_close(bilinear_attention_pooling(features, attention), unit)
    torch.testing.assert_close(attention_means(features, attention), torch.tensor([[[2.0, 0.0], [2.0, 1.0]]]))
    stacked = torch.stack([features, features + 1], dim=1)
    torch.testing.assert_close(attention_sums(stacked, attention), torch.tensor([[[4.0, 0.0], [6.0, 4.0]]]))


def test_texture_leaves_out_the_local_mean_and_the_attentions_gradient() -> None:
    torch.manual_seed(0)
    block = TextureEnhancement(4, 2).eval()
    block.conv_extract.weight.data.zero_()
    for channel in range(4):
        block.conv_extract.weight.data[channel, channel, 1, 1] = 1.0
    block.conv_extract.bias.data.zero_()
    attention = torch.rand(1, 2, 4, 4, requires_grad=True)
    features = torch.rand(1, 4, 16, 16, requires_grad=True)
    texture, means = block(features, attention)
    assert texture.shape == (1, 2, 4, 16, 16)
    torch.testing.assert_close(means, features.unfold(2, 4, 4).unfold(3, 4, 4).mean((4, 5)))
    shifted, _ = block(features + 3, attention)
    torch.testing.assert_close(shifted, texture, atol=1e-5, rtol=1e-4)
    texture.sum().backward()
    assert attention.grad is None and features.grad is not None and features.grad.abs().sum() > 0


@torch.no_grad()
def test_each_map_has_its_own_texture() -> None:
    torch.manual_seed(0)
    block = TextureEnhancement(4, 2).eval()
    features, attention = torch.rand(1, 4, 16, 16), torch.rand(1, 2, 4, 4)
    first, _ = block(features, attention)
    attention[:, 1] += 1
    second, _ = block(features, attention)
    assert torch.equal(first[:, 0], second[:, 0]) and not torch.equal(first[:, 1], second[:, 1])


def test_region_independence_by_hand() -> None:
    loss = RegionIndependence(2, 2, alpha=0.5, margin=0.8, inner_margin=(0.2, -0.8)).eval()
    loss.feature_centers.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    # Two channels whose standardised values are +-0.866 (n - 1 in the deviation) left-right and top-bottom.
    means = torch.tensor([[[0.0, 4.0], [0.0, 4.0]], [[0.0, 0.0], [2.0, 2.0]]])[None].repeat(2, 1, 1, 1)
    right, below = torch.tensor([[0.0, 1.0], [0.0, 1.0]]), torch.tensor([[0.0, 0.0], [1.0, 1.0]])
    attention = torch.stack([right, below])[None].repeat(2, 1, 1, 1)  # pooled: exactly the two centres
    both = loss(means, attention, torch.tensor([0.0, 1.0])).item()
    assert both == pytest.approx((0.0 + 0.8) / 2)  # real at distance 0, fake at 0 instead of 0.8; centres sqrt(2) apart
    loss.feature_centers.zero_()
    # Real faces only: the centres move half-way, to 0.5 each, and lie 0.7071 apart.
    reals = loss(means, attention, torch.zeros(2)).item()
    assert reals == pytest.approx((0.5**0.5 - 0.2) + (0.8 - 0.5**0.5) / 2 / 0.5, abs=1e-6)
    assert (loss.feature_centers == 0).all()  # inference mode
    loss.train()(means, attention, torch.ones(2))
    assert (loss.feature_centers == 0).all()  # fakes alone move nothing
    loss(means, attention, torch.zeros(2))
    torch.testing.assert_close(loss.feature_centers, torch.tensor([[0.5, 0.0], [0.0, 0.5]]))


def test_extra_loss_reaches_attention_and_backbone(slim: MAT) -> None:
    faces = torch.rand(4, 3, 128, 128) * 2 - 1
    logits, extras = slim.train().forward_with_extras(faces, torch.tensor([0.0, 1.0, 0.0, 1.0]))
    assert logits.shape == (4, 2) and list(extras) == ["region_independence"]
    extras["region_independence"].backward()
    for weight in (slim.attentions.conv2.weight, slim.texture_enhance.conv_extract.weight, slim.net.conv_stem.weight):
        assert weight.grad is not None and weight.grad.isfinite().all() and weight.grad.abs().sum() > 0
    assert slim.auxiliary_loss.feature_centers.abs().sum() > 0


@torch.no_grad()
def test_a_dropped_map_is_missing_everywhere(slim: MAT) -> None:
    faces = torch.rand(2, 3, 128, 128)
    slim.eval()
    slim.dropout.p = 1.0
    slim.dropout.train()
    captured: list[Tensor] = []
    handle = slim.projection_local[0].register_forward_hook(lambda _module, inputs, _output: captured.append(inputs[0]))
    slim(faces)
    handle.remove()
    assert (captured[0] == 0).all()


def test_it_trains(slim: MAT) -> None:
    assert_trains(slim, 64)
    unused = {name for name, weight in slim.named_parameters() if weight.grad is None}
    assert unused == {"net.classifier.weight", "net.classifier.bias"}


def test_grad_cam(slim: MAT) -> None:
    features, gradient = cam_gradient(slim, "net.bn2", torch.rand(2, 3, 128, 128))
    assert features.shape[-2:] == (4, 4) and gradient.abs().sum() > 0


@torch.no_grad()
@pytest.mark.parametrize("fake", [True, False])
def test_direction(slim: MAT, fake: bool) -> None:
    head = slim.eval().ensemble_classifier_fc[2]
    head.weight.zero_()
    head.bias.copy_(torch.tensor([-2.0, 2.0] if fake else [2.0, -2.0]))
    assert ((Detector(slim, plain_card("mat")).p_fake(torch.rand(2, 3, 90, 90)) > 0.5) == fake).all()
