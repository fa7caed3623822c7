"""HTTP/1.x: the method and the path of a request line, the status of an answer."""

from __future__ import annotations

__all__ = ["parse_request_line", "parse_status"]


def parse_request_line(request: bytes) -> tuple[str, str]:
    """Method and path (RFC 9112, section 3), without the query, which may hold what should not leave the machine.

    The bytes may be cut off anywhere; what is not there is empty. Never raises.
    """
    line = request.split(b"\n", 1)[0].rstrip(b"\r")
    method, _, rest = line.partition(b" ")
    path = rest.partition(b" ")[0].partition(b"?")[0]
    scheme, separator, authority = path.partition(b"://")
    if separator and scheme.lower() in (b"http", b"https"):  # absolute-form, section 3.2.2
        slash = authority.find(b"/")
        path = authority[slash:] if slash >= 0 else b"/"
    return method.decode("latin-1"), path.decode("utf-8", "backslashreplace")


def parse_status(answer: bytes) -> int | None:
    """The status code of a status line (RFC 9112, section 4); None if these bytes begin with none. Never raises."""
    if not answer.startswith((b"HTTP/1.1 ", b"HTTP/1.0 ")):
        return None
    digits = answer[9:12]
    return int(digits) if len(digits) == 3 and digits.isdigit() and digits[0] != ord("0") else None
