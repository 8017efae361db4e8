"""The provider ``ray-actor``: the numbers of the local reward, from actors that die, are missing or are not the right ones."""

from __future__ import annotations

import socket
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rm_plugins as rm
from rm_plugins.errors import MissingDependencyError, ModelError, ProcessError, ScoringError, SpecError
from rm_plugins.identity import fingerprint
from rm_plugins_ray.connection import connected_ray
from rm_plugins_ray.node_check import node_check
from rm_plugins_ray.reward_actor import RewardActor
from rm_plugins_ray.shipped_spec import ShippedSpec
from tests.conftest import MakeFolder

SAMPLES = [rm.Sample(f"Question {number // 4}: name a colour.", f" It is {number} or blue.") for number in range(64)]


@pytest.fixture(scope="module")
def folder(tiny_decoder: MakeFolder) -> Path:
    return tiny_decoder()


@pytest.fixture(scope="module")
def actor(cluster: Any, folder: Path) -> Iterator[Any]:
    """An actor called ``reward`` in the namespace ``rewards``, which Ray restarts."""
    import ray

    from rm_plugins_ray import start_actor

    handle = start_actor(str(folder), name="reward", namespace="rewards", num_cpus=0.1)
    yield handle
    ray.kill(handle)


def by_name(**settings: Any) -> rm.Provider:
    return rm.load({"provider": "ray-actor", "actor": "reward", "namespace": "rewards", **settings})


def test_the_numbers_of_the_local_reward_by_name_and_by_handle(actor: Any, folder: Path) -> None:
    local = rm.load(folder)
    expected = local.score(SAMPLES)
    for provider in (by_name(fingerprint=fingerprint(local)), rm.load({"provider": "ray-actor", "actor": actor})):
        scores = provider.score(SAMPLES)
        np.testing.assert_allclose(scores.values, expected.values, atol=1e-4)
        assert scores.metadata["fingerprint"] == fingerprint(local)
        assert scores.tokens is not None and expected.tokens is not None
        assert (scores.tokens.used == expected.tokens.used).all()
        assert len(fingerprint(provider)) == 64
    with ThreadPoolExecutor(8) as pool:
        parts = list(pool.map(lambda place: by_name().score(SAMPLES[place : place + 4]).values, range(0, 64, 4)))
    np.testing.assert_allclose(np.concatenate(parts), expected.values, atol=1e-4)


def test_a_failed_row_fails_alone(actor: Any) -> None:
    rows = [SAMPLES[0], rm.Sample("Half a character:", "\ud800"), SAMPLES[1]]
    scores = by_name(on_error="abstain").score(rows)
    assert scores.failed.tolist() == [False, True, False]
    assert np.isfinite(scores.values[[0, 2]]).all()


def test_an_error_of_a_plug_in_reaches_the_caller(cluster: Any) -> None:
    """Though it cannot be pickled."""
    import ray

    own = ray.remote(RewardActor).options(num_cpus=0.1).remote("tests.ray.rewards:raises_its_own")
    with pytest.raises(ScoringError, match=r"^sample 1 of 2 is bad"):
        rm.load({"provider": "ray-actor", "actor": own}).score([rm.Sample("", "good"), rm.Sample("", "bad")])
    ray.kill(own)


def test_an_actor_that_is_killed_meanwhile_is_waited_for(actor: Any, folder: Path) -> None:
    import ray

    expected = rm.load(folder).score(SAMPLES).values
    provider = by_name()
    kills = threading.Timer(0.05, ray.kill, [actor], {"no_restart": False})
    kills.start()
    values = [provider.score(SAMPLES).values for _ in range(20)]
    kills.join()
    np.testing.assert_allclose(values, np.tile(expected, (20, 1)), atol=1e-4)
    assert provider.counts["retries"] >= 1


def test_what_is_not_the_required_reward_scores_nothing(actor: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ScoringError, match="requires the reward with the fingerprint 'other', but the actor holds"):
        by_name(fingerprint="other").score(SAMPLES)
    monkeypatch.setattr("rm_plugins_ray.ray_actor.__version__", "9.9")
    with pytest.raises(ScoringError, match=r"runs rm-plugins .*, but this process runs 9\.9"):
        by_name().score(SAMPLES)


