"""How good counterfactuals are, beside attacks on pixels: success, quality, transfer, levels, step length."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import pandas as pd
from torch import Tensor

from backend import images, similarity, weights
from backend.alignment import CroppedPhoto
from backend.attacks import fgsm, mifgsm, pgd
from backend.attacks.base import AttackVariant
from backend.counterfactual import changes
from backend.counterfactual.rendering import COMPOSITES
from backend.counterfactual.search import LEVELS, SearchSettings, StepLengths, parse_levels, search
from backend.detectors import predict, registry
from backend.detectors.base import THRESHOLD, Detector
from backend.detectors.predict import OwnCropDetector
from backend.errors import UserError
from backend.evaluate import plots, published
from backend.evaluate.dataset import FACE_TEMPLATE, Dataset, sample_source
from backend.evaluate.metrics import identity, naturalness, success
from backend.evaluate.metrics.base import Estimate, mean, proportion
from backend.evaluate.plots import Figure, Series
from backend.evaluate.protocols.base import (
    QUICK,
    Item,
    Protocol,
    ProtocolConfig,
    Values,
    Whole,
    check_detectors,
    detector_title,
    family_title,
    make_item,
    register_protocol,
    select,
)
from backend.evaluate.store import Row
from backend.evaluate.tables import Cell, Column, Table, cell_number
from backend.generators import inversion
from backend.progress import Job
from backend.settings import validated

ALL_LEVELS = ",".join(LEVELS)
PIXEL_ATTACKS: dict[str, tuple[Callable[..., Job[Any]], dict[str, Any]]] = {
    "fgsm": (fgsm.attack, {"artifact_eraser": fgsm.ARTIFACT_ERASER, "standard": fgsm.FGSMSettings()}),
    "mifgsm": (mifgsm.attack, {"artifact_eraser": mifgsm.ARTIFACT_ERASER, "standard": mifgsm.MIFGSMSettings()}),
    "pgd": (pgd.attack, {"artifact_eraser": pgd.ARTIFACT_ERASER, "standard": pgd.PGDSettings()}),
}
EDIT_METHODS = (*COMPOSITES, *PIXEL_ATTACKS)
EDIT_TITLES = {
    "reconstruction": "Counterfactual (reconstruction)",
    "transfer": "Counterfactual (transfer)",
    "fgsm": "FGSM",
    "mifgsm": "MIFGSM",
    "pgd": "PGD",
}
Edits = list[tuple[str, str, pd.DataFrame]]  # title of the attacked detector, method, rows
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


@dataclass(frozen=True, eq=False)
class Edited:
    """A face after an edit.

    Args:
        start: What the edit started from, (1, 3, H, W) in [0, 1]: the generator's inversion for `reconstruction`, the
            face itself for everything that adds to it.
        picture: The edited face, in 8 bits.
        change: Mean absolute change of the codes by level; None where no codes were searched.
        epsilon: Length of a step.
    """

    start: Tensor
    picture: Tensor
    steps: int
    change: dict[str, float] | None
    epsilon: float
    seconds: float


def edit_face(
    method: str,
    face: Tensor,
    detector: Detector,
    *,
    level: str = ALL_LEVELS,
    factor: float = 1.0,
    steps: int = 100,
    kappa: float = 0.0,
    lengths: StepLengths = "visible",
    variant: AttackVariant = "artifact_eraser",
    source: CroppedPhoto | None = None,
) -> Job[Edited]:
    """Edit one aligned face (1, 3, H, W) in [0, 1] against a detector.

    Args:
        method: One of `EDIT_METHODS`.
        face: The face.
        detector: The detector to turn.
        level: Style levels that may change, for a latent search.
        factor: Multiplies the generator's own step, for a latent search.
        steps: Steps at most, for a latent search.
        kappa: Margin, for a latent search.
        lengths: How steps differ between rows of the code, see `SearchSettings`, for a latent search.
        variant: `artifact_eraser` or `standard`, for attacks on pixels.
        source: The photo of the face, from which a detector that needs another crop takes its own.
    """
    view = None if source is None else source.view(detector.card.template, detector.card.input_size)
    if method in PIXEL_ATTACKS:
        attack, variants = PIXEL_ATTACKS[method]
        settings = variants[variant]
        target = detector if view is None else OwnCropDetector(detector, view)
        attacked = yield from attack(face, target, settings)
        length = getattr(settings, "alpha", settings.epsilon)  # what FGSM calls epsilon is its step
        return Edited(face, attacked.images, int(attacked.iterations[0]), None, length, attacked.seconds)
    if method not in COMPOSITES:
        raise UserError(f"There is no method {method}.", f"Choose among: {', '.join(EDIT_METHODS)}.")
    inverter = inversion.load_embedded_inverter()
    search_settings = SearchSettings(
        levels=parse_levels(level),
        epsilon=inverter.epsilon * factor,
        lengths=lengths,
        steps=steps,
        kappa=kappa,
        composite=method,  # type: ignore[arg-type]
    )
    result = yield from search(inverter, detector, face, search_settings, view)
    change = changes.measure_latent_change(result.codes_start, result.codes).levels
    return Edited(
        start=result.inversion if method == "reconstruction" else result.original,
        picture=result.counterfactual,
        steps=int(result.steps[0]),
        change={name: float(value[0]) for name, value in change.items()},
        epsilon=result.epsilon,
        seconds=result.seconds,
    )


@validated
@dataclass(frozen=True)
class CounterfactualConfig(ProtocolConfig):
    """Settings.

    Args:
        detectors: Which detectors judge.
        attacked: Which of them are attacked.
        methods: Which edits, of `EDIT_METHODS`.
        variant: Whose settings the attacks on pixels have: Artifact-Eraser's, or the usual ones (`standard`).
        ablated: Detectors on which levels and step lengths are varied.
        ablated_method: Which latent search is varied, `reconstruction` or `transfer`.
        levels: Levels that are opened one at a time.
        factors: Multiples of the generator's own step.
        steps: Steps of a search at most.
        kappa: Margin of a search, in [0, 1): it ends once p_real - p_fake passes it.
        lengths: How the steps of a search differ between the rows of a code: `equal` as in the paper, or `visible`.
    """

    detectors: Values[str] = ()
    attacked: Values[str] = ()
    methods: Values[str] = EDIT_METHODS
    variant: AttackVariant = "artifact_eraser"
    ablated: Values[str] = ()
    ablated_method: Literal["reconstruction", "transfer"] = "reconstruction"
    levels: Values[str] = LEVELS
    factors: Values[float] = (0.25, 0.5, 2.0, 4.0)
    steps: Whole = 100
    kappa: float = SearchSettings.kappa
    lengths: StepLengths = SearchSettings.lengths


@register_protocol(order=20)
class CounterfactualProtocol(Protocol):
    """An item is one fake, one attacked detector and one method; a row is what one detector says of the edit."""

    config: CounterfactualConfig

    name = "counterfactual"
    title = "Counterfactuals"
    about = (
        "How often a small change of the style codes turns a detector's verdict on a fake, how the edited faces look "
        "beside those of FGSM, MIFGSM and PGD, whether detectors that were not attacked are turned along, and what "
        "levels and step length do."
    )
    source = "Protocol of Artifact-Eraser (Dong et al. 2024, arXiv 2404.08341, section 4)."
    defaults_of_old_runs: ClassVar[Mapping[str, Any]] = {"lengths": "equal"}

    @classmethod
    def preset(cls, name: str) -> CounterfactualConfig:
        known = tuple(registry.loadable())
        if name != QUICK:
            return CounterfactualConfig(None, 0, detectors=known, attacked=known, ablated=known)
        return CounterfactualConfig(
            12, 0, detectors=known, attacked=known[:3], ablated=known[:1], factors=(0.5, 2.0), steps=50
        )

    def models(self) -> list[str]:
        return [*self.config.detectors, *self.config.attacked, "generator", "encoder"]

    def measures(self) -> dict[str, str]:
        """Return which networks measure identity and LPIPS, and what of a search the model files do not say."""
        recogniser = identity.best_recogniser()
        return {
            "identity": recogniser.name if recogniser else str(identity.identity_missing()),
            "lpips": similarity.lpips_missing() or "AlexNet, version 0.1",
            "search": f"epsilon {weights.find_entry('generator').options['epsilon']:g}, visibility of the rows "
            f"{list(weights.find_entry('encoder').options.get('visibility', ()))}",
        }

    def items(self, data: Dataset) -> list[Item]:
        config = self.config
        check_detectors(config.detectors)
        check_detectors((*config.attacked, *config.ablated), config.detectors)
        settings = [
            {"detector": detector, "method": method, "level": ALL_LEVELS, "factor": 1.0}
            for detector in config.attacked
            for method in config.methods
        ]
        for detector in config.ablated:
            varied = {"detector": detector, "method": config.ablated_method}
            settings += [varied | {"level": level, "factor": 1.0} for level in config.levels]
            settings += [varied | {"level": ALL_LEVELS, "factor": factor} for factor in config.factors]
        unique = {tuple(setting.values()): setting for setting in settings}
        return [make_item(sample.name, **setting) for sample in data.fakes for setting in unique.values()]

    def run_item(self, item: Item, data: Dataset) -> Job[list[Row]]:
        """Edit one fake and ask every detector about original, start and edit."""
        sample, options, config = data.by_name[item.sample], item.options, self.config
        source = sample_source(data, sample.name)
        face = images.to_tensor(source.aligned.crop)
        edited = yield from edit_face(
            options["method"],
            face,
            registry.load(options["detector"]),
            level=options["level"],
            factor=options["factor"],
            steps=config.steps,
            kappa=config.kappa,
            lengths=config.lengths,
            variant=config.variant,
            source=source,
        )
        scores = {
            name: predict.predict_p_fake(picture, list(config.detectors), source)
            for name, picture in (("p_original", face), ("p_start", edited.start), ("p_edited", edited.picture))
        }
        facts: Row = {"sample": sample.name, "family": sample.family, "source": sample.source}
        facts["attacked"] = options["detector"]
        facts |= {"method": options["method"], "level": options["level"], "factor": options["factor"]}
        rows = []
        for judge in config.detectors:
            row = facts | {"judge": judge} | {name: by_judge[judge][0] for name, by_judge in scores.items()}
            row["turned"] = row["p_edited"] < THRESHOLD < min(row["p_original"], row["p_start"])
            if judge == options["detector"]:
                row |= {"steps": edited.steps, "epsilon": edited.epsilon, "seconds": edited.seconds}
                row |= {f"change_{level}": value for level, value in (edited.change or {}).items()}
                row |= _measured_quality(face, edited.picture) if row["turned"] else {}
            rows.append(row)
        return rows

    def tables(self, rows: Sequence[Row]) -> list[Table]:
        frame = pd.DataFrame(rows)
        plain = _plain_edits(frame)
        edits = self._by_edit(plain[plain["attacked"] == plain["judge"]])
        return [
            _families_table(edits),
            self._beside_table(plain),
            _success_table(edits),
            _quality_table(edits, self.measures()),
            self._transfer_table(plain),
            self._levels_table(frame),
            self._steps_table(frame),
            _change_table(edits),
            _time_table(edits),
        ]

    def plots(self, rows: Sequence[Row]) -> list[Figure]:
        frame = pd.DataFrame(rows)
        figures = [self._transfer_plot(method, _plain_edits(frame)) for method in self.config.methods]
        levels, steps = self._levels_table(frame), self._steps_table(frame)
        names = [detector_title(name) for name in self.config.ablated]
        labels: list[Any] = list(dict.fromkeys(row[1] for row in levels.rows))
        if labels:
            groups = [Series(name, (), _rates_by_key(levels, name, labels)) for name in names]
            alt = "Attack success rate by the style levels that were open. " + plots.values_in_words(groups, labels)
            figures.append(
                plots.draw_bars("levels", "Success by style level", alt, labels, groups, y_label="ASR, both")
            )
        lengths: list[Any] = sorted({row[1] for row in steps.rows})
        if len(lengths) > 1:
            lines = [Series(name, lengths, _rates_by_key(steps, name, lengths)) for name in names]
            alt = "Attack success rate over the length of a step. "
            alt += plots.values_in_words(lines, [f"{length:g}" for length in lengths])
            title, below = "Success by length of a step", "Length of a step in the codes"
            figures.append(plots.draw_lines("epsilon", title, alt, lines, x_label=below, y_label="ASR, both"))
        return figures

    def finding(self, rows: Sequence[Row]) -> str:
        plain, rates = _plain_edits(pd.DataFrame(rows)), []
        for method in self.config.methods:
            attacked, others = self._success_rates(plain, method)
            if attacked.value is not None:
                transferred = "" if others.value is None else f" and {others.value:.0%}"
                rates.append(f"{EDIT_TITLES[method]} {attacked.value:.0%}{transferred}")
        about = "Verdicts of fake that an edit turns, on the attacked detector and on the others: "
        return f"{about}{'; '.join(rates)}." if rates else ""

    def limits(self, data: Dataset) -> list[str]:
        sentences = super().limits(data)
        sentences.append(
            "For 'transfer' and for the attacks on pixels the start is the original itself, so two denominators "
            "coincide; for 'reconstruction' it is the generator's inversion."
        )
        sentences.append("Quality is measured on successes only, so methods are compared on different pictures.")
        if self.config.lengths == "visible":
            sentences.append(
                "The steps of a search are shorter in rows of the code to which the generator reacts more, and longer "
                "in the others, where its rows were measured; the paper's are equal, which --set lengths=equal does."
            )
        missing = [identity.identity_missing(), similarity.lpips_missing()]
        return sentences + [reason for reason in missing if reason is not None]

    def published(self) -> list[Table]:
        return [published.transfer_table()]

    def _by_edit(self, frame: pd.DataFrame) -> Edits:
        return [
            (detector_title(name), method, select(frame, attacked=name, method=method))
            for name in self.config.attacked
            for method in self.config.methods
        ]

    def _judge_rates(self, frame: pd.DataFrame, method: str, attacked: str) -> list[Estimate]:
        """Return the success rate by every judging detector of the edits against one."""
        edits = select(frame, method=method, attacked=attacked)
        return [_asr(select(edits, judge=judge)).both for judge in self.config.detectors]

    def _success_rates(self, frame: pd.DataFrame, method: str) -> tuple[Estimate, Estimate]:
        """Return the mean rate at which attacked detectors are turned, and that of all others."""
        rates = [
            (judge == attacked, rate.value)
            for attacked in self.config.attacked
            for judge, rate in zip(self.config.detectors, self._judge_rates(frame, method, attacked), strict=True)
        ]
        return mean(rate for same, rate in rates if same), mean(rate for same, rate in rates if not same)

    def _beside_table(self, frame: pd.DataFrame) -> Table:
        printed = published.printed_transfer_means()
        printed |= {EDIT_TITLES[name]: printed["Counterfactual"] for name in COMPOSITES}
        body: list[tuple[Cell, ...]] = []
        for method in self.config.methods:
            attacked, others = self._success_rates(frame, method)
            paper = printed.get(EDIT_TITLES[method], ("not printed", "not printed"))
            body.append((EDIT_TITLES[method], attacked, paper[0], others, paper[1]))
        columns = (
            METHOD,
            Column("own", "ASR, ours", "asr_both", 2),
            Column("paper_own", "ASR, paper", digits=2),
            Column("others", "Transfer, ours", "transfer_rate", 2),
            Column("paper_others", "Transfer, paper", digits=2),
        )
        note = (
            "Means over attacked detectors, and over all pairs of an attacked and another detector: n counts these, "
            "not pictures, and ± is the spread among them. The paper is "
            f"Artifact-Eraser (arXiv 2404.08341), table 2, Celeb-DF. {published.WHY_TRANSFER_DIFFERS}"
        )
        return Table("beside", "Success and transfer, ours and the paper's", columns, tuple(body), note, beside=True)

    def _transfer_table(self, frame: pd.DataFrame) -> Table:
        judges = (
            Column(f"judge_{name}", f"judged by {detector_title(name)}", "transfer_rate")
            for name in self.config.detectors
        )
        body: list[tuple[Cell, ...]] = [
            (EDIT_TITLES[method], detector_title(name), *self._judge_rates(frame, method, name))
            for method in self.config.methods
            for name in self.config.attacked
        ]
        note = "Of what the judge itself called fake before and at the start; where both are one detector, its own ASR."
        return Table("transfer", "Transfer to other detectors", (METHOD, ATTACKED, *judges), tuple(body), note)

    def _levels_table(self, frame: pd.DataFrame) -> Table:
        column = Column("level", "Levels")
        levels = sorted(set(select(frame, factor=1)["level"]), key=lambda level: (len(level), LEVELS.index(level[0])))
        return self._varied_table("levels", "Levels opened one at a time", column, levels, select(frame, factor=1))

    def _steps_table(self, frame: pd.DataFrame) -> Table:
        column = Column("epsilon", "Step", digits=5, key=True)
        varied = select(frame, level=ALL_LEVELS, method=self.config.ablated_method)
        lengths = sorted(set(varied[varied["attacked"] == varied["judge"]]["epsilon"]))
        return self._varied_table("epsilon", "Length of a step", column, lengths, varied)

    def _varied_table(self, table: str, title: str, column: Column, values: list[Any], frame: pd.DataFrame) -> Table:
        """Return success, steps, PSNR and noise at each value of a setting, by detector."""
        method, body = self.config.ablated_method, []
        for name in self.config.ablated:
            edits = select(frame, attacked=name, judge=name, method=method)
            for value in values:
                varied = select(edits, **{column.name: value})
                cells = (mean(varied[varied["turned"]].get(of, ())) for of in ("steps", "psnr", "tv", "esnle"))
                body.append((detector_title(name), value, _asr(varied).both, *cells))
        columns = (ATTACKED, column, BOTH, Column("steps", "Steps", digits=1), PSNR, TV, ESNLE)
        note = f"{EDIT_TITLES[method]}, at most {self.config.steps} steps; all but ASR of successes."
        return Table(table, title, columns, tuple(body), note)

    def _transfer_plot(self, method: str, frame: pd.DataFrame) -> Figure:
        config = self.config
        names, judges = (list(map(detector_title, of)) for of in (config.attacked, config.detectors))
        rates = [[cell_number(rate) for rate in self._judge_rates(frame, method, name)] for name in config.attacked]
        values = np.array(rates, dtype=np.float64).reshape(len(names), len(judges))
        alt = "Rows: attacked detector; columns: judging detector. " + "; ".join(
            f"{name}: " + ", ".join("none" if np.isnan(value) else f"{value:.2f}" for value in line)
            for name, line in zip(names, values, strict=True)
        )
        title = f"Transfer, {EDIT_TITLES[method]}"
        return plots.draw_matrix(f"transfer_{method}", title, f"{alt}.", values, names, judges, label="Transfer rate")


def _measured_quality(original: Tensor, edited: Tensor) -> Row:
    """Measure an edit (1, 3, H, W) against its original; None where a metric cannot be had."""
    before, after = images.to_array(original), images.to_array(edited)
    measured: Row = {"psnr": similarity.picture_psnr(before, after), "ssim": similarity.picture_ssim(before, after)}
    for name, picture in (("", edited), ("_before", original)):
        measured[f"tv{name}"] = float(naturalness.total_variation(picture)[0])
        measured[f"esnle{name}"] = float(naturalness.noise_level(picture)[0])
    if similarity.lpips_missing() is None:
        measured["lpips"] = float(similarity.batch_lpips(original, edited)[0])
    if identity.best_recogniser() is not None:
        same = identity.compare_identity(original, edited, FACE_TEMPLATE)
        measured |= {"identity": same.similarity, "identity_retained": same.retained}
    return measured


def _families_table(edits: Edits) -> Table:
    families = sorted({family for _, _, frame in edits for family in frame["family"]})
    body = [
        (family_title(family), name, EDIT_TITLES[method], _asr(select(frame, family=family)).both)
        for family in families
        for name, method, frame in edits
    ]
    columns = (FAMILY, ATTACKED, METHOD, BOTH)
    return Table("families", "Success by family of fakes", columns, tuple(body), by_family=True)


def _success_table(edits: Edits) -> Table:
    body: list[tuple[Cell, ...]] = []
    for name, method, frame in edits:
        rates = _asr(frame)
        cells = (rates.everything, rates.detected, rates.after_inversion, rates.both)
        body.append((name, EDIT_TITLES[method], *cells))
    note = "A success is called fake before and at the start of the edit, and no longer after it."
    return Table("success", "Attack success over four denominators", (ATTACKED, METHOD, *ASR), tuple(body), note)


def _quality_table(edits: Edits, measures: Mapping[str, str]) -> Table:
    body: list[tuple[Cell, ...]] = []
    for name, method, frame in edits:
        turned = frame[frame["turned"]]
        retained = [value for value in turned.get("identity_retained", ()) if isinstance(value, bool)]
        values = (mean(turned.get(column.name, ())) for column in QUALITY)
        body.append((name, EDIT_TITLES[method], proportion(sum(retained), len(retained)), *values))
    note = "Of successes, edited against original. " + " ".join(
        f"{title}: {measures[name].rstrip('.')}." for name, title in (("identity", "Identity"), ("lpips", "LPIPS"))
    )
    return Table("quality", "Quality of successes", (ATTACKED, METHOD, RETAINED, *QUALITY), tuple(body), note)


def _change_table(edits: Edits) -> Table:
    levels = (Column(f"change_{level}", f"Change of {level}", digits=5) for level in LEVELS)
    searched = [(name, method, frame[frame["turned"]]) for name, method, frame in edits if method not in PIXEL_ATTACKS]
    body: list[tuple[Cell, ...]] = [
        (family_title(family), name, EDIT_TITLES[method], *(mean(turned[f"change_{level}"]) for level in LEVELS))
        for family in sorted({family for _, _, frame in searched for family in frame["family"]})
        for name, method, frame in searched
        if len(turned := select(frame, family=family))
    ]
    note = "Mean absolute change of the codes of successes, by style level (Artifact-Eraser, appendix, figure 3)."
    columns = (FAMILY, ATTACKED, METHOD, *levels)
    return Table("latent_change", "How far the codes moved", columns, tuple(body), note)


def _time_table(edits: Edits) -> Table:
    body = [(name, EDIT_TITLES[method], mean(frame["seconds"])) for name, method, frame in edits]
    return Table("time", "Seconds an edit", (ATTACKED, METHOD, Column("seconds", "Seconds", digits=2)), tuple(body))


def _plain_edits(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the edits with every level open and the generator's own step."""
    return select(frame, level=ALL_LEVELS, factor=1)


def _asr(frame: pd.DataFrame) -> success.Success:
    return success.attack_success(frame["p_original"], frame["p_start"], frame["p_edited"])


def _rates_by_key(table: Table, detector: str, keys: Sequence[Any]) -> list[float]:
    """Return the success rates of a detector by the values in the second column, NaN where there is none."""
    rates = {row[1]: cell_number(row[2]) for row in table.rows if row[0] == detector}
    return [rates.get(key, float("nan")) for key in keys]
