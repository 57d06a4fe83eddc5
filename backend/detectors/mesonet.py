"""MesoNet (Afchar et al. 2018): the authors' own form, DeepfakeBench's form, and the conversion of both checkpoints."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backend.detectors.registry import EMBEDDED_SIZE, register_detector, register_published
from backend.errors import UserError
from backend.weights import match_checkpoint

PAPER = "Afchar et al. 2018, arXiv 1809.00888"
RAW_PICTURES: dict[str, Any] = {"outputs": "one logit, real high", "mean": 0.0, "std": 1.0}  # as the authors trained
EMBEDDED: dict[str, Any] = {"width": 1.0, "input_size": EMBEDDED_SIZE}
KERAS_EPSILON = 1e-3
REDUCTION = 32  # three poolings by 2 and one by 4
SLOPE = 0.1


def _scaled(channels: int, width: float) -> int:
    return max(1, round(channels * width))


def _conv(inputs: int, outputs: int, kernel: int, dilation: int = 1, *, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2 * dilation, dilation=dilation, bias=bias)


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=KERAS_EPSILON)


def _layer(features: Tensor, conv: nn.Module, norm: nn.Module, pool: int) -> Tensor:
    return F.max_pool2d(norm(torch.relu(conv(features))), pool)


class _Head(nn.Module):
    """Two dense layers from the last feature map to the logit of real."""

    def __init__(self, channels: int, input_size: int, width: float) -> None:
        super().__init__()
        if input_size % REDUCTION:
            raise ValueError(f"input_size must be a multiple of {REDUCTION}, not {input_size}")
        hidden = _scaled(16, width)
        self.dropout = nn.Dropout(0.5)
        self.fc1 = nn.Linear(channels * (input_size // REDUCTION) ** 2, hidden)
        self.fc2 = nn.Linear(hidden, 1)

    def forward(self, features: Tensor) -> Tensor:
        hidden = F.leaky_relu(self.fc1(self.dropout(features.flatten(1))), SLOPE)
        return self.fc2(self.dropout(hidden))


@register_detector("meso4", title="Meso-4", paper=PAPER, cam_layer="bn4", embedded=EMBEDDED, order=30, **RAW_PICTURES)
class Meso4(nn.Module):
    """Four convolutions, each followed by ReLU, batch norm and pooling, in this order.

    Args:
        width: Factor on all channels; 1.0 is the published network.
        input_size: Side of the input in pixels, a multiple of 32 (published: 256).
    """

    def __init__(self, width: float = 1.0, input_size: int = 256) -> None:
        super().__init__()
        narrow, wide = _scaled(8, width), _scaled(16, width)
        self.conv1, self.bn1 = _conv(3, narrow, 3), _norm(narrow)
        self.conv2, self.bn2 = _conv(narrow, narrow, 5), _norm(narrow)
        self.conv3, self.bn3 = _conv(narrow, wide, 5), _norm(wide)
        self.conv4, self.bn4 = _conv(wide, wide, 5), _norm(wide)
        self.head = _Head(wide, input_size, width)

    def forward(self, faces: Tensor) -> Tensor:
        """Return the logit of real (N, 1) for faces (N, 3, S, S) in [0, 1]."""
        features = _layer(faces, self.conv1, self.bn1, 2)
        features = _layer(features, self.conv2, self.bn2, 2)
        features = _layer(features, self.conv3, self.bn3, 2)
        return self.head(_layer(features, self.conv4, self.bn4, 4))


class Inception(nn.Module):
    """Four branches side by side: 1x1, and 3x3 with dilation 1, 2 and 3, each behind a 1x1.

    The output has the sum of the branches' channels.
    """

    def __init__(self, inputs: int, branches: tuple[int, int, int, int]) -> None:
        super().__init__()
        a, b, c, d = branches
        self.a = _conv(inputs, a, 1)
        self.b1, self.b2 = _conv(inputs, b, 1), _conv(b, b, 3)
        self.c1, self.c2 = _conv(inputs, c, 1), _conv(c, c, 3, dilation=2)
        self.d1, self.d2 = _conv(inputs, d, 1), _conv(d, d, 3, dilation=3)

    def forward(self, features: Tensor) -> Tensor:
        pairs = ((self.b1, self.b2), (self.c1, self.c2), (self.d1, self.d2))
        branches = [torch.relu(second(torch.relu(first(features)))) for first, second in pairs]
        return torch.cat([torch.relu(self.a(features)), *branches], dim=1)


@register_detector(
    "mesoinception4",
    title="MesoInception-4",
    paper=PAPER,
    cam_layer="bn4",
    embedded=EMBEDDED,
    order=40,
    **RAW_PICTURES,
)
class MesoInception4(nn.Module):
    """Meso4 with its first two convolutions replaced by inception layers.

    Args:
        width: Factor on all channels; 1.0 is the published network.
        input_size: Side of the input in pixels, a multiple of 32 (published: 256).
    """

    def __init__(self, width: float = 1.0, input_size: int = 256) -> None:
        super().__init__()
        one, two, four, wide = (_scaled(channels, width) for channels in (1, 2, 4, 16))
        first, second = one + four + four + two, two + four + four + two
        self.inception1, self.bn1 = Inception(3, (one, four, four, two)), _norm(first)
        self.inception2, self.bn2 = Inception(first, (two, four, four, two)), _norm(second)
        self.conv3, self.bn3 = _conv(second, wide, 5), _norm(wide)
        self.conv4, self.bn4 = _conv(wide, wide, 5), _norm(wide)
        self.head = _Head(wide, input_size, width)

    def forward(self, faces: Tensor) -> Tensor:
        """Return the logit of real (N, 1) for faces (N, 3, S, S) in [0, 1]."""
        features = F.max_pool2d(self.bn1(self.inception1(faces)), 2)
        features = F.max_pool2d(self.bn2(self.inception2(features)), 2)
        features = _layer(features, self.conv3, self.bn3, 2)
        return self.head(_layer(features, self.conv4, self.bn4, 4))


# Our layers in the order in which the authors' script created theirs: Keras numbers layers in that order, from a start
# that depends on what the process had built before.
BRANCHES = ("a", "b1", "b2", "c1", "c2", "d1", "d2")
CONVOLUTIONS = {
    4: ("conv1", "conv2", "conv3", "conv4"),
    16: (*(f"inception{layer}.{branch}" for layer in (1, 2) for branch in BRANCHES), "conv3", "conv4"),
}
NORMS = ("bn1", "bn2", "bn3", "bn4")
DENSE = ("head.fc1", "head.fc2")
NORM_PARTS = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_variance"}


def convert_h5(path: Path) -> dict[str, Tensor]:
    """Read the authors' Keras weights as a state of `Meso4` (4 convolutions) or `MesoInception4` (16).

    Layers are matched by the numbers in their names, because the file has another order.

    Raises:
        UserError: h5py is not installed, or the file is not one of MesoNet's.
    """
    layers = _read_layers(path)
    kernels = _numbered(layers, "conv2d")
    norms = _numbered(layers, "batch_normalization")
    dense = _numbered(layers, "dense")
    if len(kernels) not in CONVOLUTIONS or len(norms) != len(NORMS) or len(dense) != len(DENSE):
        raise _not_mesonet(path)
    state: dict[str, Tensor] = {}
    try:
        for ours, layer in zip(CONVOLUTIONS[len(kernels)], kernels, strict=True):
            state[f"{ours}.weight"] = layer["kernel"].permute(3, 2, 0, 1).contiguous()  # HWIO to OIHW
            state[f"{ours}.bias"] = layer["bias"]
        for ours, layer in zip(NORMS, norms, strict=True):
            state |= {f"{ours}.{part}": layer[theirs] for part, theirs in NORM_PARTS.items()}
            state[f"{ours}.num_batches_tracked"] = torch.tensor(0)
        for ours, layer in zip(DENSE, dense, strict=True):
            state[f"{ours}.weight"] = layer["kernel"].T.contiguous()
            state[f"{ours}.bias"] = layer["bias"]
        state["head.fc1.weight"] = _channels_first(state["head.fc1.weight"], len(state["conv4.bias"]))
    except (KeyError, RuntimeError):
        raise _not_mesonet(path) from None
    return state


def _channels_first(weight: Tensor, channels: int) -> Tensor:
    """Reorder the columns of a dense layer (O, H * W * C) from Keras' flattening to torch's (O, C * H * W)."""
    side = round((weight.shape[1] / channels) ** 0.5)
    return weight.view(-1, side, side, channels).permute(0, 3, 1, 2).flatten(1).contiguous()


def _numbered(layers: Mapping[str, dict[str, Tensor]], kind: str) -> list[dict[str, Tensor]]:
    """Return the layers named `kind_NUMBER`, sorted by number (10 follows 9, not 1)."""
    names = [name for name in layers if name.rpartition("_")[0] == kind and name.rpartition("_")[2].isdigit()]
    return [layers[name] for name in sorted(names, key=lambda name: int(name.rpartition("_")[2]))]


def _read_layers(path: Path) -> dict[str, dict[str, Tensor]]:
    """Return the tensors of every layer, by the layer's name and the tensor's (`kernel`, `bias`, ...)."""
    try:
        import h5py  # only this conversion needs it
    except ImportError:
        raise UserError("Reading a .h5 file needs the package h5py.", "Install it with: pip install h5py") from None
    layers: dict[str, dict[str, Tensor]] = {}

    def collect(key: str, item: object) -> None:
        if isinstance(item, h5py.Dataset):
            layer, _, tensor = key.rpartition("/")
            tensors = layers.setdefault(layer.rpartition("/")[2], {})
            tensors[tensor.removesuffix(":0")] = torch.from_numpy(item[()]).float()

    try:
        with h5py.File(path, "r") as file:
            file.visititems(collect)
    except (OSError, TypeError):
        raise _not_mesonet(path) from None
    return layers


def _not_mesonet(path: Path) -> UserError:
    return UserError(
        f"{path.name} is missing or does not hold MesoNet's weights.", "Use one of the authors' four published files."
    )


DEEPFAKEBENCH_SIZE = 256
DEEPFAKEBENCH_PREFIX = "backbone."
_conv_without_bias = partial(_conv, bias=False)


class _DeepfakeBenchClassifier(nn.Module):
    """The two dense layers that both networks end with."""

    def __init__(self) -> None:
        super().__init__()
        self.dropout = nn.Dropout(0.5)

    def add_head(self) -> None:
        """Create the dense layers, after all others."""
        self.fc1 = nn.Linear(16 * (DEEPFAKEBENCH_SIZE // 32) ** 2, 16)
        self.fc2 = nn.Linear(16, 2)

    def classify(self, features: Tensor) -> Tensor:
        """Return logits (N, 2) for features (N, 16, 8, 8)."""
        hidden = F.leaky_relu(self.fc1(self.dropout(features.flatten(1))), SLOPE)
        return self.fc2(self.dropout(hidden))


@register_published("meso4_deepfakebench", title="Meso-4", paper=PAPER, cam_layer="conv4")
class DeepfakeBenchMeso4(_DeepfakeBenchClassifier):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = _conv_without_bias(3, 8, 3), _conv_without_bias(8, 8, 5)
        self.conv3, self.conv4 = _conv_without_bias(8, 16, 5), _conv_without_bias(16, 16, 5)
        self.bn1, self.bn2 = nn.BatchNorm2d(8), nn.BatchNorm2d(16)
        self.add_head()

    def forward(self, faces: Tensor) -> Tensor:
        """Return logits (N, 2), real then fake, for faces (N, 3, 256, 256) in [-1, 1]."""
        features = _layer(faces, self.conv1, self.bn1, 2)
        features = _layer(features, self.conv2, self.bn1, 2)
        features = _layer(features, self.conv3, self.bn2, 2)
        return self.classify(_layer(features, self.conv4, self.bn2, 4))


@register_published("mesoinception4_deepfakebench", title="MesoInception-4", paper=PAPER, cam_layer="conv2")
class DeepfakeBenchMesoInception4(_DeepfakeBenchClassifier):
    def __init__(self) -> None:
        super().__init__()
        for layer, inputs, first in ((1, 3, 1), (2, 11, 2)):
            self.add_module(f"Incption{layer}_conv1", _conv_without_bias(inputs, first, 1))
            for branch, channels in ((2, 4), (3, 4), (4, 2)):
                self.add_module(f"Incption{layer}_conv{branch}_1", _conv_without_bias(inputs, channels, 1))
                self.add_module(
                    f"Incption{layer}_conv{branch}_2", _conv_without_bias(channels, channels, 3, dilation=branch - 1)
                )
            self.add_module(f"Incption{layer}_bn", nn.BatchNorm2d(first + 10))
        self.conv1, self.conv2 = _conv_without_bias(12, 16, 5), _conv_without_bias(16, 16, 5)
        self.bn1 = nn.BatchNorm2d(16)
        self.add_head()

    def _inception(self, features: Tensor, layer: int) -> Tensor:
        def run(name: str, inputs: Tensor) -> Tensor:
            return self.get_submodule(f"Incption{layer}_{name}")(inputs)

        branches = [run(f"conv{branch}_2", run(f"conv{branch}_1", features)) for branch in (2, 3, 4)]
        return F.max_pool2d(run("bn", torch.cat([run("conv1", features), *branches], dim=1)), 2)

    def forward(self, faces: Tensor) -> Tensor:
        """Return logits (N, 2), real then fake, for faces (N, 3, 256, 256) in [-1, 1]."""
        features = self._inception(self._inception(faces, 1), 2)
        features = _layer(features, self.conv1, self.bn1, 2)
        return self.classify(_layer(features, self.conv2, self.bn1, 4))


def meso4_from_deepfakebench(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Turn DeepfakeBench's checkpoint into a state of `DeepfakeBenchMeso4()`; errors as in `match_checkpoint`."""
    return match_checkpoint(state, DeepfakeBenchMeso4, "DeepfakeBench's Meso4", prefix=DEEPFAKEBENCH_PREFIX)


def mesoinception4_from_deepfakebench(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Turn DeepfakeBench's checkpoint into a state of `DeepfakeBenchMesoInception4()`; see `match_checkpoint`."""
    return match_checkpoint(
        state, DeepfakeBenchMesoInception4, "DeepfakeBench's MesoInception4", prefix=DEEPFAKEBENCH_PREFIX
    )
