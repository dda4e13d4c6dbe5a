"""What a look says in each scenario of the fake driver."""

import asyncio
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import pynvml
import pytest

from ds01_spawner.adapters import nvmlread
from ds01_spawner.adapters.nvml import Nvml
from ds01_spawner.core.model import Health
from ds01_spawner.testing import nvml as fakes
from ds01_spawner.testing.nvml import FakeProcess, gpu, instance

NOW = 1_800_000_000.0


@pytest.fixture
def loaded(tmp_path: Path) -> Path:
    """The file that a loaded kernel driver shows."""
    path = tmp_path / "version"
    path.write_text("NVRM version\n")
    return path


def nvml(library: fakes.FakeNvml, tmp_path: Path) -> Nvml:
    """A reader of a fake driver, on a machine where no kernel driver is loaded."""
    return Nvml(library=library, clock=lambda: NOW, loaded_driver=tmp_path / "absent", timeout_seconds=2)


async def test_no_driver_means_no_devices(tmp_path: Path) -> None:
    """On a machine without NVIDIA the hub runs, has no device, and says why."""
    look = await nvml(fakes.no_driver(), tmp_path).look()
    assert look.devices == ()
    assert look.processes == ()
    assert "not installed" in look.problem


async def test_no_library_under_a_loaded_driver_is_unreadable(loaded: Path) -> None:
    """If the kernel driver runs and its library is gone, GPUs may be in use: that is not "no devices"."""
    look = await Nvml(library=fakes.no_driver(), loaded_driver=loaded).look()
    assert look.devices is None


async def test_library_removed_while_the_hub_runs_is_unreadable(tmp_path: Path) -> None:
    """GPUs that were there do not become "no devices" because a package is being upgraded."""
    library = fakes.healthy()
    reader = nvml(library, tmp_path)
    await reader.look()
    library.init_error = pynvml.NVMLError_LibraryNotFound()
    assert (await reader.look()).devices is None


@pytest.mark.parametrize(
    ("make", "step"),
    [(fakes.driver_not_loaded, "nvidia-smi"), (fakes.driver_upgraded, "reboot the host")],
)
async def test_a_driver_that_does_not_answer_is_unreadable(
    make: Callable[[], fakes.FakeNvml], step: str, tmp_path: Path
) -> None:
    """Unreadable is not empty, and the sentence says what to do."""
    look = await nvml(make(), tmp_path).look()
    assert look.devices is None
    assert look.processes is None
    assert step in look.problem


async def test_recovery_needs_no_restart(tmp_path: Path) -> None:
    """When the driver answers again, the next look sees the devices."""
    library = fakes.driver_upgraded()
    reader = nvml(library, tmp_path)
    assert (await reader.look()).devices is None
    library.init_error = None
    library.gpus = fakes.healthy().gpus
    look = await reader.look()
    assert len(look.devices) == 2
    assert look.problem == ""


@pytest.mark.parametrize(
    ("make", "health", "words"),
    [
        (fakes.uncorrectable_errors, Health.UNHEALTHY, "3 uncorrectable memory errors"),
        (fakes.rows_pending, Health.UNHEALTHY, "next reset"),
        (fakes.rows_failed, Health.UNHEALTHY, "needs repair"),
        (fakes.pages_pending, Health.UNHEALTHY, "next reset"),
        (fakes.reset_required, Health.UNHEALTHY, "needs a reset"),
        (fakes.memory_unreadable, Health.UNKNOWN, "Unknown Error"),
        (fakes.processes_unreadable, Health.UNKNOWN, "processes cannot be listed"),
        (fakes.old_driver, Health.UNKNOWN, "too old"),
        (fakes.consumer, Health.HEALTHY, ""),
    ],
)
async def test_health(make: Callable[[], fakes.FakeNvml], health: Health, words: str, tmp_path: Path) -> None:
    """Each fault that can be read gives its health and a reason; what a GPU does not offer is no fault."""
    look = await nvml(make(), tmp_path).look()
    assert look.devices[0].health is health
    assert words in look.devices[0].reason
    assert words in look.problem
    assert all(device.health is Health.HEALTHY for device in look.devices[1:])


async def test_an_unreadable_gpu_keeps_what_was_known_of_it(tmp_path: Path) -> None:
    """A GPU that stops answering stays listed with its name and memory, and is not granted."""
    library = fakes.healthy()
    reader = nvml(library, tmp_path)
    before = (await reader.look()).devices
    library.gpus[1].errors["nvmlDeviceGetMigMode"] = pynvml.NVMLError_Unknown()
    after = (await reader.look()).devices
    assert after[0] == before[0]
    assert (after[1].uuid, after[1].memory_bytes) == (before[1].uuid, before[1].memory_bytes)
    assert after[1].health is Health.UNKNOWN


