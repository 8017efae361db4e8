"""Completions of real policies: drawn as the model says, the same again, and by vLLM as its signatures are."""

from __future__ import annotations

import importlib.machinery
import re
import shutil
import sys
import types
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2ForCausalLM

from rm_plugins.errors import DataError, MissingDependencyError, ModelError
from rm_plugins.generation import Completion, Generator, PolicyPrompts, Sampling, default_engine, load_generator
from tests.policies import make_policy

PROMPTS = [{"prompt": "The sea"}, {"prompt": "Name a colour, write one sentence about rain."}, {"prompt": "count"}]


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_policy(tmp_path_factory.mktemp("policy"))


def generator(policy: str, *, batch_size: int | None = None, **sampling: Any) -> Generator:
    settings = Sampling(**{"n": 3, "max_new_tokens": 8, **sampling})
    return load_generator(policy, settings, engine="transformers", batch_size=batch_size)


def tokens(made: Generator, row: dict[str, Any]) -> list[int]:
    return made.prompts.tokens(row, "row 1")


def texts(written: Sequence[Sequence[Completion]]) -> list[list[str]]:
    return [[completion.text for completion in completions] for completions in written]


class TestSampling:
    def test_neither_the_batch_nor_n_changes_what_is_drawn(self, policy: str) -> None:
        together = generator(policy).complete(PROMPTS)
        by_twos, alone = generator(policy, batch_size=2), generator(policy, batch_size=1)
        assert by_twos.complete(PROMPTS) == together
        assert alone.complete(PROMPTS[:1]) + alone.complete(PROMPTS[1:], first=1) == together
        assert [found[:2] for found in together] == generator(policy, n=2).complete(PROMPTS)

    def test_every_completion_is_drawn_anew(self, policy: str) -> None:
        same = [PROMPTS[0]] * 3
        written = texts(generator(policy).complete(same))
        assert len({text for found in written for text in found}) == 9
        assert texts(generator(policy, seed=1).complete(same)) != written

    def test_tokens_have_the_probabilities_that_the_policy_gives_them(self, policy: str) -> None:
        temperature, top_p, n = 0.7, 0.8, 4000
        made = generator(policy, n=n, max_new_tokens=1, temperature=temperature, top_p=top_p, batch_size=n)
        (written,) = texts(made.complete(PROMPTS[:1]))
        model, tokenizer = AutoModelForCausalLM.from_pretrained(policy), AutoTokenizer.from_pretrained(policy)
        with torch.no_grad():
            logits = model(torch.tensor([tokens(made, PROMPTS[0])])).logits[0, -1]
        likely, order = (logits / temperature).softmax(-1).sort(descending=True)
        kept = likely.cumsum(-1) - likely < top_p
        expected: Counter[str] = Counter()
        for token, share in zip(order[kept].tolist(), (likely[kept] / likely[kept].sum()).tolist(), strict=True):
            expected[tokenizer.decode([token], skip_special_tokens=True)] += share
        found = Counter(written)
        assert set(found) <= set(expected)
        for text, share in expected.items():
            assert found[text] / n == pytest.approx(share, abs=4 * (share * (1 - share) / n) ** 0.5)

    @pytest.mark.parametrize("absolute", [False, True], ids=["rotary", "absolute"])
    def test_padding_on_the_left_leaves_the_likeliest_tokens_as_they_are(self, absolute: bool, tmp_path: Path) -> None:
        policy = make_policy(tmp_path, absolute=absolute)
        made = generator(policy, n=1, top_p=1e-9)
        model, tokenizer = AutoModelForCausalLM.from_pretrained(policy), AutoTokenizer.from_pretrained(policy)
        for row, (completion,) in zip(PROMPTS, made.complete(PROMPTS), strict=True):
            ids = torch.tensor([tokens(made, row)])
            alone = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False)
            assert completion.text == tokenizer.decode(alone[0, ids.shape[1] :], skip_special_tokens=True)

    def test_the_models_own_sampling_settings_do_not_count(self, policy: str, tmp_path: Path) -> None:
        own = make_policy(tmp_path, generation={"do_sample": True, "top_k": 1, "repetition_penalty": 9.0, "min_new_tokens": 8})
        assert generator(own).complete(PROMPTS) == generator(policy).complete(PROMPTS)

    def test_what_ends_is_finished_and_has_no_end_token(self, policy: str) -> None:
        (written,) = generator(policy, n=300, max_new_tokens=30, batch_size=300).complete(PROMPTS[:1])
        assert 5 < sum(found.finished for found in written) < 295
        assert not any("<|" in found.text for found in written)
        (longer,) = generator(policy, n=300, max_new_tokens=40, batch_size=300).complete(PROMPTS[:1])
        for short, long in zip(written, longer, strict=True):
            assert long.text.startswith(short.text.rstrip("\ufffd"))
            assert (long == short) >= short.finished

    def test_what_does_not_fit_is_written_in_halves(self, policy: str, monkeypatch: pytest.MonkeyPatch) -> None:
        written = generator(policy).complete(PROMPTS)
        original, sizes = Qwen2ForCausalLM.generate, []

        def small(self: Any, **settings: Any) -> Any:
            sizes.append(len(settings["input_ids"]))
            if sizes[-1] > 2:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return original(self, **settings)

        monkeypatch.setattr(Qwen2ForCausalLM, "generate", small)
        assert generator(policy).complete(PROMPTS) == written
        assert sizes == [9, 4, 2, 2, 5, 2, 3, 1, 2]

    def test_a_real_policy_knows_the_capital_of_france(self, smollm2_path: Path) -> None:
        made = generator(str(smollm2_path), n=2, top_p=0.01, max_new_tokens=2)
        asked = {"prompt": [{"role": "user", "content": "What is the capital of France? Answer with one word."}]}
        text, message = texts(made.complete([{"prompt": "The capital of France is"}, asked]))
        assert text == [" Paris."] * 2  # with its blank
        assert all("Paris" in found or "France" in found or "The" in found for found in message)


