"""What cannot be averaged, where the mean is written, and the command."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from safetensors import SafetensorError
from transformers import PreTrainedModel

import rm_plugins as rm
from rm_plugins.cli import main
from rm_plugins.errors import ModelError, OutputError, SpecError
from rm_plugins.evaluation import evaluate_pairs
from rm_plugins.models.manifest import MANIFEST_NAME, Manifest
from rm_plugins.models.merge import merge_models
from rm_plugins.providers.models.sequence_classifier import SequenceClassifier
from tests.conftest import MakeFolder
from tests.merging.conftest import names, rewrite

PAIRS = [{"prompt": f"Name {number}.", "chosen": f" It is {number}.", "rejected": " two"} for number in range(8)]


def set_config(folder: Path, **settings: Any) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))
    return folder


class TestWhatCannotBeAveraged:
    def refused(self, message: str, first: Path, second: Path, tmp_path: Path, **settings: Any) -> None:
        with pytest.raises(ModelError, match=f"{second}.*{message}"):
            merge_models(names(first, second), tmp_path / "out", **settings)
        assert not (tmp_path / "out").exists()
        assert not list(tmp_path.glob(".out*"))

    @pytest.mark.filterwarnings("ignore:.*pads with its EOS token")
    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"config": {"rope_theta": 5.0}}, r"differs in its configuration: rope_parameters\.rope_theta is 5\.0, not "),
            (
                {"config": {"head_dim": 16}},
                r"differs in its configuration: the shape of \S+q_proj.weight is \(64, 32\), not \(32, 32\); .*; and \d+ more",
            ),
            ({"num_labels": 2}, "differs in its configuration: "),
            ({"chat_template": None}, "differs in its tokenizer: the chat template"),
            ({"pad": "<|end|>"}, "differs in its configuration: pad_token_id is 1, not 0"),
            ({"adds_bos": True}, "differs in its "),
        ],
    )
    def test_other_models(self, settings: dict[str, Any], message: str, tiny_decoder: MakeFolder, tmp_path: Path) -> None:
        self.refused(
            rf"cannot be averaged with .*{message}.*`provider: ensemble`", tiny_decoder(), tiny_decoder(**settings), tmp_path
        )

    def test_what_does_not_matter_may_differ(self, members: list[Path], tmp_path: Path) -> None:
        set_config(members[1], attention_dropout=0.1, use_cache=False, problem_type="regression", id2label={"0": "reward"})
        merge_models(names(*members), tmp_path / "out")

    def test_another_token(self, members: list[Path], tmp_path: Path) -> None:
        path = members[1] / "tokenizer.json"
        path.write_text(path.read_text(encoding="utf-8").replace("<|start|>", "<|begin|>"), encoding="utf-8")
        self.refused(r"differs in its tokenizer: .*'<\|start\|>'", members[0], members[1], tmp_path)

    def test_other_token_ids_of_the_same_tokens(self, members: list[Path], tmp_path: Path) -> None:
        path = members[1] / "tokenizer.json"
        tokenizer = json.loads(path.read_text(encoding="utf-8"))
        tokenizer["model"]["merges"] = []
        path.write_text(json.dumps(tokenizer), encoding="utf-8")
        self.refused("differs in its tokenization: the token ids of 'Name a colour.'", members[0], members[1], tmp_path)

    def test_broken_weights(self, members: list[Path], tmp_path: Path) -> None:
        rewrite(members[1], lambda tensors: tensors["score.weight"][0, :1].fill_(torch.nan))
        self.refused("has broken weights: score.weight contains NaN", members[0], members[1], tmp_path)

    def test_a_model_that_is_none(self, members: list[Path], tmp_path: Path) -> None:
        (tmp_path / "empty").mkdir()
        self.refused("is not a model folder", members[0], tmp_path / "empty", tmp_path)

    @pytest.mark.parametrize(
        ("count", "weights"), [(1, None), (0, None), (2, [1]), (2, [1, -1]), (2, [0, 0]), (2, [1, float("nan")])]
    )
    def test_numbers_that_do_not_fit(self, count: int, weights: Any, tmp_path: Path) -> None:
        with pytest.raises(
            SpecError, match=r"needs at least two models, not|weights: there must be one for each of the 2 models"
        ):
            merge_models(["a", "b"][:count], tmp_path / "out", weights=weights)


class TestOutput:
    def test_it_is_not_replaced_unless_told(self, members: list[Path], tmp_path: Path) -> None:
        out = tmp_path / "out"
        merge_models(names(*members), out)
        (out / "note.txt").touch()
        with pytest.raises(ModelError, match="out is not empty"):
            merge_models(names(*members[:2]), out)
        written = merge_models(names(*members[:2]), out, overwrite=True)
        assert written == Manifest.read(out / MANIFEST_NAME)
        assert not (out / "note.txt").exists()
        assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]

    def test_what_is_more_than_a_model_is_never_replaced(self, members: list[Path], tmp_path: Path) -> None:
        (tmp_path / "out" / "checkpoint-10").mkdir(parents=True)
        with pytest.raises(ModelError, match="contains the folder checkpoint-10"):
            merge_models(names(*members), tmp_path / "out", overwrite=True)
        (tmp_path / "file").touch()
        with pytest.raises(OutputError, match="file is not a folder"):
            merge_models(names(*members), tmp_path / "file", overwrite=True)
        with pytest.raises(ModelError, match="is one of the models to merge"):
            merge_models(names(*members), members[1], overwrite=True)

    def test_a_failure_leaves_what_was_there_and_nothing_else(self, members: list[Path], tmp_path: Path) -> None:
        out = tmp_path / "out"
        before = merge_models(names(*members), out)

        def fails(folder: Path) -> None:
            assert (folder / MANIFEST_NAME).is_file()
            raise RuntimeError("no data")

        with pytest.raises(RuntimeError, match="no data"):
            merge_models(names(*members[:2]), out, overwrite=True, statistics=fails)
        assert Manifest.read(out / MANIFEST_NAME) == before
        assert SequenceClassifier(model=str(out)).verify() == []
        assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]

    def test_a_full_disk_is_said_of_the_output(
        self, members: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(*_: Any, **__: Any) -> None:
            raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

        monkeypatch.setattr(PreTrainedModel, "save_pretrained", full)
        with pytest.raises(OutputError, match=r"out cannot be written: .*No space left on device.* Name another place"):
            merge_models(names(*members), tmp_path / "out")
        assert list(tmp_path.iterdir()) == []

    def test_what_a_killed_merge_left_is_removed_by_the_next(self, members: list[Path], tmp_path: Path) -> None:
        for name in ("out", "another"):
            left = tmp_path / f".{name}.abcd1234.rm-plugins" / "new"
            left.mkdir(parents=True)
            (left / "model.safetensors").write_bytes(bytes(1000))
        merge_models(names(*members), tmp_path / "out")
        assert [path.name for path in tmp_path.iterdir()] == ["out"]

    def test_an_empty_folder_is_free(self, members: list[Path], tmp_path: Path) -> None:
        (tmp_path / "out").mkdir()
        merge_models(names(*members), tmp_path / "out")

    def test_progress(self, members: list[Path], tmp_path: Path) -> None:
        seen: list[str] = []
        merge_models(names(*members), tmp_path / "out", progress=seen.append)
        assert seen == names(*members)


class TestProgram:
    @pytest.fixture
    def run(self, members: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Result]]:
        """Runs the program where the members are called ``a``, ``b`` and ``c``."""
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("COLUMNS", "100")
        for name, folder in zip("abc", members, strict=True):
            folder.rename(name)
        Path("pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in PAIRS))
        yield lambda *arguments: CliRunner().invoke(main, ["merge", *arguments])

    def test_merges(self, run: Any) -> None:
        result = run("a", "b", "c", "-o", "merged", "--weights", "1,1,2")
        assert result.exit_code == 0, result.output
        assert result.stdout == ""
        assert result.stderr.endswith("Wrote merged: the mean of 3 models. `rm-plugins verify merged` checks it.\n")
        assert CliRunner().invoke(main, ["verify", "merged"]).exit_code == 0
        training = Manifest.read(Path("merged") / MANIFEST_NAME).training
        assert [member["weight"] for member in training["members"]] == [0.25, 0.25, 0.5]

    def test_compares_on_data(self, run: Any) -> None:
        result = run("a", "b", "-o", "merged", "--data", "pairs.jsonl")
        assert result.exit_code == 0, result.output
        heading, *lines = result.stdout.splitlines()
        assert heading.split() == ["accuracy", "standard", "error", "ties", "margin"]
        rows = {name: values for name, *values in map(str.split, lines)}
        assert list(rows) == ["a", "b", "merged"]
        for name, (accuracy, error, _, margin) in rows.items():
            expected = evaluate_pairs(rm.load(name), PAIRS)
            assert (accuracy, error) == (f"{expected.accuracy:.4f}", f"{expected.standard_error:.4f}")
            assert float(margin) == pytest.approx(expected.margin, rel=1e-3)
        provider = SequenceClassifier(model="merged")
        texts = [rm.Sample(row["prompt"], row[side]) for row in PAIRS for side in ("chosen", "rejected")]
        values = provider.score(texts).values
        assert provider.statistics is not None
        assert (provider.statistics.count, provider.statistics.source) == (16, "pairs.jsonl")
        np.testing.assert_allclose(
            [provider.statistics.mean, provider.statistics.std], [values.mean(), values.std()], rtol=1e-5, atol=1e-6
        )

    def test_what_is_wrong_is_said_and_nothing_written(self, run: Any) -> None:
        for arguments, message in {
            ("a",): "Error: Averaging needs at least two models, not 1.",
            ("a", "b", "--weights", "1,x"): "'1,x' is not a list of numbers such as 1,1,2.",
            ("a", "b", "--weights", "1"): "Error: weights: there must be one for each of the 2 models",
            ("a", "b", "--data", "absent.jsonl"): "Error: There is no file 'absent.jsonl' (looked for",
            ("a", "absent"): "absent",
        }.items():
            result = run(*arguments, "-o", "merged")
            assert result.exit_code in (1, 2)
            assert message in result.output
            assert not Path("merged").exists()
        Path("pairs.jsonl").write_text('{"text": "no pair"}\n')
        assert "Error: row 1: " in run("a", "b", "-o", "merged", "--data", "pairs.jsonl").output
        assert not Path("merged").exists()
        Path("merged").mkdir()
        Path("merged/note").touch()
        assert "merged is not empty" in run("a", "b", "-o", "merged").output
        assert "is not empty and not a model" in run("a", "b", "-o", "merged", "--overwrite").output
        Path("merged/config.json").touch()
        assert run("a", "b", "-o", "merged", "--overwrite").exit_code == 0
