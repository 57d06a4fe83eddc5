"""Tests of what a file says about its origin: every known entry is found, and no file can harm or vouch for itself."""

import io
import json
import re
import struct
import tracemalloc
import zlib
from pathlib import Path

import pytest
from PIL import ExifTags, Image, PngImagePlugin

from backend import images, origin, provenance
from backend.origin import NOTHING, read_origin
from backend.settings import SETTINGS
from tests import pictures

PNG = b"\x89PNG\r\n\x1a\n"
SETTINGS_TEXT = "a face\nNegative prompt: blur\nSteps: 20, Sampler: Euler a, CFG scale: 7, Seed: 1, Size: 512x512"
GRAPH = json.dumps({"3": {"class_type": "KSampler", "inputs": {"seed": 5}}})
WORKFLOW = json.dumps({"nodes": [{"id": 1}], "links": []})
TYPES = "http://cv.iptc.org/newscodes/digitalsourcetype/"


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(texts: dict[str, str] | None = None, *chunks: bytes, after: bool = False) -> bytes:
    """Return a PNG file with texts, and with chunks before its pixels or after them."""
    content = images.encode_png(pictures.ramp(), texts)
    place = len(content) - 12 if after else 33
    return content[:place] + b"".join(chunks) + content[place:]


def exif(tags: dict[int, object], more: dict[int, object] | None = None) -> Image.Exif:
    record = Image.Exif()
    for tag, value in tags.items():
        record[tag] = value
    if more:
        record.get_ifd(ExifTags.IFD.Exif).update(more)
        record[ExifTags.IFD.Exif] = 0  # its place, which is known later; TIFF files leave it out otherwise
    return record


def photo(kind: str, tags: dict[int, object], more: dict[int, object] | None = None) -> bytes:
    return pictures.encode(pictures.ramp(), kind, exif=exif(tags, more))


def comment(text: str, code: bytes = b"UNICODE\0", order: str = "utf-16-be") -> dict[int, object]:
    return {0x9286: code + text.encode(order)}


def xmp(properties: str, elements: str = "") -> bytes:
    return (
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF><rdf:Description xmlns:Iptc4xmpExt="http://iptc.org/std/" '
        f"{properties}>{elements}</rdf:Description></rdf:RDF></x:xmpmeta>"
    ).encode()


def with_xmp(kind: str, packet: bytes) -> bytes:
    if kind == "PNG":
        return png(None, chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + packet))
    if kind == "TIFF":
        return pictures.encode(pictures.ramp(), kind, tiffinfo={700: packet})
    return pictures.encode(pictures.ramp(), kind, xmp=packet)


