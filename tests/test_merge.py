"""Merged models: the mean of weights and nothing else, of models that have one, written whole or not at all."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer, Qwen2ForSequenceClassification, pipeline

import rm_plugins as rm
from rm_plugins.cli import main
from rm_plugins.errors import ModelError, SpecError
from rm_plugins.evaluation import evaluate_pairs
from rm_plugins.models.heads import Heads
from rm_plugins.models.manifest import MANIFEST_NAME, Manifest
from rm_plugins.models.merge import merge_models
from rm_plugins.providers.models.sequence_classifier import SequenceClassifier
from rm_plugins.rendering.render import Rendering
from tests.conftest import CORPUS, MakeFolder

Tensors: TypeAlias = dict[str, torch.Tensor]

SAMPLES = [
    rm.Sample("Q: 2+2?\nA:", " four"),
    rm.Sample("", "ends in EOS<|end|>"),
    rm.Sample([{"role": "user", "content": "Name a colour."}], "Blue."),
]
PAIRS = [{"prompt": f"Name {number}.", "chosen": f" It is {number}.", "rejected": " two"} for number in range(8)]


def rewrite(folder: Path, change: Callable[[Tensors], Any]) -> Path:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})
    return folder


def trained(folder: Path, seed: int) -> Path:
    """Train a classifier a little, as its own copy of where it started from."""
    model = Qwen2ForSequenceClassification.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(CORPUS, return_tensors="pt", padding=True)
    torch.manual_seed(seed)
    wanted = torch.randn(len(CORPUS), model.config.num_labels)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(2):
        (model(**ids).logits - wanted).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    return folder


def from_another_seed(folder: Path) -> Path:
    """The classifier that would have been made with other random numbers."""
    config = Qwen2ForSequenceClassification.from_pretrained(folder).config
    with torch.random.fork_rng():
        torch.manual_seed(9)
        Qwen2ForSequenceClassification(config).save_pretrained(folder)
    return folder


def set_config(folder: Path, **settings: Any) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))
    return folder


def with_manifest(folder: Path, **settings: Any) -> Path:
    rendering = Rendering("tokenizer", append_eos=True, max_length=512)
    manifest = Manifest(**{"created_by": {}, "rendering": rendering, "dtype": "float32", **settings})
    manifest.write(folder)
    return folder


def scores(folder: Path) -> Any:
    return rm.load(folder).score(SAMPLES).values


def scores_of_mean(folders: Sequence[Path], shares: Sequence[float], out: Path) -> Any:
    """The scores of a model that was averaged by hand, in float64."""
    model = AutoModelForSequenceClassification.from_pretrained(folders[0])
    tensors = [load_file(folder / "model.safetensors") for folder in folders]
    mean = {
        name: torch.stack([share * one[name].double() for share, one in zip(shares, tensors, strict=True)]).sum(0)
        for name in tensors[0]
    }
    model.load_state_dict(mean)
    model.save_pretrained(out)
    AutoTokenizer.from_pretrained(folders[0]).save_pretrained(out)
    return scores(out)


@pytest.fixture
def members(tiny_decoder: MakeFolder, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three classifiers that were trained from one start."""
    start, folder = tiny_decoder(), tmp_path_factory.mktemp("members")
    return [trained(shutil.copytree(start, folder / str(seed)), seed) for seed in range(3)]


def names(*folders: Path) -> list[str]:
    return [str(folder) for folder in folders]


