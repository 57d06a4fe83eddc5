"""How good counterfactuals are, beside attacks on pixels: success, quality, transfer, levels, step length."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor

from backend import images, verdicts, weights
from backend.counterfactual.levels import LEVELS
from backend.counterfactual.search import SearchSettings
from backend.counterfactual.search_settings import Lengths
from backend.detectors import registry
from backend.detectors.card import THRESHOLD
from backend.evaluate import edits, published
from backend.evaluate.crops import TEMPLATE, source_of
from backend.evaluate.data import Dataset
from backend.evaluate.metrics import identity, likeness, naturalness
from backend.evaluate.plots import Figure
from backend.evaluate.protocols import counterfactual_tables
from backend.evaluate.protocols.protocol import QUICK, Config, Item, Protocol, check_detectors, item
from backend.evaluate.rows import Row
from backend.evaluate.tables import Table


@dataclass(frozen=True)
class CounterfactualConfig(Config):
    """Settings.

    Args:
        detectors: Which detectors judge.
        attacked: Which of them are attacked.
        methods: Which edits, of `edits.METHODS`.
        variant: Whose settings the attacks on pixels have: Artifact-Eraser's (`paper000`) or the usual ones.
        ablated: Detectors on which levels and step lengths are varied.
        ablated_method: Which latent search is varied, `reconstruction` or `transfer`.
        levels: Levels that are opened one at a time.
        factors: Multiples of the generator's own step.
        steps: Steps of a search at most.
        kappa: Margin of a search, in [0, 1): it ends once p_real - p_fake passes it.
        lengths: How the steps of a search differ between the rows of a code: `equal` as in the paper, or `visible`.
    """

    detectors: tuple[str, ...] = ()
    attacked: tuple[str, ...] = ()
    methods: tuple[str, ...] = edits.METHODS
    variant: Literal["paper000", "standard"] = "paper000"
    ablated: tuple[str, ...] = ()
    ablated_method: Literal["reconstruction", "transfer"] = "reconstruction"
    levels: tuple[str, ...] = LEVELS
    factors: tuple[float, ...] = (0.25, 0.5, 2.0, 4.0)
    steps: int = 100
    kappa: float = SearchSettings.kappa
    lengths: Lengths = SearchSettings.lengths


@dataclass(frozen=True)
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
    Settings = CounterfactualConfig
    earlier: ClassVar[Mapping[str, Any]] = {"lengths": "equal"}

    @classmethod
    def preset(cls, name: str) -> CounterfactualConfig:
        """Return 12 fakes, 3 attacked detectors and levels and steps varied on one, or everything on all."""
        known = tuple(registry.loadable())
        if name != QUICK:
            return CounterfactualConfig(None, 0, detectors=known, attacked=known, ablated=known)
        return CounterfactualConfig(
            12, 0, detectors=known, attacked=known[:3], ablated=known[:1], factors=(0.5, 2.0), steps=50
        )

    def models(self) -> list[str]:
        """Return the detectors, the generator and its encoder."""
        return [*self.config.detectors, *self.config.attacked, "generator", "encoder"]

    def measures(self) -> dict[str, str]:
        """Return which networks measure identity and LPIPS, and what of a search the model files do not say."""
        recogniser = identity.recogniser()
        return {
            "identity": recogniser.name if recogniser else str(identity.identity_missing()),
            "lpips": likeness.lpips_missing() or "AlexNet, version 0.1",
            "search": f"epsilon {weights.entry('generator').options['epsilon']:g}, visibility of the rows "
            f"{list(weights.entry('encoder').options.get('visibility', ()))}",
        }

    def items(self, data: Dataset) -> list[Item]:
        """Return every fake with every method against every detector, and the varied searches."""
        config = self.config
        check_detectors(config.detectors)
        check_detectors((*config.attacked, *config.ablated), config.detectors)
        settings = [
            {"detector": detector, "method": method, "level": edits.ALL_LEVELS, "factor": 1.0}
            for detector in config.attacked
            for method in config.methods
        ]
        for detector in config.ablated:
            own = {"detector": detector, "method": config.ablated_method}
            settings += [own | {"level": level, "factor": 1.0} for level in config.levels]
            settings += [own | {"level": edits.ALL_LEVELS, "factor": factor} for factor in config.factors]
        unique = {tuple(setting.values()): setting for setting in settings}
        return [item(sample.name, **setting) for sample in data.fakes for setting in unique.values()]

    def run_item(self, item: Item, data: Dataset) -> list[Row]:
        """Edit one fake and ask every detector about original, start and edit."""
        sample, options, config = data.by_name[item.sample], item.options, self.config
        source = source_of(data, sample.name)
        face = images.to_tensor(source.aligned.crop)
        edited = edits.edit(
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
            name: verdicts.p_fake(picture, list(config.detectors), source)
            for name, picture in (("p_original", face), ("p_start", edited.start), ("p_edited", edited.picture))
        }
        said = {
            "sample": sample.name,
            "family": sample.family,
            "source": sample.source,
            "attacked": options["detector"],
        }
        said |= {"method": options["method"], "level": options["level"], "factor": options["factor"]}
        rows = []
        for judge in config.detectors:
            row = said | {"judge": judge} | {name: by_judge[judge][0] for name, by_judge in scores.items()}
            row["turned"] = row["p_edited"] < THRESHOLD < min(row["p_original"], row["p_start"])
            if judge == options["detector"]:
                row |= {"steps": edited.steps, "epsilon": edited.epsilon, "seconds": edited.seconds}
                row |= {f"change_{level}": value for level, value in (edited.change or {}).items()}
                row |= _quality(face, edited.picture) if row["turned"] else {}
            rows.append(row)
        return rows

    def tables(self, rows: Sequence[Row]) -> list[Table]:
        """Return success by family, success, quality, transfer, levels, step length, change of the codes, and time."""
        return counterfactual_tables.tables(rows, self.config, self.measures())

    def plots(self, rows: Sequence[Row]) -> list[Figure]:
        """Return the transfer matrices, and success over levels and step length."""
        return counterfactual_tables.plots_of(rows, self.config)

    def finding(self, rows: Sequence[Row]) -> str:
        """Say how often edits turn the attacked detector, and others with it."""
        return counterfactual_tables.finding(rows, self.config)

    def limits(self, data: Dataset) -> list[str]:
        """Add what the edits and the start pictures mean, and what could not be measured."""
        said = super().limits(data)
        said.append(
            "For 'transfer' and for the attacks on pixels the start is the original itself, so two denominators "
            "coincide; for 'reconstruction' it is the generator's inversion."
        )
        said.append("Quality is measured on successes only, so methods are compared on different pictures.")
        if self.config.lengths == "visible":
            said.append(
                "The steps of a search are shorter in rows of the code to which the generator reacts more, and longer "
                "in the others, where its rows were measured; the paper's are equal, which --set lengths=equal does."
            )
        missing = [identity.identity_missing(), likeness.lpips_missing()]
        return said + [reason for reason in missing if reason is not None]

    def published(self) -> list[Table]:
        """Return the paper's transfer table."""
        return [published.transfer_celeb_df()]


def _quality(original: Tensor, edited: Tensor) -> Row:
    """Measure an edit (1, 3, H, W) against its original; None where a metric cannot be had."""
    before, after = images.to_array(original), images.to_array(edited)
    measured: Row = {"psnr": likeness.psnr(before, after), "ssim": likeness.ssim(before, after)}
    for name, picture in (("", edited), ("_before", original)):
        measured[f"tv{name}"] = float(naturalness.total_variation(picture)[0])
        measured[f"esnle{name}"] = float(naturalness.noise_level(picture)[0])
    if likeness.lpips_missing() is None:
        measured["lpips"] = float(likeness.lpips(original, edited)[0])
    if identity.recogniser() is not None:
        same = identity.identity(original, edited, TEMPLATE)
        measured |= {"identity": same.similarity, "identity_retained": same.retained}
    return measured
