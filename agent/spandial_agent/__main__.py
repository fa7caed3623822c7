"""`spandial`, and `python -m spandial_agent`."""

from spandial_agent.cli.app import app

__all__ = ["main"]


def main() -> None:
    app()


if __name__ == "__main__":
    main()
