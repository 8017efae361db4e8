"""The text of files that people read: Markdown, docstrings and strings of Python, pages and their scripts."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from html.parser import HTMLParser
from pathlib import Path

CODE = "CODE"
"""Stands in a passage for inline code, a value or an address."""

ENTRY = re.compile(r"^\s*(?:[-*] |\d+\. |[A-Z]\w+:$|\*{0,2}\w+(?: \([^)]*\))?: )")
"""A line that begins a list item, a section or an argument of a docstring."""

HTML_ATTRIBUTES = ("alt", "aria-label", "placeholder", "title")
SCRIPT_STRING = re.compile(r"//[^\n]*|/\*.*?\*/|\"((?:[^\"\\\n]|\\.)*)\"|'((?:[^'\\\n]|\\.)*)'|`((?:[^`\\]|\\.)*)`", re.DOTALL)


@dataclass(frozen=True)
class Passage:
    """A paragraph, a list item, a heading, a table cell or a message."""

    line: int
    text: str
    is_heading: bool = False
    is_docstring: bool = False


def passages(path: Path) -> Iterator[Passage]:
    """All that a file says in words."""
    text = path.read_text(encoding="utf-8")
    match path.suffix:
        case ".md":
            yield from of_markdown(text)
        case ".py":
            yield from of_python(text)
        case ".html":
            yield from of_html(text)
        case ".js":
            yield from of_script(text)


def without_code(text: str) -> str:
    """The text with one word in place of each piece of inline code, address and picture."""
    text = re.sub(r"(`+)(?!`).+?(?<!`)\1(?!`)", CODE, text, flags=re.DOTALL)
    text = re.sub(r"\$[^$\n]+\$", CODE, text)
    text = re.sub(r"!\[([^]]*)\]\([^)]*\)", r"\1.", text)
    text = re.sub(r"\[([^]]*)\]\([^)\s]*\)", r"\1", text)
    text = re.sub(r"<?https?://[^\s>]*[^\s>.,;:)]>?", CODE, text)
    text = re.sub(r":(?:class|func|meth|attr|mod|exc|data):CODE", CODE, text)
    text = text.replace("**", "").replace("\\|", "|")
    return re.sub(r"(?<!\w)[*_](\S[^*_]*)[*_](?!\w)", r"\1", text)


def of_blocks(lines: list[tuple[int, str]]) -> Iterator[Passage]:
    """Paragraphs and list items of numbered lines; an empty line or a new entry ends one."""
    block: list[str] = []
    start = 0
    for number, line in [*lines, (0, "")]:
        if not line.strip() or ENTRY.match(line):
            if block:
                yield Passage(start, without_code(" ".join(block)))
            block = []
        if line.strip():
            if not block:
                start = number
            block.append(re.sub(r"^(?:[-*] |\d+\. |> )", "", line.strip()))


def of_markdown(text: str) -> Iterator[Passage]:
    """Everything but code, comments, and tables that a program writes between two comments."""
    kept: list[tuple[int, str]] = []
    fence = ""
    in_table = False
    for number, line in enumerate(text.splitlines(), 1):
        opened = re.match(r"^\s*(`{3,}|~{3,})", line)
        if fence:
            if opened and line.strip() == fence:
                fence = ""
            continue
        if opened:
            fence = opened[1]
            kept.append((number, ""))
        elif line.startswith("<!--"):
            in_table = "the table" in line and "ends" not in line
        elif in_table:
            continue
        elif line.startswith("#"):
            kept.append((number, ""))
            yield Passage(number, without_code(line.lstrip("# ")), is_heading=True)
        elif line.startswith("|"):
            kept.append((number, ""))
            for cell in re.split(r"(?<!\\)\|", re.sub(r"`[^`]*`", CODE, line).strip().strip("|")):
                if re.search(r"[a-zA-Z]", cell):
                    yield Passage(number, without_code(cell.strip()))
        else:
            kept.append((number, line))
    yield from of_blocks(kept)


def of_python(text: str) -> Iterator[Passage]:
    """Docstrings, strings and f-strings that have words in them."""
    tree = ast.parse(text)
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    parts: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            parts.update(ast.walk(node))
            written = "".join(
                part.value if isinstance(part, ast.Constant) and isinstance(part.value, str) else CODE for part in node.values
            )
            yield from of_string(node.lineno, written)
            for part in node.values:  # strings inside the braces
                if isinstance(part, ast.FormattedValue):
                    for inner in ast.walk(part.value):
                        if isinstance(inner, ast.Constant) and isinstance(inner.value, str):
                            yield from of_string(inner.lineno, inner.value)
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in parts:
            yield from of_string(node.lineno, node.value, id(node) in docstrings)


def of_string(line: int, value: str, is_docstring: bool = False) -> Iterator[Passage]:
    """A string's passages if it is prose: several words, and not a pattern, a template or a query."""
    is_prose = len(re.findall(r"(?<![\\\w])[A-Za-z]{2,}(?= |[,.:;]|$)", value)) >= 3 and " " in value
    if not is_prose or re.search(r"\(\?[:=!<P]|\{%|\\[bsdw]\b|<svg|^\s*SELECT |\bfunction\s*\(", value):
        return
    kept: list[tuple[int, str]] = []
    code_indent: int | None = None
    in_example = False
    for number, text in enumerate(value.splitlines(), line):
        indent = len(text) - len(text.lstrip())
        if code_indent is not None and text.strip() and indent <= code_indent:
            code_indent = None
        if text.strip().startswith(">>>"):
            in_example = True
        elif not text.strip():
            in_example = False
        is_table = re.match(r"^\s*[=|+-]{2,}[\s=|+-]*$", text) or text.strip().startswith("|")
        hidden = code_indent is not None or in_example or is_table
        kept.append((number, "" if hidden else text.replace("::", ":") if text.rstrip().endswith("::") else text))
        if text.rstrip().endswith("::") and code_indent is None:
            code_indent = indent
    for passage in of_blocks(kept):
        yield replace(passage, is_docstring=is_docstring)


