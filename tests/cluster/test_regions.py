"""Two regions over one global database, as clients, operators and tasks see them: real nodes, boto3, grpcio, s3cmd."""

from __future__ import annotations

import asyncio
import json
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from xml.etree import ElementTree

import pytest
from botocore.exceptions import ClientError

from anvil.auth.presign import presign
from anvil.base.limits import CATALOG_FRESH_S
from anvil.client.client import AnvilClient
from anvil.client.errors import ClientError as AnvilClientError
from tests.support.node import AnvilNode, wait_until
from tests.support.rawclient import Answer, Wire
from tests.support.regions import ONCE, REGIONS, TwoRegions

US, EU = REGIONS
OTHER = {US: EU, EU: US}

slow = pytest.mark.slow  # a minute in all; what clients meet first, and what must not last, is looked at by every run


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TwoRegions]:
    began = time.monotonic()
    with TwoRegions(tmp_path_factory.mktemp("r")) as regions:
        print(f"four nodes were ready after {time.monotonic() - began:.1f} s")
        yield regions


@pytest.fixture
def buckets(two: TwoRegions) -> dict[str, str]:
    """One in each region, with an object `key`."""
    made = {}
    for region in REGIONS:
        made[region] = name = f"in-{region}-{secrets.token_hex(4)}"
        two.s3(region).create_bucket(Bucket=name)
        two.s3(region).put_object(Bucket=name, Key="key", Body=region.encode())
    return made


def refused(call: Callable[..., object], **arguments: Any) -> tuple[int, str, dict[str, Any]]:
    """Status, code, and what else the error says."""
    with pytest.raises(ClientError) as caught:
        call(**arguments)
    response: dict[str, Any] = caught.value.response
    return response["ResponseMetadata"]["HTTPStatusCode"], response["Error"]["Code"], response


def send(node: AnvilNode, method: str, url: str, headers: dict[str, str] | None = None) -> Answer:
    """To that node, whatever host the URL names."""
    parts = urlsplit(url)
    lines = "".join(f"{name}: {value}\r\n" for name, value in {"host": parts.netloc, **(headers or {})}.items())
    with Wire(node.port) as wire:
        wire.send(f"{method} {parts.path}?{parts.query} HTTP/1.1\r\n{lines}connection: close\r\n\r\n".encode())
        return wire.answer(of_head=method == "HEAD")


def test_a_bucket_of_another_region_is_a_redirect_in_every_style(two: TwoRegions, buckets: dict[str, str]) -> None:
    keys = two.nodes[US][0]
    for region, there in OTHER.items():
        bucket, endpoint = buckets[there], urlsplit(two.nodes[there][0].endpoint).netloc
        for node in two.nodes[region]:
            urls = [
                (f"http://127.0.0.1:{node.port}/{bucket}/key", "by path"),
                (f"http://{bucket}.s3.{region}.test/key", "by host"),
            ]
            for url, style in urls:
                for method in ("GET", "HEAD", "DELETE"):
                    signed = presign(method, url, keys.access_key, keys.secret_key, region, 600, time.time(), None)
                    answer = send(node, method, signed)
                    assert (answer.status, answer.headers["x-amz-bucket-region"]) == (301, there), (style, method, answer)
                    if method == "HEAD":
                        assert answer.body == b""
                        continue
                    document = ElementTree.fromstring(answer.body)
                    said = {name: document.findtext(name) for name in ("Code", "Bucket", "Region", "Endpoint")}
                    assert said == {"Code": "PermanentRedirect", "Bucket": bucket, "Region": there, "Endpoint": endpoint}, style
            assert send(node, "GET", f"http://127.0.0.1:{node.port}/{bucket}/key").status == 403, "the anonymous learn nothing"
    two.global_sql("UPDATE buckets SET public_read = true WHERE name = $1", buckets[EU])
    for node in two.nodes[US]:
        url = f"http://127.0.0.1:{node.port}/{buckets[EU]}/key"
        wait_until("the public bucket is shown", lambda node=node, url=url: send(node, "GET", url).status == 301, 5)


