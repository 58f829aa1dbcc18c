"""How messages travel: one contract, three drivers, chosen by the broker URL."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from importlib import import_module

from trickle.exceptions import ConfigurationError
from trickle.transport.contract import Transport, TransportOptions

__all__ = ["open_transport"]

_DRIVERS = {
    "kafka": "trickle.transport.kafka",
    "lmdb": "trickle.transport.embedded",
    "memory": "trickle.transport.memory",
}


def open_transport(
    url: str, options: TransportOptions | None = None
) -> AbstractAsyncContextManager[Transport]:
    """Open the broker that a URL names; clients must be closed before it.

    Args:
        url: ``kafka://host:port,…``, ``lmdb:///absolute/path`` (already resolved: relative paths
            are the settings' business) or ``memory://name``.

    Raises:
        ConfigurationError: no driver for this URL.
        BrokerUnavailable: the broker does not answer.
    """
    scheme, separator, _ = url.partition("://")
    if not separator or scheme not in _DRIVERS:
        raise ConfigurationError(
            f"broker={url!r} is no broker URL that trickle knows: "
            "use kafka://host:port, lmdb://path or memory://name"
        )
    # Imported on demand: a run on one driver does not pay for the client library of another.
    driver = import_module(_DRIVERS[scheme])
    opened: AbstractAsyncContextManager[Transport] = driver.open_transport(
        url, options or TransportOptions()
    )
    return opened
