"""Tables of the trace-removal protocol."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from backend.detectors.card import THRESHOLD
from backend.evaluate import naming, published
from backend.evaluate.metrics import traces
from backend.evaluate.metrics.metric import Estimate, mean, proportion
from backend.evaluate.protocols.trace_removal_rows import (
    NONE,
    attacks,
    defences_of,
    detectors_of,
    feature_kinds,
    groups,
    judged,
    mean_array,
    mean_of_six,
    of_kind,
    real_power,
    real_spectrum,
    title,
)
from backend.evaluate.rows import Row
from backend.evaluate.tables import Cell, Column, Table
from backend.trace_removal import sets, trnet
from backend.trace_removal.attacks import STRENGTHS
from backend.trace_removal.references import REAL, References

if TYPE_CHECKING:
    from backend.evaluate.protocols.trace_removal import TraceRemovalConfig

FAMILY, DEFENCE, ATTACK = Column("family", "Family"), Column("defence", "Defence"), Column("attack", "After")
NOT_PRINTED = "not printed"
STILL_FAKE = "Shares of fakes that are still called fake: the lower, the stronger the attack."


def tables(rows: Sequence[Row], config: "TraceRemovalConfig", reference: References | None) -> list[Table]:
    """Return all tables.

    Args:
        rows: What each detector says of each picture, and one row of measures a picture.
        config: What was measured.
        reference: Statistics of real photographs that ship with the app, where they are installed.
    """
    verdicts, measured = of_kind(rows, "verdict"), of_kind(rows, "picture")
    return [
        _families(verdicts, config),
        _beside(verdicts, config),
        _beside_quality(measured),
        _detectors(verdicts, config),
        _families_by_detector(verdicts, config),
        _quality(measured),
        _traces(measured, reference),
        _neighbours(measured, config),
        _missing(config),
    ]


def finding(rows: Sequence[Row], config: "TraceRemovalConfig") -> str:
    """Say in one sentence what the attacks leave of the detectors' accuracy on fakes."""
    verdicts, measured = of_kind(rows, "verdict"), of_kind(rows, "picture")
    for defence in reversed(config.defences):
        left = {attack: mean_of_six(verdicts, defence, attack).value for attack in attacks(rows)}
        known = {attack: value for attack, value in left.items() if value is not None}
        if NONE not in known:
            continue
        count = sum(name in sets.PAPER001 for name in sets.installed(defence, config.detectors))
        which = "All" if count == len(sets.PAPER001) else f"{count} of the"
        said = f"{which} six detectors of TR-Net's paper, trained with {sets.DEFENCES[defence].title}, find "
        said += f"{known[NONE]:.0%} of the untouched fakes on average"
        if trnet.ENTRY in known:
            said += f" and {known[trnet.ENTRY]:.0%} after TR-Net{_at(measured, trnet.ENTRY)}"
            said += _range(verdicts, defence, trnet.ENTRY)
        own = (NONE, trnet.ENTRY, *STRENGTHS)
        others = {attack: value for attack, value in known.items() if attack not in own}
        if others:
            strongest = min(others, key=others.__getitem__)
            said += f"; of the other attacks {title(strongest)} leaves least, {others[strongest]:.0%}"
            said += _at(measured, strongest)
        said += "."
        further = [f"{title(one)}, leaves {known[one]:.0%}{_at(measured, one)}" for one in STRENGTHS if one in known]
        return said + (f" {'; '.join(further)}." if further else "")
    return ""


def _families(verdicts: Sequence[Row], config: "TraceRemovalConfig") -> Table:
    shown = defences_of(verdicts, config)
    body: list[tuple[Cell, ...]] = [
        (naming.family(family), title(attack), *(mean_of_six(verdicts, one, attack, family) for one in shown))
        for family in _families_of(verdicts)
        for attack in attacks(verdicts)
    ]
    means = (Column(f"mean_{one}", f"Mean of the six, {sets.DEFENCES[one].title}", digits=2) for one in shown)
    note = f"{STILL_FAKE} The six are those of TR-Net's paper, as far as they are installed."
    name = "Fakes still found, by family"
    return Table("families", name, (FAMILY, ATTACK, *means), tuple(body), note, by_family=True)