class TestPrompts:
    def test_messages_are_rendered_by_the_chat_template(self, policy: str) -> None:
        made = generator(policy)

        def rendered(**row: Any) -> str:
            return str(made.tokenizer.decode(tokens(made, row)))

        asked = {"role": "user", "content": "Hi"}
        assert rendered(prompt=[asked]) == "<|start|>user\nHi<|end|>\n<|start|>assistant\n"
        assert rendered(prompt=[asked], tools=[{"name": "t"}]).startswith('<|start|>tools\n[{"name": "t"}]<|end|>')
        assert rendered(prompt=[asked], chat_template_kwargs={"closing": "!"}).endswith("assistant\n!")
        assert rendered(prompt=[asked], tools='[{"name": "t"}]') == rendered(prompt=[asked], tools=[{"name": "t"}])
        assert rendered(prompt="Hi <|end|>") == "Hi <|end|>"

    def test_a_text_begins_as_the_tokenizer_begins_texts(self, tmp_path: Path) -> None:
        made = generator(make_policy(tmp_path, adds_bos=True))
        assert tokens(made, {"prompt": "Hi"})[0] == made.tokenizer.bos_token_id
        messages = [{"role": "user", "content": "Hi"}]
        assert made.tokenizer.bos_token_id not in tokens(made, {"prompt": messages})  # whose template begins it

    def test_a_text_does_not_end_where_the_policy_goes_on(self, tmp_path: Path) -> None:
        made = generator(make_policy(tmp_path, appends_eos=True))
        assert made.tokenizer("Hi")["input_ids"][-1] == made.tokenizer.eos_token_id
        assert made.tokenizer.decode(tokens(made, {"prompt": "Hi"})) == "Hi"
        assert made.tokenizer.decode(tokens(made, {"prompt": "Hi<|end|>"})) == "Hi<|end|>"  # which the prompt says itself
        with pytest.raises(DataError, match="is empty"):
            tokens(made, {"prompt": ""})

    def test_the_tokenizer_comes_from_where_the_weights_come_from(self, policy: str, tmp_path: Path) -> None:
        shutil.copytree(policy, tmp_path / "all" / "last")
        made = load_generator(
            str(tmp_path / "all"), Sampling(2, max_new_tokens=4), engine="transformers", options={"subfolder": "last"}
        )
        assert made.complete(PROMPTS) == generator(policy, n=2, max_new_tokens=4).complete(PROMPTS)
        commit, kept = "a" * 40, tmp_path / "hub" / "models--some--policy"
        shutil.copytree(policy, kept / "snapshots" / commit)
        (kept / "refs").mkdir()
        (kept / "refs" / "v2").write_text(commit)
        options = {"revision": "v2", "local_files_only": True}
        for name in ("cache_dir", "download_dir"):  # which is vLLM's name
            prompts = PolicyPrompts("some/policy", 8, {**options, name: str(tmp_path / "hub"), "dtype": "float32"})
            assert prompts.tokens(PROMPTS[0], "row 1") == tokens(made, PROMPTS[0])
            with pytest.raises(DataError, match="exceeds the 256 positions"):
                prompts.tokens({"prompt": "rain " * 300}, "row 1")

    def test_the_limit_of_vllm_is_a_limit(self, policy: str) -> None:
        row = {"prompt": "rain " * 20}
        assert len(PolicyPrompts(policy, 8).tokens(row, "row 1")) > 12
        with pytest.raises(DataError, match="exceeds the 20 positions"):
            PolicyPrompts(policy, 8, {"max_model_len": 20}).tokens(row, "row 1")

    @pytest.mark.parametrize(
        ("row", "message"),
        [
            ({"question": "Hi"}, "prompt 3: there is no 'prompt'; the row has the columns 'question'"),
            ({"prompt": 7}, "prompt 3: "),
            ({"prompt": ""}, "prompt 3: the prompt is empty"),
            ({"prompt": "rain " * 300}, "exceeds the 256 positions of the policy"),
            ({"prompt": [{"role": "user", "content": "Hi"}], "chat_template_kwargs": {"closing": 1, "tokenize": 2}}, "refuses"),
            ({"prompt": [{"role": "user", "content": "Hi"}], "tools": "[{"}, "refuses the prompt: JSONDecodeError"),
            ({"prompt": [{"role": "assistant", "content": "Hi"}]}, "prompt 3: the prompt ends with an assistant message"),
        ],
    )
    def test_a_prompt_that_cannot_be_given(self, policy: str, row: dict[str, Any], message: str) -> None:
        with pytest.raises(DataError, match=message):
            generator(policy).complete([row], first=2)

    def test_a_tokenizer_without_a_chat_template(self, tmp_path: Path) -> None:
        made = generator(make_policy(tmp_path, chat_template=None, pad=None))
        with pytest.raises(
            DataError, match=r"prompt 1: the prompt is a list of messages, but the tokenizer .* has no chat template"
        ):
            made.complete([{"prompt": [{"role": "user", "content": "Hi"}]}])
        assert len(made.complete(PROMPTS)) == 3  # and texts need no token for padding


