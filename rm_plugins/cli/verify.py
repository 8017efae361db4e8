"""``rm-plugins verify``."""

from __future__ import annotations

from collections.abc import Sequence

import click

import rm_plugins as rm
from rm_plugins.cli.printed import echo
from rm_plugins.errors import UnsupportedError
from rm_plugins.models.manifest import MANIFEST_NAME
from rm_plugins.models.trained_reward import TrainedReward, loading_unchecked


@click.command("verify")
@click.argument("spec")
@click.pass_context
def command(context: click.Context, spec: str) -> None:
    """Check that each model of SPEC still is what its manifest says.

    Compares every file and scores the golden samples again. Exits with 1 and names what differs if anything does. In a spec of
    several models, each is named by its path.
    """
    with loading_unchecked():
        provider = rm.load(spec)
    models: dict[str, TrainedReward] = {
        f"{path}.{key}" if path else key: model for path, part in provider.walk() for key, model in part.models.items()
    }
    if not models:
        raise UnsupportedError(f"{spec} holds no trained model, so that there is nothing to verify.")
    matches = []
    for path, model in models.items():
        name = spec if path in provider.models and len(models) == 1 else f"{path} ({model.source})"
        try:
            problems = model.verify()
        except UnsupportedError as error:
            if len(models) == 1:
                raise
            echo(f"{name} cannot be verified: {error}")
            matches.append(False)
        else:
            _report(name, model, problems)
            matches.append(not problems)
    provider.close()
    context.exit(0 if all(matches) else 1)


def _report(name: str, model: TrainedReward, problems: Sequence[str]) -> None:
    if problems:
        echo("\n".join([f"{name} does not match its {MANIFEST_NAME}:", *(f"- {problem}" for problem in problems)]))
        return
    manifests = [origin.manifest for origin in model.origins if origin.manifest is not None]
    files, golden = sum(len(manifest.files) for manifest in manifests), sum(len(manifest.golden) for manifest in manifests)
    echo(f"{name} matches its {MANIFEST_NAME}: {files} files, {golden} golden scores.")
