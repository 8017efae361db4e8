"""Settings for loading and running a trained model, for its rendering and its outputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from rm_plugins.component import ModelSource
from rm_plugins.errors import ModelError, SpecError, did_you_mean
from rm_plugins.models.heads import Heads
from rm_plugins.models.manifest import Manifest, ScoreStatistics
from rm_plugins.rendering.render import Renderer
from rm_plugins.rendering.rendering import Convention, Read, Truncation

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


DeviceMap: TypeAlias = Literal["auto", "balanced", "balanced_low_0", "sequential"] | Mapping[str, int | str]
"""How a model is spread over devices: a strategy of accelerate, or a device for each part by its name."""

Scheme: TypeAlias = Literal["int8", "int4", "nf4"]
"""How weights are quantized: to 8 bits, to 4 bits, or to the 4 bits of QLoRA."""

RENDERING_KEYS = (
    *("chat_template", "append_eos", "max_length", "truncation", "read", "pair", "convention"),
    *("template_kwargs", "template_date"),
)
"""The keys of specs that set the rendering."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSettings:
    """How a trained model is loaded and run: the keys that all specs of models share.

    Documented in `rm_plugins.providers.models.sequence_classifier.SequenceClassifier`.
    """

    head: int | str | Mapping[int | str, float] | None = None
    tokenizer: ModelSource | None = None
    revision: str | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    device: str = "auto"
    device_map: DeviceMap | None = None
    quantization: Scheme | Mapping[str, Any] | None = None
    tp_plan: Literal["auto"] | None = None
    max_length: int | None = None
    truncation: Truncation | None = None
    read: Read | None = None
    pair: bool | None = None
    convention: Convention | None = None
    chat_template: ModelSource | None = None
    append_eos: bool | None = None
    template_kwargs: Mapping[str, Any] | None = None
    template_date: str | None = None
    max_batch_tokens: int | None = None
    attn_implementation: str | None = None
    compile: bool = False
    cache: str | None = None
    trust_remote_code: bool = False
    verify: bool = True

    def renderer(
        self, source: str, tokenizer: PreTrainedTokenizerBase, manifest: Manifest | None, config: PretrainedConfig
    ) -> Renderer:
        """The renderer of a model: from the settings, else its manifest, else the engine that trained it, else TRL's default.

        Raises:
            ModelError: The tokenizer lacks what the rendering needs.
        """
        from rm_plugins.models.trained_rendering import renderer_of  # here, because it imports transformers

        settings = {name: getattr(self, name) for name in RENDERING_KEYS}
        return renderer_of(source, tokenizer, manifest, config, settings, revision=self.revision)

    def heads(self, model: PreTrainedModel, manifest: Manifest | None, source: str) -> Heads:
        """The meaning of a model's outputs, and how the reward is computed from them: from the settings, else the manifest.

        Raises:
            ModelError: There are several outputs, but settings and manifest do not name the reward.
            SpecError: The model does not have the output.
        """
        names = model.config.id2label
        labels = [str(names[index]) for index in range(model.config.num_labels)]
        if self.head is None and len(labels) == 1:
            return Heads()
        if self.head is None and manifest is not None and manifest.heads is not None:
            return manifest.heads
        if self.head is None:
            raise ModelError(
                f"{source} has {len(labels)} labels ({', '.join(labels)}). Set in the spec which one is the reward, such as "
                f"`head: {labels[0]}`, or how they are combined: `head: {{{labels[0]}: 1.0, {labels[1]}: -0.5}}`."
            )
        wanted = self.head if isinstance(self.head, Mapping) else {self.head: 1.0}
        weights = [0.0] * len(labels)
        for label, weight in wanted.items():
            known = 0 <= label < len(labels) if isinstance(label, int) else label in labels
            if not known:
                raise SpecError(f"{source} has no label {label!r}. {did_you_mean(str(label), labels)}", key="head")
            weights[label if isinstance(label, int) else labels.index(label)] = weight
        return Heads(tuple(labels), tuple(weights))

    def statistics_in(self, manifest: Manifest | None) -> ScoreStatistics | None:
        """The score statistics of a manifest, unless the settings compute another reward from the model's outputs."""
        if manifest is None or (manifest.heads is not None and self.head is not None):
            return None
        return manifest.statistics
