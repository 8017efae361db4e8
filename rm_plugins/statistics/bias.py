"""How much a reward depends on length and formatting rather than quality."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rm_plugins.scores import FloatArray
from rm_plugins.statistics.accuracy import accuracy_estimate
from rm_plugins.statistics.intervals import Estimate
from rm_plugins.statistics.metrics import pearson

FORMAT_FEATURES: tuple[str, ...] = ("characters", "lines", "list_items", "headings", "bold", "code_blocks")
"""What `format_features` counts, in this order."""

_NEIGHBOURS = 0.3
"""The share of samples that a point of the length curve looks at."""
_LEAST_NEIGHBOURS, _MOST_NEIGHBOURS = 30, 500
LEAST_SAMPLES = 10
"""With fewer, a curve would go through them."""
_INTERPOLATED = 0.01
"""Lengths nearer than this share of their usual range are interpolated between."""
_SAME = 0.01
"""The largest rest, as a share of the standard deviation, of a reward that is a function of length."""

_FENCED = re.compile(r"^[ \t]*(?:(`{3,})[^`\n]*|(~{3,})[^\n]*)$(?s:.*?)(?:^[ \t]*(?:\1`*|\2~*)[ \t]*$|\Z)", re.MULTILINE)
_INLINE_CODE = re.compile(r"`[^`\n]+`")
_LIST_ITEM = re.compile(r"\n[ \t]*(?:[-*+]|\d{1,9}[.)])[ \t]+[^\s]")
_HEADING = re.compile(r"\n {0,3}#{1,6}[ \t]+[^\s]")
_BOLD = re.compile(r"\*\*(?=\S)[^*\n]++(?<=\S)\*\*|(?<!\w)__(?=\S)[^_\n]++(?<=\S)__(?!\w)")


@dataclass(frozen=True, slots=True)
class FeatureBias:
    """How a reward relates to one feature of the answers, such as the number of their list items.

    Args:
        feature: The feature's name.
        pairs: The number of pairs whose answers differ in it.
        preferred: The share of them in which the reward prefers the answer with more of it.
        chosen: The share of them in which the label does. If `preferred` is higher, the reward likes the feature more than people do; if
            it is lower, less.
        correlation: Of the differences in reward and in the feature over all pairs, each entered both ways round: the sum of
            their products / sqrt(the product of the sums of their squares).
        accuracy_more: How often the reward is right where the better answer has more of it; None where this never is so, or where no
            intervals were asked for.
        accuracy_less: The same where the better answer has less. Far below `accuracy_more`, the reward prefers the feature; far above, it
            penalizes the feature.
    """

    feature: str
    pairs: int
    preferred: float
    chosen: float
    correlation: float
    accuracy_more: Estimate | None = None
    accuracy_less: Estimate | None = None


def feature_bias(feature: str, delta: ArrayLike, difference: ArrayLike, clusters: ArrayLike | None = None) -> FeatureBias:
    """How a reward's preferences and the labels relate to a feature of the answers.

    Args:
        feature: The feature's name.
        delta: float [M], the winner's reward minus the loser's.
        difference: [M], how much more of the feature the winner has than the loser.
        clusters: [M], the pairs' clusters, for the accuracies with their intervals: see `accuracy_estimate`.

    Returns:
        Shares that are NaN where no pair differs, numbers that are NaN where something is NaN.

    >>> feature_bias("bold", [1.0, -1.0, 1.0, 1.0], [2, 2, 2, 2])
    FeatureBias(feature='bold', pairs=4, preferred=0.75, chosen=1.0, correlation=0.5, accuracy_more=None, accuracy_less=None)
    """
    delta, difference = (np.asarray(values, dtype=np.float64) for values in (delta, difference))
    correlation = pearson(np.concatenate([delta, -delta]), np.concatenate([difference, -difference]))

    def accuracy_of(where: NDArray[np.bool_]) -> Estimate | None:
        return None if clusters is None or not where.any() else accuracy_estimate(delta, clusters, where)

    return FeatureBias(
        feature=feature,
        pairs=int((difference != 0).sum()),
        preferred=longer_preference(delta, difference),
        chosen=longer_share(difference),
        correlation=correlation,
        accuracy_more=accuracy_of(difference > 0),
        accuracy_less=accuracy_of(difference < 0),
    )


def longer_preference(delta: ArrayLike, longer: ArrayLike) -> float:
    """The share of pairs of two lengths in which the reward prefers the longer answer strictly.

    Args:
        delta: float [M], the winner's reward minus the loser's.
        longer: [M], the winner's length minus the loser's.

    Returns:
        From 0 to 1; NaN where all pairs are of one length, or there is a NaN.

    >>> longer_preference([1.0, -1.0, 2.0, 0.0], [5, -5, 0, 5])  # the longer, the longer, of one length, a tie
    0.6666666666666666
    """
    delta, longer = (np.asarray(values, dtype=np.float64) for values in (delta, longer))
    unequal = longer != 0
    if not unequal.any() or np.isnan(delta).any() or np.isnan(longer).any():
        return math.nan
    return float((np.sign(delta) == np.sign(longer))[unequal].mean())


def longer_share(longer: FloatArray) -> float:
    """The share of pairs with different lengths whose winner is the longer; NaN if there are none."""
    return longer_preference(np.ones_like(longer), longer)


def format_features(text: str) -> tuple[int, ...]:
    """Counts in a text of features that are known to bias rewards and judges, in the order of `FORMAT_FEATURES`.

    | feature | |
    |---|---|
    | ``characters``, ``lines`` | all of them |
    | ``list_items`` | lines that begin with ``-``, ``*``, ``+``, ``1.`` or ``1)`` |
    | ``headings`` | lines that begin with one to six ``#`` |
    | ``bold`` | ``**parts**`` and ``__parts__`` of a line |
    | ``code_blocks`` | between fences, of which the last may be missing |

    Lists, headings and bold text inside code (a block, or a part of a line in backticks) do not count.

    Source: the style control of Chatbot Arena (Li, Angelopoulos and Chiang 2024) has length, lists, headings and bold; Liu et
    al. 2024, arXiv 2410.16184 (RM-Bench) vary length and Markdown.

    >>> dict(zip(FORMAT_FEATURES, format_features("# Tea\\n\\n- **boil** water\\n- wait"), strict=True))
    {'characters': 30, 'lines': 4, 'list_items': 2, 'headings': 1, 'bold': 1, 'code_blocks': 0}
    """
    prose, code_blocks = text, 0
    if "```" in text or "~~~" in text:
        prose, code_blocks = _FENCED.subn("", text)
    if "`" in prose:
        prose = _INLINE_CODE.sub("`", prose)  # a mark is left, which may be bold
    lines = f"\n{prose}"  # that every line begins with one character is what makes the search quick
    headings = len(_HEADING.findall(lines)) if "#" in prose else 0
    bold = len(_BOLD.findall(prose)) if "**" in prose or "__" in prose else 0
    return len(text), len(text.splitlines()), len(_LIST_ITEM.findall(lines)), headings, bold, code_blocks


def length_curve(rewards: ArrayLike, lengths: ArrayLike) -> FloatArray:
    """The mean reward of samples of similar length, at each sample's length, float64 [N]: the part of a reward that length explains.

    It is LOWESS: at each length a line through the nearest samples, the nearer ones with more weight. The nearest are 30% of all,
    which is the setting of the paper's code for AlpacaEval. (Its setting for RewardBench, all samples, is close to one straight
    line and leaves most of a curve that levels off.) They are 500 at most, which are enough to tell a mean, and follow a curve
    better; 30 at least; and more where they would all be of one length. The line is fitted once, without iterations that give
    outliers less weight: of a reward of 0 and 1, the rarer value would be an outlier.

    Outliers are moved to the end of the usual range, see `_tamed`: a reward of -10,000 among rewards around 0 would bend the curve.

    Args:
        rewards: float [N].
        lengths: [N], such as characters.

    Returns:
        The mean of all rewards where there is one length alone, or fewer than 10 samples, through which a curve would go; all NaN
        where something is not finite.

    Source: Cleveland 1979; Huang et al. 2024, arXiv 2409.17407.

    >>> length_curve([3.0, 1.0, 2.0], [7, 7, 7]).tolist()
    [2.0, 2.0, 2.0]
    """
    rewards, lengths = (np.asarray(values, dtype=np.float64) for values in (rewards, lengths))
    if not (np.isfinite(rewards).all() and np.isfinite(lengths).all()):
        return np.full(rewards.shape, np.nan)
    tamed = _tamed(rewards)
    exponent = _exponent(tamed)
    return _times_power(_curve(np.ldexp(tamed, -exponent), lengths), exponent)


def length_corrected(rewards: ArrayLike, lengths: ArrayLike) -> FloatArray:
    """Rewards without the part that length explains, float64 [N]: reward - `length_curve` + mean reward. See `length_split`.

    >>> lengths = np.arange(100)
    >>> np.unique(length_corrected(np.sqrt(lengths), lengths)).round(2).tolist()
    [6.61]
    """
    return length_split(rewards, lengths)[1]


def length_split(rewards: ArrayLike, lengths: ArrayLike) -> tuple[FloatArray, FloatArray]:
    """The part of rewards that length explains, and the rewards without it (reward - curve + mean reward), each float64 [N].

    The curve is `length_curve`. A reward that is a function of length only is its own curve: without it, all rewards are the mean and all
    pairs tie. (A fitted curve is never exact, and its small errors would still order the lengths.) A reward counts as a function of length
    if a function that rises, falls, or turns once misses it by less than 1% of the standard deviation of the rewards. Outliers are moved
    before, as for the curve. Steps are such functions. For other rewards with a steep step in length, a part of the step remains near it.

    Args:
        rewards: float [N].
        lengths: [N], such as characters.

    Returns:
        All NaN where something is not finite.

    Source: Huang et al. 2024, arXiv 2409.17407.
    """
    rewards, lengths = (np.asarray(values, dtype=np.float64) for values in (rewards, lengths))
    if not (np.isfinite(rewards).all() and np.isfinite(lengths).all()) or not rewards.size:
        nothing = np.full(rewards.shape, np.nan)
        return nothing, nothing
    tamed = _tamed(rewards)
    exponent = _exponent(tamed)
    with np.errstate(over="ignore"):  # outliers may be infinite in this unit
        scaled, tamed = np.ldexp(rewards, -exponent), np.ldexp(tamed, -exponent)
    mean = tamed.mean()
    if len(rewards) >= LEAST_SAMPLES and _is_function_of(tamed, lengths):
        return _times_power(tamed, exponent), _times_power(np.full(rewards.shape, mean), exponent)
    curve = _curve(tamed, lengths)
    return _times_power(curve, exponent), _times_power(scaled - curve + mean, exponent)


def _tamed(rewards: FloatArray) -> FloatArray:
    """Rewards with outliers moved to the end of the usual range.

    The usual rewards are all but two, and 0.5%, at either end. An outlier is farther from them than they are from each other (in a normal
    distribution, eight standard deviations). If all usual rewards are equal, as for a verifier that hardly ever finds an error, nothing
    is an outlier.
    """
    if len(rewards) < LEAST_SAMPLES:
        return rewards
    beyond = 2 + len(rewards) // 200
    ordered = np.partition(rewards, [beyond, len(rewards) - 1 - beyond])
    low, high = ordered[beyond], ordered[len(rewards) - 1 - beyond]
    if low == high:
        return rewards
    with np.errstate(over="ignore"):  # between the largest floats nothing is far out
        tamed: FloatArray = np.clip(rewards, low - (high - low), high + (high - low))
    return tamed


def _exponent(rewards: FloatArray) -> int:
    """The power of two that makes the largest about 1: squares of 1e300 are infinite and those of 1e-300 are 0."""
    return int(np.frexp(np.abs(rewards).max(initial=0.0))[1])


def _times_power(values: FloatArray, exponent: int) -> FloatArray:
    """Values in the rewards' own unit, which is exact, and finite."""
    largest = np.finfo(np.float64).max
    with np.errstate(over="ignore"):
        scaled: FloatArray = np.clip(np.ldexp(values, exponent), -largest, largest)
    return scaled


