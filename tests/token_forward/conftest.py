"""Language models, completions, and their outputs token by token from the models' own logits."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, set_seed

from rm_plugins.engine.token_forward import TokenForward, TokenOutput
from tests.batch_forward.conftest import gradients
from tests.test_scoring_engine import GPT, SIZES, VOCABULARY

FAMILIES: dict[str, dict[str, Any]] = {
    "qwen2": {},
    "llama": {"tie_word_embeddings": True},
    "granite": {"logits_scaling": 3.0},
    "cohere": {"logit_scale": 0.3},
    "gpt2": GPT,
    "phi": {},  # its head has a bias
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32},  # its forward calls the decoder in its backbone
}
PADDING: dict[str, dict[str, Any]] = {
    "gemma2": {"query_pre_attn_scalar": 8, "final_logit_softcapping": 2.0},
    "bloom": {"n_layer": 2, "n_head": 4},
}
TEMPERATURE = 0.7

Rows = list[list[int]]
Expected = tuple[TokenOutput, dict[str, torch.Tensor]]


def language_model(family: str, **settings: Any) -> Any:
    """A tiny model in double precision whose distributions differ clearly from uniform ones."""
    set_seed(0)
    sizes = {name: value for name, value in SIZES.items() if name != "num_labels"}
    config = AutoConfig.for_model(family, **{**sizes, **FAMILIES.get(family, PADDING.get(family, {})), **settings})
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4)
    return model.double()


def completions() -> tuple[Rows, list[int]]:
    """Rows and their starts: several completions of one prompt, duplicates, one without tokens, one without a shared prompt."""
    source = random.Random(0)

    def tokens(count: int) -> list[int]:
        return [source.randrange(4, VOCABULARY) for _ in range(count)]

    first, second = tokens(20), tokens(11)
    rows = [
        [*first, *tokens(7)],
        [*second, *tokens(3)],
        [*first, *tokens(1)],
        [*first, *tokens(12)],
        first,
        tokens(13),
        second[:1],
    ]
    return [*rows, rows[0], rows[0]], [20, 11, 20, 20, 20, 1, 1, 20, 5]


def loss_of(output: TokenOutput) -> torch.Tensor:
    """A loss in which every number counts differently."""
    given = [values.double() for values in (output.log_probs, output.entropy, output.token_values) if values is not None]
    loss = torch.stack([(torch.linspace(0.5, 2, len(values)) * values * values.roll(1)).sum() for values in given]).sum()
    return loss if output.hidden is None else loss + 0.01 * (output.hidden**2).sum()


def one_by_one(
    model: Any, rows: Sequence[Sequence[int]], starts: Sequence[int], temperature: float = TEMPERATURE
) -> TokenOutput:
    """What transformers' own logits of each row by itself give."""
    found = []
    for row, start in zip(rows, starts, strict=True):
        captured: list[torch.Tensor] = []
        hook = model.get_output_embeddings().register_forward_pre_hook(lambda _, inputs, into=captured: into.append(inputs[0]))
        logs = (model(input_ids=torch.tensor([list(row)])).logits[0] / temperature).log_softmax(-1)[start - 1 : -1]
        hook.remove()
        targets = torch.tensor(row[start:], dtype=torch.int64)[:, None]
        found.append((logs.gather(1, targets)[:, 0], -(logs.exp() * logs).sum(-1), captured[0][0, start - 1 : -1]))
    log_probs, entropy, hidden = (torch.cat(parts) for parts in zip(*found, strict=True))
    return TokenOutput(log_probs=log_probs, entropy=entropy, hidden=hidden)


def values_one_by_one(model: Any, rows: Sequence[Sequence[int]], starts: Sequence[int]) -> TokenOutput:
    """The classifier's scores at the tokens before those of the completions, of each row by itself."""
    found = []
    for row, start in zip(rows, starts, strict=True):
        hidden = getattr(model, model.base_model_prefix)(input_ids=torch.tensor([list(row)])).last_hidden_state
        found.append(model.score(hidden)[0, start - 1 : -1, 0])
    return TokenOutput(token_values=torch.cat(found))


def with_gradients(model: torch.nn.Module, output: TokenOutput) -> Expected:
    detached = {name: values.detach() for name, values in output.items()}
    return TokenOutput(**detached), gradients(model, loss_of(output))


def assert_same(model: torch.nn.Module, output: TokenOutput, expected: Expected, tolerance: float = 1e-10) -> None:
    """Gradients have a tolerance of at least 1e-6 of the largest, because rotary embeddings are computed in single precision."""
    assert isinstance(output, TokenOutput)
    assert output.keys() == expected[0].keys()
    for name, values in expected[0].items():
        torch.testing.assert_close(output[name].detach(), values, rtol=tolerance, atol=tolerance, msg=f"{name}, {output[name]}")
    found = gradients(model, loss_of(output))
    assert found.keys() == expected[1].keys()
    scale = max(gradient.abs().max().item() for gradient in expected[1].values())
    assert scale > 0
    for name, gradient in expected[1].items():
        allowed = max(tolerance, 1e-6)
        torch.testing.assert_close(found[name] / scale, gradient / scale, rtol=allowed, atol=allowed, msg=name)


def run_with(model: Any, max_tokens: int | None = None, **settings: Any) -> TokenForward:
    """A fresh `TokenForward` of a model that may have had another one."""
    vars(model).pop("forward", None)
    return TokenForward(model, max_tokens, temperature=TEMPERATURE, **settings)


@pytest.fixture(autouse=True)
def few_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the head run in several chunks."""
    monkeypatch.setattr("rm_plugins.engine.token_head.LOGITS_AT_ONCE", 9 * VOCABULARY)
