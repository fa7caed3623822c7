"""`spandial`, and `python -m spandial_agent`."""

from __future__ import annotations

import gc

__all__ = ["main"]


def main() -> None:
    # What is imported stays: to look through it for garbage again and again takes a fifth of the imports' time.
    gc.disable()
    from spandial_agent.cli.app import app

    gc.enable()
    app()


if __name__ == "__main__":
    main()
