"""A Llama under a type that transformers does not know: a checkpoint of it carries this file as its remote code."""

from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, LlamaModel, LlamaPreTrainedModel


class RemoteConfig(LlamaConfig):  # type: ignore[misc]
    model_type = "remote"


class RemoteForCausalLM(LlamaForCausalLM):  # type: ignore[misc]
    config_class = RemoteConfig


class RemoteForSequenceClassification(LlamaForSequenceClassification):  # type: ignore[misc]
    config_class = RemoteConfig

    def __init__(self, config: RemoteConfig) -> None:
        # Without Llama's own `__init__`, which looks for the backbone of a type that it does not know.
        LlamaPreTrainedModel.__init__(self, config)
        self.num_labels = config.num_labels
        self.model = LlamaModel(config)
        self.score = nn.Linear(config.hidden_size, config.num_labels, bias=False)
        self.post_init()
