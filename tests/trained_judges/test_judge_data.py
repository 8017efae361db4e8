"""``rm-plugins judge-data``: questions with the right verdict, in both orders, on two sides that share no prompt."""

from __future__ import annotations

import json
import os
import tracemalloc
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from datasets import load_dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from rm_plugins.cli import main
from rm_plugins.comparisons.judge_comparer import JudgeComparer
from rm_plugins.data.compared_pairs import compared_pairs, is_held_out
from rm_plugins.data.judgements import judgement
from rm_plugins.data.row_files import read_rows
from rm_plugins.errors import DataError, OutputError, SpecError
from rm_plugins.jobs.judge_data import write_questions
from rm_plugins.jobs.judge_questions import JudgeQuestions
from rm_plugins.judges import Question, verdict_of
from rm_plugins.providers.comparison import Comparison
from rm_plugins.providers.judged.judged import Judged
from tests.judges.scripted import ScriptedJudge

SHOWN = "{{ prompt }}|{{ first }}|{{ second }}"
PAIR = {"prompt": "2+2?", "chosen": "4", "rejected": "5"}
USER = {"role": "user", "content": "2+2?"}


def questions(row: dict[str, Any], **settings: Any) -> list[dict[str, Any]]:
    return JudgeQuestions(**{"template": SHOWN, **settings}).of(judgement(row))


def shown(question: dict[str, Any]) -> list[str]:
    (message,) = question["prompt"]
    assert message["role"] == "user"
    return str(message["content"]).split("|")


def preferred(question: dict[str, Any]) -> str:
    """The answer that the right verdict names."""
    _, first, second = shown(question)
    return {"A": first, "B": second, "tie": "="}[question["verdict"]]


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["judge-data", *map(str, arguments)])


