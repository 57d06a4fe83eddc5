"""The linear part of an encoder's base code, read from a very small picture.

The embedded generator was trained on the photographs' principal components, which are linear in the pixels. A narrow
convolutional encoder finds the first thirty of them; a matrix of the size of one of its layers finds hundreds, so the
encoder has one beside it and learns what is left.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backend.images import GREY

BRIGHT_SIDE, COLOUR_SIDE = 20, 8  # pixels: faces need more of brightness than of colour
INPUTS = BRIGHT_SIDE**2 + 2 * COLOUR_SIDE**2
RIDGE = 1e-5  # of the pictures' mean square, so that neighbouring pixels do not get large opposite weights


class LinearPath(nn.Module):
    """A linear map from faces to the first numbers of a code; it starts as nothing.

    Args:
        codes: How many numbers it gives.
    """

    def __init__(self, codes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(codes, INPUTS))
        self.bias = nn.Parameter(torch.zeros(codes))

    def forward(self, faces: Tensor) -> Tensor:
        """Return (N, codes) for faces (N, 3, S, S) in [-1, 1], always in float32 or better."""
        with torch.autocast(faces.device.type, enabled=False):  # half precision would round the strongest numbers
            seen = small(faces.to(self.weight.dtype))
            return F.linear(seen, self.weight, self.bias)

    @torch.no_grad()
    def fit(self, faces: Tensor, codes: Tensor) -> None:
        """Set the map to the least squares one from what `small` made of faces (N, INPUTS) to codes (N, any)."""
        mean, wanted = faces.double().mean(0), codes[:, : len(self.bias)].double()
        centred, average = faces.double() - mean, wanted.mean(0)
        gram = centred.t() @ centred
        gram += RIDGE * gram.diagonal().mean() * torch.eye(INPUTS, dtype=gram.dtype, device=gram.device)
        weight = torch.linalg.solve(gram, centred.t() @ (wanted - average)).t()
        self.weight.copy_(weight)
        self.bias.copy_(average - weight @ mean)


def small(faces: Tensor) -> Tensor:
    """Return brightness and two differences of colour (N, INPUTS) of faces (N, 3, S, S) shrunk to a few pixels."""
    bright = (faces * faces.new_tensor(GREY)[None, :, None, None]).sum(1, keepdim=True)
    colours = faces[:, ::2] - bright  # red and blue
    sides = (bright, BRIGHT_SIDE), (colours, COLOUR_SIDE)
    return torch.cat([F.adaptive_avg_pool2d(part, side).flatten(1) for part, side in sides], dim=1)
