"""A small world of requests and answers in which the true reward is known.

Every prompt asks for a few sentences about somebody that mention something. The **gold** reward says how well an answer does
that. The reward model never sees it: it sees pairs whose labels come from it with noise.

>>> gold("Write two sentences about the fox. Mention the kite.\\n", "The fox finds the kite. The fox rests by the gate.")
1.0
>>> round(gold("Write two sentences about the fox. Mention the kite.\\n", "The owl rests by the"), 2)
0.25
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, TypeAlias

Row: TypeAlias = dict[str, Any]
"""Column to value."""

SUBJECTS = ("fox", "owl", "baker", "sailor", "farmer", "painter", "heron", "miller")
THINGS = ("kite", "lantern", "ladder", "basket", "bell", "boat", "drum", "coat")
COUNTS = {"two": 2, "three": 3, "four": 4}
ACTIONS = ("rests", "sings", "waits", "works", "walks", "listens", "hurries", "dreams", "whistles", "stays")
PLACES = ("by the gate", "under the oak", "in the meadow", "near the mill", "on the hill", "behind the barn", "at the harbour")
TIMES = ("at dawn", "at noon", "in the evening", "after the rain", "every day", "before supper")
HANDLES = ("finds", "likes", "carries", "paints", "watches", "remembers", "looks for", "talks about")
PROMPTS = (
    "Write {count} sentences about the {subject}. Mention the {thing}.\n",
    "Tell me about the {subject} in {count} sentences, and mention the {thing}.\n",
    "In {count} sentences, say what the {subject} does. The {thing} must appear.\n",
)

GOLD_WEIGHTS = {"subject": 0.3, "thing": 0.2, "count": 0.2, "variety": 0.15, "form": 0.15}
"""What the gold reward is made of; the parts are those of `gold_parts`."""

_SENTENCE = re.compile(r"[^.]+\.?")
_WORDS_PER_SENTENCE = range(4, 11)


@dataclass(frozen=True, slots=True)
class Request:
    """What a prompt asks for.

    Args:
        subject: Whom every sentence should be about.
        thing: What should be mentioned.
        count: How many sentences.
    """

    subject: str
    thing: str
    count: int

    @classmethod
    def read(cls, prompt: str) -> Request | None:
        """The request in a prompt; None if the prompt is not of this world."""
        words = _words(prompt)
        subjects, things, counts = ([word for word in words if word in known] for known in (SUBJECTS, THINGS, COUNTS))
        return cls(subjects[0], things[0], COUNTS[counts[0]]) if subjects and things and counts else None


def gold_parts(request: Request, completion: str) -> dict[str, float]:
    """The parts of the gold reward, each from 0 to 1.

    - ``subject``: the share of sentences that name the subject;
    - ``thing``: whether the thing is named;
    - ``count``: 1 for the number of sentences asked for, 0.5 for one more or less, else 0;
    - ``variety``: the share of sentences that are not repeated;
    - ``form``: the share of sentences with a capital, a full stop, 4 to 10 words and, but for "the", no word twice.
    """
    sentences = [text for sentence in _SENTENCE.findall(completion) if (text := sentence.strip())]
    if not sentences:
        return dict.fromkeys(GOLD_WEIGHTS, 0.0)
    return {
        "subject": sum(request.subject in _words(sentence) for sentence in sentences) / len(sentences),
        "thing": float(request.thing in _words(completion)),
        "count": max(0.0, 1 - abs(len(sentences) - request.count) / 2),
        "variety": len(set(sentences)) / len(sentences),
        "form": sum(map(_well_formed, sentences)) / len(sentences),
    }


def gold(prompt: str, completion: str) -> float | None:
    """The true reward of a completion, from 0 to 1; None for a prompt that is not of this world."""
    request = Request.read(prompt)
    if request is None:
        return None
    parts = gold_parts(request, completion)
    return math.fsum(weight * parts[name] for name, weight in GOLD_WEIGHTS.items())


def gold_reward(prompts: Sequence[str], completions: Sequence[str], **columns: Any) -> list[float | None]:
    """`gold` in the signature of TRL's reward functions: ``rm.load("rm_plugins_trl.demo.world:gold_reward")``."""
    return [gold(prompt, completion) for prompt, completion in zip(prompts, completions, strict=True)]


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z]+", text.lower())


