"""RewardTrainer: every format, every kind of model, and what it leaves on disk."""

from __future__ import annotations

import copy
import json
import logging
import math
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset, IterableDataset
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertForMaskedLM, pipeline
from trl import RewardTrainer as TrlRewardTrainer
from trl.trainer.utils import disable_dropout_in_model

import rm_plugins as rm
from rm_plugins.data.rows import preference_samples
from rm_plugins.errors import DataError, SpecError, UnknownNameError
from rm_plugins.losses import Loss, RewardBatch
from rm_plugins.models.manifest import Manifest
from rm_plugins_trl import RewardConfig, RewardTrainer
from rm_plugins_trl.reward_training.training_rows import texts_of

# TRL's and accelerate's own, on a machine without an accelerator.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*pin_memory:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*use_reentrant:UserWarning"),
    pytest.mark.filterwarnings("ignore:`logging_dir` is deprecated"),
]

USER = [{"role": "user", "content": "Name a colour."}]


def said(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


FORMATS: dict[str, dict[str, Any]] = {
    "text": {"prompt": "Name a colour.", "chosen": " It is blue.", "rejected": " two"},
    "text, implicit prompt": {"chosen": "Name a colour. Blue.", "rejected": "Name a colour. two"},
    "conversation": {"prompt": USER, "chosen": said("Blue is a colour."), "rejected": said("two")},
    "conversation, implicit prompt": {"chosen": [*USER, *said("Blue.")], "rejected": [*USER, *said("two")]},
    "margin": {"prompt": USER, "chosen": said("Blue."), "rejected": said("two"), "margin": 0.7},
    "tools": {
        "prompt": USER,
        "chosen": said("Blue."),
        "rejected": said("two"),
        "tools": json.dumps([{"type": "function", "function": {"name": "paint", "parameters": {}}}]),
    },
    "chat template arguments": {
        "prompt": USER,
        "chosen": said("Blue."),
        "rejected": said("two"),
        "chat_template_kwargs": {"closing": "<|end|>"},
    },
}


def config(folder: Path, **settings: Any) -> RewardConfig:
    defaults: dict[str, Any] = {
        "output_dir": str(folder),
        "max_steps": 2,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-3,
        "report_to": "none",
        "disable_tqdm": True,
        "logging_steps": 1,
        "gradient_checkpointing": False,
    }
    return RewardConfig(**{**defaults, **settings})


def trained(model: Path, folder: Path, rows: list[dict[str, Any]], **settings: Any) -> Any:
    data = settings.pop("eval_dataset", None)
    more = {name: settings.pop(name) for name in ("peft_config", "processing_class") if name in settings}
    trainer = RewardTrainer(
        str(model), config(folder, **settings), train_dataset=Dataset.from_list(rows), eval_dataset=data, **more
    )
    trainer.train()
    return trainer


class TestFormats:
    @pytest.mark.parametrize("name", FORMATS)
    def test_token_ids_are_trls(self, name: str, tiny_decoder: Any, tmp_path: Path) -> None:
        """What is trained on is token for token what TRL's own trainer makes of it."""
        model, rows = tiny_decoder(), [FORMATS[name]] * 2
        ours = RewardTrainer(str(model), config(tmp_path), train_dataset=Dataset.from_list(rows))
        theirs = TrlRewardTrainer(str(model), config(tmp_path), train_dataset=Dataset.from_list(rows))
        assert all(
            ours.train_dataset[0][column] == theirs.train_dataset[0][column] for column in ("chosen_ids", "rejected_ids")
        )
        assert ours.train_dataset[0]["margins"] == pytest.approx([FORMATS[name]["margin"]] if name == "margin" else [])

    @pytest.mark.parametrize("name", FORMATS)
    @pytest.mark.parametrize("kind", ["decoder", "encoder"])
    def test_trains(self, name: str, kind: str, tiny_decoder: Any, tiny_encoder: Any, tmp_path: Path) -> None:
        model = tiny_decoder() if kind == "decoder" else tiny_encoder()
        trained(model, tmp_path, [FORMATS[name]] * 4, max_steps=12)
        rewards = rm.load(tmp_path)
        chosen, rejected = preference_samples(FORMATS[name])
        assert rewards.score([chosen]).values > rewards.score([rejected]).values
        assert rewards.verify() == []  # type: ignore[attr-defined]

    def test_tokenized_data_is_taken_as_it_is(self, tiny_decoder: Any, tmp_path: Path) -> None:
        rows = [{"chosen_ids": [5, 6, 7], "rejected_ids": [8, 9]}] * 4
        trainer = trained(tiny_decoder(), tmp_path, rows)
        assert texts_of(trainer.train_dataset[0]) == [[5, 6, 7], [8, 9]]

    def test_streams(self, tiny_decoder: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        rows = [FORMATS["text"], {**FORMATS["text"], "chosen": " blue" * 50}] * 8
        stream = IterableDataset.from_generator(lambda: iter(rows))
        trainer = RewardTrainer(str(tiny_decoder()), config(tmp_path, max_length=24), train_dataset=stream)
        trainer.train()
        assert trainer.overlong["train"] > 0
        assert "too long and were dropped" in caplog.text

    def test_a_row_that_is_no_pair_is_named(self, tiny_decoder: Any, tmp_path: Path) -> None:
        rows = [FORMATS["text"], {"prompt": "x", "chosen": None, "rejected": "y"}]
        with pytest.raises(DataError, match=r"Row 1 \(counted from 0\) of the train dataset: there is no 'chosen'"):
            trained(tiny_decoder(), tmp_path, rows)


class TestOverlong:
    ROWS = [FORMATS["text"], {**FORMATS["text"], "chosen": " blue" * 50}]  # noqa: RUF012

    def test_dropped_and_reported(self, tiny_decoder: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        trainer = trained(tiny_decoder(), tmp_path, self.ROWS * 4, max_length=24)
        assert trainer.overlong == {"train": 4}
        assert trainer.rows == {"train": 4}
        assert "4 of 8 rows of the train dataset (50.0%) are longer than 24 tokens and were dropped" in caplog.text
        assert Manifest.read(tmp_path / "reward_manifest.json").training["overlong"] == {"train": 4}

    def test_truncated_on_the_left(self, tiny_decoder: Any, tmp_path: Path) -> None:
        trainer = trained(tiny_decoder(), tmp_path, self.ROWS * 4, max_length=24, overlong="truncate")
        assert trainer.rows == {"train": 8}
        row = trainer.train_dataset[1]["chosen_ids"]
        assert len(row) == 24
        assert row[-1] == trainer.processing_class.eos_token_id

    def test_none_left_is_an_error(self, tiny_decoder: Any, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"1 of 1 rows .* so no row is left"):
            trained(tiny_decoder(), tmp_path, self.ROWS[1:], max_length=24)

    def test_an_encoders_own_limit_holds(self, tiny_encoder: Any, tmp_path: Path) -> None:
        trainer = trained(tiny_encoder(positions=32), tmp_path, [FORMATS["text"]] * 4, max_length=1024)
        assert trainer.renderer.rendering.max_length == 32


class Squared(Loss):
    """A loss of our own."""

    name = "squared"

    def __call__(self, batch: RewardBatch) -> torch.Tensor:
        return (1 - batch.winners + batch.losers).square().mean()


class TestLoss:
    def test_is_trls_with_margin_and_centering(self, tiny_decoder: Any, tmp_path: Path) -> None:
        """The same batch gives the same loss in our trainer and in TRL's."""
        model, rows = tiny_decoder(), [FORMATS["margin"], {**FORMATS["margin"], "chosen": said("Blue and two.")}]
        found = []
        for trainer_class in (RewardTrainer, TrlRewardTrainer):
            trainer = trainer_class(
                str(model), config(tmp_path, center_rewards_coefficient=0.1), train_dataset=Dataset.from_list(rows)
            )
            batch = trainer.data_collator([dict(row) for row in trainer.train_dataset])
            with trainer.batch_forward.attention() if trainer_class is RewardTrainer else nullcontext():
                found.append(trainer.compute_loss(trainer.model, batch).item())
        assert found[0] == pytest.approx(found[1], rel=2e-6)  # float32, and processors differ in how they round

    def test_by_mapping_by_object_and_unknown(self, tiny_decoder: Any, tmp_path: Path) -> None:
        model, data = str(tiny_decoder()), Dataset.from_list([FORMATS["text"]] * 4)
        RewardTrainer(model, config(tmp_path, loss={"name": "bradley_terry"}), train_dataset=data)
        trainer = RewardTrainer(model, config(tmp_path, loss=Squared()), train_dataset=data)
        trainer.train()
        assert Manifest.read(tmp_path / "reward_manifest.json").training["loss"] == "squared"
        with pytest.raises(UnknownNameError, match="Did you mean 'bradley-terry'"):
            RewardTrainer(model, config(tmp_path, loss="bradly-terry"), train_dataset=data)
        with pytest.raises(SpecError, match=r"loss\.beta: unknown key 'beta'"):
            RewardTrainer(model, config(tmp_path, loss={"name": "bradley-terry", "beta": 1}), train_dataset=data)

    def test_regularizers_are_added_and_logged(self, tiny_decoder: Any, tmp_path: Path) -> None:
        trainer = trained(tiny_decoder(), tmp_path, [FORMATS["text"]] * 8, regularizers={"centering": 0.5})
        logged = [entry for entry in trainer.state.log_history if "loss" in entry]
        first = logged[0]
        centering = first["regularizers/centering"]
        assert centering > 0
        plain = first["loss"] - 0.5 * centering
        assert plain == pytest.approx(math.log1p(math.exp(-first["margin"])), abs=1e-4)

    def test_centering_given_twice(self, tmp_path: Path) -> None:
        settings = config(tmp_path, regularizers={"centering": 0.1}, center_rewards_coefficient=0.1)
        with pytest.raises(SpecError, match="once"):
            _ = settings.regularizer_weights

    def test_json_of_a_command_line(self, tmp_path: Path) -> None:
        settings = config(tmp_path, loss='{"name": "bradley-terry"}', regularizers='{"centering": 0.01}')
        assert settings.loss == {"name": "bradley-terry"}
        assert settings.regularizer_weights == {"centering": 0.01}
        with pytest.raises(SpecError, match="is not valid JSON"):
            config(tmp_path, regularizers="{centering")


class TestEvaluation:
    def test_metrics_of_uneven_batches_are_exact(self, tiny_decoder: Any, tmp_path: Path) -> None:
        rows = [{**FORMATS["text"], "chosen": f" It is {word}."} for word in ("blue", "two", "rain", "salty", "four")]
        trainer = trained(tiny_decoder(), tmp_path, rows, eval_dataset=Dataset.from_list(rows), per_device_eval_batch_size=4)
        metrics = trainer.evaluate()
        rewards = rm.load(tmp_path)
        pairs = [preference_samples(row) for row in rows]
        chosen = rewards.score([pair[0] for pair in pairs]).values
        rejected = rewards.score([pair[1] for pair in pairs]).values
        assert metrics["eval_accuracy"] == pytest.approx((chosen > rejected).mean())
        assert metrics["eval_margin"] == pytest.approx((chosen - rejected).mean(), abs=1e-4)
        assert metrics["eval_mean_reward"] == pytest.approx((chosen.mean() + rejected.mean()) / 2, abs=1e-4)

    def test_statistics_reach_the_manifest_and_zscore(self, tiny_decoder: Any, tmp_path: Path) -> None:
        rows = [{**FORMATS["text"], "chosen": f" It is {word}."} for word in ("blue", "two", "rain", "salty")]
        trainer = trained(tiny_decoder(), tmp_path, rows, eval_dataset=Dataset.from_list(rows))
        trainer.evaluate()
        trainer.save_model()
        samples = [sample for row in rows for sample in preference_samples(row)]
        values = rm.load(tmp_path, transform="zscore").score(samples).values
        assert values.mean() == pytest.approx(0, abs=1e-3)
        assert values.std() == pytest.approx(1, abs=1e-3)


class TestSaving:
    def test_pipeline_returns_the_raw_reward(self, tiny_decoder: Any, tmp_path: Path) -> None:
        trained(tiny_decoder(), tmp_path, [FORMATS["text"]] * 4)
        text = "Name a colour. It is blue.<|end|>"
        inputs = AutoTokenizer.from_pretrained(tmp_path)(text, return_tensors="pt")
        with torch.no_grad():
            logit = AutoModelForSequenceClassification.from_pretrained(tmp_path)(**inputs).logits.item()
        assert pipeline("text-classification", model=str(tmp_path))(text)[0]["score"] == pytest.approx(logit, abs=1e-5)

    def test_resumes_from_a_checkpoint(self, tiny_decoder: Any, tmp_path: Path) -> None:
        rows, model = [FORMATS["text"]] * 32, tiny_decoder()
        whole = trained(model, tmp_path / "whole", rows, max_steps=4, save_steps=2)
        resumed = RewardTrainer(
            str(model), config(tmp_path / "whole", max_steps=4, save_steps=2), train_dataset=Dataset.from_list(rows)
        )
        resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
        assert resumed.state.global_step == 4
        for ours, theirs in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
            torch.testing.assert_close(ours, theirs)
        assert rm.load(tmp_path / "whole" / "checkpoint-2").verify() == []  # type: ignore[attr-defined]

    def test_nothing_is_saved_when_told_so(self, tiny_decoder: Any, tmp_path: Path) -> None:
        trained(tiny_decoder(), tmp_path, [FORMATS["text"]] * 4, save_strategy="no")
        assert not (tmp_path / "config.json").exists()

    def test_model_card_and_push(self, tiny_decoder: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The hub cannot be reached here: what would be uploaded is looked at."""
        trainer = trained(tiny_decoder(), tmp_path, [FORMATS["text"]] * 4)
        pushed: dict[str, Any] = {}
        monkeypatch.setattr("huggingface_hub.HfApi.upload_folder", lambda self, **found: pushed.update(found))
        # transformers 4 has a name of its own for it.
        monkeypatch.setattr("transformers.trainer.upload_folder", lambda **found: pushed.update(found), raising=False)
        trainer.hub_model_id = "somebody/colours"
        trainer.push_to_hub()
        assert Path(pushed["folder_path"]) == tmp_path
        card = (tmp_path / "README.md").read_text(encoding="utf-8")
        assert "| Loss | bradley-terry |" in card
        assert 'rm.load("somebody/colours")' in card
        assert card.count("## Reward\n") == 1
        assert (tmp_path / "reward_manifest.json").is_file()


class TestAdapters:
    @pytest.mark.parametrize("kind", ["decoder", "encoder"])
    def test_the_head_is_trained_saved_and_loaded(
        self, kind: str, tiny_decoder: Any, tiny_encoder: Any, tmp_path: Path
    ) -> None:
        peft = pytest.importorskip("peft")
        model = tiny_decoder() if kind == "decoder" else tiny_encoder()
        targets = ["q_proj", "v_proj"] if kind == "decoder" else ["query", "value"]
        adapter = peft.LoraConfig(r=4, target_modules=targets)
        trainer = trained(model, tmp_path, [FORMATS["text"]] * 8, max_steps=12, learning_rate=1e-2, peft_config=adapter)
        assert (tmp_path / "adapter_config.json").is_file()
        rewards = rm.load(tmp_path)
        chosen, rejected = preference_samples(FORMATS["text"])
        live = trainer.model.eval()
        inputs = trainer.processing_class(trainer.renderer.text(chosen), return_tensors="pt")
        with torch.no_grad():
            assert rewards.score([chosen]).values[0] == pytest.approx(live(**inputs).logits.item(), abs=1e-5)
        assert rewards.score([chosen]).values > rewards.score([rejected]).values
        assert rewards.verify() == []  # type: ignore[attr-defined]

    def test_a_pooler_that_the_base_lacks_is_trained_and_saved(self, tiny_encoder: Any, tmp_path: Path) -> None:
        peft = pytest.importorskip("peft")
        model = tiny_encoder()
        BertForMaskedLM(AutoModelForSequenceClassification.from_pretrained(model).config).save_pretrained(model)
        adapter = peft.LoraConfig(r=4, target_modules=["query", "value"])
        before = copy.deepcopy(adapter)
        trainer = trained(model, tmp_path, [FORMATS["text"]] * 8, max_steps=4, learning_rate=1e-2, peft_config=adapter)
        assert adapter == before, "what is handed over stays as it is"
        assert "pooler" in json.loads((tmp_path / "adapter_config.json").read_text())["modules_to_save"]
        chosen, _ = preference_samples(FORMATS["text"])
        inputs = trainer.processing_class(trainer.renderer.text(chosen), return_tensors="pt")
        with torch.no_grad():
            expected = trainer.model.eval()(**inputs).logits.item()
        assert rm.load(tmp_path).score([chosen]).values[0] == pytest.approx(expected, abs=1e-5)

    def test_an_adapter_without_its_head_is_warned_of(
        self, tiny_decoder: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        peft = pytest.importorskip("peft")
        base = AutoModelForSequenceClassification.from_pretrained(tiny_decoder(), num_labels=1)
        model = peft.get_peft_model(base, peft.LoraConfig(r=4, target_modules=["q_proj"]))
        tokenizer = AutoTokenizer.from_pretrained(base.config._name_or_path)
        with caplog.at_level(logging.WARNING):
            RewardTrainer(
                model, config(tmp_path), train_dataset=Dataset.from_list([FORMATS["text"]]), processing_class=tokenizer
            )
        assert "does not train the score head" in caplog.text


def test_starts_without_an_accelerator(tmp_path: Path) -> None:
    """TRL's own configuration asks for bf16, which a machine without an accelerator refuses."""
    if torch.accelerator.is_available():
        pytest.skip("there is an accelerator here")
    assert RewardConfig(output_dir=str(tmp_path)).bf16 is False
    assert RewardConfig(output_dir=str(tmp_path), bf16=True, use_cpu=True).bf16 is True


def test_dropout_is_off(tiny_encoder: Any, tmp_path: Path) -> None:
    trainer = trained(tiny_encoder(), tmp_path, [FORMATS["text"]] * 4)
    before = [module.p for module in trainer.model.modules() if isinstance(module, torch.nn.Dropout)]
    disable_dropout_in_model(trainer.model)
    assert before == [0.0] * len(before)
