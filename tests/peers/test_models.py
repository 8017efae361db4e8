"""The premise of the comparisons: the local provider gives what transformers gives for what it renders."""

from __future__ import annotations

import pytest

import rm_plugins as rm
from tests.peers import samples
from tests.peers.originals import Original


def test_a_decoder_read_at_its_last_token(decoder: rm.Provider, original_decoder: Original) -> None:
    rows = [*samples.texts(), *samples.conversations()]
    right = original_decoder.texts([decoder.render(sample) for sample in rows], add_special_tokens=False)
    assert decoder.score(rows).values == pytest.approx(right, abs=1e-4)


def test_a_cross_encoder_reads_pairs(cross_encoder: rm.Provider, original_cross_encoder: Original) -> None:
    right = original_cross_encoder.pairs([(str(sample.prompt), str(sample.completion)) for sample in samples.texts()])
    assert cross_encoder.score(samples.texts()).values == pytest.approx(right, abs=1e-4)
