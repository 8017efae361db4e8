"""JudgeBench: pairs of answers to hard questions, one of which is objectively right."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

from rm_plugins.suites.raw_rows import PROMPT, TEXT, RawRow, raw_rows
from rm_plugins.suites.suite import Suite, SuiteItem, SuiteResult, SuiteSection, mean

_SOURCES = {
    "mmlu-pro": "Knowledge",
    "livebench-reasoning": "Reasoning",
    "livebench-math": "Math",
    "livecodebench": "Coding",
}
_ORDERS = 2
_VERDICTS = {"A>B": (1.0, 0.0), "B>A": (0.0, 1.0), "A=B": (0.5, 0.5)}


class JudgeBench(Suite):
    """JudgeBench: the right answer above the wrong one (Tan et al. 2024, arXiv 2410.12784).

    The split ``gpt`` has 350 pairs by GPT-4o, and ``claude`` 270 by Claude 3.5 Sonnet, scored in the same way.

    The verdicts of a judge that was asked in both orders can be evaluated as well: the benchmark's program writes them into a column
    ``judgments`` of these rows, and the reward ``column:judgments`` reads them. A pair is right if the judge is right more often than
    wrong.
    """

    name = "judge-bench"
    source: ClassVar[str] = "ScalerLab/JudgeBench"
    split = "gpt"
    rule = (
        "The right answer must score strictly higher. The score is the accuracy on all pairs, so that a section weighs as much "
        "as it has pairs."
    )

    def rows(self, raw: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
        """Each row as a pair; its section is its source, such as ``mmlu-pro-law``."""
        columns = dict.fromkeys(("response_A", "response_B", "label", "source", "pair_id"), TEXT)
        for row in raw_rows(self, raw, {"question": PROMPT, **columns}):
            if _section(row["source"]) is None:
                raise row.refused(f"'source' is {row['source']!r:.80}; it must begin with {', '.join(_SOURCES)}.")
            first_wins = row.one_of("label", ("A>B", "B>A")) == "A>B"
            answers = row["response_A"], row["response_B"]
            chosen, rejected = answers if first_wins else answers[::-1]
            votes = _votes(row)
            in_order = votes if first_wins else votes[::-1]
            yield {
                "id": row["pair_id"],
                "section": row["source"],
                "prompt": row.messages("question"),
                "chosen": chosen,
                "rejected": rejected,
                **dict(zip(("chosen_judgments", "rejected_judgments"), in_order, strict=False)),
            }

    def result(self, items: Sequence[SuiteItem]) -> SuiteResult:
        """The accuracies of the four sections and of all pairs."""
        # Judges are asked twice there, with the answers in both orders, and a pair counts if they are right more often than wrong: an
        # answer's score is then how often it was preferred. A reward is asked once. On equal scores the benchmark's program takes the
        # second answer, which is right or wrong by the order alone, and in two orders would count as wrong. It is wrong here.
        right: dict[str, dict[str, list[bool]]] = {name: defaultdict(list) for name in _SOURCES.values()}
        for item in items:
            if (section := _section(item.section)) is not None:
                right[section][item.section].append(item.is_right)
        total = sum(len(part) for parts in right.values() for part in parts.values())
        sections = []
        for name, parts in right.items():
            everything = [is_right for part in parts.values() for is_right in part]
            # A section without pairs keeps a weight, without which the others would pass for the whole.
            weight = len(everything) / total if everything else 1 / len(right)
            shown = {part: mean(answers) for part, answers in parts.items()} if len(parts) > 1 else {}
            sections.append(SuiteSection(name, mean(everything), weight, len(everything), shown))
        return self.scored(items, sections)


def _section(source: str) -> str | None:
    return next((section for prefix, section in _SOURCES.items() if source.startswith(prefix)), None)


def _votes(row: RawRow) -> tuple[float | None, ...]:
    """How often the judge preferred each answer, A and B, where a tie is half a vote for each; null if it gave no verdict at all.

    Empty where the row has no judgements. The second judgement, if there is one, is of the answers in reverse order. A verdict that the
    benchmark does not know does not count, like one that could not be parsed, which is null.
    """
    judgements = row.columns.get("judgments")
    if judgements is None:
        return ()
    if not isinstance(judgements, list) or not 1 <= len(judgements) <= _ORDERS:
        raise row.refused(
            f"'judgments' is {judgements!r:.80}; a list of one judgement, or of one per order of the answers, is expected."
        )
    verdicts = []
    for place, judgement in enumerate(judgements):
        verdict = judgement.get("decision", ...) if isinstance(judgement, Mapping) else judgement
        if verdict is not None and not isinstance(verdict, str):
            raise row.refused(
                f"'judgments' has {judgement!r:.80}; null or a mapping with 'decision', text or null, is expected."
            )
        if (known := _VERDICTS.get(verdict or "")) is not None:
            verdicts.append(known if place == 0 else known[::-1])
    if not verdicts:
        return None, None
    return sum(first for first, _ in verdicts), sum(second for _, second in verdicts)
