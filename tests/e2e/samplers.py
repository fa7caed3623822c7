"""OpenTelemetry JS with its own remote samplers, as processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

__all__ = ["NODE_MODULES", "SamplerClient"]

NODE_MODULES = Path(sys.prefix) / "node" / "node_modules"
_PROGRAM = Path(__file__).parent / "programs" / "sampler_client.js"


class SamplerClient:
    """`sampler_client.js`: it starts root spans, and says how many its sampler kept.

    Args:
        protocol: `jaeger` or `xray`.
        environ: more variables of its environment.
    """

    def __init__(self, protocol: str, endpoint: str, service: str, **environ: str) -> None:
        self._process = subprocess.Popen(
            ["node", str(_PROGRAM), protocol, endpoint, service],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "NODE_PATH": str(NODE_MODULES), **environ},
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    def kept(self, spans: int, name: str = "GET /", attributes: Mapping[str, str] | None = None) -> int:
        """How many of so many root spans are kept."""
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        print(json.dumps({"spans": spans, "name": name, "attributes": attributes}), file=process.stdin, flush=True)
        answer = process.stdout.readline()
        assert answer, f"the client ended with {process.wait(5)}"
        return int(answer)

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(10)
