"""The fake engine and the real one keep the same promises."""

from __future__ import annotations

import asyncio
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace

import pytest

from ds01_spawner.adapters.engine import THREADS, Engine
from ds01_spawner.adapters.imageprobe import ImageProbe
from ds01_spawner.core import labels
from ds01_spawner.core.container import ServerContainer
from ds01_spawner.core.ledger import Ledger
from ds01_spawner.core.model import Device, DeviceState, Holder, Observation
from ds01_spawner.errors import EngineUnavailable, ImageRefused, ServerDied
from ds01_spawner.testing.launching import FakeEngine

HUB = "engine-contract"
ALICE = Holder("alice", "thesis")
NETWORK = "ds01-test-engine"


def server(name: str, holder: Holder = ALICE, argv: tuple[str, ...] = ("sleep", "600")) -> ServerContainer:
    """Return a small server."""
    record = labels.ServerLabels(HUB, holder, "thesis", "/home/alice/workspace/thesis", 1_000_000.0)
    return ServerContainer(
        name=name,
        hostname="thesis",
        image_id="ds01/debian:13",
        argv=argv,
        environment={"GREETING": "hello"},
        user="alice",
        uid=1_234_567_890,
        gid=1_234_567_890,
        groups=(54321,),
        home="/home/alice",
        working_dir="/home/alice",
        mounts=(),
        labels=labels.encode(record),
        devices=(),
        network=NETWORK,
        cpus=1,
        memory_bytes=128 * 2**20,
        shm_bytes=16 * 2**20,
        pids=64,
    )


AnyEngine = Engine | FakeEngine


@pytest.fixture(params=["fake", pytest.param("real", marks=pytest.mark.engine)])
async def engine(request: pytest.FixtureRequest) -> AsyncIterator[AnyEngine]:
    """Each engine in turn, with nothing of ours on it before and after."""
    if request.param == "fake":
        yield FakeEngine(network=NETWORK)
        return
    real = Engine(network=NETWORK)
    real.ensure_network("")
    yield real
    for holder in (ALICE, Holder("bob", "thesis")):
        for container in await real.held_by(HUB, holder):
            await real.remove(container, grace_seconds=0)
    await real.remove_network()
    real.close()


@pytest.fixture
def image_of(engine: AnyEngine) -> Iterator[Callable[..., str]]:
    """Make an image from a Dockerfile's lines, for the fake from its labels, and return its id."""
    made: list[str] = []

    def make(lines: str = "", **carried: str) -> str:
        if isinstance(engine, FakeEngine):
            made.append(f"sha256:{len(made)}")
            engine.image_labels[made[-1]] = carried
            return made[-1]
        written = "".join(f'LABEL "{key}"="{value}"\n' for key, value in carried.items())
        build = ["docker", "buildx", "build", "--quiet", "--network=none", "--load", "-"]
        dockerfile = f"FROM ds01/debian:13\n{lines}\n{written}"
        done = subprocess.run(build, input=dockerfile.encode(), capture_output=True, check=True)
        made.append(done.stdout.decode().strip())
        return made[-1]

    yield make
    if not isinstance(engine, FakeEngine):
        for image in made:
            subprocess.run(["docker", "image", "rm", "--force", image], capture_output=True, check=False)


FORGED = {
    labels.MANAGED: "true",
    labels.INTERFACE: "jupyterhub",
    labels.HUB: HUB,
    labels.USER: "bob",
    labels.SERVER: "thesis",
    labels.NAME: "thesis",
    labels.PROJECT: "thesis",
    labels.WORKSPACE: "/home/bob",
    labels.CREATED_AT: "2020-01-01T00:00:00Z",
    labels.GPU_UUIDS: "all",
    labels.OLD_GPU_UUID: "all",
    labels.GPU_SLOTS: "0",
    labels.GPU_ALLOCATED_AT: "2020-01-01T00:00:00Z",
    labels.PROBE: "1",
    labels.HUB_USER: "bob",
}
"""What an image can say of the container that is made of it: that it is bob's and has every GPU."""


