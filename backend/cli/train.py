"""The `train` commands: each reads its settings file, trains (or resumes), measures, and writes safetensors."""

import shlex
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from backend import settings
from backend.cli.options import Answer, Changes, JsonFlag, show_step
from backend.errors import UserError
from backend.progress import finish

Data = Annotated[Path, typer.Option(metavar="DIR", help="folder of aligned faces, or of tar packs")]
Out = Annotated[Path, typer.Option(metavar="PATH", help="where the result goes")]
Fakes = Annotated[list[Path], typer.Option(metavar="DIR", help="folder with train/ and val/ of fakes; repeatable")]
Initial = Annotated[
    str | None, typer.Option(metavar="FILE", help="weights to start from, or `installed` (default: random)")
]
Codes = Annotated[Path | None, typer.Option(metavar="FILE", help="codes.safetensors of the generator's run")]
Minutes = Annotated[float | None, typer.Option(metavar="N", help="stop after N minutes")]
Steps = Annotated[int | None, typer.Option(metavar="N", help="training steps")]
Seed = Annotated[int, typer.Option()]
Describe = Annotated[
    str | None, typer.Option(metavar="TEXT", help="what the photographs are, for the model card (default: how many)")
]
Install = Annotated[bool, typer.Option("--install", help="put the result into weights/ and the registry")]

train = typer.Typer(help="Train a model that ships with the app.")


@train.command()
def generator(
    *,
    data: Data,
    out: Out,
    recipe: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="regression (default), adversarial, or continued, its second half on a CPU"),
    ] = None,
    initial: Initial = None,
    codes: Codes = None,
    minutes: Minutes = None,
    changes: Changes = None,
    seed: Seed = 0,
    describe: Describe = None,
    install: Install = False,
    _json: JsonFlag = False,
) -> Answer:
    """Train the embedded generator."""
    from backend.training.generator import train_generator

    given = _given(changes, recipe=recipe, minutes=minutes) | {"initial": initial, "codes": codes, "seed": seed}
    command = _typed_command("generator", changes, initial=initial, recipe=recipe, minutes=minutes)
    return _train(lambda _: train_generator(data, out, show_step, **given), data, describe, command, install=install)


@train.command()
def encoder(
    *,
    data: Data,
    out: Out,
    recipe: Annotated[
        str | None, typer.Option(metavar="NAME", help="regression (default) or adversarial, as its generator")
    ] = None,
    initial: Initial = None,
    codes: Codes = None,
    source: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="FILE",
            help="a published e4e checkpoint, or ffhq_1024 where it was fetched, to fine-tune on --data",
        ),
    ] = None,
    minutes: Minutes = None,
    steps: Annotated[int | None, typer.Option(metavar="N", help="with --from: training steps")] = None,
    changes: Changes = None,
    seed: Seed = 0,
    describe: Describe = None,
    install: Install = False,
    _json: JsonFlag = False,
) -> Answer:
    """Train the embedded encoder, or fine-tune a published one."""
    from backend.training.encoder import train_encoder
    from backend.training.finetune import finetune_encoder

    given = _given(changes, steps=steps, recipe=recipe, minutes=minutes) | {"seed": seed}
    command = _typed_command("encoder", changes, initial=initial, recipe=recipe, minutes=minutes, steps=steps)
    if source is None:
        given |= {"initial": initial, "codes": codes}
        return _train(lambda _: train_encoder(data, out, show_step, **given), data, describe, command, install=install)
    if install or initial or codes or recipe or minutes is not None:
        raise UserError(
            "--from excludes --install, --initial, --codes, --recipe and --minutes.",
            "See: python -m backend train encoder --help",
        )
    return _train(lambda _: finetune_encoder(source, data, out, show_step, **given), data, describe, command)


@train.command()
def joint(
    *,
    data: Data,
    out: Out,
    recipe: Annotated[
        str | None, typer.Option(metavar="NAME", help="adversarial (default), or regression, which a CPU can do")
    ] = None,
    codes: Codes = None,
    minutes: Minutes = None,
    changes: Changes = None,
    seed: Seed = 0,
    describe: Describe = None,
    install: Install = False,
    _json: JsonFlag = False,
) -> Answer:
    """Fine-tune the installed encoder and generator together."""
    from backend.training.encoder import train_joint

    given = _given(changes, recipe=recipe, minutes=minutes) | {"codes": codes, "seed": seed}
    command = _typed_command("joint", changes, recipe=recipe, minutes=minutes)
    return _train(lambda _: train_joint(data, out, show_step, **given), data, describe, command, install=install)


@train.command()
def detector(
    *,
    name: Annotated[str, typer.Argument(help="which detector")],
    data: Data,
    fakes: Fakes,
    out: Out,
    defence: Annotated[
        Literal["shipped", "none", "weak"] | None,
        typer.Option(help="what training pictures go through; none gives NAME_plain (default: shipped)"),
    ] = None,
    adversarial: Annotated[
        str | None,
        typer.Option(
            metavar="ATTACK",
            help="learn fakes after this attack too, the strong defence (noise, ganprintr, trnet, ...)",
        ),
    ] = None,
    initial: Initial = None,
    steps: Steps = None,
    changes: Changes = None,
    seed: Seed = 0,
    describe: Describe = None,
    install: Install = False,
    _json: JsonFlag = False,
) -> Answer:
    """Train, calibrate and measure one embedded detector."""
    from backend.detectors import registry
    from backend.training.detector import train_detector

    if name not in registry.names():
        raise UserError(f"There is no detector named {name}.", f"Choose one of: {', '.join(registry.names())}.")
    given = _given(changes, steps=steps) | {"adversarial": adversarial, "defence": defence, "seed": seed}
    command = _typed_command(f"detector {name}", changes, initial=initial, steps=steps)

    def run(trained_on: str) -> Answer:
        return train_detector(name, data, fakes, out, show_step, photographs=trained_on, initial=initial, **given)

    return _train(run, data, describe, command, install=install)


