"""Whether the hub let go of a server: only one that it knows, and knows not to run."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from jupyterhub import orm
from jupyterhub.app import JupyterHub

from ds01_spawner.core.model import Holder
from ds01_spawner.spawner import let_go

THESIS = Holder("alice", "thesis")


@pytest.fixture
def app(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A hub that serves and knows a server of alice's, which does not run."""
    db = orm.new_session_factory("sqlite:///:memory:")()
    user = orm.User(name="alice")
    db.add(user)
    db.add(orm.Spawner(name="thesis", user=user))
    db.commit()
    app = SimpleNamespace(db=db, users={}, http_server=object(), user=user)
    monkeypatch.setattr(JupyterHub, "initialized", lambda: True)
    monkeypatch.setattr(JupyterHub, "instance", lambda: app)
    return app


def test_a_server_that_the_hub_knows_and_does_not_run_was_let_go(app: SimpleNamespace) -> None:
    """What a stop leaves, whatever became of the container."""
    assert let_go(THESIS)


def test_a_server_that_has_an_address_was_not(app: SimpleNamespace) -> None:
    """From the first moment of a launch to the end of its retire, and over a restart of the hub."""
    app.user.orm_spawners["thesis"].server = orm.Server()
    app.db.commit()
    assert not let_go(THESIS)


@pytest.mark.parametrize("holder", [Holder("alice", "other"), Holder("bob", "thesis")])
def test_a_server_that_the_hub_never_heard_of_was_not(app: SimpleNamespace, holder: Holder) -> None:
    """A hub with a new database ends nothing that runs."""
    assert not let_go(holder)


@pytest.mark.parametrize("active", [True, False])
def test_a_server_that_is_about_to_start_or_stop_was_not(app: SimpleNamespace, *, active: bool) -> None:
    """The hub's own word on what it is doing counts too."""
    app.users[app.user.id] = SimpleNamespace(spawners={"thesis": SimpleNamespace(active=active)})
    assert let_go(THESIS) is not active


def test_nothing_was_before_the_hub_serves(app: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hub that has not loaded its servers, or a process that is none, cannot tell."""
    app.http_server = None
    assert not let_go(THESIS)
    monkeypatch.setattr(JupyterHub, "initialized", lambda: False)
    assert not let_go(THESIS)
