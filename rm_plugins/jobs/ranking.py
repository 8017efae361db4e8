"""The rows that ``rank`` writes: ordered lists, the best completions, or preference pairs, made from scored prompts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any, Literal, TypeAlias

import numpy as np

import rm_plugins as rm
from rm_plugins.data.rows import row_samples
from rm_plugins.data.scored_rows import ScoredRow
from rm_plugins.errors import DataError
from rm_plugins.samples import PROMPT_COLUMNS

Pairs: TypeAlias = Literal["best-worst", "best-random", "all"]
PAIRS: tuple[Pairs, ...] = ("best-worst", "best-random", "all")


@dataclass(slots=True)
class ScoredPrompt:
    """A prompt with all its completions.

    Args:
        prompt: Text or messages.
        beside: ``tools`` and ``chat_template_kwargs``, where any of the prompts has them.
        written: The completions in the form of the input.
        completions: The completions as text if the prompt is text, else as messages.
        scores: None for an abstention.
        gold: Scores of a second reward, or known labels; empty where there are none.
        finished: Whether the policy ended each completion itself; empty where that is unknown.
    """

    prompt: Any
    beside: dict[str, Any] = field(default_factory=dict)
    written: list[Any] = field(default_factory=list)
    completions: list[Any] = field(default_factory=list)
    scores: list[float | None] = field(default_factory=list)
    gold: list[float | None] = field(default_factory=list)
    finished: list[bool] = field(default_factory=list)

    @property
    def order(self) -> list[int]:
        """The positions of the completions, best first, abstentions last."""
        return sorted(range(len(self.scores)), key=lambda place: (self.scores[place] is None, -(self.scores[place] or 0.0)))

    @property
    def details(self) -> dict[str, list[Any]]:
        """The further columns of completions, by name."""
        columns: dict[str, list[Any]] = {"score": self.scores, "gold_score": self.gold, "finished": self.finished}
        return {name: column for name, column in columns.items() if len(column) == len(self.scores)}

    @property
    def begin(self) -> dict[str, Any]:
        """The first columns of every row made from it."""
        return {"prompt": self.prompt, **self.beside}


@dataclass(frozen=True, slots=True)
class Rule:
    """Which completions and pairs are good enough.

    Args:
        min_score: The lowest allowed score of a best or chosen completion.
        min_margin: By how much it must exceed the mean of its prompt's scores, or the rejected one.
        max_margin: By how much it may exceed the rejected one at most.
        finished_only: Whether completions that were cut off by the limit on tokens are left out.
    """

    min_score: float | None = None
    min_margin: float | None = None
    max_margin: float | None = None
    finished_only: bool = False

    def allows_pair(self, margin: float) -> bool:
        """Whether two scores that differ by `margin` make a pair."""
        return margin > 0 and margin >= (self.min_margin or 0) and (self.max_margin is None or margin <= self.max_margin)


# --- Prompts from rows ----------------------------------------------------------------------------------------------------


def first_completions(rows: Iterable[Mapping[str, Any]], n: int, beside: Sequence[str] = ()) -> Iterator[dict[str, Any]]:
    """Rows with at most the first `n` completions of each prompt; rows that would have none are left out.

    Args:
        rows: A prompt's completions are a list, or those of all rows with this prompt.
        n: How many.
        beside: Columns with one value per completion, which are cut as well.

    Raises:
        DataError: A row has no samples.
    """
    seen: Counter[bytes] = Counter()
    for number, row in enumerate(rows, start=1):
        samples = row_samples(row, f"row {number}").samples
        if not samples:
            continue
        key = _row_key(samples, number)
        room = n - seen[key]
        seen[key] += min(len(samples), room)
        if len(samples) <= room:
            yield dict(row)
        elif room > 0 and "completions" in row:
            columns = [name for name in beside if isinstance(row.get(name), list) and len(row[name]) == len(samples)]
            yield {**row, **{name: row[name][:room] for name in ("completions", *columns)}}
        elif room > 0:
            raise DataError(
                f"row {number} has 'chosen' and 'rejected', so --n cannot choose its first completions. Leave --n out, or give "
                "'completions'."
            )


def scored_prompts(rows: Sequence[ScoredRow], golds: Sequence[list[float | None]] = ()) -> list[ScoredPrompt]:
    """The prompts of scored rows with all their completions, in the order of their first rows.

    Args:
        rows: A prompt's completions are a list, or those of all rows with this prompt.
        golds: Gold scores of each row's completions; empty where there are none.
    """
    prompts: dict[bytes, ScoredPrompt] = {}
    for number, (scored, values) in enumerate(zip(rows, golds or [[]] * len(rows), strict=True), start=1):
        row, samples = scored.row, row_samples(scored.row).samples
        if not samples:
            continue
        beside = {name: row[name] for name in PROMPT_COLUMNS if row.get(name) is not None}
        prompt = prompts.setdefault(_row_key(samples, number), ScoredPrompt(samples[0].prompt, beside))
        prompt.written += [_as_written(row, sample) for sample in samples]
        prompt.completions += [sample.completion for sample in samples]
        prompt.scores += scored.scores
        prompt.gold += values
        finished = row.get("finished")
        finished = finished if isinstance(finished, list) else [finished]
        if len(finished) == len(samples) and all(isinstance(value, bool) for value in finished):
            prompt.finished += finished
    names = [name for name in PROMPT_COLUMNS if any(name in prompt.beside for prompt in prompts.values())]
    # Rows of a dataset have the same columns. TRL unpacks the second one, so it must not be null.
    for prompt in prompts.values():
        prompt.beside = {name: prompt.beside.get(name, {} if name == "chat_template_kwargs" else None) for name in names}
    return list(prompts.values())


def _row_key(samples: Sequence[rm.Sample], number: int) -> bytes:
    """A key that rows of the same prompt share; each row without a prompt has its own, as it may answer any question."""
    return samples[0].prompt_key if samples[0].prompt else f"row {number}".encode()


def _as_written(row: Mapping[str, Any], sample: rm.Sample) -> Any:
    """The completion in the form of the input: a text under a conversational prompt stays a text."""
    written = row.get("completion") if "completion" in row else (row.get("completions") or [None])[0]
    if isinstance(written, str) and not isinstance(sample.completion, str):
        return sample.completion[0]["content"]
    return sample.completion


# --- Rows from prompts ----------------------------------------------------------------------------------------------------


def ranked_rows(prompts: Iterable[ScoredPrompt], best: int | None) -> Iterator[dict[str, Any]]:
    """One row per prompt, with its completions ordered best first.

    Args:
        prompts: Scored prompts.
        best: How many are kept; with 1, ``completion`` and ``score`` replace the lists.
    """
    for scored in prompts:
        order = scored.order[:best]
        row = scored.begin
        columns = {"completion": scored.written, **scored.details}
        if best == 1:
            row |= {name: column[order[0]] for name, column in columns.items()}
        else:
            row |= {_several(name): [column[place] for place in order] for name, column in columns.items()}
        yield {**row, "order": order}


def _several(name: str) -> str:
    return name if name == "finished" else f"{name}s"


def best_rows(prompts: Iterable[ScoredPrompt], best: int, rule: Rule, left_out: Counter[str]) -> Iterator[dict[str, Any]]:
    """A row for each of the best completions of a prompt, as TRL's ``SFTTrainer`` takes them.

    Args:
        prompts: Scored prompts.
        best: The most completions per prompt; the same text counts once.
        rule: Which are good enough.
        left_out: Gets the number of prompts that are left out, by reason.
    """
    for scored in prompts:
        candidates = _candidates(scored, rule)
        known = [score for score in scored.scores if score is not None]
        least = max(
            -np.inf if rule.min_score is None else rule.min_score,
            -np.inf if rule.min_margin is None or not known else float(np.mean(known)) + rule.min_margin,
        )
        good = [place for place, score in candidates.items() if score >= least]
        if not good:
            left_out["no completion that is good enough" if candidates else "no completion that counts"] += 1
        for place in good[:best]:
            row = {**scored.begin, "completion": scored.completions[place]}
            yield row | {name: column[place] for name, column in scored.details.items()}


def pair_rows(
    prompts: Iterable[ScoredPrompt], pairs: Pairs, rule: Rule, seed: int, left_out: Counter[str]
) -> Iterator[dict[str, Any]]:
    """Preference pairs of completions of one prompt, as TRL's ``DPOTrainer`` takes them.

    Args:
        prompts: Scored prompts.
        pairs: ``best-worst``; ``best-random``, which is the best one and a random other; or ``all``.
        rule: Which are good enough.
        seed: The seed of the random choice.
        left_out: Gets the number of prompts that are left out, by reason.
    """
    for number, scored in enumerate(prompts):
        candidates = _candidates(scored, rule)
        if len(candidates) < 2:
            left_out["fewer than two different completions that count"] += 1
            continue
        allowed = [
            (chosen, rejected)
            for chosen, rejected in _compared(list(candidates), pairs)
            if rule.allows_pair(candidates[chosen] - candidates[rejected])
            and (rule.min_score is None or candidates[chosen] >= rule.min_score)
        ]
        if not allowed:
            left_out["no pair that is good enough"] += 1
        if pairs == "best-random" and allowed:
            allowed = [allowed[int(np.random.default_rng([seed, number]).integers(len(allowed)))]]
        for chosen, rejected in allowed:
            row = {**scored.begin, "chosen": scored.completions[chosen], "rejected": scored.completions[rejected]}
            for name, column in scored.details.items():
                row |= {f"chosen_{name}": column[chosen], f"rejected_{name}": column[rejected]}
            yield {**row, "margin": candidates[chosen] - candidates[rejected]}


def _compared(places: list[int], pairs: Pairs) -> Iterable[tuple[int, int]]:
    """The pairs of a better and a worse completion that are considered, by position."""
    if pairs == "all":
        return combinations(places, 2)
    others = places[-1:] if pairs == "best-worst" else places[1:]
    return ((places[0], other) for other in others)


def _candidates(scored: ScoredPrompt, rule: Rule) -> dict[int, float]:
    """The scores of the completions that count, by position, best first: each text once, and only finished ones if asked for."""
    if rule.finished_only and len(scored.finished) != len(scored.scores):
        raise DataError(
            "--finished-only needs rows with 'finished', true or false for each completion, as --generate writes them."
        )
    places: dict[bytes, int] = {}
    for place in scored.order:
        if not rule.finished_only or scored.finished[place]:
            places.setdefault(rm.Sample(scored.prompt, scored.completions[place]).key, place)
    return {place: score for place in places.values() if (score := scored.scores[place]) is not None}
