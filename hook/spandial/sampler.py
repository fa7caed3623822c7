"""spandial.Sampler: the decider, with labels from the environment and a link to the node's agent."""

from __future__ import annotations

import logging
import os

from spandial import abi
from spandial.decider import Decider
from spandial.labels import labels_from_environ
from spandial.link import Link as AgentLink

__all__ = ["Sampler", "parse_default"]

_logger = logging.getLogger("spandial")


def parse_default(text: str | float | None) -> float:
    """The rate (percentage) of OTEL_TRACES_SAMPLER_ARG: a ratio `0.1`, or a percentage `10%`; 100 without it.

    Raises ValueError that says what was received.
    """
    if text is None or text == "":
        return 100.0
    written = str(text).strip()
    try:
        rate = float(written[:-1]) if written.endswith("%") else float(written) * 100
    except ValueError:
        rate = -1.0
    if not 0 <= rate <= 100:
        raise ValueError(f"expected a ratio from 0 to 1, such as 0.1, or a percentage such as 10%; received {text!r}")
    return rate


class Sampler(Decider):
    """A sampler that obeys the node's dial, by the word that the kernel obeys too.

    Registers with the node's agent in the background; until an agent is found, and for words that no rule has set,
    `default` holds. Never raises and never waits for the agent.

    Args:
        default: a ratio (`0.1`) or a percentage (`"10%"`), as in OTEL_TRACES_SAMPLER_ARG; everything without it.
        service, version, env, tenant: labels; those left out come from OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES.
        run_dir: the agent's run directory; SPANDIAL_RUN_DIR or /run/spandial without it.
    """

    def __init__(
        self,
        default: str | float | None = None,
        *,
        service: str | None = None,
        version: str | None = None,
        env: str | None = None,
        tenant: str | None = None,
        run_dir: str | None = None,
    ) -> None:
        try:
            rate = parse_default(default)
        except ValueError as error:
            _logger.warning("OTEL_TRACES_SAMPLER_ARG: %s; sampling everything until an agent says otherwise", error)
            rate = 100.0
        found = labels_from_environ(os.environ)
        labels = found._replace(
            service=found.service if service is None else service,
            version=found.version if version is None else version,
            env=found.env if env is None else env,
            tenant=found.tenant if tenant is None else tenant,
        )
        super().__init__(abi.encode_word(rate))
        self._link = AgentLink(labels, self, run_dir or os.environ.get("SPANDIAL_RUN_DIR") or "/run/spandial")
        self._link.start()
