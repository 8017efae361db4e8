"""Whether scoring could run over packed rows, as training does: time and memory of both ways, in one process.

Run it with ``python -m tests.benchmarks.one_forward``; it writes a section of ``docs/benchmarks.md``.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

# Before torch is imported: with one thread, CPU seconds barely depend on what else runs.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AutoModelForSequenceClassification
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import rm_plugins as rm
from rm_plugins.engine.batch_forward import BatchForward
from rm_plugins.engine.budget import CPU_BATCH_TOKENS
from rm_plugins.engine.engine import ScoringEngine
from rm_plugins.engine.transformers_internals import attention_as
from rm_plugins.files import write_atomically
from rm_plugins.scores import FloatArray
from tests.benchmarks.models import DecoderSize, save_decoder, save_minilm, train_tokenizer
from tests.benchmarks.page import ONE_FORWARD, machine, table, with_section
from tests.benchmarks.scoring import DATA, LONGEST_COMPLETION, PAGE, SHORTEST_COMPLETION, Sizes
from tests.benchmarks.texts import Texts, spread

CACHED = "scoring: cached prefixes"
WHOLE = "the same, with every layer computed for all tokens"
PACKS = "training's forward: packs within the token budget"
ONE_PACK = "training's forward: one pack of all rows"
BLOCKS = "packs within the token budget, block-diagonal attention"

TOLERANCE = 2e-5
"""The largest difference of a score, relative to 1 + abs(score)."""

_LONG = 15.0
"""CPU seconds; a way that takes longer runs once."""

_BLOCK_ATTENTION = "benchmark_blocks"
_TINY = DecoderSize(vocabulary=1_024, hidden=32, intermediate=96, layers=2, heads=1, key_value_heads=1)

Rows = Sequence[Sequence[int]]


@dataclass(frozen=True, slots=True)
class Measured:
    """What one way needs for the rows of a shape.

    Args:
        seconds: Median CPU seconds.
        growth: The largest growth of the process's memory, in bytes.
        tokens: Tokens that the model ran over, padding included.
        difference: The largest difference of a score from that of `CACHED`.
    """

    seconds: float
    growth: int
    tokens: int
    difference: float


@dataclass(frozen=True, slots=True)
class Shape:
    """Rows and the ways to score them.

    Args:
        title: What the table calls it.
        rows: Token ids per row.
        ways: Functions that return the scores, by name, each with its model.
    """

    title: str
    rows: Rows
    ways: Mapping[str, tuple[Any, Callable[[], FloatArray]]]


def decoder_ways(folder: Path, rows: Rows) -> dict[str, tuple[Any, Callable[[], FloatArray]]]:
    """The ways to score rows with a decoder; each has loaded the model for itself."""
    ways = engine_ways(folder, rows)
    for name, max_tokens in ((PACKS, CPU_BATCH_TOKENS), (ONE_PACK, sum(map(len, rows)))):
        model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
        BatchForward(model, max_tokens)
        ways[name] = model, _packed(model, rows)
    return ways


def engine_ways(folder: Path, rows: Rows) -> dict[str, tuple[Any, Callable[[], FloatArray]]]:
    """The scoring engine, and the engine without its shortcut in the last layer."""
    ways: dict[str, tuple[Any, Callable[[], FloatArray]]] = {}
    for name in (CACHED, WHOLE):
        model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
        engine = ScoringEngine(model)
        engine.reads_last_layer = name == CACHED
        ways[name] = model, _of_engine(engine, rows)
    return ways


def _of_engine(engine: ScoringEngine, rows: Rows) -> Callable[[], FloatArray]:
    return lambda: engine.outputs(rows)[0][:, 0]


def _packed(model: Any, rows: Rows) -> Callable[[], FloatArray]:
    @torch.inference_mode()
    def score() -> FloatArray:
        logits: FloatArray = model(rows=rows).logits[:, 0].double().numpy()
        return logits

    return score


def block_diagonal(folder: Path, rows: Rows) -> tuple[Any, Callable[[], FloatArray]]:
    """BERT over packed rows, whose attention runs row by row; its head reads each row's first token."""
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    packs: list[list[int]] = [[]]
    tokens = 0
    for row in range(len(rows)):
        if packs[-1] and tokens + len(rows[row]) > CPU_BATCH_TOKENS:
            packs.append([])
            tokens = 0
        packs[-1].append(row)
        tokens += len(rows[row])

    @torch.inference_mode()
    def score() -> FloatArray:
        scores = np.empty(len(rows))
        for pack in packs:
            lengths = [len(rows[row]) for row in pack]
            ids = torch.tensor([[token for row in pack for token in rows[row]]])
            positions = torch.cat([torch.arange(length) for length in lengths])[None]
            with attention_as(model, _BLOCK_ATTENTION):
                hidden = model.bert(input_ids=ids, position_ids=positions, row_lengths=lengths).last_hidden_state[0]
            starts = torch.tensor([0, *lengths[:-1]]).cumsum(0)
            scores[pack] = model.classifier(model.bert.pooler(hidden[starts][:, None]))[:, 0].double().numpy()
        return scores

    return model, score


