"""RewardEvaluation: what it logs is what the saved model scores, and training does not notice it."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from huggingface_hub import ModelCard
from transformers import EarlyStoppingCallback, TrainerCallback
from trl import RewardTrainer as TrlRewardTrainer

import rm_plugins as rm
from rm_plugins.errors import DataError, SpecError, UnknownNameError, UnsupportedError
from rm_plugins.evaluation.results import Evaluation
from rm_plugins.evaluation.run import evaluate
from rm_plugins.suites import Suite, SuiteItem, SuiteResult, SuiteSection
from rm_plugins_trl import RewardConfig, RewardEvaluation, RewardTrainer
from tests.trl.conftest import TRL_WARNINGS, newest_trl, write_jsonl
from tests.warm_process import run_warm_group

pytestmark = TRL_WARNINGS

WORDS = ("blue", "two", "rain", "salty", "four", "sea")
ROWS: list[dict[str, Any]] = [
    {
        "prompt": f"Name {number} things.",
        "chosen": f" It is {WORDS[number % 6]} and {WORDS[(number + 1) % 6]}.",
        "rejected": f" {WORDS[(number + 2) % 6]}" * (1 + number % 3),
        "section": "even" if number % 2 == 0 else "odd",
    }
    for number in range(24)
]
RATED: list[dict[str, Any]] = [
    {"prompt": row["prompt"], "completions": [row["chosen"], row["rejected"]], "scores": [{"a": 4, "b": 1}, {"a": 2, "b": 2}]}
    for row in ROWS
]


def trainer_of(model: Path, folder: Path, *callbacks: TrainerCallback, **settings: Any) -> RewardTrainer:
    train = settings.pop("train", ROWS[:8])
    data = settings.pop("eval_dataset", None)
    more = {name: settings.pop(name) for name in ("peft_config",) if name in settings}
    defaults: dict[str, Any] = {
        "output_dir": str(folder),
        "max_steps": 4,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-3,
        "report_to": "none",
        "disable_tqdm": True,
        "logging_steps": 1,
        "gradient_checkpointing": False,
        "save_strategy": "steps",
        "save_steps": 100,
        "use_cpu": True,
        "bf16": False,
    }
    return RewardTrainer(
        str(model),
        RewardConfig(**{**defaults, **settings}),
        train_dataset=Dataset.from_list(train),
        eval_dataset=data,
        callbacks=list(callbacks),
        **more,
    )


def logged(trainer: Any, name: str) -> list[tuple[int, float]]:
    return [(entry["step"], entry[name]) for entry in trainer.state.log_history if name in entry]


def figures(evaluation: Evaluation) -> dict[str, float]:
    return {name: estimate.value for name, estimate in evaluation.rewards[0].figures.items()}


SAVED: dict[str, dict[str, Any]] = {
    "decoder": {"gradient_checkpointing": True},
    "encoder": {},
    "encoder in mixed precision": {"bf16": True},
    "decoder in mixed precision": {"bf16": True},
    "members": {"members": 2},
    "attributes": {"loss": "regression", "train": RATED, "reward": {"a": 1.0, "b": -0.5}},
    "odin": {"loss": "odin"},
    "adapter": {"learning_rate": 1e-2},
    "merged adapter": {"learning_rate": 1e-2, "merge_adapter": True},
}


@pytest.mark.parametrize("kind", SAVED)
def test_the_figures_are_those_of_the_saved_model(kind: str, tiny_decoder: Any, tiny_encoder: Any, tmp_path: Path) -> None:
    settings = dict(SAVED[kind])
    if "adapter" in kind:
        peft = pytest.importorskip("peft")
        settings["peft_config"] = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"])
    rows = RATED if kind == "attributes" else ROWS
    evaluation = RewardEvaluation({"held": rows}, every="end", resamples=20)
    trainer = trainer_of(tiny_encoder() if "encoder" in kind else tiny_decoder(), tmp_path, evaluation, **settings)
    trainer.train()
    found = figures(evaluation.last["held"])
    expected = figures(evaluate(rm.load(tmp_path), rows, resamples=20))
    assert found == pytest.approx({name: expected[name] for name in found}, abs=1e-4)
    assert found.keys() == expected.keys()
    assert "mean_reward" in found
    assert logged(trainer, "eval_held/mean_reward") == [(4, found["mean_reward"])]


def test_the_training_does_not_notice_it(tiny_encoder: Any, tmp_path: Path) -> None:
    model, found = tiny_encoder(), []
    for name, callbacks in {"with": [RewardEvaluation(ROWS, every=1, resamples=20)], "without": []}.items():
        trainer = trainer_of(model, tmp_path / name, *callbacks, disable_dropout=False)
        trainer.train()
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        found.append((losses, {key: tensor.clone() for key, tensor in trainer.model.state_dict().items()}))
    (losses, weights), (other_losses, other_weights) = found
    assert losses == other_losses
    assert all(torch.equal(tensor, other_weights[key]) for key, tensor in weights.items())


def test_it_evaluates_when_the_trainer_does_and_logs_beside_it(tiny_decoder: Any, tmp_path: Path) -> None:
    heard: list[str] = []

    class Reporter(TrainerCallback):  # type: ignore[misc]  # transformers is untyped here
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            heard.extend(name for name in logs if name.startswith("eval_held/"))

    evaluation = RewardEvaluation({"held": ROWS}, resamples=20)
    data = {"one": Dataset.from_list(ROWS[:4]), "two": Dataset.from_list(ROWS[4:8])}
    trainer = trainer_of(
        tiny_decoder(),
        tmp_path,
        Reporter(),
        evaluation,
        eval_dataset=data,
        eval_strategy="steps",
        eval_steps=2,
        save_strategy="no",
    )
    trainer.train()
    assert [step for step, _ in evaluation.evaluations["held"]] == [2, 4]
    assert [step for step, _ in logged(trainer, "eval_held/accuracy")] == [2, 4]
    assert [step for step, _ in logged(trainer, "eval_held/accuracy/odd")] == [2, 4]
    assert heard.count("eval_held/accuracy") == 2
    assert trainer.last_metrics["eval_held/margin"] == logged(trainer, "eval_held/margin")[-1][1]
    # What the trainer measured of its own steps went into its own entries.
    assert all(
        "eval_held/accuracy" not in entry for entry in trainer.state.log_history if "loss" in entry or "accuracy" in entry
    )


def test_a_number_of_steps_and_the_final_model(tiny_decoder: Any, tmp_path: Path) -> None:
    evaluation = RewardEvaluation(ROWS, every=3, resamples=20)
    trainer = trainer_of(tiny_decoder(), tmp_path, evaluation, save_strategy="no")
    trainer.train()
    assert [step for step, _ in evaluation.evaluations["data"]] == [3, 4]
    trainings = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert all("accuracy" in entry for entry in trainings)


def test_the_final_model_is_evaluated_without_evaluation_data(tiny_decoder: Any, tmp_path: Path) -> None:
    evaluation = RewardEvaluation(ROWS, resamples=20)
    trainer = trainer_of(tiny_decoder(), tmp_path, evaluation, save_strategy="no")
    trainer.train()
    assert [step for step, _ in evaluation.evaluations["data"]] == [4]


def test_the_best_model_is_chosen_by_it(tiny_decoder: Any, tmp_path: Path) -> None:
    stopping = EarlyStoppingCallback(early_stopping_patience=2)
    evaluation = RewardEvaluation({"held": ROWS}, resamples=20)
    trainer = trainer_of(
        tiny_decoder(),
        tmp_path,
        stopping,  # sees the figures though it was given first
        evaluation,
        eval_dataset=Dataset.from_list(ROWS[:4]),
        eval_strategy="steps",
        eval_steps=1,
        save_steps=1,
        max_steps=12,
        learning_rate=3e-2,
        load_best_model_at_end=True,
        metric_for_best_model="eval_held/margin",
        greater_is_better=False,  # which training makes worse
    )
    trainer.train()
    margins = logged(trainer, "eval_held/margin")
    best = min(margins, key=lambda found: found[1])
    assert trainer.state.global_step < 12
    assert (trainer.state.best_global_step, trainer.state.best_metric) == best
    assert margins[-1][0] == trainer.state.global_step
    assert margins[-1][1] == pytest.approx(best[1], abs=1e-6)  # the final model is the best one
    saved = figures(evaluate(rm.load(tmp_path), ROWS, resamples=20))
    assert saved["margin"] == pytest.approx(best[1], abs=1e-4)


class Halves(Suite):
    """A benchmark of our own."""

    name = "halves"
    source = "nobody/halves"
    rule = "The mean of two sections."

    def rows(self, raw: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
        """Rows as they are."""
        yield from map(dict, raw)

    def result(self, items: Sequence[SuiteItem]) -> SuiteResult:
        """The mean."""
        right: dict[str, list[bool]] = {"even": [], "odd": []}
        for item in items:
            right[item.section].append(bool(item.scores[0] > item.scores[1]))
        sections = tuple(SuiteSection(name, float(np.mean(found)), 0.5, len(found)) for name, found in right.items())
        return SuiteResult("halves", self.rule, float(np.mean([section.score for section in sections])), sections)


def test_a_benchmarks_own_score_is_logged(tiny_decoder: Any, tmp_path: Path) -> None:
    evaluation = RewardEvaluation({"halves": ROWS, "held": ROWS[:4]}, suites={"halves": Halves()}, every="end", resamples=20)
    trainer = trainer_of(tiny_decoder(), tmp_path, evaluation, save_strategy="no")
    trainer.train()
    (_, score), (_, even), (_, odd) = (
        logged(trainer, f"eval_halves/{name}")[0] for name in ("score", "score/even", "score/odd")
    )
    assert score == pytest.approx((even + odd) / 2)
    assert logged(trainer, "eval_held/accuracy")
    assert not logged(trainer, "eval_held/score")


def test_each_data_gets_a_page(tiny_decoder: Any, tmp_path: Path) -> None:
    evaluation = RewardEvaluation({"held/out": ROWS, "two": ROWS[:4]}, every="end", report=tmp_path / "pages", resamples=20)
    trainer_of(tiny_decoder(), tmp_path / "rm", evaluation, save_strategy="no").train()
    assert sorted(path.name for path in (tmp_path / "pages").iterdir()) == ["held-out.html", "two.html"]
    assert "held/out" in (tmp_path / "pages" / "held-out.html").read_text(encoding="utf-8")


def test_what_an_evaluation_finds_is_warned_of_once(
    tiny_decoder: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    same = [{"prompt": row["prompt"], "chosen": " four", "rejected": " four"} for row in ROWS]
    evaluation = RewardEvaluation({"same": same}, every=1, resamples=20)
    with caplog.at_level(logging.WARNING, "rm_plugins_trl.reward_training.reward_evaluation"):
        trainer_of(tiny_decoder(), tmp_path, evaluation, save_strategy="no").train()
    ties = [record.message for record in caplog.records if "equal rewards" in record.message]
    assert len(ties) == 1
    assert ties[0].startswith("Step 1, same: ")


def test_a_failed_evaluation_is_an_error_in_the_log_and_no_figure(
    tiny_decoder: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    template = (
        "{% for message in messages %}{% if message['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        "{{ message['content'] }}<|end|>{% endfor %}"
    )
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Name a colour."}]
    bad = [{"prompt": turns, "chosen": "Blue.", "rejected": "Two."}]
    evaluation = RewardEvaluation({"bad": bad, "good": ROWS}, resamples=20)
    trainer = trainer_of(tiny_decoder(chat_template=template), tmp_path, evaluation)
    trainer.train()
    assert "Step 4: the evaluation on bad failed, so it has no figures" in caplog.text
    assert evaluation.evaluations["bad"] == []
    assert not any(name.startswith("eval_bad/") for entry in trainer.state.log_history for name in entry)
    assert logged(trainer, "eval_good/accuracy")
    assert rm.load(tmp_path).verify() == []  # type: ignore[attr-defined]


def test_two_data_of_one_name_are_refused(tiny_decoder: Any, tmp_path: Path) -> None:
    evaluations = RewardEvaluation(ROWS[:2]), RewardEvaluation({"data": ROWS[2:4]})
    with pytest.raises(SpecError, match="Two RewardEvaluation callbacks have data called 'data'"):
        trainer_of(tiny_decoder(), tmp_path, *evaluations).train()


def test_another_trainer_is_told(tiny_decoder: Any, tmp_path: Path) -> None:
    model, arguments = str(tiny_decoder()), RewardConfig(str(tmp_path), report_to="none", disable_tqdm=True, use_cpu=True)
    trainer = TrlRewardTrainer(
        model, arguments, train_dataset=Dataset.from_list(ROWS[:4]), callbacks=[RewardEvaluation(ROWS, every="end")]
    )
    with pytest.raises(UnsupportedError, match=r"rm_plugins_trl\.RewardTrainer .* not a callback for other trainers"):
        trainer.train()


class TestData:
    def test_a_file_gives_its_name(self, tmp_path: Path) -> None:
        path = write_jsonl(tmp_path / "held.out.jsonl", ROWS)
        assert list(RewardEvaluation(path).evaluations) == ["held"]

    def test_a_generator_is_kept(self) -> None:
        assert list(RewardEvaluation({"one": (row for row in ROWS)}).evaluations) == ["one"]

    def test_what_is_wrong_is_said_at_once(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="Row 2 of held: "):
            RewardEvaluation({"held": [ROWS[0], {"chosen": "x", "rejected": None}]})
        with pytest.raises(DataError, match="There is no row in held"):
            RewardEvaluation({"held": []})
        with pytest.raises(DataError, match="There is no file"):
            RewardEvaluation(tmp_path / "absent.jsonl")
        with pytest.raises(DataError, match="Row 1 of held: there is no column 'topic'"):
            RewardEvaluation({"held": ROWS}, section="topic")
        with pytest.raises(SpecError, match="needs data"):
            RewardEvaluation()
        with pytest.raises(SpecError, match=r"every=0: allowed are 'evaluate', 'end', or a number of steps"):
            RewardEvaluation(ROWS, every=0)
        with pytest.raises(UnknownNameError, match="rm-bemch"):
            RewardEvaluation({"x": ROWS}, suites={"x": "rm-bemch"})


class TestModelCard:
    def test_has_the_last_evaluation(self, tiny_decoder: Any, tmp_path: Path) -> None:
        path = write_jsonl(tmp_path / "held.jsonl", ROWS)
        data = Dataset.from_list(ROWS[:4])
        evaluation = RewardEvaluation({"first": path, "second": ROWS[:4]}, resamples=20)
        trainer = trainer_of(
            tiny_decoder(), tmp_path / "rm", evaluation, eval_dataset=data, eval_strategy="steps", eval_steps=2, save_steps=2
        )
        trainer.train()
        text = (tmp_path / "rm" / "README.md").read_text(encoding="utf-8")
        accuracy = figures(evaluation.last["first"])["accuracy"]
        for part in ("\n# rm\n", "## Reward\n", "## Evaluation on held.jsonl\n", "## Evaluation on second\n"):
            assert text.count(part) == 1
        assert text.index("## Reward") < text.index("## Evaluation on held.jsonl") < text.index("## Training procedure")
        assert f"| Accuracy | {accuracy:.1%} |" in text
        assert "| odd | 12 |" in text
        assert "`eval_accuracy`" in text
        assert "`eval_first/accuracy`" not in text
        metadata: Any = ModelCard(text).data
        assert {"reward-trainer", "trl"} <= set(metadata.tags)
        assert metadata.library_name == "transformers"
        assert metadata.model_name == "rm"
        index = metadata.to_dict()["model-index"][0]
        assert [found["dataset"]["name"] for found in index["results"]] == ["held.jsonl", "second"]
        values = {found["type"]: found["value"] for found in index["results"][0]["metrics"]}
        assert values["accuracy"] == pytest.approx(accuracy, abs=1e-6)
        assert all(math.isfinite(value) for value in values.values())


@newest_trl
def test_two_processes_score_a_share_each_and_fail_together(tiny_decoder: Any, tmp_path: Path) -> None:
    rows = write_jsonl(tmp_path / "rows.jsonl", ROWS)
    program = ("tests.trl.evaluating_processes", tiny_decoder(), rows, tmp_path / "rm")
    printed = run_warm_group(2, *program, ACCELERATE_USE_CPU="true")
    first, second = (json.loads((tmp_path / "rm" / f"process-{process}.json").read_text()) for process in (0, 1))
    assert first["scored"] == second["scored"] == [len(ROWS)]  # half of the samples, of which a row has two
    assert first["best"] == second["best"]
    expected = figures(evaluate(rm.load(tmp_path / "rm"), ROWS, resamples=20))
    for found in (first, second):
        names = [
            name for name in found["figures"] if name.startswith("eval_held/") and name.removeprefix("eval_held/") in expected
        ]
        assert len(names) == len(expected)
        assert {name: found["figures"][name] for name in names} == pytest.approx(
            {name: expected[name.removeprefix("eval_held/")] for name in names}, abs=1e-4
        )
        assert found["one fails"] == found["uneven"] == []
    assert "Process 1: this process cannot score" in printed
    assert "The processes have different rows of uneven, 4, 5" in printed