@pytest.mark.parametrize(
    ("setting", "allowed"),
    [
        ({"n": 0}, "n=0; it must be an integer of at least 1"),
        ({"n": 2.0}, "n=2.0; it must be an integer"),
        ({"max_new_tokens": 0}, "max_new_tokens=0; it must be an integer of at least 1"),
        ({"seed": -1}, "seed=-1; it must be an integer of at least 0"),
        ({"temperature": 0}, "temperature=0; it must be a number above 0 and at most 2"),
        ({"temperature": float("nan")}, "temperature=nan"),
        ({"top_p": 1.5}, "top_p=1.5; it must be a number above 0 and at most 1"),
    ],
)
def test_sampling_that_is_not_possible(setting: dict[str, Any], allowed: str) -> None:
    with pytest.raises(DataError, match=f"Completions cannot be sampled with {re.escape(allowed)}"):
        Sampling(**{"n": 1, **setting})


def test_whole_numbers_are_numbers(policy: str) -> None:
    assert generator(policy, temperature=2, top_p=1).complete(PROMPTS) == generator(policy, temperature=2.0).complete(PROMPTS)


def test_a_policy_that_cannot_be_loaded(tmp_path: Path, policy: str) -> None:
    with pytest.raises(ModelError, match="No tokenizer could be loaded for the policy"):
        generator(str(tmp_path))
    with pytest.raises(ModelError, match=r"could not be loaded: .*dtipe"):
        load_generator(policy, Sampling(1), engine="transformers", options={"dtipe": "float16"})


def test_an_engine_that_fails_is_a_model_error(policy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Any, **settings: Any) -> Any:
        raise RuntimeError("device-side assert")

    monkeypatch.setattr(Qwen2ForCausalLM, "generate", broken)
    with pytest.raises(ModelError, match="failed on the prompts 5 to 7: RuntimeError: device-side assert"):
        generator(policy).complete(PROMPTS, first=4)


# --- vLLM -----------------------------------------------------------------------------------------------------------------


@dataclass
class SamplingParams:
    """The parameters of vLLM 0.33 that matter here, with its names, defaults and limits."""

    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    seed: int | None = None
    max_tokens: int | None = 16
    skip_special_tokens: bool = True

    def __post_init__(self) -> None:
        assert self.n >= 1
        assert 0 <= self.temperature <= 2
        assert 0 < self.top_p <= 1
        assert self.max_tokens is not None and self.max_tokens >= 1


