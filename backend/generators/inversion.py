"""Inverters: a generator with the encoder that finds a face's code; which ones are installed, and how they are read.

The embedded inverter ships with the app. e4e (Tov et al. 2021, arXiv 2102.02766) publishes encoder and StyleGAN2
decoder in one file; StyleGAN2 alone comes in the layout of rosinality's implementation.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backend import weights
from backend.errors import UserError
from backend.generators.e4e import CODE_SIZE, E4EEncoder, accumulate_feedback
from backend.generators.stylegan2 import FeatureOffset, Partial, StyleGAN2
from backend.runtime import device, frozen, load_once
from backend.settings import SETTINGS
from backend.weights import find_entry, load_entry, read_checkpoint

FFHQ_SIZE = 1024
FFHQ_EPSILON = 0.001  # the step that the paper gives for FF++ and DFDC (Artifact-Eraser, section 4.1)
ENCODER_OPTIONS = ("input_size", "width", "linear", "early", "detail")  # of the encoder's entry, for its network
ENCODER_PREFIX, DECODER_PREFIX, GENERATOR_PREFIX, AVERAGE_KEY = "encoder.", "decoder.", "g_ema.", "latent_avg"


@dataclass(eq=False, repr=False)
class Inverter:
    """Faces to W+ codes and back.

    Args:
        generator: Draws faces; its registered noise maps are used, so the same codes give the same face.
        encoder: Turns faces into codes, up to the average.
        latent_average: (rows, 512) or (1, 512), what the encoder's codes are relative to.
        name: Name of the registry entry or of the file, for results.
        template: Position of the face that the generator knows, `embedded` or `ffhq` (see `backend.alignment`).
        epsilon: Step of a latent search that suits the generator, in units of the codes.
        feedback: For each further look of the encoder, the factor on what the last drawing lacked; e4e looks once.
        visibility: Change of a picture per change of each row of its code (see `measure_row_visibility`); empty where
            it was not measured.
    """

    generator: StyleGAN2
    encoder: E4EEncoder
    latent_average: Tensor
    name: str
    template: str
    epsilon: float
    feedback: Sequence[float] = ()
    visibility: Sequence[float] = ()

    def __post_init__(self) -> None:
        self.latent_average = self.latent_average.expand(self.generator.rows, -1)

    @property
    def size(self) -> int:
        """Side of the faces in pixels."""
        return self.generator.size

    @property
    def entries(self) -> tuple[str, ...]:
        """Return the names of its registry entries; an entry of the Hub holds both networks."""
        return (self.name, "encoder") if self.template == "embedded" else (self.name,)

    @property
    def rows(self) -> int:
        """Number of rows of a code (12 at 128 pixels, 18 at 1024)."""
        return self.generator.rows

    def modules(self) -> tuple[nn.Module, ...]:
        return self.generator, self.encoder

    @torch.no_grad()
    def invert(self, faces: Tensor) -> Tensor:
        """Return codes (N, rows, 512) of aligned faces (N, 3, H, W) in [0, 1]."""
        size = self.encoder.input_size
        if faces.shape[-2:] != (size, size):
            faces = F.interpolate(faces, size=(size, size), mode="area")  # as in training
        with frozen(self.encoder):
            return encode_faces(self.encoder, self.generator, self.latent_average, faces * 2 - 1, self.feedback)

    def synthesize(
        self,
        codes: Tensor,
        *,
        resolution: int | None = None,
        clamp: bool = True,
        offset: FeatureOffset | None = None,
    ) -> Tensor:
        """Draw faces (N, 3, size, size) in [0, 1] from codes (N, rows, 512), and what the faces have beside them.

        `resolution` stops at this size in pixels; `clamp` cuts values off at 0 and 1, which would spoil differences.
        """
        return _to_unit(self.generator.synthesize(codes, resolution=resolution, offset=offset), clamp=clamp)

    def begin(
        self, codes: Tensor, row: int, *, dtype: torch.dtype | None = None, offset: FeatureOffset | None = None
    ) -> Partial:
        """Draw what does not depend on the rows from `row` on, without gradients.

        `dtype` is the type of the feature maps, here and in `synthesize_from`, which also adds `offset`.
        """
        with torch.no_grad():
            return self.generator.prefix(codes, row, dtype=dtype, offset=offset)

    def synthesize_from(
        self,
        partial: Partial,
        codes: Tensor | Sequence[Tensor],
        *,
        resolution: int | None = None,
        clamp: bool = True,
    ) -> Tensor:
        """Finish what `begin` began; equals `synthesize(codes)`, but gradients stop at the row of `begin`.

        Codes may be one tensor (N, 512) per row, so that gradients are taken for some rows only.
        """
        return _to_unit(self.generator.resume(partial, codes, resolution=resolution), clamp=clamp)

    def with_generator(self, generator: StyleGAN2) -> "Inverter":
        """Return an inverter with another generator of the same kind; everything else is shared."""
        other = copy.copy(self)
        other.generator = generator
        return other

    def to(self, target: torch.device) -> "Inverter":
        self.generator.to(target)
        self.encoder.to(target)
        self.latent_average = self.latent_average.to(target)
        return self


def encode_faces(
    encoder: nn.Module, generator: StyleGAN2, latent_average: Tensor, faces: Tensor, feedback: Sequence[float]
) -> Tensor:
    """Return codes (N, rows, 512) of faces (N, 3, S, S) in [-1, 1] of the encoder's size; see `Inverter`."""

    def look(lacking: Tensor) -> Tensor:
        return cast(Tensor, encoder(faces, lacking) + latent_average)

    return look(accumulate_feedback(look, generator.synthesize, faces, feedback))


