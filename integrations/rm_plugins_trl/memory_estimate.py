"""Estimates the memory of a reward model's training on each device. Pure: sizes in, bytes by part out.

The terms of the formulas, with P parameters of which T are trained, N devices, and T = P without an adapter:

- **Weights, gradients, optimizer states** without sharding: each of a parameter's own precision. AdamW holds two numbers for each
  trained parameter (Kingma and Ba, arXiv 1412.6980); the others are listed at `OPTIMIZER_BYTES`.
- **DDP** adds buckets as large as the gradients, through which processes exchange them (torch's ``DistributedDataParallel``, which is
  used without ``gradient_as_bucket_view``).
- **FSDP2** shards all three by N and keeps trained weights in float32. A layer and the next one are gathered in the precision of
  the computation, and a layer's gradients exist whole until they are reduced (torch's ``fully_shard``, and accelerate's
  ``fsdp2_prepare_model``, which makes units of the layers and of the embedding).
- **ZeRO** (Rajbhandari et al., arXiv 1910.02054), as DeepSpeed 0.19's ``estimate_zero2_model_states_mem_needs`` and
  ``estimate_zero3_model_states_mem_needs`` count it: 2 bytes per weight, and 18 per trained parameter (gradients of 2 and 4, a copy of
  the weight of 4, AdamW's 8). Stage 2 divides the 18 by N, stage 3 all 20. Buckets of 5e8 numbers and, in stage 3, up to 1e9 gathered
  parameters are DeepSpeed's defaults.
- **Activations** of a layer: the tensors that the backward pass needs, counted in transformers' code of Llama and Qwen2, as Korthikanti
  et al. (arXiv 2205.05198) count those of GPT. Attention is never stored as a matrix. With gradient checkpointing, only each layer's
  input is kept, and one layer's activations are computed again.
- **Autocast** (bf16 or fp16 with float32 weights) copies each weight into half precision and keeps the copy until the backward pass.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from rm_plugins_trl.accelerate_settings import Strategy

GIB = 2**30

OPTIMIZER_BYTES: Mapping[str, float] = {
    "adafactor": 0,
    "adamw_8bit": 2,
    "adamw_bnb_8bit": 2,
    "lion_32bit": 4,
    "lion_8bit": 1,
    "paged_adamw_8bit": 2,
    "paged_lion_8bit": 1,
    "sgd": 0,
}
"""Bytes of state for each float32 parameter, by transformers' name; AdamW and all others have 8."""

FOR_EACH = ("adamw_torch",)
"""The optimizers whose step makes another copy of the trained weights; the fused one, transformers' default, does not."""

_BUCKET = 500_000_000  # numbers; DeepSpeed's reduce_bucket_size and allgather_bucket_size
_LIVE = 1_000_000_000  # DeepSpeed's stage3_max_live_parameters
_QUANTIZED: Mapping[int, float] = {4: 0.5 + 4 / 64, 8: 1.0}
"""Bytes for each quantized weight: bitsandbytes stores a float32 scale for each block of 64 weights of 4 bits."""

CONTEXT = int(1.5 * GIB)
"""What CUDA, its libraries and NCCL take on each GPU before anything is computed."""

Precision = Literal["no", "bf16", "fp16"]


@dataclass(frozen=True, slots=True)
class ModelSize:
    """A model's sizes.

    Args:
        parameters: All parameters, without an adapter's.
        linear: Those in linear layers, which autocast copies and quantization shrinks.
        layer: Those of the largest layer.
        embedding: Those of the largest embedding.
        trained: Those that are trained: all, or an adapter and the score head.
        layers: The number of layers.
        hidden: The size of the hidden states.
        queries: The size of a token's queries: heads times their size.
        intermediate: The size within the feed-forward layers.
        gated: Whether a layer has a gated feed-forward and RMS norms, as Llama's, and not those of GPT and BERT.
        vocabulary: The number of tokens.
        outputs: The outputs of the score head.
        is_encoder: Whether it is an encoder, such as BERT.
        kept_keys: The size of a token's keys, and of its values, as attention keeps them; `queries` if they are repeated.
    """

    parameters: int
    linear: int
    layer: int
    embedding: int
    trained: int
    layers: int
    hidden: int
    queries: int
    intermediate: int
    gated: bool = True
    vocabulary: int = 0
    outputs: int = 1
    is_encoder: bool = False
    kept_keys: int | None = None

    @property
    def has_adapter(self) -> bool:
        """Whether an adapter is trained instead of the weights."""
        return self.trained < self.parameters


