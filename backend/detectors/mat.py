"""MAT, multi-attentional deepfake detection (Zhao et al. 2021, arXiv 2103.02406), on EfficientNet-B4.

The configuration is the released `a1_b5_b2`: four attention maps from the end of stage 5 look at textures from the
end of stage 2. The authors' attention-guided augmentation (AGDA) is left out of the training.
"""

from collections.abc import Mapping
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backend.detectors.base import scale_channels
from backend.detectors.efficientnet import build_padded_b4, timm_name
from backend.detectors.registry import register_detector
from backend.weights import match_checkpoint

MASK_SIZE, MASK_BORDER = 24, 2
POOLING_FLOOR = 1e-8


class AttentionMaps(nn.Module):
    """Several attention maps from one feature map, zero at the picture's border."""

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
    """What a shallow feature map holds beyond its local mean, weighted by each attention map and densely convolved.

    Args:
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
        gated = _channels_last(extracted)[..., None, :] * _channels_last(gates)[..., None]  # (N, H, W, maps, channels)
        dense = self.conv0(_channels_first(gated.flatten(3)))
        for norm, conv in ((self.bn1, self.conv1), (self.bn2, self.conv2), (self.bn3, self.conv3)):
            dense = self._join(dense, conv(torch.relu(norm(dense))))
        last = torch.relu(self.bn_last(self.conv_last(torch.relu(self.bn4(dense)))))
        return last.unflatten(1, (self.maps, -1)), means

    def _join(self, first: Tensor, second: Tensor) -> Tensor:
        """Concatenate the channels of two feature maps, group by group."""
        groups = [_channels_last(features).unflatten(3, (self.maps, -1)) for features in (first, second)]
        return _channels_first(torch.cat(groups, dim=4).flatten(3))


# Channels are joined where they lie last in memory, as the convolutions want them, so that nothing is copied twice.
def _channels_last(features: Tensor) -> Tensor:
    return features.permute(0, 2, 3, 1)


def _channels_first(features: Tensor) -> Tensor:
    return features.permute(0, 3, 1, 2)


def attention_sums(features: Tensor, attention: Tensor) -> Tensor:
    """Return the sums of features over the picture, weighted by each attention map (N, maps, C).

    Args:
        features: (N, C, H, W), or (N, maps, C, H, W) where every map has features of its own.
        attention: (N, maps, h, w), resized to the features.
    """
    attention = resize_attention(attention, features)
    if features.ndim == 4:
        return torch.einsum("nmhw,nchw->nmc", attention, features)
    return torch.einsum("nmhw,nmchw->nmc", attention, features)


def bilinear_attention_pooling(features: Tensor, attention: Tensor) -> Tensor:
    """Return `attention_sums` with unit length over the channels (N, maps, C)."""
    return F.normalize(attention_sums(features, attention), dim=-1)


def attention_means(features: Tensor, attention: Tensor) -> Tensor:
    """Return the means of features (N, C, H, W) over the picture, weighted by each attention map (N, maps, C)."""
    attention = resize_attention(attention, features) + POOLING_FLOOR
    return attention_sums(features, attention) / attention.sum((2, 3))[..., None]


def resize_attention(attention: Tensor, features: Tensor) -> Tensor:
    if attention.shape[-2:] == features.shape[-2:]:
        return attention
    return F.interpolate(attention, features.shape[-2:], mode="bilinear", align_corners=True)


class RegionIndependence(nn.Module):
    """The region independence loss: real faces near one centre a map, fakes away from it, centres apart.

    The form is that of the released code. The centres move with real faces only, in training mode.

    Args:
        alpha: How far a batch moves the centres; the authors multiply it by 0.9 after each epoch.
        margin: Distance below which two centres repel each other.
        inner_margin: Largest distance of a real face from the centres, and the smallest of a fake, negative.
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
        standardised = deviations / (means.std((2, 3), keepdim=True) + POOLING_FLOOR)
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


TEXTURE_STAGE, ATTENTION_STAGE = 2, 5  # counted from 1
REGION_INDEPENDENCE_WEIGHT = 0.5


