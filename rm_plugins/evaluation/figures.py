"""The figures of an evaluation: what each is called, and how it is read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

Better: TypeAlias = Literal["higher", "lower", "neither"]


@dataclass(frozen=True, slots=True)
class Figure:
    """What a figure is.

    Args:
        title: What it is called in tables.
        meaning: How it is read, in a sentence.
        better: Which way a reward gets better.
        is_share: Whether it is a share, from 0 to 1, that is shown as a percentage.
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
        "The share of pairs whose better answer gets strictly the higher reward; without ties, 50% is chance.",
        "higher",
    ),
    "ties": _share("Ties", "The share of pairs with equal rewards, which count as wrong in every accuracy.", "lower"),
    "accuracy_ties_half": _share(
        "Accuracy, ties half",
        "The accuracy where a tie counts half, as benchmarks have it that give ties a half point; 50% is chance.",
        "higher",
    ),
    "agreement": _share(
        "Agreement with ties",
        "Of the pairs that were judged to have a winner or to tie, the share of which the reward says the same, with the tie threshold.",
        "higher",
    ),
    "tie_threshold": Figure(
        "Tie threshold",
        "Rewards that differ by at most this much are taken for a tie in the row above; it is the one that agrees most often.",
    ),
    "accuracy_longer": _share(
        "Accuracy, longer is better", "The accuracy on the pairs whose better answer is the longer one.", "higher"
    ),
    "accuracy_shorter": _share(
        "Accuracy, shorter is better",
        "The accuracy on the pairs whose better answer is the shorter one; far below the figure above, the reward pays for length.",
        "higher",
    ),
    "accuracy_corrected": _share(
        "Accuracy without length",
        "The accuracy when what length predicts (a LOWESS curve) is taken out of rewards; ties stay wrong, what it loses was length.",
        "higher",
    ),
    "accuracy_equal_length": _share(
        "Accuracy at equal length",
        "How often the better answer is preferred where both are equally long, by a logistic curve on the difference; ties count half.",
        "higher",
    ),
    "length_preference": _share(
        "Prefers the longer",
        "The share of pairs of two lengths in which the reward prefers the longer answer; compare it with how often that is the better.",
    ),
    "shortness_preference": _share(
        "Prefers the shorter", "The share of pairs of two lengths in which the reward prefers the shorter answer."
    ),
    "length_correlation": Figure(
        "Correlation with length",
        "Pearson's correlation of reward and length over all answers; 0 where length does not matter.",
    ),
    "margin": Figure(
        "Margin",
        "The mean reward of the better answer minus that of the worse; its unit is the reward's own, so compare no two rewards by it.",
    ),
    "log_loss": Figure(
        "Log loss",
        "The Bradley-Terry loss of the differences in nats; 0.693 stands for knowing nothing, and above it the scale is wrong.",
        "lower",
    ),
    "ece": Figure(
        "Calibration error",
        "How far the win probability that a difference stands for is from how often it comes true, on average; 0 is perfect.",
        "lower",
    ),
    "brier": Figure(
        "Brier score",
        "The mean squared error of the win probabilities; 0.25 is what a reward reaches that knows nothing.",
        "lower",
    ),
    "auc": Figure(
        "AUC across prompts",
        "How well one threshold for all prompts tells better from worse answers; what filtering by reward relies on.",
        "higher",
    ),
    "top_1": _share(
        "Picks the best",
        "The share of prompts whose highest-rewarded answer is one of the best; what best-of-n relies on.",
        "higher",
    ),
    "top_1_random": _share(
        "Picks the best by chance", "The same share for an answer drawn at random: what picking the best is compared with."
    ),
    "ndcg": Figure(
        "NDCG", "How much of the known goodness stands at the top of each prompt's ranking; 1 is the perfect order.", "higher"
    ),
    "kendall": Figure(
        "Kendall's tau",
        "The mean over prompts of the rank correlation tau-b with the known order; 1 is the same order, 0 none.",
        "higher",
    ),
    "spearman": Figure("Spearman's rho", "The mean over prompts of the correlation of ranks with the known order.", "higher"),
    "correlation/*": Figure(
        "Correlation with {}", "Pearson's correlation of reward and {} over all answers that have it.", "higher"
    ),
    "spearman/*": Figure(
        "Rank correlation with {}", "Spearman's correlation of reward and {} over all answers that have it.", "higher"
    ),
    "kendall/*": Figure("Tau with {}", "Kendall's tau-b of reward and {} over all answers that have it.", "higher"),
    "auc/*": Figure(
        "AUC of {}",
        "How often an answer with {} gets a higher reward than one without, over all prompts; 0.5 is chance.",
        "higher",
    ),
    "member_agreement": _share(
        "Members agree", "The share of pairs on which all members prefer the same answer; the reward is surer there."
    ),
    "member_std": Figure("Members' spread", "The standard deviation over the members' rewards, averaged over answers."),
    "mean_reward": Figure("Mean reward", "The mean of all rewards; only differences between rewards mean something."),
    "std_reward": Figure(
        "Spread of rewards", "The standard deviation of all rewards, which says what a margin is large beside."
    ),
}
"""Figures by name, in the order in which they are shown; those of an attribute have it in the place of the star."""


def figures_of(attributes: Iterable[str]) -> dict[str, Figure]:
    """All figures of an evaluation by name, in their order: those of `FIGURES`, with each attribute in the place of the star.

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
