"""Comparing answers: who is asked (comparers), what is asked (schedules), and what the results say of each answer (strengths)."""

from __future__ import annotations

from collections.abc import Sequence

from rm_plugins.comparisons.comparer import Comparer, Comparison, Verdicts
from rm_plugins.comparisons.strengths import Results, Strengths, bradley_terry, cyclic_triples, win_rates
from rm_plugins.hooks import hookimpl

__all__ = [
    "Comparer",
    "Comparison",
    "Results",
    "Strengths",
    "Verdicts",
    "bradley_terry",
    "cyclic_triples",
    "rm_register_comparers",
    "win_rates",
]


@hookimpl
def rm_register_comparers() -> Sequence[type[Comparer]]:
    """The built-in comparers."""
    from rm_plugins.comparisons.function_comparer import FunctionComparer
    from rm_plugins.comparisons.judge_comparer import JudgeComparer
    from rm_plugins.comparisons.text_pair import TextPair
    from rm_plugins.comparisons.two_answers import TwoAnswers

    return [FunctionComparer, JudgeComparer, TextPair, TwoAnswers]
