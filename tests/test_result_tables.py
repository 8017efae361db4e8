"""Evaluations, comparisons and benchmarks' results as tables: in a notebook, in a terminal and as data frames."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest

from rm_plugins.errors import MissingDependencyError
from rm_plugins.evaluation.results import Evaluation
from rm_plugins.result_table import ShownAsTable
from tests.evaluation_samples import evaluation_of

ATTACK = "<script>alert('x')</script>\x1b[2J"


@pytest.fixture(scope="module")
def two() -> Evaluation:
    return evaluation_of(("chars", "helpful-7b"))


def results_of(evaluation: Evaluation) -> list[ShownAsTable]:
    suites = [reward.suite for reward in evaluation.rewards if reward.suite is not None]
    return [evaluation, *evaluation.rewards, *evaluation.differences, *suites]


def test_a_notebook_shows_figures_findings_and_differences(two: Evaluation) -> None:
    shown = two._repr_html_()
    first = two.rewards[0]
    assert f"<td>Accuracy</td><td>{first.figures['accuracy']:.1%}</td>" in shown
    assert first.findings[0].lead in shown
    assert two.differences[0].sentence in shown
    assert {"chars", "helpful-7b"} <= {part.partition("<")[0] for part in shown.split('scope="col">')}


def test_no_name_is_read_as_html_or_obeyed_by_a_terminal(two: Evaluation) -> None:
    rewards = tuple(
        replace(reward, name=ATTACK, findings=(replace(reward.findings[0], text=ATTACK),)) for reward in two.rewards
    )
    difference = replace(two.differences[0], a=ATTACK, b=ATTACK, sections={ATTACK: two.differences[0].accuracy})
    hostile = replace(two, rewards=rewards, differences=(difference,), data=replace(two.data, source=ATTACK, suite=""))
    suites = [replace(suite, name=ATTACK, rule=ATTACK) for suite in (rewards[0].suite,) if suite is not None]
    for result in [*results_of(hostile), *suites]:
        assert "<script" not in result._repr_html_()
        assert "\x1b" not in repr(result) + result._repr_html_()


def test_a_terminal_shows_a_short_table(two: Evaluation) -> None:
    for result in results_of(two):
        assert max(map(len, repr(result).splitlines())) < 800
        assert len(repr(result)) < 8_000
    lines = repr(two).splitlines()
    assert lines[1].split() == ["Figure", "chars", "helpful-7b"]
    assert any(line.startswith("Accuracy ") for line in lines)


def test_data_frames_have_the_numbers(two: Evaluation) -> None:
    pandas = pytest.importorskip("pandas")
    frame = two.to_pandas()
    assert list(frame.columns) == ["reward", "figure", "value", "low", "high"]
    for reward in two.rewards:
        accuracy = frame[(frame.reward == reward.name) & (frame.figure == "accuracy")].iloc[0]
        assert (accuracy.value, accuracy.low, accuracy.high) == (
            reward.figures["accuracy"].value,
            reward.figures["accuracy"].low,
            reward.figures["accuracy"].high,
        )
        assert len(reward.to_pandas()) == len(reward.figures)
    difference = two.differences[0]
    assert difference.to_pandas().set_index("section").value.to_dict() == {
        "all": difference.accuracy.value,
        **{name: part.value for name, part in difference.sections.items()},
    }
    suite = two.rewards[0].suite
    assert suite is not None
    assert suite.to_pandas().score.tolist() == pytest.approx(
        [suite.score, *(part.score for part in suite.sections)], nan_ok=True
    )
    assert all(isinstance(result.to_pandas(), pandas.DataFrame) for result in results_of(two))


def test_without_pandas_the_error_says_what_to_install(two: Evaluation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(MissingDependencyError, match=r"Evaluation\.to_pandas needs the package pandas: pip install pandas"):
        two.to_pandas()
