"""How servers are asked."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from rm_plugins.errors import ScoringError


@dataclass(frozen=True, slots=True)
class Settings:
    """How the servers of one provider are asked; `rm_plugins.providers.remote.Remote` says what each of these is."""

    api_key_env: str | None = None
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    batch_size: int | None = None
    concurrency: int = 16
    timeout: float = 60.0
    deadline: float = 600.0
    tries: int = 6
    hedge_after: float | None = None
    ca_file: str | None = None
    fingerprint: str | None = None

    @property
    def secrets(self) -> list[str]:
        """The values of the headers, any of which may open the server."""
        return [value for _, value in self.headers]

    @property
    def api_key(self) -> str | None:
        """The key, read from the environment each time.

        Raises:
            ScoringError: It is not there, or cannot be sent.
        """
        if self.api_key_env is None:
            return None
        key = os.environ.get(self.api_key_env, "").strip()
        if not key:
            raise ScoringError(f"The environment variable {self.api_key_env}, which `api_key_env` names, is not set here.")
        if not (key.isascii() and key.isprintable()):
            raise ScoringError(f"The environment variable {self.api_key_env} holds characters that no HTTP header can carry.")
        return key

    @property
    def key_hint(self) -> str:
        """What to say to somebody whose key was refused."""
        if self.api_key_env is None:
            return "The server asks for a key: name the environment variable that holds it with `api_key_env`."
        return f"The server does not take the key in the environment variable {self.api_key_env}, which `api_key_env` names."
