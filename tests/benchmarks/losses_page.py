"""The page and the picture of what the losses reach."""

from __future__ import annotations

import json
import math
import platform
import statistics
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from rm_plugins.files import write_atomically
from tests.benchmarks.losses_data import DATA_SETS, DataSet, load
from tests.benchmarks.losses_runs import BRADLEY_TERRY, ENTRIES, Entry, Run, minilm

__all__ = ["Results", "write"]

VERSIONS = ("torch", "transformers", "trl", "rm-plugins")
PICTURE = "loss-results-length.svg"

_COLUMNS: Mapping[str, Mapping[str, str]] = {
    "labels": {"AUC": "auc/label"},
    "arguments": {"where the longer wins": "accuracy_longer", "where the shorter wins": "accuracy_shorter"},
    "length": {
        "where the longer wins": "accuracy_longer",
        "where the shorter wins": "accuracy_shorter",
        "prefers the longer": "length_preference",
        "correlation with length": "length_correlation",
    },
    "solutions": {"AUC": "auc/label"},
    "replies": {"Pearson": "correlation/overall", "Spearman": "spearman/overall"},
}
"""What a table says beside the accuracy: heading and metric."""

_REMARKS: Mapping[str, str] = {
    "sentences": "The regularizers limit the size of rewards. They are not meant to increase the accuracy.",
    "ties": "`bradley-terry` ignores ties, so it trains on three tenths fewer rows.",
    "votes": "`bradley-terry` ignores `confidence`. The annotators agree on most pairs, so the two losses hardly differ on this data. "
    "MiniLM cannot judge most of these answers. A figure near 0.5 (chance) therefore only shows that the loss runs on such data, not how "
    "well it suits them. Several pairs share an instruction and are not independent, so the true standard error is larger.",
    "solutions": "The pairs share {held_out} problems and are not independent, so the true standard error is larger. MiniLM cannot check"
    " arithmetic. A figure near 0.5 (chance) therefore only shows that the loss runs on lists, not how well it suits them.",
    "replies": "Pearson and Spearman are correlations of the reward with the overall rating, over all held-out replies. The pairs come"
    " from {held_out} conversations and are not independent, so the true standard error is larger. `regression` learns all "
    "six attributes, and its overall rating is the reward; the other losses use only the overall rating. Ratings are "
    "standardized by the mean and the deviation of the training rows, because a new head starts near 0.",
    "margins": "The pairs come from 20 conversations and are not independent, so the true standard error is larger. Margins are in "
    "standard deviations of the ratings.",
    "decoder": "The decoder has 2 layers of 128 units, a vocabulary of 4,096 and its own language-model head. All weights are random, "
    "so there is nothing for this head to preserve. The table only shows that both terms can be trained together.",
}


