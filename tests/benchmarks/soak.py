"""Whether the server's memory stays flat: as many requests as an hour brings, good ones, bad ones and ones that are broken off.

Run it with ``python -m tests.benchmarks.soak``; it prints the memory after each tenth of the requests, of the server and of a
client that scores through ``provider: remote``, and ends with status 1 where one grows on.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import string
import tempfile
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from transformers import Qwen2Config, Qwen2ForSequenceClassification

import rm_plugins as rm
from tests.benchmarks.serving import OURS, Connection, resident, server
from tests.conftest import make_tokenizer

CLIENTS = 16
GROWTH = 0.05
"""How much larger the last tenth's memory may be than that of the third, when every cache is warm."""


def save_tiny_decoder(folder: Path) -> Path:
    """A random classifier that is small enough for the server itself to be what is measured."""
    tokenizer = make_tokenizer()
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    special = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id, "bos_token_id": None}
    config = Qwen2Config(vocab_size=len(tokenizer), num_key_value_heads=2, num_labels=1, **sizes, **special)
    Qwen2ForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def text_of(chance: random.Random) -> str:
    """Words that no request before had."""
    return " ".join("".join(chance.choices(string.ascii_lowercase, k=6)) for _ in range(chance.randint(1, 60)))


def request(chance: random.Random) -> tuple[str, bytes]:
    """A path and a body: mostly good ones."""
    texts = [text_of(chance) for _ in range(chance.randint(1, 8))]
    rewards = {"samples": [{"prompt": "Q", "completion": text} for text in texts]}
    bodies = {
        "/v1/rewards": rewards,
        "/v1/render": rewards,
        "/classify": {"input": texts},
        "/score": {"queries": "Q", "documents": texts},
        "/predict": {"inputs": [[text] for text in texts]},
        "/get_reward": {"query": texts},
    }
    path = chance.choice([*bodies, "/v1/rewards", "/v1/rewards"])
    body = json.dumps(bodies[path]).encode()
    return (path, body) if chance.random() < 0.95 else (path, body[: len(body) // 2])


async def send(url: str, requests: int, seed: int) -> None:
    """Send requests from one client; every hundredth is broken off."""
    chance = random.Random(seed)
    connection = Connection(url)
    for number in range(requests):
        path, body = request(chance)
        if number % 100 == 99:
            asking = asyncio.ensure_future(connection.post(path, body))
            await asyncio.sleep(0.001)
            asking.cancel()
            connection.close()
            connection = Connection(url)
            continue
        status, _ = await connection.post(path, body)
        assert status in (200, 400, 422), f"{path} answered {status}"
    connection.close()


async def everybody(url: str, requests: int, seed: int) -> None:
    """Send requests from all clients."""
    await asyncio.gather(*[send(url, requests // CLIENTS, seed * CLIENTS + client) for client in range(CLIENTS)])


def main() -> None:
    """Send the requests, and say what memory there was."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.soak", description=__doc__)
    parser.add_argument("--requests", type=int, default=40_000, help="11 a second for an hour (default: 40000)")
    requests = parser.parse_args().requests
    seen: list[tuple[float, float]] = []
    with (
        tempfile.TemporaryDirectory() as scratch,
        server(OURS, save_tiny_decoder(Path(scratch) / "model"), max_queue=4_096) as (url, process),
    ):
        remote = rm.load(url)
        chance = random.Random(0)
        for tenth in range(10):
            asyncio.run(everybody(url, requests // 10, tenth))
            for _ in range(requests // 500):
                remote.score([rm.Sample("Q", text_of(chance)) for _ in range(8)])
            seen.append((resident(process), resident(os.getpid())))
            print(
                f"{(tenth + 1) * requests // 10} requests: server {seen[-1][0]:.0f} MiB, client {seen[-1][1]:.0f} MiB",
                flush=True,
            )
    growth = [last / third - 1 for third, last in zip(seen[2], seen[-1], strict=True)]
    print(f"From the third tenth to the last, the server grew by {growth[0]:.1%} and the client by {growth[1]:.1%}.")
    raise SystemExit(max(growth) > GROWTH)


if __name__ == "__main__":
    main()
