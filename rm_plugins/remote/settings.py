"""Settings of requests to servers."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from rm_plugins.errors import ScoringError


@dataclass(frozen=True, slots=True)
class Settings:
    """The request settings of one provider; documented in `rm_plugins.providers.remote.Remote`.

    Args:
        absence: Seconds after which a call gives up if nothing listens at any address and none ever answered; None for the deadline.
    """

    api_key_env: str | None = None
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    batch_size: int | None = None
    concurrency: int = 16
    timeout: float = 60.0
    deadline: float = 600.0
    absence: float | None = None
    tries: int = 6
    hedge_after: float | None = None
    ca_file: str | None = None
    fingerprint: str | None = None

    @property
    def secrets(self) -> list[str]:
        """The values of the headers, any of which may be a credential."""
        return [value for _, value in self.headers]

    @property
    def api_key(self) -> str | None:
        """The key, read from the environment each time.

        Raises:
            ScoringError: The variable is not set, or an HTTP header cannot hold its value.
        """
        if self.api_key_env is None:
            return None
        key = os.environ.get(self.api_key_env, "").strip()
        if not key:
            raise ScoringError(
                f"The environment variable {self.api_key_env}, which `api_key_env` names, is not set. Set it to the server's key."
            )
        if not (key.isascii() and key.isprintable()):
            raise ScoringError(
                f"The environment variable {self.api_key_env} holds characters that an HTTP header cannot carry. Set it to the key."
            )
        return key

    @property
    def key_hint(self) -> str:
        """The remedy if the server refuses the key."""
        if self.api_key_env is None:
            return "If it needs a key, name the environment variable that holds it with `api_key_env: NAME`, beside `url` in a spec."
        return f"The server does not accept the key in the environment variable {self.api_key_env}, which `api_key_env` names."
