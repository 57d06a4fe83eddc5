"""RECCE, reconstruction-classification learning (Cao et al. 2022, CVPR), on Xception.

A decoder learns to reconstruct real faces only; the classifier attends to where it fails.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backend.detectors.base import scale_channels
from backend.detectors.registry import register_detector, register_published
from backend.detectors.xception import Xception
from backend.weights import match_checkpoint


def _gate(channels: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, outputs, 1, bias=False), nn.Sigmoid())


def _embedding(channels: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(channels, outputs, bias=False), nn.ReLU(), nn.Linear(outputs, outputs, bias=False))


def _weights(channels: int) -> nn.Sequential:
    # Softmax over dimension 1, the neighbours of a place.
    return nn.Sequential(nn.Linear(channels, 1, bias=False), nn.ReLU(), nn.Softmax(dim=1))


class GraphReasoning(nn.Module):
    """Every place of the encoder's features gathers the decoder's finer features that lie in it.

    Args:
        channels: Of the encoder's features a, and of the result.
        b_channels: Of the decoder's features b, twice as fine.
        c_channels: Of the decoder's features c, four times as fine.
        hidden: Of each of the three embeddings.
        dropout: Share of the result dropped in training.
    """

    def __init__(self, channels: int, b_channels: int, c_channels: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.va_embedding = nn.Sequential(
            nn.Conv2d(channels, hidden, 1, bias=False), nn.ReLU(), nn.Conv2d(hidden, hidden, 1, bias=False)
        )
        self.va_gated_b, self.va_gated_c = _gate(channels, hidden), _gate(channels, hidden)
        self.vb_embedding, self.vc_embedding = _embedding(b_channels, hidden), _embedding(c_channels, hidden)
        self.reweight_ab, self.reweight_ac = _weights(2 * hidden), _weights(2 * hidden)
        self.reproject = nn.Sequential(
            nn.Conv2d(3 * hidden, channels, 1, bias=False),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 1, bias=False),
            nn.Dropout(dropout),
        )

    def forward(self, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        """Return what to add to `a` (N, channels, h, w), from b (N, ., 2h, 2w) and c (N, ., 4h, 4w)."""
        places = self.va_embedding(a)
        from_b = _gathered(places, self.vb_embedding(_neighbours(b, 2)), self.reweight_ab)
        from_c = _gathered(places, self.vc_embedding(_neighbours(c, 4)), self.reweight_ac)
        parts = [from_b * (1 - self.va_gated_b(a)), from_c * (1 - self.va_gated_c(a)), places]
        return self.reproject(torch.sigmoid(torch.cat(parts, dim=1)))


def _neighbours(features: Tensor, ratio: int) -> Tensor:
    """Return the ratio x ratio features under each coarse place, as (N, ratio^2, places, channels)."""
    patches = F.unfold(features, ratio, stride=ratio)
    return patches.unflatten(1, (features.shape[1], ratio * ratio)).permute(0, 2, 3, 1)


def _gathered(places: Tensor, neighbours: Tensor, reweight: nn.Module) -> Tensor:
    """Return the weighted sum of each place's neighbours (N, hidden, h, w)."""
    repeated = places.flatten(2).transpose(1, 2)[:, None].expand(-1, neighbours.shape[1], -1, -1)
    weights = reweight(torch.cat([repeated, neighbours], dim=-1))
    return (weights * neighbours).sum(1).transpose(1, 2).unflatten(2, places.shape[-2:])


class GuidedAttention(nn.Module):
    """Reconstruction-guided attention: look where the decoder reconstructed the face badly.

    Args:
        dropout: Share of the unattended features dropped in training.
    """

    def __init__(self, channels: int, dropout: float) -> None:
        super().__init__()
        self.gated = nn.Sequential(
            nn.Conv2d(3, 3, 3, padding=1, bias=False), nn.ReLU(), nn.Conv2d(3, 1, 1, bias=False), nn.Sigmoid()
        )
        self.h = nn.Sequential(nn.Conv2d(channels, channels, 1, bias=False), nn.BatchNorm2d(channels), nn.ReLU())
        self.dropout = nn.Dropout(dropout)

    def forward(self, faces: Tensor, reconstruction: Tensor, features: Tensor) -> Tensor:
        """Return features (N, channels, h, w) for faces and their reconstruction, both (N, 3, S, S) in [-1, 1]."""
        difference = (faces - reconstruction).abs()
        size = features.shape[-2:]
        residual = F.interpolate(difference, size, mode="bilinear", align_corners=True)
        return self.gated(residual) * self.h(features) + self.dropout(features)


