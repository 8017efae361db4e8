"""Evaluates a reward model on benchmarks and held-out data while it is trained."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from transformers import Trainer, TrainerCallback

from rm_plugins.data.row_files import is_data_file, read_rows
from rm_plugins.engine.shards import shards_of
from rm_plugins.errors import DataError, ScoringError, SpecError, UnsupportedError
from rm_plugins.evaluation.judged_rows import Cluster, RowCollector
from rm_plugins.evaluation.results import Evaluation
from rm_plugins.evaluation.run import RESAMPLES, evaluate
from rm_plugins.files import write_atomically
from rm_plugins.processes import all_gathered
from rm_plugins.providers.models.model_in_memory import ModelInMemory
from rm_plugins.samples import Sample
from rm_plugins.scores import Scores, joined
from rm_plugins.spec import component
from rm_plugins_trl.reward_training.sharded_engine import ShardedEngine
from rm_plugins_trl.trl_internals import callbacks_of, place_first

if TYPE_CHECKING:
    from rm_plugins.suites import Suite

logger = logging.getLogger(__name__)

Rows: TypeAlias = "str | Path | Iterable[Mapping[str, Any]]"
"""A data file, the name or folder of a dataset, or the rows themselves, such as a `datasets.Dataset`."""


class RewardEvaluation(TrainerCallback):
    """Evaluates the model that `RewardTrainer` trains, as ``rm-plugins evaluate`` does it with the saved model.

    Every evaluation is logged with the trainer's own, as ``eval_NAME/FIGURE``: the figures of `rm_plugins.evaluation.figures`, ``accuracy``
    of each section as ``eval_NAME/accuracy/SECTION``, and a benchmark's own ``score`` and ``score/SECTION``. Findings that need
    attention are logged as warnings. The model scores in place, in its own precision and without autocast; training continues as if
    nothing had been evaluated. Each of several processes scores a share, and all get the result. Sharded weights score in the precision of
    the training.

    The final model is always evaluated, and the last evaluations become part of its model card.

    If an evaluation fails, an error is logged in place of its figures; training continues.

    Args:
        data: The rows, or several by name: a data file, the name of a dataset, or rows in the formats of `rm_plugins.data.judgements`.
        suites: Benchmarks by the name of their data, whose own rule is applied too. If `data` lacks that name, the benchmark's own
            dataset is loaded.
        every: ``evaluate`` for whenever the trainer evaluates, a number of steps, or ``end`` for the final model only.
        section: The column that names a row's section; ``section`` or ``subset`` by default.
        by: The rating that rated samples are compared by; the mean of all by default.
        cluster: Whether the intervals treat prompts (``prompt``) or single rows (``row``) as independent.
        split: The split of datasets that are given by name; a benchmark's own, or else ``test``, by default.
        report: A folder for a page with the last evaluation of each data, ``NAME.html``.
        batch_size: Rows scored at a time.
        resamples: The number of resamples of prompts for the interval of the accuracy without length.
        seed: The seed of the resampling.

    Attributes:
        evaluations: By the name of the data, the step and the result of each evaluation so far.

    Raises:
        DataError: Data cannot be read, has no rows, or has a row in none of the formats.
        SpecError: There is no data, a name or `every` is wrong.
        UnknownNameError: There is no benchmark of that name.
        MissingDependencyError: A report is asked for, and matplotlib is not installed.

    >>> rows = [{"prompt": "Name a colour.", "chosen": " Blue.", "rejected": " Two."}]
    >>> RewardEvaluation({"colours": rows}, every="end").evaluations
    {'colours': []}
    """

    def __init__(
        self,
        data: Rows | Mapping[str, Any] | None = None,
        *,
        suites: Mapping[str, Suite | str] | None = None,
        every: Literal["evaluate", "end"] | int = "evaluate",
        section: str | None = None,
        by: str | None = None,
        cluster: Cluster = "prompt",
        split: str | None = None,
        report: Path | str | None = None,
        batch_size: int = 256,
        resamples: int = RESAMPLES,
        seed: int = 0,
    ) -> None:
        if every not in ("evaluate", "end") and not (isinstance(every, int) and every > 0):
            raise SpecError(f"every={every!r}: allowed are 'evaluate', 'end', or a number of steps above 0.")
        named = dict(data) if isinstance(data, Mapping) else {} if data is None else {_name_of(data): data}
        chosen = {
            name: component("suite", suite) if isinstance(suite, str) else suite for name, suite in (suites or {}).items()
        }
        if not named and not chosen:
            raise SpecError("RewardEvaluation needs data: RewardEvaluation({'NAME': ROWS}), or benchmarks in `suites`.")
        if report is not None:
            from rm_plugins.reports.charts import drawing

            with drawing():  # a missing matplotlib shows now, not at the first evaluation
                pass
        columns = {"section": section, "by": by, "cluster": cluster}
        self._data = [
            _read(name, named.get(name), chosen.get(name), split, columns) for name in dict.fromkeys([*named, *chosen])
        ]
        self.every = every
        self.report = None if report is None else Path(report)
        self.evaluations: dict[str, list[tuple[int, Evaluation]]] = {data.name: [] for data in self._data}
        self._settings = {"batch_size": batch_size, "resamples": resamples, "seed": seed}
        self._trainer: Any = None
        self._evaluated_at: int | None = None

    @property
    def last(self) -> dict[str, Evaluation]:
        """The last evaluation on each data, by name."""
        return {name: evaluations[-1][1] for name, evaluations in self.evaluations.items() if evaluations}

    def attach(self, trainer: Any) -> None:
        """Set the trainer whose model is evaluated; `RewardTrainer` does so for its callbacks."""
        self._trainer = trainer

    # --- What the trainer calls -------------------------------------------------------------------------------------------

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Check whether this trainer's model can be evaluated."""
        self._trainer_of_rewards()
        self._evaluated_at = None

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: dict[str, float] | None = None, **kwargs: Any) -> None:
        """Evaluate, and add the figures to the metrics by which the trainer chooses the best model."""
        if self.every != "evaluate" or metrics is None:
            return
        trainer = self._trainer_of_rewards()
        datasets = list(trainer.eval_dataset) if isinstance(trainer.eval_dataset, dict) else []
        if any(f"eval_{name}_runtime" in metrics for name in datasets[:-1]):
            return  # the trainer evaluates on the others first
        metrics.update(self._evaluate(trainer))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Evaluate every `every` steps."""
        if isinstance(self.every, int) and state.global_step % self.every == 0:
            self._evaluate(self._trainer_of_rewards())

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Evaluate the final model, unless the trainer does so after this or it was done just before."""
        trainer = self._trainer_of_rewards()
        if self.every == "evaluate" and trainer.eval_dataset is not None:
            return
        if self._evaluated_at != state.global_step or args.load_best_model_at_end:
            self._evaluate(trainer)

    # --- What is made of it -----------------------------------------------------------------------------------------------

    def _trainer_of_rewards(self) -> Any:
        if self._trainer is None:
            raise UnsupportedError(
                "RewardEvaluation evaluates the model that rm_plugins_trl.RewardTrainer trains, and is not a callback for other trainers. "
                "Evaluate a model of TRL's own RewardTrainer after its training: `rm-plugins evaluate FOLDER DATA`. The reward of a "
                "policy's training does not change, so evaluate it in the same way."
            )
        return self._trainer

    def _evaluate(self, trainer: Any) -> dict[str, float]:
        """Evaluate the model as it is now on all data, and log the figures; returns them by their names in the log."""
        step, figures = trainer.state.global_step, dict[str, float]()
        reward = _SharedScoring(trainer)
        for data in self._data:
            try:
                evaluation = data.evaluate(reward, self._settings)
            except Exception as error:
                # Any error: training may have taken hours, and the model is not saved yet.
                if trainer.is_world_process_zero():
                    logger.error("Step %d: the evaluation on %s failed, so it has no figures: %s", step, data.name, error)
                continue
            if trainer.is_world_process_zero():
                self._tell(step, data.name, evaluation)
            self.evaluations[data.name].append((step, evaluation))
            figures |= _figures(data.name, evaluation)
        if figures:
            # TRL's and our own log would add the training metrics since the last log entry to this one.
            due = trainer.control.should_log  # which every log resets
            Trainer.log(trainer, dict(figures))
            trainer.control.should_log = due
        self._evaluated_at = step
        return figures

    def _tell(self, step: int, name: str, evaluation: Evaluation) -> None:
        """Warn of new findings, and write the page."""
        before = self.last.get(name)
        known = set() if before is None else {finding.kind for finding in before.rewards[0].findings}
        for finding in evaluation.rewards[0].findings:
            if finding.severity in ("alarm", "warning") and finding.kind not in known:
                logger.warning("Step %d, %s: %s", step, name, finding.message)
        if self.report is None:
            return
        from rm_plugins.reports import evaluation_page

        try:
            write_atomically(self.report / f"{re.sub(r'[^.0-9A-Za-z_-]+', '-', name)}.html", evaluation_page(evaluation))
        except OSError as error:
            logger.error("The report on %s cannot be written: %s", name, error)


