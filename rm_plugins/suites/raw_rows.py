"""The rows of a benchmark's dataset, checked before anything is made of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from rm_plugins.errors import DataError, did_you_mean

if TYPE_CHECKING:
    from rm_plugins.suites.suite import Suite


class Expected(NamedTuple):
    """What a column holds, in words, and whether a value is that."""

    what: str
    holds: Callable[[Any], bool]


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes))


def _has_items(value: Any) -> bool:
    return _is_list(value) and len(value) > 0


ANYTHING = Expected("a value", lambda value: True)
LIST = Expected("a list", _is_list)
TEXT = Expected("text", lambda value: isinstance(value, str))
TEXTS = Expected("a list of texts", lambda value: _has_items(value) and all(isinstance(text, str) for text in value))
PROMPT = Expected("text or messages", lambda value: isinstance(value, str) or _has_items(value))
FLAGS = Expected("a list of true and false", lambda value: _has_items(value) and all(flag in (0, 1) for flag in value))


@dataclass(frozen=True, slots=True)
class RawRow:
    """A row that has every column that its benchmark needs.

    Args:
        suite: The benchmark's name.
        number: Of the row, from 1.
        columns: Its columns by name.
    """

    suite: str
    number: int
    columns: Mapping[str, Any]

    def __getitem__(self, name: str) -> Any:
        """The value of a column."""
        return self.columns[name]

    def one_of(self, name: str, allowed: Iterable[str]) -> str:
        """The value of a column that names one of several things.

        Raises:
            DataError: It names none of them.
        """
        allowed = list(allowed)
        if self[name] not in allowed:
            raise self.refused(f"{name!r} is {self[name]!r:.80}. {did_you_mean(str(self[name]), allowed)}")
        return str(self[name])

    def messages(self, name: str = "prompt") -> list[Mapping[str, Any]]:
        """A prompt as messages: text is one turn of the user, as in the benchmarks' own programs."""
        prompt = self[name]
        return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)

    def refused(self, message: str) -> DataError:
        """An error that names the row."""
        return DataError(f"{self.suite}, row {self.number}: {message}")


def raw_rows(suite: Suite, raw: Iterable[Mapping[str, Any]], expected: Mapping[str, Expected]) -> Iterator[RawRow]:
    """The rows of a benchmark's dataset, one after the other.

    Args:
        suite: The benchmark.
        raw: The rows.
        expected: What its columns hold, by name. Null counts as absent.

    Raises:
        DataError: A row lacks a column, or it holds something else; the message says what a row has.
    """
    for number, columns in enumerate(raw, start=1):
        row = RawRow(suite.name, number, columns)
        for name, wanted in expected.items():
            if columns.get(name) is None:
                needed = ", ".join(f"{name!r} ({what})" for name, (what, _) in expected.items())
                raise row.refused(
                    f"there is no {name!r}; it has the columns {', '.join(map(repr, columns)) or 'none'}. A row of "
                    f"{' or '.join(suite.sources)} has {needed}."
                )
            if not wanted.holds(columns[name]):
                raise row.refused(f"{name!r} is {columns[name]!r:.80}; {wanted.what} is expected.")
        yield row
