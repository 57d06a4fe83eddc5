"""The pictures of a run: how they are laid out in folders, which are real or fake, and the face of each.

Layouts: real/ and fake/, FaceForensics++, Celeb-DF(v2), and frames of DFDC. The public data sets come as videos; here,
frames or face crops are read from folders named after the videos. Faces are found and cut out as in the app.
"""

import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Literal

from backend import images
from backend.alignment import AlignedFace, CroppedPhoto, LocatedFace, locate
from backend.detectors import registry
from backend.errors import UserError
from backend.evaluate import archives
from backend.faces import Face
from backend.runtime import remembered
from backend.weights import file_hash

Label = Literal["real", "fake"]

FEW_PICTURES = 100  # of a class; with fewer, reports say that nothing can be concluded
FACE_SIZE = registry.EMBEDDED_SIZE
FACE_TEMPLATE = "embedded"
VIDEOS = {".mp4", ".avi", ".mov", ".mkv", ".webm"}
_KEPT_PHOTOS = 4  # decoded pictures of a process; one picture is measured with several settings in a row


@dataclass(frozen=True)
class Sample:
    """One picture."""

    name: str  # path below the data's folder, with forward slashes
    label: Label
    family: str = ""  # how a fake was made; empty for a real picture
    source: str = ""  # where it, or a fake's original, comes from; empty if unknown
    pair: str = ""  # name of a fake's original; empty if unknown


@dataclass(frozen=True)
class Skipped:
    """A file that is not measured."""

    name: str  # path below the data's folder
    reason: str  # one sentence


def _no_problem(_: str) -> str | None:
    return None


@dataclass(frozen=True)
class Dataset:
    """Pictures below one folder."""

    folder: Path
    layout: str  # for people
    samples: tuple[Sample, ...]  # sorted by name
    skipped: tuple[Skipped, ...] = ()
    note: str = ""  # what a reader must know about these pictures; may be empty

    @cached_property
    def by_name(self) -> dict[str, Sample]:
        return {sample.name: sample for sample in self.samples}

    @property
    def fakes(self) -> tuple[Sample, ...]:
        return tuple(sample for sample in self.samples if sample.label == "fake")

    @property
    def reals(self) -> tuple[Sample, ...]:
        return tuple(sample for sample in self.samples if sample.label == "real")

    def path(self, name: str) -> Path:
        return self.folder / name

    def select(
        self, fakes: int | None, reals: int | None, seed: int, problem: Callable[[str], str | None] = _no_problem
    ) -> "Dataset":
        """Return some of the pictures, spread evenly over families and sources; None takes all.

        Args:
            fakes: The most fakes.
            reals: The most real pictures.
            seed: The same seed gives the same pictures.
            problem: Says why a picture cannot be used, or returns None. Where only some pictures are taken, another
                replaces one that cannot be used, which is listed as skipped.
        """
        choice = Choice(seed, problem)
        return self._only(choice.some(self.fakes, fakes) | choice.some(self.reals, reals), choice.skipped)

    def select_pairs(
        self, count: int | None, seed: int, problem: Callable[[str], str | None] = _no_problem
    ) -> "Dataset":
        """Return at most `count` fakes that have their original, and the originals; arguments as for `select`."""
        choice = Choice(seed, problem)
        fakes = choice.some((sample for sample in self.fakes if sample.pair in self.by_name), count)
        return self._only(fakes | {self.by_name[name].pair for name in fakes}, choice.skipped)

    def _only(self, names: set[str], skipped: Iterable[Skipped]) -> "Dataset":
        samples = tuple(sample for sample in self.samples if sample.name in names)
        return dataclasses.replace(self, samples=samples, skipped=(*self.skipped, *skipped))

    def hash(self) -> str:
        """Return one SHA-256 of all names, labels and file contents."""
        digest = hashlib.sha256()
        for sample in self.samples:
            line = "\0".join([*dataclasses.astuple(sample), file_hash(self.path(sample.name))])
            digest.update(line.encode() + b"\n")
        return digest.hexdigest()


def list_files(folder: Path) -> list[str]:
    """Return the relative paths of all files below a folder but hidden ones, with forward slashes, sorted."""
    files = []
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        below = Path(parent).relative_to(folder)
        files += [(below / name).as_posix() for name in names if not name.startswith(".")]
    return sorted(files)


def skip_reason(name: str) -> str | None:
    """Say why a file with this ending is left out, or return None for a picture."""
    suffix = Path(name).suffix.lower()
    if suffix in archives.PICTURES:
        return None
    return "It is a video; extract its frames first." if suffix in VIDEOS else "Its name does not end like a picture's."