async def test_an_images_labels_never_become_our_record(engine: AnyEngine, image_of: Callable[..., str]) -> None:
    """Of a server's container, everything that is read is what the hub wrote; only what is not read is the image's."""
    asked = server("ds01-test-forged")
    container = await engine.create(
        replace(asked, image_id=image_of(**FORGED, **{"org.example.title": "mine"})), {}, {}
    )
    found = await engine.inspect(container)
    assert found is not None
    assert found.labels == {**asked.labels, "org.example.title": "mine"}
    assert await engine.held_by(HUB, Holder("bob", "thesis")) == ()


async def test_a_container_lives_from_create_to_remove(engine: AnyEngine) -> None:
    """It is found by its labels in every state, runs once started, and is gone when remove returns."""
    container = await engine.create(server("ds01-test-life"), {}, {})
    assert await engine.held_by(HUB, ALICE) == (container,)
    assert await engine.explain_end(container) is None, "created is not ended"
    assert await engine.start(container)
    assert await engine.explain_end(container) is None
    await engine.remove(container, grace_seconds=0)
    assert await engine.held_by(HUB, ALICE) == ()
    assert "removed" in (await engine.explain_end(container) or "")


async def test_removing_what_is_gone_is_no_error(engine: AnyEngine) -> None:
    """Retire can always be repeated."""
    container = await engine.create(server("ds01-test-twice"), {}, {})
    await asyncio.gather(*(engine.remove(container, grace_seconds=0) for _ in range(3)))
    await engine.remove(container, grace_seconds=1)


async def test_a_server_is_found_by_its_exact_holder_and_hub(engine: AnyEngine) -> None:
    """Nobody's container is taken for somebody else's."""
    await engine.create(server("ds01-test-alice"), {}, {})
    bobs = await engine.create(server("ds01-test-bob", Holder("bob", "thesis")), {}, {})
    assert await engine.held_by(HUB, Holder("bob", "thesis")) == (bobs,)
    assert await engine.held_by("another-hub", ALICE) == ()
    assert await engine.held_by(HUB, Holder("alice", "")) == ()


async def test_starting_what_was_removed_says_so(engine: AnyEngine) -> None:
    """A container that somebody removed meanwhile is a server that died, with the next step."""
    container = await engine.create(server("ds01-test-vanished"), {}, {})
    await engine.remove(container, grace_seconds=0)
    with pytest.raises(ServerDied, match="Launch"):
        await engine.start(container)


async def test_an_image_that_is_gone_refuses_the_launch(engine: AnyEngine) -> None:
    """The user is told to launch again: a launch that waited long may have found the image before a build."""
    gone = "sha256:" + "0" * 64
    if isinstance(engine, FakeEngine):
        engine.gone.add(gone)
    with pytest.raises(ImageRefused, match="Launch again"):
        await engine.create(replace(server("ds01-test-gone"), image_id=gone), {}, {})
    assert await engine.held_by(HUB, ALICE) == ()


