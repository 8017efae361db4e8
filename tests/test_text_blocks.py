"""Contents that are lists of text blocks: templates that take them get them as in TRL's training, and others the text."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import trl
from datasets import Dataset

import rm_plugins as rm
from rm_plugins.data.judgements import judgement
from rm_plugins.rendering.render import Renderer
from rm_plugins.rendering.rendering import Rendering
from tests.conftest import TEMPLATE, make_tokenizer
from tests.test_render import trained_ids

TEMPLATES = Path(trl.__file__).parent / "chat_templates"
ITERATES = ["gemma3", "gemma4", "glm4moe", "idefics3", "lfm2_2_5_vl", "qwen2_5_vl", "qwen3_vl", "smolvlm"]
PRINTS = ["cohere2", "gemma", "llama3", "phi3", "qwen2_5", "qwen3"]


def turn(role: str, *texts: str) -> dict[str, Any]:
    return {"role": role, "content": [{"type": "text", "text": text} for text in texts]}


def joined(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{**message, "content": "".join(block["text"] for block in message["content"])} for message in messages]


QUESTION = [turn("user", "2+2?")]
ROWS: dict[str, dict[str, Any]] = {
    "one block": {"prompt": QUESTION, "chosen": [turn("assistant", "4")], "rejected": [turn("assistant", "five")]},
    "blocks with spaces": {
        "prompt": [turn("user", " 2+2 ", " = ", "what? ")],
        "chosen": [turn("assistant", "It is ", "4.")],
        "rejected": [turn("assistant", "five")],
    },
    "several turns without a prompt": {
        "chosen": [*QUESTION, turn("assistant", "4"), turn("user", "Is ", "it?"), turn("assistant", "Yes.")],
        "rejected": [*QUESTION, turn("assistant", "4"), turn("user", "Is ", "it?"), turn("assistant", "No.")],
    },
}
WITH_SYSTEM = {
    "prompt": [turn("system", "Be brief."), *QUESTION],
    "chosen": [turn("assistant", "4")],
    "rejected": [turn("assistant", "five")],
}


def tokenizer_with(template: str) -> Any:
    file = TEMPLATES / f"{template}.jinja"
    if not file.is_file():
        pytest.skip(f"TRL {trl.__version__} does not have the template of {template}")
    return make_tokenizer(adds_bos=True, chat_template=file.read_text(encoding="utf-8"))


def renderer(tokenizer: Any) -> Renderer:
    return Renderer(tokenizer, Rendering.default(tokenizer))


def ids_of(tokenizer: Any, row: dict[str, Any]) -> list[list[int]]:
    return renderer(tokenizer).token_ids(judgement(row).samples)[0]


@pytest.mark.parametrize("row", [*ROWS.values(), WITH_SYSTEM], ids=[*ROWS, "a system message"])
@pytest.mark.parametrize("template", ITERATES)
def test_a_template_that_takes_blocks_gets_them_as_in_trl(template: str, row: dict[str, Any], tmp_path: Path) -> None:
    tokenizer = tokenizer_with(template)
    expected = trained_ids(tokenizer, [row], tmp_path)
    assert ids_of(tokenizer, row) == expected
    # A dataset's rows: blocks of another turn may have columns that these have not, which are null here.
    wider = [{"role": "user", "content": [{"type": "text", "text": "x", "image": None}]}]
    filled = Dataset.from_list([row, {**row, "chosen": [*wider, *row["chosen"]]}])[0]
    assert ids_of(tokenizer, filled) == expected


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS.keys())
@pytest.mark.parametrize("template", PRINTS)
def test_a_template_that_takes_text_gets_the_text(template: str, row: dict[str, Any], tmp_path: Path) -> None:
    tokenizer = tokenizer_with(template)
    texts = {name: joined(messages) for name, messages in row.items()}
    assert ids_of(tokenizer, row) == trained_ids(tokenizer, [texts], tmp_path)


def test_a_template_that_drops_blocks_gets_the_text(tmp_path: Path) -> None:
    """Gemma 3's writes the first block of a system message, and no other."""
    tokenizer = tokenizer_with("gemma3")
    row = {**WITH_SYSTEM, "prompt": [turn("system", "Be brief,", " very."), *QUESTION]}
    assert "very" not in tokenizer.decode(trained_ids(tokenizer, [row], tmp_path)[0])
    texts = {name: joined(messages) for name, messages in row.items()}
    assert ids_of(tokenizer, row) == trained_ids(tokenizer, [texts], tmp_path)


def test_a_template_that_reads_one_block_gets_one() -> None:
    template = "{% for message in messages %}{{ message['role'] }}: {{ message['content'][0]['text'] }}\n{% endfor %}"
    sample = rm.Sample([turn("user", "2+", "2?")], [turn("assistant", "fo", "ur")])
    assert renderer(make_tokenizer(chat_template=template)).text(sample) == "user: 2+2?\nassistant: four\n"


def test_a_template_that_writes_no_content_gets_the_text() -> None:
    template = "{% for message in messages %}{{ message['role'] }} {% endfor %}"
    assert renderer(make_tokenizer(chat_template=template)).text(rm.Sample(QUESTION, "4")) == "user assistant "


def test_templates_of_a_row_are_tried_each() -> None:
    ours = renderer(make_tokenizer())
    loops = "{% for message in messages %}{% for part in message['content'] %}<{{ part['text'] }}>{% endfor %}{% endfor %}"
    blocks = [turn("assistant", "fo", "ur")]
    assert ours.text(rm.Sample(QUESTION, blocks)) == "<|start|>user\n2+2?<|end|>\n<|start|>assistant\nfour<|end|>\n"
    own = {"chat_template_kwargs": {"chat_template": loops}}
    assert ours.text(rm.Sample(QUESTION, blocks, own)) == "<2+2?><fo><ur>"


def test_where_the_completion_begins() -> None:
    tokenizer = tokenizer_with("qwen2_5_vl")
    ours = renderer(tokenizer)
    sample = rm.Sample([turn("user", "2+", "2?")], [turn("assistant", "four")])
    (ids,) = ours.untruncated_ids([sample])
    (start,) = ours.completion_starts([sample], [ids])
    assert tokenizer.decode(ids[start:]).startswith("four")


def test_what_was_tried_does_not_change_how_a_renderer_is_pickled() -> None:
    """`datasets` finds what it has tokenized before by the pickle of what tokenizes."""
    ours = renderer(make_tokenizer(chat_template=TEMPLATE))
    before = pickle.dumps(ours)
    ours.text(rm.Sample(QUESTION, [turn("assistant", "4")]))
    assert pickle.dumps(ours) == before
    assert pickle.loads(before).text(rm.Sample(QUESTION, "4")) == ours.text(rm.Sample(QUESTION, "4"))
