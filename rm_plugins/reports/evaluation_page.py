"""The page of an evaluation: what was found of one reward or of several, the verdict first."""

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
            "Below a figure is its 95% interval, and the last row is what a reward reaches that looks at length alone; "
            "“best” stands only where the comparisons show that no other reward is as accurate."
        ),
        "suite": "The benchmark's own score, by its own rule, and the sections that it is made of.",
        "figures": "Every figure, with its 95% interval below it where it has one; an arrow points to where a reward gets better.",
        "sections": (
            "A dot is a reward's accuracy in a section and its line the 95% interval; the dashed line is chance (half of the pairs of "
            "all sections that are no ties: ties are wrong), and the bar across the row is what the longer answer reaches."
        ),
        "by_length": (
            "From pairs whose better answer is much shorter (top) to pairs whose better answer is much longer (bottom): "
            "dots that move to the right on the way down show a reward that pays for length, and the dashed line is chance "
            "(half of the pairs that are no ties: ties are wrong)."
        ),
        "distribution": (
            "The less the rewards of better answers (area) and of worse answers (line) overlap, the better they are told apart."
        ),
        "calibration": (
            "On the diagonal, win probabilities come true as often as they say; a curve flatter than it belongs to a "
            "reward that is too sure, and the grey bars show how many pairs are behind each point."
        ),
        "length": (
            "Each point is an answer; the line is the reward that its length alone predicts, flat where length does not matter."
        ),
        "formats": (
            "How often a reward prefers the answer with more of a feature; far to the right of the bar, which is how "
            "often that answer is the better, the reward pays for format, and so it does where its accuracy (small) is much "
            "higher if the better answer has more of the feature than if it has less."
        ),
        "members": (
            "How often two members prefer the same answer, darker where more often; members that agree always add nothing "
            "to each other, and where they do not agree the reward is less sure."
        ),
        "best_of_n": (
            "What the best of n answers is worth when this reward picks it, with the 95% interval as a band; a curve that "
            "falls again shows a reward that is over-optimised, and the dashed line is the best that there is."
        ),
        "comparisons": (
            "The accuracy of one reward minus that of another on the same pairs with the 95% interval; p is how likely "
            "such a difference is if both are equally good, and below 0.05 it is called one."
        ),
        "comparisons_by_section": (
            "Right of the dashed line, a reward is more accurate in a section than the first; left of it, less."
        ),
        "won": "The pairs that the second reward has right and the first has wrong, the clearest first.",
        "lost": "The pairs that the first reward has right and the second has wrong, the clearest first.",
        "mistakes": "The pairs that a reward has wrong by most, with their texts; often it is the label that is wrong.",
        "evaluated": "All that is needed to have the same numbers again.",
    }
)
"""How each chart and table is read, by its name; the names are the ids of the page's sections."""

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
    """The whole page, which needs no script and nothing beside it.

    Args:
        evaluation: What was found; every number of the page is in its JSON.
        title: What the page is about; by default rewards, on the data where it has a name.

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
    """What the data is called, if anything: a benchmark or a dataset by its name, a file without its folder."""
    data = evaluation.data
    return data.suite or (PurePath(data.source).name if is_data_file(data.source) else data.source)


def first_screen(evaluation: Evaluation) -> str:
    """What was evaluated, the verdict on each reward, and the rewards side by side."""
    screen = [evaluated_line(evaluation), verdicts(evaluation)]
    side_by_side = summary_table(evaluation)
    if side_by_side:
        screen.append(side_by_side + f'<p class="how">{text(CHARTS["summary"])}</p>')
    return "\n".join(screen)


def section(name: str, heading: str, content: str, *, is_third: bool = False) -> str:
    """A section of the page.

    Args:
        name: Its id, and the key of how it is read in `CHARTS`.
        heading: As text.
        content: As HTML.
        is_third: Whether it stands beside others where there is room.
    """
    kind = ' class="third"' if is_third else ""
    return (
        f'<section id="{name}"{kind}>\n<h2>{text(heading)}</h2>\n<p class="how">{text(CHARTS[name])}</p>\n{content}\n</section>'
    )