def attached_evaluations(trainer: Any) -> list[RewardEvaluation]:
    """The evaluations among a trainer's callbacks, which it is attached to.

    They come before all others, so that early stopping sees their figures in any order of the callbacks.

    Raises:
        SpecError: Two have data of the same name, under which both would log.
    """
    evaluations = [callback for callback in callbacks_of(trainer) if isinstance(callback, RewardEvaluation)]
    names = [name for evaluation in evaluations for name in evaluation.evaluations]
    if repeated := next((name for name in names if names.count(name) > 1), None):
        raise SpecError(
            f"Two RewardEvaluation callbacks have data called {repeated!r}. Name one: RewardEvaluation({{'OTHER': ROWS}})."
        )
    place_first(trainer, evaluations)
    for evaluation in evaluations:
        evaluation.attach(trainer)
    return evaluations


@dataclass(frozen=True, slots=True)
class _Data:
    """Rows to evaluate on, which can be read repeatedly."""

    name: str
    rows: Iterable[Mapping[str, Any]]
    source: str
    split: str
    suite: Suite | None
    columns: Mapping[str, Any]

    def evaluate(self, reward: _SharedScoring, settings: Mapping[str, int]) -> Evaluation:
        reward.check_rows(self)
        evaluation = evaluate(reward, self.rows, suite=self.suite, source=self.source, **self.columns, **settings)  # type: ignore[arg-type]
        return replace(evaluation, data=replace(evaluation.data, split=self.split))


