"""The private names of transformers that the engine relies on: which one broke, where one did."""

from __future__ import annotations

import pytest
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel, Qwen2Config, Qwen2Model
from transformers.integrations import deepspeed

from rm_plugins.engine.transformers_internals import (
    attends_plainly,
    attention_as,
    is_stateful,
    loads_whole,
    takes_attention,
)


@pytest.fixture
def model() -> PreTrainedModel:
    return Qwen2Model(
        Qwen2Config(
            vocab_size=16, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1
        )
    )


def test_attn_implementation(model: PreTrainedModel) -> None:
    before = model.config._attn_implementation
    assert attends_plainly(model)
    with attention_as(model, "flex_attention"):
        assert not attends_plainly(model)
    with attention_as(model, "eager"):
        assert model.config._attn_implementation == "eager" == model.layers[0].self_attn.config._attn_implementation
    assert model.config._attn_implementation == before != "eager"
    model._set_gradient_checkpointing(enable=True, gradient_checkpointing_func=checkpoint)
    function = model.layers[0]._gradient_checkpointing_func
    with attention_as(model, "eager"):
        assert model.layers[0]._gradient_checkpointing_func is not function
    assert model.layers[0]._gradient_checkpointing_func is function


@pytest.mark.parametrize(
    ("name", "ask", "answer"), [("_supports_attention_backend", takes_attention, True), ("_is_stateful", is_stateful, False)]
)
def test_attributes_of_models(
    name: str, ask: object, answer: bool, model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert hasattr(PreTrainedModel, name), f"transformers has no PreTrainedModel.{name} any more"
    assert callable(ask) and ask(model) is answer
    monkeypatch.setattr(type(model), name, not answer)
    assert ask(model) is not answer


def test_loads_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stage3:
        def is_zero3(self) -> bool:
            return True

    training = Stage3()
    assert hasattr(deepspeed, "_hf_deepspeed_config_weak_ref"), "transformers keeps DeepSpeed's configuration elsewhere"
    monkeypatch.setattr(deepspeed, "_hf_deepspeed_config_weak_ref", None)
    deepspeed.set_hf_deepspeed_config(training)
    with pytest.raises(ValueError, match="within"), loads_whole():
        assert not deepspeed.is_deepspeed_zero3_enabled()
        raise ValueError("within")
    assert deepspeed.is_deepspeed_zero3_enabled()
