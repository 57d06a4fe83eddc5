"""A generator and the encoder that inverts faces into it, in pictures of [0, 1]."""

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backend.errors import UserError
from backend.generators.e4e import CODE, E4EEncoder, lacked
from backend.generators.stylegan2 import Partial, StyleGAN2
from backend.runtime import device, frozen, loaded
from backend.weights import entry, load_entry, read_checkpoint

FFHQ_SIZE = 1024
SHAPE = ("input_size", "width", "linear", "early", "detail")  # options of the encoder's entry that its network has
FFHQ_EPSILON = 0.001  # the step that the paper gives for FF++ and DFDC (Artifact-Eraser, section 4.1)


class Inverter:
    """Faces to W+ codes and back.

    Args:
        generator: Draws faces; its registered noise maps are used, so the same codes give the same face.
        encoder: Turns faces into codes, up to the average.
        latent_average: (rows, 512) or (1, 512), what the encoder's codes are relative to.
        name: Name of the registry entry or of the file, for results.
        template: Position of the face that the generator knows, `embedded` or `ffhq` (see `backend.alignment`).
        epsilon: Step of a latent search that suits the generator, in units of the codes.
        feedback: One number for each further look of the encoder: how often it is shown in addition what the
            drawing before lacks. e4e looks once.
        visibility: How far a picture changes when a row of its code does, one number a row (see `visibility.measure`);
            empty where it was not measured.
    """

    def __init__(
        self,
        generator: StyleGAN2,
        encoder: E4EEncoder,
        latent_average: Tensor,
        name: str,
        template: str,
        epsilon: float,
        feedback: Sequence[float] = (),
        visibility: Sequence[float] = (),
    ) -> None:
        self.generator = generator
        self.encoder = encoder
        self.latent_average = latent_average.expand(generator.rows, -1)
        self.name = name
        self.template = template
        self.epsilon = epsilon
        self.feedback = feedback
        self.visibility = visibility

    @property
    def size(self) -> int:
        """Side of the faces in pixels."""
        return self.generator.size

    @property
    def entries(self) -> tuple[str, ...]:
        """Return the registry's entries that it was made from; those of the Hub hold both networks."""
        return (self.name, "encoder") if self.template == "embedded" else (self.name,)

    @property
    def rows(self) -> int:
        """Number of rows of a code (12 at 128 pixels, 18 at 1024)."""
        return self.generator.rows

    def modules(self) -> tuple[nn.Module, ...]:
        """Return the networks inside."""
        return self.generator, self.encoder

    @torch.no_grad()
    def invert(self, faces: Tensor) -> Tensor:
        """Return codes (N, rows, 512) of aligned faces (N, 3, H, W) in [0, 1]."""
        size = self.encoder.input_size
        if faces.shape[-2:] != (size, size):
            faces = F.interpolate(faces, size=(size, size), mode="area")  # as in training
        with frozen(self.encoder):
            return encode(self.encoder, self.generator, self.latent_average, faces * 2 - 1, self.feedback)

    def synthesize(self, codes: Tensor, *, resolution: int | None = None, clamp: bool = True) -> Tensor:
        """Draw faces (N, 3, size, size) in [0, 1] from codes (N, rows, 512).

        Args:
            codes: W+ codes.
            resolution: Stop at this size in pixels.
            clamp: Cut off what the generator draws outside [0, 1]; a difference of two faces needs it uncut.
        """
        return _to_unit(self.generator.synthesize(codes, resolution=resolution), clamp=clamp)

    def begin(self, codes: Tensor, row: int, *, dtype: torch.dtype | None = None) -> Partial:
        """Draw what does not depend on the rows from `row` on, once and without gradients.

        With a `dtype`, the feature maps are of this type, here and in what `synthesize_from` adds.
        """
        with torch.no_grad():
            return self.generator.prefix(codes, row, dtype=dtype)

    def synthesize_from(
        self,
        partial: Partial,
        codes: Tensor | Sequence[Tensor],
        *,
        resolution: int | None = None,
        clamp: bool = True,
    ) -> Tensor:
        """Finish what `begin` began; equals `synthesize(codes)`, and gradients stop at the row of `begin`.

        Codes may come as one tensor (N, 512) a row, so that gradients are taken for some rows only.
        """
        return _to_unit(self.generator.resume(partial, codes, resolution=resolution), clamp=clamp)

    def with_generator(self, generator: StyleGAN2) -> "Inverter":
        """Return an inverter that draws with another generator of the same kind; everything else is shared."""
        other = copy.copy(self)
        other.generator = generator
        return other

    def to(self, target: torch.device) -> "Inverter":
        """Move everything to a device and return the inverter itself."""
        self.generator.to(target)
        self.encoder.to(target)
        self.latent_average = self.latent_average.to(target)
        return self


