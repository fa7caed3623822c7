"""The TCP listener's certificate."""

from __future__ import annotations

import os
import socket
import ssl
import subprocess
import threading
from pathlib import Path

import pytest

from spandial_agent.errors import SpandialError
from spandial_agent.serving.certificate import ServerCertificate
from tests.certificates import Certificate, self_signed


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Certificate]:
    return {name: self_signed(tmp_path_factory.mktemp(name)) for name in ("server", "client")}


def test_files_of_tls_that_cannot_be_read_are_named_with_their_setting(
    tmp_path: Path, certificates: dict[str, Certificate]
) -> None:
    server, none = certificates["server"], tmp_path / "none.pem"
    for name, files in (
        ("CERT", (none, server.key, None)),
        ("KEY", (server.certificate, none, None)),
        ("CLIENT_CA", (server.certificate, server.key, none)),
        ("CLIENT_CA", (server.certificate, server.key, tmp_path)),
    ):
        with pytest.raises(SpandialError, match=rf"^SPANDIAL_TLS_{name}=.* cannot be read: (No such|Is a dir)"):
            ServerCertificate(*files)


def test_files_of_tls_that_do_not_fit_together_are_refused(
    tmp_path: Path, certificates: dict[str, Certificate]
) -> None:
    server, other, junk = certificates["server"], certificates["client"], tmp_path / "junk.pem"
    junk.write_text("-----BEGIN CERTIFICATE-----\nbm8=\n-----END CERTIFICATE-----\n")
    encrypted = tmp_path / "encrypted.pem"
    command = ["openssl", "pkey", "-in", str(server.key), "-aes128", "-passout", "pass:secret", "-out", str(encrypted)]
    subprocess.run(command, check=True, capture_output=True)
    for certificate, key in (
        (server.certificate, other.key),
        (server.certificate, None),
        (server.certificate, encrypted),
        (junk, server.key),
        (server.certificate, junk),
        (server.key, server.certificate),
    ):
        with pytest.raises(SpandialError, match=r"SPANDIAL_TLS_CERT=.* do not fit together"):
            ServerCertificate(certificate, key)
    for ca in (junk, server.key):
        with pytest.raises(SpandialError, match=r"^SPANDIAL_TLS_CLIENT_CA=.* holds no certificates"):
            ServerCertificate(server.certificate, server.key, ca)


def test_the_key_may_be_in_the_certificates_file(tmp_path: Path, certificates: dict[str, Certificate]) -> None:
    server, both = certificates["server"], tmp_path / "both.pem"
    both.write_text(server.key.read_text() + server.certificate.read_text())
    assert ServerCertificate(both).context.verify_mode == ssl.CERT_NONE


def shown_by(context: ssl.SSLContext) -> bytes | None:
    """The certificate that a client gets to see."""
    ours, theirs = socket.socketpair()
    client = ssl.create_default_context()
    client.check_hostname, client.verify_mode = False, ssl.CERT_NONE

    def serve() -> None:
        with context.wrap_socket(ours, server_side=True) as connection:
            connection.recv(1)

    serving = threading.Thread(target=serve)
    serving.start()
    with client.wrap_socket(theirs) as connection:
        shown = connection.getpeercert(binary_form=True)
        connection.send(b"x")
    serving.join()
    return shown


def der(certificate: Certificate) -> bytes:
    return ssl.PEM_cert_to_DER_cert(certificate.certificate.read_text())


def renew(used: Certificate, by: Certificate) -> None:
    for path, new in zip(used, by):
        (path.parent / "new").write_bytes(new.read_bytes())
        os.replace(path.parent / "new", path)


def test_a_renewed_certificate_is_used_without_a_restart(tmp_path: Path, certificates: dict[str, Certificate]) -> None:
    used = self_signed(tmp_path)
    certificate = ServerCertificate(*used)
    assert shown_by(certificate.context) == der(used)
    renew(used, certificates["server"])
    certificate.refresh()
    assert shown_by(certificate.context) == der(certificates["server"])


def test_what_cannot_be_used_is_told_once_and_changes_nothing(
    tmp_path: Path, certificates: dict[str, Certificate]
) -> None:
    used, said = self_signed(tmp_path), list[str]()
    certificate, before = ServerCertificate(*used, warn=said.append), der(used)
    used.certificate.write_bytes(certificates["server"].certificate.read_bytes())  # its key is still to come
    for _ in range(3):
        certificate.refresh()
        assert shown_by(certificate.context) == before
    [sentence] = said
    assert sentence.endswith("the certificate from before is still used")
    renew(used, certificates["server"])
    certificate.refresh()
    assert shown_by(certificate.context) == der(certificates["server"])
    assert len(said) == 1
