"""JudgeBench: pairs of answers to hard questions, one of which is objectively right."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

from rm_plugins.suites.raw_rows import PROMPT, TEXT, raw_rows
from rm_plugins.suites.suite import Suite, SuiteItem, SuiteResult, SuiteSection, mean

__all__ = ["JudgeBench"]

_SOURCES = {
    "mmlu-pro": "Knowledge",
    "livebench-reasoning": "Reasoning",
    "livebench-math": "Math",
    "livecodebench": "Coding",
}


class JudgeBench(Suite):
    """JudgeBench: the right answer above the wrong one (Tan et al. 2024, arXiv 2410.12784).

    The split ``gpt`` has 350 pairs by GPT-4o, and ``claude`` 270 by Claude 3.5 Sonnet, scored in the same way.
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
            yield {
                "id": row["pair_id"],
                "section": row["source"],
                "prompt": row.messages("question"),
                "chosen": chosen,
                "rejected": rejected,
            }

    def result(self, items: Sequence[SuiteItem]) -> SuiteResult:
        """The accuracies of the four sections and of all pairs."""
        # Judges are asked twice there, with the answers in both orders, and a pair counts if they are right more often than wrong.
        # A reward is asked once. On equal scores the benchmark's program takes the second answer, which is right or wrong by the
        # order alone, and in two orders would count as wrong. It is wrong here.
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
