"""Files with TLS in them: where their functions are, and what is said of those that have none to find."""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spandial_agent.capture.images import Image, read_image

pytestmark = pytest.mark.needs("gcc")

# Functions as OpenSSL has them; another's name ends in one of theirs.
SOURCE = """
int BIO_SSL_read(void) { return 1; }
int SSL_read(void *ssl, void *buffer, int length) { return length + 17; }
int SSL_write(void *ssl, void *buffer, int length) { return length + 18; }
int SSL_free(void *ssl) { return 19; }
int main(void) { return BIO_SSL_read(); }
"""


def build(folder: Path, source: str, *options: str) -> Path:
    made = folder / "made"
    subprocess.run(["gcc", "-x", "c", "-O1", "-o", made, *options, "-"], input=source, text=True, check=True)
    return made


def image_of(path: Path, executable: bool = True) -> Image:
    with open(path, "rb") as file:
        return read_image(file.fileno(), executable)


def test_functions_are_found_where_they_are(tmp_path: Path) -> None:
    path = build(tmp_path, SOURCE, "-shared", "-fPIC")
    found = image_of(path, executable=False).offsets
    assert set(found) == {"SSL_read", "SSL_write", "SSL_free"}
    library, content = ctypes.CDLL(str(path)), path.read_bytes()
    for name, offset in found.items():
        address = ctypes.cast(getattr(library, name), ctypes.c_void_p).value
        assert address is not None
        assert content[offset:].startswith(ctypes.string_at(address, 16))


@pytest.mark.parametrize("options", [["-no-pie"], ["-pie", "-fPIE"], ["-rdynamic"]], ids=" ".join)
def test_an_executable_has_them_too(tmp_path: Path, options: list[str]) -> None:
    assert {"SSL_read", "SSL_write"} <= set(image_of(build(tmp_path, SOURCE, *options)).offsets)


def test_half_of_a_library_is_none(tmp_path: Path) -> None:
    source = SOURCE.replace("int SSL_write", "int another")
    assert image_of(build(tmp_path, source)) == Image({})


def test_what_is_only_called_is_not_there(tmp_path: Path) -> None:
    source = "int SSL_read(void); int SSL_write(void); int call(void) { return SSL_read() + SSL_write(); }"
    assert image_of(build(tmp_path, source, "-shared", "-fPIC")) == Image({})


@pytest.mark.parametrize(
    ("trace", "hidden"),
    [
        ("/root/.cargo/registry/src/rustls-0.23.12/src/conn.rs", "rustls"),
        ("../third_party/boringssl/src/ssl/ssl_lib.cc", "BoringSSL without symbols"),
        ("ssl/ssl_lib.c", "OpenSSL without symbols"),
        ("a paper on SSL", ""),
    ],
)
def test_a_stripped_executable_is_known_by_what_is_left(tmp_path: Path, trace: str, hidden: str) -> None:
    source = SOURCE + f'const char *trace(void) {{ return "{trace}"; }}'
    path = build(tmp_path, source, "-s")
    assert image_of(path) == Image({}, hidden)
    assert image_of(path, executable=False) == Image({})


def test_traces_are_found_between_two_pieces(tmp_path: Path) -> None:
    path = build(tmp_path, SOURCE, "-s")
    content = path.read_bytes()
    path.write_bytes(content + b"x" * ((1 << 20) - len(content) - 5) + b"rustls/src/client.rs")
    assert image_of(path).hidden == "rustls"


@pytest.mark.parametrize("tls", [True, False])
def test_a_go_program_is_known_by_its_build_information(tmp_path: Path, tls: bool) -> None:
    source = SOURCE + '__attribute__((section(".go.buildinfo"))) char info[] = "go1.23";'
    source += 'const char *names(void) { return "crypto/%s.(*Conn).Read"; }' % ("tls" if tls else "sha256")
    assert image_of(build(tmp_path, source, "-s")).hidden == ("Go crypto/tls" if tls else "")


def test_a_32_bit_program_is_said_to_be_one(tmp_path: Path) -> None:
    path = build(tmp_path, SOURCE)
    content = bytearray(path.read_bytes())
    content[4] = 1  # ELFCLASS32
    path.write_bytes(content)
    assert image_of(path).offsets == {}


@settings(max_examples=200)
@given(data=st.data())
def test_whatever_a_file_says_it_is_read(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.getbasetemp()
    whole = folder / "made"
    content = bytearray((whole if whole.exists() else build(folder, SOURCE, "-shared", "-fPIC")).read_bytes())
    for _ in range(data.draw(st.integers(0, 8))):
        at = data.draw(st.one_of(st.integers(0, 63), st.integers(0, len(content) - 1)))
        content[at] = data.draw(st.integers(0, 255))
    path = folder / "mangled"
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    image_of(path)
