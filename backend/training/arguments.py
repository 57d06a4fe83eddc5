"""The arguments of `python -m backend train`."""

import argparse
from pathlib import Path

TRAINED = ("generator", "encoder", "joint", "detector", "fakes", "ganprintr", "trnet", "references")


def add(train: argparse.ArgumentParser) -> None:
    """Add them to the parser of the command."""
    train.add_argument("what", choices=TRAINED)
    train.add_argument("name", nargs="?", help="which detector")
    train.add_argument(
        "--data", required=True, type=Path, metavar="DIR", help="folder of aligned faces, or of tar packs"
    )
    train.add_argument("--out", required=True, type=Path, metavar="PATH")
    train.add_argument(
        "--describe", metavar="TEXT", help="what the photographs are, for the model card (default: how many)"
    )
    train.add_argument(
        "--fakes",
        type=Path,
        action="append",
        metavar="DIR",
        help="for detectors: folder with train/ and val/ of fakes; repeat it for several",
    )
    train.add_argument(
        "--defence",
        choices=("shipped", "none", "weak"),
        help="for detectors: what training pictures go through; none gives NAME_plain (default: shipped)",
    )
    train.add_argument(
        "--adversarial",
        metavar="ATTACK",
        help="for detectors: learn fakes after this attack too, the strong defence (noise, ganprintr, trnet, ...)",
    )
    train.add_argument(
        "--initial",
        metavar="FILE",
        help="for generator, encoder, trnet and detectors: weights to start from, or `installed` (default: random)",
    )
    train.add_argument(
        "--recipe",
        metavar="NAME",
        help="for generator: regression (default), adversarial, or continued, its second half on a CPU; for encoder: "
        "regression or adversarial, as its generator; for joint: adversarial (default), or regression, which a CPU can "
        "do; for trnet: embedded (default), paper or code",
    )
    train.add_argument(
        "--minutes", type=float, metavar="N", help="for generator, encoder and joint: stop after N minutes"
    )
    train.add_argument("--packs", default="*", help="for fakes: which tar packs to use (default: all)")
    train.add_argument("--kinds", default="swap,reconstruction,edit,sample", help="for fakes: which (default: all)")
    train.add_argument("--per-kind", type=int, default=1000, help="for fakes: how many of each kind")
    train.add_argument(
        "--redrawn", type=float, default=0.5, metavar="SHARE", help="for fakes: of the swaps, whose face is drawn"
    )
    train.add_argument(
        "--codes", type=Path, help="for encoder, joint and --recipe continued: codes.safetensors of the generator's run"
    )
    train.add_argument(
        "--from",
        dest="source",
        metavar="FILE",
        help="for encoder: a published e4e checkpoint, or ffhq_1024 where it was fetched, to fine-tune on --data",
    )
    train.add_argument("--steps", type=int, help="for detectors, ganprintr, trnet and encoder --from: training steps")
    train.add_argument(
        "--set", action="append", metavar="NAME=VALUE", help="change a setting of the settings file; repeat it"
    )
    train.add_argument("--seed", type=int, default=0)
    train.add_argument("--install", action="store_true", help="put the result into weights/ and the registry")
