"""The contract check of judges."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rm_plugins.canonical_json import canonical_json
from rm_plugins.judges import Judge, Question, Reply

if TYPE_CHECKING:
    pass


def check_judge(judge: Judge, questions: Sequence[Question]) -> list[Reply]:
    """Check that a judge fulfils its contract: one reply per question, in their order, and either an answer or an error.

    Args:
        judge: The judge, whose answers to equal questions must be equal.
        questions: At least two different questions; some with `Question.labels` if the judge gives probabilities.

    Returns:
        The replies, [N].

    Raises:
        AssertionError: The judge breaks the contract; the message says how.
    """
    assert len({question.key for question in questions}) > 1, "check_judge needs at least two different questions"
    assert judge.ask([]) == [], "the judge replied although it was not asked"
    replies = judge.ask(questions)
    assert len(replies) == len(questions), f"the judge gave {len(replies)} replies to {len(questions)} questions"
    for place, (question, reply) in enumerate(zip(questions, replies, strict=True)):
        assert bool(reply.text) != bool(reply.error) or reply.label_probabilities, (
            f"reply {place} must have either a text or an error, not {reply.text!r:.80} and {reply.error!r:.80}"
        )
        masses = reply.label_probabilities or {}
        assert set(masses) in (set(), set(question.labels)), (
            f"reply {place} has the probabilities of {[*masses]}, not of {[*question.labels]}"
        )
        assert all(0 <= mass <= 1 for mass in masses.values()) and math.fsum(masses.values()) <= 1.001, (
            f"reply {place} has the probabilities {masses}, which are not probabilities of different answers"
        )
    others = judge.ask([*reversed(questions), questions[0]])
    said = [(reply.text, reply.error) for reply in [*reversed(replies), replies[0]]]
    assert [(reply.text, reply.error) for reply in others] == said, "the replies depend on the order of the questions"
    assert isinstance(canonical_json(judge.identity), str)
    return replies
