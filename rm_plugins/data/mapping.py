"""Maps the columns of a published file to those that rows are read by: one mapping for every command and for Python."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from rm_plugins.data.plain_values import plain_row
from rm_plugins.data.repeated_prompts import split_prompt
from rm_plugins.data.transcripts import turns_of_transcript
from rm_plugins.errors import DataError, SpecError, did_you_mean

Verdict: TypeAlias = Literal["a", "b", "tie"]
_VOTES: Mapping[str, float] = {"a": 1.0, "b": -1.0, "tie": 0.0}
_TIES = re.compile(
    r"tied?|draw|equal|same|(both|neither)([ _-]?(are[ _])?(bad|good|fine|equal))?|tie \(\s*both ?(bad|good)\s*\)"
)
_NUMBER = re.compile(r"[-+]?\d+(\.\d*)?")
_COMPARED = re.compile(r"(\w+) ?(>+|<+|=+) ?(\w+)")
_CALLED = "(model|response|answer|assistant|output|option|candidate|completion|conversation|chatbot|system|summary|text|reply)"
_DECIDED = ("chosen", "rejected", "tie", "margin", "confidence")
"""Columns that a mapping of answers sets; the file's own would contradict it."""


@dataclass(frozen=True, slots=True)
class RowMapping:
    """Makes rows in our formats of the rows of a published file; it is called with a row, and can be given to `Dataset.map`.

    Columns that it does not name stay as they are. A path such as ``question.full_text`` names what is inside of a column.

    Args:
        rename: Columns to rename: the column of the file, and the name that rows are read by.
        prompt: Columns that together are the prompt, one paragraph each; empty ones are left out. A column whose name ends in ``?``
            (``input?``) may be absent.
        answers: The columns of answer A and answer B; the better one becomes ``chosen``, the other ``rejected``.
        winner: The column with the verdict; or several columns, one per annotator; or one column for each of ``a``, ``b`` and ``tie``,
            where exactly one is true. Without it, `scores` decide.
        verdicts: What each value of `winner` means: ``a``, ``b`` or ``tie``. Without it, a value names a column of `answers` or the
            part in which it differs from the other (``model_a``, ``A`` and ``response_a``; 1 and ``output_1``), compares them (``A>B``), or
            says tie.
        scale: What a number as `winner` means: a ``choice``, as in `verdicts`; ``probability``, how probable it is that A is
            better; or ``signed``, the margin by which B is better, negative where A is.
        scores: The columns with the scores of A and of B, which become ``chosen_score`` and ``rejected_score``.
        items: The column with a list of mappings, one per answer, or several columns with one mapping each.
        item: What the answers are called in `items`, and the column that they become: ``completions``, and ``ranks``, ``scores`` or
            ``labels``.
        transcripts: Whether texts are whole conversations (``\\n\\nHuman: ...\\n\\nAssistant: ...``), to be split into messages.
        split_prompt: Whether a prompt that all completions of a row begin with is taken off them.

    Raises:
        SpecError: Settings contradict each other.

    >>> row = {"question": "2+2?", "response_a": "4", "response_b": "5", "winner": "model_a"}
    >>> RowMapping(rename={"question": "prompt"}, answers=("response_a", "response_b"), winner="winner")(row)
    {'prompt': '2+2?', 'chosen': '4', 'rejected': '5'}
    """

    rename: Mapping[str, str] = dataclasses.field(default_factory=dict)
    prompt: Sequence[str] = ()
    answers: Sequence[str] = ()
    winner: str | Sequence[str] | Mapping[str, str] = ()
    verdicts: Mapping[str, Verdict] = dataclasses.field(default_factory=dict)
    scale: Literal["choice", "probability", "signed"] = "choice"
    scores: Sequence[str] = ()
    items: str | Sequence[str] = ()
    item: Mapping[str, str] = dataclasses.field(default_factory=dict)
    transcripts: bool = False
    split_prompt: bool = False

    def __post_init__(self) -> None:
        new = [*self.rename.values(), *(["prompt"] if self.prompt else []), *self.item.values()]
        if repeated := sorted({name for name in new if new.count(name) > 1}):
            raise SpecError(f"A mapping makes {repeated[0]!r} of two columns. Name one.")
        if self.answers and (len(self.answers) != 2 or not (self.winner or self.scores)):
            raise SpecError(
                "A mapping with `answers` needs two columns, and `winner` or `scores` to decide which answer is better."
            )
        if (self.winner or self.scores or self.verdicts) and not self.answers:
            raise SpecError(
                "A mapping with `winner`, `scores` or `verdicts` needs `answers`, the columns of answer A and answer B."
            )
        if self.scores and len(self.scores) != 2:
            raise SpecError("The `scores` of a mapping are two columns, the scores of answer A and of answer B.")
        if bool(self.items) != bool(self.item) or (self.item and "completions" not in self.item.values()):
            raise SpecError(
                "A mapping with `items` needs `item`, which names the columns of an item: at least `item: {text: completions}`."
            )
        if isinstance(self.winner, Mapping) and not self.winner.keys() <= _VOTES.keys():
            raise SpecError(f"The `winner` of a mapping has columns for a, b and tie, not for {', '.join(self.winner)}.")
        unknown = sorted({str(verdict) for verdict in self.verdicts.values()} - _VOTES.keys())
        if unknown:
            raise SpecError(f"A verdict of a mapping is a, b or tie, not {unknown[0]!r}.")

    @property
    def settings(self) -> dict[str, Any]:
        """Its settings as JSON, without empty ones."""
        given = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        settings: dict[str, Any] = json.loads(
            json.dumps({name: value for name, value in given.items() if value and value != "choice"})
        )
        return settings

    @property
    def _read(self) -> frozenset[str]:
        """The columns that it reads."""
        parts = (name.removesuffix("?") for name in self.prompt)
        return frozenset([*self.rename, *parts, *self.answers, *self.scores, *_names(self.items), *_names(self.winner)])

    @property
    def columns(self) -> frozenset[str]:
        """The columns of the file that it needs."""
        optional = {name.removesuffix("?") for name in self.prompt if name.endswith("?")}
        return frozenset(path.partition(".")[0] for path in self._read - optional)

    def __call__(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """The row in one of our formats.

        Raises:
            DataError: It lacks a column, or has a verdict that the mapping does not know.
        """
        row = plain_row(row)
        made = {new: _at(row, old) for old, new in self.rename.items()}
        if self.prompt:
            made["prompt"] = "\n\n".join(part for name in self.prompt if (part := _text(row, name)))
            if not made["prompt"]:
                raise DataError(f"the prompt is empty: {', '.join(map(repr, self.prompt))} are empty.")
        if self.answers:
            made |= self._compared(row)
        if self.items:
            made |= self._listed(row)
        read = self._read
        mapped = {name: value for name, value in row.items() if name not in read and name not in made} | made
        if self.transcripts:
            mapped = _with_turns(mapped)
        return dict(split_prompt(mapped)) if self.split_prompt else mapped

    def _compared(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """The two answers as a preference pair."""
        for name in self.answers:
            if _at(row, name) is None:
                raise DataError(f"the answer {name!r} is null.")
        for name in _DECIDED:
            if row.get(name) is not None and name not in self._read:
                raise DataError(f"there is {name!r}, which the mapping of answers sets itself. Rename the column.")
        votes = [vote for vote in self._votes(row) if vote is not None]
        if not votes:
            raise DataError(f"{', '.join(map(repr, _names(self.winner) or self.scores))} have no verdict: all are null.")
        vote = math.fsum(votes) / len(votes)
        sides = (0, 1) if vote >= 0 else (1, 0)
        made = {name: _at(row, self.answers[side]) for name, side in zip(("chosen", "rejected"), sides, strict=True)}
        if self.scores:
            made |= {
                name: _score(row, self.scores[side])
                for name, side in zip(("chosen_score", "rejected_score"), sides, strict=True)
            }
        if vote == 0:
            made["tie"] = True
        elif self.scale == "signed":
            made["margin"] = abs(vote)
        elif len(votes) > 1 or abs(vote) < 1:
            made["confidence"] = (1 + abs(vote)) / 2
        return made

    def _votes(self, row: Mapping[str, Any]) -> Iterable[float | None]:
        """Each annotator's vote: 1 for A, -1 for B, 0 for a tie; or by how much A is better."""
        if isinstance(self.winner, Mapping):
            flags = {verdict: _is_true(_at(row, column)) for verdict, column in self.winner.items()}
            if sum(flags.values()) != 1:
                columns = ", ".join(map(repr, self.winner.values()))
                raise DataError(f"of the columns {columns} one must be true, not {sum(flags.values())}.")
            yield next(_VOTES[verdict] for verdict, holds in flags.items() if holds)
        elif self.winner:
            for name in _names(self.winner):
                value = _at(row, name)
                for vote in value if isinstance(value, list) else [value]:
                    yield None if vote is None else self._vote(vote, name)
        else:
            a, b = (_score(row, name) for name in self.scores)
            yield None if a is None or b is None else float((a > b) - (a < b))

    def _vote(self, value: Any, column: str) -> float:
        text = _plain(value)
        allowed = "what names an answer, compares them (A>B), or says tie"
        if self.verdicts:
            allowed = f"one of {', '.join(map(str, self.verdicts))}"
            if (verdict := {_plain(known): verdict for known, verdict in self.verdicts.items()}.get(text)) is not None:
                return _VOTES[verdict]
        elif self.scale == "choice":
            said_yes_or_no = str(value).strip().lower() in ("true", "false")  # which does not say of which answer
            if not said_yes_or_no and (vote := self._choice(text)) is not None:
                return vote
        elif self.scale == "signed":
            allowed = "a finite number"
            if math.isfinite(number := _number(value)):
                return -number
        else:
            allowed = "a number from 0 to 1"
            if 0 <= (number := _number(value)) <= 1:
                return 2 * number - 1
        raise DataError(
            f"{column!r} is {value!r:.80}; {allowed} is allowed for the answers {', '.join(map(repr, self.answers))}. Say what it "
            f"means: verdicts: {{{text or repr(value):.40}: a}}, with a, b or tie for each value; or scale: signed, or probability."
        )

    def _choice(self, text: str) -> float | None:
        """The vote of a verdict in words; None if it is not understood."""
        side = self._side(text)
        if side is not None:
            return side
        if (compared := _COMPARED.fullmatch(text)) is not None:
            left, right = self._side(compared[1]), self._side(compared[3])
            if left is not None and right is not None and left == -right:
                return left * {">": 1, "<": -1, "=": 0}[compared[2][0]]
        return 0.0 if _TIES.fullmatch(text) else None

    def _side(self, text: str) -> float | None:
        """1 for a name of answer A, -1 for answer B: the column, the part in which it differs, or that part after a word for an answer."""
        names = [name.lower() for name in self.answers]
        ends = [_end(name, other) for name, other in (names, names[::-1])]
        text = text.strip("[]")
        plain = text if _NUMBER.fullmatch(text) else re.sub(f"^{_CALLED}[ _-]?", "", text)
        matches = [text == name or plain == end for name, end in zip(names, ends, strict=True)]
        return None if matches[0] == matches[1] else 1.0 if matches[0] else -1.0

    def _listed(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """A list of answers, and what the data says about each, as columns."""
        items = _at(row, self.items) if isinstance(self.items, str) else [_at(row, name) for name in self.items]
        if not isinstance(items, list) or not all(isinstance(item, Mapping) for item in items):
            raise DataError(f"{self.items!r} must be a list of mappings, one per answer, not {items!r:.80}.")
        return {new: [_at(item, old) for item in items] for old, new in self.item.items()}


def _with_turns(row: Mapping[str, Any]) -> dict[str, Any]:
    names = [name for name in ("prompt", "chosen", "rejected", "completion", "messages") if isinstance(row.get(name), str)]
    return {**row, **{name: turns_of_transcript(row[name], name) for name in names}}


# --- Values ---------------------------------------------------------------------------------------------------------------


def _names(value: str | Sequence[str] | Mapping[str, str]) -> list[str]:
    return [value] if isinstance(value, str) else list(value.values() if isinstance(value, Mapping) else value)


def _at(row: Mapping[str, Any], path: str) -> Any:
    """The value of a column, or of a path into it."""
    if path in row:
        return row[path]
    first, dot, rest = path.partition(".")
    if dot and isinstance(row.get(first), Mapping):
        return _at(row[first], rest)
    raise DataError(
        f"there is no column {path!r}; the row has {', '.join(map(repr, row)) or 'none'}. {did_you_mean(path, row)}".strip()
    )


def _text(row: Mapping[str, Any], name: str) -> str:
    try:
        value = _at(row, name.removesuffix("?"))
    except DataError:
        if not name.endswith("?"):
            raise
        value = None
    if value is not None and not isinstance(value, str):
        raise DataError(f"{name!r} is {value!r:.80}; as a part of a prompt it must be text.")
    return (value or "").strip()


def _plain(value: Any) -> str:
    """A verdict as text: 1, 1.0, "1.0" and true are equal, as are upper and lower case."""
    text = str(int(value) if isinstance(value, bool) else value).strip().lower()
    if _NUMBER.fullmatch(text):
        whole, _, fraction = text.lstrip("+").partition(".")
        return whole if not fraction.strip("0") else f"{whole}.{fraction.rstrip('0')}"
    return {"true": "1", "false": "0"}.get(text, text)


def _number(value: Any) -> float:
    try:
        return math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan


def _score(row: Mapping[str, Any], name: str) -> float | None:
    value = _at(row, name)
    if value is not None and not math.isfinite(_number(value)):
        raise DataError(f"{name!r} is {value!r:.80}; a finite number is allowed, or null where it is missing.")
    return None if value is None else _number(value)


def _is_true(value: Any) -> bool:
    return _plain(value) in ("1", "yes")


def _end(name: str, other: str) -> str:
    """What the end of a name is that tells it from another one: ``b`` of ``response_b`` beside ``response_a``."""
    shared = next((place for place, (one, two) in enumerate(zip(name, other, strict=False)) if one != two), 0)
    return name[shared:]