@register_detector(
    "mat",
    title="MAT",
    paper="Zhao et al. 2021, arXiv 2103.02406",
    cam_layer="net.bn2",
    embedded={"width": 0.25, "depth": 0.33},
    order=50,
)
class MAT(nn.Module):
    """EfficientNet whose attention maps pool enhanced textures (local) and its last features (global).

    The keys are the published ones, except that the backbone's (`net.*`) are timm's; `from_official` translates.

    Args:
        width: Factor on the channels; 1.0 is the published network.
        depth: Factor on the number of blocks a stage of the backbone; 1.0 is the published network.
        dropout: Probability with which a whole attention map is dropped in training.
        global_dropout: Share of the global features dropped in training.
    """

    def __init__(
        self,
        width: float = 1.0,
        depth: float = 1.0,
        maps: int = 4,
        classes: int = 2,
        dropout: float = 0.5,
        global_dropout: float = 0.5,
    ) -> None:
        super().__init__()
        self.net = build_padded_b4(width, depth, classes)
        texture, attended = (self._stage_channels(stage) for stage in (TEXTURE_STAGE, ATTENTION_STAGE))
        hidden = scale_channels(256, width)
        self.attentions = AttentionMaps(attended, maps)
        self.texture_enhance = TextureEnhancement(texture, maps)
        self.projection_local = nn.Sequential(
            nn.Linear(maps * texture, hidden), nn.Hardswish(), nn.Linear(hidden, hidden)
        )
        self.project_final = nn.Linear(self.net.num_features, hidden)  # type: ignore[arg-type]
        self.auxiliary_loss = RegionIndependence(maps, texture)
        self.dropout = nn.Dropout1d(dropout)
        self.dropout_final = nn.Dropout(global_dropout)
        self.ensemble_classifier_fc = nn.Sequential(
            nn.Linear(2 * hidden, hidden), nn.Hardswish(), nn.Linear(hidden, classes)
        )

    def forward(self, faces: Tensor) -> Tensor:
        """Return logits (N, classes), real then fake, for faces (N, 3, S, S) in [-1, 1]."""
        return self._run(faces)[0]

    def forward_with_extras(self, faces: Tensor, fake: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return logits, and by name the losses to add to the cross-entropy, weighted as the authors do.

        In training mode this moves the centres of the region independence loss.

        Args:
            faces: (N, 3, S, S) in [-1, 1].
            fake: (N,), 1 for fake and 0 for real.
        """
        logits, means, attention = self._run(faces)
        loss = self.auxiliary_loss(means, attention, fake)
        return logits, {"region_independence": REGION_INDEPENDENCE_WEIGHT * loss}

    def _run(self, faces: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the logits, the local means of the textures and the attention maps."""
        texture, attended, final = self._taps(faces)
        attention = self.attentions(attended)
        # One draw a map and face: a dropped map is missing from the local and from the global features.
        kept = self.dropout(torch.ones_like(attention[:, :, 0, :1]))
        textures, means = self.texture_enhance(texture, attention)
        local = bilinear_attention_pooling(textures, attention) * kept
        local = F.hardswish(self.projection_local(local.flatten(1)))
        together = (attention * kept[..., None]).sum(1, keepdim=True)
        whole = self.dropout_final(attention_means(final, together).squeeze(1))
        whole = F.hardswish(self.project_final(whole))
        return self.ensemble_classifier_fc(torch.cat([local, whole], dim=1)), means, attention

    def _taps(self, faces: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the features at the ends of the two stages, and the last ones."""
        net = self.net
        features = net.bn1(net.conv_stem(faces))  # type: ignore[operator]
        ends = []
        for stage in net.blocks:  # type: ignore[union-attr]
            features = stage(features)
            ends.append(features)
        final = net.bn2(net.conv_head(features))  # type: ignore[operator]
        return ends[TEXTURE_STAGE - 1], ends[ATTENTION_STAGE - 1], final

    def _stage_channels(self, stage: int) -> int:
        return self.net.blocks[stage - 1][-1].conv_pwl.out_channels  # type: ignore[index, union-attr, return-value]


def from_official(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """Turn the authors' checkpoint into a state of `MAT()`; errors as in `match_checkpoint`.

    Args:
        checkpoint: Keys to tensors, or a file's content, which holds these under `state_dict`.
    """
    state: Mapping[str, Tensor] = checkpoint.get("state_dict", checkpoint)

    def rename(key: str) -> str:
        return f"net.{timm_name(key.removeprefix('net.'))}" if key.startswith("net.") else key

    return match_checkpoint(state, MAT, "MAT", rename=rename)
