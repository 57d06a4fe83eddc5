"""How long a step of the search is in each row of a code.

Artifact-Eraser, section 3.3, takes equal steps in all rows. Most of what they change then is the layout of the face, to
which a generator reacts far more than to its detail: here every row changes the picture as far as every other.
"""

import torch
from torch import Tensor

from backend.generators.inversion import Inverter

LONGEST = 20.0  # epsilons a step in a row that shows hardly at all


def step_lengths(inverter: Inverter, opened: list[int], lengths: str) -> Tensor:
    """Return the step of every open row in units of epsilon, (n,).

    The further a row changes the picture (`visibility.measure`), the shorter its step: random steps of these lengths
    change it as far in every row, and in all rows together as far as equal ones. Measured: the model card.

    Args:
        inverter: Generator and encoder; where its rows were not measured, all steps are equal.
        opened: The rows that the levels open.
        lengths: "visible", or "equal" for the paper's.
    """
    visibility = torch.tensor(inverter.visibility)[opened] if inverter.visibility else torch.zeros(0)
    if lengths == "equal" or not visibility.any():
        return torch.ones(len(opened))
    return (visibility.square().mean().sqrt() / visibility).clamp(max=LONGEST)
