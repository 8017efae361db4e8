"""Rendering: the token ids of a sample are those that TRL trains on, whoever asks."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import pytest
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from trl import RewardConfig, RewardTrainer
from trl.data_utils import _tokenize

import rm_plugins as rm
from rm_plugins.errors import DataError, ModelError, ScoringError, SpecError
from rm_plugins.rendering.render import Renderer
from rm_plugins.rendering.rendering import Rendering
from rm_plugins.samples import RenderedSample
from rm_plugins.wire import sample_from_json, sample_to_json
from tests.conftest import TEMPLATE, make_tokenizer

TOOLS = [{"type": "function", "function": {"name": "add", "description": "Adds.", "parameters": {"type": "object"}}}]
TEXTS = [
    ("Q: 2+2?\nA:", " 4", " five"),
    ("", "", "x"),
    ("ends in EOS<|end|>", "", "closed already<|end|>"),
    ("naïve 東京 🙂 ", "\n", "  spaces  "),
]
TURNS = [
    ([{"role": "user", "content": "2+2?"}], "4", ""),
    ([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Is the sea salty?"}], "Yes.", "naïve 🙂\n"),
    (
        [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}],
        "d",
        "<|end|>",
    ),
]


def renderer(tokenizer: Any, **settings: Any) -> Renderer:
    default = Rendering.default(tokenizer)
    return Renderer(tokenizer, Rendering(**{**{name: getattr(default, name) for name in default.__slots__}, **settings}))


def answer(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def trained_ids(tokenizer: Any, rows: Sequence[dict[str, Any]], tmp_path: Path) -> list[list[int]]:
    """What TRL's RewardTrainer trains on: chosen and rejected of each row."""
    config = RewardConfig(output_dir=str(tmp_path), max_length=None, bf16=False, report_to="none")
    # The method reads nothing of its trainer, so that no model is needed.
    dataset = RewardTrainer._prepare_dataset(cast(Any, None), Dataset.from_list(list(rows)), tokenizer, config, "train")
    return [ids for row in dataset for ids in (row["chosen_ids"], row["rejected_ids"])]


BOS_TEMPLATE = "{{ bos_token }}" + TEMPLATE
TOKENIZERS: dict[str, Callable[[], Any]] = {
    "plain": make_tokenizer,
    "pad is EOS": lambda: make_tokenizer(pad="<|end|>"),
    "adds BOS": lambda: make_tokenizer(adds_bos=True),
    "adds BOS, as its template does": lambda: make_tokenizer(adds_bos=True, chat_template=BOS_TEMPLATE),
}


@pytest.mark.parametrize("kind", TOKENIZERS)
class TestEqualsTraining:
    def test_texts(self, kind: str, tmp_path: Path) -> None:
        tokenizer = TOKENIZERS[kind]()
        rows = [{"prompt": prompt, "chosen": chosen, "rejected": rejected} for prompt, chosen, rejected in TEXTS]
        samples = [rm.Sample(prompt, completion) for prompt, *both in TEXTS for completion in both]
        ids, truncated = renderer(tokenizer).token_ids(samples)
        assert ids == trained_ids(tokenizer, rows, tmp_path)
        assert truncated == 0

    def test_conversations(self, kind: str, tmp_path: Path) -> None:
        tokenizer = TOKENIZERS[kind]()
        rows = [
            {"prompt": prompt, "chosen": answer(chosen), "rejected": answer(rejected)} for prompt, chosen, rejected in TURNS
        ]
        samples = [rm.Sample(prompt, completion) for prompt, *both in TURNS for completion in both]
        assert renderer(tokenizer).token_ids(samples)[0] == trained_ids(tokenizer, rows, tmp_path)

    def test_conversations_with_tools_and_template_arguments(self, kind: str, tmp_path: Path) -> None:
        tokenizer = TOKENIZERS[kind]()
        prompt, chosen, rejected = TURNS[0]
        rows, samples = [], []
        for columns in ({"tools": json.dumps(TOOLS), "chat_template_kwargs": {"closing": "That is all."}},):
            rows.append({"prompt": prompt, "chosen": answer(chosen), "rejected": answer(rejected), **columns})
            samples += [rm.Sample(prompt, completion, columns) for completion in (chosen, rejected)]
        ours = renderer(tokenizer)
        assert ours.token_ids(samples)[0] == trained_ids(tokenizer, rows, tmp_path)
        assert '"name": "add"' in ours.text(samples[0])
        assert ours.text(samples[0]).endswith("That is all.")

    @given(prompt=st.text(max_size=30), completion=st.text(max_size=30))
    def test_any_text(self, kind: str, prompt: str, completion: str) -> None:
        tokenizer = _tokenizer(kind)
        eos = "" if completion.endswith("<|end|>") else "<|end|>"
        expected = _tokenize(tokenizer, prompt + completion + eos)["input_ids"]
        assert renderer(tokenizer).token_ids([rm.Sample(prompt, completion)])[0] == [expected]

    @given(turns=st.lists(st.text(max_size=20), max_size=3), completion=st.text(max_size=20))
    def test_any_conversation(self, kind: str, turns: list[str], completion: str) -> None:
        tokenizer = _tokenizer(kind)
        sample = rm.Sample([{"role": "user", "content": turn} for turn in turns], completion)
        expected = _tokenize(tokenizer, sample.messages)["input_ids"]
        assert renderer(tokenizer).token_ids([sample])[0] == [expected]


