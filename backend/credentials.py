"""Content Credentials (C2PA): read what a signed manifest in a picture says, and sign what the app makes.

Nothing here uses a network: manifests that are kept elsewhere, revocation lists and identities are never fetched.
"""

import functools
import io
import json
import logging
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

from backend import __version__
from backend.errors import UserError
from backend.settings import SETTINGS

SOFTWARE = "Face forgery detectors: a demo and teaching tool"
AI_MADE, AI_EDITED = "trainedAlgorithmicMedia", "compositeWithTrainedAlgorithmicMedia"  # IPTC's digital source types
# The strongest word about generative AI first; a file may use several.
AI_SOURCE_TYPES = (AI_MADE, AI_EDITED, "compositeSynthetic")
SHOWN_CHARACTERS = 200
MANIFEST_BYTES = 8_000_000  # at most, with all thumbnails and earlier manifests
_JSON_CHARACTERS = 4_000_000
_PEM_BYTES = 1_000_000
_WALKED = 20_000  # values of a manifest that are looked at
_START = b"jumdc2pa"  # the description box that opens every C2PA manifest store
_TERMS = "http://cv.iptc.org/newscodes/digitalsourcetype/"
_NOT_INSTALLED = (ImportError, OSError, RuntimeError)  # the native library may be missing or may not fit
_OFFLINE: dict[str, dict[str, Any]] = {
    "core": {"allowed_network_hosts": [], "decode_identity_assertions": False},
    "verify": {"remote_manifest_fetch": False, "ocsp_fetch": False},
    "builder": {"thumbnail": {"enabled": False}},
}

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ContentCredentials:
    """What the newest manifest of a file says. Texts come from the file; they are cut, and their controls escaped.

    Args:
        signer: The organisation or name in the certificate, which proves nothing unless `trust` is `listed`.
        tool: The programs that the manifest names.
        time: When it says that it was signed.
        source_type: IPTC term for how the picture was made, for example `trainedAlgorithmicMedia`, or empty.
        earlier_source_type: The same from manifests of the pictures that it was made from.
        fault: Why it does not count: `changed` (other bytes than were signed), `expired`, or `signature`; empty if
            the signature is valid for this file.
        trust: Whether the signer stands on the list of C2PA_TRUST_LIST; `unchecked` without one.
    """

    signer: str
    tool: str
    time: str
    source_type: str
    earlier_source_type: str
    fault: Literal["", "changed", "expired", "signature"]
    trust: Literal["listed", "unlisted", "unchecked"]

    @property
    def valid(self) -> bool:
        return not self.fault

    def record(self) -> dict[str, Any]:
        return asdict(self) | {"valid": self.valid}


def read_credentials(content: bytes) -> ContentCredentials | None:
    """Read the Content Credentials that a picture file carries, or return None where it carries none.

    Raises:
        UserError: They are too large or damaged, or the package that reads them is not installed.
    """
    size = _manifest_size(content)
    if size is None:
        return None
    if size > MANIFEST_BYTES:
        raise UserError("The Content Credentials in the file are too large to be read.")
    try:
        import c2pa
    except _NOT_INSTALLED as error:
        raise UserError(
            "The Content Credentials in the file could not be read, because the package c2pa-python is not installed."
        ) from error
    trusted = _read_pem(SETTINGS.c2pa_trust_list, "C2PA_TRUST_LIST") if SETTINGS.c2pa_trust_list else ""
    try:
        with (
            c2pa.Context.from_dict(_reading(trusted)) as context,
            c2pa.Reader(None, io.BytesIO(content), context=context) as reader,
        ):
            store = json.loads(reader.json()[:_JSON_CHARACTERS])
        return _understand(store, checked=bool(trusted))
    except Exception as error:  # hostile manifests fail anywhere, and all of it means the same
        raise UserError("The Content Credentials in the file could not be read.") from error


def sign(content: bytes, mime: str) -> bytes:
    """Return a picture or video file with Content Credentials, or unchanged where the settings name no key.

    Args:
        content: The file, as the app made it.
        mime: Its kind, for example `image/png`.

    Raises:
        UserError: The settings name a certificate or a key that cannot be used; `check_signing` says so at the start.
    """
    if not signs():
        return content
    signer = _load_signer(SETTINGS.c2pa_certificate, SETTINGS.c2pa_key)
    try:
        return signer.sign(content, mime)
    except Exception:  # a result is worth more than its signature, and it still carries sign and record
        log.exception("A file could not be signed")
        return content


