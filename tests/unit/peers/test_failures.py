"""Errors cross from node to node as what they are."""

from __future__ import annotations

from typing import Any

import pytest

from anvil.base import errors
from anvil.base.errors import AnvilError, BadRecord, DriveFailed, DriveStalled, StorageFull, Unavailable
from anvil.peers.failures import error_of, failure_of
from anvil.peers.proto import shards_pb2 as pb
from anvil.peers.sealing import NotAuthentic


def every_error() -> list[type[AnvilError]]:
    return [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, AnvilError)]


@pytest.mark.parametrize("cls", every_error())
def test_every_class_comes_over(cls: type[AnvilError]) -> None:
    error = error_of(failure_of(cls("what happened", Region="here", Size=5)), "there")
    assert type(error) is cls
    assert error.message == "what happened"
    assert (error.fields["Region"], error.fields["Size"]) == ("here", 5)


@pytest.mark.parametrize("cls", [DriveFailed, DriveStalled, StorageFull])
def test_a_drive_has_the_name_that_is_known_here(cls: type[AnvilError]) -> None:
    assert error_of(failure_of(cls(drive="its name on its own node")), "node-2:data").fields["drive"] == "node-2:data"


def test_a_failure_of_the_program_says_nothing() -> None:
    failure = failure_of(ValueError("a path or a secret"))
    assert "secret" not in str(failure)
    assert type(error_of(failure, "there")) is Unavailable


def test_what_is_no_domain_error_by_name_is_the_nearest_that_is() -> None:
    assert type(error_of(failure_of(NotAuthentic("head")), "there")) is errors.Denied


@pytest.mark.parametrize("fields", [b"garbage", b"\x81\xa7message\xa1x", b"\x81\xa4self\xa1x", b"\x81\xa1a\x90"])
def test_what_an_answer_says_of_itself_is_not_believed(fields: Any) -> None:
    error = error_of(pb.Failure(error="BadRecord", message="m", fields=fields), "there")
    assert type(error) is BadRecord
    assert type(error_of(pb.Failure(error="SystemExit", message="m"), "there")) is Unavailable
