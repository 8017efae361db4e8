"""What a model card calls models, and where an adapter finds its base."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset
from huggingface_hub import ModelCard
from peft import LoraConfig
from transformers import AutoModelForSequenceClassification, AutoTokenizer, Qwen2Config, Qwen2ForSequenceClassification

import rm_plugins as rm
from rm_plugins.errors import ModelError
from rm_plugins.models.manifest import Manifest
from rm_plugins_trl import RewardConfig, RewardTrainer
from rm_plugins_trl.reward_training import model_card
from tests.conftest import MakeFolder
from tests.trl.conftest import TRL_WARNINGS

pytestmark = TRL_WARNINGS

ROWS = [{"prompt": "Name a colour.", "chosen": " It is blue.", "rejected": " two"}] * 4


@pytest.fixture
def base(tiny_decoder: MakeFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A base model, by a path that is relative to the working directory."""
    shutil.copytree(tiny_decoder(), tmp_path / "work" / "tiny-base")
    monkeypatch.chdir(tmp_path / "work")
    return "./tiny-base"


def trained(model: Any, out: str, *, adapter: bool = False, **settings: Any) -> RewardTrainer:
    args = RewardConfig(out, max_steps=1, report_to="none", use_cpu=True, **settings)
    tokenizer = None if isinstance(model, str) else AutoTokenizer.from_pretrained("tiny-base")
    peft_config = LoraConfig(r=2, target_modules=["q_proj"]) if adapter else None
    trainer = RewardTrainer(
        model, args, train_dataset=Dataset.from_list(ROWS), processing_class=tokenizer, peft_config=peft_config
    )
    trainer.train()
    return trainer


def card_of(trainer: RewardTrainer, **named: Any) -> str:
    trainer.create_model_card(**named)
    text = Path(trainer.args.output_dir, "README.md").read_text(encoding="utf-8")
    assert "None" not in text
    return text


