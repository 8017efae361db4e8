"""Measures parts in one process, which may die of any of them: what has been measured is in a file by then."""

from __future__ import annotations

import argparse
import gc
import importlib
import os
import platform
import tempfile
import time
import traceback
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

# Before anything imports huggingface_hub, which reads it once: nothing here needs a hub.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Tokenizers use all cores in the process that scores, and warn where another one is started after.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")

import torch
from transformers.utils import logging as transformers_logging

from tests.benchmarks.gpu.plan import chosen
from tests.benchmarks.gpu.run import GIBIBYTE, Run

BROKEN_DEVICE = 3
"""The exit status of a process whose device takes no more work."""
_LIBRARIES = ("torch", "transformers", "trl", "accelerate", "peft", "datasets", "numpy")


def main() -> None:
    """Measure the parts that are named, in the plan's order."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=Path, required=True)
    parser.add_argument("--deadline", type=float, required=True)
    parser.add_argument("--miniature", action="store_true")
    parser.add_argument("parts", nargs="+")
    arguments = parser.parse_args()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as scratch:
        run = Run(arguments.rows, arguments.miniature, arguments.deadline, Path(scratch))
        if run.device.type == "cuda" and not torch.cuda.is_available():
            raise SystemExit("There is no GPU that torch can use. --miniature runs a miniature of every part on the CPU.")
        run.event("machine", **_machine(run))
        gc.collect()
        gc.freeze()  # what is imported is not searched whenever a part's memory is given back
        for part in chosen(arguments.parts):
            run.part = part.name
            run.part_deadline = time.time() + 1.3 * part.seconds
            run.event("started")
            module, function = part.function.split(":")
            try:
                if run.left() <= 0:
                    raise TimeoutError("no time was left")
                getattr(importlib.import_module(f"tests.benchmarks.gpu.parts.{module}"), function)(run, *part.arguments)
            except Exception as error:  # whatever a part dies of, the others are still to be measured
                broken = "CUDA error" in str(error) or type(error).__name__ == "AcceleratorError"
                run.event("failed", error=f"{type(error).__name__}: {error}", traceback=traceback.format_exc(limit=-6))
                if broken:
                    raise SystemExit(BROKEN_DEVICE) from error
            else:
                run.event("ended")
            run.free()


def _machine(run: Run) -> dict[str, Any]:
    facts: dict[str, Any] = {"python": platform.python_version(), "threads": torch.get_num_threads(), "device": "CPU"}
    if run.device.type == "cuda":
        properties = torch.cuda.get_device_properties(run.device)
        facts |= {
            "device": properties.name,
            "memory GiB": round(properties.total_memory / GIBIBYTE, 1),
            "compute capability": f"{properties.major}.{properties.minor}",
            "cuda": torch.version.cuda,
        }
    return facts | {name: found for name in _LIBRARIES if (found := _version(name)) is not None}


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


if __name__ == "__main__":
    main()
