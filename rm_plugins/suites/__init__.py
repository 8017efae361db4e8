"""Benchmarks of rewards, one per file, each with its own scoring rule."""

from __future__ import annotations

from collections.abc import Sequence

from rm_plugins.hooks import hookimpl
from rm_plugins.suites.suite import Suite, SuiteItem, SuiteResult, SuiteSection, SuiteTable, mean, overall_score

__all__ = ["Suite", "SuiteItem", "SuiteResult", "SuiteSection", "SuiteTable", "mean", "overall_score", "rm_register_suites"]


@hookimpl
def rm_register_suites() -> Sequence[type[Suite]]:
    """The built-in benchmarks."""
    from rm_plugins.suites.judge_bench import JudgeBench
    from rm_plugins.suites.ppe import Ppe
    from rm_plugins.suites.reward_bench import RewardBench
    from rm_plugins.suites.reward_bench_2 import RewardBench2
    from rm_plugins.suites.rm_bench import RmBench

    return [JudgeBench, Ppe, RewardBench, RewardBench2, RmBench]
