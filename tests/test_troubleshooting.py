"""The page on troubleshooting quotes messages that the code has."""

from __future__ import annotations

import ast
import inspect
import re
from functools import cache
from pathlib import Path

import pytest
import transformers.training_args

ROOT = Path(__file__).parents[1]
QUOTED = re.findall(r"^### `(.+)`$", (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8"), re.MULTILINE)
FOREIGN = {"Your setup doesn't support bf16/gpu.": transformers.training_args}
"""Messages of other libraries, and the module that has them."""


@cache
def messages() -> str:
    """Every text of the code on a line of its own, a blank where it has a value in it."""
    texts = []
    for folder in ("rm_plugins", "integrations/rm_plugins_ray", "integrations/rm_plugins_trl"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.JoinedStr):
                    parts = (part.value if isinstance(part, ast.Constant) else "\0" for part in node.values)
                    texts.append("".join(map(str, parts)))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    texts.append(re.sub(r"%[a-z]|%\.\d[a-z]", "\0", node.value))
    return "\n".join(text.replace("\n", " ") for text in texts)


def in_code(quoted: str) -> bool:
    """Whether one message has the quoted pieces in their order, with values between them."""
    pieces = (re.escape(piece.strip(" ")) for piece in quoted.split("..."))
    return re.search(r"[^\n]*?\0[^\n]*?".join(pieces), messages()) is not None


@pytest.mark.parametrize("quoted", [quoted for quoted in QUOTED if quoted not in FOREIGN])
def test_a_quoted_message_is_in_the_code(quoted: str) -> None:
    assert in_code(quoted), f"No message says {quoted!r}; quote what it says today in docs/troubleshooting.md."


@pytest.mark.parametrize("quoted", FOREIGN)
def test_a_quoted_message_of_another_library_is_in_its_code(quoted: str) -> None:
    assert quoted in QUOTED
    assert quoted in inspect.getsource(FOREIGN[quoted])


def test_a_message_that_nobody_says_is_noticed() -> None:
    assert not in_code("a message that ... nobody says")


def test_every_message_has_a_cause_and_a_remedy() -> None:
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    for section in re.split(r"^### ", page, flags=re.MULTILINE)[1:]:
        assert "**Cause**:" in section and "**Remedy**:" in section, section.partition("\n")[0]
