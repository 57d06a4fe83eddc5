"""Attacked fakes among the training pictures: the strong defence of TR-Net's paper (arXiv 2203.11433, section 5.3)."""

from dataclasses import replace

import numpy as np
import torch

from backend.detectors import registry
from backend.errors import UserError
from backend.progress import Job, Step, within
from backend.trace_removal.attacks import WHITE_BOX, named
from backend.training.labelled import ATTACKED, REAL, Examples

BATCH = 16
MOST = 4000  # fakes that are attacked


def with_attacked(examples: Examples, attack: str, *, seed: int, most: int = MOST) -> Job[Examples]:
    """Add fakes after an attack to training pictures; each keeps the photograph that it was made from.

    They are made in memory and go nowhere else.

    Args:
        examples: Training pictures.
        attack: Name of the attack.
        seed: Draws the fakes, and is the attack's.
        most: How many are attacked at most.

    Raises:
        UserError: There is no such attack, its weights are missing, or there are no fakes.
    """
    chosen = named(attack)
    if not chosen.available():
        raise UserError(f"{chosen.title} is not trained yet.", "Train it first, with --install.")
    fakes = np.flatnonzero(~np.isin(examples.kinds, [REAL, ATTACKED]))
    if not len(fakes):
        raise UserError("There are no fakes to attack.", "Name folders of fakes with --fakes DIR.")
    drawn = np.sort(np.random.default_rng(seed).permutation(fakes)[:most])
    white_box = registry.load(WHITE_BOX)
    made, parts = [], np.array_split(drawn, -(-len(drawn) // BATCH))
    for number, part in enumerate(parts):
        pictures = examples.pictures[torch.from_numpy(part)].float() / 255
        job = chosen.run(pictures, white_box, seed=seed * 1_000_003 + number)
        result = yield from within(job, number, len(parts), f"{chosen.title}: ")
        made.append((result.images.clamp(0, 1) * 255).round().byte().cpu())
        yield Step(number + 1, len(parts), f"{chosen.title}: {sum(map(len, made))} of {len(drawn)} fakes")
    kinds = np.concatenate([examples.kinds, np.full(len(drawn), ATTACKED)])
    likes = (examples.origins, examples.sources)
    origins, sources = (values if values is None else np.concatenate([values, values[drawn]]) for values in likes)
    pictures = torch.cat([examples.pictures, *made])
    return replace(examples, pictures=pictures, kinds=kinds, origins=origins, sources=sources)
