"""How each reward of an evaluation is drawn: one colour and one shape throughout a page, for readers who tell colours apart and others."""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from rm_plugins.evaluation.results import Evaluation, RewardResult
from rm_plugins.reports.charts import COLOURS
from rm_plugins.reports.page import shortened, text

_K = TypeVar("_K", bound=Hashable)
_V = TypeVar("_V")

_SHAPES = (("●", "o"), ("■", "s"), ("▲", "^"), ("◆", "D"), ("▼", "v"), ("✚", "P"), ("✖", "X"), ("★", "*"))
_BRIEF = 20  # characters of a name that is not broken into lines
_LONGEST = 48  # characters of a name, but where it is written out


@dataclass(frozen=True, slots=True)
class RewardStyle:
    """How a reward is drawn.

    Args:
        name: What it is called.
        colour: As in CSS.
        sign: Its shape as a character.
        marker: Its shape as matplotlib names it.
    """

    name: str
    colour: str
    sign: str
    marker: str

    @property
    def html(self) -> str:
        """Its shape in its colour and its name, which stays apart from the text around it in any script."""
        mark = f'<span class="mark" style="color:{self.colour}" aria-hidden="true">{self.sign}</span>'
        kind = "reward brief" if len(self.name) <= _BRIEF else "reward"
        return f'<span class="{kind}" title="{text(self.name)}">{mark}<bdi>{text(short(self.name))}</bdi></span>'


def styled(evaluation: Evaluation) -> list[tuple[RewardResult, RewardStyle]]:
    """The rewards with how each is drawn; after eight, colours and shapes repeat."""
    return [
        (reward, RewardStyle(reward.name, COLOURS[place % len(COLOURS)], *_SHAPES[place % len(_SHAPES)]))
        for place, reward in enumerate(evaluation.rewards)
    ]


def side_by_side(mappings: Sequence[Mapping[_K, _V]]) -> dict[_K, list[_V | None]]:
    """What each reward's mapping has under each key that any of them has.

    >>> side_by_side([{"chat": 1, "code": 2}, {"code": 3}])
    {'chat': [1, None], 'code': [2, 3]}
    """
    keys = dict.fromkeys(key for mapping in mappings for key in mapping)
    return {key: [mapping.get(key) for mapping in mappings] for key in keys}


def legend(styles: Iterable[RewardStyle], *, mark: str = "") -> str:
    """What the shapes of a chart stand for.

    Args:
        styles: Of its rewards.
        mark: What the line across each row stands for; empty where there is none.
    """
    shown = [style.html for style in styles]
    if mark:
        shown.append(f'<span class="reward"><span class="mark" aria-hidden="true">┃</span>{text(mark)}</span>')
    return f'<ul class="legend" aria-label="Legend">{"".join(f"<li>{entry}</li>" for entry in shown)}</ul>'


def named(name: str) -> str:
    """A name as HTML, cut where it is long; the whole name is shown to those who point at it."""
    shown = re.sub("[/_.]", r"\g<0><wbr>", text(short(name)))  # where a line may end
    return f"<bdi>{shown}</bdi>" if len(name) <= _LONGEST else f'<bdi title="{text(name)}">{shown}</bdi>'


def short(name: str) -> str:
    """A name, cut in the middle where it is long."""
    return shortened(name, _LONGEST)
