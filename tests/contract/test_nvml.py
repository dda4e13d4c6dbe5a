"""What every NVML must hold to: the same tests run on the fake, and on the real driver where there is one."""

import asyncio
import os
import re
from collections.abc import Callable
from pathlib import Path

import pynvml
import pytest

from ds01_spawner.adapters.nvml import DeviceLook, Nvml, SimulatedDevices, simulated_uuid
from ds01_spawner.core.claims import Inventory
from ds01_spawner.core.model import Health
from ds01_spawner.testing import nvml as fakes


def a_driver_answers() -> bool:
    """Whether this machine has an NVIDIA driver that lists a GPU."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return False
    try:
        return pynvml.nvmlDeviceGetCount() > 0
    except pynvml.NVMLError:
        return False
    finally:
        pynvml.nvmlShutdown()


REAL = pytest.param(
    None, id="real", marks=[pytest.mark.gpu, pytest.mark.skipif(not a_driver_answers(), reason="needs an NVIDIA GPU")]
)


@pytest.fixture(params=[*(pytest.param(make, id=make.__name__) for make in fakes.SCENARIOS), REAL])
def any_nvml(request: pytest.FixtureRequest, tmp_path: Path) -> Nvml:
    """Each scenario of the fake, and the real driver."""
    return Nvml() if request.param is None else Nvml(library=request.param(), loaded_driver=tmp_path / "version")


@pytest.fixture(params=[pytest.param(fakes.healthy, id="fake"), REAL])
def working_nvml(request: pytest.FixtureRequest) -> Nvml:
    """A driver that works: the fake, and the real one."""
    return Nvml() if request.param is None else Nvml(library=request.param())


def check(look: DeviceLook) -> None:
    """Every look, good or bad, is consistent in itself."""
    if look.devices is None:
        assert look.problem
        assert look.processes is None
        return
    uuids = [device.uuid for device in look.devices]
    assert len(set(uuids)) == len(uuids)
    for device in look.devices:
        assert device.uuid.startswith("MIG-" if device.mig_profile else "GPU-")
        assert bool(device.mig_profile) == bool(device.parent) == bool(device.mig_slices)
        assert (device.health is Health.HEALTHY) == (not device.reason)
        if device.health is Health.HEALTHY:
            assert device.memory_bytes > 0
            assert 0 <= look.memory_used_bytes[device.uuid] <= device.memory_bytes
        else:
            assert device.reason in look.problem
    assert set(look.memory_used_bytes) <= set(uuids)
    assert {process.device for process in look.processes} <= set(uuids)
    if not look.devices and not look.problem:
        assert not look.processes


async def test_every_look_is_consistent(any_nvml: Nvml) -> None:
    """Whatever the driver does, a look never raises and what it says fits together, twice in a row."""
    first, second = await any_nvml.look(), await any_nvml.look()
    check(first)
    check(second)
    assert first.devices == second.devices


async def test_a_working_driver_has_no_problem(working_nvml: Nvml) -> None:
    """Devices are listed, healthy, with memory, in the driver's order, and there is nothing to report."""
    look = await working_nvml.look()
    assert look.devices
    assert look.problem == ""
    assert all(device.health is Health.HEALTHY for device in look.devices)
    indices = [tuple(map(int, device.index.split("."))) for device in look.devices]
    assert indices == sorted(indices)


async def test_many_looks_at_once(working_nvml: Nvml) -> None:
    """Ten callers at once all get the same answer."""
    looks = await asyncio.gather(*(working_nvml.look() for _ in range(10)))
    assert {look.devices for look in looks} == {looks[0].devices}


async def test_utilisation_is_a_percentage_or_unknown(working_nvml: Nvml) -> None:
    """A device's utilisation is between 0 and 100; that of a device that does not exist is unknown."""
    look = await working_nvml.look()
    for device in look.devices:
        percent = await working_nvml.utilisation(device.uuid, 15)
        assert percent is None or 0 <= percent <= 100
    assert await working_nvml.utilisation("GPU-00000000-0000-0000-0000-000000000000", 15) is None


async def test_looking_does_not_use_a_device(working_nvml: Nvml) -> None:
    """The looker itself is never among the processes it finds."""
    look = await working_nvml.look()
    assert os.getpid() not in {process.pid for process in look.processes}


@pytest.mark.parametrize("make", fakes.SCENARIOS)
async def test_every_session_is_closed(make: Callable[[], fakes.FakeNvml], tmp_path: Path) -> None:
    """After any look, however it went, no session is left open and no two calls were ever made at once."""
    library = make()
    nvml = Nvml(library=library, loaded_driver=tmp_path / "version")
    await asyncio.gather(nvml.look(), nvml.look(), nvml.utilisation("GPU-x", 10))
    assert library.sessions == 0
    assert library.at_once == 1


async def test_simulated_devices_look_like_real_ones() -> None:
    """Simulated devices satisfy the same contract, and their names say what they are."""
    simulated = SimulatedDevices("lab", 2, mig_profiles=("1g.5gb", "2g.10gb"))
    look = await simulated.look()
    check(look)
    assert [device.index for device in look.devices] == ["0", "1", "2.0", "2.1"]
    assert all("imulated" in device.name and "simulated" in device.uuid for device in look.devices)
    assert await simulated.utilisation(look.devices[0].uuid, 10) == 0
    assert await simulated.utilisation(look.devices[2].uuid, 10) is None
    assert await simulated.utilisation("GPU-x", 10) is None


@pytest.mark.parametrize("other", ["lab", "lab-0", "lab-1", "labs", "la", "Lab", ""])
async def test_simulated_devices_of_two_hubs_are_different_ones(other: str) -> None:
    """Whatever two hubs on a host are called, what one holds occupies nothing of the other's; of its own it does."""
    mine = (await SimulatedDevices("lab", 12, mig_profiles=("1g.5gb",)).look()).devices
    theirs = (await SimulatedDevices(other, 12, mig_profiles=("1g.5gb",)).look()).devices
    assert mine is not None
    assert theirs is not None
    inventory = Inventory(mine)
    for device in theirs:
        for claim in (device.uuid, f"nvidia.com/gpu={device.uuid}"):
            assert inventory.resolve(claim) == ({device.uuid} if other == "lab" else set())


def test_a_simulated_device_has_a_name_that_cdi_allows() -> None:
    """A CDI device's name begins and ends with a letter or a digit, whatever the hub is called."""
    for hub in ("lab", "", "ein Büro, mit Komma!", "x" * 300):
        assert re.fullmatch(r"[A-Za-z0-9][\w.:-]*[A-Za-z0-9]", simulated_uuid(hub, 0), re.ASCII)