def metric_loss(embeddings: list[Tensor], fake: Tensor) -> Tensor:
    """Return the loss that draws real faces together and away from fakes, and leaves fakes free.

    For each embedding: 1 - mean similarity of real with real + mean similarity of real with fake, at least 0.

    Args:
        embeddings: Pooled features, each (N, C) of unit length; similarity is (1 + cosine) / 2.
        fake: (N,), 1 for fake and 0 for real.
    """
    is_fake = fake > 0.5
    other = torch.eye(len(fake), device=fake.device) == 0
    both_real = (~is_fake[:, None] & ~is_fake[None] & other).to(embeddings[0])
    one_real = (is_fake[:, None] ^ is_fake[None]).to(embeddings[0])
    losses = []
    for embedding in embeddings:
        similarity = (embedding @ embedding.T + 1) / 2
        alike, unlike = (_mean_where(similarity, pairs) for pairs in (both_real, one_real))
        losses.append(torch.relu(1 - alike + unlike))
    return torch.stack(losses).sum()


def reconstruction_loss(reconstruction: Tensor, faces: Tensor, fake: Tensor) -> Tensor:
    """Return the mean absolute error over the real faces alone; 0 where there is none.

    Args:
        reconstruction: (N, 3, S, S).
        faces: Of the same shape.
        fake: (N,), 1 for fake and 0 for real.
    """
    real = fake < 0.5
    difference = (reconstruction[real] - faces[real]).abs()
    return difference.sum() / max(1, difference.numel())


def _mean_where(values: Tensor, chosen: Tensor) -> Tensor:
    return (values * chosen).sum() / (chosen.sum() + 1e-6)


DROPOUT = 0.2
NOISE = 1e-6  # standard deviation of the white noise on half of the training faces
RECONSTRUCTION_WEIGHT, METRIC_WEIGHT = 0.1, 0.1
IMAGENET_CLASSES = 1000
FACTS: dict[str, Any] = {
    "title": "RECCE",
    "paper": "Cao et al. 2022, CVPR, End-to-End Reconstruction-Classification Learning for Face Forgery Detection",
    "cam_layer": "encoder.act4",
    "published": lambda: RECCE(imagenet_head=True),
}


@register_detector("recce", embedded={"width": 0.2}, order=60, **FACTS)
@register_published("recce_deepfakebench", **FACTS)
class RECCE(nn.Module):
    """Xception with a decoder after block 4, under the published keys.

    Args:
        width: Factor on all channels; 1.0 is the published network.
        imagenet_head: Keep the encoder's ImageNet layer, which published checkpoints hold and nothing runs.
    """

    flood = 0.04  # training keeps the classification loss near this level instead of below it

    def __init__(self, width: float = 1.0, classes: int = 2, *, imagenet_head: bool = False) -> None:
        super().__init__()
        self.encoder = Xception(width, classes=0)
        c64, c128, c256, c728 = (scale_channels(channels, width) for channels in (64, 128, 256, 728))
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
        """Return logits, reconstruction and embeddings of faces (N, 3, S, S) in [-1, 1].

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
    """Turn the authors' checkpoint into a state of `RECCE(classes=1, imagenet_head=True)`.

    Errors as in `match_checkpoint`.
    """
    return match_checkpoint(state, lambda: RECCE(classes=1, imagenet_head=True), "RECCE")


def from_deepfakebench(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Turn DeepfakeBench's checkpoint into a state of `RECCE(imagenet_head=True)`; errors as in `match_checkpoint`."""
    return match_checkpoint(state, lambda: RECCE(imagenet_head=True), "DeepfakeBench's RECCE", prefix="model.")
