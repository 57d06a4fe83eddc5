"""How far a picture changes when one row of its code does: the generator's sensitivity, row by row.

Rows of StyleGAN2 differ by an order of magnitude. In the embedded generator the same step in a row that lays out the
face changes the picture forty times as much as one in a row that colours it; path length regularisation evens out
directions of w, not the rows of W+ (Karras et al. 2020, section 3.2).
"""

import torch

from backend.generators.inversion import Inverter

PROBE = 0.003  # length of the change, in units of the codes: about a step of a search
FACES = 16
TRUNCATION = 0.7


@torch.no_grad()
def measure(inverter: Inverter, *, faces: int = FACES, seed: int = 0) -> tuple[float, ...]:
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
    drawn = inverter.synthesize(average + TRUNCATION * (inverter.generator.mapping(z)[:, None] - average))
    codes = inverter.invert(drawn)
    before = inverter.synthesize(codes, clamp=False)
    changes = []
    for row in range(inverter.rows):
        changed = codes.clone()
        changed[:, row] += PROBE * signs
        difference = inverter.synthesize(changed, clamp=False) - before
        changes.append(float(difference.square().flatten(1).mean(1).sqrt().mean()) / PROBE)
    return tuple(float(f"{change:.3g}") for change in changes)
