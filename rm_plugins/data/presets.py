"""The formats in which judged data is published: mappings by name, and which of them fits a row."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from rm_plugins.data.mapping import RowMapping
from rm_plugins.data.transcripts import is_transcript
from rm_plugins.errors import DataError

PRESETS: Mapping[str, RowMapping] = {
    "arena": RowMapping(answers=("conversation_a", "conversation_b"), winner="winner"),
    "gsm8k-solutions": RowMapping(
        rename={"question": "prompt"},
        items=("6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification"),
        item={"solution": "completions", "is_correct": "labels"},
    ),
    "hh-rlhf": RowMapping(transcripts=True),
    "helpsteer2-preference": RowMapping(answers=("response_1", "response_2"), winner="preference_strength", scale="signed"),
    "helpsteer3": RowMapping(
        rename={"context": "prompt"}, answers=("response1", "response2"), winner="overall_preference", scale="signed"
    ),
    "llmbar": RowMapping(rename={"input": "prompt"}, answers=("output_1", "output_2"), winner="label"),
    "nectar": RowMapping(items="answers", item={"answer": "completions", "rank": "ranks"}, transcripts=True),
    "orca-pairs": RowMapping(prompt=("system?", "question")),
    "pandalm": RowMapping(
        prompt=("input?", "instruction"),
        answers=("response1", "response2"),
        winner=("annotator1", "annotator2", "annotator3"),
        verdicts={"0": "tie", "1": "a", "2": "b"},
    ),
    "safe-rlhf": RowMapping(answers=("response_0", "response_1"), winner="better_response_id"),
    "shp": RowMapping(
        rename={"history": "prompt"},
        answers=("human_ref_A", "human_ref_B"),
        winner="labels",
        verdicts={"1": "a", "0": "b"},
        scores=("score_A", "score_B"),
    ),
    "split-prompt": RowMapping(split_prompt=True),
    "stack-exchange": RowMapping(rename={"question": "prompt", "response_j": "chosen", "response_k": "rejected"}),
    "summarize-from-feedback": RowMapping(
        prompt=("info.post?", "info.article?"), rename={"choice": "best"}, items="summaries", item={"text": "completions"}
    ),
    "topical-chat": RowMapping(prompt=("context?", "source"), rename={"system_output": "completion"}),
    "ukp-convarg": RowMapping(answers=("a1", "a2"), winner="label"),
    "ultrafeedback": RowMapping(
        rename={"instruction": "prompt"}, items="completions", item={"response": "completions", "overall_score": "scores"}
    ),
    "webgpt": RowMapping(
        rename={"question.full_text": "prompt"}, answers=("answer_0", "answer_1"), scores=("score_0", "score_1")
    ),
}
"""By name: what ``--map NAME`` does."""

_VERDICTS = re.compile(
    r"winner(_\w+)?|labels?|(overall_|human_)?preference(_strength)?|preferred(_\w+)?|verdict|choice|better(_\w+)?|annotator_?\d*"
    r"|is_tie|ranks?|best|judg(e?ment)?",
    re.IGNORECASE,
)
_PROMPTS = ("prompt", "question", "instruction", "input", "query", "history", "context", "post")
_ANSWER = re.compile(
    r"\w*(response|answer|output|completion|conversation|text|summary|reply|candidate)\w*(a|0|1)", re.IGNORECASE
)
_PAIRED = (
    *(
        ("chosen", "rejected"),
        ("accepted", "rejected"),
        ("preferred", "dispreferred"),
        ("preferred", "rejected"),
        ("better", "worse"),
    ),
    *(("good", "bad"), ("positive", "negative"), ("pos", "neg"), ("winner", "loser"), ("winning", "losing"), ("win", "lose")),
)
"""What a better and a worse answer are called in data whose columns are called otherwise."""
_OTHER = {"a": "b", "A": "B", "0": "1", "1": "2"}


def proposed_mapping(row: Mapping[str, Any]) -> str:
    """What to give to ``--map`` for a row in another shape; empty if no mapping is known for it.

    >>> proposed_mapping({"question": "2+2?", "response_a": "4", "response_b": "5", "winner": "model_a"})
    '{answers: [response_a, response_b], winner: winner, rename: {question: prompt}}'
    >>> proposed_mapping({"question": "2+2?", "good": "4", "bad": "5"})
    '{rename: {good: chosen, bad: rejected, question: prompt}}'
    """
    present = [name for name, value in row.items() if value is not None]
    fitting = [
        name for name, preset in PRESETS.items() if preset.columns and preset.columns <= {*present} and _judges(preset, row)
    ]
    if fitting:
        return max(fitting, key=lambda name: len(PRESETS[name].columns))
    if is_transcript(row.get("chosen")) and is_transcript(row.get("rejected")) and row.get("prompt") is None:
        return "hh-rlhf"
    if pair := _called_otherwise(row):
        prompts = [column for column in _PROMPTS if column in present]
        better = {pair[0]: "chosen", pair[1]: "rejected"}
        return _written({"rename": better | ({prompts[0]: "prompt"} if prompts and prompts != ["prompt"] else {})})
    winner = next((name for name in present if _VERDICTS.fullmatch(name)), None)
    for name in present if winner is not None else ():
        end = name[-1]
        other = name[:-1] + _OTHER.get(end, "")
        if _ANSWER.fullmatch(name) and other in present:
            settings: dict[str, Any] = {"answers": (name, other), "winner": winner}
            prompts = [column for column in _PROMPTS if column in present]
            if prompts not in ([], ["prompt"]):
                settings |= {"prompt": prompts} if len(prompts) > 1 else {"rename": {prompts[0]: "prompt"}}
            scores = [(f"{stem}{end}", f"{stem}{_OTHER[end]}") for stem in ("score_", "score")]
            settings |= next(({"scores": pair} for pair in scores if {*pair} <= {*present}), {})
            if _judges(RowMapping(**settings), row):
                return _written(settings)
    return ""


def _called_otherwise(row: Mapping[str, Any]) -> tuple[str, str] | None:
    """The columns of a better and a worse answer that are not called ``chosen`` and ``rejected``; None where there are none."""
    texts = {name.lower(): name for name, value in row.items() if isinstance(value, (str, list)) and value}
    if texts.keys() & {"completions", "completion"}:
        return None
    for better, worse in _PAIRED:
        for form in ("{}", "{}_response", "response_{}", "{}_answer", "answer_{}", "{}_completion", "{}_text", "text_{}"):
            if {form.format(better), form.format(worse)} <= texts.keys() and (form, better, worse) != (
                "{}",
                "chosen",
                "rejected",
            ):
                return texts[form.format(better)], texts[form.format(worse)]
    return None


def _written(value: Any) -> str:
    """A mapping's settings as YAML in braces."""
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {_written(item)}' for key, item in value.items())}}}"
    return f"[{', '.join(value)}]" if isinstance(value, (list, tuple)) else str(value)


