"""Scores: what they hold, and their parts."""

from __future__ import annotations

import sys

import numpy as np
import pytest

import rm_plugins as rm
from rm_plugins.errors import MissingDependencyError, ScoringError
from rm_plugins.scores import FloatArray, parts_of_columns


class TestScores:
    def test_values_and_details_become_float64(self) -> None:
        scores = rm.Scores([1, 2], {"std": [0, 1]})  # type: ignore[arg-type, dict-item]
        assert scores.values.dtype == scores.details["std"].dtype == np.float64
        assert len(scores) == 2

    def test_nan_abstains(self) -> None:
        assert rm.Scores(np.array([0.0, np.nan])).abstained.tolist() == [False, True]

    def test_shapes_are_checked(self) -> None:
        with pytest.raises(ScoringError, match=r"\[N\]; got an array of shape \(2, 1\)"):
            rm.Scores(np.zeros((2, 1)))
        with pytest.raises(ScoringError, match=r"detail 'std' has shape \(3,\); \(2,\) was expected"):
            rm.Scores(np.zeros(2), {"std": np.zeros(3)})

    def test_scattering_abstains_elsewhere(self) -> None:
        scores = rm.Scores(np.array([1.0, 2.0]), {"std": np.array([3.0, 4.0])}).scattered([2, 0], 4)
        np.testing.assert_array_equal(scores.values, [2, np.nan, 1, np.nan])
        np.testing.assert_array_equal(scores.details["std"], [4, np.nan, 3, np.nan])


class TestShown:
    SCORES = rm.Scores(
        np.array([1.0, np.nan, np.nan]),
        {"<b>": np.array([0.5, 1.5, np.nan])},
        errors={2: ScoringError("no <model>")},
        parts={"0": rm.Scores(np.arange(3.0), kind="member")},
    )

    def test_as_text(self) -> None:
        assert (
            repr(self.SCORES)
            == str(self.SCORES)
            == "Scores([1, nan, nan], abstained=1, failed=1, parts=['0'], details=['<b>'])"
        )
        assert repr(rm.Scores(np.arange(1000.0))) == "Scores([0, 1, 2, 3, 4, 5, ...], samples=1000)"
        assert repr(rm.Scores(np.empty(0))) == "Scores([])"

    def test_as_text_has_the_first_names_only(self) -> None:
        columns = {f"criterion/{number}": np.zeros(1) for number in range(12)}
        parts = {name: rm.Scores(column) for name, column in columns.items()}
        shown = "['criterion/0', 'criterion/1', 'criterion/2', ...]"
        assert repr(rm.Scores(np.zeros(1), columns, parts=parts)) == f"Scores([0], parts={shown}, details={shown})"

    def test_as_a_table_in_notebooks(self) -> None:
        html = self.SCORES._repr_html_()
        titles = ("", "score", "member/0", "&lt;b&gt;", "error")
        assert "".join(f'<th scope="col">{title}</th>' for title in titles) in html
        assert "<tr><td>2</td><td></td><td>2</td><td></td><td>no &lt;model&gt;</td></tr>" in html
        long = rm.Scores(np.arange(1000.0))._repr_html_()
        assert long.count("<tr>") == 22
        assert "… 980 more rows" in long

    def test_as_a_data_frame(self) -> None:
        frame = self.SCORES.to_pandas()
        assert list(frame.columns) == ["score", "member/0", "<b>", "error"]
        assert frame["error"].tolist() == [None, None, "no <model>"]
        np.testing.assert_array_equal(frame["score"], self.SCORES.values)
        assert len(rm.Scores(np.empty(0)).to_pandas()) == 0

    def test_without_pandas(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "pandas", None)
        with pytest.raises(MissingDependencyError, match="pip install pandas"):
            self.SCORES.to_pandas()


def array(*values: float) -> FloatArray:
    return np.array(values, dtype=np.float64)


def test_parts_carry_everything_and_are_named_at_the_edge() -> None:
    inner = rm.Scores(array(1, 2), {"std": array(0.1, 0.2)}, kind="member")
    scores = rm.Scores(
        array(1, np.nan), {"spread": array(3, 4)}, errors={1: ScoringError("no")}, parts={"0": inner, "gate": inner}
    )
    assert list(scores.columns) == ["member/0", "member/gate", "spread", "member/0/std", "member/gate/std"]
    picked = scores.rows([1, 0])
    assert (sorted(picked.errors), picked.parts["0"].values.tolist()) == ([0], [2.0, 1.0])
    spread = scores.scattered([2, 0], 4)
    assert (sorted(spread.errors), spread.failed.tolist()) == ([0], [True, False, False, False])
    np.testing.assert_array_equal(spread.parts["0"].details["std"], [0.2, np.nan, 0.1, np.nan])
    with pytest.raises(ScoringError, match="Row 2 has an error, but there are only 2 samples"):
        rm.Scores(array(1, 2), errors={2: ScoringError("no")})
    with pytest.raises(ScoringError, match="The part '0' has 2 scores; 1 were expected"):
        rm.Scores(array(1), parts={"0": inner})
    assert np.isnan(rm.Scores(array(5), errors={0: ScoringError("no")}).values[0])


def test_what_was_written_out_is_read_back() -> None:
    """Members become parts again, however deep; other names stay details."""
    inner = rm.Scores(np.array([3.0]), {"std": np.array([0.5])}, kind="member")
    member = rm.Scores(np.array([1.0]), {"raw": np.array([2.0])}, parts={"1": inner}, kind="member")
    scores = rm.Scores(np.array([0.0]), {"std": np.array([9.0]), "member/5/raw": np.array([7.0])}, parts={"0": member})
    details, parts = parts_of_columns(scores.columns)
    read = rm.Scores(scores.values, details, parts=parts)
    assert read.columns == scores.columns and list(read.columns) == list(scores.columns)
    assert list(read.details) == ["std", "member/5/raw"], "there is no member 5"
    assert list(read.members) == list(scores.members) == ["member/0"]
    assert list(read.parts["0"].members) == ["member/1"]
