"""Generates completions with ``generate`` of transformers."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, TypeAlias, TypeVar

import torch
from transformers import AutoModelForCausalLM, GenerationConfig, LogitsProcessorList, TemperatureLogitsWarper, TopPLogitsWarper

from rm_plugins.generation.generator import Completion, Generator, GreedyCompletion
from rm_plugins.models.model_folder import allows_code
from rm_plugins.models.own_weights import own_weights
from rm_plugins.models.placement import default_device

Warper: TypeAlias = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
Row = TypeVar("Row")
Written = TypeVar("Written")


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
            completions += _in_halves(self._generate, rows[start : start + self.batch_size])
        return [completions[start : start + n] for start in range(0, len(completions), n)]

    def _generate(self, rows: Sequence[tuple[list[int], int]]) -> list[Completion]:
        """One completion for each prompt and seed."""
        prompts, seeds = zip(*rows, strict=True)
        written = self._written(prompts, self.sampling.max_new_tokens, self._warpers(seeds))
        return [self._completion(prompt, row) for prompt, row in zip(prompts, written, strict=True)]

    def _draw_greedily(
        self, prompts: Sequence[list[int]], max_new_tokens: int, watched: Sequence[int]
    ) -> list[GreedyCompletion]:
        def write(some: Sequence[list[int]]) -> list[GreedyCompletion]:
            watcher = _WatchedTokens(watched)
            rows = self._written(some, max_new_tokens, LogitsProcessorList([watcher] if watched else []))
            return [
                self._greedy_completion(prompt, row, watcher.of_row(place))
                for place, (prompt, row) in enumerate(zip(some, rows, strict=True))
            ]

        order = sorted(range(len(prompts)), key=lambda place: len(prompts[place]))  # so that little is padded
        completions: dict[int, GreedyCompletion] = {}
        for start in range(0, len(order), self.batch_size):
            places = order[start : start + self.batch_size]
            completions.update(zip(places, _in_halves(write, [prompts[place] for place in places]), strict=True))
        return [completions[place] for place in range(len(prompts))]

    def _greedy_completion(self, prompt: list[int], row: list[int], watched: Sequence[Mapping[int, float]]) -> GreedyCompletion:
        completion = self._completion(prompt, row)
        end = next((place for place, token in enumerate(row) if token in self._ends), len(row))
        return GreedyCompletion(tuple(row[:end]), completion.text, completion.finished, tuple(watched[:end]))

    def _written(self, prompts: Sequence[list[int]], max_new_tokens: int, processors: LogitsProcessorList) -> list[list[int]]:
        """The tokens that the policy writes after each prompt, with padding after those that ended."""
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
            logits_processor=processors,
            generation_config=GenerationConfig(
                max_new_tokens=max_new_tokens,
                do_sample=False,
                eos_token_id=self._ends or None,
                pad_token_id=padding,
            ),
        )
        rows: list[list[int]] = written[:, width:].tolist()
        return rows

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


def _in_halves(work: Callable[[Sequence[Row]], list[Written]], rows: Sequence[Row]) -> list[Written]:
    """What `work` makes of the rows; a batch that does not fit into memory is halved."""
    try:
        return work(rows)
    except torch.OutOfMemoryError:
        if len(rows) == 1:
            raise
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    half = len(rows) // 2
    return _in_halves(work, rows[:half]) + _in_halves(work, rows[half:])


class _WatchedTokens:
    """Records the probabilities of some tokens at every position, without changing the logits."""

    def __init__(self, tokens: Sequence[int]) -> None:
        self._tokens = list(tokens)
        self._steps: list[list[list[float]]] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self._steps.append(scores.float().softmax(-1)[:, self._tokens].tolist())
        return scores

    def of_row(self, row: int) -> list[dict[int, float]]:
        """The probabilities of the tokens at every position of a row."""
        return [dict(zip(self._tokens, step[row], strict=True)) for step in self._steps]


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
