"""What is scored and trained on: text of this project, cut to the lengths that matter."""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import rm_plugins as rm
from tests.benchmarks.gpu.shapes import TEMPLATE
from tests.benchmarks.models import train_tokenizer
from tests.benchmarks.texts import spread, token_stream

ROOT = Path(__file__).parents[3]

LLMBAR_LENGTHS = (9, 27, 36, 45, 55, 64, 76, 92, 108, 127, 148, 179, 207, 233, 271, 305, 355, 402, 466, 575, 1213)
"""The 0th, 5th, ... 100th percentile of the lengths of LLMBar's 1,768 rows (prompt and answer) in SmolLM2's tokens."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is scored; the defaults are those of the table."""

    vocabulary: int = 8_192
    prompts: int = 64
    prompt_tokens: int = 512
    completions: int = 8
    shortest: int = 64
    longest: int = 512
    mixed: int = 512
    long_prompts: int = 2
    long_prompt_tokens: int = 8_192
    long_completions: int = 16
    pairs: int = 8
    steps: int = 6
    served: int = 1_024
    clients: int = 64


MINIATURE = Sizes(
    vocabulary=512,
    prompts=2,
    prompt_tokens=32,
    completions=3,
    shortest=4,
    longest=16,
    mixed=12,
    long_prompts=1,
    long_prompt_tokens=256,
    long_completions=2,
    pairs=2,
    steps=3,
    served=12,
    clients=4,
)


@cache
def corpus() -> tuple[str, ...]:
    """The text of this project's pages and code."""
    files = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
    files += [*sorted((ROOT / "rm_plugins").rglob("*.py")), *sorted((ROOT / "tests").glob("*.py"))]
    # What looks like a special token would become one.
    return tuple(path.read_text(encoding="utf-8").replace("<|", "< |") for path in files)


class Workloads:
    """Samples of every kind.

    Args:
        sizes: How much of each.
    """

    def __init__(self, sizes: Sizes) -> None:
        self.sizes = sizes
        texts = corpus() if sizes.vocabulary > MINIATURE.vocabulary else corpus()[:3]
        self.tokenizer: Any = train_tokenizer(texts, sizes.vocabulary, most_tokens=1 << 20, special=("<|start|>",))
        self.tokenizer.chat_template = TEMPLATE

    def scored(self, positions: int) -> dict[str, list[rm.Sample]]:
        """What is scored, by name, for a model of so many positions."""
        sizes = self.sizes
        lengths = spread(sizes.shortest, sizes.longest, sizes.completions)
        long = min(sizes.long_prompt_tokens, positions - sizes.longest - 64)
        long_lengths = spread(sizes.shortest, sizes.longest, sizes.long_completions)
        return {
            "grouped": self._groups(sizes.prompts, sizes.prompt_tokens, lengths),
            "mixed": self._mixed(sizes.mixed),
            "long": self._groups(sizes.long_prompts, long, long_lengths),
        }

    def served(self) -> list[rm.Sample]:
        """What clients ask about: groups of completions."""
        sizes = self.sizes
        lengths = spread(sizes.shortest, sizes.longest // 2, sizes.completions)
        return self._groups(-(-sizes.served // sizes.completions), sizes.prompt_tokens // 2, lengths)[: sizes.served]

    def pairs(self, number: int) -> list[dict[str, Any]]:
        """Rows of a preference dataset, [number]: prompts of half to one and a half times the usual length, two answers each."""
        sizes, choose = self.sizes, random.Random(0)
        shapes = [
            (
                choose.randint(sizes.prompt_tokens // 2, sizes.prompt_tokens * 3 // 2),
                choose.randint(sizes.shortest, sizes.longest),
                choose.randint(sizes.shortest, sizes.longest),
            )
            for _ in range(number)
        ]
        pieces = self._pieces([length for shape in shapes for length in shape])
        columns = ("prompt", "chosen", "rejected")
        return [
            {name: [{"role": "user" if name == "prompt" else "assistant", "content": next(pieces)}] for name in columns}
            for _ in shapes
        ]

    def _groups(self, prompts: int, prompt_tokens: int, lengths: list[int]) -> list[rm.Sample]:
        pieces = self._pieces([length for _ in range(prompts) for length in (prompt_tokens, *lengths)])
        samples = []
        for _ in range(prompts):
            prompt = next(pieces)
            samples += [_sample(prompt, next(pieces)) for _ in lengths]
        return samples

    def _mixed(self, number: int) -> list[rm.Sample]:
        choose = random.Random(1)
        steps = len(LLMBAR_LENGTHS) - 1
        scale = 1.0 if self.sizes.vocabulary > MINIATURE.vocabulary else 0.1
        totals = []
        for _ in range(number):
            step = choose.randrange(steps)
            totals.append(max(4, round(scale * choose.uniform(LLMBAR_LENGTHS[step], LLMBAR_LENGTHS[step + 1]))))
        pieces = self._pieces([length for total in totals for length in (total // 3, total - total // 3)])
        return [_sample(next(pieces), next(pieces)) for _ in totals]

    def _pieces(self, lengths: list[int]) -> Any:
        """Stretches of text of about so many tokens, one after the other, from the beginning again where the text ends."""
        ids = token_stream(self.tokenizer, corpus(), sum(lengths))
        ids = (ids * -(-sum(lengths) // len(ids)))[: sum(lengths)]
        start = 0
        texts = []
        for length in lengths:
            texts.append(self.tokenizer.decode(ids[start : start + length]))
            start += length
        return iter(texts)


def _sample(prompt: str, completion: str) -> rm.Sample:
    return rm.Sample([{"role": "user", "content": prompt}], [{"role": "assistant", "content": completion}])