def load_embedded_inverter(name: str = "generator") -> Inverter:
    """Return the process's one copy of the embedded inverter, from the entries `name` and `encoder`."""

    def read() -> Inverter:
        options, encoder_options = find_entry(name).options, find_entry("encoder").options
        inverter = build_embedded_inverter(load_entry(name), load_entry("encoder"), options, encoder_options, name)
        return inverter.to(device())

    return load_once(f"inverter {name}", read)


def build_embedded_inverter(
    tensors: Mapping[str, Tensor],
    encoder_tensors: Mapping[str, Tensor],
    options: Mapping[str, Any],
    encoder_options: Mapping[str, Any],
    name: str,
) -> Inverter:
    """Build an inverter from the tensors of both files and the options of their registry entries."""
    generator = build_generator(tensors, options)
    shape = {key: encoder_options[key] for key in ENCODER_OPTIONS if key in encoder_options}
    encoder = E4EEncoder(options["size"], **shape)
    encoder.load_state_dict(encoder_tensors, strict=True)
    _freeze(encoder)
    average = tensors["latent_average"].reshape(-1, CODE_SIZE).float()
    extras = {key: encoder_options[key] for key in ("feedback", "visibility") if key in encoder_options}
    return Inverter(generator, encoder, average, name, options["template"], options["epsilon"], **extras)


def build_generator(tensors: Mapping[str, Tensor], options: Mapping[str, Any]) -> StyleGAN2:
    """Build the frozen generator of a registry entry from the tensors of its file."""
    table = {int(size): int(channels) for size, channels in options["channels"].items()}
    generator = StyleGAN2(options["size"], mapping_layers=options["mapping_layers"], channels=table)
    generator.load_state_dict(_tensors_below(tensors, "generator."), strict=True)
    _freeze(generator)
    return generator


def read_e4e_inverter(
    path: Path,
    *,
    size: int | None = None,
    template: str = "ffhq",
    epsilon: float = FFHQ_EPSILON,
    name: str | None = None,
) -> Inverter:
    """Read an e4e checkpoint in its published layout: `state_dict` with `encoder.*` and `decoder.*`, `latent_avg`.

    The size of the generator in pixels is by default that of the file, and so is the name; the rest as in `Inverter`.

    Raises:
        UserError: The file is damaged, carries code, or holds another kind of model.
    """
    content = read_checkpoint(path)
    states, average = content.get("state_dict"), content.get(AVERAGE_KEY)
    if not isinstance(states, Mapping) or not isinstance(average, Tensor) or average.shape[-1] != CODE_SIZE:
        raise _other_layout(path, size or FFHQ_SIZE)
    size = size or _published_size(states)
    try:
        inverter = _assemble_e4e(states, average, size, name or path.stem, template, epsilon)
    except RuntimeError:
        raise _other_layout(path, size) from None
    return inverter.to(device())


