"""The in-process side of spandial: an OpenTelemetry sampler that obeys the node's dial."""

from spandial.sampler import Sampler

__all__ = ["Sampler"]
