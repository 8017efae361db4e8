"""What a reader should know of a reward first, as sentences with numbers.

Each finding needs an effect that is large enough to matter and that the data is large enough to show.
"""

from __future__ import annotations

import math

from rm_plugins.evaluation.figures import FIGURES
from rm_plugins.evaluation.finding import Finding
from rm_plugins.evaluation.judged_rows import Cluster
from rm_plugins.evaluation.results import DataSummary, RewardResult
from rm_plugins.labels import counted
from rm_plugins.statistics.intervals import Estimate

FEWEST_PAIRS = 30
"""No finding is about a part of the pairs that has fewer."""
ALWAYS_LONGER = 0.95
"""Length decides where the reward prefers the longer (or the shorter) answer in this share of pairs."""
LARGE_GAP = 0.25
"""Between the accuracies on pairs whose better answer has more of something (length, list items) and on pairs where it has less."""
MANY_TIES = 0.05
MANY_ABSTENTIONS = 0.01
LARGE_CALIBRATION_ERROR = 0.1
FEW_PAIRS = 100
FEW_PROMPTS = 10
"""With fewer, an interval that takes prompts as independent is rough."""
LARGE_LEAD = 0.1
"""Over chance. Where the interval of the accuracy reaches this far, the pairs are too few to say "no better than chance"."""
ENOUGH_TO_CALIBRATE = 500
"""Pairs. With fewer, even a perfect reward has a large calibration error by chance."""
_FEATURES = {"list_items": "list items", "headings": "headings", "bold": "bold parts", "code_blocks": "code blocks"}


def findings(result: RewardResult, data: DataSummary, clustered_by: Cluster = "prompt") -> tuple[Finding, ...]:
    """What the reader should know of a reward, the most severe first; empty where nothing stands out.

    Args:
        result: The figures of the reward.
        data: The data that it was evaluated on.
        clustered_by: The unit that its intervals take as independent, as in `JudgedRows`.
    """
    checks = (_length, _chance, _trained_on, _abstentions, _ties, _sections, _formats, _calibration, _members, _few_pairs)
    raised = [*(check(result, data) for check in checks), _few_prompts(result, data, clustered_by)]
    return tuple(sorted((finding for finding in raised if finding is not None), key=lambda finding: finding.rank))


def _chance(result: RewardResult, data: DataSummary) -> Finding | None:
    accuracy, ties = result.figures.get("accuracy"), result.figures.get("ties")
    if accuracy is None or ties is None or math.isnan(accuracy.low):
        return None
    chance = (1 - ties.value) / 2  # ties are wrong, so chance is right in half of the other pairs
    if accuracy.low > chance or not chance:
        return None
    numbers = _numbers(accuracy=accuracy) | {"chance": chance}
    if accuracy.high < chance:
        text = (
            f"it is right in {accuracy:.1%} of pairs; chance is {chance:.1%}. If other data shows the same, the sign of the reward is "
            "wrong, or the better and the worse answers were swapped when it was trained."
        )
        return Finding("chance", "alarm", "It prefers the worse answer", text, numbers)
    if accuracy.high < chance + LARGE_LEAD:
        text = f"it is right in {accuracy:.1%} of pairs; chance is {chance:.1%}."
        return Finding("chance", "alarm", "It is not better than chance here", text, numbers)
    text = f"it is right in {accuracy:.1%} of {result.pairs:,}; chance is {chance:.1%}."
    return Finding("chance", "note", "Too few pairs to tell it from chance", text, numbers | {"pairs": result.pairs})


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
        f"it prefers the {word} answer in {share:.1%} of pairs (the {word} one is the better in {base:.1%}). It is right in {easy:.1%} of "
        f"pairs whose better answer is the {word}, but in {hard:.1%} of the others. Without what length predicts, its accuracy is "
        f"{corrected:.1%}. Train it on pairs of equal length or with the regularizer length-correlation, or add a penalty on {word} "
        "answers."
    )
    always = share >= ALWAYS_LONGER and min(base, 1 - base) * result.pairs >= FEWEST_PAIRS  # however few the prompts are
    if easy.value - hard.value <= LARGE_GAP or not (always or easy.low > hard.high):
        return None
    ties = figures.get("ties")
    chance = 0.5 if ties is None else (1 - ties.value) / 2
    if share >= ALWAYS_LONGER or corrected.low <= chance:
        return Finding("length", "alarm", "Length decides", text, numbers)
    return Finding("length", "warning", "Length has a large effect", text, numbers)


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
    text = f"It gave no reward to {result.abstained:,} of {result.samples:,} samples ({share:.1%}). The figures leave them out{suite}."
    numbers = {"abstained": result.abstained, "samples": result.samples, "share": share}
    return Finding("abstained", "warning" if share > MANY_ABSTENTIONS else "note", "", text, numbers)


def _ties(result: RewardResult, data: DataSummary) -> Finding | None:
    ties = result.figures.get("ties")
    if ties is None or ties.value <= MANY_TIES:
        return None
    if ties.value == 1:
        text = f"it gives equal rewards in {ties.value:.1%} of {result.pairs:,} pairs. A policy learns nothing from it."
        return Finding("ties", "alarm", "It never tells two answers apart", text, _numbers(ties=ties) | {"pairs": result.pairs})
    text = (
        f"It gives equal rewards in {ties:.1%} of pairs, which count as wrong. A policy learns nothing from completions of one prompt "
        "whose rewards are equal."
    )
    return Finding("ties", "warning", "", text, _numbers(ties=ties))


