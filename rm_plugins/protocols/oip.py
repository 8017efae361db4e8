"""The Open Inference Protocol, version 2: Triton, KServe, MLServer, and NeMo-Aligner's reward model server.

Tested with Triton 2.51, KServe 0.21 and MLServer 1.7. If the model raises an error for one text, they answer 500 for the whole request.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal
from urllib.parse import quote

from rm_plugins.errors import AnswerError, ScoringError, UnsupportedError
from rm_plugins.protocols import binary_tensors
from rm_plugins.protocols.discovery import KEY_MISSING, get_mapping
from rm_plugins.protocols.protocol import Answer, Ask, Item, Protocol, Reads, Request, Response, ServerFacts
from rm_plugins.protocols.values import detail, numbers

_MODEL, _INPUT, _OUTPUT = "reward_model", "sentences", "rewards"
"""The names that NeMo-Aligner uses."""
_NUMBERS = ("FP32", "FP64")
_REMEDY = "Name one of its models, `protocol: {name: oip, model: NAME}`."


class OpenInference(Protocol):
    """``POST /v2/models/MODEL/infer`` with a tensor of texts, answered with a tensor of rewards.

    Unset names are taken from the server's metadata: its only model, the model's only input of the datatype BYTES, and its only output of
    FP32 or FP64. If there are several, the names of NeMo-Aligner are preferred. If the server has no metadata, NeMo-Aligner's names are
    used, and the reward is the only output with one number per text.

    Args:
        model: The model's name on the server; by default ``reward_model`` or the only model.
        input: The name of the input; by default ``sentences`` or the only fitting input.
        output: The name of the output that is the reward; by default ``rewards`` or the only fitting output. Other outputs with one number
            per text become details.
        reads: Which token of a decoder's row the served model reads, ``last`` or ``before-padding``; the protocol does not define it.
    """

    name: ClassVar[str] = "oip"
    leaves_texts_bare: ClassVar[bool] = True
    if_absent: ClassVar[str] = (
        "Name a model that the server has, `protocol: {name: oip, model: NAME}`; leave /v2 out of the URL."
    )

    def __init__(
        self,
        *,
        model: str | None = None,
        input: str | None = None,
        output: str | None = None,
        reads: Literal["last", "before-padding"] | None = None,
    ) -> None:
        self._reads: Reads = reads or "unknown"
        self.model = model
        self.input = input
        self.output = output

    @property
    def reads(self) -> Reads:  # type: ignore[override]  # set in the spec
        """Which token the served model reads, as set in the spec: the protocol does not define it."""
        return self._reads

    async def detect(self, ask: Ask) -> str | None:
        """Recognize the server by ``GET /v2``."""
        metadata = await get_mapping(ask, "/v2")
        if metadata is None or not isinstance(metadata.get("name"), str) or not isinstance(metadata.get("extensions"), list):
            return None
        return f"{metadata['name']} {metadata.get('version', '')}".strip()

    async def prepare(self, ask: Ask) -> ServerFacts:
        """Check that server and model are ready, and ask for the names and shapes of the model's tensors."""
        await self._is_ready(ask, "/v2/health/ready", "the server")
        model = self.model if self.model is not None else await self._only_model(ask)
        path = _path(model)
        try:
            ready = await self._is_ready(ask, f"{path}/ready", f"the model {model!r}, if it exists,")
        except ScoringError:
            await self._check_exists(ask, model)  # Triton answers 400 both for a model that is not ready and for an unknown one
            raise
        metadata = await get_mapping(ask, path)
        if metadata is None and not ready:
            await self._check_listed(ask, model)
            raise UnsupportedError(
                f"GET {path} and {path}/ready do not exist: this server has no model {model!r}, or does not speak the Open Inference "
                "Protocol. Name its model, `protocol: {name: oip, model: NAME}`."
            )
        metadata = metadata or {}
        given = _tensor(metadata, model, "input", self.input, _INPUT, ("BYTES",))
        rewards = _tensor(metadata, model, "output", self.output, _OUTPUT, _NUMBERS)
        shape = _shape(given)
        batch = shape[0] if shape else -1
        if batch not in (-1, 1):
            raise UnsupportedError(
                f"The model {model!r} takes exactly {batch} texts per request. Deploy it with a variable batch size."
            )
        facts = {"model": model, "rank": len(shape) or 2}
        facts |= {side: tensor["name"] for side, tensor in (("input", given), ("output", rewards)) if tensor}
        server = await get_mapping(ask, "/v2") or {}
        if server.get("name") == "mlserver":  # its models read raw bytes unless the content type says that these are texts
            facts["parameters"] = {"content_type": "str"}
        what = f"{model!r} over the Open Inference Protocol ({metadata.get('platform') or 'platform unknown'})"
        return ServerFacts(self, what, 1 if batch == 1 else None, facts)

    def request(self, items: Sequence[Item], server: ServerFacts, request_id: str) -> Request:
        """One tensor of texts, [B, 1], or [B] according to the model's metadata."""
        facts = server.facts
        tensor = {
            "name": facts.get("input") or self.input or _INPUT,
            "shape": [len(items), *[1] * (facts.get("rank", 2) - 1)],
            "datatype": "BYTES",
            "data": [item.text_with_tokens for item in items],
        }
        if "parameters" in facts:
            tensor["parameters"] = facts["parameters"]
        body = {"id": request_id, "inputs": [tensor], "parameters": {"binary_data_output": False}}
        return Request(f"{_path(facts.get('model') or self.model or _MODEL)}/infer", body)

    def answer(self, response: Response, items: Sequence[Item], server: ServerFacts, request_id: str) -> Answer:
        """The output that is the reward, [B, 1] or [B], as JSON or as bytes after the JSON."""
        answer = _with_binary(response, len(items))
        if answer.get("id", request_id) != request_id:  # not every server returns the id
            raise AnswerError(
                f"the answer is for the request {answer['id']!r:.80}, not for {request_id!r}; answers were mixed up"
            )
        outputs = [entry for entry in answer["outputs"] if isinstance(entry, Mapping)]
        reward = _reward(outputs, server.facts.get("output") or self.output, len(items))
        name = reward.get("name")
        if reward.get("datatype") not in _NUMBERS:
            raise UnsupportedError(
                f"the output {name!r} has the datatype {reward.get('datatype')!r}; FP32 or FP64 was expected"
            )
        if reward.get("shape") not in ([len(items)], [len(items), 1]):
            raise AnswerError(f"the output {name!r} has the shape {reward.get('shape')!r:.80} for {len(items)} items")
        values = numbers(reward.get("data"), len(items), f"the data of {name!r}")
        details = {str(entry.get("name")): _per_item(entry, len(items)) for entry in outputs if entry is not reward}
        return Answer(values, {name: column for name, column in details.items() if column is not None})

    async def _is_ready(self, ask: Ask, path: str, what: str) -> bool:
        """Whether a readiness path answers that `what` is ready; False if the server does not have this path.

        Raises:
            UnsupportedError: The server refuses the key.
            ScoringError: It answers that `what` is not ready.
        """
        response = await ask(Request(path, method="GET"))
        if response.status in (404, 405, 501):
            return False
        if response.status in (401, 403):
            raise UnsupportedError(f"GET {path} answered {response.status} ({self.message(response)}): {KEY_MISSING}.")
        if not 200 <= response.status < 300:
            raise ScoringError(f"GET {path} answered {response.status} ({self.message(response)}): {what} is not ready.")
        return True

    async def _only_model(self, ask: Ask) -> str:
        """The name of the only listed model; NeMo-Aligner's name if it is listed among others or no model is listed."""
        names = await _listed(ask)
        if _MODEL in names or not names:
            return _MODEL
        if len(names) > 1:
            raise UnsupportedError(
                f"This server has the models {', '.join(map(repr, names))}. Name the one that gives the reward, `protocol: {{name: oip, "
                "model: NAME}`."
            )
        return names[0]

    async def _check_listed(self, ask: Ask, model: str) -> bool:
        """Check that the server's list of models has this one; returns whether there is a list.

        Raises:
            UnsupportedError: The list does not have it.
        """
        names = await _listed(ask)
        if names and model not in names:
            raise UnsupportedError(f"This server has no model {model!r}; it has {', '.join(map(repr, names))}. {_REMEDY}")
        return bool(names)

    async def _check_exists(self, ask: Ask, model: str) -> None:
        """Check that a model exists, by the server's list of models or, if it has no list, by the model's path.

        Raises:
            UnsupportedError: The model does not exist.
        """
        if await self._check_listed(ask, model):
            return
        response = await ask(Request(_path(model), method="GET"))
        message = self.message(response)
        if response.status == 404 and "no available versions" not in message:  # Triton says this of a model that is loading
            raise UnsupportedError(f"This server has no model {model!r} ({message}), and does not list its models. {_REMEDY}")


