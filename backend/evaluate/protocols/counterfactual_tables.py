"""Tables and plots of the counterfactual protocol."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from backend.counterfactual.levels import LEVELS
from backend.evaluate import edits, naming, plots, published
from backend.evaluate.metrics import success
from backend.evaluate.metrics.metric import Estimate, mean, proportion
from backend.evaluate.plots import Figure, Series
from backend.evaluate.rows import Row
from backend.evaluate.tables import Cell, Column, Table

if TYPE_CHECKING:
    from backend.evaluate.protocols.counterfactual import CounterfactualConfig

FAMILY = Column("family", "Family of fakes")
ATTACKED, METHOD = Column("attacked", "Attacked detector"), Column("method", "Method")
BOTH = Column("asr_both", "ASR, both", "asr_both")
ASR = (
    Column("asr_all", "ASR, all", "asr_all"),
    Column("asr_detected", "ASR, detected", "asr_detected"),
    Column("asr_after_inversion", "ASR, after inversion", "asr_after_inversion"),
    BOTH,
)
TV, ESNLE = Column("tv", "TV", "tv", 1), Column("esnle", "ESNLE", "esnle", 2)
PSNR = Column("psnr", "PSNR (dB)", "psnr", 1)
RETAINED = Column("identity_retained", "Identity kept", "identity_retained", 2)
QUALITY = (
    Column("identity", "Identity", "identity"),
    TV,
    Column("tv_before", "TV before", "", 1),
    ESNLE,
    Column("esnle_before", "ESNLE before", "", 2),
    Column("lpips", "LPIPS", "lpips"),
    PSNR,
    Column("ssim", "SSIM", "ssim"),
)


def tables(rows: Sequence[Row], config: "CounterfactualConfig", measures: Mapping[str, str]) -> list[Table]:
    """Return all tables.

    Args:
        rows: One row an edit and a judging detector.
        config: What was measured.
        measures: Which networks measured identity and LPIPS, or why none did.
    """
    plain = _plain(rows)
    parts = _each([row for row in plain if row["attacked"] == row["judge"]], config)
    return [
        _families(parts),
        _beside(plain, config),
        _success(parts),
        _quality(parts, measures),
        _transfer(plain, config),
        _levels(rows, config),
        _steps(rows, config),
        _change(parts),
        _time(parts),
    ]


def finding(rows: Sequence[Row], config: "CounterfactualConfig") -> str:
    """Say in one sentence how often edits turn the attacked detector, and how often others with it."""
    said = []
    for method in config.methods:
        own, others = _turning(_plain(rows), method, config)
        if own.value is not None:
            carried = "" if others.value is None else f" and {others.value:.0%}"
            said.append(f"{edits.TITLES[method]} {own.value:.0%}{carried}")
    about = "Verdicts of fake that an edit turns, on the attacked detector and on the others: "
    return f"{about}{'; '.join(said)}." if said else ""


def plots_of(rows: Sequence[Row], config: "CounterfactualConfig") -> list[Figure]:
    """Return all plots."""
    drawn = [_matrix(method, _plain(rows), config) for method in config.methods]
    levels, steps = _levels(rows, config), _steps(rows, config)
    labels = _unique(row[1] for row in levels.rows)
    if labels:
        names = [naming.detector(name) for name in config.ablated]
        groups = [Series(name, (), _rates(levels, name, labels)) for name in names]
        alt = "Attack success rate by the style levels that were open. " + plots.spoken(groups, labels)
        drawn.append(plots.bars("levels", "Success by style level", alt, labels, groups, y_label="ASR, both"))
    lengths = sorted(_unique(row[1] for row in steps.rows))
    if len(lengths) > 1:
        names = [naming.detector(name) for name in config.ablated]
        lines = [Series(name, lengths, _rates(steps, name, lengths)) for name in names]
        alt = "Attack success rate over the length of a step. " + plots.spoken(lines, [f"{one:g}" for one in lengths])
        title, below = "Success by length of a step", "Length of a step in the codes"
        drawn.append(plots.lines("epsilon", title, alt, lines, x_label=below, y_label="ASR, both"))
    return drawn


Parts = list[tuple[str, str, list[Row]]]  # title of the attacked detector, method, rows


def _families(parts: Parts) -> Table:
    families = sorted({row["family"] for _, _, part in parts for row in part})
    body = [
        (naming.family(family), name, edits.TITLES[method], _asr([row for row in part if row["family"] == family]).both)
        for family in families
        for name, method, part in parts
    ]
    columns = (FAMILY, ATTACKED, METHOD, BOTH)
    return Table("families", "Success by family of fakes", columns, tuple(body), by_family=True)


def _beside(rows: Sequence[Row], config: "CounterfactualConfig") -> Table:
    """Set success and transfer beside the paper's."""
    printed = published.transfer_means()
    printed |= {edits.TITLES[name]: printed["Counterfactual"] for name in edits.COMPOSITES}
    absent = ("not printed", "not printed")
    body: list[tuple[Cell, ...]] = []
    for method in config.methods:
        own, others = _turning(rows, method, config)
        paper = printed.get(edits.TITLES[method], absent)
        body.append((edits.TITLES[method], own, paper[0], others, paper[1]))
    columns = (
        METHOD,
        *(Column("own", "ASR, ours", "asr_both", 2), Column("paper_own", "ASR, paper", digits=2)),
        *(Column("others", "Transfer, ours", "transfer_rate", 2), Column("paper_others", "Transfer, paper", digits=2)),
    )
    note = (
        "Means over attacked detectors, and over all pairs of an attacked and another detector: n counts these, not "
        "pictures, and ± is the spread among them. The paper is "
        f"Artifact-Eraser (arXiv 2404.08341), table 2, Celeb-DF. {published.WHY_TRANSFER_DIFFERS}"
    )
    return Table("beside", "Success and transfer, ours and the paper's", columns, tuple(body), note, beside=True)


