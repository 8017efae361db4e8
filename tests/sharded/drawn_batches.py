"""Drawn batches of two processes, computed by the trainer's own code, whose losses, gradients and metrics are those of one process."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import fields
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import nn

from rm_plugins.engine.batch_forward import BatchForward
from rm_plugins.losses import RewardBatch
from rm_plugins.losses.loss import needs_of, own_needs
from rm_plugins.losses.needs import BATCH_NEEDS
from rm_plugins.processes import all_gathered
from rm_plugins_trl import RewardTrainer
from rm_plugins_trl.reward_training import loss_trainer
from rm_plugins_trl.reward_training.chosen_loss import chosen_regularizer
from rm_plugins_trl.reward_training.global_batch import whole_weight
from rm_plugins_trl.reward_training.language_model_head import language_model_head
from rm_plugins_trl.reward_training.reward_log import RewardLog
from rm_plugins_trl.reward_training.score_head import trained_heads
from tests.batch_forward.conftest import family_model
from tests.losses.conftest import REGULARIZERS, SPECS, attributes_of, loss_of
from tests.sharded.loss_cases import part_of
from tests.sharded.steps import Rows, backward, processes, rank, rows_of, sharded

Drawn = dict[str, Any]
EXAMPLES = 2
"""Of each loss."""
_LENGTHS = st.one_of(st.integers(1, 12), st.just(8), st.integers(60, 90))


@st.composite
def micro_batches(draw: st.DrawFn, *, fills_all: bool) -> Drawn:
    """Groups of texts, some of them for each process: of any lengths, one long row against many short ones, none at all where allowed."""
    of_processes = [
        draw(st.lists(st.lists(_LENGTHS, min_size=1, max_size=4), min_size=int(fills_all), max_size=3))
        for _ in range(processes())
    ]
    of_processes[draw(st.integers(0, processes() - 1))].append([9, 4])  # a pair, without which most losses have no value
    return {"groups": of_processes, "seed": draw(st.integers(0, 99))}


def drawn_batches(*, shards: bool) -> None:
    """Every loss on batches with gradient accumulation and drawn regularizers, with sharded or with whole weights."""
    models: dict[int, tuple[Any, Any]] = {}
    for spec in SPECS:
        _drawn_batches(spec, models, shards=shards)


def _drawn_batches(spec: dict[str, Any], models: dict[int, tuple[Any, Any]], *, shards: bool) -> None:
    @settings(
        max_examples=EXAMPLES,
        phases=[Phase.generate, Phase.shrink],
        derandomize=True,  # all processes draw the same
        database=None,
        deadline=None,
        suppress_health_check=[*HealthCheck],
    )
    @given(
        st.lists(micro_batches(fills_all=not shards), min_size=1, max_size=2),
        st.lists(st.sampled_from(REGULARIZERS), unique=True, max_size=2),
        st.booleans(),
    )
    def step(steps: list[Drawn], regularizers: list[str], synchronizes: bool) -> None:
        problem = None
        try:
            _step(spec, steps, regularizers, models, shards=shards, synchronizes=synchronizes)
        except Exception as error:
            problem = f"{type(error).__name__}: {error}"
        # All processes fail together, so that they look for a smaller example together.
        problems = [problem for problem in all_gathered(problem, "the problem of an example") if problem is not None]
        assert not problems, f"{spec}: {problems}"

    step()


def _step(
    spec: dict[str, Any],
    steps: list[Drawn],
    regularizers: list[str],
    models: dict[int, Any],
    *,
    shards: bool,
    synchronizes: bool,
) -> None:
    loss = loss_of(spec)
    heads, _ = trained_heads(loss, attributes_of(loss), None, 1)
    outputs = len(heads.names)
    if outputs not in models:
        models[outputs] = _models(outputs, shards=shards)
    plain, own = models[outputs]
    alone, ours = _Trainer(plain, spec, regularizers, 1, 0), _Trainer(_inner(own), spec, regularizers, processes(), rank())
    batches, parts = [], []
    for drawn in steps:
        batch, rows, bounds = _batch(drawn, outputs, len(attributes_of(loss)))
        begin, end = bounds[rank()], bounds[rank() + 1]
        batches.append(alone.inputs(batch, rows, 0))
        first = int(batch.groups[begin]) if begin < end else 0
        parts.append(ours.inputs(part_of(batch, begin, end), rows[begin:end], first))
    for model in (plain, own):
        model.zero_grad()
    with _one_process():
        expected = alone.step(plain, batches)
    found = ours.step(own, parts, synchronizes=synchronizes)
    _assert_same(found, expected)
    scale = max(weight.grad.abs().max().item() for weight in plain.parameters() if weight.grad is not None)
    for (name, weight), other in zip(plain.named_parameters(), _inner(own).parameters(), strict=True):
        wanted = torch.zeros_like(weight) if weight.grad is None else weight.grad
        gradient = torch.zeros_like(weight) if other.grad is None else whole_weight(other.grad)
        torch.testing.assert_close(gradient / max(scale, 1e-9), wanted / max(scale, 1e-9), rtol=1e-5, atol=1e-5, msg=name)


def _assert_same(found: dict[str, float], expected: dict[str, float]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert np.isclose(found[name], value, rtol=1e-5, atol=1e-5, equal_nan=True), f"{name} is {found[name]}, not {value}"


def _models(outputs: int, *, shards: bool) -> tuple[Any, Any]:
    config = {"num_labels": outputs, "tie_word_embeddings": True}
    plain, own = family_model("llama", config), family_model("llama", config)
    for model in (plain, own):
        BatchForward(model, 60, language_model_head=language_model_head(model))
    return plain, sharded(own) if shards else nn.parallel.DistributedDataParallel(own)


def _inner(model: Any) -> Any:
    return getattr(model, "module", model)


def _batch(drawn: Drawn, outputs: int, attributes: int) -> tuple[RewardBatch, Rows, list[int]]:
    """The batch of all processes, with everything that a loss may ask for; its rows; and the bounds of the rows of each process."""
    of_processes = drawn["groups"]
    groups = [group for of_process in of_processes for group in of_process]
    bounds = [0, *np.cumsum([sum(map(len, of_process)) for of_process in of_processes]).tolist()]
    source = np.random.default_rng(drawn["seed"])
    rows = rows_of([length for group in groups for length in group], drawn["seed"])
    of_rows = [number for number, group in enumerate(groups) for _ in group]
    starts = np.cumsum([0, *map(len, groups)]).tolist()
    pairs = [(start, start + other) for start, group in zip(starts, groups, strict=False) for other in range(1, len(group))]
    ties = [(start + 1, start + 2) for start, group in zip(starts, groups, strict=False) if len(group) > 2]
    labels = (source.normal(size=(len(rows), attributes)) > 0).astype(float)
    labels[source.random(len(rows)) > 0.9] = np.nan
    batch = RewardBatch(
        rewards=torch.zeros(len(rows), outputs),
        pairs=torch.tensor(pairs).reshape(-1, 2).long(),
        groups=torch.tensor(of_rows),
        lengths=torch.tensor([len(row) for row in rows]),
        ties=torch.tensor(ties).reshape(-1, 2).long(),
        ranks=torch.tensor([float(place) for group in groups for place in range(len(group))], dtype=torch.float64),
        labels=torch.tensor(labels),
        weights=torch.tensor(source.uniform(0.5, 2, len(groups)))[of_rows],
        margins=torch.tensor(source.random(len(pairs))),
        extras={"confidence": torch.tensor(source.uniform(0.5, 1, len(pairs)))},
    )
    return batch, rows, bounds


class _Trainer(RewardTrainer):
    """A `RewardTrainer` that computes losses and metrics, without the trainer's data, optimizer and files."""

    def __init__(self, model: Any, spec: dict[str, Any], regularizers: list[str], count: int, number: int) -> None:
        loss = loss_of(spec)
        self.model = model.train()
        self.losses = [copy.deepcopy(loss)]
        self.regularizers = {name: (0.1, chosen_regularizer(name)) for name in regularizers}
        self.heads, _ = trained_heads(loss, attributes_of(loss), None, 1)
        middle = SimpleNamespace(in_dataloader=False)
        self.accelerator = SimpleNamespace(num_processes=count, process_index=number, gradient_state=middle)
        self.args = SimpleNamespace(seed=0, device="cpu")
        self._settings: Any = SimpleNamespace(bootstrap=False)
        self._own_needs = own_needs(loss)
        self._needs_logprobs = BATCH_NEEDS["logprobs"] in needs_of(loss)
        self._head_layer = model.score if len(self.heads.names) > 1 else None
        self._reward_log = RewardLog(
            self.heads, attributes_of(loss) if "labels" in {need.name for need in needs_of(loss)} else ()
        )
        self._batches = None
        self._trained_tokens = self.trained_items = 0
        self.model_accepts_loss_kwargs, self.compute_loss_func = False, None

    def get_tp_size(self) -> int:
        return 1

    def inputs(self, batch: RewardBatch, rows: Rows, first: int) -> dict[str, Any]:
        """What the trainer's collator makes of such rows; `first` is the number of their first group in the batch of all processes."""
        known = {
            field.name: getattr(batch, field.name) for field in fields(batch) if field.name not in ("rewards", "extras", "head")
        }
        groups = len({*batch.groups.tolist()})
        labelled = int((~batch.labels.isnan()).sum()) if batch.labels is not None else 0
        ties = 0 if batch.ties is None else len(batch.ties)
        items = {
            "pairs": len(batch.pairs),
            "comparisons": len(batch.pairs) + ties,
            "groups": groups,
            "rows": len(rows),
            "labels": labelled,
        }
        return {
            **{name: value for name, value in known.items() if value is not None},
            **batch.extras,
            "rows": [np.asarray(row) for row in rows],
            "completion_starts": [1] * len(rows),
            "number": torch.arange(first, first + groups),
            "characters": [len(row) for row in rows],
            "sections": [None] * groups,
            "items": torch.tensor(items[self.losses[0].mean_over]),
        }

    def step(self, model: Any, batches: list[dict[str, Any]], *, synchronizes: bool = True) -> dict[str, float]:
        """The gradients of accumulated batches, and what is logged of them."""
        taken, items = self.get_batch_samples(iter(batches), len(batches), torch.device("cpu"))
        self.current_gradient_accumulation_steps = len(taken)
        values = []
        for number, inputs in enumerate(taken):
            is_last = number == len(taken) - 1
            if hasattr(model, "set_requires_gradient_sync"):
                model.set_requires_gradient_sync(synchronizes or is_last)
            delays = hasattr(model, "no_sync") and not (synchronizes or is_last)
            with model.no_sync() if delays else nullcontext():
                loss = self.compute_loss(model, inputs, num_items_in_batch=items) / len(taken)
                backward(loss)
            values.append(loss.item())
        logged = {name: float(value) for name, value in self._reward_log.metrics("train").items()}
        return {"loss": sum(values), "items": float(items or 0), "tokens": float(self._trained_tokens), **logged}


@contextmanager
def _one_process() -> Iterator[None]:
    """Within it, the trainer computes what it does where there is no other process."""
    names = vars(loss_trainer)
    gathers, names["all_gathered"] = names["all_gathered"], lambda value, _: [value]
    try:
        yield
    finally:
        names["all_gathered"] = gathers
