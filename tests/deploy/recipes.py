"""The recipes as they ship."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

__all__ = ["FOLDER", "documents", "environment", "only"]

FOLDER = Path(__file__).parents[2] / "deploy" / "gray-release"


def documents(path: str) -> list[dict[str, Any]]:
    """All documents of one file."""
    return [dict(document) for document in yaml.safe_load_all((FOLDER / path).read_text())]


def only(path: str, kind: str, name: str | None = None) -> dict[str, Any]:
    """The one document of this kind and name."""
    [found] = [d for d in documents(path) if d.get("kind") == kind and name in (None, d["metadata"]["name"])]
    return found


def environment(workload: dict[str, Any], labels: dict[str, str]) -> dict[str, str]:
    """The environment that Kubernetes gives the container of a pod with these labels besides its own."""
    pod = workload["spec"]["template"]
    labels = {**pod["metadata"]["labels"], **labels}
    made: dict[str, str] = {}
    for variable in pod["spec"]["containers"][0]["env"]:
        if "valueFrom" in variable:
            path = variable["valueFrom"]["fieldRef"]["fieldPath"]
            made[variable["name"]] = labels[path.removeprefix("metadata.labels['").removesuffix("']")]
        else:
            value = variable["value"]
            for name, other in made.items():  # $(NAME), of those before it
                value = value.replace(f"$({name})", other)
            made[variable["name"]] = value
    return made
