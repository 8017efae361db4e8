"""Files in the shapes in which public data is published, through ``data check``, ``evaluate`` and ``train``, one command each."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

from rm_plugins.cli import main
from rm_plugins.rendering.render import Renderer
from rm_plugins.rendering.rendering import Rendering
from rm_plugins_trl.reward_training.train_data import TrainScriptArguments, reward_dataset, training_data
from rm_plugins_trl.reward_training.training_rows import Tokenization, looked_at
from tests.conftest import make_tokenizer
from tests.mappings.test_mapping import RAW


def pandalm(folder: Path) -> Path:
    """One JSON array in many lines; three annotators, 0 for a tie."""
    rows = [
        {**RAW["pandalm"], "instruction": f"Do {number}.", "annotator1": first, "annotator2": second, "annotator3": 2}
        for number, (first, second) in enumerate([(2, 2), (1, 1), (0, 0), (1, 0)])
    ]
    (folder / "testset.json").write_text(json.dumps(rows, indent=2), encoding="utf-8")
    return folder / "testset.json"


def llmbar(folder: Path) -> Path:
    """A folder of folders, a JSON array in each."""
    for number, name in enumerate(("Natural", "Adversarial/Manual")):
        (folder / "llmbar" / name).mkdir(parents=True)
        row = {**RAW["llmbar"], "input": f"Q{number}"}
        (folder / "llmbar" / name / "dataset.json").write_text(json.dumps([row, {**row, "label": 1}]), encoding="utf-8")
    return folder / "llmbar"


def convincing_arguments(folder: Path) -> Path:
    """A folder of tab-separated files with a header, a topic each."""
    (folder / "arguments").mkdir()
    for topic in ("books", "schools"):
        text = "#id\tlabel\ta1\ta2\n" + f'x_y\ta2\tbad "{topic}\tgood {topic}\nx_z\ta1\t"good" {topic}\tbad\n'
        (folder / "arguments" / f"{topic}.tsv").write_text(text, encoding="utf-8")
    return folder / "arguments"


def lines(name: str, changed: Callable[[int], dict[str, Any]]) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        path = folder / f"{name}.jsonl"
        path.write_text("".join(json.dumps({**RAW[name], **changed(number)}) + "\n" for number in range(4)), encoding="utf-8")
        return path

    return write


FILES: list[tuple[str, Callable[[Path], Path], int, int]] = [
    ("pandalm", pandalm, 3, 1),
    ("llmbar", llmbar, 4, 0),
    ("ukp-convarg", convincing_arguments, 4, 0),
    ("gsm8k-solutions", lines("gsm8k-solutions", lambda number: {"question": f"Q{number}"}), 16, 0),
    ("topical-chat", lines("topical-chat", lambda number: {"system_output": f"answer {number}"}), 0, 0),
    ("hh-rlhf", lines("hh-rlhf", lambda number: {}), 4, 0),
    ("arena", lines("arena", lambda number: {"winner": ("model_a", "model_b", "tie", "tie (bothbad)")[number]}), 2, 2),
    ("shp", lines("shp", lambda number: {"history": f"Q{number}"}), 4, 0),
]


@pytest.mark.parametrize(("preset", "write", "pairs", "ties"), FILES, ids=[name for name, *_ in FILES])
def test_a_published_file(preset: str, write: Callable[[Path], Path], pairs: int, ties: int, tmp_path: Path) -> None:
    path = str(write(tmp_path))
    checked = CliRunner().invoke(main, ["data", "check", path, "--map", preset, "--json"])
    assert checked.exit_code == 0, checked.output
    (source,) = json.loads(checked.stdout)["sources"]
    assert (source["pairs"], source["ties"]) == (pairs, ties)

    shown = CliRunner().invoke(main, ["evaluate", "tests.mappings.rewards:goodness", path, "--map", preset, "--json"])
    assert shown.exit_code == 0, shown.output
    evaluation = json.loads(shown.stdout)
    assert (evaluation["data"]["rows"], evaluation["data"]["pairs"]) == (source["rows"], pairs)
    if preset in ("llmbar", "hh-rlhf", "shp", "ukp-convarg", "gsm8k-solutions"):
        assert abs(evaluation["rewards"][0]["figures"]["accuracy"]["value"] - (0.5 if preset == "llmbar" else 1.0)) < 1e-9

    script = TrainScriptArguments(dataset_name=path, map=[preset])
    dataset, _ = training_data(script, SimpleNamespace(eval_strategy="no"), SimpleNamespace(datasets=[]))
    tokenizer = make_tokenizer()
    tokenize = Tokenization(Renderer(tokenizer, Rendering.default(tokenizer)), "train", looked_at(dataset)[0])
    trained = dataset.map(tokenize, batched=True, with_indices=True, remove_columns=dataset.column_names)
    assert (sum(map(len, trained["pairs"])), sum(map(len, trained["ties"]))) == (pairs, ties)


def test_columns_renamed_without_their_verdict_are_told_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "ab.jsonl"
    rows = [{"prompt": f"Q{number}", "response_a": "a", "response_b": "bb", "winner": "model_b"} for number in range(3)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    renamed = ["--map", "response_a=chosen", "--map", "response_b=rejected"]
    report = json.loads(CliRunner().invoke(main, ["data", "check", str(path), *renamed, "--json"]).stdout)
    problems = {problem["kind"]: problem for problem in report["problems"]}
    assert (problems["ignored-verdict"]["count"], problems["ignored-verdict"]["is_error"]) == (3, False)
    assert "'winner' is 'model_b'" in problems["ignored-verdict"]["examples"][0]["text"]
    CliRunner().invoke(main, ["evaluate", "tests.mappings.rewards:goodness", str(path), *renamed])
    assert "'winner' looks like a verdict and is not read" in caplog.text
    refused = CliRunner().invoke(main, ["data", "check", str(path)])
    assert "--map '{answers: [response_a, response_b], winner: winner}'" in refused.output


def test_prompts_that_completions_repeat_are_told_of_and_split(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "pairs.jsonl"
    rows = [{"prompt": f"Q{number} ", "chosen": f"Q{number} good", "rejected": f"Q{number} bad"} for number in range(3)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    report = json.loads(CliRunner().invoke(main, ["data", "check", str(path), "--json"]).stdout)
    assert [problem["count"] for problem in report["problems"] if problem["kind"] == "repeated-prompt"] == [3]
    for command in (["evaluate"], ["score", "-o", str(tmp_path / "out.jsonl")]):
        caplog.clear()
        CliRunner().invoke(main, [*command, "tests.mappings.rewards:goodness", str(path)])
        assert caplog.text.count("3 of 3 rows with a prompt have completions that begin with it") == 1
    dataset = reward_dataset(str(path))
    assert "--map split-prompt" in looked_at(dataset)[1][0]
    assert looked_at(reward_dataset(str(path), map="split-prompt")) == ((), [])
    split = json.loads(CliRunner().invoke(main, ["data", "check", str(path), "--map", "split-prompt", "--json"]).stdout)
    assert split["problems"] == []


def test_rank_and_score_map_as_well(tmp_path: Path) -> None:
    path, out = tmp_path / "nectar.jsonl", tmp_path / "out.jsonl"
    answers = [{"answer": "bad", "rank": 2.0}, {"answer": "good", "rank": 1.0}]
    path.write_text(json.dumps({**RAW["nectar"], "answers": answers}) + "\n", encoding="utf-8")
    for command in ("rank", "score"):
        arguments = [command, "tests.mappings.rewards:goodness", str(path), "--map", "nectar", "-o", str(out), "--overwrite"]
        shown = CliRunner().invoke(main, arguments)
        assert shown.exit_code == 0, shown.output
        (row,) = map(json.loads, out.read_text(encoding="utf-8").splitlines())
        assert row["completions"] == (["good", "bad"] if command == "rank" else ["bad", "good"])
        assert row["prompt"] == [{"role": "user", "content": "Q"}]


class TestScoresOfColumns:
    ROWS = (
        {"prompt": "Q", "chosen": "a", "rejected": "b", "chosen_score": 2.0, "rejected_score": 1.0},
        {"prompt": "R", "chosen": "a", "rejected": "b", "chosen_score": 0.0, "rejected_score": 1.0},
        {"prompt": "S", "chosen": "a", "rejected": "b", "chosen_score": 1.0, "rejected_score": 1.0},
        {"prompt": "T", "chosen": "a", "rejected": "b", "chosen_score": None, "rejected_score": 1.0},
    )

    def evaluated(self, rows: Any, folder: Path, *specs: str, code: int = 0) -> Any:
        path = folder / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        shown = CliRunner().invoke(main, ["evaluate", *specs, str(path), "--json"])
        assert shown.exit_code == code, shown.output
        return json.loads(shown.stdout) if code == 0 else shown.output

    def test_pairs(self, tmp_path: Path) -> None:
        (reward,) = self.evaluated(self.ROWS, tmp_path, "column:score")["rewards"]
        assert (reward["name"], reward["pairs"], reward["abstained"]) == ("column:score", 3, 1)
        assert reward["figures"]["accuracy"]["value"] == pytest.approx(1 / 3)
        assert reward["figures"]["ties"]["value"] == pytest.approx(1 / 3)

    def test_lists_judged_by_labels(self, tmp_path: Path) -> None:
        rows = [{"prompt": "Q", "completions": ["a", "b"], "labels": [1, 0], "scores": [3, 2]}]
        (reward,) = self.evaluated(rows, tmp_path, "column:score")["rewards"]
        assert reward["figures"]["accuracy"]["value"] == 1.0
        alone = [{"prompt": str(label), "completion": "a", "label": label, "quality": label + 0.5} for label in (0, 1)]
        (reward,) = self.evaluated(alone, tmp_path, "column:quality")["rewards"]
        assert reward["figures"]["auc/label"]["value"] == 1.0

    def test_beside_a_reward(self, tmp_path: Path) -> None:
        evaluation = self.evaluated(self.ROWS, tmp_path, "column:score", "tests.mappings.rewards:goodness")
        assert [reward["name"] for reward in evaluation["rewards"]] == ["column:score", "goodness"]
        assert len(evaluation["differences"]) == 1

    def test_what_score_wrote_is_judged_without_the_model(self, tmp_path: Path) -> None:
        rows = [{"prompt": str(number), "chosen": "a" * number, "rejected": "aa"} for number in range(4)]
        path, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        scored = CliRunner().invoke(main, ["score", "tests.mappings.rewards:goodness", str(path), "-o", str(out)])
        assert scored.exit_code == 0, scored.output
        both = [
            json.loads(CliRunner().invoke(main, ["evaluate", spec, str(data), "--json"]).stdout)["rewards"][0]["figures"]
            for spec, data in (("tests.mappings.rewards:goodness", path), ("column:score", out))
        ]
        assert both[0] == both[1]

    @pytest.mark.parametrize(
        ("row", "message"),
        [
            ({"prompt": "Q", "chosen": "a", "rejected": "b"}, "No row has scores in 'score', 'scores', 'chosen_score'"),
            ({"prompt": "Q", "completion": "a", "label": True}, "No row has scores in 'score', 'scores', 'chosen_score'"),
            (
                {"prompt": "Q", "chosen": "a", "rejected": "b", "scores": [1, 5]},
                "'scores' is a list, but the row has 'chosen' and 'rejected'",
            ),
            ({"prompt": "Q", "chosen": "a", "rejected": "b", "chosen_score": "x", "rejected_score": 1}, "has ['x', 1]"),
            ({"prompt": "Q", "completions": ["a", "b"], "scores": [1, 2]}, "there is nothing judged"),
        ],
    )
    def test_rows_without(self, row: dict[str, Any], message: str, tmp_path: Path) -> None:
        assert message in self.evaluated([row], tmp_path, "column:score", code=1)

    def test_other_rewards_still_see_the_columns(self, tmp_path: Path) -> None:
        rows = [{"prompt": "p", "completions": ["good", "x"], "labels": [True, False], "ref": [1, 0]}]
        rewards = self.evaluated(rows, tmp_path, "tests.mappings.rewards:has_reference", "column:ref")["rewards"]
        assert [reward["figures"]["accuracy"]["value"] for reward in rewards] == [1.0, 1.0]


class TestScoredColumns:
    def test_not_when_a_run_is_resumed_with_another_name(self, tmp_path: Path) -> None:
        path, out = tmp_path / "own.jsonl", tmp_path / "own.scored.jsonl"
        rows = [{"prompt": "p", "completion": "aaaa", "score": 0.9}, {"prompt": "p", "completion": "boom"}]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        arguments = ["score", "tests.mappings.rewards:flaky", str(path), "--batch-size", "1"]
        assert CliRunner(env={"FLAKY": "1"}).invoke(main, [*arguments, "--column", "reward"]).exit_code == 1
        refused = CliRunner().invoke(main, arguments)
        assert "it already has a column 'score'" in refused.output
        assert not out.exists()

    @pytest.mark.parametrize(
        ("row", "column"),
        [
            ({"prompt": "Q", "completion": "a", "score": 5}, "score"),
            ({"prompt": "Q", "completions": ["a"], "scores": None}, "scores"),
            ({"prompt": "Q", "chosen": "a", "rejected": "b", "rejected_score": 1}, "rejected_score"),
            ({"prompt": "Q", "completion": "a", "score/member/0": 5}, "score"),
        ],
    )
    def test_a_column_is_never_replaced(self, row: dict[str, Any], column: str, tmp_path: Path) -> None:
        path, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
        path.write_text(json.dumps(row) + "\n", encoding="utf-8")
        arguments = ["score", "tests.mappings.rewards:goodness", str(path), "-o", str(out)]
        refused = CliRunner().invoke(main, arguments)
        assert (refused.exit_code, f"it already has a column {column!r}" in refused.output, out.exists()) == (1, True, False)
        assert CliRunner().invoke(main, [*arguments, "--column", "reward"]).exit_code == 0
        (written,) = map(json.loads, out.read_text(encoding="utf-8").splitlines())
        assert row.items() <= written.items()

    def test_no_two_inputs_have_one_output(self, tmp_path: Path) -> None:
        names = ["a.jsonl", "a.json", "a.jsonl.gz", "a.v2.jsonl", "a.parquet", "a.csv", "a.tsv"]
        from rm_plugins.cli.job_options import output_path

        outputs = {output_path(str(tmp_path / name), "train", None, "scored") for name in names}
        outputs |= {output_path(name, split, None, "scored") for name in ("x/a", "y/a", "a") for split in ("train", "test")}
        assert len(outputs) == len(names) + 6
        assert output_path("a.jsonl", "train", None, "scored") == Path("a.scored.jsonl")
