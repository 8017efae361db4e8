"""Judges in this process: real models' own logits and greedy texts, and vLLM by its signatures."""

from __future__ import annotations

import importlib.machinery
import math
import pickle
import sys
import types
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from rm_plugins.errors import MissingDependencyError, ModelError, SpecError
from rm_plugins.generation import load_generator
from rm_plugins.generation.generator import GreedyCompletion, Sampling
from rm_plugins.judges import Question, Reply, TransformersJudge
from rm_plugins.replies import Labels
from rm_plugins.spec import component
from tests.policies import make_policy

LABELS = ("sea", "two")
TEXTS = [
    "Name a colour.",
    "count one, two, three",
    "What is two and two? Answer with one word, and nothing else.",
    "The sea is salty.",
    "Write one sentence about rain and rivers.",
    "Question: what is the sea?",
]


def question(text: str, labels: tuple[str, ...] = ()) -> Question:
    return Question(({"role": "user", "content": text},), labels=labels)


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_policy(tmp_path_factory.mktemp("judge"))


def replies(policy: str, questions: Sequence[Question], **settings: Any) -> list[Reply]:
    made = component("judge", {"name": "transformers", "model": policy, "max_tokens": 16, **settings})
    found: list[Reply] = made.ask(questions)
    made.close()
    return found


def test_label_probabilities_are_those_of_the_models_logits(policy: str) -> None:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(policy), AutoTokenizer.from_pretrained(policy)
    words = [
        str(token).replace("\u0120", " ").replace("\u010a", "\n")
        for token in tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    ]
    labels = Labels(LABELS)
    compared = 0
    for text, reply in zip(TEXTS, replies(policy, [question(text, LABELS) for text in TEXTS], batch_size=4), strict=True):
        rendered = tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True
        )
        ids = tokenizer(rendered, add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            probabilities = model(torch.tensor([ids])).logits[0, -1].float().softmax(-1)
        first = int(probabilities.argmax())
        if not words[first].strip() or first in tokenizer.all_special_ids:
            continue
        expected = {
            label: sum(float(probabilities[token]) for token, word in enumerate(words) if labels.label_of(word) == label)
            for label in LABELS
        }
        if reply.error:
            assert "begins with a label but is not one" in reply.error
            continue
        compared += 1
        assert reply.label_probabilities == pytest.approx(expected, abs=1e-5)
        assert reply.prompt_tokens == len(ids)
    assert compared >= 3


def test_texts_are_greedy_and_the_batch_does_not_change_them(policy: str) -> None:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(policy), AutoTokenizer.from_pretrained(policy)
    together = replies(policy, [question(text) for text in TEXTS], batch_size=6)
    for text, reply in zip(TEXTS, together, strict=True):
        rendered = tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True
        )
        ids = torch.tensor([tokenizer(rendered, add_special_tokens=False)["input_ids"]])
        written = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=16, do_sample=False)[
            0, ids.shape[1] :
        ]
        ended = tokenizer.eos_token_id in written.tolist()
        assert reply.completion_tokens == len(written)
        if ended and not reply.error:
            assert reply.text == tokenizer.decode(written, skip_special_tokens=True).strip()
        assert ended or "cut off at max_tokens" in reply.error
    assert replies(policy, [question(text) for text in reversed(TEXTS)], batch_size=1) == together[::-1]


class StandTokenizer:
    """A vocabulary with the words of these tests."""

    vocabulary = (
        "<pad>",
        *sorted({"Yes", "No", "\u0120Yes", "<think>", "</think>", "ne", "\u010a", "\u0120of", "\u0120it"}),
        *("[THINK]", "[/THINK]", "ãģ¯ãģĦ", "ãģĦãģĦãģĪ"),  # special tokens of Magistral; "はい" and "いいえ" as bytes
    )

    def __len__(self) -> int:
        return len(self.vocabulary)

    def convert_ids_to_tokens(self, ids: Sequence[int]) -> list[str]:
        return [self.vocabulary[token] for token in ids]

    def convert_tokens_to_string(self, tokens: Sequence[str]) -> str:
        decoded = {"\u0120": " ", "\u010a": "\n", "ãģ¯ãģĦ": "はい", "ãģĦãģĦãģĪ": "いいえ"}
        return "".join(decoded.get(token, token.replace("\u0120", " ")) for token in tokens)

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        tokens = self.convert_ids_to_tokens(ids)
        return "".join(token for token in tokens if not (skip_special_tokens and token.startswith("[")))


