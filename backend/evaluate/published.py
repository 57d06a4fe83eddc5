"""Numbers as the papers print them, to stand beside ours, with a sentence on why the two differ."""

from backend.evaluate.tables import Cell, Column, Table

_NAMES = ("EfficientNet-B4", "Xception", "MAT", "RECCE")
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


def transfer_means() -> dict[str, tuple[float, float]]:
    """Return, by method, the paper's mean success on the attacked detector and on all others, as shares."""
    means = {}
    for method, rates in _CELEB_DF.items():
        own = [row[number] / 100 for number, row in enumerate(rates)]
        others = [rate / 100 for number, row in enumerate(rates) for place, rate in enumerate(row) if place != number]
        means[method] = (sum(own) / len(own), sum(others) / len(others))
    return means


def transfer_celeb_df() -> Table:
    """Return table 2 of Artifact-Eraser (arXiv 2404.08341): attack success rates on Celeb-DF, as shares."""
    judges = (Column(f"judge_{name}", f"judged by {name}", "transfer_rate") for name in _NAMES)
    columns = (Column("method", "Method"), Column("attacked", "Attacked detector"), *judges)
    body: list[tuple[Cell, ...]] = [
        (method, attacked, *(value / 100 for value in rates))
        for method, rows in _CELEB_DF.items()
        for attacked, rates in zip(_NAMES, rows, strict=True)
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
_SIX = ("Xception", "Patch-CNN", "DCT-A", "F3-Net", "LF", "NF")
_COLUMNS = ("Real", "Fake", "Noise", "FGSM", "PGD", "GANprintR", "TR-Net")
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


def clean_accuracy() -> dict[str, tuple[float, float]]:
    """Return accuracy on real pictures and on fakes without any attack of TR-Net's table 1, by title, as shares."""
    return {name: (row[0] / 100, row[1] / 100) for name, row in zip(_SIX, _UNDEFENDED, strict=True)}


def trace_removal() -> list[Table]:
    """Return tables 1 to 3 of TR-Net (arXiv 2203.11433) as far as they are known, as shares."""
    columns = (Column("detector", "Detector"), *(Column(name.lower(), name, digits=4) for name in _COLUMNS))
    body: list[tuple[Cell, ...]] = [
        (name, *(value / 100 for value in row)) for name, row in zip(_SIX, _UNDEFENDED, strict=True)
    ]
    defended = (
        Column("detector", "Detector"),
        Column("weak", "TR-Net, weak defence", digits=4),
        Column("strong_clean", "Fake, strong defence", digits=4),
        Column("strong", "TR-Net, strong defence", digits=4),
    )
    rows: list[tuple[Cell, ...]] = [
        (name, weak / 100, clean / 100, left / 100)
        for name, weak, (clean, left) in zip(_SIX, _WEAK, _STRONG, strict=True)
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
