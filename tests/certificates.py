"""Certificates and keys for the tests, made when they are needed."""

from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import AuthorityInformationAccessOID, ExtendedKeyUsageOID, NameOID

KEYS = {
    "P-256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "P-384": lambda: ec.generate_private_key(ec.SECP384R1()),
    "RSA": lambda: rsa.generate_private_key(65537, 2048),
    "Ed25519": ed25519.Ed25519PrivateKey.generate,
    "secp256k1": lambda: ec.generate_private_key(ec.SECP256K1()),
}


def write(
    folder: Path,
    *,
    signer: str = "Test newspaper",
    key: str = "P-256",
    days: tuple[float, float] = (-1, 30),
    usage: Any = ExtendedKeyUsageOID.EMAIL_PROTECTION,
    password: bytes | None = None,
    older_form: bool = False,
    ocsp: str = "",
) -> tuple[Path, Path, Path]:
    """Write the files of a chain, its key and its root, and return their paths.

    Args:
        days: From when and until when the certificate is valid, from now.
        older_form: Write the key as OpenSSL did before PKCS #8.
        ocsp: Address of a revocation service to name in the certificate.
    """
    folder.mkdir(parents=True, exist_ok=True)
    authority, private = KEYS["P-256"](), KEYS[key]()
    root = _certificate("Test authority", "Test authority", authority, authority, (-1, 30), ca=True)
    more = [x509.ExtendedKeyUsage([usage])] if usage else []
    if ocsp:
        place = x509.AccessDescription(AuthorityInformationAccessOID.OCSP, x509.UniformResourceIdentifier(ocsp))
        more.append(x509.AuthorityInformationAccess([place]))
    leaf = _certificate(signer, "Test authority", private, authority, days, ca=False, more=more)
    pem = serialization.Encoding.PEM
    form = serialization.PrivateFormat.TraditionalOpenSSL if older_form else serialization.PrivateFormat.PKCS8
    lock = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    chain_file, key_file, root_file = (folder / f"{name}.pem" for name in ("chain", "key", "root"))
    chain_file.write_bytes(leaf.public_bytes(pem) + root.public_bytes(pem))
    key_file.write_bytes(private.private_bytes(pem, form, lock))
    root_file.write_bytes(root.public_bytes(pem))
    return chain_file, key_file, root_file


def _certificate(subject, issuer, key, issuer_key, days, *, ca, more=()):
    now = datetime.now(timezone.utc)
    usage = dict.fromkeys(
        ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "encipher_only"), False
    )
    builder = (
        x509.CertificateBuilder()
        .subject_name(_name(subject))
        .issuer_name(_name(issuer))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + timedelta(days=days[0]))
        .not_valid_after(now + timedelta(days=days[1]))
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
        .add_extension(
            x509.KeyUsage(digital_signature=not ca, key_cert_sign=ca, crl_sign=ca, decipher_only=False, **usage),
            critical=True,
        )
    )
    for extension in more:
        builder = builder.add_extension(extension, critical=False)
    algorithm = None if isinstance(issuer_key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    return builder.sign(issuer_key, algorithm)


def _name(name):
    return x509.Name(
        [x509.NameAttribute(NameOID.ORGANIZATION_NAME, name), x509.NameAttribute(NameOID.COMMON_NAME, name)]
    )
