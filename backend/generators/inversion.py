"""Inverters: a generator with the encoder that finds a face's code, in pictures of [0, 1], and which are here.

The embedded inverter ships with the app. e4e (Tov et al. 2021, arXiv 2102.02766) publishes encoder and StyleGAN2
decoder in one file; StyleGAN2 alone comes in the layout of rosinality's implementation.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backend import weights
from backend.errors import UserError
from backend.generators.e4e import CODE_SIZE, E4EEncoder, accumulate_feedback
from backend.generators.stylegan2 import Partial, StyleGAN2
from backend.runtime import device, frozen, load_once
from backend.settings import SETTINGS
from backend.weights import find_entry, load_entry, read_checkpoint

FFHQ_SIZE = 1024

ENCODER_OPTIONS = (
    "input_size",
    "width",
    "linear",
    "early",
    "detail",
)  # options of the encoder's entry that its network has

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
            return encode_faces(self.encoder, self.generator, self.latent_average, faces * 2 - 1, self.feedback)

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


def encode_faces(
    encoder: nn.Module, generator: StyleGAN2, latent_average: Tensor, faces: Tensor, feedback: Sequence[float]
) -> Tensor:
    """Return codes (N, rows, 512) of faces (N, 3, S, S) in [-1, 1], of the encoder's size; others as for `Inverter`."""

    def look(lacking: Tensor) -> Tensor:
        return cast(Tensor, encoder(faces, lacking) + latent_average)

    return look(accumulate_feedback(look, generator.synthesize, faces, feedback))


def load_embedded_inverter(name: str = "generator") -> Inverter:
    """Return the process's one copy of the embedded inverter, from the entries `name` and `encoder`."""
    return load_once(f"inverter {name}", lambda: _read_embedded_inverter(name))


def build_embedded_inverter(
    tensors: Mapping[str, Tensor],
    encoder_tensors: Mapping[str, Tensor],
    options: Mapping[str, Any],
    encoder_options: Mapping[str, Any],
    name: str,
) -> Inverter:
    """Build an inverter from the tensors of both files and the options of their registry entries."""
    generator = build_generator(tensors, options)
    shape = {name: encoder_options[name] for name in ENCODER_OPTIONS if name in encoder_options}
    encoder = E4EEncoder(options["size"], **shape)
    encoder.load_state_dict(encoder_tensors, strict=True)
    _freeze(encoder)
    average = tensors["latent_average"].reshape(-1, CODE_SIZE).float()
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
    if not isinstance(states, Mapping) or not isinstance(average, Tensor) or average.shape[-1] != CODE_SIZE:
        raise _other_layout(path, size or FFHQ_SIZE)
    size = size or _published_size(states)
    # Networks on the meta device take the file's tensors as they are: nothing is drawn, nothing is held twice.
    with torch.device("meta"):
        generator, encoder = StyleGAN2(size), E4EEncoder(size)
    try:
        generator.load_state_dict(_tensors_below(states, "decoder."), strict=True, assign=True)
        encoder.load_state_dict(_tensors_below(states, "encoder."), strict=True, assign=True)
        average = average.reshape(-1, CODE_SIZE).float().expand(generator.rows, -1)
    except RuntimeError:
        raise _other_layout(path, size) from None
    _freeze(generator, encoder)
    return Inverter(generator, encoder, average, name or path.stem, template, epsilon).to(device())


def _published_size(states: Mapping[str, Any]) -> int:
    """Return the size of a published generator from the number of its colour layers, one for each from 8 pixels."""
    layers = {key.split(".")[2] for key in states if key.startswith("decoder.to_rgbs.")}
    return 2 ** (len(layers) + 2) if layers else FFHQ_SIZE


def _read_embedded_inverter(name: str) -> Inverter:
    options, encoder_options = find_entry(name).options, find_entry("encoder").options
    return build_embedded_inverter(load_entry(name), load_entry("encoder"), options, encoder_options, name).to(device())


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
        "Expected are a state_dict with encoder.* and decoder.* and the latent_avg, as the e4e project publishes them.",
    )


ENCODER_PREFIX, DECODER_PREFIX, GENERATOR_PREFIX, AVERAGE_KEY = "encoder.", "decoder.", "g_ema.", "latent_avg"


def tensors_from_e4e(content: Mapping[str, Any]) -> dict[str, Tensor]:
    """Turn an e4e checkpoint for FFHQ into tensors `encoder.*`, `decoder.*` and `latent_avg` (18, 512).

    Raises:
        UserError: Something is missing, unknown, or of another shape.
    """
    states, average = content.get("state_dict"), content.get(AVERAGE_KEY)
    title = f"an e4e checkpoint of a {FFHQ_SIZE}-pixel generator"
    if not isinstance(states, Mapping) or not isinstance(average, Tensor) or average.shape[-1] != CODE_SIZE:
        raise UserError(f"The file is not {title}.", "Expected are a state_dict and the latent_avg.")
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
        raise UserError(f"The file is not {title}.", "Expected are g_ema and latent_avg.")
    tensors = {f"{GENERATOR_PREFIX}{key}": value for key, value in state.items()}
    _require_networks(tensors, {GENERATOR_PREFIX: lambda: StyleGAN2(FFHQ_SIZE)}, title)
    return {**tensors, AVERAGE_KEY: average}