def _turning(rows: Sequence[Row], method: str, config: "CounterfactualConfig") -> tuple[Estimate, Estimate]:
    """Return the mean rate at which attacked detectors are turned, and that of all others."""
    own: list[float | None] = []
    others: list[float | None] = []
    for attacked in config.attacked:
        for judge, rate in zip(config.detectors, _judged(rows, method, attacked, config), strict=True):
            (own if judge == attacked else others).append(rate.value)
    return mean(own), mean(others)


def _success(parts: Parts) -> Table:
    body = []
    for name, method, part in parts:
        rates = _asr(part)
        cells = (rates.everything, rates.detected, rates.after_inversion, rates.both)
        body.append((name, edits.TITLES[method], *cells))
    note = "A success is called fake before, still fake at the start of the edit, and real after it."
    return Table("success", "Attack success over four denominators", (ATTACKED, METHOD, *ASR), tuple(body), note)


def _quality(parts: Parts, measures: Mapping[str, str]) -> Table:
    body: list[tuple[Cell, ...]] = []
    for name, method, part in parts:
        turned = _turned(part)
        kept = [row["identity_retained"] for row in turned if "identity_retained" in row]
        values = [mean(row.get(column.name) for row in turned) for column in QUALITY]
        body.append((name, edits.TITLES[method], proportion(sum(kept), len(kept)), *values))
    note = "Of successes, edited against original. " + " ".join(
        f"{title}: {measures[name].rstrip('.')}." for name, title in (("identity", "Identity"), ("lpips", "LPIPS"))
    )
    return Table("quality", "Quality of successes", (ATTACKED, METHOD, RETAINED, *QUALITY), tuple(body), note)


def _transfer(rows: Sequence[Row], config: "CounterfactualConfig") -> Table:
    judges = tuple(
        Column(f"judge_{name}", f"judged by {naming.detector(name)}", "transfer_rate") for name in config.detectors
    )
    body: list[tuple[Cell, ...]] = [
        (edits.TITLES[method], naming.detector(name), *_judged(rows, method, name, config))
        for method in config.methods
        for name in config.attacked
    ]
    note = "Of what the judge itself called fake before and at the start; where both are one detector, its own ASR."
    return Table("transfer", "Transfer to other detectors", (METHOD, ATTACKED, *judges), tuple(body), note)


def _levels(rows: Sequence[Row], config: "CounterfactualConfig") -> Table:
    own = [row for row in rows if row["factor"] == 1]
    body = [
        line
        for level in sorted({row["level"] for row in own}, key=lambda level: (len(level), LEVELS.index(level[0])))
        for line in _varied(level, [row for row in own if row["level"] == level], config)
    ]
    return _varied_table("levels", "Levels opened one at a time", Column("level", "Levels"), body, config)


def _steps(rows: Sequence[Row], config: "CounterfactualConfig") -> Table:
    own = [row for row in rows if row["level"] == edits.ALL_LEVELS and row["method"] == config.ablated_method]
    lengths = sorted({row["epsilon"] for row in own if row["attacked"] == row["judge"]})
    body = [
        line
        for length in lengths
        for line in _varied(length, [row for row in own if row.get("epsilon") == length], config)
    ]
    return _varied_table("epsilon", "Length of a step", Column("epsilon", "Step", digits=5, key=True), body, config)