def written(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """The questions of both sides; the command must not have left anything else."""
    assert {path.name for path in folder.iterdir()} <= {"train.jsonl", "test.jsonl"}
    return {path.stem: list(read_rows(str(path))) for path in sorted(folder.iterdir())}


def write(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


class TestFormats:
    """Every format gives the comparisons that it says, each in both orders."""

    @pytest.mark.parametrize(
        ("row", "expected"),
        [
            (PAIR, {"45": "4"}),
            (
                {
                    "chosen": [USER, {"role": "assistant", "content": "4"}],
                    "rejected": [USER, {"role": "assistant", "content": "5"}],
                },
                {"45": "4"},
            ),
            ({"chosen": "Human: 2+2?\nAssistant: 4", "rejected": "Human: 2+2?\nAssistant: 5"}, {"45": "4"}),
            ({"prompt": "2+2?", "completions": ["4", "5", "22"], "ranks": [1, 2, 3]}, {"45": "4", "224": "4", "225": "5"}),
            ({"prompt": "2+2?", "completions": ["4", "5", "22"], "ranks": [1, 2, None]}, {"45": "4"}),
            ({"prompt": "2+2?", "completions": ["4", "5", "22"], "scores": [9, 1, 1]}, {"45": "4", "224": "4"}),
            ({"prompt": "2+2?", "completions": ["4", "5", "22"], "best": 0}, {"45": "4", "224": "4"}),
            ({"prompt": [USER], "completions": ["4", "5", "22"], "labels": [True, False, None]}, {"45": "4"}),
        ],
        ids=["preference", "conversations", "transcripts", "ranking", "unknown rank", "ratings", "best-of", "labelled"],
    )
    def test_comparisons(self, row: dict[str, Any], expected: dict[str, str]) -> None:
        found = defaultdict(list)
        for question in questions(row):
            prompt, first, second = shown(question)
            assert "2+2?" in prompt
            found["".join(sorted(text.removeprefix("Assistant: ") for text in (first, second)))].append(question)
        assert {pair: {preferred(one).removeprefix("Assistant: ") for one in both} for pair, both in found.items()} == {
            pair: {answer} for pair, answer in expected.items()
        }
        for one, other in found.values():
            assert (one["pair"], one["order"], other["order"]) == (other["pair"], 0, 1)
            assert shown(one)[1:] == shown(other)[:0:-1]
            assert {one["verdict"], other["verdict"]} == {"A", "B"}

    def test_ties(self) -> None:
        row = {"prompt": "2+2?", "completions": ["4", "four", "5"], "ranks": [1, 1, 2]}
        made = JudgeQuestions(template=SHOWN)
        assert len(made.of(judgement(row))) == 4
        assert made.left_out == {"pairs that are ties": 1}
        kept = questions(row, keeps_ties=True)
        assert Counter(question["verdict"] for question in kept) == {"A": 2, "B": 2, "tie": 2}

    def test_only_kept_ties_are_an_answer(self) -> None:
        (with_ties, _), (without, _) = questions(PAIR, keeps_ties=True, template=None), questions(PAIR, template=None)
        assert "[[tie]]" in shown(with_ties)[0]
        assert "[[tie]]" not in shown(without)[0]
        assert "[[A]]" in shown(without)[0]

    def test_equal_answers_are_left_out(self) -> None:
        assert (
            questions(
                {"prompt": "2+2?", "chosen": "4", "rejected": [{"role": "assistant", "content": "4"}]} | {"prompt": [USER]}
            )
            == []
        )

    def test_a_pair_has_one_name_whichever_answer_wins(self) -> None:
        (one, *_), (other, *_) = questions(PAIR), questions({**PAIR, "chosen": "5", "rejected": "4"})
        assert one["pair"] == other["pair"]
        assert shown(one) == shown(other)
        assert {one["verdict"], other["verdict"]} == {"A", "B"}
        assert questions({**PAIR, "prompt": "3+1?"})[0]["pair"] != one["pair"]

    def test_the_most_pairs_of_a_row_do_not_depend_on_their_order(self) -> None:
        texts = ["a", "b", "c", "d", "e"]
        names = [
            {question["pair"] for question in questions({"prompt": "Q", "completions": order, "ranks": ranks}, max_pairs=4)}
            for order, ranks in ((texts, [1, 2, 3, 4, 5]), (texts[::-1], [5, 4, 3, 2, 1]))
        ]
        assert names[0] == names[1]
        assert len(names[0]) == 4

    def test_pointwise(self) -> None:
        rows = [
            {"prompt": "2+2?", "completion": "4", "label": True},
            {"messages": [USER, {"role": "assistant", "content": "5"}], "label": 0},
        ]
        found = [
            question for row in rows for question in questions(row, form="pointwise", template="{{ prompt }}|{{ completion }}")
        ]
        assert [(*shown(question), question["verdict"]) for question in found] == [("2+2?", "4", "Yes"), ("2+2?", "5", "No")]
        assert all(question.keys() == {"prompt", "verdict"} for question in found)
        (asked,) = questions(rows[0], form="pointwise", template=None)
        assert "Yes or No" in shown(asked)[0]
        with pytest.raises(DataError, match="has the format preference, which does not judge an answer by itself"):
            questions(PAIR, form="pointwise", template=None)

    def test_completions_for_supervised_training(self) -> None:
        for question in questions(PAIR, with_completion=True):
            assert question["completion"] == [{"role": "assistant", "content": f"[[{question['verdict']}]]"}]
        (asked,) = questions({"completion": "4", "label": 1}, form="pointwise", template=None, with_completion=True)
        assert asked["completion"] == [{"role": "assistant", "content": "Yes"}]

    @pytest.mark.parametrize("form", ["pairwise", "pointwise"])
    def test_criteria(self, form: Any) -> None:
        row = PAIR if form == "pairwise" else {"prompt": "2+2?", "completion": "4", "label": True}
        for criteria in ("Be brief.", ["Be brief.", "Be right."], [{"text": "Be brief."}]):
            assert "Be brief." in shown(questions({**row, "criteria": criteria}, form=form, template=None)[0])[0]
        assert "criteria" not in shown(questions(row, form=form, template=None)[0])[0]
        told = shown(questions({**row, "criteria": "Be long."}, form=form, template=None, criteria="Be brief.")[0])[0]
        assert "Be brief." in told
        assert "Be long." not in told

    def test_columns_of_the_row(self) -> None:
        row = {**PAIR, "level": "easy"}
        assert shown(questions(row, template="{{ level }}|{{ first }}|{{ second }}")[0])[0] == "easy"
        with pytest.raises(DataError, match="uses 'level', but the row has no such column"):
            questions(PAIR, template="{{ level }}|{{ first }}|{{ second }}")

    @pytest.mark.parametrize(
        ("settings", "said"),
        [
            ({"template": "{{ prompt }}"}, "must use"),
            ({"template": "{{ first }}"}, "must use 'second'"),
            ({"template": "{{ first"}, "not a valid Jinja template"),
            ({"template": SHOWN, "criteria": "Be brief."}, "must use 'criteria'"),
            ({"template": "{{ prompt }}", "form": "pointwise"}, "must use"),
            ({"template": "absent.jinja"}, "absent.jinja"),
        ],
    )
    def test_templates_are_checked_first(self, settings: dict[str, Any], said: str) -> None:
        with pytest.raises(SpecError, match=said):
            JudgeQuestions(**settings)


class TestInUse:
    """A judge is trained on the questions that rewards ask it later."""

    @pytest.mark.parametrize("explains", [True, False])
    @pytest.mark.parametrize("keeps_ties", [True, False])
    def test_a_comparison_asks_the_same(self, explains: bool, keeps_ties: bool) -> None:
        judge = ScriptedJudge(lambda question: "[[A]]" if explains else "A")
        comparer = JudgeComparer(judge=judge, explain=explains, tie=keeps_ties)
        row = {**PAIR, "criteria": "Be brief."}
        Comparison(comparer=comparer).score([*judgement(row).samples])
        trained = questions(row, template=None, explains=explains, keeps_ties=keeps_ties, with_completion=True)
        asked = {Question(tuple(one["prompt"]), judge.asked[0].labels).key for one in trained}
        assert {question.key for question in judge.asked} == asked
        for one in trained:
            assert verdict_of(one["completion"][0]["content"], comparer.labels).label == one["verdict"]

    def test_a_grade_asks_the_same(self) -> None:
        row = {"prompt": "2+2?", "completion": "4", "label": True, "criteria": "Be brief."}
        judge = ScriptedJudge(lambda question: "Yes")
        Judged(judge=judge).score([*judgement(row).samples])
        (trained,) = questions(row, form="pointwise", template=None)
        assert [list(question.messages) for question in judge.asked] == [trained["prompt"]]

    def test_explanations_are_optional(self) -> None:
        for question in questions(PAIR, template=None, explains=False, with_completion=True):
            assert "one word" in shown(question)[0]
            assert question["completion"][0]["content"] == question["verdict"]


QUESTIONS = JudgeQuestions(template=SHOWN, keeps_ties=True)
TEXTS = st.sampled_from(["4", "5", "four", "five", "22", ""])
PROMPTS = st.sampled_from(["2+2?", "2+3?", " 2+2? ", "Why?", ""])
ROWS = st.one_of(
    st.builds(lambda prompt, a, b: {"prompt": prompt, "chosen": a, "rejected": b}, PROMPTS, TEXTS, TEXTS),
    st.builds(lambda prompt, a, b: {"prompt": prompt, "chosen": a, "rejected": b, "tie": True}, PROMPTS, TEXTS, TEXTS),
    st.builds(
        lambda prompt, rated: {
            "prompt": prompt,
            "completions": [one for one, _ in rated],
            "scores": [rating for _, rating in rated],
        },
        PROMPTS,
        st.lists(st.tuples(TEXTS, st.sampled_from([1, 2, 3, None])), min_size=2, max_size=4),
    ),
    st.builds(
        lambda prompt, a, b: {"prompt": [{"role": "user", "content": prompt}], "completions": [a, b], "labels": [True, False]},
        PROMPTS,
        TEXTS,
        TEXTS,
    ),
)


class TestSplit:
    @settings(max_examples=40)
    @given(st.lists(ROWS, min_size=1, max_size=12), st.sampled_from([0.2, 0.5, 0.8]), st.randoms(use_true_random=False))
    def test_sides_share_no_prompt_and_depend_on_texts_only(
        self, rows: list[dict[str, Any]], share: float, chance: Any
    ) -> None:
        def sides(rows: Sequence[dict[str, Any]]) -> set[tuple[bool, str, str]]:
            judged = map(judgement, rows)
            return {
                (is_held_out(one.samples, share), pair.id, str(pair.better)) for one in judged for pair in compared_pairs(one)
            }

        held, trained = set[str](), set[str]()
        for row in rows:
            judged = judgement(row)
            for question in QUESTIONS.of(judged):
                prompt = shown(question)[0].strip()
                (held if is_held_out(judged.samples, share) else trained).add(prompt or json.dumps(sorted(shown(question)[1:])))
        assert not {prompt for prompt in held if "?" in prompt} & trained
        mixed = list(rows)
        chance.shuffle(mixed)
        assert sides(mixed) == sides(rows)

    @settings(max_examples=40)
    @given(st.lists(ROWS, min_size=1, max_size=8))
    def test_every_pair_is_there_in_both_orders_with_balanced_positions(self, rows: list[dict[str, Any]]) -> None:
        for row in rows:
            found = QUESTIONS.of(judgement(row))
            assert [question["order"] for question in found] == [0, 1] * (len(found) // 2)
            verdicts = Counter(question["verdict"] for question in found)
            assert verdicts["A"] == verdicts["B"]
            for one, other in zip(found[::2], found[1::2], strict=True):
                assert (one["pair"], preferred(one)) == (other["pair"], preferred(other))

    @given(ROWS, st.floats(0, 1), st.floats(0, 1))
    def test_a_larger_share_keeps_what_a_smaller_one_holds_out(self, row: dict[str, Any], one: float, other: float) -> None:
        samples = judgement(row).samples
        assert is_held_out(samples, min(one, other)) <= is_held_out(samples, max(one, other))

    def test_the_share_is_about_what_was_asked_for(self) -> None:
        rows = [{**PAIR, "prompt": f"{number}?"} for number in range(2_000)]
        held = sum(is_held_out(judgement(row).samples, 0.1) for row in rows)
        assert 150 < held < 250

    def test_a_prompt_with_other_tools_or_as_messages_is_the_same_prompt(self) -> None:
        for number in range(50):
            text = {"prompt": f"{number}?", "chosen": "4", "rejected": "5"}
            messages = {**text, "prompt": [{"role": "user", "content": f"{number}?"}]}
            sides = {is_held_out(judgement(row).samples, 0.5) for row in (text, messages, {**text, "tools": [{"name": "add"}]})}
            assert len(sides) == 1


class TestCommand:
    def test_a_folder_that_trainers_read(self, tmp_path: Path) -> None:
        rows = [{**PAIR, "prompt": f"{number}+2?"} for number in range(60)]
        told = run(write(tmp_path / "pairs.jsonl", rows), "-o", tmp_path / "out", "--held-out", "0.3", "--with-completion")
        assert told.exit_code == 0, told.output
        found = load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))
        assert {name: part.num_rows for name, part in found.items()} == {
            name: len(part) for name, part in written(tmp_path / "out").items()
        }
        assert set(found["train"].column_names) == {"prompt", "completion", "verdict", "pair", "order"}
        assert found["train"].num_rows + found["test"].num_rows == 120
        assert f"and {found['test'].num_rows:,} of held-out prompts" in " ".join(told.stderr.split())
        assert "Right verdicts: A 60, B 60" in " ".join(told.stderr.split())

    def test_without_a_held_out_part(self, tmp_path: Path) -> None:
        assert run(write(tmp_path / "pairs.jsonl", [PAIR]), "-o", tmp_path / "out", "--held-out", "0").exit_code == 0
        told = run(tmp_path / "pairs.jsonl", "-o", tmp_path / "other", "--held-out", "nan")
        assert "--held-out must be a share" in told.output
        assert {name: len(rows) for name, rows in written(tmp_path / "out").items()} == {"train": 2}

    def test_options_reach_the_questions(self, tmp_path: Path) -> None:
        rows = [{"Q": "2+2?", "completions": ["4", "four", "5"], "ranks": [1, 1, 2]}]
        (tmp_path / "short.jinja").write_text(f"{SHOWN}|{{{{ criteria }}}}", encoding="utf-8")
        options = ["--map", "Q=prompt", "--ties", "keep", "--max-pairs", "2", "--held-out", "0", "--criteria", "Be brief."]
        told = run(
            write(tmp_path / "rows.jsonl", rows), "-o", tmp_path / "out", "--template", tmp_path / "short.jinja", *options
        )
        assert told.exit_code == 0, told.output
        found = written(tmp_path / "out")["train"]
        assert len(found) == 4
        assert all(shown(question)[0] == "2+2?" and shown(question)[3] == "Be brief." for question in found)
        assert "Left out: 1 pairs beyond --max-pairs." in told.stderr

    def test_replacing(self, tmp_path: Path) -> None:
        file, out = write(tmp_path / "pairs.jsonl", [PAIR]), tmp_path / "out"
        assert run(file, "-o", out, "--held-out", "0").exit_code == 0
        before = written(out)
        told = run(write(tmp_path / "other.jsonl", [{**PAIR, "chosen": "four"}]), "-o", out, "--held-out", "0")
        assert (told.exit_code, "exists already" in told.output, written(out)) == (1, True, before)
        assert run(tmp_path / "other.jsonl", "-o", out, "--held-out", "0", "--overwrite").exit_code == 0
        assert written(out) != before

    def test_a_folder_of_something_else_is_never_replaced(self, tmp_path: Path) -> None:
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "thesis.tex").write_text("all of it")
        told = run(write(tmp_path / "pairs.jsonl", [PAIR]), "-o", tmp_path / "out", "--overwrite")
        assert (told.exit_code, "such as thesis.tex" in told.output) == (1, True)
        assert os.listdir(tmp_path / "out") == ["thesis.tex"]

    def test_the_folder_of_the_rows_is_not_replaced(self, tmp_path: Path) -> None:
        (tmp_path / "out").mkdir()
        told = run(write(tmp_path / "out" / "train.jsonl", [PAIR]), "-o", tmp_path / "out", "--overwrite")
        assert (told.exit_code, "is in the output folder" in " ".join(told.output.split())) == (2, True)

    @pytest.mark.parametrize(
        ("rows", "options", "said"),
        [
            ([PAIR, {"prompt": "2+2?", "chosen": "4"}], [], "row 2: there is no 'rejected'"),
            ([PAIR, {**PAIR, "chosen": 4}], [], "row 2: "),
            ([PAIR], ["--form", "pointwise"], "row 1: the row has the format preference"),
            (
                [{**PAIR, "level": "easy"}, PAIR],
                ["--template", "{{ level }} {{ first }} {{ second }}"],
                "row 2: The template uses 'level'",
            ),
            ([{**PAIR, "tie": True}], [], "All pairs are ties, which --ties keep asks about"),
            ([{"prompt": "2+2?", "completion": "4", "label": True}], [], "are for --form pointwise"),
            ([], [], "has no rows"),
        ],
    )
    def test_bad_rows_are_named_and_nothing_is_written(
        self, rows: list[dict[str, Any]], options: list[str], said: str, tmp_path: Path
    ) -> None:
        file = write(tmp_path / "rows.jsonl", rows)
        told = run(file, "-o", tmp_path / "out", *options)
        assert told.exit_code == 1
        assert said in " ".join(told.output.split())
        assert str(file) in told.output.replace("\n", "")
        assert sorted(path.name for path in tmp_path.iterdir()) == ["rows.jsonl"]

    def test_a_line_that_is_not_a_row_is_named(self, tmp_path: Path) -> None:
        (tmp_path / "rows.jsonl").write_text(json.dumps(PAIR) + "\n{\n", encoding="utf-8")
        told = run(tmp_path / "rows.jsonl", "-o", tmp_path / "out")
        assert (told.exit_code, "line 2" in told.output, (tmp_path / "out").exists()) == (1, True, False)

    def test_everything_held_out(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="nothing to train on"):
            write_questions([PAIR], JudgeQuestions(), tmp_path / "out", source="rows", held_out=1.0)

    def test_an_interruption_leaves_the_old_questions(self, tmp_path: Path) -> None:
        made = JudgeQuestions()
        write_questions([PAIR], made, tmp_path / "out", source="rows", held_out=0)
        before = written(tmp_path / "out")

        def interrupted() -> Iterator[dict[str, Any]]:
            yield {**PAIR, "chosen": "four"}
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            write_questions(interrupted(), made, tmp_path / "out", source="rows", held_out=0, overwrite=True)
        assert written(tmp_path / "out") == before
        assert [path.name for path in tmp_path.iterdir()] == ["out"]
        with pytest.raises(OutputError):
            write_questions([PAIR], made, tmp_path / "out" / "train.jsonl" / "x", source="rows")

    def test_memory_does_not_grow_with_the_rows(self, tmp_path: Path) -> None:
        def peak(count: int) -> int:
            rows = ({**PAIR, "prompt": f"{number}?", "chosen": "4" * 2_000} for number in range(count))
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
            write_questions(rows, JudgeQuestions(template=SHOWN), tmp_path / f"out-{count}", source="rows")
            return tracemalloc.get_traced_memory()[1] - before

        tracemalloc.start()
        try:
            peak(50)
            assert peak(600) < peak(200) + 200_000
        finally:
            tracemalloc.stop()
