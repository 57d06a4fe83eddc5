"""Hostile zips are refused in one sentence, and nothing of them is left on the disk."""

import io
import stat
import struct
import time
import zipfile
from pathlib import Path

import pytest

from backend import settings
from backend.errors import UserError
from backend.evaluate import archives, dataset
from backend.evaluate.archives import Limits, unpack_zip
from tests import pictures

PNG = pictures.encode(pictures.ramp(), "PNG")


def write_zip(path, files, compression=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", compression) as pack:
        for name, content in files.items():
            pack.writestr(name, content)
    return path


def assert_refused(path, tmp_path, message, limits=None):
    with pytest.raises(UserError) as caught:
        unpack_zip(path, tmp_path / "out", limits)
    assert message in caught.value.message
    assert caught.value.message.count(". ") == 0  # one sentence
    assert caught.value.hint
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "out.part").exists()


def test_a_plain_zip_is_unpacked_and_leftovers_are_named(tmp_path):
    files = {
        "set/real/a.png": PNG,
        "set/fake/swap/a.png": PNG,
        "set/readme.txt": b"hello",
        "__MACOSX/set/real/._a.png": b"x",
        "set/real/.DS_Store": b"x",
        "set/Thumbs.db": b"x",
    }
    unpacked = unpack_zip(write_zip(tmp_path / "a.zip", files), tmp_path / "out")
    assert unpacked.files == 3
    assert len(unpacked.left_out) == 3
    assert (tmp_path / "out/set/real/a.png").read_bytes() == PNG
    opened = dataset.open_data(tmp_path / "a.zip", tmp_path / "run")
    assert [(sample.name, sample.label, sample.pair) for sample in opened.samples] == [
        ("fake/swap/a.png", "fake", "real/a.png"),
        ("real/a.png", "real", ""),
    ]
    again = dataset.open_data(tmp_path / "a.zip", tmp_path / "run")  # a resumed run finds it unpacked
    assert again == opened


@pytest.mark.parametrize(
    "name",
    [
        "../evil.png",
        "real/../../evil.png",
        "/etc/evil.png",
        "C:/evil.png",
        "..\\evil.png",
        "real/a\nb.png",
        "a/./../../b.png",
    ],
)
def test_no_path_leaves_the_folder(tmp_path, name):
    assert_refused(write_zip(tmp_path / "a.zip", {"real/ok.png": PNG, name: PNG}), tmp_path, "leads out of its folder")
    assert sorted(path.name for path in tmp_path.rglob("*.png")) == []


def test_a_name_cut_by_a_nul_is_refused(tmp_path):
    path = write_zip(tmp_path / "a.zip", {"real/okX.png/../../../evil.png": PNG})
    path.write_bytes(path.read_bytes().replace(b"okX.png", b"ok\x00.png"))
    assert_refused(path, tmp_path, "leads out of its folder")


def test_links_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as pack:
        link = zipfile.ZipInfo("real/passwd.png")
        link.create_system = 3
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        pack.writestr(link, "/etc/passwd")
    assert_refused(tmp_path / "a.zip", tmp_path, "a link")


def test_a_bomb_is_refused_by_its_ratio(tmp_path):
    path = write_zip(tmp_path / "a.zip", {"real/zeros.png": bytes(19_000_000)})
    assert path.stat().st_size < 50_000
    assert_refused(path, tmp_path, "grows more than 100 times")


def test_many_small_bombs_are_refused_by_their_sum(tmp_path):
    path = write_zip(tmp_path / "a.zip", {f"real/{number}.png": bytes(90_000) for number in range(20)})
    assert_refused(path, tmp_path, "unpacks to more than 1 MB", Limits(total=1_000_000))


def test_a_file_that_is_too_large_is_refused(tmp_path):
    path = write_zip(tmp_path / "a.zip", {"real/a.png": pictures.noise(200, 200).tobytes()}, zipfile.ZIP_STORED)
    assert_refused(path, tmp_path, "more than 0.1 MB (a.png)", Limits(single=100_000))


def test_a_directory_that_lies_about_sizes_is_refused(tmp_path):
    """The directory says 100 bytes; what is packed unpacks to a million."""
    content = pictures.noise(600, 600).tobytes()
    path = write_zip(tmp_path / "a.zip", {"real/a.png": content})
    raw = path.read_bytes()
    assert raw.count(struct.pack("<L", len(content))) == 2
    path.write_bytes(raw.replace(struct.pack("<L", len(content)), struct.pack("<L", 100)))
    assert_refused(path, tmp_path, "damaged")


def test_a_hundred_thousand_entries_are_refused_quickly(tmp_path):
    path = tmp_path / "a.zip"
    directory = io.BytesIO()
    for number in range(100_000):
        name = f"real/{number}.png".encode()
        directory.write(
            struct.pack("<4s6H3L5H2L", b"PK\x01\x02", 20, 20, 0, 0, 0, 0, 0, 0, 0, len(name), 0, 0, 0, 0, 0, 0)
        )
        directory.write(name)
    body = directory.getvalue()
    for entries in (65_535, 100_000 % 65_536, 1):  # the true number does not fit; a liar may say anything
        path.write_bytes(body + struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, entries, entries, len(body), 0, 0))
        started = time.perf_counter()
        assert_refused(path, tmp_path, "more than 5,000 files", Limits(files=5000))
        assert time.perf_counter() - started < 0.5


