"""F3-Net: the transform, the bands, the local statistics, and both forms of the network."""

import numpy as np
import pytest
import torch
from scipy.fft import dctn

from backend import weights
from backend.detectors.base import Detector
from backend.detectors.f3net import F3Net, FADHead, LFSHead, TwoBranchF3Net, frequency_band, from_deepfakebench
from backend.errors import UserError
from backend.signals import dct2, dct_matrix
from tests.detectors.test_detectors import plain_card
from tests.published import assert_trains, cam_gradient

BAND_SUMS = {
    128: (1081, 1110, 14304, 16384),
    256: (4186, 4290, 57280, 65536),
    299: (5778, 5654, 78226, 89401),
}


@pytest.fixture
def slim() -> F3Net:
    """Return a very slim network for 64 pixels."""
    torch.manual_seed(0)
    return F3Net(0.1, 64)


def test_dct_matrix_is_orthonormal_and_a_constant_has_one_coefficient() -> None:
    matrix = dct_matrix(10)
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(10), atol=1e-6, rtol=0)
    coefficients = dct2(torch.full((1, 3, 8, 16), 0.5))
    assert coefficients[0, 0, 0, 0].item() == pytest.approx(0.5 * (8 * 16) ** 0.5)
    assert coefficients.abs().sum().item() == pytest.approx(3 * 0.5 * (8 * 16) ** 0.5, rel=1e-4)


def test_dct2_is_scipys() -> None:
    pictures = np.random.default_rng(0).random((2, 3, 32, 20), dtype=np.float32)
    expected = torch.from_numpy(dctn(pictures, type=2, norm="ortho", axes=(2, 3)))
    torch.testing.assert_close(dct2(torch.from_numpy(pictures)), expected, atol=1e-5, rtol=0)


def test_the_cached_transform_cannot_be_changed_from_outside() -> None:
    dct_matrix(4).zero_()
    assert dct_matrix(4)[0, 0].item() == pytest.approx(0.5)


@pytest.mark.parametrize("size", BAND_SUMS)
def test_golden_band_sums(size: int) -> None:
    assert tuple(int(part.base.sum()) for part in FADHead(size).filters) == BAND_SUMS[size]


def test_bands_include_both_ends_and_overlap_by_one_diagonal() -> None:
    low, middle, high, every_band = (part.base for part in FADHead(16).filters)
    assert (every_band == 1).all()
    assert low[2, 3] == 1 and middle[2, 3] == 1 and low[3, 3] == 0  # 16 // 2.82 is 5
    assert middle[4, 4] == 1 and high[4, 4] == 1 and middle[4, 5] == 0
    assert (low + middle + high - every_band).sum() == 6 + 9  # the diagonals i + j = 5 and i + j = 8
    assert frequency_band(3, 1.5, 2.5).tolist() == [[0, 0, 1], [0, 1, 0], [1, 0, 0]]


