"""What a picture file itself says about where it comes from: Content Credentials, generators' entries, EXIF and XMP.

None of it is evidence about the pixels. Entries without a signature can be added, changed and removed by anyone, and
most files that travel through the web have lost theirs.
"""

import contextlib
import html
import io
import json
import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from PIL import ExifTags, Image

from backend import images
from backend.credentials import (
    AI_SOURCE_TYPES,
    SHOWN_CHARACTERS,
    SOFTWARE,
    ContentCredentials,
    plain_text,
    read_credentials,
    source_term,
)
from backend.errors import UserError
from backend.provenance import RECORD_KEY
from backend.settings import SETTINGS

ENTRIES = 12  # shown at most
NAME_CHARACTERS = 60  # of a name in a sentence
_TEXT_BYTES = 256_000  # of one entry, after decompression: programs write their own names and settings into the first
_ALL_BYTES = 3_000_000
_CHUNKS = 100_000  # of a PNG file; one of the largest size has a tenth of it
_PNG = b"\x89PNG\r\n\x1a\n"

NO_SIGN = "That says nothing about whether it was forged."
NOTHING = f"The file carries no information about its origin. {NO_SIGN}"
CAUTION = "Such entries are easily added or removed."
_DAMAGED = "The file is damaged or unusual, and what it says about its origin could not be read in full."

