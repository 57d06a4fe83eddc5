"""Numbers as the papers print them, to be shown beside ours, and why the two differ."""

from backend.evaluate.tables import Cell, Column, Table

_TRANSFER_DETECTORS = ("EfficientNet-B4", "Xception", "MAT", "RECCE")

# Artifact-Eraser, table 2: rows are attacked detectors, columns are judges, percent.
_CELEB_DF = {
    "Counterfactual": (
        (98.9, 85.7, 75.8, 54.0),
        (86.1, 99.2, 73.9, 73.0),
        (80.6, 82.0, 90.6, 70.0),
        (89.6, 95.0, 90.0, 98.8),
    ),
    "FGSM": ((99.2, 17.2, 30.3, 12.3), (4.36, 99.3, 7.15, 26.5), (18.0, 21.4, 99.8, 32.9), (9.74, 26.0, 26.7, 99.5)),
    "PGD": ((99.9, 18.5, 31.2, 12.2), (4.86, 100.0, 7.15, 26.5), (18.0, 21.4, 100.0, 32.8), (9.62, 26.0, 28.2, 100.0)),
}

WHY_TRANSFER_DIFFERS = (
    "It differs from ours because the paper attacks video fakes with a 1024-pixel generator and full-size detectors "
    "that were trained on such fakes, stops no search early, draws the whole reconstruction, takes equal steps in all "
    "rows of a code, and names no denominator."
)


def printed_transfer_means() -> dict[str, tuple[float, float]]:
    """Return, by method, the paper's mean success on the attacked detector and on all others, as shares."""
    means = {}
    for method, rates in _CELEB_DF.items():
        attacked = [row[number] / 100 for number, row in enumerate(rates)]
        others = [rate / 100 for number, row in enumerate(rates) for place, rate in enumerate(row) if place != number]
        means[method] = (sum(attacked) / len(attacked), sum(others) / len(others))
    return means


def transfer_table() -> Table:
    """Return table 2 of Artifact-Eraser (arXiv 2404.08341): attack success rates on Celeb-DF, as shares."""
    judges = (Column(f"judge_{name}", f"judged by {name}", "transfer_rate") for name in _TRANSFER_DETECTORS)
    columns = (Column("method", "Method"), Column("attacked", "Attacked detector"), *judges)
    body: list[tuple[Cell, ...]] = [
        (method, attacked, *(value / 100 for value in rates))
        for method, rows in _CELEB_DF.items()
        for attacked, rates in zip(_TRANSFER_DETECTORS, rows, strict=True)
    ]
    note = f"Artifact-Eraser, table 2, Celeb-DF. {WHY_TRANSFER_DIFFERS}"
    return Table("published_transfer", "Transfer as printed in the paper", columns, tuple(body), note)


# TR-Net, tables 1 to 4: shares of fakes still called fake, by defence and attack, mean of six detectors.
TRACE_REMOVAL_MEANS = {
    "none": {"none": 0.9089, "noise": 0.5602, "fgsm": 0.2397, "pgd": 0.2036, "ganprintr": 0.6058, "trnet": 0.2566},
    "weak": {"noise": 0.8972, "fgsm": 0.5072, "pgd": 0.4561, "ganprintr": 0.7747, "trnet": 0.4318},
    "strong": {"noise": 0.9089, "fgsm": 0.7540, "pgd": 0.7161, "ganprintr": 0.9226, "trnet": 0.5974},
}

# PSNR in dB and SSIM.
TRACE_REMOVAL_QUALITY = {
    "noise": (26.86, 0.634),
    "fgsm": (30.13, 0.764),
    "pgd": (32.23, 0.836),
    "ganprintr": (25.80, 0.924),
    "trnet": (35.16, 0.988),
}

WHY_TRACE_REMOVAL_DIFFERS = (
    "It differs from ours because the paper's detectors and its TR-Net are full-size and were trained on 60,000 pairs "
    "of ProGAN, STGAN and DeepfakeTIMIT fakes, and ours are small networks trained on this project's own fakes; its "
    "weak defence is stronger than the app's own; FGSM, MIFGSM and PGD see the gradient of one detector of the app's "
    "own set and are transferred to all others, the undefended ones among them, where the paper's see that of the "
    "detector itself; and what it leaves open (steps of PGD, strength of FGSM) is chosen here to fit its table 4."
)

_TRNET_DETECTORS = ("Xception", "Patch-CNN", "DCT-A", "F3-Net", "LF", "NF")
_TRNET_COLUMNS = ("Real", "Fake", "Noise", "FGSM", "PGD", "GANprintR", "TR-Net")
_UNDEFENDED = (
    (99.95, 99.86, 65.44, 4.43, 0.01, 58.53, 18.90),
    (93.47, 92.13, 53.91, 12.36, 9.81, 57.31, 13.06),
    (95.51, 90.66, 51.59, 33.18, 25.37, 70.24, 30.16),
    (100.0, 99.97, 85.41, 49.62, 45.73, 80.73, 56.10),
    (94.66, 91.55, 37.12, 16.00, 15.55, 64.76, 14.01),
    (78.81, 71.12, 42.65, 28.21, 25.70, 31.88, 21.74),
)

_WEAK = (31.13, 33.84, 44.66, 73.03, 35.60, 40.84)  # TR-Net alone
_STRONG = ((60.17, 49.70), (55.53, 41.37), (77.45, 72.55), (88.44, 81.25), (53.44, 48.91), (65.98, 64.66))

WHY_ACCURACY_DIFFERS = (
    "It differs from ours because the paper trains full-size detectors on 60,000 pairs and tests them on fakes by the "
    "same three generators (ProGAN, STGAN, DeepfakeTIMIT); ours are small, see other fakes, and are trained to bear "
    "JPEG, blur and noise, which costs accuracy."
)


