"""What a run saw of a peer, as JSON in ``build/peers/``; `table` makes the table in the docs of it."""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

FOLDER = Path(__file__).parents[2] / "build" / "peers"
TOLERANCE = 1e-4


def _today() -> str:
    return datetime.date.today().isoformat()


@dataclass(frozen=True, kw_only=True)
class Fact:
    """One comparison with a peer.

    Args:
        peer: The client or server, by the name of its project.
        version: Its version.
        direction: Who asks whom.
        model: Which of the models.
        compared: What was compared with what, in a few words.
        difference: The largest difference of two numbers that should be one.
        count: How many numbers there were.
        date: The day of the run.
    """

    peer: str
    version: str
    direction: Literal["its client, our server", "our client, its server"]
    model: Literal["decoder", "cross-encoder", "judge", "rule"]
    compared: str
    difference: float
    count: int
    date: str = field(default_factory=_today)

    def write(self) -> None:
        """Keep it for the table."""
        FOLDER.mkdir(parents=True, exist_ok=True)
        name = re.sub(r"[^a-z0-9]+", "-", f"{self.peer} {self.direction} {self.model} {self.compared}".lower()).strip("-")
        (FOLDER / f"{name}.json").write_text(json.dumps(asdict(self), indent=1))


def read() -> list[Fact]:
    """What the last runs saw."""
    return [Fact(**json.loads(path.read_text())) for path in sorted(FOLDER.glob("*.json"))]


def check(got: ArrayLike, expected: ArrayLike, *, tolerance: float = TOLERANCE, **fact: object) -> None:
    """Compare numbers, write down how far apart they are at most, and fail where that is too far.

    Args:
        got: What came through the peer.
        expected: What the local provider or the original says.
        tolerance: The largest difference that is allowed.
        fact: The peer, its version and so on, as `Fact` has them.
    """
    one, other = np.asarray(got, dtype=float), np.asarray(expected, dtype=float)
    assert one.shape == other.shape, f"{one.shape} numbers came and {other.shape} are right"
    assert other.std() > 0.01, "the numbers are all the same: nothing would be noticed"
    differences = np.abs(one - other)
    largest = float(differences.max())
    Fact(difference=largest, count=one.size, **fact).write()  # type: ignore[arg-type]
    assert largest <= tolerance, f"row {int(differences.argmax())} is {largest:.3g} off: {_first(one)} and not {_first(other)}"


def _first(values: Iterable[float]) -> str:
    return ", ".join(f"{value:.5f}" for value in [*values][:5])