class Choice:
    """Takes some of many pictures, one of each group in turn, in an order that the seed decides.

    Args:
        seed: Decides the order.
        problem: Says why a picture cannot be used, or returns None.
    """

    def __init__(self, seed: int, problem: Callable[[str], str | None]) -> None:
        self.seed, self.problem = seed, problem
        self.skipped: list[Skipped] = []

    def some(self, samples: Iterable[Sample], count: int | None) -> set[str]:
        """Return the names of `count` samples that can be used; None returns all of them, unchecked."""
        groups: dict[tuple[str, str], list[str]] = {}
        for sample in samples:
            groups.setdefault((sample.family, "" if sample.family else sample.source), []).append(sample.name)
        if count is None:
            return {name for names in groups.values() for name in names}
        turns = [iter(sorted(names, key=self._place)) for _, names in sorted(groups.items())]
        chosen: set[str] = set()
        while turns and len(chosen) < count:
            turn = turns.pop(0)
            name = self._next(turn)
            if name is not None:
                chosen.add(name)
                turns.append(turn)
        return chosen

    def _next(self, names: Iterable[str]) -> str | None:
        """Return the next usable picture of a group, or None."""
        for name in names:
            reason = self.problem(name)
            if reason is None:
                return name
            self.skipped.append(Skipped(name, reason))
        return None

    def _place(self, name: str) -> str:
        return hashlib.sha256(f"{self.seed}:{name}".encode()).hexdigest()


LayoutFound = tuple[list[Sample], list[Skipped], str]  # the last is a note


def open_data(source: Path, workspace: Path, limits: archives.Limits | None = None) -> Dataset:
    """Read the pictures of a folder, or of a zip, which is unpacked below `workspace / "data"` first.

    Args:
        source: A folder in one of the layouts below, or a zip file of one.
        workspace: Where a zip is unpacked, once; another zip gets another folder.
        limits: The most that a zip may hold.

    Raises:
        UserError: There is no such file, the zip is refused, or no layout fits.
    """
    if not source.exists():
        raise UserError(f"There is no folder or zip file named {source.name}.", "Check its name, or choose it again.")
    folder = source
    if source.is_file():
        folder = workspace / "data" / file_hash(source)[:16]
        if not folder.exists():
            archives.unpack_zip(source, folder, limits)
    return read_dataset(_data_folder(folder), source.resolve().name)


def read_dataset(folder: Path, title: str) -> Dataset:
    """Read a folder in the first layout that fits; messages call it by its title.

    Raises:
        UserError: No layout fits, or there is no picture.
    """
    top = {path.name.lower(): path.name for path in folder.iterdir() if path.is_dir()}
    names = list_files(folder)
    for layout, fits, collect in LAYOUTS:
        if not fits(set(top), names):
            continue
        pictures = [name for name in names if skip_reason(name) is None]
        samples, skipped, note = collect(folder, pictures)
        skipped += [Skipped(name, reason) for name in names if (reason := skip_reason(name)) is not None]
        if not samples:
            raise UserError(f"There are no pictures in {title}.", "Put JPEG or PNG files into real/ and fake/.")
        ordered = tuple(sorted(samples, key=lambda sample: sample.name))
        return Dataset(folder, layout, ordered, tuple(sorted(skipped, key=lambda file: file.name)), note)
    problem = f"{title} holds neither real/ and fake/ nor a known data set."
    raise UserError(problem, "Put the pictures into two folders named real and fake.")


def _data_folder(folder: Path) -> Path:
    """Go down while there is only one folder: a zip often holds a folder that holds the data."""
    while True:
        inside = [path for path in folder.iterdir() if not path.name.startswith((".", "__MACOSX"))]
        if len(inside) != 1 or not inside[0].is_dir() or inside[0].name.lower() in ("real", "fake"):
            return folder
        folder = inside[0]


