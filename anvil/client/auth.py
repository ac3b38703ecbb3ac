"""`client.auth`: tokens and rights. Not here: how tokens are kept (`tokens.py`)."""

from __future__ import annotations

from anvil.api.grpc.proto import auth_pb2
from anvil.client.calls import Calls
from anvil.client.types import Ask, Token

__all__ = ["Auth"]


class Auth:
    """Rights of apps of the caller's tenant. `app`: an access key, or a name within the tenant. `action`: bucket:{create,delete,read,write,
    list}, object:{read,write,delete,list}, policy:{grant,revoke} or `*`. `resource`: `*`, BUCKET, BUCKET/key, or a prefix ending in `*`."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls

    async def get_token(self) -> Token:
        """The token that calls are made with, good for a while. Raises BadCredentials."""
        return await self._calls.tokens.get()

    async def grant(self, app: str, action: str, resource: str) -> bool:
        """Gives an app a right. False: it had it already. Needs `policy:grant` on the resource, and the right itself."""
        request = auth_pb2.GrantAccessRequest(app=app, action=action, resource=resource)
        ask = Ask("policy:grant", resource, repeatable=False)
        return (await self._calls.unary("AuthService/GrantAccess", request, auth_pb2.GrantAccessResponse, ask)).changed

    async def revoke(self, app: str, action: str, resource: str) -> bool:
        """Takes back a right, named exactly as it was granted. False: there was none. Needs `policy:revoke` on the resource."""
        request = auth_pb2.RevokeAccessRequest(app=app, action=action, resource=resource)
        ask = Ask("policy:revoke", resource, repeatable=False)
        return (await self._calls.unary("AuthService/RevokeAccess", request, auth_pb2.RevokeAccessResponse, ask)).changed