def _path(model: str) -> str:
    return f"/v2/models/{quote(model, safe='')}"


async def _listed(ask: Ask) -> list[str]:
    """The names of a server's models, from the list of Triton and MLServer or from that of KServe; empty if it has neither."""
    response = await ask(Request("/v2/repository/index", {}))  # a POST that only reads
    names: list[Any] = []
    if 200 <= response.status < 300:
        try:
            listed = response.json()
        except AnswerError:
            listed = None
        names = [entry.get("name") for entry in listed if isinstance(entry, Mapping)] if isinstance(listed, list) else []
    if not names:
        models = (await get_mapping(ask, "/v2/models") or {}).get("models")
        names = models if isinstance(models, list) else []
    return [*dict.fromkeys(name for name in names if isinstance(name, str))]


def _tensor(
    metadata: Mapping[str, Any], model: str, side: str, name: str | None, preferred: str, datatypes: Sequence[str]
) -> Mapping[str, Any] | None:
    """The input or output of a model to use, from its metadata; None if the metadata does not list any.

    Raises:
        UnsupportedError: No tensor has the name or a fitting datatype, or several do.
    """
    listed = metadata.get(f"{side}s")
    if not isinstance(listed, list) or not listed or not all(isinstance(entry, Mapping) for entry in listed):
        return None
    tensors = {str(entry.get("name")): entry for entry in listed}
    names = ", ".join(f"{name!r} ({entry.get('datatype')})" for name, entry in tensors.items())
    remedy = f"Name the right one, `protocol: {{name: oip, {side}: NAME}}`."
    if name is None:
        fitting = [name for name, entry in tensors.items() if entry.get("datatype") in datatypes]
        if preferred not in fitting and len(fitting) != 1:
            have = "several" if fitting else "no"
            raise UnsupportedError(
                f"The model {model!r} has {have} {side}s of the datatype {' or '.join(datatypes)}; its {side}s are {names}. {remedy}"
            )
        name = preferred if preferred in fitting else fitting[0]
    if name not in tensors:
        raise UnsupportedError(f"The model {model!r} has no {side} {name!r}; its {side}s are {names}. {remedy}")
    if (datatype := tensors[name].get("datatype")) not in datatypes:
        raise UnsupportedError(
            f"The {side} {name!r} of the model {model!r} has the datatype {datatype!r}; {' or '.join(datatypes)} is needed."
        )
    return {**tensors[name], "name": name}


