"""Generates completions with vLLM."""

from __future__ import annotations

import gc
import math
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any, ClassVar

from rm_plugins.errors import MissingDependencyError
from rm_plugins.generation.generator import Completion, Generator, GreedyCompletion

_TOP_LOGPROBS = 20
"""The most log-probabilities that vLLM gives by default."""


class VLLMGenerator(Generator):
    """A policy that vLLM runs, on the GPUs of this process.

    It gets token ids, not texts or messages, so that prompts are tokenized as in `TransformersGenerator`.
    """

    usual_batch_size: ClassVar[int] = 2048  # vLLM forms its own batches; smaller calls would leave the GPU idle at their ends

    def _load(self, options: dict[str, Any]) -> None:
        try:
            self._vllm: Any = import_module("vllm")
        except ImportError as error:
            raise MissingDependencyError(
                "The engine 'vllm' needs vLLM, which is not installed: pip install vllm, or choose the engine 'transformers'."
            ) from error
        self._llm: Any = self._vllm.LLM(model=self.model, **options)

    def close(self) -> None:
        """End the engine, which frees its GPU memory."""
        self._llm = None
        gc.collect()  # vLLM stops its engine when no reference to it is left

    def _draw(self, prompts: Sequence[list[int]], numbers: Sequence[int]) -> list[list[Completion]]:
        sampling = self.sampling
        outputs = self._llm.generate(
            [self._vllm.TokensPrompt(prompt_token_ids=prompt) for prompt in prompts],
            [
                self._vllm.SamplingParams(
                    n=sampling.n,
                    temperature=sampling.temperature,
                    top_p=sampling.top_p,
                    max_tokens=sampling.max_new_tokens,
                    seed=sampling.seed_of(number),  # vLLM gives the k-th completion this seed + k
                )
                for number in numbers
            ],
            use_tqdm=False,
        )
        return [
            [
                Completion(completion.text, completion.finish_reason == "stop")
                for completion in sorted(output.outputs, key=lambda completion: completion.index)
            ]
            for output in outputs
        ]

    def _draw_greedily(
        self, prompts: Sequence[list[int]], max_new_tokens: int, watched: Sequence[int]
    ) -> list[GreedyCompletion]:
        logprobs = _TOP_LOGPROBS if watched else None
        outputs = self._llm.generate(
            [self._vllm.TokensPrompt(prompt_token_ids=prompt) for prompt in prompts],
            [self._vllm.SamplingParams(temperature=0.0, max_tokens=max_new_tokens, logprobs=logprobs) for _ in prompts],
            use_tqdm=False,
        )
        return [self._greedy_completion(output.outputs[0], frozenset(watched)) for output in outputs]

    def _greedy_completion(self, output: Any, watched: frozenset[int]) -> GreedyCompletion:
        tokens, finished = list(output.token_ids), output.finish_reason == "stop"
        if finished and tokens and tokens[-1] in self.tokenizer.all_special_ids:
            tokens.pop()  # the token that ended it
        steps: Sequence[Mapping[int, Any]] = output.logprobs or ()
        seen = tuple(
            {token: math.exp(entry.logprob) for token, entry in step.items() if token in watched}
            for step in steps[: len(tokens)]
        )
        return GreedyCompletion(tuple(tokens), output.text, finished, seen)