@torch.no_grad()
def test_the_parts_add_up_to_the_face() -> None:
    head = FADHead(32)
    for part in head.filters:
        part.learnable.zero_()
    faces = torch.rand(2, 3, 32, 32) * 2 - 1
    low, middle, high, every_band = head(faces).chunk(4, dim=1)
    torch.testing.assert_close(every_band, faces, atol=1e-5, rtol=0)
    diagonals = sum(frequency_band(32, total, total) for total in (32 // 2.82, 32 // 2))
    twice = head._DCT_all_T @ (dct2(faces) * diagonals) @ head._DCT_all
    torch.testing.assert_close(low + middle + high - twice, faces, atol=1e-5, rtol=0)
    head.filters[0].learnable.fill_(torch.logit(torch.tensor(0.75)))  # a weight of 2 * 0.75 - 1
    torch.testing.assert_close(head(faces)[:, :3], low + 0.5 * faces, atol=1e-5, rtol=0)


@torch.no_grad()
def test_local_statistics_of_one_window() -> None:
    head = LFSHead()
    for part in head.filters:
        part.learnable.zero_()
    faces = torch.rand(1, 3, 24, 20) * 2 - 1
    statistics = head(faces)
    assert statistics.shape == (1, 6, (24 - 10 + 8) // 2 + 1, (20 - 10 + 8) // 2 + 1)
    red, green, blue = faces[0]
    grey = (0.299 * red + 0.587 * green + 0.114 * blue + 1) * 122.5
    row, column = 4, 3  # the window begins at pixel 2 * row - 4, 2 * column - 4
    window = dctn(grey[4:14, 2:12].double().numpy(), type=2, norm="ortho")
    total = np.add.outer(np.arange(10), np.arange(10))
    for number in range(6):
        chosen = (total >= number * 10 / 3 - 1e-9) & (total <= (number + 1) * 10 / 3 + 1e-9)
        expected = np.log10(np.abs(window[chosen]) + 1e-15).mean()
        assert statistics[0, number, row, column].item() == pytest.approx(expected, abs=1e-3)


def test_window_count_of_the_published_size() -> None:
    assert LFSHead()(torch.zeros(1, 3, 299, 299)).shape == (1, 6, 149, 149)


def test_published_keys() -> None:
    with torch.device("meta"):
        single, two_branch = F3Net().state_dict(), TwoBranchF3Net(classes=1).state_dict()
    head = {"FAD_head._DCT_all", "FAD_head._DCT_all_T"}
    head |= {f"FAD_head.filters.{number}.{part}" for number in range(4) for part in ("base", "learnable")}
    assert {key for key in single if key.startswith("FAD_head.")} == head
    assert single["backbone.conv1.weight"].shape == (32, 12, 3, 3)
    assert single["backbone.last_linear.1.weight"].shape == (2, 2048)
    assert {key.split(".")[0] for key in two_branch} == {"FAD_head", "FAD_xcep", "LFS_head", "LFS_xcep", "fc"}
    assert two_branch["LFS_xcep.conv1.weight"].shape == (32, 6, 3, 3) and two_branch["fc.weight"].shape == (1, 4096)
    assert two_branch["LFS_head.filters.5.ft_num"].shape == () and two_branch["LFS_head._DCT_patch"].shape == (10, 10)


def test_checkpoint_is_matched_strictly() -> None:
    with torch.device("meta"):
        state = F3Net().state_dict()
    unused = {"backbone.adjust_channel.0.weight": torch.zeros(1)}
    assert from_deepfakebench(state | unused).keys() == state.keys()
    with pytest.raises(UserError, match="does not have: FAD_head"):
        from_deepfakebench(state | {"FAD_head.extra": torch.zeros(1)})
    with pytest.raises(UserError, match="shape"):
        from_deepfakebench(state | {"FAD_head._DCT_all": torch.zeros(128, 128)})
    del state["backbone.conv1.weight"]
    with pytest.raises(UserError, match="lacks 1"):
        from_deepfakebench(state)


def test_half_precision_does_not_round_the_transform(slim: F3Net, tmp_path) -> None:
    weights.save_half(tmp_path / "f3net.safetensors", slim.state_dict())
    tensors = weights.load_file(tmp_path / "f3net.safetensors")
    loaded = F3Net(0.1, 64)
    loaded.load_state_dict({key: value.float() for key, value in tensors.items()})
    assert torch.equal(loaded.FAD_head._DCT_all, dct_matrix(64))
    assert torch.equal(loaded.FAD_head._DCT_all_T, dct_matrix(64).T)
    assert not torch.equal(tensors["FAD_head._DCT_all"].float(), dct_matrix(64))


def test_bfloat16_does_not_round_the_transform() -> None:
    head, faces = FADHead(32), torch.rand(2, 3, 32, 32)
    with torch.autocast("cpu", torch.bfloat16):
        parts = head(faces)
    assert torch.equal(parts, head(faces))


def test_it_trains(slim: F3Net) -> None:
    assert_trains(slim, 64)
    assert all(part.learnable.grad.abs().sum() > 0 for part in slim.FAD_head.filters)


def test_both_branches_train() -> None:
    torch.manual_seed(0)
    network = TwoBranchF3Net(0.05, 32)
    faces = (torch.rand(2, 3, 32, 32) * 2 - 1).requires_grad_()
    network(faces)[:, 1].sum().backward()
    assert faces.grad is not None and faces.grad.isfinite().all() and faces.grad.abs().sum() > 0
    for part in (network.FAD_xcep.conv1, network.LFS_xcep.conv1, network.fc, network.LFS_head.filters[0]):
        weight = part.learnable if hasattr(part, "learnable") else part.weight
        assert weight.grad.abs().sum() > 0


def test_grad_cam(slim: F3Net) -> None:
    features, gradient = cam_gradient(slim, "backbone.act4", torch.rand(2, 3, 64, 64))
    assert features.shape[-2:] == (2, 2) and (features >= 0).all() and gradient.abs().sum() > 0


@torch.no_grad()
@pytest.mark.parametrize("fake", [True, False])
def test_direction(fake: bool) -> None:
    network = F3Net(0.1, 128).eval()
    head = network.backbone.last_linear[1]
    head.weight.zero_()
    head.bias.copy_(torch.tensor([-2.0, 2.0] if fake else [2.0, -2.0]))
    assert ((Detector(network, plain_card("f3net")).p_fake(torch.rand(2, 3, 90, 90)) > 0.5) == fake).all()