def _assemble_e4e(
    states: Mapping[str, Tensor], average: Tensor, size: int, name: str, template: str, epsilon: float
) -> Inverter:
    with torch.device("meta"):  # the networks take the file's tensors as they are: nothing is drawn or held twice
        generator, encoder = StyleGAN2(size), E4EEncoder(size)
    generator.load_state_dict(_tensors_below(states, DECODER_PREFIX), strict=True, assign=True)
    encoder.load_state_dict(_tensors_below(states, ENCODER_PREFIX), strict=True, assign=True)
    _freeze(generator, encoder)
    return Inverter(generator, encoder, average.reshape(-1, CODE_SIZE).float(), name, template, epsilon)


def _published_size(states: Mapping[str, Any]) -> int:
    """Return the size of a published generator from the number of its colour layers: one per size from 8 pixels on."""
    layers = {key.split(".")[2] for key in states if key.startswith("decoder.to_rgbs.")}
    return 2 ** (len(layers) + 2) if layers else FFHQ_SIZE


def _freeze(*modules: nn.Module) -> None:
    for module in modules:
        module.float().eval().requires_grad_(False)


def _tensors_below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def _to_unit(pictures: Tensor, *, clamp: bool) -> Tensor:
    pictures = (pictures + 1) / 2
    return pictures.clamp(0, 1) if clamp else pictures


def _other_layout(path: Path, size: int) -> UserError:
    return UserError(
        f"{path.name} is not an e4e checkpoint of a {size}-pixel generator.",
        "It needs a state_dict with encoder.* and decoder.*, and the latent_avg, as the e4e project publishes them.",
    )


def tensors_from_e4e(content: Mapping[str, Any]) -> dict[str, Tensor]:
    """Turn an e4e checkpoint for FFHQ into tensors `encoder.*`, `decoder.*` and `latent_avg` (18, 512).

    Raises:
        UserError: Something is missing, unknown, or of another shape.
    """
    states, average = content.get("state_dict"), content.get(AVERAGE_KEY)
    title = f"an e4e checkpoint of a {FFHQ_SIZE}-pixel generator"
    if not isinstance(states, Mapping) or not isinstance(average, Tensor) or average.shape[-1] != CODE_SIZE:
        raise UserError(f"The file is not {title}.", "It needs a state_dict and the latent_avg.")
    tensors = {key: value for key, value in states.items() if key.startswith((ENCODER_PREFIX, DECODER_PREFIX))}
    _require_networks(
        tensors, {ENCODER_PREFIX: lambda: E4EEncoder(FFHQ_SIZE), DECODER_PREFIX: lambda: StyleGAN2(FFHQ_SIZE)}, title
    )
    return {**tensors, AVERAGE_KEY: average}


def tensors_from_stylegan2(content: Mapping[str, Any]) -> dict[str, Tensor]:
    """Turn a StyleGAN2 checkpoint for FFHQ into tensors `g_ema.*` and `latent_avg` (512,).

    Raises:
        UserError: Something is missing, unknown, or of another shape.
    """
    state, average = content.get("g_ema"), content.get(AVERAGE_KEY)
    title = f"a StyleGAN2 checkpoint of {FFHQ_SIZE} pixels"
    if not isinstance(state, Mapping) or not isinstance(average, Tensor):
        raise UserError(f"The file is not {title}.", "It needs g_ema and latent_avg.")
    tensors = {f"{GENERATOR_PREFIX}{key}": value for key, value in state.items()}
    _require_networks(tensors, {GENERATOR_PREFIX: lambda: StyleGAN2(FFHQ_SIZE)}, title)
    return {**tensors, AVERAGE_KEY: average}


def load_fetched_inverter(name: str) -> Inverter:
    """Return the process's one copy of a fetched e4e inverter.

    Raises:
        UserError: It was not fetched, or its file is damaged.
    """
    return load_once(f"inverter {name}", lambda: build_e4e_inverter(load_entry(name), name))


