"""Tests of Content Credentials: what is signed can be read, what was changed does not count, nothing is fetched."""

import dataclasses
import http.server
import io
import json
import random
import re
import sys
import threading
import time
from pathlib import Path

import av
import gradio as gr
import numpy as np
import pytest
from PIL import Image

from backend import credentials, images, origin, provenance
from backend.errors import UserError
from backend.settings import SETTINGS, read_environment
from tests import pictures

NO_WHEEL = "needs c2pa-python, which has no wheel for this system"
c2pa = pytest.importorskip("c2pa", reason=NO_WHEEL)
certificates = pytest.importorskip("tests.certificates", reason=NO_WHEEL)

RECORD = {"detector": "xception", "p_fake": {"original": 0.93}, "words": "café ☕"}
AI_MADE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"


def use(monkeypatch, chain: Path | None = None, key: Path | None = None, trust: Path | None = None) -> None:
    """Set certificate, key and trust list for this process."""
    changed = dataclasses.replace(SETTINGS, c2pa_certificate=chain, c2pa_key=key, c2pa_trust_list=trust)
    monkeypatch.setattr(credentials, "SETTINGS", changed)


@pytest.fixture
def key_files(tmp_path, monkeypatch):
    """Return the files of a chain, its key and its root, after setting chain and key."""
    files = certificates.write(tmp_path / "keys")
    use(monkeypatch, *files[:2])
    return files


def foreign(
    content: bytes, mime: str, files, *, source_type: str = AI_MADE, tool: str = "A generator", **parts
) -> bytes:
    """Sign a file as another program does."""
    chain, key, _ = files
    actions = [{"action": "c2pa.created", "digitalSourceType": source_type}] if source_type else []
    manifest = {"claim_generator_info": [{"name": tool, "version": "3"}]}
    if actions:
        manifest["assertions"] = [{"label": "c2pa.actions.v2", "data": {"actions": actions}}]
    information = c2pa.C2paSignerInfo("es256", chain.read_bytes(), key.read_bytes(), None)
    context = c2pa.Context.from_dict({"builder": {"thumbnail": {"enabled": False}}})
    signed = io.BytesIO()
    builder = c2pa.Builder(manifest, context)
    if parent := parts.get("parent"):
        builder.set_intent(c2pa.C2paBuilderIntent.EDIT)
        builder.add_ingredient({"title": "parent", "relationship": "parentOf"}, mime, io.BytesIO(parent))
    if url := parts.get("url"):
        builder.set_no_embed()
        builder.set_remote_url(url)
    builder.sign(c2pa.Signer.from_info(information), mime, io.BytesIO(content), signed)
    return signed.getvalue()


@pytest.fixture
def server():
    """Yield the address of a server, and the list of what was asked of it."""
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_error(404)

        do_POST = do_GET

        def log_message(self, *_):
            pass

    running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{running.server_port}", asked
    running.shutdown()
    running.server_close()


def test_what_the_app_makes_is_signed_and_keeps_pixels_and_record(key_files):
    picture = pictures.noise(64, 96)
    content = provenance.marked_png(picture, RECORD)
    assert np.array_equal(images.read(content), provenance.mark_picture(picture))
    assert provenance.read_record(content) == RECORD
    found = credentials.read_credentials(content)
    assert found.valid and found.fault == "" and found.trust == "unchecked"
    assert (found.signer, found.source_type) == ("Test newspaper", "compositeWithTrainedAlgorithmicMedia")
    assert found.tool == provenance.SOFTWARE
    result = origin.read_origin(content)
    assert result.made_here and result.credentials == found and result.problems == ()
    assert "not verified" in " ".join(result.lines)


def test_without_a_key_nothing_changes(monkeypatch):
    use(monkeypatch)
    picture = pictures.noise(64, 64)
    expected = images.encode_png(
        provenance.mark_picture(picture),
        {
            "Software": provenance.SOFTWARE,
            "Comment": provenance.NOTE,
            "Record": json.dumps(RECORD, ensure_ascii=False),
        },
    )
    assert provenance.marked_png(picture, RECORD) == expected
    assert type(provenance.marked_image(picture, RECORD)) is Image.Image
    credentials.check_signing()


