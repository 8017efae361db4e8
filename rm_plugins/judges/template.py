"""Templates of questions: Jinja in a sandbox, in which the sample's texts are data and never code."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rm_plugins.data.row_formats import without_nan
from rm_plugins.errors import DataError, SpecError, did_you_mean
from rm_plugins.rendering.written_out import written_out
from rm_plugins.samples import RenderedSample, Sample
from rm_plugins.written_settings import read_text

if TYPE_CHECKING:
    from jinja2.sandbox import ImmutableSandboxedEnvironment

SHIPPED = Path(__file__).with_name("templates")
"""The folder of the templates that come with the package."""

OF_THE_SAMPLE = ("prompt", "completion", "messages")
"""Names that every template knows: the prompt and the completion as text, and the conversation as a list of messages."""

_LARGEST_BASE, _LARGEST_EXPONENT = 1e6, 100
_ENDINGS = (".jinja", ".jinja2", ".j2", ".txt", ".md")


class Template:
    """A Jinja template of a question.

    It knows `OF_THE_SAMPLE`, the names that its user gives, and every column of the row. It can neither change values nor reach into
    Python, and the values are inserted as they are: a text with ``{{ }}`` in it stays that text.

    Args:
        source: The name of a template that comes with the package (see `shipped_templates`), a file, or the text of a template.
        key: The key of the spec, for errors.
        given: The names that `render` is given beside those of the sample.
        needed: The template must use one of these names.

    Raises:
        SpecError: The file cannot be read, the template is not valid, or it uses none of the needed names.

    >>> template = Template("Is {{ completion }} the same as {{ reference }}?")
    >>> sorted(template.names), template.render(Sample("2+2?", "4", {"reference": "four"}))
    (['completion', 'reference'], 'Is 4 the same as four?')
    """

    def __init__(
        self, source: str, *, key: str = "template", given: Collection[str] = (), needed: Collection[str] = ()
    ) -> None:
        from jinja2 import TemplateSyntaxError, meta

        self.source = _text_of(source, key)
        self.given = frozenset(given)
        environment = _environment()
        try:
            parsed = environment.parse(self.source)
            self._template = environment.from_string(self.source)
        except TemplateSyntaxError as error:
            raise SpecError(f"not a valid Jinja template: line {error.lineno}: {error.message}.", key=key) from error
        self.names = frozenset(meta.find_undeclared_variables(parsed)) - frozenset(environment.globals)
        """The names of values that it uses: those of the sample, those that it is given, and columns."""
        if next(meta.find_referenced_templates(parsed), ...) is not ...:
            raise SpecError("a template cannot include, import or extend another one. Write it out in one file.", key=key)
        if needed and not self.names & {*needed}:
            raise SpecError(
                f"the template must use {' or '.join(map(repr, needed))}, or the question would not show it.", key=key
            )

    def __reduce__(self) -> tuple[Any, ...]:
        return _made_again, (self.source, self.given)

    def render(self, sample: Sample | None = None, given: Mapping[str, Any] | None = None) -> str:
        """The question about a sample.

        Args:
            sample: The sample, whose columns can be used by name.
            given: Further values by name, which go before columns.

        Raises:
            DataError: A column that the template uses is absent, or null where it is written out, a value is not of the kind that the
                template needs, or the sample has no text.
        """
        from jinja2 import TemplateError
        from jinja2.exceptions import SecurityError

        values = {**({} if sample is None else values_of(sample)), **(given or {})}
        try:
            return self._template.render(values).strip()
        except _NullError as error:
            null = sorted(name for name in self.names & values.keys() if values[name] is None)
            column = (
                f"the column {null[0]!r}"
                if len(null) == 1
                else f"one of the columns {', '.join(map(repr, null))}"
                if null
                else "a value"
            )
            raise DataError(
                f"The template writes out {column}, which is null in this row. Leave such rows out, or use {{% if NAME is not none %}}."
            ) from error
        except SecurityError as error:
            raise DataError(f"The template does what no template may do: {error}.") from error
        except TemplateError as error:
            absent = sorted(self.names - values.keys())
            if absent and any(f"'{name}' is undefined" in str(error) for name in absent):
                columns = {} if sample is None else sample.columns
                known = (
                    did_you_mean(absent[0], columns) if columns else "It has no columns besides the prompt and the completion."
                )
                raise DataError(f"The template uses {absent[0]!r}, but the row has no such column. {known}") from error
            raise DataError(f"The template cannot be filled in: {error}.") from error
        except Exception as error:  # what the values of a row do in the template's expressions
            raise DataError(f"The template cannot be filled in: {type(error).__name__}: {error}.") from error


def values_of(sample: Sample) -> dict[str, Any]:
    """The values that a template has of a sample: its columns, and `OF_THE_SAMPLE`.

    Raises:
        DataError: The sample is token ids, or a content has a part that is not text.
    """
    if isinstance(sample, RenderedSample) and sample.token_ids is not None:
        raise DataError("A judge reads text; token ids cannot be shown to it.")
    prompt, completion = sample.prompt, sample.completion
    if isinstance(prompt, str) or isinstance(completion, str):
        roles = [("user", prompt), ("assistant", completion)]
        messages: list[dict[str, Any]] = [{"role": role, "content": text} for role, text in roles if text]
    else:
        messages = sample.text_messages
    return {
        **{name: without_nan(value) for name, value in sample.columns.items()},
        "prompt": written_out(prompt),
        "completion": written_out(completion),
        "messages": messages,
    }


def shipped_templates() -> list[str]:
    """The names of the templates that come with the package.

    >>> "pointwise" in shipped_templates()
    True
    """
    return sorted(path.stem for path in SHIPPED.glob("*.jinja"))


def _made_again(source: str, given: Collection[str]) -> Template:
    return Template(source, given=given)


def _text_of(source: str, key: str) -> str:
    if source in shipped_templates():
        return (SHIPPED / f"{source}.jinja").read_text(encoding="utf-8")
    if "{{" in source or "{%" in source or "\n" in source:
        return source
    path = Path(source)
    if path.suffix not in _ENDINGS:
        raise SpecError(
            f"{source!r} is neither a template (with {{{{ }}}} in it) nor a file that ends with {', '.join(_ENDINGS)}. "
            f"{did_you_mean(source, shipped_templates())}",
            key=key,
        )
    try:
        return read_text(path)
    except SpecError as error:
        raise SpecError(f"the template cannot be read: {error.message}", key=key) from error


class _NullError(Exception):
    """A template writes out a null."""


def _written(value: Any) -> Any:
    """What a template writes for a value: a conversation as paragraphs, and never "None", which a judge would read."""
    from jinja2 import Undefined

    if value is None:
        raise _NullError
    if callable(value) and not isinstance(value, Undefined):
        raise TypeError("it writes out a function, such as Jinja's own `range` or `dict`")
    if (
        isinstance(value, list)
        and value
        and all(isinstance(each, Mapping) and {"role", "content"} <= each.keys() for each in value)
    ):
        return written_out(value)
    return value


def _power(base: Any, exponent: Any) -> Any:
    if abs(base) > _LARGEST_BASE or abs(exponent) > _LARGEST_EXPONENT:
        raise OverflowError("a power of such numbers may take hours")
    return base**exponent


@cache
def _environment() -> ImmutableSandboxedEnvironment:
    from jinja2 import StrictUndefined
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, finalize=_written
    )
    environment.intercepted_binops = frozenset({"**"})  # which then no compilation computes either
    environment.binop_table["**"] = _power
    environment.filters["tojson"] = lambda value, indent=None: json.dumps(value, ensure_ascii=False, indent=indent, default=str)
    return environment
