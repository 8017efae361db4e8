"""What each of several processes does when memory is lacking in one of them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rm_plugins.engine.batch_forward import BatchForward
from rm_plugins.engine.token_forward import TokenForward
from tests.batch_forward.conftest import family_model
from tests.sharded.launcher import run
from tests.sharded.steps import backward, models, processes, rank, rows_of, sharded, shares, together, weighted

BUDGET = 512


def lacks_memory(module: nn.Module, tokens: int, *, gradients: bool = False) -> None:
    """In process 1, let a module fail for more tokens than so many, in its forward or for its gradients."""
    if rank() != 1:
        return
    own = module.forward

    def limited(*args: Any, **kwargs: Any) -> Any:
        given = args[0] if args else next(iter(kwargs.values()))
        if given.shape[0] * given.shape[1] <= tokens:
            return own(*args, **kwargs)
        if not gradients:
            raise torch.OutOfMemoryError(f"{given.shape[1]} tokens are too many")
        output = own(*args, **kwargs)
        if output.requires_grad:
            output.register_hook(_refuse)
        return output

    module.forward = limited


def _refuse(gradient: torch.Tensor) -> torch.Tensor:
    raise torch.OutOfMemoryError("gradients are too many")


def steps(find: Callable[[Any], nn.Module], family: str = "llama", *, packs: bool = True, checkpoints: bool = False) -> None:
    plain, own, expected, forward = models(family, BUDGET)
    if checkpoints:
        own.train().gradient_checkpointing_enable({"use_reentrant": False})
    lacks_memory(find(own), 260)
    with forward.attention():
        together(own, plain, [shares(0), shares(4), shares(2)])
    assert (forward.max_tokens, forward.recomputes) == (256, True)
    assert (forward.packs, forward.whole) == (expected.packs, expected.whole) == (packs, False)
    assert expected.max_tokens == BUDGET


def too_long_a_row() -> None:
    _, own, _, forward = models("llama", BUDGET)
    lacks_memory(own.model.layers[0].mlp, 20)
    try:
        own(rows=rows_of([60], rank()))
    except torch.OutOfMemoryError as error:
        told = str(error)
        assert "too little free memory for rows of up to 60 tokens, 64 tokens at a time" in told, told
        assert "in process 1: " in told and "gradient_checkpointing=True" in told, told
    else:
        raise AssertionError("it should have failed in both processes")
    assert forward.packs and not forward.whole


def completions() -> None:
    model = sharded(family_model("llama", {}))
    forward = TokenForward(model, BUDGET)
    lacks_memory(model.model.layers[1].mlp, 130)
    mine = rows_of([60] * 4, rank())
    backward(model(rows=mine, completion_starts=[40] * 4).token_values.sum())
    assert (forward.max_tokens, forward.recomputes) == (128, True)


def whole_weights() -> None:
    """With DDP, a process needs no other to run its rows again."""
    model, alone = family_model("llama", {}), family_model("llama", {})
    forward, _ = BatchForward(model, BUDGET), BatchForward(alone, BUDGET)
    lacks_memory(model.model.layers[0].mlp, 260)
    wrapped = nn.parallel.DistributedDataParallel(model)
    for step in (0, 4):
        mine = shares(step)[rank()] or rows_of([5], 0)
        every = [shares(step)[process] or rows_of([5], 0) for process in range(processes())]
        backward(weighted(wrapped(rows=mine).logits, mine))
        for rows in every:
            backward(weighted(alone(rows=rows).logits, rows))
    for found, wanted in zip(model.parameters(), alone.parameters(), strict=True):
        if wanted.grad is not None:
            torch.testing.assert_close(found.grad * processes(), wanted.grad)
    assert forward.max_tokens is not None and (forward.max_tokens < BUDGET) == (rank() == 1)


def gradients(*, shards: bool) -> None:
    """What cannot be run again ends with an error in both processes."""
    model = family_model("llama", {})
    if not shards:
        model = nn.parallel.DistributedDataParallel(model)
    plain = model if shards else model.module
    forward = BatchForward(plain, BUDGET)
    if shards:
        sharded(plain)
    lacks_memory(plain.model.layers[0].mlp, 10, gradients=True)
    with forward.attention():
        rows = rows_of([60], rank())
        backward(weighted(model(rows=rows).logits, rows))


SURVIVED: dict[str, Callable[[], None]] = {
    "a layer": lambda: steps(lambda model: model.model.layers[1].mlp),
    "a layer that is computed again": lambda: steps(lambda model: model.model.layers[0].mlp, checkpoints=True),
    "the embedding": lambda: steps(lambda model: model.model.embed_tokens),
    "after the layers": lambda: steps(lambda model: model.model.norm),
    "an encoder": lambda: steps(lambda model: model.bert.encoder.layer[0].intermediate, "bert", packs=False),
    "too long a row": too_long_a_row,
    "completions": completions,
    "whole weights": whole_weights,
}
ENDED: dict[str, Callable[[], None]] = {
    "sharded weights": lambda: gradients(shards=True),
    "whole weights": lambda: gradients(shards=False),
}


def main() -> None:
    """Run all cases, or those named after the folder; those that end the processes in groups of their own."""
    folder, chosen = Path(sys.argv[1]), sys.argv[2:]
    run({name: case for name, case in SURVIVED.items() if not chosen or name in chosen}, folder, 2)
    for name, case in ENDED.items():
        (folder / name).mkdir()
        run({name: case}, folder / name, 2)


if __name__ == "__main__":
    main()