@slow
def test_what_boto3_makes_of_a_redirect(two: TwoRegions, buckets: dict[str, str]) -> None:
    """Given an endpoint, boto3 signs anew for the region it was told of, and asks the same endpoint again: so it is told once more, at
    its first request and at those that it signs for that region from the start. The error says where to go."""
    us = two.s3(US)
    for _ in range(3):
        for call, more in ((us.get_object, {}), (us.put_object, {"Body": b"x"}), (us.delete_object, {})):
            status, code, response = refused(call, Bucket=buckets[EU], Key="key", **more)
            assert (status, code) == (301, "PermanentRedirect")
            assert (response["Error"]["Region"], response["Error"]["Bucket"]) == (EU, buckets[EU])
            go_on = {"endpoint_url": f"http://{response['Error']['Endpoint']}", "region_name": response["Error"]["Region"]}
            assert go_on == {"endpoint_url": two.nodes[EU][0].endpoint, "region_name": EU}
        status, _, response = refused(us.head_bucket, Bucket=buckets[EU])
        assert (status, response["ResponseMetadata"]["HTTPHeaders"]["x-amz-bucket-region"]) == (301, EU)
        assert refused(us.list_objects_v2, Bucket=buckets[EU])[:2] == (301, "PermanentRedirect")
    assert us.get_object(Bucket=buckets[US], Key="key")["Body"].read() == US.encode()
    assert two.s3(EU).get_object(Bucket=buckets[EU], Key="key")["Body"].read() == EU.encode(), "nothing was deleted or written"


@slow
def test_s3cmd_goes_where_it_is_sent(two: TwoRegions, buckets: dict[str, str], tmp_path: Path) -> None:
    """It goes by the Endpoint of the document, as S3 writes it: a host without a scheme. (An answer to HEAD, which `get` begins with, has
    no document.)"""
    node = two.nodes[US][0]
    host = urlsplit(node.endpoint).netloc
    config, source = tmp_path / "s3cfg", tmp_path / "source"
    config.write_text(
        f"[default]\naccess_key = {node.access_key}\nsecret_key = {node.secret_key}\nhost_base = {host}\nhost_bucket = {host}\n"
        f"use_https = False\nbucket_location = {US}\n"
    )
    source.write_bytes(b"by s3cmd")
    for arguments in (("ls", f"s3://{buckets[EU]}"), ("put", str(source), f"s3://{buckets[EU]}/put")):
        command = [f"{Path(sys.executable).parent}/s3cmd", "-c", str(config), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
    assert two.s3(EU).get_object(Bucket=buckets[EU], Key="put")["Body"].read() == b"by s3cmd"


@slow
def test_grpc_says_where_to_go(two: TwoRegions, buckets: dict[str, str]) -> None:
    async def ask() -> AnvilClientError:
        node = two.nodes[US][1]
        async with AnvilClient(node.endpoint, node.access_key, node.secret_key) as client:
            with pytest.raises(AnvilClientError) as caught:
                await client.objects.head(buckets[EU], "key")
            assert {(one.name, one.region) async for one in client.buckets.list()} >= {(buckets[r], r) for r in REGIONS}
            return caught.value

    error, endpoint = asyncio.run(ask()), two.nodes[EU][0].endpoint
    assert (error.status, error.code) == ("FAILED_PRECONDITION", "PermanentRedirect")
    assert error.metadata == {"Bucket": buckets[EU], "Region": EU, "Endpoint": endpoint}
    assert str(error) == f"the bucket {buckets[EU]} is in the region {EU}: ask {endpoint}"


@slow
def test_names_are_unique_and_buckets_made_and_deleted_where_they_belong(two: TwoRegions, buckets: dict[str, str]) -> None:
    for region, there in OTHER.items():
        for number in (0, 1):
            s3 = two.s3(region, number)
            shown = {row["Name"]: row["BucketRegion"] for row in s3.list_buckets(MaxBuckets=1000)["Buckets"]}
            assert {name: shown[name] for name in buckets.values()} == {buckets[one]: one for one in REGIONS}
            only = s3.list_buckets(BucketRegion=there, MaxBuckets=1000)["Buckets"]
            assert {row["BucketRegion"] for row in only} == {there}
            for one in REGIONS:
                assert s3.get_bucket_location(Bucket=buckets[one])["LocationConstraint"] == one
        assert refused(s3.create_bucket, Bucket=buckets[there])[:2] == (409, "BucketAlreadyOwnedByYou")

        def make(where: str, s3: Any = s3) -> dict[str, Any]:
            name = f"made-{secrets.token_hex(4)}"
            s3.create_bucket(Bucket=name, CreateBucketConfiguration={"LocationConstraint": where})
            return dict(s3.head_bucket(Bucket=name))

        assert make(region)["BucketRegion"] == region
        assert refused(make, where=there)[:2] == (400, "IllegalLocationConstraintException")
        assert refused(make, where="mars-1")[:2] == (400, "InvalidLocationConstraint")
        assert refused(s3.delete_bucket, Bucket=buckets[there])[:2] == (301, "PermanentRedirect")


@slow
def test_operators_see_all_regions_and_the_usage_of_theirs(two: TwoRegions, buckets: dict[str, str]) -> None:
    node = two.nodes[EU][1]
    listed = json.loads(node.anvil("admin", "region", "list", "--json").stdout)
    assert {row["region"]: (row["endpoint"], row["here"]) for row in listed} == {
        region: (two.nodes[region][0].endpoint, region == EU) for region in REGIONS
    }
    shown = node.anvil("admin", "usage", "--json")
    usage = {row["bucket"]: row for row in json.loads(shown.stdout)}
    assert (usage[buckets[EU]]["objects"], usage[buckets[EU]]["bytes"]) == (1, len(EU))
    assert buckets[US] not in usage and {row["region"] for row in usage.values()} == {EU}
    assert f"ask a node of {US} for the others" in node.anvil("admin", "usage").stderr


@slow
def test_a_node_of_another_region_is_refused_by_a_regional_database(two: TwoRegions, tmp_path: Path) -> None:
    stray = two.add_stray(tmp_path / "stray", "us-2", two.database(US))
    stray.launch()
    assert stray.process.wait(60) == 2
    assert f"the regional database is that of the region '{US}', not of ANVIL_REGION='us-2'" in stray.log_text()
    assert two.global_sql("SELECT count(*) FROM regions") == [(len(REGIONS),)]


@slow
@pytest.mark.alone
def test_an_endpoint_that_changes_is_told_by_every_node_within_a_second(two: TwoRegions, buckets: dict[str, str]) -> None:
    clients = [two.s3(US, number) for number in (0, 1)]
    for url in ("https://eu.example.com", two.nodes[EU][0].endpoint):
        for s3 in clients:
            refused(s3.get_object, Bucket=buckets[EU], Key="key")  # what it knew is cached
        two.global_sql("UPDATE regions SET endpoint = $2 WHERE name = $1", EU, url)
        changed = time.monotonic()
        for s3 in clients:
            while (began := time.monotonic()) < changed + CATALOG_FRESH_S:
                if refused(s3.get_object, Bucket=buckets[EU], Key="key")[2]["Error"]["Endpoint"] == urlsplit(url).netloc:
                    break
            else:
                told = refused(s3.get_object, Bucket=buckets[EU], Key="key")[2]["Error"]["Endpoint"]
                assert told == urlsplit(url).netloc, f"asked {began - changed:.2f} s after the change"


class Watch:
    """Asks every node again and again, at once, and notes when a request began that was still answered as before."""

    def __init__(self, asks: list[Callable[[], bool]]) -> None:
        self._last = [0.0] * len(asks)
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(number, ask)) for number, ask in enumerate(asks)]
        for ask in asks:
            assert ask(), "before the change"

    def _run(self, number: int, ask: Callable[[], bool]) -> None:
        while not self._over.is_set():
            began = time.monotonic()
            if ask():
                self._last[number] = began

    def change(self, change: Callable[[], object]) -> list[float]:
        """For each node: for how many seconds after the change it still took requests as before it."""
        for thread in self._threads:
            thread.start()
        try:
            change()
            changed = time.monotonic()
            self._over.wait(1.3 * CATALOG_FRESH_S)  # the watch goes on for so long
        finally:
            self._over.set()
            for thread in self._threads:
                thread.join()
        return [max(0.0, last - changed) for last in self._last]


