"""The figures of an evaluation: their titles, and how to read them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

Better: TypeAlias = Literal["higher", "lower", "neither"]


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure of an evaluation.

    Args:
        title: Its name in tables.
        meaning: How to read it, in a sentence.
        better: The direction in which a reward gets better.
        is_share: Whether it is a share from 0 to 1, which is shown as a percentage.
    """

    title: str
    meaning: str
    better: Better = "neither"
    is_share: bool = False


def _share(title: str, meaning: str, better: Better = "neither") -> Figure:
    return Figure(title, meaning, better, is_share=True)


FIGURES: Mapping[str, Figure] = {
    "accuracy": _share(
        "Accuracy",
        "The share of pairs whose better answer gets the strictly higher reward; without ties, chance is 50%.",
        "higher",
    ),
    "ties": _share(
        "Ties",
        "The share of pairs with equal rewards; they count as wrong in every accuracy, unless its row says otherwise.",
        "lower",
    ),
    "accuracy_ties_half": _share(
        "Accuracy, ties half",
        "The accuracy where a tie counts as half right, as in some benchmarks; chance is 50%.",
        "higher",
    ),
    "agreement": _share(
        "Agreement with ties",
        "The share of pairs in which the reward agrees with the judgement (a winner or a tie); up to the tie threshold, it sees a tie.",
        "higher",
    ),
    "tie_threshold": Figure(
        "Tie threshold",
        "Rewards that differ by at most this much count as a tie in the row above; it is the threshold with the highest agreement.",
    ),
    "accuracy_longer": _share(
        "Accuracy, longer is better", "The accuracy on the pairs whose better answer is the longer one.", "higher"
    ),
    "accuracy_shorter": _share(
        "Accuracy, shorter is better",
        "The accuracy where the shorter answer is better; far below the row above, the reward likes length, far above it dislikes it.",
        "higher",
    ),
    "accuracy_corrected": _share(
        "Accuracy without length",
        "The accuracy after the part of the rewards that length predicts (a LOWESS curve) is removed; ties stay wrong.",
        "higher",
    ),
    "accuracy_equal_length": _share(
        "Accuracy at equal length",
        "How often the better answer wins where both are equally long, by a logistic curve of the difference in length; ties count half.",
        "higher",
    ),
    "length_preference": _share(
        "Prefers the longer",
        "The share of pairs with different lengths in which the reward prefers the longer answer; compare it with how often it is better.",
    ),
    "shortness_preference": _share(
        "Prefers the shorter", "The share of pairs with different lengths in which the reward prefers the shorter answer."
    ),
    "length_correlation": Figure(
        "Correlation with length",
        "Pearson's correlation of reward and length over all answers; 0 if length does not matter.",
    ),
    "margin": Figure(
        "Margin",
        "The mean reward of better answers minus that of worse ones; do not compare rewards by it, since each has its own unit.",
    ),
    "log_loss": Figure(
        "Log loss",
        "The mean Bradley-Terry loss of the pairs in nats; equal rewards have 0.693, and more means a wrong scale or order.",
        "lower",
    ),
    "ece": Figure(
        "Calibration error",
        "The mean gap between predicted win probabilities and how often they come true; 0 is perfect.",
        "lower",
    ),
    "brier": Figure(
        "Brier score",
        "The mean squared error of the win probabilities; equal rewards have 0.25.",
        "lower",
    ),
    "auc": Figure(
        "AUC across prompts",
        "How well one threshold for all prompts separates better from worse answers; it matters for filtering by reward.",
        "higher",
    ),
    "top_1": _share(
        "Picks the best",
        "The share of prompts whose highest-rewarded answer is one of the best; it matters for best-of-n.",
        "higher",
    ),
    "top_1_random": _share("Picks the best by chance", "The same share for an answer drawn at random."),
    "ndcg": Figure(
        "NDCG", "Normalized discounted cumulative gain of each prompt's ranking, averaged; 1 is the perfect order.", "higher"
    ),
    "kendall": Figure(
        "Kendall's tau",
        "The rank correlation tau-b with the known order, averaged over prompts; 1 is the same order, 0 means no relation.",
        "higher",
    ),
    "spearman": Figure("Spearman's rho", "The rank correlation with the known order, averaged over prompts.", "higher"),
    "correlation/*": Figure(
        "Correlation with {}", "Pearson's correlation of reward and {} over all answers with this rating.", "higher"
    ),
    "spearman/*": Figure(
        "Rank correlation with {}", "Spearman's correlation of reward and {} over all answers with this rating.", "higher"
    ),
    "kendall/*": Figure("Tau with {}", "Kendall's tau-b of reward and {} over all answers with this rating.", "higher"),
    "auc/*": Figure(
        "AUC of {}",
        "How often an answer whose {0} is true (1) gets a higher reward than one where it is false (0), over all prompts; chance is 0.5.",
        "higher",
    ),
    "member_agreement": _share(
        "Members agree", "The share of pairs on which all members prefer the same answer; the reward is more reliable there."
    ),
    "member_std": Figure("Members' spread", "The standard deviation over the members' rewards, averaged over answers."),
    "mean_reward": Figure("Mean reward", "The mean of all rewards; only differences between rewards have a meaning."),
    "std_reward": Figure("Spread of rewards", "The standard deviation of all rewards; compare the margin with it."),
}
"""Figures by name, in the order in which they are shown. The star stands for an attribute."""


def figures_of(attributes: Iterable[str]) -> dict[str, Figure]:
    """All figures of an evaluation by name, in the order of `FIGURES`, with each attribute in place of the star.

    >>> figures_of(["helpful"])["spearman/helpful"].title
    'Rank correlation with helpful'
    """
    names = list(attributes)
    return {
        name.replace("*", attribute): replace(
            figure, title=figure.title.format(attribute), meaning=figure.meaning.format(attribute)
        )
        for name, figure in FIGURES.items()
        for attribute in (names if "*" in name else [""])
    }
