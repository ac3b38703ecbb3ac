"""The walk of docs/OPERATE.md, typed by a test: every block of commands, in its order, on a machine of its own (tests/support/compose), and
what has to be true after each. What a block needs beside (a certificate, an Alertmanager's address, another release) is laid before it.
"""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.compose.machine import Machine, checkout
from tests.support.node import ROOT, wait_until

HOME = "/srv/anvil"  # as the document says
DOCUMENT = (ROOT / "docs" / "OPERATE.md").read_text()
NODES = ("node1", "node2", "node3")
BLOCK_S = 300.0
# Writes and reads through the proxy, as SDKs do, until the file is there; then says what failed.
LOAD = """
import boto3, json, os, sys, time
from botocore.config import Config
s3 = boto3.client("s3", config=Config(retries={"mode": "standard", "max_attempts": 5}), region_name="us-east-1")
done, failed = 0, []
while not os.path.exists(sys.argv[1]):
    key, body = f"load/{done % 50}", os.urandom((100, 5_000, 200_000)[done % 3])
    try:
        s3.put_object(Bucket="first", Key=key, Body=body)
        if s3.get_object(Bucket="first", Key=key)["Body"].read() != body:
            failed.append(key + " differs")
    except Exception as error:
        failed.append(f"{key}: {error!r}")
    done += 1
    time.sleep(0.05)
print(json.dumps([done, failed]))
"""
# What the app of the walk may do and may not: statuses and error codes.
RIGHTS = """
import boto3, json
from botocore.exceptions import ClientError
s3 = boto3.client("s3", region_name="us-east-1")
s3.put_object(Bucket="web", Key="mine", Body=b"mine")
said = {}
for what, method, named in (
    ("get", s3.get_object, {"Bucket": "web", "Key": "mine"}),
    ("delete", s3.delete_object, {"Bucket": "web", "Key": "mine"}),
    ("find", s3.head_bucket, {"Bucket": "web"}),
    ("get another's", s3.get_object, {"Bucket": "first", "Key": "README.md"}),
    ("put another's", s3.put_object, {"Bucket": "first", "Key": "mine"}),
    ("list another's", s3.list_objects_v2, {"Bucket": "first"}),
    ("delete the bucket", s3.delete_bucket, {"Bucket": "web"}),
):
    try:
        said[what] = method(**named)["ResponseMetadata"]["HTTPStatusCode"]
    except ClientError as error:
        said[what] = error.response["Error"]["Code"]
print(json.dumps({**said, "buckets": [one["Name"] for one in s3.list_buckets()["Buckets"]]}))
"""

Step = Callable[["Walk"], None]


