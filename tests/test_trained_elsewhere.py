"""By whom a model without a manifest was trained: what the files of each engine tell, and what they leave open."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import pytest
import yaml
from transformers import AutoConfig, BertConfig, LlamaConfig, PretrainedConfig

from rm_plugins.models.trained_elsewhere import TrainedElsewhere, trained_elsewhere

Folder: TypeAlias = Callable[..., Path]

LLAMA = {"architectures": ["LlamaForSequenceClassification"], "pad_token_id": 2, "eos_token_id": 2, "num_labels": 1}
BERT = {"architectures": ["BertForSequenceClassification"], "num_labels": 1}


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    """Makes a model folder of which only what tells of its training is there."""

    def make(
        config: dict[str, Any], card: dict[str, Any] | None = None, text: str = "", name: str = "model", **files: Any
    ) -> Path:
        made = tmp_path / name
        made.mkdir(parents=True, exist_ok=True)
        kind = BertConfig if "Bert" in config["architectures"][0] else LlamaConfig
        kind(**config).to_json_file(made / "config.json")
        if card is not None or text:
            front = yaml.safe_dump(card or {})
            (made / "README.md").write_text(f"---\n{front}---\n\n# A model\n\n{text}\n")
        for file, content in files.items():
            (made / f"{file}.json").write_text(content if isinstance(content, str) else json.dumps(content))
        return made

    return make


def config_of(folder: Path) -> PretrainedConfig:
    return AutoConfig.from_pretrained(folder)


def who(folder: Path) -> TrainedElsewhere | None:
    return trained_elsewhere(str(folder), config_of(folder))


def told(folder: Path) -> TrainedElsewhere:
    answer = who(folder)
    assert answer is not None
    return answer


def test_files_of_nobody(folder: Folder) -> None:
    # As a public reward model's card, 2024: what it is for, and nothing of how it was trained.
    card = {"library_name": "transformers", "pipeline_tag": "text-classification", "tags": ["generated_from_trainer"]}
    made = folder(LLAMA, card, "It has been trained. tokenizer(text, return_tensors='pt')")
    (made / "training_args.bin").write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")  # a pickle that must not be read
    assert who(made) is None


class TestTrl:
    """TRL 1.16.0's card; older ones name their version in the same line."""

    CARD = {"library_name": "transformers", "tags": ["generated_from_trainer", "trl", "reward-trainer"]}  # noqa: RUF012

    @pytest.mark.parametrize(("version", "closes"), [("1.16.0", True), ("0.24.0", True), ("0.23.1", False), ("0.9.6", None)])
    def test_card(self, folder: Folder, version: str, closes: bool | None) -> None:
        made = folder(LLAMA, self.CARD, f"### Framework versions\n\n- TRL: {version}\n- Transformers: 5.0.0\n")
        assert told(made) == TrainedElsewhere(by="TRL", read="before-padding", pair=False, append_eos=closes)

    def test_another_trainer_of_trl(self, folder: Folder) -> None:
        assert who(folder(LLAMA, {"tags": ["trl", "sft"]})) is None

    def test_checkpoint_of_a_training_has_the_card_of_its_parent(self, folder: Folder) -> None:
        made = folder(LLAMA, self.CARD)
        assert told(folder(LLAMA, name="model/checkpoint-20")).by == "TRL"
        assert who(folder(LLAMA, name="model/best")) is None
        assert told(made).append_eos is None, "the card names no version"

    def test_axolotl_trains_with_it(self, folder: Folder) -> None:
        made = folder(LLAMA, {"tags": [*self.CARD["tags"], "axolotl"]}, "- TRL: 1.12.0")
        assert told(made) == TrainedElsewhere(by="axolotl", read="before-padding", pair=False)


