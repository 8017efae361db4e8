"""How a sample becomes the text and the token ids that a model scores.

The same object renders for training and for scoring, which is what makes a reward the same number in both.
"""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from rm_plugins.errors import DataError, ModelError, ScoringError, SpecError
from rm_plugins.rendering.pairs import PairTokenizer
from rm_plugins.rendering.template_date import dated, writes_the_date
from rm_plugins.rendering.text_blocks import TextBlocks
from rm_plugins.rendering.token_types import has_types
from rm_plugins.rendering.tokenize import TemplatedTextTokenizer, common_beginning
from rm_plugins.samples import Message, RenderedSample, Sample
from rm_plugins.written_settings import read_text

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

Truncation: TypeAlias = Literal["left", "error"]
Read: TypeAlias = Literal["last", "before-padding"]
Convention: TypeAlias = Literal["trl", "openrlhf"]

PLAIN = "plain"
"""The name of the template that writes messages as ``Role: content`` paragraphs."""

_COUNTED_FROM_PADDING = frozenset(
    (
        *("camembert", "data2vec-text", "esm", "ibert", "layoutlmv3", "lilt", "longformer", "luke", "markuplm", "mpnet"),
        *("roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "xmod"),
    )
)
"""Model types whose positions begin behind the padding token's id."""

_WITHOUT_POSITIONS = frozenset(("jamba", "zamba"))
"""Model types that name a number of positions and have none."""

_PAIR_OR_NOT = (
    "Whether this model takes a prompt and a completion as a pair, as cross-encoders do, or as one text, as TRL trains, is not known: "
    "no reward manifest says it, and nothing beside the model tells who trained it. Say it in the spec: `pair: true` or `pair: false`."
)

_UNLIMITED = 1_000_000  # transformers writes an absurd number where a tokenizer has no limit of its own


@dataclass(frozen=True, slots=True)
class Rendering:
    """The choices that turn samples into token ids; part of the manifest.

    Args:
        chat_template: ``tokenizer`` for the tokenizer's own chat template, ``plain`` for ``Role: content`` paragraphs.
        append_eos: Whether a text (not a templated conversation) ends with the EOS token, as in TRL's training.
        max_length: Most tokens of a row; None for no limit.
        truncation: What happens to a longer row: ``left`` cuts the beginning of the prompt and keeps the completion's end
            and the leading special token, and a pair where its tokenizer cuts pairs: the end of its longer text; ``error`` refuses
            the row.
        read: The token of a row at which a decoder is scored: ``before-padding`` is the last that is not the model's padding token, as
            transformers and TRL have it; ``last`` is the very last, as OpenRLHF and vLLM have it. They differ where the padding token
            is the EOS token that closes a row. An encoder has no such token.
        pair: Whether prompt and completion are encoded as a pair, with separators and token types, as cross-encoders are trained;
            else they are one text. None where it is not known, and a sample that has both is refused.
        convention: Whose rules make token ids of a text. ``trl`` adds the special tokens that the tokenizer adds by itself.
            ``openrlhf`` adds none, and ends a text and a conversation alike: without line breaks, and with EOS if `append_eos` is set.
        template_kwargs: Further arguments of the chat template.
        template_date: The day, ``2026-11-29``, that a chat template is told which writes the day it is used on, as Llama 3's does.

    Raises:
        SpecError: `max_length` is less than 1, `template_date` is no day, or a pair is to be closed with EOS.
    """

    chat_template: Literal["tokenizer", "plain"]
    append_eos: bool
    max_length: int | None
    truncation: Truncation = "left"
    read: Read = "before-padding"
    pair: bool | None = False
    convention: Convention = "trl"
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    template_date: str | None = None

    def __post_init__(self) -> None:
        if self.template_date is not None:
            try:
                date.fromisoformat(self.template_date)
            except ValueError as error:
                raise SpecError(
                    f"must be a day such as 2026-11-29, not {self.template_date!r}.", key="template_date"
                ) from error
        if self.max_length is not None and self.max_length < 1:
            raise SpecError(f"max_length must be at least 1, not {self.max_length}.")
        if self.pair and self.append_eos:
            raise SpecError("a pair is closed by its tokenizer; leave `append_eos` out.", key="append_eos")

    def as_json(self) -> dict[str, Any]:
        """The choices by name, without those that manifests had not at first and that are left as everything was then."""
        defaults = {"template_date": None, "convention": "trl"}
        return {name: value for name, value in asdict(self).items() if name not in defaults or value != defaults[name]}

    @classmethod
    def up_to(cls, max_length: int | None, tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig | None) -> Rendering:
        """The default rendering with a `max_length` that is asked for, of which only a model that has no more positions takes less.

        Args:
            max_length: Most tokens of a row; None for as many as the model takes.
            tokenizer: The tokenizer.
            config: The model's configuration, if it is known.
        """
        limits = [limit for limit in (max_length, hard_position_limit(config)) if limit is not None]
        return replace(cls.default(tokenizer), max_length=min(limits, default=None))

    @classmethod
    def default(cls, tokenizer: PreTrainedTokenizerBase, position_limit: int | None = None) -> Rendering:
        """What TRL's RewardTrainer does with this tokenizer, extended to tokenizers that it cannot train with.

        Args:
            tokenizer: The tokenizer.
            position_limit: The model's own limit on positions, if it has one.
        """
        limits = [limit for limit in (tokenizer.model_max_length, position_limit) if limit and limit < _UNLIMITED]
        return cls(
            chat_template="tokenizer" if tokenizer.chat_template else "plain",
            append_eos=tokenizer.eos_token is not None and not _closes_texts(tokenizer),
            max_length=min(limits, default=None),
        )


def position_limit(config: PretrainedConfig | None) -> int | None:
    """How many tokens a model has positions for, if its configuration says so.

    Models of the RoBERTa family count positions from behind the padding token's id, so that they take fewer than the configuration's
    ``max_position_embeddings``. A number below 1 means no limit, as XLNet's -1.
    """
    if config is None:
        return None
    text_config = config.get_text_config()
    limit = getattr(text_config, "max_position_embeddings", None)
    if limit is None or limit < 1:
        return None
    is_absolute = getattr(text_config, "position_embedding_type", "absolute") == "absolute"
    if text_config.model_type in _COUNTED_FROM_PADDING and is_absolute:
        return int(limit) - 1 - (text_config.pad_token_id or 0)
    return int(limit)


def hard_position_limit(config: PretrainedConfig | None) -> int | None:
    """How many tokens a model has positions for, if it cannot take more; None for one whose positions go on.

    Rotary and relative positions go on, for better or worse; learned ones, and tables of fixed ones, end.
    """
    limit = position_limit(config)
    if limit is None or config is None:
        return None
    text_config = config.get_text_config()
    is_rotary = any(getattr(text_config, name, None) is not None for name in ("rope_parameters", "rope_theta", "rope_scaling"))
    goes_on = (
        is_rotary
        or getattr(text_config, "position_embedding_type", "absolute") == "rotary"
        or not getattr(text_config, "position_biased_input", True)
        or text_config.model_type in _WITHOUT_POSITIONS
    )
    return None if goes_on else limit


def _closes_texts(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer itself ends every text with its EOS or separator token, as encoders' tokenizers do."""
    ids = tokenizer("a")["input_ids"]
    return bool(ids) and ids[-1] in {tokenizer.eos_token_id, tokenizer.sep_token_id} - {None}


class Renderer:
    """Renders and tokenizes samples one way.

    Args:
        tokenizer: The model's tokenizer.
        rendering: The choices; `Rendering.default` where there is no manifest.
        pad_token_id: The model's padding token, where it is known and may be another than the tokenizer's.

    Raises:
        ModelError: The rendering needs a chat template, an EOS token or separators of pairs, and the tokenizer has none.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, rendering: Rendering, *, pad_token_id: int | None = None) -> None:
        if rendering.chat_template == "tokenizer" and not tokenizer.chat_template:
            raise ModelError("The rendering asks for the tokenizer's chat template, and the tokenizer has none.")
        if rendering.append_eos and tokenizer.eos_token is None:
            raise ModelError("The rendering closes texts with the tokenizer's EOS token, and the tokenizer has none.")
        if (
            rendering.chat_template == "tokenizer"
            and rendering.template_date is None
            and writes_the_date(tokenizer.chat_template)
        ):
            rendering = replace(rendering, template_date=date.today().isoformat())
            warnings.warn(
                f"The chat template writes today's date, so that the same sample has another score tomorrow. Here it is told "
                f"{rendering.template_date}; set `template_date` in the spec to have one date for good. A manifest keeps it.",
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

        A leading BOS that the tokenizer adds by itself is left out, so that any consumer that tokenizes this text the usual
        way (``pipeline``, a server) gets the same ids.

        Raises:
            DataError: The chat template refuses the conversation.
            ModelError: Whether prompt and completion are a pair is not known.
        """
        if isinstance(sample, RenderedSample):
            return str(sample.completion) if sample.token_ids is None else str(self.tokenizer.decode(list(sample.token_ids)))
        if self._pairs is not None:
            return self._pairs.separator.join(self.pair_texts(sample))
        if self.rendering.pair is None and sample.prompt and sample.completion:
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

        One message is its content; several are paragraphs ``Role: content``.
        """
        if not sample.is_conversational:
            return str(sample.prompt), str(sample.completion)
        messages, prompts = sample.text_messages, len(sample.prompt)
        return _as_text(messages[:prompts]), _as_text(messages[prompts:])

    def up_to_read(self, row: Sequence[int]) -> list[int]:
        """A row of token ids without the padding tokens at its end that its decoder is read before.

        A causal model has the same score for both, and for what is left, whoever runs it reads it at the same token.
        """
        end = len(row)
        if self.rendering.read == "before-padding":
            while end > 1 and row[end - 1] == self.pad_token_id:
                end -= 1
        return list(row[:end])

    def _is_templated(self, sample: Sample) -> bool:
        return sample.is_conversational and self.rendering.chat_template == "tokenizer" and self._pairs is None

    def _templated(self, sample: Sample, *, prompt_only: bool = False) -> str:
        """The conversation; of its prompt alone, with the beginning of the assistant's turn."""
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
        except Exception as error:  # a template is a program and raises whatever its author wrote
            raise DataError(f"The chat template refused the conversation: {error}") from error

    def token_ids(self, samples: Sequence[Sample]) -> tuple[list[list[int]], int]:
        """The token ids of each sample, [N] lists, and how many rows were truncated.

        Raises:
            ScoringError: Rows exceed `max_length` and the rendering's truncation is ``error``.
            DataError: Samples cannot be rendered; `rows` are all of them.
        """
        ids, truncated = self.tokenized(samples)
        return ids, int(truncated.sum())

    def tokenized(self, samples: Sequence[Sample]) -> tuple[list[list[int]], NDArray[np.bool_]]:
        """The token ids of each sample, [N] lists, and which rows were truncated, bool [N].

        Raises:
            ScoringError: As `token_ids`.
            DataError: Likewise.
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
                f"{len(ids[long[0]])}), and truncation is 'error'.",
                rows=long,
            )
        for row in long:
            ids[row] = self.truncated(samples[row], ids[row], limit)
        return ids, truncated

    def untruncated_ids(self, samples: Sequence[Sample]) -> list[list[int]]:
        """The token ids of each sample however long they are, [N] lists; a sample without any gets one padding token.

        Raises:
            DataError: Samples cannot be rendered; `rows` are all of them.
        """
        ids: list[list[int]] = [[]] * len(samples)
        texts: dict[bool, dict[int, str]] = {False: {}, True: {}}  # by whether all of its special tokens are in the text
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
            more = f" ({len(refused) - 1} more of {len(samples)} samples are refused)" if len(refused) > 1 else ""
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
        """The text of a sample that is tokenized, and whether all of its special tokens are in it."""
        if isinstance(sample, RenderedSample):
            is_complete, text = not sample.add_special_tokens, str(sample.completion)
        elif self._is_templated(sample):
            # A template writes all of its special tokens itself, and whether BOS is among them is its own affair.
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

        That is as far as a row begins like the prompt by itself does, with the opening of the assistant's turn where there is a
        chat template: a token that spans the border of prompt and completion belongs to the completion. It is 0 where there is
        no prompt, or the chat template refuses one without an answer.

        Args:
            samples: N samples; those that share a prompt are best neighbours.
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
        # A text that no token stands for still needs a position to be scored at.
        for token in (self.tokenizer.eos_token_id, self.tokenizer.pad_token_id, 0):
            if isinstance(token, int):
                return token
        return 0

    def truncated(self, sample: Sample, ids: list[int], limit: int) -> list[int]:
        """At most `limit` token ids of a row: its leading special token and its end; of a pair, the beginnings of both texts.

        Args:
            sample: What the row is of.
            ids: Its untruncated token ids.
            limit: Most token ids.
        """
        if len(ids) <= limit:
            return ids
        if self._pairs is not None and not isinstance(sample, RenderedSample):
            return self._pairs.truncated(self.pair_texts(sample), ids, limit)
        kept = 1 if ids[0] in self._leading and limit > 1 else 0
        return ids[:kept] + ids[len(ids) - (limit - kept) :]


def _without_types(ids: Sequence[int]) -> list[int]:
    if has_types(ids):
        raise DataError(f"{max(ids)} is no token id: no vocabulary is so large.")
    return list(ids)


def _check_characters(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"Its text holds a lone surrogate, {text[error.start]!r} at character {error.start}, which is half a character and "
            "nothing that a tokenizer takes. Decode the text anew, or leave the sample out."
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
    """Renders as a spec says, and where it says nothing as the manifest does.

    Args:
        tokenizer: The model's tokenizer.
        rendering: The choices of the manifest, or the default ones.
        chat_template: ``plain``, or a file with a Jinja template.
        append_eos: See `Rendering`, as for the others.
        max_length: See there.
        truncation: See there.
        read: See there.
        pair: See there.
        convention: See there.
        template_kwargs: See there.
        template_date: See there.
        pad_token_id: See `Renderer`.

    Raises:
        ModelError: There is no such file, or the tokenizer lacks what the rendering needs.
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