def _judges(preset: RowMapping, row: Mapping[str, Any]) -> bool:
    """Whether the preset turns this row into a judged one, without leaving a column that looks like a part of the prompt or a verdict."""
    try:
        made = {name: value for name, value in preset(row).items() if value is not None}
    except DataError:
        return False
    if any(isinstance(made.get(name), (str, list)) for name in _PROMPTS[1:]):
        return False
    if made.keys() >= {"chosen", "rejected"}:
        return not ignored_verdicts(made)
    return "completions" in made and bool(made.keys() & {"ranks", "scores", "labels", "best"})


def ignored_verdicts(row: Mapping[str, Any]) -> list[str]:
    """The columns of a preference row that look like a verdict on its answers, but are not read.

    >>> ignored_verdicts({"chosen": "4", "rejected": "5", "winner": "model_b", "tie": False})
    ['winner']
    >>> ignored_verdicts({"chosen": "4", "rejected": "5", "completions": ["4", "five"], "scores": [1, 0]})
    ['scores']
    """
    judges = {"score", "scores"} if any(row.get(name) is not None for name in ("completions", "completion")) else ()
    return [name for name, value in row.items() if value is not None and (name in judges or _VERDICTS.fullmatch(name))]


def warning_of_ignored(columns: Sequence[str]) -> str:
    """The warning about columns that `ignored_verdicts` names."""
    names = ", ".join(map(repr, columns))
    return (
        f"{names} look{'s' if len(columns) == 1 else ''} like a verdict and {'is' if len(columns) == 1 else 'are'} not read: in rows "
        "with 'chosen' and 'rejected', 'chosen' is the better answer, and other completions are ignored. If the column judges answers "
        "A and B, make such rows with a mapping (--map)."
    )
