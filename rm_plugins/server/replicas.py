"""What a server tells of the processes that each have the reward: the device of each, and whether it serves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from rm_plugins.devices import environment_of

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
        restarts: How often it was replaced, or with ``--workers``, it or the process of its reward.
    """

    number: int = 0
    device: str = AUTO
    state: State = "serving"
    restarts: int = 0


@dataclass(eq=False, slots=True)
class Place:
    """Where the process of a reward runs.

    Args:
        number: Its number among the processes of the reward, from 0.
        processes: The number of these processes.
        device: The only accelerator that it sees, or ``cpu``; ``auto`` leaves the choice to the reward.
        restarts: How often a process was replaced here. A reward that is loaded again continues the count.
    """

    number: int = 0
    processes: int = 1
    device: str = AUTO
    restarts: int = 0

    @classmethod
    def on(cls, devices: Sequence[str]) -> tuple[Place, ...]:
        """A place on each device."""
        return tuple(cls(number, len(devices), device) for number, device in enumerate(devices))

    def __str__(self) -> str:
        return "" if self.device == AUTO else f" (replica {self.number} on {self.device})"

    @property
    def variables(self) -> Mapping[str, str]:
        """The environment variables of the process."""
        return {} if self.device == AUTO else environment_of(self.device, self.processes)


class Workers:
    """The state of all workers of a server, in memory that they share.

    Args:
        context: A context of `multiprocessing`, which creates the shared memory.
        number: The number of workers.
    """

    def __init__(self, context: Any, number: int) -> None:
        # Without a lock, because a process that is killed while it holds one never releases it; writing a byte or a word is atomic.
        self._states = context.Array("b", number, lock=False)
        self._starts = context.Array("i", number, lock=False)  # written by their parent
        self._rewards = context.Array("i", number, lock=False)  # how often the process of a worker's reward was replaced

    def __call__(self) -> tuple[Replica, ...]:
        """All of them."""
        facts = zip(self._states, self._starts, self._rewards, strict=True)
        return tuple(
            Replica(number, AUTO, _STATES[state], max(0, starts - 1) + rewards)
            for number, (state, starts, rewards) in enumerate(facts)
        )

    def starts(self, number: int) -> None:
        """Note that a worker is started."""
        self._states[number] = _STATES.index("starting")
        self._starts[number] += 1

    def becomes(self, number: int, state: State) -> None:
        """Note the state of a worker."""
        self._states[number] = _STATES.index(state)

    def replaces_rewards(self, number: int, times: int) -> None:
        """Note how often a worker replaced the process of its reward since the previous note."""
        self._rewards[number] += times

    def has_started(self, number: int) -> bool:
        """Whether a worker has come to serve."""
        return bool(self._states[number])