@dataclass(frozen=True, slots=True)
class TrainingSetting:
    """How it is trained.

    Args:
        strategy: How devices share the training.
        devices: The number of devices.
        stage: The version of FSDP or the stage of ZeRO.
        weight_bytes: Bytes of a weight as it is loaded.
        precision: What is computed in; ``no`` is the weights' own.
        checkpointing: Whether activations are computed again in the backward pass.
        tokens: The tokens of a device's rows in a step, whose activations are held together.
        tokens_at_a_time: The most tokens that the model computes at once.
        accumulation: Batches for each step.
        optimizer: Its name in transformers.
        quantized: Bits of the frozen linear weights, if they are quantized.
        offloads_weights: Whether weights are in the machine's memory.
        offloads_optimizer: Whether optimizer states are in the machine's memory.
        logprob_tokens: The most tokens of a row whose logits are computed, if the loss needs log-probabilities.
        on_cpu: Whether devices are CPU processes, which take no memory for CUDA.
    """

    strategy: Strategy = "single"
    devices: int = 1
    stage: int = 0
    weight_bytes: int = 4
    precision: Precision = "bf16"
    checkpointing: bool = True
    tokens: int = 16_384
    tokens_at_a_time: int = 16_384
    accumulation: int = 1
    optimizer: str = "adamw_torch_fused"
    quantized: int | None = None
    offloads_weights: bool = False
    offloads_optimizer: bool = False
    logprob_tokens: int = 0
    on_cpu: bool = False

    @property
    def is_mixed(self) -> bool:
        """Whether it computes in half precision from float32 weights."""
        return self.precision != "no" and self.weight_bytes == 4

    @property
    def compute_bytes(self) -> int:
        """Bytes of a number in a matrix product."""
        return self.weight_bytes if self.precision == "no" else 2


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """Bytes on each device, by part.

    Args:
        weights: The weights that a device holds.
        gradients: Their gradients.
        optimizer: The optimizer's states, and the copies that it updates.
        activations: What the backward pass needs of the forward pass, and the tensors that a layer works on.
        copies: Half-precision copies of weights.
        gathers: Gathered layers and their gradients, and the buckets of exchanged gradients.
        embedding: The gathered embedding and its gradient, at the end of the backward pass.
        heads: Logits of the vocabulary, and the score head's outputs.
        context: What CUDA takes.
        step: What the optimizer's step needs besides.
        keeps_gradients: Whether gradients are there during the forward pass: those of earlier batches.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int
    copies: int
    gathers: int
    heads: int
    context: int
    embedding: int = 0
    step: int = 0
    keeps_gradients: bool = False

    @property
    def peak(self) -> int:
        """The most that is held at once.

        Gradients replace activations layer by layer in the backward pass, unless they are kept from an earlier batch. FSDP2 gathers the
        embedding when there are no activations yet, and again when they are freed.
        """
        backward = self.activations + self.copies + self.heads
        working = backward + self.gathers + (self.gradients if self.keeps_gradients else 0)
        end = self.gradients + max(self.gathers + self.step, self.embedding)
        return self.weights + self.optimizer + self.context + max(working, end)


def estimate(size: ModelSize, setting: TrainingSetting) -> MemoryEstimate:
    """The memory of a training on each device.

    >>> whole = ModelSize(7_000_000_000, 6_500_000_000, 220_000_000, 500_000_000, 7_000_000_000, 28, 3584, 3584, 18944)
    >>> round(estimate(whole, TrainingSetting("fsdp", 8, 2)).weights / 1e9, 1)  # 28 GB over 8 devices
    3.5
    """
    weights, gradients, optimizer = _states(size, setting)
    return MemoryEstimate(
        weights=0 if setting.offloads_weights else weights,
        gradients=0 if setting.offloads_weights and setting.strategy == "fsdp" else gradients,
        optimizer=0 if setting.offloads_optimizer else optimizer,
        activations=_activations(size, setting),
        copies=_copies(size, setting),
        gathers=_gathers(size, setting),
        embedding=_unit(size.embedding, size, setting) if setting.strategy == "fsdp" and setting.devices > 1 else 0,
        heads=_heads(size, setting),
        context=0 if setting.on_cpu else CONTEXT,
        step=int(size.trained * 4 / _shards(setting)) if setting.optimizer in FOR_EACH else 0,
        keeps_gradients=setting.accumulation > 1 or setting.strategy == "zero",
    )


def _shards(setting: TrainingSetting) -> int:
    return setting.devices if setting.strategy in ("fsdp", "zero") else 1


def _states(size: ModelSize, setting: TrainingSetting) -> tuple[int, int, int]:
    """Bytes of weights, gradients and optimizer states."""
    frozen = size.parameters - size.trained if not size.has_adapter else size.parameters
    trained, shards = size.trained, _shards(setting)
    states = OPTIMIZER_BYTES.get(setting.optimizer, 8)
    if setting.strategy == "zero":
        weight = setting.compute_bytes
        weights = (frozen + trained) * weight / (shards if setting.stage == 3 else 1)
        own = trained * weight / (shards if setting.stage >= 2 else 1)  # in the precision of the computation
        whole = trained * 4 / shards if weight == 2 else 0.0
        return int(weights), int(own + whole), int(trained * (states + 4) / shards)
    # peft, and accelerate under FSDP2, keep trained weights in float32.
    trained_bytes = (
        4 if size.has_adapter or (setting.strategy == "fsdp" and setting.precision != "no") else setting.weight_bytes
    )
    if setting.quantized is None:
        kept = frozen * setting.weight_bytes
    else:
        linear = min(size.linear, frozen)
        kept = int(linear * _QUANTIZED[setting.quantized]) + (frozen - linear) * setting.weight_bytes
    return (
        int((kept + trained * trained_bytes) / shards),
        int(trained * trained_bytes / shards),
        int(trained * states * trained_bytes / 4 / shards),
    )


def layer_bytes(size: ModelSize, setting: TrainingSetting) -> int:
    """Bytes of one token's activations in one layer, without checkpointing.

    In numbers per token, with hidden size h, queries q, keys k and intermediate size f:

    - each of the two norms holds 3h: its input, the normalized input, its output;
    - attention holds 3q + 2k: queries, keys, values, its output, and a copy of it that the next linear layer takes;
    - the feed-forward holds 4f: the gate, its activation, the other side, the product.

    Under autocast, norms work in float32, and each of the five linear layers that follow a norm gets a half-precision input of its own. In
    half precision throughout, a norm converts its input to float32.
    """
    h, q, f = size.hidden, size.queries, size.intermediate
    k = size.kept_keys or q
    if not size.gated:  # layer norms hold input and output, and a feed-forward without a gate its two sides
        per_number = setting.compute_bytes
        return per_number * (3 * q + 2 * k + 2 * f) + (4 if setting.is_mixed and not _is_half(setting) else per_number) * 4 * h
    other = 3 * q + 2 * k + 4 * f
    if setting.compute_bytes == 4:
        return 4 * (6 * h + other)
    if _is_half(setting):
        return 16 * h + 2 * other
    return 26 * h + 2 * other


def _is_half(setting: TrainingSetting) -> bool:
    """Whether the weights that are computed with are in half precision, so that hidden states are as well."""
    return setting.compute_bytes == 2 and (setting.strategy in ("fsdp", "zero") or setting.weight_bytes == 2)


def _activations(size: ModelSize, setting: TrainingSetting) -> int:
    at_once = min(setting.tokens, setting.tokens_at_a_time)
    state = 2 if _is_half(setting) else 4
    layer = layer_bytes(size, setting)
    if setting.checkpointing:
        kept = setting.tokens * size.layers * size.hidden * state + at_once * layer
    else:
        kept = setting.tokens * size.layers * layer
    last = setting.tokens * size.hidden * 3 * state  # the final norm
    # Gradients of one layer's feed-forward, and of its input and output.
    working = at_once * (3 * size.intermediate + 2 * size.hidden) * setting.compute_bytes
    return int(kept + last + working)


def _copies(size: ModelSize, setting: TrainingSetting) -> int:
    if setting.strategy in ("fsdp", "zero") or not setting.is_mixed:
        return 0
    if setting.quantized is not None:
        return int(2 * size.layer / 3)  # one matrix at a time, at most about a third of a layer
    held_by_graph = not setting.checkpointing
    return 2 * (size.linear if held_by_graph or not size.has_adapter else size.layer)


def _gathers(size: ModelSize, setting: TrainingSetting) -> int:
    if setting.devices == 1:
        return 0
    number = setting.compute_bytes
    if setting.strategy == "ddp":
        return size.trained * (4 if size.has_adapter else setting.weight_bytes)
    if setting.strategy == "fsdp":
        return _unit(size.layer, size, setting) + number * size.layer  # and the next layer
    if setting.strategy == "zero":
        bucket = _BUCKET * number
        return bucket + number * (min(size.parameters, _LIVE) if setting.stage == 3 else _BUCKET)
    return 0


def _unit(parameters: int, size: ModelSize, setting: TrainingSetting) -> int:
    """What FSDP2 gathers of a unit, and without an adapter its whole gradients and what is sent of them."""
    return setting.compute_bytes * parameters * (1 if size.has_adapter else 3)


def _heads(size: ModelSize, setting: TrainingSetting) -> int:
    scores = setting.tokens * 4 * size.outputs // 64
    # Logits in the precision of the computation, in float32, and their gradient.
    return scores + setting.logprob_tokens * size.vocabulary * (setting.compute_bytes + 8)