def _shape(tensor: Mapping[str, Any] | None) -> list[int]:
    shape = tensor.get("shape") if tensor else None
    return shape if isinstance(shape, list) and all(type(size) is int for size in shape) else []


def _with_binary(response: Response, size: int) -> Mapping[str, Any]:
    """The JSON of an answer, with the data of outputs that were sent as bytes.

    Raises:
        AnswerError: It is not an answer of this protocol, or its bytes do not match its JSON.
    """
    try:
        content, binary = binary_tensors.split(response.body, response.headers.get(binary_tensors.JSON_LENGTH.lower()))
    except ValueError as error:
        raise AnswerError(f"the answer cannot be read: {error}") from None
    answer = Response(response.status, content).json()
    if not isinstance(answer, Mapping) or not isinstance(answer.get("outputs"), list):
        raise AnswerError(f"the answer is {answer!r:.80}; a mapping with 'outputs' was expected")
    outputs = [entry for entry in answer["outputs"] if isinstance(entry, Mapping)]
    try:
        parts = binary_tensors.parts(binary, outputs)
    except ValueError as error:
        raise AnswerError(f"the answer cannot be read: {error}") from None
    decoded = []
    for output, part in zip(outputs, parts, strict=True):
        if part is not None and output.get("datatype") in (*_NUMBERS, "BOOL", "INT32", "INT64"):
            try:
                output = {**output, "data": binary_tensors.elements(part, output["datatype"], size)}
            except ValueError as error:
                if output["datatype"] in _NUMBERS:
                    raise AnswerError(f"the output {output.get('name')!r:.80} cannot be read: {error}") from None
        decoded.append(output)
    return {**answer, "outputs": decoded}


def _reward(outputs: Sequence[Mapping[str, Any]], name: str | None, size: int) -> Mapping[str, Any]:
    """The output with a name, or the only one with one number per item.

    Raises:
        AnswerError: This answer has no such output.
        UnsupportedError: The server will not give such an output in later answers either.
    """
    names = [entry.get("name") for entry in outputs]
    listed = ", ".join(map(repr, names)) or "none"
    if name is None and _OUTPUT not in names:
        shapes = ([size], [size, 1])
        fitting = [entry for entry in outputs if entry.get("datatype") in _NUMBERS and entry.get("shape") in shapes]
        if len(fitting) != 1:
            is_permanent = len(fitting) > 1 or bool(outputs and not any(entry.get("datatype") in _NUMBERS for entry in outputs))
            raise (UnsupportedError if is_permanent else AnswerError)(
                f"the answer has {len(fitting)} outputs of FP32 or FP64 with one number for each of {size} items; its outputs are {listed}."
                " Name the reward, `protocol: {name: oip, output: NAME}`"
            )
        return fitting[0]
    name = name or _OUTPUT
    if names.count(name) != 1:
        raise (AnswerError if name in names or not names else UnsupportedError)(
            f"the answer has {names.count(name)} outputs called {name!r}; its outputs are {listed}"
        )
    return outputs[names.index(name)]


def _per_item(output: Mapping[str, Any], size: int) -> list[float] | None:
    data = output.get("data")
    if output.get("datatype") == "BOOL" and isinstance(data, list):
        data = [float(entry) if isinstance(entry, bool) else entry for entry in data]
    return detail(data, size)
