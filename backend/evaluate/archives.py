"""Unpack a zip of pictures that a stranger made: nothing leaves the folder, and nothing outgrows the limits."""

import shutil
import stat
import struct
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from backend.errors import UserError
from backend.settings import SETTINGS

PICTURES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".heic", ".heif", ".avif"}
LIST_FILES = {".json", ".txt", ".csv", ".md"}  # what data sets carry beside their pictures
ARCHIVES = {".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar", ".zst", ".jar"}
# What archives begin with, whatever they are called.
SIGNATURES = (
    b"PK\x03\x04",
    b"PK\x05\x06",
    b"\x1f\x8b",
    b"BZh",
    b"\xfd7zXZ",
    b"7z\xbc\xaf",
    b"Rar!",
    b"\x28\xb5\x2f\xfd",
)
TAR_AT, TAR = 257, b"ustar"
LEFTOVERS = ("__macosx/", ".ds_store", "thumbs.db", "desktop.ini")  # what macOS and Windows add unasked
MEASURED = 100_000  # bytes; a smaller entry may be packed as tightly as it likes
LONGEST_NAME = 200
BLOCK = 1 << 16

# The end of a zip file (APPNOTE.TXT 4.3.16): signature, four numbers of 2 bytes, two of 4, and a comment.
_END = struct.Struct("<4s4H2LH")
_END_SIGNATURE, _ZIP64_SIGNATURE = b"PK\x05\x06", b"PK\x06\x07"
_LARGEST_ENTRY = 512  # bytes of the directory; a name of 200 characters needs less
_AGAIN = "Zip a folder of pictures again, and nothing else."


@dataclass(frozen=True)
class Limits:
    """What a zip may hold.

    Args:
        files: Entries at most.
        total: Bytes of all entries together, unpacked.
        single: Bytes of one entry, unpacked.
        ratio: How many times larger an entry may be unpacked than packed.
    """

    files: int = 20_000
    total: int = 4_000_000_000
    single: int = SETTINGS.max_bytes
    ratio: int = 100


@dataclass(frozen=True)
class Unpacked:
    """What was unpacked.

    Args:
        folder: Where it lies.
        files: How many files.
        left_out: Names of what the operating system had added, which was left out.
    """

    folder: Path
    files: int
    left_out: tuple[str, ...]


def unpack_zip(archive: Path, folder: Path, limits: Limits | None = None) -> Unpacked:
    """Unpack a zip of pictures into a folder that does not exist yet.

    Args:
        archive: The zip file.
        folder: Where to; it appears only when everything is in it.
        limits: What it may hold.

    Raises:
        UserError: It is no zip, is damaged, or holds what does not belong into a zip of pictures.
    """
    limits = limits or Limits()
    _check_directory(archive, limits)
    unfinished = folder.with_name(folder.name + ".part")
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        with zipfile.ZipFile(archive) as pack:
            entries, left_out = _checked_entries(pack.infolist(), limits)
            left = limits.total
            for entry in entries:
                left -= _write_entry(pack, entry, unfinished / entry.filename, min(left, limits.single))
        unfinished.mkdir(parents=True, exist_ok=True)
        unfinished.rename(folder)
    except (zipfile.BadZipFile, zlib.error, EOFError, struct.error, UnicodeDecodeError, NotImplementedError):
        raise UserError("The zip file is damaged.", _AGAIN) from None
    except OSError:  # no room, or one name is a file here and a folder there
        raise UserError(
            "The zip file could not be unpacked.", "Check that the disk has room, and zip the pictures again."
        ) from None
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return Unpacked(folder, len(entries), tuple(left_out))


def _check_directory(archive: Path, limits: Limits) -> None:
    """Refuse by the last bytes of the file alone what would take long to list."""
    try:
        size = archive.stat().st_size
        with archive.open("rb") as file:
            file.seek(max(0, size - _END.size - 0xFFFF))
            tail = file.read()
    except OSError:
        raise UserError("The zip file could not be opened.", "Check its name, or choose it again.") from None
    at = tail.rfind(_END_SIGNATURE)
    if at < 0 or len(tail) - at < _END.size:
        raise UserError("This file is not a zip file.", "Use a folder, or a .zip file of one.")
    _, _, _, _, entries, directory, _, _ = _END.unpack_from(tail, at)
    if tail[:at][-20:].startswith(_ZIP64_SIGNATURE):
        raise UserError("The zip file is of a form for more than 65,000 files or 4 GB.", _AGAIN)
    if entries > limits.files or directory > limits.files * _LARGEST_ENTRY:
        raise UserError(f"The zip holds more than {limits.files:,} files.", "Use fewer pictures, or a folder.")


