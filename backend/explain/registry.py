"""The table of explanation methods: a new one is a new file beside this one and one entry here."""

from backend.errors import UserError
from backend.explain.base import BLUR_SIDE, Fill, Method, Preset, blurred_face, neutral_colour, segment_means
from backend.explain.gradcam import gradcam
from backend.explain.gradcampp import gradcampp
from backend.explain.lime import lime
from backend.explain.rise import rise
from backend.explain.shap import shap
from backend.explain.sobol import sobol
from backend.explain.xrai import xrai


def _samples(quick: int, full: int, as_released: int | None = None) -> dict[Preset, int]:
    return {"quick": quick, "full": full, "as_released": full if as_released is None else as_released}


_MEANS = Fill(
    "each segment's mean colour", "each segment's mean colour", lambda x, labels, _, __: segment_means(x, labels)
)
_SHAP_BLUR = Fill(
    "the blurred face",
    "the blurred face",
    lambda face, _, __, as_released: blurred_face(face, BLUR_SIDE if as_released else None),
)
_SOBOL_BLUR = Fill(
    "the blurred face",
    "the detector's neutral colour",
    lambda face, _, detector, as_released: neutral_colour(face, detector) if as_released else blurred_face(face),
)
_NEUTRAL = Fill(
    "the detector's neutral colour",
    "the detector's neutral colour",
    lambda face, _, detector, __: neutral_colour(face, detector),
)

# Counts of Adv-XAI (2502.03957): 2000 samples, 2000 pictures, 32 points and 4000 masks.
METHODS: dict[str, Method] = {
    one.name: one
    for one in (
        Method(
            "lime",
            "LIME",
            "Hides random sets of segments and finds out how much each segment adds to the detector's answer.",
            signed=True,
            sample="sets of hidden segments",
            samples=_samples(500, 2000),
            passes=1,
            run=lime,
            fill=_MEANS,
            released_batch=10,
            doubled=True,
        ),
        Method(
            "shap",
            "SHAP",
            "Halves the face again and again, and shares the answer out among the parts by what each adds.",
            signed=True,
            sample="pictures",
            samples=_samples(500, 2000),
            passes=1,
            run=shap,
            fill=_SHAP_BLUR,
            released_batch=50,
        ),
        Method(
            "sobol",
            "SOBOL",
            "Fades 64 squares of the face in and out and measures how much of the answer's changes each is part of.",
            signed=False,
            sample="points of the design",
            samples=_samples(8, 32),
            passes=65,
            run=sobol,
            fill=_SOBOL_BLUR,
            released_batch=128,
        ),
        Method(
            "rise",
            "RISE",
            "Shows the face through thousands of random soft masks and averages those that the detector answers to.",
            signed=False,
            sample="masks",
            samples=_samples(1000, 4000),
            passes=1,
            run=rise,
            fill=_NEUTRAL,
            released_batch=128,
            doubled=True,
        ),
        Method(
            "gradcam",
            "Grad-CAM",
            "Reads from one layer of the network which places speak for the verdict.",
            signed=False,
            sample="passes",
            samples=_samples(1, 1),
            passes=3,
            run=gradcam,
        ),
        Method(
            "gradcampp",
            "Grad-CAM++",
            "As Grad-CAM, but weighs every place of the layer by itself, so that several small ones show.",
            signed=False,
            sample="passes",
            samples=_samples(1, 1),
            passes=3,
            run=gradcampp,
        ),
        Method(
            "xrai",
            "XRAI",
            "Fades the face in from black and from white, adds up the gradients, and ranks whole regions by them.",
            signed=False,
            sample="steps from each baseline",
            samples=_samples(25, 100),
            passes=6,
            run=xrai,
        ),
    )
}


def method_names() -> list[str]:
    """Return the methods' names."""
    return list(METHODS)


def get_method(name: str) -> Method:
    """Return one method.

    Raises:
        UserError: There is none of this name.
    """
    try:
        return METHODS[name]
    except KeyError:
        raise UserError(f"There is no method named {name}.", f"Choose one of: {', '.join(method_names())}.") from None
