"""``rm-plugins serve``."""

from __future__ import annotations

import logging
import os
import socket
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, Literal

import click

from rm_plugins.errors import MissingDependencyError, SpecError
from rm_plugins.server.settings import Settings

_DEFAULTS = Settings()
_OPTIONAL = ("fastapi", "prometheus_client", "starlette", "uvicorn")
_LIMITS = {
    "--max-items": ("max_items", "Most samples of a request."),
    "--max-characters": ("max_characters", "Most characters of a sample."),
    "--max-body-bytes": ("max_body_bytes", "Most bytes of a request's body."),
    "--max-body-values": ("max_body_values", "Most values in a request's body; a list or an object counts as eight."),
    "--max-held-bytes": ("max_held_bytes", "Most bytes of all bodies at a time; what comes then is answered 503."),
    "--max-head-bytes": ("max_head_bytes", "Most bytes of a request's line and headers."),
    "--max-connections": ("max_connections", "Most connections to a process."),
    "--max-client-connections": ("max_client_connections", "Most connections of one address to a process."),
    "--max-queue": ("max_queue_items", "Most samples that wait in a process; what comes then is answered 429."),
    "--max-queue-characters": ("max_queue_characters", "Most characters that wait."),
}


_TIMES = {
    "--head-seconds": ("head_seconds", "In which the head of a request must come."),
    "--body-seconds": ("body_seconds", "In which a body must come, and an answer be read."),
    "--max-score-seconds": ("max_score_seconds", "Most for a batch; then the reward's process is ended and started again."),
}


def _limits(command: Callable[..., None]) -> Callable[..., None]:
    """Adds an option for each limit; what is added last is shown first."""
    for option, (name, text) in reversed(_LIMITS.items()):
        default = getattr(_DEFAULTS, name)
        command = click.option(option, name, default=default, show_default=True, type=click.IntRange(1), help=text)(command)
    return command


def _times(command: Callable[..., None]) -> Callable[..., None]:
    """Adds an option for each of the times, in seconds."""
    for option, (name, text) in reversed(_TIMES.items()):
        kind = click.FloatRange(0, min_open=True)
        default = getattr(_DEFAULTS, name)
        command = click.option(option, name, default=default, show_default=True, type=kind, help=text)(command)
    return command


@click.command("serve")
@click.argument("spec")
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on.")
@click.option(
    "--port", default=8000, show_default=True, type=click.IntRange(0, 65_535), help="The port; 0 for any that is free."
)
@click.option(
    "--workers", default=1, show_default=True, type=click.IntRange(1), help="Processes, each with a reward of its own."
)
@click.option(
    "--model-name", default="", help="The reward's only name in requests and answers; by default its label, and SPEC."
)
@click.option("--api-key-env", metavar="NAME", help="The environment variable with the key, or several separated by commas.")
@click.option(
    "--eos-text",
    "eos_texts",
    multiple=True,
    metavar="TEXT",
    help="What ends the texts that OpenRLHF sends, for rewards that are not of models alone; '' for nothing. By default it is what looks "
    "like a special token, such as <|im_end|>.",
)
@click.option(
    "--max-batch-tokens",
    type=click.IntRange(1),
    help="About how many tokens of waiting requests are scored together; by default 16 micro-batches of the model.",
)
@click.option(
    "--allowed-host",
    "allowed_hosts",
    multiple=True,
    metavar="NAME",
    help="What requests may call this server beside the names and addresses of this machine; * for everything.",
)
@click.option(
    "--allowed-origin",
    "allowed_origins",
    multiple=True,
    metavar="ORIGIN",
    help="An origin, such as https://example.com, whose pages may use this server.",
)
@_limits
@_times
@click.option(
    "--drain-seconds",
    default=_DEFAULTS.drain_seconds,
    show_default=True,
    type=click.FloatRange(0),
    help="How long to go on with what was accepted when told to stop.",
)
@click.option(
    "--log-format", default="text", show_default=True, type=click.Choice(["text", "json"]), help="The form of the log's lines."
)
def command(
    spec: str,
    host: str,
    port: int,
    workers: int,
    api_key_env: str | None,
    log_format: Literal["json", "text"],
    **chosen: Any,
) -> None:
    """Serve SPEC over HTTP, whatever reward it is.

    Clients of vLLM, TEI, OpenRLHF and KServe speak to it as they do to those; POST /v1/rewards says all that the reward says, GET
    /openapi.json how, and a page at / is for people. SIGHUP loads the reward again; SIGTERM finishes what was accepted.
    """
    keys = _keys(api_key_env)
    with ExitStack() as stack:
        if workers > 1:
            # Both are read when what they are for is imported.
            os.environ.setdefault(
                "PROMETHEUS_MULTIPROC_DIR", stack.enter_context(tempfile.TemporaryDirectory(prefix="rm-plugins-"))
            )
            os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))
        listening = stack.enter_context(_listening(host, port))
        try:
            from rm_plugins.remote.hosts import is_loopback
            from rm_plugins.server import process, request_log, security
        except ModuleNotFoundError as error:
            if error.name not in _OPTIONAL:
                raise
            raise MissingDependencyError(
                f"the server needs the package {error.name}: pip install 'rm-plugins[serve]'."
            ) from error
        request_log.configure_logging(log_format)
        chosen["allowed_hosts"] += security.own_names(host)
        chosen["eos_texts"] = chosen["eos_texts"] or None
        settings = Settings(api_keys=keys, **chosen)
        if not settings.api_keys and not is_loopback(host):
            logging.getLogger(__name__).warning(
                "Everybody who reaches %s may use this server. Ask for a key with --api-key-env NAME, or listen on 127.0.0.1.",
                host,
            )
        shown = f"[{host}]" if ":" in host else host
        serving = process.Serving(spec, settings, f"http://{shown}:{listening.getsockname()[1]}", log_format)
        finished = process.supervise(workers, serving, listening) if workers > 1 else process.serve(serving, listening)
    process.end(finished)


def _keys(variable: str | None) -> tuple[str, ...]:
    if variable is None:
        return ()
    keys = tuple(key.strip() for key in os.environ.get(variable, "").split(",") if key.strip())
    if not keys:
        raise SpecError(f"--api-key-env names the environment variable {variable}, which is empty or not set.")
    return keys


def _listening(host: str, port: int) -> socket.socket:
    """A socket that is bound already, so that a port in use is known before a model is loaded."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
    except (OSError, UnicodeError) as error:  # the latter where no host can be called that
        listening.close()
        raise click.ClickException(f"Cannot listen on {host}, port {port}: {getattr(error, 'strerror', error)}.") from error
    listening.set_inheritable(True)
    return listening
