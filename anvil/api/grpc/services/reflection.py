"""Server reflection: grpcurl and its like learn the services from the server. grpcio's own servicer, under both names of the protocol."""

from __future__ import annotations

from collections.abc import Sequence

import grpc
from grpc_reflection.v1alpha import reflection_pb2
from grpc_reflection.v1alpha._async import ReflectionServicer

from anvil.rpc.host import GrpcHost

_NAMES = ("grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection")  # the messages are the same


def add_reflection(host: GrpcHost, services: Sequence[str]) -> None:
    """`services`: the names that are listed."""
    servicer = ReflectionServicer((*services, _NAMES[1]))
    handler = grpc.stream_stream_rpc_method_handler(
        servicer.ServerReflectionInfo,
        request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
        response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    for name in _NAMES:
        host.add_registered_method_handlers(name, {"ServerReflectionInfo": handler})