def written_by(texts: Sequence[str], *, finished: bool = True) -> Any:
    """What a judge makes of texts that a model writes, token by token."""

    class Stand:
        class prompts:
            @staticmethod
            def tokens(row: Any, where: str) -> list[int]:
                return [0]

        def __init__(self) -> None:
            self.tokenizer: Any = StandTokenizer()

        def complete_greedily(self, prompts: Any, most: int, watched: Sequence[int] = ()) -> list[GreedyCompletion]:
            vocabulary = self.tokenizer.vocabulary
            ids = tuple(vocabulary.index(text) for text in texts)
            seen = tuple({token: 0.9 if token == chosen else 0.01 for token in watched} for chosen in ids)
            shown = "".join(text for text in texts if not text.startswith("["))  # without special tokens
            text = shown.replace("\u0120", " ").replace("\u010a", "\n")
            return [GreedyCompletion(ids, text, finished, seen) for _ in prompts]

    judge = TransformersJudge(model="nowhere")
    judge._generator = Stand()  # type: ignore[assignment]
    return judge


@pytest.mark.parametrize(
    ("tokens", "probabilities"),
    [
        (["Yes"], {"Yes": 0.91, "No": 0.01}),
        (["\u010a", "\u0120Yes"], {"Yes": 0.91, "No": 0.01}),
        (["<think>", "No", "</think>", "\u010a", "Yes"], {"Yes": 0.91, "No": 0.01}),
        (["No", "</think>", "Yes"], {"Yes": 0.91, "No": 0.01}),
        (["[THINK]", "No", "[/THINK]", "Yes"], {"Yes": 0.91, "No": 0.01}),
    ],
)
def test_the_label_is_at_the_first_token_of_the_answer(tokens: list[str], probabilities: dict[str, float]) -> None:
    (reply,) = written_by(tokens).ask([question("?", ("Yes", "No"))])
    assert reply.label_probabilities == pytest.approx(probabilities)
    assert reply.text == "Yes"


@pytest.mark.parametrize(
    ("tokens", "error"),
    [
        (["No", "ne", "\u0120of", "\u0120it"], "answered 'None', which begins with a label but is not one"),
        (["Yes", "\u010a", "No"], "two different verdicts, 'Yes' and 'No'"),
        (["<think>", "Yes"], "reasoning did not end within label_tokens"),
        (["\u0120it", "\u010a", "<think>", "Yes"], "reasoning did not end within label_tokens"),
        (["<think>", "Yes", "</think>", "\u010a"], "answer is empty"),
        ([], "answer is empty"),
    ],
)
def test_an_answer_without_a_label_is_an_error(tokens: list[str], error: str) -> None:
    (reply,) = written_by(tokens).ask([question("?", ("Yes", "No"))])
    assert (reply.text, reply.label_probabilities) == ("", None)
    assert error in reply.error


@pytest.mark.parametrize(
    ("tokens", "finished", "error"),
    [
        (["Yes"], False, "cut off at max_tokens"),
        (["<think>", "Yes"], True, "reasoning did not end"),
        (["[THINK]", "Yes"], True, "reasoning did not end"),
        (["[THINK]", "Yes", "[/THINK]"], True, "empty after its reasoning"),
        (["<think>", "Yes", "</think>"], True, "empty after its reasoning"),
        ([], True, "answer is empty"),
    ],
)
def test_a_text_that_is_no_answer_is_an_error(tokens: list[str], finished: bool, error: str) -> None:
    (reply,) = written_by(tokens, finished=finished).ask([question("?")])
    assert reply.text == ""
    assert error in reply.error
    (reply,) = written_by(["<think>", "No", "</think>", "\u010a", "Yes"]).ask([question("?")])
    assert reply.text == "Yes"


def test_reasoning_between_special_tokens_is_passed_over() -> None:
    """The text of an answer lacks special tokens, so that it would begin with the reasoning."""
    (reply,) = written_by(["[THINK]", "No", "[/THINK]", "Yes"]).ask([question("?")])
    assert reply.text == "Yes"


def test_labels_of_other_scripts_are_found_in_a_vocabulary_of_bytes() -> None:
    (reply,) = written_by(["ãģ¯ãģĦ"], finished=False).ask([question("?", ("はい", "いいえ"))])
    assert reply.label_probabilities == pytest.approx({"はい": 0.9, "いいえ": 0.01})
    assert reply.text == "はい\u2026", "the text of an answer that is cut off shows it"


def test_a_question_that_does_not_fit_does_not_affect_the_others(policy: str) -> None:
    long = question("sea " * 400)
    found = replies(policy, [question("Name a colour."), long, question("x", LABELS)], max_tokens=8)
    assert "exceeds the 256 positions" in found[1].error
    assert [bool(reply.prompt_tokens) for reply in found] == [True, False, True]
    (reply,) = replies(policy, [Question(({"role": "user", "content": "x"},), labels=("A", "AB"))])
    assert "labels cannot be used" in reply.error


