"""The value models that PPO is given: what is loaded, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2ForSequenceClassification,
)

from rm_plugins.errors import DataError, ModelError, UnsupportedError
from rm_plugins_trl.ppo.critic import ValueModel
from tests.coded_checkpoints import with_model_code
from tests.conftest import make_tokenizer
from tests.trl.ppo.critics import (
    Make,
    same,
    scores_by_token,
    values_of,
    weights_of,
)


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

    @pytest.mark.parametrize("kind", [Qwen2ForCausalLM, Qwen2ForSequenceClassification])
    def test_loaded_weights_are_not_those_of_the_file(self, make: Make, policy: Any, tmp_path: Path, kind: Any) -> None:
        policy.config.num_labels = 1
        kind(policy.config).save_pretrained(tmp_path)
        critic = make(tmp_path)
        before = weights_of(critic.model)
        (file,) = tmp_path.glob("*.safetensors")
        with file.open("r+b") as opened:
            opened.seek(-8_000, 2)
            opened.write(bytes(8_000))
        assert same(weights_of(critic.model), before)

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

    def test_a_policy_s_own_padding_token_makes_no_difference(self, make: Make, folder: Path, tmp_path: Path) -> None:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        settings = {**AutoConfig.from_pretrained(folder).to_dict(), "vocab_size": len(tokenizer) + 8}
        Qwen2ForSequenceClassification(Qwen2Config(**settings)).save_pretrained(tmp_path)
        tokenizer.save_pretrained(tmp_path)
        policy = Qwen2ForCausalLM(Qwen2Config(**settings))
        tokenizer.add_special_tokens({"pad_token": "<|my pad|>"})
        assert isinstance(make(tmp_path, policy=policy, tokenizer=tokenizer), ValueModel)
        tokenizer.add_tokens("<|word|>")
        with pytest.raises(ModelError, match=r"has the token '<\|word\|>' .* and the other lacks it"):
            make(tmp_path, policy=policy, tokenizer=tokenizer)

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
