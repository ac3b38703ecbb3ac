"""A real Prometheus scrapes real nodes: token, samples, every expression of rules and dashboard, and what it costs requests."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.error import URLError

import psutil
import pytest
from botocore.exceptions import ClientError

from tests.support.cluster import AnvilCluster
from tests.support.node import AnvilNode, wait_until
from tests.support.prometheus import Prometheus, alert_rules, filled, panels, promtool

TOKEN = "a-token-for-metrics-of-tests"
TOY = ("tests.support.toy_server",)
BUCKETS = 2000
# Panels that have nothing to show on a lone node that is well, and why.
EMPTY_ALONE = {
    "Age of the last backup": "no backup",
    "Age of the last backup and metadata dump": "no backup, and perhaps no dump yet",
    "Server errors (5xx) by operation": "none",
    "Growth a day": "younger than a day",
    "Not heard of for": "no other node",
    "Calls": "no other node",
    "p99 of calls": "no other node",
    "Calls that failed": "no other node",
    "Repairs": "nothing to repair",
    "Damage that was met": "none",
    "The oldest due task": "perhaps nothing waits",
    "Queue": "perhaps nothing waits",
    "Certificate ends in": "no TLS",
    "Certificates loaded": "no TLS",
}


class Scraped(NamedTuple):
    """A node that has served something, and a Prometheus that scrapes it with its token, and once without."""

    node: AnvilNode
    prometheus: Prometheus


@pytest.fixture(scope="module")
def scraped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scraped]:
    folder = tmp_path_factory.mktemp("scraped")
    with AnvilNode(folder / "data", env={"ANVIL_WORKERS": "2", "ANVIL_METRICS_TOKEN": TOKEN}) as node:
        node.s3().create_bucket(Bucket="measured")
        use(node)
        address = f"{node.host}:{node.port}"
        jobs = {"anvil": [address], "without-token": [address]}
        with Prometheus(folder, jobs, {"anvil": TOKEN}) as prometheus:
            wait_until("usage is told", lambda: node.metric("anvil_bucket_objects", bucket="measured") == 5)
            prometheus.wait_scraped(5)
            use(node)  # a rate needs a change between two scrapes
            prometheus.wait_scraped(10)
            yield Scraped(node, prometheus)


def use(node: AnvilNode) -> None:
    s3 = node.s3()
    for number in range(5):
        s3.put_object(Bucket="measured", Key=f"k{number}", Body=b"x" * 100_000)
        s3.get_object(Bucket="measured", Key=f"k{number}")["Body"].read()
    s3.list_objects_v2(Bucket="measured")
    with pytest.raises(ClientError):
        s3.get_object(Bucket="measured", Key="none")
    with pytest.raises(ClientError):
        node.s3(secret_key="not-the-secret-of-this-access-key-id").list_buckets()


def exposition(node: AnvilNode) -> bytes:
    status, _, text = node.get("/metrics", {"Authorization": f"Bearer {TOKEN}"})
    assert status == 200
    return text


def test_promtool_finds_nothing_wrong_with_a_real_node(scraped: Scraped) -> None:
    checked = promtool("check", "metrics", text=exposition(scraped.node))
    assert (checked.returncode, checked.stdout) == (0, b"")


def test_targets_are_up_with_the_token_and_refused_without(scraped: Scraped) -> None:
    targets = {target["labels"]["job"]: target for target in scraped.prometheus.targets()}
    assert (targets["anvil"]["health"], targets["anvil"]["lastError"]) == ("up", "")
    assert targets["without-token"]["health"] == "down"
    assert "401" in targets["without-token"]["lastError"]
    assert scraped.prometheus.query('min_over_time(up{job="anvil"}[5m])')[0][1] == 1
    assert scraped.prometheus.complaints() == {}
    assert "level=warn" not in scraped.prometheus.log(), "duplicates and the like are told as warnings"


def test_what_was_done_is_what_is_counted(scraped: Scraped) -> None:
    """Against the numbers of the requests that were made, over both workers."""
    ask = scraped.prometheus.query
    gets = 'anvil_api_requests_total{job="anvil",api="s3",operation="GetObject",code="%s"}'
    assert [value for _, value in ask(gets % 200)] == [10]
    assert [value for _, value in ask(gets % 404)] == [2]
    assert [value for _, value in ask('anvil_api_rejected_total{job="anvil",reason="signature"}')] == [2]
    assert [value for _, value in ask('anvil_api_request_duration_seconds_count{job="anvil",operation="GetObject"}')] == [12]
    assert ask('anvil_api_sent_bytes_total{job="anvil",api="s3"}')[0][1] > 10 * 100_000
    assert ask('anvil_bucket_usage_bytes{job="anvil",bucket="measured"}')[0][1] == 500_000
    assert ask('anvil_db_up{job="anvil"} == 1')[1]
    assert ask('sum(anvil_db_pool_connections{job="anvil",db="regional"})')[0][1] == 3 * 3, (
        "of two workers and the background process"
    )
    assert ask('anvil_processes{job="anvil"}')[0][1] == 4


def test_all_panels_answer_and_show_what_there_is(scraped: Scraped) -> None:
    empty = set()
    for title, expression in panels():
        if not scraped.prometheus.query(filled(expression, "20s")):
            empty.add(title.rsplit(" ", 1)[0])
    assert empty <= set(EMPTY_ALONE), f"nothing to show: {empty - set(EMPTY_ALONE)}"


def test_rules_are_evaluated_and_nothing_fires_that_should_not(scraped: Scraped) -> None:
    def evaluated() -> bool:
        groups = scraped.prometheus.api("rules")["groups"]
        return all(rule["health"] != "unknown" for group in groups for rule in group["rules"])

    wait_until("all rules were evaluated", evaluated)
    rules = {rule["name"]: rule for group in scraped.prometheus.api("rules")["groups"] for rule in group["rules"]}
    assert set(rules) == {rule["alert"] for rule in alert_rules()}
    assert {name: rule["lastError"] for name, rule in rules.items() if rule["health"] != "ok"} == {}
    # The tests' disk may be as full as it is.
    may = {"AnvilBackupMissing", "AnvilDiskFilling", "AnvilDiskFull", "AnvilLatencyHigh", "AnvilEventLoopLag"}
    assert {name for name, rule in rules.items() if rule["state"] != "inactive"} - may == set()
    assert rules["AnvilBackupMissing"]["state"] == "pending"


def test_a_backup_that_is_noted_is_told(scraped: Scraped) -> None:
    """The agreement with whoever takes backups: a row of the region's settings."""
    told = json.loads((scraped.node.data_dir / "run" / "node.json").read_text())
    finished_us = int(time.time() * 1e6) - 3_600_000_000
    run_sql(
        told["regional_url"],
        "INSERT INTO settings (name, value) VALUES ('last_backup', jsonb_build_object('finished_us', $1::bigint))",
        finished_us,
    )
    name = "anvil_backup_last_success_timestamp_seconds"
    token = {"Authorization": f"Bearer {TOKEN}"}
    wait_until("it is told", lambda: name.encode() in scraped.node.get("/metrics", token)[2])
    assert scraped.node.metric(name) == pytest.approx(finished_us / 1e6)