def _read_plain(_folder: Path, names: list[str]) -> LayoutFound:
    """Read real/ and fake/: the first folder below names the source or family; files of equal names are a pair."""
    samples, skipped = [], []
    originals: dict[str, list[Sample]] = {}
    for name in names:
        top, _, rest = name.partition("/")
        if top.lower() == "real":
            source, inner = _split_folder(rest)
            sample = Sample(name, "real", source=source or "real")
            samples.append(sample)
            for key in {_without_suffix(rest), _without_suffix(inner)}:
                originals.setdefault(key, []).append(sample)
    for name in names:
        top, _, rest = name.partition("/")
        if top.lower() == "fake":
            family, inner = _split_folder(rest)
            candidates = [originals.get(_without_suffix(path), []) for path in (rest, inner)]
            pair = next((reals[0] for reals in candidates if len(reals) == 1), None)  # several leave the original open
            samples.append(_fake_sample(name, family or "fake", pair))
        elif top.lower() != "real":
            skipped.append(Skipped(name, "It lies neither in real/ nor in fake/."))
    return samples, skipped, ""


def _read_faceforensics(_folder: Path, names: list[str]) -> LayoutFound:
    """Read FaceForensics++ (Roessler et al. 2019): a fake video 000_003 replaces the face of video 000."""
    parts = [(name, PurePosixPath(name).parts) for name in names]
    samples, skipped = [], []
    originals: dict[tuple[str, str, str], Sample] = {}
    for name, path in parts:
        if path[0] == "original_sequences" and len(path) >= 4:
            key = (_compression(path), path[-2], PurePosixPath(name).stem)
            originals[key] = Sample(name, "real", source=path[1])
            samples.append(originals[key])
    for name, path in parts:
        if path[0] == "manipulated_sequences" and len(path) >= 4:
            key = (_compression(path), _target_video(path[-2]), PurePosixPath(name).stem)
            samples.append(_fake_sample(name, path[1], originals.get(key)))
        elif path[0] != "original_sequences":
            skipped.append(Skipped(name, "It lies in none of the data set's folders."))
    return samples, skipped, ""


def _compression(path: tuple[str, ...]) -> str:
    return next((part for part in path if part in ("raw", "c0", "c23", "c40")), "")


def _target_video(video: str) -> str:
    """Return the video whose face was replaced: 000_003 is 000, 01_02__meeting is 01__meeting (DeepFakeDetection)."""
    actor = re.fullmatch(r"(\d+)_(\d+)__(.+?)__\w{8}", video)
    return f"{actor[1]}__{actor[3]}" if actor else video.split("_", maxsplit=1)[0]


def _read_celeb_df(folder: Path, names: list[str]) -> LayoutFound:
    """Read Celeb-DF(v2) (Li et al. 2020): id0_id1_0000 puts the face of id1 on video id0_0000."""
    listed = _test_videos(folder)
    samples, skipped = [], []
    originals: dict[tuple[str, str], Sample] = {}
    for name in sorted(names, key=lambda name: name.startswith("Celeb-synthesis")):  # originals first
        path = PurePosixPath(name).parts
        group = path[0]
        if group not in ("Celeb-real", "YouTube-real", "Celeb-synthesis") or len(path) < 3:
            skipped.append(Skipped(name, "It lies in none of the data set's folders."))
            continue
        video, frame = path[-2], PurePosixPath(name).stem
        if listed and f"{group}/{video}" not in listed:
            skipped.append(Skipped(name, "Its video is not in the list of testing videos."))
            continue
        if group == "Celeb-synthesis":
            target = re.sub(r"^(id\d+)_id\d+_(\d+)$", r"\1_\2", video)
            sample = _fake_sample(name, group, originals.get((target, frame)))
        else:
            sample = originals[(video, frame)] = Sample(name, "real", source=group)
        samples.append(sample)
    return samples, skipped, "Only the videos of List_of_testing_videos.txt are measured." if listed else ""


def _test_videos(folder: Path) -> set[str]:
    path = folder / "List_of_testing_videos.txt"
    if not path.is_file():
        return set()
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    return {line.split()[1].removesuffix(".mp4") for line in lines if len(line.split()) == 2}


def _read_dfdc(folder: Path, names: list[str]) -> LayoutFound:
    """Read frames of DFDC (Dolhansky et al. 2020): a metadata.json beside folders named after the videos."""
    videos: dict[str, Mapping[str, str]] = {}
    for listing in sorted(folder.rglob("metadata.json")):
        parent = listing.parent.relative_to(folder).as_posix()
        for video, facts in _read_metadata(listing).items():
            videos[f"{parent}/{Path(video).stem}".removeprefix("./")] = facts
    frames: dict[tuple[str, str], Sample] = {}
    fakes, skipped = [], []
    for name in names:
        path = PurePosixPath(name)
        facts = videos.get(path.parent.as_posix(), {})
        label = str(facts.get("label")).upper()
        if label not in ("REAL", "FAKE"):
            skipped.append(Skipped(name, "No metadata.json says whether its video is real or fake."))
            continue
        part = path.parts[0] if len(path.parts) > 2 else "DFDC"
        if label == "REAL":
            frames[(path.parent.as_posix(), path.stem)] = Sample(name, "real", source=part)
        else:
            original = path.parent.with_name(Path(str(facts.get("original") or "")).stem or "-")
            fakes.append((name, (original.as_posix(), path.stem)))
    samples = [_fake_sample(name, "DFDC", frames.get(key)) for name, key in fakes]
    note = "DFDC does not say which method made a fake, so all are one family."
    return [*frames.values(), *samples], skipped, note


