"""The samples that all peers score: 128 texts, four completions for each of 32 prompts, and 128 conversations."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias

import rm_plugins as rm

DATA = Path(__file__).parents[3] / "shared" / "data"
PROMPTS, COMPLETIONS, CONVERSATIONS = 32, 4, 128
_LONGEST = 600  # characters of a prompt and of a completion: a cross-encoder reads 512 tokens
_WORDS = (
    "the",
    "salt",
    "sea",
    "river",
    "carries",
    "dissolved",
    "minerals",
    "into",
    "rain",
    "blue",
    "two",
    "four",
    "because",
    "is",
)

Group: TypeAlias = tuple[str, list[str]]
"""A prompt and its completions: a query and its documents, as rerankers call them."""


def groups(longest: int = _LONGEST) -> list[Group]:
    """Prompts with their completions, as text, none of them longer than so many characters."""
    rows = _rows("gsm8k_solutions_labelled")
    real = ((_text(row["prompt"]), row["completions"]) for row in rows if len(set(row["completions"])) >= COMPLETIONS)
    short = ((one, some[:COMPLETIONS]) for one, some in real if max(map(len, [one, *some])) <= longest)
    return list(islice(short, PROMPTS)) or [
        (_words(row), [_words(row, n) for n in range(COMPLETIONS)]) for row in range(PROMPTS)
    ]


def texts() -> list[rm.Sample]:
    """The groups' samples, in order."""
    return [rm.Sample(prompt, completion) for prompt, completions in groups() for completion in completions]


def conversations() -> list[rm.Sample]:
    """Samples of messages, some with a system message."""
    rows = (row for row in _rows("llmbar") if len(_text(row["prompt"])) <= _LONGEST and len(_text(row["chosen"])) <= _LONGEST)
    turns = [(_text(row["prompt"]), _text(row["chosen"])) for row in islice(rows, CONVERSATIONS)]
    turns = turns or [(_words(row, 10), _words(row, 11)) for row in range(CONVERSATIONS)]
    samples = []
    for row, (question, answer) in enumerate(turns):
        system = [{"role": "system", "content": "Be brief."}] if row % 4 == 0 else []
        asked = [*system, {"role": "user", "content": question}]
        samples.append(rm.Sample(asked, [{"role": "assistant", "content": answer}]))
    return samples


def messages(sample: rm.Sample) -> list[dict[str, Any]]:
    """A sample's conversation as one list; of a sample of texts, a turn of each side."""
    if isinstance(sample.prompt, str):
        return [{"role": "user", "content": sample.prompt}, {"role": "assistant", "content": sample.completion}]
    return [dict(message) for part in (sample.prompt, sample.completion) for message in part]  # type: ignore[arg-type]


def _rows(name: str) -> Iterator[Any]:
    path = DATA / f"{name}.jsonl.gz"
    if path.is_file():
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            yield from map(json.loads, lines)


def _text(messages: Any) -> str:
    return "\n".join(message["content"] for message in messages)


def _words(*seed: int) -> str:
    source = random.Random(repr(seed))
    return " ".join(source.choices(_WORDS, k=source.randrange(4, 40)))
