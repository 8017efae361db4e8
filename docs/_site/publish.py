"""Adds a built site to the folder that a web server shows: ``python publish.py BUILT SITE VERSION``.

SITE then has a folder for each version, ``versions.json``, which the switch in the side bar reads, and an ``index.html`` that leads to
the newest release.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

from packaging.version import Version

REDIRECT = """<!doctype html>
<meta charset="utf-8">
<title>rm-plugins</title>
<meta http-equiv="refresh" content="0; url={version}/index.html">
<a href="{version}/index.html">rm-plugins {version}</a>
"""


def publish(built: Path, site: Path, version: str) -> list[str]:
    """Put a built site into `site` as a version of it; returns all versions, newest first."""
    target = site / version
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(built, target, ignore=shutil.ignore_patterns(".doctrees", ".buildinfo"))
    listed = site / "versions.json"
    known = {version, *(json.loads(listed.read_text(encoding="utf-8")) if listed.exists() else ())}
    versions = sorted(known, key=Version, reverse=True)
    listed.write_text(json.dumps(versions) + "\n", encoding="utf-8")
    newest = next((one for one in versions if not Version(one).is_prerelease), versions[0])
    (site / "index.html").write_text(REDIRECT.format(version=newest), encoding="utf-8")
    (site / ".nojekyll").touch()  # GitHub Pages would leave out folders that begin with an underscore
    return versions


if __name__ == "__main__":
    print("Versions: " + ", ".join(publish(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])))