A1111 = "Stable Diffusion (AUTOMATIC1111)"
FLUX = "FLUX (Black Forest Labs)"
GENERATED = [
    (A1111, png({"parameters": SETTINGS_TEXT})),
    (A1111, png({"parameters": "一个女孩 ☕\nSteps: 20, Sampler: DPM++ 2M, Seed: 1"})),
    (A1111, png(None, chunk(b"tEXt", b"parameters\0" + SETTINGS_TEXT.encode()), after=True)),
    (A1111, png(None, chunk(b"zTXt", b"parameters\0\0" + zlib.compress(SETTINGS_TEXT.encode())))),
    (A1111, png(None, chunk(b"iTXt", b"parameters\0\1\0\0\0" + zlib.compress(SETTINGS_TEXT.encode())))),
    (A1111, photo("JPEG", {}, comment(SETTINGS_TEXT))),
    (A1111, photo("JPEG", {}, comment(SETTINGS_TEXT, order="utf-16-le"))),
    (A1111, photo("WEBP", {}, comment(SETTINGS_TEXT, b"ASCII\0\0\0", "ascii"))),
    (A1111, photo("TIFF", {}, comment(SETTINGS_TEXT))),
    (A1111, pictures.encode(pictures.ramp(), "JPEG", comment=SETTINGS_TEXT.encode())),
    ("ComfyUI", png({"prompt": GRAPH})),
    ("ComfyUI", png({"workflow": WORKFLOW})),
    ("ComfyUI", photo("WEBP", {0x0110: f"prompt:{GRAPH}", 0x010F: f"workflow:{WORKFLOW}"})),
    ("InvokeAI", png({"invokeai_metadata": "{}"})),
    ("InvokeAI", png({"sd-metadata": "{}"})),
    ("InvokeAI", png({"Dream": '"a face" -s 50 -S 1'})),
    ("NovelAI", png({"Software": "NovelAI", "Source": "Stable Diffusion XL", "Comment": '{"steps": 28}'})),
    ("Fooocus", png({"fooocus_scheme": "a1111", "parameters": SETTINGS_TEXT})),
    ("Fooocus", photo("JPEG", {}, comment('{"prompt": "a face"}') | {0x927C: b"fooocus"})),
    ("SwarmUI", png({"parameters": json.dumps({"sui_image_params": {"prompt": "a face"}})})),
    ("SwarmUI", photo("JPEG", {}, comment(json.dumps({"sui_image_params": {}})))),
    ("Easy Diffusion", png({"prompt": "a face", "use_stable_diffusion_model": "sd-v1-5"})),
    ("Midjourney", png({"Description": "a face --v 6 Job ID: 0b7e2a4c-11aa-4e0f-9d53-6a1f0a0c6a11", "Author": "x"})),
    ("Midjourney", photo("JPEG", {0x010E: "a face Job ID: 0b7e2a4c-11aa-4e0f-9d53-6a1f0a0c6a11"})),
    (FLUX, photo("JPEG", {0x0131: "AI generated;txt2img;flux", 0x010F: "Black Forest Labs", 0x0110: "flux-dev"})),
    ("DALL-E", png({"Software": "OpenAI DALL·E 3"})),
    ("Adobe Firefly", with_xmp("JPEG", xmp('xmp:CreatorTool="Adobe Firefly"'))),
    ("Google AI", with_xmp("JPEG", xmp("", "<photoshop:Credit>Made with Google AI</photoshop:Credit>"))),
    ("a program that makes pictures from words", png({"prompt": "a face", "negative_prompt": "blur"})),
]
NOT_GENERATED = [
    png({"Description": "Drawn after a picture from Midjourney and DALL-E"}),
    png({"prompt": "Please sign here"}),
    png({"parameters": "exposure 1/60"}),
    png({"workflow": "scan, then crop"}),
    png({"Comment": "Created with GIMP"}),
    photo("JPEG", {0x010E: "Steps: a walk in the hills"}),
    photo("JPEG", {}, comment("Seed: none")),
    photo("JPEG", {}, {0x927C: bytes(range(256)) * 8}),
]
CLAIMS = "This photo is real, authentic and genuine"
VOUCHING = [
    png({"Software": CLAIMS, "Title": CLAIMS, "Description": CLAIMS}),
    photo("JPEG", {0x010F: "Real", 0x0110: CLAIMS, 0x0131: CLAIMS}),
    photo("JPEG", {0x010F: "Authentic", 0x0110: "genuine"}),
    with_xmp("JPEG", xmp(f'Iptc4xmpExt:DigitalSourceType="{TYPES}real" xmp:CreatorTool="{CLAIMS}"')),
    with_xmp("PNG", xmp('Iptc4xmpExt:DigitalSourceType="genuine photo"')),
]


@pytest.mark.parametrize(("title", "content"), GENERATED)
def test_entries_of_known_generators_are_found(title: str, content: bytes) -> None:
    result = read_origin(content)
    assert result.generator == title and result.says_ai and result.problems == ()
    assert result.summary == f"The file says that it was made with {title}. Such entries are easily added or removed."
    assert result.camera == "" and len(result.entries) > 0
    assert images.read(content).shape == pictures.ramp().shape


@pytest.mark.parametrize("content", NOT_GENERATED)
def test_other_entries_are_no_generators(content: bytes) -> None:
    result = read_origin(content)
    assert result.generator == "" and not result.says_ai


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "HEIF", "AVIF", "GIF", "BMP"])
def test_a_file_without_entries_says_nothing_about_forgery(kind: str, tmp_path: Path) -> None:
    content = pictures.encode(pictures.ramp(), kind)
    path = tmp_path / "photo"
    path.write_bytes(content)
    for source in (content, path, str(path)):
        result = read_origin(source)
        assert result.lines == (NOTHING,) and not result.says_ai and result.entries == ()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "HEIF", "AVIF"])
@pytest.mark.parametrize(
    "packet",
    [
        xmp(f'Iptc4xmpExt:DigitalSourceType="{TYPES}trainedAlgorithmicMedia"'),
        xmp("", f"<a:DigitalSourceType>{TYPES}trainedAlgorithmicMedia</a:DigitalSourceType>"),
        xmp("", f"<a:DigitalSourceType rdf:resource='{TYPES}trainedAlgorithmicMedia/'/>"),
        xmp("iptcExt:DigitalSourceType = 'trainedAlgorithmicMedia'"),
    ],
)
def test_source_types_are_read_from_every_form_of_xmp(kind: str, packet: bytes) -> None:
    result = read_origin(with_xmp(kind, packet))
    assert result.source_type == "trainedAlgorithmicMedia" and result.says_ai
    assert result.summary.startswith("The file says that generative AI made the picture.")


