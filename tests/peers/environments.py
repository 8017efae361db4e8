"""The environments of the peers: one for each file of requirements, under the folder that RM_PLUGINS_PEERS names.

``python -m tests.peers.environments [NAME ...]`` makes those that are missing or whose requirements have changed. One that cannot be
installed is left out, and its reason is kept for the tests that skip and for the table. Of what ``NAME.bare.txt`` lists, the files alone
are installed: such a client is one module of a project that declares to need a GPU's whole stack.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

REQUIREMENTS = Path(__file__).parent / "requirements"
FOLDER = os.environ.get("RM_PLUGINS_PEERS", "")
OWN = "own"
"""The environment of this process, which has the clients of ``pyproject.toml``'s extra ``dev``."""

_OWN_CLIENTS = ("cohere", "openai", "tritonclient")
_PATIENCE = 7200  # seconds: llama-cpp is built from source, on a machine that may be busy


def names() -> list[str]:
    """All environments that there could be."""
    return sorted({path.name.partition(".")[0] for path in REQUIREMENTS.glob("*.txt")})


def python(name: str) -> Path:
    """The interpreter of an environment."""
    return Path(sys.executable) if name == OWN else Path(FOLDER).absolute() / name / "bin" / "python"


def missing(name: str) -> str | None:
    """Why an environment cannot be used, or None."""
    if name == OWN:
        absent = [client for client in _OWN_CLIENTS if find_spec(client) is None]
        return f"not installed here: {', '.join(absent)}" if absent else None
    if not FOLDER:
        return "`make test-peers` runs it"
    reason = Path(FOLDER) / f"{name}.skipped"
    if reason.is_file():
        return f"the environment {name} could not be installed: {reason.read_text()}"
    return None if python(name).is_file() else f"there is no environment {name} in {FOLDER}"


def distributions(name: str) -> dict[str, str]:
    """The versions of what is installed in an environment, by normalized name."""
    code = "from importlib.metadata import distributions as d; [print(x.metadata['Name'], x.version) for x in d()]"
    listed = subprocess.run([python(name), "-c", code], capture_output=True, text=True, check=True).stdout
    installed = [line.split() for line in listed.splitlines()]  # of one that is there twice, the first is imported
    return {name.lower().replace("_", "-"): version for name, version in reversed(installed)}


def install(name: str) -> None:
    """Make an environment, or write down why it is not there."""
    files = {path: ["--no-deps"] if path.name == f"{name}.bare.txt" else [] for path in sorted(REQUIREMENTS.glob(f"{name}.*"))}
    wanted = "".join(path.read_text() for path in files)
    folder = Path(FOLDER) / name
    done, reason = folder / "requirements.txt", Path(FOLDER) / f"{name}.skipped"
    if done.is_file() and done.read_text() == wanted:
        return
    reason.unlink(missing_ok=True)
    print(f"Installing {name} ...", flush=True)
    try:
        _run(sys.executable, "-m", "venv", "--clear", str(folder))
        pip = [str(python(name)), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        _run(*pip, "--upgrade", "pip")  # the pip of an older Python searches for minutes where this one sees at once what fits
        for path, options in files.items():
            _run(*pip, *options, "-r", str(path))
    except (OSError, subprocess.SubprocessError) as error:
        why = last_line(error)
        reason.write_text(why)
        print(f"{name} is left out: {why}", flush=True)
    else:
        done.write_text(wanted)


def last_line(error: Exception) -> str:
    """What pip said last, or the error's own message where pip said nothing or was too slow."""
    said = error.stderr if isinstance(error, subprocess.CalledProcessError) else None
    return (said or str(error)).strip().splitlines()[-1]


def _run(*command: str) -> None:
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            _, said = process.communicate(timeout=_PATIENCE)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)  # with the compilers that it has started
            raise
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command, stderr=said)


if __name__ == "__main__":
    if not FOLDER:  # they would lie in the folder that this is run in
        sys.exit("RM_PLUGINS_PEERS must name the folder that the environments are made in; `make test-peers` has .venv/peers.")
    Path(FOLDER).mkdir(parents=True, exist_ok=True)
    for wanted in sys.argv[1:] or names():
        install(wanted)
