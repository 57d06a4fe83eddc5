"""dlib's face-recognition network (King 2017) in PyTorch, so that a loss can follow its gradient.

The file of weights comes with the package `face-recognition-models`; it is read from dlib's own serialisation, and dlib
itself is not needed. The network is a ResNet of 29 convolutions whose batch norms were folded into scales and offsets;
two faces whose vectors lie closer than 0.6 are one person.
"""

import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

DLIB_FILE = "dlib_face_recognition_resnet_model_v1.dat"
DLIB_SIDE = 150  # pixels
INSTALL_IDENTITY = "pip install -r requirements-identity.txt"
MEAN, DIVISOR = (122.782, 117.001, 104.298), 256.0  # of RGB in 0..255
# Width of every block, from the picture on; a block marked True halves the size.
BLOCKS = (
    *((32, False),) * 3,
    *((64, True), *((64, False),) * 3),
    *((128, True), *((128, False),) * 2),
    *((256, True), *((256, False),) * 2),
    (256, True),
)
VECTOR = 128
# Where dlib's five landmarks put its chip in an aligned face: left, top and side in sides of the picture, medians over
# 80 and 48 held-out photographs. On 24 of them, the vectors of this fixed place and of dlib's own chip lie 0.14 apart
# on average and 0.23 at most; those of different people lie 0.87 apart.
DLIB_CHIPS = {"embedded": (0.135, 0.196, 0.731), "ffhq": (0.159, 0.266, 0.682)}
_LAYER = re.compile(rb"\x01.(con_4|affine_|fc_2)", re.DOTALL)


class DlibAffine(nn.Module):
    """One scale and one offset per channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(channels))
        self.offset = nn.Parameter(torch.zeros(channels))

    def forward(self, features: Tensor) -> Tensor:
        return torch.addcmul(self.offset[:, None, None], features, self.scale[:, None, None])


class DlibBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut; the smaller of the two is padded with zeros."""

    def __init__(self, inputs: int, outputs: int, *, down: bool) -> None:
        super().__init__()
        self.down = down
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=2 if down else 1, padding=0 if down else 1)
        self.affine1 = DlibAffine(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.affine2 = DlibAffine(outputs)

    def forward(self, features: Tensor) -> Tensor:
        branch = self.affine2(self.conv2(F.relu(self.affine1(self.conv1(features)))))
        shortcut = F.avg_pool2d(features, 2) if self.down else features
        shape = [max(sizes) for sizes in zip(branch.shape[1:], shortcut.shape[1:], strict=True)]
        return F.relu(_pad_to(branch, shape) + _pad_to(shortcut, shape))


class DlibResNet(nn.Module):
    """dlib's `face_recognition_resnet_model_v1`."""

    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(MEAN).view(3, 1, 1))
        self.conv = nn.Conv2d(3, 32, 7, stride=2)
        self.affine = DlibAffine(32)
        blocks, inputs = [], 32
        for outputs, down in BLOCKS:
            blocks.append(DlibBlock(inputs, outputs, down=down))
            inputs = outputs
        self.blocks = nn.Sequential(*blocks)
        self.last = nn.Linear(inputs, VECTOR, bias=False)

    def forward(self, faces: Tensor) -> Tensor:
        """Return vectors (N, 128), not of unit length, of dlib's chips (N, 3, 150, 150) in [0, 1]."""
        features = F.relu(self.affine(self.conv((faces * 255 - self.mean) / DIVISOR)))
        return self.last(self.blocks(F.max_pool2d(features, 3, 2)).mean((2, 3)))


def dlib_resnet_path() -> Path | None:
    """Return the network's file, or None without its package, which is not imported: it would need pkg_resources."""
    spec = importlib.util.find_spec("face_recognition_models")
    return None if spec is None or spec.origin is None else Path(spec.origin).parent / "models" / DLIB_FILE


def load_dlib_resnet() -> DlibResNet:
    """Return the frozen network.

    Raises:
        FileNotFoundError: The package with its file is not installed.
        ValueError: The file holds another network.
    """
    file = dlib_resnet_path()
    if file is None:
        raise FileNotFoundError(DLIB_FILE)
    network = DlibResNet()
    layers = _parameters(file.read_bytes())
    convolutions = [(network.conv, network.affine)]
    for block in network.blocks:
        assert isinstance(block, DlibBlock)
        convolutions += [(block.conv1, block.affine1), (block.conv2, block.affine2)]
    with torch.no_grad():
        for conv, affine in convolutions:
            assert conv.bias is not None
            _fill(next(layers), "con_4", conv.weight, conv.bias)
            _fill(next(layers), "affine_", affine.scale, affine.offset)
        _fill(next(layers), "fc_2", network.last.weight.t())
    return network.eval().requires_grad_(requires_grad=False)


def cut_dlib_chips(faces: Tensor, template: str) -> Tensor:
    """Cut dlib's chips (N, 3, 150, 150) out of aligned faces (N, 3, S, S), at their median place."""
    left, top, side = DLIB_CHIPS[template]
    centres = (torch.arange(DLIB_SIDE, device=faces.device, dtype=faces.dtype) + 0.5) / DLIB_SIDE * side
    x, y = 2 * (left + centres) - 1, 2 * (top + centres) - 1
    grid = torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], dim=-1)
    return F.grid_sample(faces, grid.expand(len(faces), -1, -1, -1), padding_mode="zeros", align_corners=False)


def _pad_to(features: Tensor, shape: list[int]) -> Tensor:
    """Append zeros to the channels, rows and columns of (N, C, H, W)."""
    channels, rows, columns = (target - size for target, size in zip(shape, features.shape[1:], strict=True))
    return F.pad(features, (0, columns, 0, rows, 0, channels)) if channels or rows or columns else features


def _parameters(content: bytes) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the kind and parameters of every layer that has some, from the picture on.

    An integer is a byte with its length (and its sign in the highest bit), then its bytes from the lowest. A tensor is
    the number 2, four sizes, and its values as float32. A layer begins with its name; only a fully connected one
    has two more integers before its tensor.
    """
    place = 0
    while (match := _LAYER.search(content, place)) is not None:
        kind, place = match.group(1).decode(), match.end()
        if kind == "fc_2":
            for _ in range(2):
                _, place = _integer(content, place)
        sizes = []
        for _ in range(5):
            value, place = _integer(content, place)
            sizes.append(value)
        count = int(np.prod(sizes[1:]))
        if sizes[0] != 2 or place + 4 * count > len(content):
            raise ValueError(f"{DLIB_FILE} is not in the form that dlib 19 writes.")
        yield kind, np.frombuffer(content, "<f4", count, place)
        place += 4 * count


def _integer(content: bytes, place: int) -> tuple[int, int]:
    """Return a non-negative integer and the place after it."""
    end = place + 1 + (content[place] & 0x0F)
    return int.from_bytes(content[place + 1 : end], "little"), end


def _fill(layer: tuple[str, np.ndarray], kind: str, *targets: Tensor) -> None:
    """Copy a layer's parameters into tensors, one after the other."""
    layer_kind, values = layer
    sizes = [target.numel() for target in targets]
    if layer_kind != kind or len(values) != sum(sizes):
        raise ValueError(f"{DLIB_FILE} holds another network.")
    for target, part in zip(targets, torch.from_numpy(values.copy()).split(sizes), strict=True):
        target.copy_(part.view(target.shape))
