"""The labels of our containers, on top of whatever their image carries."""

from __future__ import annotations

import pytest

from ds01_spawner.core import labels
from ds01_spawner.core.claims import owner_of
from ds01_spawner.core.labels import ServerLabels
from ds01_spawner.core.model import Container, Holder

SERVER = ServerLabels("lab", Holder("alice", "thesis"), "thesis", "/home/alice/workspace/thesis", 1_000_000.0)


def test_every_label_that_is_read_of_a_container_is_written() -> None:
    """The engine fills in from the image what is not written, so nothing may be left to it."""
    named = {value for value in vars(labels).values() if isinstance(value, str) and value.startswith(("ds01.", "hub."))}
    read = named - {labels.PREFIX, labels.RECIPE, labels.BASE, labels.BUILT_AT}
    assert labels.BLANK.keys() == read
    assert labels.encode(SERVER).keys() == read


@pytest.mark.parametrize("devices", [(), ("GPU-0", "GPU-1")])
def test_labels_of_an_image_change_nothing_of_the_record(devices: tuple[str, ...]) -> None:
    """A CPU server's record stays one of no device, whatever its image claims."""
    record = ServerLabels(
        SERVER.hub, SERVER.holder, SERVER.project, SERVER.workspace, SERVER.created_at, devices, devices
    )
    merged = dict.fromkeys(labels.BLANK, "all") | labels.encode(record)
    assert labels.decode(merged) == record
    assert labels.devices_of(merged) == devices


def test_a_container_that_is_nobodys_stays_so() -> None:
    """What looks into an image is no server of anybody and has no device, whatever the image claims."""
    merged = labels.encode(SERVER) | {labels.GPU_UUIDS: "all", labels.HUB_USER: "bob"} | labels.BLANK
    assert labels.decode(merged) is None
    assert labels.devices_of(merged) == ()
    assert owner_of(Container("1", "looker", "running", merged)) == "looker"
