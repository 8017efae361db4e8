"""PPOTrainer is called as TRL's own is, and refuses what TRL's refuses."""

from __future__ import annotations

import importlib
import inspect
import json
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from datasets import Dataset, DatasetDict
from transformers import AutoModelForSequenceClassification, AutoTokenizer, TrainerCallback

from rm_plugins.errors import DataError, UnsupportedError
from tests.trl.conftest import TRL_WARNINGS
from tests.trl.ppo.conftest import TEXTS, Recording, policy_in

pytestmark = TRL_WARNINGS


@pytest.fixture
def trl_s(trl_s_ppo: ModuleType) -> Any:
    return trl_s_ppo.PPOTrainer


@pytest.fixture
def call(settings: Any, tiny_decoder: Any) -> Callable[..., dict[str, Any]]:
    """The arguments of a script that TRL trains with, in TRL's order, and changes of them; `Ellipsis` leaves one out."""

    def arguments(config: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
        folder = tiny_decoder()
        tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
        policy = policy_in(folder)
        classifiers = [AutoModelForSequenceClassification.from_config(policy.config) for _ in range(2)]
        given = {
            "args": settings(**(config or {})),
            "processing_class": tokenizer,
            "model": policy,
            "ref_model": policy_in(folder),
            "reward_model": classifiers[0],
            "train_dataset": Dataset.from_list([{"input_ids": tokenizer(row["prompt"]).input_ids} for row in TEXTS]),
            "value_model": classifiers[1],
            **changes,
        }
        return {name: value for name, value in given.items() if value is not ...}

    return arguments


def test_arguments_have_trl_s_names_and_order(ppo: ModuleType, trl_s: Any) -> None:
    own, theirs = (inspect.signature(trainer).parameters for trainer in (ppo.PPOTrainer, trl_s))
    positional = [name for name, parameter in own.items() if parameter.kind is parameter.POSITIONAL_OR_KEYWORD]
    assert positional == [*theirs]
    for name, parameter in theirs.items():
        if parameter.default is not parameter.empty:
            assert own[name].default == parameter.default, name


def test_positions_mean_what_they_mean_to_trl(ppo: ModuleType, trl_s: Any, call: Any) -> None:
    class Silent(TrainerCallback):  # type: ignore[misc]  # transformers is untyped here
        pass

    def collate(items: list[dict[str, Any]]) -> dict[str, Any]:
        return {"input_ids": torch.tensor([[3, 4]] * len(items))}

    trained = []
    for trainer_class in (trl_s, ppo.PPOTrainer):
        given = call(config={"total_episodes": 4})
        optimizer = torch.optim.SGD(given["model"].parameters(), lr=0.25)
        schedule = torch.optim.lr_scheduler.ConstantLR(optimizer)
        rows = given["train_dataset"]
        trainer = trainer_class(*given.values(), collate, rows.select(range(2)), (optimizer, schedule), [Silent], None)
        assert trainer.args.total_episodes == 4
        assert trainer.policy_model is given["model"]
        assert trainer.ref_model is given["ref_model"]
        assert trainer.reward_model is given["reward_model"]
        assert trainer.value_model is given["value_model"]
        assert len(trainer.train_dataset) == len(rows)
        assert len(trainer.eval_dataset) == 2
        assert trainer.lr_scheduler is schedule
        assert any(isinstance(callback, Silent) for callback in trainer.callback_handler.callbacks)
        assert next(iter(trainer.get_train_dataloader()))["input_ids"].tolist() == [[3, 4]] * 4
        trainer.train()
        trained.append(trainer.state.log_history[-1]["lr"])
    assert trained[0] == trained[1]


SEVERAL = {"math": ["one", "one, two,", "a"], "rain": ["Question: what is rain? Answer:"]}


def test_trl_samples_nothing_of_several_evaluation_datasets(trl_s: Any, call: Any) -> None:
    """What `PPOTrainer` differs from on purpose; where TRL learns to sample of them, this fails."""
    given = call(config={"num_sample_generations": 1, "per_device_eval_batch_size": 2})
    datasets = {name: given["train_dataset"].select([0]) for name in SEVERAL}
    with pytest.raises(KeyError):  # it looks for row 0 of the dictionary
        trl_s(**given, eval_dataset=datasets).train()
    given = call(config={"num_sample_generations": 1, "per_device_eval_batch_size": 3})
    trl_s(**given, eval_dataset=datasets).train()  # a batch of 3 is more than 2 datasets, and nothing is sampled


@pytest.mark.parametrize("made_of", [dict, DatasetDict])
def test_completions_are_sampled_of_several_datasets_in_turn(
    ppo: ModuleType, trl_s: Any, call: Any, made_of: Callable[[dict[str, Any]], Any], capsys: pytest.CaptureFixture[str]
) -> None:
    reward = Recording()
    datasets = {name: Dataset.from_list([{"prompt": text, "of": name} for text in texts]) for name, texts in SEVERAL.items()}
    trainer = ppo.PPOTrainer(
        **call(
            config={"num_sample_generations": 1, "per_device_eval_batch_size": 2, "total_episodes": 4},
            reward_model=reward,
            eval_dataset=made_of(datasets),
        )
    )
    trainer.train()
    in_turn = [("one", "math"), ("Question: what is rain? Answer:", "rain"), ("one, two,", "math"), ("a", "math")]
    assert [(sample.prompt, sample.columns["of"]) for sample in reward.seen[4:]] == in_turn[:2]
    reward.seen.clear()
    trainer.generate_completions()
    assert [(sample.prompt, sample.columns["of"]) for sample in reward.seen] == in_turn
    assert "model response" in capsys.readouterr().out


def test_a_row_of_one_of_several_datasets_is_named(ppo: ModuleType, call: Any) -> None:
    datasets = {"math": [{"prompt": "one"}], "rain": [{"question": "what is rain?"}]}
    with pytest.raises(DataError, match=r"Row 0 \(counted from 0\) of eval_dataset\['rain'\] has no 'prompt'.*'question'"):
        ppo.PPOTrainer(**call(reward_model=Recording(), eval_dataset=datasets))


@pytest.mark.parametrize(
    ("evaluated", "sampled"),
    [
        (lambda rows: rows, 4),
        (lambda rows: rows.to_iterable_dataset(), 4),
        (lambda rows: rows.select([]), 0),
        (lambda rows: [], 0),
        (lambda rows: {}, 0),
        (lambda rows: None, 0),
    ],
    ids=["dataset", "stream", "empty dataset", "empty list", "no datasets", "none"],
)
def test_trl_and_ours_sample_of_the_same_rows(
    ppo: ModuleType, trl_s: Any, call: Any, evaluated: Callable[[Any], Any], sampled: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = importlib.import_module("trl.experimental.ppo.ppo_trainer")
    for trainer_class in (trl_s, ppo.PPOTrainer):
        queries: list[list[int]] = []
        given = call(config={"per_device_eval_batch_size": 2})
        trainer = trainer_class(**given, eval_dataset=evaluated(given["train_dataset"]))
        generate = module.batch_generation

        def spy(model: Any, batch: torch.Tensor, *rest: Any, kept: list[Any] = queries, generate: Any = generate) -> Any:
            kept += batch.tolist()
            return generate(model, batch, *rest)

        with monkeypatch.context() as patch:
            patch.setattr(module, "batch_generation", spy)
            trainer.generate_completions()
        pad = given["processing_class"].pad_token_id
        shown = [[token for token in row if token != pad] for row in queries]
        assert shown == given["train_dataset"]["input_ids"][:sampled], trainer_class


@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_prompts_of_a_dataset_in_a_format(ppo: ModuleType, call: Any, kind: str) -> None:
    reward = Recording()
    rows = [{"prompt": [{"role": "user", "content": text}], "marks": [1, 2]} for text in ("one", "two", "a", "b")]
    trainer = ppo.PPOTrainer(
        **call(config={"total_episodes": 4}, reward_model=reward, train_dataset=Dataset.from_list(rows).with_format(kind))
    )
    trainer.train()
    seen = [{"prompt": sample.prompt, "marks": sample.columns["marks"]} for sample in reward.seen]
    assert sorted(json.dumps(row, sort_keys=True) for row in seen) == sorted(json.dumps(row, sort_keys=True) for row in rows)


def adapter(**settings: Any) -> Any:
    return pytest.importorskip("peft").LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM", **settings)


def adapted(given: dict[str, Any]) -> dict[str, Any]:
    return {"model": pytest.importorskip("peft").get_peft_model(given["model"], adapter()), "peft_config": adapter()}


REFUSED: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "an argument of another trainer": lambda given: {"compute_metrics": len},
    "a misspelt argument": lambda given: {"tokeniser": given["processing_class"]},
    "no policy": lambda given: {"model": ...},
    "no reward": lambda given: {"reward_model": ...},
    "the policy as its own reference": lambda given: {"ref_model": given["model"]},
    "an adapter as a mapping": lambda given: {"peft_config": {"r": 4}},
    "an adapter for an adapted policy": adapted,
    "no pair of optimizer and schedule": lambda given: {"optimizers": None},
    "three optimizers": lambda given: {"optimizers": (None, None, None)},
    "a callback without a list": lambda given: {"callbacks": TrainerCallback()},
    "callbacks in a tuple": lambda given: {"callbacks": ()},
    "a stream to train on": lambda given: {"train_dataset": given["train_dataset"].to_iterable_dataset()},
    "a number to train on": lambda given: {"train_dataset": 3},
    "nothing to train on": lambda given: {"train_dataset": None},
    "no row to train on": lambda given: {"train_dataset": given["train_dataset"].select([])},
    "rows without prompts": lambda given: {"train_dataset": Dataset.from_list([{"question": "a"}] * 4)},
    "a number to sample of": lambda given: {"eval_dataset": 3},
    "a data collator that is none": lambda given: {"data_collator": 3},
}


def refusal(trainer_class: Any, given: dict[str, Any]) -> type[BaseException]:
    """What a trainer raises when it is made, or else when it trains."""
    with pytest.raises((TypeError, ValueError, AttributeError)) as refused:
        trainer_class(**{name: value for name, value in given.items() if value is not ...}).train()
    return refused.type


@pytest.mark.parametrize("change", REFUSED.values(), ids=REFUSED.keys())
def test_what_trl_refuses_is_refused(ppo: ModuleType, trl_s: Any, call: Any, change: Any) -> None:
    config = {"num_sample_generations": 1}
    theirs, own = (
        refusal(trainer_class, {**given, **change(given)})
        for trainer_class, given in ((trl_s, call(config)), (ppo.PPOTrainer, call(config)))
    )
    assert issubclass(theirs, (TypeError, ValueError))
    assert issubclass(own, theirs)


@pytest.mark.parametrize("name", ["args", "processing_class", "model", "ref_model", "reward_model", "value_model"])
def test_a_value_of_another_type_is_refused(ppo: ModuleType, trl_s: Any, call: Any, name: str) -> None:
    """TRL looks for an attribute of it and fails; ours may say more."""
    assert refusal(trl_s, call(**{name: 3})) is AttributeError
    assert refusal(ppo.PPOTrainer, call(**{name: 3}))


def test_an_empty_mapping_is_no_configuration(ppo: ModuleType, call: Any) -> None:
    with pytest.raises(TypeError):
        ppo.PPOTrainer(**call(args={}))


@pytest.mark.parametrize(
    "config",
    [
        {"stop_token": "eos", "stop_token_id": 3},
        {"stop_token": "bos"},
        {"kl_estimator": "k2"},
        {"num_mini_batches": 3},
        {"whiten_rewards": True},
    ],
    ids=str,
)
def test_a_configuration_that_trl_refuses_is_refused(ppo: ModuleType, trl_s: Any, call: Any, config: dict[str, Any]) -> None:
    refusals = []
    for trainer_class in (trl_s, ppo.PPOTrainer):
        with pytest.raises((ValueError, AssertionError)) as refused:
            trainer_class(**call(config))
        refusals.append(refused.type)
    assert refusals[0] is refusals[1]


def test_unknown_fields_of_a_configuration(ppo: ModuleType) -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'learning_rat'"):
        ppo.PPOConfig(learning_rat=1.0)


@pytest.mark.parametrize("left_out", ["processing_class", "ref_model", "train_dataset", "value_model"])
def test_what_trl_requires_has_a_default(ppo: ModuleType, trl_s: Any, call: Any, left_out: str) -> None:
    given = call(config={"total_episodes": 4}, **{left_out: ...})
    with pytest.raises(TypeError, match=f"missing 1 required positional argument: '{left_out}'"):
        trl_s(**given)
    trainer = ppo.PPOTrainer(**given)
    if left_out == "train_dataset":
        with pytest.raises(ValueError, match="PPO needs prompts to train on"):
            trainer.train()
    else:
        trainer.train()


@pytest.mark.parametrize("missing", [{}, {"model": None}])
def test_a_policy_is_needed(ppo: ModuleType, missing: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedError, match="PPO needs a policy"):
        ppo.PPOTrainer(**missing, reward_model=Recording())
