"""How good a reward is: metrics are pure functions of scores, and runs score data with a provider."""

from rm_plugins.evaluation.judgements import head_metrics, judgement_metrics
from rm_plugins.evaluation.metrics import (
    PairMetrics,
    auc,
    brier_score,
    expected_calibration_error,
    pair_metrics,
    pearson,
    spearman,
)
from rm_plugins.evaluation.pairs import evaluate_pairs

__all__ = [
    "PairMetrics",
    "auc",
    "brier_score",
    "evaluate_pairs",
    "expected_calibration_error",
    "head_metrics",
    "judgement_metrics",
    "pair_metrics",
    "pearson",
    "spearman",
]
