"""How good the detectors are: per family and source, calibration, and robustness to what happens to pictures."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from backend import images, runtime
from backend.detectors import registry
from backend.errors import UserError
from backend.evaluate import corruptions
from backend.evaluate.crops import crop
from backend.evaluate.data import Dataset
from backend.evaluate.plots import Figure
from backend.evaluate.protocols import detectors_tables
from backend.evaluate.protocols.protocol import QUICK, Config, Item, Protocol, check_detectors, item
from backend.evaluate.rows import Row
from backend.evaluate.tables import Table

CORRUPTIONS = (
    *("none", "jpeg 90", "jpeg 70", "jpeg 50", "jpeg 30", "blur 0.5", "blur 1", "blur 2"),
    *("resize 0.75", "resize 0.5", "resize 0.25", "noise 2", "noise 5", "noise 10"),
)


@dataclass(frozen=True)
class DetectorsConfig(Config):
    """Settings.

    Args:
        detectors: Which detectors.
        corruptions: What is done to the pictures, one at a time, as `jpeg 70`; `none` must be among them.
        recalls: Shares of fakes to be caught, at which false alarms are counted.
    """

    detectors: tuple[str, ...] = ()
    corruptions: tuple[str, ...] = CORRUPTIONS
    recalls: tuple[float, ...] = (0.9, 0.95)


@dataclass(frozen=True)
class DetectorsProtocol(Protocol):
    """An item is one picture after one corruption; a row is what one detector says of it."""

    config: DetectorsConfig

    name = "detectors"
    title = "Detectors"
    about = (
        "How often each detector is right, by family of fakes and by source of real pictures; whether its "
        "probabilities mean what they say; and what JPEG, blur, a smaller size and noise do to it."
    )
    source = "Measures as usual in the field (Roessler et al. 2019, arXiv 1901.08971; Guo et al. 2017)."
    Settings = DetectorsConfig

    @classmethod
    def preset(cls, name: str) -> DetectorsConfig:
        """Return 12 fakes and 12 real pictures, or all."""
        count = 12 if name == QUICK else None
        return DetectorsConfig(count, count, detectors=tuple(registry.loadable()))

    def models(self) -> list[str]:
        """Return the detectors."""
        return list(self.config.detectors)

    def items(self, data: Dataset) -> list[Item]:
        """Return every picture with every corruption."""
        check_detectors(self.config.detectors)
        for text in self.config.corruptions:
            corruptions.parse(text)
        if corruptions.NONE not in self.config.corruptions:
            raise UserError("The pictures as they are were left out.", "Name none among the corruptions.")
        if not all(0 < recall <= 1 for recall in self.config.recalls):
            raise UserError("A share of fakes to be caught lies above 0 and at most at 1.", "Use shares such as 0.9.")
        return [item(sample.name, corruption=text) for sample in data.samples for text in self.config.corruptions]

    def run_item(self, item: Item, data: Dataset) -> list[Row]:
        """Ask every detector about one face, cut out as the detector wants it and corrupted."""
        sample = data.by_name[item.sample]
        kind, strength = corruptions.parse(item.options["corruption"])
        said: Row = {"sample": sample.name, "label": sample.label, "family": sample.family, "source": sample.source}
        said |= {"corruption": kind, "strength": strength}
        rows = []
        for name in self.config.detectors:
            detector = registry.load(name)
            own = crop(data, sample.name, size=detector.card.input_size, template=detector.card.template)
            face = corruptions.corrupt(own.crop, kind, strength, self.config.seed, sample.name)
            with runtime.MODEL_LOCK, torch.no_grad():
                log_odds = float(detector.logit_fake(images.to_tensor(face).to(runtime.device()))[0])
                p_fake = float(torch.sigmoid(torch.tensor(log_odds)))
            rows.append(said | {"detector": name, "log_odds": log_odds, "p_fake": p_fake})
        return rows

    def tables(self, rows: Sequence[Row]) -> list[Table]:
        """Return the tables by family, by source, of all pictures, of the corruptions, and of the calibration."""
        return detectors_tables.tables(rows, self.config)

    def plots(self, rows: Sequence[Row]) -> list[Figure]:
        """Return ROC curves, calibration and robustness."""
        return detectors_tables.plots_of(rows, self.config)

    def finding(self, rows: Sequence[Row]) -> str:
        """Say which detector separates best, and which family is hardest."""
        return detectors_tables.finding(rows, self.config)

    def limits(self, data: Dataset) -> list[str]:
        """Add what depends on how the pictures were made."""
        said = super().limits(data)
        said.append("A detector can win by sharpness, size or JPEG history alone where real and fake differ in these.")
        said.append(
            "The detectors that come with this app were trained on fakes by its own models; on fakes of these kinds "
            "they are better than on a stranger's."
        )
        said.append(
            "AUC, average precision and equal error rate stand without an interval, and are no surer than the rates "
            "beside them; the best of many detectors is partly the luckiest."
        )
        said.append("Average precision depends on how many of the pictures are fake; in the world, few are.")
        return said
