"""What the results of comparisons say of a group of answers: strengths, win rates, and how far they contradict each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rm_plugins.comparisons.logistic import logistic
from rm_plugins.scores import FloatArray

_MOST_STEPS = 100
_TOLERANCE = 1e-10


@dataclass(frozen=True, slots=True)
class Results:
    """The known results of the pairs of a group.

    Args:
        players: The number of players, P.
        pairs: int [M, 2], the two players of each pair.
        shares: float64 [M], the first player's share of the wins, from 0 to 1; a tie is half a win for both.
        weights: float64 [M], how much of a comparison each pair is: less than 1 if only a part of it is known.
    """

    players: int
    pairs: NDArray[np.intp]
    shares: FloatArray
    weights: FloatArray

    @classmethod
    def of(
        cls, players: int, pairs: Sequence[tuple[int, int]], shares: Sequence[float], weights: Sequence[float] | None = None
    ) -> Results:
        """The results of lists.

        >>> Results.of(3, [(0, 1)], [1.0]).weights.tolist()
        [1.0]
        """
        known = np.asarray(pairs, dtype=np.intp).reshape(-1, 2)
        whole = np.ones(len(known)) if weights is None else np.asarray(weights, dtype=np.float64)
        return cls(players, known, np.asarray(shares, dtype=np.float64), whole)

    def sums(self, first: FloatArray, second: FloatArray) -> FloatArray:
        """The sum for each player, float64 [P], of one value of each pair for its first player and another for its second, [M] each."""
        sums = np.zeros(self.players)
        np.add.at(sums, self.pairs[:, 0], first)
        np.add.at(sums, self.pairs[:, 1], second)
        return sums

    @property
    def wins(self) -> FloatArray:
        """float64 [P], the number of comparisons that each player has won, a tie counted as half."""
        return self.sums(self.weights * self.shares, self.weights * (1 - self.shares))

    @property
    def comparisons(self) -> FloatArray:
        """float64 [P], the number of comparisons of each player whose result is known."""
        return self.sums(self.weights, self.weights)


@dataclass(frozen=True, slots=True)
class Strengths:
    """The strengths of the players of a group, on one scale.

    Args:
        values: float64 [P], in logits, with mean 0.
        covariance: float64 [P, P], that of the posterior at its mode.
    """

    values: FloatArray
    covariance: FloatArray

    @property
    def errors(self) -> FloatArray:
        """float64 [P], the standard error of each strength relative to the mean of the group."""
        players = len(self.values)
        centring = np.eye(players) - 1 / players
        return np.sqrt(np.maximum(np.diag(centring @ self.covariance @ centring), 0.0))

    def errors_of_differences(self, others: Sequence[int]) -> FloatArray:
        """float64 [P], the standard error of the difference between each player's strength and that of another.

        Args:
            others: The other player for each player, [P].
        """
        places = np.arange(len(self.values))
        variances = np.diag(self.covariance)
        differences = variances + variances[list(others)] - 2 * self.covariance[places, list(others)]
        return np.sqrt(np.maximum(differences, 0.0))


def bradley_terry(results: Results, prior: float) -> Strengths:
    """The strengths of the Bradley-Terry model with a Gaussian prior: the mode of their posterior.

    Player i wins against player j with probability σ(s_i - s_j). The mode maximizes the sum over pairs of
    w (y log σ(s_i - s_j) + (1 - y) log σ(s_j - s_i)), where y is the share of wins and w the weight, minus the sum over players of
    s² / (2 prior²). It is unique, its mean is 0, and it is finite even for a player that won or lost every comparison. A player without a
    comparison has 0. It is found by Newton's method with step halving; the covariance is the inverse of the Hessian there (Laplace's
    approximation).

    Source: Bradley and Terry, Rank Analysis of Incomplete Block Designs, Biometrika 39 (1952). With this prior, it is a ridge logistic
    regression: le Cessie and van Houwelingen, Ridge Estimators in Logistic Regression, Applied Statistics 41 (1992).

    Args:
        results: The results; the scale of parts that no comparison connects is arbitrary.
        prior: The standard deviation of strengths before any comparison, in logits.

    >>> bradley_terry(Results.of(2, [(0, 1)], [1.0]), prior=1.0).values.round(3).tolist()
    [0.337, -0.337]
    """
    first, second = results.pairs.T
    precision = prior**-2.0
    enough = _TOLERANCE * max(1.0, float(results.weights.sum()))
    strengths = np.zeros(results.players)
    objective = _log_posterior(results, strengths, precision)
    for _ in range(_MOST_STEPS):
        residuals = results.weights * (results.shares - logistic(strengths[first] - strengths[second]))
        gradient = results.sums(residuals, -residuals) - precision * strengths
        if np.abs(gradient).max(initial=0.0) <= enough:
            break
        step = np.linalg.solve(_curvature(results, strengths, precision), gradient)
        size = 1.0
        while (reached := _log_posterior(results, strengths + size * step, precision)) < objective and size > 1e-6:
            size /= 2
        strengths, objective = strengths + size * step, reached
    strengths -= strengths.mean()
    covariance: FloatArray = np.linalg.inv(_curvature(results, strengths, precision)).astype(np.float64)
    return Strengths(strengths, covariance)


def _log_posterior(results: Results, strengths: FloatArray, precision: float) -> float:
    gaps = strengths[results.pairs[:, 0]] - strengths[results.pairs[:, 1]]
    losses = results.shares * np.logaddexp(0, -gaps) + (1 - results.shares) * np.logaddexp(0, gaps)
    return -float(results.weights @ losses) - precision / 2 * float(strengths @ strengths)


def _curvature(results: Results, strengths: FloatArray, precision: float) -> FloatArray:
    """The negative Hessian of the log-posterior, float64 [P, P]."""
    first, second = results.pairs.T
    chances = logistic(strengths[first] - strengths[second])
    information = results.weights * chances * (1 - chances)
    curvature = np.diag(results.sums(information, information) + precision)
    np.subtract.at(curvature, (first, second), information)
    np.subtract.at(curvature, (second, first), information)
    return curvature


def win_rates(results: Results) -> tuple[FloatArray, FloatArray]:
    """The share of its comparisons that each player has won, and the share's standard error, float64 [P] each.

    A tie is half a win. A player without a comparison has NaN. With w wins in n comparisons, the standard error is the standard deviation
    of the share's posterior under a uniform prior, Beta(w + 1, n - w + 1), so it is not 0 for a player that has won all of a few
    comparisons: sqrt((w + 1) (n - w + 1) / ((n + 2)² (n + 3))).

    >>> [column.round(3).tolist() for column in win_rates(Results.of(3, [(0, 1)], [1.0]))]
    [[1.0, 0.0, nan], [0.236, 0.236, nan]]
    """
    wins, compared = results.wins, results.comparisons
    with np.errstate(invalid="ignore"):
        rates = wins / compared
    variances = (wins + 1) * (compared - wins + 1) / ((compared + 2) ** 2 * (compared + 3))
    return rates, np.where(compared > 0, np.sqrt(variances), np.nan)


def cyclic_triples(results: Results) -> tuple[int, int]:
    """How many triples of players are cyclic (a beats b, b beats c, c beats a), and in how many all three pairs were decided.

    Of random verdicts, a quarter of the triples is cyclic. Source: Kendall and Babington Smith, On the Method of Paired Comparisons,
    Biometrika 31 (1940).

    >>> cyclic_triples(Results.of(3, [(0, 1), (1, 2), (2, 0)], [1.0, 0.9, 1.0]))
    (1, 1)
    """
    beats = np.zeros((results.players, results.players))
    for (first, second), share in zip(results.pairs.tolist(), results.shares.tolist(), strict=True):
        if share != 0.5:
            winner, loser = (first, second) if share > 0.5 else (second, first)
            beats[winner, loser] = 1.0
    decided = np.maximum(beats, beats.T)
    return round(np.trace(beats @ beats @ beats) / 3), round(np.trace(decided @ decided @ decided) / 6)
