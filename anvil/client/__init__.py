"""Anvil's client library: buckets, objects and rights of a server, asynchronously, over gRPC.

Start with `AnvilClient`. Errors are in `anvil.client.errors`. Not here: the command line (`anvil/cli`).
"""

from anvil.client.client import AnvilClient
from anvil.client.download import ObjectStream
from anvil.client.errors import *  # noqa: F403 - its __all__
from anvil.client.errors import __all__ as _errors
from anvil.client.sources import Upload, open_source
from anvil.client.tokens import TokenStore
from anvil.client.types import *  # noqa: F403 - its __all__
from anvil.client.types import __all__ as _types

__all__ = ["AnvilClient", "ObjectStream", "TokenStore", "Upload", "open_source", *_errors, *_types]  # noqa: PLE0604 - strings all
