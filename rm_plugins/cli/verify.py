"""``rm-plugins verify``."""

from __future__ import annotations

import click

from rm_plugins.models.manifest import MANIFEST_NAME
from rm_plugins.providers.models.sequence_classifier import SequenceClassifier

__all__ = ["command"]


@click.command("verify")
@click.argument("model")
@click.pass_context
def command(context: click.Context, model: str) -> None:
    """Check that MODEL (a folder or hub id) still is what its manifest says.

    Compares every file and scores the golden samples again. Exits with 1 and names what differs if anything does.
    """
    provider = SequenceClassifier(model=model, verify=False)
    problems = provider.verify()
    manifest = provider.manifest
    if not problems and manifest is not None:
        click.echo(f"{model} matches its {MANIFEST_NAME}: {len(manifest.files)} files, {len(manifest.golden)} golden scores.")
        return
    click.echo(f"{model} does not match its {MANIFEST_NAME}:")
    for problem in problems:
        click.echo(f"- {problem}")
    context.exit(1)
