"""The result of scoring a batch of samples: `Scores`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from rm_plugins.errors import MissingDependencyError, RmPluginsError, ScoringError
from rm_plugins.html_table import html_table

if TYPE_CHECKING:
    import pandas

FloatArray: TypeAlias = NDArray[np.float64]

MEMBER = "member"
"""The kind of the parts that each score what the whole scores; see `Scores.kind`."""

_SHOWN_ROWS = 20
_SHOWN_VALUES = 6
_SHOWN_NAMES = 3


@dataclass(frozen=True, slots=True)
class TokenCounts:
    """How long the samples of a batch are for the models that scored them.

    Args:
        used: int64 [N], the tokens that all models together were given for each sample.
        truncated: bool [N], where a model was not given all of them.
    """

    used: NDArray[np.int64]
    truncated: NDArray[np.bool_]

    def __add__(self, other: TokenCounts) -> TokenCounts:
        return TokenCounts(self.used + other.used, self.truncated | other.truncated)

    def rows(self, rows: Sequence[int]) -> TokenCounts:
        """The counts of some of the samples, in this order."""
        chosen = np.asarray(rows, dtype=np.intp)
        return TokenCounts(self.used[chosen], self.truncated[chosen])

    def scattered(self, rows: Sequence[int], size: int) -> TokenCounts:
        """These counts at positions `rows` of a batch of `size`, 0 everywhere else."""
        used, truncated = np.zeros(size, dtype=np.int64), np.zeros(size, dtype=np.bool_)
        used[list(rows)], truncated[list(rows)] = self.used, self.truncated
        return TokenCounts(used, truncated)


class StepReward(NamedTuple):
    """The reward of a step of a completion.

    Args:
        end: Where the step ends in `Sample.completion_text`, in characters from its beginning.
        reward: What the step adds to the sample's score.
    """

    end: int
    reward: float


@dataclass(frozen=True, slots=True, repr=False)
class Scores:
    """The scores of a batch of N samples, with details and errors; a table in notebooks.

    Args:
        values: float64 [N], one reward per sample, NaN where the provider abstains.
        details: Named per-sample extras, each float64 [N], such as the spread of an ensemble.
        metadata: Facts about the batch as a whole, such as how many samples were truncated.
        errors: The error of each row that failed, by row; abstentions have none. The row's value is NaN. The provider's ``on_error``
            decides what happens to these rows; the others keep their scores.
        parts: By name, the scores [N] of what the reward is made of: an ensemble's members, a model's heads, the criteria of a
            rubric.
        kind: What these scores are as a part of others, such as ``member`` or ``head``; it begins their name where scores are written
            out (`columns`).
        tokens: How long the samples were for the models; None where no model scored.
        steps: The steps of each sample in order, [N], whose rewards add up to its score. PPO gives each step's reward at its end. Empty
            or None where a score is of the whole completion.

    Raises:
        ScoringError: The arrays do not have one entry per sample, or an error is of a row that the batch does not have.

    >>> scores = Scores([0.5, float("nan")], errors={1: ScoringError("timeout")}, parts={"0": Scores([1.0, 2.0], kind="member")})
    >>> scores.failed.tolist(), list(scores.columns)
    ([False, True], ['member/0'])
    >>> scores
    Scores([0.5, nan], failed=1, parts=['0'])
    """

    values: FloatArray
    details: Mapping[str, FloatArray] = field(default_factory=dict)
    metadata: Mapping[str, Any] = field(default_factory=dict)
    errors: Mapping[int, RmPluginsError] = field(default_factory=dict, kw_only=True)
    parts: Mapping[str, Scores] = field(default_factory=dict, kw_only=True)
    kind: str = field(default="", kw_only=True)
    tokens: TokenCounts | None = field(default=None, kw_only=True, repr=False)
    steps: Sequence[Sequence[StepReward]] | None = field(default=None, kw_only=True, repr=False)

    def __post_init__(self) -> None:
        values = np.asarray(self.values, dtype=np.float64)
        if values.ndim != 1:
            raise ScoringError(f"Scores need one value per sample, [N]; got an array of shape {values.shape}.")
        details = {name: np.asarray(column, dtype=np.float64) for name, column in self.details.items()}
        for name, column in details.items():
            if column.shape != values.shape:
                raise ScoringError(f"The detail {name!r} has shape {column.shape}; {values.shape} was expected.")
        for name, part in self.parts.items():
            if len(part) != len(values):
                raise ScoringError(f"The part {name!r} has {len(part)} scores; {len(values)} were expected.")
        if self.steps is not None and len(self.steps) != len(values):
            raise ScoringError(f"There are steps of {len(self.steps)} samples; {len(values)} were expected.")
        if self.errors:
            unknown = [row for row in self.errors if not 0 <= row < len(values)]
            if unknown:
                raise ScoringError(f"Row {unknown[0]} has an error, but there are only {len(values)} samples.")
            if not np.isnan(values[list(self.errors)]).all():
                values = values.copy()
                values[list(self.errors)] = np.nan  # a sample with an error has no score
        object.__setattr__(self, "values", values)
        object.__setattr__(self, "details", details)

    def __len__(self) -> int:
        return len(self.values)

    def __repr__(self) -> str:
        values = [f"{value:.6g}" for value in self.values[:_SHOWN_VALUES].tolist()]
        facts = [f"[{', '.join(values)}{', ...' if len(self) > _SHOWN_VALUES else ''}]"]
        abstained = int(self.abstained.sum()) - len(self.errors)
        counts = {"samples": len(self) if len(self) > _SHOWN_VALUES else 0, "abstained": abstained, "failed": len(self.errors)}
        facts += [f"{name}={count}" for name, count in counts.items() if count]
        facts += [
            f"{name}={_shown_names(held)}" for name, held in {"parts": self.parts, "details": self.details}.items() if held
        ]
        return f"Scores({', '.join(facts)})"

    def _repr_html_(self) -> str:
        """The first rows as a table in a notebook; a missing score is an empty cell."""
        columns = self.columns
        header = ["", "score", *columns, *(["error"] if self.errors else [])]
        rows = []
        for row in range(min(len(self), _SHOWN_ROWS)):
            numbers = (column[row] for column in (self.values, *columns.values()))
            cells: list[object] = [row, *(None if np.isnan(number) else number for number in numbers)]
            rows.append([*cells, self.errors.get(row)] if self.errors else cells)
        return html_table(header, rows, limit=_SHOWN_ROWS, total=len(self))

    def to_pandas(self) -> pandas.DataFrame:
        """A row for each sample, with the columns ``score``, those of `columns`, and ``error``, which is None where there is none.

        Raises:
            MissingDependencyError: pandas is not installed.
        """
        try:
            import pandas
        except ImportError as error:
            raise MissingDependencyError("Scores.to_pandas needs the package pandas: pip install pandas.") from error
        errors = [str(self.errors[row]) if row in self.errors else None for row in range(len(self))]
        frame = pandas.DataFrame({"score": self.values, **self.columns})
        frame["error"] = pandas.Series(errors, dtype=object, index=frame.index)
        return frame

    @property
    def abstained(self) -> NDArray[np.bool_]:
        """bool [N]: where the provider gave no reward."""
        return np.isnan(self.values)

    @property
    def failed(self) -> NDArray[np.bool_]:
        """bool [N]: where there is no score because of a failure."""
        failed = np.zeros(len(self), dtype=np.bool_)
        failed[list(self.errors)] = True
        return failed

    @property
    def columns(self) -> dict[str, FloatArray]:
        """Details and parts by the names that they have where scores are written out: ``std``, ``member/0``, ``member/0/std``.

        These names are for files, the wire and trainers' metrics. In code, use `details` and `parts`.
        """
        parts = {f"{part.kind}/{name}" if part.kind else name: part for name, part in self.parts.items()}
        columns = {name: part.values for name, part in parts.items()} | dict(self.details)
        for name, part in parts.items():
            columns |= {f"{name}/{inner}": column for inner, column in part.columns.items()}
        return columns

    @property
    def members(self) -> dict[str, FloatArray]:
        """The scores of the parts that are members, float64 [N] each, by their names in `columns`."""
        return {f"{MEMBER}/{name}": part.values for name, part in self.parts.items() if part.kind == MEMBER}

    def rows(self, rows: Sequence[int]) -> Scores:
        """The scores of some of the samples, in this order."""
        chosen = np.asarray(rows, dtype=np.intp)
        places = {row: place for place, row in enumerate(chosen.tolist())}
        return replace(
            self,
            values=self.values[chosen],
            details={name: column[chosen] for name, column in self.details.items()},
            errors={places[row]: error for row, error in self.errors.items() if row in places},
            parts={name: part.rows(rows) for name, part in self.parts.items()},
            tokens=None if self.tokens is None else self.tokens.rows(rows),
            steps=None if self.steps is None else [self.steps[row] for row in chosen.tolist()],
        )

    def scattered(self, rows: Sequence[int], size: int) -> Scores:
        """These scores at positions `rows` of a batch of `size`, abstaining everywhere else."""

        def spread(column: FloatArray) -> FloatArray:
            out = np.full(size, np.nan)
            out[list(rows)] = column
            return out

        return replace(
            self,
            values=spread(self.values),
            details={name: spread(column) for name, column in self.details.items()},
            errors={int(rows[row]): error for row, error in self.errors.items()},
            parts={name: part.scattered(rows, size) for name, part in self.parts.items()},
            tokens=None if self.tokens is None else self.tokens.scattered(rows, size),
            steps=None if self.steps is None else _spread_steps(self.steps, rows, size),
        )

    @property
    def lost_steps(self) -> bool:
        """Whether the score of a part has steps, and these scores, which are made of it, have none."""
        return self.steps is None and any(part.steps is not None or part.lost_steps for part in self.parts.values())


def _spread_steps(steps: Sequence[Sequence[StepReward]], rows: Sequence[int], size: int) -> list[Sequence[StepReward]]:
    out: list[Sequence[StepReward]] = [()] * size
    for row, of_row in zip(rows, steps, strict=True):
        out[row] = of_row
    return out


def _shown_names(names: Iterable[str]) -> str:
    """The first names as a list, with dots for the others."""
    names = list(map(repr, names))
    return f"[{', '.join(names[:_SHOWN_NAMES])}{', ...' if len(names) > _SHOWN_NAMES else ''}]"


def ensemble_members(names: Iterable[str]) -> list[str]:
    """Which of the `Scores.columns` that were written to a file or sent by a server are the members of an ensemble.

    Only this function and `parts_of_columns` read those names. Members have a column with their spread. Without it they are the parts
    of a sum or a product, which do not have to agree. For scores in memory, use `Scores.parts`.

    >>> ensemble_members(["member/0", "member/0/raw", "member/1", "std"]), ensemble_members(["member/0", "member/1"])
    (['member/0', 'member/1'], [])
    """
    names = list(names)
    return [name for name in names if re.fullmatch(rf"{MEMBER}/\d+", name)] if "std" in names else []


def joined(scored: Sequence[Scores]) -> Scores:
    """Scores of disjoint rows of one batch, each [N], merged into one; at least one must be given."""
    parts = _by_name(scores.parts for scores in scored)
    counts = [scores.tokens for scores in scored if scores.tokens is not None]
    known = [scores.steps for scores in scored if scores.steps is not None]
    steps = [next(filter(None, of_row), ()) for of_row in zip(*known, strict=True)] if known else None
    return Scores(
        _laid_over([scores.values for scores in scored]),
        {name: _laid_over(columns) for name, columns in _by_name(scores.details for scores in scored).items()},
        {name: value for scores in scored for name, value in scores.metadata.items()},
        errors={row: error for scores in scored for row, error in scores.errors.items()},
        parts={name: joined(same) for name, same in parts.items()},
        kind=scored[0].kind,
        tokens=None if not counts else sum(counts[1:], counts[0]),
        steps=steps,
    )


def _by_name(mappings: Iterable[Mapping[str, Any]]) -> dict[str, list[Any]]:
    values: dict[str, list[Any]] = {}
    for mapping in mappings:
        for name, value in mapping.items():
            values.setdefault(name, []).append(value)
    return values


def _laid_over(columns: Sequence[FloatArray]) -> FloatArray:
    laid = columns[0]
    for column in columns[1:]:
        laid = np.where(np.isnan(laid), column, laid)
    return laid


def parts_of_columns(columns: Mapping[str, FloatArray]) -> tuple[dict[str, FloatArray], dict[str, Scores]]:
    """Details and members of scores that were written under the names of `Scores.columns`, on the wire or in a file."""
    details, members = {}, dict[str, dict[str, FloatArray]]()
    for name, column in columns.items():
        kind, _, rest = name.partition("/")
        number, _, inner = rest.partition("/")
        if kind == MEMBER and f"{MEMBER}/{number}" in columns:
            members.setdefault(number, {})[inner] = column
        else:
            details[name] = column
    parts = {}
    for number, inner_columns in members.items():
        values = inner_columns.pop("")
        inner_details, inner_parts = parts_of_columns(inner_columns)
        parts[number] = Scores(values, inner_details, parts=inner_parts, kind=MEMBER)
    return details, parts
