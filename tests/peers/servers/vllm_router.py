"""vLLM's router, which spreads requests over the servers behind it; here, these are ours."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tests.peers import environments
from tests.peers.client import environment_of
from tests.servers import ServerProcess, free_port

NAME = "vLLM router"
ENVIRONMENT = "router"


def version() -> str:
    """The version that is installed."""
    return environments.distributions(ENVIRONMENT)["vllm-router"]


def routing(python: Path, workers: Sequence[str]) -> ServerProcess:
    """A router in front of the URLs, which asks one after the other."""
    port = free_port()
    command = [str(python.with_name("vllm-router")), "--worker-urls", *workers, "--policy", "round_robin"]
    where = ["--host", "127.0.0.1", "--port", str(port), "--prometheus-port", str(free_port())]
    return ServerProcess([*command, *where], port, ready="/health", environment=environment_of())
