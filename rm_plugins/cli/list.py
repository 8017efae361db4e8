"""``rm-plugins list``."""

from __future__ import annotations

import json

import click
from rich.markup import escape
from rich.table import Column, Table

from rm_plugins.cli.printed import Console, echo
from rm_plugins.errors import did_you_mean
from rm_plugins.registry import KINDS, default_registry


@click.command("list")
@click.argument("kind", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def command(kind: str | None, as_json: bool) -> None:
    """Show everything that is registered, where it comes from, and the plug-ins that failed to load; of losses the formula.

    KIND narrows it: providers, losses, regularizers, aggregates, transforms, protocols, suites, dialects or commands.
    """
    registry = default_registry()
    kinds = {f"{name}es" if name.endswith("s") else f"{name}s": name for name in (*KINDS, "command")}
    if kind is not None and kind not in kinds:
        raise click.UsageError(f"There is no kind {kind!r}. {did_you_mean(kind, kinds)}")
    rows: list[dict[str, str]] = []
    for plural, name in kinds.items():
        if kind not in (None, plural):
            continue
        entries = registry.commands() if name == "command" else registry.all(name)
        for entry in entries.values():
            facts = {key: getattr(entry, key) for key in ("name", "plugin", "version", "doc")}
            formula = getattr(getattr(entry, "cls", None), "formula", "")  # of a loss or regularizer that gives one
            rows.append({"kind": name, **facts, **({"formula": formula} if formula else {})})
    broken = [{"name": plugin.name, "origin": plugin.origin, "reason": plugin.reason} for plugin in registry.broken]
    if as_json:
        echo(json.dumps({"registered": rows, "broken": broken}, indent=2))
        return
    headings = ("kind", "name", "plug-in", "version", "")
    table = Table(*(Column(heading, no_wrap=bool(heading)) for heading in headings), box=None, pad_edge=False)
    for row in rows:
        *columns, described = (row[key] for key in ("kind", "name", "plugin", "version", "doc"))
        table.add_row(*map(escape, (*columns, "\n".join(filter(None, (described, row.get("formula")))))))
    Console().print(table)
    for failed in broken:
        echo(f"\nbroken plug-in {failed['name']} from {failed['origin']}: {failed['reason']}")
