"""The files fit each other, the package and the page about them."""

from __future__ import annotations

import json
import math
import re
import shlex
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from rm_plugins.server import process
from tests.deploying.files import (
    FILES,
    KEY,
    PROJECT,
    ROOT,
    composed,
    container,
    documents,
    instruction,
    instructions,
    options,
    text_of,
)
from tests.deploying.test_queries import RULES


class TestObjects:
    def test_selectors_find_the_pods(self) -> None:
        found = documents("kubernetes.yaml") | documents("prometheus-operator.yaml")
        labels = found["Deployment"]["spec"]["template"]["metadata"]["labels"]
        for kind in ("Deployment", "PodDisruptionBudget", "PodMonitor"):
            assert found[kind]["spec"]["selector"]["matchLabels"].items() <= labels.items()
        assert found["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"].items() <= labels.items()
        assert found["Service"]["spec"]["selector"].items() <= labels.items()
        assert found["PodMonitor"]["spec"]["jobLabel"] in labels
        assert {rule["expr"].partition('job="')[2].partition('"')[0] for rule in RULES} == {*labels.values()}
        (port,) = found["Service"]["spec"]["ports"]
        assert port["targetPort"] in [one["name"] for one in container("kubernetes.yaml")["ports"]]

    @pytest.mark.parametrize("name", ["kubernetes.yaml", "kserve.yaml"])
    def test_a_container_can_change_nothing_but_tmp(self, name: str) -> None:
        found = container(name)
        security = found["securityContext"]
        assert security["readOnlyRootFilesystem"] and not security["allowPrivilegeEscalation"]
        assert [mount["mountPath"] for mount in found["volumeMounts"] if not mount.get("readOnly")] == ["/tmp"]
        user = instruction("USER")[-1].partition(":")[0]
        assert f"runAsUser: {user}" in text_of(name) and int(user) > 0

    def test_no_replica_is_stopped_before_another_is_ready(self) -> None:
        found = documents("kubernetes.yaml")
        assert found["Deployment"]["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"] == 0
        assert found["PodDisruptionBudget"]["spec"]["minAvailable"] < found["Deployment"]["spec"]["replicas"]

    def test_lines_for_gpus_are_valid_without_their_prefix(self) -> None:
        text = text_of("kubernetes.yaml")
        assert text.count("# cuda: ") == 1
        deployment = next(yaml.safe_load_all(text.replace("# cuda: ", "")))
        (found,) = deployment["spec"]["template"]["spec"]["containers"]
        assert found["resources"]["limits"]["nvidia.com/gpu"] == 1

    def test_compose_mounts_the_rewards_for_reading_and_explains_its_variables(self) -> None:
        service = composed("compose.yaml", REWARD_KEY=KEY, CPUS="2")
        (volume,) = service["volumes"]
        assert (volume["target"], volume["read_only"], volume["source"]) == ("/rewards", True, "./rewards")
        assert service["read_only"] and service["init"] and service["cap_drop"] == ["ALL"]
        assert service["environment"]["OMP_NUM_THREADS"] == service["cpus"] == 2
        port = options("compose.yaml")["port"]
        assert service["ports"] == [f"127.0.0.1:{port}:{port}"]
        text = text_of("compose.yaml")
        comment = "\n".join(line for line in text.splitlines() if line.startswith("#"))
        assert {name for name in re.findall(r"\$\{(\w+)", text) if not re.search(rf"\b{name}\b", comment)} == set()
        assert (FILES / service["build"]["context"]).resolve() == ROOT
        assert (ROOT / service["build"]["dockerfile"]).is_file()
        gpu = composed("compose.cuda.yaml")
        assert gpu["build"]["args"] == {"VARIANT": "cuda"} and gpu["deploy"]["resources"]["reservations"]["devices"]


