"""Rewards from trained sequence-classification models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from rm_plugins.component import Aggregate, ModelSource, Transform
from rm_plugins.constructor_schema import takes_settings
from rm_plugins.models.settings import ModelSettings
from rm_plugins.models.trained_reward import TrainedReward
from rm_plugins.providers.models.model_provider import ModelProvider


class SequenceClassifier(ModelProvider):
    """A trained sequence-classification model: a folder, a LoRA adapter folder, or a hub id.

    Samples are rendered as the model's manifest says; without one, as TRL's RewardTrainer renders them: with the tokenizer's chat
    template for conversations (paragraphs ``Role: content`` if it has none), and EOS after text. Conventions that differ between training
    frameworks are read from the files beside the model. If the files do not show them, set them (`pair`, `read`).

    Args:
        model: The folder or id.
        head: For a model with several labels, which one is the reward (its index or name), or a weight for each of several; by default
            what the manifest says.
        aggregate: For a model with several members (trained with ``RewardConfig(members=...)``), how their rewards are combined; their
            mean if unset.
        member_transforms: One per member, applied before aggregating.
        common_scale: Whether the members are known to share a scale; if not, aggregates that need one warn.
        tokenizer: The tokenizer's folder or id, if it is not beside the model.
        revision: The revision of a hub id.
        dtype: ``auto`` is float32 on a CPU and the checkpoint's own elsewhere.
        device: ``auto`` is this process's accelerator, else the CPU.
        device_map: How the model is spread over devices: ``auto``, ``balanced``, or a device for each part by its name.
        quantization: ``int8``, ``int4`` or ``nf4``, or a mapping with that `name` and further keys (`rm_plugins.models.quantization`).
        tp_plan: ``auto`` splits the layers over the processes of a launcher (torchrun), which all score at the same time.
        max_length: The most tokens of a row; by default the manifest's, else the model's own limit.
        truncation: ``left`` cuts the beginning of a longer row's prompt (of a pair, the end of its longer text), ``error`` refuses the
            row.
        read: The token at which a decoder is scored: ``before-padding`` as in transformers and TRL, ``last`` as in OpenRLHF and vLLM;
            the manifest's if unset. They differ only if the padding token is also the EOS token that ends a text.
        pair: Whether prompt and completion are encoded as a pair, with separators and token types, as cross-encoders are trained; the
            manifest's if unset.
        convention: The rules by which a text becomes token ids: ``trl``, or ``openrlhf``, which adds no special tokens and also ends
            conversations with EOS; the manifest's if unset.
        chat_template: ``plain``, or a file with a Jinja template.
        append_eos: Whether text ends with EOS.
        template_kwargs: Further arguments of the chat template.
        template_date: The day, such as ``2026-11-29``, for a chat template that writes the current date; the manifest's if unset.
        max_batch_tokens: Padded tokens per micro-batch; by default 2,048 on a CPU, and on an accelerator 16,384 or what fits.
        attn_implementation: Passed to transformers.
        compile: Whether whole rows run through ``torch.compile``.
        cache: ``memory``, or an SQLite file, to cache scores in; they are found as long as the model is the same.
        trust_remote_code: Whether code in the checkpoint may run.
        verify: Whether loading compares the manifest with the weights (file sizes and one golden score).

    Raises:
        ModelError: There is no tokenizer or no trained head, or there are several labels and no `head`.
        ManifestError: The manifest does not match the model.
        SpecError: The model has no such label, or has only one member to aggregate.
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
