"""The critics that PPO can have: what they start from, what they share, and what is refused."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
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
    AutoModelForSequenceClassification,
    AutoTokenizer,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2ForSequenceClassification,
)

import rm_plugins as rm
from rm_plugins.engine.token_forward import TokenForward
from rm_plugins.errors import DataError, ModelError, UnsupportedError
from rm_plugins.models.heads import Heads
from rm_plugins.providers.models.sequence_classifier import SequenceClassifier
from rm_plugins.transforms import Chain, Clip, MinMax, Scale, Tanh, ZScore
from rm_plugins_trl.ppo.critic import Critic, ValueHead, ValueModel, make_critic, trained_groups
from rm_plugins_trl.ppo.reward_as_critic import transform_as_line
from tests.coded_checkpoints import with_model_code
from tests.conftest import make_tokenizer
from tests.trl.ppo.conftest import Recording, policy_in

ROWS = [[5, 6, 7, 8, 9, 10], [5, 6, 20, 21], [30, 31, 32, 33, 34]]
STARTS = [2, 2, 4]
COMPLETION_TOKENS = 4 + 2 + 1

Make = Callable[..., Any]


@pytest.fixture
def folder(tiny_decoder: Any) -> Path:
    made: Path = tiny_decoder()
    return made


@pytest.fixture
def policy(folder: Path) -> Any:
    return policy_in(folder)


@pytest.fixture
def make(policy: Any, folder: Path) -> Make:
    """`make_critic` for the policy, which differs in all weights from the classifier in its folder."""

    def made(kind: Any, reward: Any = None, **changes: Any) -> Critic:
        given = {"policy": policy, "tokenizer": AutoTokenizer.from_pretrained(folder), **changes}
        return make_critic(kind, given.pop("policy"), reward, given.pop("tokenizer"), **given)

    return made


def loaded(spec: Any) -> SequenceClassifier:
    reward = rm.load(spec)
    assert isinstance(reward, SequenceClassifier)
    return reward


def values_of(critic: Critic) -> torch.Tensor:
    with torch.no_grad():
        return critic.values(ROWS, STARTS)


def scores_by_token(model: Any) -> torch.Tensor:
    """The scores that a classifier gives the text before each completion token, [T, labels], each from a row of its own."""
    texts = [row[:end] for row, start in zip(ROWS, STARTS, strict=True) for end in range(start, len(row))]
    with torch.no_grad():
        return torch.cat([model(input_ids=torch.tensor([text])).logits for text in texts])


def trained_once(critic: Critic) -> None:
    optimizer = torch.optim.AdamW(trained_groups(critic, 0.01, 0.1))
    for _ in range(2):  # a head of zeros gives the trunk no gradient at first
        with critic.attention():
            (critic(rows=ROWS, starts=STARTS) - 1.0).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def weights_of(model: Any) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


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
        distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'meeting'}", world_size=1, rank=0)
        try:
            wrapped = DistributedDataParallel(critic)
            with critic.attention():
                values = wrapped(rows=ROWS, starts=STARTS)
                values.sum().backward()
        finally:
            distributed.destroy_process_group()
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


class TestReward:
    def test_it_starts_from_the_reward_which_its_training_leaves_alone(self, make: Make, folder: Path) -> None:
        reward = loaded(str(folder))
        sample = rm.Sample("Question: what is rain?", " Water.")
        before, score = weights_of(reward.model), reward.score([sample]).values
        critic = make("reward", reward)
        assert same(weights_of(critic.model), before)
        assert torch.allclose(values_of(critic), scores_by_token(reward.model)[:, 0], atol=1e-5)
        trained_once(critic)
        assert not same(weights_of(critic.model), before)
        assert same(weights_of(reward.model), before)
        assert reward.score([sample]).values == score

    @pytest.mark.parametrize(
        ("transform", "line"),
        [
            (Scale(factor=2.0, shift=0.5), (2.0, -1.0)),
            (ZScore(mean=1.0, std=4.0), (0.25, -0.25)),
            (MinMax(low=-1.0, high=3.0), (0.25, 0.25)),
            (Clip(low=-100), (1.0, 0.0)),
            (Chain(transforms=[Scale(shift=1.0), ZScore(mean=1.0, std=2.0), Clip(high=100)]), (0.5, -1.0)),
            (Tanh(), None),
            (ZScore(mean=1.0, std=2.0, running=True), None),
            (Chain(transforms=[Scale(), Tanh()]), None),
        ],
    )
    def test_a_linear_transform_of_the_reward_is_part_of_the_start(
        self, make: Make, folder: Path, transform: Any, line: tuple[float, float] | None
    ) -> None:
        assert transform_as_line(transform) == line
        reward = loaded(str(folder))
        reward.transform = transform
        if line is None:
            with pytest.raises(UnsupportedError, match=r"is not linear with fixed numbers.*critic='policy'"):
                make("reward", reward)
            return
        plain = scores_by_token(reward.model)[:, 0]
        assert torch.allclose(values_of(make("reward", reward)), line[0] * plain + line[1], atol=1e-4)

    def test_labels_with_weights_become_one(self, make: Make, tiny_decoder: Any) -> None:
        reward = loaded(
            {"provider": "sequence-classifier", "model": str(tiny_decoder(num_labels=3)), "head": {0: 1.0, 2: -0.5}}
        )
        expected = scores_by_token(reward.model) @ torch.tensor([1.0, 0.0, -0.5])
        assert torch.allclose(values_of(make("reward", reward)), expected, atol=1e-5)

    def test_members_become_their_mean_and_no_other_aggregate(self, make: Make, tiny_decoder: Any) -> None:
        reward = loaded({"provider": "sequence-classifier", "model": str(tiny_decoder(num_labels=2)), "head": 0})
        reward.trained.heads = Heads(members=2)
        assert torch.allclose(values_of(make("reward", reward)), scores_by_token(reward.model).mean(1), atol=1e-5)
        reward.member_transforms = [Scale(), Scale()]
        with pytest.raises(UnsupportedError, match=r"2 members of .* are not simply averaged"):
            make("reward", reward)

    def test_the_adapter_of_a_reward_is_merged_in_the_copy(self, make: Make, folder: Path, tmp_path: Path) -> None:
        peft = pytest.importorskip("peft")
        adapter = peft.LoraConfig(
            target_modules=["q_proj"], init_lora_weights=False, task_type="SEQ_CLS", modules_to_save=["score"]
        )
        peft.get_peft_model(AutoModelForSequenceClassification.from_pretrained(folder), adapter).save_pretrained(tmp_path)
        AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path)
        reward = loaded(str(tmp_path))
        before = weights_of(reward.model)
        critic = make("reward", reward)
        assert torch.allclose(values_of(critic), scores_by_token(reward.model)[:, 0], atol=1e-5)
        trained_once(critic)
        assert same(weights_of(reward.model), before)

    def test_a_reward_that_is_no_classifier_is_refused(self, make: Make) -> None:
        with pytest.raises(
            UnsupportedError, match=r"one `sequence-classifier`, but 'recording' is a recording\. Use critic='policy'"
        ):
            make("reward", Recording())
        with pytest.raises(UnsupportedError, match="but there is none"):
            make("reward")

    def test_a_reward_of_another_family_or_vocabulary_is_refused(
        self, make: Make, tiny_encoder: Any, tiny_decoder: Any
    ) -> None:
        with pytest.raises(ModelError, match=r"is a bert, and the policy is a qwen2.*critic='policy'"):
            make("reward", loaded(str(tiny_encoder())))
        other = loaded(str(tiny_decoder(end="<|stop|>")))
        with pytest.raises(
            ModelError, match=r"another vocabulary than the policy: .*'<\|end\|>' with the id 1, and the other lacks it"
        ):
            make("reward", other)

    def test_a_reward_without_causal_attention_is_refused(self, make: Make, folder: Path) -> None:
        reward = loaded(str(folder))
        reward.model.config.is_causal = False
        with pytest.raises(ModelError, match="values would depend on tokens that are still to come"):
            make("reward", reward)


class TestValueModel:
    def test_a_folder_or_a_model_is_the_value_model(self, make: Make, folder: Path) -> None:
        model = AutoModelForSequenceClassification.from_pretrained(folder)
        expected = scores_by_token(model)[:, 0]
        assert torch.allclose(values_of(make(str(folder))), expected, atol=1e-5)
        critic = make(model)
        assert critic.model is model
        assert torch.allclose(values_of(critic), expected, atol=1e-5)
        assert make(critic) is critic

    def test_a_language_model_gets_a_head_of_zeros(self, make: Make, policy: Any, tmp_path: Path) -> None:
        Qwen2ForCausalLM(policy.config).save_pretrained(tmp_path)
        critic = make(tmp_path)
        assert critic.model.config.num_labels == 1
        assert not values_of(critic).any()
        assert not same(weights_of(critic.model.model), weights_of(policy.model))

    def test_loaded_weights_are_not_those_of_the_file(self, make: Make, folder: Path) -> None:
        critic = make(folder)
        before = weights_of(critic.model)
        (file,) = folder.glob("*.safetensors")
        content = file.read_bytes()
        try:
            with file.open("r+b") as opened:
                opened.seek(-8_000, 2)
                opened.write(bytes(8_000))
            assert same(weights_of(critic.model), before)
        finally:
            file.write_bytes(content)

    def test_two_labels_are_refused(self, make: Make, tiny_decoder: Any) -> None:
        for given in (
            tiny_decoder(num_labels=2),
            AutoModelForSequenceClassification.from_pretrained(tiny_decoder(num_labels=2)),
        ):
            with pytest.raises(ModelError, match=r"has 2 labels \(LABEL_0, LABEL_1\), and a value is one number"):
                make(given)

    def test_an_encoder_is_refused(self, make: Make, tiny_encoder: Any) -> None:
        for given in (tiny_encoder(), AutoModelForSequenceClassification.from_pretrained(tiny_encoder())):
            with pytest.raises(
                ModelError, match=r"is not a decoder .* An encoder would read the tokens that are still to come"
            ):
                make(given)

    def test_attention_to_later_tokens_is_refused(self, make: Make, tiny_decoder: Any) -> None:
        with pytest.raises(ModelError, match="attention to later tokens"):
            make(tiny_decoder(config={"is_causal": False}))

    def test_a_model_without_a_score_head_or_with_an_adapter_is_refused(self, make: Make, folder: Path) -> None:
        settings = AutoConfig.for_model("gpt2", vocab_size=400, n_embd=32, n_layer=1, n_head=2)
        with pytest.raises(ModelError, match="has no score head"):
            make(AutoModelForCausalLM.from_config(settings))
        peft = pytest.importorskip("peft")
        adapter = peft.LoraConfig(target_modules=["q_proj"], task_type="SEQ_CLS")
        adapted = peft.get_peft_model(AutoModelForSequenceClassification.from_pretrained(folder), adapter)
        for given in (adapted, adapted.get_base_model()):
            with pytest.raises(ModelError, match="Merge the adapter first"):
                make(given)

    def test_another_vocabulary_size_is_refused_without_a_tokenizer(self, make: Make, folder: Path, tmp_path: Path) -> None:
        model = AutoModelForSequenceClassification.from_pretrained(folder)
        model.resize_token_embeddings(model.config.vocab_size + 8)
        model.save_pretrained(tmp_path)
        with pytest.raises(ModelError, match="it cannot be seen that they have the same vocabulary"):
            make(model)
        with pytest.raises(ModelError, match="it cannot be seen that they have the same vocabulary"):
            make(tmp_path)
        AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path)
        assert isinstance(make(tmp_path), ValueModel), "unused rows of the embedding make no difference"

    def test_a_smaller_embedding_than_the_policy_s_tokens_is_refused(self, make: Make, folder: Path, tmp_path: Path) -> None:
        model = AutoModelForSequenceClassification.from_pretrained(folder)
        model.resize_token_embeddings(100)
        model.save_pretrained(tmp_path)
        AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path)
        with pytest.raises(ModelError, match=r"embeddings of 100 token ids, and the policy writes"):
            make(tmp_path)

    def test_another_tokenizer_is_refused(self, make: Make, folder: Path, tmp_path: Path) -> None:
        AutoModelForSequenceClassification.from_pretrained(folder).save_pretrained(tmp_path)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        rules = json.loads(tokenizer.backend_tokenizer.to_str())
        rules["model"]["merges"] = []
        tokenizer.save_pretrained(tmp_path)
        (tmp_path / "tokenizer.json").write_text(json.dumps(rules), encoding="utf-8")
        with pytest.raises(
            ModelError, match=r"another vocabulary than the policy: the two tokenizers make different token ids"
        ):
            make(tmp_path)
        make_tokenizer(start="<|begin|>").save_pretrained(tmp_path)
        with pytest.raises(ModelError, match=r"has the token '<\|start\|>' with the id 2, and the other lacks it"):
            make(tmp_path)

    def test_a_policy_s_own_padding_token_makes_no_difference(self, make: Make, folder: Path) -> None:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        tokenizer.add_special_tokens({"pad_token": "<|my pad|>"})
        assert isinstance(make(folder, tokenizer=tokenizer), ValueModel)

    def test_a_folder_that_is_no_model_is_refused(self, make: Make, tmp_path: Path) -> None:
        with pytest.raises(ModelError, match="is not a model folder"):
            make(tmp_path)
        with pytest.raises(ModelError, match=r"There is no folder .*nowhere"):
            make(tmp_path / "nowhere")
        with pytest.raises(ModelError, match=r"cannot be loaded.*Did you mean 'policy'"):
            make("polcy")
        with pytest.raises(UnsupportedError, match="not a int"):
            make(3)

    @pytest.mark.parametrize("language_model", [False, True])
    def test_weights_that_are_not_safetensors_are_refused(
        self, make: Make, policy: Any, tmp_path: Path, language_model: bool
    ) -> None:
        model = (Qwen2ForCausalLM if language_model else Qwen2ForSequenceClassification)(policy.config)
        model.save_pretrained(tmp_path)
        (tmp_path / "model.safetensors").unlink()
        torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
        with pytest.raises(ModelError, match="safetensors"):
            make(tmp_path)

    def test_a_checkpoint_that_lacks_weights_is_refused(self, make: Make, policy: Any, tmp_path: Path) -> None:
        smaller = Qwen2Config(**{**policy.config.to_dict(), "num_hidden_layers": 1, "layer_types": None})
        Qwen2ForCausalLM(smaller).save_pretrained(tmp_path)
        config = json.loads((tmp_path / "config.json").read_text())
        config |= {"num_hidden_layers": 2, "layer_types": ["full_attention"] * 2}
        (tmp_path / "config.json").write_text(json.dumps(config))
        with pytest.raises(ModelError, match=r"its checkpoint has no weights for model\.layers\.1"):
            make(tmp_path)

    def test_code_in_a_checkpoint_runs_only_if_allowed(self, make: Make, tiny_decoder: Any, tmp_path: Path) -> None:
        folder = with_model_code(tiny_decoder(), tmp_path / "ran")
        with pytest.raises(ModelError, match=r"PPOConfig\(trust_remote_code=True\)"):
            make(folder)
        assert not (tmp_path / "ran").exists()

    def test_rows_that_the_model_cannot_read_are_named(self, make: Make) -> None:
        critic = make("policy")
        with pytest.raises(DataError, match="has the token id 100,000, and the value model has embeddings of"):
            critic(rows=[[1, 100_000]], starts=[1])
        settings = AutoConfig.for_model("gpt2", vocab_size=400, n_embd=32, n_layer=1, n_head=2, n_positions=8)
        short = make("policy", policy=AutoModelForCausalLM.from_config(settings))
        with pytest.raises(DataError, match=r"A row has 9 tokens, and the value model 8 positions"):
            short(rows=[[1] * 9], starts=[1])


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
        resumed = make(kind, reward)
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
