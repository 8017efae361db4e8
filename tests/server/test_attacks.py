"""The attacks of `tests.attacks`, each for a moment."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.attacks.attacks import ATTACKS, Attack, run

LEFT_OUT = (
    "a header's name",
    "a method",
    "empty objects",
    "objects in objects",
    "numbers",
    "short texts",
    "a trailer",
    "half of a head, from",
    "as many lists",
    "lists in UTF-16",
)
"""They are near to others; `python -m tests.attacks` has them all."""


@pytest.mark.parametrize(
    "attack", [one for one in ATTACKS if not one.name.startswith(LEFT_OUT)], ids=lambda attack: attack.name
)
def test_a_server_keeps_its_promises_under(attack: Attack, tmp_path: Path) -> None:
    seen, met = run(attack, tmp_path, seconds=0.5)
    assert not seen.broken, met