@train.command("fakes")
def make_fakes(
    *,
    data: Data,
    out: Out,
    packs: Annotated[str, typer.Option(help="which tar packs to use (default: all)", show_default=False)] = "*",
    kinds: Annotated[str, typer.Option(metavar="A,B", help="which kinds")] = "swap,reconstruction,edit,sample",
    per_kind: Annotated[int, typer.Option(metavar="N", help="how many of each kind")] = 1000,
    redrawn: Annotated[float, typer.Option(metavar="SHARE", help="of the swaps, whose face is drawn")] = 0.5,
    seed: Seed = 0,
    _json: JsonFlag = False,
) -> Answer:
    """Write fakes made from photographs."""
    from backend import face_packs, fakes
    from backend.detectors.registry import EMBEDDED_SIZE
    from backend.generators import inversion

    chosen = tuple(kinds.split(","))
    unknown = set(chosen) - set(fakes.FAKE_KINDS)
    if unknown:
        raise UserError(
            f"There is no kind of fake named {', '.join(unknown)}.", f"Kinds: {', '.join(fakes.FAKE_KINDS)}."
        )
    if packs != "*" and not list(data.glob(f"{packs}.tar")):
        raise UserError(f"There is no pack named {packs}.tar in {data.name}.", "Leave out --packs for a plain folder.")
    if not 0 <= redrawn <= 1:
        raise UserError("--redrawn must be between 0 and 1.", "For example: --redrawn 0.5.")
    inverter = None if chosen == ("swap",) and not redrawn else inversion.load_embedded_inverter()
    photographs = face_packs.load_photographs(data, EMBEDDED_SIZE, packs)
    job = fakes.build_fakes(photographs, out, inverter, fakes.FakesSettings(per_kind, seed, chosen, redrawn=redrawn))
    result = finish(job, show_step)
    return {"metrics": result.counts | {"skipped": result.skipped}, "files": {"manifest": str(out / "manifest.csv")}}


@train.command()
def ganprintr(
    *,
    data: Data,
    out: Out,
    steps: Steps = None,
    changes: Changes = None,
    seed: Seed = 0,
    describe: Describe = None,
    install: Install = False,
    _json: JsonFlag = False,
) -> Answer:
    """Train GANprintR's autoencoder."""
    from backend.training.ganprintr import train_ganprintr

    given = _given(changes, steps=steps) | {"seed": seed}
    command = _typed_command("ganprintr", changes, steps=steps)
    return _train(lambda _: train_ganprintr(data, out, show_step, **given), data, describe, command, install=install)


@train.command()
def trnet(
    *,
    data: Data,
    fakes: Fakes,
    out: Out,
    recipe: Annotated[str | None, typer.Option(metavar="NAME", help="embedded (default), paper or code")] = None,
    initial: Initial = None,
    steps: Steps = None,
    changes: Changes = None,
    seed: Seed = 0,
    describe: Describe = None,
    install: Install = False,
    _json: JsonFlag = False,
) -> Answer:
    """Train TR-Net, which removes traces."""
    from backend.training.trnet import train_trnet

    given = _given(changes, steps=steps, recipe=recipe) | {"initial": initial, "seed": seed}
    command = _typed_command("trnet", changes, initial=initial, recipe=recipe, steps=steps)
    return _train(lambda _: train_trnet(data, fakes, out, show_step, **given), data, describe, command, install=install)


@train.command()
def references(
    *,
    data: Data,
    fakes: Fakes,
    out: Out,
    describe: Describe = None,
    install: Install = False,
    _json: JsonFlag = False,
) -> Answer:
    """Average the traces of photographs and of every kind of fake."""
    from backend.training.trnet import measure_references

    command = _typed_command("references", None)
    return _train(lambda _: measure_references(data, fakes, out, show_step), data, describe, command, install=install)


def _given(changes: list[str] | None, **options: Any) -> dict[str, Any]:
    """Return changed settings and those options that are given."""
    return settings.parse_setting_changes(changes) | {
        name: value for name, value in options.items() if value is not None
    }


def _train(
    run: Callable[[str], Answer], data: Path, describe: str | None, command: str, *, install: bool = False
) -> Answer:
    """Train, and put the result into `weights/` where that is asked for; a request to end saves a checkpoint first.

    Args:
        run: Trains; given is what the photographs are, in words.
        data: The photographs.
        describe: What they are, where the command line says so.
        command: The command, as far as it decides the weights.
        install: Whether the result replaces the model that ships.
    """
    from backend.training import install as installing

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    trained_on = installing.describe_photographs(data, describe)
    report = run(trained_on)
    if install:
        for name, file in report["files"].items():
            facts = {"source": f"{command}, on {trained_on}"} | report["options"][name]
            installing.install_weights(name, Path(file), facts, trained_on)
        if {"generator", "encoder"} & set(report["files"]):
            installing.note_visibility()
    return report


def _typed_command(
    target: str,
    changes: list[str] | None,
    *,
    initial: str | None = None,
    recipe: str | None = None,
    minutes: float | None = None,
    steps: int | None = None,
) -> str:
    """Return the command that was given, as far as it decides the weights, without the folders of this machine."""
    words = ["python -m backend train", target]
    if initial:
        words += ["--initial", Path(initial).name]
    if recipe:
        words += ["--recipe", recipe]
    if minutes is not None:
        words += ["--minutes", f"{minutes:g}"]
    if steps is not None:
        words += ["--steps", str(steps)]
    for change in changes or ():
        words += ["--set", shlex.quote(change)]
    return " ".join(words)
