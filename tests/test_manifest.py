"""The manifest as a file: written whole, read strictly, compared with what lies beside it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

import rm_plugins as rm
from rm_plugins.errors import ManifestError
from rm_plugins.files import write_atomically
from rm_plugins.models.golden import GOLDEN_SAMPLES
from rm_plugins.models.manifest import MANIFEST_NAME, GoldenScore, Manifest, ScoreStatistics, file_digests, token_digest
from rm_plugins.rendering.rendering import Rendering
from rm_plugins.wire import sample_to_json


def manifest(**settings: Any) -> Manifest:
    return Manifest(
        **{
            "created_by": {"rm-plugins": rm.__version__, "trl": "1.0"},
            "rendering": Rendering("tokenizer", append_eos=True, max_length=512, template_kwargs={"thinking": False}),
            "dtype": "float32",
            "statistics": ScoreStatistics(mean=0.5, std=2.0, min=-3.0, max=3.0, count=10, source="eval"),
            "training": {"loss": "bradley-terry", "rows": 100},
            "golden": [
                GoldenScore(sample=sample_to_json(sample), token_ids=token_digest([1, 2]), score=0.1)
                for sample in GOLDEN_SAMPLES
            ],
            **settings,
        }
    )


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder with the names of a model's files."""
    for name in ("model.safetensors", "config.json", "tokenizer.json", "chat_template.jinja", "vocab.txt"):
        (tmp_path / name).write_text(name)
    for name in ("trainer_state.json", "optimizer.pt", "README.md", ".hidden.json"):
        (tmp_path / name).write_text("not the model")
    return tmp_path


def test_what_is_written_is_read(tmp_path: Path) -> None:
    written = manifest()
    path = written.write(tmp_path)
    assert path == tmp_path / MANIFEST_NAME
    assert Manifest.read(path) == written
    assert json.loads(path.read_text())["version"] == 1


def test_golden_samples_survive_the_file(tmp_path: Path) -> None:
    read = Manifest.read(manifest().write(tmp_path))
    assert [golden.as_sample() for golden in read.golden] == list(GOLDEN_SAMPLES)
    assert {sample.is_conversational for sample in GOLDEN_SAMPLES} == {True, False}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "version: Input should be 1"),
        ({"colour": "blue"}, "colour: Extra inputs are not permitted"),
        ({"dtype": None}, "dtype: Input should be a valid string"),
        ({"statistics": {"mean": 1.0}}, r"statistics\.std: Field required"),
        (
            {"rendering": {"chat_template": "x", "append_eos": True, "max_length": 1}},
            r"rendering\.chat_template: Input should be",
        ),
        (
            {"rendering": {"chat_template": "plain", "append_eos": True, "max_length": 0}},
            "rendering: .*max_length must be at least 1",
        ),
    ],
)
def test_anything_else_is_refused_with_its_place(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = manifest().write(tmp_path)
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ManifestError, match=f"{MANIFEST_NAME} is not a manifest that this version .*: {message}"):
        Manifest.read(path)


@pytest.mark.parametrize("text", ["", "[]", "{", "\x00"])
def test_a_file_of_something_else_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / MANIFEST_NAME
    path.write_text(text)
    with pytest.raises(ManifestError, match="the file: "):
        Manifest.read(path)


class TestWriting:
    def test_it_replaces_what_was_there_and_leaves_nothing_else(self, tmp_path: Path) -> None:
        path = tmp_path / "new" / "file.json"
        write_atomically(path, "one")
        write_atomically(path, "naïve 東京")
        assert path.read_text(encoding="utf-8") == "naïve 東京"
        assert os.listdir(path.parent) == ["file.json"]
        assert path.stat().st_mode & 0o777 == 0o644

    def test_a_failure_leaves_the_old_file_and_nothing_else(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = write_atomically(tmp_path / "file.json", "old")

        def full(*_: object) -> None:
            raise OSError("no space left on device")

        monkeypatch.setattr(os, "replace", full)
        with pytest.raises(OSError, match="no space left"):
            write_atomically(path, "new")
        assert path.read_text() == "old"
        assert os.listdir(tmp_path) == ["file.json"]


class TestFiles:
    def test_the_models_files_are_those_that_make_its_scores(self, model: Path) -> None:
        assert list(file_digests(model)) == [
            "chat_template.jinja",
            "config.json",
            "model.safetensors",
            "tokenizer.json",
            "vocab.txt",
        ]
        assert file_digests(model)["config.json"].size == len("config.json")

    def test_the_manifest_is_none_of_them(self, model: Path) -> None:
        written = manifest(files=file_digests(model))
        written.write(model)
        assert file_digests(model) == written.files
        assert written.file_problems(model) == written.size_problems(model) == []

    def test_what_changed_is_named(self, model: Path) -> None:
        written = manifest(files=file_digests(model))
        (model / "model.safetensors").write_text("MODEL.safetensors")
        (model / "config.json").unlink()
        assert written.size_problems(model) == []  # the size is the same
        assert written.file_problems(model) == [
            "config.json is missing",
            "model.safetensors has other contents than were written",
        ]
        (model / "model.safetensors").write_text("longer than it was")
        assert written.size_problems(model) == ["model.safetensors has 18 bytes; 17 were written"]


class TestTolerance:
    def test_it_grows_with_the_score_and_the_coarser_dtype(self) -> None:
        assert manifest().tolerance(0.0, "float32") == pytest.approx(1e-4)
        assert manifest().tolerance(-9.0, "float32") == pytest.approx(1e-3)
        assert manifest().tolerance(0.0, "bfloat16") == pytest.approx(5e-2)
        assert manifest(dtype="bfloat16").tolerance(1.0, "float32") == pytest.approx(1e-1)


def test_a_digest_tells_token_ids_apart() -> None:
    assert token_digest([1, 23]) == token_digest((1, 23))
    assert len({token_digest(ids) for ids in ([1, 23], [12, 3], [23, 1], [1, 23, 0], [])}) == 5
