"""What a remote provider sent to a server, and tokenizers to render samples with."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

import rm_plugins as rm
from rm_plugins.protocols import Protocol
from rm_plugins.providers.remote import Remote
from tests.conftest import CORPUS, make_tokenizer
from tests.servers import serving

SAMPLES = [rm.Sample("What is two and two? ", "four"), rm.Sample("name a colour ", "rain"), rm.Sample("", "the sea")]
TWO_TEXTS = [(str(sample.prompt), str(sample.completion)) for sample in SAMPLES]


class Seen:
    """Another app, whose requests are kept."""

    def __init__(self, app: Any) -> None:
        self.app = app
        self.bodies: list[tuple[str, Any]] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def kept() -> Any:
            message = await receive()
            if message["type"] == "http.request" and message.get("body"):
                self.bodies.append((scope["path"], json.loads(message["body"])))
            return message

        await self.app(scope, kept, send)

    def sent(self, path: str, key: str) -> list[Any]:
        return [entry for asked, body in self.bodies if asked == path for entry in body[key]]


@contextmanager
def remote(protocol: Protocol, app: Any, **settings: Any) -> Iterator[tuple[Remote, Seen]]:
    seen = Seen(app)
    with serving(seen, lifespan="off") as url:
        provider = Remote(url=url, protocol=protocol, concurrency=1, **settings)
        yield provider, seen
        provider.close()


def decoder(folder: Path, *, pad: str = "<|end|>") -> tuple[str, Any]:
    """The folder of a decoder's tokenizer, whose padding is EOS unless it is told otherwise."""
    tokenizer = make_tokenizer(pad=pad)
    tokenizer.save_pretrained(folder)
    return str(folder), tokenizer


def encoder(folder: Path, *, types: bool) -> tuple[str, Any]:
    """The folder of an encoder's tokenizer: BERT's with token types, or RoBERTa's without."""
    words = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    words.train_from_iterator(CORPUS, trainers.WordPieceTrainer(vocab_size=300, special_tokens=special, show_progress=False))
    pair = "[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1" if types else "[CLS]:0 $A:0 [SEP]:0 [SEP]:0 $B:0 [SEP]:0"
    words.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair=pair, special_tokens=[(token, special.index(token)) for token in ("[CLS]", "[SEP]")]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_input_names=["input_ids", *(["token_type_ids"] if types else []), "attention_mask"],
    )
    tokenizer.save_pretrained(folder)
    return str(folder), tokenizer
