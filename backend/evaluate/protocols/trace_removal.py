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
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from backend import images, made_with, verdicts
from backend.detectors import registry
from backend.errors import UserError
from backend.evaluate import deep_features, published, removers
from backend.evaluate.crops import source_of
from backend.evaluate.data import Dataset, Sample
from backend.evaluate.metrics import likeness, traces
from backend.evaluate.plots import Figure
from backend.evaluate.protocols import trace_removal_plots, trace_removal_tables
from backend.evaluate.protocols.protocol import QUICK, Config, Item, Protocol, check_detectors, item
from backend.evaluate.rows import Row
from backend.evaluate.tables import Table
from backend.progress import finish
from backend.saving import QUALITY, like_photographs
from backend.trace_removal import references, sets, trnet
from backend.trace_removal.attacks import ATTACKS, COMPARED, STRENGTHS, WHITE_BOX, named

NONE = "none"  # attack: the picture as it is
TRAIN_FEWER = (
    "Ablations of TR-Net (a share of the data, a family left out) need networks of their own: make fakes with "
    "'python -m backend train fakes --per-kind N' or '--kinds A,B,C', with --out NAME/train of photographs to train "
    "with and --out NAME/val of others, then 'python -m backend train trnet --fakes NAME --out "
    "NAME/trnet.safetensors', and name them by --set 'removers=[\"NAME=NAME/trnet.safetensors\"]'."
)


@dataclass(frozen=True)
class TraceRemovalConfig(Config):
    """Settings.

    Args:
        detectors: Which detectors judge; every set has its own copy of those that are installed.
        defences: Which sets, of `sets.DEFENCES`.
        attacks: Which attacks, of `attacks.ATTACKS`.
        white_box: The shipped detector whose gradient FGSM, MIFGSM and PGD use.
        removers: Further TR-Nets, each NAME=PATH of its weights.
        features: The shipped detector whose features are drawn.
        checkpoint: `checkpoint.pt` of a TR-Net's training, whose discriminators' features are drawn instead.
        neighbours: Among how many nearest pictures in feature space the real ones are counted.
        saved: Whether every face is saved as photographs are before an attack, and again before a detector looks.
    """

    detectors: tuple[str, ...] = ()
    defences: tuple[str, ...] = tuple(sets.DEFENCES)
    attacks: tuple[str, ...] = COMPARED + STRENGTHS
    white_box: str = WHITE_BOX
    removers: tuple[str, ...] = ()
    features: str = WHITE_BOX
    checkpoint: str = ""
    neighbours: int = 5
    saved: bool = True