# What IPTC's digital source types mean, after "says that".
SOURCE_TYPES = {
    "trainedAlgorithmicMedia": "generative AI made the picture",
    "compositeWithTrainedAlgorithmicMedia": "generative AI made parts of the picture",
    "compositeSynthetic": "the picture is put together from parts, at least one of them synthetic",
    "algorithmicMedia": "a program made the picture",
    "algorithmicallyEnhanced": "a program enhanced the picture",
    "digitalCapture": "a camera took the picture",
    "computationalCapture": "a camera took the picture and computed it from several exposures",
    "composite": "the picture is put together from several pictures",
    "compositeCapture": "the picture is put together from several photographs",
    "humanEdits": "a person edited the picture",
    "digitalCreation": "a person made the picture on a computer",
    "screenCapture": "the picture was taken from a screen",
}
# Names that generators write as the software, in small letters.
_NAMES = {
    "novelai": "NovelAI",
    "midjourney": "Midjourney",
    "dall-e": "DALL-E",
    "dall·e": "DALL-E",
    "comfyui": "ComfyUI",
    "invokeai": "InvokeAI",
    "fooocus": "Fooocus",
    "draw things": "Draw Things",
    "adobe firefly": "Adobe Firefly",
    "made with google ai": "Google AI",
    "black forest labs": "FLUX (Black Forest Labs)",
    "ai generated;": "FLUX (Black Forest Labs)",
    "stable diffusion": "Stable Diffusion",
}
_EXIF_NAMES = {
    tag.value: tag.name
    for tag in (
        ExifTags.Base.Make,
        ExifTags.Base.Model,
        ExifTags.Base.Software,
        ExifTags.Base.ImageDescription,
        ExifTags.Base.DateTimeOriginal,
        ExifTags.Base.UserComment,
        ExifTags.Base.MakerNote,
    )
}
_XMP_NAMES = ("DigitalSourceType", "CreatorTool", "Credit", "provenance")
# PNG keywords of programs and generators, in the order in which they are shown.
_PNG_NAMES = (
    *("Software", "Source", "Title", "Author", "Description", "Comment"),
    *("parameters", "prompt", "workflow", "negative_prompt", "Negative Prompt", "use_stable_diffusion_model"),
    *("invokeai_metadata", "invokeai_graph", "sd-metadata", "Dream", "fooocus_scheme"),
)
# A sentence may quote a name, but not one that makes the file vouch for itself.
_CLAIM = re.compile(r"\b(real|authentic\w*|genuine\w*|verified|unaltered|unedited|original|true)\b", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Origin:
    """What a file says about its origin. Texts come from the file; they are cut, and their controls escaped.

    Args:
        made_here: The file carries the record that this app writes.
        credentials: Its Content Credentials, if it carries any that could be read.
        stored_elsewhere: It names Content Credentials on a server, which were not fetched.
        generator: The image generator whose entries it carries, or empty.
        source_type: IPTC term from the XMP packet, for example `trainedAlgorithmicMedia`, or empty.
        software: The program that it names.
        camera: Make and model.
        taken: Date and time of the photograph, as written.
        entries: What was found, as pairs of where it stands and its text, for people who want to see it.
        problems: Sentences about what could not be read.
    """

    made_here: bool = False
    credentials: ContentCredentials | None = None
    stored_elsewhere: bool = False
    generator: str = ""
    source_type: str = ""
    software: str = ""
    camera: str = ""
    taken: str = ""
    entries: tuple[tuple[str, str], ...] = ()
    problems: tuple[str, ...] = ()

    @property
    def says_ai(self) -> bool:
        """Whether anything in the file that counts says that generative AI made it or a part of it."""
        signed = self.credentials if self.credentials and self.credentials.valid else None
        terms = {self.source_type} | ({signed.source_type, signed.earlier_source_type} if signed else set())
        return self.made_here or bool(self.generator) or bool(terms & set(AI_SOURCE_TYPES))

    @property
    def lines(self) -> tuple[str, ...]:
        """One statement in plain words for each thing that the file says, the most telling one first."""
        statements = [line for line in self._statements() if line]
        if statements or not self.problems:
            return (*(statements or [NOTHING]), *self.problems)
        return (f"{self.problems[0]} {NO_SIGN}", *self.problems[1:])

    @property
    def summary(self) -> str:
        """What the file says, in plain words, in one line."""
        return self.lines[0]

    def record(self) -> dict[str, Any]:
        return asdict(self) | {
            "credentials": self.credentials and self.credentials.record(),
            "entries": [{"where": where, "text": text} for where, text in self.entries],
            "problems": list(self.problems),
            "says_ai": self.says_ai,
            "summary": self.summary,
        }

    def _statements(self) -> Iterator[str]:
        signed = describe_credentials(self.credentials) if self.credentials else ""
        signed_ai = self.credentials is not None and _states_ai(self.credentials)
        yield "The file says that this app made or altered the picture." if self.made_here else ""
        yield signed if signed_ai else ""
        yield f"The file says that it was made with {self.generator}. {CAUTION}" if self.generator else ""
        labelled = f"The file says that {describe_source_type(self.source_type)}. {CAUTION}" if self.source_type else ""
        ai_label = self.source_type in AI_SOURCE_TYPES
        yield labelled if ai_label else ""
        yield "" if signed_ai else signed
        yield (
            "The file names Content Credentials that are kept on a server. They were not fetched."
            if self.stored_elsewhere and not self.credentials
            else ""
        )
        yield "" if ai_label else labelled
        if self.camera:
            yield (
                f"The file names a camera, {quote(self.camera)}. Such entries are easily added or removed, "
                "and say nothing about whether the picture was forged."
            )
        if self.software and not self.made_here and not self.generator:
            yield (f"The file says that it was saved with {quote(self.software)}. {NO_SIGN}")


def read_origin(source: bytes | Path | str) -> Origin:
    """Read what a picture file, given as its content or path, says about its origin. Never raises, uses no network."""
    try:
        content = source if isinstance(source, bytes) else _read_file(Path(source))
        found = _find_metadata(content)
        problems = list(found.problems)
        credentials = None
        try:
            credentials = read_credentials(content)
        except UserError as error:
            problems.append(error.message)
        return _understand(found, credentials, problems)
    except UserError as error:
        return Origin(problems=(error.message,))
    except Exception:  # noqa: BLE001 - any file at all may be asked about
        return Origin(problems=(_DAMAGED,))


def describe_source_type(term: str) -> str:
    """Return what an IPTC source type means, to stand after "says that"."""
    return SOURCE_TYPES.get(term, f"its source type is {quote(term)}")


def describe_credentials(found: ContentCredentials) -> str:
    """Return in plain words what Content Credentials say, and how far they can be relied upon."""
    if found.fault == "changed":
        return (
            "The file carries Content Credentials that no longer fit it: it was changed after it was signed, "
            "so nothing that they say counts. A new size or another program can be the cause."
        )
    if found.fault:
        why = "its certificate was not valid then" if found.fault == "expired" else "the signature does not hold"
        return f"The file carries Content Credentials, but {why}, so nothing that they say counts."
    tool = f", with {quote(found.tool)}" if found.tool else ""
    if found.source_type:
        statement = f"they say that {describe_source_type(found.source_type)}{tool}"
    elif found.earlier_source_type in AI_SOURCE_TYPES:
        statement = f"they say that generative AI made or altered a picture that it comes from{tool}"
    else:
        statement = f"they name the program {quote(found.tool)}" if found.tool else "they do not say how it was made"
    trust = {
        "listed": "The signer stands on the list of known signers; that is no statement about what the picture shows.",
        "unlisted": "The signer is not verified: the name stands on no list of known signers.",
        "unchecked": "The signer is not verified, because no list of known signers is set up.",
    }[found.trust]
    signer = f"signed as {quote(found.signer)}" if found.signer else "signed without a name"
    return f"The file carries Content Credentials, {signer}: {statement}. {trust}"


def quote(text: str) -> str:
    """Return a name from a file in quotation marks, cut, and left out where it makes a claim about itself."""
    return "“…”" if _CLAIM.search(text) else f"“{plain_text(text.replace('“', '').replace('”', ''), NAME_CHARACTERS)}”"


def _states_ai(found: ContentCredentials) -> bool:
    return found.valid and bool({found.source_type, found.earlier_source_type} & set(AI_SOURCE_TYPES))


@dataclass
class _Metadata:
    """Texts of a file as they are written: PNG text chunks, EXIF tags and XMP properties by name."""

    png: dict[str, str] = field(default_factory=dict)
    exif: dict[str, str] = field(default_factory=dict)
    xmp: dict[str, str] = field(default_factory=dict)
    comment: str = ""
    problems: list[str] = field(default_factory=list)

    @property
    def settings(self) -> str:
        """Where programs for Stable Diffusion write their settings: a PNG chunk, or the comment in other files."""
        return self.png.get("parameters") or self.exif.get("UserComment") or self.comment

    def names(self) -> str:
        """Return in small letters every text in which programs name themselves."""
        values = [self.png.get("Software"), self.png.get("Source"), self.exif.get("Software"), self.exif.get("Make")]
        values += [self.xmp.get("CreatorTool"), self.xmp.get("Credit")]
        return "\n".join(value[:SHOWN_CHARACTERS] for value in values if value).lower()


def _is_comfyui(found: _Metadata) -> bool:
    graphs = [found.png.get("prompt", ""), found.png.get("workflow", "")]
    # In other files than PNG, it uses the tags of the camera's make and model.
    graphs += [text.partition(":")[2] for text in found.exif.values() if text.startswith(("prompt:", "workflow:"))]
    return any(graph.lstrip().startswith("{") and re.search(r'"(class_type|nodes)"', graph) for graph in graphs)


def _is_automatic1111(found: _Metadata) -> bool:
    return bool(
        re.search(r"\bSteps: \d", found.settings) and re.search(r"\b(Sampler|CFG scale|Seed): ", found.settings)
    )


def _is_midjourney(found: _Metadata) -> bool:
    texts = found.png.get("Description", ""), found.exif.get("ImageDescription", "")
    return any(re.search(r"\bJob ID: [0-9a-f]{8}-[0-9a-f]{4}-", text) for text in texts)


# In order, because some write what others write too.
GENERATORS: Mapping[str, Callable[[_Metadata], Any]] = {
    "InvokeAI": lambda found: found.png.keys() & {"invokeai_metadata", "invokeai_graph", "sd-metadata", "Dream"},
    "Fooocus": lambda found: "fooocus_scheme" in found.png or found.exif.get("MakerNote") in {"fooocus", "a1111"},
    "SwarmUI": lambda found: '"sui_image_params"' in found.settings,
    "NovelAI": lambda found: found.png.get("Software") == "NovelAI" or '"Software": "NovelAI"' in found.settings,
    "ComfyUI": _is_comfyui,
    "Stable Diffusion (AUTOMATIC1111)": _is_automatic1111,
    "Easy Diffusion": lambda found: "use_stable_diffusion_model" in found.png,
    "Midjourney": _is_midjourney,
    "a program that makes pictures from words": lambda found: (
        "prompt" in found.png and found.png.keys() & {"negative_prompt", "Negative Prompt"}
    ),
}


def _find_generator(found: _Metadata) -> str:
    named = found.names()
    rules = (title for title, applies in GENERATORS.items() if applies(found))
    return next(rules, "") or next((title for name, title in _NAMES.items() if name in named), "")


def _understand(found: _Metadata, credentials: ContentCredentials | None, problems: list[str]) -> Origin:
    generator = _find_generator(found)
    made_here = found.png.get("Software") == SOFTWARE and _is_record(found.png.get(RECORD_KEY, ""))
    make, model = (found.exif.get(name, "") for name in ("Make", "Model"))
    camera = model if model.lower().startswith(make.lower()) else f"{make} {model}"
    if generator and ("black forest labs" in make.lower() or ":{" in f"{make[:12]}{model[:12]}"):
        camera = ""  # generators use the camera's tags
    software = found.png.get("Software") or found.exif.get("Software") or found.xmp.get("CreatorTool", "")
    where = (
        *(("PNG text", name, found.png[name]) for name in _PNG_NAMES if name in found.png),
        *(("EXIF", name, text) for name, text in found.exif.items() if name != "MakerNote"),
        *(("XMP", name, text) for name, text in found.xmp.items()),
        *((("Comment", "of the file", found.comment),) if found.comment else ()),
    )
    return Origin(
        made_here=made_here,
        credentials=credentials,
        stored_elsewhere=found.xmp.get("provenance", "").startswith(("http://", "https://")),
        generator=generator,
        source_type=source_term(found.xmp.get("DigitalSourceType", "")),
        software=plain_text(software),
        camera=plain_text(camera),
        taken=plain_text(found.exif.get("DateTimeOriginal", ""), 40),
        entries=tuple((f"{kind}: {name}", plain_text(text)) for kind, name, text in where)[:ENTRIES],
        problems=tuple(dict.fromkeys(problems)),
    )


def _is_record(text: str) -> bool:
    """Tell whether a PNG text is a record of this app, of which only the start may have been read."""
    with contextlib.suppress(ValueError, RecursionError):
        return isinstance(json.loads(text), dict)
    return len(text) >= _TEXT_BYTES and text.startswith("{")


def _read_file(path: Path) -> bytes:
    try:
        if path.stat().st_size > SETTINGS.max_bytes:
            raise UserError("The file is too large: what it says about its origin could not be read.")
        return path.read_bytes()
    except (OSError, ValueError):
        raise UserError("The file could not be read.") from None


def _find_metadata(content: bytes) -> _Metadata:
    found = _Metadata()
    exif, xmp = b"", b""
    try:
        if content.startswith(_PNG):
            exif, xmp = _read_png(content, found)
        else:
            exif, xmp = _read_other(content, found)
    except Exception:  # noqa: BLE001 - decoders raise anything on damaged data
        found.problems.append(_DAMAGED)
    if exif:
        try:
            found.exif |= _read_exif(exif)
        except Exception:  # noqa: BLE001 - as above
            found.problems.append(_DAMAGED)
    found.xmp |= _read_xmp(xmp[:_TEXT_BYTES].decode("utf-8", "replace"))
    return found


def _read_png(content: bytes, found: _Metadata) -> tuple[bytes, bytes]:
    """Read the texts of a PNG file without its pixels, and return its EXIF and XMP blocks."""
    blocks = {"exif": b"", "XML:com.adobe.xmp": b""}
    place, left = len(_PNG), _ALL_BYTES
    for _ in range(_CHUNKS):
        length, kind = int.from_bytes(content[place : place + 4], "big"), content[place + 4 : place + 8]
        start, place = place + 8, place + length + 12
        if kind == b"IEND":
            return blocks["exif"], blocks["XML:com.adobe.xmp"]
        if place > len(content) or left <= 0:
            break
        body = memoryview(content)[start : start + min(length, 4 * _TEXT_BYTES)]
        if kind == b"eXIf":
            blocks["exif"] = bytes(body[:_TEXT_BYTES])
        elif kind in {b"tEXt", b"zTXt", b"iTXt"}:
            name, text = _read_png_text(kind, bytes(body))
            left -= len(text)
            if name in blocks:
                blocks[name] = text
            else:
                found.png.setdefault(name, _decode(text))
    found.problems.append(_DAMAGED)
    return blocks["exif"], blocks["XML:com.adobe.xmp"]


def _read_png_text(kind: bytes, body: bytes) -> tuple[str, bytes]:
    """Return keyword and text of a PNG text chunk, of which no more than is looked at is decompressed."""
    keyword, _, rest = body.partition(b"\0")
    packed = kind == b"zTXt"
    if kind == b"iTXt":
        packed, rest = rest[:1] == b"\1", rest[2:].partition(b"\0")[2].partition(b"\0")[2]
    elif packed:
        rest = rest[1:]
    if packed:
        try:
            rest = zlib.decompressobj().decompress(rest, _TEXT_BYTES)
        except zlib.error:
            rest = b""
    return keyword[:79].decode("latin-1"), rest[:_TEXT_BYTES]


def _read_other(content: bytes, found: _Metadata) -> tuple[bytes, bytes]:
    """Return the EXIF and XMP blocks of a file of another kind than PNG."""
    images.register_heif()
    with Image.open(io.BytesIO(content), formats=images.FORMATS) as picture:
        comment = picture.info.get("comment", b"")
        found.comment = _decode(comment[:_TEXT_BYTES]) if isinstance(comment, bytes) else str(comment)[:_TEXT_BYTES]
        xmp = picture.info.get("xmp") or b""
        if picture.format == "TIFF":
            found.exif |= _name_tags(picture.getexif())
            return b"", xmp
        return (picture.info.get("exif") or b"")[:_ALL_BYTES], xmp


def _read_exif(block: bytes) -> dict[str, str]:
    exif = Image.Exif()
    exif.load(block)
    return _name_tags(exif)


def _name_tags(exif: Image.Exif) -> dict[str, str]:
    texts = {}
    for tag, name in _EXIF_NAMES.items():
        with contextlib.suppress(Exception):  # a damaged tag or second table does not spoil the others
            texts[name] = _exif_text(exif.get(tag) or exif.get_ifd(ExifTags.IFD.Exif).get(tag))
    return {name: text for name, text in texts.items() if text}


def _exif_text(value: Any) -> str:
    """Return a tag's text; the first eight bytes of a comment may name its code."""
    if isinstance(value, str):
        return value[:_TEXT_BYTES].rstrip("\0 ")
    if not isinstance(value, bytes):
        return ""
    code, body = value[:8], value[8:_TEXT_BYTES]
    if code == b"UNICODE\0":  # in either order of bytes; the wrong one makes no ASCII
        texts = [body.decode(order, "replace") for order in ("utf-16-be", "utf-16-le")]
        return max(texts, key=lambda text: sum(map(str.isascii, text))).rstrip("\0 ")
    return _decode(body if code in {b"ASCII\0\0\0", bytes(8)} else value[:_TEXT_BYTES]).rstrip("\0 ")


def _read_xmp(text: str) -> dict[str, str]:
    """Find properties in an XMP packet, as attributes or elements, without an XML parser, which could be bombed."""
    found = {}
    for name in _XMP_NAMES:
        match = re.search(name + r"[^>\"']{0,100}[\"'>]([^\"'<>]{1,1000})[\"'<]", text)
        if match and match[1].strip():
            found[name] = html.unescape(match[1].strip())
    return found


def _decode(text: bytes) -> str:
    """Decode what should be Latin-1 in a PNG file, and often is UTF-8, cut anywhere."""
    try:
        return text.decode("utf-8")
    except UnicodeDecodeError as error:
        return text[: error.start].decode("utf-8") if error.start > len(text) - 4 else text.decode("latin-1")
