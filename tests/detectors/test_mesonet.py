"""MesoNet's published weights, converted, give the published numbers."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from backend.detectors.mesonet import Meso4, MesoInception4, convert_h5
from backend.errors import UserError

FRAMES = ("df00204", "df01254", "real00240", "real00772")
# P(real) for the four frames, constant 0.5, zeros and uniform noise.
GOLDEN = {
    "Meso4_DF": (0.04141178, 0.04869372, 0.9897475, 0.9977016, 0.4902361, 0.5209765, 0.9495543),
    "Meso4_F2F": (0.8312374, 0.6410998, 0.8810234, 0.9524387, 0.6415945, 0.07105254, 0.9984074),
    "MesoInception_DF": (0.02621821, 0.0009519659, 1.0, 1.0, 0.08408393, 0.3327451, 1.0),
    "MesoInception_F2F": (0.9987431, 0.9999974, 1.0, 0.9908302, 0.8310848, 0.9418768, 1.0),
}
BRANCH_LAYERS = {"a": 0, "b1": 1, "b2": 2, "c1": 3, "c2": 4, "d1": 5, "d2": 6}


@pytest.fixture(scope="module")
def pictures(shared_folder: Path) -> Tensor:
    """Return the seven test pictures (7, 3, 256, 256) in [0, 1]."""
    frames = []
    for name in FRAMES:
        with Image.open(shared_folder / "mesonet" / f"{name}.jpg") as image:
            # The Keras generator, with which the numbers were computed, resizes to the nearest pixel.
            frames.append(np.asarray(image.convert("RGB").resize((256, 256), Image.Resampling.NEAREST)) / 255)
    shape = (256, 256, 3)
    frames += [np.full(shape, 0.5), np.zeros(shape), np.random.RandomState(0).rand(*shape)]
    return torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2).float()


@pytest.mark.parametrize("name", GOLDEN)
@torch.no_grad()
def test_published_numbers(shared_folder: Path, pictures: Tensor, name: str) -> None:
    network = (Meso4() if name.startswith("Meso4") else MesoInception4()).eval()
    network.load_state_dict(convert_h5(shared_folder / "mesonet" / f"{name}.h5"))
    p_real = torch.sigmoid(network(pictures))[:, 0]
    torch.testing.assert_close(p_real, torch.tensor(GOLDEN[name]), atol=1e-5, rtol=0)


def write_h5(path: Path, first: int, reverse: bool) -> dict[str, Any]:
    """Write a MesoInception4 file whose layers are numbered from `first`; return its kernels by layer name."""
    h5py = pytest.importorskip("h5py")
    rng = np.random.default_rng(0)
    channels = []
    for inputs, a in ((3, 1), (11, 2)):
        channels += [(1, inputs, a), (1, inputs, 4), (3, 4, 4), (1, inputs, 4), (3, 4, 4), (1, inputs, 2), (3, 2, 2)]
    channels += [(5, 12, 16), (5, 16, 16)]
    layers: dict[str, dict[str, Any]] = {}
    for number, (size, inputs, outputs) in enumerate(channels, start=first):
        layers[f"conv2d_{number}"] = {"kernel": rng.random((size, size, inputs, outputs)), "bias": rng.random(outputs)}
    for number, size in enumerate((11, 12, 16, 16), start=first):
        parts = ("gamma", "beta", "moving_mean", "moving_variance")
        layers[f"batch_normalization_{number}"] = {part: rng.random(size) for part in parts}
    for number, (inputs, outputs) in enumerate(((1024, 16), (16, 1)), start=first):
        layers[f"dense_{number}"] = {"kernel": rng.random((inputs, outputs)), "bias": rng.random(outputs)}
    with h5py.File(path, "w", track_order=True) as file:
        for name in sorted(layers, reverse=reverse):
            for part, value in layers[name].items():
                file[f"{name}/{name}/{part}:0"] = value
    return layers


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("first", [1, 8])
def test_layers_are_matched_by_name(tmp_path: Path, first: int, reverse: bool) -> None:
    layers = write_h5(tmp_path / "weights.h5", first, reverse)
    state = convert_h5(tmp_path / "weights.h5")
    MesoInception4().load_state_dict(state, strict=True)
    for layer in (1, 2):
        for branch, offset in BRANCH_LAYERS.items():
            expected = layers[f"conv2d_{first + offset + 7 * (layer - 1)}"]["kernel"].transpose(3, 2, 0, 1)
            kernel = state[f"inception{layer}.{branch}.weight"].numpy()
            np.testing.assert_array_equal(kernel, expected.astype(np.float32))


def test_flatten_order(tmp_path: Path) -> None:
    layers = write_h5(tmp_path / "weights.h5", 1, reverse=False)
    features = np.random.default_rng(1).random((8, 8, 16)).astype(np.float32)
    expected = features.reshape(-1) @ layers["dense_1"]["kernel"].astype(np.float32)
    weight = convert_h5(tmp_path / "weights.h5")["head.fc1.weight"].numpy()
    np.testing.assert_allclose(weight @ features.transpose(2, 0, 1).reshape(-1), expected, rtol=1e-4)


def test_files_without_a_mesonet_are_refused(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    with pytest.raises(UserError, match="missing"):
        convert_h5(tmp_path / "absent.h5")
    (tmp_path / "text.h5").write_text("not a weight file")
    with pytest.raises(UserError, match="does not hold"):
        convert_h5(tmp_path / "text.h5")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["conv2d_1/conv2d_1/kernel:0"] = np.zeros((3, 3, 3, 8))
    with pytest.raises(UserError, match="does not hold"):
        convert_h5(tmp_path / "other.h5")


def test_missing_h5py_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(UserError, match="h5py"):
        convert_h5(tmp_path / "weights.h5")


@pytest.mark.parametrize("kind", [Meso4, MesoInception4])
def test_other_sizes(kind: type[Meso4] | type[MesoInception4]) -> None:
    assert kind(width=2.0, input_size=64).eval()(torch.rand(2, 3, 64, 64)).shape == (2, 1)
    with pytest.raises(ValueError, match="multiple of 32"):
        kind(input_size=100)