def test_pictures_that_the_page_writes_are_signed(key_files):
    marked = provenance.marked_image(pictures.noise(64, 64), RECORD)
    image, gallery = gr.Image(format="png"), gr.Gallery(format="png")
    for file in (image.postprocess(marked).path, gallery.postprocess([(marked, "caption")]).root[0].image.path):
        content = Path(file).read_bytes()
        assert credentials.read_credentials(content).valid
        assert provenance.read_record(content) == RECORD
        assert np.array_equal(images.read(content), np.asarray(marked))


def test_videos_are_signed_and_still_play(key_files):
    frames = [pictures.noise(64, 64, seed) for seed in range(3)]
    content = provenance.marked_mp4(frames, 5, RECORD)
    assert credentials.read_credentials(content).valid
    with av.open(io.BytesIO(content)) as container:
        assert json.loads(container.metadata["description"]) == RECORD
        assert sum(1 for _ in container.decode(video=0)) == 3


def test_the_visitors_own_pictures_in_a_zip_are_not_signed(key_files):
    import zipfile

    files = {"crop": pictures.noise(40, 40), "result": pictures.noise(40, 40, 1)}
    with zipfile.ZipFile(io.BytesIO(provenance.zip_record(RECORD | {"summary": "x"}, files, own=("crop",)))) as packed:
        assert credentials.read_credentials(packed.read("crop.png")) is None
        assert credentials.read_credentials(packed.read("result.png")).valid


@pytest.mark.parametrize(("trust", "expected"), [("own", "listed"), ("other", "unlisted"), (None, "unchecked")])
def test_only_a_signer_on_the_list_is_known(tmp_path, monkeypatch, trust, expected):
    files = certificates.write(tmp_path / "own")
    other = certificates.write(tmp_path / "other")
    lists = {"own": files[2], "other": other[2], None: None}
    content = foreign(pictures.encode(pictures.ramp(), "PNG"), "image/png", files)
    use(monkeypatch, trust=lists[trust])
    credentials.check_signing()
    found = credentials.read_credentials(content)
    assert (found.trust, found.valid) == (expected, True)
    sentence = origin.describe_credentials(found)
    assert ("not verified" in sentence) is (expected != "listed")
    assert ("no statement about what the picture shows" in sentence) is (expected == "listed")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "GIF"])
def test_other_programs_credentials_are_read_in_all_kinds_of_files(kind, key_files):
    content = foreign(pictures.encode(pictures.ramp(), kind), f"image/{kind.lower()}", key_files)
    result = origin.read_origin(content)
    assert result.credentials.valid and result.credentials.source_type == "trainedAlgorithmicMedia"
    assert result.says_ai
    assert result.summary.startswith(
        "The file carries Content Credentials, signed as “Test newspaper”: "
        "they say that generative AI made the picture, with “A generator”."
    )


def test_generative_ai_in_an_earlier_picture_is_said(key_files):
    made = foreign(pictures.encode(pictures.ramp(), "PNG"), "image/png", key_files)
    edited = foreign(
        pictures.encode(pictures.noise(40, 40), "PNG"),
        "image/png",
        key_files,
        source_type="",
        tool="Editor",
        parent=made,
    )
    found = credentials.read_credentials(edited)
    assert (found.source_type, found.earlier_source_type) == ("", "trainedAlgorithmicMedia")
    result = origin.read_origin(edited)
    assert result.says_ai and "a picture that it comes from" in result.summary


def test_what_was_changed_after_signing_does_not_count(key_files):
    content = bytearray(provenance.unmarked_png(pictures.noise(64, 64), {}))
    content[-30] ^= 255
    found = credentials.read_credentials(bytes(content))
    assert (found.fault, found.valid) == ("changed", False)
    made = bytearray(foreign(pictures.encode(pictures.noise(64, 64), "PNG"), "image/png", key_files))
    made[-30] ^= 255
    result = origin.read_origin(bytes(made))
    assert not result.says_ai and "no longer fit" in result.summary


