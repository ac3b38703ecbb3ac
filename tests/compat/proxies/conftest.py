"""Real clients through real proxies: one node, and each shipped configuration in front of it, for all tests of this folder."""

from __future__ import annotations

import secrets
import ssl
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.config import Config

from tests.compat.conftest import Shell
from tests.support.needs import program
from tests.support.node import AnvilNode
from tests.support.proxies import DOMAIN, KINDS, RUNNING, Certificate, Proxy, ProxyKind

ONE_ATTEMPT = Config(retries={"total_max_attempts": 1, "mode": "standard"})


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A failing test shows the end of the log of every proxy."""
    report = yield
    if report.failed and report.when == "call":
        report.sections += [(f"log of {proxy.kind.name}", proxy.log_tail()) for proxy in RUNNING]
    return report


@pytest.fixture(scope="package")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AnvilNode]:
    """Configured as docs/OPERATE.md says for a node behind a proxy."""
    env = {"ANVIL_WORKERS": "2", "ANVIL_PUBLIC_API_ADDR": f"https://{DOMAIN}", "ANVIL_TRUSTED_PROXIES": "127.0.0.1"}
    with AnvilNode(tmp_path_factory.mktemp("proxied-node") / "data", env=env) as running:
        yield running


@pytest.fixture(scope="package")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return Certificate(tmp_path_factory.mktemp("certificate") / "tls")


def need(kind: ProxyKind) -> None:
    """`make dev` installs it on Debian."""
    program(kind.program)


@pytest.fixture(scope="package", params=KINDS, ids=lambda kind: kind.name)
def proxy(
    request: pytest.FixtureRequest, node: AnvilNode, certificate: Certificate, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Proxy]:
    """Each shipped configuration in front of the node."""
    need(request.param)
    with Proxy(request.param, [node.port], tmp_path_factory.mktemp(request.param.name) / "proxy", certificate) as running:
        yield running


def client(node: AnvilNode, proxy: Proxy, config: Config | None = None, endpoint: str | None = None) -> Any:
    """boto3 through a proxy, path-style, failing at the first failure unless `config` says otherwise."""
    base = Config(s3={"addressing_style": "path"}).merge(ONE_ATTEMPT)
    return boto3.client(
        "s3",
        endpoint_url=endpoint or proxy.endpoint,
        region_name=node.region,
        aws_access_key_id=node.access_key,
        aws_secret_access_key=node.secret_key,
        verify=str(proxy.authority_file),
        config=base.merge(config) if config is not None else base,
    )


@pytest.fixture
def s3(node: AnvilNode, proxy: Proxy) -> Any:
    return client(node, proxy)


@pytest.fixture
def bucket(node: AnvilNode) -> str:
    name = f"proxied-{secrets.token_hex(6)}"
    node.s3().create_bucket(Bucket=name)
    return name


@pytest.fixture
def trust(certificate: Certificate) -> ssl.SSLContext:
    """For clients that are no SDK."""
    return ssl.create_default_context(cafile=str(certificate.authority))


@pytest.fixture
def shell(node: AnvilNode, proxy: Proxy, tmp_path: Path) -> Shell:
    """The AWS CLI through the proxy."""
    made = Shell(node, tmp_path)
    made.env |= {"AWS_ENDPOINT_URL": proxy.endpoint, "AWS_CA_BUNDLE": str(proxy.authority_file), "AWS_MAX_ATTEMPTS": "1"}
    return made
