"""Detects functions that treat a list of messages as text."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

from rm_plugins.samples import Sample
from rm_plugins.scores import FloatArray

_READS = frozenset(("completion_text", "dumps", "messages", "repr", "str", "text_messages", "text_of_turns"))
"""Names in the code of a function that reads what messages say."""
_FEWEST = 4
_MOST_FUNCTIONS = 200


def are_equal_for_different_answers(values: FloatArray, samples: Sequence[Sample]) -> bool:
    """Whether all scores of a batch are one number, although its conversations have several different completions.

    Args:
        values: float64 [N].
        samples: [N].
    """
    if len(values) < _FEWEST or not (values == values[0]).all():
        return False
    if not all(sample.is_conversational for sample in samples):
        return False
    seen: set[bytes] = set()
    for sample in samples:
        seen.add(sample.key)
        if len(seen) == _FEWEST:
            return True
    return False


def reads_contents(function: Callable[..., Any]) -> bool:
    """Whether a function, or one that it calls, reads the contents of messages; true where that cannot be known from its code.

    >>> reads_contents(lambda completions: [len(completion) for completion in completions])
    False
    >>> reads_contents(lambda completions: [len(completion[0]["content"]) for completion in completions])
    True
    """
    functions = list(islice(_called_functions(function), _MOST_FUNCTIONS))
    if not functions or len(functions) == _MOST_FUNCTIONS:
        return True
    return any(_reads(code) for one in functions for code in _nested(one.__code__))


def _reads(code: CodeType) -> bool:
    return "content" in code.co_consts or not _READS.isdisjoint(code.co_names)


def _nested(code: CodeType) -> Iterator[CodeType]:
    """The code of a function and of those inside it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _nested(constant)


def _called_functions(function: Callable[..., Any]) -> Iterator[FunctionType]:
    """A function and the Python functions that its code names, and those that theirs names."""
    pending: list[Any] = [function]
    seen: set[int] = set()
    while pending:
        one = pending.pop()
        if isinstance(one, partial):
            pending += [one.func, *one.args, *one.keywords.values()]
            continue
        if isinstance(one, MethodType):
            one = one.__func__
        elif not isinstance(one, (FunctionType, ModuleType, type)) and isinstance(getattr(one, "__call__", None), MethodType):  # noqa: B004
            one = one.__call__.__func__
        if not isinstance(one, FunctionType) or id(one) in seen:
            continue
        seen.add(id(one))
        yield one
        pending += _named_values(one)


def _named_values(function: FunctionType) -> Iterator[Any]:
    """What a function's code may call: globals, attributes of the modules among them, and what it closes over."""
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # it is empty
            continue
    for code in _nested(function.__code__):
        for name in code.co_names:
            value = function.__globals__.get(name)
            if isinstance(value, ModuleType):
                yield from (getattr(value, attribute, None) for attribute in code.co_names)
            else:
                yield value
