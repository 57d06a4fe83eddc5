"""F3-Net (Qian et al. 2020, arXiv 2007.09355): Xception on a face split into frequency bands.

`F3Net` has the frequency-aware decomposition (FAD) alone, as DeepfakeBench trains it. `TwoBranchF3Net` adds the local
frequency statistics (LFS), after the public reimplementation of the paper's network. The paper's third part, MixBlock,
which joins the branches after blocks 7 and 12, is left out: no public form uses it.
"""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backend.detectors.registry import EMBEDDED_SIZE, register_detector, register_published
from backend.detectors.xception import UNUSED, Xception
from backend.images import GREY
from backend.signals import dct_matrix
from backend.weights import match_checkpoint

PAPER = "Qian et al. 2020, arXiv 2007.09355"
GREY_SCALE = 122.5  # as in the public code, where 127.5 was meant; a network trained with it needs it
LOG_FLOOR = 1e-15


class Filter(nn.Module):
    """A fixed band of DCT coefficients plus a learned weight between -1 and 1 for each of them.

    Args:
        size: Side of the square of coefficients.
        low: Smallest frequency i + j of the band.
        high: Largest frequency of the band.
        normalised: Divide by the number of coefficients in the band.
    """

    base: Tensor
    ft_num: Tensor

    def __init__(self, size: int, low: float, high: float, *, normalised: bool = False) -> None:
        super().__init__()
        self.normalised = normalised
        self.register_buffer("base", frequency_band(size, low, high))
        self.learnable = nn.Parameter(0.1 * torch.randn(size, size))
        if normalised:
            self.register_buffer("ft_num", self.base.sum())

    def weights(self) -> Tensor:
        """Return the factor on each coefficient (size, size)."""
        weights = self.base + 2 * torch.sigmoid(self.learnable) - 1
        return weights / self.ft_num if self.normalised else weights


class FADHead(nn.Module):
    """Frequency-aware decomposition: four pictures of a face, with its low, middle, high and all frequencies.

    Args:
        size: Side of the faces in pixels; faces of other sizes do not fit.
    """

    _DCT_all: Tensor
    _DCT_all_T: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size
        self.register_buffer("_DCT_all", dct_matrix(size))
        self.register_buffer("_DCT_all_T", dct_matrix(size).T.contiguous())
        low, middle, whole = size // 2.82, size // 2, size * 2
        bounds = ((0, low), (low, middle), (middle, whole), (0, whole))
        self.filters = nn.ModuleList(Filter(size, *ends) for ends in bounds)
        # The transform is known; a file in half precision would only round it.
        self.register_load_state_dict_post_hook(_compute_transform)

    def forward(self, faces: Tensor) -> Tensor:
        """Return the four parts of faces (N, 3, size, size), side by side (N, 12, size, size)."""
        # Rounded to bfloat16, the transform would spread the mean grey over the faint high frequencies.
        with torch.autocast(faces.device.type, enabled=False):
            coefficients = self._DCT_all @ faces.to(self._DCT_all.dtype).contiguous() @ self._DCT_all_T
            weights = torch.stack([part.weights() for part in self.filters])  # type: ignore[operator]
            parts = coefficients[:, None] * weights[:, None]  # (N, 4, 3, size, size)
            return (self._DCT_all_T @ parts @ self._DCT_all).flatten(1, 2)


def _compute_transform(head: nn.Module, _keys: object) -> None:
    assert isinstance(head, FADHead)
    head._DCT_all.copy_(dct_matrix(head.size))  # noqa: SLF001 - the published keys start with an underscore
    head._DCT_all_T.copy_(dct_matrix(head.size).T)  # noqa: SLF001


