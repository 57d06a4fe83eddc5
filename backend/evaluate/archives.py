"""Unpack a stranger's zip of pictures: no file leaves the folder or exceeds the limits."""

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
# The first bytes of an archive, whatever its name.
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
LEFTOVERS = ("__macosx/", ".ds_store", "thumbs.db", "desktop.ini")  # added by macOS and Windows
MEASURED = 100_000  # bytes; the compression ratio of smaller entries is not checked
LONGEST_NAME = 200
BLOCK = 1 << 16

# The end of a zip file (APPNOTE.TXT 4.3.16): signature, four numbers of 2 bytes, two of 4, and a comment.
_END = struct.Struct("<4s4H2LH")
_END_SIGNATURE, _ZIP64_SIGNATURE = b"PK\x05\x06", b"PK\x06\x07"
_LARGEST_ENTRY = 512  # bytes of the directory; a name of 200 characters needs less
_AGAIN = "Zip a folder that holds only pictures."
_UNPACK_FIRST = "Unpack it first, and zip the pictures."


@dataclass(frozen=True)
class Limits:
    """The most that a zip may hold."""

    files: int = 20_000
    total: int = 4_000_000_000  # bytes of all entries, unpacked
    single: int = SETTINGS.max_bytes  # bytes of one entry, unpacked
    ratio: int = 100  # unpacked size of an entry over its packed size


@dataclass(frozen=True)
class Unpacked:
    """The folder of an unpacked zip."""

    folder: Path
    files: int  # how many
    left_out: tuple[str, ...]  # names of files that the operating system had added


def unpack_zip(archive: Path, folder: Path, limits: Limits | None = None) -> Unpacked:
    """Unpack a zip of pictures into a folder that does not exist yet; it appears only once it is complete.

    Raises:
        UserError: The file is no zip, is damaged, or holds something that does not belong in a zip of pictures.
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
        raise UserError("The zip file could not be unpacked.", f"Check that the disk has room. {_AGAIN}") from None
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return Unpacked(folder, len(entries), tuple(left_out))


def _check_directory(archive: Path, limits: Limits) -> None:
    """Read only the end of the file, and refuse a zip whose directory would take long to list."""
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
        raise UserError("The zip file uses the format for more than 65,000 files or 4 GB.", _AGAIN)
    if entries > limits.files or directory > limits.files * _LARGEST_ENTRY:
        raise UserError(f"The zip holds more than {limits.files:,} files.", "Use fewer pictures, or a folder.")


def _checked_entries(entries: list[zipfile.ZipInfo], limits: Limits) -> tuple[list[zipfile.ZipInfo], list[str]]:
    """Return the entries to unpack and the names of those to leave out, or refuse the zip."""
    if len(entries) > limits.files:
        raise UserError(f"The zip holds more than {limits.files:,} files.", "Use fewer pictures, or a folder.")
    kept, left_out, known = [], [], set()
    for entry in entries:
        _check_path(entry)
        if entry.is_dir():
            continue
        name = str(PurePosixPath(entry.filename)).lower()  # a//b and a/./b are one file
        if name.startswith(LEFTOVERS[0]) or name.rsplit("/", 1)[-1] in LEFTOVERS:
            left_out.append(entry.filename)
            continue
        _check_kind(entry)
        if name in known:
            raise UserError(f"The zip holds {_shown(entry)} twice.", _AGAIN)
        known.add(name)
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
        raise UserError(f"The zip holds another archive ({_shown(entry)}).", _UNPACK_FIRST)
    if suffix not in PICTURES | LIST_FILES:
        raise UserError(f"The zip holds a file that is no picture ({_shown(entry)}).", _AGAIN)
    if entry.flag_bits & 1:
        raise UserError("The zip is locked with a password.", "Zip the pictures without one.")
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise UserError("The zip uses an unusual compression.", "Zip the pictures with your system's own tool.")


def _check_sizes(entries: list[zipfile.ZipInfo], limits: Limits) -> None:
    for entry in entries:
        if entry.file_size > limits.single:
            raise _too_large(entry, limits.single)
        if entry.file_size > max(MEASURED, limits.ratio * entry.compress_size):
            growth = f"a file that grows more than {limits.ratio} times when unpacked ({_shown(entry)})"
            raise UserError(f"The zip holds {growth}.", "Use JPEG or PNG pictures.")
    if sum(entry.file_size for entry in entries) > limits.total:
        raise UserError(f"The zip unpacks to more than {limits.total / 1e6:,.0f} MB.", "Use fewer or smaller pictures.")


def _write_entry(pack: zipfile.ZipFile, entry: zipfile.ZipInfo, path: Path, limit: int) -> int:
    """Write one entry and return its true size, which the directory may misstate."""
    path.parent.mkdir(parents=True, exist_ok=True)
    written = 0
    with pack.open(entry) as source, path.open("xb") as target:
        while block := source.read(BLOCK):
            if written == 0 and (block.startswith(SIGNATURES) or block[TAR_AT : TAR_AT + len(TAR)] == TAR):
                raise UserError(f"The zip holds another archive ({_shown(entry)}).", _UNPACK_FIRST)
            written += len(block)
            if written > limit:
                raise _too_large(entry, limit)
            target.write(block)
    return written


def _too_large(entry: zipfile.ZipInfo, limit: int) -> UserError:
    return UserError(f"A zipped file takes more than {limit / 1e6:g} MB ({_shown(entry)}).", "Use smaller pictures.")


def _shown(entry: zipfile.ZipInfo) -> str:
    """Return a name that is safe to print."""
    name = entry.filename.rsplit("/", 1)[-1] or entry.filename
    return "".join(letter for letter in name if letter.isprintable())[:60]
