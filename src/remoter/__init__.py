"""remoter: control a remote Python or R session from your local one.

The public names and nothing else; each is loaded when it is first used, so that
`import remoter` and `remoter --help` stay fast.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "_batch": ["batch"],
    "_client": ["Event", "Result", "Run", "Session", "connect"],
    "_copy": ["Copied"],
    "_door": ["relay"],
    "_errors": [
        "AddressError",
        "AuthError",
        "ConnectError",
        "KeyChangedError",
        "LinkLostError",
        "NameNotFoundError",
        "RemoterError",
        "RunError",
        "RunInterruptedError",
        "RunTimeoutError",
        "SessionDiedError",
        "TransferError",
        "VersionError",
    ],
    "_launcher": ["server"],
    "_objects": ["Pushed"],
    "_prompt": ["client"],
    "_transfer": ["Progress", "Transfer"],
}
_MODULE_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "AddressError",
    "AuthError",
    "ConnectError",
    "Copied",
    "Event",
    "KeyChangedError",
    "LinkLostError",
    "NameNotFoundError",
    "Progress",
    "Pushed",
    "RemoterError",
    "Result",
    "Run",
    "RunError",
    "RunInterruptedError",
    "RunTimeoutError",
    "Session",
    "SessionDiedError",
    "Transfer",
    "TransferError",
    "VersionError",
    "__version__",
    "batch",
    "client",
    "connect",
    "relay",
    "server",
]

if TYPE_CHECKING:
    from ._batch import batch
    from ._client import Event, Result, Run, Session, connect
    from ._copy import Copied
    from ._door import relay
    from ._errors import (
        AddressError,
        AuthError,
        ConnectError,
        KeyChangedError,
        LinkLostError,
        NameNotFoundError,
        RemoterError,
        RunError,
        RunInterruptedError,
        RunTimeoutError,
        SessionDiedError,
        TransferError,
        VersionError,
    )
    from ._launcher import server
    from ._objects import Pushed
    from ._prompt import client
    from ._transfer import Progress, Transfer


def __getattr__(name: str) -> Any:
    module = _MODULE_OF.get(name)
    if module is None:
        raise AttributeError(f"module 'remoter' has no attribute {name!r}")
    value = getattr(import_module(f".{module}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)


def load_ipython_extension(ipython: Any) -> None:
    """`%load_ext remoter`."""
    import_module("._magics", __name__).load_ipython_extension(ipython)


def unload_ipython_extension(ipython: Any) -> None:
    """`%unload_ext remoter`."""
    import_module("._magics", __name__).unload_ipython_extension(ipython)
