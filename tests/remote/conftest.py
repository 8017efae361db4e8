"""A remote scorer that is spoken to, and what it answers."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import rm_plugins as rm
from rm_plugins.protocols import Native
from rm_plugins.providers.remote import Remote
from rm_plugins.remote import retry
from tests.fault_proxy import Reply, reward_of
from tests.servers import serving

SAMPLES = [rm.Sample("Q: ", text) for text in ("a", "bb", "ccc", "dddd", "eeeee")]


EXPECTED = [reward_of(f"Q: {sample.completion}") for sample in SAMPLES]


Before = Callable[[dict[str, Any]], Awaitable[Reply | None]]


@contextmanager
def remote(scorer: Any, **settings: Any) -> Iterator[Remote]:
    with serving(scorer, lifespan="off") as url:
        provider = Remote(url=url, **{"protocol": Native(), **settings})
        yield provider
        provider.close()


def replies(*scripted: Reply | None) -> Before:
    """Answers with these first, and as usual (None) ever after."""
    left = list(scripted)

    async def before(body: dict[str, Any]) -> Reply | None:
        return left.pop(0) if left else None

    return before


def wait_for(happened: Callable[[], bool]) -> None:
    patience = time.monotonic() + 60
    while not happened():
        assert time.monotonic() < patience, "it did not happen"
        time.sleep(0.01)


def many(size: int) -> list[rm.Sample]:
    return [rm.Sample("Q: ", str(number)) for number in range(size)]


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "FIRST_DELAY", 0.01)
    monkeypatch.setattr(retry, "LONGEST_DELAY", 0.05)


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The files of a key and of a certificate for 127.0.0.1."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("no openssl to make a certificate with")
    folder = tmp_path_factory.mktemp("certificate")
    key, made = folder / "key.pem", folder / "certificate.pem"
    subject = ["-subj", "/CN=scorer", "-addext", "subjectAltName=IP:127.0.0.1"]
    kind = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2", *subject]
    subprocess.run([openssl, *kind, "-keyout", key, "-out", made], check=True, capture_output=True)
    return key, made
