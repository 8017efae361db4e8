"""The last layer runs only for the tokens that are scored, and scores stay the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from rm_plugins.engine import last_layer
from rm_plugins.engine.engine import ScoringEngine
from tests.test_scoring_engine import close, make_model, one_by_one

PROMPT = [5, 6, 7, 8, 9, 10, 11, 12, 13, 14] * 6
ROWS = [
    [*PROMPT, 4, 20],
    [*PROMPT, 21, 22, 23, 24, 4],
    [*PROMPT, 30],
    [9, 8, 7, 4],
    [*PROMPT[:30], 40, 41, 4],
    [*range(5, 60), 4],
]

# What runs after the attention of a family's last layer.
READING: dict[str, Callable[[Any], Any]] = {
    "llama": lambda model: model.model.layers[-1].mlp,
    "qwen2": lambda model: model.model.layers[-1].mlp,
    "qwen3": lambda model: model.model.layers[-1].mlp,
    "gpt_neox": lambda model: model.gpt_neox.layers[-1].mlp,
    "bert": lambda model: model.bert.encoder.layer[-1].intermediate,
    "roberta": lambda model: model.roberta.encoder.layer[-1].intermediate,
}


@pytest.mark.parametrize("family", READING)
@pytest.mark.parametrize("share_prefixes", [True, False])
def test_only_scored_tokens_run_through_it(family: str, share_prefixes: bool) -> None:
    model = make_model(family)
    engine = ScoringEngine(model, 400, share_prefixes=share_prefixes)
    engine.outputs(ROWS)  # rows of these lengths are compared once with a simpler computation
    module = READING[family](model)
    tokens: list[int] = []
    own = module.forward

    def counted(hidden: torch.Tensor) -> Any:
        tokens.append(hidden.shape[:-1].numel())
        return own(hidden)

    module.forward = counted
    outputs, _ = engine.outputs(ROWS)
    del module.forward
    assert sum(tokens) == len(ROWS)
    close(outputs, one_by_one(model, ROWS))


def test_several_tokens_of_a_row() -> None:
    class Every:
        def positions(self, ids: Any) -> Any:
            return [position for position, token in enumerate(ids) if token in (4, 9)] or [0]

    model = make_model("llama")
    outputs, _ = ScoringEngine(model, readout=Every()).outputs(ROWS)
    cut = [row[: position + 1] for row in ROWS for position in Every().positions(row)]
    close(outputs, one_by_one(model, cut))


class TestForAllTokens:
    """Models whose last layer cannot be cut short, because scores would change."""

    @pytest.mark.parametrize(
        ("family", "settings"),
        [
            ("gpt2", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256, "n_inner": 48}),
            ("mistral", {"sliding_window": 8}),
            ("mpt", {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 256}),
            (
                "modernbert",
                {"global_attn_every_n_layers": 1, "classifier_pooling": "mean", "cls_token_id": 1, "sep_token_id": 2},
            ),
        ],
    )
    def test_a_family(self, family: str, settings: dict[str, Any]) -> None:
        self.check(make_model(family, **settings))

    @pytest.mark.filterwarnings("ignore:.*gives a row another score in a batch")  # its mean includes the padding
    def test_a_head_that_reads_all_tokens(self) -> None:
        model = make_model("bert")
        own = model.bert.pooler.forward
        model.bert.pooler.forward = lambda hidden: own(hidden.mean(1, keepdim=True))
        self.check(model)

    def test_a_layer_with_hooks(self) -> None:
        """They may move or gather weights, and an interrupted run would not reach those that follow it."""
        model = make_model("llama")
        model.model.layers[-1].mlp.register_forward_hook(lambda *_: None)
        self.check(model)

    def test_another_attention(self) -> None:
        model = make_model("bert")
        model.config._attn_implementation = "flex_attention"
        assert last_layer.LastLayer.of(model) is None

    def test_a_difference_is_noticed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The trial is of a short row, so later checks are of longer ones."""
        select = last_layer._of_tokens

        def wrong(size: Any, at: torch.Tensor, value: Any) -> Any:
            return select(size, at if size[1] < 5 else at * 0, value)

        monkeypatch.setattr(last_layer, "_of_tokens", wrong)
        self.check(make_model("llama"))

    @staticmethod
    def check(model: Any) -> None:
        engine = ScoringEngine(model, share_prefixes=False)
        outputs, _ = engine.outputs(ROWS)
        assert not engine.reads_last_layer
        close(outputs, one_by_one(model, ROWS))
        assert np.ptp(outputs) > 1e-3
