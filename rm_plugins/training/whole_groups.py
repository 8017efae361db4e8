"""Whole groups across the processes of a training: each group is scored in one process, and its scores return to their rows' owners.

A reward that compares samples needs all samples of a group in one batch. TRL's GRPO and RLOO do not provide this (as read in 1.12 and
1.16):

- Their `RepeatSampler` repeats each prompt `num_generations` times in a row, and accelerate gives each process one contiguous share of
  ``per_device_train_batch_size * steps_per_generation`` rows. Unless that is a multiple of `num_generations`, a group is split. In an
  evaluation the share is ``per_device_eval_batch_size`` rows.
- Reward functions are called once per generation batch, with the whole share of the process. The batch is then shuffled and cut into the
  micro-batches of gradient accumulation, so accumulation splits no group further.
- Rewards are gathered afterwards, to compute advantages. A reward function itself sees only its process's share.

Online DPO has the two completions of a prompt in one process, and PPO one completion per prompt. A prompt that several processes have is
one group there, too.
"""

from __future__ import annotations

import pickle
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace

import numpy as np

from rm_plugins.errors import ProcessError, RmPluginsError, ScoringError, UnsupportedError, plain_error
from rm_plugins.groups import group_keys
from rm_plugins.handed_over import HandedOver, handed_now, handed_over
from rm_plugins.processes import all_gathered, process_count, process_rank
from rm_plugins.provider import Provider
from rm_plugins.providers.combinators.parts import groupings
from rm_plugins.providers.function import FunctionProvider
from rm_plugins.samples import Sample
from rm_plugins.scores import Scores, joined

_KEYS = "the groups of a batch"
_SAMPLES = "the samples of split groups"
_SCORES = "the scores of split groups"
_ENVIRONMENTS = "environments"

Keys = Sequence[Sequence[str | None]]
"""For each thing that a reward groups by, the key of each sample (`rm_plugins.groups.group_keys`)."""


def scored_in_whole_groups(
    provider: Provider, samples: Sequence[Sample], score: Callable[[Sequence[Sample]], Scores]
) -> Scores:
    """The scores of this process's share of a batch, each group scored as a whole. All processes must call this, also with an empty share.

    A group that is split over processes is scored in the process that has most of its rows; of several, in the first one. There its rows
    have the order of the whole batch. Groups that are whole stay where they are, and every sample is scored once. Where the
    reward compares nothing, or there is one process, this is ``score(samples)``, and nothing is exchanged.

    Otherwise all processes exchange the same things in the same order, with `rm_plugins.processes.all_gathered`:

    1. the keys of the groups, in every batch
    2. the samples that move, in batches with a split group
    3. what `score` itself exchanges, such as scores for running statistics
    4. the scores of samples that moved, or what has failed, in every batch

    Args:
        provider: The reward; the same in all processes.
        samples: This process's share, which may be empty.
        score: Scores samples with the reward. Where it exchanges with other processes, it must do so before it raises.

    Raises:
        UnsupportedError: A group is split, and a function of the reward takes what the trainer passes for the rows of this process.
        ProcessError: Scoring failed in another process, or the processes are out of step.
        RmPluginsError: What `score` raised in this process.
    """
    by = groupings(provider) if process_count() > 1 else ()
    if not by:
        return score(samples)
    rank = process_rank()
    handed = handed_now()
    every = all_gathered(_Share.of(provider, samples, by, handed), _KEYS)
    _raise_told(provider, [share.told for share in every])
    plan = whole_groups([share.keys for share in every])
    if plan.moves and (bound := next((share.bound for share in every if share.bound), "")):
        raise UnsupportedError(
            f"The reward {provider.called} compares the samples of a group, and a group of this batch is spread over processes, but "
            f"{bound}, which belongs to the rows of one process. Make the share of a process a multiple of the group: "
            "per_device_train_batch_size * steps_per_generation (in an evaluation, per_device_eval_batch_size) a multiple of "
            "num_generations. Or leave this parameter out of the function."
        )
    failure: Exception | None = None
    here = [samples[row] for owner, row in plan.scored[rank] if owner == rank]
    if plan.moves:
        try:
            here = _exchanged(samples, plan, rank)
        except ProcessError:
            raise
        except Exception as error:
            here, failure = [], error
    answer, scores = _Answer(), Scores(np.empty(0))
    try:
        with handed_over(_of_any_row(handed)) if plan.moves else nullcontext():
            scores = score(here)  # also if something has failed: it may exchange with other processes
        answer = _Answer.of(scores, plan, rank)
    except ProcessError:  # the processes are out of step
        raise
    except Exception as error:  # the other processes wait for an answer
        failure = failure or error
    answers = all_gathered(answer if failure is None else _Answer(told=_told(failure)), _SCORES)
    if failure is not None:
        raise _without_rows(failure) if plan.moves else failure
    _raise_told(provider, [answer.told for answer in answers])
    return _returned(scores, answers, plan, rank, len(samples)) if plan.moves else scores


