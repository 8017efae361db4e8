"""How a script with a real client is asked: a JSON object a line on its input, a JSON object a line on its output.

A script has one function for each way of asking, which takes ``url``, ``model`` and what is to be scored as keywords and returns
scores in the order of what it was given. What the client raises goes back by its class, so that tests can say what that must be.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Any


def talk(distribution: str, *ways: Callable[..., Sequence[float]]) -> None:
    """Answer what is asked until the input ends.

    Args:
        distribution: Whose version is told, first of all.
        ways: What can be asked, by the functions' names.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a client prints is not an answer
    functions = {way.__name__: way for way in ways}
    print(json.dumps({"version": version(distribution), "ways": [*functions]}), file=answers, flush=True)
    for line in sys.stdin:
        question = json.loads(line)
        try:
            answer: dict[str, Any] = {"scores": [float(score) for score in functions[question.pop("way")](**question)]}
        except Exception as error:
            answer = {"error": type(error).__name__, "status": _status(error), "message": str(error)[:2000]}
        print(json.dumps(answer), file=answers, flush=True)


def in_order(pairs: Sequence[tuple[int, float]], count: int) -> list[float]:
    """The scores of a ranking by the places of its documents; a document that is not in it is an error."""
    by_place = dict(pairs)
    if sorted(by_place) != list(range(count)) or len(pairs) != count:
        raise ValueError(f"{count} documents were asked about, and the ranking has {sorted(place for place, _ in pairs)}")
    if [score for _, score in pairs] != sorted(by_place.values(), reverse=True):
        raise ValueError(f"the best does not come first: {[score for _, score in pairs]}")
    return [by_place[place] for place in range(count)]


def _status(error: BaseException | None) -> int | None:
    while error is not None:
        for holder in (error, getattr(error, "response", None)):
            for name in ("status_code", "status", "http_status"):
                value = getattr(holder, name, None)
                value = value() if callable(value) else value
                if str(value).isdigit():
                    return int(str(value))
        error = error.__cause__ or error.__context__
    return None
