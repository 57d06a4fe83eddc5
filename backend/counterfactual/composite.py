"""How an edited code becomes the picture that is judged and saved.

`reconstruction` is the generator's own drawing, as in Artifact-Eraser: it mixes what inversion loses with
what the search changes. `transfer` adds to the photo's face only what the search changed, so that a face the
generator draws badly keeps its pixels.
"""

from typing import Literal

from torch import Tensor

from backend.views import resized

Composite = Literal["transfer", "reconstruction"]
COMPOSITES: tuple[Composite, ...] = ("transfer", "reconstruction")


def compose(kind: Composite, original: Tensor, drawn: Tensor, drawn_start: Tensor) -> Tensor:
    """Return the counterfactual picture before it is rounded to 8 bits.

    Args:
        kind: `transfer`: clamp(original + drawn - drawn_start); `reconstruction`: clamp(drawn).
        original: The face (N, 3, H, W) in [0, 1].
        drawn: What the generator draws from the edited codes, (N, 3, S, S), unclamped.
        drawn_start: What it drew from the codes before the search, (N, 3, S, S), unclamped.

    Returns:
        (N, 3, H, W) in [0, 1].
    """
    size = original.shape[-1]
    picture = resized(drawn, size) if kind == "reconstruction" else original + resized(drawn - drawn_start, size)
    return picture.clamp(0, 1)


def as_saved(pictures: Tensor) -> Tensor:
    """Round pictures in [0, 1] to the 8 bits in which they are saved; gradients pass as if they were not rounded.

    A detector then judges exactly the saved pixels while the search still sees a slope.
    """
    rounded = (pictures.detach() * 255).round() / 255
    # Only the first term has a value: the difference is zero to the last bit.
    return rounded + (pictures - pictures.detach())
