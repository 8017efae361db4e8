"""Models that other engines trained give the number that the engine itself gives, or an error that says what to set.

Each padding token is the EOS token, where it matters which token is read. TRL's own trainer is in tests/trl/test_trained_by_trl.py.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    BertTokenizerFast,
    Qwen2Model,
    Qwen2PreTrainedModel,
)

import rm_plugins as rm
from rm_plugins.errors import ModelError
from rm_plugins.providers.models.model_provider import ModelProvider
from tests.conftest import CORPUS, MakeFolder

QUESTION = [{"role": "user", "content": "Name a colour."}]
TEXTS = [
    rm.Sample("Name a colour.", " Blue."),
    rm.Sample("Name a colour.", " The sea is salty.\n"),
    rm.Sample("", "one, two, three"),
]
CONVERSATIONS = [
    rm.Sample(QUESTION, [{"role": "assistant", "content": "Blue."}]),
    rm.Sample([*QUESTION, {"role": "assistant", "content": "Blue."}, *QUESTION], [{"role": "assistant", "content": "two"}]),
]


class RewardModel(Qwen2PreTrainedModel):  # type: ignore[misc]
    """OpenRLHF's reward model (seen in 0.11.2, models/model.py): a backbone, one linear output, and the last token given."""

    def __init__(self, config: Any, head: str) -> None:
        super().__init__(config)
        self.model = Qwen2Model(config)
        setattr(self, head, torch.nn.Linear(config.hidden_size, 1, bias=False))
        self.post_init()

    @torch.no_grad()
    def reward(self, ids: list[int], head: str) -> float:
        states = self.model(torch.tensor([ids])).last_hidden_state
        return float(getattr(self, head)(states)[0, -1, 0])


def openrlhf_folder(base: Path, folder: Path, head: str, **keys: Any) -> RewardModel:
    """A model as OpenRLHF saves it: no number of labels, and its own keys in the configuration."""
    config = AutoConfig.from_pretrained(base)
    for name in ("id2label", "label2id", "num_labels", "problem_type"):
        config.__dict__.pop(name, None)
    model: RewardModel = RewardModel(config, head).eval()
    model.config.update({"normalize_reward": False, "mean": 0.25, "std": 2.0, **keys})
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    return model


@pytest.mark.parametrize(
    ("head", "keys"), [("score", {"value_head_prefix": "score"}), ("value_head", {})], ids=["0.11.2", "0.5.0"]
)
@pytest.mark.parametrize("adds_bos", [False, True])
def test_openrlhf(head: str, keys: dict[str, Any], adds_bos: bool, tiny_decoder: MakeFolder, tmp_path: Path) -> None:
    folder = tmp_path / "openrlhf"
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = openrlhf_folder(tiny_decoder(pad="<|end|>", adds_bos=adds_bos), folder, head, **keys)
    tokenizer = AutoTokenizer.from_pretrained(folder)

    def expected(sample: rm.Sample) -> float:
        """The reward of a text without line breaks at its end and with EOS, tokenized without special tokens."""
        if sample.is_conversational:
            text = tokenizer.apply_chat_template([*sample.prompt, *sample.completion], tokenize=False)
        else:
            text = f"{sample.prompt}{sample.completion}"
        text = text.rstrip("\n")
        text += "" if text.endswith("<|end|>") else "<|end|>"
        return model.reward(tokenizer(text, add_special_tokens=False)["input_ids"], head)

    rewards = rm.load(folder)
    samples = [*TEXTS, *CONVERSATIONS]
    np.testing.assert_allclose(rewards.score(samples).values, [expected(sample) for sample in samples], atol=1e-5)
    assert isinstance(rewards, ModelProvider) and rewards.render(CONVERSATIONS[0]).endswith("<|end|>")
    renderer = rewards.trained.renderer
    starts = renderer.completion_starts(TEXTS[:1], renderer.untruncated_ids(TEXTS[:1]))
    assert starts == [len(tokenizer(str(TEXTS[0].prompt), add_special_tokens=False)["input_ids"])]