def printed_clean_accuracy() -> dict[str, tuple[float, float]]:
    """Return TR-Net's accuracies (table 1) on real pictures and on fakes without an attack, by title, as shares."""
    return {name: (row[0] / 100, row[1] / 100) for name, row in zip(_TRNET_DETECTORS, _UNDEFENDED, strict=True)}


def trnet_tables() -> list[Table]:
    """Return the known parts of tables 1 to 3 of TR-Net (arXiv 2203.11433), as shares."""
    columns = (Column("detector", "Detector"), *(Column(name.lower(), name, digits=4) for name in _TRNET_COLUMNS))
    body: list[tuple[Cell, ...]] = [
        (name, *(value / 100 for value in row)) for name, row in zip(_TRNET_DETECTORS, _UNDEFENDED, strict=True)
    ]
    defended = (
        columns[0],
        Column("weak", "TR-Net, weak defence", digits=4),
        Column("strong_clean", "Fake, strong defence", digits=4),
        Column("strong", "TR-Net, strong defence", digits=4),
    )
    rows: list[tuple[Cell, ...]] = [
        (name, weak / 100, clean / 100, left / 100)
        for name, weak, (clean, left) in zip(_TRNET_DETECTORS, _WEAK, _STRONG, strict=True)
    ]
    note = "TR-Net's paper, table 1: accuracy on real pictures, on fakes, and on fakes after each attack."
    return [
        Table("published_undefended", "As printed: detectors without a defence", columns, tuple(body), note),
        Table(
            "published_defended",
            "As printed: TR-Net against defended detectors",
            defended,
            tuple(rows),
            "TR-Net's paper, tables 2 and 3; the strong defence was trained on TR-Net's own fakes.",
        ),
    ]


PRINTED_TOPS = (1, 2, 3)
_FAMILIES = {"DF": "Deepfakes", "F2F": "Face2Face", "FS": "FaceSwap", "NT": "NeuralTextures"}
_ORIGINAL, _ADVERSARIAL = "original", "adversarial"

# Adv-XAI-Deepfakes, table 1: accuracy before any attack, and after one on the top 1, 2 and 3 segments.
_ACCURACY_BEFORE = {"DF": 0.978, "F2F": 0.977, "FS": 0.982, "NT": 0.924}
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
_MAP_COST = {
    ("LIME", _ORIGINAL): (4.4, 200),
    ("LIME", _ADVERSARIAL): (20.8, 2081),
    ("SHAP", _ORIGINAL): (2.6, 45),
    ("SHAP", _ADVERSARIAL): (18.7, 1928),
    ("SOBOL", _ORIGINAL): (0.4, 17),
    ("SOBOL", _ADVERSARIAL): (16.9, 1898),
    ("RISE", _ORIGINAL): (1.8, 32),
    ("RISE", _ADVERSARIAL): (18.8, 1913),
}

WHY_FAITHFULNESS_DIFFERS = (
    "It differs from ours because the paper explains one EfficientNetV2 of 224 pixels with five classes on four "
    "families of FaceForensics++ videos, counts a turn to another family as an error too, and attacks with NES whose "
    "steps of 1/255 are of normalised values, about 0.2 of a grey level, without a bound on their sum; ours are of "
    "pixels, and no pixel changes by more than 16 levels."
)


def printed_accuracy_means() -> dict[tuple[str, str], dict[int, float]]:
    """Return the paper's accuracy, by method and reference and then by k, as the mean of the families given here."""
    accuracies: dict[tuple[str, str], dict[int, float]] = {}
    for _, method, reference in _ACCURACY:
        rows = [values for key, values in _ACCURACY.items() if key[1:] == (method, reference)]
        means = (sum(values) / len(values) for values in zip(*rows, strict=True))
        accuracies[method, reference] = dict(zip(PRINTED_TOPS, means, strict=True))
    return accuracies


def families_at_hand() -> str:
    """Name the families, by method, of which `printed_accuracy_means` gives the mean."""
    families: dict[str, dict[str, None]] = {}
    for family, method, _ in _ACCURACY:
        families.setdefault(method, {})[_FAMILIES[family]] = None
    return "; ".join(f"{method}: {', '.join(names)}" for method, names in families.items())


def adv_xai_tables() -> list[Table]:
    """Return the known parts of tables 1 to 3 of Adv-XAI-Deepfakes (arXiv 2502.03957)."""
    named = (Column("family", "Family of fakes"), Column("method", "Method"), Column("reference", "Reference"))
    accuracy = tuple(Column(f"accuracy_{top}", f"Accuracy@{top}", "accuracy_at_k") for top in PRINTED_TOPS)
    sufficiency = tuple(Column(f"sufficiency_{top}", f"Sufficiency@{top}", "sufficiency_at_k") for top in PRINTED_TOPS)
    cost = (Column("seconds", "Seconds", digits=1), Column("calls", "Calls of the detector"))
    after = [(_FAMILIES[key[0]], *key[1:], _ACCURACY_BEFORE[key[0]], *values) for key, values in _ACCURACY.items()]
    falls: list[tuple[Cell, ...]] = [(_FAMILIES[key[0]], *key[1:], *values) for key, values in _SUFFICIENCY.items()]
    costs: list[tuple[Cell, ...]] = [(*key, *values) for key, values in _MAP_COST.items()]
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
            f"Adv-XAI-Deepfakes, table 1, in part. {WHY_FAITHFULNESS_DIFFERS} {swapped}",
        ),
        Table(
            "published_sufficiency",
            "Sufficiency as printed in the paper",
            (*named, *sufficiency),
            tuple(falls),
            f"Adv-XAI-Deepfakes, table 2, in part. {WHY_FAITHFULNESS_DIFFERS}",
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
