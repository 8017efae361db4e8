"""Calls as scripts make them of TRL's RewardTrainer: the same arguments, refusals and entries of the log."""

from __future__ import annotations

import inspect
import logging
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoTokenizer
from trl import RewardConfig as TrlRewardConfig
from trl import RewardTrainer as TrlRewardTrainer

from rm_plugins_trl import RewardConfig, RewardTrainer
from tests.trl.conftest import TRL_WARNINGS

pytestmark = TRL_WARNINGS

PAIRS = [
    {"prompt": "Name a colour.", "chosen": f" {name}.", "rejected": " two two"} for name in ("blue", "rain", "four", "sea")
]
QUIET: dict[str, Any] = {"report_to": "none", "use_cpu": True, "bf16": False, "disable_tqdm": True, "save_strategy": "no"}
KINDS = [pytest.param(TrlRewardTrainer, id="TRL"), pytest.param(RewardTrainer, id="ours")]


def arguments(folder: Path, **settings: Any) -> Any:
    return TrlRewardConfig(str(folder), **{**QUIET, "max_steps": 2, "per_device_train_batch_size": 2, **settings})


@pytest.mark.parametrize("kind", KINDS)
def test_everything_by_position(kind: Any, tiny_decoder: Any, tmp_path: Path) -> None:
    model = tiny_decoder()
    data, tokenizer = Dataset.from_list(PAIRS), AutoTokenizer.from_pretrained(model)
    trainer = kind(
        str(model), arguments(tmp_path), None, data, {"held": data}, tokenizer, lambda _: {"x": 1.0}, [], (None, None)
    )
    trainer.train()
    assert trainer.evaluate()["eval_held_x"] == 1.0


def test_the_arguments_have_one_order() -> None:
    """Whatever a version of TRL takes."""
    model, args, *others = list(inspect.signature(TrlRewardTrainer.__init__).parameters)[1:]
    ours = inspect.signature(RewardTrainer.__init__)
    assert [*ours.parameters][1:3] == [model, args]
    assert [parameter.kind for parameter in ours.parameters.values()][3:] == [
        inspect.Parameter.VAR_POSITIONAL,
        inspect.Parameter.VAR_KEYWORD,
    ]
    assert "data_collator" in others


WRONG: dict[str, tuple[dict[str, Any], type[Exception]]] = {
    "an unknown argument": ({"tokeniser": None}, TypeError),
    "a list as data": ({"train_dataset": PAIRS}, TypeError),
    "a path as data": ({"train_dataset": "pairs.jsonl"}, TypeError),
    "no data": ({"train_dataset": None}, ValueError),
    "a mapping as peft_config": ({"peft_config": {"r": 4}}, TypeError),
    "a padding token that is none": ({"args": {"pad_token": "<nothing>"}}, ValueError),
    "an end of text that is none": ({"args": {"eos_token": "<nothing>"}}, ValueError),
}


@pytest.mark.filterwarnings("ignore:`pad_token` is deprecated:FutureWarning")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", WRONG)
def test_what_is_refused(case: str, kind: Any, tiny_decoder: Any, tmp_path: Path) -> None:
    given, error = WRONG[case]
    settings = {"model": str(tiny_decoder()), "train_dataset": Dataset.from_list(PAIRS), **given}
    settings["args"] = arguments(tmp_path, **given.get("args", {}))
    with pytest.raises(error) as caught:
        kind(**settings)
    assert isinstance(caught.value, (TypeError, ValueError))


@pytest.mark.parametrize("kind", KINDS)
def test_an_argument_that_is_given_twice(kind: Any, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="multiple values"):
        kind("model", arguments(tmp_path), args=arguments(tmp_path))
    with pytest.raises(TypeError, match="model"):
        kind()