def _read_metadata(path: Path) -> dict[str, Mapping[str, str]]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise UserError(f"{path.name} is damaged.", "Download the data set's own metadata.json again.") from None
    if not isinstance(content, dict):
        raise UserError(f"{path.name} is not DFDC's.", "Download the data set's own metadata.json again.")
    return {key: value for key, value in content.items() if isinstance(value, dict)}


def _fake_sample(name: str, family: str, original: Sample | None) -> Sample:
    return Sample(name, "fake", family, original.source if original else "", original.name if original else "")


def _split_folder(path: str) -> tuple[str, str]:
    """Return the first folder of a path, or an empty string, and the rest of the path."""
    first, slash, rest = path.partition("/")
    return (first, rest) if slash else ("", path)


def _without_suffix(name: str) -> str:
    return str(PurePosixPath(name).with_suffix(""))


LayoutFits = Callable[[set[str], Iterable[str]], bool]

LAYOUTS: tuple[tuple[str, LayoutFits, Callable[[Path, list[str]], LayoutFound]], ...] = (
    ("folders real/ and fake/", lambda top, _: bool(top & {"real", "fake"}), _read_plain),
    (
        "FaceForensics++",
        lambda top, _: bool(top & {"original_sequences", "manipulated_sequences"}),
        _read_faceforensics,
    ),
    ("Celeb-DF(v2)", lambda top, _: bool(top & {"celeb-real", "celeb-synthesis", "youtube-real"}), _read_celeb_df),
    ("DFDC frames", lambda _, names: any(name.endswith("metadata.json") for name in names), _read_dfdc),
)


def crop_face(data: Dataset, name: str, *, size: int = FACE_SIZE, template: str = FACE_TEMPLATE) -> AlignedFace:
    """Return the largest face of a sample; a crop that is already aligned is used as it is.

    Raises:
        UserError: The file is no picture, or no face in it can be used; the message says why.
    """
    return _locate_sample(data.path(name)).aligned(template, size)


def sample_source(data: Dataset, name: str) -> CroppedPhoto:
    """Return a sample with its face, from which every detector's own crop can be cut.

    Raises:
        UserError: As `crop_face`.
    """
    return _locate_sample(data.path(name)).cropped(FACE_TEMPLATE, FACE_SIZE)


def crop_problem(data: Dataset, name: str) -> str | None:
    """Say in one sentence why a sample cannot be used, or return None."""
    try:
        _locate_sample(data.path(name))
    except UserError as error:
        return error.message
    return None


def crop_pair(
    data: Dataset, fake: str, *, size: int = FACE_SIZE, template: str = FACE_TEMPLATE
) -> tuple[AlignedFace, AlignedFace]:
    """Return the faces of a fake's original and of the fake, cut out alike if both pictures have the same size.

    Raises:
        UserError: As `crop_face`, or the fake has no original here.
    """
    original = data.by_name[fake].pair
    if original not in data.by_name:
        raise UserError("The original of this fake is not among the pictures.", "Give both the same name.")
    real, photo = _locate_sample(data.path(original)), images.read(data.path(fake))
    same_size = photo.shape == real.photo.shape
    counterpart = LocatedFace(photo, real.face) if same_size else _locate_sample(data.path(fake))
    return real.aligned(template, size), counterpart.aligned(template, size)


@remembered(_KEPT_PHOTOS)
def _locate_sample(path: Path) -> LocatedFace:
    photo, known = images.read(path), _known_faces()
    if path not in known:
        located = locate(photo)
        if located.facts.problem is not None:
            hint = "Use a photo in which the face is upright, large enough and seen from the front."
            raise UserError(located.facts.problem, hint)
        known[path] = located.face
    return LocatedFace(photo, known[path])


@remembered(1)
def _known_faces() -> dict[Path, Face]:
    """Return the usable faces by file; a run needs each twice, to choose pictures and to measure them."""
    return {}
