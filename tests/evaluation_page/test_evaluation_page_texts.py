"""What is absent, and texts that mean harm."""

from __future__ import annotations

import math
import re
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from rm_plugins.errors import DataError, MissingDependencyError
from rm_plugins.evaluation.results import Evaluation
from rm_plugins.reports import comparison_page, evaluation_page
from rm_plugins.statistics.intervals import Estimate
from tests.evaluation_samples import evaluation_of

pytest.importorskip("matplotlib", reason="matplotlib, which draws the charts, is not installed")
if TYPE_CHECKING:
    pass
from tests.evaluation_page.conftest import ATTACK, OF_ONE, OF_SEVERAL, Reader, bare


class TestAbsence:
    @pytest.mark.parametrize(
        ("part", "nothing", "sections"),
        [
            ("sections", (), ["sections"]),
            ("by_length", (), ["by_length"]),
            ("distribution", None, ["distribution"]),
            ("calibration", (), ["calibration"]),
            ("length_scatter", None, ["length"]),
            ("formats", (), ["formats"]),
            ("members", None, ["members"]),
            ("best_of_n", None, ["best_of_n"]),
            ("mistakes", (), ["mistakes"]),
            ("suite", None, ["suite"]),
        ],
    )
    def test_what_there_is_not_is_left_out(self, small: Evaluation, part: str, nothing: Any, sections: list[str]) -> None:
        reward = replace(small.rewards[0], **{part: nothing})
        ids = Reader(evaluation_page(replace(small, rewards=(reward,)))).ids
        assert set(OF_ONE) - set(ids) == {*sections, "suite"}

    def test_next_to_nothing(self, three: Evaluation) -> None:
        data = replace(three.data, pairs=0, longer_chosen=math.nan, sections={}, suite="", split="", formats={})
        found = Reader(evaluation_page(replace(three, rewards=tuple(map(bare, three.rewards)), differences=(), data=data)))
        assert set(found.ids) & {*OF_SEVERAL} == {"evaluated"}
        assert found.text().count("Nothing stands out.") == 3
        assert "svg" not in found.tags

    def test_what_could_not_be_computed_is_a_dash(self, two: Evaluation) -> None:
        unknown = Estimate(math.nan, math.nan, math.nan)
        reward = two.rewards[1]
        reward = replace(
            reward,
            figures={name: unknown for name in reward.figures},
            sections=tuple(replace(section, accuracy=unknown, longer_chosen=math.nan) for section in reward.sections),
            by_length=tuple(replace(part, low=-math.inf, accuracy=unknown) for part in reward.by_length),
            formats=tuple(replace(bias, preferred=math.nan, chosen=math.nan, correlation=math.nan) for bias in reward.formats),
        )
        difference = replace(two.differences[0], accuracy=unknown, p_value=math.nan)
        text = Reader(evaluation_page(replace(two, rewards=(two.rewards[0], reward), differences=(difference,)))).text()
        assert text.count("–") > 20
        assert not re.search(r"\b(nan|inf|None)\b", text)
        assert "unclear" in text

    def test_a_comparison_is_of_two(self, three: Evaluation, two: Evaluation) -> None:
        with pytest.raises(DataError, match="3 rewards and 2 differences"):
            comparison_page(three)
        with pytest.raises(DataError, match="2 rewards and 0 differences"):
            comparison_page(replace(two, differences=()))

    def test_without_matplotlib(self, small: Evaluation, monkeypatch: pytest.MonkeyPatch) -> None:
        blocked: Any = None
        monkeypatch.setitem(sys.modules, "matplotlib", blocked)
        with pytest.raises(MissingDependencyError, match=r"pip install 'rm-plugins\[report\]'"):
            evaluation_page(small)


class TestHostileTexts:
    def test_nothing_is_read_as_markup(self, hostile: Evaluation, hostile_page: str, two: Evaluation) -> None:
        pairs = tuple(replace(found, pair=hostile.rewards[0].mistakes[0]) for found in two.differences[0].won)
        difference = replace(hostile.differences[0], won=pairs, lost=pairs)
        compared = replace(hostile, rewards=hostile.rewards[:2], differences=(difference,))
        for shown in (hostile_page, comparison_page(compared)):
            found = Reader(shown)
            assert found.open == [] and not {"script", "img"} & set(found.tags)
            assert not any(name.startswith("on") for _, given in found.attributes for name in given)
            assert ATTACK in found.text() and "half \\ud800 a pair" in found.text()
            assert len(found.ids) == len(set(found.ids))
            assert not set("\x00\x1b") & set(shown)
            shown.encode()
        assert any("svg" in where and data.strip().startswith("$x^2_$") for where, data in Reader(hostile_page).texts)

    def test_more_rewards_than_colours_and_many_sections(self) -> None:
        names = [f"reward-{number}" for number in range(9)]
        evaluation = evaluation_of(names, sections=[f"section {number}" for number in range(40)])
        light = tuple(replace(bare(reward), sections=reward.sections, figures=reward.figures) for reward in evaluation.rewards)
        found = Reader(evaluation_page(replace(evaluation, rewards=light)))
        assert found.tags.count("svg") == 2
        assert all(found.text().count(f"section {number} ") for number in range(40))
