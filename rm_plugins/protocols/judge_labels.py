"""Label grades of a judge: the expected value under the label probabilities at the first token of the answer."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from itertools import permutations
from typing import Any

from rm_plugins.errors import AnswerError, SpecError, UnsupportedError
from rm_plugins.protocols.protocol import Answer, finite

_CONTINUES = re.compile(r"\w|[.,]\d")
"""Text after a label that makes it another word or number, as in "None" (No) or "1.5" (1)."""

_END_OF_REASONING = "</think>"


class LabelScale:
    """The expected value over labels.

    Let p(l) be the total probability of all variants of the label l, and m the sum of p(l) over all labels. The grade is the sum of
    value(l) * p(l) / m.

    Args:
        values: The value of each label.
        min_mass: The smallest m for which there is a grade.

    Raises:
        SpecError: There are fewer than two labels, a value is not finite, a label is the beginning of another, or `min_mass` is not a
            probability above 0.
    """

    def __init__(self, values: Mapping[str, float], min_mass: float) -> None:
        labels = [*values]
        if len(labels) < 2 or any(not label.strip() or label != label.strip() for label in labels):
            raise SpecError(f"needs at least two texts without white space around them, not {labels}.", key="labels")
        for label, value in values.items():
            if not math.isfinite(value):
                raise SpecError(f"the value of {label!r} must be a finite number, not {value}.", key="labels")
        for one, other in permutations(labels, 2):
            if other.casefold().startswith(one.casefold()) and len(one) < len(other):
                raise SpecError(
                    f"{other!r} begins with {one!r}, so the first token of an answer may not distinguish them; use other labels, such as "
                    "letters, or let the judge answer with a number ('range').",
                    key="labels",
                )
        if not 0 < min_mass <= 1:
            raise SpecError(f"must be a probability above 0, not {min_mass}.", key="min_label_mass")
        self.values = dict(values)
        self.min_mass = min_mass
        folded = [label.casefold() for label in labels]
        self._folded = {label.casefold(): label for label in labels if folded.count(label.casefold()) == 1}

    @property
    def instruction(self) -> str:
        """The sentence that tells the judge the form of the answer."""
        return f"Answer with one word and nothing else: {' or '.join(self.values)}."

    def label_of(self, token: str) -> str | None:
        """The label of which a token is a variant; None if there is none.

        >>> LabelScale({"Yes": 1.0, "No": 0.0}, 0.5).label_of(" YES")
        'Yes'
        """
        bare = token.strip(" \t\r\n\u2581\u0120\u010a")  # including the characters that vocabularies use for space and newline
        return bare if bare in self.values else self._folded.get(bare.casefold())

    def grade(self, choice: Mapping[str, Any]) -> Answer:
        """The grade of a choice with logprobs, or the error why there is no grade.

        Raises:
            AnswerError: The logprobs are not in the format of the API.
            UnsupportedError: The choice has no logprobs.
        """
        logprobs = choice.get("logprobs")
        entries = logprobs.get("content") if isinstance(logprobs, Mapping) else None
        if not entries and choice["message"].get("content"):
            raise UnsupportedError(
                "the answer has no logprobs, which labels need. Use a server and model that return them, or let the judge answer with a "
                "number: `range: [1, 10]` instead of `labels`"
            )
        if entries is None:
            return Answer([None], errors={0: f"the judge's answer is empty (finish_reason: {choice.get('finish_reason')})"})
        if not isinstance(entries, list) or not all(_is_token(entry) for entry in entries):
            raise AnswerError(f"the logprobs are {entries!r:.80}; a list of tokens was expected", rows=[0])
        tokens = [entry["token"] for entry in entries]
        first = _first_of_answer(tokens, choice["message"])
        if first is None:
            return Answer(
                [None],
                errors={
                    0: f"the judge's reasoning did not end within max_tokens; raise it. It ends with {''.join(tokens)[-200:]!r}"
                },
            )
        chosen, following = entries[first], "".join(tokens[first + 1 :])
        if self.label_of(chosen["token"]) and chosen["token"][-1:].isalnum() and _CONTINUES.match(following):
            word = f"{chosen['token']}{following}".split()[0]
            return Answer([None], errors={0: f"the judge answered {word!r:.80}, which begins with a label but is not one"})
        masses = dict.fromkeys(self.values, 0.0)
        for token, probability in _alternatives(chosen):
            if (label := self.label_of(token)) is not None:
                masses[label] += probability
        mass = math.fsum(masses.values())
        if mass > 1.001:
            raise AnswerError(f"the probabilities of the labels add up to {mass:.4g}, more than 1", rows=[0])
        if mass < self.min_mass:
            return Answer(
                [None],
                {"label_mass": [mass]},
                {
                    0: f"the labels {', '.join(self.values)} have a total probability of {mass:.3g} in the judge's answer, less than "
                    f"min_label_mass ({self.min_mass:g}); the answer begins with {''.join(tokens[first:])[:80]!r}"
                },
            )
        shares = {label: probability / mass for label, probability in masses.items()}
        value = math.fsum(self.values[label] * share for label, share in shares.items())
        return Answer([value], {"label_mass": [mass], **{f"label/{label}": [share] for label, share in shares.items()}})


def _is_token(entry: object) -> bool:
    return isinstance(entry, Mapping) and isinstance(entry.get("token"), str)


def _alternatives(entry: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Every token listed for a position, with its probability; includes the chosen token, which is not always among the top ones."""
    top = entry.get("top_logprobs")
    if top is None:
        raise UnsupportedError(
            "the answer has logprobs of its own tokens only, and no top_logprobs. Use a server and model that return them, or let the "
            "judge answer with a number: `range: [1, 10]` instead of `labels`"
        )
    if not isinstance(top, list) or not all(_is_token(other) for other in top):
        raise AnswerError(f"top_logprobs is {top!r:.80}; a list of tokens was expected", rows=[0])
    named = top if any(other["token"] == entry["token"] for other in top) else [entry, *top]
    for other in named:
        logprob = finite(other.get("logprob"), f"the logprob of {other['token']!r:.40}", row=0)
        yield other["token"], math.exp(min(logprob, 1.0))


def _first_of_answer(tokens: list[str], message: Mapping[str, Any]) -> int | None:
    """The position of the first token after any reasoning that is not white space; None if there is none."""
    text = "".join(tokens)
    content = message.get("content")
    content = content.strip() if isinstance(content, str) else ""
    if _END_OF_REASONING in text:
        start = text.rindex(_END_OF_REASONING) + len(_END_OF_REASONING)
    elif text.lstrip().startswith("<think>"):
        return None
    elif message.get("reasoning_content") or message.get("reasoning"):
        # The server removed the reasoning from the content by its own rules, but not always from the tokens.
        start = text.rfind(content) if content else -1
        if start < 0:
            return None
    else:
        start = 0
    end = 0
    for position, token in enumerate(tokens):
        end += len(token)
        if end > start and token[max(0, len(token) - (end - start)) :].strip():
            return position
    return None
