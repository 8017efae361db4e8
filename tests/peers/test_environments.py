"""An installation that takes too long is left out, with the reason, and leaves nothing behind that runs."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from tests.peers import environments


def test_what_takes_too_long_is_left_out_and_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = tmp_path / "compiled"
    compiler = tmp_path / "python"  # in place of the interpreter that makes an environment
    compiler.write_text(f"#!/bin/sh\necho 'a warning' >&2\n(sleep 3; touch {compiled}) &\nsleep 60\n")
    compiler.chmod(0o755)
    (tmp_path / "slow.txt").write_text("anything\n")
    monkeypatch.setattr(sys, "executable", str(compiler))
    monkeypatch.setattr(environments, "REQUIREMENTS", tmp_path)
    monkeypatch.setattr(environments, "FOLDER", str(tmp_path))
    monkeypatch.setattr(environments, "_PATIENCE", 1)
    environments.install("slow")
    assert "timed out after 1 seconds" in (environments.missing("slow") or "")
    time.sleep(4)
    assert not compiled.exists()
