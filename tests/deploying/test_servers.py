"""The servers that the files start: their options, their paths and their end."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from typing import Any

import httpx2
import pytest
import yaml

from rm_plugins.server import create_app, process
from tests.deploying.files import (
    KEY,
    NAMESPACE,
    REWARD,
    STARTING,
    composed,
    container,
    documents,
    instruction,
    options,
    settings,
    text_of,
)
from tests.servers import free_port, serving


@pytest.mark.parametrize("name", STARTING)
class TestStarting:
    def test_the_command_takes_the_arguments(self, name: str) -> None:
        found = options(name)
        assert found["host"] == "0.0.0.0" and found["log_format"] == "json"
        assert found["spec"].startswith("/mnt/models" if name == "kserve.yaml" else "/rewards/")

    def test_the_key_is_in_the_environment_that_the_command_reads(self, name: str) -> None:
        if name == "Containerfile":
            assert options(name)["api_key_env"] is None
            return
        if name == "compose.yaml":
            environment = composed(name, REWARD_KEY=KEY)["environment"]
            assert environment[options(name)["api_key_env"]] == KEY
            with pytest.raises(KeyError):
                composed(name)
            return
        environment = {variable["name"]: variable for variable in container(name)["env"]}
        assert environment[options(name)["api_key_env"]]["valueFrom"]["secretKeyRef"] == {"name": "reward-key", "key": "key"}
        assert f"kubectl create secret generic reward-key --from-literal=key={KEY}" in text_of(name)

    def test_accepted_requests_are_finished_before_the_container_is_killed(self, name: str) -> None:
        needed = options(name)["drain_seconds"] + process._END_SECONDS + 1  # the processes, and the one that started them
        if name == "Containerfile":
            assert instruction("STOPSIGNAL") == ["SIGTERM"]
        elif name == "compose.yaml":
            assert float(composed(name, REWARD_KEY=KEY)["stop_grace_period"].removesuffix("s")) >= needed
        else:
            document = next(iter(documents(name).values()))["spec"]
            pod = document["template"]["spec"] if "template" in document else document["predictor"]
            command = container(name).get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command", ["sleep", "0"])
            assert command[0] == "sleep"
            assert pod["terminationGracePeriodSeconds"] >= needed + float(command[1])


async def status(app: Any, path: str, host: str, key: str = "") -> int:
    """What the app answers to a request for a path on a host."""
    transport = httpx2.ASGITransport(app)
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    # The address that the request is sent to; a name is in the header alone, as behind a Service.
    async with httpx2.AsyncClient(transport=transport, base_url="http://10.0.3.7:8000", headers=headers) as client:
        return (await client.get(path, headers={"Host": host})).status_code


class TestPaths:
    @pytest.mark.parametrize("name", ["kubernetes.yaml", "kserve.yaml"])
    def test_probes_are_answered_without_a_key_at_the_ports_of_the_container(self, name: str) -> None:
        found, app = container(name), create_app(REWARD, settings(name))
        ports = {port.get("name"): port["containerPort"] for port in found["ports"]}
        assert [*ports.values()] == [options(name)["port"]]
        probes = {kind: probe["httpGet"] for kind, probe in found.items() if kind.endswith("Probe")}
        assert "readinessProbe" in probes
        for probe in probes.values():
            assert ports.get(probe["port"], probe["port"]) == options(name)["port"]
            assert asyncio.run(status(app, probe["path"], f"10.0.3.7:{options(name)['port']}")) == 200

    def test_a_stopping_server_is_alive_and_not_ready(self) -> None:
        app, found = create_app(REWARD, settings("kubernetes.yaml")), container("kubernetes.yaml")

        async def statuses() -> list[int]:
            await app.state.service.stop()
            return [
                await status(app, found[f"{kind}Probe"]["httpGet"]["path"], "10.0.3.7") for kind in ("readiness", "liveness")
            ]

        assert asyncio.run(statuses()) == [503, 200]

    def test_clients_use_the_names_of_the_service_and_a_key(self) -> None:
        app, service = create_app(REWARD, settings("kubernetes.yaml")), documents("kubernetes.yaml")["Service"]
        name = service["metadata"]["name"]
        for host in (name, f"{name}.{NAMESPACE}", f"{name}.{NAMESPACE}.svc", f"{name}.{NAMESPACE}.svc.cluster.local"):
            assert asyncio.run(status(app, "/v1/info", f"{host}:8000", KEY)) == 200
        assert asyncio.run(status(app, "/v1/info", "reward:8000")) == 401
        assert asyncio.run(status(app, "/v1/info", "reward.elsewhere:8000", KEY)) == 421

    def test_kserve_finds_the_model_under_the_name_of_the_service(self) -> None:
        document = documents("kserve.yaml")["InferenceService"]
        app, name = create_app(REWARD, settings("kserve.yaml")), document["metadata"]["name"]
        for path in (f"/v2/models/{name}", f"/v2/models/{name}/ready", "/v2"):
            assert asyncio.run(status(app, path, "helpful-predictor.trainers.example.com", KEY)) == 200
        assert f"/v2/models/{name}/infer" in text_of("kserve.yaml")
        assert "/v2/models/{model}/infer" in str(app.openapi()["paths"].keys())
        assert container("kserve.yaml")["name"] == "kserve-container"

    def test_prometheus_asks_a_path_that_needs_no_key(self) -> None:
        (job,) = yaml.safe_load(text_of("prometheus.yaml"))["scrape_configs"]
        (endpoint,) = documents("prometheus-operator.yaml")["PodMonitor"]["spec"]["podMetricsEndpoints"]
        app = create_app(REWARD, settings("kubernetes.yaml"))
        for path in (job["metrics_path"], endpoint["path"]):
            assert asyncio.run(status(app, path, "10.0.3.7:8000")) == 200
        assert endpoint["port"] in [port["name"] for port in container("kubernetes.yaml")["ports"]]

    def test_the_image_knows_whether_its_server_is_ready(self) -> None:
        (check,) = instruction("HEALTHCHECK")
        program, *rest = json.loads(check.partition("CMD ")[2])
        assert program == "python" and f", {options('Containerfile')['port']}, " in rest[-1]
        proxies = {name: "http://127.0.0.1:9" for name in ("http_proxy", "HTTP_PROXY", "all_proxy")}

        def healthy(port: int) -> bool:
            command = [sys.executable, *rest[:-1], rest[-1].replace("8000", str(port))]
            return subprocess.run(command, env=os.environ | proxies, capture_output=True, check=False).returncode == 0

        app = create_app(REWARD)
        with serving(app) as url:
            assert healthy(int(url.rpartition(":")[2]))
            app.state.service._batcher.is_stopping = True
            assert not healthy(int(url.rpartition(":")[2]))
        assert not healthy(free_port())
