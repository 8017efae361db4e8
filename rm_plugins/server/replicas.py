"""What a server tells of the processes that each have the reward: the device of each, and whether it serves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

AUTO = "auto"
"""In the place of a device that was not chosen."""

State: TypeAlias = Literal["starting", "serving", "restarting"]

_STATES: tuple[State, ...] = ("starting", "serving", "restarting")
"""By the byte that is shared."""


@dataclass(frozen=True, slots=True)
class Replica:
    """A process that has the reward.

    Args:
        number: Its number, from 0.
        device: The device that was chosen for it; ``auto`` where none was.
        state: ``starting`` until it serves, ``restarting`` while the process of its reward is started again.
        restarts: How often it was replaced.
    """

    number: int = 0
    device: str = AUTO
    state: State = "serving"
    restarts: int = 0


class Workers:
    """The state of all workers of a server, in memory that they share.

    Args:
        context: A context of `multiprocessing`, which creates the shared memory.
        number: The number of workers.
    """

    def __init__(self, context: Any, number: int) -> None:
        # Without a lock, because a process that is killed while it holds one never releases it; writing a byte or a word is atomic.
        self._states = context.Array("b", number, lock=False)
        self._starts = context.Array("i", number, lock=False)

    def __call__(self) -> tuple[Replica, ...]:
        """All of them."""
        facts = zip(self._states, self._starts, strict=True)
        return tuple(Replica(number, AUTO, _STATES[state], max(0, starts - 1)) for number, (state, starts) in enumerate(facts))

    def starts(self, number: int) -> None:
        """Note that a worker is started."""
        self._states[number] = _STATES.index("starting")
        self._starts[number] += 1

    def becomes(self, number: int, state: State) -> None:
        """Note the state of a worker."""
        self._states[number] = _STATES.index(state)

    def has_started(self, number: int) -> bool:
        """Whether a worker has come to serve."""
        return bool(self._states[number])
