"""Several servers, connections, processes and threads."""

from __future__ import annotations

import asyncio
import json
import math
import multiprocessing
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from rm_plugins.errors import ScoringError
from rm_plugins.protocols import Native
from rm_plugins.providers.remote import Remote
from tests.fault_proxy import Reply, Scorer, json_reply, reward_of
from tests.remote.conftest import EXPECTED, SAMPLES, many, remote, wait_for
from tests.servers import serving


class TestSeveralServers:
    def test_requests_are_spread_over_all(self) -> None:
        scorers = [Scorer(max_items=1), Scorer(max_items=1)]
        with (
            serving(scorers[0], lifespan="off") as one,
            serving(scorers[1], lifespan="off") as other,
        ):
            provider = Remote(url=[one, other], protocol=Native(), concurrency=2)
            values = provider.score(many(40)).values.tolist()
            provider.close()
        assert values == [reward_of(f"Q: {number}") for number in range(40)]
        assert min(len(scorer.bodies) for scorer in scorers) >= 8

    def test_one_may_be_dead_from_the_start(self) -> None:
        with remote_pair() as (url, dead):
            provider = Remote(url=[dead, url], protocol=Native())
            assert provider.score(SAMPLES).values.tolist() == EXPECTED
            provider.close()

    def test_one_may_be_lost_in_the_middle(self) -> None:
        scorers = [Scorer(max_items=1), Scorer(max_items=1)]

        async def slowly(body: dict[str, Any]) -> Reply | None:
            await asyncio.sleep(0.01)
            return None

        for scorer in scorers:
            scorer.before = slowly
        with serving(scorers[0], lifespan="off") as one, ThreadPoolExecutor(1) as pool:
            with serving(scorers[1], lifespan="off") as other:
                provider = Remote(url=[one, other], protocol=Native(), concurrency=2, deadline=20)
                scoring = pool.submit(provider.score, many(100))
                wait_for(lambda: len(scorers[1].bodies) >= 5)
            assert scoring.result(20).values.tolist() == [reward_of(f"Q: {number}") for number in range(100)]
            provider.close()

    def test_one_that_cannot_be_used_is_left_out_with_a_warning(self, caplog: pytest.LogCaptureFixture) -> None:
        async def shop(scope: Any, receive: Any, send: Any) -> None:
            await send({"type": "http.response.start", "status": 404, "headers": []})
            await send({"type": "http.response.body", "body": b"welcome"})

        with serving(shop, lifespan="off") as wrong, serving(Scorer(), lifespan="off") as url:
            provider = Remote(url=[wrong, url], protocol=Native())
            assert provider.score(SAMPLES).values.tolist() == EXPECTED
            provider.close()
        assert f"{wrong} is not used any more" in caplog.text

    def test_what_failed_on_one_is_tried_on_another_though_that_is_slower(self) -> None:
        broken, slow = Scorer(reward=lambda text: math.nan if "ccc" in text else reward_of(text)), Scorer()

        async def slowly(body: dict[str, Any]) -> Reply | None:
            await asyncio.sleep(0.3)
            return None

        slow.before = slowly
        with serving(broken, lifespan="off") as one, serving(slow, lifespan="off") as other:
            provider = Remote(url=[one, other], protocol=Native(), tries=2)
            while not (broken.texts and slow.texts):  # afterwards it is known which one is quicker
                provider.score(SAMPLES[:2])
            assert provider.score(SAMPLES[2:3]).values.tolist() == EXPECTED[2:3]
            provider.close()
        assert "Q: ccc" in broken.texts

    def test_a_second_request_that_cannot_be_sent_does_not_keep_the_first_from_being_tried_again(self) -> None:
        scorer = Scorer()

        async def before(body: dict[str, Any]) -> Reply | None:
            if len(scorer.bodies) > 1:
                return None
            await asyncio.sleep(0.1)
            return json_reply(503, {"error": {"message": "busy"}})

        scorer.before = before
        with remote(scorer, concurrency=1, hedge_after=0.02, deadline=5.0) as provider:
            assert provider.score(SAMPLES).values.tolist() == EXPECTED

    def test_one_that_refuses_is_left_to_the_others(self) -> None:
        refusing, sound = Scorer(), Scorer()

        async def before(body: dict[str, Any]) -> Reply | None:
            return json_reply(404, {"error": {"message": "no such model"}})

        refusing.before = before
        with serving(refusing, lifespan="off") as one, serving(sound, lifespan="off") as other:
            provider = Remote(url=[one, other], protocol=Native(), batch_size=1)
            assert provider.score(SAMPLES).values.tolist() == EXPECTED
            provider.close()

    def test_a_slow_answer_is_overtaken_by_a_second_request(self) -> None:
        slow, quick = Scorer(), Scorer()

        async def asleep(body: dict[str, Any]) -> Reply | None:
            await asyncio.sleep(60)
            return None

        with serving(slow, lifespan="off") as one, serving(quick, lifespan="off") as other:
            provider = Remote(url=[one, other], protocol=Native(), hedge_after=0.1, concurrency=1)
            while not (slow.bodies and quick.bodies):
                provider.score(many(4))
            slow.bodies.clear()
            slow.before = asleep
            begun = time.monotonic()
            scores = provider.score(SAMPLES)
            wait_for(lambda: slow.hung_up >= len(slow.bodies))
            provider.close()
        assert scores.values.tolist() == EXPECTED
        assert time.monotonic() - begun < 30
        assert provider.counts["hedges"] >= 1
        assert slow.bodies[0]["id"] in [body["id"] for body in quick.bodies]


