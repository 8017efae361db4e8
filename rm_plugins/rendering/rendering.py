"""The choices by which samples become token ids; part of a model's manifest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import date
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from rm_plugins.errors import SpecError
from rm_plugins.rendering.positions import hard_position_limit

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

Truncation: TypeAlias = Literal["left", "error"]
Read: TypeAlias = Literal["last", "before-padding"]
Convention: TypeAlias = Literal["trl", "openrlhf"]

_UNLIMITED = 1_000_000  # transformers uses a huge number for tokenizers without a limit


@dataclass(frozen=True, slots=True)
class Rendering:
    """The choices that turn samples into token ids; part of the manifest.

    Args:
        chat_template: ``tokenizer`` for the tokenizer's own chat template, ``plain`` for ``Role: content`` paragraphs.
        append_eos: Whether a text (not a templated conversation) ends with the EOS token, as in TRL's training.
        max_length: The most tokens of a row; None for no limit.
        truncation: How a longer row is handled. ``left`` cuts the beginning of the prompt, and keeps the end of the completion and the
            leading special token; a pair is cut like its tokenizer does, at the end of its longer text. ``error`` refuses the row.
        read: The token of a row at which a decoder is scored. ``before-padding`` is the last one that is not the model's padding token,
            as in transformers and TRL. ``last`` is the very last one, as in OpenRLHF and vLLM. They differ if the padding token is the EOS
            token that ends a row. Encoders ignore it.
        pair: Whether prompt and completion are encoded as a pair, with separators and token types, as cross-encoders are trained; if
            False, they are one text. None if it is not known; then only rendered samples are scored.
        convention: The rules for tokenizing a text. ``trl`` adds the special tokens that the tokenizer adds itself. ``openrlhf`` adds
            none, and ends texts and conversations alike: trailing line breaks are removed, and EOS is added if `append_eos` is set.
        template_kwargs: Further arguments of the chat template.
        template_date: The date, such as ``2026-11-29``, for a chat template that writes the current date, like Llama 3's.

    Raises:
        SpecError: `max_length` is less than 1, `template_date` is not a date, or `append_eos` is set for a pair.
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
            raise SpecError("the tokenizer itself ends a pair; leave `append_eos` out.", key="append_eos")

    def as_json(self) -> dict[str, Any]:
        """The choices by name, without choices that older manifests lack if they have their default value."""
        defaults = {"template_date": None, "convention": "trl"}
        return {name: value for name, value in asdict(self).items() if name not in defaults or value != defaults[name]}

    @classmethod
    def up_to(cls, max_length: int | None, tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig | None) -> Rendering:
        """The default rendering with a requested `max_length`, reduced only if the model has fewer positions.

        Args:
            max_length: The most tokens of a row; None for as many as the model takes.
            tokenizer: The tokenizer.
            config: The model's configuration, if it is known.
        """
        limits = [limit for limit in (max_length, hard_position_limit(config)) if limit is not None]
        return replace(cls.default(tokenizer), max_length=min(limits, default=None))

    @classmethod
    def default(cls, tokenizer: PreTrainedTokenizerBase, position_limit: int | None = None) -> Rendering:
        """The rendering of TRL's RewardTrainer for this tokenizer, extended to tokenizers that it does not support.

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


def _closes_texts(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer itself ends every text with its EOS or separator token, like those of encoders."""
    ids = tokenizer("a")["input_ids"]
    return bool(ids) and ids[-1] in {tokenizer.eos_token_id, tokenizer.sep_token_id} - {None}
