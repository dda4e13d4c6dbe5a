"""Keeps a starting notebook server from importing what it does not use yet.

Most of the time until a server answers goes into imports, and most of those are the hub's side of JupyterHub (its
database layer alone is a third) and things that a session may never need.  Two means:

* a *deferred* module runs its code when something is first looked up in it. For whoever uses it nothing changes.
* a *stand-in* takes the place of a module of JupyterHub that a server needs for one name only.

Stand-ins are for the JupyterHub releases that they were tried with; with another one the server starts as JupyterHub
means it to, only slower.
"""

from __future__ import annotations

import importlib
import sys
import threading
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

_bootstrap: Any = importlib._bootstrap

STAND_INS_TRIED_WITH = ("5.5.", "6.1.")
DEFERRED = frozenset(
    {
        "aiohttp",
        "httpx",
        "jupyterhub.orm",
        "jupyterhub.roles",
        "requests",
        "sqlalchemy",
        "unittest",
        "unittest.mock",
        "websocket",
    }
)


class Deferred(ModuleType):
    """A module whose code runs when something is first looked up in it."""

    def __getattr__(self, name: str) -> Any:
        if name in ("__path__", "__file__", "__cached__", "__loader__", "__spec__"):
            raise AttributeError(name)  # asked for by the import machinery, of modules that have none
        inner = self.__name__ + "." + name
        if inner in DEFERRED:
            return importlib.import_module(inner)
        load(self)
        return object.__getattribute__(self, name)


def load(module: ModuleType) -> None:
    """Run a deferred module's code unless it has run; other threads wait until it has."""
    if type(module) is not Deferred:
        return
    try:
        # Python's own lock for this module: a second one of ours could wait for it, and it for ours.
        with _bootstrap._ModuleLockManager(module.__name__):
            _run(module)
    except _bootstrap._DeadlockError:
        # Whoever holds the lock waits for this thread. What was not begun, or was given up to break the tie, runs here.
        _run(module)


def _run(module: ModuleType) -> None:
    # One step that no other thread can come between: the first one to write its mark runs the module.
    mark = [threading.get_ident()]
    if type(module) is not Deferred or module.__dict__.setdefault("_ds01_run_by", mark) is not mark:
        return
    try:
        parent = sys.modules.get(module.__name__.rpartition(".")[0])
        if parent is not None:
            load(parent)
        for name, other in list(sys.modules.items()):
            if type(other) is StandIn and name.startswith(module.__name__ + "."):
                del sys.modules[name]
        loader = module.__loader__.wrapped  # type: ignore[union-attr]
        module.__spec__.loader = loader  # type: ignore[union-attr]
        loader.exec_module(module)
    except BaseException:
        del module.__dict__["_ds01_run_by"]
        raise
    module.__loader__ = loader
    module.__class__ = ModuleType  # type: ignore[assignment]


class StandIn(ModuleType):
    """Has the few names that a server needs of a module; whoever asks for another one gets the real module's."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(_real(self.__name__), name)


def _real(name: str) -> ModuleType:
    if type(sys.modules.get(name)) is StandIn:
        sys.modules.pop(name, None)
    return importlib.import_module(name)


class _DeferringLoader:
    """Makes a module that waits; one below a deferred package runs as soon as its package has."""

    def __init__(self, wrapped: Any, package: ModuleType | None = None) -> None:
        self.wrapped = wrapped
        self._package = package

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return Deferred(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Do nothing yet, or what was waited for."""
        if self._package is not None:
            load(self._package)
            load(module)


class DeferringFinder:
    """Finds the modules that are deferred, and runs a deferred package before anything below it is imported."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        """Return a deferring spec, or nothing for a module that the usual finders shall find."""
        package = sys.modules.get(name.rpartition(".")[0])
        # This runs under Python's import lock, so nothing may be loaded here: another thread may need that lock.
        below = type(package) is Deferred and package.__dict__.get("_ds01_run_by") != [threading.get_ident()]
        if name not in DEFERRED and not below:
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = _DeferringLoader(spec.loader, None if name in DEFERRED else package)  # type: ignore[assignment]
        return spec


def defer() -> None:
    """Defer what a server does not use while it starts; for good in this process."""
    sys.meta_path.insert(0, DeferringFinder)


# -- JupyterHub ---------------------------------------------------------------------------------------------------


def stand_in_for_hub() -> None:
    """Import JupyterHub's server extension without the hub's own side: its handlers, database and HTTP client."""
    import jupyterhub

    if not jupyterhub.__version__.startswith(STAND_INS_TRIED_WITH):
        return

    class HealthCheckHandler:
        """Nobody's: the hub's log asks whether a handler is one."""

    class SQLAlchemyError(Exception):
        """Never raised where there is no database."""

    _shell("jupyterhub.singleuser", jupyterhub)
    _stand_in("jupyterhub.handlers.pages", HealthCheckHandler=HealthCheckHandler)
    _shell("jupyterhub.handlers", jupyterhub)
    _stand_in("sqlalchemy.exc", SQLAlchemyError=SQLAlchemyError)
    if not jupyterhub.__version__.startswith("5."):
        _stand_in("jupyterhub.httpclient", fetch=fetch)
    _do_not_wait_for_hub()


def _stand_in(name: str, **contents: Any) -> None:
    module = StandIn(name)
    module.__dict__.update(contents)
    sys.modules[name] = module


def _shell(name: str, parent: ModuleType) -> None:
    """Make a package importable without running its ``__init__``, which imports everything below it."""
    spec = PathFinder.find_spec(name, parent.__path__)
    if spec is not None:
        module = StandIn(name)
        module.__spec__, module.__path__, module.__package__ = spec, spec.submodule_search_locations, name  # type: ignore[assignment]
        sys.modules[name] = module
        setattr(parent, name.rpartition(".")[2], module)


def _do_not_wait_for_hub() -> None:
    """Ask the hub for its version while the server already answers; a hub that stays away still ends it."""
    import asyncio

    from jupyterhub.singleuser.extension import JupyterHubSingleUser

    check = JupyterHubSingleUser.check_hub_version

    async def begin(self: Any) -> None:
        self._ds01_hub_check = asyncio.ensure_future(check(self))

    JupyterHubSingleUser.check_hub_version = begin


class HubResponse:
    """The part of an aiohttp response that JupyterHub reads."""

    def __init__(self, response: Any) -> None:
        self.status = response.code
        self.reason = response.reason
        self.headers = response.headers
        self.ok = response.error is None
        self._body = response.body or b""

    async def text(self) -> str:
        """Return the body."""
        return self._body.decode("utf-8", "replace")

    async def json(self) -> Any:
        """Return the body's value."""
        import json

        return json.loads(self._body)


async def fetch(url: str, *, method: str = "GET", raise_for_status: bool = True, **arguments: Any) -> Any:
    """Make a plain request to the hub with tornado's client, which is there anyway; aiohttp makes any other."""
    known = {"headers", "data"} >= arguments.keys() and isinstance(arguments.get("data", ""), (str, bytes))
    if not (known and url.startswith(("http://", "https://"))):
        return await _real("jupyterhub.httpclient").fetch(
            url, method=method, raise_for_status=raise_for_status, **arguments
        )
    from tornado.httpclient import AsyncHTTPClient

    response = await AsyncHTTPClient().fetch(
        url,
        method=method,
        headers=arguments.get("headers"),
        body=arguments.get("data"),
        allow_nonstandard_methods=True,
        raise_error=raise_for_status,
        follow_redirects=False,  # the request carries the server's token
        connect_timeout=30,
        request_timeout=300,
    )
    return HubResponse(response)