def test_adapter_of_an_openrlhf_model(tiny_decoder: MakeFolder, tmp_path: Path) -> None:
    base = tmp_path / "base"
    model = openrlhf_folder(tiny_decoder(pad="<|end|>"), base, "value_head")
    adapted = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1, key_mapping={"^value_head": "score"})
    get_peft_model(adapted, LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(
        tmp_path / "adapter"
    )  # changes nothing yet
    ids = AutoTokenizer.from_pretrained(base)("Name a colour. Blue.<|end|>")["input_ids"]
    score = rm.load(tmp_path / "adapter").score([TEXTS[0]]).values
    np.testing.assert_allclose(score, [model.reward(ids, "value_head")], atol=1e-5)


def test_critic_of_openrlhf(tiny_decoder: MakeFolder, tmp_path: Path) -> None:
    openrlhf_folder(tiny_decoder(), tmp_path / "critic", "score", architectures=["CriticModel"])
    config = json.loads((tmp_path / "critic" / "config.json").read_text())
    (tmp_path / "critic" / "config.json").write_text(json.dumps({**config, "architectures": ["CriticModel"]}))
    with pytest.raises(ModelError, match="critic"):
        rm.load(tmp_path / "critic")


def test_ms_swift(tiny_decoder: MakeFolder, tmp_path: Path) -> None:
    """As ``swift rlhf --rlhf_type rm`` of ms-swift 4.6.0 leaves it: transformers' own class, read before padding."""
    folder = Path(shutil.copytree(tiny_decoder(pad="<|end|>"), tmp_path / "swift"))
    arguments = {
        "swift_version": "4.6.0",
        "task_type": "seq_cls",
        "rlhf_type": "rm",
        "padding_free": False,
        "template": "chatml",
    }
    (folder / "args.json").write_text(json.dumps(arguments))
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    expected = []
    for sample in CONVERSATIONS:
        ids = tokenizer.apply_chat_template([*sample.prompt, *sample.completion], return_tensors="pt", return_dict=True)[
            "input_ids"
        ]
        with torch.no_grad():
            expected.append(float(model(ids).logits[0, 0]))
    np.testing.assert_allclose(rm.load(folder).score(CONVERSATIONS).values, expected, atol=1e-5)


def test_ms_swift_that_reads_otherwise_in_training(tiny_decoder: MakeFolder, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_decoder(pad="<|end|>"), tmp_path / "swift"))
    (folder / "args.json").write_text(json.dumps({"swift_version": "4.6.0", "task_type": "seq_cls", "padding_free": True}))
    with pytest.warns(UserWarning, match=r"`read: before-padding` or `read: last`"):
        rm.load(folder)


@pytest.mark.parametrize(("version", "end"), [("0.23.1", "Blue."), ("0.24.0", "Blue.<|end|>")])
def test_trl_before_it_closed_texts(version: str, end: str, tiny_decoder: MakeFolder, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_decoder(), tmp_path / "trl"))
    (folder / "README.md").write_text(f"---\ntags: [trl, reward-trainer]\n---\n\n- TRL: {version}\n")
    assert rm.load(folder).render(TEXTS[0]).endswith(end)


