"""Log-probabilities, tokens and losses of a model whose weights are sharded over processes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch.distributed.fsdp import fully_shard

from rm_plugins.engine.batch_forward import BatchForward
from rm_plugins.engine.token_forward import TokenForward
from rm_plugins.losses import RewardBatch
from rm_plugins.losses.loss import own_needs
from rm_plugins_trl.reward_training.global_batch import global_batch, summed_gradient, whole_weight
from rm_plugins_trl.reward_training.language_model_head import language_model_head
from tests.batch_forward.conftest import family_model
from tests.losses.conftest import attributes_of, full_batch, loss_of, outputs_of
from tests.sharded.steps import (
    Rows,
    assert_same_gradients,
    assert_steps,
    backward,
    processes,
    rank,
    rows_of,
    sharded,
    shares,
    weighted,
)
from tests.token_forward.conftest import language_model

# --- Log-probabilities, tokens, losses ---------------------------------------------------------------------------------------


TIED = {"tie_word_embeddings": True}


def logprobs_in_one_process(*, shards_embedding: bool) -> None:
    plain, own = family_model("llama", TIED), family_model("llama", TIED)
    for model in (plain, own):
        BatchForward(model, 100, language_model_head=language_model_head(model))
    if shards_embedding:
        fully_shard(own.get_input_embeddings())
    sharded(own)
    for step in range(3):
        of_processes = [[row * 2 for row in rows] for rows in shares(step)]
        if not of_processes[1]:
            continue
        mine, every = of_processes[rank()], [row for rows in of_processes for row in rows]
        starts = [1 if number == 1 else None for number, rows in enumerate(of_processes) for _ in rows]
        expected = plain(rows=every, completion_starts=starts)
        found = own(rows=mine, completion_starts=[1 if rank() == 1 else None] * len(mine))
        assert found.logprobs.isnan().tolist() == [rank() != 1] * len(mine)
        assert_steps(
            plain,
            own,
            [
                (
                    weighted(expected.logits, every) + expected.logprobs.nansum(),
                    weighted(found.logits, mine) + (found.logprobs.sum() if rank() == 1 else 0.0 * found.logits.sum()),
                )
            ],
        )


def tokens(kind: str, **config: Any) -> None:
    """The log-probabilities or values of tokens; the head is sharded by itself, and so gathered for every chunk."""
    plain, own = (family_model("llama", {}) if kind == "values" else language_model("llama", **config) for _ in range(2))
    first, forward = TokenForward(plain, 100), TokenForward(own, 100)
    if kind != "values" and not config.get("tie_word_embeddings"):
        fully_shard(own.lm_head)
    sharded(own)
    if kind == "own logits":
        for one in (first, forward):
            one.own_logits, one._head_compared, one.packs = True, True, False
    for step in range(4):
        of_processes = shares(step)
        starts = [[max(1, len(row) // (2 + number)) for row in rows] for number, rows in enumerate(of_processes)]
        every = [row for rows in of_processes for row in rows]
        name = "token_values" if kind == "values" else "log_probs"
        expected = plain(rows=every, completion_starts=[start for of_process in starts for start in of_process])[name]
        found = own(rows=of_processes[rank()], completion_starts=starts[rank()])[name]
        assert_steps(plain, own, [((expected**2).sum(), (found**2).sum())])


def part_of(batch: RewardBatch, begin: int, end: int) -> RewardBatch:
    """The rows of a process, with what belongs to them."""

    def within(items: torch.Tensor) -> torch.Tensor:
        return (items >= begin).all(1) & (items < end).all(1)

    own: dict[str, Any] = {
        name: None if getattr(batch, name) is None else getattr(batch, name)[begin:end]
        for name in ("rewards", "groups", "lengths", "ranks", "labels", "weights")
    }
    assert batch.ties is not None and batch.margins is not None and own["groups"] is not None
    first = own["groups"].min() if len(own["groups"]) else 0
    pairs = within(batch.pairs)
    return replace(
        batch,
        **own | {"groups": own["groups"] - first},
        pairs=batch.pairs[pairs] - begin,
        margins=batch.margins[pairs],
        ties=batch.ties[within(batch.ties)] - begin,
        extras={name: values[pairs] for name, values in batch.extras.items()},
    )


def losses(specs: Sequence[dict[str, Any]], *, reshards_root: bool = False) -> None:
    """Each computed on the batch of all processes, of which one has no pair, and one of four no row."""
    bounds = {2: [0, 1, 11], 4: [0, 1, 7, 7, 11]}[processes()]
    for number, spec in enumerate(specs):
        loss = loss_of(spec)
        config = {"num_labels": outputs_of(loss), **TIED}
        plain, own = family_model("llama", config), family_model("llama", config)
        for model in (plain, own):
            BatchForward(model, 60, language_model_head=language_model_head(model))
        sharded(own, **({"reshard_after_forward": True} if reshards_root else {}))
        every = rows_of([9, 40, 7, 12, 30, 8, 8, 50, 20, 3, 6], number)
        mine = every[bounds[rank()] : bounds[rank() + 1]]
        batch = full_batch(outputs_of(loss), len(attributes_of(loss)))
        part = part_of(batch, bounds[rank()], bounds[rank() + 1])

        def outputs(model: Any, rows: Rows, share: RewardBatch) -> RewardBatch:
            asked = {*share.pairs[:, 0].tolist()}
            output = model(rows=rows, completion_starts=[1 if row in asked else None for row in range(len(rows))])
            logprobs = None if output.logprobs is None else output.logprobs.double()
            return replace(share, rewards=output.logits, logprobs=logprobs, head=whole_weight(model.score.weight))

        expected = loss(outputs(plain, every, batch))
        shared = global_batch(outputs(own, mine, part), processes(), rank(), own_needs(loss))
        found = loss(shared)
        torch.testing.assert_close(found.detach(), expected.detach(), rtol=1e-5, atol=1e-5, msg=str(spec))
        backward(expected)
        backward(summed_gradient(found, processes()))
        try:
            assert_same_gradients(plain, own)
        except AssertionError as error:
            raise AssertionError(str(spec)) from error
