"""What a reader should know of a reward before all else, in sentences that their own numbers are in.

Each finding asks for an effect that matters and that the data is large enough to show.
"""

from __future__ import annotations

import math

from rm_plugins.evaluation.figures import FIGURES
from rm_plugins.evaluation.results import DataSummary, Finding, RewardResult
from rm_plugins.statistics.intervals import Estimate

FEWEST_PAIRS = 30
"""With fewer, nothing is said of a part of the pairs."""
ALWAYS_LONGER = 0.95
"""Of the pairs: where the longer (or the shorter) answer is preferred this often, length decides."""
LARGE_GAP = 0.25
"""Between the accuracies where the answer with more length, or with more of a feature of format, is the better, and where it is not."""
MANY_TIES = 0.05
MANY_ABSTENTIONS = 0.01
LARGE_CALIBRATION_ERROR = 0.1
FEW_PAIRS = 100
LARGE_LEAD = 0.1
"""Over chance: a reward of which the data does not even exclude it is not called no better than chance."""
ENOUGH_TO_CALIBRATE = 500
"""Pairs; with fewer, the calibration error of a perfect reward is large by chance."""


def findings(result: RewardResult, data: DataSummary) -> tuple[Finding, ...]:
    """What the reader should know of a reward, the worst first; empty where nothing stands out.

    Args:
        result: What was found of the reward.
        data: What it was evaluated on.
    """
    checks = (_length, _chance, _trained_on, _abstentions, _ties, _sections, _formats, _calibration, _members, _few_pairs)
    raised = [finding for check in checks if (finding := check(result, data)) is not None]
    return tuple(sorted(raised, key=lambda finding: finding.rank))


def _chance(result: RewardResult, data: DataSummary) -> Finding | None:
    accuracy, ties = result.figures.get("accuracy"), result.figures.get("ties")
    if accuracy is None or ties is None or math.isnan(accuracy.low):
        return None
    chance = (1 - ties.value) / 2  # of the pairs that it tells apart
    if accuracy.low > chance or not chance:
        return None
    numbers = _numbers(accuracy=accuracy) | {"chance": chance}
    right = f"it is right in {accuracy:.1%} of"
    if accuracy.high < chance:
        text = (
            f"{right} pairs, where {chance:.1%} would be chance. If it does so on other data too, the sign of the reward or the labels "
            "of what it was trained on are the wrong way round."
        )
        return Finding("chance", "alarm", "It prefers the worse answer", text, numbers)
    if accuracy.high < chance + LARGE_LEAD:
        text = f"{right} pairs, and {chance:.1%} would be chance."
        return Finding("chance", "alarm", "It is no better than chance here", text, numbers)
    text = f"{right} {result.pairs:,}, and {chance:.1%} would be chance."
    lead = "It cannot be told from chance on so few pairs"
    return Finding("chance", "note", lead, text, numbers | {"pairs": result.pairs})


def _length(result: RewardResult, data: DataSummary) -> Finding | None:
    figures = result.figures
    wanted = ("length_preference", "shortness_preference", "accuracy_longer", "accuracy_shorter", "accuracy_corrected")
    if not all(name in figures for name in wanted) or result.pairs < FEWEST_PAIRS:
        return None
    prefers_longer, prefers_shorter, longer, shorter, corrected = (figures[name] for name in wanted)
    takes_longer = longer.value >= shorter.value
    word = "longer" if takes_longer else "shorter"
    easy, hard = (longer, shorter) if takes_longer else (shorter, longer)
    share = (prefers_longer if takes_longer else prefers_shorter).value
    base = data.longer_chosen if takes_longer else 1 - data.longer_chosen
    numbers = _numbers(accuracy_longer=longer, accuracy_shorter=shorter, accuracy_corrected=corrected)
    numbers |= {"preferred": share, "better": base}
    text = (
        f"it prefers the {word} answer in {share:.1%} of pairs (the {word} one is the better in {base:.1%}), and is right in "
        f"{easy:.1%} of pairs whose better answer is the {word}, but in {hard:.1%} of the others; without what length "
        f"predicts, its accuracy is {corrected:.1%}. Train on pairs of equal length, with the regularizer length-correlation, or subtract "
        "a length penalty."
    )
    always = share >= ALWAYS_LONGER and min(base, 1 - base) * result.pairs >= FEWEST_PAIRS  # however few the prompts are
    if easy.value - hard.value <= LARGE_GAP or not (always or easy.low > hard.high):
        return None
    ties = figures.get("ties")
    chance = 0.5 if ties is None else (1 - ties.value) / 2  # of the pairs that it tells apart
    if share >= ALWAYS_LONGER or corrected.low <= chance:
        return Finding("length", "alarm", "Length decides", text, numbers)
    return Finding("length", "warning", "Length matters much", text, numbers)


def _trained_on(result: RewardResult, data: DataSummary) -> Finding | None:
    other = {"text": data.conversations, "conversations": data.samples - data.conversations}
    formats = {facts.get("trained_on") for facts in result.manifest.values()}
    trained_on = next((name for name in other if name in formats and other[name]), None)
    if trained_on is None:
        return None
    given, advice = {
        "text": ("conversations", "Their messages are rendered with roles or a chat template that the training did not have"),
        "conversations": ("text", "Prompt and answer are joined without the chat template of the training"),
    }[trained_on]
    text = (
        f"a model was trained on {trained_on}, and {other[trained_on]:,} of {data.samples:,} samples here are {given}. {advice}, so that "
        f"the figures may be worse than on {trained_on}. Evaluate on {trained_on}."
    )
    numbers = {"samples": data.samples, "other_format": other[trained_on]}
    return Finding("trained_on", "warning", "Its models know another format", text, numbers)