@dataclass(frozen=True, slots=True)
class Spread:
    """A figure over seeds."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """The mean over seeds."""
        return statistics.fmean(self.values)

    @property
    def deviation(self) -> float:
        """The standard deviation over seeds, dividing by their number less one; NaN for a single one."""
        return statistics.stdev(self.values) if len(self.values) > 1 else math.nan

    def __str__(self) -> str:
        return f"{self.mean:.3f} ± {self.deviation:.3f}" if len(self.values) > 1 else f"{self.mean:.3f}"


class Results:
    """The finished runs of the sizes that are asked for.

    Args:
        lines: What the runs' processes said.
        seeds: How many seeds count.
        small: Whether the runs with tiny sizes are meant.
    """

    def __init__(self, lines: Iterable[Mapping[str, Any]], seeds: int, *, small: bool) -> None:
        self._found = {json.dumps(line["run"]): line for line in lines}
        self.seeds = seeds
        self.small = small

    def data_set(self, name: str) -> DataSet:
        """A data set, as it was used."""
        found = DATA_SETS[name]
        return replace(found, sizes=found.sizes.small()) if self.small else found

    def of(self, entry: Entry) -> list[Mapping[str, Any]]:
        """The runs of an entry, by seed."""
        keys = [Run(entry, seed, self.data_set(entry.data).sizes).key for seed in range(self.seeds)]
        return [self._found[key] for key in keys if key in self._found]

    def spread(self, entry: Entry, metric: str) -> Spread | None:
        """A metric over seeds; None where no run has it."""
        values = [run["metrics"][metric] for run in self.of(entry) if metric in run["metrics"]]
        return Spread(tuple(values)) if values else None

    def entries(self, data: str) -> list[Entry]:
        """What was trained on a data set."""
        return [entry for entry in ENTRIES if entry.data == data and self.of(entry)]


def write(output: Path, results: Results, folder: Path) -> None:
    """Write the page, and the picture beside it.

    Args:
        output: The page's file.
        results: What was found.
        folder: Where the data is.
    """
    parts = ["# Comparison of losses", _intro(results)]
    for name in DATA_SETS:
        if results.entries(name):
            parts.append(_table_of(name, results))
        if name == "length" and _drawn(results):
            longer = _longer_share(results, folder)
            _draw(output.with_name(PICTURE), results, longer)
            parts.append(_length(results, longer))
    write_atomically(output, "\n\n".join([*parts, *_missing(results)]) + "\n")


# --- Text -----------------------------------------------------------------------------------------------------------------


def _intro(results: Results) -> str:
    versions = ", ".join(f"{name} {version(name)}" for name in VERSIONS)
    machine = (
        f"{_cpu()}, one thread for each training, {platform.system()}, Python {platform.python_version()}; {versions}. An "
        "interrupted command resumes without repeating finished trainings. `--only`, `--data` and `--seeds` select a part."
    )
    return f"""Made by `make bench-losses`. Every loss and every regularizer trains a small model with `RewardTrainer` on data of its
kind, and is evaluated on held-out rows. The tables show whether a loss learns, and compare the losses **at this size**: a few
hundred rows, and one learning rate for all losses of a table, without tuning.

- **Model**: MiniLM (22.7M parameters, the encoder of `all-MiniLM-L6-v2`) with a new linear head. All weights are trained in float32
  without dropout. The last table uses a small decoder. The learning rate falls linearly after 10% of warm-up.
- **Accuracy**: the share of held-out pairs in which the better text has the strictly higher reward.
- **±** is the standard deviation over {results.seeds} seeds. A seed determines the head's first weights and the order of the rows. The rows
  themselves are always the same.
- **Standard error**: for n pairs, the standard error of an accuracy p is √(p(1 − p)/n). It is due to the choice of the held-out rows,
  which all seeds share, so more seeds do not reduce it.
- **Clear differences** are larger than 2·√2 standard errors *and* larger than twice the larger of the two standard deviations. Do not
  rank losses by smaller ones. With three seeds, even a clear difference holds only for this data and these settings.