def _attend_in_blocks(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    row_lengths: Sequence[int] = (),
    **settings: Any,
) -> tuple[torch.Tensor, None]:
    """The attention of each row of a pack to itself, with the signature of transformers' attention implementations."""
    parts = zip(*(torch.split(states, [*row_lengths], 2) for states in (query, key, value)), strict=True)
    attended = [scaled_dot_product_attention(q, k, v, scale=scaling) for q, k, v in parts]
    return torch.cat(attended, 2).transpose(1, 2), None


ALL_ATTENTION_FUNCTIONS.register(_BLOCK_ATTENTION, _attend_in_blocks)


def measure(shape: Shape, rounds: int) -> dict[str, Measured]:
    """Run every way in turn; only the memory of the first run of each counts, and its time if it takes longer than `_LONG`."""
    tokens = {name: _tokens_of(model) for name, (model, _) in shape.ways.items()}
    first, growth = {}, {}
    times: dict[str, list[float]] = {name: [] for name in shape.ways}

    def run(name: str, score: Callable[[], FloatArray]) -> FloatArray:
        tokens[name].clear()
        started = time.process_time()
        scores = score()
        times[name].append(time.process_time() - started)
        return scores

    for name, (_, score) in shape.ways.items():
        first[name], growth[name] = _growth(partial(run, name, score))
    repeated = [name for name in shape.ways if times[name][0] < _LONG]
    for name in repeated:
        times[name].clear()
    for _ in range(rounds):
        for name in repeated:
            run(name, shape.ways[name][1])
    measured = {}
    for name in shape.ways:
        difference = float((np.abs(first[name] - first[CACHED]) / (1 + np.abs(first[CACHED]))).max())
        if not difference <= TOLERANCE:
            raise SystemExit(f"{shape.title}: the scores of {name!r} differ by {difference:.1e}; {TOLERANCE} is allowed.")
        measured[name] = Measured(statistics.median(times[name]), growth[name], sum(tokens[name]), difference)
        print(f"{shape.title} | {name}: {measured[name]}", flush=True)
    return measured


def _tokens_of(model: Any) -> list[int]:
    """The numbers of tokens that the model runs over from now on, by run."""
    tokens: list[int] = []
    model.get_input_embeddings().register_forward_pre_hook(lambda _, inputs: tokens.append(inputs[0].numel()))
    return tokens


def _growth(score: Callable[[], FloatArray]) -> tuple[FloatArray, int]:
    """The scores, and how much more memory the process holds at the peak of the run than before it, in bytes (Linux)."""
    ctypes.CDLL(None).malloc_trim(0)  # otherwise the run would reuse what earlier ones have freed
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak begins anew
    before = _status("VmRSS")
    scores = score()
    return scores, _status("VmHWM") - before


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) * 1024


def long_prompt(source: random.Random, prompt: int, completions: int) -> list[list[int]]:
    """One prompt with completions of 16 to 64 tokens."""
    beginning = _tokens(source, prompt)
    return [beginning + _tokens(source, source.randint(16, 64)) for _ in range(completions)]


def dialogues(source: random.Random, number: int, turns: int) -> list[list[int]]:
    """Dialogues with one system prompt; every turn is a row that continues the previous one, and has two answers."""
    system, rows = _tokens(source, 200), []
    for _ in range(number):
        row = system
        for _ in range(turns):
            row = row + _tokens(source, source.randint(20, 60))
            rows += [row + _tokens(source, source.randint(10, 40)) for _ in range(2)]
    return rows


def mixed(source: random.Random, number: int) -> list[list[int]]:
    """Rows of 10 to 300 tokens that share nothing."""
    return [_tokens(source, source.randint(10, 300)) for _ in range(number)]


def _tokens(source: random.Random, number: int) -> list[int]:
    return [source.randrange(5, 1_000) for _ in range(number)]


def shapes(texts: Texts, scratch: Path, *, small: bool) -> list[Shape]:
    """What is measured."""
    sizes, source = Sizes(), random.Random(0)
    tokenizer = train_tokenizer(texts.corpus(), sizes.decoder.vocabulary)
    tiny = save_decoder(scratch / "tiny", _TINY, tokenizer)
    prompt, many = (300, 4) if small else (8_192, 64)
    deep = long_prompt(source, prompt, many)
    talks = dialogues(source, 2 if small else 16, 3 if small else 8)
    rows = mixed(source, 10 if small else 400)
    found = [
        Shape(f"a prompt of {prompt:,} tokens with {many} completions, tiny decoder", deep, decoder_ways(tiny, deep)),
        Shape(f"{len(talks)} answers in dialogues of several turns, tiny decoder", talks, decoder_ways(tiny, talks)),
        Shape(f"{len(rows):,} rows without shared beginnings, tiny decoder", rows, decoder_ways(tiny, rows)),
    ]
    if small:
        return found
    decoder = save_decoder(scratch / "decoder", sizes.decoder, tokenizer)
    lengths = spread(SHORTEST_COMPLETION, LONGEST_COMPLETION, sizes.completions)
    renderer = rm.load(decoder).renderer
    groups = renderer.token_ids(texts.groups(tokenizer, sizes.groups, sizes.prompt_tokens, lengths))[0]
    solutions = renderer.token_ids(texts.solutions(8))[0]
    minilm = save_minilm(scratch / "minilm")
    renderer = rm.load(minilm).renderer
    answers = renderer.token_ids(texts.answers(renderer, 24, sizes.most_tokens))[0]
    return [
        Shape(
            f"{len(answers)} of (a)'s texts through MiniLM",
            answers,
            {**engine_ways(minilm, answers), BLOCKS: block_diagonal(minilm, answers)},
        ),
        Shape("(b): prompts of 512 tokens with 8 completions", groups, decoder_ways(decoder, groups)),
        Shape(f"{len(solutions)} of (c)'s real solutions", solutions, decoder_ways(decoder, solutions)),
        *found,
    ]


