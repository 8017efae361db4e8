"""The page of an evaluation of one or several rewards, with the findings first."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import PurePath
from types import MappingProxyType

from rm_plugins.data.row_files import is_data_file
from rm_plugins.evaluation.results import Evaluation
from rm_plugins.reports import evaluation_parts as parts
from rm_plugins.reports.evaluation_facts import evaluated_facts
from rm_plugins.reports.page import page, text
from rm_plugins.reports.pair_texts import worst_mistakes
from rm_plugins.reports.suite_tables import suite_tables
from rm_plugins.reports.verdicts import evaluated_line, figures_table, summary_table, verdicts

CHARTS: Mapping[str, str] = MappingProxyType(
    {
        "summary": (
            "Below each figure is its 95% interval; the last row is the accuracy of always choosing the longer answer. “Best” "
            "marks a reward that the comparisons show to be more accurate than all others."
        ),
        "suite": "The benchmark's own score by its own rule, and its sections.",
        "figures": (
            "Every figure, with its 95% interval below it if it has one; an arrow shows the direction in which a reward gets "
            "better."
        ),
        "sections": (
            "A dot is a reward's accuracy in a section, and its line is the 95% interval. The dashed line is chance, which "
            "is (1 - share of ties) / 2: with 10% ties, 45%. The bar across the row is the accuracy of always choosing the "
            "longer answer."
        ),
        "by_length": (
            "The better answer is much shorter in the top row and much longer in the bottom row. If the dots move right from "
            "top to bottom, the reward prefers long answers; if they move left, short ones. The dashed line is chance, "
            "which is (1 - share of ties) / 2: with 10% ties, 45%."
        ),
        "distribution": (
            "The less the rewards of better answers (area) and of worse answers (line) overlap, the better the reward "
            "separates them."
        ),
        "calibration": (
            "On the diagonal, win probabilities come true as often as they predict. A curve flatter than the diagonal means "
            "that the reward is too sure, a steeper one that it is too careful. The grey bars show the number of pairs at "
            "each point."
        ),
        "length": (
            "Each point is an answer; the line is the reward that its length alone predicts, and it is flat if length does "
            "not matter."
        ),
        "formats": (
            "The dot shows how often a reward prefers the answer with more of a feature, the bar how often that answer is "
            "better. A dot far to the right of the bar means that the reward favours format, far to the left that it "
            "penalizes it. The small numbers are its accuracies where the better answer has more and less of the feature."
        ),
        "members": (
            "The number in a cell is how often two members prefer the same answer, darker if more often. Members that always "
            "agree add nothing to each other. On pairs on which they disagree, the reward is less reliable."
        ),
        "best_of_n": (
            "The curve is the mean gold reward of the best of n answers when this reward chooses; its band is the 95% "
            "interval. A curve that falls again shows over-optimization. The dashed line is the best possible choice."
        ),
        "comparisons": (
            "The number in a cell is the accuracy of one reward minus that of another on the same pairs, with its 95% interval. "
            "p is the probability of such a difference if both rewards are equally good. We call p < 0.05 significant."
        ),
        "comparisons_by_section": (
            "To the right of the dashed line, a reward is more accurate in a section than the first reward; to the left, it "
            "is less accurate."
        ),
        "won": "Pairs on which the second reward is right and the first is wrong, the clearest first.",
        "lost": "Pairs on which the first reward is right and the second is wrong, the clearest first.",
        "mistakes": "The pairs with the largest errors, with their texts; often the label is wrong.",
        "evaluated": "Everything that is needed to get the same numbers again.",
    }
)
"""How to read each chart and table, by the id of its section of the page."""

_Part = Callable[[Evaluation], str]
_SECTIONS: tuple[tuple[str, str, _Part], ...] = (
    ("suite", "Benchmark", suite_tables),
    ("figures", "All figures", figures_table),
    ("comparisons", "Comparisons of rewards", parts.comparisons),
    ("comparisons_by_section", "Comparisons by section", parts.differences_by_section),
    ("sections", "Accuracy by section", parts.by_section),
    ("by_length", "Accuracy by difference in length", parts.by_length),
    ("length", "Reward against length", parts.length_scatters),
    ("distribution", "Rewards of better and worse answers", parts.distributions),
    ("calibration", "Calibration", parts.calibrations),
    ("best_of_n", "Best of n", parts.best_of_n_parts),
    ("formats", "Preference for format", parts.formats),
    ("members", "Agreement of members", parts.member_tables),
    ("mistakes", "Worst mistakes", worst_mistakes),
    ("evaluated", "What was evaluated", evaluated_facts),
)
_THIRDS = ("length", "distribution", "calibration")  # of the width, where one reward is shown


def evaluation_page(evaluation: Evaluation, title: str | None = None) -> str:
    """The whole page: one file, without a script.

    Args:
        evaluation: The results. Every number of the page is in their JSON.
        title: The title of the page; by default "Rewards on" and the name of the data.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    on = _data_name(evaluation)
    named = title if title is not None else f"Rewards on {on}" if on else "Rewards"
    shown = [(name, heading, part(evaluation)) for name, heading, part in _SECTIONS]
    shown = [(name, heading, content) for name, heading, content in shown if content]
    links = "".join(f'<li><a href="#{name}">{heading}</a></li>' for name, heading, _ in shown)
    one = len(evaluation.rewards) == 1
    body = "\n".join(
        [
            first_screen(evaluation),
            f'<nav aria-label="Sections"><ul>{links}</ul></nav>',
            f'<main class="{"one" if one else "several"}">',
            *(section(name, heading, content, is_third=one and name in _THIRDS) for name, heading, content in shown),
            "</main>",
        ]
    )
    return page(named, body, "evaluation.css")


def _data_name(evaluation: Evaluation) -> str:
    """The name of the data, if it has one: of a benchmark or a dataset its name, of a file the name without the folder."""
    data = evaluation.data
    return data.suite or (PurePath(data.source).name if is_data_file(data.source) else data.source)


def first_screen(evaluation: Evaluation) -> str:
    """The data, the findings on each reward, and the rewards side by side."""
    screen = [evaluated_line(evaluation), verdicts(evaluation)]
    side_by_side = summary_table(evaluation)
    if side_by_side:
        screen.append(side_by_side + f'<p class="how">{text(CHARTS["summary"])}</p>')
    return "\n".join(screen)


def section(name: str, heading: str, content: str, *, is_third: bool = False) -> str:
    """A section of the page.

    Args:
        name: Its id and its key in `CHARTS`.
        heading: As text.
        content: As HTML.
        is_third: Whether it is shown beside others where there is room.
    """
    kind = ' class="third"' if is_third else ""
    return (
        f'<section id="{name}"{kind}>\n<h2>{text(heading)}</h2>\n<p class="how">{text(CHARTS[name])}</p>\n{content}\n</section>'
    )
