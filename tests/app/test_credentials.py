"""Certificates and keys, checked by OpenSSL and OpenSSH, where these are installed, and by Python's own TLS."""

import ipaddress
import shutil
import socket
import ssl
import stat
import subprocess
import threading

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from heterofl_flwr.app.certificates import write_certificates, write_node_key
from heterofl_flwr.app.main import MISUSED, main
from heterofl_flwr.common.errors import ConfigError

HOSTS = ("localhost", "127.0.0.1")


@pytest.fixture
def folder(tmp_path):
    write_certificates(tmp_path, HOSTS, 30)
    return tmp_path


def greet(folder, name, authority="ca.crt"):
    """Let a TLS server with the folder's certificate greet a client that calls it by a name; return what it says."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(folder / "server.crt", folder / "server.key")
    client = ssl.create_default_context(cafile=folder / authority)
    here, there = socket.socketpair()

    def serve():
        try:
            with server.wrap_socket(there, server_side=True) as end:
                end.sendall(b"hello")
        except OSError:  # the client has refused
            there.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        with here, client.wrap_socket(here, server_hostname=name) as end:
            return end.recv(5)
    finally:
        thread.join()


@pytest.mark.parametrize("name", ["superlink.example.org", "localhost", "::1"])
def test_the_superlink_is_trusted_by_all_its_names(tmp_path, name):
    write_certificates(tmp_path, ["superlink.example.org"], 30)
    assert greet(tmp_path, name) == b"hello"


def test_another_name_and_another_authority_are_refused(folder, tmp_path):
    with pytest.raises(ssl.SSLCertVerificationError, match="mismatch"):
        greet(folder, "example.org")
    (tmp_path / "other.crt").write_bytes(write_certificates(tmp_path / "other", HOSTS, 30)[1].read_bytes())
    with pytest.raises(ssl.SSLCertVerificationError, match="verify failed"):
        greet(folder, "localhost", "other.crt")


def test_the_authority_stays_when_the_certificate_is_renewed(folder):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    written = write_certificates(folder, ["10.0.0.5"], 30)
    assert {path.name for path in written} == {"server.key", "server.crt"}
    after = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert {name for name in before if before[name] != after[name]} == {"server.key", "server.crt"}
    names = x509.load_pem_x509_certificate(after["server.crt"]).extensions
    found = names.get_extension_for_class(x509.SubjectAlternativeName).value
    assert ipaddress.ip_address("10.0.0.5") in found.get_values_for_type(x509.IPAddress)
    certificates = [x509.load_pem_x509_certificate(after[name]) for name in ("server.crt", "ca.crt")]
    certificates[0].verify_directly_issued_by(certificates[1])


@pytest.mark.parametrize("days", [3650, 10**9])
def test_no_certificate_outlives_the_authority(folder, days):
    with pytest.raises(ConfigError, match=rf"--days is {days}, but .*ca\.crt, .* expected up to 3649; "):
        write_certificates(folder, HOSTS, days)
    assert write_certificates(folder, HOSTS, 3649)


def test_a_new_authority_is_not_to_be_removed(tmp_path):
    with pytest.raises(ConfigError, match=r"ca\.crt, .* would end on .*: expected up to 3649$"):
        write_certificates(tmp_path, HOSTS, 4000)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("encryption", "cause"),
    [(serialization.BestAvailableEncryption(b"word"), "private key is encrypted"), (None, "Unable to load PEM file")],
)
def test_a_key_of_the_authority_that_cannot_be_read_is_named(folder, encryption, cause):
    path, form = folder / "ca.key", serialization.PrivateFormat.PKCS8
    key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    path.write_bytes(key.private_bytes(serialization.Encoding.PEM, form, encryption) if encryption else b"damaged")
    with pytest.raises(ConfigError, match=rf"ca\.key and .*ca\.crt cannot be read: .*{cause}"):
        write_certificates(folder, HOSTS, 30)


@pytest.mark.parametrize("name", ["ca.key", "ca.crt"])
def test_a_lost_file_of_the_authority_is_named_with_a_remedy(folder, name):
    (folder / name).unlink()
    with pytest.raises(ConfigError, match=r"cannot be read: .*; put them back, or remove both"):
        write_certificates(folder, HOSTS, 30)
    for other in ("ca.key", "ca.crt"):
        (folder / other).unlink(missing_ok=True)
    write_certificates(folder, HOSTS, 30)


def test_private_keys_are_for_their_owner_alone(folder):
    write_node_key(folder, "phone")
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}
    assert {name for name, mode in modes.items() if mode & 0o077 == 0} == {"ca.key", "server.key", "phone"}


@pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="needs ssh-keygen")
def test_openssh_finds_the_public_key_in_the_private_one(tmp_path):
    private, public = write_node_key(tmp_path, "phone")
    done = subprocess.run(["ssh-keygen", "-y", "-f", private], capture_output=True, text=True, check=True)
    assert done.stdout.split()[:2] == public.read_text().split()
    assert public.read_text().startswith("ecdsa-sha2-nistp384 ")


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl")
def test_openssl_verifies_the_chain_as_strictly_as_it_can(folder):
    command = ["openssl", "verify", "-x509_strict", "-purpose", "sslserver", "-CAfile", folder / "ca.crt"]
    done = subprocess.run([*command, folder / "server.crt"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_names_of_nodes_and_hosts_are_plain(tmp_path):
    for name in ("", "../phone", "a/b", "-x", "server.key", "ca.crt", "phone.pub"):  # the last ones are other files
        with pytest.raises(ConfigError, match="expected a name of letters, digits"):
            write_node_key(tmp_path, name)
    for host in ("bücher", "", "superlink:9092", "https://superlink"):
        with pytest.raises(ConfigError, match=f"host '{host}' is no name"):
            write_certificates(tmp_path / "new", [host], 30)


def test_days_without_a_certificate_raise(tmp_path, capsys):
    assert main(["keys", str(tmp_path), "--node", "phone", "--days", "90"]) == MISUSED
    assert "--days is for the SuperLink's certificate" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_command_that_cannot_write_every_key_writes_none(tmp_path, capsys):
    assert main(["keys", str(tmp_path), "--host", "localhost", "--node", "phone", "--node", "phone"]) == 0
    command = f"flwr supernode register {tmp_path / 'phone.pub'} CONNECTION --name phone"
    assert f"its connection in Flower's config.toml:\n  {command}" in capsys.readouterr().out
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    assert main(["keys", str(tmp_path), "--host", "localhost", "--node", "camera", "--node", "phone"]) == MISUSED
    assert (
        "phone exists: a node keeps its key; choose another name, or remove phone and phone.pub"
        in capsys.readouterr().err
    )
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