def _sections(result: RewardResult, data: DataSummary) -> Finding | None:
    below = [section for section in result.sections if section.pairs >= FEWEST_PAIRS and section.accuracy.high < section.chance]
    if len(result.sections) < 2 or not below:
        return None
    worst = min(below, key=lambda section: section.accuracy.high)
    more = len(below) - 1
    others = f"; {more} more section{' is' if more == 1 else 's are'} below chance" if more else ""
    lead = f"In the section {worst.name!r} it is worse than chance"
    text = f"it is right in {worst.accuracy:.1%} of {worst.pairs:,} pairs{others}."
    numbers = _numbers(accuracy=worst.accuracy) | {"pairs": worst.pairs, "more": more}
    return Finding("section", "warning", lead, text, numbers)


def _formats(result: RewardResult, data: DataSummary) -> Finding | None:
    biased = [
        (bias, more, less)
        for bias in result.formats
        if bias.feature not in ("characters", "lines") and bias.pairs >= FEWEST_PAIRS
        for more, less in [(bias.accuracy_more, bias.accuracy_less)]
        if more is not None and less is not None and abs(more.value - less.value) > LARGE_GAP
        if more.low > less.high or less.low > more.high
    ]
    if not biased:
        return None
    worst, more, less = max(biased, key=lambda one: abs(one[1].value - one[2].value))
    likes = more.value > less.value
    name = _FEATURES.get(worst.feature, worst.feature.replace("_", " "))
    liked, other = ("more", "fewer") if likes else ("fewer", "more")
    easy, hard = (more, less) if likes else (less, more)
    text = (
        f"of {worst.pairs:,} pairs that differ in {name}, it prefers the answer with more in {worst.preferred:.1%}. It is right where the "
        f"better answer has {liked} {name} in {easy:.1%}, but in {hard:.1%} of the others. Add training pairs whose better answer has "
        f"{other} {name}."
    )
    numbers = {"pairs": worst.pairs, "preferred": worst.preferred, **_numbers(accuracy_more=more, accuracy_less=less)}
    lead = "It rewards format" if likes else "It penalizes format"
    return Finding("format", "warning", lead, text, numbers)


def _calibration(result: RewardResult, data: DataSummary) -> Finding | None:
    error = result.figures.get("ece")
    if error is None or error.value <= LARGE_CALIBRATION_ERROR or result.pairs < ENOUGH_TO_CALIBRATE:
        return None
    upper = [part for part in result.calibration if part.low >= 0.5]  # each pair is entered both ways round
    surplus = sum((part.predicted - part.observed) * part.pairs for part in upper)
    word = "too sure" if surplus > 0 else "too careful"
    text = (
        f"its win probabilities are off by {error.value:.3f} on average. The order of its rewards stays the same; what suffers is "
        "combining rewards, thresholds and probabilities. `rm-plugins calibrate` finds a better scale."
    )
    return Finding("calibration", "note", f"Its scale is {word}", text, {"ece": error.value})


def _members(result: RewardResult, data: DataSummary) -> Finding | None:
    members = result.members
    if members is None or math.isnan(members.accuracy_divided) or math.isnan(members.accuracy_unanimous):
        return None
    text = (
        f"Its {len(members.names)} members agree on {members.unanimous:.1%} of pairs, and it is right in "
        f"{members.accuracy_unanimous:.1%} of those. It is right in {members.accuracy_divided:.1%} of the others."
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
        text = "It scored no pair of a better and a worse answer, so there are no figures to judge it by."
        return Finding("few", "warning", "", text, {"pairs": 0})
    if not 0 < result.pairs < FEW_PAIRS:
        return None
    accuracy = result.figures.get("accuracy")
    has_interval = accuracy is not None and not math.isnan(accuracy.low)
    text = "read the intervals, not the figures alone." if has_interval else "they are too few to judge the reward by."
    return Finding("few", "note", f"Only {counted(result.pairs, 'pair')}", text, {"pairs": result.pairs})


def _few_prompts(result: RewardResult, data: DataSummary, clustered_by: Cluster) -> Finding | None:
    """That several pairs or rows of so few prompts say little about other prompts, and how the intervals were made."""
    if data.prompts >= FEW_PROMPTS or max(data.rows, result.pairs) <= data.prompts:
        return None
    numbers = {"prompts": data.prompts, "rows": data.rows, "pairs": result.pairs}
    if data.rows == 1:
        text = "the figures have no intervals, which need at least two rows. Evaluate on more prompts."
        return Finding("few_prompts", "note", f"All {result.pairs:,} pairs are from one row", text, numbers)
    if data.prompts == 1:
        text = (
            "the intervals take the rows as independent and hold for this prompt only. They say nothing about other prompts. "
            "Evaluate on more prompts."
        )
        return Finding("few_prompts", "note", f"All {data.rows:,} rows share one prompt", text, numbers)
    lead = f"Only {data.prompts} prompts for {counted(data.rows, 'row')}"
    if clustered_by == "row":
        text = "the intervals take the rows as independent. They are too narrow if rows of one prompt tend to be right or wrong together."
    else:
        text = "the intervals take the prompts as independent, and with so few they are rough. Evaluate on more prompts."
    return Finding("few_prompts", "note", lead, text, numbers)


def _numbers(**estimates: Estimate) -> dict[str, float]:
    return {
        f"{name}{end}": number
        for name, estimate in estimates.items()
        for end, number in (("", estimate.value), ("_low", estimate.low), ("_high", estimate.high))
    }
