"""The dashboard, the alerts and the autoscaler ask for what the server counts."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import httpx2
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from rm_plugins.batching.batcher import Batch
from rm_plugins.server import create_app
from rm_plugins.server.metrics import Metrics
from rm_plugins.server.replicas import Replica
from tests.deploying.files import REWARD, ROOT, documents, options, text_of
from tests.servers import free_port, serving


def exposed() -> dict[str, set[str]]:
    """The labels of every time series of ``/metrics``, by name, once everything has been counted."""
    metrics = Metrics(lambda: (0, 0))
    metrics.answered("rm-plugins", 429, "overload", 0.1)
    metrics.scored(samples=1, tokens=1, abstained=0, failed=0, waited=0.1)
    metrics.batch(Batch(1, 0.5, 0.1))
    metrics.reloaded("failed")
    metrics.serves("helpful", "b1946ac9", now=True)
    series: dict[str, set[str]] = {"up": set()}
    for family in text_string_to_metric_families(metrics.text([Replica()]).decode()):
        for sample in family.samples:
            series.setdefault(sample.name, set()).update(sample.labels)
    return series


FROM_PROMETHEUS = {"instance", "job"}
"""Labels that Prometheus adds."""
DASHBOARD = json.loads(text_of("grafana-dashboard.json"))
RULES = yaml.safe_load(text_of("alerts.yaml"))["groups"][0]["rules"]
PANELS = [
    (panel["title"], target["expr"], target["legendFormat"]) for panel in DASHBOARD["panels"] for target in panel["targets"]
]
VARIABLES = [
    ("variable", variable["definition"], "") for variable in DASHBOARD["templating"]["list"] if "definition" in variable
]
ALERTS = [(rule["alert"], rule["expr"], "") for rule in RULES]


@pytest.mark.parametrize(("title", "query", "legend"), PANELS + VARIABLES + ALERTS)
def test_queries_name_what_the_server_counts(title: str, query: str, legend: str) -> None:
    series = exposed()
    selectors = re.findall(r"\b(rm_plugins_\w+|up)(?:\{([^}]*)\})?", query)
    assert selectors, title
    known: set[str] = set(FROM_PROMETHEUS)
    for name, selector in selectors:
        assert name in series, f"{title}: /metrics has no {name}"
        assert set(re.findall(r"(\w+)=", selector)) <= series[name] | FROM_PROMETHEUS, title
        known |= series[name]
    grouped = {label for labels in re.findall(r"by \(([^)]*)\)", query) for label in labels.split(", ")}
    assert grouped <= known, title
    shown = set(re.findall(r"{{(\w+)}}", legend))
    assert shown <= (grouped or known), f"{title}: {legend} has a label that the query drops"


def test_the_dashboard_shows_every_metric_and_has_its_variables() -> None:
    shown = " ".join(query for _, query, _ in PANELS)
    wanted = {re.sub(r"_(bucket|sum|count|created|total)$", "", name) for name in exposed()} - {"up"}
    assert [name for name in wanted if name not in shown] == []
    names = {variable["name"] for variable in DASHBOARD["templating"]["list"]}
    assert set(re.findall(r"\$\{?(\w+)", json.dumps(DASHBOARD))) - {"__rate_interval", "__all"} <= names
    places = [tuple(panel["gridPos"].values()) for panel in DASHBOARD["panels"]]
    assert len(set(places)) == len(places) and len({panel["id"] for panel in DASHBOARD["panels"]}) == len(places)


def test_the_autoscaler_reads_a_gauge_of_each_replica() -> None:
    scaler = documents("kubernetes-autoscaling.yaml")["HorizontalPodAutoscaler"]["spec"]
    (metric,) = scaler["metrics"]
    name = metric["pods"]["metric"]["name"]
    assert exposed()[name] == set()
    deployment = documents("kubernetes.yaml")["Deployment"]
    assert scaler["scaleTargetRef"]["name"] == deployment["metadata"]["name"]
    assert float(metric["pods"]["target"]["averageValue"]) == options("kubernetes.yaml")["max_queue_items"] / 4
    page = (ROOT / "docs" / "deploying.md").read_text(encoding="utf-8")
    (rule,) = yaml.safe_load(re.findall(r"^```yaml\n(rules:.*?)^```$", page, re.MULTILINE | re.DOTALL)[0])["rules"]
    assert rule["seriesQuery"].startswith(name + "{")


def test_prometheus_itself_answers_every_query(tmp_path: Path) -> None:
    program = shutil.which("prometheus")
    if program is None:
        pytest.skip("Prometheus is not installed")
    for file in ("prometheus.yaml", "alerts.yaml"):
        (tmp_path / file).write_text(text_of(file), encoding="utf-8")
    listening = f"127.0.0.1:{free_port()}"
    with serving(create_app(REWARD)) as url:
        config = text_of("prometheus.yaml").replace("127.0.0.1:8000", url.removeprefix("http://"))
        config = re.sub(r"(scrape_interval|scrape_timeout): \d+s", r"\1: 1s", config)
        (tmp_path / "prometheus.yaml").write_text(config, encoding="utf-8")
        flags = [f"--config.file={tmp_path}/prometheus.yaml", f"--storage.tsdb.path={tmp_path}/data"]
        with subprocess.Popen([program, *flags, f"--web.listen-address={listening}"], stderr=subprocess.DEVNULL) as running:
            try:
                with httpx2.Client(base_url=f"http://{listening}", timeout=5, trust_env=False) as client:
                    answers: dict[str, Any] = {}
                    for _ in range(150):
                        httpx2.post(f"{url}/v1/rewards", json={"samples": [{"prompt": "", "completion": "x"}]}, trust_env=False)
                        httpx2.post(f"{url}/v1/rewards", json={}, trust_env=False)
                        answers = {query: answer_of_prometheus(client, query) for _, query, _ in PANELS}
                        if all(answers[query] for query in answers if "reloads" not in query):
                            break
                        time.sleep(0.1)
                    assert [query for query, found in answers.items() if not found and "reloads" not in query] == []
                    alerts = client.get("/api/v1/rules").json()["data"]["groups"][0]["rules"]
                    assert {rule["health"] for rule in alerts} <= {"ok", "unknown"}  # the latter before the first evaluation
            finally:
                running.terminate()


def answer_of_prometheus(client: httpx2.Client, query: str) -> Any:
    """The time series that a query of the dashboard gives."""
    for name, value in {"$__rate_interval": "1m", "$job": ".+", "$instance": ".+"}.items():
        query = query.replace(name, value)
    try:
        answer = client.get("/api/v1/query", params={"query": query})
    except httpx2.TransportError:  # it is starting
        return []
    if answer.status_code == 503:
        return []
    assert answer.status_code == 200, answer.text
    return answer.json()["data"]["result"]
