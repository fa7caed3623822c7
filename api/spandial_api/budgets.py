"""What a node may keep, whatever its rules ask for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["Limits"]


@dataclass(frozen=True)
class Limits:
    """Kept entries a second on this node. None: no limit.

    Attributes:
        budget: of all targets together.
        quota: of each tenant that has none of its own.
        quotas: by tenant.
    """

    budget: float | None = None
    quota: float | None = None
    quotas: Mapping[str, float] = field(default_factory=dict)

    def quota_of(self, tenant: str) -> float | None:
        """A process without a tenant is nobody's."""
        return self.quotas.get(tenant, self.quota) if tenant else None