def _abstentions(result: RewardResult, data: DataSummary) -> Finding | None:
    if not result.abstained:
        return None
    share = result.abstained / result.samples
    suite = "; the benchmark's own score counts them as wrong" if result.suite is not None else ""
    text = (
        f"It gave no reward to {result.abstained:,} of {result.samples:,} samples ({share:.1%}). They are left out of the figures, "
        f"which describe the others only{suite}."
    )
    numbers = {"abstained": result.abstained, "samples": result.samples, "share": share}
    return Finding("abstained", "warning" if share > MANY_ABSTENTIONS else "note", "", text, numbers)


def _ties(result: RewardResult, data: DataSummary) -> Finding | None:
    ties = result.figures.get("ties")
    if ties is None or ties.value <= MANY_TIES:
        return None
    text = (
        f"It gives equal rewards in {ties:.1%} of pairs, which count as wrong. From equal rewards of one prompt a policy "
        "learns nothing."
    )
    return Finding("ties", "warning", "", text, _numbers(ties=ties))


def _sections(result: RewardResult, data: DataSummary) -> Finding | None:
    below = [section for section in result.sections if section.pairs >= FEWEST_PAIRS and section.accuracy.high < section.chance]
    if len(result.sections) < 2 or not below:
        return None
    worst = min(below, key=lambda section: section.accuracy.high)
    others = f", and so it is in {len(below) - 1} more" if len(below) > 1 else ""
    lead = f"In the section {worst.name!r} it is worse than chance"
    text = f"it is right in {worst.accuracy:.1%} of {worst.pairs:,} pairs{others}."
    numbers = _numbers(accuracy=worst.accuracy) | {"pairs": worst.pairs, "more": len(below) - 1}
    return Finding("section", "warning", lead, text, numbers)


def _formats(result: RewardResult, data: DataSummary) -> Finding | None:
    paid_for = [
        (bias, more, less)
        for bias in result.formats
        if bias.feature not in ("characters", "lines") and bias.pairs >= FEWEST_PAIRS
        for more, less in [(bias.accuracy_more, bias.accuracy_less)]
        if more is not None and less is not None and more.value - less.value > LARGE_GAP and more.low > less.high
    ]
    if not paid_for:
        return None
    worst, more, less = max(paid_for, key=lambda one: one[1].value - one[2].value)
    text = (
        f"of {worst.pairs:,} pairs that differ in {worst.feature.replace('_', ' ')}, it prefers the answer with more "
        f"in {worst.preferred:.1%}; it is right in {more:.1%} where that one is the better, but in {less:.1%} of the others."
    )
    numbers = {"pairs": worst.pairs, "preferred": worst.preferred, **_numbers(accuracy_more=more, accuracy_less=less)}
    return Finding("format", "warning", "It pays for format", text, numbers)


def _calibration(result: RewardResult, data: DataSummary) -> Finding | None:
    error, accuracy = result.figures.get("ece"), result.figures.get("accuracy")
    if error is None or accuracy is None or error.value <= LARGE_CALIBRATION_ERROR or result.pairs < ENOUGH_TO_CALIBRATE:
        return None
    upper = [part for part in result.calibration if part.low >= 0.5]
    sure, count = sum(part.predicted * part.pairs for part in upper), sum(part.pairs for part in upper)
    claimed = sure / count if count else math.nan
    word = "too sure" if claimed > accuracy.value else "too careful"
    text = (
        f"its win probabilities are off by {error.value:.3f} on average. This matters where rewards are combined, "
        "thresholded or turned into probabilities, not for their order; `rm-plugins calibrate` finds a better scale."
    )
    return Finding("calibration", "note", f"Its scale is {word}", text, {"ece": error.value})


def _members(result: RewardResult, data: DataSummary) -> Finding | None:
    members = result.members
    if members is None or math.isnan(members.accuracy_divided) or math.isnan(members.accuracy_unanimous):
        return None
    text = (
        f"Its {len(members.names)} members agree on {members.unanimous:.1%} of pairs, where it is right in "
        f"{members.accuracy_unanimous:.1%}; on the others it is right in {members.accuracy_divided:.1%}."
    )
    numbers = {
        "members": len(members.names),
        "unanimous": members.unanimous,
        "accuracy_unanimous": members.accuracy_unanimous,
        "accuracy_divided": members.accuracy_divided,
    }
    return Finding("members", "note", "", text, numbers)


def _few_pairs(result: RewardResult, data: DataSummary) -> Finding | None:
    if not result.pairs and result.figures.keys() <= FIGURES.keys():  # nor a figure of an attribute
        text = "There is no pair of a better and a worse answer that it scored, so that there is nothing to say of it."
        return Finding("few", "warning", "", text, {"pairs": 0})
    if not 0 < result.pairs < FEW_PAIRS:
        return None
    text = "look at the intervals, not at the figures."
    return Finding("few", "note", f"There are {result.pairs} pairs only", text, {"pairs": result.pairs})


def _numbers(**estimates: Estimate) -> dict[str, float]:
    return {
        f"{name}{end}": number
        for name, estimate in estimates.items()
        for end, number in (("", estimate.value), ("_low", estimate.low), ("_high", estimate.high))
    }
