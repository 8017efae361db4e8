"""The access log leaves out probes that succeeded."""

from __future__ import annotations

import logging

import pytest

from rm_plugins.server.request_log import log_request


@pytest.mark.parametrize(
    ("method", "path", "status", "is_logged"),
    [
        ("GET", "/health", 200, False),
        ("GET", "/v1/health", 200, False),
        ("HEAD", "/v2/health/ready", 200, False),
        ("GET", "/metrics", 200, False),
        ("GET", "/health", 503, True),
        ("POST", "/v1/rewards", 200, True),
        ("GET", "/v1/info", 200, True),
    ],
)
def test_probes(method: str, path: str, status: int, is_logged: bool, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="rm_plugins.server.request_log")
    log_request({"method": method, "path": path, "status": status})
    assert bool(caplog.records) == is_logged
