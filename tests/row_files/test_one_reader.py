"""``data check``, ``train``, ``score`` and ``evaluate`` read one file alike, whatever is in it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import rm_plugins as rm
from rm_plugins.data.check import DataCheck
from rm_plugins.data.row_files import read_rows
from rm_plugins.data.scored_rows import ScoredRow
from rm_plugins.evaluation.judged_rows import JudgedRows, RowCollector
from rm_plugins.jobs.ranking import scored_prompts
from rm_plugins.jobs.scored_rows import ScoringJob
from rm_plugins.rendering.render import Renderer
from rm_plugins.rendering.rendering import Rendering
from rm_plugins.scores import Scores
from rm_plugins_trl.reward_training.train_data import TrainScriptArguments, training_data
from rm_plugins_trl.reward_training.training_rows import Tokenization, looked_at, texts_of
from tests.conftest import make_tokenizer

USER, FOUR, FIVE = (
    {"role": role, "content": text} for role, text in (("user", "2+2?"), ("assistant", "4"), ("assistant", "5"))
)
CALL = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": {"x": 1}}}]}


class Recording(rm.Provider):
    """Gives the length of each completion, and keeps what it was given."""

    name = "recording"

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[rm.Sample] = []

    def score_batch(self, samples: Any) -> Scores:
        self.seen.extend(samples)
        return Scores(np.array([float(len(sample.completion)) for sample in samples]))


# --- What is in a file ----------------------------------------------------------------------------------------------------

words = st.sampled_from(["a", "bb", "is it so?", "4", "é\n"])
turns = st.sampled_from([[USER], [{"role": "system", "content": "Be brief."}, USER]])
unused: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {},
    optional={"id": st.sampled_from([1, "x", 2**70, None, True, [1]]), "note": st.sampled_from([None, {"a": 1}, {"b": [2]}])},
)
beside = st.fixed_dictionaries({}, optional={"weight": st.sampled_from([0.5, 2, [2], None]), "tools": st.just(None)})
prompts = st.fixed_dictionaries({}, optional={"prompt": st.one_of(words, st.none())})


def with_prompt(texts: Mapping[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.builds(lambda prompt, given: {**prompt, **given}, prompts, st.fixed_dictionaries(dict(texts)))


judged = st.one_of(
    st.builds(
        lambda row, also: {**row, **also},
        with_prompt({"chosen": words, "rejected": words}),
        st.sampled_from(
            [
                *({}, {"tie": True}, {"tie": False, "margin": 0.5}, {"margin": [0.5], "weight": [2]}, {"completions": None}),
                {"completions": ["a", "b"], "scores": [1, 2]},
                *(
                    {"completions": ["a"], "best": 0},
                    {"completion": "a", "label": True},
                    {"messages": [USER, FOUR], "score": 1},
                ),
            ]
        ),
    ),
    st.fixed_dictionaries(
        {
            "prompt": st.just([{"role": "user", "content": [{"type": "text", "text": part} for part in ("2+", "2?")]}]),
            "chosen": st.just([{"role": "assistant", "content": [{"type": "text", "text": "4"}]}]),
            "rejected": st.just([FIVE]),
        }
    ),
    st.fixed_dictionaries({"prompt": turns, "chosen": st.just([FOUR]), "rejected": st.sampled_from([[FIVE], [CALL]])}),
    st.just({"chosen": [USER, FOUR], "rejected": [USER, FIVE], "prompt": None}),
    st.builds(
        lambda row, verdict: {**row, **verdict},
        with_prompt({"completions": st.lists(words, min_size=2, max_size=2)}),
        st.sampled_from(
            [
                *({"ranks": [1, 2]}, {"ranks": [1, 1]}, {"scores": [1, None]}, {"scores": [{"x": 1}, {"x": 2, "y": 1}]}),
                {"scores": [{"x": 1, "y": None}, {"x": 2, "y": None}]},
                {"best": 1},
                {"labels": [True, 0]},
                {"chosen": None, "best": 0},
            ]
        ),
    ),
    st.builds(
        lambda row, verdict: {**row, **verdict},
        with_prompt({"completion": words}),
        st.sampled_from(
            [
                {"label": True},
                {"label": 0},
                {"label": [1]},
                {"score": 0.5},
                {"score": [0.5]},
                {"scores": {"z": 1}},
                {"label": 1, "completions": None},
            ]
        ),
    ),
    st.builds(
        lambda label, prompt: {"messages": [USER, FOUR], "label": label, **prompt}, st.booleans(), st.just({"prompt": None})
    ),
)
rows_of_a_file = st.lists(
    st.builds(lambda row, also, other: {**row, **also, **other}, judged, beside, unused), min_size=1, max_size=6
)


# --- The readers ----------------------------------------------------------------------------------------------------------


def written(rows: list[dict[str, Any]], form: str, folder: Path) -> str:
    """The rows in a file of one of the forms that keep them as they are."""
    path = folder / ("a.json" if form.startswith("array") else "a.jsonl")
    text = (
        json.dumps(rows, indent=1 if form == "array in lines" else None)
        if form.startswith("array")
        else "\n".join(map(json.dumps, rows))
    )
    path.write_text(text, encoding="utf-8-sig" if form == "with a mark" else "utf-8")
    return str(path)


def checked(path: str) -> Any:
    check = DataCheck(compares_sources=False)
    check.begin(path)
    for row in read_rows(path, on_bad_line=check.refuse):
        check.add(row)
    return check.report()


def training_dataset(path: str) -> Any:
    arguments, mixture = SimpleNamespace(eval_strategy="no"), SimpleNamespace(datasets=[])
    return training_data(TrainScriptArguments(dataset_name=path), arguments, mixture)[0]


def trained_on(path: str) -> Iterator[dict[str, Any]]:
    """What ``rm-plugins train`` trains on."""
    dataset = training_dataset(path)
    attributes, _ = looked_at(dataset)
    tokenizer = make_tokenizer()
    tokenize = Tokenization(Renderer(tokenizer, Rendering.default(tokenizer)), "train", attributes)
    yield from dataset.map(tokenize, batched=True, with_indices=True, remove_columns=dataset.column_names)


def evaluated(path: str) -> tuple[JudgedRows, list[rm.Sample], list[float]]:
    collector, weights = RowCollector(), []
    samples: list[rm.Sample] = []
    for number, row in enumerate(read_rows(path), start=1):
        judgement = collector.judged(row, f"row {number}")
        collector.add(row, judgement)
        samples += judgement.samples
        weights.append(judgement.weight)
    return collector.collected(), samples, weights


def scored(path: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[rm.Sample]:
    recording = Recording()
    monkeypatch.setattr(rm, "load", lambda spec: recording)
    ScoringJob("recording", path, "train", folder / "out.jsonl", True, column="reward").write(3)
    return recording.seen


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(rows=rows_of_a_file, form=st.sampled_from(["lines", "with a mark", "array", "array in lines"]))
def test_every_command_reads_the_same(
    rows: list[dict[str, Any]], form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(rows, form, tmp_path)
    report = checked(path)
    (source,) = report.sources
    assert source.rows == len(rows)
    assert not [problem for problem in report.problems if problem.kind == "malformed"]
    trained = list(trained_on(path))
    judgements, samples, weights = evaluated(path)
    assert len(trained) == len(judgements.cluster) == source.rows
    assert sum(len(texts_of(row)) for row in trained) == len(judgements.row) == source.samples
    assert sum(len(row["pairs"]) for row in trained) == len(judgements.pairs) == source.pairs
    assert sum(len(row["ties"]) for row in trained) == source.ties
    assert [row["weight"] for row in trained] == pytest.approx(weights)
    assert [sample.key for sample in scored(path, tmp_path, monkeypatch)] == [sample.key for sample in samples]
    assert checked(path).length_bias == report.length_bias


@pytest.mark.parametrize(
    "rows",
    [
        [{"prompt": "q ", "chosen": "a", "rejected": "b"}, {"prompt": "q ", "chosen": "a", "rejected": "b", "tie": True}],
        [
            {"prompt": "q ", "chosen": "a", "rejected": "b"},
            {"prompt": "q", "chosen": "a", "rejected": "b", "margin": 2, "weight": 3},
        ],
        [{"chosen": "a", "rejected": "b"}, {"prompt": "q ", "chosen": "a", "rejected": "b"}],
        [{"prompt": "q", "completion": "a", "label": True}, {"prompt": "q", "completion": "a", "label": 0}],
        [{"prompt": "q", "chosen": "a", "rejected": "b"}, {"prompt": [USER], "chosen": [FOUR], "rejected": [FIVE]}],
        [{"prompt": "q", "chosen": "a", "rejected": "b", "id": value} for value in (1, "x", 2**70)],
    ],
)
def test_a_key_or_a_type_that_the_first_row_lacks(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    path = written(rows, "lines", tmp_path)
    trained = list(trained_on(path))
    _, samples, weights = evaluated(path)
    (source,) = checked(path).sources
    assert (sum(len(row["pairs"]) for row in trained), sum(len(row["ties"]) for row in trained)) == (source.pairs, source.ties)
    assert [row["weight"] for row in trained] == weights
    assert [margin for row in trained for margin in row["margins"]] == [row["margin"] for row in rows if "margin" in row]
    assert sum(len(texts_of(row)) for row in trained) == len(samples)


def test_tool_calls_keep_their_own_arguments(tmp_path: Path) -> None:
    other = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "g", "arguments": {"y": 2}}}]}
    rows = [{"prompt": [USER], "chosen": [call], "rejected": [FIVE]} for call in (CALL, other)]
    path = written(rows, "lines", tmp_path)
    dataset = training_dataset(path)
    assert [json.loads(row["row_json"]) for row in dataset] == list(read_rows(path)) == rows


@pytest.mark.parametrize(
    ("row", "columns"),
    [
        ({"prompt": "q", "completion": "a", "completions": None}, {"score"}),
        ({"prompt": "q", "completion": "a", "chosen": None, "rejected": None}, {"score"}),
        ({"prompt": None, "messages": [USER, FOUR]}, {"score"}),
        ({"prompt": "q", "completions": ["a", "b"], "completion": None}, {"scores"}),
        ({"prompt": None, "chosen": "a", "rejected": "b", "messages": None}, {"chosen_score", "rejected_score"}),
    ],
)
def test_a_null_column_is_an_absent_column(
    row: dict[str, Any], columns: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written([row], "lines", tmp_path)
    monkeypatch.setattr(rm, "load", lambda spec: Recording())
    ScoringJob("recording", path, "train", tmp_path / "out.jsonl", True).write(1)
    (out,) = read_rows(str(tmp_path / "out.jsonl"))
    assert out.keys() - row.keys() == columns
    ranked = [ScoredRow(row, [1.0] * (1 if columns == {"score"} else 2), {})]
    assert len(scored_prompts(ranked)[0].completions) == len(ranked[0].scores)


@pytest.mark.parametrize("ids", [{"chosen_ids": "r17", "rejected_ids": "r18"}, {"chosen_ids": None, "rejected_ids": None}])
def test_columns_called_like_tokenized_ones_are_columns(ids: dict[str, Any], tmp_path: Path) -> None:
    path = written([{"prompt": "2+2?", "chosen": "4", "rejected": "five", "tie": True, **ids}], "lines", tmp_path)
    (row,) = trained_on(path)
    assert (len(row["pairs"]), len(row["ties"])) == (0, 1)
    assert all(texts_of(row))
