"""``rm-plugins list``."""

from __future__ import annotations

import inspect
import json
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

import click

from rm_plugins.cli.command import Command
from rm_plugins.cli.printed import echo
from rm_plugins.errors import did_you_mean

_WIDTH = 79


@click.command("list", cls=Command)
@click.argument("name", required=False, metavar="[KIND|NAME]")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def command(name: str | None, as_json: bool) -> None:
    """List everything that is registered, by kind, and the plug-ins that failed to load.

    KIND shows one kind only: providers, losses, regularizers, aggregates, transforms, protocols, comparers, suites, dialects
    (APIs of the server), engines (where jobs run) or commands. NAME shows one entry in full: where it comes from, its documentation, its
    arguments, and the formula of a loss.
    """
    from rm_plugins.registry import KINDS, default_registry

    registry = default_registry()
    kinds = {f"{kind}es" if kind.endswith("s") else f"{kind}s": kind for kind in (*KINDS, "command")}
    entries = [
        (kind, entry)
        for kind in kinds.values()
        for entry in (registry.commands() if kind == "command" else registry.all(kind)).values()
    ]
    chosen = entries
    is_kind = name is None or name in kinds
    if name is not None:
        wanted = name.replace("_", "-")
        chosen = [(kind, entry) for kind, entry in entries if (kind == kinds[name] if is_kind else entry.name == wanted)]
    if not chosen and not is_kind:
        nearest = did_you_mean(str(name), [*kinds, *(entry.name for _, entry in entries)]).partition("Allowed:")[0].strip()
        raise click.UsageError(
            f"There is no kind and no entry {name!r}. {nearest or '`rm-plugins list` shows all of them.'} Kinds: {', '.join(kinds)}."
        )
    broken = [{"name": plugin.name, "origin": plugin.origin, "reason": plugin.reason} for plugin in registry.broken]
    if as_json:
        rows = [{"kind": kind, **_facts(entry), **({} if is_kind else _details(entry))} for kind, entry in chosen]
        echo(json.dumps({"registered": rows, "broken": broken}, indent=2))
        return
    if is_kind:
        echo("\n".join(_table(chosen)))
        for failed in broken:
            echo(f"\nbroken plug-in {failed['name']} from {failed['origin']}: {failed['reason']}")
        return
    echo("\n\n".join(_in_full(kind, entry) for kind, entry in chosen))


def _facts(entry: Any) -> dict[str, str]:
    facts = {key: getattr(entry, key) for key in ("name", "plugin", "version", "doc")}
    formula = getattr(getattr(entry, "cls", None), "formula", "")  # of a loss or regularizer that gives one
    return {**facts, **({"formula": formula} if formula else {})}


def _table(entries: list[tuple[str, Any]]) -> Iterator[str]:
    """One line for each entry, under its kind; the plug-in is named unless it is built in."""
    width = max((len(entry.name) for _, entry in entries), default=0) + 2
    last = ""
    for kind, entry in entries:
        if kind != last:
            yield f"{chr(10) if last else ''}{kind}"
            last = kind
        plugin = "" if entry.plugin.startswith("rm_plugins.") else f" [{entry.plugin}]"
        yield _cut(f"  {entry.name:<{width}}{entry.doc}", _WIDTH - len(plugin)) + plugin


def _cut(line: str, width: int) -> str:
    line = line.rstrip()
    return line if len(line) <= width else f"{line[: width - 3].rstrip()}..."


def _in_full(kind: str, entry: Any) -> str:
    details = _details(entry)
    version = f" {entry.version}" if entry.version else ""
    lines = [f"{kind} {entry.name}", f"  from {entry.plugin}{version}"]
    formula = _facts(entry).get("formula")
    if formula and formula not in details["documentation"]:
        lines.append(f"  formula: {formula}")
    if details["arguments"]:
        lines += ["  arguments:", *(f"    {name}{default}" for name, default in details["arguments"].items())]
    lines += ["", textwrap.indent(details["documentation"], "  ")]
    return "\n".join(lines).rstrip()


def _details(entry: Any) -> Mapping[str, Any]:
    """The documentation of an entry, and the arguments that a spec can give it, each with its default."""
    cls = getattr(entry, "cls", None)
    if cls is None:
        return {"documentation": inspect.cleandoc(entry.command.help or ""), "arguments": {}}
    try:
        parameters = list(inspect.signature(cls).parameters.values())
    except (TypeError, ValueError):  # a class that is written in C
        parameters = []
    return {
        "documentation": inspect.getdoc(cls) or "",
        "arguments": {
            parameter.name: "" if parameter.default is parameter.empty else f" = {parameter.default!r}"
            for parameter in parameters
            if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        },
    }
