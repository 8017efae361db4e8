"""One model as an ensemble: fixed dropout masks, others in every pass."""

from __future__ import annotations

import inspect
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
)

import rm_plugins as rm
from rm_plugins.errors import ManifestError, ModelError, SpecError
from rm_plugins.models.heads import Heads
from rm_plugins.providers.models.mc_dropout import McDropout
from rm_plugins.providers.models.sequence_classifier import SequenceClassifier
from rm_plugins.testing import check_provider
from tests.cheap_ensembles.conftest import SAMPLES, members, near, save_adapter, values, written
from tests.conftest import MakeFolder, make_tokenizer


def dropout(model: Path | str, **settings: Any) -> McDropout:
    provider = rm.load({"provider": "mc-dropout", "model": str(model), **settings})
    assert isinstance(provider, McDropout)
    return provider


class TestDropout:
    def test_an_encoder_runs_with_fixed_masks(self, tiny_encoder: MakeFolder) -> None:
        folder = tiny_encoder()
        provider = dropout(folder, passes=3, max_batch_tokens=200)
        scores = provider.score(SAMPLES)
        passes = members(scores, 3)
        model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
        ids, _ = provider.renderer.token_ids(SAMPLES)
        masks = {name: tensor for name, tensor in provider.model.state_dict().items() if name.endswith(".masks")}
        assert len(masks) == 6  # embeddings, the pooled output, and twice a layer
        for mask in masks.values():
            assert mask.unique().tolist() == [0.0, pytest.approx(1 / 0.9)]
            assert (mask[0] != mask[1]).any()
        for number in range(3):
            hooks = [
                model.get_submodule(name.removesuffix(".masks")).register_forward_hook(
                    lambda layer, arguments, hidden, kept=mask[number]: hidden * kept
                )
                for name, mask in masks.items()
            ]
            with torch.no_grad():
                near(passes[number], [model(input_ids=torch.tensor([row])).logits.item() for row in ids])
            for hook in hooks:
                hook.remove()
        assert scores.columns["std"].min() > 0.01
        near(scores.values, passes.mean(axis=0))
        check_provider(provider, SAMPLES)

    def test_a_decoder_without_dropout_runs_once(self, tiny_decoder: MakeFolder) -> None:
        folder = tiny_decoder()
        provider = dropout(folder, passes=5)
        scores, plain = provider.score(SAMPLES), rm.load(folder).score(SAMPLES)
        for name in ("rows", "tokens", "unique_tokens", "padded_tokens"):
            assert scores.metadata[name] == plain.metadata[name], name
        model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
        masks = provider.model.score.masks
        assert (masks == 0).float().mean().item() == pytest.approx(0.1, abs=0.06)
        ids, _ = provider.renderer.token_ids(SAMPLES)
        with torch.no_grad():
            hidden = torch.stack([model.model(input_ids=torch.tensor([row])).last_hidden_state[0, -1] for row in ids])
            near(members(scores, 5), torch.stack([model.score(hidden * mask)[:, 0] for mask in masks]).numpy())
        check_provider(provider, SAMPLES)

    def test_the_mean_of_many_passes_nears_the_model(self, tiny_decoder: MakeFolder) -> None:
        folder = tiny_decoder()
        scores = dropout(folder, passes=2_000).score(SAMPLES)
        error = scores.columns["std"] / np.sqrt(2_000)
        assert (np.abs(scores.values - values(folder)) < 4 * error).all()
        wider = dropout(folder, passes=2_000, rate=0.5).score(SAMPLES)
        # The variance of a sum whose terms are kept with the probability 1 - p and then divided by it goes with p / (1 - p).
        near(wider.columns["std"] / scores.columns["std"], np.full(len(SAMPLES), 3.0), 0.2)

    def test_seed_rate_and_passes(self, tiny_encoder: MakeFolder) -> None:
        folder = tiny_encoder()
        first = members(dropout(folder, passes=4).score(SAMPLES), 4)
        assert members(dropout(folder, passes=4).score(SAMPLES), 4).tolist() == first.tolist()
        near(members(dropout(folder, passes=2).score(SAMPLES), 2), first[:2])
        for settings in ({"seed": 1}, {"rate": 0.3}):
            other = members(dropout(folder, passes=4, **settings).score(SAMPLES), 4)
            assert (np.abs(other - first).max(axis=1) > 0.01).all()

    def test_masks_are_the_same_everywhere_and_for_good(self, tiny_decoder: MakeFolder) -> None:
        kept = dropout(tiny_decoder(), passes=2).model.score.masks[:, :16].bool().int().tolist()
        assert ["".join(map(str, row)) for row in kept] == ["1111111110111111", "1111111011111111"]

    def test_a_decoder_with_dropout_still_shares_prompts(self, tmp_path: Path) -> None:
        tokenizer = make_tokenizer()
        settings = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256, "initializer_range": 0.4}
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = GPT2ForSequenceClassification(
                GPT2Config(vocab_size=len(tokenizer), num_labels=1, pad_token_id=tokenizer.pad_token_id, **settings)
            )
        model.save_pretrained(tmp_path)
        tokenizer.save_pretrained(tmp_path)
        provider = dropout(tmp_path, passes=3)
        scores = provider.score(SAMPLES)
        assert provider.trained.engine.shares_prefixes
        assert scores.metadata["unique_tokens"] < 0.7 * scores.metadata["tokens"]
        near([provider.score([sample]).values[0] for sample in SAMPLES], scores.values, 1e-4)
        assert {name.rpartition(".")[2] for name in replaced(provider.model)} == {"drop", "resid_dropout", "dropout"}

    def test_attention_weights_are_not_dropped(self, tiny_encoder: MakeFolder, tmp_path: Path) -> None:
        tokenizer = AutoTokenizer.from_pretrained(tiny_encoder())
        with torch.random.fork_rng():
            torch.manual_seed(0)
            config = DebertaV2Config(
                vocab_size=len(tokenizer),
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=2,
                num_attention_heads=4,
                relative_attention=True,
                pos_att_type=["p2c", "c2p"],
                initializer_range=0.4,
                num_labels=1,
                pad_token_id=tokenizer.pad_token_id,
            )
            DebertaV2ForSequenceClassification(config).save_pretrained(tmp_path)
        tokenizer.save_pretrained(tmp_path)
        provider = dropout(tmp_path, passes=2)
        check_provider(provider, SAMPLES)
        assert not [name for name in replaced(provider.model) if name.endswith("attention.self.dropout")]
        assert len(replaced(provider.model)) > 5

    def test_an_adapters_own_dropout(self, tiny_decoder: MakeFolder, tmp_path: Path) -> None:
        adapter = save_adapter(tiny_decoder(), tmp_path / "adapter", 0, lora_dropout=0.3)
        provider = dropout(adapter, passes=3)
        assert len(replaced(provider.model)) == 4
        check_provider(provider, SAMPLES)

    def test_a_model_with_several_heads(self, tiny_decoder: MakeFolder) -> None:
        folder = tiny_decoder(num_labels=3)
        written(folder, heads=Heads(members=3))
        provider = dropout(folder, passes=2_000)
        near(provider.score(SAMPLES).values, values(folder), 0.1)
        assert "member/1999" in provider.score(SAMPLES[:1]).columns

    def test_aggregate_and_transforms(self, tiny_decoder: MakeFolder) -> None:
        folder = tiny_decoder()
        written(folder, mean=1.0, std=2.0)
        plain = members(dropout(folder, passes=4).score(SAMPLES), 4)
        with warnings.catch_warnings():  # passes of one model share a scale
            warnings.simplefilter("error")
            near(dropout(folder, passes=4, aggregate="min").score(SAMPLES).values, plain.min(axis=0))
        scores = dropout(folder, passes=4, aggregate="max", member_transforms=["zscore"] * 4).score(SAMPLES)
        near(scores.values, (plain.max(axis=0) - 1) / 2)
        near(dropout(folder, passes=4, transform="zscore").score(SAMPLES).values, (plain.mean(axis=0) - 1) / 2)

    def test_the_manifest_is_of_the_model_without_dropout(self, tiny_encoder: MakeFolder) -> None:
        folder = tiny_encoder()
        written(folder)
        provider = dropout(folder, cache="memory")
        before = provider.score(SAMPLES).values.tolist()
        assert provider.verify() == []
        assert provider.score(SAMPLES).values.tolist() == before
        path = folder / "model.safetensors"
        save_file({name: tensor * 1.01 for name, tensor in load_file(path).items()}, path, {"format": "pt"})
        with pytest.raises(ManifestError, match="does not match the model"):
            dropout(folder)
        assert dropout(folder, verify=False).verify()

    def test_the_cache_keeps_seeds_apart(self, tiny_encoder: MakeFolder, tiny_decoder: MakeFolder, tmp_path: Path) -> None:
        for folder in (tiny_encoder(), tiny_decoder()):
            cache = str(tmp_path / f"{folder.name}.sqlite")
            first = dropout(folder, passes=2, cache=cache).score(SAMPLES)
            again = dropout(folder, passes=2, cache=cache).score(SAMPLES)
            assert again.values.tolist() == first.values.tolist()
            assert again.metadata["cached"] == again.metadata["rows"]
            for settings in ({"passes": 2, "seed": 1}, {"passes": 2, "rate": 0.2}, {"passes": 3}):
                assert dropout(folder, cache=cache, **settings).score(SAMPLES).metadata["cached"] == 0
            near(values(folder, cache=cache), values(folder))

    def test_keys(self, tiny_decoder: MakeFolder) -> None:
        own = {"passes", "rate", "seed"}
        assert set(inspect.signature(McDropout).parameters) == own | set(inspect.signature(SequenceClassifier).parameters) - {
            "common_scale"
        }
        folder = tiny_decoder()
        for settings, message in (
            ({"passes": 1}, "passes: there must be two or more"),
            ({"rate": 0.0}, "rate: it must be above 0 and below 1, not 0.0"),
            ({"rate": 1.0}, "rate: it must be above 0"),
            ({"member_transforms": ["scale"]}, "member_transforms: there are 1 for 8 members"),
        ):
            with pytest.raises(SpecError) as caught:
                dropout(folder, **settings)
            assert message in str(caught.value)

    def test_a_model_with_nothing_to_drop(self, tiny_decoder: MakeFolder, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("rm_plugins.models.fixed_dropout._HEADS", ())
        with pytest.raises(ModelError, match="has no dropout layers, and no head called"):
            dropout(tiny_decoder())


def replaced(model: Any) -> list[str]:
    """The names of the layers that fixed dropout took the place of."""
    return [name for name, module in model.named_modules() if type(module).__name__ == "FixedDropout"]
