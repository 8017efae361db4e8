"""PairRM: a DeBERTa model that reads a prompt and two answers, and scores each of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import DebertaV2Config, DebertaV2Model, DebertaV2PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput


class PairRM(DebertaV2PreTrainedModel):  # type: ignore[misc]  # transformers is untyped here
    """A checkpoint of the class ``DebertaV2PairRM``, such as ``llm-blender/PairRM-hf`` (Jiang et al., arXiv:2306.02561).

    Three tokens mark the beginnings of the prompt, the first and the second answer. Let h be the hidden state of a mark after the last
    layer. An answer's score is f([h of the prompt, h of the answer]), where f has one hidden layer (tanh) and an output for each task. The
    logit that the first answer is better is the difference between the two scores, averaged over tasks.

    Args:
        config: Has the ids of the marks (``source_prefix_id``, ``cand1_prefix_id``, ``cand2_prefix_id``) and ``n_tasks``.
    """

    base_model_prefix = "pretrained_model"

    def __init__(self, config: DebertaV2Config) -> None:
        super().__init__(config)
        size = config.hidden_size
        self.pretrained_model = DebertaV2Model(config)
        # The weights are called head_layer.1 and head_layer.4, because training has a dropout before each.
        self.head_layer = nn.Sequential(
            nn.Identity(), nn.Linear(2 * size, size), nn.Tanh(), nn.Identity(), nn.Linear(size, config.n_tasks)
        )
        self.post_init()

    @property
    def marks(self) -> tuple[int, int, int]:
        """The ids of the tokens that mark the prompt, the first and the second answer."""
        return self.config.source_prefix_id, self.config.cand1_prefix_id, self.config.cand2_prefix_id

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, **others: Any
    ) -> SequenceClassifierOutput:
        """The logits [N, 1] that the first answer is better, for rows [N, length] that each have every mark once."""
        states = self.pretrained_model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        rows = torch.arange(len(input_ids), device=input_ids.device)
        prompt, first, second = (states[rows, (input_ids == mark).int().argmax(dim=1)] for mark in self.marks)
        scores = self.head_layer(torch.stack([torch.cat([prompt, answer], dim=-1) for answer in (first, second)]))
        return SequenceClassifierOutput(logits=(scores[0] - scores[1]).mean(dim=-1, keepdim=True))