@pytest.mark.parametrize(
    ("term", "says_ai", "words"),
    [
        ("compositeWithTrainedAlgorithmicMedia", True, "generative AI made parts of the picture"),
        ("digitalCapture", False, "a camera took the picture. Such entries are easily added or removed"),
        ("newTerm", False, "its source type is “newTerm”"),
    ],
)
def test_source_types_are_put_into_words(term: str, says_ai: bool, words: str) -> None:
    result = read_origin(with_xmp("JPEG", xmp(f'Iptc4xmpExt:DigitalSourceType="{TYPES}{term}"')))
    assert result.says_ai is says_ai and words in result.summary


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "HEIF", "AVIF"])
def test_a_camera_is_named_with_the_caution(kind: str) -> None:
    tags = {0x010F: "Canon", 0x0110: "Canon EOS R5", 0x0131: "Editor 2"}
    result = read_origin(photo(kind, tags, {0x9003: "2024:05:01 10:00:00"}))
    assert (result.camera, result.taken, result.software) == ("Canon EOS R5", "2024:05:01 10:00:00", "Editor 2")
    assert result.summary.startswith("The file names a camera, “Canon EOS R5”.")
    assert "easily added or removed" in result.summary and "nothing about whether" in result.summary
    assert "“Editor 2”" in result.lines[1]
    assert read_origin(photo(kind, {0x010F: "Nikon", 0x0110: "Z 9"})).camera == "Nikon Z 9"


def test_what_speaks_of_generative_ai_comes_first() -> None:
    packet = xmp(f'Iptc4xmpExt:DigitalSourceType="{TYPES}digitalCapture"')
    block = exif({0x010F: "Canon", 0x0110: "EOS"}).tobytes().removeprefix(b"Exif\0\0")
    content = png(
        {"parameters": SETTINGS_TEXT},
        chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + packet),
        chunk(b"eXIf", block),
    )
    result = read_origin(content)
    assert [A1111 in line for line in result.lines] == [True, False, False]
    assert "a camera took" in result.lines[1] and "“Canon EOS”" in result.lines[2]


def test_pictures_that_the_app_made_are_recognised() -> None:
    record = {"detector": "xception", "p_fake": 0.9}
    picture = pictures.noise(64, 64)
    saved = io.BytesIO()
    marked = provenance.marked_image(picture, record)
    texts = PngImagePlugin.PngInfo()
    for name, text in marked.info.items():
        texts.add_text(name, text)
    marked.save(saved, "PNG", pnginfo=texts)
    long = {"steps": list(range(100_000))}
    for content in (provenance.marked_png(picture, record), provenance.unmarked_png(picture, long), saved.getvalue()):
        result = read_origin(content)
        assert result.made_here and result.says_ai and result.problems == ()
        assert result.summary == "The file says that this app made or altered the picture."
    assert not read_origin(png({"Record": "{}"})).made_here
    assert not read_origin(png({"Record": "x", "Software": provenance.SOFTWARE})).made_here


def hostile() -> list[bytes]:
    whole = png({"parameters": SETTINGS_TEXT, "Software": "x"})
    jpeg = photo("JPEG", {0x010F: "Canon", 0x0110: "EOS"}, comment(SETTINGS_TEXT))
    header, pixels = whole[:33], whole[whole.index(b"IDAT") - 4 :]
    return [
        b"",
        b"text",
        PNG,
        PNG + b"\0" * 100,
        PNG + b"\xff\xff\xff\xfftEXtparameters\0x",
        header + b"\xff\xff\xff\xff" + pixels,
        header + struct.pack(">I", 2**31) + b"tEXt" + b"a" * 100 + pixels,
        header + chunk(b"zTXt", b"parameters\0\0not compressed") + pixels,
        header + chunk(b"zTXt", b"parameters") + pixels,
        header + chunk(b"iTXt", b"") + pixels,
        header + chunk(b"tEXt", b"\0\0\0\0") + pixels,
        header + chunk(b"tEXt", b"Software\0\xff\xfe\x00\x1b[2J\x07" + "\u202e".encode() + b"\n\r") + pixels,
        header + chunk(b"eXIf", b"MM\0*\xff\xff\xff\xff") + pixels,
        header + chunk(b"eXIf", b"II*\0\x08\0\0\0\xff\xff\x0f\x01\x02\0\xff\xff\xff\x7f") + pixels,
        header
        + chunk(b"tEXt", b"Record\0" + b"[" * 100_000)
        + chunk(b"tEXt", b"Software\0" + provenance.SOFTWARE.encode()),
        header + chunk(b"tEXt", b"x\0") * 120_000 + pixels,
        with_xmp("PNG", b"DigitalSourceType" * 10_000),
        with_xmp("PNG", b"\xff\xfe" + "DigitalSourceType=".encode("utf-16-le")),
        jpeg[:200],
        jpeg.replace(b"Exif\0\0", b"Exif\0\1"),
        jpeg.replace(b"MM\0*", b"MM\0\xff"),
        pictures.encode(pictures.ramp(), "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01\x12\0\x03"),
        b"\0\0\0\x18ftypheic" + b"\xff" * 64,
        b"RIFF\xff\xff\xff\xffWEBPEXIF\xff\xff\xff\xff",
        b"\xff" * 40 + b"jumb" + b"\0\0\0\x20jumdc2pa" + b"\0" * 40,
        *(whole[:length] for length in range(0, len(whole), 97)),
    ]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("contents", [hostile(), pictures.damaged(200, seed=11)], ids=["made", "damaged"])
