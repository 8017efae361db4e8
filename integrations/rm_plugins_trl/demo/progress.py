"""What the demonstration prints while it runs: a line for each stage, and the current step of a trainer."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import datasets
from rich.status import Status
from transformers import TrainerCallback
from transformers.utils import logging as transformers_logging

from rm_plugins.cli.printed import Console


class Stage(TrainerCallback):
    """One stage, and the trainer callback that shows its steps: in one line of a terminal, elsewhere at each quarter.

    `metrics` maps the names that are shown to the trainer's own names.
    """

    def __init__(self, status: Status, metrics: Mapping[str, str]) -> None:
        self.result = ""
        self._status = status
        self._metrics = metrics
        self._shown = ""

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, Any] | None = None, **kwargs: Any) -> None:
        """Remember the shown metrics of the trainer's log."""
        values = {shown: float(logs[name]) for shown, name in self._metrics.items() if name in logs} if logs else {}
        self._shown = "".join(f", {name} {value:.2f}" for name, value in values.items()) or self._shown

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Show the step."""
        step, last = state.global_step, state.max_steps
        line = f"      step {step} of {last}{self._shown}"
        self._status.update(line)
        if not self._status.console.is_terminal and step % max(1, last // 4) == 0 and step < last:
            self._status.console.print(line, highlight=False)


class Stages:
    """Numbers the `total` stages and measures their time."""

    def __init__(self, console: Console, total: int) -> None:
        self.seconds: dict[str, float] = {}
        self._console = console
        self._total = total

    @contextmanager
    def stage(self, title: str, doing: str, **metrics: str) -> Iterator[Stage]:
        """Print what is being done, then its `Stage.result` and its time; `metrics` are those of `Stage`."""
        start = time.perf_counter()
        number = len(self.seconds) + 1
        self._console.print(f"[bold]\\[{number}/{self._total}] {title}[/bold]: {doing}", highlight=False, soft_wrap=True)
        with self._console.status("") as status:
            stage = Stage(status, metrics)
            yield stage
        self.seconds[title] = time.perf_counter() - start
        self._console.print(f"      {stage.result} [dim]({self.seconds[title]:.1f} s)[/dim]", highlight=False, soft_wrap=True)


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Silence the progress bars of the libraries, and warnings about names that TRL itself still uses."""
    datasets_had_bars, transformers_had_bars = (
        not datasets.are_progress_bars_disabled(),
        transformers_logging.is_progress_bar_enabled(),
    )
    datasets.disable_progress_bars()
    transformers_logging.disable_progress_bar()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`(is_)?gradient_checkpointing", FutureWarning)
        try:
            yield
        finally:
            if datasets_had_bars:
                datasets.enable_progress_bars()
            if transformers_had_bars:
                transformers_logging.enable_progress_bar()
