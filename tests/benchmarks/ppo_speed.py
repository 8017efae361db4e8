"""How fast a PPO step is, and how much memory it takes."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from rm_plugins_trl.demo.policies import load_policy
from rm_plugins_trl.demo.progress import quiet_libraries
from tests.benchmarks.models import DecoderSize, save_policy, train_tokenizer
from tests.benchmarks.ppo_rollouts import Rollouts
from tests.benchmarks.ppo_runs import Run, Training
from tests.benchmarks.scoring import own_peak_memory
from tests.benchmarks.texts import data_rows, spread, token_stream
from tests.conftest import converted_smollm2

__all__ = ["SHAPES", "Shape", "measure_speed"]


@dataclass(frozen=True, slots=True)
class Shape:
    """A PPO step whose speed is measured.

    Args:
        title: What the table calls it.
        size: A random decoder's size; None for SmolLM2-135M.
        rows: Completions of a rollout.
        prompts: The tokens of the shortest and the longest prompt; the others are spread evenly between them.
        tokens: Those of the shortest and the longest completion.
        epochs: PPO's epochs over a rollout.
        updates: Rollouts of a run; the first is not counted.
    """

    title: str
    size: DecoderSize | None
    rows: int
    prompts: tuple[int, int]
    tokens: tuple[int, int]
    epochs: int
    updates: int

    @property
    def description(self) -> str:
        """What a table says about it."""
        completions, prompts = (f"{shortest} to {longest}" for shortest, longest in (self.tokens, self.prompts))
        return f"{self.title} of {completions} tokens, prompts of {prompts}, {self.epochs} epochs"


SHAPES: tuple[Shape, ...] = (
    Shape("A decoder of 2 layers, 64 completions", DecoderSize(1_024, 64, 192, 2, 4, 4), 64, (16, 48), (8, 53), 4, 6),
    Shape("A decoder of 22M parameters, 16 completions", DecoderSize(), 16, (32, 96), (8, 53), 4, 4),
    Shape("SmolLM2-135M, 8 completions", None, 8, (32, 96), (8, 32), 2, 6),
)
"""The steps whose speed is measured."""


def no_reward(prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float]:
    """A reward that costs nothing: the length of the completion."""
    return [len(str(completion)) / 100 for completion in completions]


def measure_speed(run: Run, shape: Shape, data: Path) -> dict[str, Any]:
    """Run a few PPO steps.

    Args:
        run: The run.
        shape: The step.
        data: The folder of LLMBar; the prompts are stretches of its text.

    Returns:
        For each update except the first:

        - ``seconds``: the CPU seconds;
        - ``generation``: the CPU seconds in which completions were generated;
        - ``tokens``: the completion tokens.

        For the run: ``prompt_tokens`` of a rollout, ``peak``, the most memory of the process in bytes, the policy's ``parameters``, and
        ``threads``.
    """
    texts = [message["content"] for row in data_rows(data, "llmbar") for message in (*row["prompt"], *row["chosen"])]
    with tempfile.TemporaryDirectory() as scratch, quiet_libraries():
        if shape.size is None:
            policy = converted_smollm2()
        else:
            policy = save_policy(Path(scratch) / "policy", shape.size, train_tokenizer(texts, shape.size.vocabulary))
        _, tokenizer = load_policy(str(policy))
        lengths = spread(*shape.prompts, shape.rows)
        ids = iter(token_stream(tokenizer, texts, sum(lengths)))
        # As many prompts as a rollout has, so that all rollouts have the same.
        prompts = [{"prompt": tokenizer.decode(list(islice(ids, length)))} for length in lengths]
        training = Training(
            policy,
            "tests.benchmarks.ppo_speed:no_reward",
            prompts,
            shape.rows,
            shape.tokens[1],
            shape.updates,
            shape.epochs,
            run.rate,
            run.seed,
        )
        model, tokenizer = training.load()
        trainer = training.trainer(run.contender, model, tokenizer, scratch)
        rollouts = Rollouts(model, tokenizer, lengths=shape.tokens)
        trainer.train()
        ends = [*rollouts.starts[1:], rollouts.seconds()]
    if len(rollouts.starts) != shape.updates:
        raise SystemExit(f"{run.contender} generated {len(rollouts.starts)} times in {shape.updates} updates.")
    return {
        "seconds": [round(end - start, 3) for start, end in zip(rollouts.starts, ends, strict=True)][1:],
        "generation": [round(end - start, 3) for start, end in zip(rollouts.starts, rollouts.ends, strict=True)][1:],
        "tokens": rollouts.tokens[1:],
        "prompt_tokens": sum(lengths),
        "peak": own_peak_memory(),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "threads": torch.get_num_threads(),
    }