def test_a_decoy_before_the_manifest_does_not_hide_it(key_files):
    texts = {"Title": "jumdc2pa", "Comment": "....jum_....jumdc2pa"}
    content = foreign(images.encode_png(pictures.ramp(), texts), "image/png", key_files)
    chunk = content[33 : content.index(b"tEXt") - 4]
    hidden = content[:33] + content[33 + len(chunk) : content.index(b"IDAT") - 4] + chunk
    hidden += content[content.index(b"IDAT") - 4 :]
    assert hidden.index(b"jumdc2pa") < hidden.index(b"jumb") and len(hidden) == len(content)
    assert credentials.read_credentials(hidden).fault == "changed"


def test_an_expired_certificate_does_not_count(tmp_path):
    files = certificates.write(tmp_path, days=(-1, 2 / 86400))
    content = foreign(pictures.encode(pictures.ramp(), "PNG"), "image/png", files)
    time.sleep(3.2)  # certificates count whole seconds
    found = credentials.read_credentials(content)
    assert found.fault == "expired"
    assert "was not valid" in origin.describe_credentials(found)


@pytest.mark.parametrize("key", ["P-256", "P-384", "RSA", "Ed25519"])
def test_every_usual_key_signs(tmp_path, monkeypatch, key):
    use(monkeypatch, *certificates.write(tmp_path, key=key)[:2])
    credentials.check_signing()
    assert credentials.read_credentials(provenance.unmarked_png(pictures.ramp(), {})).valid


def test_the_older_form_of_a_key_signs(tmp_path, monkeypatch):
    files = certificates.write(tmp_path, older_form=True)
    assert b"EC PRIVATE KEY" in files[1].read_bytes()
    use(monkeypatch, *files[:2])
    credentials.check_signing()


def wrong_settings(folder: Path):
    """Yield what is wrong, a word of the sentence about it, and certificate, key and trust list."""
    chain, key, _ = certificates.write(folder / "right")
    other_key = certificates.write(folder / "other")[1]
    text = folder / "text.pem"
    text.write_bytes(b"\0\xff not a PEM file")
    yield "no key", "belong together", (chain, None, None)
    yield "no certificate", "belong together", (None, key, None)
    yield "absent key", "C2PA_KEY names could not be read", (chain, folder / "absent.pem", None)
    yield "absent certificate", "C2PA_CERTIFICATE names could not be read", (folder / "absent.pem", key, None)
    yield "folder", "C2PA_CERTIFICATE names could not be read", (folder, key, None)
    yield "text as key", "no private key", (chain, text, None)
    yield "text as certificate", "no certificate", (text, key, None)
    yield "key as certificate", "no certificate", (key, key, None)
    yield "another key", "does not belong", (chain, other_key, None)
    yield "absent list", "C2PA_TRUST_LIST names could not be read", (None, None, folder / "absent.pem")
    yield "text as list", "C2PA_TRUST_LIST names holds no certificate", (None, None, text)
    for name, sentence, options in (
        ("password", "has a password", {"password": b"secret"}),
        ("expired", "not valid today", {"days": (-3, -1)}),
        ("not yet", "not valid today", {"days": (1, 3)}),
        ("curve", "kind of key", {"key": "secp256k1"}),
        ("usage", "cannot sign", {"usage": None}),
    ):
        yield name, sentence, (*certificates.write(folder / name, **options)[:2], None)


def test_wrong_files_give_one_sentence_without_a_path(tmp_path, monkeypatch):
    for name, sentence, files in wrong_settings(tmp_path):
        use(monkeypatch, *files)
        with pytest.raises(UserError, match=sentence) as caught:
            credentials.check_signing()
        for text in (caught.value.message, caught.value.hint):
            assert text.endswith(".") and "\n" not in text and str(tmp_path) not in text, name


def test_the_environment_names_the_files(tmp_path):
    variables = {"C2PA_CERTIFICATE": "~/chain.pem", "C2PA_KEY": str(tmp_path), "C2PA_TRUST_LIST": ""}
    result = read_environment(variables)
    assert result.c2pa_certificate == Path.home() / "chain.pem"
    assert (result.c2pa_key, result.c2pa_trust_list) == (tmp_path, None)


