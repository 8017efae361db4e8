"""What a reader sees while the demonstration runs: one line a stage, and a bar while a trainer works."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import datasets
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from transformers import TrainerCallback
from transformers.utils import logging as transformers_logging

__all__ = ["Stage", "Stages", "quiet_libraries"]


class Stage(TrainerCallback):
    """One stage, which is also the trainer callback that draws its bar.

    Args:
        console: Where to.
        metrics: The name that is shown to the trainer's own name of it, for what is shown beside the bar.
    """

    def __init__(self, console: Console, metrics: Mapping[str, str]) -> None:
        self.result = ""
        self._console = console
        self._metrics = metrics
        self._shown = ""
        # Where there is no terminal, a line a quarter takes the place of the bar.
        self._bar = Progress(
            TextColumn("      "),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("steps"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[shown]}"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Show the bar."""
        self._task = self._bar.add_task("", total=state.max_steps, shown="")
        self._bar.start()

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, Any] | None = None, **kwargs: Any) -> None:
        """Take the metrics that are shown from the trainer's log."""
        found = {shown: logs[name] for shown, name in self._metrics.items() if name in logs} if logs else {}
        if found:
            self._shown = ", ".join(f"{name} {float(value):.2f}" for name, value in found.items())
            self._bar.update(self._task, shown=self._shown)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Move the bar."""
        self._bar.update(self._task, completed=state.global_step)
        quarter = max(1, state.max_steps // 4)
        if self._bar.disable and state.global_step % quarter == 0 and state.global_step < state.max_steps:
            progress = f"step {state.global_step} of {state.max_steps}"
            self._console.print(f"      {progress}{', ' if self._shown else ''}{self._shown}", highlight=False)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Take the bar away."""
        self._bar.stop()

    def close(self) -> None:
        """Take the bar away where training broke off."""
        self._bar.stop()


class Stages:
    """Numbers the stages and times them.

    Args:
        console: Where to.
        total: How many there will be.
    """

    def __init__(self, console: Console, total: int) -> None:
        self.seconds: dict[str, float] = {}
        self._console = console
        self._total = total

    @contextmanager
    def stage(self, title: str, doing: str, **metrics: str) -> Iterator[Stage]:
        """Print what is being done, then its `Stage.result` with the time it took.

        Args:
            title: The stage's name.
            doing: What it does.
            metrics: The name that is shown to the trainer's own name of it.
        """
        start = time.perf_counter()
        number = len(self.seconds) + 1
        self._console.print(f"[bold]\\[{number}/{self._total}] {title}[/bold]: {doing}", highlight=False, soft_wrap=True)
        stage = Stage(self._console, metrics)
        try:
            yield stage
        finally:
            stage.close()
        self.seconds[title] = time.perf_counter() - start
        self._console.print(f"      {stage.result} [dim]({self.seconds[title]:.1f} s)[/dim]", highlight=False, soft_wrap=True)


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Silence what the libraries say on the side of what was asked of them: bars of their own, renamed arguments.

    Their warnings about what they were given still show.
    """
    had_datasets_bars = datasets.are_progress_bars_disabled()
    had_transformers_bars = transformers_logging.is_progress_bar_enabled()
    with ExitStack() as restore:
        restore.enter_context(warnings.catch_warnings())
        # TRL still uses names that transformers has renamed, which nobody who runs this can change.
        warnings.filterwarnings("ignore", "`(is_)?gradient_checkpointing", FutureWarning)
        datasets.disable_progress_bars()
        transformers_logging.disable_progress_bar()
        if not had_datasets_bars:
            restore.callback(datasets.enable_progress_bars)
        if had_transformers_bars:
            restore.callback(transformers_logging.enable_progress_bar)
        yield
