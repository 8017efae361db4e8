"""Datasets as scripts hand them to TRL's RewardTrainer: the same rows, ids, counts and losses."""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict
from peft import LoraConfig, PrefixTuningConfig, PromptEncoderConfig, PromptTuningConfig, get_peft_model
from transformers import AutoModelForSequenceClassification
from trl import RewardConfig as TrlRewardConfig
from trl import RewardTrainer as TrlRewardTrainer

from rm_plugins.errors import ModelError
from rm_plugins_trl import RewardConfig, RewardTrainer
from tests.trl.conftest import TRL_WARNINGS

pytestmark = [*TRL_WARNINGS, pytest.mark.filterwarnings("ignore:To copy construct from a tensor")]

PAIRS = [
    {"prompt": "Name a colour.", "chosen": f" It is {name}.", "rejected": " two" * (1 + number)}
    for number, name in enumerate(("blue", "salty blue", "rain", "four", "sea", "the sea", "two", "salt"))
]
QUIET: dict[str, Any] = {
    **{"report_to": "none", "use_cpu": True, "bf16": False, "disable_tqdm": True, "save_strategy": "no", "logging_steps": 1},
    **{"per_device_train_batch_size": 4, "per_device_eval_batch_size": 4, "max_steps": 2, "learning_rate": 1e-3},
}
BOTH = (TrlRewardTrainer, RewardTrainer)


def made(kind: Any, model: Path, folder: Path, data: Any, evaluated: Any = None, **settings: Any) -> Any:
    args = TrlRewardConfig(str(folder), **{**QUIET, **settings})
    return kind(str(model), args, train_dataset=data, eval_dataset=evaluated)


def losses_of(trainer: Any) -> list[float]:
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def same_training(model: Path, folder: Path, data: Any, **settings: Any) -> None:
    theirs, ours = (losses_of(made(kind, model, folder, data, **settings)) for kind in BOTH)
    assert len(theirs) == 2
    assert ours == pytest.approx(theirs, abs=1e-5)


# --- Lengths --------------------------------------------------------------------------------------------------------------


LONG = [*PAIRS, {"prompt": "Name a colour.", "chosen": " blue" * 30, "rejected": " two"}, {**PAIRS[0], "chosen": " blue" * 60}]


