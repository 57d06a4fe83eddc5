"""MAT, multi-attentional deepfake detection (Zhao et al. 2021, arXiv 2103.02406), on EfficientNet-B4.

The configuration is the released `a1_b5_b2`: four attention maps from the end of stage 5 look at textures from the
end of stage 2. Of the authors' training, attention-guided augmentation (AGDA) is left out.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backend.detectors.checkpoints import matched
from backend.detectors.efficientnet import build_padded_b4, timm_name
from backend.detectors.mat_blocks import (
    AttentionMaps,
    RegionIndependence,
    TextureEnhancement,
    attention_means,
    bilinear_attention_pooling,
)
from backend.detectors.xception import scaled

TEXTURE_STAGE, ATTENTION_STAGE = 2, 5  # counted from 1
REGION_INDEPENDENCE_WEIGHT = 0.5


class MAT(nn.Module):
    """EfficientNet whose attention maps pool enhanced textures (local) and its last features (global).

    The keys are the published ones, except that the backbone's (`net.*`) are timm's; `from_official` translates.

    Args:
        width: Factor on the channels; 1.0 is the published network.
        depth: Factor on the number of blocks a stage of the backbone; 1.0 is the published network.
        maps: Number of attention maps.
        classes: Number of logits.
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
        hidden = scaled(256, width)
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
        logits, _, _ = self._run(faces)
        return logits

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
        kept = self.dropout(attention.new_ones(len(faces), attention.shape[1], 1))
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
        """Return how many channels leave a stage, counted from 1."""
        return self.net.blocks[stage - 1][-1].conv_pwl.out_channels  # type: ignore[index, union-attr, return-value]


def from_official(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """Turn a checkpoint of the authors into a state of `MAT()`, every key matched.

    Args:
        checkpoint: Their keys to tensors, or a file's content, which holds these under `state_dict`.

    Raises:
        UserError: Keys are unknown or missing, or tensors have other shapes.
    """
    state: Mapping[str, Tensor] = checkpoint.get("state_dict", checkpoint)

    def rename(key: str) -> str:
        return f"net.{timm_name(key.removeprefix('net.'))}" if key.startswith("net.") else key

    return matched(state, MAT, "MAT", rename=rename)
