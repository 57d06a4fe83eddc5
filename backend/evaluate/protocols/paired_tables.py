"""Tables and plots of the protocol of real-fake pairs."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from backend.evaluate import naming, plots
from backend.evaluate.metrics.metric import Estimate, mean, mean_with_interval
from backend.evaluate.plots import Figure, Series
from backend.evaluate.protocols import proofs
from backend.evaluate.rows import Row
from backend.evaluate.tables import Cell, Column, Table

if TYPE_CHECKING:
    from backend.evaluate.protocols.paired import PairedConfig

FAMILY, DETECTOR = Column("family", "Family of fakes"), Column("detector", "Detector")
SIZE, METHOD = Column("resolution", "Resolution"), Column("method", "Map of the real photo")
MAP = (DETECTOR, SIZE, METHOD)
CLAIMS = (
    "The paper says in words that SOBOL does best throughout, and that attacks succeed less at its larger resolution "
    "(299 pixels, against 256); its numbers were not at hand."
)
FILLS = {"mean": "the mean colour", "black": "black", "blur": "the blurred face"}
FEW = 3  # maps of one pair, below which a rank correlation says nothing

Part = tuple[str, str, list[Row]]  # title of the detector, resolution in words, rows


def tables(rows: Sequence[Row], config: "PairedConfig") -> list[Table]:
    """Return all tables.

    Args:
        rows: One row a map.
        config: What was measured.
    """
    return [
        _families(rows, config),
        _everything(rows, config),
        proofs.against_random(MAP, _maps(rows, config), config.tops, "the same fake"),
        _curves(rows, config),
        _agreement(rows, config),
        _cost(rows, config),
    ]


def plots_of(rows: Sequence[Row], config: "PairedConfig") -> list[Figure]:
    """Return sufficiency by method, one plot a detector, and sufficiency over the area under the deletion curve."""
    top, drawn = max(config.tops), []
    labels = [*map(proofs.title, config.methods), proofs.RANDOM]
    for name in config.detectors:
        groups = [
            Series(size, (), [proofs.bar_values(line[-1]) for line in _lines(own, config)])
            for detector, size, own in _parts(rows, config)
            if detector == naming.detector(name)
        ]
        if not groups:
            continue
        alt = f"Sufficiency@{top} on fakes by map of the real photo, {naming.detector(name)}; higher is better. "
        alt += plots.spoken(groups, labels)
        title = f"Sufficiency@{top}, {naming.detector(name)}"
        drawn.append(plots.bars(f"sufficiency_{name}", title, alt, labels, groups, y_label=f"Sufficiency@{top}"))
    clouds = [
        Series(
            proofs.title(one),
            [row["deletion"] for row in own],
            [row["p_before"] - row[f"p_after_{top}"] for row in own],
        )
        for one in config.methods
        if (own := [row for row in rows if row["method"] == one and row[f"p_after_{top}"] is not None])
    ]
    if clouds:
        alt = (
            f"Every map: sufficiency@{top} over the area under its deletion curve. If both measured the same, the "
            "points would fall from the left to the right. " + _spoken(_agreement(rows, config))
        )
        below, beside = "Area under the deletion curve", f"Sufficiency@{top}"
        title = "The test on the fake beside the deletion curve"
        drawn.append(plots.points("deletion", title, alt, clouds, x_label=below, y_label=beside))
    return drawn


def finding(rows: Sequence[Row], config: "PairedConfig") -> str:
    """Say in one sentence, over all detectors and resolutions, which map is best and what chance does."""
    top = max(config.tops)
    falls = {
        proofs.title(one): proofs.cells([row for row in rows if row["method"] == one], config.tops)[-1]
        for one in config.methods
    }
    measured = {name: fall.value for name, fall in falls.items() if fall.value is not None}
    if not measured:
        return ""
    best = max(measured, key=lambda name: measured[name])
    chance = proofs.random_cells(rows, config.tops)[-1]
    others = ", ".join(f"{name} {value:.2f}" for name, value in measured.items() if name != best)
    return (
        f"Attacked in the {top} segments that {best} ranks highest in the real photo, the fake's score falls by "
        f"{measured[best]:.2f}, the most of all maps{f' ({others})' if others else ''}; in random segments of the same "
        f"size it falls by {proofs.bar_values(chance):.2f}."
    )


def _families(rows: Sequence[Row], config: "PairedConfig") -> Table:
    body = [
        (naming.family(family), name, size, *line)
        for family in sorted({row["family"] for row in rows})
        for name, size, own in _parts([row for row in rows if row["family"] == family], config)
        for line in _lines(own, config)
    ]
    columns = (FAMILY, *MAP, *proofs.columns(config.tops))
    return Table("families", "Attacked fakes by family", columns, tuple(body), _note(config), by_family=True)


def _everything(rows: Sequence[Row], config: "PairedConfig") -> Table:
    body = [(name, size, *line) for name, size, own in _parts(rows, config) for line in _lines(own, config)]
    columns = (*MAP, *proofs.columns(config.tops))
    return Table("paired", "Attacked fakes over all pairs", columns, tuple(body), f"{_note(config)} {CLAIMS}")


def _lines(rows: Sequence[Row], config: "PairedConfig") -> list[tuple[Cell, ...]]:
    body: list[tuple[Cell, ...]] = [
        (proofs.title(one), *proofs.cells([row for row in rows if row["method"] == one], config.tops))
        for one in config.methods
    ]
    return [*body, (proofs.RANDOM, *proofs.random_cells(rows, config.tops))]


def _note(config: "PairedConfig") -> str:
    return (
        f"{proofs.in_words(config)} Before any attack the accuracy is 1, because only pairs are measured whose two "
        "pictures are both judged rightly; the fall from 1 is what the paper reports."
    )


def _curves(rows: Sequence[Row], config: "PairedConfig") -> Table:
    columns = (
        *MAP,
        Column("deletion", "Area, deletion", "curve_area"),
        Column("insertion", "Area, insertion", "curve_area"),
    )
    body: list[tuple[Cell, ...]] = []
    for name, size, own in _parts(rows, config):
        for one in (*config.methods, proofs.RANDOM):
            of_map = [row for row in own if row["method"] == one]
            areas = [
                mean_with_interval((row[curve] for row in of_map), (0.0, 1.0)) for curve in ("deletion", "insertion")
            ]
            body.append((name, size, one if one == proofs.RANDOM else proofs.title(one), *areas))
    note = (
        f"Of p_real of the photo; a removed pixel shows {FILLS[config.fill]}. A good map should have a low area for "
        "deletion and a high one for insertion, and random segments neither."
    )
    return Table("curves", "Deletion and insertion on the real photo", columns, tuple(body), note)


def _agreement(rows: Sequence[Row], config: "PairedConfig") -> Table:
    """Return how the curves rank the maps of a pair, against how the test does."""
    top = max(config.tops)
    columns = (
        DETECTOR,
        SIZE,
        Column("deletion", "Rank correlation, deletion"),
        Column("insertion", "Rank correlation, insertion"),
    )
    body: list[tuple[Cell, ...]] = []
    for name, size, own in _parts(rows, config):
        tested = [row for row in own if row[f"p_after_{top}"] is not None]
        pairs = [[row for row in tested if row["sample"] == one] for one in sorted({row["sample"] for row in tested})]
        found = [
            mean_with_interval(
                _rank_correlation(
                    [sign * row[curve] for row in maps], [row["p_before"] - row[f"p_after_{top}"] for row in maps]
                )
                for maps in pairs
            )
            for curve, sign in (("deletion", -1), ("insertion", 1))
        ]
        body.append((name, size, *found))
    note = (
        f"Spearman's correlation over the maps of one pair between a curve and sufficiency@{top}, averaged over pairs: "
        "1 if the curve ranks maps as the test does, 0 if it knows nothing of it."
    )
    return Table("agreement", "Do the curves agree with the test?", columns, tuple(body), note)


def _cost(rows: Sequence[Row], config: "PairedConfig") -> Table:
    columns = (
        *MAP,
        Column("map_seconds", "Seconds of the map", digits=2),
        Column("proof_seconds", "Seconds of the attacks", digits=2),
        Column("curve_seconds", "Seconds of the curves", digits=2),
        Column("images", "Pictures judged for the map", digits=0),
    )
    names = ("map_seconds", "proof_seconds", "curve_seconds", "images")
    body: list[tuple[Cell, ...]] = [
        (*named, *(mean(row.get(value) for row in own) for value in names)) for named, own in _maps(rows, config)
    ]
    note = f"The attacks are on {len(config.tops)} numbers of segments, each also on {config.draws} random rankings."
    return Table("cost", "Time of map, attack and curves", columns, tuple(body), note)


def _parts(rows: Sequence[Row], config: "PairedConfig") -> Iterator[Part]:
    """Yield the rows of every detector and resolution that was measured."""
    for name in config.detectors:
        for factor in config.resolutions:
            own = [row for row in rows if row["detector"] == name and row["resolution"] == factor]
            if own:
                yield naming.detector(name), f"{factor:g} x ({own[0]['side']} pixels)", own


def _maps(rows: Sequence[Row], config: "PairedConfig") -> Iterator[proofs.Map]:
    """Yield the maps of every detector, resolution and method."""
    for name, size, own in _parts(rows, config):
        for one in config.methods:
            yield (name, size, proofs.title(one)), [row for row in own if row["method"] == one]


def _rank_correlation(one: Sequence[float], other: Sequence[float]) -> float | None:
    if len(one) < FEW or len(set(one)) == 1 or len(set(other)) == 1:
        return None
    from scipy.stats import spearmanr

    return float(spearmanr(one, other).statistic)


def _spoken(table: Table) -> str:
    said = [
        f"{name}, {size}: {cell.value:.2f}"
        for name, size, cell, *_ in table.rows
        if isinstance(cell, Estimate) and cell.value is not None
    ]
    return f"Rank correlation with deletion: {'; '.join(said)}." if said else ""
