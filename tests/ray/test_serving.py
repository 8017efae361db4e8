"""A reward on Ray Serve: the numbers of the local reward, from replicas that are killed and replaced meanwhile."""

from __future__ import annotations

import asyncio
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import httpx2
import numpy as np
import pytest

import rm_plugins as rm
from rm_plugins.data.row_files import read_rows, write_rows
from rm_plugins.errors import ModelError, ProcessError, ScoringError, SpecError
from rm_plugins.identity import fingerprint
from rm_plugins.jobs.job_engine import ScoringRequest
from rm_plugins.jobs.progress import JobProgress
from rm_plugins.wire import sample_to_json
from rm_plugins_ray.data_engine import RayDataEngine, quiet_data_context
from tests.conftest import MakeFolder
from tests.engines.engine_samples import engine_rows, program_row, sample_of
from tests.servers import free_port

SAMPLES = [rm.Sample(f"Question {number // 4}: name a colour.", f" It is {number} or blue.") for number in range(64)]
ROWS = engine_rows()
Deploy = Callable[..., httpx2.Client]


@pytest.fixture(scope="module")
def deploy(cluster: Any) -> Iterator[Deploy]:
    """Deploys a reward, in place of the previous one, and returns a client of it."""
    from ray import serve

    from rm_plugins_ray import app

    port = free_port()
    serve.shutdown()  # options count only for what is started
    serve.start(http_options={"port": port})

    def deployed(spec: Any, **arguments: Any) -> httpx2.Client:
        serve.run(app({"spec": spec, "replicas": 2, "num_cpus": 0.1, **arguments}))
        return httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=30)

    yield deployed
    serve.shutdown()


@pytest.fixture(scope="module")
def folders(tiny_decoder: MakeFolder) -> tuple[Path, Path]:
    """Two models whose scores differ."""
    return tiny_decoder(), tiny_decoder(config={"hidden_act": "relu"})


