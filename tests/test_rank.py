"""``rm-plugins rank``: rows for trainers, completions by a policy, and the curve of the best of n."""

from __future__ import annotations

import json
import re
import sys
import weakref
from collections.abc import Callable, Iterator
from html import unescape
from pathlib import Path
from typing import Any, ClassVar
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import rm_plugins as rm
from rm_plugins.cli import main, rank_curve
from rm_plugins.cli.rank_curve import best_of_n_curve
from rm_plugins.data.rows import read_rows
from rm_plugins.errors import ModelError
from rm_plugins.generation import Generator
from rm_plugins.jobs import generation as generation_job
from rm_plugins.jobs.ranking import ScoredPrompt
from rm_plugins.reports.best_of_n_page import BestOfNCurve
from tests.policies import make_policy

RULES = '''
from pathlib import Path


def length(samples):
    """The completion's length; it abstains where asked to."""
    return [None if "abstain" in text(s) else float(len(text(s))) for s in samples]


def abstains(samples):
    return [None for _ in samples]


def vowels(samples):
    return [float(sum(letter in "aeiou" for letter in text(s))) for s in samples]


def fails(samples):
    raise RuntimeError("out of memory")


def late(samples):
    """The length; it fails at a word while there is a file ``stop``."""
    if Path("stop").exists() and any("fail" in text(s) for s in samples):
        raise RuntimeError("the power failed")
    return length(samples)


def text(sample):
    return sample.completion if isinstance(sample.completion, str) else sample.completion[-1]["content"]
'''
ASKED = [{"role": "user", "content": "Q"}]


@pytest.fixture
def rank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Result]]:
    """Runs the command in a directory that holds ``rules.py``; with ``code=0`` it must succeed."""
    sys.modules.pop("rules", None)
    (tmp_path / "rules.py").write_text(RULES, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))

    def run(*arguments: object, code: int = 0, **settings: Any) -> Result:
        found = CliRunner().invoke(main, ["rank", *map(str, arguments)], **settings)
        assert found.exit_code == code, found.output
        return found

    yield run
    sys.modules.pop("rules", None)