@pytest.mark.parametrize("vanish", ["", "no longer listed"], ids=["still listed", "no longer listed"])
async def test_a_gpu_that_fell_off_the_bus_stays_in_the_list(vanish: str, tmp_path: Path) -> None:
    """A lost GPU is unhealthy with the reason, whether the driver still counts it or not; the others go on."""
    library = fakes.healthy()
    reader = nvml(library, tmp_path)
    before = (await reader.look()).devices
    if vanish:
        del library.gpus[0]
    else:
        library.gpus[0].errors["*"] = pynvml.NVMLError_GpuIsLost()
    look = await reader.look()
    devices = {device.uuid: device for device in look.devices}
    assert devices[before[0].uuid].health is Health.UNHEALTHY
    assert devices[before[1].uuid].health is Health.HEALTHY
    assert look.problem


async def test_a_gpu_lost_before_the_start_is_reported(tmp_path: Path) -> None:
    """A GPU whose UUID was never read cannot be listed, so the problem tells of it."""
    look = await nvml(fakes.lost(), tmp_path).look()
    assert [device.uuid for device in look.devices] == [gpu(0).uuid]
    assert "1 of 2 GPUs cannot be read" in look.problem
    assert "fell off the bus" in look.problem


async def test_mig_instances_take_the_place_of_their_gpu(tmp_path: Path) -> None:
    """Every instance is a device with profile, slices and parent; the GPU it is cut from is none."""
    look = await nvml(fakes.mig(), tmp_path).look()
    facts = [(d.index, d.kind, d.gpu_equivalents, d.parent) for d in look.devices]
    parent = gpu(1).uuid
    assert facts == [
        ("0", "gpu", Fraction(1), ""),
        ("1.0", "1g.5gb", Fraction(1, 7), parent),
        ("1.2", "2g.10gb", Fraction(2, 7), parent),
        ("1.3", "3g.20gb", Fraction(3, 7), parent),
    ]
    assert look.devices[1].name == "NVIDIA A100-PCIE-40GB"
    assert look.devices[1].memory_bytes == 5 * fakes.GIB


async def test_mig_without_instances_is_no_device(tmp_path: Path) -> None:
    """A GPU with MIG on and nothing cut is not handed out."""
    look = await nvml(fakes.mig_without_instances(), tmp_path).look()
    assert look.devices == ()
    assert look.problem == ""


async def test_mig_instances_removed_by_an_admin_vanish(tmp_path: Path) -> None:
    """A changed MIG layout is no fault: the old instances go, the new ones come, and MIG off brings the GPU back."""
    library = fakes.mig()
    reader = nvml(library, tmp_path)
    await reader.look()
    library.gpus[1].instances = [instance(9, "7g.40gb")]
    assert [d.kind for d in (await reader.look()).devices] == ["gpu", "7g.40gb"]
    library.gpus[1].mig, library.gpus[1].instances = False, []
    look = await reader.look()
    assert [d.kind for d in look.devices] == ["gpu", "gpu"]
    assert look.problem == ""


async def test_mig_instances_of_a_lost_gpu_are_unhealthy(tmp_path: Path) -> None:
    """When their GPU is lost, the instances it had are listed as unhealthy."""
    library = fakes.mig()
    reader = nvml(library, tmp_path)
    before = (await reader.look()).devices
    library.gpus[1].errors["*"] = pynvml.NVMLError_GpuIsLost()
    after = (await reader.look()).devices
    assert [d.uuid for d in after] == [d.uuid for d in before]
    assert [d.health for d in after] == [Health.HEALTHY, *[Health.UNHEALTHY] * 3]


async def test_memory_faults_of_the_gpu_are_those_of_its_instances(tmp_path: Path) -> None:
    """An instance is as ill as the GPU it is cut from."""
    library = fakes.mig()
    library.gpus[1].ecc_errors = 1
    look = await nvml(library, tmp_path).look()
    assert [d.health for d in look.devices] == [Health.HEALTHY, *[Health.UNHEALTHY] * 3]


@pytest.mark.parametrize(
    ("name", "profile", "slices"),
    [
        ("NVIDIA A100-SXM4-80GB MIG 1c.3g.40gb", "1c.3g.40gb", 1),
        ("NVIDIA H200 MIG 1g.18gb+me", "1g.18gb+me", 1),
        ("NVIDIA H200", "3g.71gb", 1),
    ],
)
async def test_mig_profile_from_name_or_size(name: str, profile: str, slices: int, tmp_path: Path) -> None:
    """The profile is the driver's word for it; where the name has none, slices and memory give it."""
    cut = instance(0, "3g.71gb", name=name, compute_slices=1)
    look = await nvml(fakes.FakeNvml(gpu(0, mig=True, instances=[cut])), tmp_path).look()
    assert (look.devices[0].mig_profile, look.devices[0].mig_slices) == (profile, slices)


