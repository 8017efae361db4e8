"""``rm-plugins show``."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import click

import rm_plugins as rm
from rm_plugins.cli.command import Command
from rm_plugins.cli.printed import Console, echo
from rm_plugins.redaction import redacted

if TYPE_CHECKING:
    from rich.tree import Tree

    from rm_plugins.component import Aggregate, Transform
    from rm_plugins.models.trained_reward import TrainedReward
    from rm_plugins.provider import Provider


@click.command("show", cls=Command)
@click.argument("spec")
@click.option("--json", "as_json", is_flag=True, help="Print the spec as JSON, with nested files written into it.")
def command(spec: str, as_json: bool) -> None:
    """Load SPEC and show what it consists of: a tree of its providers with their settings, and facts about each model."""
    from rm_plugins.identity import shown_spec

    provider = rm.load(spec)
    if as_json:
        echo(json.dumps(shown_spec(provider), indent=2, ensure_ascii=False, default=str))
    else:
        Console(highlight=False).print(tree(provider))
    provider.close()


def tree(provider: Provider, key: str = "") -> Tree:
    """A provider and everything inside it, to print with rich.

    Args:
        provider: The provider.
        key: Its key in the spec.
    """
    from rich.text import Text
    from rich.tree import Tree

    heading = Text(f"{key}: " if key else "", style="bold", overflow="fold")
    heading.append(provider.name, style="bold cyan")
    if provider.label != provider.name:
        heading.append(f" {redacted(repr(provider.label))}", style="not bold")
    for name, value in _settings(provider).items():
        heading.append(f"\n{name}: {redacted(value)}", style="not bold")
    shown = Tree(heading, guide_style="dim")
    shown.children += [tree(child, path) for path, child in provider.children.items()]
    return shown


def _settings(provider: Provider) -> dict[str, str]:
    """The settings of a provider, without those of its children."""
    from rm_plugins.component import Aggregate, Transform
    from rm_plugins.identity import shown_spec
    from rm_plugins.spec import SHARED_KEYS

    nested = {re.split(r"[.\[]", path)[0] for path in provider.children}
    spec = shown_spec(provider) or {"spec": "none, made in Python"}
    settings = {key: _text(value) for key, value in spec.items() if key not in (*SHARED_KEYS, *nested)}
    components = {key: value for key, value in vars(provider).items() if isinstance(value, (Aggregate, Transform))}
    settings |= {key: _component(value) for key, value in components.items() if not key.startswith("_")}
    if provider.on_error != "raise":
        settings["on_error"] = provider.on_error
    for key, model in provider.models.items():
        name = f"{key}." if len(provider.models) > 1 else ""
        settings |= {f"{name}{fact}": text for fact, text in _facts(model).items()}
    return settings


def _facts(model: TrainedReward) -> dict[str, str]:
    rendering = model.renderer.rendering
    facts = {"max_length": f"{rendering.max_length or 'none'} (truncation: {rendering.truncation})", "dtype": model.dtype}
    if model.quantization is not None:
        cost = model.quantization_cost
        facts["quantization"] = f"{model.quantization}: {'cost unknown' if cost is None else cost}"
    manifest = model.manifest
    if manifest is None:
        return {**facts, "manifest": "none"}
    if manifest.heads is not None:
        weights = ", ".join(
            f"{name} {weight:g}" for name, weight in zip(manifest.heads.names, manifest.heads.weights, strict=True)
        )
        facts["outputs"] = f"{weights}; members: {manifest.heads.members}"
    if (scores := manifest.statistics) is not None:
        facts["scores"] = f"mean {scores.mean:.4g}, std {scores.std:.4g} ({scores.count:,} of {scores.source})"
    is_compared = model.settings.verify
    return {**facts, "manifest": "compared with the model when it was loaded" if is_compared else "not compared with the model"}


def _component(value: Aggregate | Transform) -> str:
    from rm_plugins.transforms import Chain

    if isinstance(value, Chain):
        return ", then ".join(map(_component, value.transforms))
    arguments = ", ".join(f"{key}: {_text(argument)}" for key, argument in (value.spec or {}).items() if key != "name")
    return f"{value.name} ({arguments})" if arguments else value.name


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
