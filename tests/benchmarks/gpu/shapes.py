"""Models in the shapes of published ones, with random weights, and miniatures of them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from transformers import AutoModelForSequenceClassification, ModernBertConfig, Qwen2Config

Family: TypeAlias = Literal["qwen2", "modernbert"]

TEMPLATE = (
    "{% for message in messages %}<|start|>{{ message['role'] }}\n{{ message['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes of a published model.

    Args:
        name: What tables call it.
        family: The architecture.
        vocabulary: Rows of its embedding.
        hidden: Its width.
        intermediate: The width of its feed-forward layers.
        layers: Its layers.
        heads: Its attention heads.
        key_value_heads: Those of keys and values.
        positions: The most tokens of a row.
        window: In ModernBERT, the tokens that all layers but every third see of each row.
    """

    name: str
    family: Family
    vocabulary: int
    hidden: int
    intermediate: int
    layers: int
    heads: int
    key_value_heads: int
    positions: int = 32_768
    window: int = 128

    def config(self, tokenizer: Any) -> Any:
        """The configuration of a classifier with one output."""
        sizes = {
            "vocab_size": self.vocabulary,
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "max_position_embeddings": self.positions,
            "num_labels": 1,
            "pad_token_id": tokenizer.pad_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "bos_token_id": None,
            "problem_type": "regression",  # for a pipeline to return what the head says, as it is
        }
        if self.family == "qwen2":
            return Qwen2Config(**sizes, num_key_value_heads=self.key_value_heads, tie_word_embeddings=False)
        special = {"cls_token_id": tokenizer.eos_token_id, "sep_token_id": tokenizer.eos_token_id}
        return ModernBertConfig(**sizes, **special, local_attention=self.window)

    def build(self, tokenizer: Any, device: torch.device, dtype: torch.dtype) -> Any:
        """A classifier with random weights, always the same, made where it will run; in evaluation mode."""
        torch.manual_seed(0)
        with torch.device(device):
            model = AutoModelForSequenceClassification.from_config(self.config(tokenizer), dtype=dtype)
            head = model.score if self.family == "qwen2" else model.classifier
            torch.nn.init.normal_(head.weight, std=self.hidden**-0.5)  # scores of about one
        return model.eval()

    def forward_flops(self, weights: int, spans: Iterable[tuple[int, int]]) -> float:
        """Floating-point operations of computing stretches of rows: two a weight and token, and four a width and token seen.

        The count of Kaplan et al. (2020), appendix B of PaLM (2022): ``2 N + 4 L d c`` a token that sees c others, without the
        embedding.

        Args:
            weights: The model's weights, without embeddings.
            spans: ``start`` and ``stop`` of each stretch: its tokens, which see those before ``start`` as well.
        """
        spans = list(spans)
        tokens = sum(stop - start for start, stop in spans)
        if self.family == "qwen2":
            pairs = self.layers * sum((stop - start) * (start + stop + 1) / 2 for start, stop in spans)
        else:
            everywhere = math.ceil(self.layers / 3)
            pairs = sum(
                stop * (everywhere * stop + (self.layers - everywhere) * min(stop, self.window + 1)) for _, stop in spans
            )
        return 2.0 * weights * tokens + 4.0 * self.hidden * pairs


QWEN_HALF = Shape("Qwen2.5-0.5B", "qwen2", 151_936, 896, 4_864, 24, 14, 2)
QWEN_SEVEN = Shape("Qwen2.5-7B", "qwen2", 152_064, 3_584, 18_944, 28, 28, 4)
MODERNBERT = Shape("ModernBERT-large", "modernbert", 50_368, 1_024, 2_624, 28, 16, 16, positions=8_192)

_SMALL = {"vocabulary": 2_048, "hidden": 64, "intermediate": 128, "layers": 2, "heads": 4}
_MINIATURES = {
    QWEN_HALF: Shape("Qwen2.5-0.5B", "qwen2", **_SMALL, key_value_heads=2, positions=2_048),
    QWEN_SEVEN: Shape("Qwen2.5-7B", "qwen2", **{**_SMALL, "hidden": 96}, key_value_heads=1, positions=2_048),
    MODERNBERT: Shape("ModernBERT-large", "modernbert", **{**_SMALL, "layers": 3}, key_value_heads=4, positions=512, window=16),
}


def miniature(shape: Shape) -> Shape:
    """A shape of the same kind that a CPU runs in no time."""
    return _MINIATURES[shape]
