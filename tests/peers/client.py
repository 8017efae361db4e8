"""A real client of another project, in a process of its own environment."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).parents[2]
_OURS = ("PYTHONPATH", "VIRTUAL_ENV", "PYTHONHOME")


def environment_of(**further: str) -> dict[str, str]:
    """The variables of a peer's process: none that lead to our packages, no hub, one thread."""
    kept = {name: value for name, value in os.environ.items() if name not in _OURS}
    return kept | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "NO_PROXY": "*", **further}


class ClientFailed(Exception):
    """What the client raised.

    Args:
        answer: Its class, the status of the HTTP answer if it knows that, and its message.
    """

    def __init__(self, answer: Mapping[str, Any]) -> None:
        super().__init__(f"{answer['error']} ({answer['status']}): {answer['message']}")
        self.status: int | None = answer["status"]
        self.what = f"{answer['error']} {self.status}"


class PeerClient:
    """A script of ``clients/`` that runs until the block ends; its client keeps what it keeps between two questions.

    Args:
        script: The module's name in ``clients/``.
        python: The interpreter of the environment that has the client.
        environment: Further environment variables.
    """

    def __init__(self, script: str, python: Path, **environment: str) -> None:
        self._process = subprocess.Popen(
            [python, "-m", f"tests.peers.clients.{script}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE if "PYTEST_CURRENT_TEST" not in os.environ else None,
            text=True,
            cwd=_ROOT,
            env=environment_of(**environment),
        )
        hello = self._read()
        self.version: str = hello["version"]
        self.ways: list[str] = hello["ways"]

    def __enter__(self) -> PeerClient:
        return self

    def __exit__(self, *error: object) -> None:
        self._process.communicate(timeout=120)

    def ask(self, way: str, **question: Any) -> list[float]:
        """The scores that the client gives.

        Raises:
            ClientFailed: The client raised an error.
        """
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"way": way, **question}) + "\n")
        self._process.stdin.flush()
        answer = self._read()
        if "error" in answer:
            raise ClientFailed(answer)
        scores: list[float] = answer["scores"]
        return scores

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self._process.args!r} ended with {self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer
