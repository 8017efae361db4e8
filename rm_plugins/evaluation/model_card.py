"""The part of a model card that says how good a reward model is."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rm_plugins.data.row_files import is_data_file
from rm_plugins.errors import DataError, ModelError
from rm_plugins.evaluation.figures import figures_of
from rm_plugins.evaluation.results import DataSummary, Evaluation, RewardResult
from rm_plugins.files import write_atomically
from rm_plugins.labels import counted
from rm_plugins.missing_path import not_there
from rm_plugins.statistics.intervals import Estimate
from rm_plugins.suites import SuiteResult

if TYPE_CHECKING:
    from huggingface_hub import EvalResult, ModelCard, ModelCardData

CARD_NAME = "README.md"

_END = "<!-- end of the evaluation -->"
_BEFORE = "## Training procedure"
"""In the cards that trainers write, the heading that follows the evaluations."""


def evaluation_section(evaluation: Evaluation, reward: int = 0) -> str:
    """The section of a model card, as Markdown, on one reward of an evaluation.

    It is between two comments, by which `write_model_card` recognizes it.

    Args:
        evaluation: The evaluation.
        reward: Which of its rewards, by its place.
    """
    data, result = evaluation.data, evaluation.rewards[reward]
    figures = figures_of(data.attributes)
    parts = [
        f"{_beginning(data)}\n## Evaluation on {_plain(_title(data))}",
        _facts(evaluation, result),
        _findings(result),
        _suite(result.suite) if result.suite is not None else "",
        _table(
            ("Figure", "Value", "95% interval"),
            [
                (figures[name].title, *_shown(estimate, is_share=figures[name].is_share))
                for name, estimate in result.figures.items()
            ],
        ),
        _table(
            ("Section", "Pairs", "Ties", "Accuracy", "95% interval"),
            [
                (
                    section.name,
                    f"{section.pairs:,}",
                    "" if section.ties is None else _shown(section.ties, is_share=True)[0],
                    *_shown(section.accuracy, is_share=True),
                )
                for section in result.sections
            ],
        ),
        _END,
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def write_model_card(folder: Path | str, evaluation: Evaluation, reward: int = 0) -> Path:
    """Put an evaluation into the model card of a folder, in place of an earlier one on the same data; returns the card.

    The section comes before the one on the training procedure, or last. The figures are also in the card's metadata, as
    ``model-index``. Everything else in the card stays; where there is no card, a short one is made.

    Args:
        folder: The model's.
        evaluation: The evaluation.
        reward: Which of its rewards is the model in the folder, by its place.

    Raises:
        ModelError: There is no such folder.
        DataError: The card is not text, or its metadata cannot be read.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ModelError(
            f"There is no folder {str(folder)!r} to write a model card into"
            f"{not_there(folder, advice='Evaluate the folder of a model; a hub id has none.')}"
        )
    path = folder / CARD_NAME
    card = _card(path)
    metadata: ModelCardData = card.data  # type: ignore[assignment]
    end_of_line = "\r\n" if "\r\n" in card.text else "\n"
    card.text = _with_section(card.text, evaluation_section(evaluation, reward).replace("\n", end_of_line), end_of_line)
    new = _results(evaluation.data, evaluation.rewards[reward])
    others = [entry for entry in metadata.eval_results or () if entry.dataset_name != _title(evaluation.data)]
    if new or metadata.eval_results:
        metadata.model_name = metadata.model_name or folder.resolve().name
        metadata.eval_results = [*others, *new] or None
    return write_atomically(path, str(card))


def _card(path: Path) -> ModelCard:
    from huggingface_hub import ModelCard

    name = path.parent.resolve().name
    library = "peft" if (path.parent / "adapter_config.json").is_file() else "transformers"
    metadata = f"---\nlibrary_name: {library}\npipeline_tag: text-classification\ntags:\n- reward-model\n---\n"
    if not path.is_file():
        return ModelCard(f"{metadata}\n# {name}\n\nA reward model: it scores texts, the higher the better.\n")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:  # with its ends of lines
            text = file.read()
        return ModelCard(text if text.lstrip().startswith("---") else f"{metadata}\n{text}")
    except Exception as error:  # yaml's and huggingface_hub's, which has no class of its own for it
        reason = " ".join(str(error).split())
        raise DataError(
            f"{path} cannot be read as a model card: {reason}. Correct its metadata, between the two lines of ---, or move it away."
        ) from error


