"""Examples that users copy work on conversations: they read `Sample.completion_text`, not the list of messages as if it were text."""

from __future__ import annotations

import ast
import doctest
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FENCE = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NAMES = ("completion", "prompt")
INLINE = re.compile(r"`[^`\n]*\bsamples?\.(?:completion|prompt)\b(?!_)[^`\n]*`")


def examples() -> Iterator[tuple[str, str]]:
    """The Python that is shown in the documentation, in docstrings, and in the example of a plug-in."""
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        for code in FENCE.findall(page.read_text(encoding="utf-8")):
            yield str(page.relative_to(ROOT)), code
    for file in sorted((ROOT / "tests" / "plugin").glob("*.py")):
        yield str(file.relative_to(ROOT)), file.read_text(encoding="utf-8")
    for folder in ("rm_plugins", "integrations"):
        for file in sorted((ROOT / folder).rglob("*.py")):
            source = file.read_text(encoding="utf-8")
            if ">>>" in source:
                for example in doctest.DocTestParser().get_examples(source):
                    yield str(file.relative_to(ROOT)), example.source


def taken_for_text(code: str) -> list[str]:
    """Where code reads a sample's completion or prompt, which may be a list of messages, other than to hand it on."""
    try:
        tree = ast.parse(code)
    except SyntaxError:  # a part of a doctest inside another text
        return []
    passed_on = {
        id(node)
        for call in ast.walk(tree)
        if isinstance(call, ast.Call) and ast.unparse(call.func).rpartition(".")[2] in ("Sample", "text_of", "print")
        for node in call.args
    }
    return [
        ast.unparse(node)
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and node.attr in NAMES
        and isinstance(node.value, ast.Name)
        and id(node) not in passed_on
    ]


@pytest.mark.parametrize(
    ("code", "wrong"),
    [
        ("[len(sample.completion) for sample in samples]", True),
        ("sample.completion.split()", True),
        ("'4' in s.completion", True),
        ("str(sample.completion)", True),
        ("len(sample.prompt)", True),
        ("[len(sample.completion_text) for sample in samples]", False),
        ("text_of(sample.prompt)", False),
        ("rm.Sample(sample.prompt, 'x')", False),
    ],
)
def test_the_mistake_is_recognized(code: str, wrong: bool) -> None:
    assert bool(taken_for_text(code)) is wrong


def test_no_example_takes_messages_for_text() -> None:
    shown = list(examples())
    assert len({place for place, _ in shown}) > 40
    mistakes = [f"{place}: {mistake}" for place, code in shown for mistake in taken_for_text(code)]
    assert not mistakes, "read `sample.completion_text`, or `rm_plugins.samples.text_of(sample.prompt)`: " + "; ".join(mistakes)


def test_nor_does_a_sentence_of_the_documentation() -> None:
    wrong = [
        f"{page.name}: {text}"
        for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
        for text in INLINE.findall(page.read_text(encoding="utf-8"))
        if "number of messages" not in text and "(" in text
    ]
    assert not wrong