class TestCard:
    @pytest.mark.parametrize("adapter", [False, True])
    def test_of_a_local_base(self, base: str, adapter: bool) -> None:
        text = card_of(trained(base, "out/Colours-Reward", adapter=adapter))
        assert "\n# Colours-Reward\n" in text
        assert "A reward model, fine-tuned from the local model `tiny-base`. It scores" in text
        assert 'pipeline("text-classification", model="Colours-Reward")' in text
        assert 'rm.load("Colours-Reward")' in text
        metadata: Any = ModelCard(text).data
        assert (metadata.model_name, metadata.base_model) == ("Colours-Reward", None)

    def test_of_the_working_directory_as_output(self, base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "Here").mkdir()
        monkeypatch.chdir(tmp_path / "Here")
        assert "\n# Here\n" in card_of(trained("../work/tiny-base", "."))

    def test_of_a_hub_base_that_is_pushed(self, base: str) -> None:
        model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
        model.config._name_or_path = "somebody/tiny"
        text = card_of(trained(model, "out", hub_model_id="somebody/Colours"))
        assert "\n# Colours\n" in text
        assert "[somebody/tiny](https://huggingface.co/somebody/tiny)" in text
        assert 'pipeline("text-classification", model="somebody/Colours")' in text

    def test_of_a_model_made_in_python(self, base: str) -> None:
        size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
        config = Qwen2Config(vocab_size=400, num_key_value_heads=1, num_labels=1, **size)
        text = card_of(trained(Qwen2ForSequenceClassification(config), "out"), model_name="Mine")
        assert "\n# Mine\n" in text
        assert "A reward model, trained from a model that was made in Python. It scores" in text

    def test_its_code_runs_and_nothing_in_it_is_empty(
        self, base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        text = card_of(trained(base, "out/Colours-Reward"))
        monkeypatch.chdir("out")
        names: dict[str, Any] = {}
        capsys.readouterr()
        for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
            exec(block, names)
        rewards = re.findall(r"-?\d+\.\d+", capsys.readouterr().out)
        assert len(names["reward_funcs"]) == 1
        assert len(rewards) == 2
        assert not re.search(r"\n#+ [^\n]*\n\s*(\n#+ |$)", text.replace("# Python", ""))
        assert "\n\n\n" not in text
        assert "licence" not in text.partition("\n---\n")[0]

    @pytest.mark.parametrize(
        ("source", "said"),
        [
            ("", "trained from a model that was made in Python"),
            ("/tmp/tmpab12cd34", "fine-tuned from a local model"),
            ("/data/checkpoint-500", "fine-tuned from a local model"),
            (
                "/hub/models--somebody--tiny/snapshots/0123",
                "fine-tuned from [somebody/tiny](https://huggingface.co/somebody/tiny)",
            ),
            ("somebody/tiny", "fine-tuned from [somebody/tiny](https://huggingface.co/somebody/tiny)"),
        ],
    )
    def test_no_base_by_a_name_that_means_nothing_to_others(self, source: str, said: str) -> None:
        assert model_card._origin(source) == said


class TestBase:
    SAMPLES = (rm.Sample("Name a colour.", " blue"), rm.Sample("Name a colour.", " two"))

    def scores(self, folder: str | Path) -> list[float]:
        values: list[float] = rm.load(str(folder)).score(list(self.SAMPLES)).values.tolist()
        return values

    @pytest.mark.parametrize("loaded", [False, True])
    def test_a_saved_adapter_names_a_whole_path(
        self, base: str, loaded: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1) if loaded else base
        trained(model, "out", adapter=True)
        named = json.loads(Path("out/adapter_config.json").read_text())["base_model_name_or_path"]
        assert named == str(tmp_path / "work" / "tiny-base")
        here = self.scores("out")
        monkeypatch.chdir(tmp_path)
        assert self.scores("work/out") == here
        assert Manifest.read(Path("work/out/reward_manifest.json")).training["loss"] == "bradley-terry"

    def renamed(self, base: str, name: str | None) -> Path:
        trained(base, "out", adapter=True)
        config = Path("out/adapter_config.json")
        config.write_text(json.dumps({**json.loads(config.read_text()), "base_model_name_or_path": name}))
        return Path("out").absolute()

    @pytest.mark.parametrize("name", ["../tiny-base", "tiny-base"])
    def test_a_relative_path_is_found_beside_the_adapter(
        self, base: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder = self.renamed(base, name)
        if name == "tiny-base":
            shutil.copytree(base, folder / name)
        here = self.scores(folder)
        monkeypatch.chdir(tmp_path)
        assert not os.path.isdir(name)
        np.testing.assert_allclose(self.scores(folder), here)

    @pytest.mark.parametrize("name", ["./tiny-base", "/nowhere/tiny-base", "runs/of/tiny-base"])
    def test_a_path_that_leads_nowhere_is_an_error_of_ours(
        self, base: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder = self.renamed(base, name)
        monkeypatch.chdir(tmp_path)
        with pytest.raises(
            ModelError, match=r"is an adapter of '.*tiny-base', .*there is no folder /.*\. Set base_model_name_or_path"
        ) as told:
            rm.load(str(folder))
        assert f"base_model_name_or_path in {folder / 'adapter_config.json'}" in str(told.value)

    def test_an_adapter_of_nothing(self, base: str) -> None:
        with pytest.raises(ModelError, match="does not name its base model"):
            rm.load(str(self.renamed(base, None)))

    @pytest.mark.filterwarnings("ignore:Could not find a config file in somebody/tiny:UserWarning")  # peft's, without a hub
    def test_a_hub_id_stays(self, base: str) -> None:
        model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
        model.name_or_path = model.config._name_or_path = "somebody/tiny"
        trained(model, "out", adapter=True)
        assert json.loads(Path("out/adapter_config.json").read_text())["base_model_name_or_path"] == "somebody/tiny"
        with pytest.raises(ModelError, match=r"(?s)adapter of 'somebody/tiny', which cannot be loaded.* absolute path"):
            rm.load("out")