@pytest.fixture(scope="session")
def policy(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_policy(tmp_path_factory.mktemp("policy"))


def write(*rows: dict[str, Any], path: str = "in.jsonl") -> str:
    Path(path).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def listed(prompt: Any, *completions: str, **columns: Any) -> dict[str, Any]:
    return {"prompt": prompt, "completions": list(completions), **columns}


def read(path: str = "in.ranked.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def left_behind() -> list[str]:
    return sorted(path.name for path in Path().glob("*.ranked.*") if path.name != "in.ranked.jsonl")


class TestBest:
    def test_a_row_a_prompt_with_its_best(self, rank: Any) -> None:
        told = rank("rules:length", write(listed("Q", "a", "ccc", "abstain"), listed("R", "abstain")), "--format", "best")
        assert read() == [{"prompt": "Q", "completion": "ccc", "score": 3.0}]
        assert (
            "Wrote 1 completions of 1 prompts to in.ranked.jsonl. 1 prompts are left out: 1 have no completion that"
            in told.stderr
        )
        assert "The reward abstained on 2 completions, which are never written." in told.stderr

    def test_several_of_a_prompt_but_no_text_twice(self, rank: Any) -> None:
        rank("rules:length", write(listed("Q", "a", "ccc", "ccc", "bb")), "--format", "best", "--best", "2")
        assert [row["completion"] for row in read()] == ["ccc", "bb"]

    def test_texts_under_a_conversation_become_messages(self, rank: Any) -> None:
        rank("rules:length", write(listed(ASKED, "a", "bb")), "--format", "best")
        assert read() == [{"prompt": ASKED, "completion": [{"role": "assistant", "content": "bb"}], "score": 2.0}]

    def test_what_is_not_good_enough(self, rank: Any) -> None:
        source = write(listed("Q", "a", "bbbbb"), listed("R", "cccc", "dddd"), listed("S", "e"))
        rank("rules:length", source, "--format", "best", "--min-score", "4")
        assert [row["prompt"] for row in read()] == ["Q", "R"]
        told = rank("rules:length", source, "--format", "best", "--min-margin", "2", "--overwrite")
        assert [(row["prompt"], row["score"]) for row in read()] == [("Q", 5.0)]
        assert "2 prompts are left out: 2 have no completion that is good enough." in told.stderr

    def test_finished_is_a_list_or_that_of_the_one_completion(self, rank: Any) -> None:
        rows = [{"prompt": "Q", "completion": "aaa", "finished": False}, {"prompt": "Q", "completion": "bb", "finished": True}]
        rank("rules:length", write(*rows, listed("R", "a", finished=[True])), "--format", "best", "--finished-only")
        assert [(row["completion"], row["finished"]) for row in read()] == [("bb", True), ("a", True)]


class TestPairs:
    def test_best_and_worst(self, rank: Any) -> None:
        rank("rules:length", write(listed(ASKED, "bb", "a", "cccc", "abstain")), "--format", "pairs")
        chosen, rejected = ([{"role": "assistant", "content": text}] for text in ("cccc", "a"))
        scores = {"chosen_score": 4.0, "rejected_score": 1.0, "margin": 3.0}
        assert read() == [{"prompt": ASKED, "chosen": chosen, "rejected": rejected, **scores}]

    def test_all_pairs_within_margins(self, rank: Any) -> None:
        source = write(listed("Q", "a", "bb", "dddd", "cc", "bb"))
        told = rank("rules:length", source, "--pairs", "all", "--min-margin", "1", "--max-margin", "2")
        found = {(row["chosen"], row["rejected"]) for row in read()}
        assert found == {("dddd", "bb"), ("dddd", "cc"), ("bb", "a"), ("cc", "a")}  # bb and cc score the same
        assert "Wrote 4 pairs of 1 prompts" in told.stderr

    def test_the_best_and_a_random_other(self, rank: Any) -> None:
        source = write(*(listed(f"Q{number}", "a", "bb", "ccc", "dddd") for number in range(40)))
        rank("rules:length", source, "--pairs", "best-random", "--min-margin", "2")
        first = read()
        assert {row["chosen"] for row in first} == {"dddd"}
        assert {row["rejected"] for row in first} == {"a", "bb"}  # not ccc, which is too close
        rank("rules:length", source, "--pairs", "best-random", "--min-margin", "2", "--overwrite")
        assert read() == first
        rank("rules:length", source, "--pairs", "best-random", "--min-margin", "2", "--overwrite", "--seed", "1")
        assert read() != first

    def test_what_makes_no_pair_is_counted(self, rank: Any) -> None:
        rows = [
            listed("same", "aa", "aa"),
            listed("tie", "a" * 4, "b" * 4),
            listed("one", "a", "abstain"),
            listed("low", "a", "b" * 3),
        ]
        told = rank("rules:length", write(*rows, listed("good", "a", "b" * 5)), "--pairs", "best-worst", "--min-score", "4")
        assert [row["prompt"] for row in read()] == ["good"]
        assert "4 prompts are left out: 2 have fewer than two different completions that count; 2 have no pair" in told.stderr


class TestPrompts:
    TOOLS = ({"name": "clock"},)
    SETTINGS: ClassVar[dict[str, Any]] = {"enable_thinking": False}

    @pytest.mark.parametrize("form", ["ranked", "best", "pairs"])
    @pytest.mark.parametrize("out", ["out.jsonl", "out.parquet"])
    def test_what_the_chat_template_takes_goes_with_the_prompt(self, rank: Any, form: str, out: str) -> None:
        plain = listed(ASKED, "a", "bb")
        rows = [plain, {**plain, "tools": self.TOOLS}, {**plain, "tools": self.TOOLS, "chat_template_kwargs": self.SETTINGS}]
        rank("rules:length", write(*rows, plain), "--format", form, "-o", out)
        found = list(read_rows(out))
        assert [row["tools"] for row in found] == [None, list(self.TOOLS), list(self.TOOLS)]  # other tools, another prompt
        nothing = {name: None for name in self.SETTINGS} if out.endswith("parquet") else {}
        assert [row["chat_template_kwargs"] for row in found] == [nothing, nothing, self.SETTINGS]
        rank("rules:length", write(plain), "--format", form, "-o", "plain.jsonl")
        assert not {"tools", "chat_template_kwargs"} & set(read("plain.jsonl")[0])

    def test_rows_without_a_prompt_have_none_in_common(self, rank: Any) -> None:
        rows: list[dict[str, Any]] = [{"chosen": "aaaa", "rejected": "b"}, {"chosen": "c", "rejected": "dd"}]
        source = write(*rows, {"prompt": "", "completion": "e"}, {"prompt": "", "completion": "f"})
        rank("rules:length", source, "--pairs", "all")
        assert [(row["chosen"], row["rejected"]) for row in read()] == [("aaaa", "b"), ("dd", "c")]
        rank("rules:length", source, "--n", "2", "--overwrite")
        assert [row["completions"] for row in read()] == [["aaaa", "b"], ["dd", "c"], ["e"], ["f"]]


class TestFirstN:
    def test_the_first_n_are_scored(self, rank: Any) -> None:
        rows = [listed("Q", "a", "bb", "ccc"), listed("R", "d"), {"prompt": "R", "completion": "ee"}, listed("R", "fff")]
        told = rank("rules:length", write(*rows), "--n", "2")
        assert [row["completions"] for row in read()] == [["bb", "a"], ["ee", "d"]]
        assert "fewer" not in told.stderr
        told = rank("rules:length", "in.jsonl", "--n", "4", "--overwrite")
        assert [len(row["completions"]) for row in read()] == [3, 3]
        assert "2 of 2 prompts have fewer than 4 completions: all that they have are used" in told.stderr
        assert left_behind() == []

    def test_half_a_pair_cannot_be_taken(self, rank: Any) -> None:
        told = rank("rules:length", write({"prompt": "Q", "chosen": "a", "rejected": "b"}), "--n", "1", code=1)
        assert "row 1: it has 'chosen' and 'rejected', of which the first completions cannot be taken" in told.output


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
        assert found["gold_mean"][2] == {"value": 3.5, "low": 2.0, "high": 5.0}  # whole prompts are drawn again
        assert read()[0]["gold_scores"] == [2.0, 3.0, 1.0, 0.0]
        printed = [re.split(r"\s{2,}", line.strip()) for line in told.stdout.splitlines()]
        assert printed[0] == ["n", "KL bound (nats)", "proxy mean [95%]", "gold mean [95%]", "best possible gold"]
        assert [row[0] for row in printed[1:4]] == ["1", "2", "4"]
        assert printed[3] == ["4", "0.636", "4 [4, 4]", "3.5 [2, 5]", "4"]
        assert "2 prompts with 4 scored completions or more; 1 have fewer and are left out." in told.stdout

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
        assert "Going on behind 3 rows that were scored before." in told.stderr
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
            r"Gold is highest at n = 1 \(1.5\) and falls to 0 at n = 3, by 1.5 \[1.4\d*, 1.5\d*\], while the proxy rises",
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
                "row 2: the column 'good' has [1]; as a gold reward it must have a number, true or false for each of the 2",
            ),
            ("name", "row 1: the column 'name' has ['x', 'y']"),
            ("goood", "--gold 'goood' is no column of the first row, and as a spec it cannot be loaded: "),
            ("endless", "row 2: the column 'endless' has [1, inf]; a gold reward must be finite, or null where it is unknown."),
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
        assert f"in.ranked.jsonl is written, but there is no curve: {message}" in told.output
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
        assert "--gold 'rules:vowel' is no column of the first row, and as a spec it cannot be loaded" in told.output

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


class TestGenerate:
    PROMPTS = (
        {"prompt": "The sea", "answer": "salt"},
        {"prompt": ASKED, "completions": ["old"]},
        {"prompt": "count", "chosen": "old", "rejected": "old"},
    )

    @pytest.fixture
    def generate(self, rank: Any, policy: str) -> Callable[..., Result]:
        write(*self.PROMPTS)
        fixed = ("in.jsonl", "--generate", policy, "--n", 4, "--max-new-tokens", 6, "--generation-batch-size", 4)
        return lambda *arguments, spec="rules:length", **settings: rank(spec, *fixed, *arguments, **settings)

    @pytest.fixture
    def generated(self, monkeypatch: pytest.MonkeyPatch) -> list[int]:
        """The numbers of the rows for which a policy was asked, and room to make it fail: a -1 is taken off."""
        asked: list[int] = []
        original = Generator.complete

        def complete(self: Generator, rows: Any, first: int = 0) -> Any:
            if first == 1 and asked[:1] == [-1]:
                asked.pop(0)
                raise ModelError("the power failed")
            asked.extend(range(first, first + len(rows)))
            return original(self, rows, first)

        monkeypatch.setattr(Generator, "complete", complete)
        return asked

    def test_completions_are_written_and_ranked(self, generate: Any) -> None:
        told = generate("--keep-completions", "kept.jsonl")
        assert told.stderr.count("The source's own answers are left out") == 1
        kept, ranked = read("kept.jsonl"), read()
        assert [{name: row[name] for name in row if name not in ("completions", "finished")} for row in kept] == [
            {"prompt": "The sea", "answer": "salt"},
            {"prompt": ASKED},
            {"prompt": "count"},
        ]
        for before, after in zip(kept, ranked, strict=True):
            assert len(before["completions"]) == 4
            assert after["completions"] == [before["completions"][place] for place in after["order"]]
            assert after["finished"] == [before["finished"][place] for place in after["order"]]
            assert after["scores"] == sorted(map(len, before["completions"]), reverse=True)
        assert left_behind() == []
        generate("--overwrite")
        assert read() == ranked
        assert left_behind() == []

    def test_what_was_kept_can_be_ranked_by_another_reward(self, generate: Any, rank: Any) -> None:
        generate("--keep-completions", "kept.jsonl")
        rank("rules:vowels", "kept.jsonl", "-o", "again.jsonl", "--format", "best", "--finished-only")
        done = [row for row in read("kept.jsonl") if any(row["finished"])]
        assert [row["finished"] for row in read("again.jsonl")] == [True] * len(done)

    def test_an_interrupted_generation_goes_on_where_it_stopped(self, generate: Any, generated: list[int]) -> None:
        generate()
        whole = read()
        generated[:] = [-1]
        assert "the power failed" in generate("--overwrite", code=1).output
        assert (generated, len(read("in.ranked.jsonl.completions.jsonl.part"))) == ([0], 1)
        with Path("in.ranked.jsonl.completions.jsonl.part").open("a") as file:
            file.write('{"prompt": "half a li')
        assert read() == whole  # until there is something to replace it with
        assert "Going on behind 1 prompts whose completions were written before." in generate().stderr
        assert generated == [0, 1, 2]
        assert read() == whole
        assert left_behind() == []

    def test_an_interrupted_scoring_does_not_generate_again(self, generate: Any, generated: list[int]) -> None:
        told = generate(spec="rules:fails", code=1)
        assert "out of memory" in told.output
        Path("rules.py").write_text(RULES.replace('raise RuntimeError("out of memory")', "return vowels(samples)"))
        sys.modules.pop("rules")
        told = generate(spec="rules:fails")
        assert "Taking the completions of 3 prompts that were written before." in told.stderr
        assert generated == [0, 1, 2]
        assert left_behind() == []

    def test_other_settings_or_prompts_are_not_gone_on_with(self, generate: Any, generated: list[int], policy: str) -> None:
        generated[:] = [-1]
        generate(code=1)
        assert "or with other settings" in generate("--temperature", "0.5", code=1).output
        write({"prompt": "The land"}, *self.PROMPTS[1:])
        told = generate(code=1)
        assert "was begun with other data: its prompt 1 is not the source's. Begin anew with --overwrite." in told.output
        generate("--overwrite")
        assert read()[0]["prompt"] == "The land"

    def test_a_reward_that_cannot_be_loaded_is_told_before_generating(self, generate: Any, generated: list[int]) -> None:
        generate(spec="rules:none", code=1)
        generate("--gold", "rules:none", code=1)
        Path("in.ranked.jsonl").touch()
        assert "in.ranked.jsonl exists already" in generate(code=1).output
        Path("kept.jsonl").touch()
        assert "kept.jsonl exists already" in generate("-o", "o.jsonl", "--keep-completions", "kept.jsonl", code=1).output
        assert generated == []

    def test_a_prompt_that_comes_twice_is_asked_once(self, rank: Any, policy: str, generated: list[int]) -> None:
        source = write({"prompt": "a", "id": 1}, {"prompt": "b", "id": 2}, {"prompt": "a", "id": 3})
        rank("rules:length", source, "--generate", policy, "--n", 2, "--max-new-tokens", 4, "--keep-completions", "kept.jsonl")
        assert [row["id"] for row in read("kept.jsonl")] == [1, 2]
        assert [len(row["completions"]) for row in read()] == [2, 2]
        assert generated == [0, 1]

    @pytest.mark.parametrize(
        ("prompt", "message"),
        [
            ("rain " * 300, "row 4: the prompt has "),
            ([*ASKED, {"role": "assistant", "content": "It is"}], "row 4: the prompt ends with a message of the assistant"),
            (None, "row 4: there is no 'prompt'"),
        ],
    )
    def test_every_prompt_is_looked_at_before_the_first_is_completed(
        self, rank: Any, policy: str, monkeypatch: pytest.MonkeyPatch, prompt: Any, message: str
    ) -> None:
        source = write({"prompt": "a"}, {"prompt": "a"}, {"prompt": "b"}, {"prompt": prompt})
        settings = ("--generate", policy, "--n", 2, "--max-new-tokens", 4)
        with monkeypatch.context() as patched:
            patched.setattr(generation_job, "load_generator", lambda *_, **__: pytest.fail("the policy was loaded"))
            assert message in rank("rules:length", source, *settings, code=1).output
        write({"prompt": "a"}, {"prompt": "a"}, {"prompt": "b"})
        rank("rules:length", source, *settings)  # nothing was begun
        assert len(read()) == 2

    def test_standard_input_is_kept_to_be_read_twice(self, rank: Any, policy: str) -> None:
        lines = "".join(json.dumps(row) + "\n" for row in self.PROMPTS)
        rank("rules:length", "-", "-o", "out.jsonl", "--generate", policy, "--n", 2, "--max-new-tokens", 4, input=lines)
        assert [row["prompt"] for row in read("out.jsonl")] == [row["prompt"] for row in self.PROMPTS]
        assert [path.name for path in Path().glob("*out.*")] == ["out.jsonl"]

    def test_an_access_token_is_not_written_down(self, generate: Any) -> None:
        generate("--engine-options", '{"token": "hf_secret"}', spec="rules:fails", code=1)
        notes = [path.read_text(encoding="utf-8") for path in Path().glob("*.json")]
        assert notes and not any("hf_secret" in note for note in notes)

    def test_gold_judges_what_was_generated(self, generate: Any, policy: str) -> None:
        generate("--gold", "rules:vowels", "--curve", "curve.json", "--pairs", "all")
        found = json.loads(Path("curve.json").read_text(encoding="utf-8"))
        assert (found["policy"], found["prompts"], found["n"]) == (policy, 3, [1, 2, 4])
        assert {"chosen_finished", "rejected_finished", "chosen_gold_score"} <= set(read()[0])
        assert left_behind() == []

    def test_a_real_policy_ranked_by_a_real_encoder(
        self, rank: Any, smollm2_path: Path, minilm_path: Path, tmp_path: Path
    ) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = AutoModelForSequenceClassification.from_pretrained(minilm_path, num_labels=1)
        model.save_pretrained("reward")
        AutoTokenizer.from_pretrained(minilm_path).save_pretrained("reward")
        asked = [{"prompt": [{"role": "user", "content": text}]} for text in ("Name a colour.", "Write a sentence about rain.")]
        settings = ("--n", 4, "--max-new-tokens", 6, "--engine-options", '{"dtype": "float32"}')
        rank("./reward", write(*asked), "--generate", smollm2_path, *settings)
        reward = rm.load("./reward")
        for row in read():
            assert len(set(row["completions"])) == 4
            again = reward.score([rm.Sample(row["prompt"], text) for text in row["completions"]]).values
            assert row["scores"] == pytest.approx(again.tolist(), abs=1e-5) == sorted(row["scores"], reverse=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--pairs", "all", "--best", "2"], "--best goes with --format ranked or --format best, not with --format pairs."),
        (["--pairs", "all", "--format", "best"], "--pairs goes with --format pairs, not with --format best."),
        (["--min-score", "1"], "--min-score goes with --format best or --format pairs, not with --format ranked."),
        (["--format", "best", "--max-margin", "1"], "--max-margin goes with --format pairs, not with --format best."),
        (["--pairs", "all", "--min-margin", "2", "--max-margin", "1"], "No margin is at least 2"),
        (["--temperature", "0.5"], "--temperature says how completions are written; it needs --generate MODEL."),
        (["--generate", "m"], "--generate needs to know how many completions of a prompt to write: --n N."),
        (["--generate", "m", "--n", "2", "--temperature", "0"], "0.0 is not in the range"),
        (["--generate", "m", "--n", "2", "--keep-completions", "kept.csv"], "--keep-completions writes .jsonl"),
        (
            ["--generate", "m", "--n", "2", "--keep-completions", "./in.jsonl"],
            "FILE and --keep-completions are the same file, 'in.jsonl'.",
        ),
        (
            ["--generate", "m", "--n", "2", "--keep-completions", "in.ranked.jsonl"],
            "the output and --keep-completions are the same",
        ),
        (["-o", "./in.jsonl", "--overwrite"], "FILE and the output are the same file, 'in.jsonl'. Name different ones."),
        (["-o", "out.json", "--curve", "out.json"], "the output and --curve are the same file"),
        (
            ["--curve", "in.ranked.jsonl.rows.json", "-o", "in.ranked.csv"],
            "-o writes .jsonl, .json, .ndjson, .parquet; 'in.ranked.csv'",
        ),
        (["--generate", "m", "--n", "2", "--engine-options", "{dtype}"], "--engine-options is no JSON"),
        (["--generate", "m", "--n", "2", "--engine-options", "[1]"], "--engine-options must be a JSON mapping"),
        (["--generate", "m", "--n", "2", "--gold", "good"], "--gold good is a column of in.jsonl, which knows nothing of"),
        (["--curve", "curve.png"], "--curve writes .html, .json, .svg; 'curve.png' ends in none of these."),
    ],
)
def test_options_that_do_not_go_together(rank: Any, arguments: list[str], message: str) -> None:
    told = rank("rules:length", write(listed("Q", "a", good=[1])), *arguments, code=2)
    assert message in " ".join(told.output.split())
    assert left_behind() == []


