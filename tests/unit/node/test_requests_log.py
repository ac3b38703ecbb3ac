"""Which requests get a line in the log, and what it says."""

from __future__ import annotations

import logging

import msgspec
import pytest

from anvil.api.finished import Finished
from anvil.base.config import LogConfig
from anvil.node.observe import Requests

DONE = Finished(
    api="s3",
    operation="PutObject",
    method="PUT",
    path="/b/k",
    peer="10.0.0.1",
    request_id="0123456789ABCDEF",
    access_key="AKX",
    status=200,
    error_code="",
    seconds=3.0,
    ttfb_s=2.9,
    received_bytes=4096,
    sent_bytes=0,
    server_fault=False,
    waits={"metadata": 2.5, "auth": 0.001},
)


def lines(caplog: pytest.LogCaptureFixture, config: LogConfig, **changes: object) -> list[logging.LogRecord]:
    caplog.clear()
    with caplog.at_level(logging.INFO, logger="anvil.node.observe"):
        Requests(config)(msgspec.structs.replace(DONE, **changes))
    return caplog.records


def test_a_slow_request_says_where_the_time_went(caplog: pytest.LogCaptureFixture) -> None:
    [line] = lines(caplog, LogConfig(slow_s=2.0))
    assert (line.levelname, line.getMessage()) == ("WARNING", "slow: PutObject answered 200")
    facts = vars(line)
    assert (facts["seconds"], facts["metadata_ms"], facts["auth_ms"]) == (3.0, 2500.0, 1.0)
    assert (facts["request_id"], facts["access_key"], facts["received_bytes"]) == ("0123456789ABCDEF", "AKX", 4096)
    assert "drives_ms" not in facts, "what was not waited for is not named"
    assert lines(caplog, LogConfig(slow_s=3.5)) == []
    assert lines(caplog, LogConfig(slow_s=0.0)) == [], "0: never"


@pytest.mark.parametrize("stage", ["receive", "send"])
def test_a_slow_client_is_not_a_slow_request(caplog: pytest.LogCaptureFixture, stage: str) -> None:
    assert lines(caplog, LogConfig(slow_s=2.0), waits={stage: 2.5}) == []


def test_others_get_a_line_where_it_is_the_servers_fault_or_asked_for(caplog: pytest.LogCaptureFixture) -> None:
    quick = {"seconds": 0.1, "waits": {}}
    assert lines(caplog, LogConfig(), **quick) == []
    [line] = lines(caplog, LogConfig(access=True), **quick)
    assert (line.levelname, line.getMessage()) == ("INFO", "PutObject answered 200")
    [line] = lines(caplog, LogConfig(), **quick, status=503, error_code="ServiceUnavailable", server_fault=True)
    assert (line.levelname, vars(line)["error"]) == ("WARNING", "ServiceUnavailable")
