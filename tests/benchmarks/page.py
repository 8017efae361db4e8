"""The page that says what was measured."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import torch

from tests.benchmarks import grpo_step
from tests.benchmarks.contenders import CROSS_ENCODER, OURS, TOLERANCE, TRL, Measured

VERSIONS = ("torch", "transformers", "trl", "sentence-transformers", "rm-plugins")


@dataclass(frozen=True, slots=True)
class Planning:
    """What planning a large batch takes.

    Args:
        rows: Rows that were planned.
        tokens: Tokens of all rows.
        unique_tokens: Tokens that the plan computes.
        seconds: The time `plan_batches` took.
        throughput: The unique tokens per second that our engine scored with the same model.
    """

    rows: int
    tokens: int
    unique_tokens: int
    seconds: float
    throughput: float

    @property
    def share(self) -> float:
        """The planning's time as a share of the scoring's."""
        return self.seconds * self.throughput / self.unique_tokens


@dataclass(slots=True)
class Results:
    """All that was measured.

    Args:
        command: The command that measured.
        rounds: Times each contender ran.
        titles: Each shape's heading and what is scored, by letter.
        shapes: The measurements by letter.
        steps: Median seconds of a GRPO step by reward.
        steps_are: What a GRPO step consists of.
        planning: What planning took.
    """

    command: str
    rounds: int
    titles: Mapping[str, tuple[str, str]]
    shapes: dict[str, Measured] = field(default_factory=dict)
    steps: Mapping[str, float] = field(default_factory=dict)
    steps_are: str = ""
    planning: Planning | None = None


def render(results: Results) -> str:
    """The whole page, as Markdown."""
    parts = [
        TITLE,
        f"Made by `{results.command}`.\nAll contenders score the same texts, in turn. Seconds are medians of "
        f"{results.rounds} rounds after one warm-up call of each.\nMachines differ, so compare the ratios rather than the seconds.",
        machine(),
        f"## Targets\n\n{_LETTERS}\n\n" + table(("", "wanted", "measured", ""), _targets(results)),
        *(_shape(letter, *results.titles[letter], measured) for letter, measured in results.shapes.items()),
    ]
    if results.steps:
        parts.append(_steps(results))
    if results.planning is not None:
        parts.append(_planning(results.planning))
    parts.append(_HOW)
    return "\n\n".join(parts) + "\n"


_HOW = f"""## Contenders

- **rm-plugins**: `rm.load(folder).score(samples)` with its defaults.
- **rm-plugins with `dtype: bfloat16`**: the same in half precision. Scores are then rounded to about two digits. Whether it is faster
  than float32 depends on the processor: those with instructions for bfloat16 are named with them at the top of this page.
- **TRL's own path**: the computation of `GRPOTrainer` and `RLOOTrainer` for a model in `reward_funcs`. All texts are tokenized, then one
  forward pass runs over the whole batch, padded to its longest row. TRL adds no special tokens and does not truncate. Here it does
  both, so that scores are comparable and an encoder can run at all.
- **pipeline**: transformers' `pipeline("text-classification")` with `batch_size=32`.
- **CrossEncoder**: sentence-transformers' `CrossEncoder.predict` with its default batch size of 32 and without an activation.
  It takes a list of texts as one pair. To make it score single texts, its `is_singular_input` is replaced by a function that returns
  false.
- **the limit**: the time for the tokens that must be computed, at the best speed of the bare model in the same run (batches without any
  padding). Equal rows count once. In a decoder, tokens of shared prefixes count once, even if the engine computes them several times.
  Ours can be faster, because its last layer runs only for the tokens that are scored, and slower, because attention to long rows costs
  more than the best speed shows.

Everything runs on the CPU, in float32 unless another type is given. Every contender loads the model itself. A float32 score that
differs from ours by more than {TOLERANCE:g} stops the benchmark."""


TITLE = "# Speed and memory"
_LETTERS = """(a), (b) and (c) are the sections below with these letters. [Contenders](#contenders) describes what is compared, and the
limit. 5x is five times as much as ours. The time of other contenders relative to ours depends on the processor more than the limit's."""
TRAINING, MEMORY, SHARDED = "Training a reward model", "Memory of training", "Sharded weights"
ENSEMBLES, GPU, ONE_FORWARD = "Ensembles", "On a GPU", "Scoring over packed rows"
"""The headings of the sections that other benchmarks write."""


def section(page: str, heading: str) -> str:
    """The section of this heading, without it; empty where the page has none."""
    return _parts(page, heading)[1]


def with_section(page: str, heading: str, text: str) -> str:
    """The page with this text under the heading, at its end where it has no such heading; without any text, the page as it is."""
    if not text:
        return page
    before, _, after = _parts(page, heading)
    return "\n\n".join(part for part in (before, f"## {heading}\n\n{text}", after) if part) + "\n"


def _parts(page: str, heading: str) -> tuple[str, str, str]:
    """What is before a section, the section, and what is after it."""
    before, _, rest = f"\n{page}".partition(f"\n## {heading}\n")
    text, mark, after = rest.partition("\n## ")
    return before.strip(), text.strip(), f"{mark}{after}".strip()


def machine() -> str:
    """What the figures were measured on and with."""
    versions = ", ".join(f"{name} {version(name)}" for name in VERSIONS if find_spec(name.replace("-", "_")))
    return f"{_cpu()}, {torch.get_num_threads()} threads, {platform.system()}, Python {platform.python_version()}; {versions}."


def model_of_cpu() -> str:
    """What the processor is called; empty where the system does not say."""
    return next((line.partition(":")[2].strip() for line in _cpu_lines() if line.startswith("model name")), "")


def _cpu_lines() -> list[str]:
    found = Path("/proc/cpuinfo")
    return found.read_text(encoding="utf-8").splitlines() if found.is_file() else []


def _cpu() -> str:
    lines, name = _cpu_lines(), model_of_cpu()
    flags = {flag for line in lines if line.startswith("flags") for flag in line.partition(":")[2].split()}
    special = [name for name in ("avx512_bf16", "amx_bf16") if name in flags]
    inside = ", ".join([platform.machine(), *special])
    return f"{name} ({inside})" if name else platform.processor() or platform.machine()


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows))


