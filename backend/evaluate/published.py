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


def transfer_celeb_df() -> Table:
    """Return table 2 of Artifact-Eraser (arXiv 2404.08341): attack success rates on Celeb-DF, as shares."""
    judges = (Column(f"judge_{name}", f"judged by {name}", "transfer_rate") for name in _NAMES)
    columns = (Column("method", "Method"), Column("attacked", "Attacked detector"), *judges)
    body: list[tuple[Cell, ...]] = [
        (method, attacked, *(value / 100 for value in rates))
        for method, rows in _CELEB_DF.items()
        for attacked, rates in zip(_NAMES, rows, strict=True)
    ]
    note = (
        "Artifact-Eraser, table 2, Celeb-DF. It differs from ours because the paper attacks video fakes with a "
        "1024-pixel generator and full-size detectors that were trained on such fakes, and names no denominator."
    )
    return Table("published_transfer", "Transfer as printed in the paper", columns, tuple(body), note)
