"""The reward model in Nash-MD and XPO, which show it token ids alone."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from packaging.version import Version
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

import rm_plugins as rm
from rm_plugins.errors import DataError, ScoringError, UnsupportedError
from rm_plugins_trl.reward_model import RewardModel

HAS_BOTH = Version(version("trl")) < Version("1.14")
TRAINERS = {"nash_md": "NashMD", "xpo": "XPO"}

USER = [{"role": "user", "content": "Name a colour."}]
TEXTS = [
    {"prompt": "one, two,", "answer": "three"},
    {"prompt": "one, two, three", "answer": "four"},  # another prompt, continued
    {"prompt": "Question: what is rain?", "answer": "water"},
    {"prompt": "a", "answer": "b"},
]
CONVERSATIONS = [
    {"prompt": USER, "answer": "blue"},
    {"prompt": [{"role": "system", "content": "Count."}, {"role": "user", "content": "one, two"}], "answer": "three"},
    {"prompt": [*USER, {"role": "assistant", "content": "Blue and"}], "answer": "grey"},  # continued, not answered
    {"prompt": [*USER, {"role": "assistant", "content": "Blue."}, *USER], "answer": "red"},
]


class Recorder:
    """A reward function that keeps what it scored."""

    def __init__(self) -> None:
        self.seen: list[rm.Sample] = []

    def __call__(self, samples: Sequence[rm.Sample]) -> list[float]:
        self.seen.extend(samples)
        return [float(len(str(sample.completion))) for sample in samples]


@pytest.mark.skipif(not HAS_BOTH, reason="Nash-MD and XPO left TRL in 1.14")
@pytest.mark.parametrize("settings", [{}, {"pad": "<|end|>"}, {"adds_bos": True}], ids=["plain", "padding is EOS", "BOS"])
@pytest.mark.parametrize("rows", [TEXTS, CONVERSATIONS], ids=["text", "conversations"])
@pytest.mark.parametrize("trainer", TRAINERS)
def test_the_reward_sees_prompt_columns_and_completion(
    trainer: str,
    rows: list[dict[str, Any]],
    settings: dict[str, Any],
    tiny_decoder: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.set_num_threads(1)
    package = importlib.import_module(f"trl.experimental.{trainer}")
    module = importlib.import_module(f"trl.experimental.{trainer}.{trainer}_trainer")
    handed: list[tuple[list[int], list[int]]] = []
    get_reward = module.get_reward

    def spy(model: Any, ids: torch.Tensor, pad_token_id: int, context_length: int) -> Any:
        handed.extend((row[:context_length], row[context_length:]) for row in ids.tolist())
        return get_reward(model, ids, pad_token_id, context_length)

    monkeypatch.setattr(module, "get_reward", spy)
    folder = tiny_decoder(**settings)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    reward = Recorder()
    dataset = Dataset.from_list(rows)
    model = RewardModel(reward, tokenizer, prompts=dataset)
    name = TRAINERS[trainer]
    arguments = {
        "output_dir": str(tmp_path),
        "max_new_tokens": 6,
        "per_device_train_batch_size": 2,
        "max_steps": 2,
        "report_to": "none",
        "save_strategy": "no",
        "logging_steps": 1,
        "bf16": False,
        "gradient_checkpointing": False,
        "dataloader_pin_memory": False,
        "disable_tqdm": True,
        "learning_rate": 0.0,
    }
    made = getattr(package, f"{name}Trainer")(
        model=AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder)),
        ref_model=AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder)),
        reward_funcs=model,
        args=getattr(package, f"{name}Config")(**arguments),
        train_dataset=dataset,
        processing_class=tokenizer,
    )
    made.train()

    assert made.reward_func_names == ["Recorder"]
    assert len(reward.seen) == len(handed) == 8, "two batches of two rows, each completed by two models"
    pad, eos = tokenizer.pad_token_id, tokenizer.eos_token_id
    for sample, (query, response) in zip(reward.seen, handed, strict=True):
        (row,) = [row for row in rows if row["answer"] == sample.columns["answer"]]
        assert sample.prompt == row["prompt"]
        assert sample.columns == {"answer": row["answer"]}
        assert set(query[: query.index(next(token for token in query if token != pad))]) <= {pad}
        assert tokenizer.decode(query).replace(tokenizer.pad_token, "").endswith(_ending(row["prompt"]))
        ended = response[: min(response.index(token) if token in response else len(response) for token in (pad, eos))]
        text = tokenizer.decode(ended, skip_special_tokens=True)
        assert sample.completion == (text if isinstance(row["prompt"], str) else [{"role": "assistant", "content": text}])


def _ending(prompt: Any) -> str:
    if isinstance(prompt, str):
        return prompt
    return str(prompt[-1]["content"]) if prompt[-1]["role"] == "assistant" else "<|start|>assistant\n"


def batch(tokenizer: Any, *rows: tuple[str, str]) -> torch.Tensor:
    """Token ids of prompts and completions as these trainers put them together."""
    prompts = [tokenizer(prompt).input_ids for prompt, _ in rows]
    completions = [tokenizer(completion).input_ids for _, completion in rows]
    context, length = max(map(len, prompts)), max(map(len, completions))
    pad = tokenizer.pad_token_id
    return torch.tensor(
        [
            [pad] * (context - len(prompt)) + prompt + completion + [pad] * (length - len(completion))
            for prompt, completion in zip(prompts, completions, strict=True)
        ]
    )


def scored(model: RewardModel, ids: torch.Tensor) -> list[rm.Sample]:
    """What the recorder sees of token ids that come as TRL hands them over, with 0 for padding tokens."""
    recorder = model.provider.function  # type: ignore[attr-defined]
    recorder.seen.clear()
    padding = ids == model.processing_class.pad_token_id
    model(input_ids=ids.masked_fill(padding, 0), attention_mask=~padding)
    return list(recorder.seen)


def test_a_batch_settles_which_of_two_prompts_is_meant(tiny_tokenizer: Any) -> None:
    model = RewardModel(Recorder(), tiny_tokenizer, prompts=TEXTS)
    continued = ("one, two,", " three four")
    assert scored(model, batch(tiny_tokenizer, continued))[0].prompt == "one, two, three", "alone, the longest that fits"
    both = scored(model, batch(tiny_tokenizer, continued, ("Question: what is rain?", " wet")))
    assert [(sample.prompt, sample.completion) for sample in both] == [continued, ("Question: what is rain?", " wet")]


def test_a_prompt_that_was_not_given_is_an_error(tiny_tokenizer: Any) -> None:
    model = RewardModel(Recorder(), tiny_tokenizer, prompts=TEXTS[2:])
    with pytest.raises(DataError, match="Row 1 of the batch does not begin with any of the 2 prompts"):
        model(batch(tiny_tokenizer, ("a", " b"), ("one", " two")))


def test_rows_whose_completions_begin_at_different_positions_are_an_error(tiny_tokenizer: Any) -> None:
    model = RewardModel(Recorder(), tiny_tokenizer, prompts=TEXTS[2:])
    ids = batch(tiny_tokenizer, ("a", " b"), ("Question: what is rain?", " wet"))
    ids[0] = ids[0].roll(-1)
    with pytest.raises(DataError, match="does not begin with any of the 2 prompts"):
        model(ids)


def test_prompts_that_only_a_column_tells_apart_are_refused(tiny_tokenizer: Any) -> None:
    RewardModel(Recorder(), tiny_tokenizer, prompts=[TEXTS[0], TEXTS[1], TEXTS[0]])
    with pytest.raises(
        DataError, match=r"Rows 1 and 3 of `prompts` \(counted from 0\) are the same prompt to the policy but differ"
    ):
        RewardModel(Recorder(), tiny_tokenizer, prompts=[*TEXTS[:3], {**TEXTS[1], "answer": "other"}])
    with pytest.raises(
        DataError, match=r"Row 1 \(counted from 0\) of `prompts` has no 'prompt'; it has the columns 'question'"
    ):
        RewardModel(Recorder(), tiny_tokenizer, prompts=[TEXTS[0], {"question": "a"}])


def test_without_prompts_the_whole_text_is_scored(tiny_tokenizer: Any) -> None:
    model = RewardModel(Recorder(), tiny_tokenizer)
    ids = batch(tiny_tokenizer, ("one, two,", " three<|end|>"), ("a", " b"))
    assert scored(model, ids) == [rm.Sample("", "one, two, three"), rm.Sample("", "a b")]


def test_without_prompts_a_conversation_is_refused(tiny_tokenizer: Any) -> None:
    model = RewardModel(Recorder(), tiny_tokenizer)
    opened = tiny_tokenizer.apply_chat_template(USER, tokenize=False, add_generation_prompt=True)
    with pytest.raises(UnsupportedError, match=r"RewardModel\(\.\.\., prompts=dataset\)"):
        model(batch(tiny_tokenizer, ("a", " b"), (opened, "Blue")))


def test_an_abstention_is_an_error(tiny_tokenizer: Any) -> None:
    model = RewardModel(lambda samples: [None, 1.0], tiny_tokenizer, prompts=TEXTS)
    with pytest.raises(ScoringError, match="abstained on 1 of 2 samples") as caught:
        model(batch(tiny_tokenizer, ("a", " b"), ("one, two,", " three")))
    assert caught.value.rows == frozenset({0})


def test_the_policy_s_tokenizer_needs_a_padding_token(tiny_decoder: Any) -> None:
    with pytest.raises(UnsupportedError, match="no padding token"):
        RewardModel(Recorder(), AutoTokenizer.from_pretrained(tiny_decoder(pad=None)))
