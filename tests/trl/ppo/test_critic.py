"""The critics that PPO can have: what they start from, what is trained, and how they are saved."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
)

from rm_plugins.engine.token_forward import TokenForward
from rm_plugins.errors import ModelError, UnsupportedError
from rm_plugins.transforms import ZScore
from rm_plugins_trl.ppo.critic import ValueHead, ValueModel, trained_groups
from tests.conftest import make_tokenizer
from tests.trl.ppo.critics import (
    COMPLETION_TOKENS,
    ROWS,
    STARTS,
    Make,
    loaded,
    same,
    scores_by_token,
    trained_once,
    values_of,
    weights_of,
)
from tests.warm_process import call_warm


class TestPolicy:
    def test_it_starts_from_a_copy_of_the_policy_with_values_of_zero(self, make: Make, policy: Any) -> None:
        before = weights_of(policy)
        critic = make("policy")
        assert isinstance(critic, ValueModel)
        assert not critic.needs_hidden
        assert critic.model.config.num_labels == 1
        assert same(weights_of(critic.model.model), weights_of(policy.model))
        values = values_of(critic)
        assert (values.shape, values.dtype) == ((COMPLETION_TOKENS,), torch.float32)
        assert not values.any()
        trained_once(critic)
        assert same(weights_of(policy), before)
        assert not same(weights_of(critic.model.model), weights_of(policy.model))
        assert values_of(critic).mean() > 0.01

    def test_its_values_are_the_scores_of_the_text_before_each_token(self, make: Make) -> None:
        critic = make("policy")
        torch.nn.init.normal_(critic.model.score.weight)
        assert torch.allclose(values_of(critic), scores_by_token(critic.model)[:, 0], atol=1e-5)
        assert torch.equal(critic.values(ROWS, STARTS), critic(rows=ROWS, starts=STARTS))

    def test_the_adapter_of_a_policy_is_merged_in_the_copy(self, make: Make, policy: Any) -> None:
        peft = pytest.importorskip("peft")
        adapter = peft.LoraConfig(target_modules=["q_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
        adapted = peft.get_peft_model(copy.deepcopy(policy), adapter)
        critic = make("policy", policy=adapted)
        merged = copy.deepcopy(adapted).merge_and_unload()
        assert same(weights_of(critic.model.model), weights_of(merged.model))
        assert not same(weights_of(critic.model.model), weights_of(policy.model))
        assert all(parameter.requires_grad for parameter in critic.parameters())

    def test_it_has_the_dtype_of_the_policy(self, make: Make, policy: Any) -> None:
        assert make("policy").model.dtype == torch.float32
        critic = make("policy", policy=policy.to(torch.bfloat16))
        assert critic.model.dtype == torch.bfloat16
        assert values_of(critic).dtype == torch.float32

    @pytest.mark.parametrize(
        "settings",
        [
            {"model_type": "gpt2", "n_embd": 32, "n_layer": 1, "n_head": 2},
            {"model_type": "opt", "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "ffn_dim": 32},
            {
                "model_type": "llama",
                "hidden_size": 32,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "attention_dropout": 0.5,
            },
        ],
        ids=lambda settings: settings["model_type"],
    )
    def test_its_dropout_is_off(self, make: Make, settings: dict[str, Any]) -> None:
        config = AutoConfig.for_model(**settings, vocab_size=400)
        critic = make("policy", policy=AutoModelForCausalLM.from_config(config))
        torch.nn.init.normal_(critic.model.score.weight)
        critic.train()
        assert torch.equal(values_of(critic), values_of(critic))

    def test_activations_are_computed_again_where_asked(self, make: Make) -> None:
        critic = make("policy")
        critic.gradient_checkpointing_enable({"use_reentrant": False})
        assert critic.model.is_gradient_checkpointing
        trained_once(critic.train())
        assert values_of(critic).mean() > 0.01

    def test_a_policy_without_a_classifier_class_is_refused(self, make: Make, policy: Any) -> None:
        policy.config = AutoConfig.for_model("speecht5")
        with pytest.raises(ModelError, match=r"cannot be turned into a value model: .* or set critic='head'"):
            make("policy")

    def test_its_forward_is_what_a_wrapper_of_several_processes_sees(self, make: Make, tmp_path: Path) -> None:
        critic = make("policy")
        torch.nn.init.normal_(critic.model.score.weight)
        torch.save(critic, tmp_path / "critic")
        call_warm(wrapped_forward, tmp_path)


def wrapped_forward(folder: Path) -> None:
    critic = torch.load(folder / "critic", weights_only=False)
    distributed.init_process_group("gloo", init_method=f"file://{folder / 'meeting'}", world_size=1, rank=0)
    wrapped = DistributedDataParallel(critic)
    with critic.attention():
        values = wrapped(rows=ROWS, starts=STARTS)
        values.sum().backward()
    assert torch.allclose(values, values_of(critic))
    assert all(parameter.grad is not None for parameter in critic.parameters())


class TestHead:
    def test_it_starts_with_values_of_zero_and_learns_from_the_hidden_states(self, make: Make, policy: Any) -> None:
        critic = make("head")
        assert isinstance(critic, ValueHead)
        assert critic.needs_hidden
        hidden = torch.randn(5, policy.config.hidden_size, requires_grad=True)
        values = critic(hidden=hidden)
        assert (values.shape, values.dtype, values.any().item()) == ((5,), torch.float32, False)
        values.sum().backward()
        assert critic.score.weight.grad is not None
        assert torch.allclose(critic.score.weight.grad, hidden.detach().sum(0, keepdim=True))

    @pytest.mark.parametrize("detach", [False, True])
    def test_its_gradients_reach_the_trunk_unless_detached(self, detach: bool) -> None:
        critic = ValueHead(4, detach=detach)
        torch.nn.init.ones_(critic.score.weight)
        hidden = torch.randn(3, 4, requires_grad=True)
        critic(hidden=hidden).sum().backward()
        assert (hidden.grad is None) == detach

    def test_it_computes_in_float32(self) -> None:
        critic = ValueHead(64)
        torch.nn.init.normal_(critic.score.weight)
        hidden = torch.randn(3, 64)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            values = critic(hidden=hidden)
        assert torch.equal(values, critic(hidden=hidden))
        assert critic(hidden=hidden.bfloat16()).dtype == torch.float32

    def test_it_fits_what_the_language_model_head_reads(self, make: Make) -> None:
        settings = AutoConfig.for_model(
            "opt",
            vocab_size=400,
            hidden_size=32,
            word_embed_proj_dim=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            ffn_dim=32,
        )
        assert make("head", policy=AutoModelForCausalLM.from_config(settings)).score.in_features == 16

    def test_each_critic_names_what_it_needs(self, make: Make) -> None:
        with pytest.raises(UnsupportedError, match="pass them as `hidden`"):
            make("head")(rows=ROWS, starts=STARTS)
        with pytest.raises(UnsupportedError, match="pass `rows` and `starts`"):
            make("policy")(hidden=torch.ones(1, 32))


class TestSaving:
    @pytest.mark.parametrize("kind", ["policy", "reward", "head"])
    def test_a_saved_critic_is_made_again_from_its_folder(self, make: Make, folder: Path, tmp_path: Path, kind: str) -> None:
        reward = loaded(str(folder))
        reward.transform = ZScore(mean=1.0, std=4.0)
        critic = make(kind, reward)
        for parameter in critic.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        critic.save(tmp_path / "checkpoint-1")
        assert [path.name for path in (tmp_path / "checkpoint-1").iterdir()] == ["critic"]
        assert not [*tmp_path.rglob("*.bin"), *tmp_path.rglob("*.pt")]
        hidden = torch.randn(COMPLETION_TOKENS, 32)
        expected = critic(rows=ROWS, starts=STARTS, hidden=hidden)
        for place in (tmp_path / "checkpoint-1", tmp_path / "checkpoint-1" / "critic"):
            again = make(str(place))
            assert type(again) is type(critic)
            assert torch.equal(again(rows=ROWS, starts=STARTS, hidden=hidden), expected)
        resumed = make(kind, loaded(str(folder)))
        parameters = [*resumed.parameters()]
        resumed.load(tmp_path / "checkpoint-1")
        assert torch.equal(resumed(rows=ROWS, starts=STARTS, hidden=hidden), expected)
        assert all(one is other for one, other in zip(resumed.parameters(), parameters, strict=True))

    def test_saving_again_replaces_the_whole_folder(self, make: Make, tmp_path: Path) -> None:
        make("policy").save(tmp_path)
        make("head").save(tmp_path)
        assert {path.name for path in (tmp_path / "critic").iterdir()} == {"critic.json", "value_head.safetensors"}

    def test_a_failed_save_leaves_the_last_one(self, make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        critic = make("policy")
        critic.save(tmp_path)
        before = {path.name: path.read_bytes() for path in (tmp_path / "critic").iterdir()}

        def fails(folder: Path) -> None:
            (Path(folder) / "config.json").write_text("{")
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(critic.model, "save_pretrained", fails)
        with pytest.raises(OSError, match="No space left"):
            critic.save(tmp_path)
        assert {path.name: path.read_bytes() for path in (tmp_path / "critic").iterdir()} == before

    def test_a_saved_critic_knows_its_policy_s_vocabulary(self, make: Make, tmp_path: Path) -> None:
        make("policy").save(tmp_path)
        with pytest.raises(ModelError, match="the critic of a policy with another vocabulary"):
            make(tmp_path, tokenizer=make_tokenizer(end="<|stop|>"))

    def test_another_kind_or_size_is_refused(self, make: Make, tmp_path: Path) -> None:
        make("head").save(tmp_path)
        with pytest.raises(ModelError, match="is a value head, but this training has a value model"):
            make("policy").load(tmp_path)
        with pytest.raises(ModelError, match="reads hidden states of size 32, but the policy's have size 4"):
            ValueHead(4).load(tmp_path)
        with pytest.raises(ModelError, match="holds no critic"):
            ValueHead(4).load(tmp_path / "nowhere")
        (tmp_path / "critic" / "critic.json").write_text('{"kind": "oracle"}')
        with pytest.raises(ModelError, match="has the kind 'oracle'"):
            make(tmp_path)
        (tmp_path / "critic" / "critic.json").write_text('{"kind": "value head", "size": 32}')
        (tmp_path / "critic" / "value_head.safetensors").unlink()
        with pytest.raises(ModelError, match=r"value_head\.safetensors cannot be loaded"):
            make(tmp_path)


def test_matrices_alone_decay(make: Make) -> None:
    critic = make("policy")
    critic.model.model.embed_tokens.requires_grad_(False)
    decayed, others = trained_groups(torch.nn.Sequential(critic), 1e-3, 0.1)
    assert (decayed["lr"], decayed["weight_decay"]) == (1e-3, 0.1)
    assert (others["lr"], others["weight_decay"]) == (1e-3, 0.0)
    names = {id(parameter): name for name, parameter in critic.model.named_parameters()}
    assert {names[id(parameter)].rpartition(".")[2] for parameter in decayed["params"]} == {"weight"}
    assert all("norm" in names[id(one)] or "bias" in names[id(one)] for one in others["params"])
    assert len(decayed["params"]) + len(others["params"]) == len(names) - 1
    assert len(trained_groups(torch.nn.Linear(2, 2, bias=False), 1e-3, 0.1)) == 1


def test_a_value_model_is_read_through_the_engine(make: Make) -> None:
    critic = make("policy")
    assert isinstance(critic.model.forward, TokenForward)
    assert np.isfinite(values_of(critic).numpy()).all()
