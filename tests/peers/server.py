"""A real server of another project, in a process of its own environment, on a free port of this machine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.peers import environments
from tests.peers.client import environment_of
from tests.servers import ServerProcess, free_port


@dataclass(frozen=True, kw_only=True)
class Peer:
    """How a server of another project is started.

    Args:
        name: Its project's name, as the table has it.
        distribution: Whose version is told.
        environment: Which file of requirements it is installed by.
        command: The command line, of the environment's interpreter, the model's folder and the port.
        ready: A path that answers 200 as soon as it scores.
        variables: Further environment variables.
        patience: Seconds that it may take to become ready.
    """

    name: str
    distribution: str
    environment: str
    command: Callable[[Path, Path, int], Sequence[str]]
    ready: str = "/health"
    variables: Mapping[str, str] = field(default_factory=dict)
    patience: float = 300

    @property
    def version(self) -> str:
        """The version that is installed."""
        return environments.distributions(self.environment)[self.distribution]

    def serving(self, model: Path, port: int = 0) -> ServerProcess:
        """A server of the model, started when a block begins and ended at its end."""
        port = port or free_port()
        command = [str(part) for part in self.command(environments.python(self.environment), model, port)]
        return ServerProcess(
            command, port, ready=self.ready, patience=self.patience, environment=environment_of(**self.variables)
        )
