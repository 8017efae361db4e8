"""Tokenizing a shared beginning once gives the ids of tokenizing every text whole."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from rm_plugins.rendering.tokenize import TemplatedTextTokenizer
from tests.conftest import CORPUS, make_tokenizer

PROMPT = "<|start|>user\nName a colour, and say why  <|end|>\n<|start|>assistant\n"
GROUPS = [
    *(f"{PROMPT}{completion}<|end|>\n" for completion in (" blue", "blue", "", "  ", "red <|start|> red", "blue")),
    "no special token at all",
    *(f"<|start|>user\nCount.<|end|>\n<|start|>assistant\n{number}" for number in ("one", "on", "two")),
    "<|start|>",
    "",
]


def metaspace_tokenizer(scheme: str) -> Any:
    """A tokenizer that marks a text's beginning, as those of Llama and Mistral do."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme=scheme)
    tokenizer.normalizer = normalizers.NFKC()
    special = ["<unk>", "<|end|>", "<|start|>"]
    tokenizer.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=300, special_tokens=special, show_progress=False))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="<|end|>")


TOKENIZERS: dict[str, Callable[[], Any]] = {
    "byte level": make_tokenizer,
    "metaspace before the first word": lambda: metaspace_tokenizer("first"),
    "metaspace before every part": lambda: metaspace_tokenizer("always"),
}


@pytest.fixture(params=TOKENIZERS)
def tokenizer(request: pytest.FixtureRequest) -> Any:
    return TOKENIZERS[request.param]()


def whole(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    return [list(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts]


def counted(tokenize: TemplatedTextTokenizer) -> list[str]:
    """What is really tokenized from now on."""
    seen: list[str] = []
    run = tokenize.tokenizer

    def call(texts: list[str], **settings: Any) -> Any:
        seen.extend(texts)
        return run(texts, **settings)

    tokenize.tokenizer = call
    return seen


def test_groups(tokenizer: Any) -> None:
    tokenize = TemplatedTextTokenizer(tokenizer)
    assert tokenize(GROUPS) == whole(tokenizer, GROUPS)
    seen = counted(tokenize)
    tokenize(GROUPS)
    assert sum("Name a colour" in text for text in seen) == 1
    assert sum("Count" in text for text in seen) == 1


@given(
    st.lists(st.sampled_from(["<|start|>", "<|end|>", " ", "\n", "colour", "col", "our", "é", "東", "a"]), max_size=8),
    st.lists(
        st.lists(st.sampled_from(["<|start|>", "<|end|>", " ", "our", "one two", "."]), max_size=5).map("".join), max_size=4
    ),
)
def test_whatever_the_texts(prompt: list[str], completions: list[str]) -> None:
    for make in TOKENIZERS.values():
        tokenizer = make()
        texts = ["".join(prompt) + completion for completion in completions]
        assert TemplatedTextTokenizer(tokenizer)(texts) == whole(tokenizer, texts)


def test_a_token_that_takes_the_space_before_it_is_no_place_to_cut() -> None:
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": [AddedToken("<|mark|>", lstrip=True)]})
    texts = [f"<|start|>a b  <|mark|> {number}" for number in ("one", "two")]
    tokenize = TemplatedTextTokenizer(tokenizer)
    assert tokenize(texts) == whole(tokenizer, texts)


def test_a_tokenizer_that_looks_across_its_special_tokens_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = make_tokenizer()
    tokenize = TemplatedTextTokenizer(tokenizer)

    def with_length(texts: list[str], **settings: Any) -> Any:
        found = tokenizer(texts, **settings)["input_ids"]
        return {"input_ids": [[len(ids), *ids] for ids in found]}

    monkeypatch.setattr(tokenize, "tokenizer", with_length)
    assert tokenize(GROUPS) == [[len(ids), *ids] for ids in whole(tokenizer, GROUPS)]
    seen = counted(tokenize)
    tokenize(GROUPS)
    assert seen == GROUPS


def test_no_texts(tokenizer: Any) -> None:
    assert TemplatedTextTokenizer(tokenizer)([]) == []
