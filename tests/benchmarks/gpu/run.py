"""What a part is handed: the device, the time that is left, and where its rows go."""

from __future__ import annotations

import gc
import json
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import torch

from tests.benchmarks.gpu.events import read_events
from tests.benchmarks.gpu.shapes import Shape, miniature
from tests.benchmarks.gpu.workloads import MINIATURE, Sizes, Workloads

__all__ = ["GIBIBYTE", "PEAK_ROW", "Run", "Timing", "gibibytes"]

Value = TypeVar("Value")
GIBIBYTE = 2**30


@dataclass(frozen=True, slots=True)
class Timing:
    """What calling something several times took.

    Args:
        seconds: The median of the calls after the first, or the first where there was no time for others.
        rounds: How many calls it is the median of.
        peak: The most memory that the device had given out, in bytes; None on a CPU.
    """

    seconds: float
    rounds: int
    peak: int | None


@dataclass
class Run:
    """One process's run of several parts.

    Args:
        path: The file that rows are appended to, a line of JSON each.
        is_miniature: Whether tiny models stand for the published shapes, on a CPU.
        deadline: When all parts must have ended, in seconds of `time.time`.
        scratch: A folder for models that are saved.
    """

    path: Path
    is_miniature: bool
    deadline: float
    scratch: Path
    part: str = ""
    part_deadline: float = field(default=0.0)

    @property
    def device(self) -> torch.device:
        """The first GPU; a CPU for a miniature."""
        return torch.device("cpu" if self.is_miniature else "cuda:0")

    @property
    def dtype(self) -> torch.dtype:
        """bfloat16; float32 for a miniature, whose differences then show mistakes."""
        return torch.float32 if self.is_miniature else torch.bfloat16

    @cached_property
    def workloads(self) -> Workloads:
        """The texts."""
        return Workloads(MINIATURE if self.is_miniature else Sizes())

    def shape(self, published: Shape) -> Shape:
        """A shape, or its miniature."""
        return miniature(published) if self.is_miniature else published

    def build(self, published: Shape, dtype: torch.dtype | None = None) -> Any:
        """A model of a shape, or of its miniature, on the device."""
        return self.shape(published).build(self.workloads.tokenizer, self.device, dtype or self.dtype)

    # --- Time -------------------------------------------------------------------------------------------------------------

    def left(self) -> float:
        """Seconds that the part still has."""
        return min(self.deadline, self.part_deadline) - time.time()

    def now(self) -> float:
        """The time when the device has done all that was asked for."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def timed(self, call: Callable[[], Value], share: float = 0.5, rounds: int = 3) -> tuple[Value, Timing]:
        """Call something, and again while it takes no more than a share of the time that is left; once again in a miniature.

        Returns:
            What the last call gave, and the time of those after the first.
        """
        budget = share * self.left()
        rounds = 1 if self.is_miniature else rounds
        on_gpu = self.device.type == "cuda"
        if on_gpu:
            torch.cuda.reset_peak_memory_stats(self.device)
        started = self.now()
        value = call()
        first = self.now() - started
        later: list[float] = []
        while len(later) < rounds and first + sum(later) + max(later, default=first) <= budget:
            before = self.now()
            value = call()
            later.append(self.now() - before)
        peak = torch.cuda.max_memory_allocated(self.device) if on_gpu else None
        return value, Timing(statistics.median(later or [first]), len(later), peak)

    # --- Memory -----------------------------------------------------------------------------------------------------------

    def free(self) -> None:
        """Give back the memory of what is no longer referred to."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    # --- Rows -------------------------------------------------------------------------------------------------------------

    def write(self, name: str, figures: Mapping[str, Any], *, case: str = "", note: str = "") -> None:
        """A row of the part's table."""
        self.event("row", name=name, case=case, figures=dict(figures), note=note)

    def event(self, kind: str, **content: Any) -> None:
        """Append a line to the file and to what is printed."""
        line = json.dumps({"part": self.part, "kind": kind, "time": round(time.time(), 2), **content})
        with self.path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
        print(line, flush=True)

    @property
    def peak_flops(self) -> float | None:
        """The operations a second of a large matrix product, which the part `peak` has measured; None if it has not."""
        found = [event["figures"]["TFLOP/s"] for event in read_events(self.path) if event.get("name") == PEAK_ROW]
        return found[-1] * 1e12 if found else None

    def utilisation(self, flops: float, seconds: float) -> float | None:
        """Operations a second as a share of the best."""
        return None if self.peak_flops is None else flops / seconds / self.peak_flops


PEAK_ROW = "matrix product"


def gibibytes(peak: int | None) -> float | None:
    """Bytes as GiB, for a table."""
    return None if peak is None else round(peak / GIBIBYTE, 2)
