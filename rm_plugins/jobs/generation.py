"""Writing completions for a file of prompts, resumably: what ``rank --generate`` does before it scores."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from rm_plugins.data.row_files import json_line
from rm_plugins.errors import DataError, OutputError
from rm_plugins.files import check_output, is_stream
from rm_plugins.generation import PolicyPrompts, Sampling, load_generator
from rm_plugins.jobs.kept_rows import UnfinishedFile
from rm_plugins.jobs.progress import JobProgress
from rm_plugins.jobs.scored_rows import RowSource
from rm_plugins.samples import prompt_key

_ANSWERS = ("completion", "completions", "chosen", "rejected", "messages", "finished")
_SECRET = ("hf_token", "token")
"""Options that are never written to a file."""


class GenerationJob:
    """Has a policy write completions for each row of a source.

    It writes the source's rows with ``completions`` and ``finished``. ``finished`` is true for a completion that the policy ended, and
    false for one that reached the limit on tokens. A row's own answers and rows that repeat a prompt are left out.

    Args:
        model: The policy, a folder or hub id.
        engine: What runs it.
        options: Keyword arguments for the engine that loads it.
        sampling: How completions are sampled.
        source: The rows with prompts, which are read twice.
        out: The finished file; the unfinished one beside it is ``OUT.part``.
        overwrite: Whether a finished file may be replaced.

    Raises:
        DataError: `out` exists and was not written by this job.
        OutputError: `out` cannot be written.
    """

    def __init__(
        self,
        model: str,
        engine: str,
        options: Mapping[str, Any],
        sampling: Sampling,
        source: RowSource,
        out: Path,
        overwrite: bool,
    ) -> None:
        self._prompts = partial(PolicyPrompts, model, sampling.max_new_tokens, options)
        self._generator = partial(load_generator, model, sampling, engine=engine, options=options)
        self._n = sampling.n
        self._source = source
        public = {name: value for name, value in options.items() if name not in _SECRET}
        policy = {"model": model, "engine": engine, "options": public, "sampling": asdict(sampling), "weights": _weights(model)}
        self.file = UnfinishedFile(out, {**policy, "source": source.name, "split": source.split})
        check_output(out)
        if is_stream(out):
            raise OutputError(f"{out} is not a regular file, and completions are read again to be scored. Name a file.")
        if out.exists() and not overwrite and not self.file.is_finished:
            raise DataError(f"{out} exists already. Name another file, or replace it with --overwrite.")

    @property
    def is_begun(self) -> bool:
        """Whether an earlier run has left completions to resume from."""
        return self.file.path.exists() or self.file.is_finished

    def run(self, batch_size: int | None = None, progress: JobProgress | None = None) -> None:
        """Write what is not written yet.

        Args:
            batch_size: Completions written at a time; the engine's default if None.
            progress: Is told how far the job is.

        Raises:
            DataError: A row has no prompt that the policy can be given, or the rows written before are not of this source.
            ModelError: The policy cannot be loaded, or failed.
            JobInterrupted: It was interrupted with Ctrl-C.
        """
        progress = progress or JobProgress()
        done = self.file.resume()
        with self.file.released_on_failure("generating"):
            rows = self._distinct_rows()
            for number, before in enumerate(self.file.rows(), start=1):
                _, row = next(rows, (0, None))
                if row is None or _prompt_line(row) != _prompt_line(before):
                    raise DataError(
                        f"The interrupted run in {self.file.path} cannot be resumed: prompt {number} of {self._source.name} has changed. "
                        "Start again with --overwrite."
                    )
            if self.file.is_finished:
                if next(rows, None) is not None:
                    raise DataError(
                        f"{self.file.out} has completions of {done} prompts, and the source has more. Start again with --overwrite."
                    )
                progress.note(f"Using the completions of {done} prompts that an earlier run wrote.")
                return
            if done:
                progress.resume("generating", done)
            if left := self._check(rows, progress):
                self._generate(done, left, batch_size, progress)
            self.file.finish()

    def _distinct_rows(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """The first row of each prompt, with its number in the source.

        All completions of a prompt are ranked together, also those of other rows.
        """
        seen: set[bytes] = set()
        for number, row in enumerate(self._source.rows(), start=1):
            key = prompt_key(row.get("prompt"), row)
            if key not in seen:
                seen.add(key)
                yield number, row

    def _check(self, rows: Iterator[tuple[int, dict[str, Any]]], progress: JobProgress) -> int:
        """Refuse prompts that the policy cannot be given, before its weights are loaded; returns the number of rows."""
        prompts: PolicyPrompts | None = None
        answered, count = False, 0
        for number, row in rows:
            if prompts is None:  # without rows, no policy is needed
                prompts = self._prompts()
            prompts.tokens(row, f"row {number}")
            answered = answered or any(row.get(name) is not None for name in _ANSWERS)
            count += 1
        if answered:
            progress.note("The source's own answers are left out: completions come from the policy.")
        return count

    def _generate(self, done: int, left: int, batch_size: int | None, progress: JobProgress) -> None:
        generator = self._generator(batch_size=batch_size)
        rows = (row for _, row in islice(self._distinct_rows(), done, None))
        size = max(1, generator.batch_size // self._n)
        total = done + left
        try:
            progress.begin("generating", done, lambda: total)
            while batch := list(islice(rows, size)):
                written = generator.complete(batch, first=done)
                self.file.append(
                    {
                        **_prompt_row(row),
                        "completions": [completion.text for completion in completions],
                        "finished": [completion.finished for completion in completions],
                    }
                    for row, completions in zip(batch, written, strict=True)
                )
                done += len(batch)
                progress.advance(len(batch))
        finally:
            progress.end()
            generator.close()  # the reward needs the memory


def _prompt_row(row: Mapping[str, Any]) -> Any:
    """What is kept of a row, as it is read back from a file."""
    return json.loads(_prompt_line(row))


def _prompt_line(row: Mapping[str, Any]) -> str:
    """The same as text, in which NaN is equal to itself."""
    return json_line({name: row[name] for name in row if name not in _ANSWERS})


def _weights(model: str) -> list[list[Any]] | None:
    """Names, sizes and times of a model folder's files, by which an overwritten model is noticed; None for a hub id."""
    folder = Path(model)
    if not folder.is_dir():
        return None
    files = sorted(path for path in folder.iterdir() if path.suffix in (".bin", ".jinja", ".json", ".model", ".safetensors"))
    return [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in files]
