"""Checkpoints with code of their own, which writes a file when it runs."""

from __future__ import annotations

import json
from pathlib import Path


def with_tokenizer_code(folder: Path, ran: Path) -> Path:
    """Gives a model's folder a tokenizer of its own; it has none of a model any more."""
    (folder / "config.json").unlink()  # by which transformers would know a tokenizer of its own
    path = folder / "tokenizer_config.json"
    own = {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": [None, "own.Own"]}}
    path.write_text(json.dumps({**json.loads(path.read_text()), **own}))
    (folder / "own.py").write_text(
        f"open({str(ran)!r}, 'w').close()\nfrom transformers import PreTrainedTokenizerFast\n"
        "class Own(PreTrainedTokenizerFast):\n    pass\n"
    )
    return folder


def with_model_code(folder: Path, ran: Path) -> Path:
    """Gives a model's folder a configuration and classes of its own."""
    path = folder / "config.json"
    classes = ("AutoModelForCausalLM", "AutoModelForSequenceClassification")
    own = {"model_type": "own", "auto_map": {"AutoConfig": "own_config.Own", **dict.fromkeys(classes, "own_config.Model")}}
    path.write_text(json.dumps({**json.loads(path.read_text()), **own}))
    (folder / "own_config.py").write_text(
        f"open({str(ran)!r}, 'w').close()\nfrom transformers import Qwen2Config, Qwen2ForCausalLM\n"
        "class Own(Qwen2Config):\n    model_type = 'own'\nclass Model(Qwen2ForCausalLM):\n    config_class = Own\n"
    )
    return folder
