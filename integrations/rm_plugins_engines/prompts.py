"""The samples of engines: which prompt a completion belongs to, as the reward's own rendering needs it.

An engine may hand over no prompt, messages, or a text that its own chat template has rendered already. A rendered text is never rendered
again: either the row of the dataset still has the messages (``column:PATH``), or the text is scored unchanged (``rendered``).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from rm_plugins.data.plain_values import plain_row
from rm_plugins.errors import DataError, SpecError
from rm_plugins.samples import RenderedSample, Sample
from rm_plugins.server.dialects.queries import completion_of, has_special_tokens, without_eos

AUTO, TEXT, RENDERED, NONE, COLUMN = "auto", "text", "rendered", "none", "column:"
"""Where a prompt comes from: the engine's text if it is not rendered; that text in any case; prompt and completion as one rendered text; no
prompt; a column of the row."""


@dataclass(frozen=True, slots=True)
class PromptSource:
    """Where the prompts of an engine's samples come from.

    Args:
        source: ``auto``, ``text``, ``rendered``, ``none``, or ``column:PATH``, a column of the row, with dots into mappings.
        engine: The engine's name in messages.
        column_in: What the engine hands the row over as, such as ``extra_info``.
        has_text: Whether the engine hands over a prompt as text.
        has_eos: Whether its completions may end with EOS tokens as text.

    Raises:
        SpecError: The source is unknown, or the engine has no text of a prompt.
    """

    source: str
    engine: str
    column_in: str
    has_text: bool = True
    has_eos: bool = True

    def __post_init__(self) -> None:
        known = (AUTO, TEXT, RENDERED, NONE) if self.has_text else (NONE,)
        if self.source not in known and not (self.source.startswith(COLUMN) and len(self.source) > len(COLUMN)):
            raise SpecError(
                f"The prompt source {self.source!r} is not possible with {self.engine}. Allowed: {', '.join(known)}, and {COLUMN}PATH, a "
                f"column of {self.column_in} with the prompt."
            )

    def sample(self, prompt: str, completion: str, columns: Mapping[str, Any]) -> Sample:
        """The sample of a prompt and a completion, as an engine's policy has read and written them.

        Args:
            prompt: The text of the prompt; empty if the engine does not hand it over.
            completion: The text of the completion, with or without the EOS token.
            columns: The other columns of the row.

        Raises:
            DataError: The prompt is missing or no text, or it is rendered and the source says nothing about that.
        """
        self._check_texts(prompt=prompt, completion=completion)
        columns = plain_row(columns)
        if self.source == RENDERED:
            return RenderedSample.of(prompt + completion, add_special_tokens=False, prompt=prompt, columns=columns)
        completion = without_eos(completion) if self.has_eos else completion
        if self.source == NONE:
            return Sample("", completion, columns)
        if self.source.startswith(COLUMN):
            return Sample(self._in_columns(columns), completion, columns)
        if self.source == AUTO and has_special_tokens(prompt):
            raise DataError(
                f"{self.engine} hands over a prompt that a chat template has rendered ({prompt[:60]!r}), and a reward would render it "
                f"again. Set `prompt` in the adapter to '{COLUMN}PATH', a column of {self.column_in} with the messages. Or set it to "
                "'rendered', which scores the text unchanged, for models with the policy's template."
            )
        return Sample(prompt, completion, columns)

    def query_sample(self, query: str, prompt: str, columns: Mapping[str, Any]) -> Sample:
        """The same where prompt and completion come as one text, the query.

        Raises:
            DataError: As `sample`; or the end of the prompt in the query cannot be determined.
        """
        self._check_texts(query=query, prompt=prompt)
        if self.source == RENDERED:
            return RenderedSample.of(query, add_special_tokens=False, prompt=prompt, columns=plain_row(columns))
        return self.sample(prompt, completion_of(query, prompt), columns)

    def _check_texts(self, **texts: object) -> None:
        for part, text in texts.items():
            if not isinstance(text, str):
                raise DataError(f"{self.engine} hands over a {part} that is not text: {text!r:.80} ({type(text).__name__}).")

    def _in_columns(self, columns: Mapping[str, Any]) -> str | Sequence[Mapping[str, Any]]:
        path = self.source.removeprefix(COLUMN)
        value: Any = columns
        for name in path.split("."):
            value = value.get(name) if isinstance(value, Mapping) else None
            value = from_json(value)
        if isinstance(value, (list, tuple)) and value and all(isinstance(item, Mapping) for item in value):
            return list(value)
        if isinstance(value, str):
            return value
        instead = "" if value is None else f", only {value!r:.80} ({type(value).__name__})"
        raise DataError(
            f"{self.engine} hands over no prompt that a reward could render, and {self.column_in} has none in {path!r}{instead} (it has: "
            f"{', '.join(map(str, columns)) or 'nothing'}). Put the prompt there when the dataset is made, as text or messages; or set "
            f"`prompt` in the adapter to the column that has it, or to 'none' for a reward that reads completions only."
        )


def from_json(value: Any) -> Any:
    """A value that some engines can carry as JSON only: mappings and lists are parsed, everything else stays.

    >>> from_json('[{"role": "user", "content": "2+2?"}]'), from_json("[4"), from_json("4")
    ([{'role': 'user', 'content': '2+2?'}], '[4', '4')
    """
    if isinstance(value, str) and value.lstrip()[:1] in ("{", "["):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def written_arguments(text: str) -> Any:
    """The arguments of a function call as chat templates read them: parsed, or the text itself where a policy has not written JSON.

    >>> written_arguments('{"city": "Rome"}'), written_arguments('{"city": NaN}')
    ({'city': 'Rome'}, '{"city": NaN}')
    """
    try:
        return json.loads(text, parse_constant=_refused)
    except (ValueError, RecursionError):
        return text


def _refused(constant: str) -> NoReturn:
    raise ValueError(constant)
