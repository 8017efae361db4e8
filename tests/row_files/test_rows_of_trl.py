"""What TRL's RewardTrainer trains on is read as pairs by training, data check, evaluate and score, whatever shapes its values have."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset
from trl import RewardTrainer as TrlRewardTrainer

import rm_plugins as rm
from rm_plugins.data.check import DataCheck
from rm_plugins.data.row_files import read_rows, write_rows
from rm_plugins.data.rows import row_samples
from rm_plugins.evaluation import evaluate
from rm_plugins.rendering.render import Renderer
from rm_plugins.rendering.rendering import Rendering
from rm_plugins_trl import RewardConfig, RewardTrainer
from rm_plugins_trl.reward_training.training_rows import Tokenization, looked_at, texts_of
from tests.conftest import MakeFolder, make_tokenizer
from tests.test_render import trained_ids
from tests.trl.conftest import TRL_WARNINGS

pytestmark = TRL_WARNINGS

USER, FOUR, FIVE = (
    {"role": role, "content": text} for role, text in (("user", "2+2?"), ("assistant", "4"), ("assistant", "5"))
)
TEXT = {"prompt": "2+2? ", "chosen": "4", "rejected": "five"}
TURNS = {"prompt": [USER], "chosen": [FOUR], "rejected": [FIVE]}

ROWS: dict[str, list[dict[str, Any]]] = {
    "margins": [{**TEXT, "margin": 1.5}, {**TEXT, "margin": 0.5}],
    "margins in lists": [{**TEXT, "margin": [1.5]}, {**TEXT, "margin": [0.5]}],
    "completions with scores": [{**TEXT, "completions": ["4", "five", "six"], "scores": [1.0, 3.0, 2.0]}],
    "completions with ratings": [{**TEXT, "completions": ["4", "5"], "scores": {"good": [1.0, 3.0], "brief": [3.0, 3.0]}}],
    "completions with ranks": [{**TURNS, "completions": [[FOUR], [FIVE]], "ranks": [2, 1]}],
    "completions with the best": [{**TEXT, "completions": ["4", "5"], "best": 1}],
    "completions with labels": [{**TEXT, "completions": ["4", "5"], "labels": [False, True]}],
    "completions without a verdict": [{**TEXT, "completions": ["4", "5"]}],
    "a completion with a score": [{**TEXT, "completion": "six", "score": 0.5}],
    "a completion with a label": [{**TEXT, "completion": "six", "label": False}],
    "messages": [{**TURNS, "messages": [USER, FIVE], "score_chosen": 8.0, "score_rejected": 3.0}],
    "messages with a label": [{**TURNS, "messages": [USER, FIVE], "label": "good"}],
}
JUDGED = [name for name in ROWS if name.startswith(("completions with ", "a completion", "messages with"))]


def trained_on(dataset: Dataset) -> list[dict[str, Any]]:
    """What `RewardTrainer` makes of a dataset."""
    attributes, _ = looked_at(dataset)
    tokenizer = make_tokenizer()
    tokenize = Tokenization(Renderer(tokenizer, Rendering.default(tokenizer)), "train", attributes)
    mapped = dataset.map(tokenize, batched=True, with_indices=True, remove_columns=dataset.column_names).with_format(None)
    return list(mapped)


def checked(rows: Iterable[Mapping[str, Any]]) -> Any:
    check = DataCheck()
    check.begin("rows")
    for row in rows:
        check.add(row)
    return check.report()


def length(samples: list[rm.Sample]) -> list[float]:
    return [float(len(sample.completion_text)) for sample in samples]


@pytest.mark.parametrize("kind", [None, "numpy", "torch"])
@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS.keys())
def test_every_reader_takes_the_pairs(rows: list[dict[str, Any]], kind: str | None, tmp_path: Path) -> None:
    dataset = Dataset.from_list(rows).with_format(kind)
    expected = trained_ids(make_tokenizer(), rows, tmp_path)
    trained = trained_on(dataset)
    assert [ids for row in trained for ids in texts_of(row)] == expected
    assert [row["pairs"] for row in trained] == [[[0, 1]]] * len(rows)
    margins = [row.get("margin") for row in rows]
    assert [margin for row in trained for margin in row["margins"]] == [
        margin for given in margins if given is not None for margin in (given if isinstance(given, list) else [given])
    ]
    report = checked(dataset)
    assert report.is_trainable
    assert (report.sources[0].pairs, report.sources[0].formats) == (len(rows), {"preference": len(rows)})
    assert not [problem for problem in report.problems if problem.is_error]
    evaluated = evaluate(rm.load(length), dataset, resamples=2).data
    assert (evaluated.pairs, evaluated.formats) == (len(rows), {"preference": len(rows)})
    assert [row_samples(row).names for row in dataset] == [("chosen_{}", "rejected_{}")] * len(rows)


@pytest.mark.parametrize("name", JUDGED)
def test_a_verdict_that_is_ignored_is_said_once(name: str, caplog: pytest.LogCaptureFixture) -> None:
    rows = ROWS[name] * 3
    (column,) = {"scores", "ranks", "best", "labels", "score", "label"} & rows[0].keys()
    _, warnings = looked_at(Dataset.from_list(rows))
    assert [f"{column!r} looks like a verdict and is not read" in warning for warning in warnings] == [True]
    (problem,) = [problem for problem in checked(rows).problems if problem.kind == "ignored-verdict"]
    assert (problem.count, problem.is_error) == (3, False)
    with caplog.at_level(logging.WARNING):
        evaluate(rm.load(length), rows, resamples=2)
    assert caplog.text.count("looks like a verdict") == 1


def test_several_margins_are_an_error_that_says_where() -> None:
    rows = [{**TEXT, "margin": [1.0]}, {**TEXT, "margin": [1.0, 2.0]}]
    with pytest.raises(
        ValueError,
        match=r"Row 1 \(counted from 0\) of the train dataset: 'margin' is \[1\.0, 2\.0\]; a finite number",
    ):
        trained_on(Dataset.from_list(rows))


def test_other_completions_do_not_hide_a_repeated_prompt() -> None:
    row = {"prompt": "2+2?", "chosen": "2+2? 4", "rejected": "2+2? 5", "completions": ["six"], "completion": "six", "best": 0}
    assert "repeated-prompt" in {problem.kind for problem in checked([row, row]).problems}


@pytest.mark.filterwarnings("ignore:To copy construct from a tensor")  # TRL's data collator, of torch's margins
@pytest.mark.parametrize("kind", ["numpy", "torch"])
@pytest.mark.parametrize("stream", [False, True])
def test_a_dataset_in_a_format_trains_as_it_does_without(
    kind: str, stream: bool, tiny_decoder: MakeFolder, tmp_path: Path
) -> None:
    folder = str(tiny_decoder())
    dataset = Dataset.from_list([{**TEXT, "margin": 0.5}, {**TEXT, "chosen": "four", "margin": 1.0}] * 2)

    def loss(trainer_class: Any, data: Any) -> float:
        config: dict[str, Any] = {
            "max_steps": 1,
            "per_device_train_batch_size": 4,
            "report_to": "none",
            "disable_tqdm": True,
            "seed": 0,
        }
        args = RewardConfig(output_dir=str(tmp_path), save_strategy="no", use_cpu=True, **config)
        trainer = trainer_class(folder, args=args, train_dataset=data, eval_dataset=dataset.with_format(kind))
        trainer.train()
        trainer.evaluate()
        return next(float(entry["train_loss"]) for entry in trainer.state.log_history if "train_loss" in entry)

    formatted = (dataset.to_iterable_dataset() if stream else dataset).with_format(kind)
    expected = loss(RewardTrainer, dataset)
    assert loss(RewardTrainer, formatted) == pytest.approx(expected, abs=1e-6)
    assert loss(TrlRewardTrainer, formatted) == pytest.approx(expected, abs=1e-5)


def test_arrays_are_written_as_lists(tmp_path: Path) -> None:
    write_rows([{"prompt": "Q", "ids": np.arange(2_000), "score": np.float32(0.5)}], tmp_path / "a.jsonl")
    assert list(read_rows(str(tmp_path / "a.jsonl"))) == [{"prompt": "Q", "ids": [*range(2_000)], "score": 0.5}]
    assert json.loads((tmp_path / "a.jsonl").read_text())["ids"][:2] == [0, 1]
