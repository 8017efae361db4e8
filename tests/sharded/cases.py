"""What each of several processes does: steps of a model whose weights are sharded, compared with those of a whole model."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import distributed, nn
from torch.distributed.fsdp import FullyShardedDataParallel, MixedPrecisionPolicy

from rm_plugins.engine.batch_forward import BatchForward
from rm_plugins.engine.packing import Packing
from rm_plugins.engine.shards import shards_of
from rm_plugins.errors import UnsupportedError
from rm_plugins_trl.reward_training.language_model_head import language_model_head
from tests.batch_forward.conftest import family_model
from tests.losses.conftest import SPECS
from tests.sharded.drawn_batches import drawn_batches
from tests.sharded.launcher import run
from tests.sharded.loss_cases import logprobs_in_one_process, losses, tokens
from tests.sharded.steps import (
    ADVERSARIAL,
    assert_as_many,
    assert_same_gradients,
    backward,
    counted,
    models,
    processes,
    rank,
    rows_of,
    sharded,
    shares,
    together,
    weighted,
)

# --- The number of forwards -------------------------------------------------------------------------------------------------


def long_rows_in_one_process() -> None:
    plain, own, *_ = models("llama")
    lengths = [[60] * 4, [200] * 4, [5], [30] * 9][: processes()]
    together(own, plain, [[rows_of(length, number) for number, length in enumerate(lengths)]] * 2)


def object_made_after_sharding() -> None:
    plain, own = family_model("llama", {}), sharded(family_model("llama", {}))
    BatchForward(plain, 256), BatchForward(own, 256)
    together(own, plain, [shares(0)])


def adversarial_lengths(family: str, config: dict[str, Any], *, packs: bool) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        plain, own, expected, forward = models(family, **config)
        together(own, plain, [shares(step) for step in range(len(ADVERSARIAL) if packs else 4)])
    told = [
        warning for warning in caught if str(warning.message).startswith("FSDP")
    ]  # of the class that `fully_shard` has made
    assert len(told) == (0 if rank() or packs or family == "bert" else 1), [str(warning.message) for warning in caught]
    assert (forward.packs, forward.whole) == (expected.packs, expected.whole) == (packs, False)


def drawn_lengths() -> None:
    plain, own, *_ = models("llama", 100)

    @settings(
        max_examples=6,
        phases=[Phase.generate],
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=[*HealthCheck],
    )
    @given(st.lists(st.lists(st.integers(1, 130), max_size=6), min_size=processes(), max_size=processes()).filter(any))
    def step(lengths: list[list[int]]) -> None:
        together(own, plain, [[rows_of(of_process, number) for number, of_process in enumerate(lengths)]])

    step()


def gradient_accumulation() -> None:
    plain, own, *_ = models("llama", 100)
    for synchronizes in (True, False):
        calls = counted(own)
        for step in range(3):
            of_processes = shares(step + 2)
            mine, every = of_processes[rank()], [row for rows in of_processes for row in rows]
            own.set_requires_gradient_sync(synchronizes or step == 2)
            backward(weighted(plain(rows=every).logits, every))
            backward(processes() * weighted(own(rows=mine).logits, mine))
        assert_as_many(calls)
        assert_same_gradients(plain, own)


def gradient_checkpointing() -> None:
    plain, own, _, forward = models("llama", 100)
    own.train().gradient_checkpointing_enable({"use_reentrant": False})
    with forward.attention():
        together(own, plain, [shares(0), shares(3)])


def without_gradients() -> None:
    plain, own, *_ = models("llama", 100)
    calls = counted(own)
    with torch.no_grad():
        for step in range(3):
            mine = shares(step)[rank()]
            found = own(rows=mine).logits
            if mine:
                torch.testing.assert_close(found, plain(rows=mine).logits)
    assert_as_many(calls)
    together(own, plain, [shares(0)])


def half_precision() -> None:
    own = family_model("llama", {}).float()
    forward = BatchForward(own, 100)
    sharded(own, mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32))
    for step in range(2):
        backward(weighted(own(rows=shares(step)[rank()]).logits, shares(step)[rank()]))
    assert forward.packs and not forward.whole


def fsdp1() -> None:
    plain, own = family_model("llama", {}).float(), family_model("llama", {}).float()
    BatchForward(plain, 100), BatchForward(own, 100)
    for number, layer in enumerate(own.model.layers):
        own.model.layers[number] = FullyShardedDataParallel(layer, use_orig_params=True, device_id=torch.device("cpu"))
    wrapped = FullyShardedDataParallel(own, use_orig_params=True, device_id=torch.device("cpu"))
    for step in range(4):
        mine, every = shares(step)[rank()], [row for rows in shares(step) for row in rows]
        expected = weighted(plain(rows=every).logits, every)
        found = weighted(wrapped(rows=mine).logits, mine)
        total = found.detach().clone()
        distributed.all_reduce(total)
        torch.testing.assert_close(total, expected.detach(), rtol=1e-4, atol=1e-4)
        backward(expected)
        backward(found * processes())
        norm = wrapped.clip_grad_norm_(1e9)
        torch.testing.assert_close(norm, nn.utils.clip_grad_norm_(plain.parameters(), 1e9), rtol=1e-4, atol=1e-4)
        plain.zero_grad()
        wrapped.zero_grad()


# --- Decisions ---------------------------------------------------------------------------------------------------------------


def a_problem_in_one_process() -> None:
    for method, packs in (("_problem_of_packing", False), ("_difference", False)):
        plain, own, _, forward = models("llama", 100)
        if rank() == 1:
            own_method = getattr(forward, method)
            setattr(forward, method, lambda *values, run=own_method: (run(*values) and "") or "something is wrong")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            together(own, plain, [shares(0), shares(1)])
        told = [str(warning.message) for warning in caught if "something is wrong" in str(warning.message)]
        assert len(told) == (rank() == 0) and all("in process 1: something is wrong" in message for message in told)
        assert forward.packs == packs and forward.whole == (method == "_difference")


def an_error_for_the_rows_of_one_process() -> None:
    """It is raised in the middle of the model, where the other process would gather further weights."""
    attention = Packing.attention

    def only_short(self: Packing, *arguments: Any) -> torch.Tensor:
        if self.longest > 100:
            raise UnsupportedError("the row is too long")
        return attention(self, *arguments)

    plain, own, _, forward = models("llama", 400)
    vars(plain).pop("forward")
    Packing.attention = only_short  # type: ignore[method-assign, assignment]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            BatchForward(plain, 400).packs = False
            together(own, plain, [[rows_of([120 if number == 1 else 20] * 2, number) for number in range(processes())]] * 2)
    finally:
        Packing.attention = attention  # type: ignore[method-assign]
    assert not forward.packs and not forward.whole


def rows_that_see_each_other() -> None:
    _, own, _, forward = models("llama", 100)
    own.get_input_embeddings().register_forward_hook(lambda _, inputs, hidden: hidden - 0.1 * hidden.mean(1, keepdim=True))
    with warnings.catch_warnings(record=True):
        warnings.simplefilter("always")
        for step in range(3):
            backward(weighted(own(rows=shares(step)[rank()]).logits, shares(step)[rank()]))
    assert forward.whole and not forward.packs


def frequencies_that_change_with_the_longest_row() -> None:
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10_000.0}
    _, own, _, forward = models("llama", 100, max_position_embeddings=100, rope_parameters=rope)
    calls = counted(own)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for lengths in ([60, 70], [60, 170 if rank() == 1 else 50, 3, 3], [20] * (9 * rank() + 1)):
            rows = rows_of(lengths, rank())
            backward(weighted(own(rows=rows).logits, rows))
    assert forward.whole
    assert sum("depend on the longest row" in str(warning.message) for warning in caught) == (rank() == 0)
    assert_as_many(calls)


def a_check_that_is_due_in_one_process() -> None:
    plain, own, *_ = models("llama", 100)
    together(own, plain, [[rows_of([20], number) for number in range(processes())]])
    long = [rows_of([100 if number == 1 else 20], number) for number in range(processes())]
    together(own, plain, [long])


def no_row_anywhere() -> None:
    _, own, *_ = models("llama")
    try:
        own(rows=[])
    except ValueError as error:
        assert str(error) == "No process has a row."
    else:
        raise AssertionError("rows were made up")


# --- What is not sharded -----------------------------------------------------------------------------------------------------


def whole_weights_exchange_nothing() -> None:
    model = family_model("llama", {})
    forward = BatchForward(model, 100)
    names = ("all_reduce", "all_gather", "all_gather_object")
    before = {name: getattr(distributed, name) for name in names}

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a collective")

    for name in names:
        setattr(distributed, name, refuse)
    try:
        wrapped = nn.parallel.DistributedDataParallel(model)
        for step in range(2):
            mine = shares(step)[rank()] or rows_of([5], 0)
            backward(weighted(wrapped(rows=mine).logits, mine))
    finally:
        for name, function in before.items():
            setattr(distributed, name, function)
    assert forward._shards is None and forward.packs


def weights_of_zero_are_recognized() -> None:
    model = family_model("llama", {})
    assert shards_of(model) is None
    for weight in model.parameters():
        weight.ds_id, weight.ds_process_group = 1, distributed.group.WORLD
    found = shards_of(model)
    assert found is not None and found.largest(rank(), -rank()) == [processes() - 1, 0]
    assert found.gathered(rank()) == [*range(processes())]
    head: Any = language_model_head(family_model("llama", {"tie_word_embeddings": True}))
    embedding = head.model.get_input_embeddings()
    hidden = torch.randn(3, embedding.weight.shape[1], dtype=embedding.weight.dtype)
    expected, embedding.padding_idx, embedding.weight.ds_id = head(hidden), 1, 1
    found = head.gathered()(hidden)
    assert torch.equal(found, expected) and embedding.padding_idx == 1
    (gradient,) = torch.autograd.grad(found[:, 1].sum(), embedding.weight)
    assert torch.equal(gradient[1], hidden.sum(0))  # though an embedding's padding gets none
    embedding.__class__ = type("ScaledEmbedding", (nn.Embedding,), {})
    with pytest.raises(UnsupportedError, match="a ScaledEmbedding that stage 3 of ZeRO has partitioned"):
        head.gathered()


IN_TWO: dict[str, Callable[[], None]] = {
    "long rows in one process": long_rows_in_one_process,
    "object made after sharding": object_made_after_sharding,
    "adversarial lengths, packed": lambda: adversarial_lengths("llama", {}, packs=True),
    "adversarial lengths, an encoder": lambda: adversarial_lengths("bert", {}, packs=False),
    "adversarial lengths, attention that cannot be replaced": lambda: adversarial_lengths(
        "gemma2", {"query_pre_attn_scalar": 8}, packs=False
    ),
    "adversarial lengths, a sliding window": lambda: adversarial_lengths("mistral", {"sliding_window": 64}, packs=False),
    "drawn lengths": drawn_lengths,
    "gradient accumulation": gradient_accumulation,
    "gradient checkpointing": gradient_checkpointing,
    "without gradients": without_gradients,
    "half precision": half_precision,
    "a problem in one process": a_problem_in_one_process,
    "an error for the rows of one process": an_error_for_the_rows_of_one_process,
    "rows that see each other": rows_that_see_each_other,
    "frequencies that change with the longest row": frequencies_that_change_with_the_longest_row,
    "a check that is due in one process": a_check_that_is_due_in_one_process,
    "no row anywhere": no_row_anywhere,
    "log-probabilities in one process": lambda: logprobs_in_one_process(shards_embedding=False),
    "log-probabilities in one process, the embedding sharded by itself": lambda: logprobs_in_one_process(shards_embedding=True),
    "tokens of a classifier": lambda: tokens("values"),
    "tokens of a language model": lambda: tokens("log_probs", tie_word_embeddings=False),
    "tokens by the model's own logits": lambda: tokens("own logits", tie_word_embeddings=False),
    "every loss": lambda: losses(SPECS),
    "drawn batches, sharded weights": lambda: drawn_batches(shards=True),
    "drawn batches, whole weights": lambda: drawn_batches(shards=False),
    "a loss of the head, the root sharded again": lambda: losses([{"name": "odin"}], reshards_root=True),
    "whole weights exchange nothing": whole_weights_exchange_nothing,
    "weights of ZeRO are recognized": weights_of_zero_are_recognized,
    "FSDP1": fsdp1,
}
IN_FOUR: dict[str, Callable[[], None]] = {
    "long rows in one process": long_rows_in_one_process,
    "adversarial lengths, packed": lambda: adversarial_lengths("llama", {}, packs=True),
    "losses of the whole batch": lambda: losses([{"name": name} for name in ("bradley-terry", "listnet", "grm", "odin")]),
}
GROUPS = {2: IN_TWO, 4: IN_FOUR}


def main() -> None:
    """Run all cases, or those named after the folder."""
    folder, chosen = Path(sys.argv[1]), sys.argv[2:]
    for size, cases in GROUPS.items():
        run({name: case for name, case in cases.items() if not chosen or name in chosen}, folder, size)


if __name__ == "__main__":
    main()