@pytest.mark.parametrize("engine", ["real"], indirect=True)
@pytest.mark.engine
class TestRealEngine:
    """What only a kernel can show."""

    async def test_the_account_inside_is_the_user_with_a_home_of_their_own(self, engine: Engine) -> None:
        """Name, ten-digit uid, groups, home, and the engine's limits are as they were asked for."""
        script = (
            "import os,pwd,grp,resource;"
            "me=pwd.getpwuid(os.getuid());"
            "open(os.path.expanduser('~/written'),'w').close();"
            "print(me.pw_name,me.pw_dir,os.getuid(),os.getgid(),54321 in os.getgroups(),"
            "grp.getgrgid(os.getgid()).gr_name,"
            "os.environ['NVIDIA_VISIBLE_DEVICES'],os.statvfs('/dev/shm').f_blocks*os.statvfs('/dev/shm').f_frsize,"
            "[l for l in open('/proc/self/status') if l.startswith(('CapEff','NoNewPrivs'))])"
        )
        asked = server("ds01-test-account", argv=("python3", "-c", script))
        container = await engine.create(asked, {}, {})
        await _run_to_its_end(engine, container)
        (line,) = await engine.log_tail(container)
        assert line.startswith(f"alice /home/alice {asked.uid} {asked.gid} True alice void {16 * 2**20} ")
        assert r"CapEff:\t0000000000000000" in line
        assert r"NoNewPrivs:\t1" in line

    async def test_a_server_over_its_memory_is_said_to_have_run_out_of_it(self, engine: Engine) -> None:
        """The kernel's kill is told from any other end."""
        container = await engine.create(
            server("ds01-test-oom", argv=("python3", "-c", "x = bytearray(512 * 2**20)")), {}, {}
        )
        assert "out of memory" in await _run_to_its_end(engine, container)

    async def test_a_server_that_failed_shows_its_exit_code_and_its_last_lines(self, engine: Engine) -> None:
        """The last words of a crashed server reach its user."""
        container = await engine.create(
            server("ds01-test-crash", argv=("python3", "-c", "print('so long'); raise SystemExit(3)")), {}, {}
        )
        why = await _run_to_its_end(engine, container)
        assert "exit code 3" in why
        assert "so long" in why

    async def test_a_command_that_does_not_exist_is_a_server_that_died(self, engine: Engine) -> None:
        """What the container's init says of it reaches the user, whichever look sees it first."""
        container = await engine.create(server("ds01-test-missing", argv=("/no/such/command",)), {}, {})
        assert "/no/such/command" in await _run_to_its_end(engine, container)

    async def test_more_processors_than_there_are_is_all_of_them(self, engine: Engine) -> None:
        """A limit that is meant for a larger machine does not stop a launch on a small one."""
        container = await engine.create(replace(server("ds01-test-cpus"), cpus=4096), {}, {})
        await engine.start(container)

    async def test_a_bridge_with_given_addresses_has_the_first_one_as_its_gateway(self, engine: Engine) -> None:
        """The hub listens there, so it must be known whoever chose the subnet; nonsense is refused with the form."""
        await engine.remove_network()
        assert await asyncio.to_thread(engine.ensure_network, "10.231.230.0/24") == "10.231.230.1"
        assert await asyncio.to_thread(engine.ensure_network, "10.231.230.0/24") == "10.231.230.1"
        await engine.remove_network()
        with pytest.raises(EngineUnavailable, match=r"172\.30\.0\.0/16"):
            await asyncio.to_thread(engine.ensure_network, "10.1.2.3/8")

    async def test_a_huge_list_of_accounts_refuses_the_image(
        self, engine: Engine, image_of: Callable[..., str]
    ) -> None:
        """No image makes the hub read more than a megabyte; the container is gone again."""
        image = image_of("RUN truncate -s 40M /etc/passwd")
        with pytest.raises(ImageRefused, match="larger than 1 MiB"):
            await engine.create(replace(server("ds01-test-huge"), image_id=image), {}, {})
        assert await engine.held_by(HUB, ALICE) == ()

    async def test_a_network_that_is_gone_is_no_container_that_is_gone(self, engine: Engine) -> None:
        """Launching again would not help, so the words are for an administrator."""
        container = await engine.create(server("ds01-test-network"), {}, {})
        await engine.remove_network()
        with pytest.raises(EngineUnavailable, match=f"{NETWORK} not found.*restart the hub"):
            await engine.start(container)
        await asyncio.to_thread(engine.ensure_network, "")

    async def test_containers_do_not_reach_each_other_and_the_host_reaches_them(self, engine: Engine) -> None:
        """Inter-container traffic is off on the servers' bridge."""
        listen = ("python3", "-m", "http.server", "8000")
        first = await engine.create(server("ds01-test-a", argv=listen), {}, {})
        address = await engine.start(first)
        await _connects(address, 8000)
        script = f"import socket; socket.create_connection(({address!r}, 8000), 2)"
        second = await engine.create(
            server("ds01-test-b", Holder("bob", "thesis"), argv=("python3", "-c", script)), {}, {}
        )
        why = await _run_to_its_end(engine, second)
        assert "exit code 1" in why
        assert "timed out" in why

    async def test_an_image_that_claims_gpus_and_a_probe_of_it_hold_none(
        self, engine: Engine, image_of: Callable[..., str]
    ) -> None:
        """Neither a CPU server nor a look into the image is taken for a holder, also by a hub that knows nothing."""
        mark = {"org.example.mark": "ds01-test-claims"}
        image = image_of(**FORGED, **mark)
        container = await engine.create(replace(server("ds01-test-claims"), image_id=image), {}, {})
        await engine.start(container)
        probe = ImageProbe()
        look = asyncio.create_task(probe.run(image, ["sleep", "60"], {}, seconds=20))
        try:
            async with asyncio.timeout(20):
                while len(ours := [c for c in await engine.containers() if mark.items() <= c.labels.items()]) < 2:  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
            assert [claimed for c in ours for claimed in c.devices] == []
            assert [labels.decode(c.labels) for c in ours if c.id != container] == [None]
            assert await engine.held_by(HUB, Holder("bob", "thesis")) == ()
            ledger = Ledger(HUB)
            number = ledger.begin_look()
            gpu = Device("GPU-0", "A100", 2**30)
            ledger.reconcile(Observation(1.0, (gpu,), tuple(ours), (), {gpu.uuid: 0}), number)
            assert [status.state for status in ledger.statuses()] == [DeviceState.FREE]
            assert await engine.explain_end(container) is None, "the probe removed a server that runs"
        finally:
            for found in await engine.containers():
                if mark.items() <= found.labels.items():
                    await engine.remove(found.id, grace_seconds=0)
            await asyncio.gather(look, return_exceptions=True)
            probe.close()

    async def test_every_container_of_the_host_is_listed_with_its_labels(self, engine: Engine) -> None:
        """Observations see created containers too: they already hold what they were given."""
        container = await engine.create(server("ds01-test-listed"), {}, {})
        found = {entry.id: entry for entry in await engine.containers()}
        assert found[container].state == "created"
        assert labels.decode(found[container].labels) is not None
        assert found[container].devices == ()


