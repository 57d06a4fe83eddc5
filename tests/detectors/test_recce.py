"""RECCE: its blocks against explicit loops, its losses by hand, its reconstruction, its published keys."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backend.detectors.base import Detector
from backend.detectors.recce import (
    NOISE,
    RECCE,
    GraphReasoning,
    GuidedAttention,
    from_deepfakebench,
    from_official,
    metric_loss,
    reconstruction_loss,
)
from backend.detectors.xception import Xception
from backend.errors import UserError
from tests.detectors.test_detectors import plain_card
from tests.published import assert_trains, cam_gradient

FAKE = torch.tensor([0.0, 0.0, 1.0, 1.0])


@pytest.fixture
def slim() -> RECCE:
    """Return a slim network."""
    torch.manual_seed(0)
    return RECCE(0.1)


def test_published_size_and_keys() -> None:
    with torch.device("meta"):
        network, encoder = RECCE(imagenet_head=True), Xception(classes=0)
        single = RECCE(classes=1, imagenet_head=True)
    assert sum(weight.numel() for weight in network.parameters()) == 25_832_558
    state = network.state_dict()
    heads = {key.split(".")[0] for key in state}
    assert heads == {"encoder", "reasoning", "attention", "fc", *(f"decoder{number}" for number in range(1, 7))}
    assert {key for key in state if key.startswith("encoder.")} == {
        "encoder.fc.weight",
        "encoder.fc.bias",
        *(f"encoder.{key}" for key in encoder.state_dict()),
    }
    shapes = {key: tuple(value.shape) for key, value in state.items()}
    assert shapes["decoder1.1.pointwise.weight"] == (256, 728, 1, 1) and shapes["decoder6.0.weight"] == (3, 64, 1, 1)
    assert shapes["reasoning.reweight_ab.0.weight"] == (1, 512) and shapes["reasoning.vc_embedding.0.weight"] == (
        256,
        128,
    )
    assert shapes["reasoning.reproject.2.weight"] == (728, 728, 1, 1) and shapes["attention.gated.2.weight"] == (
        1,
        3,
        1,
        1,
    )
    assert from_deepfakebench({f"model.{key}": value for key, value in state.items()}).keys() == state.keys()
    assert from_official(single.state_dict())["fc.weight"].shape == (1, 2048)
    with pytest.raises(UserError, match="does not have"):
        from_deepfakebench(state)
    with pytest.raises(UserError, match="shape"):
        from_official(state)


@torch.no_grad()
def test_graph_reasoning_is_the_loop_over_places() -> None:
    torch.manual_seed(0)
    block = GraphReasoning(6, 5, 4, 3, 0.2).eval()
    a, b, c = torch.randn(2, 6, 2, 3), torch.randn(2, 5, 4, 6), torch.randn(2, 4, 8, 12)
    embedding = block.va_embedding(a)
    gathered = [torch.zeros(2, 3, 2, 3), torch.zeros(2, 3, 2, 3)]
    for face in range(2):
        for row in range(2):
            for column in range(3):
                for target, fine, ratio, embed, reweight, gate in (
                    (gathered[0], b, 2, block.vb_embedding, block.reweight_ab, block.va_gated_b),
                    (gathered[1], c, 4, block.vc_embedding, block.reweight_ac, block.va_gated_c),
                ):
                    rows = slice(row * ratio, (row + 1) * ratio)
                    columns = slice(column * ratio, (column + 1) * ratio)
                    inside = embed(fine[face, :, rows, columns].flatten(1).T)
                    place = embedding[face, :, row, column].expand(len(inside), -1)
                    scores = torch.relu(torch.cat([place, inside], 1) @ reweight[0].weight[0])
                    summed = torch.softmax(scores, 0) @ inside
                    target[face, :, row, column] = summed * (1 - gate(a)[face, :, row, column])
    expected = block.reproject(torch.sigmoid(torch.cat([*gathered, embedding], 1)))
    torch.testing.assert_close(block(a, b, c), expected, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_attention_follows_the_error_of_the_reconstruction() -> None:
    torch.manual_seed(0)
    block = GuidedAttention(2, 0.2).eval()
    for layer, value in ((block.gated[0], 1.0), (block.gated[2], 0.3)):
        layer.weight.fill_(value)
    faces = torch.zeros(1, 3, 32, 32)
    rebuilt = faces.clone()
    rebuilt[..., :16, :16] = 1.0  # badly rebuilt at the top left
    features = torch.rand(1, 2, 8, 8)
    block.h = nn.Identity()
    share = block(faces, rebuilt, features) / features - 1  # the attention map, beside the features themselves
    assert share[0, :, 2, 2].min() > 0.99 and share[0, :, 6, 6].max() < 0.51
    torch.testing.assert_close(block(rebuilt, faces, features), block(faces, rebuilt, features))


def test_metric_loss_by_hand() -> None:
    # Cosines: real with real 0.6; real with fake 0, 1, 0.8, 0.6.
    vectors = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0], [1.0, 0.0]])
    similar, different = (1 + 0.6) / 2, (1 + (0 + 1 + 0.8 + 0.6) / 4) / 2
    assert metric_loss([vectors], FAKE).item() == pytest.approx(1 - similar + different, abs=1e-5)
    assert metric_loss([vectors] * 3, FAKE).item() == pytest.approx(3 * (1 - similar + different), abs=1e-5)
    ideal = torch.tensor([[1.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [-1.0, 0.0]])
    assert metric_loss([ideal], FAKE).item() == pytest.approx(0, abs=1e-5)
    assert metric_loss([vectors[:1]], torch.ones(1)).isfinite()


def test_reconstruction_is_asked_of_real_faces_only() -> None:
    faces, rebuilt = torch.zeros(4, 3, 8, 8), torch.full((4, 3, 8, 8), 0.25, requires_grad=True)
    loss = reconstruction_loss(rebuilt, faces, FAKE)
    loss.backward()
    assert loss.item() == pytest.approx(0.25)
    assert rebuilt.grad is not None and (rebuilt.grad[:2] > 0).all() and (rebuilt.grad[2:] == 0).all()
    assert reconstruction_loss(rebuilt, faces, torch.ones(4)).item() == 0


@pytest.mark.parametrize("size", [96, 128, 150])
@torch.no_grad()
def test_reconstruction_and_embeddings(slim: RECCE, size: int) -> None:
    faces = torch.rand(2, 3, size, size) * 2 - 1
    logits, rebuilt, embeddings = slim.eval().forward_with_reconstruction(faces)
    assert rebuilt.shape == faces.shape and rebuilt.abs().max() <= 1
    assert [embedding.shape for embedding in embeddings] == [(2, 72), (2, 24), (2, 16)]
    assert all(torch.allclose(embedding.norm(dim=1), torch.ones(2)) for embedding in embeddings)
    assert torch.equal(logits, slim(faces))


@pytest.mark.parametrize("size", [128, 256, 299])
def test_decoder_is_two_and_four_times_as_fine(size: int) -> None:
    shapes: dict[str, torch.Size] = {}
    with torch.device("meta"):
        network = RECCE().eval()
        for name in ("encoder.block7", "decoder2", "decoder4", "decoder6"):
            layer = network.get_submodule(name)
            layer.register_forward_hook(lambda _module, _inputs, output, name=name: shapes.update({name: output.shape}))
        network(torch.zeros(1, 3, size, size))
    side = shapes["encoder.block7"][-1]
    assert side == {128: 8, 256: 16, 299: 19}[size]
    assert [shapes[name][1:] for name in ("encoder.block7", "decoder2", "decoder4", "decoder6")] == [
        (728, side, side),
        (256, 2 * side, 2 * side),
        (128, 4 * side, 4 * side),
        (3, 8 * side, 8 * side),
    ]


def test_noise_in_training_only(slim: RECCE) -> None:
    faces = torch.rand(64, 3, 32, 32) * 2 - 1
    assert slim.eval()._noisy(faces) is faces
    change = (slim.train()._noisy(faces) - faces).flatten(1)
    noisy = change.abs().sum(1) > 0
    assert 16 < noisy.sum() < 48
    assert change[noisy].std().item() == pytest.approx(NOISE, rel=0.1)


def test_extras_are_the_weighted_losses(slim: RECCE) -> None:
    slim.eval()
    faces = torch.rand(4, 3, 96, 96) * 2 - 1
    logits, extras = slim.forward_with_extras(faces, FAKE)
    _, rebuilt, embeddings = slim.forward_with_reconstruction(faces)
    assert logits.shape == (4, 2)
    torch.testing.assert_close(extras["reconstruction"], 0.1 * F.l1_loss(rebuilt[:2], faces[:2]))
    torch.testing.assert_close(extras["metric"], 0.1 * metric_loss(embeddings, FAKE))
    extras["reconstruction"].backward()
    weight: Tensor = slim.decoder1[1].pointwise.weight
    assert weight.grad is not None and weight.grad.abs().sum() > 0
    assert slim.fc.weight.grad is None


def test_it_trains(slim: RECCE) -> None:
    assert_trains(slim, 64)
    assert all(weight.grad is not None for weight in slim.parameters())


def test_grad_cam(slim: RECCE) -> None:
    features, gradient = cam_gradient(slim, "encoder.act4", torch.rand(2, 3, 128, 128))
    assert features.shape[-2:] == (4, 4) and gradient.abs().sum() > 0


@torch.no_grad()
@pytest.mark.parametrize("fake", [True, False])
def test_direction(slim: RECCE, fake: bool) -> None:
    slim.fc.weight.zero_()
    slim.fc.bias.copy_(torch.tensor([-2.0, 2.0] if fake else [2.0, -2.0]))
    detector = Detector(slim.eval(), plain_card("recce"))
    assert ((detector.p_fake(torch.rand(2, 3, 90, 90)) > 0.5) == fake).all()
