"""A Python function that compares two samples."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from typing import Any, ClassVar

import numpy as np

from rm_plugins.comparisons.comparer import Comparer, Comparison, Verdicts
from rm_plugins.errors import SpecError
from rm_plugins.function_code import function_facts, function_path, function_place, raised_at
from rm_plugins.imported_function import imported
from rm_plugins.samples import Sample


class FunctionComparer(Comparer):
    """A function of two samples: the probability that the first is better.

    It returns a number from 0 to 1, with 0.5 for a tie; or true or false; or None or NaN for no verdict. A comparison for which it raises
    an exception, or returns anything else, has failed.

    Args:
        function: A callable of the first and the second `rm_plugins.Sample`, or ``module:function``.
        arguments: Further keyword arguments of the function.
        concurrent: Whether it mostly waits and may run in several threads at once, beside other members of an ensemble.

    Raises:
        SpecError: The function cannot be imported, or does not take two samples and the arguments.

    >>> def longer(first, second):
    ...     return len(first.completion_text) > len(second.completion_text)
    >>> samples = [Sample("Q", "long"), Sample("Q", "longer")]
    >>> FunctionComparer(function=longer).compare(samples, [Comparison(0, 1), Comparison(1, 0)]).probabilities.tolist()
    [0.0, 1.0]
    """

    name: ClassVar[str] = "function"
    keys_without_effect: ClassVar[frozenset[str]] = frozenset({"concurrent"})

    def __init__(
        self, *, function: str | Callable[..., Any], arguments: Mapping[str, Any] | None = None, concurrent: bool = False
    ) -> None:
        self._imported_as = function if isinstance(function, str) else ""
        self.function: Callable[..., Any] = imported(function) if isinstance(function, str) else function
        self.arguments = dict(arguments or {})
        self.concurrent = concurrent
        try:
            inspect.signature(self.function).bind(None, None, **self.arguments)
        except TypeError as error:
            raise SpecError(
                f"{self._shown} cannot be called with two samples{' and the arguments' if self.arguments else ''}: {error}. It needs the "
                "form FUNCTION(first, second).",
                key="function",
            ) from error

    @property
    def _shown(self) -> str:
        place = function_place(self.function)
        return f"the function {function_path(self.function)!r}{f' ({place})' if place else ''}"

    @property
    def identity(self) -> dict[str, Any]:
        """The code of the function, with what it holds if it was made in memory, and its arguments."""
        return {"function": function_facts(self.function, self._imported_as), "arguments": self.arguments}

    def compare(self, samples: Sequence[Sample], asked: Sequence[Comparison]) -> Verdicts:
        """Call the function once for each comparison."""
        probabilities = np.full(len(asked), np.nan)
        errors: dict[int, str] = {}
        for place, comparison in enumerate(asked):
            try:
                answer = self.function(samples[comparison.first], samples[comparison.second], **self.arguments)
            except Exception as error:  # a user's function may raise anything at all
                at = raised_at(self.function, error)
                errors[place] = f"{self._shown} failed: {type(error).__name__}: {error}{f' ({at})' if at else ''}"
                continue
            if (probability := _probability(answer)) is None:
                errors[place] = f"{self._shown} returned {answer!r:.80}; a number from 0 to 1, true, false or None was expected"
            else:
                probabilities[place] = probability
        return Verdicts(probabilities, errors)


def _probability(answer: object) -> float | None:
    """The probability that a function returned, NaN for no verdict; None if it is not one."""
    if answer is None:
        return math.nan
    try:
        number = answer.item() if hasattr(answer, "item") else answer  # NumPy, torch
        probability = float(number) if isinstance(number, Real) else math.inf
    except (ArithmeticError, RuntimeError, TypeError, ValueError):  # several numbers, or one that is too large
        return None
    return None if probability < 0 or probability > 1 else probability