def fenced(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", DOCUMENT, re.MULTILINE | re.DOTALL)


BLOCKS = fenced("sh")
BEFORE: dict[str, Step] = {}
AFTER: dict[str, Step] = {}
INSTEAD: dict[str, Step] = {}  # of running it to its end


def at(table: dict[str, Step], beginning: str) -> Callable[[Step], Step]:
    """For the block that begins so."""

    def register(step: Step) -> Step:
        table[beginning] = step
        return step

    return register


def found(table: dict[str, Step], block: str) -> Step | None:
    return next((step for beginning, step in table.items() if block.startswith(beginning)), None)


class Walk:
    """What the blocks share. `done`: how many of them; `block`: the present one; `text`: what it wrote."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.text = ""
        self.block = ""
        self.done = 0
        self._load: subprocess.Popen[bytes] | None = None

    def begin_load(self) -> None:
        self._flag().unlink(missing_ok=True)
        self._load = self.machine.launch([sys.executable, "-c", LOAD, str(self._flag())], self._log())
        wait_until("the load is on", lambda: self.loaded() > 0)

    def loaded(self) -> int:
        return len(self.objects("first", "load/"))

    def end_load(self) -> None:
        """No request may have failed."""
        assert self._load is not None
        self._flag().touch()
        self._load.wait(60)
        done, failed = json.loads(self._log().read_text().splitlines()[-1])
        assert failed == [] and done > 10, (done, failed)

    def _flag(self) -> Path:
        return self.machine.folder / "enough"

    def _log(self) -> Path:
        return self.machine.folder / "load.log"

    def objects(self, bucket: str, prefix: str = "") -> list[str]:
        listed = self.machine.ask(f"aws s3api list-objects-v2 --bucket {bucket} --prefix '{prefix}' --output json")
        return [each["Key"] for each in json.loads(listed or "{}").get("Contents", [])]

    def query(self, expression: str) -> dict[str, float]:
        """By instance."""
        asked = f"curl -fsSG http://127.0.0.1:9090/api/v1/query --data-urlencode {shlex.quote('query=' + expression)}"
        result = json.loads(self.machine.ask(f"{asked}"))["data"]["result"]
        return {one["metric"].get("instance", ""): float(one["value"][1]) for one in result}

    def admin(self, *words: str) -> Any:
        return json.loads(self.machine.ask(f"docker compose exec -T node1 anvil admin {shlex.join(words)} --json"))

    def unhealthy(self) -> float:
        metrics = self.machine.ask(
            'curl -fsS -H "Authorization: Bearer $(cat docker/secrets/metrics_token)" https://localhost/metrics'
        )
        return sum(float(one) for one in re.findall(r"^anvil_shards_unhealthy\S* (\S+)$", metrics, re.MULTILINE))


@pytest.fixture(scope="module")
def walk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Walk]:
    folder = tmp_path_factory.mktemp("guide")
    folders = ("/etc/nginx", "/var/log/nginx", "/var/lib/nginx")
    with Machine(folder, checkout(folder / "anvil"), HOME, folders) as machine:
        yield Walk(machine)


@pytest.mark.parametrize("number", range(len(BLOCKS)), ids=[block.partition("\n")[0][:60] for block in BLOCKS])
def test_block(walk: Walk, number: int) -> None:
    if walk.done != number:
        pytest.skip("the blocks before it were not run, or one of them failed: run the whole file")
    try:
        do(walk, BLOCKS[number])
    except BaseException:
        for name, text in walk.machine.logs().items():
            print(f"--- {name}\n{text}")
        raise
    walk.done += 1


def do(walk: Walk, block: str) -> None:
    walk.block = block
    if step := found(BEFORE, block):
        step(walk)
    if step := found(INSTEAD, block):
        step(walk)
        return
    ran = walk.machine.run(block, BLOCK_S)
    walk.text = ran.text
    print(ran.text, f"-- {ran.seconds:.1f} s")
    assert ran.code == 0, f"{block}\nended with {ran.code} after {ran.seconds:.1f} s:\n{ran.text}"
    if step := found(AFTER, block):
        step(walk)


# -- what has to be true ----------------------------------------------------------------------------------------------------------


@at(AFTER, "docker/make-secrets.sh")
def everything_runs(walk: Walk) -> None:
    said = dict(re.findall(r"^([\w-]+) +(running.*|exited.*|not run.*)$", walk.text, re.MULTILINE))
    grafana = said.pop("grafana")
    assert grafana.startswith("not run")
    assert set(said.values()) == {"running", "running (healthy)"}
    assert {name for name in said if said[name] == "running (healthy)"} == {*NODES, "global-database", "regional-database"}


@at(AFTER, "(umask 077; docker compose exec -T node1 cat")
def objects_come_back(walk: Walk) -> None:
    assert walk.objects("first") == ["README.md"]
    assert "make_bucket: first" in walk.text
    assert "WARNING" not in walk.text


@at(AFTER, "aws s3 mb s3://web")
def the_app_has_its_bucket_and_no_other(walk: Walk) -> None:
    assert walk.objects("web") == ["README.md"]
    words = shlex.join(["env", "AWS_PROFILE=web", sys.executable, "-c", RIGHTS])
    assert json.loads(walk.machine.ask(words)) == {
        "get": 200,
        "delete": 204,
        "find": 200,
        "get another's": "AccessDenied",
        "put another's": "AccessDenied",
        "list another's": "AccessDenied",
        "delete the bucket": "AccessDenied",
        "buckets": ["web"],
    }


@at(AFTER, "curl -fsS https://localhost/ready")
def all_nodes_are_active(walk: Walk) -> None:
    assert '"status":"ready"' in walk.text.replace(" ", "")
    assert [one["state"] for one in walk.admin("node", "list")] == ["active"] * 3


@at(BEFORE, "curl -fsSG http://127.0.0.1:9090/api/v1/query")
def scraped(walk: Walk) -> None:
    wait_until("the first round of Prometheus", lambda: len(walk.query('up{job="anvil"} == 1')) == 3, 60)


@at(AFTER, "curl -fsSG http://127.0.0.1:9090/api/v1/query")
def all_is_up_and_nothing_fires(walk: Walk) -> None:
    assert walk.query('up{job="anvil"}') == {f"{name}:50051": 1.0 for name in NODES}
    pending = 'ALERTS{alertname="AnvilBackupMissing", alertstate="pending"}'
    wait_until("the missing backup is noticed", lambda: len(walk.query(pending)) == 1)
    up, firing = [
        json.loads(line)["data"]["result"] for line in walk.text.replace("}+ curl", "}\n+ curl").splitlines() if line[0] == "{"
    ]
    assert len(up) == 3
    assert firing == []


@at(BEFORE, "docker compose kill -s HUP prometheus")
def name_the_alertmanager(walk: Walk) -> None:
    [lines] = fenced("yaml")
    with (walk.machine.tree / "docker" / "prometheus" / "prometheus.yml").open("a") as file:
        file.write(f"\n{lines}")


@at(AFTER, "docker compose kill -s HUP prometheus")
def alerts_go_there(walk: Walk) -> None:
    told = "curl -fsS http://127.0.0.1:9090/api/v1/alertmanagers"
    wait_until("it knows it", lambda: "http://alertmanager.example.com:9093/api" in walk.machine.ask(told))


@at(AFTER, "docker compose exec -T node1 anvil admin backup create /backup")
def the_backup_is_whole(walk: Walk) -> None:
    assert re.search(r"^snapshot \S+: 2 objects, ", walk.text, re.MULTILINE), walk.text
    [line] = "".join(fenced("crontab")).splitlines()
    walk.machine.ask(f"cd / && env -u COMPOSE_FILE sh -c {shlex.quote(line.split(None, 5)[5])}")
    assert len(walk.admin("backup", "list", "/backup")) == 2


@at(BEFORE, "docker compose kill node2")
def users_are_there(walk: Walk) -> None:
    walk.begin_load()


@at(AFTER, "docker compose kill node2")
def nobody_noticed_and_it_heals(walk: Walk) -> None:
    walk.end_load()
    wait_until("every shard is there", lambda: walk.unhealthy() == 0)
    assert [one["state"] for one in walk.admin("node", "list")] == ["active"] * 3
    assert walk.query('ALERTS{alertstate="firing"}') == {}
    wait_until("the backup was noticed", lambda: walk.query('ALERTS{alertname="AnvilBackupMissing"}') == {}, 60)


@at(BEFORE, "curl -fsS 'https://localhost/ready/cluster?maintenance=true'")
def a_new_release(walk: Walk) -> None:
    with (walk.machine.tree / "README.md").open("a") as file:
        file.write("\nA newer release.\n")
    walk.begin_load()


@at(AFTER, "curl -fsS 'https://localhost/ready/cluster?maintenance=true'")
def it_runs_and_nobody_noticed(walk: Walk) -> None:
    walk.end_load()
    assert "node1: started" in walk.text
    assert not re.search("(node2|node3|caddy|global-database): started", walk.text)
    assert "node1: running (healthy)" in walk.machine.run("docker compose up -d --no-deps --wait node1").text


@at(BEFORE, "ANVIL_TLS_CERT=")
def make_a_certificate(walk: Walk) -> None:
    make_pair(walk, "/etc/anvil/tls", "localhost")


def make_pair(walk: Walk, folder: str, name: str) -> None:
    walk.machine.ask(
        f"mkdir -p {folder}; openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 30 -subj /CN={name} "
        f"-addext subjectAltName=DNS:{name} -keyout {folder}/privkey.pem -out {folder}/fullchain.pem"
    )


@at(INSTEAD, "ANVIL_TLS_CERT=")
def a_node_with_tls(walk: Walk) -> None:
    """It runs in the foreground, so the test is its terminal's Ctrl-C."""
    script = f"{walk.block.rstrip()} & echo $! >/tmp/tls; wait $!"
    node = walk.machine.launch(["bash", "-ec", script], walk.machine.folder / "tls.log")
    plain, secure = "http://127.0.0.1:50051/ready", "--cacert /etc/anvil/tls/fullchain.pem https://localhost:50052/ready"

    def serves() -> bool:
        assert node.poll() is None, (walk.machine.folder / "tls.log").read_text()
        return all(walk.machine.run(f"curl -fsS {each}").code == 0 for each in (plain, secure))

    wait_until("it serves both", serves, 60)
    assert walk.machine.run("curl -fsS http://127.0.0.1:50052/ready").code != 0
    walk.machine.ask("kill -INT $(cat /tmp/tls)")
    assert node.wait(60) == 0


@at(BEFORE, "sed -e 's/10")
def a_machine_with_nginx(walk: Walk) -> None:
    """It runs already, with Debian's configuration in the place of ours; two nodes are where the document has them."""
    make_pair(walk, "/etc/nginx/tls", "s3.example.org")
    hosts = walk.machine.ask("docker compose stop caddy; docker compose exec -T prometheus cat /etc/hosts")
    addresses = {name: address for address, name in (line.split() for line in hosts.splitlines()) if name in NODES}
    targets = [f"10.0.1.{number}:50051:{addresses[f'node{number}']}:50051" for number in (1, 2)]
    for number in (1, 2):
        walk.machine.ask(f"ip addr add 10.0.1.{number}/32 dev lo")
    words = ["env", f"PYTHONPATH={ROOT}", sys.executable, "-m", "tests.support.compose.relay", *targets]
    walk.machine.launch(words, walk.machine.folder / "relay.log")
    walk.machine.ask("echo 'user www-data; pid /run/nginx.pid; events {} http {}' >/etc/nginx/nginx.conf; nginx >/dev/null 2>&1")


@at(AFTER, "sed -e 's/10")
def it_is_in_front(walk: Walk) -> None:
    walk.machine.ask("echo 127.0.0.1 s3.example.org >>/etc/hosts")
    settings = "export AWS_ENDPOINT_URL=https://s3.example.org AWS_CA_BUNDLE=/etc/nginx/tls/fullchain.pem"
    wait_until("it has the new configuration", lambda: walk.machine.run(f"{settings}; aws s3 ls").code == 0)
    walk.machine.ask("aws s3 cp LICENSE s3://web/by-nginx; aws s3 cp s3://web/by-nginx - | cmp - LICENSE")
