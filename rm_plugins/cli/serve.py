"""``rm-plugins serve``."""

from __future__ import annotations

import logging
import os
import socket
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from importlib.util import find_spec
from typing import Any, Literal

import click

from rm_plugins.cli.command import Command
from rm_plugins.errors import MissingDependencyError, SpecError
from rm_plugins.server.replicas import AUTO
from rm_plugins.server.settings import Settings

_DEFAULTS = Settings()
_OPTIONAL = ("fastapi", "prometheus_client", "starlette", "uvicorn")
_LIMITS = {
    "--max-items": ("max_items", "Samples in a request."),
    "--max-characters": ("max_characters", "Characters of a sample."),
    "--max-body-bytes": ("max_body_bytes", "Bytes of a request's body."),
    "--max-body-values": ("max_body_values", "Values in a request's body; a list or an object counts as eight."),
    "--max-held-bytes": ("max_held_bytes", "Bytes of all bodies in memory, per replica; further requests are answered 503."),
    "--max-head-bytes": ("max_head_bytes", "Bytes of a request's line and headers."),
    "--max-connections": ("max_connections", "Connections, per replica."),
    "--max-client-connections": ("max_client_connections", "Connections from one address, per replica."),
    "--max-queue": ("max_queue_items", "Waiting samples, per replica; further requests are answered 429."),
    "--max-queue-characters": ("max_queue_characters", "Waiting characters, per replica."),
}
_TIMES = {
    "--head-seconds": ("head_seconds", "For a client to send the head of a request."),
    "--body-seconds": ("body_seconds", "For a client to send a body, or to read an answer."),
    "--max-score-seconds": ("max_score_seconds", "For scoring a batch; after that, the reward's process is restarted."),
    "--max-load-seconds": ("max_load_seconds", "For loading the reward; after that, a start or a reload fails."),
}
_GROUPS = {
    "Server": ("host", "port", "devices", "workers", "model_name", "log_format", "drain_seconds"),
    "Access": ("api_key_env", "allowed_hosts", "allowed_origins"),
    "Limits": tuple(name for name, _ in _LIMITS.values()),
    "Time limits, in seconds": tuple(name for name, _ in _TIMES.values()),
}
_ADVANCED = (*_GROUPS["Limits"], *_GROUPS["Time limits, in seconds"], "eos_texts", "max_batch_tokens", "drain_seconds")


def _limits(command: Callable[..., None]) -> Callable[..., None]:
    """Add an option for each limit; what is added last is shown first."""
    for option, (name, text) in reversed(_LIMITS.items()):
        default = getattr(_DEFAULTS, name)
        command = click.option(option, name, default=default, show_default=True, type=click.IntRange(1), help=text)(command)
    return command


def _times(command: Callable[..., None]) -> Callable[..., None]:
    """Add an option for each time limit, in seconds."""
    for option, (name, text) in reversed(_TIMES.items()):
        kind = click.FloatRange(0, min_open=True)
        default = getattr(_DEFAULTS, name)
        command = click.option(option, name, default=default, show_default=True, type=kind, help=text)(command)
    return command


