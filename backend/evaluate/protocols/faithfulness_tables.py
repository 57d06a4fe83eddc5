"""Tables and plots of the faithfulness protocol."""

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from backend.detectors.card import THRESHOLD
from backend.evaluate import naming, plots, published_maps
from backend.evaluate.metrics.metric import Estimate, mean, mean_with_interval, proportion
from backend.evaluate.plots import Figure, Series
from backend.evaluate.protocols import proofs
from backend.evaluate.rows import Row
from backend.evaluate.tables import Cell, Column, Table
from backend.explain import neighbour

if TYPE_CHECKING:
    from backend.evaluate.protocols.faithfulness import FaithfulnessConfig

FAMILY, DETECTOR = Column("family", "Family of fakes"), Column("detector", "Detector")
METHOD, REFERENCE = Column("method", "Method"), Column("reference", "Reference")
MAP = (DETECTOR, METHOD, REFERENCE)
NONE = "none"  # the reference of random segments

Variant = tuple[str, str]  # method and reference


def tables(rows: Sequence[Row], config: "FaithfulnessConfig") -> list[Table]:
    """Return all tables.

    Args:
        rows: One row a map.
        config: What was measured.
    """
    found = [_families(rows, config), _everything(rows, config)]
    if len(config.references) > 1:
        found.append(_gain(rows, config))
    against_random = proofs.against_random(MAP, _maps(rows, config), config.tops, "the same picture")
    found.append(against_random)
    if config.stability:
        found.append(_stability(rows, config))
    return [_beside(rows, config), *found, _references(rows, config), _cost(rows, config)]


def plots_of(rows: Sequence[Row], config: "FaithfulnessConfig") -> list[Figure]:
    """Return one plot a detector: groups of bars for the variants and the random segments."""
    drawn = []
    for name in _detectors(rows, config):
        own = [row for row in rows if row["detector"] == name]
        measured = {_titled(one): proofs.cells(_of(own, one), config.tops) for one in _variants(config)}
        measured[proofs.RANDOM] = proofs.random_cells(own, config.tops)
        labels = list(measured)
        start = len(config.tops)  # accuracies come first
        groups = [
            Series(f"top {top}", (), [proofs.bar_values(measured[label][start + place]) for label in labels])
            for place, top in enumerate(config.tops)
        ]
        alt = f"Sufficiency by map on {naming.detector(name)}; higher is better. {plots.spoken(groups, labels)}"
        title = f"Sufficiency, {naming.detector(name)}"
        drawn.append(plots.bars(f"sufficiency_{name}", title, alt, labels, groups, y_label="Sufficiency"))
    return drawn


def finding(rows: Sequence[Row], config: "FaithfulnessConfig") -> str:
    """Say in one sentence what the adversarial reference adds at the smallest k, over all detectors."""
    top = min(config.tops)
    said = [
        f"{proofs.title(name)} {gain.value:+.3f}{_interval(gain)}"
        for name in config.methods
        if (gain := _difference([row for row in rows if row["method"] == name], f"p_after_{top}")).value is not None
    ]
    if not said:
        return ""
    return (
        f"With an adversarial image behind the hidden parts in place of the usual fill, sufficiency@{top} changed by "
        f"{', '.join(said)} (95 % interval, picture by picture)."
    )


def _beside(rows: Sequence[Row], config: "FaithfulnessConfig") -> Table:
    """Set the accuracy that is left, over all detectors, beside the paper's."""
    printed = published_maps.accuracy_means()
    tops = [top for top in config.tops if top in published_maps.TOPS]
    columns = (
        METHOD,
        REFERENCE,
        *(
            column
            for top in tops
            for column in (
                Column(f"ours_{top}", f"Accuracy@{top}, ours", "accuracy_at_k"),
                Column(f"paper_{top}", f"Accuracy@{top}, paper"),
            )
        ),
    )
    body: list[tuple[Cell, ...]] = []
    for one in _variants(config):
        ours = _accuracies(_of(rows, one), tops)
        paper = printed.get(_named(one), {})
        pairs = ((mine, paper.get(top)) for top, mine in zip(tops, ours, strict=True))
        body.append((*_named(one), *(cell for pair in pairs for cell in pair)))
    note = (
        f"The paper's is the mean of the families whose numbers are at hand ({published_maps.at_hand()}), so its "
        "methods cannot be compared with each other here. Ours counts only fakes that are detected before the attack, "
        "the paper's all; the verdicts of several detectors on one picture are averaged first. "
        f"{published_maps.WHY_DIFFERS}"
    )
    return Table("beside", "Accuracy after the attack, ours and the paper's", columns, tuple(body), note, beside=True)


