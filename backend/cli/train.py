"""The `train` commands: each reads its settings file, trains (or resumes), measures, and writes safetensors."""

import functools
import shlex
import signal
from collections.abc import Callable, Mapping, Sequence
from inspect import Parameter, Signature
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from backend import settings
from backend.cli.options import Answer, Changes, JsonFlag, show_step
from backend.errors import UserError
from backend.progress import finish

Data = Annotated[Path, typer.Option(metavar="DIR", help="folder of aligned faces, or of tar packs")]
Out = Annotated[Path, typer.Option(metavar="PATH", help="where the result goes")]
Seed = Annotated[int, typer.Option()]
# Given a description of the photographs, trains and returns the report.
Training = Callable[[str], Answer]

train = typer.Typer(help="Train a model that ships with the app.")


def _text(metavar: str, words: str, *names: str) -> Any:
    return Annotated[str | None, typer.Option(*names, metavar=metavar, help=words)]


DATA = {"data": Data, "out": Out}
FAKES = {
    "data": Data,
    "fakes": Annotated[
        list[Path], typer.Option(metavar="DIR", help="folder with train/ and val/ of fakes; repeatable")
    ],
    "out": Out,
}
INITIAL = {"initial": _text("FILE", "weights to start from, or `installed` (default: random)")}
CODES = {"codes": Annotated[Path | None, typer.Option(metavar="FILE", help="codes.safetensors of the generator's run")]}
MINUTES = {"minutes": Annotated[float | None, typer.Option(metavar="N", help="stop after N minutes")]}
STEPS = {"steps": Annotated[int | None, typer.Option(metavar="N", help="training steps")]}
SETTINGS = {"changes": Changes, "seed": Seed}
RESULT = {
    "describe": _text("TEXT", "what the photographs are, for the model card (default: how many)"),
    "install": Annotated[bool, typer.Option("--install", help="put the result into weights/ and the registry")],
    "_json": JsonFlag,
}
REQUIRED = dict.fromkeys(("name", "data", "fakes", "out"), Parameter.empty)
DEFAULTS = REQUIRED | {"seed": 0, "install": False, "_json": False}  # None for every other option


def _target(**options: Any) -> Callable[[Callable[..., Training]], Callable[..., Answer]]:
    """Return a decorator that turns a function into a command with these options, and then those in RESULT.

    The function gets the changed settings and the options; recipe, minutes and steps only if they are given.
    """
    parameters = [
        Parameter(name, Parameter.KEYWORD_ONLY, default=DEFAULTS.get(name), annotation=option)
        for name, option in (options | RESULT).items()
    ]

    def decorate(prepare: Callable[..., Training]) -> Callable[..., Answer]:
        @functools.wraps(prepare)
        def command(
            *, describe: str | None, install: bool, _json: bool, changes: list[str] | None = None, **values: Any
        ) -> Answer:
            _check_source(install=install, **values)
            changed = settings.parse_setting_changes(changes)
            unset = {name for name in ("recipe", "minutes", "steps") if values.get(name) is None}
            training = prepare(**changed | {name: value for name, value in values.items() if name not in unset})
            typed = _typed_command(prepare.__name__, changes or (), values)
            return _train(training, values["data"], describe, typed, install=install)

        command.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
        return train.command()(command)

    return decorate


@_target(
    **DATA,
    recipe=_text("NAME", "regression (default), adversarial, or continued, its second half on a CPU"),
    **INITIAL,
    **CODES,
    **MINUTES,
    **SETTINGS,
)
def generator(data: Path, out: Path, **given: Any) -> Training:
    """Train the embedded generator."""
    from backend.training.generator import train_generator

    return lambda _: train_generator(data, out, show_step, **given)


@_target(
    **DATA,
    recipe=_text("NAME", "regression (default) or adversarial, as its generator"),
    **INITIAL,
    **CODES,
    source=_text(
        "FILE", "a published e4e checkpoint, or ffhq_1024 where it was fetched, to fine-tune on --data", "--from"
    ),
    **MINUTES,
    steps=Annotated[int | None, typer.Option(metavar="N", help="with --from: training steps")],
    **SETTINGS,
)
def encoder(data: Path, out: Path, source: str | None, **given: Any) -> Training:
    """Train the embedded encoder, or fine-tune a published one."""
    from backend.training.encoder import train_encoder
    from backend.training.finetune import finetune_encoder

    if source is None:
        return lambda _: train_encoder(data, out, show_step, **given)
    del given["initial"], given["codes"]
    return lambda _: finetune_encoder(source, data, out, show_step, **given)


@_target(
    **DATA,
    recipe=_text("NAME", "adversarial (default), or regression, which a CPU can do"),
    **CODES,
    **MINUTES,
    **SETTINGS,
)
def joint(data: Path, out: Path, **given: Any) -> Training:
    """Fine-tune the installed encoder and generator together."""
    from backend.training.encoder import train_joint

    return lambda _: train_joint(data, out, show_step, **given)