def load_fetched_inverter(name: str) -> Inverter:
    """Return the process's one copy of a fetched e4e inverter.

    Raises:
        UserError: It was not fetched, or its file is damaged.
    """
    return load_once(f"inverter {name}", lambda: _read_fetched_inverter(name))


def _read_fetched_inverter(name: str) -> Inverter:
    return build_e4e_inverter(load_entry(name), name)


def build_e4e_inverter(tensors: Mapping[str, Tensor], name: str) -> Inverter:
    """Build an inverter from what `from_e4e` returned."""
    with torch.device("meta"):  # the networks take the file's tensors as they are: nothing is drawn or held twice
        generator, encoder = StyleGAN2(FFHQ_SIZE), E4EEncoder(FFHQ_SIZE)
    for network, prefix in ((generator, DECODER_PREFIX), (encoder, ENCODER_PREFIX)):
        network.load_state_dict(_published_tensors_below(tensors, prefix), strict=True, assign=True)
        network.float().eval().requires_grad_(False)
    average = tensors[AVERAGE_KEY].reshape(-1, CODE_SIZE).float().expand(generator.rows, -1)
    return Inverter(generator, encoder, average, name, "ffhq", FFHQ_EPSILON).to(device())


def _require_networks(
    tensors: Mapping[str, Tensor], networks: Mapping[str, Callable[[], nn.Module]], title: str
) -> None:
    """Make sure that tensors are those of networks, key by key and shape by shape."""
    for prefix, build in networks.items():
        with torch.device("meta"):
            expected = {key: value.shape for key, value in build().state_dict().items()}
        given = {key: value.shape for key, value in _published_tensors_below(tensors, prefix).items()}
        differing = sorted(key for key in expected.keys() | given.keys() if expected.get(key) != given.get(key))
        if differing:
            raise UserError(
                f"The file is not {title}: {prefix}{differing[0]} is missing, unknown or of another shape.",
                "Use the file as its authors publish it.",
            )


def _published_tensors_below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


EMBEDDED_GENERATOR = "generator"

E4E_FORM = "e4e"  # of entries of the Hub that hold an encoder with its generator


def available_generators() -> dict[str, str]:
    """Return titles by name: the embedded generator first, then those whose files were fetched."""
    if not (SETTINGS.weights_dir / "registry.toml").exists():
        return {}
    known = weights.read_entries()
    size = known[EMBEDDED_GENERATOR].options.get("size", 128) if EMBEDDED_GENERATOR in known else 128
    found = {EMBEDDED_GENERATOR: f"The small one that ships with the app ({size} pixels)"}
    for name, entry in known.items():
        if entry.profile == "hub" and entry.form == E4E_FORM and entry.path.is_file():
            found[name] = str(entry.options.get("title", name))
    return found


def default_generator() -> str:
    """Return the one to begin with: in the Hub profile the first that was fetched, else the embedded one."""
    fetched = [name for name in available_generators() if name != EMBEDDED_GENERATOR]
    return fetched[0] if SETTINGS.profile == "hub" and fetched else EMBEDDED_GENERATOR


def load_inverter(name: str) -> Inverter:
    """Return the process's one copy of a generator with its encoder.

    Raises:
        UserError: There is none of this name here.
    """
    if name == EMBEDDED_GENERATOR:
        return load_embedded_inverter()
    if name not in available_generators():
        raise UserError(
            f"There is no generator named {name} here.", f"Choose one of: {', '.join(available_generators())}."
        )

    return load_fetched_inverter(name)


VISIBILITY_PROBE = 0.003  # length of the change, in units of the codes: about a step of a search

VISIBILITY_FACES = 16

VISIBILITY_TRUNCATION = 0.7


@torch.no_grad()
def measure_row_visibility(inverter: Inverter, *, faces: int = VISIBILITY_FACES, seed: int = 0) -> tuple[float, ...]:
    """Return for every row the RMS change of a picture in [0, 1] per unit of a change of the row by random signs.

    The codes are inversions of generated faces: rows of a code that comes from z are less far apart, and those that
    show least in inversions show twice as much in it.

    Args:
        inverter: Draws and inverts.
        faces: Of how many generated faces the mean is taken.
        seed: Decides faces and signs.

    Returns:
        One number a row, to three significant digits: processors differ in the others.
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
