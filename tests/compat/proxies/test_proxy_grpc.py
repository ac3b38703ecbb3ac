"""gRPC through the shipped proxy configurations, with grpcio as the client."""

from __future__ import annotations

from collections.abc import Iterator

import grpc
import pytest

from tests.compat.proxies.conftest import need
from tests.support.node import AnvilNode, free_port
from tests.support.proxies import KINDS, NGINX_SIMPLE, Certificate, Proxy, ProxyKind

DEADLINE_S = 20.0
WITH_GRPC = [kind for kind in KINDS if kind.grpc]


def channel(target: str, certificate: Certificate) -> grpc.Channel:
    return grpc.secure_channel(target, grpc.ssl_channel_credentials(certificate.authority.read_bytes()))


def reaches_the_node(opened: grpc.Channel) -> None:
    """One call of `grpc.health.v1.Health/Check` for the whole server (an empty HealthCheckRequest) gets the node's answer: SERVING
    (field 1, value 1), or as long as there are no services, the node's refusal, which no proxy words like this."""
    check = opened.unary_unary("/grpc.health.v1.Health/Check")
    try:
        assert check(b"", timeout=DEADLINE_S) == b"\x08\x01"
    except grpc.RpcError as error:
        assert (error.code(), error.details()) == (grpc.StatusCode.UNIMPLEMENTED, "this server has no gRPC services")


def grpc_round_trip(target: str, certificate: Certificate) -> None:
    """What must work through every proxy that passes gRPC on."""
    with channel(target, certificate) as opened:
        reaches_the_node(opened)
        reaches_the_node(opened)  # on the connection that is now open


@pytest.mark.parametrize("proxy", WITH_GRPC, ids=lambda kind: kind.name, indirect=True)
def test_calls_reach_the_node(proxy: Proxy, certificate: Certificate) -> None:
    grpc_round_trip(proxy.target, certificate)


@pytest.mark.parametrize("proxy", [NGINX_SIMPLE], ids=lambda kind: kind.name, indirect=True)
def test_a_proxy_that_cannot_pass_grpc_on_hands_over_the_reason(proxy: Proxy, certificate: Certificate) -> None:
    with channel(proxy.target, certificate) as opened, pytest.raises(grpc.RpcError) as error:
        opened.unary_unary("/anvil.v1.ObjectService/HeadObject")(b"", timeout=DEADLINE_S)
    assert error.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert "use grpc_pass in nginx" in error.value.details()


@pytest.fixture(params=[kind for kind in KINDS if kind.recommended], ids=lambda kind: kind.name)
def half_dead(
    request: pytest.FixtureRequest, node: AnvilNode, certificate: Certificate, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Proxy]:
    """Two nodes, the first of which does not listen."""
    kind: ProxyKind = request.param
    need(kind)
    with Proxy(kind, [free_port(), node.port], tmp_path_factory.mktemp("half-dead") / kind.name, certificate) as running:
        yield running


def test_a_dead_node_among_two_is_not_noticed_by_grpc(half_dead: Proxy, certificate: Certificate) -> None:
    with channel(half_dead.target, certificate) as opened:
        for _ in range(20):
            reaches_the_node(opened)
