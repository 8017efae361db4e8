"""Phrases that many of the best-scored completions have in common."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from heapq import nlargest

import numpy as np

LEAST_SHARE = 0.3
"""Of the best-scored completions that have a phrase which has taken over."""
TIMES_EARLY = 3.0
"""How much more often than in early completions it comes."""

_SIGNIFICANT = 4.0  # of a z, as in every test of a training
_LEAST_TEXTS = 20
_LEAST_PROMPTS = 5
_SAMPLED = 64  # of the best completions, in which phrases are looked for; those that many have are in these too
_CANDIDATES = 40
_LONGEST = 24  # words

# A word, or one character of the scripts that put no spaces between words.
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W\u3040-\u30ff\u3400-\u9fff]+")


@dataclass(frozen=True, slots=True)
class ScoredText:
    """A completion as the phrases' test sees it.

    Args:
        prompt: Its prompt; completions of one prompt have equal ones.
        text: The completion.
        score: Its reward.
    """

    prompt: str
    text: str
    score: float
    words: str = field(init=False, repr=False)
    """The words in lower case, each between two spaces."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "words", f" {' '.join(_WORD.findall(self.text.lower()))} ")


@dataclass(frozen=True, slots=True)
class Phrase:
    """A sequence of words that many of the best-scored completions have.

    Args:
        text: The words, in lower case.
        top: The share of the best-scored recent completions that have it.
        rest: The share of the other recent ones, NaN where there are none.
        early: The share of all early ones, likewise.
        has_taken_over: Whether this is more than chance and more than it was.
    """

    text: str
    top: float
    rest: float
    early: float
    has_taken_over: bool


def common_phrases(
    top: Sequence[ScoredText], rest: Sequence[ScoredText], early: Sequence[ScoredText], *, n: int = 4, most: int = 10
) -> list[Phrase]:
    """The phrases that many of the best-scored completions have, and how many of the others have them.

    Phrases of `n` words that overlap and come together are one longer phrase.

    Args:
        top: The best-scored completions.
        rest: The other ones of the same steps.
        early: Completions of early steps.
        n: The words that a phrase has at least, 2 or more.
        most: How many to return.

    Returns:
        First those that grew most: by the share at the top minus that in early completions.
    """
    now, then = _sampled_shares(top, n), _sampled_shares(early, n)
    candidates = nlargest(_CANDIDATES, now, key=lambda ngram: (now[ngram] - then.get(ngram, 0.0), ngram))
    shares = {ngram: _share(ngram, top) for ngram in candidates}
    before = {ngram: _share(ngram, early) if early else 0.0 for ngram in shares}
    phrases: list[Phrase] = []
    for ngram in sorted(shares, key=lambda ngram: (before[ngram] - shares[ngram], ngram)):
        if len(phrases) == most:
            break
        if not any(_overlap(ngram, phrase.text, n) for phrase in phrases):
            text = _extended(ngram, shares, top, n)
            if not any(f" {phrase.text} " in f" {text} " for phrase in phrases):
                phrases.append(_phrase(text, top, rest, early))
    return phrases


def _phrase(text: str, top: Sequence[ScoredText], rest: Sequence[ScoredText], early: Sequence[ScoredText]) -> Phrase:
    share, before, others = _share(text, top), _share(text, early), _share(text, rest)
    prompts = {one.prompt for one in top if f" {text} " in one.words}
    taken_over = (
        min(len(top), len(early)) >= _LEAST_TEXTS
        and share >= max(LEAST_SHARE, TIMES_EARLY * before)
        and len(prompts) >= min(_LEAST_PROMPTS, len({one.prompt for one in top}))
        and _z(share, len(top), before, len(early)) >= _SIGNIFICANT
        and (not rest or _z(others, len(rest), share, len(top)) < _SIGNIFICANT)  # else the reward avoids the phrase
    )
    return Phrase(text, share, others, before, taken_over)


def _z(share: float, n: int, before: float, m: int) -> float:
    """The z of the difference of two shares, of n and m texts, with their pooled standard error; 0 where both are 0 or both are 1."""
    pooled = (share * n + before * m) / (n + m)
    if pooled in (0, 1):
        return 0.0
    return (share - before) / math.sqrt(pooled * (1 - pooled) * (1 / n + 1 / m))


def top_and_rest(steps: Iterable[Sequence[ScoredText]]) -> tuple[list[ScoredText], list[ScoredText]]:
    """The completions whose reward is in the highest quarter of their step (all that tie with its lowest), and the others."""
    top: list[ScoredText] = []
    rest: list[ScoredText] = []
    for texts in steps:
        if texts:
            least = float(np.quantile([text.score for text in texts], 0.75, method="higher"))
            for text in texts:
                (top if text.score >= least else rest).append(text)
    return top, rest


def _sampled_shares(texts: Sequence[ScoredText], n: int) -> dict[str, float]:
    """In which share of some texts each n-gram is."""
    some = texts[:: max(1, math.ceil(len(texts) / _SAMPLED))]
    counts = Counter(ngram for text in some for ngram in _ngrams(text.words, n))
    return {ngram: count / len(some) for ngram, count in counts.items()}


def _ngrams(words: str, n: int) -> set[str]:
    listed = words.split()
    return {" ".join(listed[start : start + n]) for start in range(len(listed) - n + 1)}


def _share(phrase: str, texts: Sequence[ScoredText]) -> float:
    wanted = f" {phrase} "
    return sum(wanted in text.words for text in texts) / len(texts) if texts else math.nan


def _overlap(ngram: str, phrase: str, n: int) -> bool:
    """Whether all but one of the words of an n-gram, in a row, are in a phrase."""
    words = ngram.split()
    return any(f" {' '.join(part)} " in f" {phrase} " for part in (words[: n - 1], words[1:]))


def _extended(ngram: str, ngrams: Mapping[str, float], top: Sequence[ScoredText], n: int) -> str:
    """The longest phrase around an n-gram that nearly as many texts have."""
    least = 0.9 * ngrams[ngram]

    def longer(phrase: str) -> Iterator[str]:
        words = phrase.split()
        for other in ngrams:
            more = other.split()
            if more[:-1] == words[len(words) - n + 1 :]:
                yield f"{phrase} {more[-1]}"
            if more[1:] == words[: n - 1]:
                yield f"{more[0]} {phrase}"

    phrase: str | None = ngram
    while phrase is not None and len(phrase.split()) < _LONGEST:
        ngram = phrase
        phrase = next((candidate for candidate in longer(ngram) if _share(candidate, top) >= least), None)
    return ngram
