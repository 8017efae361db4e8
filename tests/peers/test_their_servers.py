"""Our client asks servers of other projects: the numbers of the local provider, or an error."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from numpy.typing import NDArray

import rm_plugins as rm
from rm_plugins.errors import RmPluginsError
from tests.peers import samples
from tests.peers.facts import check
from tests.peers.originals import Original
from tests.peers.their_servers import SERVED, Served, Way
from tests.servers import ServerProcess

pytestmark = pytest.mark.filterwarnings("ignore:.*has no reward manifest, and pads with its EOS token")


def _named(served: Served) -> str:
    return f"{served.peer.environment}-{served.peer.name}-{served.model}".replace(" ", "-").lower()


@pytest.fixture(scope="module", params=SERVED, ids=_named)
def served(request: pytest.FixtureRequest) -> Served:
    """One after the other: a server is ended before the next begins."""
    wanted: Served = request.param
    return wanted


@pytest.fixture(scope="module")
def server(
    served: Served, environment: Callable[[str], Path], decoder_path: Path, cross_encoder_path: Path
) -> Iterator[ServerProcess]:
    environment(served.peer.environment)
    with served.peer.serving(decoder_path if served.model == "decoder" else cross_encoder_path) as process:
        yield process


@pytest.fixture(scope="module")
def folder(served: Served, decoder_path: Path, cross_encoder_path: Path) -> Path:
    return decoder_path if served.model == "decoder" else cross_encoder_path


@pytest.fixture(scope="module")
def right(folder: Path) -> Callable[[Way], NDArray[np.float64]]:
    """What the local provider says, once for each way of reading."""
    known: dict[tuple[str, str], NDArray[np.float64]] = {}

    def of(way: Way) -> NDArray[np.float64]:
        key = (way.read, way.samples)
        if key not in known:
            read = {"read": way.read} if folder.name == "decoder" else {}
            local = rm.load({"provider": "sequence-classifier", "model": str(folder), **read})
            known[key] = local.score(_samples(way)).values
        return known[key]

    return of


def _samples(way: Way) -> list[rm.Sample]:
    return {"texts": samples.texts, "conversations": samples.conversations, "all": _all}[way.samples]()


def _all() -> list[rm.Sample]:
    return [*samples.texts(), *samples.conversations()]


def _remote(url: str, folder: Path, way: Way, **further: Any) -> rm.Provider:
    renders = {"tokenizer": str(folder)} if way.has_tokenizer else {}
    reads = {"read": way.read} if way.has_tokenizer and folder.name == "decoder" else {}
    return rm.load({"provider": "remote", "url": url, **renders, **reads, **way.spec, **further})


def test_scores_are_those_of_the_local_provider(
    served: Served, server: ServerProcess, folder: Path, right: Callable[[Way], NDArray[np.float64]]
) -> None:
    if not served.ways:
        pytest.skip("no protocol of ours asks it")
    wrong = []
    for way in served.ways:
        with closing(_remote(server.url, folder, way)) as remote:
            try:
                got = remote.score(_samples(way)).values
                check(got, right(way), tolerance=way.tolerance, **_fact(served, way.compared))
            except (AssertionError, RmPluginsError) as error:
                wrong.append(f"{way.compared}: {error}")
    assert not wrong, "\n".join(wrong)


def test_what_it_would_read_otherwise_is_refused(served: Served, server: ServerProcess, folder: Path) -> None:
    for way, reason in served.refused:
        with closing(_remote(server.url, folder, way)) as remote, pytest.raises(RmPluginsError, match=reason):
            remote.score(samples.texts()[:4])


def test_its_own_numbers_are_those_of_transformers(served: Served, server: ServerProcess, folder: Path) -> None:
    if served.own is None:
        pytest.skip("it is not asked by hand")
    original = Original(folder)
    eos = original.tokenizer.eos_token if served.own.rows == "texts that end with EOS" else ""
    texts = [f"{sample.prompt}{sample.completion}{eos}" for sample in samples.texts()]
    pairs = [(str(sample.prompt), str(sample.completion)) for sample in samples.texts()]
    with httpx2.Client(base_url=server.url, timeout=120, trust_env=False) as client:
        got = served.own.ask(client, pairs if served.own.rows == "pairs" else texts)
    expected = original.pairs(pairs) if served.own.rows == "pairs" else original.texts(texts, add_special_tokens=False)
    check(got, expected, **_fact(served, f"its own numbers of {served.own.rows}, by transformers"))


def test_another_model_is_an_error_that_says_what_there_is(served: Served, server: ServerProcess, folder: Path) -> None:
    if served.wrong_model is None:
        pytest.skip("it is sent no model's name, or takes any")
    spec, message = served.wrong_model
    with closing(_remote(server.url, folder, served.ways[0], **spec)) as remote, pytest.raises(RmPluginsError, match=message):
        remote.score(samples.conversations()[:2])


def test_a_text_that_is_too_long_is_an_error_and_no_other_is(served: Served, server: ServerProcess, folder: Path) -> None:
    """OpenRLHF's server cuts it, and says nothing: it is the rendering here that refuses."""
    if not served.ways:
        pytest.skip("no protocol of ours asks it")
    way = served.ways[0]
    few = _samples(way)[:3]
    long = rm.Sample(few[0].prompt, _longer(few[0].completion))
    limits = {"max_length": 512 if served.model == "cross-encoder" else 2048, "truncation": "error"}
    with closing(_remote(server.url, folder, way, **(limits if way.has_tokenizer else {}))) as remote:
        scored = remote.score([*few, long], on_error="abstain").values
    assert np.isfinite(scored[:3]).all()
    assert np.isnan(scored[3])


