"""Gathers the wheels that the GPU benchmark needs on a machine where nothing can be downloaded.

Run it with ``make gpu-wheels`` where packages can be downloaded; then take the project and the folder to the machine and run
``python -m tests.benchmarks.gpu --wheels build/gpu-wheels`` there. What the machine has already is in ``bare_machine.txt``; pip finds
out what else is needed, for the machine's Python and not for this one, and only that is downloaded.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[3]
HERE = Path(__file__).parent
MODULE = "tests.benchmarks.gpu.wheels"
OUTPUT = ROOT / "build" / "gpu-wheels"
EXTRAS = ("peft", "serve")
MOST_MEBIBYTES = 60
# pip takes a wheel for exactly these: the newest C library that it may need, down to the oldest.
PLATFORMS = (
    *(f"manylinux_2_{minor}_x86_64" for minor in range(39, 4, -1)),
    *("manylinux2014_x86_64", "manylinux2010_x86_64", "manylinux1_x86_64"),
)


def requirements() -> list[str]:
    """What rm-plugins and the extras of the benchmark declare to need."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return [*project["dependencies"], *(need for extra in EXTRAS for need in project["optional-dependencies"][extra])]


def present(path: Path) -> list[str]:
    """The lines of a list of packages."""
    lines = (line.partition("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line]


def canonical(name: str) -> str:
    """A package's name as all its spellings are compared.

    >>> canonical("Typing_Extensions==4")
    'typing-extensions'
    """
    return re.sub(r"[-_.]+", "-", re.split(r"[\s\[<>=!~;]", name)[0]).lower()


def missing(report: Mapping[str, Any], machine: Sequence[str]) -> list[str]:
    """``name==version`` of what pip would install and the machine has not.

    >>> report = {"install": [{"metadata": {"name": name, "version": "1"}} for name in ("trl", "Torch")]}
    >>> missing(report, ["torch==2"])
    ['trl==1']
    """
    there = {canonical(name) for name in machine}
    wanted = [item["metadata"] for item in report["install"]]
    return sorted(f"{item['name']}=={item['version']}" for item in wanted if canonical(item["name"]) not in there)


def gather(machine: Sequence[str], output: Path, python: str) -> list[Path]:
    """Download the wheels into a folder that holds nothing else afterwards; returns them."""
    target = ["--only-binary=:all:", "--python-version", python, "--implementation", "cp"]
    target += [argument for platform in PLATFORMS for argument in ("--platform", platform)]
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        pinned, report = folder / "constraints.txt", folder / "report.json"
        pinned.write_text("\n".join(_constraints(machine)), encoding="utf-8")
        # Only what packages say of themselves is read here, not torch and all that comes with it. `pip install` compares the Python
        # that they require with its own, which is another one than the machine's.
        asked = ["install", "--quiet", "--dry-run", "--ignore-installed", "--ignore-requires-python"]
        asked += ["--target", str(folder / "nowhere"), *target]
        needs = [*requirements(), *(line for line in machine if "==" in line)]
        subprocess.run([*pip, *asked, "--report", str(report), "--constraint", str(pinned), *needs], check=True)
        wanted = missing(json.loads(report.read_text(encoding="utf-8")), machine)
        shutil.rmtree(output, ignore_errors=True)
        output.mkdir(parents=True)
        subprocess.run([*pip, "download", "--quiet", "--no-deps", *target, "--dest", str(output), *wanted], check=True)
    return sorted(output.glob("*.whl"))


def _constraints(machine: Sequence[str]) -> list[str]:
    """The project's own pins where the machine has no version of its own."""
    own = {canonical(line) for line in machine}
    pins = present(ROOT / "constraints.txt")
    return [*(line for line in machine if "==" in line), *(line for line in pins if canonical(line) not in own)]


def main() -> None:
    """Gather the wheels, and say how large they are."""
    parser = argparse.ArgumentParser(prog=f"python -m {MODULE}", description=__doc__)
    parser.add_argument("--machine", type=Path, default=HERE / "bare_machine.txt", help="the packages that are there")
    parser.add_argument("--python", default="3.12", help="the machine's Python (default: 3.12)")
    parser.add_argument("--output", type=Path, default=OUTPUT, help=f"the folder (default: {OUTPUT.relative_to(ROOT)})")
    arguments = parser.parse_args()
    wheels = gather(present(arguments.machine), arguments.output, arguments.python)
    size = sum(wheel.stat().st_size for wheel in wheels) / 2**20
    print("\n".join(wheel.name for wheel in wheels))
    print(f"{len(wheels)} wheels, {size:.1f} MiB, in {arguments.output}.")
    if size > MOST_MEBIBYTES:
        raise SystemExit(f"The wheels are larger than {MOST_MEBIBYTES} MiB together.")


if __name__ == "__main__":
    main()
