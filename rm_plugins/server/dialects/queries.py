"""Splits queries, which are prompt and completion in one text, as decoded by a policy's tokenizer.

The tokenizer is not known here. A text is split only if the place is unambiguous, and refused otherwise.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from rm_plugins.errors import DataError

_SPECIAL = "|".join(
    [
        r"<\|[^<>|\s]{1,64}\|>",  # Qwen, Llama 3, Phi, gpt-oss and similar models
        r"<\uff5c[^<>\uff5c\s]{1,64}\uff5c>",  # DeepSeek
        r"\[\|[^\[\]|\s]{1,64}\|\]",  # EXAONE
        r"</?s>",  # T5, Llama 2, Mistral
        r"<(?:bos|eos|pad|start_of_turn|end_of_turn)>",  # Gemma
    ]
)
"""A pattern for special tokens."""
_LAST = re.compile(rf"(?:{_SPECIAL})\Z")
_LONGEST = 70
_NOISE = re.compile(rf"{_SPECIAL}|\s+")
_LEAST_OVERLAP = 16
"""The smallest overlap, in characters, by which the end of a prompt is recognized at the beginning of a query."""


def has_special_tokens(text: str) -> bool:
    """Whether a text has special tokens of a chat template, so that a model must not render it again.

    >>> has_special_tokens("<|user|>2+2?<|assistant|>"), has_special_tokens("Is 2 < 3?")
    (True, False)
    """
    return re.search(_SPECIAL, text) is not None


def completion_of(query: str, prompt: str) -> str:
    """The text after the prompt in a query.

    The query's prompt may differ from `prompt` in spaces, special tokens and Unicode normalization, because tokenizers change these. It may
    also lack the beginning of the prompt, because trainers truncate long prompts.

    Raises:
        DataError: The end of the prompt cannot be determined.

    >>> completion_of("<|user|>2+2?<|assistant|>4", "<|user|>2+2?<|assistant|>")
    '4'
    >>> completion_of("user 2+2? assistant 4", "<|user|>user 2+2?<|end|> assistant ")
    '4'
    """
    forms = dict.fromkeys([prompt, unicodedata.normalize("NFC", prompt), unicodedata.normalize("NFKC", prompt)])
    for form in forms:
        if query.startswith(form):
            return query[len(form) :]
    for form in forms:
        end = _end_ignoring_noise(query, form)
        if end is not None:
            return query[end:]
    rest = query.lstrip("\ufffd")  # the remains of a character that was cut in two
    overlaps = [] if prompt[:_LEAST_OVERLAP] == rest[:_LEAST_OVERLAP] else _overlaps(prompt, rest)
    if len(overlaps) == 1:
        return rest[overlaps[0] :]
    raise DataError(
        f"The end of its prompt cannot be determined: the query begins with {query[:60]!r}, and the prompt with {prompt[:60]!r}. Send "
        "prompt and completion decoded together by the policy's tokenizer; or omit the prompts, and the whole query is the completion."
    )


def without_eos(completion: str, eos_texts: Sequence[str] | None = None) -> str:
    """A completion without the EOS tokens that a policy's tokenizer has decoded as text at its end.

    Args:
        completion: The completion.
        eos_texts: The texts of the EOS tokens. By default, texts that look like special tokens are removed, except a ``</s>`` that closes
            an ``<s>``, as in HTML.

    >>> without_eos("It is 4.<|im_end|>"), without_eos("<s>4</s> 5, no: <s>5</s>")
    ('It is 4.', '<s>4</s> 5, no: <s>5</s>')
    >>> without_eos("It is 4.[END]", ["[END]"]), without_eos("It is 4.<|im_end|>", [])
    ('It is 4.', 'It is 4.<|im_end|>')
    """
    while last := _last_eos(completion, eos_texts):
        completion = completion.removesuffix(last)
    return completion


def _last_eos(completion: str, eos_texts: Sequence[str] | None) -> str:
    if eos_texts is not None:
        return next((text for text in eos_texts if text and completion.endswith(text)), "")
    match = _LAST.search(completion[-_LONGEST:])
    if match is None or (match.group() == "</s>" and completion.count("<s>") >= completion.count("</s>")):
        return ""
    return match.group()


def _end_ignoring_noise(query: str, prompt: str) -> int | None:
    """The end of the prompt in a query that begins with it, ignoring spaces and special tokens; None if it does not."""
    letters = _NOISE.sub("", prompt)
    compared = place = 0
    for start, end in [*(noise.span() for noise in _NOISE.finditer(query)), (len(query), len(query))]:
        run = query[place:start][: len(letters) - compared]
        if not letters.startswith(run, compared):
            return None
        compared += len(run)
        if compared == len(letters):
            return _past_the_same_noise(query, place + len(run), prompt) if letters else None
        place = end
    return None


def _past_the_same_noise(query: str, place: int, prompt: str) -> int:
    """The position in the query after the spaces and special tokens at the end of the prompt, as far as the query has them."""
    ending: list[str] = []
    left = len(prompt)
    for noise in reversed(list(_NOISE.finditer(prompt))):
        if noise.end() != left:
            break
        ending.insert(0, noise.group())
        left = noise.start()
    for piece in ending:
        match = _NOISE.match(query, place)
        if match is None:
            break
        if piece.isspace() and match.group().isspace():
            place += min(len(piece), len(match.group()))
        elif match.group() == piece:
            place = match.end()
    return place


def _overlaps(prompt: str, query: str) -> list[int]:
    """The lengths of all overlaps between the end of the prompt and the beginning of the query, longest first."""
    longest = [0] * len(query)  # the failure function of Knuth, Morris and Pratt (1977)
    length = 0
    for place in range(1, len(query)):
        while length and query[place] != query[length]:
            length = longest[length - 1]
        length += query[place] == query[length]
        longest[place] = length
    length = 0
    for character in prompt if query else "":
        while length and (length == len(query) or character != query[length]):
            length = longest[length - 1]
        length += character == query[length]
    overlaps = []
    while length >= _LEAST_OVERLAP:
        overlaps.append(length)
        length = longest[length - 1]
    return overlaps
