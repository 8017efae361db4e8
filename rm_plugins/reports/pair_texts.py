"""Pairs with their texts: where one reward is wrong by most, and where two rewards differ."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rm_plugins.evaluation.results import Evaluation, FlippedPair, JudgedPair
from rm_plugins.reports.numbers import count, number
from rm_plugins.reports.page import preview, text, unfolding
from rm_plugins.reports.reward_styles import RewardStyle, named, styled

_TEXTS = 500_000
"""Bytes of all pairs of a page, for any number of rewards. A page of two million bytes still opens in a browser and fits into a mail."""


def worst_mistakes(evaluation: Evaluation) -> str:
    """The pairs that each reward has wrong by most, folded; of many rewards, fewer each."""
    shown = [(reward, style) for reward, style in styled(evaluation) if reward.mistakes]
    return "\n".join(
        unfolding(
            style.html + preview(_first_words(reward.mistakes[0])),
            _fitting(map(_mistake, reward.mistakes), _TEXTS // len(shown)),
            kind="mistakes",
            is_open=len(shown) == 1,
        )
        for reward, style in shown
    )


def flipped_pairs(pairs: Sequence[FlippedPair], a: RewardStyle, b: RewardStyle) -> str:
    """Pairs that one of two rewards alone has right, with what each gave."""
    return _fitting((_flipped(flip, a, b) for flip in pairs), _TEXTS // 2)


def _fitting(pairs: Iterable[str], room: int) -> str:
    """As many pairs as there is room for, at least one, and the number of the others."""
    shown: list[str] = []
    left_out = 0
    for pair in pairs:
        room -= len(pair.encode("utf-8", "backslashreplace"))
        if shown and (room < 0 or left_out):
            left_out += 1
        else:
            shown.append(pair)
    if left_out:
        shown.append(f'<p class="how">{count(left_out)} more are in the JSON of the evaluation.</p>')
    return "\n".join(shown)


def _mistake(pair: JudgedPair) -> str:
    summary = f"{_place(pair)} <span>better {number(pair.chosen_reward)}, worse {number(pair.rejected_reward)}</span>"
    better, worse = (f"reward {number(value)}" for value in (pair.chosen_reward, pair.rejected_reward))
    return unfolding(summary + preview(_first_words(pair)), _texts(pair, better, worse), kind="pair")


def _flipped(flip: FlippedPair, a: RewardStyle, b: RewardStyle) -> str:
    pair = flip.pair
    better = f"{a.html} {number(flip.chosen_reward_a)}, {b.html} {number(pair.chosen_reward)}"
    worse = f"{a.html} {number(flip.rejected_reward_a)}, {b.html} {number(pair.rejected_reward)}"
    return unfolding(_place(pair) + preview(_first_words(pair)), _texts(pair, better, worse), kind="pair")


def _first_words(pair: JudgedPair) -> str:
    return pair.prompt or pair.chosen


def _place(pair: JudgedPair) -> str:
    section = f", {named(pair.section)}" if pair.section else ""
    return f"<b>Row {count(pair.row)}</b>{section}"


def _texts(pair: JudgedPair, better: str, worse: str) -> str:
    sides = [
        _text(f"Better answer: {better}, {count(pair.chosen_length)} characters", pair.chosen),
        _text(f"Worse answer: {worse}, {count(pair.rejected_length)} characters", pair.rejected),
    ]
    both = "".join(f"<div>{side}</div>" for side in sides)
    return f'{_text("Prompt", pair.prompt, "sample prompt")}\n<div class="sides">{both}</div>'


def _text(title: str, sample: str, kind: str = "sample") -> str:
    return f'<p class="what">{title}</p><pre class="{kind}" dir="auto">{text(sample)}</pre>'
