"""Checks the rows of a dataset one by one."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeAlias

from rm_plugins.data.answers import question_key
from rm_plugins.data.check_report import AttributeSummary, DataReport, Example, LengthBias, Problem, SourceCounts
from rm_plugins.data.check_texts import (
    VERDICT_BITS,
    characters,
    excerpt,
    is_blank,
    one_line,
    row_digests,
)
from rm_plugins.data.equal_pairs import CAUSE, equal_pairs
from rm_plugins.data.judgements import Judgement, attribute_names, judgement
from rm_plugins.data.plain_values import plain_row
from rm_plugins.data.presets import ignored_verdicts
from rm_plugins.data.repeated_prompts import RepeatedPrompts
from rm_plugins.data.row_files import json_line
from rm_plugins.data.transcripts import is_transcript
from rm_plugins.errors import DataError
from rm_plugins.samples import Sample

Lengths: TypeAlias = Callable[[Sequence[Sample]], Sequence[int]]
TokenIds: TypeAlias = Callable[[Sequence[Sample]], Sequence[Sequence[int]]]

_QUANTILES = {"shortest": 0.0, "5%": 0.05, "25%": 0.25, "median": 0.5, "75%": 0.75, "95%": 0.95, "99%": 0.99, "longest": 1.0}
_SAMPLES_AT_A_TIME = 512
_EXAMPLES = 3

_ERRORS = {"malformed": "that cannot be trained on"}
_NOTHING_JUDGED = (
    "no row has a comparison, a rating or a label; add columns such as 'chosen' and 'rejected', or rename yours: --map OLD=NEW"
)
_WARNINGS = {
    "contradiction": "with the texts of an earlier row and another judgement",
    "identical-pair": "whose winner and loser are the same text",
    "equal-ids": f"whose winner and loser have equal token ids: they differ only in parts that are not rendered, {CAUSE}",
    "duplicate": "equal to an earlier row",
    "repeated-completion": "with one completion twice",
    "leaked-sample": "with a prompt and completion that are in an earlier file too",
    "leaked-prompt": "with a prompt that is in an earlier file too, and other completions",
    "overlong": "longer than {limit}",
    "empty-completion": "with an empty completion",
    "empty-prompt": "with an empty prompt",
    "ignored-verdict": "with 'chosen' and 'rejected' and another column that looks like a verdict and is not read",
    "repeated-prompt": "whose completions begin with their prompt, so it is rendered twice; --map split-prompt removes it",
    "transcript": "whose texts are whole conversations ('\\n\\nHuman: '), which --map hh-rlhf splits into messages",
    "no-prompt": "without a prompt, so completions are judged without their question",
    "mixed-formats": "of another format than the first row",
    "mixed-texts": "of text where the first row has messages, or vice versa",
}


class DataCheck:
    """Checks the rows of one or more files or datasets.

    Args:
        lengths: Gives the length of each of many samples, and raises for one that cannot be rendered.
        token_ids: Gives the token ids of each sample, instead of `lengths`: lengths are then in tokens, and pairs are compared.
        unit: The unit of lengths.
        max_length: The longest allowed length; None for no limit.
        compares_sources: Whether to look for rows that occur in several sources; every prompt and sample is then remembered.

    >>> check = DataCheck()
    >>> check.begin("pairs.jsonl")
    >>> check.add({"prompt": "2+2?", "chosen": "4", "rejected": "four"})
    >>> check.add({"prompt": "2+2?", "chosen": "four", "rejected": "4"})
    >>> report = check.report()
    >>> [(problem.kind, problem.examples[0].row) for problem in report.problems]
    [('contradiction', 2)]
    """

    def __init__(
        self,
        *,
        lengths: Lengths = characters,
        token_ids: TokenIds | None = None,
        unit: str = "characters",
        max_length: int | None = None,
        compares_sources: bool = True,
    ) -> None:
        self.unit = unit
        self.max_length = max_length
        self._lengths_of = lengths
        self._token_ids = token_ids
        self._compares_sources = compares_sources
        self._sources: list[SourceCounts] = []
        self._waiting: list[_Waiting] = []
        self._waiting_samples = 0
        self._counts: Counter[str] = Counter()
        self._examples: defaultdict[str, list[Example]] = defaultdict(list)
        self._attributes: defaultdict[str, AttributeSummary] = defaultdict(AttributeSummary)
        self._lengths: Counter[int] = Counter()
        self._bias = _LengthBiasSums()
        self._first: Judgement | None = None
        self._repeated = RepeatedPrompts()
        self._rows: dict[bytes, int] = {}  # the texts of this source's rows: where they are first, and how they are judged
        self._prompts: dict[bytes, int] = {}  # the first source that each is in
        self._samples: dict[bytes, int] = {}

    def begin(self, source: str) -> None:
        """Start another file or dataset, to which the following rows belong."""
        self._flush()
        self._sources.append(SourceCounts(source))
        self._rows.clear()

    def add(self, row: Mapping[str, Any]) -> None:
        """Check a row."""
        self._sources[-1].rows += 1
        number = self._sources[-1].rows
        row = plain_row(row)
        try:
            judged = judgement(row)
            names = attribute_names(row) if judged.labels is not None else ()
        except DataError as error:
            self._note("malformed", number, str(error), json_line(row))
            return
        if judged.format == "preference" and (ignored := ignored_verdicts(row)):
            shown = ", ".join(f"{name!r} is {row[name]!r:.40}" for name in ignored)
            self._note("ignored-verdict", number, shown, judged.samples[0])
        if any(is_transcript(sample.completion) for sample in judged.samples):
            self._note("transcript", number, "", judged.samples[0])
        if self._repeated.add(row):
            self._note("repeated-prompt", number, "", judged.samples[0])
        self._waiting.append(_Waiting(number, judged, names, has_prompt=row.get("prompt") is not None))
        self._waiting_samples += len(judged.samples)
        if self._waiting_samples >= _SAMPLES_AT_A_TIME:
            self._flush()

    def refuse(self, error: DataError) -> None:
        """Count a line that is not a row."""
        self._sources[-1].rows += 1
        self._note("malformed", self._sources[-1].rows, str(error), "")

    def report(self) -> DataReport:
        """The report on the rows so far."""
        self._flush()
        return DataReport(
            sources=tuple(self._sources),
            attributes=dict(self._attributes),
            unit=self.unit,
            max_length=self.max_length,
            lengths=_quantiles(self._lengths),
            length_bias=self._bias.summary(),
            problems=tuple(self._problems()),
        )

    def _flush(self) -> None:
        """Measure the waiting samples in one batch, and check their rows."""
        waiting, self._waiting, self._waiting_samples = self._waiting, [], 0
        try:
            measured = self._measured([sample for row in waiting for sample in row.judged.samples])
        except Exception:  # whatever a tokenizer or a template raises, at one of the samples
            for row in waiting:
                try:
                    measured = self._measured(row.judged.samples)
                except Exception as error:
                    what = " ".join(f"{type(error).__name__}: {error}".split())
                    self._note("malformed", row.number, what, row.judged.samples[0])
                else:
                    self._take(row, measured)
            return
        remaining = iter(measured)
        for row in waiting:
            self._take(row, list(islice(remaining, len(row.judged.samples))))

    def _measured(self, samples: Sequence[Sample]) -> list[tuple[int, Sequence[int]]]:
        """The length of each sample, and its token ids; none if these are not known."""
        if self._token_ids is None:
            return [(length, ()) for length in self._lengths_of(samples)]
        return [(len(ids), ids) for ids in self._token_ids(samples)]

    def _take(self, row: _Waiting, measured: Sequence[tuple[int, Sequence[int]]]) -> None:
        lengths = [length for length, _ in measured]
        source, judged = self._sources[-1], row.judged
        source.samples += len(judged.samples)
        source.pairs += len(judged.pairs)
        source.ties += len(judged.ties)
        source.formats[judged.format] = source.formats.get(judged.format, 0) + 1
        for column, name in enumerate(row.names):
            for ratings in judged.labels or ():
                self._attributes[name].add(ratings[column])
        self._lengths.update(lengths)
        self._bias.add(judged.pairs, lengths, question_key(judged.samples))
        if self.max_length is not None and max(lengths) > self.max_length:
            self._note("overlong", row.number, f"{max(lengths):,} {self.unit}", judged.samples[0])
        self._look_at_texts(row)
        self._look_for_repetitions(row, [ids for _, ids in measured])

    def _look_at_texts(self, row: _Waiting) -> None:
        judged, sample = row.judged, row.judged.samples[0]
        first = self._first = self._first or judged
        if judged.format != first.format:
            self._note("mixed-formats", row.number, judged.format, sample)
        if sample.is_conversational != first.samples[0].is_conversational:
            self._note("mixed-texts", row.number, "conversation" if sample.is_conversational else "text", sample)
        if row.has_prompt and is_blank(sample.prompt):
            self._note("empty-prompt", row.number, "", sample)
        if not row.has_prompt and not sample.prompt and judged.format != "preference":
            self._note("no-prompt", row.number, "", sample)
        empty = next((sample for sample in judged.samples if is_blank(sample.completion)), None)
        if empty is not None:
            self._note("empty-completion", row.number, "", empty)

    def _look_for_repetitions(self, row: _Waiting, token_ids: Sequence[Sequence[int]]) -> None:
        judged, sample = row.judged, row.judged.samples[0]
        prompt, samples = judged.samples[0].prompt_key, [sample.key for sample in judged.samples]
        if any(samples[winner] == samples[loser] for winner, loser in judged.pairs):
            self._note("identical-pair", row.number, "", sample)
        elif self._token_ids is not None and equal_pairs(token_ids, judged.pairs):
            self._note("equal-ids", row.number, "", sample)
        elif len(set(samples)) < len(samples):
            self._note("repeated-completion", row.number, "", sample)
        texts, verdict = row_digests(judged, samples)
        entry = self._rows.setdefault(texts, row.number << VERDICT_BITS | verdict)
        earlier = entry >> VERDICT_BITS
        if earlier != row.number:
            kind = "duplicate" if entry % (1 << VERDICT_BITS) == verdict else "contradiction"
            self._note(kind, row.number, f"as row {earlier}", sample)
        if not self._compares_sources:
            return
        here = len(self._sources) - 1
        homes = [self._samples.setdefault(digest, here) for digest in samples]
        home = here if is_blank(sample.prompt) else self._prompts.setdefault(prompt, here)
        if min(homes) < here:
            self._note("leaked-sample", row.number, f"as in {self._sources[min(homes)].name}", sample)
        elif home < here:
            self._note("leaked-prompt", row.number, f"as in {self._sources[home].name}", sample)

    def _note(self, kind: str, number: int, detail: str, where: Sample | str) -> None:
        self._counts[kind] += 1
        known = self._examples[kind]
        if len(known) == _EXAMPLES:
            return
        if kind == "malformed" and any(example.text.startswith(detail) for example in known):
            return  # thousands of rows with one fault must not hide another fault
        shown = one_line(where) if isinstance(where, str) else excerpt(where)
        between = ": " if detail and shown and not detail.endswith(".") else " "
        known.append(Example(self._sources[-1].name, number, f"{detail}{between}{shown}".strip()))

    def _problems(self) -> Iterator[Problem]:
        for kind, description in _ERRORS.items():
            if self._counts[kind]:
                yield Problem(kind, True, self._counts[kind], description, tuple(self._examples[kind]))
        sound = sum(sum(source.formats.values()) for source in self._sources)
        rated = sum(summary.rated for summary in self._attributes.values())
        limit = f"{self.max_length or 0:,} {self.unit}"
        if not rated and not any(source.pairs or source.ties for source in self._sources):
            yield Problem("nothing-to-train-on", True, 0, _NOTHING_JUDGED)
        elif self._counts["overlong"] == sound:
            yield Problem(
                "nothing-to-train-on", True, 0, f"every row is longer than {limit}; raise max_length, or shorten the texts"
            )
        for kind, description in _WARNINGS.items():
            if kind == "repeated-prompt" and not self._repeated.is_suspicious:
                continue
            if self._counts[kind]:
                yield Problem(kind, False, self._counts[kind], description.format(limit=limit), tuple(self._examples[kind]))


@dataclass(frozen=True, slots=True)
class _Waiting:
    """A row to measure."""

    number: int
    judged: Judgement
    names: tuple[str, ...]
    has_prompt: bool


class _LengthBiasSums:
    """Counts per prompt: n pairs of different lengths, of which the longer answer wins w. A row without a prompt is a group of its own."""

    def __init__(self) -> None:
        self.equal = 0
        self.by_prompt: dict[bytes, tuple[int, int]] = {}
        self.by_row: Counter[tuple[int, int]] = Counter()
        self.without_prompt: Counter[tuple[int, int]] = Counter()

    def add(self, pairs: Sequence[tuple[int, int]], lengths: Sequence[int], prompt: bytes | None) -> None:
        gaps = [lengths[winner] - lengths[loser] for winner, loser in pairs]
        w, n = sum(gap > 0 for gap in gaps), sum(gap != 0 for gap in gaps)
        self.equal += len(gaps) - n
        if not n:
            return
        self.by_row[w, n] += 1
        if prompt is None:
            self.without_prompt[w, n] += 1
        else:
            before = self.by_prompt.get(prompt, (0, 0))
            self.by_prompt[prompt] = before[0] + w, before[1] + n

    def summary(self) -> LengthBias | None:
        if not self.by_row:
            return None
        clusters = Counter(self.by_prompt.values()) + self.without_prompt
        if clusters.total() == 1:  # with a single prompt, rows count as independent
            clusters = self.by_row
        n = sum(count * of for (_, of), count in clusters.items())
        share = sum(count * won for (won, _), count in clusters.items()) / n
        # The variance of a ratio of sums over independent clusters; p (1 - p) / n where each has one pair.
        squares = sum(count * (won - share * of) ** 2 for (won, of), count in clusters.items())
        return LengthBias(n, share, math.sqrt(squares) / n, self.equal)


def _quantiles(lengths: Counter[int]) -> dict[str, int]:
    """The quantiles of the lengths, by name: the smallest length that at least that share of lengths does not exceed."""
    total = lengths.total()
    remaining, quantiles = list(_QUANTILES.items()), {}
    seen = 0
    for length in sorted(lengths):
        seen += lengths[length]
        while remaining and seen >= remaining[0][1] * total:
            quantiles[remaining.pop(0)[0]] = length
    return quantiles