def test_an_empty_text_is_an_error(served: Served, server: ServerProcess, folder: Path) -> None:
    """Where a row has no token, servers that pad rows give the number 0, and others fail."""
    if not served.ways or not served.fails_at_empty:
        pytest.skip("it has tokens of its own for it, or no protocol of ours asks it")
    way = Way(compared="", spec=served.ways[0].spec, has_tokenizer=False)
    with closing(_remote(server.url, folder, way, append_eos=False)) as remote:
        scored = remote.score([*samples.texts()[:2], rm.Sample("", "")], on_error="abstain").values
    assert np.isfinite(scored[:2]).all()
    assert np.isnan(scored[2])


def test_the_client_goes_on_after_a_restart(
    served: Served, server: ServerProcess, folder: Path, right: Callable[[Way], NDArray[np.float64]]
) -> None:
    if not served.ways or not served.keeps_its_port:
        pytest.skip("no protocol of ours asks it, or it is somewhere else after a restart")
    way = served.ways[0]
    with closing(_remote(server.url, folder, way, deadline=300)) as remote:
        before = remote.score(_samples(way)[:8]).values
        server.stop()
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(remote.score, _samples(way)[:16])
            server.start()
            after = waiting.result().values
    assert after[:8] == pytest.approx(before, abs=1e-4)
    assert after == pytest.approx(right(way)[:16], abs=1e-4)


def test_many_callers_at_a_time_get_their_own_numbers(
    served: Served, server: ServerProcess, folder: Path, right: Callable[[Way], NDArray[np.float64]]
) -> None:
    if not served.ways:
        pytest.skip("no protocol of ours asks it")
    way, callers = served.ways[0], 6
    rows = _samples(way)

    def asked(caller: int) -> NDArray[np.float64]:
        with closing(_remote(server.url, folder, way, batch_size=3, deadline=300)) as remote:
            return remote.score(rows[caller : caller + 12]).values

    with ThreadPoolExecutor(callers) as pool:
        answers = [*pool.map(asked, range(callers))]
    for caller, answer in enumerate(answers):
        assert answer == pytest.approx(right(way)[caller : caller + 12], abs=1e-4)


def _longer(completion: Any) -> Any:
    more = "five and six " * 4000
    return more if isinstance(completion, str) else [{**completion[0], "content": more}]


def _fact(served: Served, compared: str) -> dict[str, Any]:
    return {
        "peer": served.peer.name,
        "version": served.peer.version,
        "direction": "our client, its server",
        "model": served.model,
        "compared": compared if served.peer.environment != "vllm-older" else f"{compared} (older)",
    }
