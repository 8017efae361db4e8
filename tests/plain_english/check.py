"""Which files are read, which hits are meant, and the list of the others."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from .passages import passages
from .patterns import PATTERNS

SUFFIXES = (".md", ".py", ".html", ".js")
COVERED = (
    "README.md",
    "SECURITY.md",
    "CHANGELOG.md",
    "docs",
    "rm_plugins",
    "integrations",
    "tests/benchmarks/README.md",
    "tests/plugin/README.md",
)
LEFT_OUT = {"_build", "_static", "node_modules", "__pycache__"}


@dataclass(frozen=True)
class Meant:
    """A hit that is meant: the end of the file's path, the pattern, words of the hit, and why."""

    path: str
    pattern: str
    words: str
    reason: str


MEANT: tuple[Meant, ...] = (
    Meant(
        "demo/world.py",
        "behind for after",
        "behind the barn",
        "a place in the generated sentences: another word changes the data",
    ),
    Meant(
        "rm_plugins/engine/undisturbed.py", "none as a pronoun", "None of the inputs", "torch's own warning, which must match"
    ),
    Meant(
        "rm_plugins/protocols/openai_judge.py", "whatever", "Whatever the response", "part of the rubric: scores depend on it"
    ),
    Meant("rm_plugins/reports/page.py", "long sentence", "<!doctype html>", "the frame of an HTML page"),
    Meant(
        "rm_plugins/server/page/__init__.py", "semicolons", "default-src", "a header, whose parts are separated by semicolons"
    ),
)


@dataclass(frozen=True)
class Problem:
    """A place that should be written otherwise."""

    path: str
    line: int
    pattern: str
    text: str
    instead: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.pattern}: {self.text} (write: {self.instead})"


def covered(root: Path, paths: Iterable[str] = COVERED) -> list[Path]:
    """The files at paths below a folder, without those that are made or copied there."""
    files: set[Path] = set()
    for path in paths:
        place = root / path
        if place.is_dir():
            files |= {each for suffix in SUFFIXES for each in place.rglob(f"*{suffix}")}
        else:
            files.add(place)
    return sorted(each for each in files if not LEFT_OUT & set(each.relative_to(root).parts))


def hits(path: Path, name: str) -> Iterator[Problem]:
    """Every hit of every pattern in a file, in the order of its lines."""
    places = sorted(passages(path), key=lambda passage: passage.line)
    for passage in places:
        for pattern in PATTERNS:
            for text in pattern.hits(passage):
                yield Problem(name, passage.line, pattern.name, text.strip(), pattern.instead)


def is_meant(problem: Problem, meant: Meant) -> bool:
    """Whether an entry is for this hit."""
    return problem.path.endswith(meant.path) and problem.pattern == meant.pattern and meant.words in problem.text


def problems(path: Path, name: str) -> list[Problem]:
    """The hits in a file that are not meant."""
    return [each for each in hits(path, name) if not any(is_meant(each, meant) for meant in MEANT)]
