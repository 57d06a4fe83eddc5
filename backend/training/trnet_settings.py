"""Settings of a training of TR-Net."""

from dataclasses import dataclass

from backend.trace_removal import losses
from backend.trace_removal.discriminators import Norm, SpatialForm, SpectralForm
from backend.trace_removal.network import Statistics


@dataclass(frozen=True)
class TRNetSettings:
    """Settings of one run; `settings/trnet.toml` explains them."""

    size: int
    width: float
    discriminator_width: float
    statistics: Statistics
    residual: bool
    bound: float
    grain: float
    by_contrast: bool
    norm: Norm
    spectral_form: SpectralForm
    spatial_form: SpatialForm
    adversarial: losses.Adversarial
    similarity: losses.Similarity
    perceptual: str
    similarity_every: int
    profile: losses.Profile
    weight_adversarial: float
    weight_similarity: float
    weight_profile: float
    weight_source: float
    weight_untouched: float
    weight_named: float
    disturbed: float
    rounded: bool
    saved: bool
    penalty: float
    penalty_every: int
    psnr_floor: float
    ssim_floor: float
    weight_floors: float
    identity_steps: int
    ahead: int
    batch_ahead: int
    lr_ahead: float
    discriminator_every: int
    steps: int
    batch: int
    lr_generator: float
    lr_discriminator: float
    decay_share: float
    average_decay: float
    kept_share: float
    jpeg_share: float
    seed: int
    bfloat16: bool
    initial: str = ""  # weights that the run started from, where it did
