"""Numbers on explanation maps as the papers print them, to stand beside ours."""

from backend.evaluate.tables import Cell, Column, Table

TOPS = (1, 2, 3)
_FAMILIES = {"DF": "Deepfakes", "F2F": "Face2Face", "FS": "FaceSwap", "NT": "NeuralTextures"}
_ORIGINAL, _ADVERSARIAL = "original", "adversarial"
# Adv-XAI-Deepfakes, table 1: accuracy before any attack, and after one on the top 1, 2 and 3 segments.
_BEFORE = {"DF": 0.978, "F2F": 0.977, "FS": 0.982, "NT": 0.924}
_ACCURACY = {
    ("DF", "LIME", _ORIGINAL): (0.735, 0.440, 0.245),
    ("DF", "LIME", _ADVERSARIAL): (0.673, 0.363, 0.205),
    ("F2F", "LIME", _ORIGINAL): (0.803, 0.633, 0.484),
    ("F2F", "LIME", _ADVERSARIAL): (0.784, 0.568, 0.392),
    ("FS", "LIME", _ORIGINAL): (0.864, 0.698, 0.559),
    ("FS", "LIME", _ADVERSARIAL): (0.790, 0.538, 0.378),
    ("NT", "LIME", _ORIGINAL): (0.579, 0.340, 0.197),
    ("NT", "LIME", _ADVERSARIAL): (0.411, 0.155, 0.056),
    ("DF", "SHAP", _ORIGINAL): (0.813, 0.609, 0.450),
    ("DF", "SHAP", _ADVERSARIAL): (0.706, 0.434, 0.249),
    ("DF", "SOBOL", _ORIGINAL): (0.750, 0.591, 0.490),
    ("DF", "SOBOL", _ADVERSARIAL): (0.696, 0.507, 0.383),
    ("DF", "RISE", _ORIGINAL): (0.877, 0.766, 0.686),
    ("DF", "RISE", _ADVERSARIAL): (0.769, 0.679, 0.618),
    ("NT", "RISE", _ORIGINAL): (0.783, 0.637, 0.513),
    ("NT", "RISE", _ADVERSARIAL): (0.515, 0.378, 0.322),
}
# Table 2.
_SUFFICIENCY = {
    ("DF", "LIME", _ORIGINAL): (0.195, 0.408, 0.539),
    ("DF", "LIME", _ADVERSARIAL): (0.252, 0.464, 0.564),
    ("NT", "LIME", _ORIGINAL): (0.233, 0.363, 0.431),
    ("NT", "LIME", _ADVERSARIAL): (0.326, 0.455, 0.501),
}
# Table 3: seconds and calls of the detector.
_COST = {
    ("LIME", _ORIGINAL): (4.4, 200),
    ("LIME", _ADVERSARIAL): (20.8, 2081),
    ("SHAP", _ORIGINAL): (2.6, 45),
    ("SHAP", _ADVERSARIAL): (18.7, 1928),
    ("SOBOL", _ORIGINAL): (0.4, 17),
    ("SOBOL", _ADVERSARIAL): (16.9, 1898),
    ("RISE", _ORIGINAL): (1.8, 32),
    ("RISE", _ADVERSARIAL): (18.8, 1913),
}
WHY_DIFFERS = (
    "It differs from ours because the paper explains one EfficientNetV2 of 224 pixels with five classes on four "
    "families of FaceForensics++ videos, counts a turn to another family as an error too, and attacks with NES whose "
    "steps of 1/255 are of normalised values, about 0.2 of a grey level, without a bound on their sum; ours are of "
    "pixels, and no pixel changes by more than 16 levels."
)


def accuracy_means() -> dict[tuple[str, str], dict[int, float]]:
    """Return the paper's accuracy by method and reference and by k, the mean of the families that are at hand."""
    found: dict[tuple[str, str], dict[int, float]] = {}
    for _, method, reference in _ACCURACY:
        own = [values for key, values in _ACCURACY.items() if key[1:] == (method, reference)]
        means = (sum(values) / len(values) for values in zip(*own, strict=True))
        found[method, reference] = dict(zip(TOPS, means, strict=True))
    return found


def at_hand() -> str:
    """Say of which families `accuracy_means` are the means."""
    methods = dict.fromkeys(method for _, method, _ in _ACCURACY)
    families = {
        name: dict.fromkeys(_FAMILIES[family] for family, method, _ in _ACCURACY if method == name) for name in methods
    }
    return "; ".join(f"{name}: {', '.join(found)}" for name, found in families.items())


def faithfulness() -> list[Table]:
    """Return tables 1 to 3 of Adv-XAI-Deepfakes (arXiv 2502.03957) as far as they are at hand."""
    named = (Column("family", "Family of fakes"), Column("method", "Method"), Column("reference", "Reference"))
    accuracy = tuple(Column(f"accuracy_{top}", f"Accuracy@{top}", "accuracy_at_k") for top in TOPS)
    sufficiency = tuple(Column(f"sufficiency_{top}", f"Sufficiency@{top}", "sufficiency_at_k") for top in TOPS)
    cost = (Column("seconds", "Seconds", digits=1), Column("calls", "Calls of the detector"))
    after = [(_FAMILIES[key[0]], *key[1:], _BEFORE[key[0]], *values) for key, values in _ACCURACY.items()]
    falls: list[tuple[Cell, ...]] = [(_FAMILIES[key[0]], *key[1:], *values) for key, values in _SUFFICIENCY.items()]
    costs: list[tuple[Cell, ...]] = [(*key, *values) for key, values in _COST.items()]
    swapped = (
        "The released program mixes up the rows of SOBOL and RISE when it is run for all methods at once; whether that "
        "happened to the printed table is not known."
    )
    return [
        Table(
            "published_accuracy",
            "Accuracy after the attack as printed in the paper",
            (*named, Column("accuracy_0", "Before"), *accuracy),
            tuple(after),
            f"Adv-XAI-Deepfakes, table 1, in part. {WHY_DIFFERS} {swapped}",
        ),
        Table(
            "published_sufficiency",
            "Sufficiency as printed in the paper",
            (*named, *sufficiency),
            tuple(falls),
            f"Adv-XAI-Deepfakes, table 2, in part. {WHY_DIFFERS}",
        ),
        Table(
            "published_cost",
            "Cost of one map as printed in the paper",
            (*named[1:], *cost),
            tuple(costs),
            "Adv-XAI-Deepfakes, table 3, on a GPU. Its calls of the attack are of one picture each, about 23 "
            "iterations of 81; ours go in batches.",
        ),
    ]
