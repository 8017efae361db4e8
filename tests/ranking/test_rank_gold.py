"""Ranking against a gold reward, and the best-of-n curve."""

from __future__ import annotations

import json
import re
import sys
import weakref
from html import unescape
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

import rm_plugins as rm
from rm_plugins.cli.rank_curve import best_of_n_curve
from rm_plugins.data.row_files import read_rows
from rm_plugins.jobs.ranking import ScoredPrompt
from tests.ranking.conftest import RULES, left_behind, listed, read, write


class TestGold:
    ROWS = (
        listed("Q", "a", "bb", "ccc", "dddd", good=[0, 1, 3, 2]),
        listed("R", "aaaa", "bbb", "cc", "d", good=[5, 4, 3, 4]),
        listed("S", "a", "bb", good=[1, 0]),
    )

    def test_a_column_beside_the_proxy(self, rank: Any) -> None:
        told = rank("rules:length", write(*self.ROWS), "--gold", "good", "--curve", "curve.json")
        found = json.loads(Path("curve.json").read_text(encoding="utf-8"))
        assert (found["proxy"], found["gold"], found["source"]) == ("rules:length", "good", "in.jsonl")
        assert (found["prompts"], found["left_out"], found["n"]) == (2, 1, [1, 2, 4])
        assert found["kl"] == pytest.approx([0, np.log(2) - 1 / 2, np.log(4) - 3 / 4])
        # The longer of two of Q is worth 1, 3, 2, 3, 2 or 2, that of R 5, 5, 5, 4, 4 or 3.
        assert [mean["value"] for mean in found["gold_mean"]] == pytest.approx([(1.5 + 4) / 2, (13 / 6 + 26 / 6) / 2, 3.5])
        assert [mean["value"] for mean in found["proxy_mean"]] == pytest.approx([2.5, 10 / 3, 4])
        assert found["gold_best"] == pytest.approx([2.75, (14 / 6 + 27 / 6) / 2, 4])
        last = found["gold_mean"][2]  # of two prompts with 2 and 5, t has one degree of freedom
        assert (last["low"], last["high"]) == pytest.approx((3.5 - 1.5 * 12.7062, 3.5 + 1.5 * 12.7062), abs=1e-3)
        assert read()[0]["gold_scores"] == [2.0, 3.0, 1.0, 0.0]
        printed = [re.split(r"\s{2,}", line.strip()) for line in told.stdout.splitlines()]
        assert printed[0] == ["KL bound", "proxy mean", "gold mean", "best possible"]
        assert [row[0] for row in printed[2:5]] == ["1", "2", "4"]
        assert printed[4] == ["4", "0.636", "4 [4, 4]", "3.5 [-15.56, 22.56]", "4"]
        assert "2 prompts with at least 4 scored completions; 1 have fewer and are left out." in told.stdout

    def test_the_first_n_have_the_first_values_of_the_column(self, rank: Any) -> None:
        rank("rules:length", write(*self.ROWS), "--gold", "good", "--n", "2", "--curve", "curve.json")
        found = json.loads(Path("curve.json").read_text(encoding="utf-8"))
        assert (found["prompts"], found["n"]) == (3, [1, 2])
        assert [mean["value"] for mean in found["gold_mean"]] == pytest.approx([(0.5 + 4.5 + 0.5) / 3, (1 + 5 + 0) / 3])
        assert [row["gold_scores"] for row in read()] == [[1.0, 0.0], [5.0, 4.0], [0.0, 1.0]]

    def test_another_reward(self, rank: Any) -> None:
        rows = [listed("Q", "bbb", "aa", "abstain"), listed("R", "eee", "c", "xx")]
        rank("rules:length", write(*rows), "--gold", "rules:vowels", "--curve", "curve.json", "--format", "pairs")
        found = json.loads(Path("curve.json").read_text(encoding="utf-8"))
        assert found["n"] == [1, 2, 3] and found["prompts"] == 1  # as many prompts have 2 as have 3
        assert [mean["value"] for mean in found["gold_mean"]] == pytest.approx([1, 2, 3])
        assert found["gold_mean"][0]["low"] is None  # one prompt has no interval
        assert [(row["chosen_gold_score"], row["rejected_gold_score"]) for row in read()] == [(0.0, 2.0), (3.0, 0.0)]
        assert left_behind() == []

    def test_an_interrupted_gold_does_not_score_the_proxy_again(self, rank: Any) -> None:
        source = write(*self.ROWS)
        rank("rules:length", source, "--gold", "rules:fails", code=1)
        assert len(read("in.ranked.jsonl.part")) == 3
        Path("rules.py").write_text(RULES.replace('raise RuntimeError("out of memory")', "return vowels(samples)"))
        sys.modules.pop("rules")
        told = rank("rules:length", source, "--gold", "rules:fails")
        assert "Resuming after 3 rows scored." in told.stderr
        assert left_behind() == []

    def test_the_proxy_alone_has_a_curve(self, rank: Any) -> None:
        told = rank("rules:length", write(*self.ROWS), "--curve", "curve.json", "--n", "2")
        found = json.loads(Path("curve.json").read_text(encoding="utf-8"))
        assert [mean["value"] for mean in found["proxy_mean"]] == pytest.approx([13 / 6, 8 / 3])
        assert found["gold_mean"] == [] and "gold" not in told.stdout

    def test_gold_that_falls_is_said(self, rank: Any) -> None:
        pytest.importorskip("matplotlib", reason="matplotlib, which draws the curve, is not installed")
        rows = [listed(f"Q{number}", "aa" * 2, "b" * 9, "c", good=[3 + number % 2, 0, 1]) for number in range(30)]
        told = rank("rules:length", write(*rows), "--gold", "good", "--curve", "curve.html")
        assert re.search(
            r"Gold is highest at n = 1 \(1.5\) and falls to 0 at n = 3, a fall of 1.5 \[1.4\d*, 1.5\d*\], while the proxy rises",
            told.stdout,
        )
        assert 'class="warning">Gold is highest' in Path("curve.html").read_text(encoding="utf-8")

    def test_every_number_of_the_page_is_in_the_data(self, rank: Any) -> None:
        pytest.importorskip("matplotlib", reason="matplotlib, which draws the curve, is not installed")
        source = write(*self.ROWS)
        rank("rules:length", source, "--gold", "good", "--curve", "curve.json")
        rank("rules:length", source, "--gold", "good", "--curve", "curve.html", "--overwrite")
        data: list[float] = []

        def collect(value: Any) -> None:
            if isinstance(value, (list, dict)):
                for item in value.values() if isinstance(value, dict) else value:
                    collect(item)
            elif isinstance(value, (int, float)):
                data.append(value)

        collect(json.loads(Path("curve.json").read_text(encoding="utf-8")))
        page = Path("curve.html").read_text(encoding="utf-8")
        assert "<title>Best of n by rules:length, judged by good</title>" in page
        assert page.count("<svg") == 1 and not re.search(r'(?:src|href)="(?!#)', page)
        cells = [unescape(cell) for cell in re.findall(r"<t[dh][^>]*>([^<]*)</t[dh]>", page)]
        numbers = [float(found) for cell in cells if "95%" not in cell for found in re.findall(r"-?\d[\d.]*", cell)]
        assert len(numbers) == 3 * (2 + 3 + 3 + 1)
        for number in numbers:
            assert any(abs(number - found) <= 5e-4 * max(1, abs(found)) for found in data), number

    def test_the_drawing_is_a_file_of_its_own(self, rank: Any) -> None:
        pytest.importorskip("matplotlib", reason="matplotlib, which draws the curve, is not installed")
        for number, gold in enumerate(([], ["--gold", "good"])):
            rank("rules:length", write(*self.ROWS), *gold, "--curve", f"{number}.svg", "--overwrite")
            root = ElementTree.parse(f"{number}.svg").getroot()
            assert root.tag == "{http://www.w3.org/2000/svg}svg"
            texts = {"".join(found.itertext()) for found in root.iter("{http://www.w3.org/2000/svg}text")}
            assert {"n, spaced by the square root of the KL bound", "1", "2", "4", "proxy"} <= texts
            assert ("best possible gold" in texts) == bool(gold)

    @pytest.mark.parametrize(
        ("gold", "message"),
        [
            (
                "good",
                "row 2: the column 'good' has [1]; as a reward it must have a number, true or false for each of the 2",
            ),
            ("name", "row 1: the column 'name' has ['x', 'y']"),
            ("goood", "--gold 'goood' is not a column of the first rows, and cannot be loaded as a spec: "),
            ("endless", "row 2: the column 'endless' has [1, inf]; a reward must be finite, or null where it is unknown."),
            ("huge", "row 2: the column 'huge' has [1, 100000"),
        ],
    )
    def test_gold_that_is_none(self, rank: Any, gold: str, message: str) -> None:
        first = listed("Q", "a", "bb", good=[True, None], name=["x", "y"], endless=[1, 2], huge=[1, 2])
        source = write(first, listed("R", "a", "bb", good=[1], endless=[1, float("inf")], huge=[1, 10**400]))
        told = rank("rules:length", source, "--gold", gold, "--n", "2", code=1)
        assert message in told.output
        assert not Path("in.ranked.jsonl").exists()

    def test_nan_in_a_column_is_unknown(self, rank: Any) -> None:
        source = write(listed("Q", "a", "bb", good=[float("nan"), 1]))
        rank("rules:length", source, "--gold", "good")
        assert read()[0]["gold_scores"] == [1.0, None]

    @pytest.mark.parametrize(
        ("spec", "settings", "message"),
        [
            (
                "rules:length",
                ["--n", 2],
                "No prompt has 2 completions with a score and a gold score; the most that one has is 1. Ask",
            ),
            ("rules:abstains", [], "There is no completion with a score and a gold score."),
        ],
    )
    def test_where_no_curve_is_possible_the_rows_are_written(
        self, rank: Any, spec: str, settings: list[Any], message: str
    ) -> None:
        source = write(listed("Q", "a", "bb", good=[None, 1]), listed("R", "a", good=[1]))
        told = rank(spec, source, "--gold", "good", "--curve", "curve.json", *settings, code=1)
        assert f"The rows are written to in.ranked.jsonl, but there is no curve: {message}" in told.output
        assert len(read()) == 2 and not Path("curve.json").exists()
        assert left_behind() == []

    def test_chance_is_no_fall(self) -> None:
        rng = np.random.default_rng(0)

        def said(prompts: int, fall: float) -> bool:
            found = []
            for number in range(prompts):
                proxy, gold = rng.normal(size=(2, 8))
                gold = gold - fall * proxy
                found.append(ScoredPrompt(str(number), {}, ["x"] * 8, ["x"] * 8, proxy.tolist(), gold.tolist()))
            return bool(best_of_n_curve(found, 8, proxy="p", gold="g").warning)

        assert not any(said(2, 0) for _ in range(12))
        assert said(20, 1)
        assert not said(3, 9)  # of three prompts, nothing is sure

    def test_a_misspelt_gold_is_told_before_the_proxy_scores(self, rank: Any) -> None:
        told = rank("rules:fails", write(*self.ROWS), "--gold", "rules:vowel", code=1)
        assert "--gold 'rules:vowel' is not a column of the first rows, and cannot be loaded as a spec" in told.output

    def test_no_two_rewards_are_in_memory(self, rank: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        loaded: list[tuple[Any, weakref.ref[rm.Provider]]] = []
        original = rm.load

        def load(spec: str) -> rm.Provider:
            assert [before for before, provider in loaded if provider() is not None] == []
            found = original(spec)
            loaded.append((spec, weakref.ref(found)))
            return found

        monkeypatch.setattr(rm, "load", load)
        rank("rules:length", write(*self.ROWS), "--gold", "rules:vowels")
        assert [spec for spec, _ in loaded] == ["rules:vowels", "rules:length", "rules:vowels"]

    def test_standard_input_is_read_once_for_both(self, rank: Any) -> None:
        lines = "".join(json.dumps(row) + "\n" for row in self.ROWS)
        rank("rules:length", "-", "-o", "out.jsonl", "--gold", "rules:vowels", input=lines)
        assert read("out.jsonl")[1]["gold_scores"] == [4.0, 0.0, 0.0, 0.0]
        assert [path.name for path in Path().glob("out.*")] == ["out.jsonl"]

    def test_the_real_labels_of_solutions(self, rank: Any, data_folder: Path) -> None:
        source = data_folder / "gsm8k_solutions_labelled.jsonl.gz"
        rank("rules:length", source, "-o", "out.jsonl", "--gold", "is_correct", "--curve", "curve.json", "--format", "best")
        found = json.loads(Path("curve.json").read_text(encoding="utf-8"))
        rows = list(read_rows(str(source)))
        assert found["prompts"] == len(read("out.jsonl")) == len(rows)
        assert found["gold_mean"][0]["value"] == pytest.approx(np.mean([row["is_correct"] for row in rows]))
        longest = [int(np.argmax([len(text) for text in row["completions"]])) for row in rows]
        chosen = np.mean([row["is_correct"][place] for row, place in zip(rows, longest, strict=True)])
        assert found["gold_mean"][2]["value"] == pytest.approx(chosen, abs=0.002)  # equal lengths share
        assert found["gold_best"][2] == pytest.approx(np.mean([any(row["is_correct"]) for row in rows]))