class LFSHead(nn.Module):
    """Local frequency statistics: how much of each frequency band the window around each pixel holds.

    Args:
        window: Side of the sliding windows in pixels.
        bands: Number of bands.
        stride: Step of the windows in pixels.
        padding: Zeros around the picture in pixels.
    """

    _DCT_patch: Tensor
    _DCT_patch_T: Tensor

    def __init__(self, window: int = 10, bands: int = 6, stride: int = 2, padding: int = 4) -> None:
        super().__init__()
        self.window, self.stride, self.padding = window, stride, padding
        self.register_buffer("_DCT_patch", dct_matrix(window))
        self.register_buffer("_DCT_patch_T", dct_matrix(window).T.contiguous())
        width = window * 2 / bands
        self.filters = nn.ModuleList(
            Filter(window, width * number, width * (number + 1), normalised=True) for number in range(bands)
        )

    def forward(self, faces: Tensor) -> Tensor:
        """Return mean log10 amplitudes (N, bands, K, K) for RGB faces (N, 3, S, S) in [-1, 1]; K is about S/2."""
        grey = ((faces * faces.new_tensor(GREY)[:, None, None]).sum(1, keepdim=True) + 1) * GREY_SCALE
        rows, columns = ((side - self.window + 2 * self.padding) // self.stride + 1 for side in faces.shape[-2:])
        patches = F.unfold(grey, self.window, stride=self.stride, padding=self.padding).transpose(1, 2)
        patches = patches.unflatten(2, (self.window, self.window))  # (N, windows, window, window)
        amplitudes = torch.log10((self._DCT_patch @ patches @ self._DCT_patch_T).abs() + LOG_FLOOR)
        weights = torch.stack([part.weights() for part in self.filters])  # type: ignore[operator]
        statistics = amplitudes.flatten(2) @ weights.flatten(1).T  # (N, windows, bands)
        return statistics.transpose(1, 2).unflatten(2, (rows, columns))


@register_detector(
    "f3net",
    title="F3-Net",
    paper=PAPER,
    cam_layer="backbone.act4",
    embedded={"width": 0.2, "input_size": EMBEDDED_SIZE},
    family="frequency",
    order=70,
)
@register_published("f3net_deepfakebench", title="F3-Net", paper=PAPER, cam_layer="backbone.act4")
class F3Net(nn.Module):
    """The FAD branch alone, under DeepfakeBench's keys (`FAD_head.*`, `backbone.*`).

    Args:
        width: Factor on the channels of Xception; 1.0 is the published network.
        input_size: Side of the faces in pixels.
        dropout: Share of the pooled features dropped before the head.
    """

    def __init__(self, width: float = 1.0, input_size: int = 256, classes: int = 2, dropout: float = 0.5) -> None:
        super().__init__()
        self.FAD_head = FADHead(input_size)
        self.backbone = Xception(width, classes, inputs=12, dropout=dropout)

    def forward(self, faces: Tensor) -> Tensor:
        """Return logits (N, classes) for faces (N, 3, input_size, input_size) in [-1, 1]."""
        return self.backbone(self.FAD_head(faces))


class TwoBranchF3Net(nn.Module):
    """Both branches, each with its own Xception, their features joined before one linear layer.

    Args:
        width: Factor on the channels of both; 1.0 is the published network.
        classes: Number of logits (the reimplementation has one, high for fake).
        dropout: Share of the joined features dropped before the head.
    """

    def __init__(self, width: float = 1.0, size: int = 299, classes: int = 2, dropout: float = 0.2) -> None:
        super().__init__()
        self.FAD_head, self.LFS_head = FADHead(size), LFSHead()
        self.FAD_xcep = Xception(width, classes=0, inputs=12)
        # The windows have halved the picture already.
        self.LFS_xcep = Xception(width, classes=0, inputs=len(self.LFS_head.filters), stride=1)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(self.FAD_xcep.bn4.num_features + self.LFS_xcep.bn4.num_features, classes)

    def forward(self, faces: Tensor) -> Tensor:
        """Return logits (N, classes) for faces (N, 3, size, size) in [-1, 1]."""
        branches = ((self.FAD_head, self.FAD_xcep), (self.LFS_head, self.LFS_xcep))
        pooled = [network(head(faces)) for head, network in branches]
        return self.fc(self.dropout(torch.cat(pooled, dim=1)))


def from_deepfakebench(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Turn DeepfakeBench's checkpoint into a state of `F3Net()`; errors as in `match_checkpoint`."""
    return match_checkpoint(state, F3Net, "DeepfakeBench's F3-Net", unused=(f"backbone.{UNUSED}",))


def frequency_band(size: int, low: float, high: float) -> Tensor:
    """Return 1 where the frequencies i + j of a (size, size) DCT lie in [low, high], both ends included, else 0."""
    index = np.arange(size)
    total = index[:, None] + index[None, :]
    return torch.from_numpy(((total >= low) & (total <= high)).astype(np.float32))
