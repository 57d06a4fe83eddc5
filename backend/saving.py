"""Save pictures as photographs are saved, so that the file does not tell a fake from a photograph.

Photographs were JPEG files before they became data; fakes made from them, and pictures that came out of an attack, were
not. A detector finds that difference before any trace of forgery, if it is there.
"""

import io

import numpy as np
import torch
from PIL import Image
from torch import Tensor

QUALITY = 90  # at which the packs of photographs are stored, as JPEG with halved colours


def like_photograph(picture: np.ndarray, quality: int = QUALITY) -> np.ndarray:
    """Return uint8 (H, W, 3) as it is read from such a file; what came from one hardly changes."""
    return np.array(as_jpeg(Image.fromarray(picture), quality))


def like_photographs(pictures: Tensor, quality: int = QUALITY) -> Tensor:
    """Return uint8 (N, 3, H, W) as they are read from such files, or from files of another quality."""
    if not len(pictures):
        return pictures
    saved = [like_photograph(np.ascontiguousarray(one.permute(1, 2, 0).cpu().numpy()), quality) for one in pictures]
    return torch.from_numpy(np.stack(saved)).permute(0, 3, 1, 2)


def as_jpeg(image: Image.Image, quality: int, subsampling: int = 2) -> Image.Image:
    """Return the picture after one JPEG encoding (subsampling 0 = 4:4:4, 1 = 4:2:2, 2 = 4:2:0)."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality, subsampling=subsampling)
    return Image.open(io.BytesIO(buffer.getvalue())).convert("RGB")