def test_an_actor_that_is_missing_dead_slow_or_another_kind(cluster: Any) -> None:
    import ray

    from rm_plugins_ray import start_actor

    with pytest.raises(ScoringError, match="No Ray actor is named 'absent' in the current namespace"):
        rm.load({"provider": "ray-actor", "actor": "absent", "wait": 0.1}).score(SAMPLES)
    slow = start_actor("tests.ray.rewards:slow", name="slow", num_cpus=0.1)
    with pytest.raises(ScoringError, match=r"did not answer within 0\.2 s"):
        rm.load({"provider": "ray-actor", "actor": "slow", "timeout": 0.2}).score(SAMPLES)
    ray.kill(slow)
    with pytest.raises(ScoringError, match=r"is dead, and was not restarted within 0\.1 s"):
        rm.load({"provider": "ray-actor", "actor": slow, "wait": 0.1}).score(SAMPLES)
    own = ray.remote(RewardActor).options(num_cpus=0.1).remote({"provider": "length-window", "low": 3})
    assert rm.load({"provider": "ray-actor", "actor": own}).score([rm.Sample("", "blue")]).values.tolist() == [1.0]
    counter = ray.remote(type("Counter", (), {})).options(name="counter", num_cpus=0.1).remote()
    with pytest.raises(ScoringError, match="'counter' is not a RewardActor"):
        rm.load({"provider": "ray-actor", "actor": "counter"}).score(SAMPLES)
    methods = {"facts": lambda self: {"a": 1}, "score": lambda self, samples, client: [1.0]}
    judge = ray.remote(type("Judge", (), methods)).options(num_cpus=0.1).remote()
    with pytest.raises(ScoringError, match=r"is not a RewardActor: its method `facts` returned \{'a': 1\}"):
        rm.load({"provider": "ray-actor", "actor": judge}).score(SAMPLES)
    for handle in (own, counter, judge):
        ray.kill(handle)