def check_signing() -> None:
    """Check certificate, key and trust list of the settings by signing a picture.

    Raises:
        UserError: One sentence about what is wrong with them.
    """
    if SETTINGS.c2pa_trust_list:
        _check_certificates(_read_pem(SETTINGS.c2pa_trust_list, "C2PA_TRUST_LIST"), "C2PA_TRUST_LIST")
    if not signs():
        return
    signer = _load_signer(SETTINGS.c2pa_certificate, SETTINGS.c2pa_key)
    try:
        found = read_credentials(signer.sign(_tiny_png(), "image/png"))
        usable = found is not None and found.valid
    except Exception:
        log.debug("The trial signature failed", exc_info=True)
        usable = False
    if not usable:
        raise UserError(
            "The certificate that C2PA_CERTIFICATE names cannot sign pictures.",
            "C2PA asks for the key usage digital signature and an extended one, such as e-mail protection.",
        )


def signs() -> bool:
    """Return whether pictures that the app makes get Content Credentials."""
    return bool(SETTINGS.c2pa_certificate or SETTINGS.c2pa_key)


def plain_text(text: str, limit: int = SHOWN_CHARACTERS) -> str:
    """Return text from a file in one line of at most `limit` characters, with what does not print escaped."""
    line = " ".join(unicodedata.normalize("NFC", text[: 4 * limit]).split())
    shown = "".join(letter if letter.isprintable() else f"\\x{ord(letter):02x}" for letter in line)
    return shown if len(shown) <= limit else shown[: limit - 1] + "…"


def source_term(text: str) -> str:
    """Return the last part of an IPTC source type, which is given as an address or as the term alone."""
    return plain_text(text.strip().rstrip("/").rpartition("/")[2], 60)


def strongest_source_type(terms: list[str]) -> str:
    """Return the term that says most about generative AI, or else the first."""
    return next((term for term in AI_SOURCE_TYPES if term in terms), next(iter(terms), ""))


def _manifest_size(content: bytes) -> int | None:
    """Return how many bytes the first manifest store of a file claims to have, in any kind of file, or None."""
    place = content.find(_START)
    while place >= 0:
        if place >= 12 and content[place - 8 : place - 4] == b"jumb":
            return int.from_bytes(content[place - 12 : place - 8], "big")
        place = content.find(_START, place + 1)
    return None


def _reading(trusted: str) -> dict[str, Any]:
    """Return the library's settings for reading, with the certificates of the trust list as PEM, or none."""
    verify = _OFFLINE["verify"] | {"verify_trust": bool(trusted), "verify_timestamp_trust": bool(trusted)}
    return _OFFLINE | {"verify": verify} | ({"trust": {"trust_anchors": trusted}} if trusted else {})


def _understand(store: Mapping[str, Any], *, checked: bool) -> ContentCredentials:
    """Read the parts that are shown out of the JSON of a manifest store."""
    manifests = store["manifests"]
    newest = manifests[store["active_manifest"]]
    earlier = [manifest for label, manifest in manifests.items() if label != store["active_manifest"]]
    signature = newest.get("signature_info") or {}
    generators = newest.get("claim_generator_info") or [{"name": newest.get("claim_generator", "")}]
    agents = [agent.get("name") if isinstance(agent, dict) else agent for agent in _values(newest, "softwareagent")]
    tools = [str(name) for name in [generator.get("name") for generator in generators] + agents if name]
    codes = {str(entry.get("code")) for entry in store.get("validation_status") or []}
    state = store.get("validation_state")
    return ContentCredentials(
        signer=plain_text(str(signature.get("issuer") or signature.get("common_name") or "")),
        tool=plain_text(", ".join(dict.fromkeys(tools))),
        time=plain_text(str(signature.get("time") or ""), 40),
        source_type=_source_type(newest),
        earlier_source_type=_source_type(earlier),
        fault="" if state in {"Valid", "Trusted"} else _fault(codes),
        trust=("listed" if state == "Trusted" else "unlisted") if checked else "unchecked",
    )


def _fault(codes: set[str]) -> Literal["changed", "expired", "signature"]:
    if any(code.endswith((".mismatch", "assertion.missing")) for code in codes):
        return "changed"
    return "expired" if codes & {"signingCredential.expired", "claimSignature.outsideValidity"} else "signature"


def _source_type(manifest: Any) -> str:
    return strongest_source_type([source_term(str(value)) for value in _values(manifest, "digitalsourcetype")])


def _values(tree: Any, name: str) -> Iterator[Any]:
    """Yield what stands under this name (small letters, any prefix) anywhere in plain JSON, up to a bound."""
    waiting = [tree]
    for _ in range(_WALKED):
        if not waiting:
            return
        node = waiting.pop()
        if isinstance(node, dict):
            yield from (value for key, value in node.items() if str(key).lower().rpartition(":")[2] == name)
            waiting.extend(node.values())
        elif isinstance(node, list):
            waiting.extend(node)


