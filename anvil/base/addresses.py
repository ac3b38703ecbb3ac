"""Addresses as a program on the same machine uses them.

Not here: reading them from settings (`base/settings.py`), listening on them (`node/supervisor.py`).
"""

from __future__ import annotations

from anvil.base.setting_values import Address

_ANYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - told apart, not bound


def here(address: Address) -> Address:
    """How a program on this machine reaches a listen address, which may stand for all interfaces."""
    return Address(_ANYWHERE.get(address.host, address.host), address.port)