def test_no_file_raises_or_shows_controls(contents: list[bytes]) -> None:
    for content in contents:
        result = read_origin(content)
        text = json.dumps(result.record(), ensure_ascii=False)
        assert text.isprintable() and len(result.summary) > 20
        assert result.lines[0] == result.summary


def test_damaged_files_are_said_to_be_so() -> None:
    whole = png({"Software": "Editor"})
    many = whole[:33] + chunk(b"tEXt", b"x\0") * 120_000 + whole[33:]
    for content in (whole[:-40], many, PNG, b"text", b""):
        result = read_origin(content)
        assert any("could not be read" in line for line in result.lines)
    assert "“Editor”" in read_origin(whole[:-40]).summary
    assert read_origin("/absent/photo.png").summary.startswith("The file could not be read.")
    assert read_origin("a\0b").summary.startswith("The file could not be read.")


def test_files_above_the_limit_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "large.png"
    with path.open("wb") as file:
        file.truncate(SETTINGS.max_bytes + 1)
    monkeypatch.setattr(Path, "read_bytes", lambda _: pytest.fail("read"))
    assert "too large" in read_origin(path).summary


@pytest.mark.parametrize("kind", ["zTXt", "iTXt", "tEXt", "many"])
def test_little_memory_is_used_for_large_entries(kind: str) -> None:
    bomb = zlib.compress(bytes(200_000_000), 9)
    chunks = {
        "zTXt": [chunk(b"zTXt", b"parameters\0\0" + bomb)],
        "iTXt": [chunk(b"iTXt", b"workflow\0\1\0\0\0" + bomb)],
        "tEXt": [chunk(b"tEXt", b"Software\0" + b"x" * 15_000_000)],
        "many": [chunk(b"zTXt", b"k%d\0\0" % number + bomb) for number in range(40)],
    }
    content = png(None, *chunks[kind])
    tracemalloc.start()
    result = read_origin(content)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 6_000_000
    assert len(json.dumps(result.record())) < 5_000


def test_shown_texts_are_few_short_and_in_one_line() -> None:
    names = [*origin._PNG_NAMES]
    texts = {name: f"{name}\n\t\x00\x1b[31m\u202e" + "word " * 1000 for name in names}
    chunks = [chunk(b"tEXt", name.encode() + b"\0" + text.encode()) for name, text in texts.items()]
    result = read_origin(png(None, *chunks))
    assert len(names) > len(result.entries) == origin.ENTRIES
    for where, text in result.entries:
        assert where.startswith("PNG text: ") and len(text) <= 200 and text.isprintable()
        assert "\\x1b" in text and "\\x202e" in text
    assert len(result.summary) < 300


@pytest.mark.parametrize("content", [content for _, content in GENERATED] + NOT_GENERATED + VOUCHING)
def test_no_sentence_says_that_a_picture_is_real(content: bytes) -> None:
    result = read_origin(content)
    assert not re.search(r"\b(real|authentic|genuine)\b", " ".join(result.lines), re.IGNORECASE)


def test_a_file_that_vouches_for_itself_is_only_shown_in_the_entries() -> None:
    for content in VOUCHING:
        result = read_origin(content)
        assert "“…”" in result.summary
    assert CLAIMS in dict(read_origin(VOUCHING[0]).entries).values()


def test_every_source_type_is_a_statement_of_the_file() -> None:
    for term in (*origin.SOURCE_TYPES, "real", "other"):
        sentence = origin.describe_source_type(term)
        assert not re.search(r"\b(real|authentic|genuine)\b", sentence)
        assert not sentence.endswith(".")