def succeeds(call: Callable[..., object], **arguments: Any) -> bool:
    try:
        call(**arguments)
    except ClientError:
        return False
    return True


def make_app(two: TwoRegions) -> tuple[str, dict[str, str]]:
    """A new app that may do everything: its name and its keys."""
    name = f"app-{secrets.token_hex(4)}"
    node = two.nodes[US][0]
    keys = json.loads(node.anvil("admin", "app", "create", "--tenant", "default", "--name", name, "--json").stdout)
    two.global_sql(
        "INSERT INTO policies (app_id, action, resource) SELECT app_id, '*', '*' FROM apps WHERE access_key = $1",
        keys["access_key"],
    )
    return name, {"access_key": keys["access_key"], "secret_key": keys["secret"]}


CHANGES = ("key", "right", "public", "bucket")


@pytest.mark.alone
@pytest.mark.parametrize("notified", [True, pytest.param(False, marks=slow)], ids=["notified", "notification-lost"])
def test_what_is_taken_away_is_gone_from_every_node_within_a_second(
    two: TwoRegions, buckets: dict[str, str], notified: bool
) -> None:
    """No request that begins CATALOG_FRESH_S after the change was committed goes by what was before, on any node of any region; also
    where the notification does not come and the change log alone tells of it."""
    definition = two.global_sql("SELECT pg_get_functiondef('log_change'::regproc)")[0][0]
    assert "NOTIFY anvil_catalog;" in definition
    if not notified:
        two.global_sql(definition.replace("NOTIFY anvil_catalog;", ""))
    try:
        for what in CHANGES:
            lasted = _take_away(two, buckets, what)
            print(f"{what}: {', '.join(f'{seconds:.3f}' for seconds in lasted)} s")
            assert max(lasted) < CATALOG_FRESH_S, what
    finally:
        two.global_sql(definition)