class Words(HTMLParser):
    """Collects the texts, the labels and the scripts of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.passages: list[Passage] = []
        self.inside: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("script", "style", "h1", "h2", "h3"):
            self.inside.append(tag)
        line = self.getpos()[0]
        self.passages += [Passage(line, value) for name, value in attrs if name in HTML_ATTRIBUTES and value]

    def handle_endtag(self, tag: str) -> None:
        if self.inside and self.inside[-1] == tag:
            self.inside.pop()

    def handle_data(self, data: str) -> None:
        where = self.inside[-1] if self.inside else ""
        line = self.getpos()[0]
        if where == "script":
            self.passages += [Passage(line + each.line - 1, each.text) for each in of_script(data)]
        elif where != "style" and re.search(r"[a-zA-Z]{2}", data):
            text = re.sub(r"\{[{%#].*?[}%#]\}", CODE, " ".join(data.split()))
            self.passages.append(Passage(line + len(data) - len(data.lstrip("\n")), text, is_heading=where.startswith("h")))


def of_html(text: str) -> Iterator[Passage]:
    """What a page shows, and what its scripts may show."""
    parser = Words()
    parser.feed(text)
    yield from parser.passages


def of_script(text: str) -> Iterator[Passage]:
    """Strings of a script that have words in them."""
    for match in SCRIPT_STRING.finditer(text):
        value = next((group for group in match.groups() if group), "")
        value = re.sub(r"\$\{[^}]*\}", CODE, value)
        if len(re.findall(r"[A-Za-z]{2,}", value)) >= 3 and " " in value and "{" not in value:
            yield Passage(text.count("\n", 0, match.start()) + 1, " ".join(value.split()))
