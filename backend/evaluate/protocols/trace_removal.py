"""What detectors still see after their traces were removed: six attacks, TR-Net at other strengths, other TR-Nets.

Ablations are rows of the same tables: every TR-Net that the setting `removers` names is one more attack. Train them
with less data, or without a family of fakes, for example

    python -m backend train fakes --data DIR --packs "real-train*" --per-kind 90 --out tenth/train
    python -m backend train fakes --data DIR --packs "real-val*" --per-kind 90 --seed 1 --out tenth/val
    python -m backend train trnet --data DIR --fakes tenth --out tenth/trnet.safetensors
    python -m backend train fakes --data DIR --packs "real-train*" --kinds reconstruction,edit,sample --out noswap/train
    python -m backend train fakes --data DIR --packs "real-val*" --kinds reconstruction,edit,sample --out noswap/val
    python -m backend train trnet --data DIR --fakes noswap --out noswap/trnet.safetensors
    python -m backend evaluate trace-removal --data DIR --out DIR
        --set 'removers=["tenth=tenth/trnet.safetensors", "no swaps=noswap/trnet.safetensors"]'

The features of TR-Net's own discriminators are drawn where `checkpoint` names the `checkpoint.pt` that its training
left in `trnet-run`; the app does not ship them.
"""

import dataclasses
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from backend import face_packs, images, similarity, weights
from backend.alignment import CroppedPhoto
from backend.attacks import registry
from backend.attacks.registry import ATTACKS, WHITE_BOX, compared_attacks, get_attack
from backend.detectors import predict
from backend.detectors import registry as detectors_registry
from backend.detectors.base import THRESHOLD
from backend.errors import UserError
from backend.evaluate import plots, published
from backend.evaluate.dataset import FACE_SIZE, Dataset, Sample, sample_source
from backend.evaluate.metrics import traces
from backend.evaluate.metrics.base import Estimate, mean, proportion
from backend.evaluate.plots import Figure, Series
from backend.evaluate.protocols.base import (
    PRESETS,
    QUICK,
    Count,
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
from backend.images import JPEG_QUALITY, like_photographs
from backend.progress import Job
from backend.settings import validated
from backend.trace_removal import references, removal
from backend.trace_removal.references import REAL, References

NO_ATTACK = "none"  # attack: the picture as it is
ATTACK_TABLE = "attack-table"  # preset: held-out aligned faces, every installed detector, neither features nor traces
FAMILY, DEFENCE, ATTACK = Column("family", "Family"), Column("defence", "Defence"), Column("attack", "After")
NOT_PRINTED = "not printed"
STILL_FAKE = "Shares of fakes that are still called fake: the lower, the stronger the attack."
MOST_DRAWN = 600  # pictures of a group in a map of features
COLOUR_LIMIT = 12.0  # dB at which the colours of a difference end
ACROSS, HEADING = 4, 7  # maps in a row; pixels above a map for its name
TRAIN_FEWER = (
    "Ablations of TR-Net (a share of the data, a family left out) need networks of their own: make fakes with "
    "'python -m backend train fakes --per-kind N' or '--kinds A,B,C', with --out NAME/train of photographs to train "
    "with and --out NAME/val of others, then 'python -m backend train trnet --fakes NAME --out "
    "NAME/trnet.safetensors', and name them by --set 'removers=[\"NAME=NAME/trnet.safetensors\"]'."
)


@validated
@dataclass(frozen=True)
class TraceRemovalConfig(ProtocolConfig):
    """Settings.

    Args:
        detectors: Which detectors judge; every set has its own copy of those that are installed.
        defences: Which sets, of `registry.DEFENCES`.
        attacks: Which attacks, of `registry.ATTACKS`.
        white_box: The shipped detector whose gradient FGSM, MIFGSM and PGD use.
        removers: Further TR-Nets, each as NAME=PATH of its weights.
        features: The shipped detector whose features are drawn; empty to measure neither features nor traces.
        checkpoint: `checkpoint.pt` of a TR-Net's training, whose discriminators' features are drawn instead.
        neighbours: In how many nearest neighbours in feature space the real pictures are counted.
        saved: Whether every face is saved as JPEG, as photographs are, before an attack and again before detection.
        aligned: Whether every picture is an aligned face, which is only resized, instead of a photo to search.
        per_family: How many fakes of each family are measured, with as many real pictures; 0 takes all fakes. None
            leaves the choice to `fakes` and `reals`.
        batch: How many faces are attacked together, with one seed for each batch; 0 attacks each face alone, with a
            seed of its own.
    """

    detectors: Values[str] = ()
    defences: Values[str] = tuple(registry.DEFENCES)
    attacks: Values[str] = field(default_factory=lambda: (*compared_attacks(), *removal.STRENGTHS))
    white_box: str = WHITE_BOX
    removers: Values[str] = ()
    features: str = WHITE_BOX
    checkpoint: str = ""
    neighbours: Whole = 5
    saved: bool = True
    aligned: bool = False
    per_family: Count | None = None
    batch: Count = 0


@register_protocol(order=30)
class TraceRemovalProtocol(Protocol):
    """An item is one picture after one attack; its rows are what each detector says of it, and one of measures."""

    config: TraceRemovalConfig

    name = "trace-removal"
    title = "Trace removal"
    about = (
        "How many fakes detectors still find after noise, FGSM, MIFGSM, PGD, GANprintR and TR-Net, also at other "
        "strengths than TR-Net was trained for; what that costs in "
        "picture quality; and how much of a fake's spectrum and noise still differs from real photographs."
    )
    source = "Protocol of TR-Net (Liu et al. 2022, arXiv 2203.11433, section 5)."
    presets = (*PRESETS, ATTACK_TABLE)

    @classmethod
    def preset(cls, name: str) -> TraceRemovalConfig:
        if name == ATTACK_TABLE:
            return TraceRemovalConfig(
                detectors=tuple(detectors_registry.names()),
                defences=("none", registry.SHIPPED),
                attacks=compared_attacks(),
                features="",
                aligned=True,
                per_family=0,
                batch=16,
            )
        count = 12 if name == QUICK else None
        return TraceRemovalConfig(count, count, detectors=tuple(detectors_registry.loadable()))

    def removers(self) -> tuple[removal.Remover, ...]:
        return removal.parse_removers(self.config.removers)

    def attacks(self) -> list[str]:
        """Return the attacks that can run here, the further TR-Nets among them."""
        available = [attack.name for attack in map(get_attack, self.config.attacks) if attack.available()]
        return available + [remover.name for remover in self.removers()]

    def judges(self) -> dict[str, dict[str, str]]:
        """Return, by defence and detector, the installed entries."""
        config = self.config
        return {name: registry.installed_with_defence(name, config.detectors) for name in config.defences}

    def models(self) -> list[str]:
        entries = [entry for judges in self.judges().values() for entry in judges.values()]
        trained = [ATTACKS[name].entry for name in self.config.attacks if name in ATTACKS]
        traced = [self.config.features, references.REFERENCES_ENTRY] if self.config.features else []
        return [*entries, *(entry for entry in trained if entry), self.config.white_box, *traced]

    def hashes(self) -> dict[str, str]:
        """Add those of further TR-Nets and of the discriminators."""
        hashes = super().hashes() | {f"TR-Net {remover.name}": remover.hash() for remover in self.removers()}
        if self.config.checkpoint:
            hashes["discriminators"] = traces.checkpoint_hash(Path(self.config.checkpoint))
        return hashes

    def settings(self) -> dict[str, object]:
        """Name files without their folders: the hashes say which they are."""
        config = self.config
        return dataclasses.asdict(config) | {
            "removers": [f"{remover.name}={remover.path.name}" for remover in self.removers()],
            "checkpoint": Path(config.checkpoint).name,
        }

    def select_samples(self, data: Dataset) -> Dataset:
        """Return the pictures that are measured, drawn by family where the settings say so."""
        count = self.config.per_family
        if count is None:
            return super().select_samples(data)
        names = draw_by_family(data.samples, count or None, self.config.seed)
        return dataclasses.replace(data, samples=tuple(data.by_name[name] for name in sorted(names)))

    def problem(self, data: Dataset, name: str) -> str | None:
        """Say why a picture cannot be used; an aligned face always can."""
        return None if self.config.aligned else super().problem(data, name)

    def items(self, data: Dataset) -> list[Item]:
        config = self.config
        shipped = detectors_registry.names()  # those that are not installed are listed in a table
        others = [name for name in config.detectors if name not in shipped]
        check_detectors([*others, config.white_box, *([config.features] if config.features else [])])
        for name in config.defences:
            if name not in registry.DEFENCES:
                raise UserError(f"There is no defence {name}.", f"Choose among: {', '.join(registry.DEFENCES)}.")
        if not any(self.judges().values()):
            raise UserError("No detector of these sets is installed.", "Choose another set by --set defences=shipped.")
        for name in {remover.name for remover in self.removers()} & {*ATTACKS, NO_ATTACK}:
            raise UserError(f"A further TR-Net cannot be called {name}.", removal.REMOVER_HINT)
        options = {"real": [NO_ATTACK], "fake": [NO_ATTACK, *self.attacks()]}
        if config.batch:
            return _batch_items(data, options, config.batch)
        return [make_item(sample.name, attack=name) for sample in data.samples for name in options[sample.label]]

    def run_item(self, item: Item, data: Dataset) -> Job[list[Row]]:
        """Attack one face, or a batch, ask every detector of every set, and measure what is left of the traces."""
        samples = [data.by_name[name] for name in item.options.get("batch", [item.sample])]
        attack = item.options["attack"]
        crops, sources = self._crops(data, samples)
        faces = self._as_saved(torch.cat([images.to_tensor(crop) for crop in crops]))
        attacked = torch.cat(
            [images.to_tensor(images.to_array(face)) for face in (yield from self._attack(item, faces))]
        )
        shown = self._as_saved(attacked)
        scores = {
            defence: predict.predict_p_fake(shown, list(judges.values()), sources) if judges else {}
            for defence, judges in self.judges().items()
        }
        rows: list[Row] = []
        for number, sample in enumerate(samples):
            facts = {"sample": sample.name, "label": sample.label, "family": sample.family, "source": sample.source}
            facts["attack"] = attack
            place = slice(number, number + 1)
            rows += [
                facts
                | {"kind": "verdict", "defence": defence, "detector": name, "p_fake": scores[defence][entry][number]}
                for defence, judges in self.judges().items()
                for name, entry in judges.items()
            ]
            rows.append(
                facts | {"kind": "picture"} | self._measures(attack, faces[place], attacked[place], shown[place])
            )
        return rows

    def _crops(self, data: Dataset, samples: Sequence[Sample]) -> tuple[list[np.ndarray], list[CroppedPhoto] | None]:
        """Return the faces, uint8 (S, S, 3), and the photos they come from, if they are not aligned already."""
        if self.config.aligned:
            pictures = (data.path(sample.name).read_bytes() for sample in samples)
            return [face_packs.decode_picture(picture, FACE_SIZE) for picture in pictures], None
        sources = [sample_source(data, sample.name) for sample in samples]
        return [source.aligned.crop for source in sources], sources

    def _measures(self, attack: str, face: Tensor, attacked: Tensor, shown: Tensor) -> Row:
        """Measure one face (1, 3, S, S) after an attack: traces and features, and its likeness to the face before."""
        measures = _measured_traces(attacked) if self.config.features else {}
        if attack != NO_ATTACK:
            measures |= similarity.psnr_and_ssim(images.to_array(face), images.to_array(attacked))
        if self.config.features and (attack in (NO_ATTACK, removal.TRNET_ENTRY) or attack not in ATTACKS):
            measures |= self._features(shown)
        return measures

    def _as_saved(self, faces: Tensor) -> Tensor:
        """Return faces (N, 3, S, S) in [0, 1] as a detector is shown them."""
        return like_photographs((faces * 255).round().byte()).float() / 255 if self.config.saved else faces

    def _attack(self, item: Item, faces: Tensor) -> Job[Tensor]:
        """Return faces (N, 3, S, S) after an attack; its randomness depends on seed, attack and picture or batch."""
        attack = item.options["attack"]
        if attack == NO_ATTACK:
            return faces
        detector = detectors_registry.load(self.config.white_box)
        if "number" in item.options:
            seed = self.config.seed * 1_000_003 + item.options["number"]
        else:
            text = f"{self.config.seed}:{attack}:{item.sample}"
            seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")
        for remover in self.removers():
            if remover.name == attack:
                removed = yield from removal.attack_with_trnet(faces, detector, network=remover.load())
                return removed.images
        attacked = yield from get_attack(attack).run(faces, detector, seed=seed)
        return attacked.images

    def _features(self, picture: Tensor) -> Row:
        if not self.config.checkpoint:
            return {"features_detector": traces.detector_features(self.config.features, picture)}
        features = traces.discriminator_features(Path(self.config.checkpoint), picture)
        return {f"features_{name}": values for name, values in features.items()}

    def tables(self, rows: Sequence[Row]) -> list[Table]:
        verdicts, pictures = _frames(rows)
        reference = shipped_references()
        traced = [_traces_table(pictures, reference), self._neighbours_table(pictures)] if self.config.features else []
        return [
            self._families_table(verdicts),
            self._beside_table(verdicts),
            _beside_quality_table(pictures),
            self._detectors_table(verdicts),
            self._families_by_detector_table(verdicts),
            _quality_table(pictures),
            *traced,
            self._missing_table(),
        ]

    def plots(self, rows: Sequence[Row]) -> list[Figure]:
        verdicts, pictures = _frames(rows)
        reference = shipped_references()
        cost = self._cost_plot(verdicts, pictures)
        verdicts, pictures = without_strengths(verdicts), without_strengths(pictures)
        figures = [self._accuracy_plot(verdicts), self._families_plot(verdicts), cost]
        if self.config.features:
            figures += [_power_plot(pictures, reference), _spectra_plot(pictures, reference)]
        figures += [self._features_plot(kind, pictures) for kind in _feature_kinds(pictures)]
        return [figure for figure in figures if figure is not None]

    def finding(self, rows: Sequence[Row]) -> str:
        verdicts, pictures = _frames(rows)
        for defence in reversed(self.config.defences):
            means = {attack: mean_of_six(verdicts, defence, attack).value for attack in attacks_seen(verdicts)}
            left = {attack: value for attack, value in means.items() if value is not None}
            if NO_ATTACK in left:
                return self._finding_of_defence(defence, left, verdicts, pictures)
        return ""

    def _finding_of_defence(
        self, defence: str, left: Mapping[str, float], verdicts: pd.DataFrame, pictures: pd.DataFrame
    ) -> str:
        installed = registry.installed_with_defence(defence, self.config.detectors)
        count = sum(name in registry.TRNET_DETECTORS for name in installed)
        which = "All" if count == len(registry.TRNET_DETECTORS) else f"{count} of the"
        text = (
            f"{which} six detectors of TR-Net's paper, trained with {registry.DEFENCES[defence].title}, find "
            f"{left[NO_ATTACK]:.0%} of the untouched fakes on average"
        )
        trnet = removal.TRNET_ENTRY
        if trnet in left:
            text += f" and {left[trnet]:.0%} after TR-Net{_psnr_in_words(pictures, trnet)}"
            text += _family_range(verdicts, defence, trnet)
        others = {name: value for name, value in left.items() if name not in (NO_ATTACK, trnet, *removal.STRENGTHS)}
        if others:
            strongest = min(others, key=others.__getitem__)
            text += f"; of the other attacks {attack_title(strongest)} leaves least, {others[strongest]:.0%}"
            text += _psnr_in_words(pictures, strongest)
        further = [
            f"{attack_title(name)}, leaves {left[name]:.0%}{_psnr_in_words(pictures, name)}"
            for name in removal.STRENGTHS
            if name in left
        ]
        return f"{text}." + (f" {'; '.join(further)}." if further else "")

    def limits(self, data: Dataset) -> list[str]:
        limits = super().limits(data)
        limits.append(
            f"FGSM, MIFGSM and PGD see the gradient of {self.config.white_box} of the shipped set; to every other "
            "detector they are transferred. TR-Net, GANprintR and noise see none."
        )
        if self.config.features and not self.config.checkpoint:
            limits.append(
                "TR-Net's discriminators are not shipped, so the map of features shows those of the detector "
                f"{self.config.features}; the setting checkpoint shows those of a training run."
            )
        if self.config.saved:
            limits.append(
                f"Every face, real, fake or attacked, was saved as JPEG {JPEG_QUALITY} before a detector saw it, as "
                "photographs were; without it detectors of the undefended set would judge the file. Detectors of the "
                "Hub that want a crop of their own see the photo with what changed in ours. PSNR, SSIM and traces "
                "are those of the attacked face before that."
            )
        limits.append("Accuracy on attacked fakes says nothing about what a re-save or a new detector brings to light.")
        limits += [] if self.config.removers else [TRAIN_FEWER]
        absent = [get_attack(name).title for name in self.config.attacks if not get_attack(name).available()]
        limits += [f"Attacks without installed weights were left out: {', '.join(absent)}."] if absent else []
        if self.config.features and shipped_references() is None:
            limits.append("The reference statistics of traces are not installed; the data's own real pictures serve.")
        return limits

    def published(self) -> list[Table]:
        return published.trnet_tables()

    def _defences(self, verdicts: pd.DataFrame) -> list[str]:
        """Return the defences of which at least one detector judged."""
        return [name for name in self.config.defences if name in set(verdicts["defence"])]

    def _detectors(self, verdicts: pd.DataFrame) -> list[str]:
        """Return the detectors that judged, those of TR-Net's paper first."""
        names = dict.fromkeys((*registry.TRNET_DETECTORS, *self.config.detectors))
        return [name for name in names if name in set(verdicts["detector"])]

    def _families_table(self, verdicts: pd.DataFrame) -> Table:
        defences = self._defences(verdicts)
        body: list[tuple[Cell, ...]] = [
            (
                family_title(family),
                attack_title(attack),
                *(mean_of_six(verdicts, defence, attack, family) for defence in defences),
            )
            for family in _families(verdicts)
            for attack in attacks_seen(verdicts)
        ]
        means = (
            Column(f"mean_{name}", f"Mean of the six, {registry.DEFENCES[name].title}", digits=2) for name in defences
        )
        note = f"{STILL_FAKE} The six are those of TR-Net's paper, as far as they are installed."
        title = "Fakes still found, by family"
        return Table("families", title, (FAMILY, ATTACK, *means), tuple(body), note, by_family=True)

    def _beside_table(self, verdicts: pd.DataFrame) -> Table:
        defences, printed = self._defences(verdicts), published.TRACE_REMOVAL_MEANS
        columns = (
            ATTACK,
            *(Column(f"ours_{name}", f"Ours, {registry.DEFENCES[name].title}", digits=2) for name in defences),
            *(Column(f"paper_{name}", f"Paper, {registry.DEFENCES[name].title}", digits=2) for name in printed),
        )
        body: list[tuple[Cell, ...]] = []
        for attack in attacks_seen(verdicts):
            ours = (mean_of_six(verdicts, defence, attack) for defence in defences)
            body.append((attack_title(attack), *ours, *(means.get(attack, NOT_PRINTED) for means in printed.values())))
        note = f"Share of fakes still called fake, mean over the six detectors. {published.WHY_TRACE_REMOVAL_DIFFERS}"
        title = "Fakes still found after each attack, ours and the paper's"
        return Table("beside", title, columns, tuple(body), note, beside=True)

    def _detectors_table(self, verdicts: pd.DataFrame) -> Table:
        attacks = attacks_seen(verdicts)
        columns = (
            DEFENCE,
            Column("detector", "Detector"),
            Column("accuracy_real", "Real", "accuracy_real", 2),
            Column("accuracy_fake", "Fake", "accuracy_fake", 2),
            *(Column(f"after_{attack}", attack_title(attack), digits=2) for attack in attacks if attack != NO_ATTACK),
        )
        body: list[tuple[Cell, ...]] = []
        for defence in self._defences(verdicts):
            title = registry.DEFENCES[defence].title
            for name in self._detectors(verdicts):
                judged = select(verdicts, defence=defence, detector=name)
                if len(judged):
                    right = ~select(judged, label=REAL)["found"]
                    fakes = (_share_found(select(judged, label="fake", attack=attack)) for attack in attacks)
                    body.append((title, detector_title(name), proportion(right.sum(), len(right)), *fakes))
            means = (mean_of_six(verdicts, defence, attack) for attack in attacks)
            body.append((title, "mean of the six", None, *means))
        note = f"Right verdicts on real pictures, then on fakes before and after each attack. {STILL_FAKE}"
        return Table("attacks", "Accuracy by detector and attack, all families", columns, tuple(body), note)

    def _families_by_detector_table(self, verdicts: pd.DataFrame) -> Table:
        names = self._detectors(verdicts)
        body: list[tuple[Cell, ...]] = []
        for family in _families(verdicts):
            for defence in self._defences(verdicts):
                for attack in attacks_seen(verdicts):
                    fakes = select(verdicts, family=family, defence=defence, attack=attack)
                    shares = (_share_found(select(fakes, detector=name, label="fake")).value for name in names)
                    titles = family_title(family), registry.DEFENCES[defence].title, attack_title(attack)
                    body.append((*titles, fakes["sample"].nunique(), *shares))
        detectors = (Column(name, detector_title(name), digits=2) for name in names)
        columns = (FAMILY, DEFENCE, ATTACK, Column("count", "Fakes"), *detectors)
        title = "Fakes still found, by family and detector"
        return Table("families_detectors", title, columns, tuple(body), STILL_FAKE)

    def _neighbours_table(self, pictures: pd.DataFrame) -> Table:
        columns = (
            Column("features", "Features of"),
            Column("pictures", "Pictures"),
            Column("real_neighbours", "Real neighbours", "real_neighbours", 2),
        )
        body: list[tuple[Cell, ...]] = []
        fakes, reals = select(pictures, label="fake", attack=NO_ATTACK), select(pictures, label=REAL)
        place = {name: number for number, name in enumerate(fakes["sample"])}
        count = self.config.neighbours
        for kind in _feature_kinds(pictures):
            column = f"features_{kind}"
            whose = detector_title(self.config.features) if kind == "detector" else f"{kind} discriminator"
            shown = pictures[pictures["sample"].isin(list(place))].dropna(subset=column)
            for name, group in _groups(shown).items():
                shares = traces.real_neighbours(
                    np.array(list(group[column])),
                    np.array(list(reals[column])),
                    np.array(list(fakes[column])),
                    np.array([place[sample] for sample in group["sample"]]),
                    count,
                )
                body.append((whose, name, mean(shares)))
        note = f"Among the {count} nearest real pictures and untouched other fakes; t-SNE shows the same space."
        if len(reals) and len(fakes) > 1:
            chance = len(reals) / (len(reals) + len(fakes) - 1)
            note += f" Were the features of real and fake alike, it would be {chance:.2f} with these pictures."
        return Table("features", "Where fakes lie among real pictures", columns, tuple(body), note)

    def _missing_table(self) -> Table:
        columns = (DEFENCE, Column("missing", "Not installed"), Column("training", "How to train them"))
        body: list[tuple[Cell, ...]] = []
        for name in self.config.defences:
            absent = missing_detectors(name, self.config.detectors)
            if absent:
                body.append((registry.DEFENCES[name].title, ", ".join(absent), registry.DEFENCES[name].command))
        note = "The strong defence is trained against one attack at a time, which stands after --adversarial."
        return Table("missing", "Detectors that are not installed", columns, tuple(body), note)

    def _accuracy_plot(self, verdicts: pd.DataFrame) -> Figure | None:
        attacks = attacks_seen(verdicts)
        if not attacks:
            return None
        series = [
            Series(
                f"ours, {registry.DEFENCES[defence].title}",
                (),
                [cell_number(mean_of_six(verdicts, defence, attack)) for attack in attacks],
            )
            for defence in self._defences(verdicts)
        ]
        for defence in ("none", "weak"):
            printed = published.TRACE_REMOVAL_MEANS[defence]
            values = [printed.get(attack, float("nan")) for attack in attacks]
            series.append(Series(f"paper, {registry.DEFENCES[defence].title}", (), values))
        labels = [attack_title(attack) for attack in attacks]
        alt = f"Share of fakes still found, mean of the six detectors. {plots.values_in_words(series, labels)}"
        title = "Fakes still found after each attack"
        return plots.draw_bars("accuracy", title, alt, labels, series, y_label="Still found")

    def _families_plot(self, verdicts: pd.DataFrame) -> Figure | None:
        families, defences = _families(verdicts), self._defences(verdicts)
        if not families or not defences:
            return None
        defence = defences[-1]
        series = [
            Series(
                attack_title(attack),
                (),
                [cell_number(mean_of_six(verdicts, defence, attack, family)) for family in families],
            )
            for attack in attacks_seen(verdicts)
        ]
        labels = [family_title(family) for family in families]
        alt = f"Share of fakes still found by family, detectors trained with {registry.DEFENCES[defence].title}. "
        alt += plots.values_in_words(series, labels)
        return plots.draw_bars("families", "Fakes still found, by family", alt, labels, series, y_label="Still found")

    def _cost_plot(self, verdicts: pd.DataFrame, pictures: pd.DataFrame) -> Figure | None:
        """Draw what each attack achieves over what it costs; all strengths of TR-Net share a colour."""
        defences = self._defences(verdicts)
        points: dict[str, list[tuple[float, float]]] = {}
        texts = []
        for attack in attacks_seen(verdicts):
            psnr = mean(select(pictures, attack=attack)["psnr"]).value
            if attack != NO_ATTACK and psnr is not None and defences:
                left = cell_number(mean_of_six(verdicts, defences[-1], attack))
                title = attack_title(removal.TRNET_ENTRY if attack in removal.STRENGTHS else attack)
                points.setdefault(title, []).append((psnr, left))
                texts.append(f"{attack_title(attack)} {left:.2f} at {psnr:.1f} dB")
        if not points:
            return None
        series = [
            Series(name, [psnr for psnr, _ in cloud], [left for _, left in cloud]) for name, cloud in points.items()
        ]
        alt = f"Share of fakes still found over PSNR; low and right is the better attack. {', '.join(texts)}."
        axes: dict[str, Any] = {"x_label": "PSNR (dB)", "y_label": "Fakes still found"}
        return plots.draw_points("cost", "What an attack achieves and costs", alt, series, **axes, share=True)

    def _features_plot(self, kind: str, pictures: pd.DataFrame) -> Figure | None:
        column = f"features_{kind}"
        groups = _groups(pictures.dropna(subset=column))
        features = {name: np.array(list(group[column][:MOST_DRAWN])) for name, group in groups.items()}
        if sum(map(len, features.values())) < 4:
            return None
        places = traces.tsne_map(np.concatenate(list(features.values())), self.config.seed)
        ends = np.cumsum([len(group) for group in features.values()])[:-1]
        series = [
            Series(name, cloud[:, 0].tolist(), cloud[:, 1].tolist())
            for name, cloud in zip(features, np.split(places, ends), strict=True)
        ]
        whose = detector_title(self.config.features) if kind == "detector" else f"TR-Net's {kind} discriminator"
        counts = ", ".join(f"{len(group)} {name}" for name, group in features.items())
        alt = f"Features of {whose} in two dimensions; near points are alike, axes and sizes mean nothing. {counts}."
        title = f"t-SNE of the features of {whose}"
        return plots.draw_points(f"features_{kind}", title, alt, series, x_label="", y_label="")


def draw_by_family(samples: Iterable[Sample], count: int | None, seed: int) -> list[str]:
    """Return the names of at most `count` fakes drawn from each family (None: all), and of as many real pictures."""
    families: dict[str, list[str]] = {}
    for sample in sorted(samples, key=lambda sample: sample.name):
        families.setdefault(sample.family if sample.label == "fake" else "", []).append(sample.name)
    reals = families.pop("", [])
    fakes = [name for _, names in sorted(families.items()) for name in _draw_names(names, count, seed)]
    return fakes + _draw_names(reals, len(fakes), seed)


def _draw_names(names: list[str], count: int | None, seed: int) -> list[str]:
    if count is None or count >= len(names):
        return names
    return [names[i] for i in sorted(np.random.default_rng(seed).choice(len(names), count, replace=False))]


def _batch_items(data: Dataset, attacks: Mapping[str, Sequence[str]], size: int) -> list[Item]:
    """Return the items of whole batches, real pictures by name and fakes by family and name."""
    items = []
    fakes = sorted(data.fakes, key=lambda fake: (fake.family, fake.name))
    for label, samples in (("real", data.reals), ("fake", fakes)):
        names = [sample.name for sample in samples]
        for attack in attacks[label]:
            for number, start in enumerate(range(0, len(names), size)):
                options = {"attack": attack, "number": number, "batch": names[start : start + size]}
                items.append(Item(f"{label}|attack={attack}|batch={number:06}", names[start], options))
    return items


def shipped_references() -> references.References | None:
    """Return the reference statistics that ship with the app, or None where they are not installed."""
    return references.load_references() if weights.model_hashes([references.REFERENCES_ENTRY]) else None


@torch.no_grad()
def _measured_traces(picture: Tensor) -> Row:
    """Measure the traces of a picture (1, 3, S, S) in [0, 1]."""
    known = shipped_references()
    stored = known.fingerprint if known else {}
    prints = {kind: fingerprint for kind, fingerprint in stored.items() if fingerprint.shape == picture.shape[1:]}
    return {
        "spectrum": traces.picture_spectrum(picture).astype(np.float16),
        "power": traces.picture_power(picture).astype(np.float32),
        "residual": traces.residual_strength(picture),
        "correlation": traces.fingerprint_correlation(picture, prints),
    }


def _frames(rows: Sequence[Row]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the verdicts, with a column that says whether a picture is called fake, and the measures of pictures."""
    frame = pd.DataFrame(rows)
    for column in ("psnr", "ssim"):  # no attack, no likeness
        frame[column] = frame[column].astype(float) if column in frame else np.nan
    verdicts = select(frame, kind="verdict")
    return verdicts.assign(found=verdicts["p_fake"].astype(float) >= THRESHOLD), select(frame, kind="picture")


def attacks_seen(frame: pd.DataFrame) -> list[str]:
    """Return `none` and the attacks that fakes went through, in the order of the paper's tables."""
    order = [NO_ATTACK, *ATTACKS]
    attacks = set(select(frame, label="fake")["attack"])
    return sorted(attacks, key=lambda name: (order.index(name) if name in order else len(order), name))


def without_strengths(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the rows without those of TR-Net at another strength than the one it was trained for."""
    return frame[~frame["attack"].isin(list(removal.STRENGTHS))]


def attack_title(attack: str) -> str:
    if attack == NO_ATTACK:
        return "no attack"
    return ATTACKS[attack].title if attack in ATTACKS else f"TR-Net {attack}"


def mean_of_six(verdicts: pd.DataFrame, defence: str, attack: str, family: str = "") -> Estimate:
    """Return mean and deviation over fakes of the share of TR-Net's six detectors that call them fake."""
    fakes = select(verdicts, label="fake", defence=defence, attack=attack, **({"family": family} if family else {}))
    six = fakes[fakes["detector"].isin(registry.TRNET_DETECTORS)]
    return mean(six.groupby("sample", sort=False)["found"].mean())


def missing_detectors(defence: str, detectors: Sequence[str]) -> list[str]:
    """Return which of TR-Net's detectors and of `detectors` are not installed with a defence."""
    installed = registry.installed_with_defence(defence, detectors)
    return [name for name in dict.fromkeys((*registry.TRNET_DETECTORS, *detectors)) if name not in installed]


def _families(frame: pd.DataFrame) -> list[str]:
    return sorted(set(select(frame, label="fake")["family"]))


def _share_found(verdicts: pd.DataFrame) -> Estimate:
    return proportion(verdicts["found"].sum(), len(verdicts))


def _family_range(verdicts: pd.DataFrame, defence: str, attack: str) -> str:
    """Say for which family of fakes least and most is left."""
    means = {family: mean_of_six(verdicts, defence, attack, family).value for family in _families(verdicts)}
    left = sorted((value, family) for family, value in means.items() if value is not None)
    if len(left) < 2:
        return ""
    (least, fewest), (most, family) = left[0], left[-1]
    return f" ({least:.0%} of {family_title(fewest)}, {most:.0%} of {family_title(family)})"


def _psnr_in_words(pictures: pd.DataFrame, attack: str) -> str:
    psnr = mean(select(pictures, attack=attack)["psnr"]).value
    return "" if psnr is None else f" at a PSNR of {psnr:.1f} dB"


def _groups(pictures: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Return the measures of real pictures, and of fakes by attack, by what they are called."""
    groups = {"real pictures": select(pictures, label=REAL)}
    for attack in attacks_seen(pictures):
        name = "fakes" if attack == NO_ATTACK else attack_title(attack)
        groups[name] = select(pictures, label="fake", attack=attack)
    return {name: group for name, group in groups.items() if len(group)}


def _feature_kinds(pictures: pd.DataFrame) -> list[str]:
    """Return whose features were kept: `detector`, or TR-Net's discriminators."""
    names = (name for name in pictures if name.startswith("features_") and pictures[name].notna().any())
    return [name.removeprefix("features_") for name in names]


def _real_power(pictures: pd.DataFrame, reference: References | None) -> tuple[np.ndarray, np.ndarray] | None:
    """Return mean and deviation (K,) of the power of real photographs in dB: stored ones, or those of the data."""
    stored = reference.power[REAL] if reference else None
    if stored is not None and len(pictures) and stored.shape[1:] == pictures["power"].iloc[0].shape:
        return stored[0], stored[1]
    powers = list(select(pictures, label=REAL)["power"])
    return (np.mean(powers, axis=0), np.std(powers, axis=0)) if powers else None


def _real_spectrum(pictures: pd.DataFrame, reference: References | None) -> np.ndarray | None:
    """Return the mean spectrum of real photographs in dB: stored ones, or those of the data."""
    if reference and len(pictures):
        stored = traces.small_spectrum(torch.from_numpy(reference.spectrum[REAL]))
        if stored.shape == pictures["spectrum"].iloc[0].shape:
            return stored
    real = select(pictures, label=REAL)
    return _mean_array(real["spectrum"]) if len(real) else None


def _mean_array(arrays: pd.Series) -> np.ndarray:
    return np.asarray(np.mean([array.astype(np.float64) for array in arrays], axis=0))


def _beside_quality_table(pictures: pd.DataFrame) -> Table:
    columns = (
        ATTACK,
        *(Column("psnr", "PSNR, ours", "psnr", 1), Column("paper_psnr", "PSNR, paper", "psnr", 1)),
        *(Column("ssim", "SSIM, ours", "ssim"), Column("paper_ssim", "SSIM, paper", "ssim")),
    )
    body: list[tuple[Cell, ...]] = []
    for attack in attacks_seen(pictures):
        attacked = select(pictures, attack=attack).dropna(subset="ssim")
        psnr, ssim = published.TRACE_REMOVAL_QUALITY.get(attack, (NOT_PRINTED, NOT_PRINTED))
        if len(attacked):
            body.append((attack_title(attack), mean(attacked["psnr"]), psnr, mean(attacked["ssim"]), ssim))
    note = "The paper's TR-Net saw 480,000 pairs in training (8 epochs of 60,000), this project's far fewer."
    return Table("beside_quality", "Likeness to the fake before the attack", columns, tuple(body), note, beside=True)


def _quality_table(pictures: pd.DataFrame) -> Table:
    columns = (
        *(FAMILY, ATTACK),
        *(Column("psnr", "PSNR (dB)", "psnr", 1), Column("ssim", "SSIM", "ssim")),
        Column("unchanged", "Unchanged"),
    )
    body: list[tuple[Cell, ...]] = []
    for attack in attacks_seen(pictures):
        attacked = select(pictures, attack=attack).dropna(subset="ssim")
        for family in ["all", *_families(pictures)] if len(attacked) else []:
            group = attacked if family == "all" else select(attacked, family=family)
            cells = mean(group["psnr"]), mean(group["ssim"]), int(group["psnr"].isna().sum())
            body.append((family_title(family), attack_title(attack), *cells))
    note = "Against the fake before the attack; a picture that did not change has no PSNR and is counted at the right."
    return Table("quality", "What each attack does to the picture", columns, tuple(body), note)


def _traces_table(pictures: pd.DataFrame, reference: References | None) -> Table:
    columns = (
        Column("pictures", "Pictures"),
        Column("spectrum", "Spectrum (dB)", "spectrum_difference", 2),
        Column("power", "Power (dB)", "power_difference", 2),
        Column("residual", "Noise residual", "residual_strength", 2),
        Column("correlation", "Fingerprint", "fingerprint_correlation"),
    )
    power, spectrum = _real_power(pictures, reference), _real_spectrum(pictures, reference)
    body: list[tuple[Cell, ...]] = []
    for name, group in _groups(pictures).items():
        distances = (
            None if spectrum is None else traces.spectrum_difference(_mean_array(group["spectrum"]), spectrum),
            None if power is None else traces.power_difference(_mean_array(group["power"]), power[0]),
        )
        body.append((name, *distances, mean(group["residual"]), mean(group["correlation"])))
    where = f"{reference.count[REAL]} stored photographs" if reference else "the real pictures of the data"
    note = (
        f"Differences of the mean over pictures to {where}; the first line says how far real pictures are off by "
        "chance and by their source."
    )
    return Table("traces", "What is left of the traces", columns, tuple(body), note)


def _power_plot(pictures: pd.DataFrame, reference: References | None) -> Figure | None:
    real, groups = _real_power(pictures, reference), _groups(pictures)
    if real is None or not groups:
        return None
    radii = list(range(1, len(real[0])))
    low, high = (real[0] + sign * real[1] for sign in (-1, 1))
    series = [Series("real photographs ± std", radii, real[0][1:].tolist(), low[1:].tolist(), high[1:].tolist())]
    means = {name: _mean_array(group["power"]) for name, group in groups.items()}
    series += [Series(name, radii, power[1:].tolist()) for name, power in means.items()]
    distances = ", ".join(f"{name} {power[-1] - real[0][-1]:+.1f}" for name, power in means.items())
    alt = (
        f"Mean power over spatial frequency. Distance to real photographs at the highest frequency in dB: {distances}."
    )
    axes: dict[str, Any] = {"x_label": "Frequency (periods a picture)", "y_label": "Power (dB)"}
    title = "Power spectral density before and after"
    return plots.draw_lines("power", title, alt, series, **axes, markers=False)


def _spectra_plot(pictures: pd.DataFrame, reference: References | None) -> Figure | None:
    """Draw how far each mean spectrum is from that of real photographs, side by side."""
    real, groups = _real_spectrum(pictures, reference), _groups(pictures)
    if real is None or not groups:
        return None
    maps = {name: _mean_array(group["spectrum"]) - real for name, group in groups.items()}
    side = len(real)
    height, width = side + HEADING, side + 2
    sheet = np.full((-(-len(maps) // ACROSS) * height, ACROSS * width), np.nan)
    corners = [(number // ACROSS * height + HEADING, number % ACROSS * width) for number in range(len(maps))]
    for (top, left), difference in zip(corners, maps.values(), strict=True):
        sheet[top : top + side, left : left + side] = difference

    def draw(axes: Any) -> None:
        shade = axes.imshow(sheet, cmap="PuOr", vmin=-COLOUR_LIMIT, vmax=COLOUR_LIMIT, interpolation="nearest")
        for (top, left), name in zip(corners, maps, strict=True):
            axes.text(left, top - 1.5, name)
        axes.axis("off")
        axes.figure.colorbar(shade, ax=axes, label="dB against real photographs", shrink=0.8)

    distances = ", ".join(f"{name} {np.abs(difference).mean():.1f}" for name, difference in maps.items())
    alt = (
        "Mean spectrum minus that of real photographs, low frequencies in the middle. "
        f"Mean difference in dB: {distances}."
    )
    title = "Spectra against real photographs"
    return plots.draw_figure("spectra", title, alt, draw, x_label="", y_label="", legend=False)