@dataclass
class CompletionOutput:
    index: int
    text: str
    token_ids: Sequence[int]
    cumulative_logprob: float | None
    logprobs: None
    finish_reason: str | None = None
    stop_reason: int | str | None = None


@dataclass
class RequestOutput:
    request_id: str
    prompt: str | None
    prompt_token_ids: list[int] | None
    outputs: list[CompletionOutput]


class LLM:
    """Answers with what it was asked for; its signatures are those of vLLM 0.33."""

    alive = 0

    def __init__(self, model: str, *, tensor_parallel_size: int = 1, dtype: str = "auto", seed: int = 0, **kwargs: Any) -> None:
        assert not set(kwargs) - {"max_model_len", "enable_lora"}
        self.tensor_parallel_size = tensor_parallel_size
        LLM.alive += 1

    def __del__(self) -> None:
        LLM.alive -= 1

    def generate(
        self,
        prompts: Sequence[dict[str, Any]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = True,
        lora_request: None = None,
        priority: None = None,
        tokenization_kwargs: dict[str, Any] | None = None,
    ) -> list[RequestOutput]:
        assert isinstance(sampling_params, list) and len(sampling_params) == len(prompts)
        assert not use_tqdm
        return [
            RequestOutput(str(number), None, prompt["prompt_token_ids"], self._outputs(prompt["prompt_token_ids"], params))
            for number, (prompt, params) in enumerate(zip(prompts, sampling_params, strict=True))
        ]

    def _outputs(self, prompt: list[int], params: SamplingParams) -> list[CompletionOutput]:
        assert params.seed is not None
        reasons = ("stop", "length", "abort")
        return [
            CompletionOutput(k, f"{len(prompt)}/{params.seed + k}/{params.max_tokens}", [], None, None, reasons[k % 3])
            for k in reversed(range(params.n))
        ]


def test_weights_that_are_written_over_change_no_completion(tmp_path: Path) -> None:
    made = generator(make_policy(tmp_path))
    before = made.complete(PROMPTS)
    for file in tmp_path.rglob("*.safetensors"):
        size = file.stat().st_size
        with file.open("r+b") as opened:  # in place, as `cp` writes
            opened.seek(size // 2)
            opened.write(b"\x3f" * (size - size // 2))
    assert made.complete(PROMPTS) == before


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("vllm")
    module.__spec__ = importlib.machinery.ModuleSpec("vllm", None)
    vars(module).update(LLM=LLM, SamplingParams=SamplingParams, TokensPrompt=lambda *, prompt_token_ids: dict(locals()))
    monkeypatch.setitem(sys.modules, "vllm", module)


@pytest.mark.usefixtures("vllm")
class TestVLLM:
    def test_what_it_is_asked_for_and_what_is_made_of_its_answers(self, policy: str) -> None:
        sampling = Sampling(3, temperature=0.5, top_p=0.9, max_new_tokens=7, seed=5)
        made = load_generator(policy, sampling, engine="vllm", options={"tensor_parallel_size": 2, "max_model_len": 64})
        written = made.complete(PROMPTS, first=10)
        for number, (row, completions) in enumerate(zip(PROMPTS, written, strict=True), start=10):
            length, seed = len(tokens(made, row)), sampling.seed_of(number)
            assert [found.text for found in completions] == [f"{length}/{seed + k}/7" for k in range(3)]
            assert [found.finished for found in completions] == [True, False, False]
        assert written[0] == made.complete(PROMPTS[:1], first=10)[0]

    def test_closing_it_ends_the_engine(self, policy: str) -> None:
        made = load_generator(policy, Sampling(1), engine="vllm")
        assert LLM.alive == 1
        made.close()
        assert LLM.alive == 0

    def test_what_its_loading_does_not_take_is_said(self, policy: str) -> None:
        with pytest.raises(ModelError, match=r"The policy .* could not be loaded: AssertionError"):
            load_generator(policy, Sampling(1), engine="vllm", options={"tensor_paralel_size": 2})

    def test_it_is_the_default_where_there_is_a_gpu(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        assert default_engine() == "transformers"
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        assert default_engine() == "vllm"


def test_vllm_that_is_not_installed(policy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(MissingDependencyError, match="pip install vllm, or choose the engine 'transformers'"):
        load_generator(policy, Sampling(1), engine="vllm")
