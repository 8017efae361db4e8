"""The page that compares two rewards: which is better, in which sections, and on which pairs."""

from __future__ import annotations

from rm_plugins.errors import DataError
from rm_plugins.evaluation.results import Difference, Evaluation
from rm_plugins.reports import evaluation_parts as parts
from rm_plugins.reports.evaluation_facts import evaluated_facts
from rm_plugins.reports.evaluation_page import first_screen, section
from rm_plugins.reports.numbers import interval, p_value, points
from rm_plugins.reports.page import page
from rm_plugins.reports.pair_texts import flipped_pairs
from rm_plugins.reports.reward_styles import RewardStyle, short, styled
from rm_plugins.reports.suite_tables import suite_tables


def comparison_page(evaluation: Evaluation) -> str:
    """The whole page: one file, without a script.

    Args:
        evaluation: Of exactly two rewards, with the difference of the second from the first.

    Raises:
        DataError: It is an evaluation of another number of rewards, or without their difference.
        MissingDependencyError: matplotlib is not installed.
    """
    if len(evaluation.rewards) != 2 or len(evaluation.differences) != 1:
        raise DataError(
            f"A comparison is of two rewards and their one difference; the evaluation has {len(evaluation.rewards)} rewards and "
            f"{len(evaluation.differences)} differences. Evaluate two rewards, or write its page with evaluation_page."
        )
    (_, a), (_, b) = styled(evaluation)
    difference = evaluation.differences[0]
    contents = {
        "comparisons": ("The difference", parts.comparisons(evaluation)),
        "comparisons_by_section": ("The difference by section", parts.differences_by_section(evaluation)),
        "won": (f"{short(b.name)} alone is right", flipped_pairs(difference.won, a, b)),
        "lost": (f"{short(a.name)} alone is right", flipped_pairs(difference.lost, a, b)),
        "suite": ("Benchmark", suite_tables(evaluation)),
        "sections": ("Accuracy by section", parts.by_section(evaluation)),
        "by_length": ("Accuracy by difference in length", parts.by_length(evaluation)),
        "evaluated": ("What was evaluated", evaluated_facts(evaluation)),
    }
    sections = (section(name, heading, content) for name, (heading, content) in contents.items() if content)
    body = "\n".join([_headline(difference, a, b), first_screen(evaluation), "<main>", *sections, "</main>"])
    return page(f"{short(b.name)} against {short(a.name)}", body, "evaluation.css")


def _headline(difference: Difference, a: RewardStyle, b: RewardStyle) -> str:
    said = {"better": f"{b.html} is better than {a.html}", "worse": f"{a.html} is better than {b.html}"}
    verdict = said.get(difference.outcome, f"No clear difference between {a.html} and {b.html}")
    accuracy = difference.accuracy
    size = f"{points(accuracy.value)} points of accuracy {interval(accuracy, points)}, p = {p_value(difference.p_value)}"
    return f'<p class="headline"><b>{verdict}</b><span>{size}</span></p>'
