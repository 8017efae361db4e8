"""Questions that are answered with a verdict: which of two responses is better, or is a response good."""

from __future__ import annotations

from typing import Any

from rm_plugins.errors import SpecError
from rm_plugins.judges.template import Template
from rm_plugins.rendering.written_out import written_out
from rm_plugins.replies import LabelScale, answer_scale
from rm_plugins.samples import Message, Sample

PAIR_VERDICTS = ("A", "B", "tie")
"""The verdicts on a pair: the first response is better, the second one is, both are equally good."""



class PairQuestion:
    """Asks which of two responses to a prompt is better.

    Args:
        template: The name of a template that comes with the package, a file, or the text of a template. It uses ``first`` and ``second``,
            the two responses, and may use ``prompt``, ``criteria``, ``instruction`` (the form of the answer) and columns of the row.
        ties: Whether the verdict ``tie`` is possible.

    Raises:
        SpecError: The template is not valid, or does not use both responses.

    >>> (message,) = PairQuestion("{{ first }} or {{ second }}? {{ instruction }}").messages(Sample("2+2?", "4"), Sample("2+2?", "5"))
    >>> message["content"][:7]
    '4 or 5?'
    """

    def __init__(self, template: str = "pairwise", *, ties: bool = False) -> None:
        self.template = Template(template, given=("first", "second", "criteria", "instruction"), needed=("first",))
        if "second" not in self.template.names:
            raise SpecError("the template must use 'second', or the question would not show that response.", key="template")
        self.verdicts = PAIR_VERDICTS if ties else PAIR_VERDICTS[:2]

    @property
    def instruction(self) -> str:
        """The sentences that tell the judge the form of the answer."""
        tie = " If they are equally good, write [[tie]]." if "tie" in self.verdicts else ""
        return (
            "First explain your comparison in a few sentences. Then end with your verdict, and write nothing after it: [[A]] if response A is "
            f"better, [[B]] if response B is better.{tie}"
        )

    def messages(self, first: Sample, second: Sample, criteria: str | None = None) -> tuple[Message, ...]:
        """The question about two responses, in the order in which they are shown.

        Raises:
            DataError: A text or a column that the template uses is missing.
        """
        given = {"first": written_out(first.completion), "second": written_out(second.completion)}
        return _asked(self.template, first, {**given, "instruction": self.instruction}, criteria)

    def answer(self, verdict: str) -> str:
        """The shortest answer with a verdict."""
        return f"[[{verdict}]]"


class GoodnessQuestion:
    """Asks whether a response is good, like the reward `judge` with its default labels.

    Args:
        template: As for `PairQuestion`; it uses ``completion``, the response.

    Raises:
        SpecError: The template is not valid, or does not use the response.
    """

    def __init__(self, template: str = "pointwise") -> None:
        self.template = Template(template, given=("criteria", "instruction"), needed=("completion", "messages"))
        scale = answer_scale()
        assert isinstance(scale, LabelScale)
        self.verdicts = scale.names
        """The verdicts: good, and bad."""
        self.instruction = scale.instruction
        """The sentence that tells the judge the form of the answer."""

    def messages(self, sample: Sample, criteria: str | None = None) -> tuple[Message, ...]:
        """The question about a response.

        Raises:
            DataError: A text or a column that the template uses is missing.
        """
        return _asked(self.template, sample, {"instruction": self.instruction}, criteria)

    def answer(self, verdict: str) -> str:
        """The answer with a verdict."""
        return verdict


def _asked(template: Template, sample: Sample, given: dict[str, Any], criteria: str | None) -> tuple[Message, ...]:
    if criteria is not None:
        given = {**given, "criteria": criteria}
    return ({"role": "user", "content": template.render(sample, given)},)
