"""Ranking what a policy writes."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import rm_plugins as rm
from rm_plugins.errors import ModelError
from rm_plugins.generation import Generator
from rm_plugins.jobs import generation as generation_job
from tests.ranking.conftest import ASKED, RULES, left_behind, read, write


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
        assert "Resuming after 1 prompt whose completions were written." in generate().stderr
        assert generated == [0, 1, 2]
        assert read() == whole
        assert left_behind() == []

    def test_an_interrupted_scoring_does_not_generate_again(self, generate: Any, generated: list[int]) -> None:
        told = generate(spec="rules:fails", code=1)
        assert "out of memory" in told.output
        Path("rules.py").write_text(RULES.replace('raise RuntimeError("out of memory")', "return vowels(samples)"))
        sys.modules.pop("rules")
        told = generate(spec="rules:fails")
        assert "Using the completions of 3 prompts that an earlier run wrote." in told.stderr
        assert generated == [0, 1, 2]
        assert left_behind() == []

    def test_other_settings_or_prompts_are_not_gone_on_with(self, generate: Any, generated: list[int], policy: str) -> None:
        generated[:] = [-1]
        generate(code=1)
        assert "the sampling changed (temperature was 1.0 and is 0.5)" in " ".join(
            generate("--temperature", "0.5", code=1).output.split()
        )
        write({"prompt": "The land"}, *self.PROMPTS[1:])
        told = generate(code=1)
        assert "cannot be resumed: prompt 1 of" in " ".join(told.output.split())
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
            ([*ASKED, {"role": "assistant", "content": "It is"}], "row 4: the prompt ends with an assistant message"),
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
        Path("reward.yaml").write_text("provider: sequence-classifier\nmodel: ./reward\npair: true\n")
        asked = [{"prompt": [{"role": "user", "content": text}]} for text in ("Name a colour.", "Write a sentence about rain.")]
        settings = ("--n", 4, "--max-new-tokens", 6, "--engine-options", '{"dtype": "float32"}')
        rank("reward.yaml", write(*asked), "--generate", smollm2_path, *settings)
        reward = rm.load("reward.yaml")
        for row in read():
            assert len(set(row["completions"])) == 4
            again = reward.score([rm.Sample(row["prompt"], text) for text in row["completions"]]).values
            assert row["scores"] == pytest.approx(again.tolist(), abs=1e-5) == sorted(row["scores"], reverse=True)
