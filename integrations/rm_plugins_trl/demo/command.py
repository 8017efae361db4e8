"""Replaced shortly by the real command."""

import click


@click.command("demo")
def demo() -> None:
    """Placeholder."""
