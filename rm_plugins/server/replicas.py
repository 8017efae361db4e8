"""The processes of a server that each have the reward: the device of each, and whether it serves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

AUTO = "auto"
"""In the place of a device that was not chosen."""

State: TypeAlias = Literal["starting", "serving", "restarting"]

_STATES: tuple[State, ...] = ("starting", "serving", "restarting")
"""By the byte that is shared."""


@dataclass(frozen=True, slots=True)
class Replica:
    """A process of the server.

    Args:
        number: Its number, from 0.
        device: The device that was chosen for it; ``auto`` where none was.
        state: ``starting`` until it serves, ``restarting`` while the process of its reward is started again.
        restarts: How often it was replaced.
    """

    number: int
    device: str
    state: State = "serving"
    restarts: int = 0


ALONE = (Replica(0, AUTO),)
"""Those of a server with one process."""


class Replicas:
    """The state of all replicas, in memory that the processes of a server share.

    Args:
        context: A context of `multiprocessing`, which creates the shared memory.
        number: The number of replicas.
        devices: The device of each; none where they were not chosen.
    """

    def __init__(self, context: Any, number: int, devices: Sequence[str] = ()) -> None:
        # Without a lock, because a process that is killed while it holds one never releases it; writing a byte or a word is atomic.
        self._states = context.Array("b", number, lock=False)
        self._starts = context.Array("i", number, lock=False)
        self._devices = tuple(devices) or (AUTO,) * number

    def __call__(self) -> tuple[Replica, ...]:
        """All of them."""
        facts = zip(self._devices, self._states, self._starts, strict=True)
        return tuple(
            Replica(number, device, _STATES[state], max(0, starts - 1)) for number, (device, state, starts) in enumerate(facts)
        )

    def device(self, number: int) -> str:
        """The device of a replica."""
        return self._devices[number]

    def starts(self, number: int) -> None:
        """Note that the process of a replica is started."""
        self._states[number] = _STATES.index("starting")
        self._starts[number] += 1

    def becomes(self, number: int, state: State) -> None:
        """Note the state of a replica."""
        self._states[number] = _STATES.index(state)

    def has_started(self, number: int) -> bool:
        """Whether the process of a replica has come to serve."""
        return bool(self._states[number])