def test_a_model_that_was_trained_on_is_another_one_for_the_cache(policy: str, tmp_path: Path) -> None:
    other = make_policy(tmp_path / "other")
    cache = str(tmp_path / "cache")
    asked = [question(text, LABELS) for text in TEXTS]
    first = replies(policy, asked, cache=cache)
    again = replies(other, asked, cache=cache, batch_size=2)  # the same weights in another folder
    known = [not reply.error for reply in first]
    assert any(known)
    assert [reply.cached for reply in again] == known
    weights = Path(other) / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-8:] = bytes(8)
    weights.write_bytes(content)
    assert not any(reply.cached for reply in replies(other, asked, cache=cache))


def test_it_goes_to_another_process_without_its_model(policy: str) -> None:
    made = component("judge", {"name": "transformers", "model": policy, "max_tokens": 4})
    before = made.ask([question("Name a colour.", LABELS)])
    sent = pickle.dumps(made)
    assert len(sent) < 5_000
    assert pickle.loads(sent).ask([question("Name a colour.", LABELS)]) == before


def test_what_cannot_be_loaded_is_said(tmp_path: Path) -> None:
    with pytest.raises(ModelError):
        replies(str(tmp_path), [question("x")])
    with pytest.raises(SpecError, match="max_tokens: must be at least 1"):
        component("judge", {"name": "transformers", "model": "x/y", "max_tokens": 0})


@dataclass
class SamplingParams:
    """The parameters of vLLM that matter here, with its names and defaults."""

    temperature: float = 1.0
    max_tokens: int | None = 16
    logprobs: int | None = None


@dataclass
class Logprob:
    logprob: float
    rank: int | None = None
    decoded_token: str | None = None


@dataclass
class CompletionOutput:
    text: str
    token_ids: Sequence[int]
    logprobs: list[dict[int, Logprob]] | None
    finish_reason: str


@dataclass
class RequestOutput:
    outputs: list[CompletionOutput] = field(default_factory=list)


class LLM:
    """Answers ``sea`` with 0.6 and ``two`` with 0.3, and ends."""

    def __init__(self, model: str, **options: Any) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(model)

    def generate(
        self, prompts: Sequence[Any], sampling_params: Sequence[SamplingParams], *, use_tqdm: bool
    ) -> list[RequestOutput]:
        sea, two = (self.tokenizer(f" {label}", add_special_tokens=False)["input_ids"][0] for label in LABELS)
        found = []
        for params in sampling_params:
            assert params.temperature == 0
            step = {sea: Logprob(math.log(0.6)), two: Logprob(math.log(0.3)), 0: Logprob(math.log(0.05))}
            end = {self.tokenizer.eos_token_id: Logprob(0.0)}
            logprobs = [step, end] if params.logprobs else None
            found.append(RequestOutput([CompletionOutput(" sea", [sea, self.tokenizer.eos_token_id], logprobs, "stop")]))
        return found


def test_vllm_is_asked_for_what_it_can_give(policy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("vllm")
    module.__spec__ = importlib.machinery.ModuleSpec("vllm", None)
    vars(module).update(LLM=LLM, SamplingParams=SamplingParams, TokensPrompt=lambda *, prompt_token_ids: dict(locals()))
    monkeypatch.setitem(sys.modules, "vllm", module)
    made = component("judge", {"name": "vllm", "model": policy, "max_tokens": 16})
    with_labels, text = made.ask([question("a", LABELS), question("b")])
    assert with_labels.label_probabilities == pytest.approx({"sea": 0.6, "two": 0.3})
    assert (with_labels.text, text.text) == ("sea", "sea")
    assert with_labels.completion_tokens == 2
    made.close()


def test_vllm_that_is_not_installed(policy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(MissingDependencyError, match="pip install vllm"):
        component("judge", {"name": "vllm", "model": policy}).ask([question("x")])


def test_the_watched_tokens_have_the_probabilities_of_every_position(policy: str) -> None:
    made = load_generator(policy, Sampling(1, max_new_tokens=6), engine="transformers")
    prompts = [made.prompts.tokens({"prompt": text}, "row") for text in ("The sea", "count one, two, three")]
    written = made.complete_greedily(prompts, 6, watched=[5, 9])
    model = AutoModelForCausalLM.from_pretrained(policy)
    for prompt, found in zip(prompts, written, strict=True):
        assert len(found.watched) == len(found.tokens)
        with torch.no_grad():
            logits = model(torch.tensor([[*prompt, *found.tokens]])).logits[0, len(prompt) - 1 :].float().softmax(-1)
        for place, seen in enumerate(found.watched):
            assert seen == pytest.approx({5: float(logits[place, 5]), 9: float(logits[place, 9])}, abs=1e-5)
            assert int(logits[place].argmax()) == found.tokens[place]