def render(command: str, rounds: int, results: Mapping[str, Mapping[str, Measured]]) -> str:
    """The section of the page."""
    parts = [
        f"Made by `{command}`: {machine()}",
        "Training runs over packed rows: without padding, and with the prompt of several rows in the same pass, because gradients need "
        "it there.\nScoring keeps only the keys and values of a prompt and runs the completions in later micro-batches: on a CPU, without "
        "padding as well.\nThere, a completion attends to its prompt and to its own tokens separately, and the two results are merged by "
        "their log-sum-exp. So\nall completions of a prompt read its keys together, without copies. Rows without a shared prompt are "
        "padded. This section measures\nwhether training's forward, without gradients, could serve scoring as well.",
        f"CPU seconds with one thread, medians of {rounds} {'round' if rounds == 1 else 'rounds'} in turn, and the largest growth of the "
        f"process's memory in the first run.\nScores agree within {TOLERANCE:g}. Not run on a GPU.",
    ]
    for title, measured in results.items():
        ours = measured[CACHED]
        rows = [
            (
                name,
                f"{one.tokens:,}",
                f"{one.seconds:.2f}",
                f"{one.seconds / ours.seconds:.2f}",
                f"{one.growth / 2**20:,.0f}",
                "not run on a GPU",
            )
            for name, one in measured.items()
        ]
        parts.append(
            f"{title[0].upper()}{title[1:]}:\n\n" + table(("", "tokens", "seconds", "relative", "growth in MiB", "GPU"), rows)
        )
    return "\n\n".join([*parts, _finding(results)])


def _finding(results: Mapping[str, Mapping[str, Measured]]) -> str:
    """What follows from the figures."""
    slower = max(results.values(), key=lambda measured: _times(measured, PACKS, "seconds"))
    larger = max(results.values(), key=lambda measured: _times(measured, ONE_PACK, "growth"))
    titles = {id(measured): title for title, measured in results.items()}
    similar = [
        f"{_times(measured, PACKS, 'seconds') / _times(measured, WHOLE, 'seconds'):.2f}"
        for measured in results.values()
        if PACKS in measured and measured is not slower
    ]
    return (
        f"Packs within the token budget take up to {_times(slower, PACKS, 'seconds'):.1f} times as long as scoring "
        f"({titles[id(slower)]}),\nbecause every pack computes its prompt again. In the other tables with packs, they take "
        f"{', '.join(similar)} times as long\nas scoring with every layer for all tokens, as they do. One pack of all rows computes every "
        f"prompt once, but needs up to\n{_times(larger, ONE_PACK, 'growth'):.1f} times the memory ({titles[id(larger)]}), which grows with "
        "the number of rows.\nScoring keeps the keys and values of a prompt beyond a micro-batch, which avoids both. Training cannot, "
        "because the gradients of a\nprompt come from all of its completions. So both forwards are needed. Models whose attention cannot "
        "be replaced, and encoders, do not\npack in training either."
    )


def _times(measured: Mapping[str, Measured], name: str, what: str) -> float:
    """How many times as much a way needs as scoring; 0 if it was not measured."""
    return float(getattr(measured[name], what) / getattr(measured[CACHED], what)) if name in measured else 0.0


def main() -> None:
    """Measure, and write the section."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.one_forward", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="times each way runs, in turn (default: 3)")
    parser.add_argument("--small", action="store_true", help="check this script with tiny sizes; writes nothing")
    parser.add_argument("--data", type=Path, default=DATA, help="the folder of the texts (default: ../shared/data)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        found = shapes(Texts(arguments.data), Path(scratch), small=arguments.small)
        results = {shape.title: measure(shape, arguments.rounds) for shape in found}
    command = " ".join(["python -m tests.benchmarks.one_forward", *sys.argv[1:]])
    text = render(command, arguments.rounds, results)
    print(text)
    if not arguments.small:
        write_atomically(PAGE, with_section(PAGE.read_text(encoding="utf-8"), ONE_FORWARD, text))


if __name__ == "__main__":
    main()
