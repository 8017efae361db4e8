"""The server's page, in a real browser: what a person sees, by mouse and by keyboard, and what the page asks of the network."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

import rm_plugins as rm
from rm_plugins.server import Settings, create_app
from tests.servers import serving

if TYPE_CHECKING:
    pass
from tests.page.conftest import ENSEMBLE, FINGERPRINT, Desk, playwright, rendering


class TestRanking:
    def test_the_best_comes_first_with_its_rank_its_number_and_its_score(self, desk: Desk) -> None:
        desk.open(says=ENSEMBLE).score("no", "blue", "red")
        assert desk.texts(".row .rank") == ["Rank 1", "Rank 2", "Rank 3"]
        assert desk.texts(".row h3") == ["Completion 2", "Completion 3", "Completion 1"]
        assert desk.texts(".row .score data") == ["2.000", "0.500", "−2.000"]
        assert desk.texts(".row .text") == ["blue", "red", "no"]
        assert desk.texts("#status") == ["Completion 2 is best, with 2.000."]
        assert re.fullmatch(r"3 completions · [\d,]+ ms · 36 tokens · 1 truncated", desk.texts("#summary")[0])
        assert (desk.texts("#model"), desk.texts("#fingerprint")) == (["helpful-5"], [FINGERPRINT[:12]])

    def test_equal_scores_share_a_rank(self, desk: Desk) -> None:
        desk.open(says={"a": [1.0], "b": [2.0], "c": [1.0], "d": [0.25]}).score("a", "b", "c", "d")
        assert desk.texts(".row .rank") == ["Rank 1", "Rank 2", "Rank 2", "Rank 4"]
        desk.score("b", "b", "a", "c")
        assert desk.texts("#status") == ["Completions 1 and 2 are best, with 2.000."]
        desk.score("b", "b", "b", "b")
        assert desk.texts("#status") == ["4 completions are best, with 2.000."]

    def test_bars_begin_at_the_zero_line_on_one_scale(self, desk: Desk) -> None:
        desk.open(says=ENSEMBLE).score("no", "blue", "red")
        boxes = desk.run(
            """() => [...document.querySelectorAll('.chart')].map((chart) => {
                const side = (found) => { const box = found.getBoundingClientRect(); return [box.left, box.right]; };
                return {zero: side(chart.querySelector('.zero'))[0], bar: side(chart.querySelector('rect'))};
            })"""
        )
        zero = boxes[0]["zero"]
        assert {box["zero"] for box in boxes} == {zero}
        (best, middle, worst) = (box["bar"] for box in boxes)
        assert [best[0], middle[0], worst[1]] == pytest.approx([zero] * 3, abs=1)
        unit = (best[1] - zero) / 2.0
        assert [middle[1] - zero, zero - worst[0]] == pytest.approx([0.5 * unit, 2.0 * unit], abs=1)

    def test_each_members_score_is_a_mark_and_a_number(self, desk: Desk) -> None:
        desk.open(says=ENSEMBLE).score("no", "blue", "red")
        marks = desk.page.locator(".row").first.locator("circle title").all_text_contents()
        assert marks == ["member 0: 1.000", "member 1: 2.000", "member 2: 3.000"]
        assert desk.page.locator(".chart").first.get_attribute("aria-label") == (
            "Score 2.000; member 0 1.000, member 1 2.000, member 2 3.000; spread 0.816. On a scale from −4.000 to 3.000."
        )
        assert desk.texts(".row .spread") == ["spread 0.816", "spread 0.000", "spread 1.414"]
        assert desk.texts("table th[scope=col]") == ["Completion", "score", "member/0", "member/1", "member/2", "std"]
        assert desk.texts("table tr:nth-child(3) td") == ["−2.000", "−1.000", "−1.000", "−4.000", "1.414"]

    def test_without_members_there_is_no_mark_and_no_table(self, desk: Desk) -> None:
        desk.open(says={"a": [12_345_678.0], "b": [0.00012]}).score("a", "b")
        assert desk.texts(".row .score data") == ["1.23e+7", "1.20e−4"]
        assert (desk.page.locator("circle").count(), desk.page.locator("table").count()) == (0, 0)

    def test_what_has_no_score_says_why_and_shows_no_number(self, desk: Desk) -> None:
        desk.open(says={"bad": [-3.0], "odd": None, "long": "it has 9,000 tokens"}).score("odd", "long", "bad")
        assert desk.texts(".row h3") == ["Completion 3", "Completion 1", "Completion 2"]
        assert desk.texts(".row .rank") == ["Rank 1", "Not ranked", "Not ranked"]
        assert desk.texts(".row .score") == ["Score −3.000", "Abstained", "Failed"]
        assert desk.texts(".row .why") == [
            "The reward gave this completion no score, which is not a score of 0.",
            "It could not be scored: it has 9,000 tokens",
        ]
        assert desk.page.locator(".chart").count() == 1
        assert desk.texts("#status") == ["Completion 3 is best, with −3.000. 2 completions got no score."]

    def test_where_none_has_a_score_nobody_is_best(self, desk: Desk) -> None:
        desk.open(says={"a": None, "b": None}).score("a", "b")
        assert desk.texts("#status") == ["No score for 2 completions."]
        assert desk.page.locator(".axis, .chart").count() == 0


class TestWhatTheModelSaw:
    def test_tokens_show_their_white_space_and_special_ones_stand_out(self, desk: Desk) -> None:
        tokens = ["<|user|>", "\n", "Name", " a  ", "\tcolour\u200b", "</s>"]
        desk.open(renderings=[rendering("rm-a", tokens, truncated=True)]).score("blue", "red")
        assert desk.texts(".row:first-child summary")[0] == "Model input 6 tokens truncated"
        assert desk.page.locator(".token").count() == 0  # only made when they are asked for
        desk.look()
        assert desk.texts(".tokens li") == ["<|user|>", "↵", "Name", "·a··", "→colourU+200B", "</s>"]
        assert desk.texts(".tokens strong") == ["<|user|>", "</s>"]
        assert desk.page.locator(".tokens .token").first.get_attribute("title") == "special token, id 100"
        assert desk.texts(".facts-line")[0].startswith("rm-a saw 6 tokens. truncated The text was longer than")
        desk.page.click("text=The text before it was cut")
        assert desk.page.locator(".plain").text_content() == "".join(tokens)

    def test_there_is_a_tab_for_each_way_of_rendering(self, desk: Desk) -> None:
        renderings = [rendering("rm-a", ["x"], path="members[0]"), rendering("rm-c", ["<s>", "x"], path="members[2]")]
        desk.open(renderings=renderings).score("x", "y")
        assert desk.texts(".row:first-child summary")[0] == "Model input 1 to 2 tokens"
        desk.look()
        assert desk.texts("[role=tab]") == ["rm-a (members[0])", "rm-c (members[2])"]
        shown = desk.page.locator("[role=tabpanel]:visible .facts-line")
        same = "Models that were given the same are shown once."
        playwright.expect(shown).to_have_text(f"rm-a (members[0]) saw 1 token. {same}")
        desk.page.locator("[role=tab]").first.press("ArrowRight")
        assert desk.focus.startswith("rendering-") and desk.texts("[role=tab][aria-selected=true]") == ["rm-c (members[2])"]
        playwright.expect(shown).to_have_text(f"rm-c (members[2]) saw 2 tokens. {same}")

    def test_tokens_of_every_kind_of_vocabulary_are_read_back_into_text(self, desk: Desk) -> None:
        cases: dict[str, tuple[list[str | None], list[str]]] = {
            "byte-level": (["ĠcafÃ©", "Ċ", "ĠðŁ", "ĳ", "µ"], [" café", "\n", " �", "�", "�"]),
            "byte-level, cut in the middle of a character": (["µ", "Â©", "ĠðŁ"], ["�", "©", " �"]),
            "SentencePiece": (["<s>", "▁café", "<0xC3>", "<0x0A>", "▁你"], ["<s>", " café", "�", "\n", " 你"]),
            "WordPiece": (["[CLS]", "cafés", "##ing", "你"], ["[CLS]", "cafés", "##ing", "你"]),
            "ids without a name": ([None, "", "x"], ["", "", "x"]),
        }
        read = (
            "async (tokens) => (await import('./page/pieces.js')).pieces(tokens, (token) => /^[<[][a-z]+[>\\]]$/i.test(token))"
        )
        desk.open()
        for case, (tokens, texts) in cases.items():
            assert desk.run(read, tokens) == texts, case

    def test_many_tokens_come_in_portions(self, desk: Desk) -> None:
        desk.open(renderings=[rendering("rm-a", ["x"] * 4_500)]).score("x", "y")
        desk.look()
        counts = [desk.page.locator(".tokens li").count()]
        for _ in range(2):
            desk.page.click("text=/Show the next/")
            counts.append(desk.page.locator(".tokens li").count())
        assert counts == [2_000, 4_000, 4_500]
        assert desk.page.locator("text=/Show the next/").count() == 0

    def test_a_reward_without_a_model_says_so(self, desk: Desk) -> None:
        desk.open(renderings=[]).score("x", "y")
        assert desk.texts("#ranking > p.aside") == ["No part of this reward is a model, so there are no tokens to show."]


class TestForm:
    def test_a_conversation_is_sent_as_turns(self, desk: Desk) -> None:
        desk.open().page.fill("#system", "Be brief.")
        desk.score("blue", "")
        turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Name a colour."}]
        assert desk.fake.asked == [
            [{"prompt": turns, "completion": [{"role": "assistant", "content": text}]} for text in ("blue", "")]
        ]
        assert desk.texts(".row .text") == ["blue", "(empty)"]

    def test_plain_text_is_sent_as_it_is(self, desk: Desk) -> None:
        desk.open().page.check("input[value=plain]")
        assert desk.page.locator("#system").is_hidden()
        desk.score(" blue\n", "\nred")
        assert desk.fake.asked == [[{"prompt": "Name a colour.", "completion": text} for text in (" blue\n", "\nred")]]

    def test_completions_are_added_and_removed_and_old_scores_say_so(self, desk: Desk) -> None:
        desk.open().score("a", "b", "c")
        assert desk.page.locator("#stale").is_hidden() and desk.page.locator("#key-form").is_hidden()
        for prompt, is_stale in (("Name a city.", True), ("Name a colour.", False)):
            desk.page.fill("#prompt", prompt)
            assert desk.page.locator("#stale").is_visible() == is_stale
        desk.page.click("text=Remove >> nth=1")
        assert (desk.focus, desk.page.input_value("#completion-2")) == ("completion-2", "c")
        assert desk.texts(".completion label") == ["Completion 1", "Completion 2"]
        assert desk.page.locator("#stale").is_visible()
        desk.page.click("text=Remove >> nth=0")
        assert desk.page.locator(".completion button").is_hidden()  # one must stay

    def test_nothing_written_is_nothing_to_score(self, desk: Desk) -> None:
        desk.open().page.click("#score")
        assert desk.texts("#error") == ["There is nothing to score: write at least one completion."]
        assert (desk.focus, desk.fake.asked) == ("completion-1", [])

    def test_there_are_no_more_completions_than_the_server_takes(self, desk: Desk) -> None:
        desk.open()
        playwright.expect(desk.page.locator("#model")).to_have_text("helpful-5")
        desk.run("for (let more = 0; more < 70; more++) document.getElementById('add').click()")
        assert (desk.page.locator(".completion").count(), desk.texts("#add")) == (60, ["The server takes 60 at once"])

    def test_the_fingerprint_is_copied_whole(self, open_desk: Callable[..., Desk]) -> None:
        desk = open_desk(permissions=["clipboard-read", "clipboard-write"])
        desk.open().page.click("#copy")
        playwright.expect(desk.page.locator("#copy")).to_have_text("Copied")
        assert desk.run("navigator.clipboard.readText()") == FINGERPRINT
        desk.run("Object.defineProperty(navigator, 'clipboard', {value: undefined})")  # as where there is no TLS
        desk.page.click("#copy")
        assert desk.run("getSelection().toString()") == FINGERPRINT

    def test_texts_stay_on_the_page(self, desk: Desk) -> None:
        desk.open().score("secret", "b")
        assert (desk.page.url, desk.page.context.cookies()) == (f"{desk.url}/", [])
        assert desk.run("[localStorage.length, sessionStorage.length]") == [0, 0]


def test_it_shows_what_the_server_says_of_a_real_reward(
    open_desk: Callable[..., Desk], tiny_decoder: Callable[..., Path]
) -> None:
    model = str(tiny_decoder())
    spec = {"provider": "ensemble", "members": [model, {"provider": "function", "function": lengths}]}
    texts = ["Ça va, 👩‍🚀 !", " It is blue."]
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Name a colour."}]
    samples = [rm.Sample(turns, text) for text in texts]
    scores = rm.load(spec).score(samples)
    with serving(create_app(rm.load(spec), Settings(api_keys=["open sesame"]))) as url:
        desk = open_desk(url=url).open()
        playwright.expect(desk.page.locator("#key-form")).to_be_visible()
        desk.page.keyboard.type("open sesame\n")
        desk.page.fill("#system", "Be brief.")
        desk.score(*texts).look()
        order = np.argsort(-scores.values)
        assert desk.texts(".row .text") == [texts[row].strip() for row in order]
        for name, values in {"score": scores.values, **scores.columns}.items():
            place = desk.texts("table th[scope=col]").index(name)
            shown = [float(text.replace("−", "-")) for text in desk.texts(f"table td:nth-child({place + 1})")]
            assert shown == pytest.approx(values[order], abs=6e-4)
        text = rm.load(model).render(samples[order[0]])
        assert desk.page.locator(".plain").first.text_content() == text
        spoken = "".join(desk.texts(".tokens li")).replace("·", " ").replace("↵", "\n")
        assert re.sub("[^ -~\n]", "", spoken) == re.sub("[^ -~\n]", "", text)
        assert desk.texts(".tokens strong")[0] == "<|start|>"


def lengths(samples: Sequence[rm.Sample]) -> list[float]:
    return [float(len(sample.messages[-1]["content"])) for sample in samples]
