"""Who a process says it is: service, version, env, from OpenTelemetry's environment variables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import unquote

__all__ = ["Labels", "labels_from_environ"]


class Labels(NamedTuple):
    """What rules select by; an empty string is a label that the process does not have."""

    service: str = ""
    version: str = ""
    env: str = ""


def labels_from_environ(environ: Mapping[str, str]) -> Labels:
    """Labels from OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES.

    OTEL_SERVICE_NAME wins over `service.name`, and `deployment.environment.name` over the older
    `deployment.environment` (OpenTelemetry, Resource SDK and semantic conventions).
    """
    attributes = {}
    for pair in environ.get("OTEL_RESOURCE_ATTRIBUTES", "").split(","):
        key, equals, value = pair.partition("=")
        if equals:
            attributes[key.strip()] = unquote(value.strip())
    return Labels(
        service=environ.get("OTEL_SERVICE_NAME", "").strip() or attributes.get("service.name", ""),
        version=attributes.get("service.version", ""),
        env=attributes.get("deployment.environment.name", "") or attributes.get("deployment.environment", ""),
    )