{_paragraph(machine)}"""


def _table_of(name: str, results: Results) -> str:
    data, entries = results.data_set(name), results.entries(name)
    sizes, columns = data.sizes, _COLUMNS.get(name, {})
    pairs = results.of(entries[0])[0]["metrics"]["pairs"]
    first = results.spread(entries[0], "accuracy")
    assert first is not None
    error = math.sqrt(first.mean * (1 - first.mean) / pairs)
    rows = []
    for entry in entries:
        accuracy = results.spread(entry, "accuracy")
        assert accuracy is not None
        others = [str(results.spread(entry, metric) or "") for metric in columns.values()]
        rows.append([_name(entry), str(accuracy), ", ".join(f"{value:.3f}" for value in accuracy.values), *others])
    epochs = "one epoch" if sizes.epochs == 1 else f"{sizes.epochs} epochs"
    held_out = f"{sizes.held_out} rows with {pairs} pairs" if pairs != sizes.held_out else f"{pairs} pairs"
    parts = [
        f"## {data.title}",
        _paragraph(
            f"{data.what} Training: {sizes.train} rows, {epochs} in batches of {sizes.batch}, learning rate {sizes.learning_rate:g}, "
            f"at most {sizes.max_length} tokens per text. Held out: {held_out}."
        ),
        _table(["loss", "accuracy", "seeds", *columns], rows),
        _paragraph(f"On {pairs} pairs the standard error is {error:.3f}. {_differences(entries, results, error)}"),
    ]
    if name in _REMARKS:
        parts.append(_paragraph(_REMARKS[name].format(held_out=sizes.held_out)))
    return "\n\n".join(parts)


def _differences(entries: Sequence[Entry], results: Results, error: float) -> str:
    """Which accuracies differ from the first one by more than chance; those that miss seeds are not compared."""
    accuracies = [(entry, results.spread(entry, "accuracy")) for entry in entries]
    whole = [(entry, found) for entry, found in accuracies if found is not None and len(found.values) == results.seeds]
    if len(whole) < 2 or whole[0][0] is not entries[0] or results.seeds < 2:
        return "There are too few seeds to compare."
    one, first = whole[0]
    found = []
    for entry, accuracy in whole[1:]:
        gap = accuracy.mean - first.mean
        if abs(gap) > max(2 * math.sqrt(2) * error, 2 * max(first.deviation, accuracy.deviation)):
            found.append(f"{_name(entry)} ({gap:+.3f})")
    if not found:
        return f"There is no clear difference from {_name(one)}."
    return f"Clear differences from {_name(one)}: {', '.join(found)}."


def _missing(results: Results) -> list[str]:
    found = {}
    for name, data in DATA_SETS.items():
        entries = [entry for entry in ENTRIES if entry.data == name]
        counts = [f"{_name(entry)} ({len(results.of(entry))})" for entry in entries if len(results.of(entry)) < results.seeds]
        if counts:
            found[data.title] = ", ".join(counts)
    rows = "\n".join(f"- {title}: {counts}" for title, counts in found.items())
    return (
        [f"## Not finished\n\nRows with fewer than {results.seeds} seeds, and how many they have:\n\n{rows}"] if found else []
    )


def _name(entry: Entry) -> str:
    return entry.label.replace(entry.loss, f"`{entry.loss}`", 1)


def _paragraph(text: str) -> str:
    return textwrap.fill(text, 130, break_long_words=False, break_on_hyphens=False)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows))


def _cpu() -> str:
    found = Path("/proc/cpuinfo")
    lines = found.read_text(encoding="utf-8").splitlines() if found.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]} ({platform.machine()})" if names else platform.processor() or platform.machine()


# --- Length ---------------------------------------------------------------------------------------------------------------


def _drawn(results: Results) -> list[Entry]:
    """What the picture shows; nothing where its baseline is missing."""
    found = results.entries("length")
    return found if any(map(_is_baseline, found)) and len(found) > 1 else []


def _is_baseline(entry: Entry) -> bool:
    return entry.loss == BRADLEY_TERRY and not entry.regularizers


def _longer_share(results: Results, folder: Path) -> float:
    """The share of held-out argument pairs whose winner has more tokens."""
    _, held_out = load("length", results.data_set("length").sizes, folder, minilm())
    tokenizer = AutoTokenizer.from_pretrained(minilm())
    chosen, rejected = (tokenizer([row[side] for row in held_out])["input_ids"] for side in ("chosen", "rejected"))
    return statistics.fmean(len(winner) > len(loser) for winner, loser in zip(chosen, rejected, strict=True))


def _length(results: Results, longer: float) -> str:
    baseline = next(filter(_is_baseline, _drawn(results)))

    def mean(metric: str) -> str:
        spread = results.spread(baseline, metric)
        assert spread is not None
        return f"{spread.mean:.2f}"

    lengths = (
        f"The longer argument wins {longer:.0%} of the held-out pairs, so a reward that only counts tokens would be right on as many. The "
        f"rewards of `bradley-terry` have a correlation of {mean('length_correlation')} with the length of the answer, and an accuracy of "
        f"{mean('accuracy')}: {mean('accuracy_longer')} where the longer argument wins, and {mean('accuracy_shorter')} where the shorter "
        "one wins. The table above has the figures of the others."
    )
    meaning = (
        "In the picture, rewards further left depend less on length, and rewards further down are less accurate. Part of this "
        "loss of accuracy is intended: these annotators prefer longer arguments, and a reward that must not use length cannot "
        "agree with them on that. This data does not show how much of the preference is a mistake. If the accuracy does not "
        "rise on pairs where the shorter argument wins, the influence of length was removed without a gain elsewhere. A "
        "correlation does not depend on the size of rewards, so both terms have the strongest effect at the start, when rewards"
        " are small. In a training as short as this one, small weights have a large effect, and large weights leave little of "
        "the preference."
    )
    marks = (
        "Small marks are seeds, large marks their means. Numbers are weights: of the regularizer, and λ_L of `odin`. The "
        "weights were chosen after a look at the effect of larger ones on the same held-out pairs, so the picture illustrates "
        "the trade-off and does not test a hypothesis."
    )
    picture = f"![The accuracy of rewards over their correlation with length]({PICTURE})"
    return "\n\n".join([picture, marks, _paragraph(lengths), _paragraph(meaning)])


def _draw(path: Path, results: Results, longer: float) -> None:
    """Accuracy over the correlation with length, on white, for it to be legible on any page."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    ink, faint = "#222222", "#8a8a8a"
    settings: dict[str, Any] = {"svg.hashsalt": "losses", "font.size": 10, "figure.facecolor": "white", "axes.edgecolor": faint}
    settings |= dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), ink)
    with pyplot.rc_context(settings):  # type: ignore[arg-type]  # its keys are typed one by one
        figure, axes = pyplot.subplots(figsize=(7.2, 4.4), layout="constrained")
        for entry in _drawn(results):
            colour, mark, what = _look(entry)
            accuracy, correlation = results.spread(entry, "accuracy"), results.spread(entry, "length_correlation")
            assert accuracy is not None and correlation is not None
            known = axes.get_legend_handles_labels()[1]
            axes.scatter(correlation.values, accuracy.values, s=16, c=colour, marker=mark, alpha=0.5, linewidths=0, zorder=2)
            axes.scatter(
                *([correlation.mean], [accuracy.mean]),
                s=90,
                c=colour,
                marker=mark,
                zorder=3,
                label=None if what in known else what,
                edgecolors="white",
            )
            weight = entry.regularizers.get("length-correlation", entry.arguments.get("length_weight"))
            if weight is not None:
                place = (correlation.mean, accuracy.mean)
                axes.annotate(f"{weight:g}", place, xytext=(8, -13), textcoords="offset points", color=colour, zorder=4)
        axes.axhline(longer, color=faint, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
        axes.annotate(
            "always the longer one",
            (1, longer),
            xycoords=("axes fraction", "data"),
            xytext=(-4, 4),
            textcoords="offset points",
            ha="right",
            color="#5a5a5a",
            fontsize=9,
        )
        axes.axvline(0, color=faint, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
        axes.set_xlabel("correlation of reward and length")
        axes.set_ylabel("accuracy on unseen debates")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="#e5e5e5", linewidth=0.7)
        axes.set_axisbelow(True)
        axes.legend(loc="lower right", fontsize=9, frameon=True, framealpha=0.9, edgecolor="none")
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None, dpi=150)
        pyplot.close(figure)


def _look(entry: Entry) -> tuple[str, str, str]:
    """Colour, mark, and what the legend says."""
    if _is_baseline(entry):
        return "#222222", "D", "bradley-terry"
    if entry.loss == "odin":
        return "#c2410c", "s", "odin, quality output"
    return "#1d4ed8", "o", "bradley-terry + length-correlation"
