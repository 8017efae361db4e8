"""How good a reward is: metrics are pure functions of scores, and runs score data with a provider."""

from rm_plugins.evaluation.metrics import PairMetrics, pair_metrics
from rm_plugins.evaluation.pairs import evaluate_pairs

__all__ = ["PairMetrics", "evaluate_pairs", "pair_metrics"]
