"""The attacks of `tests.attacks`, each for a moment; those that leave the reward alone have one server together."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.attacks.attacks import ATTACKS, Attack, run
from tests.attacks.watching import WatchedServer

PLAIN = "rule.yaml"


def together(attacks: list[Attack]) -> Attack:
    """Attacks that follow each other on one server."""

    def deed(server: WatchedServer, seconds: float) -> str:
        return "\n".join(f"{attack.name}: {attack.deed(server, seconds)}" for attack in attacks)

    return replace(attacks[0], name=f"{attacks[0].name} and {len(attacks) - 1} others", deed=deed)


def short_attacks() -> Iterator[Attack]:
    alike: dict[object, list[Attack]] = defaultdict(list)
    for attack in ATTACKS:
        if attack.spec == PLAIN:
            alike[attack.descriptors, attack.stated].append(attack)
        else:
            yield attack
    yield from map(together, alike.values())


@pytest.mark.parametrize("attack", [*short_attacks()], ids=lambda attack: attack.name)
def test_a_server_keeps_its_promises_under(attack: Attack, tmp_path: Path) -> None:
    seen, met = run(attack, tmp_path, seconds=0.3)
    assert not seen.broken, met