def encode(
    encoder: nn.Module, generator: StyleGAN2, latent_average: Tensor, faces: Tensor, feedback: Sequence[float]
) -> Tensor:
    """Return codes (N, rows, 512) of faces (N, 3, S, S) in [-1, 1], of the encoder's size; others as for `Inverter`."""

    def look(lacking: Tensor) -> Tensor:
        return cast(Tensor, encoder(faces, lacking) + latent_average)

    return look(lacked(look, generator.synthesize, faces, feedback))


def load(name: str = "generator") -> Inverter:
    """Return the process's one copy of the embedded inverter, from the entries `name` and `encoder`."""
    return loaded(f"inverter {name}", lambda: _load(name))


def from_tensors(
    tensors: Mapping[str, Tensor],
    encoder_tensors: Mapping[str, Tensor],
    options: Mapping[str, Any],
    encoder_options: Mapping[str, Any],
    name: str,
) -> Inverter:
    """Build an inverter from the tensors of both files and the options of their registry entries."""
    generator = generator_from(tensors, options)
    shape = {name: encoder_options[name] for name in SHAPE if name in encoder_options}
    encoder = E4EEncoder(options["size"], **shape)
    encoder.load_state_dict(encoder_tensors, strict=True)
    _freeze(encoder)
    average = tensors["latent_average"].reshape(-1, CODE).float()
    feedback = encoder_options.get("feedback", ())
    return Inverter(
        generator,
        encoder,
        average,
        name,
        options["template"],
        options["epsilon"],
        feedback,
        encoder_options.get("visibility", ()),
    )


def generator_from(tensors: Mapping[str, Tensor], options: Mapping[str, Any]) -> StyleGAN2:
    """Build the frozen generator of a registry entry from the tensors of its file."""
    table = {int(size): int(channels) for size, channels in options["channels"].items()}
    generator = StyleGAN2(options["size"], mapping_layers=options["mapping_layers"], channels=table)
    generator.load_state_dict(_below(tensors, "generator."), strict=True)
    _freeze(generator)
    return generator


def from_official(
    path: Path,
    *,
    size: int | None = None,
    template: str = "ffhq",
    epsilon: float = FFHQ_EPSILON,
    name: str | None = None,
) -> Inverter:
    """Read an e4e checkpoint in its published layout: `state_dict` with `encoder.*` and `decoder.*`, `latent_avg`.

    Args:
        path: The file.
        size: Size of the generator in pixels, None takes that of the file.
        template: Position of the face that it knows.
        epsilon: Step of a latent search.
        name: Name for results, by default that of the file.

    Raises:
        UserError: The file is damaged, carries code, or holds another kind of model.
    """
    content = read_checkpoint(path)
    states, average = content.get("state_dict"), content.get("latent_avg")
    if not isinstance(states, Mapping) or not isinstance(average, Tensor) or average.shape[-1] != CODE:
        raise _other_layout(path, size or FFHQ_SIZE)
    size = size or _size_of(states)
    # Networks on the meta device take the file's tensors as they are: nothing is drawn, nothing is held twice.
    with torch.device("meta"):
        generator, encoder = StyleGAN2(size), E4EEncoder(size)
    try:
        generator.load_state_dict(_below(states, "decoder."), strict=True, assign=True)
        encoder.load_state_dict(_below(states, "encoder."), strict=True, assign=True)
        average = average.reshape(-1, CODE).float().expand(generator.rows, -1)
    except RuntimeError:
        raise _other_layout(path, size) from None
    _freeze(generator, encoder)
    return Inverter(generator, encoder, average, name or path.stem, template, epsilon).to(device())


def _size_of(states: Mapping[str, Any]) -> int:
    """Return the size of a published generator from the number of its colour layers, one for each from 8 pixels."""
    layers = {key.split(".")[2] for key in states if key.startswith("decoder.to_rgbs.")}
    return 2 ** (len(layers) + 2) if layers else FFHQ_SIZE


def _load(name: str) -> Inverter:
    options, encoder_options = entry(name).options, entry("encoder").options
    return from_tensors(load_entry(name), load_entry("encoder"), options, encoder_options, name).to(device())


def _freeze(*modules: nn.Module) -> None:
    for module in modules:
        module.float().eval().requires_grad_(False)


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def _to_unit(pictures: Tensor, *, clamp: bool) -> Tensor:
    pictures = (pictures + 1) / 2
    return pictures.clamp(0, 1) if clamp else pictures


def _other_layout(path: Path, size: int) -> UserError:
    return UserError(
        f"{path.name} is not an e4e checkpoint of a {size}-pixel generator.",
        "Expected are a state_dict with encoder.* and decoder.* and the latent_avg, as the e4e project publishes them.",
    )
