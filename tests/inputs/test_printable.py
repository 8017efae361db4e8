"""No text from outside reaches a terminal as a command to it."""

from __future__ import annotations

import ast
import io
import json
import logging
import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from rm_plugins.cli import main
from rm_plugins.cli.printed import Console, printable_messages
from rm_plugins.printable import printable

ROOT = Path(__file__).parents[2]
OBEYED = "\x1b]0;gone\x07\x1b[2J\x9b31m\r\u202e\u2066\u200f\x7f\u2028\U000e0041"


def is_safe(text: str) -> bool:
    return not set(text) & set(OBEYED) - set("];gone0[2J31m")


@given(st.text())
def test_what_is_printable_stays_and_json_stays_the_same_json(text: str) -> None:
    shown = printable(text)
    assert is_safe(shown)
    assert all(character.isprintable() or character in "\n\t" or ord(character) > 127 for character in shown)
    if text.isprintable():
        assert shown == text
    assert printable(shown) == shown
    for written in (json.dumps(text), json.dumps(text, ensure_ascii=False)):
        assert json.loads(printable(written)) == json.loads(json.dumps(text))


@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_console_obeys_its_own_styles_only(is_terminal: bool) -> None:
    file = io.StringIO()
    console = Console(file=file, force_terminal=is_terminal, width=200)
    table = Table(f"head {OBEYED}")
    table.add_row(escape(f"cell {OBEYED}"))
    table.add_row(Text(f"text {OBEYED}"))
    for shown in (table, escape(OBEYED), Text(OBEYED), f"[bold]{escape(OBEYED)}[/bold]"):
        console.print(shown)
    written = file.getvalue()
    assert ("\x1b[1m" in written) is is_terminal
    written = re.sub(r"\x1b\[[0-9;]*m", "", written)  # its own styles; the colour in the text is written otherwise
    assert is_safe(written), ascii(written)
    assert written.count("\\u202e") >= 3


def test_log_lines_are_printable_while_a_command_runs(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("rm_plugins.tests")
    with printable_messages():
        logger.warning("the server says %s", OBEYED)
        logger.warning("50% of nothing")
        try:
            raise ValueError(OBEYED)
        except ValueError:
            logger.exception("failed")
    assert is_safe(caplog.text)
    assert "the server says \\u001b]0" in caplog.text
    assert "ValueError: \\u001b]0" in caplog.text
    logger.warning("%s", OBEYED)
    assert not is_safe(caplog.text)


def run(*arguments: Any) -> str:
    return CliRunner().invoke(main, [str(argument) for argument in arguments]).output


def test_every_command_prints_what_is_printable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    named = tmp_path / f"{OBEYED}.jsonl".replace("/", "")
    rows = [{"prompt": f"Q {OBEYED}", "chosen": f"a {OBEYED}", "rejected": "b", OBEYED: 1, "section": OBEYED}] * 3
    named.write_text("".join(json.dumps(row) + "\n" for row in rows) + f'{{"prompt": "{OBEYED}"\n')
    (tmp_path / "label.yaml").write_text(json.dumps({"provider": "length-window", "high": 3, "label": OBEYED}))
    spec = tmp_path / "label.yaml"
    outputs = {
        "data check": run("data", "check", named),
        "data check --json": run("data", "check", named, "--json"),
        "show": run("show", spec),
        "show --json": run("show", spec, "--json"),
        "score": run("score", spec, named),
        "evaluate": run("evaluate", spec, named),
        "rank": run("rank", spec, named),
        "calibrate": run("calibrate", spec, named),
        "diff": run("diff", spec, spec, named),
        "no such spec": run("score", f"./{OBEYED}", named),
        "no such option": run("score", f"--{OBEYED}"),
        "no such command": run(OBEYED),
        "no such journal": run("report", OBEYED),
    }
    assert {name: ascii(output) for name, output in outputs.items() if not is_safe(output)} == {}
    assert json.loads(outputs["show --json"])["label"] == OBEYED
    assert "\\u001b]0;gone" in outputs["data check"] + outputs["show"]


def test_commands_print_through_one_place() -> None:
    around = []
    for file in [*(ROOT / "rm_plugins" / "cli").glob("*.py"), *(ROOT / "integrations").rglob("*.py")]:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("click.echo", "click.secho", "print"):
                around.append(f"{file.relative_to(ROOT)}:{node.lineno}")
            if isinstance(node, ast.ImportFrom) and node.module == "rich.console" and "Console" in {a.name for a in node.names}:
                around.append(f"{file.relative_to(ROOT)}:{node.lineno}")
    assert [place for place in around if not place.startswith("rm_plugins/cli/printed.py")] == []
