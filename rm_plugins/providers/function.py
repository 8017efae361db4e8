"""Rewards from plain Python functions."""

from __future__ import annotations

import asyncio
import inspect
import warnings
from collections import defaultdict
from collections.abc import Callable, Coroutine, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from numbers import Real
from typing import Any, ClassVar

import numpy as np

from rm_plugins.errors import DataError, RmPluginsError, ScoringError, SpecError, did_you_mean
from rm_plugins.function_code import function_facts, function_place, raised_at
from rm_plugins.handed_over import HandedOver, handed_now
from rm_plugins.imported_function import imported
from rm_plugins.provider import Provider
from rm_plugins.providers.message_lists import are_equal_for_different_answers, reads_contents
from rm_plugins.samples import Sample
from rm_plugins.scores import FloatArray, Scores, joined
from rm_plugins.scoring_threads import ended_by_stop

_TRL_PARAMETERS = ("prompts", "completions", "completion_ids")
_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_FACTORY_HINT = "If it makes the reward function, set `factory: true`."


class FunctionProvider(Provider):
    """A Python function, over samples or in the signature of TRL's reward functions.

    Args:
        function: A callable, or ``module:function``. It takes either one argument, the list of samples, or ``prompts``,
            ``completions``, ``completion_ids`` (or one of them) and any dataset columns it names (all of them if it has
            ``**kwargs``). A column that a sample lacks is left out, not set to None: samples with other columns are passed in a
            separate call. A trainer's other arguments, such as ``trainer_state``, are passed by name in both forms. It returns one
            number per sample, ``None`` or NaN where it abstains. It may be ``async``.
        arguments: Further keyword arguments of the function.
        factory: Whether the function, called once with `arguments`, returns the reward function.
        concurrent: Whether it mostly waits and may run in several threads at once, beside other members of an ensemble; by default
            true for ``async`` functions.

    Raises:
        SpecError: The function cannot be imported, takes neither form of arguments, or is a factory that returns no function.
    """

    name: ClassVar[str] = "function"
    named: frozenset[str]
    """The parameters of the function, without those that `arguments` set."""
    takes_all: bool
    """Whether it also takes every other keyword argument."""

    def __init__(
        self,
        *,
        function: str | Callable[..., Any],
        arguments: Mapping[str, Any] | None = None,
        factory: bool = False,
        concurrent: bool | None = None,
    ) -> None:
        self._imported_as = function if isinstance(function, str) else ""
        self.function: Callable[..., Any] = imported(function) if isinstance(function, str) else function
        self.arguments = dict(arguments or {})
        self._maker = (self.function, self.arguments) if factory else None
        if factory:
            self.function, self.arguments = _made(self.function, self.arguments), {}
        self.label = _name(self.function)
        self.concurrent = _is_async(self.function) if concurrent is None else concurrent
        self.named, self.takes_all = self._parameters()
        self._varies = False  # whether it is known that its scores depend on what is scored

    def __getstate__(self) -> dict[str, Any]:
        # What a factory made is often a function inside a function, which cannot be pickled: it is made again.
        return {name: value for name, value in vars(self).items() if name != "function" or self._maker is None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        if self._maker is not None:
            self.function = _made(*self._maker)

    def _parameters(self) -> tuple[frozenset[str], bool]:
        """The names of the function's parameters, and whether it takes any keyword; raises where it has neither of the two forms."""
        parameters = dict(inspect.signature(self.function).parameters)
        takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
        for name in self.arguments:
            if name not in parameters and not takes_all:
                raise SpecError(
                    f"the function {self._shown} takes no such argument. {did_you_mean(name, parameters)}",
                    key=f"arguments.{name}",
                )
            parameters.pop(name, None)
        needed = [parameter for parameter in parameters.values() if parameter.default is parameter.empty]
        positional = [parameter.name for parameter in needed if parameter.kind in _POSITIONAL]
        # One of them is enough: TRL's own rewards are `def reward(completions, **kwargs)` or take the token ids alone.
        self._samples_as: str | None = None
        if not any(name in parameters for name in _TRL_PARAMETERS) and not (takes_all and len(positional) != 1):
            if len(positional) != 1:
                hint = "The names are plural, as each is a list. " if {"prompt", "completion"} & {*parameters} else ""
                raise SpecError(
                    f"The function {self._shown} takes ({', '.join(parameters)}). A reward function takes either one argument, the list "
                    f"of samples, or `prompts`, `completions` and any dataset columns, as TRL's do. {hint}{_FACTORY_HINT}",
                    key="function",
                )
            (self._samples_as,) = positional
        return frozenset(parameters), takes_all

    @property
    def _shown(self) -> str:
        """What messages call the function: its name, and the file and the line that it is in."""
        place = function_place(self.function)
        return f"{self.label!r} ({place})" if place else repr(self.label)

    @property
    def identity(self) -> list[Any]:
        """Its settings, and the code of the function, with what it holds where it was made in memory."""
        settings, *others = super().identity
        facts = [function_facts(self.function, self._imported_as)]
        if self._maker is not None:
            facts.append(function_facts(self._maker[0], self._imported_as))
        return [{**settings, "function": facts}, *others]

    def score_batch(self, samples: Sequence[Sample]) -> Scores:
        """Call the function once with all samples that have the same columns, which of a dataset are the whole batch."""
        handed = handed_now()
        alike: dict[tuple[frozenset[str], bool], list[int]] = defaultdict(list)
        for row, sample in enumerate(samples):
            alike[self._columns_taken(sample), handed.has(sample)].append(row)
        if len(alike) == 1:
            scores = self._answer(samples, handed)
        else:
            scored = []
            for rows in alike.values():
                try:
                    answer = self._answer([samples[row] for row in rows], handed)
                except RmPluginsError as error:
                    raise _of_rows(error, rows) from error
                scored.append(answer.scattered(rows, len(samples)))
            scores = joined(scored)
        self._check_varies(samples, scores)
        return scores

    def _check_varies(self, samples: Sequence[Sample], scores: Scores) -> None:
        """Warn of a function that takes a list of messages for a text, which gives every answer the same score."""
        values = scores.values[~scores.abstained]
        if self._varies or not len(values):
            return
        self._varies = bool((values != values[0]).any())
        if scores.abstained.any() or not are_equal_for_different_answers(values, samples):
            return
        self._varies = True  # so that nobody is warned twice
        if not reads_contents(self.function):
            warnings.warn(
                f"The function {self._shown} gave {values[0]:g} to all {len(values)} completions of a batch, which differ. Each is a list "
                "of messages, and the function does not read what they say: len(sample.completion) is the number of messages. Use "
                "`sample.completion_text`; in TRL's form, `completion[0]['content']`.",
                stacklevel=2,
            )

    def _columns_taken(self, sample: Sample) -> frozenset[str]:
        """The columns of a sample that the function is given, or that decide on how it is called."""
        names = sample.columns.keys() - self.arguments.keys()
        if self._samples_as is not None and not (self.takes_all and self._samples_as in names):
            return frozenset()
        return frozenset(names if self.takes_all else names & self.named)

    def _answer(self, samples: Sequence[Sample], handed: HandedOver) -> Scores:
        """One call of the function, for samples that have the same columns."""
        beside = handed.to(samples)
        columns = dict.fromkeys(name for sample in samples for name in sample.columns)
        # `def reward(answer, **kwargs)` is of TRL's form where there is an answer.
        if self._samples_as is None or (self.takes_all and self._samples_as in {**columns, **beside}):
            by_row = {name: [sample.columns.get(name) for sample in samples] for name in columns}
            by_row["prompts"] = [sample.prompt for sample in samples]
            by_row["completions"] = [sample.completion for sample in samples]
            answer = self._call(**self._taken({**by_row, **beside}))
        else:
            beside.pop(self._samples_as, None)
            answer = self._call(list(samples), **self._taken(beside))
        return answer if isinstance(answer, Scores) else Scores(self._numbers(answer, len(samples)))

    def _call(self, /, *samples: list[Sample], **named: Any) -> Any:
        """What the function returns; what it raises becomes an error that says where."""
        try:
            answer = self.function(*samples, **named, **self.arguments)
            return _awaited(answer) if inspect.isawaitable(answer) else answer
        except RmPluginsError:
            raise
        except Exception as error:  # a user's function may raise anything at all
            if isinstance(error, AttributeError) and samples and error.obj is samples[0]:
                raise ScoringError(
                    f"The function {self._shown} gets the list of all samples, and reads `{error.name}` from it as if it were one sample. "
                    f"Loop over it: def {self.label}(samples): return [... for sample in samples]."
                ) from error
            place = raised_at(self.function, error)
            at = f" ({place})" if place else ""
            raise ScoringError(f"The provider {self.called} failed: {type(error).__name__}: {error}{at}") from error

    def _taken(self, by_name: Mapping[str, Any]) -> dict[str, Any]:
        """What the function takes of this, without the arguments that the spec sets."""
        return {
            name: value
            for name, value in by_name.items()
            if name not in self.arguments and (self.takes_all or name in self.named)
        }

    def _numbers(self, answer: object, size: int) -> FloatArray:
        if isinstance(answer, (str, bytes, Mapping, Set)) or not hasattr(answer, "__len__"):
            raise ScoringError(
                f"The function {self._shown} returned {answer!r:.80}; a list of one number per sample was expected."
                f"{_hint(answer, self._samples_as)}"
            )
        items: list[Any] = list(answer)  # type: ignore[call-overload]  # sized, and not text
        if len(items) != size:
            returned = f"{len(items)} reward{'' if len(items) == 1 else 's'}"
            raise ScoringError(
                f"The function {self._shown} returned {returned} for {size} samples; it must return exactly one per sample, None where it "
                "abstains."
            )
        values = np.empty(size)
        for row, item in enumerate(items):
            try:
                number = item.item() if hasattr(item, "item") else item
            except (RuntimeError, ValueError):  # of an array or a tensor of several numbers
                number = item
            if number is not None and not isinstance(number, Real):
                raise ScoringError(
                    f"The function {self._shown} returned {item!r:.80} for item {row}; a number or None was expected."
                )
            values[row] = np.nan if number is None else float(number)
        return values


def _hint(answer: object, samples_as: str | None) -> str:
    """What to do about an answer that is not a list of numbers."""
    if answer is None:
        return " Does it lack a `return`?"
    if isinstance(answer, Real) and samples_as is not None:
        return f" It gets the list of all samples: return [... for sample in {samples_as}]."
    return f" {_FACTORY_HINT}" if callable(answer) else ""


def _of_rows(error: RmPluginsError, rows: Sequence[int]) -> RmPluginsError:
    """What a call for some of the rows raised, as an error of these rows of the batch."""
    failed = [rows[row] for row in error.rows or () if row < len(rows)] or rows
    return (DataError if isinstance(error, DataError) else ScoringError)(str(error), rows=failed)


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
            f"the factory {_name(factory)!r} returned {made!r:.80}, which is not a function. If it is itself the "
            "reward function, leave `factory` out.",
            key="function",
        )
    return made  # type: ignore[no-any-return]  # anything callable


def _awaited(answer: Any) -> Any:
    async def wait() -> Any:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None
        with ended_by_stop(partial(loop.call_soon_threadsafe, task.cancel)):
            return await answer

    return _run(wait())


def _run(coroutine: Coroutine[Any, Any, Any]) -> Any:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(coroutine)
    # Inside a running loop (a notebook), the coroutine runs in a loop of its own.
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, coroutine).result()
