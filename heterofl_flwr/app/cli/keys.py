"""Certificates for the SuperLink and keys for nodes, in the forms that Flower's commands take.

An own authority signs the SuperLink's certificate, and nodes trust that authority alone. It stays when the SuperLink's
certificate is renewed, so nodes need nothing new.
"""

import argparse
import ipaddress
import os
import re
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from heterofl_flwr.app.cli import Subparsers, add_command
from heterofl_flwr.errors import ConfigError, HeteroFLError

AUTHORITY = "heterofl authority"
AUTHORITY_DAYS = 3650
LOOPBACK = ("localhost", "127.0.0.1", "::1")  # where the SuperLink's own processes connect to, whatever its name is
_NAME = re.compile(r"\w[\w.-]*")
_CURVE = ec.SECP384R1()  # Flower accepts keys of NIST's curves alone
_BEFORE = timedelta(hours=1)  # clocks of nodes may lag behind


def write_certificates(folder: Path, hosts: Sequence[str], days: int) -> list[Path]:
    """Write the SuperLink's certificate and key, and those of the authority if there is none yet.

    Parameters
    ----------
    folder : Path
        Where ``ca.crt``, ``ca.key``, ``server.crt`` and ``server.key`` are.
    hosts : Sequence[str]
        The names and addresses by which nodes reach the SuperLink; those of its own machine are added.
    days : int
        How long the SuperLink's certificate is valid.

    Returns
    -------
    list[Path]
        The files that were written.
    """
    paths = {name: folder / name for name in ("ca.key", "ca.crt", "server.key", "server.crt")}
    new = not paths["ca.key"].exists()
    if new and paths["ca.crt"].exists():
        raise ConfigError(f"{paths['ca.crt']} has no {paths['ca.key'].name} beside it: put it back, or remove both")
    if new:
        authority_key = ec.generate_private_key(_CURVE)
        authority = _sign_authority(authority_key)
    else:
        authority_key, authority = _read_authority(folder)
    key = ec.generate_private_key(_CURVE)
    contents = {
        "ca.key": _private(authority_key, serialization.PrivateFormat.PKCS8),
        "ca.crt": authority.public_bytes(serialization.Encoding.PEM),
        "server.key": _private(key, serialization.PrivateFormat.PKCS8),
        "server.crt": _sign_server(key, hosts, days, authority, authority_key).public_bytes(serialization.Encoding.PEM),
    }
    written = [name for name in contents if new or name.startswith("server")]
    for name in written:
        _write(paths[name], contents[name], secret=name.endswith(".key"))
    return [paths[name] for name in written]


def write_node_key(folder: Path, name: str) -> list[Path]:
    """Write a node's private key, and beside it the public one to register with the SuperLink; return both paths."""
    if not _NAME.fullmatch(name):
        raise ConfigError(f"node {name!r}: expected a name of letters, digits, '.', '_' and '-'")
    path, public = folder / name, folder / f"{name}.pub"
    for old in (path, public):
        if old.exists():
            raise ConfigError(f"{old} exists: a node keeps its key; choose another name, or remove it first")
    key = ec.generate_private_key(_CURVE)
    openssh = serialization.PublicFormat.OpenSSH
    _write(path, _private(key, serialization.PrivateFormat.OpenSSH), secret=True)
    _write(public, key.public_key().public_bytes(serialization.Encoding.OpenSSH, openssh) + b"\n")
    return [path, public]


def _sign_authority(key: ec.EllipticCurvePrivateKey) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, AUTHORITY)])
    others = ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement")
    no_usage = dict.fromkeys(("digital_signature", *others, "encipher_only", "decipher_only"), False)
    return (
        _certificate(name, name, key, AUTHORITY_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.KeyUsage(key_cert_sign=True, crl_sign=True, **no_usage), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA384())
    )


def _sign_server(
    key: ec.EllipticCurvePrivateKey,
    hosts: Sequence[str],
    days: int,
    authority: x509.Certificate,
    authority_key: ec.EllipticCurvePrivateKey,
) -> x509.Certificate:
    """Return the certificate of a server that these hosts name, and its own machine."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, hosts[0][:64])])
    names = [_read_host(host) for host in dict.fromkeys((*hosts, *LOOPBACK))]
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
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, days: int
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BEFORE)
        .not_valid_after(now + timedelta(days=days))
    )


def _read_host(host: str) -> x509.GeneralName:
    with suppress(ValueError):
        return x509.IPAddress(ipaddress.ip_address(host))
    try:
        return x509.DNSName(host)
    except ValueError as error:
        raise ConfigError(f"host {host!r} is no name: expected ASCII such as superlink.example.org") from error


def _private(key: ec.EllipticCurvePrivateKey, form: serialization.PrivateFormat) -> bytes:
    return key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())


def _read_authority(folder: Path) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    """Return the authority's key and certificate."""
    what = "key"
    path = folder / "ca.key"
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), password=None)
        what, path = "certificate", folder / "ca.crt"
        certificate = x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(f"{path} is no {what} that can be read: {error}") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ConfigError(f"{folder / 'ca.key'} is a {type(key).__name__}; expected the key of an elliptic curve")
    return key, certificate


def _write(path: Path, data: bytes, *, secret: bool = False) -> None:
    """Write a file; a secret one is never, not for a moment, there for others to read."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600 if secret else 0o644)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
    except OSError as error:
        raise HeteroFLError(f"cannot write {path}: {error.strerror or error}") from error


EXPLAIN = """
Write the certificates and keys of a deployment into a folder. With --host, those of the SuperLink:

  ca.crt      the authority; every node and everyone who runs 'flwr' gets a copy, and trusts it
  ca.key      its key; whoever has it can pretend to be the SuperLink, so keep it off the machines
  server.crt  the SuperLink's certificate, for the names given and for localhost, 127.0.0.1 and ::1
  server.key  its key

If the authority is there already, only the SuperLink's certificate and key are made anew; nodes need nothing new. With
--node, the key of each node, which goes to the node, and NAME.pub, which is registered with the SuperLink.
"""
EXAMPLES = """
examples:
  heterofl keys keys --host superlink.example.org --host 10.0.0.5 --node phone --node camera
  heterofl keys keys --host superlink.example.org --days 90     renews the SuperLink's certificate
"""


def add(subparsers: Subparsers) -> None:
    """Add this command."""
    summary = "make certificates and keys for a deployment with TLS and known nodes"
    this = add_command(subparsers, "keys", run, summary, EXPLAIN, EXAMPLES)
    this.add_argument("folder", type=Path, help="where to")
    this.add_argument(
        "--host",
        action="append",
        default=[],
        metavar="NAME",
        help="name or address by which the SuperLink is reached; repeatable",
    )
    this.add_argument("--days", type=int, default=365, help="how long its certificate is valid (%(default)s)")
    this.add_argument("--node", action="append", default=[], metavar="NAME", help="a node's name; repeatable")


def run(args: argparse.Namespace) -> int:
    """Write the files, and say how nodes are registered."""
    if not args.host and not args.node:
        raise ConfigError("nothing to write: name the SuperLink (--host NAME), nodes (--node NAME), or both")
    if args.days < 1:
        raise ConfigError(f"--days is {args.days}; expected an integer of 1 or more")
    written = write_certificates(args.folder, args.host, args.days) if args.host else []
    public = []
    for name in args.node:
        written += (pair := write_node_key(args.folder, name))
        public.append(pair[1])
    print("\n".join(map(str, written)))
    if public:
        print("register with the SuperLink, by its connection in Flower's config.toml:")
    for path in public:
        print(f"  flwr supernode register {path} CONNECTION --name {path.stem}")
    return 0
