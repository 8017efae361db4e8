"""Generates completions with ``generate`` of transformers."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from transformers import AutoModelForCausalLM, GenerationConfig, LogitsProcessorList, TemperatureLogitsWarper, TopPLogitsWarper

from rm_plugins.generation.generator import Completion, Generator
from rm_plugins.models.model_folder import allows_code
from rm_plugins.models.own_weights import own_weights
from rm_plugins.models.placement import default_device

if TYPE_CHECKING:
    from collections.abc import Callable

    Warper = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class TransformersGenerator(Generator):
    """A policy that transformers runs, on the available device.

    `batch_size` completions are written at a time, with left-padded prompts. Each completion has its own random generator, so it does not
    change when a batch that does not fit into memory is halved, or an interrupted job resumes in the middle of a batch.
    """

    usual_batch_size: ClassVar[int] = 32

    def _load(self, options: dict[str, Any]) -> None:
        options = {"dtype": "auto", **options, "trust_remote_code": allows_code(options)}
        model = AutoModelForCausalLM.from_pretrained(self.model, **options)
        self._policy: Any = own_weights((model if "device_map" in options else model.to(default_device())).eval())
        own = self._policy.generation_config.eos_token_id
        ends = [*(own if isinstance(own, list) else [own]), self.tokenizer.eos_token_id]
        self._ends = list(dict.fromkeys(token for token in ends if token is not None))
        # `generate` reads further settings from here, such as a repetition penalty; none of them must apply.
        self._policy.generation_config = GenerationConfig()

    def close(self) -> None:
        """Free the memory of the model."""
        self._policy = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _draw(self, prompts: Sequence[list[int]], numbers: Sequence[int]) -> list[list[Completion]]:
        n = self.sampling.n
        rows = [
            (prompt, self.sampling.seed_of(number, place))
            for prompt, number in zip(prompts, numbers, strict=True)
            for place in range(n)
        ]
        completions: list[Completion] = []
        for start in range(0, len(rows), self.batch_size):
            completions += self._completed(rows[start : start + self.batch_size])
        return [completions[start : start + n] for start in range(0, len(completions), n)]

    def _completed(self, rows: Sequence[tuple[list[int], int]]) -> list[Completion]:
        """One completion for each prompt and seed; a batch that does not fit into memory is halved."""
        try:
            return self._generate(rows)
        except torch.OutOfMemoryError:
            if len(rows) == 1:
                raise
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        half = len(rows) // 2
        return self._completed(rows[:half]) + self._completed(rows[half:])

    def _generate(self, rows: Sequence[tuple[list[int], int]]) -> list[Completion]:
        prompts, seeds = zip(*rows, strict=True)
        width = max(map(len, prompts))
        padding = self.tokenizer.pad_token_id
        if padding is None:  # padding is masked, so any token works
            padding = self._ends[0] if self._ends else 0
        ids = [[padding] * (width - len(prompt)) + prompt for prompt in prompts]
        mask = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
        device = self._policy.device
        written = self._policy.generate(
            input_ids=torch.tensor(ids, device=device),
            attention_mask=torch.tensor(mask, device=device),
            logits_processor=self._warpers(seeds),
            generation_config=GenerationConfig(
                max_new_tokens=self.sampling.max_new_tokens,
                do_sample=False,
                eos_token_id=self._ends or None,
                pad_token_id=padding,
            ),
        )
        return [self._completion(prompt, row) for prompt, row in zip(prompts, written[:, width:].tolist(), strict=True)]

    def _warpers(self, seeds: Sequence[int]) -> LogitsProcessorList:
        warpers: list[Warper] = []
        if self.sampling.temperature != 1:
            warpers.append(TemperatureLogitsWarper(self.sampling.temperature))
        if self.sampling.top_p < 1:
            warpers.append(TopPLogitsWarper(self.sampling.top_p))
        return LogitsProcessorList([*warpers, _GumbelNoise(seeds, self._policy.device)])

    def _completion(self, prompt: list[int], tokens: list[int]) -> Completion:
        end = next((place for place, token in enumerate(tokens) if token in self._ends), None)
        # Some tokenizers drop the space before the first word of a text, so decode the last token of the prompt with it.
        before, whole = self._decoded(prompt[-1:]), self._decoded([*prompt[-1:], *tokens[:end]])
        text = whole[len(before) :] if whole.startswith(before) else self._decoded(tokens[:end])
        return Completion(text, end is not None)

    def _decoded(self, tokens: list[int]) -> str:
        text: str = self.tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text


class _GumbelNoise:
    """Samples by making the sampled token of each row the most likely one, with the row's own random generator.

    The largest of the log-probabilities plus independent Gumbel noise is a sample from their distribution (Gumbel 1954). ``generate``
    itself would sample all rows of a batch with one generator, so that each row would depend on the others.
    """

    def __init__(self, seeds: Sequence[int], device: torch.device) -> None:
        self._generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        noise = torch.empty_like(scores, dtype=torch.float32)
        for row, generator in zip(noise, self._generators, strict=True):
            row.exponential_(generator=generator)
        noise.clamp_min_(torch.finfo(noise.dtype).tiny)  # the noise of 0 would be infinite
        return scores.float() - noise.log()