def build_e4e_inverter(tensors: Mapping[str, Tensor], name: str) -> Inverter:
    """Build an inverter from the result of `tensors_from_e4e`."""
    return _assemble_e4e(tensors, tensors[AVERAGE_KEY], FFHQ_SIZE, name, "ffhq", FFHQ_EPSILON).to(device())


def _require_networks(
    tensors: Mapping[str, Tensor], networks: Mapping[str, Callable[[], nn.Module]], title: str
) -> None:
    """Raise a UserError unless tensors match networks in every key and shape."""
    for prefix, build in networks.items():
        with torch.device("meta"):
            expected = {key: value.shape for key, value in build().state_dict().items()}
        given = {key: value.shape for key, value in _tensors_below(tensors, prefix).items()}
        differing = sorted(key for key in expected.keys() | given.keys() if expected.get(key) != given.get(key))
        if differing:
            raise UserError(
                f"The file is not {title}: {prefix}{differing[0]} is missing, unknown or of another shape.",
                "Use the file as published by its authors.",
            )


EMBEDDED_GENERATOR = "generator"
E4E_FORM = "e4e"  # of entries of the Hub that hold an encoder with its generator


def available_generators() -> dict[str, str]:
    """Return titles by name: the embedded generator first, then those whose files were fetched."""
    if not (SETTINGS.weights_dir / "registry.toml").exists():
        return {}
    known = weights.read_entries()
    size = known[EMBEDDED_GENERATOR].options.get("size", 128) if EMBEDDED_GENERATOR in known else 128
    titles = {EMBEDDED_GENERATOR: f"The small one that ships with the app ({size} pixels)"}
    for name, entry in known.items():
        if entry.profile == "hub" and entry.form == E4E_FORM and entry.path.is_file():
            titles[name] = str(entry.options.get("title", name))
    return titles


def default_generator() -> str:
    """Return the first fetched generator in the Hub profile, else the embedded one."""
    fetched = [name for name in available_generators() if name != EMBEDDED_GENERATOR]
    return fetched[0] if SETTINGS.profile == "hub" and fetched else EMBEDDED_GENERATOR


def load_inverter(name: str) -> Inverter:
    """Return the process's one copy of a generator with its encoder.

    Raises:
        UserError: No generator of this name is installed.
    """
    if name == EMBEDDED_GENERATOR:
        return load_embedded_inverter()
    if name not in (known := available_generators()):
        raise UserError(f"There is no generator named {name} here.", f"Choose one of: {', '.join(known)}.")
    return load_fetched_inverter(name)


VISIBILITY_PROBE = 0.003  # length of the change, in units of the codes: about a step of a search
VISIBILITY_TRUNCATION = 0.7


@torch.no_grad()
def measure_row_visibility(inverter: Inverter, *, faces: int = 16, seed: int = 0) -> tuple[float, ...]:
    """Return for each row the RMS change of a picture in [0, 1] per unit of a change of the row by random signs.

    The codes are inversions of generated faces: in a code that comes from z, the rows differ less, and those that show
    least in inversions show twice as much.

    The mean is over `faces` of them; `seed` decides faces and signs. Numbers have three significant digits: processors
    differ in the others.
    """
    average = inverter.latent_average
    randomness = torch.Generator().manual_seed(seed)
    z = torch.randn(faces, inverter.generator.style_dim, generator=randomness).to(average.device)
    signs = torch.randn(faces, average.shape[-1], generator=randomness).sign().to(average.device)
    drawn = inverter.synthesize(average + VISIBILITY_TRUNCATION * (inverter.generator.mapping(z)[:, None] - average))
    codes = inverter.invert(drawn)
    before = inverter.synthesize(codes, clamp=False)
    changes = []
    for row in range(inverter.rows):
        changed = codes.clone()
        changed[:, row] += VISIBILITY_PROBE * signs
        difference = inverter.synthesize(changed, clamp=False) - before
        changes.append(float(difference.square().flatten(1).mean(1).sqrt().mean()) / VISIBILITY_PROBE)
    return tuple(float(f"{change:.3g}") for change in changes)
