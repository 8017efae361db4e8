"""Everything that people read is plain English: subject, verb, object, and the terms of the field.

``python -m tests.plain_english PATH`` lists what to rewrite in a file or a folder, and what to write instead.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest

from tests.plain_english.check import MEANT, covered, hits, is_meant, problems
from tests.plain_english.passages import Passage, of_html, of_markdown, of_python, of_script
from tests.plain_english.patterns import PATTERNS, Measure, Pattern

ROOT = Path(__file__).parents[1]
FILES = {str(path.relative_to(ROOT)): path for path in covered(ROOT)}


@pytest.mark.parametrize("name", FILES)
def test_every_sentence_is_plain(name: str) -> None:
    assert "\n".join(str(problem) for problem in problems(FILES[name], name)) == ""


@pytest.mark.parametrize("pattern", PATTERNS, ids=lambda pattern: pattern.name)
def test_a_pattern_finds_its_example(pattern: Pattern | Measure) -> None:
    heading = isinstance(pattern, Pattern) and pattern.only_headings
    assert list(pattern.hits(Passage(1, pattern.example, is_heading=heading)))


@pytest.mark.parametrize(
    "sentence",
    [
        "There is no limit, and the queue is no longer full.",
        "Scores match everywhere; a failure is an error or an abstention.",
        "Behind a proxy, all clients have its address.",
        "What is a reward?",
        "A folder that has a manifest is a model.",
        "Requests per second depend on the model.",
        "Of course, a reward may abstain.",
        "`nobody` is the name of a user, and <https://example.com/whose> an address.",
    ],
)
def test_plain_sentences_are_left_alone(sentence: str) -> None:
    assert [hit for passage in of_markdown(sentence) for pattern in PATTERNS for hit in pattern.hits(passage)] == []


def test_every_exception_is_for_a_place_that_is_there() -> None:
    for meant in MEANT:
        files = {name: path for name, path in FILES.items() if name.endswith(meant.path)}
        assert any(is_meant(each, meant) for name, path in files.items() for each in hits(path, name)), meant


def texts(passages: Iterable[Passage]) -> list[str]:
    return [passage.text for passage in passages]


def test_markdown_without_code_and_written_tables() -> None:
    page = "# A `b`\n\none\ntwo\n- three\n\n```python\nnobody\n```\n<!-- the table -->\n| x |\n<!-- the table ends -->\n| y `a|b` | z |\n"
    assert texts(sorted(of_markdown(page), key=lambda passage: passage.line)) == ["A CODE", "one two", "three", "y CODE", "z"]


def test_docstrings_and_messages_of_python() -> None:
    code = '''def f():
    """Takes a list of texts.

    >>> nobody is here
    """
    raise ValueError(f"nobody is at {url!r}" " any more")


key = "whatever"
pattern = r"whatever (?:is|was) it"
'''
    assert texts(of_python(code)) == ["nobody is at CODE any more", "Takes a list of texts."]
    assert [passage.is_docstring for passage in of_python(code)] == [False, True]


def test_pages_and_scripts() -> None:
    page = '<h2>What it is</h2><p title="Show all the rows">One {{ value }} row</p><script>show(`no ${x} was found`)</script>'
    assert texts(of_html(page)) == ["What it is", "Show all the rows", "One CODE row", "no CODE was found"]
    assert texts(of_script("// nobody reads this\nlet a = 'one two three'; let b = 'key';")) == ["one two three"]
