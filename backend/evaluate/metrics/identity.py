"""Whether an edited face is still the same person to a face-recognition network.

Artifact-Eraser (arXiv 2404.08341) takes ArcFace and calls the identity kept above a cosine of 0.75. ArcFace and
FaceNet are used where their files were fetched from the Hub; without them dlib's network, whose files come with the
package face-recognition-models. Scores of different networks cannot be compared, so tables name the network.
"""

import functools
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from backend import images, weights
from backend.evaluate.metrics.base import register_metric
from backend.generators import dlib_resnet
from backend.generators.arcface import Box, crop_for_recognition, find_arcface
from backend.generators.dlib_resnet import INSTALL_IDENTITY
from backend.runtime import device, load_once, remembered

# Where dlib's own detector would find the face; its landmarks do the rest.
DLIB_BOXES: dict[str, Box] = {"ffhq": (0.235, 0.297, 0.765, 0.827), "embedded": (0.195, 0.22, 0.805, 0.83)}
FACENET_SIDE = 160
LANDMARKS = "shape_predictor_5_face_landmarks.dat"
_KEPT = 16  # vectors of dlib's network, which takes half a second; an original is compared with many edits


@dataclass(frozen=True)
class Recogniser:
    """A face-recognition network."""

    name: str
    embed: Callable[[Tensor, str], np.ndarray]  # from a picture (1, 3, H, W) in [0, 1] and its template to (D,)
    kept: Callable[[np.ndarray, np.ndarray], bool]  # whether two vectors are of one person, by its published rule
    rule: str  # the rule in words


@dataclass(frozen=True)
class Identity:
    """How alike two faces are to a recogniser."""

    recogniser: str
    similarity: float  # cosine, in [-1, 1]
    retained: bool  # whether the recogniser's rule calls them one person


def identity_missing() -> str | None:
    """Say why identity cannot be measured here, or return None."""
    if best_recogniser() is not None:
        return None
    return (
        "Identity was not measured: neither ArcFace nor FaceNet was fetched, and dlib's network is not installed "
        f"({INSTALL_IDENTITY})."
    )


@register_metric(
    "identity",
    "Identity similarity",
    unit="cosine",
    better="higher",
    sentence="How alike the person is to a face-recognition network, before and after.",
    source="Dong et al. 2024 (Artifact-Eraser), arXiv 2404.08341, section 4",
    missing=identity_missing,
)
def compare_identity(original: Tensor, other: Tensor, template: str) -> Identity:
    """Compare two faces (1, 3, H, W) in [0, 1], both aligned by the template `embedded` or `ffhq`.

    Raises:
        RuntimeError: There is no recogniser; `identity_missing` says why.
    """
    recogniser = best_recogniser()
    if recogniser is None:
        raise RuntimeError(identity_missing())
    before, after = recogniser.embed(original, template), recogniser.embed(other, template)
    return Identity(recogniser.name, cosine_similarity(before, after), recogniser.kept(before, after))


def best_recogniser() -> Recogniser | None:
    """Return the best recogniser on this machine, or None."""
    return load_once("recogniser", _find_recogniser)


def cosine_similarity(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def _find_recogniser() -> Recogniser | None:
    arcface = find_arcface()
    if arcface is not None:
        embed = functools.partial(_embed, arcface)
        return Recogniser("ArcFace IR-SE50", embed, lambda a, b: cosine_similarity(a, b) > 0.75, "cosine above 0.75")
    entry = weights.read_entries().get("facenet")
    return _facenet(entry) if entry is not None and entry.path.is_file() else _dlib()


def _facenet(entry: weights.Entry) -> Recogniser:
    from facenet_pytorch import InceptionResnetV1

    network = InceptionResnetV1(pretrained=None, classify=False)
    state = weights.read_checkpoint(entry.path)
    network.load_state_dict({key: value for key, value in state.items() if not key.startswith("logits.")}, strict=True)
    network = network.eval().requires_grad_(requires_grad=False).to(device())

    def facenet(picture: Tensor, template: str) -> Tensor:
        return network((crop_for_recognition(picture, template, FACENET_SIDE).to(device()) * 255 - 127.5) / 128)

    embed = functools.partial(_embed, facenet)
    rule = "cosine above 0.379"  # Schroff et al. 2015, section 5.1: squared distance of unit vectors below 1.242
    return Recogniser("FaceNet VGGFace2", embed, lambda a, b: cosine_similarity(a, b) > 1 - 1.242 / 2, rule)


def _dlib() -> Recogniser | None:
    file = dlib_resnet.dlib_resnet_path()
    if file is None or importlib.util.find_spec("dlib") is None:
        return None
    import dlib

    network = dlib.face_recognition_model_v1(str(file))
    landmarks = dlib.shape_predictor(str(file.parent / LANDMARKS))

    @remembered(_KEPT)
    def embedded(content: bytes, height: int, width: int, template: str) -> np.ndarray:
        array = np.frombuffer(content, np.uint8).reshape(height, width, 3)
        left, top, right, bottom = DLIB_BOXES[template]
        box = dlib.rectangle(round(left * width), round(top * height), round(right * width), round(bottom * height))
        return np.array(network.compute_face_descriptor(array, landmarks(array, box)))

    def embed(picture: Tensor, template: str) -> np.ndarray:
        array = images.to_array(picture)
        return embedded(array.tobytes(), *array.shape[:2], template)

    rule = "distance of the vectors below 0.6"  # dlib, face_recognition_model_v1
    return Recogniser("dlib ResNet v1", embed, lambda a, b: float(np.linalg.norm(a - b)) < 0.6, rule)


@torch.no_grad()
def _embed(network: Callable[[Tensor, str], Tensor], picture: Tensor, template: str) -> np.ndarray:
    return network(picture, template).flatten().double().cpu().numpy()


register_metric(
    "identity_retained",
    "Identity retention",
    unit="share of the successes",
    better="higher",
    sentence="How often a face-recognition network calls both one person, by its own published rule.",
    source="Dong et al. 2024 (Artifact-Eraser), arXiv 2404.08341, section 4",
    missing=identity_missing,
)(lambda original, other, template: compare_identity(original, other, template).retained)
