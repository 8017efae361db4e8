"""Random tiny models in the hub's cache, of the names and architectures that TRL's tests load."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any

import torch
import transformers

from tests.conftest import TEMPLATE, make_tokenizer
from tests.trl_own_tests import remote_llama

COMMIT = "0" * 40
LAYERS = {
    "hidden_size": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 2,
    "intermediate_size": 32,
    "initializer_range": 0.3,  # wide enough for gradients that change every parameter
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
CLASSIFIER = {"hidden_size": 16, "num_labels": 1}
MODELS: dict[str, tuple[Any, dict[str, int]]] = {
    "trl-internal-testing/tiny-GPTNeoXForCausalLM": (transformers.GPTNeoXForCausalLM, {}),
    "trl-internal-testing/tiny-LlamaForCausalLM-3.2": (transformers.LlamaForCausalLM, {}),
    "trl-internal-testing/tiny-LlamaForSequenceClassification-3.2": (transformers.LlamaForSequenceClassification, CLASSIFIER),
    "trl-internal-testing/tiny-Qwen2ForCausalLM-2.5": (transformers.Qwen2ForCausalLM, {}),
    "trl-internal-testing/tiny-Qwen2ForSequenceClassification-2.5": (transformers.Qwen2ForSequenceClassification, CLASSIFIER),
    "trl-internal-testing/tiny-Qwen3ForCausalLM": (transformers.Qwen3ForCausalLM, {}),
    "trl-internal-testing/tiny-Qwen3ForSequenceClassification": (transformers.Qwen3ForSequenceClassification, CLASSIFIER),
    "trl-internal-testing/tiny-Qwen3MoeForCausalLM": (transformers.Qwen3MoeForCausalLM, EXPERTS),
    "trl-internal-testing/tiny-RemoteForCausalLM": (remote_llama.RemoteForCausalLM, {}),
    "Qwen/Qwen3-4B": (transformers.Qwen3ForCausalLM, {}),
}
# GRPO with tools recognizes a model by its chat template, which the installed TRL keeps.
QWEN3_TEMPLATE = (resources.files("trl") / "chat_templates" / "qwen3.jinja").read_text("utf-8")
CHAT_TEMPLATES = {
    "trl-internal-testing/tiny-GPTNeoXForCausalLM": None,
    "trl-internal-testing/tiny-Qwen3ForCausalLM": QWEN3_TEMPLATE,
    "trl-internal-testing/tiny-Qwen3MoeForCausalLM": QWEN3_TEMPLATE,
}


def write_hub_cache(cache: Path) -> None:
    """Write every model as if it had been downloaded into this cache."""
    remote_llama.RemoteConfig.register_for_auto_class()
    remote_llama.RemoteForCausalLM.register_for_auto_class("AutoModelForCausalLM")
    transformers.utils.logging.disable_progress_bar()
    torch.manual_seed(0)
    for name, (model_class, settings) in MODELS.items():
        repository = cache / f"models--{name.replace('/', '--')}"
        (repository / "refs").mkdir(parents=True)
        (repository / "refs" / "main").write_text(COMMIT)
        _write_model(repository / "snapshots" / COMMIT, model_class, settings, CHAT_TEMPLATES.get(name, TEMPLATE))


def _write_model(folder: Path, model_class: Any, settings: dict[str, int], chat_template: str | None) -> None:
    tokenizer = make_tokenizer(start="<|im_start|>", end="<|im_end|>", chat_template=chat_template)
    config = model_class.config_class(vocab_size=len(tokenizer), **{**LAYERS, **settings})
    if model_class is remote_llama.RemoteForCausalLM:
        config.auto_map = {"AutoModelForSequenceClassification": "remote_llama.RemoteForSequenceClassification"}
    model_class(config).to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