@contextmanager
def remote_pair() -> Iterator[tuple[str, str]]:
    """The URLs of a server, and of one that was there before."""
    with serving(Scorer(), lifespan="off") as dead:
        pass
    with serving(Scorer(), lifespan="off") as url:
        yield url, dead


class TestProcessesAndThreads:
    def test_an_interrupt_cancels_what_is_under_way(self) -> None:
        scorer = Scorer(max_items=1)

        async def slow(body: dict[str, Any]) -> Reply | None:
            if len(scorer.bodies) <= 5:
                await asyncio.sleep(5)
            return None

        scorer.before = slow
        before = signal.signal(signal.SIGINT, signal.default_int_handler)  # which a run in the background was started without
        with remote(scorer) as provider:
            timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
            timer.start()
            with pytest.raises(KeyboardInterrupt):
                provider.score(SAMPLES)
            wait_for(lambda: scorer.hung_up >= 5)
            assert provider.score(SAMPLES).values.tolist() == EXPECTED
        signal.signal(signal.SIGINT, before)

    def test_several_threads_may_score_at_once(self) -> None:
        with remote(Scorer(max_items=2), concurrency=3) as provider, ThreadPoolExecutor(8) as pool:
            batches = [many(16)[start:] for start in range(8)]
            for start, scores in enumerate(pool.map(provider.score, batches)):
                assert scores.values.tolist() == [reward_of(f"Q: {number}") for number in range(start, 16)]
        assert provider.counts["samples"] == sum(map(len, batches))

    def test_all_providers_share_one_thread(self) -> None:
        with remote(Scorer()) as one, remote(Scorer()) as other:
            one.score(SAMPLES)
            other.score(SAMPLES)
            assert [thread.name for thread in threading.enumerate()].count("rm-plugins-remote") == 1

    def test_a_closed_provider_opens_again(self) -> None:
        with remote(Scorer()) as provider:
            provider.score(SAMPLES)
            provider.close()
            provider.close()
            assert provider.score(SAMPLES).values.tolist() == EXPECTED

    @pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
    @pytest.mark.parametrize("method", ["fork", "spawn"])
    def test_another_process_has_connections_of_its_own(self, method: Any) -> None:
        scorer = Scorer()
        with remote(scorer) as provider:
            provider.score(SAMPLES)
            with multiprocessing.get_context(method).Pool(1) as pool:
                assert pool.apply(provider.score, (SAMPLES,)).values.tolist() == EXPECTED
                assert provider.score(SAMPLES).values.tolist() == EXPECTED

    @pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
    def test_a_forked_child_scores_with_the_very_object(self) -> None:
        with remote(Scorer()) as provider:
            provider.score(SAMPLES)
            reader, writer = os.pipe()
            child = os.fork()
            if not child:
                try:
                    os.write(writer, json.dumps(provider.score(SAMPLES).values.tolist()).encode())
                finally:
                    os._exit(0)
            os.close(writer)
            with os.fdopen(reader) as file:
                assert json.loads(file.read()) == EXPECTED
            os.waitpid(child, 0)
            assert provider.score(SAMPLES).values.tolist() == EXPECTED


class TestConnections:
    def test_no_proxy_of_the_environment_has_a_part_in_what_is_here(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
        monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
        with remote(Scorer()) as provider:
            assert provider.score(SAMPLES).values.tolist() == EXPECTED

    def test_certificates_are_verified(self, tmp_path: Path) -> None:
        openssl = shutil.which("openssl")
        if openssl is None:
            pytest.skip("no openssl to make a certificate with")
        key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
        subject = ["-subj", "/CN=scorer", "-addext", "subjectAltName=IP:127.0.0.1"]
        made = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2", *subject]
        subprocess.run([openssl, *made, "-keyout", key, "-out", certificate], check=True, capture_output=True)
        with serving(Scorer(), lifespan="off", ssl_keyfile=str(key), ssl_certfile=str(certificate)) as url:
            secure = url.replace("http:", "https:")
            with pytest.raises(ScoringError, match=r"certificate cannot be verified .*`ca_file`"):
                Remote(url=secure, protocol=Native()).score(SAMPLES)
            provider = Remote(url=secure, protocol=Native(), ca_file=str(certificate))
            assert provider.score(SAMPLES).values.tolist() == EXPECTED
            provider.close()

    def test_a_server_may_be_restarted_meanwhile(self) -> None:
        first, second = Scorer(max_items=1), Scorer(max_items=2)

        async def slowly(body: dict[str, Any]) -> Reply | None:
            await asyncio.sleep(0.02)
            return None

        first.before = slowly
        with ThreadPoolExecutor(1) as pool:
            with serving(first, lifespan="off") as url:
                provider = Remote(url=url, protocol=Native(), concurrency=2)
                scoring = pool.submit(provider.score, many(60))
                wait_for(lambda: len(first.bodies) >= 10)
            time.sleep(0.2)
            with serving(second, port=int(url.rpartition(":")[2]), lifespan="off"):
                assert scoring.result(20).values.tolist() == [reward_of(f"Q: {number}") for number in range(60)]
                provider.close()
        assert second.questions == 1, "it is asked again what it is"
        assert provider.counts["connection_errors"] >= 1