def _with_section(text: str, section: str, end_of_line: str) -> str:
    beginning = section.partition(end_of_line)[0]
    old = re.compile(f"{re.escape(beginning)}.*?{re.escape(_END)}(\r?\n)?", re.DOTALL)
    if old.search(text):
        return old.sub(lambda _: section, text, count=1)
    before, heading, after = text.partition(_BEFORE)
    if heading:
        return f"{before}{section}{end_of_line}{heading}{after}"
    return f"{text.rstrip()}{2 * end_of_line}{section}"


# --- The section ----------------------------------------------------------------------------------------------------------


def _title(data: DataSummary) -> str:
    """What the data is called: a file without its folder, which is private to this machine."""
    source = data.source if data.source != "-" else ""
    if is_data_file(source) or Path(source).is_dir():
        source = Path(source).name
    parts = [source or f"rows {data.digest[:12]}", f"({data.split})" if data.split else ""]
    return f"{data.suite} ({' '.join(filter(None, parts))})" if data.suite else " ".join(filter(None, parts))


def _beginning(data: DataSummary) -> str:
    return f"<!-- rm-plugins: evaluation on {re.sub(r'-{2,}|[<>]', '-', _plain(_title(data)))} -->"


def _facts(evaluation: Evaluation, result: RewardResult) -> str:
    data, settings = evaluation.data, evaluation.settings
    abstained = f" It gave no reward to {result.abstained:,} of {result.samples:,} samples." if result.abstained else ""
    intervals = f"Intervals take {settings.get('cluster', 'prompt')}s for independent." if result.figures else ""
    return (
        f"{counted(data.rows, 'row')} with {counted(data.pairs, 'pair')} and {counted(data.samples, 'sample')} of "
        f"{counted(data.prompts, 'prompt')}, SHA-256 `{data.digest}`, "
        f"evaluated on {evaluation.created[:10]} with rm-plugins {evaluation.versions.get('rm-plugins', '')}.{abstained} {intervals}"
    ).rstrip()


def _findings(result: RewardResult) -> str:
    return "\n".join(f"- **{finding.severity.capitalize()}**: {_plain(finding.message)}" for finding in result.findings)


def _suite(suite: SuiteResult) -> str:
    sections = [
        (part.name, f"{part.items:,}", _number(part.score), f"{part.weight:.3g}" if part.weight else "")
        for part in suite.sections
    ]
    parts = [
        f"**{_plain(suite.name)}: {_number(suite.score)}.** {_plain(suite.rule)}",
        _table(("Section", "Rows", "Score", "Weight"), sections),
        _table(("Figure of the benchmark", "Value"), [(name, _number(value)) for name, value in suite.figures.items()]),
    ]
    for table in suite.tables:
        rows = [(name, *map(_number, values)) for name, values in zip(table.rows, table.values, strict=True)]
        parts.append(_table((table.title, *table.columns), rows))
    return "\n\n".join(filter(None, parts))


def _shown(estimate: Estimate, *, is_share: bool) -> tuple[str, str]:
    def shown(value: float) -> str:
        return f"{value:.1%}" if is_share and math.isfinite(value) else _number(value)

    return shown(estimate.value), f"{shown(estimate.low)} to {shown(estimate.high)}" if math.isfinite(estimate.low) else ""


def _number(value: float) -> str:
    return f"{value:.3f}" if math.isfinite(value) else "none"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown; empty where it has no row."""
    lines = [f"| {' | '.join(map(_plain, row))} |" for row in (head, *rows)]
    if len(lines) == 1:
        return ""
    return "\n".join([lines[0], f"|{'---|' * len(head)}", *lines[1:]])


def _plain(text: str) -> str:
    """A text of one line in which nothing begins a cell or a tag."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


# --- The metadata ---------------------------------------------------------------------------------------------------------


def _results(data: DataSummary, result: RewardResult) -> list[EvalResult]:
    """The figures as the hub has them."""
    from huggingface_hub import EvalResult

    figures = figures_of(data.attributes)
    named = {name: (figures[name].title, estimate.value) for name, estimate in result.figures.items()}
    if result.suite is not None:
        named = {"score": (f"{result.suite.name} score", result.suite.score), **named}
    dataset: dict[str, Any] = {
        "task_type": "text-classification",
        "task_name": "Reward modelling",
        "dataset_name": _title(data),
        "dataset_type": Path(data.source).name if is_data_file(data.source) else data.source or "rows",
        "dataset_config": data.suite or None,
        "dataset_split": data.split or None,
        "dataset_args": {"sha256": data.digest},
    }
    return [
        EvalResult(metric_type=name, metric_name=title, metric_value=round(value, 6), **dataset)
        for name, (title, value) in named.items()
        if math.isfinite(value)
    ]