def run_sql(url: str, statement: str, *arguments: object) -> None:
    import asyncio

    import asyncpg

    async def run() -> None:
        connection = await asyncpg.connect(url, timeout=10)
        try:
            await connection.execute(statement, *arguments)
        finally:
            await connection.close()

    asyncio.run(run())


# -- what scraping costs -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def crowded(tmp_path: Path) -> Iterator[AnvilNode]:
    """A toy node whose background process knows of 2,000 buckets: real processes, channel and scrape, and requests that cost nothing."""
    with AnvilNode(tmp_path / "data", env={"ANVIL_WORKERS": "2"}, command=TOY) as node:
        (node.data_dir / "many-buckets").write_text(str(BUCKETS))
        wait_until("the buckets are told", lambda: node.metric("anvil_bucket_objects") == sum(range(BUCKETS)))
        yield node


def processor_ms(pids: list[int]) -> float:
    """What these processes have used so far. Clocks would tell more of who else uses the machine."""
    times = [psutil.Process(pid).cpu_times() for pid in pids]
    return sum(one.user + one.system for one in times) * 1000


def test_a_scrape_costs_little_and_next_to_nothing_on_request_loops(crowded: AnvilNode) -> None:
    """Clocks are asked by `python -m bench.micro.metrics`, on a machine that has nothing else to do."""
    background, workers = [crowded.background_pid or 0], crowded.worker_pids
    assert len(workers) == 2
    scrapes, used_before = 60, (processor_ms(background), processor_ms(workers))
    for _ in range(scrapes):
        status, _, text = crowded.get("/metrics", {"Accept-Encoding": "gzip"})
        assert status == 200
        assert len(text) > 10_000
    told_ms, served_ms = processor_ms(background) - used_before[0], processor_ms(workers) - used_before[1]
    assert told_ms > served_ms, "who formats the text has the work"
    assert told_ms / scrapes < 50
    assert served_ms / scrapes < 5, "a request loop that stands still longer than that for a scrape is noticed by requests"