Place = tuple[int, int]
"""A row: the process that owns it, and its position there."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Where the rows of a batch are scored.

    Args:
        scored: By process, the rows that it scores, in the order of the whole batch.
        moves: Which of them another process owns, by owner and scorer, in that order.
    """

    scored: Sequence[Sequence[Place]]
    moves: Mapping[tuple[int, int], Sequence[Place]]


def whole_groups(keys: Sequence[Keys]) -> Plan:
    """Where rows are scored, so that each group is whole.

    Args:
        keys: By process, the keys of its rows. Rows that are equal by one of several groupings are scored together.

    >>> whole_groups([[["a", "b"]], [["b", "b", None]]]).scored
    [[(0, 0)], [(0, 1), (1, 0), (1, 1), (1, 2)]]
    """
    places = [(rank, row) for rank, of_process in enumerate(keys) for row in range(len(of_process[0]))]
    groups = _Groups(places)
    for number in range(len(keys[0])):
        firsts: dict[str, Place] = {}
        for rank, row in places:
            if key := keys[rank][number][row]:
                groups.join((rank, row), firsts.setdefault(key, (rank, row)))
    owners: dict[Place, Counter[int]] = defaultdict(Counter)
    for place in places:
        owners[groups.first(place)][place[0]] += 1
    scorers = {first: min(counts, key=lambda rank: (-counts[rank], rank)) for first, counts in owners.items()}
    scored: list[list[Place]] = [[] for _ in keys]
    moves: dict[tuple[int, int], list[Place]] = defaultdict(list)
    for place in places:
        scorer = scorers[groups.first(place)]
        scored[scorer].append(place)
        if scorer != place[0]:
            moves[place[0], scorer].append(place)
    return Plan(scored, dict(moves))


class _Groups:
    """Disjoint sets of rows."""

    def __init__(self, places: Sequence[Place]) -> None:
        self._above = {place: place for place in places}

    def first(self, place: Place) -> Place:
        while self._above[place] != place:
            self._above[place] = place = self._above[self._above[place]]
        return place

    def join(self, one: Place, other: Place) -> None:
        one, other = self.first(one), self.first(other)
        self._above[max(one, other)] = min(one, other)


@dataclass(frozen=True, slots=True)
class _Share:
    """What a process tells the others of its share of a batch.

    Args:
        keys: For each thing that the reward groups by, the key of each row (`rm_plugins.groups.group_keys`).
        bound: Which function takes what belongs to the rows of this process; empty where none does.
        told: What has failed; empty if nothing did.
    """

    keys: Keys = ()
    bound: str = ""
    told: str = ""

    @classmethod
    def of(cls, provider: Provider, samples: Sequence[Sample], by: Sequence[str | None], handed: HandedOver) -> _Share:
        try:
            return cls([group_keys(samples, column) for column in by], _bound(provider, handed))
        except Exception as error:  # whatever a column holds; the other processes wait
            return cls(told=_told(error))


