"""The parts of MAT (see `mat.py`): attention maps, texture enhancement, attention pooling, region independence."""

from itertools import combinations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

MASK_SIZE, MASK_BORDER = 24, 2
TINY = 1e-8


class AttentionMaps(nn.Module):
    """Several attention maps from one feature map, zero at the picture's border.

    Args:
        channels: Of the features.
        maps: How many.
    """

    mask: Tensor

    def __init__(self, channels: int, maps: int) -> None:
        super().__init__()
        self.register_buffer("mask", torch.zeros(1, 1, MASK_SIZE, MASK_SIZE))
        self.mask[..., MASK_BORDER:-MASK_BORDER, MASK_BORDER:-MASK_BORDER] = 1
        self.conv_extract = nn.Conv2d(channels, channels, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, maps, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(maps)

    def forward(self, features: Tensor) -> Tensor:
        """Return maps (N, maps, h, w), at least 0, for features (N, channels, h, w)."""
        extracted = torch.relu(self.bn1(self.conv_extract(features)))
        attention = F.elu(self.bn2(self.conv2(extracted))) + 1
        return attention * F.interpolate(self.mask, features.shape[-2:], mode="nearest")


class TextureEnhancement(nn.Module):
    """What a shallow feature map holds beyond its local mean, seen through each attention map and densely convolved.

    Args:
        channels: Of the features.
        maps: Number of attention maps; each has its own group of convolutions.
    """

    def __init__(self, channels: int, maps: int) -> None:
        super().__init__()
        self.maps = maps
        width = channels * maps

        def conv(parts: int, kernel: int) -> nn.Conv2d:
            return nn.Conv2d(parts * width, width, kernel, padding=kernel // 2, groups=maps)

        self.conv_extract = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv0 = conv(1, 5)
        self.conv1, self.conv2, self.conv3 = conv(1, 3), conv(2, 3), conv(3, 3)
        self.conv_last = conv(4, 1)
        self.bn1, self.bn2, self.bn3, self.bn4 = (nn.BatchNorm2d(parts * width) for parts in (1, 2, 3, 4))
        self.bn_last = nn.BatchNorm2d(width)

    def forward(self, features: Tensor, attention: Tensor) -> tuple[Tensor, Tensor]:
        """Return the enhanced texture of each map, and the local means it stands out from.

        Args:
            features: (N, channels, H, W).
            attention: (N, maps, h, w); no gradient flows into it from here.

        Returns:
            (N, maps, channels, H, W) and (N, channels, h, w).
        """
        size = features.shape[-2:]
        extracted = self.conv_extract(features)
        means = F.adaptive_avg_pool2d(extracted, (attention.shape[2], attention.shape[3]))
        if extracted.shape[-2] > means.shape[-2]:
            extracted = extracted - F.interpolate(means, size, mode="nearest")
        gates = torch.tanh(F.interpolate(attention.detach(), size, mode="bilinear", align_corners=True))
        seen = _last(extracted)[..., None, :] * _last(gates)[..., None]  # (N, H, W, maps, channels)
        dense = self.conv0(_first(seen.flatten(3)))
        layers = ((self.bn1, self.conv1), (self.bn2, self.conv2), (self.bn3, self.conv3))
        for norm, conv in layers:
            dense = self._join(dense, conv(torch.relu(norm(dense))))
        last = torch.relu(self.bn_last(self.conv_last(torch.relu(self.bn4(dense)))))
        return last.unflatten(1, (self.maps, -1)), means

    def _join(self, first: Tensor, second: Tensor) -> Tensor:
        """Put the channels of two feature maps behind one another, group by group."""
        groups = [_last(features).unflatten(3, (self.maps, -1)) for features in (first, second)]
        return _first(torch.cat(groups, dim=4).flatten(3))


# Channels are joined where they lie last in memory, as the convolutions want them, so that nothing is copied twice.
def _last(features: Tensor) -> Tensor:
    return features.permute(0, 2, 3, 1)


def _first(features: Tensor) -> Tensor:
    return features.permute(0, 3, 1, 2)


def attention_sums(features: Tensor, attention: Tensor) -> Tensor:
    """Return the sums of features over the picture, weighted by each attention map (N, maps, C).

    Args:
        features: (N, C, H, W), or (N, maps, C, H, W) where every map has features of its own.
        attention: (N, maps, h, w), resized to the features.
    """
    attention = resized(attention, features)
    if features.ndim == 4:
        return torch.einsum("nmhw,nchw->nmc", attention, features)
    return torch.einsum("nmhw,nmchw->nmc", attention, features)


def bilinear_attention_pooling(features: Tensor, attention: Tensor) -> Tensor:
    """Return `attention_sums` with unit length over the channels (N, maps, C)."""
    return F.normalize(attention_sums(features, attention), dim=-1)


def attention_means(features: Tensor, attention: Tensor) -> Tensor:
    """Return the means of features (N, C, H, W) over the picture, weighted by each attention map (N, maps, C)."""
    attention = resized(attention, features) + TINY
    return attention_sums(features, attention) / attention.sum((2, 3))[..., None]


def resized(attention: Tensor, features: Tensor) -> Tensor:
    """Return attention maps at the size of features."""
    if attention.shape[-2:] == features.shape[-2:]:
        return attention
    return F.interpolate(attention, features.shape[-2:], mode="bilinear", align_corners=True)


class RegionIndependence(nn.Module):
    """The region independence loss: real faces near one centre a map, fakes away from it, centres apart.

    The form is that of the released code. The centres move with real faces only, in training mode.

    Args:
        maps: Number of attention maps.
        channels: Of the features.
        alpha: How far a batch moves the centres; the authors multiply it by 0.9 after each epoch.
        margin: Distance below which two centres repel each other.
        inner_margin: Distance up to which a real face may lie from the centres, and, negative, from which a fake may.
    """

    feature_centers: Tensor
    alpha: Tensor
    inner_margin: Tensor

    def __init__(
        self,
        maps: int,
        channels: int,
        alpha: float = 0.05,
        margin: float = 0.8,
        inner_margin: tuple[float, float] = (0.2, -0.8),
    ) -> None:
        super().__init__()
        self.margin = margin
        self.register_buffer("feature_centers", torch.zeros(maps, channels))
        self.register_buffer("alpha", torch.tensor(alpha))
        self.register_buffer("inner_margin", torch.tensor(inner_margin))

    def forward(self, means: Tensor, attention: Tensor, fake: Tensor) -> Tensor:
        """Return the loss.

        Args:
            means: Local means of the texture features (N, channels, h, w).
            attention: (N, maps, h, w).
            fake: (N,), 1 for fake and 0 for real.
        """
        deviations = means - means.mean((2, 3), keepdim=True)
        standardised = deviations / (means.std((2, 3), keepdim=True) + TINY)
        pooled = bilinear_attention_pooling(standardised, attention)
        old = self.feature_centers.clone()
        real = (fake < 0.5).to(pooled)[:, None, None]
        centres = old + self.alpha * ((pooled - old) * real).mean(0)
        if self.training:
            with torch.no_grad():
                self.feature_centers.copy_(centres)
        limits = self.inner_margin[fake.long()]
        distances = (pooled - centres).flatten(1).norm(dim=1)
        within = torch.relu(distances * limits.sign() - limits).mean()
        pairs = [torch.relu(self.margin - torch.dist(first, second)) for first, second in combinations(centres, 2)]
        # The centres pass on only `alpha` of the gradient, which the division gives back.
        return within + torch.stack(pairs).sum() / len(centres) / self.alpha