def _take_away(two: TwoRegions, buckets: dict[str, str], what: str) -> list[float]:
    places = [(region, number) for region in REGIONS for number in (0, 1)]
    if what in ("key", "right"):
        _, keys = make_app(two)
        clients = {place: two.s3(*place, **keys) for place in places}
        wait_until(
            "every node knows the app", lambda: all(succeeds(c.list_objects_v2, Bucket=buckets[p[0]]) for p, c in clients.items())
        )
        table = {"key": "apps", "right": "policies"}[what]
        sql = {"apps": "DELETE FROM apps WHERE access_key = $1"}.get(
            table, "DELETE FROM policies WHERE app_id = (SELECT app_id FROM apps WHERE access_key = $1)"
        )
        watch = Watch([lambda c=c, p=p: succeeds(c.list_objects_v2, Bucket=buckets[p[0]]) for p, c in clients.items()])
        lasted = watch.change(lambda: two.global_sql(sql, keys["access_key"]))
        code = {"key": "InvalidAccessKeyId", "right": "AccessDenied"}[what]
        for (region, _), client in clients.items():
            assert refused(client.list_objects_v2, Bucket=buckets[region])[:2] == (403, code)
        return lasted
    if what == "public":
        public = "UPDATE buckets SET public_read = $2 WHERE name = $1"
        two.global_sql(public, buckets[EU], True)

        def shown(place: tuple[str, int]) -> bool:
            node = two.nodes[place[0]][place[1]]
            return send(node, "GET", f"http://127.0.0.1:{node.port}/{buckets[EU]}/key").status in (200, 301)

        wait_until("every node shows it", lambda: all(map(shown, places)), 5)
        return Watch([lambda p=p: shown(p) for p in places]).change(lambda: two.global_sql(public, buckets[EU], False))
    doomed = f"doomed-{secrets.token_hex(4)}"
    two.s3(EU).create_bucket(Bucket=doomed)
    clients = {place: two.s3(*place) for place in places}
    asks: list[Callable[[], bool]] = [lambda c=c: succeeds(c.get_bucket_location, Bucket=doomed) for c in clients.values()]
    lasted = Watch(asks).change(lambda: two.s3(EU, 1).delete_bucket(Bucket=doomed))
    for client in clients.values():
        assert refused(client.head_bucket, Bucket=doomed)[0] == 404
    return lasted


@slow
def test_tasks_of_a_region_are_done_by_its_nodes(two: TwoRegions) -> None:
    made: dict[int, str] = {}
    for region in REGIONS * 3:  # before the surveys that a new region begins with
        sql = "INSERT INTO tasks (type, payload, priority) VALUES ('usage', $1, 9) RETURNING task_id"
        made[two.global_sql(sql, json.dumps({"region": region, "slice": 0, "slices": 1}))[0][0]] = region
    done = "SELECT task_id, locked_by FROM tasks WHERE task_id = ANY ($1) AND status = 'completed'"
    wait_until("all are done", lambda: len(two.global_sql(done, list(made))) == len(made))
    ids = {node.data_dir.joinpath("node-id").read_text().strip(): region for region in REGIONS for node in two.nodes[region]}
    assert {task: ids[worker] for task, worker in two.global_sql(done, list(made))} == made


@slow
def test_a_region_without_its_database_does_not_disturb_the_other(two: TwoRegions, buckets: dict[str, str]) -> None:
    database = two.database(EU)
    us = [two.s3(US, number) for number in (0, 1)]
    two.sql(f"ALTER DATABASE {database} ALLOW_CONNECTIONS false")
    try:
        two.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1", database)
        eu = two.s3(EU, config=ONCE)
        wait_until("its own nodes say so", lambda: refused(eu.get_object, Bucket=buckets[EU], Key="key")[0] == 503)
        for number, s3 in enumerate(us):
            name = f"meanwhile-{secrets.token_hex(4)}"
            s3.create_bucket(Bucket=name)
            s3.put_object(Bucket=name, Key="key", Body=bytes(100_000))
            assert s3.get_object(Bucket=name, Key="key")["Body"].read() == bytes(100_000)
            s3.delete_object(Bucket=name, Key="key")
            s3.delete_bucket(Bucket=name)
            assert refused(s3.get_object, Bucket=buckets[EU], Key="key")[:2] == (301, "PermanentRedirect")
            assert buckets[EU] in {row["Name"] for row in s3.list_buckets()["Buckets"]}
            assert two.nodes[US][number].is_ready()
    finally:
        two.sql(f"ALTER DATABASE {database} ALLOW_CONNECTIONS true")

    def back() -> bool:
        return succeeds(two.s3(EU).get_object, Bucket=buckets[EU], Key="key")

    wait_until("it is back without a restart", back)
