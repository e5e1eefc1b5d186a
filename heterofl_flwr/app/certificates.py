"""Certificates of a SuperLink and keys of its nodes."""

import ipaddress
import re
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric.ec import SECP384R1, EllipticCurvePrivateKey, generate_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from heterofl_flwr.common.errors import ConfigError
from heterofl_flwr.common.files import write_atomic

AUTHORITY = "heterofl authority"
AUTHORITY_DAYS = 3650
SECRET, PUBLIC = 0o600, 0o644  # permissions of files
LOOPBACK = ("localhost", "127.0.0.1", "::1")  # addresses that processes on the SuperLink's machine connect to
_NAME = re.compile(r"\w[\w.-]*(?<!\.(?:key|crt|pub))")  # other files in the folder have these suffixes
_HOST = re.compile(r"[\w.*-]+", re.ASCII)
_CURVE = SECP384R1()  # Flower accepts only keys of NIST curves
_BEFORE = timedelta(hours=1)  # validity begins in the past, because clocks of nodes may be slow


def write_certificates(folder: Path, hosts: Sequence[str], days: int) -> list[Path]:
    """Write the SuperLink's key and a certificate valid for ``days`` days; return the paths of all written files.

    The certificate authority in ``folder`` signs the certificate. If the folder has no authority, a new authority is
    written too. ``hosts`` are names and addresses of the SuperLink.
    """
    ca_key, ca_certificate = folder / "ca.key", folder / "ca.crt"
    new = not ca_key.exists() and not ca_certificate.exists()
    if new:
        authority_key = generate_private_key(_CURVE)
        authority = _sign_authority(authority_key)
    else:
        authority_key, authority = _read_authority(ca_key, ca_certificate)
    ends = authority.not_valid_after_utc
    if days > (most := (ends - datetime.now(UTC)).days):
        remedy = "" if new else f"; for a new authority, remove it and {ca_key.name} (all nodes then need its ca.crt)"
        raise ConfigError(
            f"--days is {days}, but {ca_certificate}, without which no certificate is valid, "
            f"{'would end' if new else 'ends'} on {ends:%Y-%m-%d}: expected up to {most}{remedy}"
        )
    key = generate_private_key(_CURVE)
    certificate = _sign_server(key, hosts, days, authority, authority_key)
    contents = {}
    if new:
        contents[ca_key] = _private(authority_key, serialization.PrivateFormat.PKCS8)
        contents[ca_certificate] = authority.public_bytes(serialization.Encoding.PEM)
    contents[folder / "server.key"] = _private(key, serialization.PrivateFormat.PKCS8)
    contents[folder / "server.crt"] = certificate.public_bytes(serialization.Encoding.PEM)
    for path, data in contents.items():
        write_atomic(path, data, SECRET if path.suffix == ".key" else PUBLIC)
    return list(contents)


def write_node_key(folder: Path, name: str) -> tuple[Path, Path]:
    """Write a node's new private and public key; return both paths."""
    path, public = new_paths(folder, name)
    key = generate_private_key(_CURVE)
    openssh = serialization.PublicFormat.OpenSSH
    write_atomic(path, _private(key, serialization.PrivateFormat.OpenSSH), SECRET)
    write_atomic(public, key.public_key().public_bytes(serialization.Encoding.OpenSSH, openssh) + b"\n", PUBLIC)
    return path, public


def new_paths(folder: Path, name: str) -> tuple[Path, Path]:
    """Return the paths of a node's keys; raise ``ConfigError`` if the name is invalid or taken."""
    if not _NAME.fullmatch(name):
        expected = "letters, digits, '.', '_' and '-', which does not end in .key, .crt or .pub"
        raise ConfigError(f"node {name!r}: expected a name of {expected}")
    path, public = folder / name, folder / f"{name}.pub"
    for old in (path, public):
        if old.exists():
            raise ConfigError(
                f"{old} exists: a node keeps its key; choose another name, or remove {name} and {public.name}"
            )
    return path, public


def _sign_authority(key: EllipticCurvePrivateKey) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, AUTHORITY)])
    # Of the nine usages, key_cert_sign and crl_sign are True.
    usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
    return (
        _certificate(name, name, key, AUTHORITY_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA384())
    )


def _sign_server(
    key: EllipticCurvePrivateKey,
    hosts: Sequence[str],
    days: int,
    authority: x509.Certificate,
    authority_key: EllipticCurvePrivateKey,
) -> x509.Certificate:
    names = [_read_host(host) for host in dict.fromkeys((*hosts, *LOOPBACK))]
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, hosts[0][:64])])
    from_authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key())
    return (
        _certificate(subject, authority.subject, key, days)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(from_authority, critical=False)
        .sign(authority_key, hashes.SHA384())
    )


def _certificate(
    subject: x509.Name, issuer: x509.Name, key: EllipticCurvePrivateKey, days: int
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key.public_key())
    builder = builder.serial_number(x509.random_serial_number())
    return builder.not_valid_before(now - _BEFORE).not_valid_after(now + timedelta(days=days))


def _read_host(host: str) -> x509.GeneralName:
    with suppress(ValueError):
        return x509.IPAddress(ipaddress.ip_address(host))
    if not _HOST.fullmatch(host):
        raise ConfigError(f"host {host!r} is no name: expected one such as superlink.example.org, without a port")
    return x509.DNSName(host)


def _private(key: EllipticCurvePrivateKey, form: serialization.PrivateFormat) -> bytes:
    return key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())


def _read_authority(key: Path, certificate: Path) -> tuple[EllipticCurvePrivateKey, x509.Certificate]:
    try:
        authority_key = serialization.load_pem_private_key(key.read_bytes(), password=None)
        authority = x509.load_pem_x509_certificate(certificate.read_bytes())
    except (OSError, ValueError, TypeError) as error:  # TypeError: a key with a password
        raise ConfigError(f"{key} and {certificate} cannot be read: {error}; put them back, or remove both") from error
    if not isinstance(authority_key, EllipticCurvePrivateKey) or authority.public_key() != authority_key.public_key():
        raise ConfigError(f"{certificate} does not match {key.name}: put back the right files, or remove both")
    return authority_key, authority
