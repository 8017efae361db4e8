"""Options and progress bars of the commands that run jobs."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rm_plugins.cli.printed import STANDARD_OUTPUT, Console, is_quiet, say, write_data
from rm_plugins.errors import MissingDependencyError
from rm_plugins.jobs.progress import JobProgress
from rm_plugins.labels import counted

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from rm_plugins.data.mapping import RowMapping

_WRITTEN = (".jsonl", ".json", ".ndjson", ".parquet")
_RESUMED = {"scoring": ("row", "scored"), "generating": ("prompt", "whose completions were written")}


def output_path(source: str, split: str, out: str | None, ending: str) -> Path:
    """Where the output goes: `out`, else beside the input file, as ``NAME.ending.jsonl``; no two inputs have one output.

    Raises:
        click.UsageError: `out` has another ending than those that are written, or there is nothing beside which it could go.
        MissingDependencyError: The output is Parquet, and pyarrow is not installed.
    """
    from rm_plugins.data.row_files import is_data_file, without_data_ending

    if out is not None:
        if Path(out).suffix not in _WRITTEN:
            raise click.UsageError(f"-o writes {', '.join(_WRITTEN)}, or - for standard output; {out!r} has another ending.")
        if Path(out).suffix == ".parquet" and find_spec("pyarrow") is None:
            raise MissingDependencyError("Parquet needs the package pyarrow: pip install pyarrow, or write .jsonl.")
        return Path(out)
    if source == "-":
        raise click.UsageError("Where should the output go? -o FILE, or -o - for standard output.")
    path = Path(source)
    if is_data_file(source):
        return path.with_name(f"{without_data_ending(path.name)}.{ending}.jsonl")
    name = source.strip("/").replace("/", "--")
    return Path(f"{name}@{split}.{ending}.jsonl")


@contextmanager
def rows_output(source: str, split: str, out: str | None, ending: str) -> Iterator[Path]:
    """Lend the file that a job writes: that of `output_path`, or for ``-`` a temporary one that goes to standard output at the end."""
    if out != STANDARD_OUTPUT:
        yield output_path(source, split, out, ending)
        return
    with tempfile.TemporaryDirectory(prefix="rm-plugins-") as folder:
        file = Path(folder) / f"{ending}.jsonl"
        yield file
        write_data(file)


def check_separate(inputs: Iterable[tuple[str, str]], outputs: Iterable[tuple[str, Path | str | None]]) -> None:
    """Refuse an output that would replace an input or another output.

    Args:
        inputs: What each is called, and a path; what is not a path, such as a URL, is the same as no output.
        outputs: What each is called, and its path; None or ``-`` where there is none.

    Raises:
        click.UsageError: Two are the same file, under one name or two.
    """
    places = [(name, Path(text)) for name, text in inputs if text != "-"]
    for name, given in outputs:
        if given is None or str(given) == STANDARD_OUTPUT:
            continue
        path = Path(given)
        for other, place in places:
            if _is_same(path, place):
                raise click.UsageError(f"{other} and {name} are the same file, {str(path)!r}. Name different ones.")
        places.append((name, path))


def _is_same(path: Path, place: Path) -> bool:
    try:
        return path.resolve() == place.resolve() or path.samefile(place)
    except (OSError, ValueError):  # one does not exist, or is not a path
        return False


def shown_output(out: Path, given: str | None) -> str:
    """What a message calls the output."""
    return "standard output" if given == STANDARD_OUTPUT else str(out)


def how_to_resume(parameters: Mapping[str, Any]) -> str:
    """What to do after a scoring job was interrupted."""
    if parameters.get("output") == STANDARD_OUTPUT:
        return "Nothing is kept with -o -; write to a file to be able to resume."
    without = " without --overwrite" if parameters.get("overwrite") else ""
    return f"Run the same command again{without}: it resumes after the last batch that was scored."


def _mapping(_: click.Context, __: click.Parameter, texts: Sequence[str]) -> RowMapping | None:
    from rm_plugins.data.written_mapping import mapping_of

    return mapping_of(texts) if texts else None


map_option = click.option(
    "--map",
    "--rename",
    "mapping",
    metavar="PRESET|OLD=NEW|FILE.yaml|{YAML}",
    multiple=True,
    callback=_mapping,
    help="Rename or convert columns: a known format such as arena, OLD=NEW, a YAML file, or YAML in braces, as `data check` proposes. May "
    "be repeated.",
)

batch_size_option = click.option(
    "--batch-size",
    type=click.IntRange(min=1),
    default=512,
    show_default=True,
    help="Samples scored, and saved for a resume, at a time.",
)


def scoring_options(command: Callable[..., None]) -> Callable[..., None]:
    """The options of a command that is a scoring job."""
    for option in (
        click.option("--overwrite", is_flag=True, help="Replace the output, and score everything again."),
        batch_size_option,
        map_option,
        click.option("--split", default="train", show_default=True, help="The split, if FILE is a dataset."),
    ):
        command = option(command)
    return command


class ConsoleProgress(JobProgress):
    """Shows on standard error how far a job is, with a bar if that is a terminal."""

    def __init__(self) -> None:
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._work = ""

    def resume(self, work: str, done: int) -> None:
        """Say what an earlier run has left."""
        thing, state = _RESUMED[work]
        say(f"Resuming after {counted(done, thing)} {state}.")

    def note(self, message: str) -> None:
        """Print it."""
        say(message)

    def begin(self, work: str, done: int, total: Callable[[], int | None]) -> None:
        """Show the bar."""
        self._work = work.capitalize()
        self._bar = progress_bar()
        self._bar.start()
        self._task = self._bar.add_task(self._work, total=None if self._bar.disable else total(), completed=done)

    def advance(self, count: int, throughput: str = "") -> None:
        """Move the bar."""
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, advance=count, description=f"{self._work} {throughput}".strip())

    def end(self) -> None:
        """Leave the bar as it is."""
        if self._bar is not None:
            self._bar.stop()


def progress_bar() -> Progress:
    """A progress bar on standard error, which shows nothing with ``-q`` or if that is not a terminal."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=is_quiet() or not console.is_terminal,
    )
