"""The self-test at start: its known answers are the reference's, and a wrong kernel is refused."""

from __future__ import annotations

import hashlib

import pytest

from anvil._ec import stripe_reference as reference
from anvil.base.errors import KernelFault
from anvil.ec import codecs
from anvil.model.scheme import Scheme


@pytest.mark.parametrize("scheme", codecs.VECTORS)
def test_known_answers_are_those_of_the_reference(scheme: Scheme) -> None:
    place = reference.Place(codecs.VECTOR_KEY, codecs.VECTOR_BLOB, codecs.VECTOR_STRIPE, True)
    frames = reference.encode(scheme.k, scheme.m, place, codecs.VECTOR_PLAIN)
    assert hashlib.sha256(b"".join(frames)).hexdigest() == codecs.VECTORS[scheme]


def test_self_test_passes() -> None:
    codecs.self_test()


def test_a_wrong_answer_stops_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(codecs.VECTORS, Scheme(4, 2), "0" * 64)
    with pytest.raises(KernelFault, match=r"4\+2 gives wrong frames here \(isal: "):
        codecs.self_test()


def test_codecs_are_made_once() -> None:
    assert codecs.codec_for(Scheme(4, 2)) is codecs.codec_for(Scheme(4, 2))
    assert (codecs.codec_for(Scheme(2, 1)).k, codecs.codec_for(Scheme(2, 1)).m) == (2, 1)
    with pytest.raises(ValueError, match="matrix 9"):
        codecs.codec_for(Scheme(4, 2, matrix=9))


def test_chosen_kernels_are_named() -> None:
    assert set(codecs.chosen_kernels()) == {"isal", "processor", "reed_solomon", "xxh3", "aes_gcm"}
