"""What is scored: a `Sample`, its text, and what samples have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, Literal, TypeAlias

from rm_plugins.canonical_json import canonical_json, listed
from rm_plugins.errors import DataError, RmPluginsError, UnsupportedError

Message: TypeAlias = Mapping[str, Any]
"""One turn of a conversation: ``{"role": ..., "content": ...}``; the content is text, or a list of texts and parts, as for vision
models."""

PROMPT_COLUMNS = ("tools", "chat_template_kwargs")
"""Columns that reach the chat template, and so belong to the prompt."""

ROLES = ("assistant", "developer", "function", "system", "tool", "user")

_INSTEAD_OF_CONTENT = ("tool_calls", "reasoning_content", "reasoning", "thinking")
"""Keys of messages that may have no content: an answer that was cut off while the model reasoned has none."""

Turns: TypeAlias = Literal["assistant", "last", "all"]
"""Which messages of a completion are read as its text; see `Sample.text_of_turns`."""


@dataclass(frozen=True, slots=True)
class Sample:
    """A completion to score.

    Prompt and completion are both text, or both message lists, as in TRL's standard and conversational formats. A text
    completion under a conversational prompt becomes one assistant message.

    Args:
        prompt: Text or messages; empty (``""`` or ``[]``) where there is none.
        completion: Text or messages. An empty completion is a completion: it is scored like any other.
        columns: The other columns of the dataset row, by name (``tools`` and ``chat_template_kwargs`` reach the chat
            template).

    Raises:
        DataError: Prompt or completion is neither text nor messages, a role is unknown, or a message has no content.

    >>> Sample("Q: 2+2?\\n", "4").is_conversational
    False
    >>> Sample([{"role": "user", "content": "2+2?"}], "4").completion
    [{'role': 'assistant', 'content': '4'}]
    """

    prompt: str | Sequence[Message]
    completion: str | Sequence[Message]
    columns: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_text_or_messages("prompt", self.prompt)
        if isinstance(self.completion, str) and not isinstance(self.prompt, str):
            object.__setattr__(self, "completion", [{"role": "assistant", "content": self.completion}])
        _check_text_or_messages("completion", self.completion)
        if isinstance(self.prompt, str) and not isinstance(self.completion, str):
            raise DataError(
                "A sample's prompt is text but its completion is a list of messages. Make both text or both messages."
            )

    @property
    def is_conversational(self) -> bool:
        """Whether prompt and completion are message lists."""
        return not isinstance(self.prompt, str)

    @property
    def messages(self) -> list[Message]:
        """The whole conversation.

        Raises:
            UnsupportedError: The sample is text.
        """
        if isinstance(self.prompt, str) or isinstance(self.completion, str):
            raise UnsupportedError("A text sample has no messages; look at `is_conversational` first.")
        return [*self.prompt, *self.completion]

    @property
    def text_messages(self) -> list[dict[str, Any]]:
        """The whole conversation with every content as text, for models and templates that take only text.

        Raises:
            UnsupportedError: The sample is text.
            DataError: A content has a part that is not text.
        """
        return [{**message, "content": message_text(message, strict=True)} for message in self.messages]

    @property
    def completion_text(self) -> str:
        """The completion as text: for messages, the contents of the assistant's, joined by line breaks.

        Raises:
            DataError: A content has a part that is not text.

        >>> Sample([{"role": "user", "content": "2+2?"}], "4").completion_text
        '4'
        """
        return self.text_of_turns("assistant")

    def text_of_turns(self, turns: Turns) -> str:
        """The completion as text, of some of its messages; a completion that is text is returned unchanged.

        Args:
            turns: ``assistant``: the contents of the assistant's messages, joined by line breaks, as in `completion_text`. ``last``: the
                content of the assistant's last message, which is empty where that only calls tools. ``all``: every message with its role
                and the tools that it calls, one per line.

        Raises:
            DataError: A content has a part that is not text.

        >>> call = {"type": "function", "function": {"name": "add", "arguments": {"a": 2, "b": 2}}}
        >>> turns = [{"role": "assistant", "content": None, "tool_calls": [call]}, {"role": "tool", "name": "add", "content": "4"}]
        >>> print(Sample([], [*turns, {"role": "assistant", "content": "It is 4."}]).text_of_turns("all"))
        assistant calls add({"a": 2, "b": 2})
        tool add: 4
        assistant: It is 4.
        """
        if isinstance(self.completion, str):
            return self.completion
        if turns == "all":
            return "\n".join(line for message in self.completion for line in _lines_of(message))
        said = [message for message in self.completion if message["role"] == "assistant"]
        answers = [message_text(message, strict=True) for message in (said[-1:] if turns == "last" else said)]
        return "\n".join(answer for answer in answers if answer)

    @property
    def prompt_key(self) -> bytes:
        """16 bytes that are equal for samples of the same prompt only: a digest of its messages, tools, and template settings.

        >>> Sample("2+2?", "4").prompt_key == Sample("2+2?", "5", {"difficulty": 1}).prompt_key
        True
        """
        return prompt_key(self.prompt, self.columns)

    @property
    def key(self) -> bytes:
        """16 bytes that are equal for equal samples only: a digest of the prompt and the completion."""
        return _digest([self.prompt_key.hex(), _canonical(self.completion)])


@dataclass(frozen=True, slots=True)
class RenderedSample(Sample):
    """A text that is scored unchanged, or token ids: what clients of a scoring server send that render samples themselves.

    A model adds nothing to it: no template, no EOS. For any other provider it is a completion without a prompt.

    Args:
        prompt: The prompt, where it is known, for rewards that compare the completions of a prompt; models do not get it, as the text
            contains it.
        completion: The text; empty where there are token ids.
        columns: The other columns of the row, where they are known.
        token_ids: What the model gets instead of a text.
        add_special_tokens: Whether the model's tokenizer adds its special tokens to the text.

    >>> RenderedSample.of("<|user|>2+2?<|assistant|>4", add_special_tokens=False).completion
    '<|user|>2+2?<|assistant|>4'
    """

    token_ids: tuple[int, ...] | None = None
    add_special_tokens: bool = True

    @property
    def key(self) -> bytes:
        """As for every sample; a text has different keys with and without special tokens."""
        return _digest([str(self.completion), self.token_ids, self.add_special_tokens])

    @classmethod
    def of(
        cls,
        text: str | Sequence[int],
        *,
        add_special_tokens: bool = True,
        prompt: str = "",
        columns: Mapping[str, Any] | None = None,
    ) -> RenderedSample:
        """The sample of a text or of token ids.

        Raises:
            DataError: There are no token ids, or one is negative or not an integer.
        """
        if isinstance(text, str):
            return cls(prompt, text, columns or {}, add_special_tokens=add_special_tokens)
        if not text or not all(type(token) is int and token >= 0 for token in text):
            raise DataError(f"Token ids must be a non-empty list of integers that are not negative, not {text!r:.80}.")
        return cls(prompt, "", columns or {}, token_ids=tuple(text), add_special_tokens=False)


def check_samples(samples: Any) -> None:
    """Refuse an argument that is not a list of samples.

    Raises:
        DataError: It is not a list of samples; the message names what was given.
    """
    if isinstance(samples, Sample):
        raise DataError("score() takes a list of samples, and was given a single Sample. Put it in a list: score([sample]).")
    if isinstance(samples, (str, bytes, Mapping)) or not (hasattr(samples, "__len__") and hasattr(samples, "__getitem__")):
        raise DataError(
            f"score() takes a list of rm_plugins.Sample objects, and was given {type(samples).__name__}: {samples!r:.80}."
        )
    for position, sample in enumerate(samples):
        if not isinstance(sample, Sample):
            raise DataError(
                f"score() takes rm_plugins.Sample objects; item {position} is {type(sample).__name__}: {sample!r:.200}. Make one with "
                "rm_plugins.Sample(prompt, completion)."
            )


def _check_text_or_messages(part: str, value: object) -> None:
    if isinstance(value, str):
        return
    if not isinstance(value, Sequence):
        raise DataError(f"A sample's {part} must be text or a list of messages, not {type(value).__name__}: {value!r}.")
    for position, message in enumerate(value):
        where = f"{part}[{position}]"
        if not isinstance(message, Mapping) or "role" not in message:
            raise DataError(f"{where} is not a message with 'role' and 'content': {message!r}.")
        if message["role"] not in ROLES:
            raise DataError(f"{where} has the unknown role {message['role']!r}. Allowed: {', '.join(ROLES)}.")
        content = message.get("content")
        if content is None and any(message.get(name) for name in _INSTEAD_OF_CONTENT):
            continue
        if isinstance(content, str):
            continue
        if not isinstance(content, Sequence):
            raise DataError(
                f"{where} needs text as its content, not {type(content).__name__}: {content!r}. A list of parts, such as "
                "{'type': 'text', 'text': ...}, is also accepted."
            )
        for place, piece in enumerate(content):
            # In TRL, a list that a tool returns is the content of its message, whatever its items are.
            if isinstance(piece, str) or message["role"] == "tool" or _is_part(piece):
                continue
            is_text = isinstance(piece, Mapping) and piece.get("type") == "text"
            problem = "a part of the type 'text' but has no text" if is_text else "not a part with a 'type', such as text"
            raise DataError(f"{where}.content[{place}] is {problem}: {piece!r:.200}.")


def _canonical(part: Any) -> Any:
    """Equal for equal texts and messages: a null counts as a missing key, and text parts as their text."""
    if not isinstance(part, (list, tuple)) or not all(isinstance(message, Mapping) for message in part):
        return part
    return [
        {
            name: message_text(message) if name == "content" and _is_text(value) else value
            for name, value in message.items()
            if value is not None
        }
        for message in part
    ]


def _is_text(content: Any) -> bool:
    if not isinstance(content, (list, tuple)):
        return isinstance(content, str)
    return all(_text_in(piece) is not None for piece in content)


def _is_part(piece: Any) -> bool:
    if not isinstance(piece, Mapping) or not isinstance(piece.get("type"), str):
        return False
    return piece["type"] != "text" or isinstance(piece.get("text"), str)


def _text_in(piece: Any) -> str | None:
    """The text of an item of a content; JSON for an item that is not a part, and None for a part that is not text."""
    if _is_part(piece):
        return piece.get("text") if piece["type"] == "text" else None
    return piece if isinstance(piece, str) else canonical_json(piece)


def prompt_key(prompt: Any, columns: Mapping[str, Any]) -> bytes:
    """`Sample.prompt_key` for a prompt without a completion, and any columns of its row."""
    return _digest([_canonical(prompt), *(listed(columns.get(name)) or None for name in PROMPT_COLUMNS)])


def _digest(value: Any) -> bytes:
    return blake2b(canonical_json(value).encode(), digest_size=16).digest()


def text_of(part: str | Sequence[Message]) -> str:
    """A prompt or completion as one text, to show or measure it: the contents of its messages, joined by line breaks.

    >>> text_of([{"role": "assistant", "content": "four"}])
    'four'
    """
    return part if isinstance(part, str) else "\n".join(map(message_text, part))


def message_text(message: Message, *, strict: bool = False) -> str:
    """A message's content as text, its parts joined; a part that is not text becomes its type in angle brackets.

    Args:
        message: The message.
        strict: Whether only text is allowed, which is so where it is scored and not only shown or measured.

    Raises:
        DataError: `strict` is set, and a part is not text.

    >>> message_text({"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is this?"}]})
    '<image>What is this?'
    """
    content = message.get("content")
    if content is None or isinstance(content, str):
        return content or ""
    kinds = [piece["type"] for piece in content if _text_in(piece) is None]
    if strict and kinds:
        raise DataError(
            f"A message of the role {message['role']!r} has a part of the type {kinds[0]!r}, but only text can be scored here. Remove such "
            "parts, or use a reward that takes them."
        )
    texts = map(_text_in, content)
    return "".join(f"<{piece['type']}>" if text is None else text for piece, text in zip(content, texts, strict=True))


def called_functions(message: Message) -> list[Mapping[str, Any]]:
    """The functions that a message calls, each with ``name``, ``arguments`` and the ``id`` of the call as far as the message has them.

    >>> called_functions({"role": "assistant", "tool_calls": [{"type": "function", "function": {"name": "add", "arguments": {}}}, 7]})
    [{'name': 'add', 'arguments': {}}, {}]
    """
    calls = listed(message.get("tool_calls"))
    if not isinstance(calls, (list, tuple)):
        return []
    functions: list[Mapping[str, Any]] = []
    for call in calls:
        function = call.get("function", call) if isinstance(call, Mapping) else None
        identifier = {"id": call["id"]} if isinstance(call, Mapping) and "id" in call else {}
        functions.append({**function, **identifier} if isinstance(function, Mapping) else identifier)
    return functions


def _lines_of(message: Message) -> list[str]:
    """A message with who says it, and a line for each tool that it calls."""
    name = f" {message['name']}" if message.get("name") else ""
    text = message_text(message, strict=True)
    calls = called_functions(message)
    return [
        *([f"{message['role']}{name}: {text}"] if text or not calls else []),
        *(
            f"{message['role']} calls {called.get('name') or '?'}({_written_arguments(called.get('arguments'))})"
            for called in calls
        ),
    ]


def _written_arguments(arguments: Any) -> str:
    return arguments if isinstance(arguments, str) else "" if arguments is None else canonical_json(arguments)


def text_parts(content: Any) -> list[str]:
    """The texts of a content that is a list of text parts only; empty for any other content.

    >>> text_parts([{"type": "text", "text": "2+"}, {"type": "text", "text": "2?"}]), text_parts("2+2?")
    (['2+', '2?'], [])
    """
    if not isinstance(content, (list, tuple)) or not all(_is_part(piece) and piece["type"] == "text" for piece in content):
        return []
    return [piece["text"] for piece in content]


def completion_texts(samples: Sequence[Sample], turns: Turns = "assistant") -> tuple[dict[int, str], dict[int, RmPluginsError]]:
    """The text of each completion by row (`Sample.text_of_turns`), and the error of each row that has none."""
    texts: dict[int, str] = {}
    errors: dict[int, RmPluginsError] = {}
    for row, sample in enumerate(samples):
        try:
            texts[row] = sample.text_of_turns(turns)
        except DataError as error:
            errors[row] = error
    return texts, errors
