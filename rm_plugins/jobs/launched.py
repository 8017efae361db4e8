"""Jobs under a launcher such as torchrun or ``accelerate launch``: process 0 runs the job, and the others score blocks for it.

The processes meet at the launcher's store, where process 0 says at which address it listens. From then on each has a connection to it, over
which it is sent blocks. Processes on other machines need the folder of the output on a shared file system.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client, Connection, Listener
from queue import Empty, SimpleQueue
from typing import Any

from rm_plugins.errors import ProcessError
from rm_plugins.jobs.crew import Crew, CrewProcess, OwnProcess
from rm_plugins.jobs.crew_member import Prepare, attend

logger = logging.getLogger(__name__)

_WARNS_AFTER = 60.0
"""Seconds after which process 0 names the processes that have not come."""
_LONGEST_SECONDS = 24 * 3600.0
"""How long a process waits for process 0, which may generate completions first."""
_OVER = "over"


@dataclass(frozen=True, slots=True)
class Launch:
    """The processes that a launcher has started.

    Args:
        rank: The number of this process.
        processes: The number of all processes.
    """

    rank: int
    processes: int

    @classmethod
    def of_environment(cls) -> Launch | None:
        """What the launcher says in the environment; None without a launcher, and of a single process."""
        rank, processes = os.environ.get("RANK", ""), os.environ.get("WORLD_SIZE", "")
        if not (rank.isdecimal() and processes.isdecimal()) or int(processes) < 2:
            return None
        return cls(int(rank), int(processes))

    def crew(self, prepare: Prepare = nullcontext) -> Crew:
        """The processes as a crew of process 0, which starts one more process: that of its own device.

        Args:
            prepare: Sets up that process.
        """
        return Crew([OwnProcess(0, self.processes, prepare, None)], _Joining(self.processes))

    def assist(self) -> None:
        """Score blocks for process 0 until it has done its job.

        Raises:
            ProcessError: Process 0 cannot be reached.
        """
        store, key = _store()
        try:
            meeting = json.loads(store.get(key))
        except RuntimeError as error:  # torch's DistNetworkError and DistStoreError
            raise ProcessError(
                f"Process {self.rank} has not heard from process 0, which has probably ended: {error}"
            ) from error
        if meeting == _OVER:
            return
        try:
            connection = Client(tuple(meeting["address"]), authkey=bytes.fromhex(meeting["authkey"]))
        except (ConnectionRefusedError, ConnectionResetError, EOFError):
            return  # the job was over before this process came
        except (OSError, AuthenticationError) as error:
            raise ProcessError(
                f"Process {self.rank} cannot connect to process 0 at {':'.join(map(str, meeting['address']))}: {error}. The machines must "
                "reach each other on all ports."
            ) from error
        with connection:
            connection.send((self.rank, socket.gethostname(), os.environ.get("LOCAL_RANK", "")))
            attend(connection)


class _LaunchedProcess(CrewProcess):
    """A process that a launcher has started, and which only the launcher can start again."""

    def __init__(self, connection: Connection, rank: int, host: str, local_rank: str) -> None:
        super().__init__()
        self.connection = connection
        self.rank = rank
        self.name = f"process {rank} (local rank {local_rank} on {host})"

    def start(self) -> bool:
        return self.connection is not None

    def how_it_ended(self) -> str:
        return "has ended, or its connection was lost"

    def end(self, at_once: bool) -> None:
        self.disconnect()


class _Joining:
    """Lets the other processes join process 0."""

    def __init__(self, processes: int) -> None:
        self._store, self._key = _store()
        self._missing = set(range(1, processes))
        self._came: SimpleQueue[_LaunchedProcess] = SimpleQueue()
        self._warns_at: float | None = time.monotonic() + _WARNS_AFTER
        self._listener: Listener | None = None
        authkey = secrets.token_bytes(32)
        is_local = os.environ.get("LOCAL_WORLD_SIZE") == str(processes)
        host = "127.0.0.1" if is_local else os.environ.get("MASTER_ADDR", socket.gethostname())
        self._listener = Listener((host if is_local else "", 0), backlog=processes, authkey=authkey)
        port = self._listener.address[1]
        threading.Thread(target=self._accept, args=(self._listener,), name="rm-plugins-joining", daemon=True).start()
        self._store.set(self._key, json.dumps({"address": [host, port], "authkey": authkey.hex()}))

    @property
    def awaits_more(self) -> bool:
        return bool(self._missing)

    def come(self) -> Sequence[CrewProcess]:
        came: list[_LaunchedProcess] = []
        with suppress(Empty):
            while True:
                came.append(self._came.get_nowait())
        self._missing -= {process.rank for process in came}
        if self._missing and self._warns_at is not None and time.monotonic() > self._warns_at:
            self._warns_at = None
            names = ", ".join(map(str, sorted(self._missing)))
            logger.warning("Process %s has not come within %.0f s; the others score meanwhile.", names, _WARNS_AFTER)
        return came

    def close(self) -> None:
        if self._listener is not None:
            with suppress(RuntimeError):
                self._store.set(self._key, json.dumps(_OVER))
            self._listener.close()
            self._listener = None

    def _accept(self, listener: Listener) -> None:
        while True:
            try:
                connection = listener.accept()
            except (AuthenticationError, EOFError, ConnectionError):  # somebody else
                continue
            except OSError:  # it was closed
                return
            with suppress(EOFError, OSError):
                self._came.put(_LaunchedProcess(connection, *connection.recv()))


@cache
def _store() -> tuple[Any, str]:
    """The launcher's store, and the key at which the processes meet, which is another one after a restart.

    Raises:
        ProcessError: The environment has RANK and WORLD_SIZE, but not where the store is.
    """
    from torch.distributed.rendezvous import rendezvous

    try:
        store, *_ = next(iter(rendezvous("env://", timeout=timedelta(seconds=_LONGEST_SECONDS))))
    except ValueError as error:
        raise ProcessError(
            f"RANK={os.environ['RANK']} and WORLD_SIZE={os.environ['WORLD_SIZE']} in the environment say that a launcher has started "
            f"several processes, but they cannot meet: {error}. Start them with torchrun or accelerate launch, or unset both variables."
        ) from error
    return store, f"rm_plugins/job/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