@dataclass(frozen=True)
class _Signer:
    """A certificate chain and its key, both as PEM, and C2PA's name of the signature that fits them."""

    chain: bytes
    key: bytes
    algorithm: str

    def sign(self, content: bytes, mime: str) -> bytes:
        import c2pa

        action = {
            "action": "c2pa.created",
            "digitalSourceType": _TERMS + AI_EDITED,
            "softwareAgent": {"name": SOFTWARE, "version": __version__},
        }
        manifest = {
            "claim_generator_info": [{"name": SOFTWARE, "version": __version__}],
            "assertions": [{"label": "c2pa.actions.v2", "data": {"actions": [action]}}],
        }
        signed = io.BytesIO()
        # No time stamp, which would be asked for over the network.
        information = c2pa.C2paSignerInfo(self.algorithm, self.chain, self.key, None)
        with (
            c2pa.Context.from_dict(_OFFLINE) as context,
            c2pa.Signer.from_info(information) as signer,
            c2pa.Builder(manifest, context) as builder,
        ):
            builder.sign(signer, mime, io.BytesIO(content), signed)
        return signed.getvalue()


@functools.lru_cache(maxsize=1)
def _load_signer(certificate: Path | None, key: Path | None) -> _Signer:
    """Read certificate and key once, and check that they belong together."""
    if not (certificate and key):
        raise UserError("C2PA_CERTIFICATE and C2PA_KEY belong together.", "Set both of them, or neither.")
    try:
        import c2pa  # noqa: F401 - whether it can be loaded
        from cryptography.hazmat.primitives import serialization
    except _NOT_INSTALLED as error:
        raise UserError(
            "Pictures cannot be signed, because the package c2pa-python is not installed.",
            "Install it, or leave C2PA_CERTIFICATE and C2PA_KEY empty.",
        ) from error
    chain, key_text = _read_pem(certificate, "C2PA_CERTIFICATE"), _read_pem(key, "C2PA_KEY")
    public = _check_certificates(chain, "C2PA_CERTIFICATE")
    try:
        private = serialization.load_pem_private_key(key_text.encode(), password=None)
    except TypeError:
        raise UserError("The key that C2PA_KEY names has a password.", "Store it without one.") from None
    except Exception:  # noqa: BLE001 - unknown kinds of keys raise errors of their own
        raise UserError("The file that C2PA_KEY names holds no private key.", "It must be a PEM file.") from None
    if private.public_key() != public:
        raise UserError(
            "The key that C2PA_KEY names does not belong to the first certificate of C2PA_CERTIFICATE.",
            "Put the certificate of this key first, and those that signed it after it.",
        )
    form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    return _Signer(chain.encode(), private.private_bytes(*form), _algorithm(private))


def _algorithm(key: Any) -> str:
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

    if isinstance(key, ed25519.Ed25519PrivateKey):
        return "ed25519"
    if isinstance(key, rsa.RSAPrivateKey):
        return "ps256"
    curves = {"secp256r1": "es256", "secp384r1": "es384", "secp521r1": "es512"}
    if isinstance(key, ec.EllipticCurvePrivateKey) and key.curve.name in curves:
        return curves[key.curve.name]
    raise UserError(
        "C2PA cannot sign with the kind of key that C2PA_KEY names.", "Use P-256, P-384, P-521, RSA or Ed25519."
    )


def _read_pem(path: Path, variable: str) -> str:
    try:
        with path.open("rb") as file:
            return file.read(_PEM_BYTES).decode("ascii", "replace")
    except (OSError, ValueError):
        raise UserError(
            f"The file that {variable} names could not be read.", "Check its path, and who may read it."
        ) from None


def _check_certificates(chain: str, variable: str) -> Any:
    """Return the public key of the first certificate of a PEM file."""
    try:
        from cryptography import x509

        first = x509.load_pem_x509_certificates(chain.encode())[0]
        public = first.public_key()
    except ImportError:
        raise UserError(f"{variable} needs the package c2pa-python.", "Install it, or leave it empty.") from None
    except Exception:  # noqa: BLE001 - damaged certificates raise errors of several kinds
        raise UserError(f"The file that {variable} names holds no certificate.", "It must be a PEM file.") from None
    if variable == "C2PA_CERTIFICATE" and not first.not_valid_before_utc <= _now() <= first.not_valid_after_utc:
        raise UserError("The certificate that C2PA_CERTIFICATE names is not valid today.", "Use a newer one.")
    return public


def _now() -> datetime:
    return datetime.now(timezone.utc)


def _tiny_png() -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "PNG")
    return buffer.getvalue()
