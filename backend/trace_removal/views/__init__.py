"""What is left of a fake's traces, as pictures with one sentence each: spectrum, power, noise, attention.

Every view takes one or more pictures by label, such as `{"Before": face, "After": removed}`, and the references.
"""

from collections.abc import Mapping

import numpy as np

from backend.trace_removal.references import References
from backend.trace_removal.views import attention, noise, power, spectrum
from backend.trace_removal.views.drawing import View

__all__ = ["View", "views"]


def views(pictures: Mapping[str, np.ndarray], references: References, detector: str) -> list[View]:
    """Draw all four views.

    Args:
        pictures: By label, uint8 (S, S, 3) of the size that the references have.
        references: What real photographs and fakes look like on average.
        detector: Whose attention is shown.
    """
    return [
        spectrum.view(pictures, references),
        power.view(pictures, references),
        noise.view(pictures, references),
        attention.view(pictures, references, detector),
    ]