class _SharedScoring(ModelInMemory):
    """The model of a trainer, of which each process scores a share of every batch and gets the scores of all."""

    def __init__(self, trainer: Any) -> None:
        if trainer.renderer is None:
            raise UnsupportedError("The trainer has no dataset, so it does not know yet how text becomes token ids.")
        self._process, self._processes = trainer.accelerator.process_index, trainer.accelerator.num_processes
        forward = trainer.batch_forward
        label = Path(trainer.args.output_dir).name
        super().__init__(forward.model, trainer.renderer, trainer.heads, label=label, max_batch_tokens=forward.max_tokens)
        self._is_sharded = shards_of(forward.model) is not None
        if self._is_sharded:
            engine: Any = ShardedEngine(self.trained.engine.is_decoder, trainer.model_wrapped)
            self.trained.engine = engine

    def check_rows(self, data: _Data) -> None:
        """Check that all processes have the same number of rows; one with more would wait forever for the others."""
        counts = all_gathered(len(data.rows), "the numbers of rows of an evaluation")  # type: ignore[arg-type]
        if len(set(counts)) > 1:
            raise DataError(
                f"The processes have different rows of {data.name}, {', '.join(map(str, counts))}; they must have the same."
            )

    def score_batch(self, samples: Sequence[Sample]) -> Scores:
        if self._is_sharded:  # the engine shares the rows, because no process can run the model without the others
            return super().score_batch(samples)
        if self._processes == 1:
            return super().score_batch(samples)
        own = range(self._process, len(samples), self._processes)
        part: Scores | None = None
        problem: str | None = None
        try:
            if own:
                part = super().score_batch([samples[row] for row in own]).scattered(own, len(samples))
        except Exception as error:  # the other processes wait for an answer
            problem = f"Process {self._process}: {error}"
        shares = all_gathered((part, problem), "the scores of an evaluation")
        problems = [problem for _, problem in shares if problem is not None]
        if problems:
            raise ScoringError(" ".join(problems))
        return joined([part for part, _ in shares if part is not None])


def _read(name: str, rows: Rows | None, suite: Suite | None, split: str | None, columns: Mapping[str, Any]) -> _Data:
    """The rows, all checked, so that a training fails at its start and not at its first evaluation."""
    if not name:
        raise SpecError("Data needs a name, under which its figures are logged.")
    used = ""
    given: Iterable[Mapping[str, Any]]
    if isinstance(rows, (str, Path)):
        source = str(rows)
        used = "" if is_data_file(source) else split or (suite.split if suite is not None else "test")
        given = read_rows(source, used)
    elif rows is not None:
        source, given = name, rows
    elif suite is not None:
        source = suite.source if isinstance(suite.source, str) else ", ".join(suite.source)
        used = split or suite.split
        given = suite.published(used)
    else:
        raise SpecError(f"{name}: there are no rows. Give a file, the name of a dataset, or rows.")
    kept = given if hasattr(given, "__len__") else list(given)
    data = _Data(name, kept, source, used, suite, columns)
    collector, number = RowCollector(**columns), 0
    for number, row in enumerate(kept if suite is None else suite.checked_rows(kept), start=1):
        collector.judged(row, f"Row {number} of {name}")
    if not number:
        raise DataError(f"There is no row in {name} to evaluate on.")
    return data


def _name_of(rows: Rows) -> str:
    """The name of data that was given without one: a file's name without its ending, or a dataset's."""
    if not isinstance(rows, (str, Path)):
        return "data"
    return Path(rows).name.partition(".")[0] or "data"


def _figures(name: str, evaluation: Evaluation) -> dict[str, float]:
    """The figures of an evaluation by their names in the log; those that could not be computed are left out."""
    result = evaluation.rewards[0]
    values = {figure: estimate.value for figure, estimate in result.figures.items()}
    values |= {f"accuracy/{section.name}": section.accuracy.value for section in result.sections}
    if result.suite is not None:
        values["score"] = result.suite.score
        values |= {f"score/{section.name}": section.score for section in result.suite.sections}
    return {f"eval_{name}/{figure}": value for figure, value in values.items() if math.isfinite(value)}
