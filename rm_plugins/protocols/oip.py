"""The Open Inference Protocol, version 2: Triton, KServe, and NeMo-Aligner's reward model server."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar
from urllib.parse import quote

from rm_plugins.errors import AnswerError, ScoringError, UnsupportedError
from rm_plugins.protocols.discovery import KEY_MISSING, get_mapping
from rm_plugins.protocols.protocol import Answer, Ask, Item, Protocol, Request, Response, ServerFacts
from rm_plugins.protocols.values import detail, numbers

__all__ = ["OpenInference"]


class OpenInference(Protocol):
    """``POST /v2/models/MODEL/infer`` with a tensor of texts, answered with a tensor of rewards.

    The standard has no list of models and no names for tensors of rewards; the defaults are those of NeMo-Aligner.

    Args:
        model: The model's name on the server.
        input: The name of the input, of the datatype BYTES.
        output: The name of the output that is the reward, of the datatype FP32 or FP64. Other outputs with one number per text
            are details.
    """

    name: ClassVar[str] = "oip"

    def __init__(self, *, model: str = "reward_model", input: str = "sentences", output: str = "rewards") -> None:
        self.model = model
        self.input = input
        self.output = output
        self._path = f"/v2/models/{quote(model, safe='')}"

    async def detect(self, ask: Ask) -> str | None:
        """What ``GET /v2`` says."""
        metadata = await get_mapping(ask, "/v2")
        if metadata is None or not isinstance(metadata.get("name"), str) or not isinstance(metadata.get("extensions"), list):
            return None
        return f"{metadata['name']} {metadata.get('version', '')}".strip()

    async def prepare(self, ask: Ask) -> ServerFacts:
        """Ask whether server and model are ready, and how the model's tensors are called and shaped, where the server says it."""
        await self._is_ready(ask, "/v2/health/ready", "the server")
        ready = await self._is_ready(ask, f"{self._path}/ready", f"the model {self.model!r}, if there is one of this name,")
        metadata = await get_mapping(ask, self._path)
        if metadata is None and not ready:
            raise UnsupportedError(
                f"GET {self._path} and {self._path}/ready find nothing: this server has no model {self.model!r}, or does not speak "
                "the Open Inference Protocol. Name its model, `protocol: {name: oip, model: NAME}`."
            )
        metadata = metadata or {}
        given = self._tensor(metadata, "inputs", self.input, ("BYTES",))
        self._tensor(metadata, "outputs", self.output, ("FP32", "FP64"))
        batch = given[0] if given else -1
        if batch not in (-1, 1):
            raise UnsupportedError(
                f"The model {self.model!r} takes exactly {batch} texts at a time; a batch of any size is needed."
            )
        what = f"{self.model!r} by the Open Inference Protocol ({metadata.get('platform', 'platform unknown')})"
        return ServerFacts(self, what, 1 if batch == 1 else None, {"rank": len(given) or 2})

    def request(self, items: Sequence[Item], server: ServerFacts, request_id: str) -> Request:
        """One tensor, [B, 1] unless the model's metadata has [B]."""
        shape = [len(items), *[1] * (server.facts.get("rank", 2) - 1)]
        texts = [item.needed_text for item in items]
        inputs = [{"name": self.input, "shape": shape, "datatype": "BYTES", "data": texts}]
        return Request(f"{self._path}/infer", {"id": request_id, "inputs": inputs})

    def answer(self, response: Response, items: Sequence[Item], server: ServerFacts, request_id: str) -> Answer:
        """The named output, [B, 1] or [B]."""
        answer = response.json()
        if not isinstance(answer, Mapping) or not isinstance(answer.get("outputs"), list):
            raise AnswerError(f"the answer is {answer!r:.80}; a mapping with 'outputs' was expected")
        if answer.get("id", request_id) != request_id:  # not every server has it
            raise AnswerError(f"the answer is for the request {answer['id']!r:.80}, not for {request_id!r}; they were mixed up")
        outputs = [entry for entry in answer["outputs"] if isinstance(entry, Mapping)]
        named = [entry for entry in outputs if entry.get("name") == self.output]
        if len(named) != 1:
            names = ", ".join(repr(entry.get("name")) for entry in outputs)
            raise AnswerError(f"the answer has {len(named)} outputs called {self.output!r}; it has {names or 'none'}")
        (reward,) = named
        if reward.get("datatype") not in ("FP32", "FP64"):
            raise AnswerError(f"the output {self.output!r} is of {reward.get('datatype')!r}; FP32 or FP64 was expected")
        if reward.get("shape") not in ([len(items)], [len(items), 1]):
            raise AnswerError(f"the output {self.output!r} has the shape {reward.get('shape')!r:.80} for {len(items)} items")
        values = numbers(reward.get("data"), len(items), f"the data of {self.output!r}")
        details = {str(entry.get("name")): _per_item(entry, len(items)) for entry in outputs if entry is not reward}
        return Answer(values, {name: column for name, column in details.items() if column is not None})

    async def _is_ready(self, ask: Ask, path: str, what: str) -> bool:
        """Whether the path says so; False where there is no such path.

        Raises:
            ScoringError: It says that it is not.
        """
        response = await ask(Request(path, method="GET"))
        if response.status in (404, 405, 501):
            return False
        if response.status in (401, 403):
            raise UnsupportedError(f"GET {path} answered {response.status} ({self.message(response)}): {KEY_MISSING}.")
        if not 200 <= response.status < 300:
            raise ScoringError(f"GET {path} answered {response.status} ({self.message(response)}): {what} is not ready.")
        return True

    def _tensor(self, metadata: Mapping[str, Any], side: str, name: str, datatypes: Sequence[str]) -> list[int]:
        """The shape of a tensor that the model's metadata describe; empty where they do not say."""
        listed = metadata.get(side)
        if not isinstance(listed, list) or not all(isinstance(entry, Mapping) for entry in listed):
            return []
        tensors = {entry.get("name"): entry for entry in listed}
        if name not in tensors:
            raise UnsupportedError(
                f"The model {self.model!r} has no {side[:-1]} {name!r}; its {side} are {', '.join(map(repr, tensors)) or 'none'}. Name "
                f"the right one, `protocol: {{name: oip, {side[:-1]}: NAME}}`."
            )
        if (datatype := tensors[name].get("datatype")) not in datatypes:
            raise UnsupportedError(
                f"The {side[:-1]} {name!r} of the model {self.model!r} is of {datatype!r}; {' or '.join(datatypes)} is needed."
            )
        shape = tensors[name].get("shape")
        return shape if isinstance(shape, list) and all(type(size) is int for size in shape) else []


def _per_item(output: Mapping[str, Any], size: int) -> list[float] | None:
    data = output.get("data")
    if output.get("datatype") == "BOOL" and isinstance(data, list):
        data = [float(entry) if isinstance(entry, bool) else entry for entry in data]
    return detail(data, size)
