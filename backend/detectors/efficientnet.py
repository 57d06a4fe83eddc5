"""EfficientNet (Tan and Le 2019) from timm: B4 as published for face forgery, narrower and shorter ones, checkpoints.

Published detectors save their B4 under the names of the package efficientnet_pytorch, which also pads differently.
"""

from collections.abc import Mapping, Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from backend.detectors.base import IMAGENET
from backend.detectors.registry import register_detector, register_published
from backend.weights import match_checkpoint

PAPER = "Tan and Le 2019, arXiv 1905.11946"
VARIANTS = {"efficientnet_b4": "tf_efficientnet_b4"}  # our names to timm's
B4_WIDTH, B4_DEPTH = 1.4, 1.8  # factors on B0
B4_REPEATS = (2, 4, 4, 6, 6, 8, 2)  # blocks a stage
LITE0_REPEATS = (1, 2, 2, 3, 3, 4, 1)
# Pixels before and after, as efficientnet_pytorch fixes them for 380 pixels, whatever the size of the picture.
STEM_PADDING = (0, 1)
STAGE_PADDING = {1: (0, 1), 2: (2, 2), 3: (0, 1), 5: (1, 2)}  # the stages whose first block halves the picture
# Names of efficientnet_pytorch to those of timm.
ENDS = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
GATE = {"_se_reduce": "se.conv_reduce", "_se_expand": "se.conv_expand"}
FIRST_STAGE = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2", **GATE}
LATER_STAGES = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
    **GATE,
}


def build_efficientnet(name: str, classes: int = 2) -> nn.Module:
    """Return an untrained EfficientNet of a published size, a key of `VARIANTS`.

    It returns logits (N, classes) for faces (N, 3, S, S) in [-1, 1].
    """
    import timm  # importing it takes seconds, and the page would have to wait

    return timm.create_model(VARIANTS[name], pretrained=False, num_classes=classes)


@register_detector(
    "efficientnet_b4",
    title="EfficientNet",
    paper=PAPER,
    cam_layer="bn2",
    embedded={"width": 0.35, "depth": 0.6},
    published=lambda: build_efficientnet("efficientnet_b4"),
    order=20,
)
def build_slim_efficientnet(width: float = 0.35, depth: float = 0.6, classes: int = 2) -> nn.Module:
    """Return an untrained EfficientNet-B0 scaled by the paper's two factors.

    Args:
        width: Factor on the channels (rounded to multiples of 8); 1.0 is B0.
        depth: Factor on the number of blocks a stage; 1.0 is B0.
        classes: Number of logits; the network returns (N, classes) for faces (N, 3, S, S) in [-1, 1].
    """
    from timm.models.efficientnet import _gen_efficientnet

    # timm's named models fix both factors, so the function behind them is called.
    return _gen_efficientnet("efficientnet_b0", width, depth, pretrained=False, num_classes=classes)


def build_padded_b4(
    width: float = 1.0, depth: float = 1.0, classes: int = 2, stem_padding: tuple[int, int] = STEM_PADDING
) -> nn.Module:
    """Return an untrained EfficientNet-B4 that pads as efficientnet_pytorch does; its keys are timm's.

    Args:
        width: Factor on the channels (rounded to multiples of 8); 1.0 is B4.
        depth: Factor on the number of blocks a stage; 1.0 is B4.
        classes: Number of logits; the network returns (N, classes) for faces (N, 3, S, S) in [-1, 1].
        stem_padding: Pixels before and after for the first convolution; DeepfakeBench has none.
    """
    from timm.models.efficientnet import BN_EPS_TF_DEFAULT, _gen_efficientnet

    scale = (B4_WIDTH * width, B4_DEPTH * depth)
    options = {"bn_eps": BN_EPS_TF_DEFAULT, "pad_type": "same", "num_classes": classes}
    network = _gen_efficientnet("tf_efficientnet_b4", *scale, pretrained=False, **options)
    network.conv_stem = _PaddedConv2d(network.conv_stem, stem_padding)
    for stage, padding in STAGE_PADDING.items():
        block = network.blocks[stage][0]
        block.conv_dw = _PaddedConv2d(block.conv_dw, padding)
    return network


class _PaddedConv2d(nn.Conv2d):
    """A convolution of stride 2 that shares the weight of another and pads unevenly by fixed amounts."""

    def __init__(self, other: nn.Conv2d, padding: tuple[int, int]) -> None:
        kernel = other.kernel_size[0]
        super().__init__(other.in_channels, other.out_channels, kernel, 2, groups=other.groups, bias=False)
        self.weight = other.weight
        self.amounts = padding

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's name
        return super().forward(F.pad(input, (*self.amounts, *self.amounts)))


def timm_name(key: str, repeats: Sequence[int] = B4_REPEATS) -> str:
    """Return timm's name of an efficientnet_pytorch tensor, or the key itself where there is none.

    `repeats` is the number of blocks of each stage.
    """
    head, _, rest = key.partition(".")
    if head in ENDS:
        return f"{ENDS[head]}.{rest}"
    number, _, inner = rest.partition(".")
    layer, _, part = inner.partition(".")
    if head != "_blocks" or not number.isdigit():
        return key
    stage, index = 0, int(number)
    while stage < len(repeats) and index >= repeats[stage]:
        index -= repeats[stage]
        stage += 1
    names = LATER_STAGES if stage else FIRST_STAGE
    return f"blocks.{stage}.{index}.{names.get(layer, layer)}.{part}"


@register_published("efficientnet_b4_deepfakebench", title="EfficientNet-B4", paper=PAPER, cam_layer="bn2")
def build_deepfakebench_b4() -> nn.Module:
    """Return the untrained EfficientNet-B4 of DeepfakeBench, whose first convolution is not padded."""
    return build_padded_b4(stem_padding=(0, 0))


def from_deepfakebench(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Turn DeepfakeBench's checkpoint into a state of `build_deepfakebench_b4()`; errors as in `match_checkpoint`."""
    return match_checkpoint(
        state,
        build_deepfakebench_b4,
        "DeepfakeBench's EfficientNet-B4",
        prefix="backbone.",
        unused=("adjust_channel.",),
        rename=lambda key: timm_name(key.removeprefix("efficientnet.")).replace("last_layer.", "classifier."),
    )


@register_published(
    "efficientnet_b0_torchvision", title="EfficientNet-B0", paper=PAPER, cam_layer="features", **IMAGENET
)
def build_torchvision_b0() -> nn.Module:
    """Return torchvision's untrained EfficientNet-B0 with two logits for faces (N, 3, 224, 224)."""
    from torchvision.models import efficientnet_b0  # importing it takes seconds

    return efficientnet_b0(weights=None, num_classes=2)


def from_torchvision(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Turn torchvision's checkpoint into a state of `build_torchvision_b0()`; errors as in `match_checkpoint`."""
    return match_checkpoint(state, build_torchvision_b0, "torchvision's EfficientNet-B0 with two outputs")
