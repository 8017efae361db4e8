"""Writes tables of keys, fields and options into pages while they are read, from the code itself.

A page has a comment such as ``<!-- from code: components provider -->``, which stands for what the function of that name returns.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any, get_type_hints

if TYPE_CHECKING:
    from sphinx.application import Sphinx

MARK = re.compile(r"^<!-- from code: (\w+) ?(.*?) -->$", re.MULTILINE)


def setup(app: Sphinx) -> dict[str, Any]:
    """Sphinx calls this.

    Everything is written before the first page is read: autodoc imports modules again as a type checker sees them, and pydantic
    cannot make models of that.
    """
    texts = {mark[0]: WRITERS[mark[1]](*mark[2].split()) for page in Path(app.srcdir).rglob("*.md") for mark in marks(page)}
    app.connect(
        "source-read", lambda app, page, source: source.__setitem__(0, MARK.sub(lambda mark: texts[mark[0]], source[0]))
    )
    return {"parallel_read_safe": True}


def marks(page: Path) -> list[re.Match[str]]:
    """The marks on a page."""
    return [*MARK.finditer(page.read_text(encoding="utf-8"))]


def components(kind: str) -> str:
    """Every registered component of a kind: a heading, what it does, and a table of its keys."""
    import rm_plugins as rm
    from rm_plugins.constructor_schema import schema_of

    parts = []
    for name, registered in sorted(rm.Registry().all(kind).items()):
        parts += [f"### `{name}`", summary(registered.cls)]
        if keys := schema_of(registered.cls):
            parts.append(table("key", registered.cls, keys, elsewhere=SHARED_SETTINGS))
    return "\n\n".join(parts)


def fields(path: str) -> str:
    """The fields of a dataclass or pydantic model ``module:name``, with what its ``Args`` section says of them."""
    cls = resolve_name(path)
    models = getattr(cls, "model_fields", None)
    return table(
        "field", cls, get_type_hints(cls) if models is None else {name: one.annotation for name, one in models.items()}
    )


def schema(path: str) -> str:
    """The fields of a pydantic model ``module:name``, by their own descriptions."""
    rows = []
    for name, field in resolve_name(path).model_fields.items():
        shown = "required" if field.is_required() else f"`{cell(repr(field.default))}`"
        kind = "list of samples" if name == "samples" and field.annotation is not int else type_text(field.annotation)
        rows.append(f"| `{name}` | `{cell(kind)}` | {shown} | {cell(as_markdown(field.description or ''))} |")
    return "\n".join(["| field | type | default | meaning |", "|---|---|---|---|", *rows])


def commands() -> str:
    """Every command of ``rm-plugins`` with a table of its options."""
    import click

    from rm_plugins.cli import main

    def of(command: click.Command, context: click.Context, name: str) -> list[str]:
        here = click.Context(command, info_name=name, parent=context)
        if isinstance(command, click.Group):
            return [part for sub in command.list_commands(here) for part in of(known(command, here, sub), here, sub)]
        usage = " ".join([here.command_path, *command.collect_usage_pieces(here)])
        help_text = inspect.cleandoc(command.help or "").replace("\b\n", "")
        parts = [f"## `{here.command_path}`", f"```text\n{usage}\n```", as_markdown(help_text)]
        rows = [option_row(option, here) for option in command.params if isinstance(option, click.Option) and not option.hidden]
        return [*parts, "\n".join(["| option | meaning |", "|---|---|", *rows])] if rows else parts

    def known(group: click.Group, context: click.Context, name: str) -> click.Command:
        command = group.get_command(context, name)
        assert command is not None
        return command

    context = click.Context(main, info_name="rm-plugins")
    return "\n\n".join(part for name in main.list_commands(context) for part in of(known(main, context, name), context, name))


def option_row(option: Any, context: Any) -> str:
    """A row of an option's table."""
    spelled, text = option.get_help_record(context)  # hidden ones alone have none
    return f"| `{cell(spelled)}` | {cell(as_markdown(text))} |"


def prometheus() -> str:
    """What the server counts, as ``/metrics`` names it."""
    from prometheus_client.metrics import MetricWrapperBase

    from rm_plugins.server.metrics import Metrics

    counted = [value for value in vars(Metrics(lambda: (0, 0))).values() if isinstance(value, MetricWrapperBase)]
    rows = [
        f"| `{metric._name}{'_total' if metric._type == 'counter' else ''}` | {metric._type} | "
        f"{', '.join(f'`{label}`' for label in metric._labelnames)} | {metric._documentation} |"
        for metric in counted
    ]
    return "\n".join(["| name | kind | labels | meaning |", "|---|---|---|---|", *rows])


WRITERS: Mapping[str, Callable[..., str]] = {
    "components": components,
    "fields": fields,
    "schema": schema,
    "commands": commands,
    "prometheus": prometheus,
}
SHARED_SETTINGS = "rm_plugins.providers.models.sequence_classifier:SequenceClassifier"
"""Describes the keys that several providers take of a model's settings."""


def table(first: str, cls: type[Any], annotations: Mapping[str, Any], *, elsewhere: str = "") -> str:
    """Names, types, defaults and meanings of a class's parameters."""
    meanings = (argument_texts(resolve_name(elsewhere)) if elsewhere else {}) | argument_texts(cls)
    parameters = inspect.signature(cls).parameters
    rows = []
    for name, annotation in annotations.items():
        if name.startswith("_") or name not in parameters:
            continue
        default = parameters[name].default
        shown = "required" if default is inspect.Parameter.empty else f"`{cell(repr(default))}`"
        if "factory" in repr(default):
            shown = "empty"
        rows.append([f"`{name}`", f"`{cell(type_text(annotation))}`", shown, cell(meanings.get(name, ""))])
    head = [first, "type", "default", "meaning"]
    if not any(row[-1] for row in rows):  # the page says it in a sentence
        head, rows = head[:-1], [row[:-1] for row in rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows])


def summary(cls: type[Any]) -> str:
    """A docstring up to its first section, as Markdown."""
    text = re.split(r"\n(?:Args|Raises|Attributes|Inputs|Example|References?):|\n>>> |\n\| ", inspect.getdoc(cls) or "")[0]
    return as_markdown(text.strip().removesuffix("::"))


def argument_texts(cls: type[Any]) -> dict[str, str]:
    """The texts of a docstring's ``Args`` section, by name; a class's own come before those of the classes it inherits from."""
    texts: dict[str, str] = {}
    for one in reversed(cls.__mro__):
        section = re.search(r"^Args:\n(.*?)(?=^\S|\Z)", inspect.cleandoc(one.__doc__ or ""), re.MULTILINE | re.DOTALL)
        for name, text in re.findall(r"^ {4}\*{0,2}(\w+): (.+(?:\n {8}.*)*)", section[1] if section else "", re.MULTILINE):
            texts[name] = as_markdown(" ".join(text.split()))
    return texts


def type_text(annotation: Any) -> str:
    """An annotation as a reader writes it, without the modules of its names."""
    text = annotation.__name__ if isinstance(annotation, type) and not hasattr(annotation, "__origin__") else str(annotation)
    text = re.sub(r"Annotated\[([^,\]]+)[^\]]*\]", r"\1", text)
    return re.sub(r"(?:\w+\.)+(\w+)", r"\1", text).replace("NoneType", "None")


def as_markdown(text: str) -> str:
    """Text of a docstring with Markdown's marks for code."""
    return text.replace("``", "`")


def cell(text: str) -> str:
    """Text that a table's cell can hold."""
    return " ".join(text.split()).replace("|", "\\|")