def _targets(results: Results) -> list[tuple[str, str, str, str]]:
    """Each target with what was measured and whether it is met; what was not measured has no row."""
    rows = []

    def wants(what: str, measured: float, target: float, unit: str, most: bool = False) -> None:
        met = measured <= target if most else measured >= target
        rows.append(
            (what, f"{'at most' if most else 'at least'} {target:g}{unit}", f"{measured:.2f}{unit}", "met" if met else "missed")
        )

    shapes = results.shapes
    # First, because the ratio to another contender depends on the processor.
    for letter, target in {"a": 0.9, "b": 0.8, "c": 0.85}.items():
        if letter in shapes:
            measured = shapes[letter]
            wants(f"({letter}) the limit: time, relative to ours", measured.limit / measured.seconds[OURS], target, "x")
    for letter, target in {"a": 5.0, "b": 4.0, "c": 3.5}.items():
        if letter in shapes:
            wants(f"({letter}) TRL's own path: time, relative to ours", shapes[letter].times_ours(TRL), target, "x")
    if "a" in shapes:
        measured = shapes["a"]
        wants("(a) CrossEncoder: time, relative to ours", measured.times_ours(CROSS_ENCODER), 1.3, "x")
        wants("(a) our peak memory, relative to TRL's", measured.peaks[OURS] / measured.peaks[TRL], 0.33, "x", most=True)
    if results.planning is not None:
        wants("planning: time, in percent of scoring", 100 * results.planning.share, 5, "%", most=True)
    return rows


def _shape(letter: str, title: str, what: str, measured: Measured) -> str:
    rows = [
        (
            name,
            f"{seconds:.2f}",
            f"{measured.times_ours(name):.2f}",
            f"{measured.differences[name]:.0e}" if name != OURS else "",
        )
        for name, seconds in measured.seconds.items()
    ]
    rows.append(("the limit", f"{measured.limit:.2f}", f"{measured.limit / measured.seconds[OURS]:.2f}", ""))
    rows_best, tokens_best = measured.best_shape
    text = (
        f"## ({letter}) {title}\n\n{what}.\n\n- Data: {measured.samples} rows of {measured.tokens:,} tokens. Our engine "
        f"computes {measured.computed_tokens:,} of them, the limit {measured.least_tokens:,}.\n"
        f"- Model: {measured.parameters / 1e6:.1f}M parameters. The scores have a standard deviation of {measured.deviation:.2f}.\n"
        f"- Throughput: our engine {measured.throughput:,.0f} tokens per second. The bare model's best is "
        f"{measured.best_throughput:,.0f}, with {rows_best} rows of {tokens_best} tokens.\n\n"
        f"{table(('', 'seconds', 'relative to ours', 'largest difference of a score'), rows)}"
    )
    if measured.peaks:
        peaks = [(name, f"{peak / 2**20:,.0f}", f"{peak / measured.peaks[OURS]:.2f}") for name, peak in measured.peaks.items()]
        text += "\n\nMemory of one process for each, with Python, its libraries and the model:\n\n"
        text += table(("", "peak memory in MiB", "relative to ours"), peaks)
    return text


def _steps(results: Results) -> str:
    ours = results.steps[grpo_step.OURS]
    rows = [(name, f"{seconds:.2f}", f"{seconds / ours:.2f}") for name, seconds in results.steps.items()]
    return f"## (d) A step of GRPO\n\n{results.steps_are}\n\n{table(('reward', 'seconds per step', 'relative to ours'), rows)}"


def _planning(planning: Planning) -> str:
    return (
        f"## Planning\n\nBefore scoring, the engine plans all rows of a call: batches, and the tokens that rows share. For "
        f"{planning.rows:,} rows of\n{planning.tokens / planning.rows:.0f} tokens on average (eight completions per prompt, random "
        f"tokens), this takes {planning.seconds:.2f} s. That is {planning.share:.2%} of the time\nfor scoring their "
        f"{planning.unique_tokens:,} distinct tokens at {planning.throughput:,.0f} tokens per second."
    )