def test_a_signature_that_fails_later_leaves_the_picture_unsigned(key_files, monkeypatch, caplog):
    def fail(*_):
        raise RuntimeError

    monkeypatch.setattr(c2pa.Signer, "from_info", fail)
    content = provenance.unmarked_png(pictures.ramp(), RECORD)
    assert provenance.read_record(content) == RECORD and credentials.read_credentials(content) is None
    assert "could not be signed" in caplog.text


def test_without_the_package_everything_else_works(key_files, monkeypatch):
    content = foreign(pictures.encode(pictures.ramp(), "PNG"), "image/png", key_files)
    credentials._load_signer.cache_clear()
    monkeypatch.setitem(sys.modules, "c2pa", None)
    with pytest.raises(UserError, match="not installed"):
        credentials.check_signing()
    result = origin.read_origin(content)
    assert result.credentials is None and "c2pa-python is not installed" in result.summary
    use(monkeypatch)
    content = provenance.unmarked_png(pictures.ramp(), RECORD)
    result = origin.read_origin(content)
    assert result.made_here and result.problems == ()


def test_manifests_on_a_server_are_named_and_not_fetched(key_files, server):
    address, asked = server
    content = foreign(pictures.encode(pictures.ramp(), "PNG"), "image/png", key_files, url=f"{address}/manifest")
    result = origin.read_origin(content)
    assert result.stored_elsewhere and "not fetched" in result.summary and asked == []
    with pytest.raises(UserError, match="could not be read"):  # also where the library itself is asked
        credentials.read_credentials(content + b"\0\0\0\x28jumb\0\0\0\x20jumdc2pa")
    assert asked == []
    with pytest.raises(c2pa.C2paError):  # as the library does by default
        c2pa.Reader("image/png", io.BytesIO(content))
    assert asked == ["/manifest"]


def test_revocation_services_are_not_asked(tmp_path, monkeypatch, server):
    address, asked = server
    files = certificates.write(tmp_path, ocsp=address)
    use(monkeypatch, *files)
    credentials.check_signing()
    content = provenance.unmarked_png(pictures.ramp(), {})
    assert credentials.read_credentials(content).trust == "listed" and asked == []
    context = c2pa.Context.from_dict({"verify": {"ocsp_fetch": True}})
    c2pa.Reader("image/png", io.BytesIO(content), context=context).json()
    assert len(asked) > 0


def test_hostile_manifests_are_read_or_refused(key_files):
    content = foreign(pictures.encode(pictures.ramp(), "PNG"), "image/png", key_files)
    start = content.index(b"jumb") - 4
    end = content.index(b"IDAT") - 8
    chance = random.Random(3)
    refused = invalid = 0
    for _ in range(300):
        changed = bytearray(content)
        for _ in range(chance.randint(1, 8)):
            changed[chance.randrange(start, end)] = chance.randrange(256)
        try:
            found = credentials.read_credentials(bytes(changed))
        except UserError as error:
            refused += 1
            assert re.fullmatch(r"The Content Credentials in the file .*\.", error.message)
        else:
            invalid += found is None or not found.valid
    assert refused > 20 and refused + invalid > 270
    for size in (b"\xff\xff\xff\xff", b"\0\0\0\0", b"\0\0\0\1"):
        with pytest.raises(UserError):
            credentials.read_credentials(content[:start] + size + content[start + 4 :])


def test_texts_of_a_manifest_are_cut_and_make_no_claims(tmp_path):
    files = certificates.write(tmp_path, signer="A genuine and authentic newspaper")
    content = foreign(
        pictures.encode(pictures.ramp(), "PNG"),
        "image/png",
        files,
        source_type="http://example.com/real",
        tool="real\n\x1b[31m\u202e" + "x" * 5000,
    )
    result = origin.read_origin(content)
    assert result.credentials.valid and len(result.credentials.tool) == 200
    assert "\n" not in result.credentials.tool and "\x1b" not in result.credentials.tool
    assert "\u202e" not in result.credentials.tool
    assert not re.search(r"\b(real|genuine|authentic)\b", " ".join(result.lines))
    assert len(result.summary) < 400