class TestMean:
    @pytest.mark.parametrize(
        ("weights", "shares"),
        [(None, [1 / 3, 1 / 3, 1 / 3]), ([1, 1, 2], [0.25, 0.25, 0.5]), ([0, 0.2, 0], [0, 1, 0]), ([0, 1, 3], [0, 0.25, 0.75])],
    )
    def test_weights_are_the_mean_and_scores_are_its_scores(
        self, weights: list[float] | None, shares: list[float], members: list[Path], tmp_path: Path
    ) -> None:
        merge_models(names(*members), tmp_path / "out", weights=weights)
        expected = scores_of_mean(members, shares, tmp_path / "by hand")
        averaged, by_hand = (load_file(tmp_path / name / "model.safetensors") for name in ("out", "by hand"))
        assert averaged.keys() == by_hand.keys()
        for name in by_hand:
            np.testing.assert_allclose(averaged[name], by_hand[name], rtol=1e-6, atol=1e-7)
        np.testing.assert_allclose(scores(tmp_path / "out"), expected, rtol=1e-5, atol=1e-5)  # these models amplify rounding

    def test_the_scores_of_two_to_rounding(self, members: list[Path], tmp_path: Path) -> None:
        merge_models(names(*members[:2]), tmp_path / "out")
        expected = scores_of_mean(members[:2], [0.5, 0.5], tmp_path / "by hand")
        np.testing.assert_allclose(scores(tmp_path / "out"), expected, rtol=1e-6, atol=1e-6)

    def test_the_mean_of_one_model_is_itself_bit_by_bit(self, members: list[Path], tmp_path: Path) -> None:
        merge_models(names(*[members[0]] * 3), tmp_path / "out", weights=[0.1, 0.3, 0.3])
        merged, expected = (load_file(folder / "model.safetensors") for folder in (tmp_path / "out", members[0]))
        assert merged.keys() == expected.keys()
        assert all(torch.equal(merged[name], expected[name]) for name in expected)

    def test_the_dtype_is_the_first_ones(self, tiny_decoder: MakeFolder, tmp_path: Path) -> None:
        half, single = tiny_decoder(dtype=torch.bfloat16), tiny_decoder()
        for first, second, dtype in ((half, single, torch.bfloat16), (single, half, torch.float32)):
            out = tmp_path / str(dtype)
            merge_models(names(first, second), out)
            assert {tensor.dtype for tensor in load_file(out / "model.safetensors").values()} == {dtype}
            assert json.loads((out / "config.json").read_text())["dtype"] == str(dtype).removeprefix("torch.")
            assert SequenceClassifier(model=str(out)).verify() == []

    def test_encoders(self, tiny_encoder: MakeFolder, tmp_path: Path) -> None:
        folders = [tiny_encoder(), tmp_path / "other"]
        shutil.copytree(folders[0], folders[1])
        rewrite(folders[1], lambda tensors: tensors["classifier.weight"].mul_(3))
        merge_models(names(*folders), tmp_path / "out")
        bias = load_file(folders[0] / "model.safetensors")["classifier.bias"].item()
        np.testing.assert_allclose(scores(tmp_path / "out") - bias, 2 * (scores(folders[0]) - bias), rtol=1e-5)


class TestAdapters:
    @pytest.fixture
    def adapter(self, tiny_decoder: MakeFolder, tmp_path: Path) -> Path:
        """A LoRA adapter that carries a head of its own, without a tokenizer."""
        base = tiny_decoder()
        model = Qwen2ForSequenceClassification.from_pretrained(base)
        model.score.weight.data.mul_(1.5)
        settings = {"target_modules": ["q_proj", "v_proj", "down_proj"], "modules_to_save": ["score"]}
        torch.manual_seed(0)
        get_peft_model(model, LoraConfig(r=4, init_lora_weights=False, **settings)).save_pretrained(tmp_path / "adapter")
        return tmp_path / "adapter"

    @pytest.mark.parametrize("weights", [[1, 0], [0, 1]])
    def test_it_scores_as_it_did(self, weights: list[float], adapter: Path, members: list[Path], tmp_path: Path) -> None:
        for place, sources in enumerate(([adapter, members[0]], [members[0], adapter])):
            out = tmp_path / f"out-{place}"
            merge_models(names(*sources), out, weights=weights)
            np.testing.assert_allclose(scores(out), scores(sources[int(np.argmax(weights))]), rtol=1e-5, atol=1e-5)
            assert load_file(out / "model.safetensors").keys() == load_file(members[0] / "model.safetensors").keys()

    def test_the_mean_of_two(self, adapter: Path, tmp_path: Path) -> None:
        merge_models(names(adapter, adapter), tmp_path / "out")
        np.testing.assert_allclose(scores(tmp_path / "out"), scores(adapter), rtol=1e-5, atol=1e-5)

    def test_layers_that_cannot_be_merged(self, tiny_decoder: MakeFolder, tmp_path: Path) -> None:
        base = tiny_decoder()
        model = Qwen2ForSequenceClassification.from_pretrained(base)
        lora = LoraConfig(r=4, target_modules=["q_proj"], trainable_token_indices={"embed_tokens": [1, 2]})
        get_peft_model(model, lora).save_pretrained(tmp_path / "adapter")
        with pytest.raises(ModelError, match=r"adapter is an adapter with layers .*: model\.embed_tokens.*merge_and_unload"):
            merge_models(names(tmp_path / "adapter", base), tmp_path / "out")