def _accuracies(rows: Sequence[Row], tops: Sequence[int]) -> list[Estimate]:
    """Return accuracy over pictures; of several detectors' verdicts on one, which are not independent, the mean."""
    if len({row["detector"] for row in rows}) < 2:
        return list(proofs.cells(rows, tops)[: len(tops)])
    found = []
    for top in tops:
        by_picture: dict[str, list[bool]] = {}
        for row in rows:
            if row[f"p_after_{top}"] is not None:
                by_picture.setdefault(row["sample"], []).append(row[f"p_after_{top}"] >= THRESHOLD)
        means = (sum(right) / len(right) for right in by_picture.values())
        found.append(mean_with_interval(means, (0.0, 1.0)))
    return found


def _families(rows: Sequence[Row], config: "FaithfulnessConfig") -> Table:
    body = [
        (naming.family(family), *line)
        for family in sorted({row["family"] for row in rows})
        for line in _lines([row for row in rows if row["family"] == family], config)
    ]
    columns = (FAMILY, *MAP, *proofs.columns(config.tops))
    return Table("families", "Faithfulness by family of fakes", columns, tuple(body), _note(config), by_family=True)


def _everything(rows: Sequence[Row], config: "FaithfulnessConfig") -> Table:
    columns = (*MAP, *proofs.columns(config.tops))
    return Table("faithfulness", "Faithfulness over all fakes", columns, tuple(_lines(rows, config)), _note(config))


def _lines(rows: Sequence[Row], config: "FaithfulnessConfig") -> list[tuple[Cell, ...]]:
    body: list[tuple[Cell, ...]] = []
    for name in _detectors(rows, config):
        own = [row for row in rows if row["detector"] == name]
        body += [
            (naming.detector(name), *_named(one), *proofs.cells(_of(own, one), config.tops))
            for one in _variants(config)
        ]
        body.append((naming.detector(name), proofs.RANDOM, NONE, *proofs.random_cells(own, config.tops)))
    return body


def _note(config: "FaithfulnessConfig") -> str:
    return (
        f"{proofs.in_words(config)} Before any attack the accuracy is 1, because only detected fakes are measured. "
        "LIME is attacked only in segments that speak for fake, and counts where there are enough for the largest k."
    )


def _gain(rows: Sequence[Row], config: "FaithfulnessConfig") -> Table:
    """Return the differences between the two references on the same fakes."""
    columns = (
        DETECTOR,
        METHOD,
        *(Column(f"gain_{top}", f"Sufficiency@{top}, adversarial - original") for top in config.tops),
        Column("better", f"Fakes on which adversarial is better at {min(config.tops)}"),
    )
    body: list[tuple[Cell, ...]] = []
    for name in _detectors(rows, config):
        for one in config.methods:
            own = [row for row in rows if row["detector"] == name and row["method"] == one]
            gains = [_difference(own, f"p_after_{top}") for top in config.tops]
            differences = [gain for gain in _differences(own, f"p_after_{min(config.tops)}") if gain]
            better = proportion(sum(gain > 0 for gain in differences), len(differences))
            body.append((naming.detector(name), proofs.title(one), *gains, better))
    note = "Picture by picture; above 0 the adversarial reference makes the better map. Ties are left out of the share."
    return Table("gain", "What the adversarial reference adds", columns, tuple(body), note)


def _stability(rows: Sequence[Row], config: "FaithfulnessConfig") -> Table:
    body: list[tuple[Cell, ...]] = [
        (*names, mean_with_interval([row.get("stability") for row in own], (-1.0, 1.0)))
        for names, own in _maps(rows, config)
    ]
    note = (
        f"NES changed each face in its {neighbour.TOPS} highest segments while p_fake fell by at most "
        f"{neighbour.MOST:.2f} and the face was called fake; then it was explained again with the same seed. Left out "
        "are maps whose face changed more at once, and those that showed nothing the second time. A map that always "
        "looks the same is stable, too, so read this beside the sufficiency."
    )
    return Table(
        "stability", "How stable maps are", (*MAP, Column("stability", "Stability", "stability")), tuple(body), note
    )


