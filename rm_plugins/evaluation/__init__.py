"""How good a reward is. Metrics are pure functions of scores; `evaluate` scores data with a provider."""

from rm_plugins.evaluation.judgements import head_metrics, judgement_metrics
from rm_plugins.evaluation.results import Evaluation
from rm_plugins.evaluation.run import evaluate, evaluate_pairs
from rm_plugins.statistics.accuracy import PairMetrics, pair_metrics, three_class_agreement
from rm_plugins.statistics.best_of_n import best_of_n, best_of_n_counts, best_of_n_kl
from rm_plugins.statistics.intervals import (
    Estimate,
    PairedTest,
    correlation_estimate,
    mean_estimate,
    paired_test,
    share_estimate,
)
from rm_plugins.statistics.length_control import accuracy_at_equal_length, accuracy_without_length
from rm_plugins.statistics.metrics import (
    CalibrationBin,
    agreement,
    auc,
    best_of,
    brier_score,
    calibration_curve,
    expected_calibration_error,
    kendall,
    log_loss,
    ndcg,
    pearson,
    spearman,
)

__all__ = [
    "CalibrationBin",
    "Estimate",
    "Evaluation",
    "PairMetrics",
    "PairedTest",
    "accuracy_at_equal_length",
    "accuracy_without_length",
    "agreement",
    "auc",
    "best_of",
    "best_of_n",
    "best_of_n_counts",
    "best_of_n_kl",
    "brier_score",
    "calibration_curve",
    "correlation_estimate",
    "evaluate",
    "evaluate_pairs",
    "expected_calibration_error",
    "head_metrics",
    "judgement_metrics",
    "kendall",
    "log_loss",
    "mean_estimate",
    "ndcg",
    "pair_metrics",
    "paired_test",
    "pearson",
    "share_estimate",
    "spearman",
    "three_class_agreement",
]
