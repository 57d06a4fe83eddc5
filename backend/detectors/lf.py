"""LF (Yu et al. 2019, arXiv 1811.08180): a network that names the source of a picture, real or one of the makers."""

import math

from torch import Tensor, nn
from torch.nn import functional as F

from backend.detectors.base import scale_channels
from backend.detectors.registry import EMBEDDED_SIZE, register_detector

LF_SOURCES = (
    "real",
    "swap",
    "reconstruction",
    "edit",
    "sample",
    "stylegan_140k",
    "gan_celebahq_ffhq",
    "ciplab_photoshop",
)
BASE, LARGEST = 1024, 512  # channels at stage 0, and at most
SLOPE = 0.2


def stage_channels(stage: int, width: float = 1.0) -> int:
    """Return the channels of a stage: halved with every doubling of the resolution, at most 512."""
    return scale_channels(min(BASE // 2**stage, LARGEST), width)


@register_detector(
    "lf",
    title="LF",
    paper="Yu et al. 2019, arXiv 1811.08180",
    outputs="logits by source, real first",
    cam_layer="blocks.8.conv1",
    embedded={"sources": LF_SOURCES, "input_size": EMBEDDED_SIZE, "width": 0.25},
    family="noise",
    order=100,
)
class LF(nn.Module):
    """The paper's classifier: a ProGAN discriminator without normalisation, with one logit a source.

    Args:
        sources: Names of the sources, `real` first.
        input_size: Side of the pictures in pixels; a power of two, at least 8.
        width: Factor on the channels; 1.0 is the published network.
    """

    def __init__(self, sources: tuple[str, ...] = LF_SOURCES, input_size: int = 128, width: float = 1.0) -> None:
        super().__init__()
        self.sources = tuple(sources)
        self.blocks = nn.ModuleDict()
        before = 3
        for stage in range(int(math.log2(input_size)), 2, -1):
            inner, after = stage_channels(stage - 1, width), stage_channels(stage - 2, width)
            self.blocks[str(2**stage)] = LFBlock(before, inner, after)
            before = after
        last = stage_channels(1, width)
        self.conv = ScaledConv(before, last)
        self.dense1 = ScaledLinear(last * 4 * 4, last, gain=math.sqrt(2))
        self.dense2 = ScaledLinear(last, len(self.sources), gain=1.0)

    def forward(self, faces: Tensor) -> Tensor:
        """Return logits (N, sources) for faces (N, 3, S, S) in [-1, 1]."""
        features = faces
        for block in self.blocks.values():
            features = block(features)
        return self.dense2(F.leaky_relu(self.dense1(self.conv(features).flatten(1)), SLOPE))


class LFBlock(nn.Module):
    """Two convolutions, then the mean of every 2x2 pixels, which halves the resolution."""

    def __init__(self, before: int, inner: int, after: int) -> None:
        super().__init__()
        self.conv0 = ScaledConv(before, inner)
        self.conv1 = ScaledConv(inner, after)

    def forward(self, features: Tensor) -> Tensor:
        return F.avg_pool2d(self.conv1(self.conv0(features)), 2)


class ScaledConv(nn.Conv2d):
    """A 3x3 convolution with mirrored border and leaky ReLU; weights have unit variance and are scaled when used."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__(before, after, 3)
        self.gain = math.sqrt(2 / (before * 9))
        nn.init.normal_(self.weight)
        nn.init.zeros_(self.bias)  # type: ignore[arg-type]

    def forward(self, features: Tensor) -> Tensor:
        padded = F.pad(features, (1, 1, 1, 1), mode="reflect")
        return F.leaky_relu(F.conv2d(padded, self.weight * self.gain, self.bias), SLOPE)


class ScaledLinear(nn.Linear):
    """A linear layer whose weights have unit variance and are scaled when used."""

    def __init__(self, before: int, after: int, gain: float) -> None:
        super().__init__(before, after)
        self.gain = gain / math.sqrt(before)
        nn.init.normal_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, features: Tensor) -> Tensor:
        return F.linear(features, self.weight * self.gain, self.bias)