def _well_formed(sentence: str) -> bool:
    words = _words(sentence)
    content = [word for word in words if word != "the"]
    return (
        sentence[0].isupper()
        and sentence.endswith(".")
        and len(words) in _WORDS_PER_SENTENCE
        and len(set(content)) == len(content)
    )


@dataclass(frozen=True, slots=True)
class World:
    """What there is to learn from and to measure on; rows are in TRL's formats.

    Args:
        pairs: Rows ``prompt``, ``chosen``, ``rejected`` to train the reward model on.
        held_out_pairs: Further pairs, whose prompts occur nowhere else.
        demonstrations: Rows ``prompt``, ``completion`` of mixed quality, to begin the policy with.
        prompts: Rows ``prompt`` for reinforcement learning.
        held_out_prompts: Rows ``prompt`` to measure the policy on; the prompts of `held_out_pairs`.
        has_gold: Whether the true reward is known.
    """

    pairs: list[Row]
    held_out_pairs: list[Row]
    demonstrations: list[Row]
    prompts: list[Row]
    held_out_prompts: list[Row]
    has_gold: bool = True


def make_world(
    seed: int = 0,
    *,
    pairs: int = 8_000,
    held_out_pairs: int = 500,
    demonstrations: int = 8_000,
    held_out_prompts: int = 192,
    sharpness: float = 10.0,
    flip_rate: float = 0.05,
) -> World:
    """Sample the world; the same arguments give the same world.

    A label follows Bradley and Terry: the better answer wins with probability sigmoid(`sharpness` x difference of gold), and
    a share of the labels is then turned around. Held-out prompts occur only in the held-out rows.
    """
    rng = random.Random(seed)
    prompts = [
        template.format(count=count, subject=subject, thing=thing)
        for count, subject, thing in product(COUNTS, SUBJECTS, THINGS)
        for template in PROMPTS
    ]
    rng.shuffle(prompts)
    unseen, seen = prompts[:held_out_prompts], prompts[held_out_prompts:]

    def sample_pairs(number: int, source: Sequence[str]) -> list[Row]:
        return [_pair(source[row % len(source)], rng, sharpness, flip_rate) for row in range(number)]

    return World(
        pairs=sample_pairs(pairs, seen),
        held_out_pairs=sample_pairs(held_out_pairs, unseen),
        demonstrations=[
            {"prompt": prompt, "completion": _answer(prompt, rng.uniform(0.0, 0.6), rng)}
            for prompt in (seen[row % len(seen)] for row in range(demonstrations))
        ],
        prompts=[{"prompt": prompt} for prompt in seen],
        held_out_prompts=[{"prompt": prompt} for prompt in unseen],
    )


def _pair(prompt: str, rng: random.Random, sharpness: float, flip_rate: float) -> Row:
    first = _answer(prompt, rng.random(), rng)
    second = first
    while second == first:  # a pair must leave something to prefer
        second = _answer(prompt, rng.random(), rng)
    difference = (gold(prompt, first) or 0.0) - (gold(prompt, second) or 0.0)
    first_wins = rng.random() < 1 / (1 + math.exp(-sharpness * difference))
    if rng.random() < flip_rate:
        first_wins = not first_wins
    chosen, rejected = (first, second) if first_wins else (second, first)
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def _answer(prompt: str, care: float, rng: random.Random) -> str:
    """An answer by somebody who heeds each part of the request with probability `care`."""
    request = Request.read(prompt)
    if request is None:
        raise ValueError(f"Not a prompt of this world: {prompt!r}")

    def heeds() -> bool:
        return rng.random() < care

    count = request.count if heeds() else rng.randint(1, 5)
    mentioned_in = rng.randrange(count) if heeds() else None
    sentences: list[str] = []
    for position in range(count):
        if sentences and not heeds() and rng.random() < 0.4:
            sentences.append(sentences[-1])
            continue
        subject = request.subject if heeds() else rng.choice(SUBJECTS)
        thing = request.thing if position == mentioned_in else rng.choice((None, None, rng.choice(THINGS)))
        sentences.append(_sentence(subject, thing, rng))
    answer = " ".join(sentences)
    if not heeds() and rng.random() < 0.4:
        words = answer.split()
        answer = " ".join(words[: -rng.randint(1, 4)])
    return answer


def _sentence(subject: str, thing: str | None, rng: random.Random) -> str:
    deed = f"{rng.choice(HANDLES)} the {thing}" if thing else rng.choice(ACTIONS)
    return f"The {subject} {deed} {rng.choice(PLACES + TIMES)}."