class TestManifest:
    def test_it_is_that_of_the_merged_model(self, members: list[Path], tmp_path: Path) -> None:
        rendering = Rendering("plain", append_eos=False, max_length=64)
        for folder in members[:2]:
            with_manifest(folder, rendering=rendering, training={"base_model": "owner/start"})
        written = merge_models(names(*members[:2]), tmp_path / "out", weights=[3, 1])
        assert written == Manifest.read(tmp_path / "out" / MANIFEST_NAME)
        assert written.rendering == rendering
        assert (written.heads, written.statistics, written.training["base_model"]) == (None, None, "owner/start")
        first, second = written.training["members"]
        assert (first["source"], first["weight"], first["cosine"]) == (str(members[0]), 0.75, pytest.approx(1))
        assert (second["source"], second["weight"]) == (str(members[1]), 0.25)
        assert 0.9 < second["cosine"] < 0.99999
        assert len(first["manifest"]) == 64
        assert len(written.golden) == 8
        assert SequenceClassifier(model=str(tmp_path / "out")).verify() == []

    def test_a_pipeline_gives_the_same(self, members: list[Path], tmp_path: Path) -> None:
        merge_models(names(*members), tmp_path / "out")
        score = pipeline("text-classification", model=str(tmp_path / "out"), device="cpu")("four<|end|>")[0]["score"]
        assert score == pytest.approx(rm.load(tmp_path / "out").score([rm.Sample("", "four")]).values[0], rel=1e-4)

    def test_a_member_without_one_renders_by_default(self, members: list[Path], tmp_path: Path) -> None:
        with_manifest(members[0])
        assert merge_models(names(*members), tmp_path / "out").rendering.max_length == 512
        with_manifest(members[0], rendering=Rendering("tokenizer", append_eos=True, max_length=100))
        with pytest.raises(ModelError, match="differs in its rendering: max_length is 512, not 100"):
            merge_models(names(*members), tmp_path / "other")

    def test_several_outputs(self, tiny_decoder: MakeFolder, tmp_path: Path) -> None:
        folders = [with_manifest(tiny_decoder(num_labels=2), heads=Heads(("good", "short"), (1.0, 0.5))) for _ in range(2)]
        assert merge_models(names(*folders), tmp_path / "out").heads == Heads(("good", "short"), (1.0, 0.5))
        np.testing.assert_allclose(scores(tmp_path / "out"), scores(folders[0]), rtol=1e-6)
        assert rm.load(tmp_path / "out").score(SAMPLES).columns.keys() == {"head/good", "head/short"}
        assert SequenceClassifier(model=str(tmp_path / "out")).verify() == []
        with_manifest(folders[1], heads=Heads(("good", "short"), (1.0, 0.0)))
        with pytest.raises(ModelError, match=r"differs in its heads: weights is \(1\.0, 0\.0\), not \(1\.0, 0\.5\)"):
            merge_models(names(*folders), tmp_path / "other")

    def test_several_labels_that_nobody_has_named_the_reward_of(self, tiny_decoder: MakeFolder, tmp_path: Path) -> None:
        folders = names(tiny_decoder(num_labels=2), tiny_decoder(num_labels=2))
        assert merge_models(folders, tmp_path / "out").golden == []
        merged = rm.load({"provider": "sequence-classifier", "model": str(tmp_path / "out"), "head": 1})
        assert np.isfinite(merged.score(SAMPLES).values).all()


