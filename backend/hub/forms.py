"""The forms in which others publish models: how each is recognised by its keys, and turned into plain tensors."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from backend import weights
from backend.detectors import efficientnet, f3net, mesonet, recce, vit, xception
from backend.errors import UserError
from backend.generators import inversion
from backend.generators.arcface import ArcFace
from backend.weights import match_checkpoint

Content = Mapping[str, Any]
HDF5 = b"\x89HDF\r\n"


@dataclass(frozen=True)
class Form:
    """One published form.

    Args:
        title: What a file of this form is, for sentences.
        keys: Keys that such a file has; one that ends with a dot is the beginning of keys.
        without: Keys that it does not have, where another form has the same ones.
        convert: Turns the content of a file into tensors under the keys of our network, every one matched.
    """

    title: str
    keys: tuple[str, ...]
    convert: Callable[[Content], dict[str, Tensor]]
    without: tuple[str, ...] = ()

    def fits(self, content: Content) -> bool:
        return all(_has_key(content, key) for key in self.keys) and not any(
            _has_key(content, key) for key in self.without
        )

    @property
    def expected(self) -> str:
        return ", ".join(f"{key}*" if key.endswith(".") else key for key in self.keys)


def read_published(path: Path) -> dict[str, Any]:
    """Return the content of a published file of any form.

    Raises:
        UserError: It is missing or damaged, or carries more than tensors and plain values.
    """
    if path.is_file():
        with path.open("rb") as file:
            if file.read(len(HDF5)) == HDF5:
                return mesonet.convert_h5(path)
    return weights.read_checkpoint(path)


def convert_published(path: Path, name: str) -> dict[str, Tensor]:
    """Return the tensors of a published file of the form `name`.

    Raises:
        UserError: The file is of another form; the sentence says which was expected, and which it is.
    """
    form = FORMS[name]
    content = read_published(path)
    if form.fits(content):
        return form.convert(content)
    others = [other.title for other in FORMS.values() if other.fits(content)]
    kind = f"It looks like {others[0]}" if others else f"It has {', '.join(map(str, list(content)[:3])) or 'nothing'}"
    raise UserError(
        f"{path.name} is not {form.title}. {kind}.", f"Expected is a file with these tensors: {form.expected}."
    )


def _has_key(content: Content, key: str) -> bool:
    return any(str(name).startswith(key) for name in content) if key.endswith(".") else key in content


def _facenet() -> nn.Module:
    from facenet_pytorch import InceptionResnetV1

    return InceptionResnetV1(pretrained=None, classify=True, num_classes=8631)  # people of VGGFace2


def _matched(build: Callable[[], nn.Module], title: str) -> Callable[[Content], dict[str, Tensor]]:
    return lambda content: match_checkpoint(content, build, title)


def _kept(content: Content) -> dict[str, Tensor]:
    """Return the tensors of a model whose network is not part of this project."""
    return {key: value for key, value in content.items() if isinstance(value, Tensor)}


FORMS: dict[str, Form] = {
    "e4e": Form("an e4e checkpoint", ("state_dict", "latent_avg"), inversion.tensors_from_e4e),
    "stylegan2": Form("a StyleGAN2 checkpoint", ("g_ema", "latent_avg"), inversion.tensors_from_stylegan2),
    "xception_deepfakebench": Form(
        "DeepfakeBench's Xception",
        ("backbone.block12.", "backbone.last_linear."),
        xception.from_deepfakebench,
        without=("FAD_head.",),
    ),
    "efficientnet_b4_deepfakebench": Form(
        "DeepfakeBench's EfficientNet-B4",
        ("backbone.efficientnet.", "backbone.last_layer."),
        efficientnet.from_deepfakebench,
    ),
    "f3net_deepfakebench": Form("DeepfakeBench's F3-Net", ("FAD_head.", "backbone."), f3net.from_deepfakebench),
    "recce_deepfakebench": Form(
        "DeepfakeBench's RECCE", ("model.encoder.", "model.decoder1."), recce.from_deepfakebench
    ),
    "meso4_deepfakebench": Form(
        "DeepfakeBench's Meso4", ("backbone.conv4.weight", "backbone.fc2.weight"), mesonet.meso4_from_deepfakebench
    ),
    "mesoinception4_deepfakebench": Form(
        "DeepfakeBench's MesoInception4",
        ("backbone.Incption1_conv1.weight", "backbone.fc2.weight"),
        mesonet.mesoinception4_from_deepfakebench,
    ),
    "ucf_deepfakebench": Form("DeepfakeBench's UCF", ("encoder_f.", "encoder_c.", "head_sha."), _kept),
    "meso4": Form(
        "Meso4 as its authors publish it (.h5)", ("conv1.weight", "head.fc2.weight"), _matched(mesonet.Meso4, "Meso4")
    ),
    "mesoinception4": Form(
        "MesoInception4 as its authors publish it (.h5)",
        ("inception1.a.weight", "head.fc2.weight"),
        _matched(mesonet.MesoInception4, "MesoInception4"),
    ),
    "efficientnet_b0_torchvision": Form(
        "torchvision's EfficientNet-B0", ("features.0.0.weight", "classifier.1.weight"), efficientnet.from_torchvision
    ),
    "vit_s_commfor": Form(
        "the community-forensics ViT-S", ("vit.patch_embed.proj.weight", "vit.head.weight"), vit.from_commfor
    ),
    "vit_b_transformers": Form(
        "a ViT-B/16 classifier of transformers",
        ("vit.embeddings.cls_token", "classifier.weight"),
        vit.from_transformers,
    ),
    "facenet": Form(
        "FaceNet of facenet-pytorch",
        ("block8.conv2d.weight", "last_linear.weight", "logits.weight"),
        _matched(_facenet, "FaceNet"),
    ),
    "arcface": Form(
        "ArcFace IR-SE50", ("input_layer.0.weight", "output_layer.3.weight"), _matched(ArcFace, "ArcFace IR-SE50")
    ),
    "face_parsing": Form(
        "the BiSeNet for face parsing", ("cp.resnet.conv1.weight", "conv_out.conv.conv.weight"), _kept
    ),
}
