"""The calls of one provider or judge to its servers, in every process that uses it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from rm_plugins.per_process import PerProcess
from rm_plugins.redaction import forget_secrets, keep_secret
from rm_plugins.remote.call import Outcome, ScoringCall
from rm_plugins.remote.fleet import Fleet
from rm_plugins.remote.sendable import Sendable
from rm_plugins.remote.settings import Settings


class ServerCalls:
    """Sends items to servers over connections that a process opens with its first call and keeps until `close`.

    It can be copied, pickled and forked: the other process, or the copy, opens its own connections. Any number of threads may call.

    Args:
        settings: The settings of the calls. Their secrets are removed from every text until `close`.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._fleet = PerProcess[Fleet]()
        keep_secret(self, *settings.secrets)

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        keep_secret(self, *self._settings.secrets)

    def outcomes(self, items: Sendable, make_fleet: Callable[[], Fleet], tally: Counter[str]) -> list[Outcome]:
        """Send items, and wait for the outcome of each.

        Args:
            items: The items, N of them.
            make_fleet: Makes the servers, which later calls use as well.
            tally: Is increased by what was counted, also if the call fails.

        Raises:
            ScoringError: No server can be used.
        """
        fleet = self._fleet.made(make_fleet)
        return fleet.network.run(ScoringCall(fleet, items, tally).outcomes())

    def close(self) -> None:
        """Close the connections of this process, and forget the secrets; the next call opens new ones."""
        fleet = self._fleet.take()
        forget_secrets(self)
        if fleet is not None:
            fleet.network.run(fleet.close())
