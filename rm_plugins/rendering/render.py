"""Renders samples as the text and the token ids that a model scores.

The same object renders for training and for scoring, so that a reward gives the same score in both.
"""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rm_plugins.errors import DataError, ModelError, ScoringError, SpecError
from rm_plugins.rendering.pairs import PairTokenizer
from rm_plugins.rendering.rendering import Convention, Read, Rendering, Truncation
from rm_plugins.rendering.template_date import dated, writes_the_date
from rm_plugins.rendering.text_blocks import TextBlocks
from rm_plugins.rendering.token_types import has_types
from rm_plugins.rendering.tokenize import TemplatedTextTokenizer, common_beginning
from rm_plugins.samples import Message, RenderedSample, Sample
from rm_plugins.written_settings import read_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PLAIN = "plain"
"""The name of the template that writes messages as ``Role: content`` paragraphs."""

_PAIR_OR_NOT = (
    "It is not known whether this model takes prompt and completion as a pair, like cross-encoders, or as one text, like models trained "
    "with TRL. It has no reward manifest, and its files do not show who trained it. Set `pair: true` or `pair: false` in the spec."
)


class Renderer:
    """Renders and tokenizes samples in one way.

    Args:
        tokenizer: The model's tokenizer.
        rendering: The choices; `Rendering.default` if there is no manifest.
        pad_token_id: The model's padding token, if it is known and may differ from the tokenizer's.

    Raises:
        ModelError: The rendering needs a chat template or an EOS token, and the tokenizer has none.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, rendering: Rendering, *, pad_token_id: int | None = None) -> None:
        if rendering.chat_template == "tokenizer" and not tokenizer.chat_template:
            raise ModelError(
                "The rendering needs the tokenizer's chat template, but the tokenizer has none. Set `chat_template` in the spec."
            )
        if rendering.append_eos and tokenizer.eos_token is None:
            raise ModelError(
                "The rendering ends texts with the tokenizer's EOS token, but the tokenizer has none. Set `append_eos: false` in the spec."
            )
        if (
            rendering.chat_template == "tokenizer"
            and rendering.template_date is None
            and writes_the_date(tokenizer.chat_template)
        ):
            rendering = replace(rendering, template_date=date.today().isoformat())
            warnings.warn(
                f"The chat template writes today's date, so the same sample would get another score tomorrow. It uses "
                f"{rendering.template_date} now; set `template_date` in the spec to fix the date. A manifest stores it.",
                stacklevel=2,
            )
        self.tokenizer = tokenizer
        self.rendering = rendering
        self.pad_token_id: int | None = tokenizer.pad_token_id if pad_token_id is None else pad_token_id
        self._pairs = PairTokenizer(tokenizer) if rendering.pair else None
        self._tokenize_templated = TemplatedTextTokenizer(tokenizer)
        self._text_blocks = TextBlocks()
        self._bos = tokenizer.bos_token if self._adds_bos() else None
        self._leading = {tokenizer.bos_token_id, tokenizer.cls_token_id} - {None}

    def _adds_bos(self) -> bool:
        ids = self.tokenizer("a")["input_ids"]
        return bool(ids) and ids[0] == self.tokenizer.bos_token_id and ids[0] is not None

    def text(self, sample: Sample) -> str:
        """The text of a sample, before truncation.

        A leading BOS that the tokenizer adds itself is left out, so that any consumer that tokenizes this text in the usual way
        (``pipeline``, a server) gets the same ids.

        Raises:
            DataError: The chat template refuses the conversation.
            ModelError: It is not known whether prompt and completion are a pair.
        """
        if isinstance(sample, RenderedSample):
            return str(sample.completion) if sample.token_ids is None else str(self.tokenizer.decode(list(sample.token_ids)))
        if self._pairs is not None:
            return self._pairs.separator.join(self.pair_texts(sample))
        if self.rendering.pair is None:
            raise ModelError(_PAIR_OR_NOT)
        if self._is_templated(sample):
            text = self._templated(sample)
            return text.removeprefix(self._bos) if self._bos else text
        if sample.is_conversational:
            text = completion = "\n\n".join(_paragraph(message) for message in sample.text_messages)
        else:
            text, completion = f"{sample.prompt}{sample.completion}", str(sample.completion)
        return self._closed(text, completion)

    def _closed(self, text: str, completion: str) -> str:
        if self.rendering.convention == "openrlhf":
            text = completion = text.rstrip("\n")
        eos = self.tokenizer.eos_token
        return text + eos if self.rendering.append_eos and not completion.endswith(eos) else text

    def pair_texts(self, sample: Sample) -> tuple[str, str]:
        """Prompt and completion of a sample as the two texts of a pair.

        A single message becomes its content; several become ``Role: content`` paragraphs.
        """
        if not sample.is_conversational:
            return str(sample.prompt), str(sample.completion)
        messages, prompts = sample.text_messages, len(sample.prompt)
        return _as_text(messages[:prompts]), _as_text(messages[prompts:])

    def up_to_read(self, row: Sequence[int]) -> list[int]:
        """A row of token ids without trailing padding tokens, if the decoder is scored before these.

        A causal model gives the shortened row the same score, and every server then reads the same token.
        """
        end = len(row)
        if self.rendering.read == "before-padding":
            while end > 1 and row[end - 1] == self.pad_token_id:
                end -= 1
        return list(row[:end])

    def _is_templated(self, sample: Sample) -> bool:
        return sample.is_conversational and self.rendering.chat_template == "tokenizer" and self._pairs is None

    def _templated(self, sample: Sample, *, prompt_only: bool = False) -> str:
        """The rendered conversation, or only its prompt with the beginning of the assistant's turn."""
        tools = sample.columns.get("tools")
        settings = {**self.rendering.template_kwargs, **(sample.columns.get("chat_template_kwargs") or {})}
        try:
            tools = json.loads(tools) if isinstance(tools, str) else tools
            if self.rendering.template_date is not None:
                template = self.tokenizer.get_chat_template(settings.get("chat_template"), tools)
                settings["chat_template"] = dated(template, date.fromisoformat(self.rendering.template_date))

            def render(messages: list[dict[str, Any]], **further: Any) -> str:
                return str(self.tokenizer.apply_chat_template(messages, tools=tools, tokenize=False, **{**further, **settings}))

            messages = self._text_blocks.messages(sample.messages, (settings.get("chat_template"), bool(tools)), render)
            if prompt_only:
                return render(messages[: len(sample.prompt)], add_generation_prompt=True)
            text = render(messages, add_generation_prompt=False)
            return self._closed(text, text) if self.rendering.convention == "openrlhf" else text
        except Exception as error:  # a template is a program that may raise anything
            raise DataError(f"The chat template refused the conversation: {error}") from error

    def token_ids(self, samples: Sequence[Sample]) -> tuple[list[list[int]], int]:
        """The token ids of each sample, [N] lists, and the number of truncated rows.

        Raises:
            ScoringError: Rows exceed `max_length` and the rendering's truncation is ``error``.
            DataError: Samples cannot be rendered; `rows` has all of them.
        """
        ids, truncated = self.tokenized(samples)
        return ids, int(truncated.sum())

    def tokenized(self, samples: Sequence[Sample]) -> tuple[list[list[int]], NDArray[np.bool_]]:
        """The token ids of each sample, [N] lists, and which rows were truncated, bool [N].

        Raises:
            ScoringError: As for `token_ids`.
            DataError: As for `token_ids`.
        """
        ids = self.untruncated_ids(samples)
        limit = self.rendering.max_length
        truncated = np.array([limit is not None and len(row_ids) > limit for row_ids in ids], dtype=np.bool_)
        long = np.flatnonzero(truncated).tolist()
        if not long or limit is None:
            return ids, truncated
        if self.rendering.truncation == "error":
            raise ScoringError(
                f"{len(long)} of {len(ids)} samples are longer than max_length={limit} tokens (first: item {long[0]} with "
                f"{len(ids[long[0]])}), and truncation is 'error'. Shorten them, or set `truncation: left` in the spec.",
                rows=long,
            )
        for row in long:
            ids[row] = self.truncated(samples[row], ids[row], limit)
        return ids, truncated

    def untruncated_ids(self, samples: Sequence[Sample]) -> list[list[int]]:
        """The token ids of each sample without truncation, [N] lists; a sample without tokens gets one placeholder token.

        Raises:
            DataError: Samples cannot be rendered; `rows` has all of them.
        """
        ids: list[list[int]] = [[]] * len(samples)
        texts: dict[bool, dict[int, str]] = {False: {}, True: {}}  # True: the text contains all of its special tokens
        pairs: dict[int, tuple[str, str]] = {}
        refused: dict[int, DataError] = {}
        for row, sample in enumerate(samples):
            try:
                if isinstance(sample, RenderedSample) and sample.token_ids is not None:
                    ids[row] = _without_types(sample.token_ids)
                elif self._pairs is not None and not isinstance(sample, RenderedSample):
                    pairs[row] = self.pair_texts(sample)
                    _check_characters("".join(pairs[row]))
                else:
                    complete, text = self._to_tokenize(sample)
                    texts[complete][row] = text
            except DataError as error:
                refused[row] = error
        if refused:
            first, refusal = next(iter(refused.items()))
            more = f" ({len(refused) - 1} more of {len(samples)} samples cannot be rendered)" if len(refused) > 1 else ""
            raise DataError(f"Item {first} cannot be rendered: {refusal}{more}", rows=refused) from refusal
        if self._pairs is not None and pairs:
            for row, row_ids in zip(pairs, self._pairs([*pairs.values()]), strict=True):
                ids[row] = row_ids
        for complete, by_row in texts.items():
            if by_row:
                rows_ids = self._tokenize_templated([*by_row.values()]) if complete else self._tokenized([*by_row.values()])
                for row, row_ids in zip(by_row, rows_ids, strict=True):
                    ids[row] = list(row_ids) or [self._placeholder()]
        return ids

    def _to_tokenize(self, sample: Sample) -> tuple[bool, str]:
        """The text of a sample to tokenize, and whether it contains all of its special tokens."""
        if isinstance(sample, RenderedSample):
            is_complete, text = not sample.add_special_tokens, str(sample.completion)
        elif self._is_templated(sample):
            # A template writes all special tokens itself, including BOS if there is one.
            is_complete, text = True, self._templated(sample)
        else:
            is_complete, text = self.rendering.convention == "openrlhf", self.text(sample)
        _check_characters(text)
        return is_complete, text

    def _tokenized(self, texts: list[str]) -> list[list[int]]:
        ids: list[list[int]] = self.tokenizer(texts, verbose=False)["input_ids"]
        return ids

    def completion_starts(self, samples: Sequence[Sample], ids: Sequence[Sequence[int]]) -> list[int]:
        """The number of tokens before each sample's completion, [N].

        These are the tokens that the row shares with its prompt rendered alone (with the beginning of the assistant's turn, if there is a
        chat template). A token that spans the border of prompt and completion belongs to the completion. The number is 0 if there is no
        prompt, or the chat template refuses a prompt without an answer.

        Args:
            samples: N samples; faster if samples with the same prompt are neighbours.
            ids: Their untruncated token ids, [N] lists.
        """
        if self._pairs is not None:
            return self._pairs.second_starts([self.pair_texts(sample) for sample in samples])
        texts: dict[bool, list[str]] = {False: [], True: []}
        places: list[tuple[bool, int]] = []
        for row, sample in enumerate(samples):
            if row and sample.prompt is samples[row - 1].prompt:
                places.append(places[-1])
                continue
            complete = self._is_templated(sample) or self.rendering.convention == "openrlhf"
            texts[complete].append(self._prompt_text(sample))
            places.append((complete, len(texts[complete]) - 1))
        plain = self.tokenizer(texts[False], verbose=False)["input_ids"] if texts[False] else []
        prompts = {False: plain, True: self._tokenize_templated(texts[True])}
        return [common_beginning(prompts[kind][place], row) for (kind, place), row in zip(places, ids, strict=True)]

    def _prompt_text(self, sample: Sample) -> str:
        if not sample.is_conversational:
            return str(sample.prompt)
        if not self._is_templated(sample):
            return "".join(f"{_paragraph(message)}\n\n" for message in sample.text_messages[: len(sample.prompt)])
        try:
            return self._templated(sample, prompt_only=True) if sample.prompt else ""
        except DataError:
            return ""

    def _placeholder(self) -> int:
        # A text without tokens still needs a position to be scored at.
        for token in (self.tokenizer.eos_token_id, self.tokenizer.pad_token_id, 0):
            if isinstance(token, int):
                return token
        return 0

    def truncated(self, sample: Sample, ids: list[int], limit: int) -> list[int]:
        """Truncate a row to at most `limit` token ids: keep its leading special token and its end; for a pair, see `PairTokenizer`.

        Args:
            sample: The sample of the row.
            ids: Its untruncated token ids.
            limit: The most token ids.
        """
        if len(ids) <= limit:
            return ids
        if self._pairs is not None and not isinstance(sample, RenderedSample):
            return self._pairs.truncated(self.pair_texts(sample), ids, limit)
        leading = 1 if ids[0] in self._leading and limit > 1 else 0
        return ids[:leading] + ids[len(ids) - (limit - leading) :]