class TestWhatCannotBeAveraged:
    def refused(self, message: str, first: Path, second: Path, tmp_path: Path, **settings: Any) -> None:
        with pytest.raises(ModelError, match=f"{second}.*{message}"):
            merge_models(names(first, second), tmp_path / "out", **settings)
        assert not (tmp_path / "out").exists()
        assert not list(tmp_path.glob(".out*"))

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"config": {"rope_theta": 5.0}}, r"differs in its configuration: rope_parameters\.rope_theta is 5\.0, not "),
            (
                {"config": {"head_dim": 16}},
                r"differs in its configuration: the shape of \S+q_proj.weight is \(64, 32\), not \(32, 32\); .*; and \d+ more",
            ),
            ({"num_labels": 2}, "differs in its configuration: "),
            ({"chat_template": None}, "differs in its tokenizer: the chat template is another"),
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
        self.refused("differs in its tokenization: the token ids of 'Name a colour.' is ", members[0], members[1], tmp_path)

    def test_broken_weights(self, members: list[Path], tmp_path: Path) -> None:
        rewrite(members[1], lambda tensors: tensors["score.weight"][0, :1].fill_(torch.nan))
        self.refused("has broken weights: score.weight holds NaN", members[0], members[1], tmp_path)

    def test_a_model_that_is_none(self, members: list[Path], tmp_path: Path) -> None:
        (tmp_path / "empty").mkdir()
        self.refused("is no model folder", members[0], tmp_path / "empty", tmp_path)

    @pytest.mark.parametrize(
        ("count", "weights"), [(1, None), (0, None), (2, [1]), (2, [1, -1]), (2, [0, 0]), (2, [1, float("nan")])]
    )
    def test_numbers_that_do_not_fit(self, count: int, weights: Any, tmp_path: Path) -> None:
        with pytest.raises(SpecError, match=r"two models or more, not|weights: there must be one for each of the 2 models"):
            merge_models(["a", "b"][:count], tmp_path / "out", weights=weights)


class TestStart:
    def test_another_start_is_refused_unless_allowed(
        self, members: list[Path], tiny_decoder: MakeFolder, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        other = with_manifest(from_another_seed(tiny_decoder()), training={"base_model": "owner/other"})
        with_manifest(members[0], training={"base_model": "owner/start"})
        message = r"not trained from the same weights: the cosine .* is -?0\.0\d\d, .*manifests say owner/other and owner/start"
        with pytest.raises(ModelError, match=f"{other} and {members[0]} were {message}.*allow_different_starts"):
            merge_models(names(members[0], other), tmp_path / "out")
        with caplog.at_level(logging.WARNING):
            manifest = merge_models(names(members[0], other), tmp_path / "out", allow_different_starts=True)
        assert "not trained from the same weights" in caplog.text
        assert manifest.training["base_model"] is None
        expected = scores_of_mean([members[0], other], [0.5, 0.5], tmp_path / "by hand")
        np.testing.assert_allclose(scores(tmp_path / "out"), expected, rtol=1e-6, atol=1e-6)

    def test_it_is_compared_with_the_first_whatever_its_weight(
        self, members: list[Path], tiny_decoder: MakeFolder, tmp_path: Path
    ) -> None:
        other = from_another_seed(tiny_decoder())
        with pytest.raises(ModelError, match="not trained from the same weights"):
            merge_models(names(*members, other), tmp_path / "out", weights=[0, 1, 1, 0])

    def test_heads_with_nothing_in_common_are_reported(
        self, members: list[Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        with caplog.at_level(logging.WARNING):
            merge_models(names(*members), tmp_path / "out")
        assert "heads" not in caplog.text
        rewrite(members[1], lambda tensors: tensors["score.weight"].mul_(-1))
        with caplog.at_level(logging.WARNING):
            merge_models(names(*members), tmp_path / "other")
        assert f"The heads of {members[1]} and {members[0]} have a cosine similarity of -" in caplog.text


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
        with pytest.raises(ModelError, match="holds the folder checkpoint-10"):
            merge_models(names(*members), tmp_path / "out", overwrite=True)
        (tmp_path / "file").touch()
        with pytest.raises(ModelError, match="file is a file"):
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
        assert result.stderr.endswith("Wrote merged: the mean of 3 models.\n")
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
            ("a",): "Error: Averaging takes two models or more, not 1.",
            ("a", "b", "--weights", "1,x"): "'1,x' is no list of numbers such as 1,1,2.",
            ("a", "b", "--weights", "1"): "Error: weights: there must be one for each of the 2 models",
            ("a", "b", "--data", "absent.jsonl"): "Error: There is no file 'absent.jsonl'.",
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
        assert "holds something that is no model" in run("a", "b", "-o", "merged", "--overwrite").output
        Path("merged/config.json").touch()
        assert run("a", "b", "-o", "merged", "--overwrite").exit_code == 0