@pytest.fixture(scope="module")
def client(deploy: Deploy, folders: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> httpx2.Client:
    """A client of two replicas of the first model, which a file names by a relative path."""
    spec = folders[0].parent / "helpful.yaml"
    spec.write_text(f"provider: sequence-classifier\nmodel: ./{folders[0].name}\n", encoding="utf-8")
    return deploy(str(spec))


@contextmanager
def asking(client: httpx2.Client, samples: Sequence[rm.Sample]) -> Iterator[list[dict[str, Any]]]:
    """Meanwhile, four threads ask for the reward of two samples a request, and keep every answer with the first sample's place."""
    answers: list[dict[str, Any]] = []
    ends = threading.Event()

    def ask(place: int) -> None:
        while not ends.is_set():
            rows = [place % len(samples), (place + 1) % len(samples)]
            body = {"samples": [sample_to_json(samples[row]) for row in rows]}
            response = client.post("/v1/rewards", json=body)
            answers.append({"rows": rows, "status": response.status_code, **response.json()})
            place += 2

    with ThreadPoolExecutor(4) as pool:
        running = [pool.submit(ask, 16 * number) for number in range(4)]
        try:
            yield answers
        finally:
            ends.set()
            for one in running:
                one.result(30)


def replicas(deployment: str) -> list[str]:
    """The names of the replica actors of a deployment."""
    import ray

    named = ray.util.list_named_actors(all_namespaces=True)
    return [each["name"] for each in named if each["name"].startswith(f"SERVE_REPLICA::default#{deployment}#")]


def kill_one(deployment: str) -> None:
    import ray

    ray.kill(ray.get_actor(replicas(deployment)[0], namespace="serve"), no_restart=True)


def test_every_dialect_gives_the_numbers_of_the_local_reward(client: httpx2.Client, folders: tuple[Path, Path]) -> None:
    local = rm.load(folders[0])
    expected = local.score(SAMPLES).values
    response = client.post("/v1/rewards", json={"samples": [sample_to_json(sample) for sample in SAMPLES]})
    answer = response.json()
    assert answer["fingerprint"] == fingerprint(local)
    assert answer["model"] == "helpful"
    np.testing.assert_allclose([entry["reward"] for entry in answer["rewards"]], expected, atol=1e-4)
    vllm = rm.load({"provider": "remote", "url": str(client.base_url), "protocol": "vllm", "tokenizer": str(folders[0])})
    np.testing.assert_allclose(vllm.score(SAMPLES).values, expected, atol=1e-4)
    through_url = rm.load(str(client.base_url), batch_size=4).score(SAMPLES)
    np.testing.assert_allclose(through_url.values, expected, atol=1e-4)
    assert client.get("/health").status_code == 200
    assert response.headers.get_list("x-request-id") == [response.headers["x-request-id"]]


def served(url: str, _: Path, __: Path) -> list[float]:
    """Ray Serve, one request after the other."""
    values: list[float] = rm.load(url, batch_size=16).score([sample_of(row) for row in ROWS]).values.tolist()
    return values


def streamed(_: str, spec: Path, __: Path) -> list[float]:
    """`rm_plugins_ray.score`, for a data set of several blocks."""
    import ray.data

    import rm_plugins_ray

    rows = [{"number": number, **program_row(row)} for number, row in enumerate(ROWS)]
    with quiet_data_context():
        scored = rm_plugins_ray.score(
            ray.data.from_items(rows, override_num_blocks=4), spec, workers=2, batch_size=40
        ).take_all()
    return [row["score"] for row in sorted(scored, key=lambda row: row["number"])]


def scored_file(_: str, spec: Path, folder: Path) -> list[float]:
    """``rm-plugins score --engine ray``."""
    write_rows(map(program_row, ROWS), folder / "in.jsonl")
    request = ScoringRequest(str(spec), str(folder / "in.jsonl"), "train", folder / "out.jsonl", batch_size=40)
    RayDataEngine(workers=2, block_rows=50).score(request, JobProgress())
    return [row["score"] for row in read_rows(str(folder / "out.jsonl"))]


def called(_: str, spec: Path, __: Path) -> list[float]:
    """The provider ``ray-actor``."""
    import ray

    from rm_plugins_ray import RewardActor

    actor = ray.remote(num_cpus=0.1)(RewardActor).remote(str(spec))
    values: list[float] = (
        rm.load({"provider": "ray-actor", "actor": actor}).score([sample_of(row) for row in ROWS]).values.tolist()
    )
    return values


@pytest.mark.parametrize("path", [served, streamed, scored_file, called])
def test_every_path_gives_the_numbers_of_the_provider(
    path: Callable[[str, Path, Path], list[float]], client: httpx2.Client, folders: tuple[Path, Path], tmp_path: Path
) -> None:
    """The same 256 samples as in `tests.engines.test_every_path`, in order."""
    spec = folders[0].parent / "helpful.yaml"
    expected = rm.load(spec).score([sample_of(row) for row in ROWS]).values
    np.testing.assert_allclose(path(str(client.base_url), spec, tmp_path), expected, atol=1e-4)


def test_limits_and_operations_are_answered_by_the_replica(client: httpx2.Client) -> None:
    refused = client.post("/v1/rewards", content=b"[" + b" " * 17 * 2**20)
    assert refused.status_code == 413
    assert refused.json()["error"]["cause"] == "too-large"
    assert client.post("/v1/rewards", json={"samples": [{"prompt": 1}]}).status_code == 422
    assert client.get("/nothing").status_code == 404


def test_a_killed_replica_loses_no_request(client: httpx2.Client, folders: tuple[Path, Path]) -> None:
    expected = rm.load(folders[0]).score(SAMPLES).values
    with asking(client, SAMPLES) as answers:
        time.sleep(0.5)
        before = len(answers)
        kill_one("Reward")
        time.sleep(2.5)
    assert len(answers) > before > 0
    assert {answer["status"] for answer in answers} == {200}
    for answer in answers:
        np.testing.assert_allclose([one["reward"] for one in answer["rewards"]], expected[answer["rows"]], atol=1e-4)


def test_a_killed_front_costs_a_client_that_retries_nothing(client: httpx2.Client, folders: tuple[Path, Path]) -> None:
    remote = rm.load(str(client.base_url), batch_size=2)
    kills = threading.Timer(0.1, kill_one, ["Front"])
    kills.start()
    values = [remote.score(SAMPLES).values for _ in range(4)]
    kills.join()
    np.testing.assert_allclose(values, np.tile(rm.load(folders[0]).score(SAMPLES).values, (4, 1)), atol=1e-4)


def test_an_update_loses_no_request_and_no_answer_mixes_two_rewards(
    client: httpx2.Client, deploy: Deploy, folders: tuple[Path, Path]
) -> None:
    local = [rm.load(folder) for folder in folders]
    expected = {fingerprint(each): each.score(SAMPLES).values for each in local}
    old, new = expected
    required = rm.load(str(client.base_url), fingerprint=old)
    assert np.isfinite(required.score(SAMPLES).values).all()
    with asking(client, SAMPLES) as answers:
        deploy(str(folders[1]), replicas=1)
        time.sleep(0.3)
    assert {answer["status"] for answer in answers} == {200}
    assert {answer["fingerprint"] for answer in answers} == {old, new}
    for answer in answers:
        given = [one["reward"] for one in answer["rewards"]]
        np.testing.assert_allclose(given, expected[answer["fingerprint"]][answer["rows"]], atol=1e-4)
    assert client.get("/v1/info").json()["fingerprint"] == new
    with pytest.raises(ScoringError, match="requires the model with the fingerprint"):
        required.score(SAMPLES)


def test_a_replica_of_changed_files_does_not_serve(deploy: Deploy, folders: tuple[Path, Path], tmp_path: Path) -> None:
    """The others keep answering with the reward that was deployed."""
    from ray import serve

    def message() -> str:
        return str(serve.status().applications["default"].deployments["Reward"].message)

    shutil.copytree(folders[0], tmp_path / "rm")
    client = deploy({"provider": "sequence-classifier", "model": str(tmp_path / "rm")})
    deployed = client.get("/v1/info").json()["fingerprint"]
    shutil.copytree(folders[1], tmp_path / "rm", dirs_exist_ok=True)
    kill_one("Reward")
    deadline = time.monotonic() + 120
    while "The files of the spec have changed" not in message():
        assert time.monotonic() < deadline, message()
        time.sleep(0.5)
    with asking(client, SAMPLES) as answers:
        time.sleep(1)
    assert {(answer["status"], answer["fingerprint"]) for answer in answers} == {(200, deployed)}


def test_a_replica_that_differs_from_the_others_is_not_healthy(monkeypatch: pytest.MonkeyPatch) -> None:
    """As after the actor that compares the replicas was lost; until it is there again, nothing is known."""
    from rm_plugins.server.settings import Settings
    from rm_plugins_ray.replica import Replica
    from rm_plugins_ray.shipped_spec import ShippedSpec

    replica = Replica(ShippedSpec({"provider": "length-window", "low": 3}, {}), Settings())

    def fails(error: Exception) -> None:
        monkeypatch.setattr("rm_plugins_ray.replica.agree", Mock(side_effect=error))

    fails(ProcessError("does not answer"))
    asyncio.run(replica.check_health())
    fails(ModelError("another reward"))
    with pytest.raises(ModelError, match="another reward"):
        asyncio.run(replica.check_health())


def test_the_completions_of_a_prompt_meet_in_one_replica(deploy: Deploy) -> None:
    client = deploy("tests.ray.rewards:process", affinity_slack=64)

    def process_of(body: dict[str, Any]) -> float:
        (entry,) = client.post("/v1/rewards", json=body).json()["rewards"]
        return float(entry["reward"])

    prompts = [f"Question {number}" for number in range(12) for _ in range(4)]
    bodies = [{"samples": [{"prompt": prompt, "completion": str(place)}]} for place, prompt in enumerate(prompts)]
    with ThreadPoolExecutor(16) as pool:
        processes = list(pool.map(process_of, bodies))
    by_prompt = {prompt: {where for at, where in zip(prompts, processes, strict=True) if at == prompt} for prompt in prompts}
    assert all(len(where) == 1 for where in by_prompt.values())
    assert len(set(processes)) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, r"needs the argument 'spec', such as spec=helpful\.yaml"),
        ({"spec": "a/b", "replica": 2}, "has no argument 'replica'.*replicas"),
        ({"spec": "a/b", "replicas": "many"}, "replicas: .*not 'many'"),
        ({"spec": "a/b", "replicas": 3, "max_replicas": 2}, r"max_replicas \(2\) must be at least replicas \(3\)"),
        ({"spec": "./absent.yaml"}, "does not exist"),
        ({"spec": {"provider": "length-window", "lowest": 1}}, "unknown key 'lowest' for 'length-window'"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], message: str) -> None:
    from rm_plugins_ray import app

    with pytest.raises(SpecError, match=message):
        app(arguments)


def test_autoscaling_by_the_queue() -> None:
    from rm_plugins_ray import app

    built = app({"spec": "a/b", "max_replicas": "4", "target_requests": "8"})
    replicas = built._bound_deployment.init_args[0]._bound_deployment
    scaling = replicas._deployment_config.autoscaling_config
    assert (scaling.min_replicas, scaling.max_replicas, scaling.target_ongoing_requests) == (1, 4, 8)
