"""Where a completion begins and ends in a query: prompt and completion in one text, as a policy's tokenizer decodes them.

The tokenizer itself is not known here. A text is split only where there is no doubt, and refused otherwise.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from rm_plugins.errors import DataError

_SPECIAL = "|".join(
    [
        r"<\|[^<>|\s]{1,64}\|>",  # Qwen, Llama 3, Phi, gpt-oss and their kin
        r"<\uff5c[^<>\uff5c\s]{1,64}\uff5c>",  # DeepSeek
        r"\[\|[^\[\]|\s]{1,64}\|\]",  # EXAONE
        r"</?s>",  # T5, Llama 2, Mistral
        r"<(?:bos|eos|pad|start_of_turn|end_of_turn)>",  # Gemma
    ]
)
"""What special tokens look like."""
_LAST = re.compile(rf"(?:{_SPECIAL})\Z")
_LONGEST = 70
_NOISE = re.compile(rf"{_SPECIAL}|\s+")
_LEAST_OVERLAP = 16
"""Characters that the end of a prompt and the beginning of a query must have in common to be the same place."""


def completion_of(query: str, prompt: str) -> str:
    """What follows the prompt in a query.

    A query may differ from its prompt in spaces, special tokens and the form of its characters, as tokenizers change them, and may lack
    the prompt's beginning, which trainers cut off where it is too long.

    Raises:
        DataError: It cannot be told where the prompt ends.

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
        end = _end_but_for_noise(query, form)
        if end is not None:
            return query[end:]
    rest = query.lstrip("\ufffd")  # which is what is left of a character that was cut in two
    overlaps = [] if prompt[:_LEAST_OVERLAP] == rest[:_LEAST_OVERLAP] else _overlaps(prompt, rest)
    if len(overlaps) == 1:
        return rest[overlaps[0] :]
    raise DataError(
        f"It cannot be told where its prompt ends: the query begins with {query[:60]!r}, and the prompt with {prompt[:60]!r}. Send what "
        "the policy's tokenizer decodes of prompt and completion together; or no prompts, and the whole query is the completion."
    )


def without_eos(completion: str, eos_texts: Sequence[str] | None = None) -> str:
    """A completion without the end-of-sequence tokens that a policy's tokenizer has left at its end as text.

    Args:
        completion: What the policy wrote.
        eos_texts: These tokens. By default it is what looks like special tokens; ``</s>`` does not where it closes an ``<s>``, as in HTML.

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
    looks = _LAST.search(completion[-_LONGEST:])
    if looks is None or (looks.group() == "</s>" and completion.count("<s>") >= completion.count("</s>")):
        return ""
    return looks.group()


def _end_but_for_noise(query: str, prompt: str) -> int | None:
    """Where the prompt ends in a query that begins like it but for spaces and special tokens; None where it does not."""
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
    """Where in the query those spaces and special tokens end that the prompt ends with, as far as the query has them."""
    ending: list[str] = []
    left = len(prompt)
    for noise in reversed(list(_NOISE.finditer(prompt))):
        if noise.end() != left:
            break
        ending.insert(0, noise.group())
        left = noise.start()
    for piece in ending:
        there = _NOISE.match(query, place)
        if there is None:
            break
        if piece.isspace() and there.group().isspace():
            place += min(len(piece), len(there.group()))
        elif there.group() == piece:
            place = there.end()
    return place


def _overlaps(prompt: str, query: str) -> list[int]:
    """How many of the query's first characters are the prompt's last, in every way in which that is so, the most first."""
    longest = [0] * len(query)  # by place, of the beginnings of the query that end there (Knuth, Morris and Pratt, 1977)
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