def _detectors(verdicts: Sequence[Row], config: "TraceRemovalConfig") -> Table:
    shown = attacks(verdicts)
    columns = (
        DEFENCE,
        Column("detector", "Detector"),
        Column("accuracy_real", "Real", "accuracy_real", 2),
        Column("accuracy_fake", "Fake", "accuracy_fake", 2),
        *(Column(f"after_{attack}", title(attack), digits=2) for attack in shown if attack != NONE),
    )
    body: list[tuple[Cell, ...]] = []
    for defence in defences_of(verdicts, config):
        for name in detectors_of(verdicts, config):
            if not any(row["defence"] == defence and row["detector"] == name for row in verdicts):
                continue
            real = [row for row in verdicts if row["label"] == REAL and row["detector"] == name]
            right = [row["p_fake"] < THRESHOLD for row in real if row["defence"] == defence]
            fakes = [_share(judged(verdicts, defence, name, attack)) for attack in shown]
            body.append(
                (sets.DEFENCES[defence].title, naming.detector(name), proportion(sum(right), len(right)), *fakes)
            )
        means = [mean_of_six(verdicts, defence, attack) for attack in shown]
        body.append((sets.DEFENCES[defence].title, "mean of the six", None, *means))
    note = f"Right verdicts on real pictures, then on fakes before and after each attack. {STILL_FAKE}"
    return Table("attacks", "Accuracy by detector and attack, all families", columns, tuple(body), note)


def _families_by_detector(verdicts: Sequence[Row], config: "TraceRemovalConfig") -> Table:
    names = detectors_of(verdicts, config)
    body: list[tuple[Cell, ...]] = []
    for family in _families_of(verdicts):
        own = [row for row in verdicts if row["family"] == family]
        for defence in defences_of(verdicts, config):
            for attack in attacks(verdicts):
                cells = [_share(judged(own, defence, name, attack)).value for name in names]
                count = len({row["sample"] for row in own if (row["attack"], row["defence"]) == (attack, defence)})
                body.append((naming.family(family), sets.DEFENCES[defence].title, title(attack), count, *cells))
    columns = (
        FAMILY,
        DEFENCE,
        ATTACK,
        Column("count", "Fakes"),
        *(Column(one, naming.detector(one), digits=2) for one in names),
    )
    return Table("families_detectors", "Fakes still found, by family and detector", columns, tuple(body), STILL_FAKE)


def _beside(verdicts: Sequence[Row], config: "TraceRemovalConfig") -> Table:
    """Set the accuracy that attacks leave beside what the paper prints."""
    shown, paper = defences_of(verdicts, config), published.TRACE_REMOVAL_MEANS
    columns = (
        ATTACK,
        *(Column(f"ours_{one}", f"Ours, {sets.DEFENCES[one].title}", digits=2) for one in shown),
        *(Column(f"paper_{one}", f"Paper, {sets.DEFENCES[one].title}", digits=2) for one in paper),
    )
    body: list[tuple[Cell, ...]] = []
    for attack in attacks(verdicts):
        ours = [mean_of_six(verdicts, one, attack) for one in shown]
        body.append((title(attack), *ours, *(paper[one].get(attack, NOT_PRINTED) for one in paper)))
    note = f"Share of fakes still called fake, mean over the six detectors. {published.WHY_TRACE_REMOVAL_DIFFERS}"
    name = "Fakes still found after each attack, ours and the paper's"
    return Table("beside", name, columns, tuple(body), note, beside=True)


def _beside_quality(measured: Sequence[Row]) -> Table:
    """Set the likeness of attacked pictures beside what the paper prints."""
    columns = (
        ATTACK,
        *(Column("psnr", "PSNR, ours", "psnr", 1), Column("paper_psnr", "PSNR, paper", "psnr", 1)),
        *(Column("ssim", "SSIM, ours", "ssim"), Column("paper_ssim", "SSIM, paper", "ssim")),
    )
    body: list[tuple[Cell, ...]] = []
    for attack in attacks(measured):
        own = [row for row in measured if row["attack"] == attack and "ssim" in row]
        psnr, ssim = published.TRACE_REMOVAL_QUALITY.get(attack, (NOT_PRINTED, NOT_PRINTED))
        if own:
            body.append((title(attack), mean(row["psnr"] for row in own), psnr, mean(row["ssim"] for row in own), ssim))
    note = "The paper's TR-Net saw 480,000 pairs in training (8 epochs of 60,000), this project's far fewer."
    return Table("beside_quality", "Likeness to the fake before the attack", columns, tuple(body), note, beside=True)


def _quality(measured: Sequence[Row]) -> Table:
    columns = (
        FAMILY,
        ATTACK,
        Column("psnr", "PSNR (dB)", "psnr", 1),
        Column("ssim", "SSIM", "ssim"),
        Column("unchanged", "Unchanged"),
    )
    families = _families_of(measured)
    body: list[tuple[Cell, ...]] = []
    for attack in attacks(measured):
        attacked = [row for row in measured if row["attack"] == attack and "ssim" in row]
        for family in ["all", *families] if attacked else []:
            own = [row for row in attacked if family in ("all", row["family"])]
            psnr, ssim = (mean(row[name] for row in own) for name in ("psnr", "ssim"))
            body.append((naming.family(family), title(attack), psnr, ssim, sum(row["psnr"] is None for row in own)))
    note = "Against the fake before the attack; a picture that did not change has no PSNR and is counted at the right."
    return Table("quality", "What each attack does to the picture", columns, tuple(body), note)