def test_a_node_that_cannot_hold_the_reward_says_why(cluster: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rm_plugins_ray import start_actor

    broken = folder.parent / "broken"
    broken.mkdir(exist_ok=True)
    with pytest.raises(ProcessError, match=r"The actor 'broken' could not be started.*config\.json"):
        start_actor(str(broken), name="broken", num_cpus=0.1)
    monkeypatch.setattr("rm_plugins_ray.reward_actor.__version__", "9.9")
    with pytest.raises(
        ProcessError, match=r"The node .* needs rm-plugins 9\.9, .*is installed there.*Install it on every node"
    ):
        start_actor(str(folder), name="older", num_cpus=0.1)


def test_a_node_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rm_plugins_ray.shipped_spec", None)
    with pytest.raises(
        RuntimeError, match=r"needs rm-plugins 1\.2, .*cannot be imported there.*pip: \['rm-plugins\[ray\]==1\.2'\]"
    ):
        node_check("1.2")()


def test_a_node_with_another_python(monkeypatch: pytest.MonkeyPatch) -> None:
    check = node_check("1.2")
    monkeypatch.setattr("platform.python_version_tuple", lambda: ("3", "9", "1"))
    with pytest.raises(RuntimeError, match=r"The node .* has Python 3\.9, but this job was started with \d\.\d+\. Use one"):
        check()


def test_paths_of_the_driver_only_are_refused_by_name(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "rm").symlink_to(folder)
    inner, outer = tmp_path / "inner.yaml", tmp_path / "outer.yaml"
    inner.write_text("{provider: sequence-classifier, model: ./rm, transform: {name: clip, low: -1}}", encoding="utf-8")
    outer.write_text("{provider: ensemble, members: [inner.yaml, {provider: constant, value: 1}]}", encoding="utf-8")
    shipped = ShippedSpec.read(outer)
    shipped.check_here()
    assert fingerprint(rm.load(shipped.spec)) == fingerprint(rm.load(outer))
    elsewhere = ShippedSpec(shipped.spec, {"members[0].model": "/elsewhere/rm"})
    with pytest.raises(
        ModelError, match=r"1 of the 1 local paths .* do not exist on this node: members\[0\]\.model: /elsewhere/rm"
    ):
        elsewhere.check_here()
    with pytest.raises(SpecError, match=r"members\[0\]: .*made in Python"):
        ShippedSpec.read({"provider": "ensemble", "members": [rm.load(len)]})


@pytest.mark.parametrize("answer", [b"HTTP/1.0 400 Bad request\r\n\r\n", b"", None], ids=["HTTP", "closes", "silent"])
def test_an_address_of_another_program(answer: bytes | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray itself would wait for minutes."""
    import ray

    from rm_plugins_ray import connection

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(connection, "_SECONDS", 0.5)

    def answers(listening: socket.socket) -> None:
        with listening.accept()[0] as connection:
            connection.recv(100)
            if answer is None:
                connection.recv(100)  # until the other side gives up
            else:
                connection.sendall(answer)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=answers, args=(listening,))
        thread.start()
        with pytest.raises(ProcessError, match=r"cannot reach a Ray cluster at '127.0.0.1:\d+': (another program|timed out)"):
            connected_ray(f"127.0.0.1:{listening.getsockname()[1]}", asked_by="The provider 'reward'")
        thread.join()


def test_the_address_of_a_cluster(cluster: Any) -> None:
    from rm_plugins_ray import connection

    connection._check_listening(cluster.address, "The provider 'reward'")


def test_a_machine_that_cannot_start_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    from rm_plugins_ray.connection import connected

    def fails(**_: Any) -> None:
        raise Exception("The current node timed out during startup.\nMore.")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", fails)
    with (
        pytest.raises(
            ProcessError, match=r"cannot be started on this machine: The current node .* startup\. Check its free memory"
        ),
        connected("local"),
    ):
        pass


def test_addresses_where_no_cluster_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with pytest.raises(SpecError, match=r"'head' is not 'auto', HOST:PORT or ray://HOST:PORT"):
        connected_ray("head", asked_by="The provider 'reward'")
    with pytest.raises(ProcessError, match=r"The provider 'reward' cannot reach a Ray cluster at '127\.0\.0\.1:9'"):
        connected_ray("127.0.0.1:9", asked_by="The provider 'reward'")
    monkeypatch.setattr(
        ray, "init", lambda **_: (_ for _ in ()).throw(ConnectionError("Could not find any running Ray instance."))
    )
    with pytest.raises(
        ProcessError, match=r"on this machine .*Could not find any running Ray instance\. Start one with `ray start"
    ):
        connected_ray("auto", asked_by="The provider 'reward'")
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingDependencyError, match=r"needs the package ray \(.*\): pip install 'rm-plugins\[ray\]'"):
        connected_ray("auto", asked_by="The provider 'reward'")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": ""}, "name: must be a name by which others find the actor, not ''"),
        ({"max_concurrency": 0}, "max_concurrency: must be a positive number of calls, not 0"),
        ({"num_cpus": -1}, "The actor 'wrong' cannot have these options: .*num_cpus cannot be negative"),
        ({"cpus": 1}, "The actor 'wrong' cannot have these options: .*cpus"),
    ],
)
def test_wrong_options_of_an_actor(cluster: Any, options: dict[str, Any], message: str) -> None:
    from rm_plugins_ray import start_actor

    with pytest.raises(SpecError, match=message):
        start_actor("tests.ray.rewards:process", **{"name": "wrong", **options})


def test_a_name_that_an_actor_has_already(actor: Any) -> None:
    from rm_plugins_ray import start_actor

    with pytest.raises(ProcessError, match="An actor named 'reward' runs already"):
        start_actor("tests.ray.rewards:process", name="reward", namespace="rewards", num_cpus=0.1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"actor": RewardActor}, "actor: must be the name of an actor, or a handle of a RewardActor"),
        ({"actor": ""}, "actor: must be the name of an actor, or a handle"),
        ({"actor": 3}, "actor: must be the name of an actor, or a handle"),
        ({"actor": "reward", "timeout": 0}, "timeout: must be a positive number of seconds"),
    ],
)
def test_wrong_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        rm.load({"provider": "ray-actor", **settings})
