"""The agent's exceptions."""

__all__ = ["AgentUnreachable", "KernelUnavailable", "OperationsFull", "SpandialError"]


class SpandialError(Exception):
    """What the agent raises on purpose: says what happened, with what input, and what to do next."""


class AgentUnreachable(SpandialError):
    """Nobody answers on the socket."""


class KernelUnavailable(SpandialError):
    """The kernel side cannot run here.

    Attributes:
        missing: one sentence for each missing thing.
    """

    def __init__(self, missing: list[str]) -> None:
        super().__init__(" ".join(missing))
        self.missing = missing


class OperationsFull(SpandialError):
    """The kernel has no room for more rules by operation."""
