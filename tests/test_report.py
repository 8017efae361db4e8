"""``rm-plugins report``: what it prints, and a page that is whole, safe and right."""

from __future__ import annotations

import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import rm_plugins as rm
from rm_plugins.cli import main
from rm_plugins.errors import MissingDependencyError
from rm_plugins.training.journal import Journal, read_journal
from rm_plugins.training.journal_summary import Curve, summarize

pytest.importorskip("matplotlib", reason="matplotlib, which draws the page, is not installed")

HOSTILE = "<script>alert('x')</script>"
VOID = ("meta", "br", "path", "use")


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    """Forty steps of two rewards, an ensemble and a rule that often abstains; the last steps are long."""
    folder = tmp_path / "journal"
    written = Journal(folder)
    for step in range(1, 41):
        spread = step / 10
        samples = [rm.Sample(f"{HOSTILE} {step}", f"{HOSTILE} and {'x' * step}{row}") for row in range(4)]
        values = np.arange(4.0) + step
        members = {"0": rm.Scores(values - spread, kind="member"), "1": rm.Scores(values + spread, kind="member")}
        figures = {"samples": 4.0, "reward": step + 1.5, "reward_std": 1.3, "length": 30.0 + step, "disagreement": spread}
        written.add_figures(step, HOSTILE, {**figures, "member/0": step - spread, "member/1": step + spread, "abstained": 0.0})
        written.add_samples(step, HOSTILE, samples, rm.Scores(values, {"std": np.full(4, spread)}, parts=members))
        written.add_figures(step, "rule", {"samples": 4.0, "abstained": 0.5, "reward": 1.0})
        written.add_samples(step, "rule", samples, rm.Scores(np.array([1.0, np.nan, 1.0, np.nan])))
        if step % 10 == 0:
            written.add_figures(step, None, {"kl": step / 100})
    written.flush()
    return folder


def reported(*arguments: str | Path) -> str:
    told = CliRunner().invoke(main, ["report", *map(str, arguments)])
    assert told.exit_code == 0, told.output
    return told.output


class Page(HTMLParser):
    """Which elements a page has, and whether each is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.links: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        self.links += [value or "" for name, value in attributes if name in ("src", "href", "xlink:href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        self.links += [value or "" for name, value in attributes if name in ("src", "href", "xlink:href")]

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag


def test_the_page_is_whole_and_needs_nothing(journal: Path, tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    reported(journal, "-o", out)
    text = out.read_text()
    page = Page(text)
    assert page.open == []
    assert page.seen.count("svg") == 7, "reward, disagreement, length and KL; reward, abstentions and KL"
    assert all(link.startswith("#") for link in page.links)
    assert set(re.findall(r"https?://[\w./]+", text)) <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    assert "@import" not in text and set(re.findall(r"url\((.)", text)) <= {"#"}
    assert 'name="viewport"' in text and "color-scheme: light dark" in text and "currentColor" in text


def test_texts_are_no_markup(journal: Path, tmp_path: Path) -> None:
    reported(journal, "-o", tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    assert "script" not in Page(text).seen
    assert "&lt;script&gt;" in text


def test_what_it_shows(journal: Path) -> None:
    told = reported(journal)
    assert "first 20 steps" in told and "40 steps, 160 samples" in told
    assert "warning, step 30:" in told and "rises while its members agree less" in told
    assert "No sign that the policy exploits this reward." in told
    text = (journal / "report.html").read_text()
    assert "reward 43, spread 4, members 39, 47, step 40" in text
    assert "Largest disagreement of the members" in text
    assert "best quarter" in text


def test_the_last_steps_alone(journal: Path) -> None:
    told = reported(journal, "--last", "5")
    assert "5 steps, 20 samples" in told
    assert "warning" not in told


def test_completions_are_shown_once(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    for step in range(1, 30):
        journal.add_figures(step, "mine", {"samples": 2.0})
        journal.add_samples(step, "mine", [rm.Sample("p", "same"), rm.Sample("p", str(step))], rm.Scores(np.array([9.0, 1.0])))
    journal.flush()
    (summary,) = summarize(read_journal(tmp_path)).rewards
    assert [found.sample.completion for found in summary.best[:2]] == ["same", "1"]
    assert len(summary.best) == 8 and not summary.disputed


def test_a_curve_of_one_step(tmp_path: Path) -> None:
    from rm_plugins.reports.training_charts import curves_svg

    drawn = curves_svg({"reward": Curve([1], np.array([1.0]))}, spread=Curve([1], np.array([np.nan])), marks=[1])
    assert drawn.startswith("<svg") and "width=" not in drawn.partition(">")[0]
    assert drawn == curves_svg({"reward": Curve([1], np.array([1.0]))}, spread=Curve([1], np.array([np.nan])), marks=[1])


def test_without_a_journal(tmp_path: Path) -> None:
    told = CliRunner().invoke(main, ["report", str(tmp_path)])
    assert told.exit_code == 1
    assert "There is no journal in" in told.output


def test_without_matplotlib_it_is_refused_at_once(journal: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocked: Any = None
    monkeypatch.setitem(sys.modules, "matplotlib", blocked)
    told = CliRunner().invoke(main, ["report", str(journal)])
    assert told.exit_code == 1
    assert told.output == "Error: The page of the report needs matplotlib: pip install 'rm-plugins[report]'.\n"
    assert issubclass(MissingDependencyError, ImportError)
    assert not (journal / "report.html").exists()