class TestImage:
    def test_it_is_pinned_offline_and_not_run_by_root(self) -> None:
        assert re.fullmatch(r"PYTHON_IMAGE=python:3\.1[1-3]\.\d+-slim-\w+", instruction("ARG")[0])
        assert {rest.partition(" AS ")[0] for rest in instruction("FROM")} == {"${PYTHON_IMAGE}"}
        environment = dict(pair.split("=", 1) for pair in shlex.split(instruction("ENV")[-1]))
        assert environment["HF_HUB_OFFLINE"] == "1" and environment["HOME"] == "/tmp"
        assert instructions()[-1][0] == "CMD" and json.loads(instruction("ENTRYPOINT")[0]) == [*PROJECT["scripts"]]
        assert int(instruction("EXPOSE")[0]) == options("Containerfile")["port"]

    def test_it_installs_this_version_with_extras_that_exist(self) -> None:
        values = dict(rest.split("=", 1) for rest in instruction("ARG") if "=" in rest)
        assert values["VERSION"] == PROJECT["version"]
        assert set(values["EXTRAS"].split(",")) <= set(PROJECT["optional-dependencies"])
        images = {
            tag for file in FILES.iterdir() for tag in re.findall(r"rm-plugins:([\w.-]+)", file.read_text(encoding="utf-8"))
        }
        assert images == {f"{PROJECT['version']}-cpu", f"{PROJECT['version']}-cuda"}
        (install,) = [rest for rest in instruction("RUN") if "pip install --no-compile" in rest]
        for mounted in re.findall(r"target=(/\S+)", install)[:2]:
            assert f" {mounted} " in install.partition("pip install")[2]

    def test_it_copies_what_is_in_the_checkout_or_was_made_before(self) -> None:
        text = " ".join(instruction("RUN") + instruction("COPY"))
        mounted = set(re.findall(r"--mount=type=bind,source=([^,\s]+)", text))
        page = (ROOT / "docs" / "deploying.md").read_text(encoding="utf-8")
        made = set(re.findall(r"pip wheel .*--wheel-dir (\S+)", page))
        assert {name for name in mounted - made if not (ROOT / name).exists()} == set()
        assert made <= mounted
        stages = [rest.partition(" AS ")[2] for rest in instruction("FROM")]
        for copied in instruction("COPY"):
            stage, source = re.fullmatch(r"--from=(\w+) (\S+) \S+", copied).groups()  # type: ignore[union-attr]
            assert stage in stages[:-1]
            assert any(f"-m venv {source}" in rest for rest in instruction("RUN")), source

    @pytest.mark.parametrize(
        ("cuda", "variant", "is_refused"), [(None, "cpu", False), ("13.0", "cuda", False), ("13.0", "cpu", True)]
    )
    def test_it_has_the_torch_that_was_asked_for(
        self, cuda: str | None, variant: str, is_refused: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (check,) = [rest for rest in instruction("RUN") if "pip check" in rest]
        code = re.sub(r"\s+", " ", check.partition('python -c "')[2].rpartition('"')[0]).replace("${VARIANT}", variant)
        monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(__version__="2.13.0", version=SimpleNamespace(cuda=cuda)))
        with pytest.raises(SystemExit) as ended:
            exec(code, {})
        assert bool(ended.value.code) == is_refused
        assert not is_refused or "a cuda build, but VARIANT is cpu" in str(ended.value.code)


def test_no_file_has_an_address_of_another_machine() -> None:
    for file in FILES.iterdir():
        assert re.findall(r"https?://[^\s\"']+", file.read_text(encoding="utf-8")) == [], file.name


def test_the_page_links_to_every_file_and_its_sizes_are_those_of_the_files() -> None:
    page = (ROOT / "docs" / "deploying.md").read_text(encoding="utf-8")
    assert {file.name for file in FILES.iterdir()} == set(re.findall(r"\]\(deploying/([\w.-]+)\)", page))
    names: dict[str, Any] = {}
    (code,) = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    exec(code, names)
    manifest = options("kubernetes.yaml")
    assert names["max_queue"] >= manifest["max_queue_items"], "a full queue is answered before the client's timeout"
    assert names["drain_seconds"] <= manifest["drain_seconds"]
    assert math.isclose(names["grace_seconds"] - names["drain_seconds"], 10 + process._END_SECONDS + 1)
