"""RECCE, reconstruction-classification learning (Cao et al. 2022, CVPR), on Xception.

A decoder learns to rebuild real faces only; where it fails, the classifier looks closer.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backend.detectors.checkpoints import matched
from backend.detectors.recce_blocks import GraphReasoning, GuidedAttention, metric_loss, reconstruction_loss
from backend.detectors.xception import Xception, scaled

DROPOUT = 0.2
NOISE = 1e-6  # standard deviation of the white noise on half of the training faces
RECONSTRUCTION_WEIGHT, METRIC_WEIGHT = 0.1, 0.1
IMAGENET_CLASSES = 1000


class RECCE(nn.Module):
    """Xception with a decoder after block 4, under the published keys.

    Args:
        width: Factor on all channels; 1.0 is the published network.
        classes: Number of logits.
        imagenet_head: Carry the encoder's ImageNet layer, which published checkpoints save and nothing runs.
    """

    flood = 0.04  # training keeps the classification loss near this level instead of below it

    def __init__(self, width: float = 1.0, classes: int = 2, *, imagenet_head: bool = False) -> None:
        super().__init__()
        self.encoder = Xception(width, classes=0)
        c64, c128, c256, c728 = (scaled(channels, width) for channels in (64, 128, 256, 728))
        features = self.encoder.bn4.num_features
        if imagenet_head:
            self.encoder.fc = nn.Linear(features, IMAGENET_CLASSES)
        self.decoder1, self.decoder2 = _upsample(c728, c256), _block(c256)
        self.decoder3, self.decoder4 = _upsample(c256, c128), _block(c128)
        self.decoder5 = _upsample(c128, c64)
        self.decoder6 = nn.Sequential(nn.Conv2d(c64, 3, 1, bias=False), nn.Tanh())
        self.reasoning = GraphReasoning(c728, c256, c128, c256, DROPOUT)
        self.attention = GuidedAttention(c728, DROPOUT)
        self.dropout = nn.Dropout(DROPOUT)
        self.fc = nn.Linear(features, classes)

    def forward(self, faces: Tensor) -> Tensor:
        """Return logits (N, classes), real then fake, for faces (N, 3, S, S) in [-1, 1]."""
        return self.forward_with_reconstruction(faces)[0]

    def forward_with_reconstruction(self, faces: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Return logits, what the decoder made of the faces, and the embeddings that the metric loss compares.

        Args:
            faces: (N, 3, S, S) in [-1, 1].

        Returns:
            (N, classes); (N, 3, S, S) in [-1, 1]; pooled features of unit length of block 4 and of the decoder at
            twice and four times its resolution, each (N, C).
        """
        encoder = self.encoder
        shallow = encoder.run_blocks(encoder.stem(self._noisy(faces)), 1, 4)
        twice = self.decoder2(self.decoder1(self.dropout(shallow)))
        fourfold = self.decoder4(self.decoder3(twice))
        rebuilt = self.decoder6(self.decoder5(fourfold))
        reconstruction = F.interpolate(rebuilt, faces.shape[-2:], mode="bilinear", align_corners=True)
        deep = encoder.run_blocks(shallow, 5, 7)
        deep = encoder.run_blocks(self.reasoning(deep, twice, fourfold) + deep, 8, 8)
        deep = encoder.run_blocks(self.attention(faces, reconstruction, deep), 9, 12)
        logits = self.fc(self.dropout(encoder.finish(deep).mean((2, 3))))
        return logits, reconstruction, [F.normalize(part.mean((2, 3)), dim=1) for part in (shallow, twice, fourfold)]

    def forward_with_extras(self, faces: Tensor, fake: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return logits, and by name the losses to add to the classification's, weighted as the authors do.

        Args:
            faces: (N, 3, S, S) in [-1, 1].
            fake: (N,), 1 for fake and 0 for real.
        """
        logits, reconstruction, embeddings = self.forward_with_reconstruction(faces)
        return logits, {
            "reconstruction": RECONSTRUCTION_WEIGHT * reconstruction_loss(reconstruction, faces, fake),
            "metric": METRIC_WEIGHT * metric_loss(embeddings, fake),
        }

    def _noisy(self, faces: Tensor) -> Tensor:
        """Return faces, in training mode half of them with faint white noise."""
        if not self.training:
            return faces
        chosen = (torch.rand(len(faces), device=faces.device) > 0.5).nonzero()[:, 0]
        noise = NOISE * torch.randn_like(faces[chosen])
        return faces.index_add(0, chosen, noise).clamp(-1, 1)


def _upsample(inputs: int, outputs: int) -> nn.Sequential:
    from timm.models.xception import SeparableConv2d  # importing timm takes seconds

    convolution = SeparableConv2d(inputs, outputs, 3, 1, 1)
    return nn.Sequential(nn.Upsample(scale_factor=2), convolution, nn.BatchNorm2d(outputs), nn.ReLU())


def _block(channels: int) -> nn.Module:
    from timm.models.xception import Block

    return Block(channels, channels, 3)


def from_official(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Turn a checkpoint of the authors, with one logit, into a state of `RECCE(classes=1, imagenet_head=True)`.

    Args:
        state: Their keys to tensors, every one of which is matched.

    Raises:
        UserError: Keys are unknown or missing, or tensors have other shapes.
    """
    return matched(state, lambda: RECCE(classes=1, imagenet_head=True), "RECCE")


def from_deepfakebench(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Turn a DeepfakeBench RECCE checkpoint into a state of `RECCE(imagenet_head=True)`, every key matched.

    Args:
        state: Keys `model.*` to tensors, as published.

    Raises:
        UserError: Keys are unknown or missing, or tensors have other shapes.
    """
    return matched(state, lambda: RECCE(imagenet_head=True), "DeepfakeBench's RECCE", prefix="model.")