def test_a_new_background_process_tells_no_sum_without_a_worker(crowded: AnvilNode) -> None:
    """Prometheus takes a counter that fell for one that began anew, and counts all of it again."""
    background, stopped = crowded.background_pid, crowded.worker_pids[0]
    assert background is not None
    crowded.kill(stopped, signal.SIGSTOP)  # it will not say hello to the new one
    crowded.kill(background)
    try:
        wait_until("the new one refuses to tell", lambda: b"Not all workers" in told(crowded, 503), 9.0)
    finally:
        crowded.kill(stopped, signal.SIGCONT)
    wait_until("it tells", lambda: told(crowded, 200))
    text = told(crowded, 200)
    for worker in (b"worker-0", b"worker-1"):
        assert b'anvil_event_loop_lag_seconds_count{worker="' + worker in text


def told(node: AnvilNode, wanted: int) -> bytes:
    """What `/metrics` says, if it answers at once (one of the workers may be stopped) and so."""
    try:
        status, _, text = node.get("/metrics", timeout_s=0.5)
    except (URLError, OSError):
        return b""
    assert status in (200, 503)
    assert status == wanted or wanted == 200, "a sum without a worker"
    return text if status == wanted else b""


# -- several nodes --------------------------------------------------------------------------------------------------------------------


@pytest.mark.slow  # a cluster, and alerts that take their time
def test_a_cluster_that_loses_a_node_is_seen_to_do_so(tmp_path: Path) -> None:
    with AnvilCluster(tmp_path, nodes=3, env={"ANVIL_METRICS_TOKEN": TOKEN, "ANVIL_REPAIR_DELAY_S": "600"}) as cluster:
        addresses = [f"{node.host}:{node.port}" for node in cluster.nodes]
        with Prometheus(tmp_path, {"anvil": addresses}, {"anvil": TOKEN}) as prometheus:
            s3 = cluster.s3(0)
            s3.create_bucket(Bucket="b")

            def some(count: int = 5) -> None:
                for number in range(count):
                    s3.put_object(Bucket="b", Key=f"k{number}", Body=b"x" * 3_000_000)
                    s3.get_object(Bucket="b", Key=f"k{number}")["Body"].read()

            some()
            prometheus.wait_scraped(5, 120)
            some()
            prometheus.wait_scraped(10, 120)
            assert {target["health"] for target in prometheus.targets()} == {"up"}
            assert prometheus.complaints() == {}
            empty = {title.rsplit(" ", 1)[0] for title, text in panels() if not prometheus.query(filled(text, "30s"))}
            alone = {"Not heard of for", "Calls", "p99 of calls"}
            assert empty <= set(EMPTY_ALONE) - alone, empty
            assert all(value > 0 for _, value in prometheus.query('anvil_api_requests_total{api="internal",code="0"}'))
            assert_peers(prometheus, {"active": 2, "down": 0})
            cluster.kill(2)
            wait_until("the others see it", lambda: cluster.state(2) == "down", 120)
            wait_until("the rule sees it", lambda: state_of(prometheus, "AnvilPeerDown") == "pending", 60)
            wait_until("and so does the scrape", lambda: state_of(prometheus, "AnvilNodeDown") == "pending", 60)
            assert_peers(prometheus, {"active": 1, "down": 1})
            events = prometheus.query('max(anvil_cluster_membership_events_total{event="fail"})')
            assert [value for _, value in events] == [1]


def assert_peers(prometheus: Prometheus, wanted: dict[str, int]) -> None:
    """By state, as the nodes that live see them."""
    found: dict[str, Any] = {labels["state"]: value for labels, value in prometheus.query("max by (state) (anvil_cluster_peers)")}
    assert {state: found[state] for state in wanted} == wanted
    assert len(found) == 5, "every state has a series, also those in which no node is"


def state_of(prometheus: Prometheus, alert: str) -> str:
    rules = {rule["name"]: rule["state"] for group in prometheus.api("rules")["groups"] for rule in group["rules"]}
    return str(rules[alert])
