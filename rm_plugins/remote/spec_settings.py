"""Checks the settings in a spec of what speaks to servers: a remote reward, a judge."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from rm_plugins.errors import SpecError
from rm_plugins.missing_path import not_there
from rm_plugins.remote.settings import Settings

DEADLINE = 600.0
"""Seconds for one call if the spec does not set `deadline`."""

ABSENCE = 30.0
"""Seconds after which a call fails if nothing ever listened and the spec does not set `deadline`."""

_NOT_FOR_SPECS = ("authorization", "proxy-authorization", "cookie", "api-key", "x-api-key")
_NOT_FOR_USERS = ("connection", "content-length", "content-type", "host", "transfer-encoding")


def checked_settings(
    *,
    api_key_env: str | None = None,
    headers: Mapping[str, Any] | None = None,
    batch_size: int | None = None,
    concurrency: int = 16,
    timeout: float = 60.0,
    deadline: float | None = None,
    tries: int = 6,
    hedge_after: float | None = None,
    ca_file: str | None = None,
    fingerprint: str | None = None,
) -> Settings:
    """The settings, which are documented in `rm_plugins.providers.remote.Remote`.

    Raises:
        SpecError: One is out of range, a header is a secret, the environment has no key, or the file does not exist.
    """
    least = {"batch_size": batch_size, "concurrency": concurrency, "tries": tries}
    for key, number in least.items():
        if number is not None and number < 1:
            raise SpecError(f"must be at least 1, not {number}.", key=key)
    for key, seconds in {"timeout": timeout, "deadline": deadline, "hedge_after": hedge_after}.items():
        if seconds is not None and not 0 < seconds < math.inf:
            raise SpecError(f"must be a positive number of seconds, not {seconds}.", key=key)
    if api_key_env is not None and not os.environ.get(api_key_env, "").strip():
        # A text that is not a usual name may be the key itself, by mistake.
        called = f" {api_key_env}" if re.fullmatch(r"[A-Z_][A-Z0-9_]*", api_key_env) else " of this name"
        raise SpecError(f"the environment variable{called} is not set. It must hold the server's key.", key="api_key_env")
    if ca_file is not None and not Path(ca_file).is_file():
        raise SpecError(f"there is no file {ca_file!r}{not_there(Path(ca_file), ca_file)}", key="ca_file")
    return Settings(
        api_key_env=api_key_env,
        headers=_checked_headers(headers or {}),
        batch_size=batch_size,
        concurrency=concurrency,
        timeout=timeout,
        deadline=DEADLINE if deadline is None else deadline,
        absence=ABSENCE if deadline is None else None,
        tries=tries,
        hedge_after=hedge_after,
        ca_file=ca_file,
        fingerprint=fingerprint,
    )


def checked_urls(url: str | Sequence[str]) -> tuple[str, ...]:
    """The URLs without a slash at their end; error messages leave out what may be a secret."""
    urls = (url,) if isinstance(url, str) else tuple(url)
    if not urls:
        raise SpecError("needs at least one URL.", key="url")
    for place, address in enumerate(urls):
        key = "url" if isinstance(url, str) else f"url[{place}]"
        if "@" in address:
            raise SpecError(
                f"the URL of {_host(address)} contains a name or a password, which would appear in every log. Put the key into an "
                "environment variable, and name that variable with `api_key_env`.",
                key=key,
            )
        shown = re.split("[?#]", address)[0]
        try:
            parts = urlsplit(address)
            port = parts.port
        except ValueError:
            raise SpecError(
                "is not a valid URL: its port must be from 1 to 65535, and its host must be valid.", key=key
            ) from None
        if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
            raise SpecError(f"{shown!r} is not the URL of a server, such as http://127.0.0.1:8000.", key=key)
        if parts.query or parts.fragment:
            raise SpecError(f"{shown!r} must end before '?' and '#': a path is appended to it.", key=key)
    stripped = tuple(address.rstrip("/") for address in urls)
    if len(set(stripped)) < len(stripped):
        raise SpecError("names the same server twice.", key="url")
    return stripped


def _host(address: str) -> str:
    """The host after the last @, as far as it has the characters of one."""
    host = re.match(r"[\w.-]*", address.rpartition("@")[2])
    return host[0] if host else ""


def _checked_headers(headers: Mapping[str, object]) -> tuple[tuple[str, str], ...]:
    checked: list[tuple[str, str]] = []
    for name, value in headers.items():
        if not isinstance(value, str):
            raise SpecError(f"a header is text, not {type(value).__name__}; put it in quotes.", key=f"headers.{name}")
        if name.lower() in _NOT_FOR_SPECS:
            raise SpecError(
                "a spec must not contain secrets, and this header is one. Put the server's key into an environment variable, and name that "
                "variable with `api_key_env`.",
                key=f"headers.{name}",
            )
        if name.lower() in _NOT_FOR_USERS:
            raise SpecError("the client sets this header itself; leave it out.", key=f"headers.{name}")
        if not (name.isascii() and name.isprintable() and value.isascii() and value.isprintable()):
            raise SpecError("headers must be printable ASCII.", key=f"headers.{name}")
        checked.append((name, value))
    return tuple(checked)