@_target(
    name=Annotated[str, typer.Argument(help="which detector")],
    **FAKES,
    defence=Annotated[
        Literal["shipped", "none", "weak"] | None,
        typer.Option(help="what training pictures go through; none gives NAME_plain (default: shipped)"),
    ],
    adversarial=_text("ATTACK", "learn fakes after this attack too, the strong defence (noise, ganprintr, trnet, ...)"),
    **INITIAL,
    **STEPS,
    **SETTINGS,
)
def detector(name: str, data: Path, fakes: list[Path], out: Path, **given: Any) -> Training:
    """Train, calibrate and measure one embedded detector."""
    from backend.detectors import registry
    from backend.training.detector import train_detector

    if name not in registry.names():
        raise UserError(f"There is no detector named {name}.", f"Choose one of: {', '.join(registry.names())}.")
    return lambda trained_on: train_detector(name, data, fakes, out, show_step, photographs=trained_on, **given)


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


@train.command("combination")
def fit_combination(
    *,
    data: Data,
    out: Annotated[Path, typer.Option(metavar="FILE", help="where the combination goes")],
    install: Annotated[bool, typer.Option("--install", help="put it into weights/")] = False,
    changes: Changes = None,
    _json: JsonFlag = False,
) -> Answer:
    """Choose the detectors of the combined answer, and where its grades begin."""
    from backend.detectors import combination
    from backend.training.combination import CombinationSettings, fit_combination

    chosen = CombinationSettings(**settings.parse_setting_changes(changes))
    fitted = finish(fit_combination(data, chosen), show_step)
    files = [out, settings.SETTINGS.weights_dir / combination.FILE] if install else [out]
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        combination.write_combination(fitted, file)
    members = ", ".join(fitted.names)
    return {
        "metrics": fitted.fitted["measured"],
        "members": list(fitted.names),
        "files": {"combination": str(out)},
        "summary": f"The combined answer is that of {members}.",
    }


@_target(**DATA, **STEPS, **SETTINGS)
def ganprintr(data: Path, out: Path, **given: Any) -> Training:
    """Train GANprintR's autoencoder."""
    from backend.training.ganprintr import train_ganprintr

    return lambda _: train_ganprintr(data, out, show_step, **given)


@_target(**FAKES, recipe=_text("NAME", "embedded (default), paper or code"), **INITIAL, **STEPS, **SETTINGS)
def trnet(data: Path, fakes: list[Path], out: Path, **given: Any) -> Training:
    """Train TR-Net, which removes traces."""
    from backend.training.trnet import train_trnet

    return lambda _: train_trnet(data, fakes, out, show_step, **given)


@_target(**FAKES)
def references(data: Path, fakes: list[Path], out: Path) -> Training:
    """Average the traces of photographs and of every kind of fake."""
    from backend.training.trnet import measure_references

    return lambda _: measure_references(data, fakes, out, show_step)


@train.command()
def suitability(*, data: Data, out: Out, changes: Changes = None, seed: Seed = 0, _json: JsonFlag = False) -> Answer:
    """Train what tells drawings and covered faces."""
    from backend.training.suitability import train_suitability

    return train_suitability(data, out, show_step, **settings.parse_setting_changes(changes) | {"seed": seed})


def _check_source(*, install: bool, source: str | None = None, **values: Any) -> None:
    excluded = install or values.get("initial") or values.get("codes") or values.get("recipe")
    if source is not None and (excluded or values.get("minutes") is not None):
        raise UserError(
            "--from excludes --install, --initial, --codes, --recipe and --minutes.",
            "See: python -m backend train encoder --help",
        )


def _train(training: Training, data: Path, describe: str | None, command: str, *, install: bool) -> Answer:
    """Train, and install the result if asked to; a request to end saves a checkpoint first."""
    from backend.training import install as installing

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    trained_on = installing.describe_photographs(data, describe)
    report = training(trained_on)
    if install:
        for name, file in report["files"].items():
            facts = {"source": f"{command}, on {trained_on}"} | report["options"][name]
            installing.install_weights(name, Path(file), facts, trained_on)
        if {"generator", "encoder"} & set(report["files"]):
            installing.note_visibility()
    return report


def _typed_command(target: str, changes: Sequence[str], values: Mapping[str, Any]) -> str:
    """Return the command as far as it decides the weights, without the folders of this machine."""
    words = ["python -m backend train", target]
    if "name" in values:
        words.append(values["name"])
    texts: dict[str, Callable[[Any], str]] = {
        "initial": lambda file: Path(file).name,
        "recipe": str,
        "minutes": "{:g}".format,
        "steps": str,
    }
    for option, text in texts.items():
        if values.get(option) not in {None, ""}:
            words += [f"--{option}", text(values[option])]
    for change in changes:
        words += ["--set", shlex.quote(change)]
    return " ".join(words)