def _curve(rewards: FloatArray, lengths: FloatArray) -> FloatArray:
    distinct, where, counts = np.unique(lengths, return_inverse=True, return_counts=True)
    if len(rewards) < LEAST_SAMPLES or len(distinct) == 1:
        return np.full(rewards.shape, rewards.mean() if rewards.size else np.nan)
    from statsmodels.nonparametric.smoothers_lowess import lowess  # takes half a second to import

    neighbours = np.clip(_NEIGHBOURS * len(rewards), _LEAST_NEIGHBOURS, _MOST_NEIGHBOURS)
    share = min(max(neighbours, counts.max() + 1) / len(rewards), 1.0)
    # Not the whole range: one very long answer would have all the others between two points.
    usual = np.quantile(lengths, 0.95) - np.quantile(lengths, 0.05)
    order = np.argsort(lengths, kind="stable")
    fitted = lowess(
        rewards[order],
        lengths[order],
        frac=share,
        it=0,
        delta=_INTERPOLATED * usual,
        is_sorted=True,
        return_sorted=False,
    )
    curve: FloatArray = fitted[np.cumsum(counts) - 1][where]  # of each length, what was fitted for its last sample
    return curve


def _is_function_of(rewards: FloatArray, lengths: FloatArray) -> bool:
    """Whether rewards follow length but for very little, along a function with one turn at most."""
    distinct, where, counts = np.unique(lengths, return_inverse=True, return_counts=True)
    means = np.bincount(where, rewards) / counts
    fits = (_with_one_peak(means, counts), -_with_one_peak(-means, counts))
    least = min(float((rewards - fit[where]).std()) for fit in fits)
    return len(distinct) > 1 and least <= _SAME * float(rewards.std())


def _with_one_peak(values: FloatArray, weights: NDArray[np.intp]) -> FloatArray:
    """The nearest values that rise up to the highest of them and fall from there on."""
    from scipy.optimize import isotonic_regression  # takes a third of a second to import

    peak = int(values.argmax())
    rising = isotonic_regression(values[:peak], weights=weights[:peak]).x if peak else values[:0]
    falling = isotonic_regression(values[peak:], weights=weights[peak:], increasing=False).x
    fitted: FloatArray = np.concatenate([rising, falling])
    return fitted
