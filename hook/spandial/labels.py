"""Who a process says it is: service, version, env, tenant and more, from OpenTelemetry's environment variables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple
from urllib.parse import unquote

__all__ = ["ATTRIBUTES_MAX", "LABEL_MAX", "Labels", "labels_from_environ", "other_labels"]

LABEL_MAX = 255  # characters of a name or a value
ATTRIBUTES_MAX = 32

# The attributes that have fields of their own.
_SERVICE, _VERSION = "service.name", "service.version"
_ENV = ("deployment.environment.name", "deployment.environment")
_TENANT = ("tenant.id", "tenant")
_FIELDS = {_SERVICE, _VERSION, *_ENV, *_TENANT}


class Labels(NamedTuple):
    """What rules select by; an empty string is a label that the process does not have.

    Attributes:
        others: every other resource attribute, as pairs in the order of their names.
    """

    service: str = ""
    version: str = ""
    env: str = ""
    tenant: str = ""
    others: tuple[tuple[str, str], ...] = ()

    @property
    def main(self) -> dict[str, str]:
        """Service, version and env: what a process is called everywhere."""
        return {"service": self.service, "version": self.version, "env": self.env}

    @property
    def pairs(self) -> tuple[tuple[str, str], ...]:
        """All of them, by the names that selectors have for them."""
        return (*zip(self._fields, self[:4]), *((f"label.{name}", value) for name, value in self.others))

    def over(self, other: Labels) -> Labels:
        """These, with the other's for those that are missing."""
        return Labels(
            self.service or other.service,
            self.version or other.version,
            self.env or other.env,
            self.tenant or other.tenant,
            self.others or other.others,
        )

    def get(self, name: str) -> str:
        """One of the others; an empty string where the process does not have it."""
        return next((value for other, value in self.others if other == name), "")


def other_labels(attributes: Iterable[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    """Attributes as `Labels.others`: without those that have fields of their own, and those that are too long; no more
    than `ATTRIBUTES_MAX`."""
    found = {
        name: value
        for name, value in attributes
        if name
        and value
        and name not in _FIELDS
        and max(len(name), len(value)) <= LABEL_MAX
        and (name + value).isprintable()
    }
    return tuple(sorted(found.items())[:ATTRIBUTES_MAX])


def labels_from_environ(environ: Mapping[str, str]) -> Labels:
    """Labels from OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES.

    OTEL_SERVICE_NAME wins over `service.name`, and `deployment.environment.name` over the older
    `deployment.environment` (OpenTelemetry, Resource SDK and semantic conventions). The tenant is `tenant.id`, or
    `tenant`: no convention names it.
    """
    attributes = {}
    for pair in environ.get("OTEL_RESOURCE_ATTRIBUTES", "").split(","):
        key, equals, value = pair.partition("=")
        if equals:
            attributes[key.strip()] = unquote(value.strip())
    return Labels(
        service=environ.get("OTEL_SERVICE_NAME", "").strip() or attributes.get(_SERVICE, ""),
        version=attributes.get(_VERSION, ""),
        env=next((attributes[name] for name in _ENV if attributes.get(name)), ""),
        tenant=next((attributes[name] for name in _TENANT if attributes.get(name)), ""),
        others=other_labels(attributes.items()),
    )