def test_finished_only_where_nothing_says_what_is_finished(rank: Any) -> None:
    told = rank("rules:length", write(listed("Q", "a", "bb")), "--format", "best", "--finished-only", code=1)
    assert "--finished-only needs rows with 'finished'" in told.output


def test_a_curve_that_cannot_be_written_is_told_before_scoring(rank: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write(listed("Q", "a", "bb"))
    Path("curve.json").touch()
    assert "curve.json exists already" in rank("rules:fails", source, "--curve", "curve.json", code=1).output
    monkeypatch.setattr(rank_curve, "find_spec", lambda name: None)
    assert "pip install 'rm-plugins[report]'" in rank("rules:fails", source, "--curve", "curve.svg", code=1).output


def test_a_file_on_the_way_is_no_source(rank: Any) -> None:
    source = write(listed("Q", "a"), path="out.jsonl.rows.jsonl")
    told = rank("rules:length", source, "-o", "out.jsonl", code=2)
    assert "FILE is 'out.jsonl.rows.jsonl', where something is kept while out.jsonl is made." in " ".join(told.output.split())
    assert read(source) == [listed("Q", "a")]


@pytest.mark.parametrize("flag", ["-o", "--curve", "--keep-completions"])
def test_a_place_that_cannot_be_written_is_told_before_anything_is_done(rank: Any, flag: str) -> None:
    Path("blocked").touch()
    generating = ["--generate", "no-policy", "--n", 2] if flag == "--keep-completions" else []
    name = "blocked/f.json" if flag == "--curve" else "blocked/f.jsonl"
    told = rank("rules:fails", write(listed("Q", "a")), flag, name, *generating, code=1)
    assert f"{name} cannot be written, which is {'the output' if flag == '-o' else flag}: " in " ".join(told.output.split())
    Path("folder.json").mkdir()
    if flag == "--curve":
        assert "'folder.json' is a folder" in rank("rules:fails", "in.jsonl", flag, "folder.json", code=1).output


class TestInterrupted:
    ROWS = (listed("Q", "a", "bb"), listed("R", "fail", "c"))

    def test_a_run_that_was_to_overwrite_goes_on_without_the_flag(self, rank: Any) -> None:
        source, curve = write(*self.ROWS), ("--curve", "curve.json", "--batch-size", 1)
        rank("rules:late", source, *curve)
        before = read()
        write(listed("Q", "aaa", "b"), self.ROWS[1])
        Path("stop").touch()
        rank("rules:late", source, *curve, "--overwrite", code=1)
        assert read() == before  # until there is something to replace it with
        Path("stop").unlink()
        told = rank("rules:late", source, *curve)
        assert "in.ranked.jsonl will be replaced: a run with --overwrite was interrupted." in told.stderr
        assert "Going on behind 1 rows" in told.stderr
        assert [row["completions"] for row in read()] == [["aaa", "b"], ["fail", "c"]]
        assert json.loads(Path("curve.json").read_text(encoding="utf-8"))["prompts"] == 2
        assert "in.ranked.jsonl exists already" in rank("rules:late", source, *curve, code=1).output

    def test_other_work_does_not_replace_what_it_was_to_replace(self, rank: Any) -> None:
        source = write(*self.ROWS)
        rank("rules:late", source)
        before = read()
        Path("stop").touch()
        rank("rules:late", source, "--batch-size", 1, "--overwrite", code=1)
        assert "was begun by another reward" in rank("rules:length", source, code=1).output
        assert read() == before

    def test_a_curve_of_somebody_else_is_not_replaced(self, rank: Any) -> None:
        source = write(*self.ROWS)
        Path("stop").touch()
        rank("rules:late", source, "--batch-size", 1, code=1)
        Path("curve.json").touch()
        assert "curve.json exists already" in rank("rules:late", source, "--curve", "curve.json", code=1).output

    def test_rows_and_curve_are_written_together_or_not_at_all(self, rank: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        source = write(*self.ROWS)
        settings = ("--format", "best", "--finished-only", "--curve", "curve.json")
        assert "--finished-only needs rows with 'finished'" in rank("rules:length", source, *settings, code=1).output
        assert not Path("curve.json").exists()
        with monkeypatch.context() as patched:
            patched.setattr(BestOfNCurve, "to_json", lambda self: 1 / 0)
            rank("rules:length", source, "--curve", "curve.json", code=1)
        assert not Path("in.ranked.jsonl").exists() and not Path("curve.json").exists()
        told = rank("rules:length", source, "--curve", "curve.json")
        assert "Going on behind 2 rows that were scored before." in told.stderr
        assert [path.name for path in Path().iterdir() if "curve" in path.name] == ["curve.json"]


def test_help_has_its_options_in_groups(rank: Any) -> None:
    printed = rank("--help").output
    headings = [line.removesuffix(":") for line in printed.splitlines() if re.fullmatch(r"[A-Z][\w ]*:", line)]
    assert headings == ["Output", "Completions", "Best of n", "Options"]
    order = [printed.index(flag) for flag in ("--format", "--pairs", "--generate MODEL", "--seed", "--gold", "--batch-size")]
    assert order == sorted(order)


def test_generation_stops_at_an_empty_source(rank: Any, policy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generation_job, "load_generator", lambda *arguments, **settings: pytest.fail("no model is needed"))
    assert "Wrote 0 prompts" in rank("rules:length", write(), "--generate", policy, "--n", 2).stderr
