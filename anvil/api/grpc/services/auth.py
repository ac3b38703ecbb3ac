"""AuthService: tokens for key pairs, and rights. From messages to operations and back; no rule is here.

The caller is `context.caller`; errors are AnvilErrors, which the host turns into statuses.
"""

from __future__ import annotations

from typing import Protocol

from google.protobuf.timestamp_pb2 import Timestamp

from anvil.api.grpc.proto import auth_pb2 as pb
from anvil.api.grpc.proto.auth_pb2_grpc import AuthServiceServicer
from anvil.api.operations import rights
from anvil.api.operations.caller import Caller
from anvil.auth.tokens import Tokens


class Context(Protocol):
    """What is needed of the host's context."""

    @property
    def caller(self) -> Caller: ...


class AuthService(AuthServiceServicer):
    """`tokens`: the worker's."""

    def __init__(self, tokens: Tokens) -> None:
        self._tokens = tokens

    async def GetAccessToken(self, request: pb.GetAccessTokenRequest, context: Context) -> pb.GetAccessTokenResponse:
        app = await self._tokens.exchange(request.client_id, request.client_secret)
        token, expires_s = self._tokens.issue(app)
        return pb.GetAccessTokenResponse(access_token=token, expires_at=Timestamp(seconds=expires_s))

    async def GrantAccess(self, request: pb.GrantAccessRequest, context: Context) -> pb.GrantAccessResponse:
        changed = await rights.grant(context.caller, request.app, request.action, request.resource)
        return pb.GrantAccessResponse(changed=changed)

    async def RevokeAccess(self, request: pb.RevokeAccessRequest, context: Context) -> pb.RevokeAccessResponse:
        changed = await rights.revoke(context.caller, request.app, request.action, request.resource)
        return pb.RevokeAccessResponse(changed=changed)

    async def SetPublicAccess(self, request: pb.SetPublicAccessRequest, context: Context) -> pb.SetPublicAccessResponse:
        await rights.set_public(context.caller, request.bucket, request.allow)
        return pb.SetPublicAccessResponse()