@click.command("serve", cls=Command, groups=_GROUPS, advanced=_ADVANCED)
@click.argument("spec")
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on.")
@click.option("--port", default=8000, show_default=True, type=click.IntRange(0, 65_535), help="The port; 0 for any free port.")
@click.option(
    "--devices",
    metavar="all|NAMES",
    help="Load the reward once on each of these devices: all accelerators, or names such as 0,1 or cpu,cpu.",
)
@click.option(
    "--workers",
    default=1,
    show_default=True,
    type=click.IntRange(1),
    help="Processes that answer requests; each loads the reward.",
)
@click.option(
    "--model-name", default="", help="The name of the reward in requests and answers; by default its label, and SPEC."
)
@click.option(
    "--api-key-env", metavar="NAME", help="Environment variable with the API key, or several keys separated by commas."
)
@click.option(
    "--eos-text",
    "eos_texts",
    multiple=True,
    metavar="TEXT",
    help="The end-of-text marker to remove from the texts that OpenRLHF sends, if the reward has a part that is not a model; '' for none. "
    "By default anything that looks like a special token, such as <|im_end|>, is removed.",
)
@click.option(
    "--max-batch-tokens",
    type=click.IntRange(1),
    help="Approximate number of tokens, from waiting requests, that are scored together; by default 16 times what the model reads at once.",
)
@click.option(
    "--allowed-host",
    "allowed_hosts",
    multiple=True,
    metavar="NAME",
    help="A further host name under which requests may address this server; * for any.",
)
@click.option(
    "--allowed-origin",
    "allowed_origins",
    multiple=True,
    metavar="ORIGIN",
    help="A web origin, such as https://example.com, whose pages may use this server.",
)
@_limits
@_times
@click.option(
    "--drain-seconds",
    default=_DEFAULTS.drain_seconds,
    show_default=True,
    type=click.FloatRange(0),
    help="Time for finishing accepted requests after SIGTERM or Ctrl-C.",
)
@click.option("--log-format", default="text", show_default=True, type=click.Choice(["text", "json"]), help="Format of the log.")
def command(
    spec: str,
    host: str,
    port: int,
    devices: str | None,
    workers: int,
    api_key_env: str | None,
    log_format: Literal["json", "text"],
    **chosen: Any,
) -> None:
    """Serve the reward SPEC over HTTP.

    Clients of vLLM, TEI, OpenRLHF and KServe work unchanged. POST /v1/rewards returns everything that the reward reports; GET
    /openapi.json describes the API; the page at / is for people. SIGHUP reloads the reward; SIGTERM and Ctrl-C finish the accepted
    requests first.
    """
    _check_installed()
    keys = _keys(api_key_env)
    chosen_devices = _devices(devices, workers)
    with ExitStack() as stack:
        if workers > 1:
            from rm_plugins.devices import shared_threads

            # Both are read when what they are for is imported.
            os.environ.setdefault(
                "PROMETHEUS_MULTIPROC_DIR", stack.enter_context(tempfile.TemporaryDirectory(prefix="rm-plugins-"))
            )
            os.environ.update(shared_threads(workers))
        listening = stack.enter_context(_listening(host, port))
        from rm_plugins.remote.hosts import is_loopback
        from rm_plugins.server import process, request_log, security

        request_log.configure_logging(log_format)
        chosen["allowed_hosts"] += security.own_names(host)
        chosen["eos_texts"] = chosen["eos_texts"] or None
        settings = Settings(api_keys=keys, **chosen).for_replicas(len(chosen_devices))
        if not settings.api_keys and not is_loopback(host):
            logging.getLogger(__name__).warning(
                "Anyone who can reach %s can use this server. Require a key with --api-key-env NAME, or listen on 127.0.0.1.",
                host,
            )
        shown = f"[{host}]" if ":" in host else host
        serving = process.Serving(spec, settings, f"http://{shown}:{listening.getsockname()[1]}", log_format, chosen_devices)
        finished = process.supervise(workers, serving, listening) if workers > 1 else process.serve(serving, listening)
    process.end(finished)


def _check_installed() -> None:
    """Say what is missing before anything is loaded."""
    missing = [name for name in _OPTIONAL if find_spec(name) is None]
    if missing:
        raise MissingDependencyError(
            f"The server needs the package{'s' if len(missing) > 1 else ''} {', '.join(missing)}: pip install 'rm-plugins[serve]'."
        )


def _devices(text: str | None, workers: int) -> tuple[str, ...]:
    """The devices to load the reward on."""
    if text is None:
        return (AUTO,)
    if workers > 1:
        raise click.UsageError(
            "--devices starts a replica per device, so leave out --workers. For two replicas on a device, name it twice: --devices 0,0."
        )
    from rm_plugins.devices import chosen_devices

    return chosen_devices(text)


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
    except (OSError, TypeError, ValueError) as error:  # the latter two for what cannot be the name of a host
        listening.close()
        reason = getattr(error, "strerror", None) or error
        raise click.ClickException(
            f"Cannot listen on {host}, port {port}: {reason}. Choose another --port, or an address of this machine as --host."
        ) from error
    listening.set_inheritable(True)
    return listening
