"""The probabilities of labels at the first token of an answer."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import permutations
from typing import Any

from rm_plugins.errors import AnswerError, SpecError, UnsupportedError
from rm_plugins.replies.reasoning import OPEN_REASONING, end_of_reasoning

_CONTINUES = re.compile(r"\w|[.,]\d")
"""Text after a label that makes it another word or number, as in "None" (No) or "1.5" (1)."""

_INSTEAD = (
    "Use a server and model that return them, or let the judge answer with a number: `range: [1, 10]` instead of `labels`"
)


@dataclass(frozen=True, slots=True)
class LabelMasses:
    """The probability of each label at the first token of an answer.

    Args:
        masses: The probability of each label, not normalized; empty if there is an error.
        beginning: The beginning of the answer, for messages.
        error: Why there are none; empty if there are.
    """

    masses: Mapping[str, float] = field(default_factory=dict)
    beginning: str = ""
    error: str = ""

    @property
    def mass(self) -> float:
        """The probability of all labels together."""
        return math.fsum(self.masses.values())


class Labels:
    """The labels that an answer may be, each of which is recognized at its first token.

    Args:
        labels: At least two texts.

    Raises:
        SpecError: There are fewer, one is empty or has white space around it, or one is the beginning of another.
    """

    def __init__(self, labels: Iterable[str]) -> None:
        self.names = tuple(labels)
        if len(self.names) < 2 or any(not label.strip() or label != label.strip() for label in self.names):
            raise SpecError(f"needs at least two texts without white space around them, not {[*self.names]}.", key="labels")
        for one, other in permutations(self.names, 2):
            if other.casefold().startswith(one.casefold()) and (len(one) < len(other) or one == other):
                raise SpecError(
                    f"{other!r} begins with {one!r}, so the first token of an answer may not distinguish them; use other labels, such as "
                    "letters, or let the judge answer with a number ('range').",
                    key="labels",
                )
        folded = [label.casefold() for label in self.names]
        self._folded = {label.casefold(): label for label in self.names if folded.count(label.casefold()) == 1}

    def label_of(self, token: str) -> str | None:
        """The label of which a token is a variant; None if there is none.

        >>> Labels(["Yes", "No"]).label_of(" YES")
        'Yes'
        """
        bare = token.strip(" \t\r\n\u2581\u0120\u010a")  # including the characters that vocabularies use for space and newline
        return bare if bare in self.names else self._folded.get(bare.casefold())

    def masses(self, choice: Mapping[str, Any]) -> LabelMasses:
        """The probability of each label in a choice of the chat completions API that has logprobs.

        Raises:
            AnswerError: The logprobs are not in the format of the API, or their probabilities add up to more than 1.
            UnsupportedError: The choice has no logprobs.
        """
        logprobs = choice.get("logprobs")
        entries = logprobs.get("content") if isinstance(logprobs, Mapping) else None
        if not entries and choice["message"].get("content"):
            raise UnsupportedError(f"the answer has no logprobs, which labels need. {_INSTEAD}")
        if entries is None:
            return LabelMasses(error=f"the judge's answer is empty (finish_reason: {choice.get('finish_reason')})")
        if not isinstance(entries, list) or not all(_is_token(entry) for entry in entries):
            raise AnswerError(f"the logprobs are {entries!r:.80}; a list of tokens was expected", rows=[0])
        tokens = [entry["token"] for entry in entries]
        first = _first_of_answer(tokens, choice["message"])
        if first is None:
            return LabelMasses(
                error=f"the judge's reasoning did not end within max_tokens; raise it. It ends with {''.join(tokens)[-200:]!r}"
            )
        return self.at(tokens[first:], _alternatives(entries[first]))

    def at(self, tokens: Sequence[str], alternatives: Iterable[tuple[str, float]]) -> LabelMasses:
        """The probability of each label at the first token of an answer.

        Args:
            tokens: The tokens of the answer, from the first one that is not white space.
            alternatives: The tokens that could be the first one, each with its probability.

        Raises:
            AnswerError: The probabilities add up to more than 1.
        """
        chosen, following = tokens[0], "".join(tokens[1:])
        if self.label_of(chosen) and chosen[-1:].isalnum() and _CONTINUES.match(following):
            word = f"{chosen}{following}".split()[0]
            return LabelMasses(error=f"the judge answered {word!r:.80}, which begins with a label but is not one")
        masses = dict.fromkeys(self.names, 0.0)
        for token, probability in alternatives:
            if (label := self.label_of(token)) is not None:
                masses[label] += probability
        mass = math.fsum(masses.values())
        if mass > 1.001:
            raise AnswerError(f"the probabilities of the labels add up to {mass:.4g}, more than 1", rows=[0])
        return LabelMasses(masses, "".join(tokens)[:80])


def _is_token(entry: object) -> bool:
    return isinstance(entry, Mapping) and isinstance(entry.get("token"), str)


def _alternatives(entry: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Every token listed for a position, with its probability; includes the chosen token, which is not always among the top ones."""
    top = entry.get("top_logprobs")
    if top is None:
        raise UnsupportedError(f"the answer has logprobs of its own tokens only, and no top_logprobs. {_INSTEAD}")
    if not isinstance(top, list) or not all(_is_token(other) for other in top):
        raise AnswerError(f"top_logprobs is {top!r:.80}; a list of tokens was expected", rows=[0])
    named = top if any(other["token"] == entry["token"] for other in top) else [entry, *top]
    for other in named:
        logprob = other.get("logprob")
        if isinstance(logprob, bool) or not isinstance(logprob, (int, float)) or not math.isfinite(logprob):
            raise AnswerError(
                f"the logprob of {other['token']!r:.40} is {logprob!r:.80}; a finite number was expected", rows=[0]
            )
        yield other["token"], math.exp(min(logprob, 1.0))


def _first_of_answer(tokens: Sequence[str], message: Mapping[str, Any]) -> int | None:
    """The position of the first token after any reasoning that is not white space; None if there is none."""
    text = "".join(tokens)
    content = message.get("content")
    content = content.strip() if isinstance(content, str) else ""
    if (end := end_of_reasoning(text)) is not None:
        start = end
    elif OPEN_REASONING.match(text):
        return None
    elif message.get("reasoning_content") or message.get("reasoning"):
        # The server removed the reasoning from the content by its own rules, but not always from the tokens.
        start = text.rfind(content) if content else -1
        if start < 0:
            return None
    else:
        start = 0
    return first_word(tokens, start)


def first_word(tokens: Sequence[str], start: int) -> int | None:
    """The position of the first token with something other than white space at or after the character `start`; None if there is none."""
    end = 0
    for position, token in enumerate(tokens):
        end += len(token)
        if end > start and token[max(0, len(token) - (end - start)) :].strip():
            return position
    return None