_made: dict[str, Any] = {}


def _tokenizer(kind: str) -> Any:
    if kind not in _made:
        _made[kind] = TOKENIZERS[kind]()
    return _made[kind]


class TestText:
    def test_anyone_who_tokenizes_the_text_gets_the_same_ids(self) -> None:
        samples = [rm.Sample("Q", "4"), rm.Sample([{"role": "user", "content": "Q"}], "4")]
        for kind in ("plain", "adds BOS, as its template does"):
            tokenizer = TOKENIZERS[kind]()
            ours = renderer(tokenizer)
            assert [tokenizer(ours.text(sample))["input_ids"] for sample in samples] == ours.token_ids(samples)[0]

    def test_a_text_is_closed_once(self, tiny_tokenizer: Any) -> None:
        ours = renderer(tiny_tokenizer)
        assert ours.text(rm.Sample("a", "b")) == ours.text(rm.Sample("a", "b<|end|>")) == "ab<|end|>"
        assert renderer(tiny_tokenizer, append_eos=False).text(rm.Sample("a", "b")) == "ab"

    def test_messages_without_a_template_become_paragraphs(self) -> None:
        sample = rm.Sample([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2+2?"}], "4")
        paragraphs = "System: Be brief.\n\nUser: 2+2?\n\nAssistant: 4<|end|>"
        assert renderer(make_tokenizer(chat_template=None)).text(sample) == paragraphs
        assert renderer(make_tokenizer(), chat_template="plain").text(sample) == paragraphs

    def test_a_paragraph_shows_tool_calls(self) -> None:
        call = {"role": "assistant", "content": None, "tool_calls": [{"name": "add", "arguments": {"a": "é"}}]}
        text = renderer(make_tokenizer(), chat_template="plain").text(rm.Sample([], [call]))
        assert text == 'Assistant: [{"name": "add", "arguments": {"a": "é"}}]<|end|>'

    def test_tools_may_be_json_or_a_list(self, tiny_tokenizer: Any) -> None:
        ours = renderer(tiny_tokenizer)
        listed, written = (ours.text(rm.Sample([], "a", {"tools": tools})) for tools in (TOOLS, json.dumps(TOOLS)))
        assert listed == written
        assert listed.startswith("<|start|>tools\n")
        assert ours.text(rm.Sample([], "a", {"tools": None})) == ours.text(rm.Sample([], "a"))

    def test_a_samples_template_arguments_win_over_the_renderings(self, tiny_tokenizer: Any) -> None:
        ours = renderer(tiny_tokenizer, template_kwargs={"closing": "A"})
        assert ours.text(rm.Sample([], "x")).endswith("A")
        assert ours.text(rm.Sample([], "x", {"chat_template_kwargs": {"closing": "B"}})).endswith("B")

    def test_a_template_that_refuses_is_an_error_of_the_data(self) -> None:
        tokenizer = make_tokenizer(chat_template="{{ raise_exception('roles must alternate') }}")
        with pytest.raises(DataError, match="The chat template refused the conversation: roles must alternate"):
            renderer(tokenizer).text(rm.Sample([], "a"))


class TestDefault:
    def test_a_decoders_tokenizer(self, tiny_tokenizer: Any) -> None:
        tiny_tokenizer.model_max_length = 64
        assert Rendering.default(tiny_tokenizer) == Rendering("tokenizer", append_eos=True, max_length=64)
        assert Rendering.default(tiny_tokenizer, 32).max_length == 32

    def test_without_any_limit(self, tiny_tokenizer: Any) -> None:
        assert Rendering.default(tiny_tokenizer).max_length is None

    def test_a_tokenizer_that_closes_texts_itself(self, minilm_path: Path) -> None:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(minilm_path)
        assert Rendering.default(tokenizer, 512) == Rendering("plain", append_eos=False, max_length=512)
        (ids,), _ = renderer(tokenizer).token_ids([rm.Sample("a ", "b")])
        assert ids == [tokenizer.cls_token_id, *tokenizer.convert_tokens_to_ids(["a", "b"]), tokenizer.sep_token_id]

    def test_what_a_rendering_needs_the_tokenizer_must_have(self) -> None:
        tokenizer = make_tokenizer(chat_template=None)
        with pytest.raises(ModelError, match="needs the tokenizer's chat template, but the tokenizer has none"):
            renderer(tokenizer, chat_template="tokenizer")
        tokenizer.eos_token = None
        with pytest.raises(ModelError, match="ends texts with the tokenizer's EOS token, but the tokenizer has none"):
            renderer(tokenizer, append_eos=True)

    @pytest.mark.parametrize("max_length", [0, -1])
    def test_a_limit_must_leave_something(self, max_length: int) -> None:
        with pytest.raises(SpecError, match=f"max_length must be at least 1, not {max_length}"):
            Rendering("plain", append_eos=True, max_length=max_length)


class TestTruncation:
    def test_the_end_is_kept_and_counted(self, tiny_tokenizer: Any) -> None:
        samples = [rm.Sample("The sea is salty because", " rivers"), rm.Sample("a", "b")]
        whole, _ = renderer(tiny_tokenizer).token_ids(samples)
        ids, truncated = renderer(tiny_tokenizer, max_length=4).token_ids(samples)
        assert ids == [whole[0][-4:], whole[1]]
        assert truncated == 1

    def test_a_row_of_exactly_the_limit_is_whole(self, tiny_tokenizer: Any) -> None:
        (whole,), _ = renderer(tiny_tokenizer).token_ids([rm.Sample("abc", "def")])
        assert renderer(tiny_tokenizer, max_length=len(whole)).token_ids([rm.Sample("abc", "def")]) == ([whole], 0)

    def test_the_leading_special_token_is_kept(self) -> None:
        tokenizer = make_tokenizer(adds_bos=True, chat_template=BOS_TEMPLATE)
        samples = [rm.Sample("The sea is salty", " rivers"), rm.Sample([{"role": "user", "content": "The sea"}], "x")]
        whole, _ = renderer(tokenizer).token_ids(samples)
        ids, _ = renderer(tokenizer, max_length=4).token_ids(samples)
        assert ids == [[tokenizer.bos_token_id, *row[-3:]] for row in whole]
        assert renderer(tokenizer, max_length=1).token_ids(samples)[0] == [row[-1:] for row in whole]

    def test_a_refused_row_is_named(self, tiny_tokenizer: Any) -> None:
        samples = [rm.Sample("a", "b"), rm.Sample("The sea is salty because", " rivers")]
        with pytest.raises(ScoringError, match=r"1 of 2 samples are longer than max_length=4 tokens \(first: item 1") as caught:
            renderer(tiny_tokenizer, max_length=4, truncation="error").token_ids(samples)
        assert caught.value.rows == frozenset([1])


class TestCompletionStarts:
    """Where the tokens of a completion begin."""

    @pytest.mark.parametrize("template", [TEMPLATE, None], ids=["template", "paragraphs"])
    @pytest.mark.parametrize("turns", [turns for turns, *_ in TURNS], ids=len)
    def test_what_is_behind_is_the_completion(self, template: str | None, turns: list[dict[str, str]]) -> None:
        ours = renderer(make_tokenizer(chat_template=template))
        samples = [rm.Sample(turns, "Yes, it is."), rm.Sample(turns, "No."), rm.Sample("Q: 2+2?", " five")]
        ids = ours.untruncated_ids(samples)
        starts = ours.completion_starts(samples, ids)
        behind = [ours.tokenizer.decode(row[start:]) for row, start in zip(ids, starts, strict=True)]
        opening = "" if template else "Assistant: "
        closing = "<|end|>\n" if template else "<|end|>"
        assert behind == [f"{opening}Yes, it is.{closing}", f"{opening}No.{closing}", " five<|end|>"]

    def test_without_a_prompt_it_is_everything(self, tiny_tokenizer: Any) -> None:
        ours = renderer(tiny_tokenizer)
        samples = [rm.Sample("", "Yes."), rm.Sample([], "Yes.")]
        assert ours.completion_starts(samples, ours.untruncated_ids(samples)) == [0, 0]

    def test_a_template_that_refuses_a_prompt_alone(self) -> None:
        template = "{% if messages[-1]['role'] != 'assistant' %}{{ raise_exception('no answer') }}{% endif %}" + TEMPLATE
        ours = renderer(make_tokenizer(chat_template=template))
        samples = [rm.Sample([{"role": "user", "content": "2+2?"}], "4")]
        assert ours.completion_starts(samples, ours.untruncated_ids(samples)) == [0]


def test_nothing_at_all_still_has_a_token_to_be_scored_at() -> None:
    tokenizer = make_tokenizer()
    assert renderer(tokenizer, append_eos=False).token_ids([rm.Sample("", "")])[0] == [[tokenizer.eos_token_id]]
    tokenizer.eos_token = None
    assert renderer(tokenizer).token_ids([rm.Sample("", "")])[0] == [[tokenizer.pad_token_id]]


def test_no_samples_have_no_ids(tiny_tokenizer: Any) -> None:
    assert renderer(tiny_tokenizer).token_ids([]) == ([], 0)


class TestRenderedAlready:
    def test_text_is_not_rendered_again(self) -> None:
        tokenizer = make_tokenizer(adds_bos=True)
        ours = renderer(tokenizer, append_eos=True)
        text = "<|bos|><|start|>user\n2+2?<|end|>\n"
        complete, bare = RenderedSample.of(text, add_special_tokens=False), RenderedSample.of("2+2?")
        assert ours.untruncated_ids([bare, complete, rm.Sample("2+2?", "")]) == [
            tokenizer("2+2?")["input_ids"],
            tokenizer(text, add_special_tokens=False)["input_ids"],
            tokenizer("2+2?<|end|>")["input_ids"],
        ]
        assert ours.text(complete) == text

    def test_token_ids_are_what_the_model_is_given(self) -> None:
        tokenizer = make_tokenizer()
        ids = tokenizer("2+2? 4")["input_ids"]
        sample = RenderedSample.of(ids)
        assert renderer(tokenizer).untruncated_ids([sample]) == [ids]
        assert renderer(tokenizer).text(sample) == "2+2? 4"

    @pytest.mark.parametrize("wrong", [[], [1, -1], [True], [1.0], ["1"]])
    def test_what_is_no_token_id_is_refused(self, wrong: Any) -> None:
        with pytest.raises(DataError, match="Token ids must be a non-empty list of integers"):
            RenderedSample.of(wrong)

    @pytest.mark.parametrize(
        "sample",
        [RenderedSample.of("text"), RenderedSample.of("<|bos|>text", add_special_tokens=False), RenderedSample.of([1, 2])],
    )
    def test_it_survives_the_wire(self, sample: RenderedSample) -> None:
        assert sample_from_json(json.loads(json.dumps(sample_to_json(sample)))) == sample

    @pytest.mark.parametrize(
        "wrong", [{"text": 1}, {"text": "a", "prompt": "b"}, {"token_ids": "12"}, {"add_special_tokens": True}]
    )
    def test_a_half_form_is_refused(self, wrong: dict[str, Any]) -> None:
        with pytest.raises(DataError):
            sample_from_json(wrong)
