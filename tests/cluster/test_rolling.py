"""A release is rolled out: three nodes behind Caddy are restarted one after the other, in order, and no request fails.

Not here: nodes that die (test_losses.py), proxies and what they pass on (tests/compat/proxies).
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config

from tests.support.cluster import AnvilCluster
from tests.support.node import AnvilNode, wait_until
from tests.support.proxies import CADDY, Certificate, Proxy
from tests.support.workload import Workload

NOTICE_S = "3"  # longer than Caddy's health interval and time-out in docker/caddy/Caddyfile
NO_RETRIES = Config(
    s3={"addressing_style": "path"}, retries={"max_attempts": 1, "mode": "standard"}, connect_timeout=5, read_timeout=60
)


def has_served(node: AnvilNode, count: int) -> bool:
    """Whether it has answered so many uploads since its start."""
    return node.metric("anvil_api_requests_total", operation="PutObject", code="200") >= count


def test_a_rolling_restart_behind_caddy_fails_no_request(tmp_path: Path, seed: int) -> None:
    certificate = Certificate(tmp_path / "tls")
    with AnvilCluster(tmp_path / "c", nodes=3, env={"ANVIL_DRAIN_NOTICE_S": NOTICE_S}) as cluster:
        ports = [node.port for node in cluster.nodes]
        with Proxy(CADDY, ports, tmp_path / "caddy", certificate) as proxy:

            def through_caddy(_: int) -> Any:
                """A client that tries once."""
                return boto3.client(
                    "s3",
                    endpoint_url=proxy.endpoint,
                    verify=str(proxy.authority_file),
                    region_name=cluster.nodes[0].region,
                    aws_access_key_id=cluster.nodes[0].access_key,
                    aws_secret_access_key=cluster.nodes[0].secret_key,
                    config=NO_RETRIES,
                )

            through_caddy(0).create_bucket(Bucket="rolling")
            with Workload(cluster, "rolling", seed=seed, threads=3, pause_s=0.02, multipart=False, client=through_caddy) as load:
                load.wait_for(40)
                for number in range(3):
                    pid = cluster.nodes[number].pid
                    cluster.stop(number)
                    load.wait_for(20)
                    cluster.start(number)
                    assert cluster.nodes[number].pid != pid
                    cluster.wait_active(range(3))
                    cluster.wait_healthy()
                    # Caddy looks every 500 ms: the next node goes only when this one is used again.
                    wait_until(f"node {number} is used again", partial(has_served, cluster.nodes[number], 5), 30)
                load.wait_for(40)
            assert load.failures == [], f"seed {seed}: {load.failures}"
            load.check()