@pytest.mark.parametrize("kind", KINDS)
def test_two_labels_are_refused(kind: Any, tiny_decoder: Any, tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(tiny_decoder(), num_labels=2, ignore_mismatched_sizes=True)
    with pytest.raises(ValueError, match="num_labels=1"):
        kind(model, arguments(tmp_path), train_dataset=Dataset.from_list(PAIRS))


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_of_an_adapter_is_refused(kind: Any, tiny_decoder: Any, tmp_path: Path) -> None:
    from peft import get_peft_model
    from transformers import AutoModelForSequenceClassification

    lora = LoraConfig(r=2, target_modules=["q_proj"], task_type="SEQ_CLS")
    model = get_peft_model(AutoModelForSequenceClassification.from_pretrained(tiny_decoder()), lora)
    with pytest.raises(ValueError, match="peft_config"):
        kind(model, arguments(tmp_path), train_dataset=Dataset.from_list(PAIRS), peft_config=lora)


@pytest.mark.parametrize("kind", KINDS)
def test_the_last_entry_of_the_log_sums_the_training_up(kind: Any, tiny_decoder: Any, tmp_path: Path) -> None:
    data = Dataset.from_list(PAIRS)
    for settings in ({"eval_strategy": "no"}, {"eval_strategy": "epoch"}, {"eval_strategy": "steps", "eval_steps": 5}):
        trainer = kind(str(tiny_decoder()), arguments(tmp_path, **settings), train_dataset=data, eval_dataset=data)
        trainer.train()
        assert trainer.state.log_history[-1]["train_loss"] > 0


@pytest.mark.parametrize("kind", KINDS)
def test_the_best_model_by_the_accuracy_of_several_datasets(kind: Any, tiny_decoder: Any, tmp_path: Path) -> None:
    best = {
        "eval_strategy": "steps",
        "eval_steps": 1,
        "save_strategy": "steps",
        "save_steps": 1,
        "load_best_model_at_end": True,
    }
    data = Dataset.from_list(PAIRS)
    turned = data.rename_columns({"chosen": "rejected", "rejected": "chosen"})
    trainer = kind(
        *(str(tiny_decoder()), arguments(tmp_path, **best, metric_for_best_model="eval_accuracy")),
        train_dataset=data,
        eval_dataset={"held": data, "turned": turned},
    )
    trainer.train()
    metrics = trainer.evaluate()
    assert trainer.state.best_metric in (0.0, 0.25, 0.5, 0.75, 1.0)
    assert {f"eval_{name}" for name in ("accuracy", "margin", "mean_reward", "held_loss", "turned_loss")} <= metrics.keys()
    if kind is RewardTrainer:
        assert metrics["eval_accuracy"] == metrics["eval_turned_accuracy"]  # of the last, as TRL's


def test_both_name_the_same_metrics(tiny_decoder: Any, tmp_path: Path) -> None:
    data = Dataset.from_list(PAIRS)
    found = []
    for kind in (TrlRewardTrainer, RewardTrainer):
        trainer = kind(str(tiny_decoder()), arguments(tmp_path), train_dataset=data, eval_dataset={"a": data, "b": data})
        found.append({key for key, _ in trainer.evaluate().items()} | {*trainer.evaluate(data, metric_key_prefix="test")})
    assert found[0] <= found[1]


class TestAttributesThatAreSetLater:
    """A preset fills what nobody has set when the trainer is made."""

    def test_stand(self, tiny_decoder: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        args = RewardConfig(str(tmp_path), **QUIET)
        args.learning_rate = 7e-4
        args.num_train_epochs = 2
        args.set_training(batch_size=3, num_epochs=2)
        args.warmup_steps = 1
        with caplog.at_level(logging.WARNING):
            trainer = RewardTrainer(str(tiny_decoder()), args, train_dataset=Dataset.from_list(PAIRS))
        trainer.train()
        rates = [entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry]
        assert trainer.args.per_device_train_batch_size == 3
        assert trainer.state.num_train_epochs == 2
        assert all(rate <= 7e-4 for rate in rates)
        assert trainer.preset is None or "learning_rate" not in trainer.preset