class TestLengths:
    def test_max_length_is_obeyed_beyond_the_positions(
        self, tiny_decoder: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Rotary positions go on, as with RoPE scaling; it is said which rows are longer than what the model is for."""
        model, data = tiny_decoder(positions=16), Dataset.from_list(LONG)
        kept = []
        for kind in BOTH:
            with caplog.at_level(logging.WARNING, "rm_plugins_trl"):
                trainer = made(kind, model, tmp_path, data, max_length=50)
            kept.append([row["chosen_ids"] for row in trainer.train_dataset])
        assert kept[0] == kept[1]
        assert len(kept[0]) == 8
        assert (
            "rows of the train dataset are longer than the 16 tokens that the tokenizer or the model is made for" in caplog.text
        )

    def test_the_tokenizers_limit_is_no_limit(self, tiny_decoder: Any, tmp_path: Path) -> None:
        from transformers import AutoTokenizer

        model = tiny_decoder()
        tokenizer = AutoTokenizer.from_pretrained(model, model_max_length=16)
        rows = []
        for kind in BOTH:
            args = TrlRewardConfig(str(tmp_path), **QUIET, max_length=50)
            trainer = kind(str(model), args, train_dataset=Dataset.from_list(LONG), processing_class=tokenizer)
            rows.append(len(trainer.train_dataset))
        assert rows == [8, 8]

    def test_no_limit_is_none(self, tiny_decoder: Any, tmp_path: Path) -> None:
        for kind in BOTH:
            trainer = made(kind, tiny_decoder(positions=24), tmp_path, Dataset.from_list(LONG), max_length=None)
            assert len(trainer.train_dataset) == len(LONG)

    @pytest.mark.parametrize("family", ["bert", "roberta"])
    def test_positions_that_end_are_a_limit(self, family: str, tiny_encoder: Any, tmp_path: Path) -> None:
        """With TRL's trainer such a row ends the training in the embeddings."""
        trainer = made(RewardTrainer, tiny_encoder(family=family, positions=24), tmp_path, Dataset.from_list(LONG))
        assert trainer.overlong == {"train": 2}
        assert len(losses_of(trainer)) == 2


# --- Columns --------------------------------------------------------------------------------------------------------------


class TestColumns:
    def test_input_tokens_are_counted(self, tiny_decoder: Any, tmp_path: Path) -> None:
        seen = {}
        for kind in BOTH:
            for counted in (True, "non_padding"):
                trainer = made(kind, tiny_decoder(), tmp_path, Dataset.from_list(PAIRS), include_num_input_tokens_seen=counted)
                trainer.train()
                seen[kind, counted] = trainer.state.num_input_tokens_seen
        tokens = sum(len(row[side]) for row in trainer.train_dataset for side in ("chosen_ids", "rejected_ids"))
        assert seen[TrlRewardTrainer, "non_padding"] == seen[RewardTrainer, "non_padding"] == tokens
        assert seen[TrlRewardTrainer, True] > seen[RewardTrainer, True] == tokens  # there is no padding here

    def test_a_weight_is_said_and_can_be_left_out(
        self, tiny_decoder: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        weighed = Dataset.from_list([{**row, "weight": number, "votes": 8 - number} for number, row in enumerate(PAIRS)])
        theirs = losses_of(made(TrlRewardTrainer, tiny_decoder(), tmp_path, weighed))
        found = {}
        for column in ("weight", "votes", None, ""):
            caplog.clear()
            args = RewardConfig(str(tmp_path), **QUIET, warmup_steps=0, weight_column=column)
            trainer = RewardTrainer(str(tiny_decoder()), args, train_dataset=weighed, eval_dataset=weighed)
            found[column] = losses_of(trainer)
            told = [record.getMessage() for record in caplog.records if "weighs each row" in record.getMessage()]
            assert len(told) == bool(column)
            assert not column or f"by its column {column!r}. RewardConfig(weight_column=...)" in told[0]
        assert found[None] == found[""] == pytest.approx(theirs, abs=1e-5)
        assert found["weight"] != pytest.approx(theirs, abs=1e-2) != found["votes"]
        assert found["weight"] != pytest.approx(found["votes"], abs=1e-2)

    @pytest.mark.parametrize("kind", ["torch", "numpy", "pandas", "arrow"])
    @pytest.mark.parametrize("margin", [False, True])
    def test_a_format_of_the_dataset(self, margin: bool, kind: str, tiny_decoder: Any, tmp_path: Path) -> None:
        data = Dataset.from_list([{**row, **({"margin": 0.5} if margin else {})} for row in PAIRS])
        plain, formatted = (
            losses_of(made(RewardTrainer, tiny_decoder(), tmp_path, one, one)) for one in (data, data.with_format(kind))
        )
        assert plain == formatted
        if kind in ("torch", "numpy"):
            same_training(tiny_decoder(), tmp_path, data.with_format(kind))

    def test_a_format_of_a_stream(self, tiny_decoder: Any, tmp_path: Path) -> None:
        stream = Dataset.from_list(PAIRS).to_iterable_dataset().with_format("torch")
        same_training(tiny_decoder(), tmp_path, stream)

    def test_rows_that_trl_has_tokenized(self, tiny_decoder: Any, tmp_path: Path) -> None:
        data = Dataset.from_list([{**row, "margin": 0.25} for row in PAIRS])
        left = made(TrlRewardTrainer, tiny_decoder(), tmp_path, data, data)
        assert {"prompt", "chosen", "chosen_ids", "margin"} <= {*left.train_dataset.column_names}
        ours = made(RewardTrainer, tiny_decoder(), tmp_path, left.train_dataset, left.eval_dataset)
        assert [*ours.train_dataset["chosen_ids"]] == [*left.train_dataset["chosen_ids"]]
        assert ours.evaluate()["eval_loss"] == pytest.approx(left.evaluate()["eval_loss"], abs=1e-5)
        assert losses_of(ours) == pytest.approx(losses_of(left), abs=1e-5)
        again = made(RewardTrainer, tiny_decoder(), tmp_path, ours.train_dataset, ours.eval_dataset)
        assert len(losses_of(again)) == 2
        back = made(
            TrlRewardTrainer, tiny_decoder(), tmp_path, ours.train_dataset.select_columns(["chosen_ids", "rejected_ids"])
        )
        assert len(losses_of(back)) == 2

    def test_ids_by_their_older_names(self, tiny_decoder: Any, tmp_path: Path) -> None:
        left = made(TrlRewardTrainer, tiny_decoder(), tmp_path, Dataset.from_list(PAIRS)).train_dataset
        older = left.select_columns(["chosen_ids", "rejected_ids"]).rename_columns(
            {"chosen_ids": "chosen_input_ids", "rejected_ids": "rejected_input_ids"}
        )
        found = []
        for kind in BOTH:
            with pytest.warns(FutureWarning, match="chosen_input_ids"):
                found.append(losses_of(made(kind, tiny_decoder(), tmp_path, older)))
        assert found[0] == pytest.approx(found[1], abs=1e-5)

    def test_predict_takes_rows_and_ids(self, tiny_decoder: Any, tmp_path: Path) -> None:
        data = Dataset.from_list(PAIRS)
        theirs = made(TrlRewardTrainer, tiny_decoder(), tmp_path, data, data)
        expected = theirs.predict(theirs.eval_dataset).predictions
        ours = made(RewardTrainer, tiny_decoder(), tmp_path, data, data)
        for rows in (data, theirs.eval_dataset, ours.eval_dataset, data.to_iterable_dataset()):
            assert ours.predict(rows).predictions == pytest.approx(expected, abs=1e-5)


# --- Streams --------------------------------------------------------------------------------------------------------------


class TestStreams:
    @pytest.mark.parametrize("several", [False, True])
    def test_an_evaluated_stream_beside_mapped_data(self, several: bool, tiny_decoder: Any, tmp_path: Path) -> None:
        data = Dataset.from_list(PAIRS[:7])
        stream: Any = IterableDataset.from_generator(lambda: iter(PAIRS[:7]))
        given = (lambda one: {"a": one, "b": one}) if several else (lambda one: one)
        found = []
        for kind, evaluated in ((TrlRewardTrainer, data), (RewardTrainer, data), (RewardTrainer, stream)):
            trainer = made(kind, tiny_decoder(), tmp_path, data, given(evaluated), eval_strategy="steps", eval_steps=1)
            trainer.train()
            name = "eval_b" if several else "eval"
            found.append([entry[f"{name}_loss"] for entry in trainer.state.log_history if f"{name}_loss" in entry])
        assert len(found[0]) == 2
        assert found[1] == pytest.approx(found[0], abs=1e-5)
        assert found[2] == pytest.approx(found[1], abs=1e-6)

    @pytest.mark.parametrize("shape", ["stream", "dict", "DatasetDict", "IterableDatasetDict"])
    def test_evaluate_takes_one(self, shape: str, tiny_decoder: Any, tmp_path: Path) -> None:
        data = Dataset.from_list(PAIRS)
        given: Any = {
            "stream": data.to_iterable_dataset(),
            "dict": {"a": data.to_iterable_dataset(), "b": data},
            "DatasetDict": DatasetDict({"a": data, "b": data}),
            "IterableDatasetDict": IterableDatasetDict({"a": data.to_iterable_dataset()}),
        }[shape]
        losses = []
        for kind in BOTH:
            metrics = made(kind, tiny_decoder(), tmp_path, data).evaluate(given)
            losses.append(metrics["eval_loss" if shape == "stream" else "eval_a_loss"])
        assert losses[0] == pytest.approx(losses[1], abs=1e-5)


# --- Adapters -------------------------------------------------------------------------------------------------------------


PROMPTS = {
    "prompt tuning": PromptTuningConfig(num_virtual_tokens=3, task_type="SEQ_CLS"),
    "P-tuning": PromptEncoderConfig(num_virtual_tokens=3, encoder_hidden_size=8, task_type="SEQ_CLS"),
    "prefix tuning": PrefixTuningConfig(num_virtual_tokens=3, task_type="SEQ_CLS"),
}


class TestAdaptersWithPrompts:
    """TRL trains them and reads the score of a padded row at its padding; here they are refused before anything is trained."""

    @pytest.mark.parametrize("kind", PROMPTS)
    @pytest.mark.parametrize("wrapped", [False, True])
    def test_are_refused(self, wrapped: bool, kind: str, tiny_decoder: Any, tmp_path: Path) -> None:
        args, data = TrlRewardConfig(str(tmp_path), **QUIET), Dataset.from_list(PAIRS)
        model: Any = AutoModelForSequenceClassification.from_pretrained(tiny_decoder())
        adapter = copy.deepcopy(PROMPTS[kind])
        given = {"peft_config": adapter}
        if wrapped:
            model, given = get_peft_model(model, adapter), {}
        with pytest.raises(ModelError, match=r"its own tokens to those of the text.*LoRA"):
            RewardTrainer(model, args, train_dataset=data, **given)

    def test_are_refused_where_they_are_loaded(self, tiny_decoder: Any, tmp_path: Path) -> None:
        import rm_plugins as rm

        base = tiny_decoder()
        adapter = copy.deepcopy(PROMPTS["prompt tuning"])
        model = get_peft_model(AutoModelForSequenceClassification.from_pretrained(base), adapter)
        model.save_pretrained(tmp_path / "prompted")
        with pytest.raises(ModelError, match="its own tokens"):
            rm.load(str(tmp_path / "prompted"))

    def test_activated_lora_is_refused(self, tiny_decoder: Any, tmp_path: Path) -> None:
        activated = LoraConfig(r=2, target_modules=["q_proj"], alora_invocation_tokens=[5], task_type="CAUSAL_LM")
        with pytest.raises(ModelError, match="begins at certain tokens"):
            RewardTrainer(
                *(str(tiny_decoder()), TrlRewardConfig(str(tmp_path), **QUIET)),
                **{"train_dataset": Dataset.from_list(PAIRS), "peft_config": activated},
            )


def test_no_warning_for_plain_pairs(tiny_decoder: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "rm_plugins_trl"):
        made(RewardTrainer, tiny_decoder(), tmp_path, Dataset.from_list(PAIRS))
    assert not [record for record in caplog.records if "The preset" not in record.getMessage()]
