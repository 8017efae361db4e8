"""Rewards from trained sequence-classification models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from rm_plugins.constructor_schema import takes_settings
from rm_plugins.models.settings import ModelSettings
from rm_plugins.models.trained_reward import TrainedReward
from rm_plugins.provider import Aggregate, ModelSource, Transform
from rm_plugins.providers.models.model_provider import ModelProvider


class SequenceClassifier(ModelProvider):
    """A trained sequence-classification model: a folder, a LoRA adapter folder, or a hub id.

    Samples become token ids as the model's manifest says; without one, as TRL's RewardTrainer would train it: the
    tokenizer's chat template for conversations (paragraphs ``Role: content`` if it has none), text closed with EOS. What differs
    between those who train models is taken from the files beside the model, and asked for where they do not tell (`pair`, `read`).

    Args:
        model: The folder or id.
        head: For a model with several labels, which one is the reward (its index or name), or a weight for each of several; what
            its manifest says if unset.
        aggregate: For a model with several members, such as our trainer makes with ``members``, how their rewards become one;
            their mean if unset.
        member_transforms: One for each member, before they are aggregated.
        common_scale: Whether the members are known to share a scale, which some aggregates warn of otherwise.
        tokenizer: Where the tokenizer is, if not beside the model.
        revision: The revision of a hub id.
        dtype: ``auto`` is float32 on a CPU and the checkpoint's own elsewhere.
        device: ``auto`` is this process's accelerator, else the CPU.
        max_length: Most tokens of a row; the manifest's, else the model's own limit.
        truncation: ``left`` cuts the beginning of a longer row's prompt (and of a pair the end of its longer text), ``error`` refuses
            the row.
        read: The token at which a decoder is scored, where its padding token is the EOS token that closes a text: ``last`` as OpenRLHF
            and vLLM have it, ``before-padding`` as transformers and TRL have it; the manifest's if unset.
        pair: Whether prompt and completion are encoded as a pair, with separators and token types, as cross-encoders are trained; the
            manifest's if unset.
        convention: Whose rules make token ids of a text: ``trl``, or ``openrlhf``, which adds no special tokens and closes conversations
            with EOS as well; the manifest's if unset.
        chat_template: ``plain``, or a file with a Jinja template.
        append_eos: Whether text ends with EOS.
        template_kwargs: Further arguments of the chat template.
        template_date: The day, ``2026-11-29``, that a chat template is told which writes the day it is used on; the manifest's if unset.
        max_batch_tokens: Padded tokens of a micro-batch; by default 2,048 on a CPU, and on an accelerator 16,384 or what fits.
        attn_implementation: Handed to transformers.
        compile: Whether whole rows run through ``torch.compile``.
        cache: ``memory``, or an SQLite file, to keep scores in and find them again, as long as the model is the same.
        trust_remote_code: Whether code in the checkpoint may run.
        verify: Whether loading compares the manifest with the weights (file sizes and one golden score).

    Raises:
        ModelError: No tokenizer, no trained head, or several labels and no `head`.
        ManifestError: The manifest does not match the model.
        SpecError: The model has no such label, or no several members to aggregate.
    """

    name: ClassVar[str] = "sequence-classifier"

    @takes_settings(ModelSettings)
    def __init__(
        self,
        *,
        model: ModelSource,
        head: int | str | Mapping[int | str, float] | None = None,
        aggregate: Aggregate | None = None,
        member_transforms: Sequence[Transform] | None = None,
        common_scale: bool = False,
        **settings: Any,
    ) -> None:
        super().__init__(
            TrainedReward.load(model, ModelSettings(head=head, **settings)),
            label=Path(model).name or self.name,
            aggregate=aggregate,
            member_transforms=member_transforms,
            common_scale=common_scale,
        )