def _without_types(ids: Sequence[int]) -> list[int]:
    if has_types(ids):
        raise DataError(f"{max(ids)} is not a token id: no vocabulary is that large.")
    return list(ids)


def _check_characters(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"Its text contains a lone surrogate, {text[error.start]!r} at character {error.start}, which is half a character and cannot "
            "be tokenized. Decode the text again, or leave the sample out."
        ) from error


def _as_text(messages: Sequence[Message]) -> str:
    if len(messages) == 1:
        return _content(messages[0])
    return "\n\n".join(map(_paragraph, messages))


def _content(message: Message) -> str:
    content = message.get("content") or ""
    if not content and message.get("tool_calls"):
        content = json.dumps(message["tool_calls"], ensure_ascii=False)
    return str(content)


def _paragraph(message: Message) -> str:
    return f"{str(message['role']).capitalize()}: {_content(message)}"


def configured_renderer(
    tokenizer: PreTrainedTokenizerBase,
    rendering: Rendering,
    *,
    chat_template: str | None = None,
    append_eos: bool | None = None,
    max_length: int | None = None,
    truncation: Truncation | None = None,
    read: Read | None = None,
    pair: bool | None = None,
    convention: Convention | None = None,
    template_kwargs: Mapping[str, Any] | None = None,
    template_date: str | None = None,
    pad_token_id: int | None = None,
) -> Renderer:
    """A renderer with the settings of a spec; unset ones are taken from the manifest.

    Args:
        tokenizer: The model's tokenizer.
        rendering: The choices of the manifest, or the default ones.
        chat_template: ``plain``, or a file with a Jinja template.
        append_eos: See `Rendering`.
        max_length: See `Rendering`.
        truncation: See `Rendering`.
        read: See `Rendering`.
        pair: See `Rendering`.
        convention: See `Rendering`.
        template_kwargs: See `Rendering`.
        template_date: See `Rendering`.
        pad_token_id: See `Renderer`.

    Raises:
        ModelError: The file does not exist, or the tokenizer lacks what the rendering needs.
    """
    if chat_template not in (None, PLAIN):
        tokenizer = copy.deepcopy(tokenizer)
        tokenizer.chat_template = _read_chat_template(str(chat_template))
    settings = {
        "chat_template": None if chat_template is None else (PLAIN if chat_template == PLAIN else "tokenizer"),
        "append_eos": append_eos,
        "max_length": max_length,
        "truncation": truncation,
        "read": read,
        "pair": pair,
        "convention": convention,
        "template_kwargs": template_kwargs,
        "template_date": template_date,
    }
    chosen: dict[str, Any] = {key: value for key, value in settings.items() if value is not None}
    return Renderer(tokenizer, replace(rendering, **chosen), pad_token_id=pad_token_id)


def _read_chat_template(path: str) -> str:
    try:
        return read_text(Path(path))
    except SpecError as error:
        raise ModelError(f"The chat template {path!r} cannot be read: {error}") from error
