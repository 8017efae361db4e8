"""``rm-plugins verify``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

import rm_plugins as rm
from rm_plugins.cli.command import Command
from rm_plugins.cli.printed import echo
from rm_plugins.errors import UnsupportedError
from rm_plugins.labels import counted

if TYPE_CHECKING:
    from rm_plugins.models.trained_reward import TrainedReward


@click.command("verify", cls=Command)
@click.argument("spec")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of sentences.")
@click.pass_context
def command(context: click.Context, spec: str, as_json: bool) -> None:
    """Check that each model of SPEC still gives the scores that its manifest records.

    Compares every file with its digest, and scores the samples with recorded scores (golden samples) again. Exits with 1 and
    names what differs if anything does. If SPEC has several models, each is named by its path in SPEC.
    """
    from rm_plugins.models.trained_reward import loading_unchecked

    with loading_unchecked():
        provider = rm.load(spec)
    models: dict[str, TrainedReward] = {
        f"{path}.{key}" if path else key: model for path, part in provider.walk() for key, model in part.models.items()
    }
    if not models:
        raise UnsupportedError(f"{spec} has no trained model, so there is nothing to verify.")
    verified: list[dict[str, Any]] = []
    for path, model in models.items():
        name = spec if path in provider.models and len(models) == 1 else f"{path} ({model.source})"
        try:
            problems = model.verify()
        except UnsupportedError as error:
            if len(models) == 1:
                raise
            problems = [str(error)]
            told = f"{name} cannot be verified: {error}"
        else:
            told = _told(name, model, problems)
        verified.append({"model": name, "matches": not problems, "problems": list(problems), **model.quantization_facts})
        if not as_json:
            echo(told)
    provider.close()
    if as_json:
        echo(json.dumps(verified, indent=2))
    context.exit(0 if all(result["matches"] for result in verified) else 1)


def _told(name: str, model: TrainedReward, problems: Sequence[str]) -> str:
    from rm_plugins.models.manifest import MANIFEST_NAME

    if problems:
        return "\n".join([f"{name} does not match its {MANIFEST_NAME}:", *(f"- {problem}" for problem in problems)])
    manifests = [origin.manifest for origin in model.origins if origin.manifest is not None]
    files, golden = sum(len(manifest.files) for manifest in manifests), sum(len(manifest.golden) for manifest in manifests)
    matches = f"{name} matches its {MANIFEST_NAME}: {counted(files, 'file')}, {counted(golden, 'golden score')}."
    return matches if model.quantization is None else f"{matches} It {model.quantization_in_words}."
