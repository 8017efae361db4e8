"""Rankings of several answers at once: which lists cover pairs that are asked, and the ranking that a judge's answer gives."""

from __future__ import annotations

import re
from collections.abc import Sequence

from rm_plugins.comparisons.comparer import Comparison
from rm_plugins.replies import after_reasoning

_MARKED = re.compile(r"\[\[([^\[\]\n]+)\]\]")
_LINE = re.compile(
    r"^[ \t>#*_-]*(?:my |the |final |overall )*(?:answer|order|ranking|verdict)[ \t*_]*(?::|=|\bis\b:?)(.+)$", re.I | re.M
)
_SHOWN = 160


def covering_lists(asked: Sequence[Comparison], k: int) -> list[list[int]]:
    """Lists of at most `k` answers whose pairs, in the order of the list, are questions that are asked; each question is in one list.

    Longer lists come from adding, one by one, answers of which all pairs with the list are still asked.

    >>> covering_lists([Comparison(0, 1), Comparison(0, 2), Comparison(1, 2), Comparison(2, 0)], k=3)
    [[0, 1, 2], [2, 0]]
    """
    left = dict.fromkeys((question.first, question.second) for question in asked)
    lists = []
    while left:
        members = list(next(iter(left)))
        others = dict.fromkeys(player for pair in left for player in pair if player not in members)
        for player in others:
            if len(members) == k:
                break
            place = next((place for place in range(len(members), -1, -1) if _fits(player, place, members, left)), None)
            if place is not None:
                members.insert(place, player)
        for place, first in enumerate(members):
            for second in members[place + 1 :]:
                del left[first, second]
        lists.append(members)
    return lists


def _fits(player: int, place: int, members: Sequence[int], left: dict[tuple[int, int], None]) -> bool:
    before = all((member, player) in left for member in members[:place])
    return before and all((player, member) in left for member in members[place:])


def ranking_in(text: str, labels: Sequence[str]) -> tuple[dict[str, int], str]:
    """The ranking that a text gives after its reasoning, such as ``[[B > A = C]]`` or ``Ranking: B > A = C``.

    Args:
        text: The text, perhaps with reasoning in ``<think>...</think>`` before the answer.
        labels: The labels of the answers; a ranking has each of them once.

    Returns:
        The place of each label, 0 for the best, equal for a tie, and an empty text; or no places and why there is no ranking.

    >>> ranking_in("B is right. [[B > A = C]]", ["A", "B", "C"])
    ({'B': 0, 'A': 1, 'C': 1}, '')
    >>> ranking_in("[[B > A]]", ["A", "B", "C"])[1]
    "the ranking 'B > A' lacks C"
    """
    answer = after_reasoning(text)
    if answer is None:
        return {}, "the reasoning does not end, so there is no answer after it"
    if not answer:
        return {}, f"there is no answer{' after the reasoning' if text.strip() else ''}"
    marked = _MARKED.findall(answer)
    lines = _LINE.findall(_MARKED.sub("", answer))
    rankings: list[dict[str, int]] = []
    problem = ""
    for ranking in [*marked, *lines] or ([answer] if ">" in answer else []):
        places, wrong = _places(ranking, labels)
        if wrong:
            problem = problem or ("" if marked and ranking in lines else wrong)  # a line may also be a sentence
        elif places not in rankings:
            rankings.append(places)
    if len(rankings) > 1:
        return {}, f"the answer has {len(rankings)} different rankings"
    if problem:
        return {}, problem
    if not rankings:
        shown = answer if len(answer) <= _SHOWN else f"...{answer[-_SHOWN:]}"
        return {}, f"the answer has no ranking; [[{' > '.join(labels)}]] in some order was expected, not {shown!r}"
    return rankings[0], ""


def _places(ranking: str, labels: Sequence[str]) -> tuple[dict[str, int], str]:
    shown = ranking.strip(" \t\r*_`.")
    by_folded = {label.casefold(): label for label in labels}
    places: dict[str, int] = {}
    for place, tier in enumerate(shown.split(">")):
        for name in tier.split("="):
            label = by_folded.get(name.strip(" \t\r\"'`*_()[]").casefold())
            if label is None:
                return {}, f"the ranking {shown!r:.100} has {name.strip()!r:.40}, which is not one of {', '.join(labels)}"
            if label in places:
                return {}, f"the ranking {shown!r:.100} has {label} twice"
            places[label] = place
    if lacking := [label for label in labels if label not in places]:
        return {}, f"the ranking {shown!r:.100} lacks {', '.join(lacking)}"
    return places, ""