def test_a_zip64_zip_is_refused_before_its_directory_is_read(tmp_path):
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 1, 1, 50, 0, 0)
    locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, 0, 1)
    (tmp_path / "a.zip").write_bytes(bytes(100) + locator + end)
    assert_refused(tmp_path / "a.zip", tmp_path, "more than 65,000 files")


@pytest.mark.parametrize("name", ["real/run.exe", "real/page.html", "setup.py", "real/noending", "real/photo.png.sh"])
def test_wrong_endings_are_refused(tmp_path, name):
    assert_refused(write_zip(tmp_path / "a.zip", {"real/a.png": PNG, name: b"x"}), tmp_path, "no picture")


@pytest.mark.parametrize("name", ["real/inner.zip", "real/inner.tar.gz", "inner.7z", "inner.RAR"])
def test_nested_archives_are_refused_by_name(tmp_path, name):
    assert_refused(write_zip(tmp_path / "a.zip", {"real/a.png": PNG, name: b"x"}), tmp_path, "another archive")


def test_nested_archives_are_refused_by_content(tmp_path):
    inner = write_zip(tmp_path / "inner.zip", {"real/a.png": PNG}).read_bytes()
    assert_refused(
        write_zip(tmp_path / "a.zip", {"real/a.png": PNG, "real/b.png": inner}), tmp_path, "another archive (b.png)"
    )
    assert_refused(
        write_zip(tmp_path / "c.zip", {"real/b.png": bytes(257) + b"ustar" + bytes(300)}), tmp_path, "another archive"
    )


def test_a_name_given_twice_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as pack, pytest.warns(UserWarning, match="Duplicate"):
        pack.writestr("real/a.png", PNG)
        pack.writestr("real/a.png", PNG)
    assert_refused(tmp_path / "a.zip", tmp_path, "twice")
    assert_refused(write_zip(tmp_path / "b.zip", {"real/a.png": PNG, "real/A.png": PNG}), tmp_path, "twice")


@pytest.mark.parametrize("other", ["real//a.png", "real/./a.png"])
def test_a_path_written_in_two_ways_is_refused(tmp_path, other):
    assert_refused(write_zip(tmp_path / "a.zip", {"real/a.png": PNG, other: PNG}), tmp_path, "twice")


def test_a_name_that_is_a_file_and_a_folder_is_refused(tmp_path):
    assert_refused(
        write_zip(tmp_path / "a.zip", {"real/a.png": PNG, "real/a.png/b.png": PNG}), tmp_path, "could not be unpacked"
    )


def test_another_zip_is_never_taken_for_the_one_before(tmp_path):
    """A repaired zip, or another one, must not be measured by the files that were unpacked first."""
    write_zip(tmp_path / "a.zip", {"set/real/a.png": PNG})
    dataset.open_data(tmp_path / "a.zip", tmp_path / "run")
    write_zip(tmp_path / "a.zip", {"set/real/b.png": PNG})
    assert list(dataset.open_data(tmp_path / "a.zip", tmp_path / "run").by_name) == ["real/b.png"]


def test_a_name_that_is_too_long_is_refused(tmp_path):
    assert_refused(write_zip(tmp_path / "a.zip", {f"real/{'a' * 300}.png": PNG}), tmp_path, "name that is too long")
    assert_refused(write_zip(tmp_path / "b.zip", {"a/" * 30 + "a.png": PNG}), tmp_path, "name that is too long")


def test_a_locked_zip_is_refused(tmp_path):
    path = write_zip(tmp_path / "a.zip", {"real/a.png": PNG})
    raw = bytearray(path.read_bytes())
    raw[raw.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(raw)
    assert_refused(path, tmp_path, "password")


def test_unusual_compression_is_refused(tmp_path):
    assert_refused(write_zip(tmp_path / "a.zip", {"real/a.png": PNG}, zipfile.ZIP_LZMA), tmp_path, "unusual")


@pytest.mark.parametrize("content", [b"", b"no zip", PNG, b"PK\x05\x06" + bytes(4)])
def test_a_file_that_is_no_zip_is_refused(tmp_path, content):
    (tmp_path / "a.zip").write_bytes(content)
    assert_refused(tmp_path / "a.zip", tmp_path, "not a zip file")


def test_a_damaged_zip_is_refused(tmp_path):
    path = write_zip(tmp_path / "a.zip", {"real/a.png": PNG}, zipfile.ZIP_STORED)
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 3] ^= 255
    path.write_bytes(raw)
    assert_refused(path, tmp_path, "damaged")
    assert_refused(Path(tmp_path / "absent.zip"), tmp_path, "could not be opened")


def test_a_zip_without_pictures_gives_one_sentence(tmp_path):
    write_zip(tmp_path / "a.zip", {"notes.txt": b"x"})
    with pytest.raises(UserError, match=r"a\.zip holds neither real/ and fake/"):
        dataset.open_data(tmp_path / "a.zip", tmp_path / "run")


def test_limits_default_to_the_app_s_own():
    assert archives.Limits().single == settings.SETTINGS.max_bytes
