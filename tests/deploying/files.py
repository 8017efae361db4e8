"""The files of docs/deploying/, read as their readers read them."""

from __future__ import annotations

import json
import re
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import yaml

from rm_plugins.cli import main
from rm_plugins.server import Settings
from rm_plugins.testing import FixedProvider

ROOT = Path(__file__).parents[2]
FILES = ROOT / "docs" / "deploying"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
KEY = "A-LONG-SECRET"
REWARD = FixedProvider(scores=lambda sample: 1.0)
NAMESPACE = "trainers"


def text_of(name: str) -> str:
    return (FILES / name).read_text(encoding="utf-8")


def documents(name: str) -> dict[str, Any]:
    """The objects of a file for Kubernetes by kind."""
    return {found["kind"]: found for found in yaml.safe_load_all(text_of(name))}


def instructions() -> list[tuple[str, str]]:
    """The instructions of the container file, with their continued lines joined."""
    lines = "\n".join(line for line in text_of("Containerfile").splitlines() if not line.startswith("#"))
    found = [line.partition(" ")[::2] for line in lines.replace("\\\n", " ").splitlines() if line]
    return [(name, " ".join(rest.split())) for name, rest in found]


def instruction(name: str) -> list[str]:
    """The arguments of an instruction, in the order of the file."""
    return [rest for found, rest in instructions() if found == name]


def composed(name: str, **variables: str) -> dict[str, Any]:
    """The service of a file for Compose, with variables in place of their names."""

    def value(found: re.Match[str]) -> str:
        variable, default = found[1], found[2] or ""
        if variable not in variables and default.startswith(":?"):
            raise KeyError(variable)
        return variables.get(variable, default.removeprefix(":-"))

    service: dict[str, Any] = yaml.safe_load(re.sub(r"\$\{(\w+)(:[-?][^}]*)?\}", value, text_of(name)))["services"]["reward"]
    return service


def container(name: str) -> dict[str, Any]:
    """The container of a file for Kubernetes."""
    (document,) = [found for kind, found in documents(name).items() if kind in ("Deployment", "InferenceService")]
    spec = document["spec"]
    (found,) = (spec["template"]["spec"] if "template" in spec else spec["predictor"])["containers"]
    return dict(found)


def arguments(name: str) -> list[str]:
    """What follows ``rm-plugins`` where a file starts the server."""
    if name == "Containerfile":
        return list(json.loads(instruction("CMD")[0]))
    found = composed(name, REWARD_KEY=KEY)["command"] if name == "compose.yaml" else container(name)["args"]
    return [str(argument).replace("$(NAMESPACE)", NAMESPACE) for argument in found]


STARTING = ("Containerfile", "compose.yaml", "kubernetes.yaml", "kserve.yaml")


def options(name: str) -> dict[str, Any]:
    """What the command itself makes of a file's arguments."""
    command, *rest = arguments(name)
    serve = main.get_command(click.Context(main), command)
    assert serve is not None
    return serve.make_context(command, rest).params


def settings(name: str) -> Settings:
    """The settings of the server that a file starts."""
    found = options(name)
    keys = (KEY,) if found["api_key_env"] else ()
    names = Settings.__dataclass_fields__
    return replace(Settings(**{option: value for option, value in found.items() if option in names}), api_keys=keys)