def _references(rows: Sequence[Row], config: "FaithfulnessConfig") -> Table:
    columns = (
        *MAP,
        Column("p_before", "p_fake of the face"),
        Column("p_reference", "p_fake of what stands behind"),
        Column("called_real", "Reference called real"),
        Column("change", "Its largest change", digits=1, unit="of 255"),
        Column("iterations", "Updates of its attack", digits=1),
        Column("empty", "Maps that show nothing"),
    )
    body: list[tuple[Cell, ...]] = []
    for names, own in _maps(rows, config):
        shown = [row["p_reference"] for row in own if row["p_reference"] is not None]
        cells = (
            mean(row["p_before"] for row in own),
            mean(shown),
            proportion(sum(p < THRESHOLD for p in shown), len(shown)),
            mean(255 * row["change"] for row in own if "change" in row),
            mean(row["iterations"] for row in own if "iterations" in row),
            proportion(sum(row["degenerate"] for row in own), len(own)),
        )
        body.append((*names, *cells))
    note = "What a hidden part shows. A reference that is still called fake, or that is no face, makes a weaker map."
    return Table("references", "What stood behind the hidden parts", columns, tuple(body), note)


def _cost(rows: Sequence[Row], config: "FaithfulnessConfig") -> Table:
    columns = (
        *MAP,
        Column("seconds", "Seconds", digits=2),
        Column("images", "Pictures judged", digits=0),
        Column("calls", "Calls of the detector", digits=0),
    )
    values: tuple[Callable[[Row], float], ...] = (
        lambda row: row["map_seconds"] + row["attack_seconds"],
        lambda row: row["images"] + row["attack_images"],
        lambda row: row["calls"] + row["attack_calls"],
    )
    body: list[tuple[Cell, ...]] = [
        (*names, *(mean(value(row) for row in own) for value in values)) for names, own in _maps(rows, config)
    ]
    note = "The attack that makes the adversarial image counts with every map that needs it; the test of maps does not."
    return Table("cost", "Time and inferences of one map", columns, tuple(body), note)


def _differences(rows: Sequence[Row], name: str) -> list[float]:
    """Return original - adversarial of a column for every picture that has both, the mean over detectors."""
    by_map: dict[tuple[str, str], dict[str, float]] = {}
    for row in rows:
        if row[name] is not None:
            by_map.setdefault((row["sample"], row["detector"]), {})[row["reference"]] = row[name]
    by_picture: dict[str, list[float]] = {}
    for (sample, _), one in by_map.items():
        if len(one) > 1:
            by_picture.setdefault(sample, []).append(one["original"] - one["adversarial"])
    return [sum(values) / len(values) for values in by_picture.values()]


def _difference(rows: Sequence[Row], name: str) -> Estimate:
    return mean_with_interval(_differences(rows, name))


def _interval(estimate: Estimate) -> str:
    return "" if estimate.low is None else f" [{estimate.low:+.3f}, {estimate.high:+.3f}]"


def _detectors(rows: Sequence[Row], config: "FaithfulnessConfig") -> list[str]:
    return [name for name in config.detectors if any(row["detector"] == name for row in rows)]


def _maps(rows: Sequence[Row], config: "FaithfulnessConfig") -> Iterator[proofs.Map]:
    """Yield the maps of every detector, method and reference."""
    for name in _detectors(rows, config):
        own = [row for row in rows if row["detector"] == name]
        for one in _variants(config):
            yield (naming.detector(name), *_named(one)), _of(own, one)


def _variants(config: "FaithfulnessConfig") -> list[Variant]:
    return [(name, reference) for name in config.methods for reference in config.references]


def _of(rows: Sequence[Row], variant: Variant) -> list[Row]:
    return [row for row in rows if (row["method"], row["reference"]) == variant]


def _named(variant: Variant) -> tuple[str, str]:
    return proofs.title(variant[0]), variant[1]


def _titled(variant: Variant) -> str:
    return f"{proofs.title(variant[0])}, {variant[1]}"
