"""The folder layouts that can be read: real/ and fake/, FaceForensics++, Celeb-DF(v2), and frames of DFDC.

The public data sets come as videos; what is read here are frames or face crops in folders named after the videos.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path, PurePosixPath

from backend.errors import UserError
from backend.evaluate import archives
from backend.evaluate.data import Dataset, Label, Sample, Skipped, files, skip_reason
from backend.weights import file_hash

Found = tuple[list[Sample], list[Skipped], str]


def open_data(source: Path, workspace: Path, limits: archives.Limits | None = None) -> Dataset:
    """Read the pictures of a folder, or of a zip, which is unpacked below `workspace / "data"` first.

    Args:
        source: A folder in one of the layouts below, or a zip file of one.
        workspace: Where a zip is unpacked, once; another zip gets a folder of its own.
        limits: What a zip may hold.

    Raises:
        UserError: There is no such file, the zip is refused, or no layout fits.
    """
    if not source.exists():
        raise UserError(f"There is no folder or zip file named {source.name}.", "Check its name, or choose it again.")
    folder = source
    if source.is_file():
        folder = workspace / "data" / file_hash(source)[:16]
        if not folder.exists():
            archives.unpack(source, folder, limits)
    return read(_inner(folder), source.resolve().name)


def read(folder: Path, title: str) -> Dataset:
    """Read a folder in the first layout that fits.

    Args:
        folder: The folder.
        title: What the person called it, for sentences.

    Raises:
        UserError: No layout fits, or there is no picture.
    """
    top = {path.name.lower(): path.name for path in folder.iterdir() if path.is_dir()}
    names = files(folder)
    for layout, fits, collect in LAYOUTS:
        if not fits(set(top), names):
            continue
        pictures = [name for name in names if skip_reason(name) is None]
        samples, skipped, note = collect(folder, pictures)
        skipped += [Skipped(name, reason) for name in names if (reason := skip_reason(name)) is not None]
        if not samples:
            raise UserError(f"There are no pictures in {title}.", "Put JPEG or PNG files into real/ and fake/.")
        ordered = tuple(sorted(samples, key=lambda sample: sample.name))
        return Dataset(folder, layout, ordered, tuple(sorted(skipped, key=lambda one: one.name)), note)
    raise UserError(
        f"{title} holds neither real/ and fake/ nor a data set that is known here.",
        "Put the pictures into two folders named real and fake.",
    )


def _inner(folder: Path) -> Path:
    """Go down while there is only one folder: zips often hold a folder that holds the data."""
    while True:
        inside = [path for path in folder.iterdir() if not path.name.startswith((".", "__MACOSX"))]
        if len(inside) != 1 or not inside[0].is_dir() or inside[0].name.lower() in ("real", "fake"):
            return folder
        folder = inside[0]


def _plain(_folder: Path, names: list[str]) -> Found:
    """Read real/ and fake/: the first folder below is the source or the family, equal names make a pair."""
    samples, skipped = [], []
    originals: dict[str, list[Sample]] = {}
    for name in names:
        top, _, rest = name.partition("/")
        if top.lower() == "real":
            source, inner = _inside(rest)
            sample = Sample(name, "real", source=source or "real")
            samples.append(sample)
            for key in {_key(rest), _key(inner)}:
                originals.setdefault(key, []).append(sample)
    for name in names:
        top, _, rest = name.partition("/")
        if top.lower() == "fake":
            family, inner = _inside(rest)
            pair = _only(originals.get(_key(rest))) or _only(originals.get(_key(inner)))
            samples.append(_fake(name, family or "fake", pair))
        elif top.lower() != "real":
            skipped.append(Skipped(name, "It lies neither in real/ nor in fake/."))
    return samples, skipped, ""


def _faceforensics(_folder: Path, names: list[str]) -> Found:
    """Read FaceForensics++ (Roessler et al. 2019): a fake video 000_003 replaces the face of video 000."""
    parts = [(name, PurePosixPath(name).parts) for name in names]
    samples, skipped = [], []
    originals: dict[tuple[str, str, str], Sample] = {}
    for name, path in parts:
        if path[0] == "original_sequences" and len(path) >= 4:
            sample = Sample(name, "real", source=path[1])
            samples.append(sample)
            originals[(_compression(path), path[-2], PurePosixPath(name).stem)] = sample
    for name, path in parts:
        if path[0] == "manipulated_sequences" and len(path) >= 4:
            key = (_compression(path), _target(path[-2]), PurePosixPath(name).stem)
            samples.append(_fake(name, path[1], originals.get(key)))
        elif path[0] != "original_sequences":
            skipped.append(Skipped(name, "It lies in none of the data set's folders."))
    return samples, skipped, ""


def _compression(path: tuple[str, ...]) -> str:
    return next((part for part in path if part in ("raw", "c0", "c23", "c40")), "")


def _target(video: str) -> str:
    """Return the video whose face was replaced: 000_003 is 000, 01_02__meeting is 01__meeting (DeepFakeDetection)."""
    actor = re.fullmatch(r"(\d+)_(\d+)__(.+?)__\w{8}", video)
    return f"{actor[1]}__{actor[3]}" if actor else video.split("_", maxsplit=1)[0]


def _celeb_df(folder: Path, names: list[str]) -> Found:
    """Read Celeb-DF(v2) (Li et al. 2020): id0_id1_0000 puts the face of id1 on video id0_0000."""
    kinds: dict[str, tuple[Label, str]] = {
        "Celeb-real": ("real", "Celeb-real"),
        "YouTube-real": ("real", "YouTube-real"),
        "Celeb-synthesis": ("fake", "Celeb-synthesis"),
    }
    listed = _test_videos(folder)
    samples, skipped = [], []
    originals: dict[tuple[str, str], Sample] = {}
    for name in sorted(names, key=lambda name: name.startswith("Celeb-synthesis")):  # originals first
        path = PurePosixPath(name).parts
        kind = kinds.get(path[0])
        if kind is None or len(path) < 3:
            skipped.append(Skipped(name, "It lies in none of the data set's folders."))
            continue
        video, frame = path[-2], PurePosixPath(name).stem
        if listed and f"{path[0]}/{video}" not in listed:
            skipped.append(Skipped(name, "Its video is not in the list of testing videos."))
            continue
        label, group = kind
        if label == "real":
            sample = Sample(name, "real", source=group)
            originals[(video, frame)] = sample
        else:
            target = re.sub(r"^(id\d+)_id\d+_(\d+)$", r"\1_\2", video)
            sample = _fake(name, group, originals.get((target, frame)))
        samples.append(sample)
    return samples, skipped, "Only the videos of List_of_testing_videos.txt are measured." if listed else ""


def _test_videos(folder: Path) -> set[str]:
    path = folder / "List_of_testing_videos.txt"
    if not path.is_file():
        return set()
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    return {line.split()[1].removesuffix(".mp4") for line in lines if len(line.split()) == 2}


def _dfdc(folder: Path, names: list[str]) -> Found:
    """Read frames of DFDC (Dolhansky et al. 2020): a metadata.json beside folders named after the videos."""
    said: dict[str, Mapping[str, str]] = {}
    for listing in sorted(folder.rglob("metadata.json")):
        where = listing.parent.relative_to(folder).as_posix()
        for video, one in _json(listing).items():
            said[f"{where}/{Path(video).stem}".removeprefix("./")] = one
    frames: dict[tuple[str, str], Sample] = {}
    fakes, skipped = [], []
    for name in names:
        path = PurePosixPath(name)
        facts = said.get(path.parent.as_posix())
        if facts is None or str(facts.get("label")).upper() not in ("REAL", "FAKE"):
            skipped.append(Skipped(name, "No metadata.json says whether its video is real or fake."))
            continue
        part = path.parts[0] if len(path.parts) > 2 else "DFDC"
        if str(facts["label"]).upper() == "REAL":
            frames[(path.parent.as_posix(), path.stem)] = Sample(name, "real", source=part)
        else:
            original = path.parent.with_name(Path(str(facts.get("original") or "")).stem or "-")
            fakes.append((name, (original.as_posix(), path.stem)))
    samples = [_fake(name, "DFDC", frames.get(key)) for name, key in fakes]
    note = "DFDC does not say which method made a fake, so all are one family."
    return [*frames.values(), *samples], skipped, note


def _json(path: Path) -> dict[str, Mapping[str, str]]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise UserError(f"{path.name} is damaged.", "Download the data set's own metadata.json again.") from None
    if not isinstance(content, dict):
        raise UserError(f"{path.name} is not that of DFDC.", "Download the data set's own metadata.json again.")
    return {key: value for key, value in content.items() if isinstance(value, dict)}


def _fake(name: str, family: str, original: Sample | None) -> Sample:
    return Sample(name, "fake", family, original.source if original else "", original.name if original else "")


def _inside(path: str) -> tuple[str, str]:
    """Return the first folder of a path, or nothing, and what is left of the path."""
    first, slash, left = path.partition("/")
    return (first, left) if slash else ("", path)


def _key(name: str) -> str:
    return str(PurePosixPath(name).with_suffix(""))


def _only(candidates: list[Sample] | None) -> Sample | None:
    """Return the one candidate; where there are several, none is the original for certain."""
    return candidates[0] if candidates and len(candidates) == 1 else None


Fits = Callable[[set[str], Iterable[str]], bool]
LAYOUTS: tuple[tuple[str, Fits, Callable[[Path, list[str]], Found]], ...] = (
    ("folders real/ and fake/", lambda top, _: bool(top & {"real", "fake"}), _plain),
    ("FaceForensics++", lambda top, _: bool(top & {"original_sequences", "manipulated_sequences"}), _faceforensics),
    ("Celeb-DF(v2)", lambda top, _: bool(top & {"celeb-real", "celeb-synthesis", "youtube-real"}), _celeb_df),
    ("DFDC frames", lambda _, names: any(name.endswith("metadata.json") for name in names), _dfdc),
)