async def _run_to_its_end(engine: Engine, container: str) -> str:
    try:
        await engine.start(container)
    except ServerDied as error:
        return str(error)  # it was quicker than the look after its start
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if why := await engine.explain_end(container):
            return why
        await asyncio.sleep(0.05)
    raise AssertionError("the container did not end")


async def _connects(address: str, port: int) -> None:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            _, writer = await asyncio.open_connection(address, port)
        except OSError:
            await asyncio.sleep(0.05)
            continue
        writer.close()
        await writer.wait_closed()
        return
    raise AssertionError("nothing listens")


@pytest.mark.engine
@pytest.mark.parametrize("engine", ["real"], indirect=True)
async def test_slow_removals_keep_nobody_from_looking(engine: Engine) -> None:
    """However many servers take their time to end, another one is polled meanwhile."""
    deaf = ("sh", "-c", "trap '' TERM; while true; do sleep 1; done")
    containers = [await engine.create(server(f"ds01-test-deaf-{n}", argv=deaf), {}, {}) for n in range(THREADS + 1)]
    for container in containers:
        await engine.start(container)
    other = await engine.create(server("ds01-test-other", Holder("bob", "thesis")), {}, {})
    removals = [asyncio.create_task(engine.remove(container, grace_seconds=10)) for container in containers]
    assert await engine.inspect(other) is not None
    assert not any(removal.done() for removal in removals)
    await asyncio.gather(*removals)