@dataclass(frozen=True)
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
    Settings = TraceRemovalConfig

    @classmethod
    def preset(cls, name: str) -> TraceRemovalConfig:
        """Return 12 fakes and 12 real pictures, or all."""
        count = 12 if name == QUICK else None
        return TraceRemovalConfig(count, count, detectors=tuple(registry.loadable()))

    def removers(self) -> tuple[removers.Remover, ...]:
        """Return the further TR-Nets."""
        return removers.parse(self.config.removers)

    def attacks(self) -> list[str]:
        """Return the attacks that can run here, the further TR-Nets among them."""
        return [name for name in self.config.attacks if named(name).available()] + [one.name for one in self.removers()]

    def judges(self) -> dict[str, dict[str, str]]:
        """Return, by defence and detector, the installed entries."""
        return {one: sets.installed(one, self.config.detectors) for one in self.config.defences}

    def models(self) -> list[str]:
        """Return all detectors, the white box, the trained attacks and the reference statistics."""
        entries = [entry for judges in self.judges().values() for entry in judges.values()]
        trained = [ATTACKS[name].entry for name in self.config.attacks if name in ATTACKS]
        own = [self.config.white_box, self.config.features, references.ENTRY]
        return [*entries, *(entry for entry in trained if entry), *own]

    def hashes(self) -> dict[str, str]:
        """Add those of further TR-Nets and of the discriminators."""
        own = {f"TR-Net {one.name}": one.hash() for one in self.removers()}
        if self.config.checkpoint:
            own["discriminators"] = deep_features.checkpoint_hash(Path(self.config.checkpoint))
        return super().hashes() | own

    def settings(self) -> dict[str, object]:
        """Name files without their folders: the hashes say which they are."""
        config = self.config
        return dataclasses.asdict(config) | {
            "removers": [f"{one.name}={one.path.name}" for one in self.removers()],
            "checkpoint": Path(config.checkpoint).name,
        }

    def items(self, data: Dataset) -> list[Item]:
        """Return every real picture as it is, and every fake as it is and after every attack."""
        config = self.config
        check_detectors((*config.detectors, config.white_box, config.features))
        for name in config.defences:
            if name not in sets.DEFENCES:
                raise UserError(f"There is no defence {name}.", f"Choose among: {', '.join(sets.DEFENCES)}.")
        if not any(self.judges().values()):
            raise UserError("No detector of these sets is installed.", "Choose another set by --set defences=shipped.")
        for name in {one.name for one in self.removers()} & {*ATTACKS, NONE}:
            raise UserError(f"A further TR-Net cannot be called {name}.", removers.HINT)
        options = {"real": [NONE], "fake": [NONE, *self.attacks()]}
        return [item(sample.name, attack=name) for sample in data.samples for name in options[sample.label]]

    def run_item(self, item: Item, data: Dataset) -> list[Row]:
        """Attack one face, ask every detector of every set, and measure what is left of the traces."""
        sample, attack = data.by_name[item.sample], item.options["attack"]
        source = source_of(data, sample.name)
        face = self._saved(images.to_tensor(source.aligned.crop))
        started = images.to_array(face)
        made = images.to_array(self._attacked(attack, face, sample))
        picture, shown = images.to_tensor(made), self._saved(images.to_tensor(made))
        said: Row = {"sample": sample.name, "label": sample.label, "family": sample.family, "source": sample.source}
        said["attack"] = attack
        rows = [
            said | {"kind": "verdict", "defence": defence, "detector": name, "p_fake": scores[entry][0]}
            for defence, judges in self.judges().items()
            for scores in [verdicts.p_fake(shown, list(judges.values()), source) if judges else {}]
            for name, entry in judges.items()
        ]
        measured = said | {"kind": "picture"} | _traces(picture)
        if attack != NONE:
            measured |= {"psnr": likeness.psnr(started, made), "ssim": likeness.ssim(started, made)}
        if attack in (NONE, trnet.ENTRY) or attack not in ATTACKS:
            measured |= self._features(shown)
        return [*rows, measured]

    def _saved(self, face: Tensor) -> Tensor:
        """Return a face (1, 3, S, S) in [0, 1] as a detector is shown it."""
        return like_photographs((face * 255).round().byte()).float() / 255 if self.config.saved else face

    def _attacked(self, attack: str, face: Tensor, sample: Sample) -> Tensor:
        """Return a face (1, 3, S, S) after an attack; its randomness depends on seed, attack and picture alone."""
        if attack == NONE:
            return face
        detector = registry.load(self.config.white_box)
        own = f"{self.config.seed}:{attack}:{sample.name}"
        seed = int.from_bytes(hashlib.sha256(own.encode()).digest()[:4], "big")
        for one in self.removers():
            if one.name == attack:
                return finish(trnet.attack(face, detector, network=one.load())).images
        return finish(named(attack).run(face, detector, seed=seed)).images

    def _features(self, picture: Tensor) -> Row:
        if not self.config.checkpoint:
            return {"features_detector": deep_features.of_detector(self.config.features, picture)}
        found = deep_features.of_discriminators(Path(self.config.checkpoint), picture)
        return {f"features_{name}": values for name, values in found.items()}

    def tables(self, rows: Sequence[Row]) -> list[Table]:
        """Return accuracy beside the paper's, by family and by detector, quality, traces, features, what is missing."""
        return trace_removal_tables.tables(rows, self.config, shipped())

    def plots(self, rows: Sequence[Row]) -> list[Figure]:
        """Return accuracy by attack and family, quality, power, spectra and t-SNE."""
        return trace_removal_plots.plots_of(rows, self.config, shipped())

    def finding(self, rows: Sequence[Row]) -> str:
        """Say what TR-Net leaves of the detectors' accuracy on fakes."""
        return trace_removal_tables.finding(rows, self.config)

    def limits(self, data: Dataset) -> list[str]:
        """Add what was not installed, what the attacks know, and how ablations are trained."""
        said = super().limits(data)
        said.append(
            f"FGSM, MIFGSM and PGD see the gradient of {self.config.white_box} of the shipped set; to every other "
            "detector they are transferred. TR-Net, GANprintR and noise see none."
        )
        if not self.config.checkpoint:
            said.append(
                "TR-Net's discriminators are not shipped, so the map of features shows those of the detector "
                f"{self.config.features}; the setting checkpoint shows those of a training run."
            )
        if self.config.saved:
            said.append(
                f"Every face, real, fake or attacked, was saved as JPEG {QUALITY} before a detector saw it, as "
                "photographs were; without it detectors of the undefended set would judge the file. Detectors of the "
                "Hub that want a crop of their own see the photo with what changed in ours. PSNR, SSIM and traces "
                "are those of the attacked face before that."
            )
        said.append("Accuracy on attacked fakes says nothing about what a re-save or a new detector brings to light.")
        said += [] if self.config.removers else [TRAIN_FEWER]
        absent = [named(name).title for name in self.config.attacks if not named(name).available()]
        said += [f"Attacks without installed weights were left out: {', '.join(absent)}."] if absent else []
        if shipped() is None:
            said.append("The reference statistics of traces are not installed; the data's own real pictures serve.")
        return said

    def published(self) -> list[Table]:
        """Return tables 1 to 4 of the paper, as far as they are known."""
        return published.trace_removal()


def shipped() -> references.References | None:
    """Return the reference statistics that ship with the app, or None where they are not installed."""
    return references.load() if made_with.hashes([references.ENTRY]) else None


@torch.no_grad()
def _traces(picture: Tensor) -> Row:
    """Measure the traces of a picture (1, 3, S, S) in [0, 1]."""
    known = shipped()
    prints = (
        {}
        if known is None
        else {kind: one for kind, one in known.fingerprint.items() if one.shape == picture.shape[1:]}
    )
    return {
        "spectrum": traces.spectrum(picture).astype(np.float16),
        "power": traces.power(picture).astype(np.float32),
        "residual": traces.residual_strength(picture),
        "correlation": traces.fingerprint_correlation(picture, prints),
    }