class TestOpenRlhf:
    """What OpenRLHF's ``save_pretrained`` of its RewardModel writes into config.json."""

    def test_0_11(self, folder: Folder) -> None:
        keys = {"normalize_reward": False, "mean": 0.5, "std": 2.0, "value_head_prefix": "score"}
        assert told(folder({"architectures": ["RewardModel"], **keys})) == TrainedElsewhere(
            by="OpenRLHF", read="last", pair=False, append_eos=True, convention="openrlhf", outputs=1
        )

    def test_0_5_calls_its_head_otherwise(self, folder: Folder) -> None:
        assert told(folder({"architectures": ["RewardModel"], "normalize_reward": False})).head == "value_head"
        named = folder({"architectures": ["RewardModel"], "normalize_reward": False, "value_head_prefix": "reward_head"})
        assert told(named).head == "reward_head"

    def test_normalized_scores(self, folder: Folder) -> None:
        made = folder({"architectures": ["RewardModel"], "normalize_reward": True, "mean": 0.5, "std": 2.0})
        assert told(made).differences == ("OpenRLHF subtracts 0.5 from its scores and divides them by 2.0.",)

    def test_critic(self, folder: Folder) -> None:
        assert "critic" in str(told(folder({"architectures": ["CriticModel"], "normalize_reward": False})).unusable)

    def test_another_class_of_that_name(self, folder: Folder) -> None:
        assert who(folder({"architectures": ["RewardModel"]})) is None


class TestMsSwift:
    """``args.json`` as ms-swift 4.6.0 writes it, in short."""

    ARGUMENTS = {"swift_version": "4.6.0", "task_type": "seq_cls", "rlhf_type": "rm", "num_labels": 1, "template": "qwen2_5"}  # noqa: RUF012

    def test_reward_model(self, folder: Folder) -> None:
        # Its RewardTrainer is TRL's, and writes TRL's card; its rows are made by its own template.
        made = folder(LLAMA, TestTrl.CARD, "- TRL: 1.12.0", args={**self.ARGUMENTS, "padding_free": False, "system": None})
        assert told(made) == TrainedElsewhere(by="ms-swift", read="before-padding", pair=False)

    def test_reads_otherwise_in_training_than_in_scoring(self, folder: Folder) -> None:
        assert told(folder(LLAMA, args={**self.ARGUMENTS, "padding_free": True})).read is None

    def test_its_system_message(self, folder: Folder) -> None:
        made = folder(LLAMA, args={**self.ARGUMENTS, "system": "Judge this."})
        assert "'Judge this.'" in told(made).differences[0]

    def test_reranker(self, folder: Folder) -> None:
        made = folder(LLAMA, args={**self.ARGUMENTS, "task_type": "reranker", "template": "qwen3_reranker"})
        assert told(made).pair is None and "qwen3_reranker" in told(made).differences[0]

    @pytest.mark.parametrize(
        "arguments",
        [{**ARGUMENTS, "task_type": "causal_lm"}, {"task_type": "seq_cls"}, {"swift_version": 4, "task_type": ["seq_cls"]}],
    )
    def test_arguments_of_something_else(self, folder: Folder, arguments: dict[str, Any]) -> None:
        assert who(folder(LLAMA, args=arguments)) is None


class TestSentenceTransformers:
    """The files of a CrossEncoder of three versions."""

    SETTINGS = {"model_type": "CrossEncoder", "activation_fn": "torch.nn.modules.activation.Sigmoid", "prompts": {}}  # noqa: RUF012
    MODULE = {"transformer_task": "sequence-classification", "modality_config": {"text": {"method": "forward"}}}  # noqa: RUF012
    PAIRS = TrainedElsewhere(by="sentence-transformers", read="before-padding", pair=True, append_eos=False)

    def test_6(self, folder: Folder) -> None:
        made = folder(
            BERT, config_sentence_transformers=self.SETTINGS, sentence_bert_config=self.MODULE, modules=[{"type": "T"}]
        )
        assert told(made) == self.PAIRS

    def test_4_and_5(self, folder: Folder) -> None:
        keys = {"activation_fn": "torch.nn.modules.linear.Identity", "version": "5.1.2"}
        assert told(folder({**BERT, "sentence_transformers": keys})) == self.PAIRS

    def test_3(self, folder: Folder) -> None:
        key = "sbert_ce_default_activation_function"
        assert told(folder({**BERT, key: "torch.nn.modules.linear.Identity"})) == self.PAIRS

    def test_card_alone(self, folder: Folder) -> None:
        card = {"library_name": "sentence-transformers", "pipeline_tag": "text-ranking", "tags": ["cross-encoder"]}
        assert told(folder(BERT, card)) == self.PAIRS

    def test_model_of_single_texts(self, folder: Folder) -> None:
        assert (
            who(
                folder(
                    BERT,
                    {"tags": ["sentence-transformers"]},
                    config_sentence_transformers={"model_type": "SentenceTransformer"},
                )
            )
            is None
        )

    def test_prompt_before_the_first_text(self, folder: Folder) -> None:
        settings = {**self.SETTINGS, "prompts": {"web": "Find: "}, "default_prompt_name": "web"}
        assert "'Find: '" in told(folder(BERT, config_sentence_transformers=settings)).differences[0]

    def test_score_of_further_modules(self, folder: Folder) -> None:
        modules = [{"type": "sentence_transformers.base.modules.transformer.Transformer"}, {"type": "x.LogitScore"}]
        made = folder(LLAMA, config_sentence_transformers=self.SETTINGS, modules=modules)
        assert "Transformer, LogitScore" in str(told(made).unusable)

    def test_pairs_as_conversations(self, folder: Folder) -> None:
        module = {**self.MODULE, "modality_config": {"text": {}, "message": {"format": "flat"}}}
        made = folder(LLAMA, config_sentence_transformers=self.SETTINGS, sentence_bert_config=module)
        assert "chat template" in str(told(made).unusable)


