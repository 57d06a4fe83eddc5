"""MesoNet in the form that DeepfakeBench trains, which is not the authors' own (see `mesonet.py`).

No convolution has a bias, the inception layers have no ReLU inside, one batch norm serves the last two layers (in
Meso4 another one the first two), and there are two logits. Names are the published ones, spelling included.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backend.detectors.checkpoints import matched

INPUT_SIZE = 256
PREFIX = "backbone."


def _conv(inputs: int, outputs: int, kernel: int, dilation: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2 * dilation, dilation=dilation, bias=False)


def _layer(features: Tensor, conv: nn.Module, norm: nn.Module, pool: int) -> Tensor:
    return F.max_pool2d(norm(torch.relu(conv(features))), pool)


class _Classifier(nn.Module):
    """The two dense layers that both networks end with."""

    def __init__(self) -> None:
        super().__init__()
        self.dropout = nn.Dropout(0.5)

    def add_head(self) -> None:
        """Create the dense layers; called last, so that they are the last ones."""
        self.fc1 = nn.Linear(16 * (INPUT_SIZE // 32) ** 2, 16)
        self.fc2 = nn.Linear(16, 2)

    def classify(self, features: Tensor) -> Tensor:
        """Return logits (N, 2) for features (N, 16, 8, 8)."""
        hidden = F.leaky_relu(self.fc1(self.dropout(features.flatten(1))), 0.1)
        return self.fc2(self.dropout(hidden))


class DeepfakeBenchMeso4(_Classifier):
    """DeepfakeBench's Meso4."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = _conv(3, 8, 3), _conv(8, 8, 5)
        self.conv3, self.conv4 = _conv(8, 16, 5), _conv(16, 16, 5)
        self.bn1, self.bn2 = nn.BatchNorm2d(8), nn.BatchNorm2d(16)
        self.add_head()

    def forward(self, faces: Tensor) -> Tensor:
        """Return logits (N, 2), real then fake, for faces (N, 3, 256, 256) in [-1, 1]."""
        features = _layer(faces, self.conv1, self.bn1, 2)
        features = _layer(features, self.conv2, self.bn1, 2)
        features = _layer(features, self.conv3, self.bn2, 2)
        return self.classify(_layer(features, self.conv4, self.bn2, 4))


class DeepfakeBenchMesoInception4(_Classifier):
    """DeepfakeBench's MesoInception4."""

    def __init__(self) -> None:
        super().__init__()
        for layer, inputs, first in ((1, 3, 1), (2, 11, 2)):
            self.add_module(f"Incption{layer}_conv1", _conv(inputs, first, 1))
            for branch, channels in ((2, 4), (3, 4), (4, 2)):
                self.add_module(f"Incption{layer}_conv{branch}_1", _conv(inputs, channels, 1))
                self.add_module(f"Incption{layer}_conv{branch}_2", _conv(channels, channels, 3, dilation=branch - 1))
            self.add_module(f"Incption{layer}_bn", nn.BatchNorm2d(first + 10))
        self.conv1, self.conv2 = _conv(12, 16, 5), _conv(16, 16, 5)
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
    """Turn a DeepfakeBench Meso4 checkpoint (`backbone.*`) into a state of `DeepfakeBenchMeso4()`.

    Raises:
        UserError: Keys are unknown or missing, or tensors have other shapes.
    """
    return matched(state, DeepfakeBenchMeso4, "DeepfakeBench's Meso4", prefix=PREFIX)


def mesoinception4_from_deepfakebench(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Turn a DeepfakeBench MesoInception4 checkpoint (`backbone.*`) into a state of `DeepfakeBenchMesoInception4()`.

    Raises:
        UserError: Keys are unknown or missing, or tensors have other shapes.
    """
    return matched(state, DeepfakeBenchMesoInception4, "DeepfakeBench's MesoInception4", prefix=PREFIX)