class TestCrossEncoder:
    """sentence-transformers' own CrossEncoder, of the version that is installed."""

    @pytest.fixture
    def bert(self, tmp_path: Path) -> Path:
        words = sorted({word for text in CORPUS for word in text.lower().replace(".", " .").replace(",", " ,").split()})
        vocabulary = tmp_path / "vocab.txt"
        vocabulary.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]))
        tokenizer = BertTokenizerFast(str(vocabulary), model_max_length=24)
        config = BertConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=32,
            initializer_range=0.4,
            num_labels=1,
        )
        folder = tmp_path / "bert"
        with torch.random.fork_rng():
            torch.manual_seed(0)
            BertForSequenceClassification(config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    PAIRS = (
        ("name a colour", "rain"),
        ("", "one sentence about rain"),
        ("the sea is salty", ""),
        ("the sea is salty because rivers carry dissolved minerals into it", "name " * 20),
        ("one " * 30, "two " * 30),
        ("two " * 31, "name a colour"),
        ("one " * 11, "two " * 10),
        ("one " * 10, "two " * 12),
    )

    def test_pairs(self, bert: Path, tmp_path: Path) -> None:
        cross_encoder = pytest.importorskip(
            "sentence_transformers", reason="sentence-transformers is not installed"
        ).CrossEncoder
        folder = tmp_path / "cross-encoder"
        original = cross_encoder(str(bert), device="cpu")
        original.save_pretrained(str(folder))
        expected = original.predict(self.PAIRS, activation_fn=torch.nn.Identity(), show_progress_bar=False)
        scores = rm.load(folder).score([rm.Sample(one, other) for one, other in self.PAIRS])
        np.testing.assert_allclose(scores.values, expected, atol=1e-5)
        assert scores.metadata["truncated"] == 4

    def test_pairs_of_a_decoder(self, tiny_decoder: MakeFolder, tmp_path: Path) -> None:
        """Its tokenizer puts nothing between the texts, and makes other tokens of the joined text."""
        cross_encoder = pytest.importorskip(
            "sentence_transformers", reason="sentence-transformers is not installed"
        ).CrossEncoder
        folder = tmp_path / "cross-encoder"
        original = cross_encoder(str(tiny_decoder(pad="<|end|>", chat_template=None)), device="cpu", max_length=24)
        original.save_pretrained(str(folder))
        pairs = [("The sea ", "is salty."), ("Name a colour.", "Blue.<|end|>"), ("one " * 30, "two"), ("one", "two " * 30)]
        expected = original.predict(pairs, activation_fn=torch.nn.Identity(), show_progress_bar=False)
        scores = rm.load(folder).score([rm.Sample(one, other) for one, other in pairs])
        np.testing.assert_allclose(scores.values, expected, atol=1e-5)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        assert tokenizer(*pairs[0])["input_ids"] != tokenizer("".join(pairs[0]))["input_ids"]

    def test_an_encoder_that_nobody_marked_asks(self, bert: Path) -> None:
        with pytest.raises(ModelError, match="`pair: true` or `pair: false`"):
            rm.load(bert).score([rm.Sample("name a colour", "rain")])
        assert rm.load(bert, pair=True).score([rm.Sample("name a colour", "rain")]).values.shape == (1,)

    def test_an_encoder_of_trl_takes_one_text(self, bert: Path) -> None:
        (bert / "README.md").write_text("---\ntags: [trl, reward-trainer]\n---\n")
        one_text = rm.load(bert, pair=False).score([rm.Sample("name a colour", " rain")]).values
        np.testing.assert_array_equal(rm.load(bert).score([rm.Sample("name a colour", " rain")]).values, one_text)

    def test_score_of_further_modules(self, bert: Path) -> None:
        (bert / "config_sentence_transformers.json").write_text('{"model_type": "CrossEncoder"}')
        (bert / "modules.json").write_text('[{"type": "a.Transformer"}, {"type": "a.Dense"}]')
        with pytest.raises(ModelError, match=r"its own modules after the model \(Transformer, Dense\)"):
            rm.load(bert)


def test_head_of_llama_factory(tiny_decoder: MakeFolder, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_decoder(), tmp_path / "llama-factory"))
    weights = load_file(folder / "model.safetensors")
    head = weights.pop("score.weight")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    save_file({"v_head.summary.weight": head, "v_head.summary.bias": torch.zeros(1)}, folder / "value_head.safetensors")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "architectures": ["Qwen2ForCausalLM"]}))
    with pytest.raises(ModelError, match=r"head in value_head\.safetensors"):
        rm.load(folder)


def test_what_else_the_number_depends_on_is_said(tiny_decoder: MakeFolder, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_decoder(), tmp_path / "swift"))
    arguments = {"swift_version": "4.6.0", "task_type": "seq_cls", "system": "Judge this."}
    (folder / "args.json").write_text(json.dumps(arguments))
    with pytest.warns(UserWarning, match="ms-swift adds this system message before each conversation: 'Judge this.'"):
        rm.load(folder)
