"""How far two faces are apart to a face-recognition network that a loss can follow: ArcFace, or dlib's."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from backend import identity_dlib, weights
from backend.evaluate.metrics.identity import ARCFACE_SIDE, INSTALL, recognised
from backend.generators.arcface import ArcFace
from backend.runtime import device

ARCFACE, NAME = "arcface", "ArcFace"  # entry of the registry, and its name in words
MISSING = (
    f"{NAME} was not fetched (python -m backend weights fetch {ARCFACE}), and dlib's network is not installed "
    f"({INSTALL})."
)


@dataclass(frozen=True)
class Embedding:
    """A recognition network.

    Args:
        name: Its name.
        embed: From faces (N, 3, S, S) in [0, 1] to vectors (N, D); differentiable.
    """

    name: str
    embed: Callable[[Tensor], Tensor]

    def distance(self, one: Tensor, other: Tensor) -> Tensor:
        """Return half the mean squared distance of the vectors of faces (N, 3, S, S) in [-1, 1].

        For unit vectors, which ArcFace gives, this is 1 - cosine. dlib's are compared by their distance, up to 0.6 for
        one person, which is 0.18 here.
        """
        a, b = (self.embed((pictures + 1) / 2) for pictures in (one, other))
        return (a - b).square().sum(1).mean() / 2


def find(template: str) -> Embedding | None:
    """Return the best network on this machine for faces aligned as `template`, or None."""
    entry = weights.entries().get(ARCFACE)
    if entry is not None and entry.path.is_file():
        arcface = ArcFace()
        arcface.load_state_dict(weights.load_entry(ARCFACE), strict=True)
        arcface = arcface.eval().requires_grad_(requires_grad=False).to(device())
        return Embedding(NAME, lambda faces: arcface(recognised(faces, template, ARCFACE_SIDE) * 2 - 1))
    if identity_dlib.path() is None:
        return None
    dlib = identity_dlib.load().to(device())
    return Embedding("dlib ResNet v1", lambda faces: dlib(identity_dlib.chip(faces, template)))