def _checked_entries(entries: list[zipfile.ZipInfo], limits: Limits) -> tuple[list[zipfile.ZipInfo], list[str]]:
    """Return the entries to unpack and the names of those to leave out, or refuse the zip."""
    if len(entries) > limits.files:
        raise UserError(f"The zip holds more than {limits.files:,} files.", "Use fewer pictures, or a folder.")
    kept, left_out, seen = [], [], set()
    for entry in entries:
        _check_path(entry)
        if entry.is_dir():
            continue
        name = str(PurePosixPath(entry.filename)).lower()  # a//b and a/./b are one file
        if name.startswith(LEFTOVERS[0]) or name.rsplit("/", 1)[-1] in LEFTOVERS:
            left_out.append(entry.filename)
            continue
        _check_kind(entry)
        if name in seen:
            raise UserError(f"The zip holds {_shown(entry)} twice.", _AGAIN)
        seen.add(name)
        kept.append(entry)
    _check_sizes(kept, limits)
    return kept, left_out


def _check_path(entry: zipfile.ZipInfo) -> None:
    name = entry.orig_filename  # zipfile cuts its own copy at a NUL
    parts = PurePosixPath(name).parts
    odd = "\\" in name or ":" in name or any(ord(letter) < 32 for letter in name)
    if odd or name.startswith("/") or ".." in parts or not parts:
        raise UserError("The zip holds a file whose path leads out of its folder.", _AGAIN)
    if any(len(part.encode()) > LONGEST_NAME for part in parts) or len(parts) > 20:
        raise UserError("The zip holds a file with a name that is too long.", _AGAIN)
    kind = stat.S_IFMT(entry.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise UserError(f"The zip holds a link or another special file ({_shown(entry)}).", _AGAIN)


def _check_kind(entry: zipfile.ZipInfo) -> None:
    suffix = PurePosixPath(entry.filename.lower()).suffix
    if suffix in ARCHIVES:
        raise UserError(f"The zip holds another archive ({_shown(entry)}).", "Unpack it first, and zip the pictures.")
    if suffix not in PICTURES | LIST_FILES:
        raise UserError(f"The zip holds a file that is no picture ({_shown(entry)}).", _AGAIN)
    if entry.flag_bits & 1:
        raise UserError("The zip is locked with a password.", "Zip the pictures without one.")
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise UserError("The zip is packed in an unusual way.", "Zip the pictures with your system's own tool.")


def _check_sizes(entries: list[zipfile.ZipInfo], limits: Limits) -> None:
    for entry in entries:
        if entry.file_size > limits.single:
            raise _too_large(entry, limits.single)
        if entry.file_size > max(MEASURED, limits.ratio * entry.compress_size):
            raise UserError(
                f"The zip holds a file that grows more than {limits.ratio} times when unpacked ({_shown(entry)}).",
                "Use JPEG or PNG pictures.",
            )
    if sum(entry.file_size for entry in entries) > limits.total:
        raise UserError(f"The zip unpacks to more than {limits.total / 1e6:,.0f} MB.", "Use fewer or smaller pictures.")


def _write_entry(pack: zipfile.ZipFile, entry: zipfile.ZipInfo, path: Path, limit: int) -> int:
    """Write one entry and return its true size, whatever the directory says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    written = 0
    with pack.open(entry) as source, path.open("xb") as target:
        while block := source.read(BLOCK):
            if written == 0 and (block.startswith(SIGNATURES) or block[TAR_AT : TAR_AT + len(TAR)] == TAR):
                raise UserError(
                    f"The zip holds another archive ({_shown(entry)}).", "Unpack it first, and zip the pictures."
                )
            written += len(block)
            if written > limit:
                raise _too_large(entry, limit)
            target.write(block)
    return written


def _too_large(entry: zipfile.ZipInfo, limit: int) -> UserError:
    return UserError(
        f"The zip holds a file of more than {limit / 1e6:g} MB ({_shown(entry)}).", "Use smaller pictures."
    )


def _shown(entry: zipfile.ZipInfo) -> str:
    """Return a name that is safe to print."""
    name = entry.filename.rsplit("/", 1)[-1] or entry.filename
    return "".join(letter for letter in name if letter.isprintable())[:60]
