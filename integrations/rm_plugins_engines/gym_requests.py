"""The requests of NeMo Gym, and their samples: messages made of the items of OpenAI's Responses API."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rm_plugins.errors import DataError
from rm_plugins.files import in_utf8
from rm_plugins.samples import Message, Sample
from rm_plugins_engines.prompts import written_arguments

_REQUEST = ("responses_create_params", "response")


def request_of(content: bytes) -> Mapping[str, Any]:
    """The request in a body.

    Raises:
        DataError: The body is not a JSON object in UTF-8, or has a value that JSON cannot have, such as NaN.
    """
    try:
        request = json.loads(content.decode())
    except (ValueError, RecursionError) as error:
        raise DataError(f"The body is not valid JSON in UTF-8: {error}.") from error
    return checked(_object(request, "body"))


def checked(request: Mapping[str, Any]) -> Mapping[str, Any]:
    """The request, which can be sent back as JSON.

    Raises:
        DataError: A number is not finite, a text has half a character, or the request is nested too deeply; the message names the place.
    """
    try:
        json.dumps(request, allow_nan=False, ensure_ascii=False).encode()
    except RecursionError as error:
        raise DataError("The request is nested too deeply.") from error
    except ValueError as error:
        raise DataError(next(_wrong_values(request, "body"), f"The request has no form in JSON: {error}.")) from error
    return request


def sample_of(request: Mapping[str, Any]) -> Sample:
    """The sample of a request: the task's messages as prompt, and the response's items as completion.

    A response without a message, such as one that was cut off while the model reasoned, is an empty completion.

    Raises:
        DataError: There is no input or no output, or an item is of an unknown kind or has another form; the message names the item.
    """
    params, response = (_object(request.get(name) or {}, name) for name in _REQUEST)
    given, output = params.get("input"), response.get("output")
    if given is None or output is None:
        raise DataError(
            "The request has no `responses_create_params.input` or no `response.output`. Send both, as NeMo Gym's agents do."
        )
    prompt = (
        [{"role": "user", "content": given}] if isinstance(given, str) else _messages(given, "responses_create_params.input")
    )
    if params.get("instructions"):
        prompt = [{"role": "system", "content": _text(params["instructions"], "responses_create_params.instructions")}, *prompt]
    columns = {name: value for name, value in request.items() if name not in _REQUEST}
    where = "responses_create_params.tools"
    tools = [_tool(tool, f"{where}[{place}]") for place, tool in enumerate(_list(params.get("tools") or [], where))]
    completion = _messages(output, "response.output") or [{"role": "assistant", "content": ""}]
    return Sample(prompt, completion, {**columns, **({"tools": tools} if tools else {})})


def _messages(items: Any, where: str) -> list[Message]:
    """Items as messages. The texts and calls between two other items are one turn of the assistant, as in NeMo Gym's own conversion.

    Reasoning is left out, as chat templates leave it out of earlier turns.
    """
    messages: list[dict[str, Any]] = []
    for place, item in enumerate(_list(items, where)):
        message = _message(_object(item, f"{where}[{place}]"), f"{where}[{place}]")
        if message is None:
            continue
        if messages and messages[-1]["role"] == message["role"] == "assistant":
            messages[-1]["content"] += message["content"]
            if "tool_calls" in message:
                messages[-1].setdefault("tool_calls", []).extend(message["tool_calls"])
        else:
            messages.append(message)
    return list(messages)


def _message(item: Mapping[str, Any], where: str) -> dict[str, Any] | None:
    kind = item.get("type") or "message"
    if kind == "reasoning":
        return None
    if kind == "message":
        if not isinstance(item.get("role"), str):
            raise DataError(f"`{where}` is a message without a role: {item!r:.200}.")
        if item.get("content") is None and item["role"] != "assistant":
            raise DataError(f"`{where}` has no content: {item!r:.200}.")
        return {"role": item["role"], "content": _text(item.get("content"), f"{where}.content")}
    if kind == "function_call":
        if not isinstance(item.get("name"), str):
            raise DataError(f"`{where}` is a function call without a name: {item!r:.200}.")
        function = {"name": item["name"], "arguments": _arguments(item.get("arguments"), where)}
        call = {"type": "function", "id": item.get("call_id"), "function": function}
        return {"role": "assistant", "content": "", "tool_calls": [call]}
    if kind == "function_call_output":
        return {"role": "tool", "content": _text(item.get("output"), f"{where}.output"), "tool_call_id": item.get("call_id")}
    raise DataError(
        f"`{where}` is of the type {kind!r}, which has no message form. Allowed: message, function_call, function_call_output, "
        "reasoning."
    )


def _object(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise DataError(f"`{where}` must be an object, not {value!r:.80}. Send requests in the form of OpenAI's Responses API.")
    return value


def _list(value: Any, where: str) -> Sequence[Any]:
    if not isinstance(value, (list, tuple)):
        raise DataError(f"`{where}` must be a list, not {value!r:.80}. Send requests in the form of OpenAI's Responses API.")
    return value


def _text(content: Any, where: str) -> str:
    if isinstance(content, str) or content is None:
        return content or ""
    if not isinstance(content, (list, tuple)):
        raise DataError(f"`{where}` must be text or a list of parts, not {content!r:.80}.")
    texts = []
    for place, part in enumerate(content):
        text = part if isinstance(part, str) else _object(part, f"{where}[{place}]").get("text", part.get("refusal"))
        if not isinstance(text, str):
            raise DataError(f"`{where}[{place}]` is a part that is not text: {part!r:.80}. Only text can be scored here.")
        texts.append(text)
    return "".join(texts)


def _arguments(written: Any, where: str) -> Any:
    if isinstance(written, Mapping) or written is None:
        return written or {}
    if not isinstance(written, str):
        raise DataError(f"`{where}.arguments` must be text, the JSON of the arguments, not {written!r:.80}.")
    return written_arguments(written) if written else {}


def _tool(tool: Any, where: str) -> dict[str, Any]:
    """A tool of the Responses API in the form of chat templates."""
    function = _object(_object(tool, where).get("function", tool), f"{where}.function")
    if not isinstance(function.get("name"), str):
        raise DataError(f"`{where}` is a tool without a name, which has no form in chat templates: {tool!r:.200}.")
    if "function" in tool:
        return dict(tool)
    return {
        "type": "function",
        "function": {name: tool[name] for name in ("name", "description", "parameters") if name in tool},
    }


def _wrong_values(value: Any, where: str) -> Iterator[str]:
    """What is wrong with the values that JSON cannot have, and where they are."""
    if isinstance(value, Mapping):
        for name, item in value.items():
            if _has_surrogate(name):
                yield f"`{where}` has a name with a lone surrogate, which is half a character: {name!r:.80}."
            yield from _wrong_values(item, f"{where}.{name}")
    elif isinstance(value, (list, tuple)):
        for place, item in enumerate(value):
            yield from _wrong_values(item, f"{where}[{place}]")
    elif isinstance(value, float) and not math.isfinite(value):
        yield f"`{where}` is {value}, which is not a number in JSON. Send null for a missing number."
    elif _has_surrogate(value):
        yield f"`{where}` has a lone surrogate, which is half a character."


def _has_surrogate(value: Any) -> bool:
    return isinstance(value, str) and in_utf8(value) != value
