"""Rewards from plain Python functions."""

from __future__ import annotations

import asyncio
import inspect
import os
import sys
from collections import defaultdict
from collections.abc import Callable, Coroutine, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib import import_module
from numbers import Real
from typing import Any, ClassVar

import numpy as np

from rm_plugins.errors import DataError, RmPluginsError, ScoringError, SpecError, did_you_mean
from rm_plugins.handed_over import HandedOver, handed_now
from rm_plugins.provider import Provider
from rm_plugins.providers.function_code import code_digest, function_path, held_values
from rm_plugins.samples import Sample
from rm_plugins.scores import FloatArray, Scores, joined

_TRL_PARAMETERS = ("prompts", "completions", "completion_ids")
_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_FACTORY_HINT = "If it makes the reward function, set `factory: true`."


class FunctionProvider(Provider):
    """A Python function, over samples or in the signature of TRL's reward functions.

    Args:
        function: A callable, or ``module:function``. It takes either one argument, the list of samples, or ``prompts``,
            ``completions``, ``completion_ids`` (or one of them) and any dataset columns it names (all of them if it has
            ``**kwargs``). A column that a sample does not have is left out and not made None, whatever other samples have: those
            with other columns are handed over in a call of their own. What else a trainer hands over, such as ``trainer_state``,
            reaches both forms by name. It returns one number per sample, ``None`` or NaN where it abstains. It may be ``async``.
        arguments: Further keyword arguments of the function.
        factory: Whether the function, called once with `arguments`, returns the reward function.
        concurrent: Whether it waits rather than computes, and is safe to call in another thread, so that an ensemble may have
            others score meanwhile. By default, an ``async`` function is taken to wait.

    Raises:
        SpecError: The function cannot be imported, takes neither form of arguments, or as a factory makes no function.
    """

    name: ClassVar[str] = "function"
    named: frozenset[str]
    """The parameters of the function, those that `arguments` give left aside."""

    def __init__(
        self,
        *,
        function: str | Callable[..., Any],
        arguments: Mapping[str, Any] | None = None,
        factory: bool = False,
        concurrent: bool | None = None,
    ) -> None:
        self._is_imported = isinstance(function, str)
        self.function: Callable[..., Any] = imported(function) if isinstance(function, str) else function
        self.arguments = dict(arguments or {})
        self._maker = (self.function, self.arguments) if factory else None
        if factory:
            self.function, self.arguments = _made(self.function, self.arguments), {}
        self.label = _name(self.function)
        self.concurrent = _is_async(self.function) if concurrent is None else concurrent
        self.named, self._takes_all = self._parameters()

    def __getstate__(self) -> dict[str, Any]:
        # What a factory made is often a function inside a function, which cannot be pickled; it is made again instead.
        return {name: value for name, value in vars(self).items() if name != "function" or self._maker is None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        if self._maker is not None:
            self.function = _made(*self._maker)

    def _parameters(self) -> tuple[frozenset[str], bool]:
        """What the function names, and whether it takes everything; raises for a function of no known form."""
        parameters = dict(inspect.signature(self.function).parameters)
        takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
        for name in self.arguments:
            if name not in parameters and not takes_all:
                raise SpecError(
                    f"the function {self.label!r} takes no such argument. {did_you_mean(name, parameters)}",
                    key=f"arguments.{name}",
                )
            parameters.pop(name, None)
        needed = [parameter for parameter in parameters.values() if parameter.default is parameter.empty]
        positional = [parameter.name for parameter in needed if parameter.kind in _POSITIONAL]
        # One of them is enough: TRL's own rewards are `def reward(completions, **kwargs)` or take the token ids alone.
        self._samples_as: str | None = None
        if not any(name in parameters for name in _TRL_PARAMETERS) and not (takes_all and len(positional) != 1):
            if len(positional) != 1:
                raise SpecError(
                    f"The function {self.label!r} takes ({', '.join(parameters)}). A reward function takes either one argument, "
                    f"the list of samples, or `prompts`, `completions` and any dataset columns, as TRL's do. {_FACTORY_HINT}",
                    key="function",
                )
            (self._samples_as,) = positional
        return frozenset(parameters), takes_all

    @property
    def identity(self) -> list[Any]:
        """Its settings, and the code of the function, with what it holds where it was made in memory."""
        settings, *others = super().identity
        held = None if self._is_imported else held_values(self.function)
        return [{**settings, "function": [function_path(self.function), code_digest(self.function), held]}, *others]

    def score_batch(self, samples: Sequence[Sample]) -> Scores:
        """Call the function once with all samples that have the same columns, which of a dataset are the whole batch."""
        handed = handed_now()
        alike: dict[tuple[frozenset[str], bool], list[int]] = defaultdict(list)
        for row, sample in enumerate(samples):
            alike[self._columns_taken(sample), handed.has(sample)].append(row)
        if len(alike) == 1:
            return self._answer(samples, handed)
        scored = []
        for rows in alike.values():
            try:
                scores = self._answer([samples[row] for row in rows], handed)
            except Exception as error:  # a user's function may raise anything at all
                raise self._failure_of(rows, error) from error
            scored.append(scores.scattered(rows, len(samples)))
        return joined(scored)

    def _columns_taken(self, sample: Sample) -> frozenset[str]:
        """The columns of a sample that the function is given, or that decide on how it is called."""
        names = sample.columns.keys() - self.arguments.keys()
        if self._samples_as is not None and not (self._takes_all and self._samples_as in names):
            return frozenset()
        return frozenset(names if self._takes_all else names & self.named)

    def _failure_of(self, rows: Sequence[int], error: Exception) -> RmPluginsError:
        """What a call for some of the rows raised, as an error of these rows of the batch."""
        named = error.rows or () if isinstance(error, RmPluginsError) else ()
        failed = [rows[row] for row in named if row < len(rows)] or rows
        if isinstance(error, DataError):
            return DataError(str(error), rows=failed)
        what = str(error) if isinstance(error, RmPluginsError) else f"{type(error).__name__}: {error}"
        return ScoringError(f"The provider {self.called} failed: {what}", rows=failed)

    def _answer(self, samples: Sequence[Sample], handed: HandedOver) -> Scores:
        """One call of the function, for samples that have the same columns."""
        beside = handed.to(samples)
        columns = dict.fromkeys(name for sample in samples for name in sample.columns)
        # `def reward(answer, **kwargs)` is of TRL's form where there is an answer.
        if self._samples_as is None or (self._takes_all and self._samples_as in {**columns, **beside}):
            by_row = {name: [sample.columns.get(name) for sample in samples] for name in columns}
            by_row["prompts"] = [sample.prompt for sample in samples]
            by_row["completions"] = [sample.completion for sample in samples]
            answer = self.function(**self._taken({**by_row, **beside}), **self.arguments)
        else:
            beside.pop(self._samples_as, None)
            answer = self.function(list(samples), **self._taken(beside), **self.arguments)
        if inspect.isawaitable(answer):
            answer = _awaited(answer)
        return answer if isinstance(answer, Scores) else Scores(self._numbers(answer, len(samples)))

    def _taken(self, by_name: Mapping[str, Any]) -> dict[str, Any]:
        """What the function takes of this, the arguments of the spec left aside."""
        return {
            name: value
            for name, value in by_name.items()
            if name not in self.arguments and (self._takes_all or name in self.named)
        }

    def _numbers(self, answer: object, size: int) -> FloatArray:
        if isinstance(answer, (str, bytes, Mapping, Set)) or not hasattr(answer, "__len__"):
            hint = f" {_FACTORY_HINT}" if callable(answer) else ""
            raise ScoringError(
                f"The function {self.label!r} returned {answer!r:.80}; a list of one number per sample was expected.{hint}"
            )
        items: list[Any] = list(answer)  # type: ignore[call-overload]  # sized, and not text
        if len(items) != size:
            raise ScoringError(
                f"The function {self.label!r} returned {len(items)} rewards for {size} samples; it must return exactly one "
                "per sample, None where it abstains."
            )
        values = np.empty(size)
        for row, item in enumerate(items):
            number = item.item() if hasattr(item, "item") else item
            if number is not None and not isinstance(number, Real):
                raise ScoringError(
                    f"The function {self.label!r} returned {item!r:.80} for item {row}; a number or None was expected."
                )
            values[row] = np.nan if number is None else float(number)
        return values


def _name(function: Callable[..., Any]) -> str:
    while isinstance(function, partial):  # TRL's metrics have the name of what is inside
        function = function.func
    return str(getattr(function, "__name__", type(function).__name__))


def _is_async(function: Callable[..., Any]) -> bool:
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(getattr(function, "__call__", None))  # noqa: B004


def _made(factory: Callable[..., Any], arguments: Mapping[str, Any]) -> Callable[..., Any]:
    """The reward function that a factory makes of its arguments."""
    try:
        inspect.signature(factory).bind(**arguments)
    except TypeError as error:
        raise SpecError(
            f"they do not fit the factory {_name(factory)}{inspect.signature(factory)}: {error}.", "arguments"
        ) from error
    made = factory(**arguments)
    if not callable(made):
        raise SpecError(
            f"the factory {_name(factory)!r} made {made!r:.80}, and no reward function. If it is one itself, leave `factory` out.",
            key="function",
        )
    return made  # type: ignore[no-any-return]  # anything callable


def imported(text: str) -> Callable[..., Any]:
    """The function that ``module:function`` names; the working directory is looked in as well.

    Raises:
        SpecError: It cannot be imported, or is no function.
    """
    module, _, path = text.partition(":")
    if not path:
        raise SpecError(f"{text!r} must have the form module:function.", key="function")
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.insert(0, os.getcwd())  # a console script does not look where its user stands
    try:
        named: Any = import_module(module)
        for part in path.split("."):
            named = getattr(named, part)
    except Exception as error:  # a user's module may raise anything at all
        raise SpecError(f"{text!r} cannot be imported: {type(error).__name__}: {error}.", key="function") from error
    if not callable(named):
        raise SpecError(f"{text!r} is {type(named).__name__}, not a function.", key="function")
    return named  # type: ignore[no-any-return]  # anything callable


def _awaited(answer: Any) -> Any:
    async def wait() -> Any:
        return await answer

    return _run(wait())


def _run(coroutine: Coroutine[Any, Any, Any]) -> Any:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(coroutine)
    # Inside a running loop (a notebook), the answer is waited for in a loop of its own.
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, coroutine).result()