def _traces(measured: Sequence[Row], reference: References | None) -> Table:
    columns = (
        Column("pictures", "Pictures"),
        Column("spectrum", "Spectrum (dB)", "spectrum_difference", 2),
        Column("power", "Power (dB)", "power_difference", 2),
        Column("residual", "Noise residual", "residual_strength", 2),
        Column("correlation", "Fingerprint", "fingerprint_correlation"),
    )
    power, spectrum = real_power(measured, reference), real_spectrum(measured, reference)
    body: list[tuple[Cell, ...]] = []
    for name, own in groups(measured).items():
        distances = (
            None if spectrum is None else traces.spectrum_difference(mean_array(own, "spectrum"), spectrum),
            None if power is None else traces.power_difference(mean_array(own, "power"), power[0]),
        )
        rest = [mean(row[column] for row in own) for column in ("residual", "correlation")]
        body.append((name, *distances, *rest))
    where = f"{reference.count[REAL]} stored photographs" if reference else "the real pictures of the data"
    note = (
        f"Differences of the mean over pictures to {where}; the first line says how far real pictures are off by "
        "chance and by their source."
    )
    return Table("traces", "What is left of the traces", columns, tuple(body), note)


def _neighbours(measured: Sequence[Row], config: "TraceRemovalConfig") -> Table:
    columns = (
        Column("features", "Features of"),
        Column("pictures", "Pictures"),
        Column("real_neighbours", "Real neighbours", "real_neighbours", 2),
    )
    body: list[tuple[Cell, ...]] = []
    fakes = [row for row in measured if row["label"] == "fake" and row["attack"] == NONE]
    reals = [row for row in measured if row["label"] == REAL]
    for kind in feature_kinds(measured):
        column = f"features_{kind}"
        real = [row[column] for row in reals]
        place = {row["sample"]: number for number, row in enumerate(fakes)}
        shown = [row for row in measured if row["sample"] in place and column in row]
        for name, own in groups(shown).items():
            shares = traces.real_neighbours(
                np.array([row[column] for row in own]),
                np.array(real),
                np.array([row[column] for row in fakes]),
                np.array([place[row["sample"]] for row in own]),
                config.neighbours,
            )
            body.append(
                (
                    naming.detector(config.features) if kind == "detector" else f"{kind} discriminator",
                    name,
                    mean(shares),
                )
            )
    note = f"Among the {config.neighbours} nearest real pictures and untouched other fakes; t-SNE shows the same space."
    if reals and len(fakes) > 1:
        chance = len(reals) / (len(reals) + len(fakes) - 1)
        note += f" Were the features of real and fake alike, it would be {chance:.2f} with these pictures."
    return Table("features", "Where fakes lie among real pictures", columns, tuple(body), note)


def _missing(config: "TraceRemovalConfig") -> Table:
    columns = (DEFENCE, Column("missing", "Not installed"), Column("training", "How to train them"))
    body: list[tuple[Cell, ...]] = []
    for name in config.defences:
        there = sets.installed(name, config.detectors)
        absent = [one for one in dict.fromkeys((*sets.PAPER001, *config.detectors)) if one not in there]
        if absent:
            body.append((sets.DEFENCES[name].title, ", ".join(absent), sets.DEFENCES[name].training))
    note = "The strong defence is trained against one attack at a time, which stands after --adversarial."
    return Table("missing", "Detectors that are not installed", columns, tuple(body), note)


def _families_of(rows: Sequence[Row]) -> list[str]:
    return sorted({row["family"] for row in rows if row["label"] == "fake"})


def _share(rows: Sequence[Row]) -> Estimate:
    return proportion(sum(row["p_fake"] >= THRESHOLD for row in rows), len(rows))


def _range(verdicts: Sequence[Row], defence: str, attack: str) -> str:
    """Say for which family of fakes least and most is left."""
    found = {one: mean_of_six(verdicts, defence, attack, one).value for one in _families_of(verdicts)}
    left = sorted((value, family) for family, value in found.items() if value is not None)
    if len(left) < 2:
        return ""
    (least, fewest), (most, family) = left[0], left[-1]
    return f" ({least:.0%} of {naming.family(fewest)}, {most:.0%} of {naming.family(family)})"


def _at(measured: Sequence[Row], attack: str) -> str:
    psnr = mean(row.get("psnr") for row in measured if row["attack"] == attack).value
    return "" if psnr is None else f" at a PSNR of {psnr:.1f} dB"