async def test_processes_of_every_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compute, graphics and MPS processes are listed once each, with owner and container; memory may be unknown."""
    monkeypatch.setattr(nvmlread, "owner_of", lambda pid: f"user{pid}")
    monkeypatch.setattr(nvmlread, "container_of", lambda pid: "c" * 64 if pid == 2 else "")
    library = fakes.FakeNvml(
        gpu(
            processes=[
                FakeProcess(3, None, "mps"),
                FakeProcess(1, 100),
                FakeProcess(2, 50, "graphics"),
                FakeProcess(1, 400, "graphics"),
                FakeProcess(4, None),
                FakeProcess(4, 7, "mps"),
                FakeProcess(5, 900),
                FakeProcess(5, 10, "graphics"),
                FakeProcess(5, None, "mps"),
            ]
        )
    )
    look = await nvml(library, tmp_path).look()
    assert [(p.pid, p.memory_bytes, p.owner, p.container_id) for p in look.processes] == [
        (1, 400, "user1", ""),
        (2, 50, "user2", "c" * 64),
        (3, None, "user3", ""),
        (4, 7, "user4", ""),
        (5, 900, "user5", ""),
    ]


async def test_processes_of_mig_instances(tmp_path: Path) -> None:
    """A process is on the instance it runs on, not on the whole GPU."""
    library = fakes.mig()
    cut = library.gpus[1].instances[2]
    cut.processes.append(FakeProcess(7))
    look = await nvml(library, tmp_path).look()
    assert [(p.pid, p.device) for p in look.processes] == [(7, cut.uuid)]


async def test_unused_memory_reads_near_zero(tmp_path: Path) -> None:
    """What the driver reserves for itself is not memory in use; on an older driver it cannot be told apart."""
    library = fakes.healthy(1)
    reader = nvml(library, tmp_path)
    assert (await reader.look()).memory_used_bytes == {gpu(0).uuid: 0}
    library.gpus[0].errors["nvmlDeviceGetMemoryInfo_v2"] = pynvml.NVMLError_FunctionNotFound()
    assert (await reader.look()).memory_used_bytes == {gpu(0).uuid: fakes.GIB // 2}


async def test_a_hanging_driver_is_unreadable_and_blocks_nobody(tmp_path: Path) -> None:
    """While the driver hangs, looks say so; when it answers again, they go on."""
    library = fakes.hanging()
    reader = Nvml(library=library, timeout_seconds=0.05, loaded_driver=tmp_path / "absent")
    looks = await asyncio.gather(reader.look(), reader.look())
    assert [look.devices for look in looks] == [None, None]
    assert "no answer within 0.05 seconds" in looks[0].problem
    assert await reader.utilisation(gpu(0).uuid, 10) is None
    assert library.calls == 1
    library.release()
    while (look := await reader.look()).devices is None:  # noqa: ASYNC110 - a thread goes on
        await asyncio.sleep(0)
    assert len(look.devices) == 2
    assert library.at_once == 1


async def test_an_unforeseen_failure_of_the_binding_is_unreadable(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A binding that breaks in its own way does not break the hub."""
    library = fakes.healthy()
    library.gpus[0].errors["nvmlDeviceGetName"] = UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad")
    look = await nvml(library, tmp_path).look()
    assert look.devices is None
    assert "UnicodeDecodeError" in look.problem
    assert library.sessions == 0
    assert "unforeseen" in caplog.text


async def test_utilisation_is_the_mean_of_the_window(tmp_path: Path) -> None:
    """Samples inside the window count, older ones do not."""
    library = fakes.FakeNvml(gpu(samples=[(NOW - 30, 100), (NOW - 9, 20), (NOW - 5, 40), (NOW - 1, 60)]))
    reader = nvml(library, tmp_path)
    assert await reader.utilisation(gpu(0).uuid, 10) == 40
    assert await reader.utilisation(gpu(0).uuid, 2) == 60
    assert await reader.utilisation(gpu(0).uuid, 0.5) is None
    assert library.sessions == 0


async def test_utilisation_of_a_mig_instance_is_unknown(tmp_path: Path) -> None:
    """NVML has no utilisation of instances; unknown is not idle."""
    library = fakes.mig()
    assert await nvml(library, tmp_path).utilisation(library.gpus[1].instances[0].uuid, 10) is None
