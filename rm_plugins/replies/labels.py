"""The probabilities of labels at the first token of an answer."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import permutations
from numbers import Real
from typing import Any

from rm_plugins.errors import AnswerError, SpecError, UnsupportedError
from rm_plugins.replies.chat_choice import chat_text, content_of, is_cut_off, reasoning_field
from rm_plugins.replies.reasoning import end_of_reasoning, has_open_reasoning
from rm_plugins.replies.verdict import contradiction

_CONTINUES = re.compile(r"\w|[.,]\d")
"""Text after a label that makes it another word or number, as in "None" (No) or "1.5" (1)."""

_SPACES = str.maketrans({"\u2581": " ", "\u0120": " ", "\u010a": "\n"})
"""The characters that vocabularies use for space and newline."""

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
        bare = with_spaces(token).strip()
        return bare if bare in self.names else self._folded.get(bare.casefold())

    def masses(self, choice: Mapping[str, Any]) -> LabelMasses:
        """The probability of each label in a choice of the chat completions API that has logprobs.

        Raises:
            AnswerError: The logprobs are not in the format of the API, or their probabilities add up to more than 1.
            UnsupportedError: The choice has no logprobs.
        """
        logprobs = choice.get("logprobs")
        entries = logprobs.get("content") if isinstance(logprobs, Mapping) else None
        if not entries and content_of(choice["message"]).strip():
            raise UnsupportedError(f"the answer has no logprobs, which labels need. {_INSTEAD}")
        if entries is None:
            return LabelMasses(error=f"the judge's answer is empty (finish_reason: {choice.get('finish_reason')})")
        if not isinstance(entries, list) or not all(_is_token(entry) for entry in entries):
            raise AnswerError(f"the logprobs are {entries!r:.80}; a list of tokens was expected", rows=[0])
        tokens = [with_spaces(entry["token"]) for entry in entries]
        content = with_spaces(content_of(choice["message"])).strip()
        start = _start_of_answer("".join(tokens), content, has_field=reasoning_field(choice["message"]))
        first = None if start is None else first_word(tokens, start)
        if first is not None:
            return self.at(tokens[first:], _alternatives(entries[first]))
        written = "".join(tokens)
        if is_cut_off(choice) or has_open_reasoning(written):
            return LabelMasses(
                error=f"the judge's reasoning did not end within max_tokens; raise it. It ends with {written[-200:]!r}"
            )
        error = chat_text(choice).error
        return LabelMasses(
            error=error or f"the logprobs are of the text {written[:80]!r}, and the judge's answer is {content[:80]!r}"
        )

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
        label = self.label_of(chosen)
        if label and (wrong := contradiction("".join(tokens), self.names, label)):
            return LabelMasses(error=wrong)
        masses = dict.fromkeys(self.names, 0.0)
        for token, probability in alternatives:
            if (label := self.label_of(token)) is not None:
                masses[label] += probability
        mass = math.fsum(masses.values())
        if mass > 1.001:
            raise AnswerError(f"the probabilities of the labels add up to {mass:.4g}, more than 1", rows=[0])
        return LabelMasses(masses, "".join(tokens)[:80])

    def checked(self, masses: Mapping[str, float], text: str = "") -> LabelMasses:
        """The same from label probabilities of any origin; it is an error if they are not one for each label, not probabilities,
        or if the text of the answer has different labels.

        >>> Labels(["Yes", "No"]).checked({"Yes": 1.5, "No": -0.5}).error
        "the judge's label probabilities are {'Yes': 1.5, 'No': -0.5}; one of 0 to 1 for each of 'Yes', 'No' was expected, 1 in all"
        """
        known = [masses[name] for name in self.names if is_probability(masses.get(name))]
        if len(known) < len(self.names) or math.fsum(known) > 1.001:
            names = ", ".join(map(repr, self.names))
            return LabelMasses(
                error=f"the judge's label probabilities are {dict(masses)!r:.200}; one of 0 to 1 for each of {names} was expected, 1 in all"
            )
        wrong = contradiction(text, self.names)
        return LabelMasses(error=wrong) if wrong else LabelMasses(masses, text[:80])


def is_probability(value: object) -> bool:
    """Whether a value is a number from 0 to 1.

    >>> [value for value in (0, 0.5, 1.5, -0.1, float("nan"), "1", None) if is_probability(value)]
    [0, 0.5]
    """
    return isinstance(value, Real) and value <= 1 and not value < 0


def with_spaces(token: str) -> str:
    """A token with spaces and newlines where its vocabulary writes other characters for them, as some servers show it.

    >>> with_spaces("\u0120Yes")
    ' Yes'
    """
    return token.translate(_SPACES)


def _is_token(entry: object) -> bool:
    return isinstance(entry, Mapping) and isinstance(entry.get("token"), str)


def _alternatives(entry: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Every token listed for a position, with its probability; includes the chosen token, which is not always among the top ones."""
    top = entry.get("top_logprobs")
    if not top:
        raise UnsupportedError(f"the answer has logprobs of its own tokens only, and no top_logprobs. {_INSTEAD}")
    if not isinstance(top, list) or not all(_is_token(other) for other in top):
        raise AnswerError(f"top_logprobs is {top!r:.80}; a list of tokens was expected", rows=[0])
    named = top if any(other["token"] == entry["token"] for other in top) else [entry, *top]
    for other in named:
        logprob = other.get("logprob")
        if isinstance(logprob, bool) or not isinstance(logprob, (int, float)) or not -math.inf < logprob < math.inf:
            raise AnswerError(
                f"the logprob of {other['token']!r:.40} is {logprob!r:.80}; a finite number was expected", rows=[0]
            )
        yield other["token"], math.exp(max(min(logprob, 1.0), -1000.0))


def _start_of_answer(text: str, content: str, *, has_field: bool) -> int | None:
    """Where the answer begins in the text of all tokens; None if it is not in it.

    Args:
        text: The text.
        content: The answer, perhaps with its reasoning, as the server gives it.
        has_field: Whether the server gives reasoning in a field of its own.
    """
    if not content or has_open_reasoning(text):
        return None
    if (end := end_of_reasoning(text)) is not None:
        return end
    # The server may have removed the reasoning from the content, but not from the tokens, which may end with special ones.
    if whole := re.search(rf"{re.escape(content)}\s*(?:<[^<>\s]+>\s*)*\Z", text):
        return whole.start()
    # Few servers list all tokens of other scripts as text, or tokens after the first ones at all.
    words = text.split(maxsplit=1)
    return 0 if words and not has_field and content.startswith(words[0][:1]) else None


def first_word(tokens: Sequence[str], start: int) -> int | None:
    """The position of the first token with something other than white space at or after the character `start`; None if there is none."""
    end = 0
    for position, token in enumerate(tokens):
        end += len(token)
        if end > start and token[max(0, len(token) - (end - start)) :].strip():
            return position
    return None
