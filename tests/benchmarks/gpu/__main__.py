"""Measures on one GPU, in at most eight minutes, all that is worth knowing of this library there.

Run it with ``make bench-gpu``, or with ``python -m tests.benchmarks.gpu`` where nothing can be installed from anywhere. It needs no
network and no file but the project's: the models have the shapes of published ones and random weights. The parts run in the order of
their worth, in a process of their own; each row is in ``rows.jsonl`` as soon as it is measured, and a part that dies or
hangs costs no other. ``gpu.json`` and ``gpu.md`` hold everything; on a GPU the table goes into ``docs/benchmarks.md`` as well.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.benchmarks.gpu.events import read_events
from tests.benchmarks.gpu.plan import ALL_DEVICES, MINUTES, PARTS, START_SECONDS, Part, chosen

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "docs" / "benchmarks.md"
MODULE = "tests.benchmarks.gpu"
OUTPUT = ROOT / "build" / "gpu"
_GRACE = 10.0
"""Seconds beyond the deadline in which a part may come to its end by itself."""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {MODULE}", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", nargs="+", choices=[part.name for part in PARTS], metavar="PART", help=_parts_in_words())
    parser.add_argument("--minutes", type=float, default=MINUTES, help=f"time for everything (default: {MINUTES:g})")
    parser.add_argument(
        "--miniature", action="store_true", help="a miniature of every part on the CPU; writes no page but --page"
    )
    parser.add_argument(
        "--output", type=Path, default=OUTPUT, help=f"where the results go (default: {OUTPUT.relative_to(ROOT)})"
    )
    parser.add_argument("--page", type=Path, help=f"the page with the section (default: {PAGE.relative_to(ROOT)}, on a GPU)")
    parser.add_argument(
        "--wheels", type=Path, help="a folder of wheels that are installed for this run only, from nowhere else"
    )
    return parser


def _parts_in_words() -> str:
    return f"what is measured (default: everything, in this order): {', '.join(part.name for part in PARTS)}"


def main() -> None:
    """Run the parts, and write what was measured."""
    arguments = parser().parse_args()
    if arguments.wheels is not None:
        _start_again_with(arguments.wheels)
    deadline = time.time() + 60 * arguments.minutes
    arguments.output.mkdir(parents=True, exist_ok=True)
    rows = arguments.output / "rows.jsonl"
    rows.unlink(missing_ok=True)
    parts = chosen(arguments.parts)
    print(_plan_in_words(parts, arguments.minutes), flush=True)
    try:
        command = [sys.executable, "-m", f"{MODULE}.worker", "--rows", str(rows), "--deadline", str(deadline)]
        run_parts(parts, rows, deadline, [*command, *(["--miniature"] if arguments.miniature else [])])
    finally:
        _write_results(rows, parts, arguments)


def _plan_in_words(parts: list[Part], minutes: float) -> str:
    planned = START_SECONDS + sum(part.seconds for part in parts)
    lines = [f"{part.seconds:>4.0f} s  {part.name}: {part.title}" for part in parts]
    return "\n".join([f"{START_SECONDS:>4.0f} s  start", *lines, f"{planned:>4.0f} s  planned, of {60 * minutes:.0f} s"])


def run_parts(parts: list[Part], rows: Path, deadline: float, command: list[str]) -> None:
    """Run parts in a process, and those that are left in another one where a part has taken it down.

    Args:
        parts: What is to be measured.
        rows: The file that the process appends to.
        deadline: When everything must have ended, in seconds of `time.time`.
        command: Starts the process; the names of parts are added.

    Raises:
        SystemExit: A process ended before its first part started.
    """
    remaining = list(parts)
    while remaining:
        before = len(read_events(rows))
        names = [part.name for part in remaining]
        process = subprocess.Popen([*command, *names], cwd=ROOT, env=_environment(), start_new_session=True)
        try:
            reason = _watched(process, rows, deadline, {part.name: part for part in parts})
        finally:
            _kill(process)
        events = read_events(rows)[before:]
        done = {event["part"] for event in events if event["kind"] in ("ended", "failed")}
        begun = [event["part"] for event in events if event["kind"] == "started"]
        cut = [name for name in begun if name not in done]
        for name in cut:
            failure = {"part": name, "kind": "failed", "time": round(time.time(), 2), "error": reason}
            with rows.open("a", encoding="utf-8") as file:
                file.write(f"\n{json.dumps(failure)}\n")  # on a line of its own, whatever was being written
        remaining = [part for part in remaining if part.name not in done and part.name not in cut]
        if not begun:  # not even the first part came to its start
            raise SystemExit(f"Nothing was measured: {reason}.")
        if time.time() >= deadline:
            break


def _watched(process: subprocess.Popen[bytes], rows: Path, deadline: float, parts: dict[str, Part]) -> str:
    """Wait for the end of a process, no longer than its part and everything may take; why it ended."""
    while process.poll() is None:
        events = [event for event in read_events(rows) if event["kind"] in ("started", "ended", "failed")]
        now = time.time()
        if now > deadline + _GRACE:
            return "cut off: the time of all parts was over"
        if events and events[-1]["kind"] == "started" and now > events[-1]["time"] + parts[events[-1]["part"]].limit:
            return f"cut off after {parts[events[-1]['part']].limit:.0f} s"
        time.sleep(0.2)
    return f"the process ended with {process.returncode}"


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End a process with all that it has started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _environment() -> dict[str, str]:
    """Ours, with this project on the path: it need not be installed."""
    paths = [str(ROOT), str(ROOT / "integrations"), *filter(None, [os.environ.get("PYTHONPATH")])]
    # Trainers would spread over all devices; only the tests are to see them all.
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    devices = {ALL_DEVICES: visible, "CUDA_VISIBLE_DEVICES": visible.partition(",")[0] or "0"}
    return {**os.environ, **devices, "PYTHONPATH": os.pathsep.join(paths)}


def _write_results(rows: Path, parts: list[Part], arguments: argparse.Namespace) -> None:
    from tests.benchmarks.gpu.table import section

    events = read_events(rows)
    if not events:
        return
    shown = shlex.join(argument for argument in sys.argv[1:])
    command = f"python -m {MODULE} {shown}" if shown else "make bench-gpu"
    plan = [{"part": part.name, "planned_seconds": part.seconds} for part in parts]
    results = {"command": command, "plan": plan, "events": events}
    (arguments.output / "gpu.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    text = section(command, parts, events, is_miniature=arguments.miniature)
    (arguments.output / "gpu.md").write_text(text + "\n", encoding="utf-8")
    print(f"\n{text}\n\nWritten to {arguments.output}.", flush=True)
    page = arguments.page or (None if arguments.miniature else PAGE)
    if page is not None and any(event["kind"] == "row" for event in events):
        from tests.benchmarks.page import GPU, TITLE, with_section

        before = page.read_text(encoding="utf-8") if page.is_file() else f"{TITLE}\n"
        page.write_text(with_section(before, GPU, text), encoding="utf-8")


def _start_again_with(wheels: Path) -> None:
    """Install wheels into a folder of this run, and start this program again with them; does not return."""
    files = sorted(map(str, wheels.glob("*.whl")))
    if not files:
        raise SystemExit(f"There are no wheels in {wheels}. `make gpu-wheels` gathers them where packages can be downloaded.")
    site = tempfile.mkdtemp(prefix="gpu-site-")
    install = ["install", "--quiet", "--no-index", "--no-deps", "--no-compile", "--target", site]
    subprocess.run([sys.executable, "-m", "pip", *install, *files], check=True)
    arguments = iter(sys.argv[1:])
    kept = []
    for argument in arguments:
        if argument == "--wheels":
            next(arguments)
        elif not argument.startswith("--wheels="):
            kept.append(argument)
    paths = [site, *filter(None, [os.environ.get("PYTHONPATH")])]
    os.execve(sys.executable, [sys.executable, "-m", MODULE, *kept], {**os.environ, "PYTHONPATH": os.pathsep.join(paths)})


if __name__ == "__main__":
    main()
