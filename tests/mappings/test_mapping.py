"""What a mapping makes of a row, and how it is written."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rm_plugins.data.judgements import judgement
from rm_plugins.data.mapping import RowMapping
from rm_plugins.data.presets import PRESETS, ignored_verdicts, proposed_mapping
from rm_plugins.data.row_files import read_rows
from rm_plugins.data.transcripts import turns_of_transcript
from rm_plugins.data.written_mapping import mapping_beside, mapping_of
from rm_plugins.errors import DataError, SpecError
from rm_plugins_trl import reward_dataset

AB = RowMapping(answers=("response_a", "response_b"), winner="winner")


def pair(**given: Any) -> dict[str, Any]:
    return {"prompt": "Q", "response_a": "A", "response_b": "B", **given}


class TestWinner:
    @pytest.mark.parametrize(
        "winner",
        ["model_a", "A", "a", "response_a", "Response A", "assistant-a", "[[A]]", "A>B", "A>>B", "b < a", "model_a > model_b"],
    )
    def test_a(self, winner: str) -> None:
        assert AB(pair(winner=winner)) == {"prompt": "Q", "chosen": "A", "rejected": "B"}

    @pytest.mark.parametrize("winner", ["model_b", "B", "b", "response_b", "B>A", "A<<B"])
    def test_b(self, winner: str) -> None:
        assert AB(pair(winner=winner)) == {"prompt": "Q", "chosen": "B", "rejected": "A"}

    @pytest.mark.parametrize(
        "winner", ["tie", "Tie (bothbad)", "tied", "draw", "both", "equal", "same", "neither", "A=B", "both bad", "bothbad"]
    )
    def test_ties(self, winner: str) -> None:
        assert AB(pair(winner=winner)) == {"prompt": "Q", "chosen": "A", "rejected": "B", "tie": True}

    @pytest.mark.parametrize(
        "winner",
        [
            *(0, 1, 2, "c", "1", "", "unknown", "ba", 0.7, True, {"x": 1}, [], None, "None", "nan", 10**400, -1, "-1"),
            *(
                "A/B",
                "a, b",
                "a vs. b",
                "A is better than B",
                "not b",
                "worse: b",
                "neither A nor B",
                "tie between A and B",
                "A>A",
            ),
            *("claude-b", "a b", "-b", ">b"),
        ],
    )
    def test_what_is_not_understood_is_refused(self, winner: Any) -> None:
        with pytest.raises(DataError, match=r"'winner'"):
            AB(pair(winner=winner))

    @pytest.mark.parametrize(
        ("label", "chosen"), [(1, "X"), ("1", "X"), (1.0, "X"), ("1.0", "X"), (2, "Y"), ("2", "Y"), ("2.0", "Y")]
    )
    def test_numbers_name_answers_that_are_numbered(self, label: Any, chosen: str) -> None:
        mapping = RowMapping(answers=("output_1", "output_2"), winner="label")
        assert mapping({"output_1": "X", "output_2": "Y", "label": label})["chosen"] == chosen
        zero = RowMapping(answers=("response_0", "response_1"), winner="w")
        assert zero({"response_0": "X", "response_1": "Y", "w": "1.0"})["chosen"] == "Y"

    @pytest.mark.parametrize(
        "label", [-1, -2, 0, 0.1, 0.2, 1.2, "1.2", "claude-2", "gpt-2", "llama-2", "12", "1 2", 3, True, "true"]
    )
    def test_other_numbers_and_names_that_end_in_one_are_refused(self, label: Any) -> None:
        with pytest.raises(DataError, match="scale: signed"):
            RowMapping(answers=("output_1", "output_2"), winner="label")({"output_1": "X", "output_2": "Y", "label": label})

    def test_an_answer_that_is_missing_and_columns_that_contradict(self) -> None:
        with pytest.raises(DataError, match="the answer 'response_a' is null"):
            AB({**pair(winner="b"), "response_a": None, "completion": "zz", "score": 3})
        for name in ("chosen", "rejected", "tie", "margin", "confidence"):
            with pytest.raises(DataError, match=f"there is '{name}', which the mapping of answers sets itself"):
                AB(pair(winner="b", **{name: 1}))

    def test_verdicts_come_first(self) -> None:
        mapping = RowMapping(answers=("response_a", "response_b"), winner="winner", verdicts={"1": "a", "0": "b", "a": "tie"})
        given = (1, True, "1.0", "true", 0, False, 0.0, "0.0")
        assert [mapping(pair(winner=winner))["chosen"] for winner in given] == ["A"] * 4 + ["B"] * 4
        assert mapping(pair(winner="A"))["tie"] is True
        with pytest.raises(DataError, match="one of 1, 0, a is allowed for the answers"):
            mapping(pair(winner="b"))  # which would be, without verdicts
        written = mapping_of(["{answers: [response_0, response_1], winner: w, verdicts: {1.0: a, 0.0: b}}"])
        assert written is not None
        assert written({"response_0": "x", "response_1": "y", "w": 1.0})["chosen"] == "x"

    def test_annotators(self) -> None:
        mapping = RowMapping(answers=("response_a", "response_b"), winner=("x", "y", "z"))
        votes = mapping(pair(x="b", y="a", z="b"))
        assert (votes["chosen"], votes["confidence"]) == ("B", pytest.approx(2 / 3))
        assert mapping(pair(x="b", y=None, z="a"))["tie"] is True
        assert mapping(pair(x="tie", y="a", z=None)) == {"prompt": "Q", "chosen": "A", "rejected": "B", "confidence": 0.75}
        signed = RowMapping(answers=("response_a", "response_b"), winner=("x", "y", "z"), scale="signed")
        mean = signed(pair(x=-1, y=-1, z=3))
        assert (mean["chosen"], mean["margin"]) == ("B", pytest.approx(1 / 3))
        assert signed(pair(x=2, y=None, z=None))["margin"] == signed(pair(x=[2, 2], y=None, z=2))["margin"] == 2.0
        listed = RowMapping(answers=("response_a", "response_b"), winner="votes")
        assert listed(pair(votes=["b", "b", "a"]))["chosen"] == "B"

    def test_one_column_for_each_verdict(self) -> None:
        winner = {"a": "winner_model_a", "b": "winner_model_b", "tie": "winner_tie"}
        mapping = RowMapping(answers=("response_a", "response_b"), winner=winner)
        flags = dict.fromkeys(winner.values(), 0)
        assert mapping(pair(**{**flags, "winner_model_b": 1})) == {"prompt": "Q", "chosen": "B", "rejected": "A"}
        assert mapping(pair(**{**flags, "winner_tie": "1"}))["tie"] is True
        with pytest.raises(DataError, match="one must be true, not 0"):
            mapping(pair(**flags))

    @given(st.floats(0, 1))
    def test_a_probability_and_its_opposite_say_the_same(self, probability: float) -> None:
        mapping = RowMapping(answers=("response_a", "response_b"), winner="winner", scale="probability")
        other = RowMapping(answers=("response_b", "response_a"), winner="winner", scale="probability")
        one, two = mapping(pair(winner=probability)), other(pair(winner=1 - probability))
        if probability == 0.5:
            assert one["tie"] is two["tie"] is True
        elif 1 - probability != 0.5:
            assert one["chosen"] == two["chosen"] == ("A" if probability > 0.5 else "B")
            assert one.get("confidence", 1.0) == pytest.approx(max(probability, 1 - probability))

    def test_a_signed_preference(self) -> None:
        mapping = RowMapping(answers=("response_a", "response_b"), winner="winner", scale="signed")
        assert [mapping(pair(winner=value)).get("margin") for value in (-3, 2.5, 0)] == [3.0, 2.5, None]
        assert [mapping(pair(winner=value))["chosen"] for value in (-3, 2.5)] == ["A", "B"]

    def test_scores_say_which_is_better_where_nothing_else_does(self) -> None:
        mapping = RowMapping(answers=("response_a", "response_b"), scores=("score_a", "score_b"))
        row = mapping(pair(score_a=1, score_b=2.5))
        assert row == {"prompt": "Q", "chosen": "B", "rejected": "A", "chosen_score": 2.5, "rejected_score": 1.0}
        assert mapping(pair(score_a=1, score_b="1"))["tie"] is True
        with pytest.raises(DataError, match="all are null"):
            mapping(pair(score_a=1, score_b=None))


class TestPresets:
    @pytest.mark.parametrize("name", PRESETS)
    def test_each_is_proposed_and_makes_judged_rows(self, name: str) -> None:
        row = RAW[name]
        proposed = proposed_mapping(row)
        assert proposed == name or name in ("topical-chat", "orca-pairs", "split-prompt")
        judged = judgement(PRESETS[name](row))
        assert judged.pairs or judged.labels or judged.ties
        assert [sample.completion_text for sample in judged.samples] == (["good", "bad"] * 2)[: len(judged.samples)]

    def test_an_unknown_shape_gets_a_mapping_of_its_own(self) -> None:
        row = {"question": "Q", "summary_a": "x", "summary_b": "y", "human_preference": "b", "score_a": 1, "score_b": 2}
        proposed = proposed_mapping(row)
        mapping = mapping_of([proposed])
        assert mapping is not None
        expected = {"prompt": "Q", "chosen": "y", "rejected": "x", "chosen_score": 2.0, "rejected_score": 1.0}
        assert mapping(row) == expected

    @pytest.mark.parametrize(
        "row", [{}, {"text": "a"}, {"prompt": "Q", "completion": "a", "label": 1}, {"chosen": "a", "rejected": "b"}]
    )
    def test_other_rows_get_none(self, row: dict[str, Any]) -> None:
        assert proposed_mapping(row) == ""

    def test_the_error_of_a_row_proposes_it(self) -> None:
        with pytest.raises(DataError, match="Map its columns with --map 'arena'"):
            judgement(RAW["arena"])


def conversation(answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": "Q"}, {"role": "assistant", "content": answer}]


def transcript(answer: str) -> str:
    return f"\n\nHuman: Q\n\nAssistant: Why?\n\nHuman: Go on.\n\nAssistant: {answer}"


RAW: dict[str, dict[str, Any]] = {
    "arena": {"conversation_a": conversation("bad"), "conversation_b": conversation("good"), "winner": "model_b", "turn": 1},
    "gsm8k-solutions": {
        "question": "Q",
        "ground_truth": "4",
        **{
            name: {"solution": text, "is_correct": text == "good"}
            for name, text in zip(PRESETS["gsm8k-solutions"].items, ("good", "bad", "good", "bad"), strict=True)
        },
    },
    "hh-rlhf": {"chosen": transcript("good"), "rejected": transcript("bad")},
    "helpsteer2-preference": {"prompt": "Q", "response_1": "good", "response_2": "bad", "preference_strength": -2},
    "helpsteer3": {
        "context": [{"role": "user", "content": "Q"}],
        "response1": "bad",
        "response2": "good",
        "overall_preference": 1,
    },
    "llmbar": {"input": "Q", "output_1": "bad", "output_2": "good", "label": 2},
    "nectar": {
        "prompt": "\n\nHuman: Q\n\nAssistant: ",
        "answers": [{"answer": "good", "model": "x", "rank": 1.0}, {"answer": "bad", "model": "y", "rank": 2.0}],
    },
    "orca-pairs": {"system": "Be brief.", "question": "Q", "chosen": "good", "rejected": "bad"},
    "pandalm": {
        **{"instruction": "Do.", "input": "", "response1": "bad", "response2": "good", "cmp_key": "x_y"},
        **{"annotator1": 2, "annotator2": 0, "annotator3": 2},
    },
    "safe-rlhf": {"prompt": "Q", "response_0": "bad", "response_1": "good", "better_response_id": 1, "safer_response_id": 0},
    "shp": {"history": "Q", "human_ref_A": "good", "human_ref_B": "bad", "labels": 1, "score_A": 52, "score_B": 3},
    "split-prompt": {"prompt": "Q ", "chosen": "Q good", "rejected": "Q bad"},
    "stack-exchange": {"question": "Q", "response_j": "good", "response_k": "bad"},
    "summarize-from-feedback": {"info": {"post": "Q"}, "summaries": [{"text": "good"}, {"text": "bad"}], "choice": 0},
    "topical-chat": {"source": "Hi.", "context": "A fact.", "system_output": "good", "scores": {"Natural": 2.5, "Engaging": 1}},
    "ukp-convarg": {"#id": "arg1_arg2", "label": "a2", "a1": "bad", "a2": "good"},
    "ultrafeedback": {
        "instruction": "Q",
        "completions": [{"response": "good", "overall_score": 8.5}, {"response": "bad", "overall_score": 2}],
    },
    "webgpt": {"question": {"full_text": "Q"}, "answer_0": "bad", "answer_1": "good", "score_0": -0.5, "score_1": 0.5},
}


class TestPrompts:
    @pytest.mark.parametrize(
        ("row", "prompt"),
        [
            ({"instruction": "Do.", "input": "This."}, "Do.\n\nThis."),
            ({"instruction": "Do.", "input": None}, "Do."),
            ({"instruction": "Do."}, "Do."),
            ({"instruction": "", "input": "This."}, "This."),
            ({"instruction": "", "input": ""}, None),
            ({"inptu": "This."}, None),
        ],
    )
    def test_of_several_columns(self, row: dict[str, Any], prompt: str | None) -> None:
        mapping = RowMapping(prompt=("instruction", "input?"))
        if prompt is None:
            with pytest.raises(DataError, match=r"the prompt is empty|there is no column 'instruction'"):
                mapping(row)
        else:
            assert mapping(row)["prompt"] == prompt

    def test_a_summary_of_an_article(self) -> None:
        row = {**RAW["summarize-from-feedback"], "info": {"post": None, "article": "Long."}}
        assert PRESETS["summarize-from-feedback"](row)["prompt"] == "Long."

    @pytest.mark.parametrize(
        "row",
        [
            {"question": "Q", "response_j": "x", "response_k": "y", "label": "k"},
            {"instruction": "I", "input": "i", "output_1": "x", "output_2": "y", "label": 1},
            {"prompt": "Q", "response_1": "x", "response_2": "y", "preference": -1},
        ],
    )
    def test_no_proposal_loses_a_part_of_the_prompt_or_a_verdict(self, row: dict[str, Any]) -> None:
        proposed = proposed_mapping(row)
        mapping = mapping_of([proposed] if proposed else [])
        assert mapping is None or mapping(row) == {"prompt": "I\n\ni", "chosen": "x", "rejected": "y"}


class TestTranscripts:
    def test_what_both_sides_begin_with_is_the_prompt(self) -> None:
        chosen, rejected = judgement(PRESETS["hh-rlhf"](RAW["hh-rlhf"])).samples
        assert chosen.prompt == rejected.prompt
        assert [turn["content"] for turn in chosen.messages] == ["Q", "Why?", "Go on.", "good"]
        assert chosen.completion == [{"role": "assistant", "content": "good"}]

    def test_one_side_that_is_none_is_refused(self) -> None:
        with pytest.raises(DataError, match="'rejected' is not a conversation"):
            PRESETS["hh-rlhf"]({"chosen": transcript("good"), "rejected": "bad"})
        with pytest.raises(DataError, match="each after an empty line"):
            turns_of_transcript("Human: q\nAssistant: a", "chosen")
        windows = turns_of_transcript(transcript("good").replace("\n", "\r\n"), "chosen")
        assert [turn["content"] for turn in windows] == ["Q", "Why?", "Go on.", "good"]

    def test_lines_inside_of_a_turn_stay(self) -> None:
        text = "\n\nHuman: One.\n\nTwo. Human: no.\n\nAssistant: "
        assert turns_of_transcript(text, "prompt") == [{"role": "user", "content": "One.\n\nTwo. Human: no."}]
        assert turns_of_transcript(text, "chosen")[-1] == {"role": "assistant", "content": ""}


class TestWritten:
    def test_later_ones_add_to_earlier_ones(self, tmp_path: Path) -> None:
        (tmp_path / "own.yaml").write_text("preset: arena\nrename: {question: prompt}\nwinner: judged\n", encoding="utf-8")
        mapping = mapping_of([str(tmp_path / "own.yaml"), "topic=section"])
        assert mapping is not None
        assert mapping.settings == {
            "rename": {"question": "prompt", "topic": "section"},
            "answers": ["conversation_a", "conversation_b"],
            "winner": "judged",
        }
        assert mapping_of([]) is None

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("areena", "Did you mean 'arena'?"),
            ("{answers: [a, b]}", "and `winner` or `scores`"),
            ("{winner: x}", "needs `answers`"),
            ("{rename: [", "is not readable YAML"),
            ("{renam: {a: b}}", "has 'renam'. Did you mean 'rename'?"),
            ("{preset: nix}", "names the preset 'nix'"),
            ("none.yaml", "There is no file 'none.yaml'"),
            ("{rename: {a: prompt, b: prompt}}", "makes 'prompt' of two columns"),
            ("{answers: [a, b], winner: x, verdicts: {1: c}}", "`verdicts` is 'c'"),
            ("{items: x}", "needs `item`, which names the columns of an item"),
            ("{preset: [x]}", "names the preset ['x']"),
            ("{rename: [a]}", "`rename` is ['a']"),
            ("{answers: [a, b], winner: {A: x, B: y}}", "has columns for a, b and tie, not for A, B"),
            ("{transcripts: 3}", "`transcripts` is 3"),
            ("{answers: 3, winner: x}", "`answers` is 3"),
        ],
    )
    def test_what_is_none(self, text: str, message: str) -> None:
        with pytest.raises(SpecError) as told:
            mapping_of([text])
        assert message.lower() in str(told.value).lower()

    def test_a_file_beside_the_data(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        path = tmp_path / "pairs.jsonl"
        path.write_text(json.dumps(pair(winner="b")) + "\n", encoding="utf-8")
        (tmp_path / "pairs.map.yaml").write_text("answers: [response_a, response_b]\nwinner: winner\n", encoding="utf-8")
        with caplog.at_level(logging.WARNING):
            assert [row["chosen"] for row in read_rows(str(path))] == ["B"]
        assert "pairs.map.yaml" in caplog.text
        (tmp_path / "pairs.scored.jsonl").write_text('{"chosen": "x"}\n', encoding="utf-8")
        assert list(read_rows(str(tmp_path / "pairs.scored.jsonl"))) == [{"chosen": "x"}]  # which was mapped already

    def test_it_does_not_matter_how_the_file_is_reached(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        folder = tmp_path / "data"
        folder.mkdir()
        row = json.dumps({"question": "Q", "chosen": "a", "rejected": "b"}) + "\n"
        (folder / "train.jsonl").write_text(row, encoding="utf-8")
        (folder / "train.map.yaml").write_text("rename: {question: prompt}\n", encoding="utf-8")
        (tmp_path / "link.jsonl").symlink_to(folder / "train.jsonl")
        for source in (folder, folder / "train.jsonl", tmp_path / "link.jsonl"):
            assert [mapped["prompt"] for mapped in read_rows(str(source))] == ["Q"]
            assert [json.loads(stored["row_json"])["prompt"] for stored in reward_dataset(str(source))] == ["Q"]
        (folder / "train.map.yaml").rename(tmp_path / "data.map.yaml")
        assert [mapped["prompt"] for mapped in read_rows(str(folder))] == ["Q"]
        list(read_rows(str(folder), mapping=RowMapping(rename={"question": "prompt"})))
        assert "data.map.yaml is not read, because another mapping was given" in caplog.text

    def test_a_row_that_cannot_be_mapped_is_named(self, tmp_path: Path) -> None:
        path = tmp_path / "pairs.jsonl"
        path.write_text("".join(json.dumps(pair(winner=winner)) + "\n" for winner in ("a", "x")), encoding="utf-8")
        with pytest.raises(DataError, match=r"pairs.jsonl, row 2: 'winner' is 'x'; .*verdicts: {x: a}"):
            list(read_rows(str(path), mapping=AB))
        refused: list[DataError] = []
        assert len(list(read_rows(str(path), mapping=AB, on_bad_line=refused.append))) == len(refused) == 1


@pytest.mark.parametrize(
    ("column", "ignored"),
    [
        *((name, True) for name in ("winner", "label", "labels", "preference", "preferred_response", "better_response_id")),
        *((name, True) for name in ("choice", "verdict", "overall_preference", "annotator1", "is_tie", "winner_model_a")),
        *(
            (name, False)
            for name in ("tie", "margin", "weight", "id", "topic", "votes", "chosen_score", "score_chosen", "model")
        ),
    ],
)
def test_columns_that_look_like_a_verdict(column: str, ignored: bool) -> None:
    assert bool(ignored_verdicts({"chosen": "a", "rejected": "b", column: 1})) == ignored


@pytest.mark.parametrize("answers", [{"completions": ["a", "b"]}, {"completion": "a"}])
@pytest.mark.parametrize("column", ["scores", "score", "ranks", "labels", "label", "best"])
def test_a_verdict_on_other_completions_is_ignored_beside_a_pair(answers: dict[str, Any], column: str) -> None:
    pair = {"chosen": "a", "rejected": "b"}
    assert ignored_verdicts({**pair, **answers, column: 1}) == [column]
    assert ignored_verdicts({**pair, **answers, column: None}) == []
    assert ignored_verdicts({**pair, **answers}) == []


@pytest.mark.parametrize(
    ("source", "problem"), [("", "path of the data is empty"), (" ", "is empty"), ("a\0b", "contains a null character")]
)
def test_a_path_that_cannot_be_is_refused(source: str, problem: str) -> None:
    for read in (mapping_beside, lambda path: next(read_rows(path)), reward_dataset):
        with pytest.raises(DataError, match=problem):
            read(source)


def test_the_current_folder_is_a_folder_of_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "train.jsonl").write_text('{"prompt": "Q"}\n', encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert mapping_beside(".") is mapping_beside("/") is None
    assert list(read_rows(".")) == [{"prompt": "Q"}]