class TestCards:
    """Models that only their cards tell of."""

    @pytest.mark.parametrize(
        "code",
        [
            "inputs = tokenizer(question, answer, return_tensors='pt')",  # OpenAssistant's deberta
            "inputs = tokenizer(pairs, padding=True, truncation=True, return_tensors='pt', max_length=512)",  # bge-reranker
        ],
    )
    def test_code_that_encodes_pairs(self, folder: Folder, code: str) -> None:
        answer = told(folder(BERT, {"license": "mit"}, f"```python\n{code}\n```"))
        assert answer.pair is True and answer.read is None and "model card" in answer.by

    def test_code_that_does_both(self, folder: Folder) -> None:
        assert who(folder(LLAMA, {}, "tokenizer(pairs) and then tokenizer.apply_chat_template(messages)")) is None

    @pytest.mark.parametrize("card", [{"tags": ["reranker"]}, {"tags": "cross-encoder"}, {"pipeline_tag": "text-ranking"}])
    def test_front_matter(self, folder: Folder, card: dict[str, Any]) -> None:
        assert told(folder(BERT, {"model-index": [{"results": [1, 2]}], **card, "license": "mit"})).pair is True

    @pytest.mark.parametrize(
        "text",
        [
            "no front matter",
            "---\ntags: [a, b\n---\n",
            "---\ntags:\n  - {a: 1}\n  - 3\nlibrary_name: [x]\npipeline_tag: {}\n---\n",
            "---\ntags: [" + "[" * 200 + "]" * 200 + "]\n---\n",
            "---\ntags: " + "x" * 2**20 + "\n---\n",
            "\udcff",
        ],
    )
    def test_cards_that_tell_nothing(self, folder: Folder, text: str) -> None:
        made = folder(BERT)
        (made / "README.md").write_text(text, errors="surrogateescape")
        assert who(made) is None


def test_head_of_llama_factory(folder: Folder) -> None:
    made = folder({"architectures": ["LlamaForCausalLM"]})
    assert who(made) is None
    (made / "value_head.safetensors").write_bytes(b"")
    assert "value_head.safetensors" in str(told(made).unusable) and told(made).read == "last"


@pytest.mark.parametrize("key", ["use_sep_token", "use_pad_token"])
def test_a_reranker_that_vllm_joins(key: str, folder: Folder) -> None:
    converted = told(folder({"architectures": ["LlamaForSequenceClassification"], key: False}))
    assert (converted.read, converted.pair, converted.append_eos) == ("last", False, False)
    assert who(folder({"architectures": ["LlamaForSequenceClassification"], key: True}, name="other")) is None


def test_contradictions_are_left_open(folder: Folder) -> None:
    # A reward model of OpenRLHF that was trained further with TRL keeps OpenRLHF's keys.
    answer = told(folder({**LLAMA, "value_head_prefix": "score", "normalize_reward": False}, TestTrl.CARD, "- TRL: 0.20.0"))
    assert answer.by == "OpenRLHF and TRL"
    assert answer.read is None and answer.append_eos is None and answer.pair is False


@pytest.mark.parametrize("content", ["[1]", "{", "null", '{"swift_version": "4"'])
def test_files_that_cannot_be_read_tell_nothing(folder: Folder, content: str) -> None:
    made = folder(LLAMA, args=content, config_sentence_transformers=content, modules=content)
    assert who(made) is None