def _varied(value: str | float, rows: Sequence[Row], config: "CounterfactualConfig") -> list[tuple[Cell, ...]]:
    """Return success, steps, PSNR and noise at one value of a setting, one line a detector."""
    body: list[tuple[Cell, ...]] = []
    for name in config.ablated:
        part = [
            row for row in rows if row["attacked"] == row["judge"] == name and row["method"] == config.ablated_method
        ]
        measured = [mean(row.get(of) for row in _turned(part)) for of in ("steps", "psnr", "tv", "esnle")]
        body.append((naming.detector(name), value, _asr(part).both, *measured))
    return body


def _varied_table(
    name: str, title: str, column: Column, body: list[tuple[Cell, ...]], config: "CounterfactualConfig"
) -> Table:
    columns = (ATTACKED, column, BOTH, Column("steps", "Steps", digits=1), PSNR, TV, ESNLE)
    note = f"{edits.TITLES[config.ablated_method]}, at most {config.steps} steps; all but ASR of successes."
    order = [naming.detector(one) for one in config.ablated]
    ordered = sorted(body, key=lambda line: order.index(str(line[0])))
    return Table(name, title, columns, tuple(ordered), note)


def _change(parts: Parts) -> Table:
    columns = (FAMILY, ATTACKED, METHOD, *(Column(f"change_{one}", f"Change of {one}", digits=5) for one in LEVELS))
    latent = [(name, method, _turned(part)) for name, method, part in parts if method not in edits.PIXELS]
    families = sorted({row["family"] for _, _, part in latent for row in part})
    body: list[tuple[Cell, ...]] = [
        (naming.family(family), name, edits.TITLES[method], *_moved(own))
        for family in families
        for name, method, part in latent
        if (own := [row for row in part if row["family"] == family])
    ]
    note = "Mean absolute change of the codes of successes, by style level (Artifact-Eraser, appendix, figure 3)."
    return Table("latent_change", "How far the codes moved", columns, tuple(body), note)


def _time(parts: Parts) -> Table:
    body = [(name, edits.TITLES[method], mean(row["seconds"] for row in part)) for name, method, part in parts]
    columns = (ATTACKED, METHOD, Column("seconds", "Seconds", digits=2))
    return Table("time", "Seconds an edit", columns, tuple(body))


def _matrix(method: str, rows: Sequence[Row], config: "CounterfactualConfig") -> Figure:
    names, judges = ([naming.detector(one) for one in some] for some in (config.attacked, config.detectors))
    values = np.full((len(names), len(judges)), np.nan)
    for number, attacked in enumerate(config.attacked):
        values[number] = [_number(one) for one in _judged(rows, method, attacked, config)]
    alt = "Rows: attacked detector; columns: judging detector. " + "; ".join(
        f"{name}: " + ", ".join("none" if np.isnan(value) else f"{value:.2f}" for value in line)
        for name, line in zip(names, values, strict=True)
    )
    title = f"Transfer, {edits.TITLES[method]}"
    return plots.matrix(f"transfer_{method}", title, f"{alt}.", values, names, judges, label="Transfer rate")


def _judged(rows: Sequence[Row], method: str, attacked: str, config: "CounterfactualConfig") -> list[Estimate]:
    own = [row for row in rows if row["method"] == method and row["attacked"] == attacked]
    return [_asr([row for row in own if row["judge"] == judge]).both for judge in config.detectors]


def _plain(rows: Sequence[Row]) -> list[Row]:
    """Return the edits with every level open and the generator's own step."""
    return [row for row in rows if row["level"] == edits.ALL_LEVELS and row["factor"] == 1]


def _each(rows: Sequence[Row], config: "CounterfactualConfig") -> Parts:
    return [
        (naming.detector(name), method, [row for row in rows if row["attacked"] == name and row["method"] == method])
        for name in config.attacked
        for method in config.methods
    ]


def _turned(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row["turned"]]


def _asr(rows: Sequence[Row]) -> success.Success:
    return success.attack_success(*([row[name] for row in rows] for name in ("p_original", "p_start", "p_edited")))


def _moved(rows: Sequence[Row]) -> list[Estimate]:
    return [mean(row[f"change_{one}"] for row in rows) for one in LEVELS]


def _rates(table: Table, detector: str, keys: Sequence[Any]) -> list[float]:
    """Return the success rates of a detector by the values in the second column, NaN where there is none."""
    found = {row[1]: _number(row[2]) for row in table.rows if row[0] == detector}
    return [found.get(key, float("nan")) for key in keys]


def _number(cell: Cell) -> float:
    return float("nan") if not isinstance(cell, Estimate) or cell.value is None else cell.value


def _unique(values: Iterable[Any]) -> list[Any]:
    return list(dict.fromkeys(values))