@dataclass(frozen=True, slots=True)
class _Answer:
    """What a process tells the others after scoring.

    Args:
        moved: By owner, the scores of its rows that were scored here.
        told: What has failed; empty if nothing did.
    """

    moved: Mapping[int, Scores] | None = None
    told: str = ""

    @classmethod
    def of(cls, scores: Scores, plan: Plan, rank: int) -> _Answer:
        positions = {place: position for position, place in enumerate(plan.scored[rank])}
        moved = {
            owner: portable_scores(scores.rows([positions[place] for place in places]))
            for (owner, scorer), places in plan.moves.items()
            if scorer == rank
        }
        return cls(moved)


def _exchanged(samples: Sequence[Sample], plan: Plan, rank: int) -> list[Sample]:
    """The samples that are scored here, of which other processes send some."""
    sent: dict[int, bytes] = {}
    problem: Exception | None = None
    try:
        for (owner, scorer), places in plan.moves.items():
            if owner == rank:
                sent[scorer] = pickle.dumps([samples[row] for _, row in places], pickle.HIGHEST_PROTOCOL)
    except Exception as error:  # whatever a column holds; the other processes wait
        sent, problem = {}, error
    every = all_gathered(sent, _SAMPLES)
    if problem is not None:
        raise UnsupportedError(
            "Samples of a group that is spread over processes cannot be sent to another process, because a column cannot be pickled: "
            f"{problem}. Leave the column out of the dataset, or make the share of a process a multiple of the group."
        ) from problem
    known = {place: samples[place[1]] for place in plan.scored[rank] if place[0] == rank}
    for (owner, scorer), places in plan.moves.items():
        if scorer == rank:
            if rank not in every[owner]:
                raise ScoringError(f"Process {owner} could not send its samples.")
            known.update(zip(places, pickle.loads(every[owner][rank]), strict=True))
    return [known[place] for place in plan.scored[rank]]


def _returned(scores: Scores, answers: Sequence[_Answer], plan: Plan, rank: int, size: int) -> Scores:
    """The scores of this process's own rows, from all processes that have scored some."""
    own = [(position, row) for position, (owner, row) in enumerate(plan.scored[rank]) if owner == rank]
    pieces = [scores.rows([position for position, _ in own]).scattered([row for _, row in own], size)] if own else []
    for (owner, scorer), places in plan.moves.items():
        moved = answers[scorer].moved
        if owner == rank and moved is not None:
            pieces.append(moved[rank].scattered([row for _, row in places], size))
    if not pieces:
        return scores.rows([])
    # Facts about a batch are of what was scored here, if anything was.
    metadata = scores.metadata if plan.scored[rank] else pieces[0].metadata
    return replace(joined(pieces), metadata=metadata)


def portable_scores(scores: Scores) -> Scores:
    """The scores without what may not be picklable, or means nothing elsewhere."""
    return replace(
        scores,
        metadata={name: value for name, value in scores.metadata.items() if isinstance(value, (str, int, float))},
        errors={row: plain_error(error) for row, error in scores.errors.items()},
        parts={name: portable_scores(part) for name, part in scores.parts.items()},
    )


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _raise_told(provider: Provider, told: Sequence[str]) -> None:
    """Raise what processes have told of failures."""
    if failed := [f"process {rank}: {failure}" for rank, failure in enumerate(told) if failure]:
        raise ProcessError(f"The reward {provider.called} has failed in another process ({'; '.join(failed)}).")


def _without_rows(failure: Exception) -> Exception:
    """The failure without the rows that it names: they are of the batch that was scored, not of this process's share."""
    if not isinstance(failure, RmPluginsError) or failure.rows is None:
        return failure
    return plain_error(failure).caused_by(failure)


def _bound(provider: Provider, handed: HandedOver) -> str:
    """Which function of a reward takes what of the rows of this process; empty where none does."""
    for _, part in provider.walk():
        if isinstance(part, FunctionProvider):
            taken = sorted(name for name in handed.of_rows if name in part.named or (name == _ENVIRONMENTS and part.takes_all))
            if taken:
                return f"its function {part.label!r} takes {', '.join(f'`{name}`' for name in taken)}"
    return ""


def _of_any_row(handed: HandedOver) -> HandedOver:
    """What a trainer passes that does not belong to the rows of one process."""
    return HandedOver((), {name: value for name, value in handed.whole.items() if name not in handed.of_rows}, {})
