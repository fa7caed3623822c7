"""HTTP/1.x: the method and the path of a request line."""

from __future__ import annotations

__all__ = ["parse_request_line"]


def parse_request_line(request: bytes) -> tuple[str, str]:
    """Method and path (RFC 9112, section 3), without the query, which may hold what should not leave the machine.

    The bytes may be cut off anywhere; what is not there is empty. Never raises.
    """
    line = request.split(b"\n", 1)[0].rstrip(b"\r")
    method, _, rest = line.partition(b" ")
    target = rest.partition(b" ")[0]
    if target[:7].lower() == b"http://":  # absolute-form, section 3.2.2
        slash = target.find(b"/", 7)
        target = target[slash:] if slash > 0 else b"/"
    path = target.partition(b"?")[0]
    return method.decode("latin-1"), path.decode("utf-8", "backslashreplace")
