"""Docker Engine: what containers exist, and making and removing ours.

Every call runs in a pool of threads of its own.  DockerSpawner's shared single thread made one slow ``stop`` hold up
every other server; order per container is kept by whoever calls (the spawner has one lock per container).
"""

from __future__ import annotations

import io
import tarfile
import time
from contextlib import closing
from dataclasses import dataclass
from ipaddress import ip_network
from typing import Any

import docker
import requests
from docker.errors import APIError, ImageNotFound, NotFound
from docker.types import DeviceRequest, IPAMConfig, IPAMPool, LogConfig
from docker.types import Mount as DockerMount

from ds01_spawner.adapters.dockerclient import DockerClient
from ds01_spawner.adapters.gpuclaims import CDI_KIND, cdi_devices, device_claims
from ds01_spawner.adapters.siteextras import add_to_create, add_to_host
from ds01_spawner.core import labels
from ds01_spawner.core.container import CLEAN_END, ServerContainer, add_account
from ds01_spawner.core.model import Container, Holder
from ds01_spawner.errors import EngineUnavailable, ImageRefused, ServerDied

THREADS = 16
NOT_RUNNING = frozenset({"exited", "dead"})
LOG_BYTES = 10 * 2**20
SIGKILL_EXIT = 137
ACCOUNT_FILE_BYTES = 2**20
KNOWN_IMAGES = 100
NO_DEVICE_DRIVER = "could not select device driver"


@dataclass(frozen=True, slots=True)
class ContainerStatus:
    """One look at a container.

    Attributes:
        id: the engine's full id.
        name: without the leading slash.
        state: created, running, paused, restarting, removing, exited or dead.
        exit_code: of the last run; meaningful when exited.
        out_of_memory: whether the kernel killed it at its memory limit.
        error: the engine's own word when it could not start it.
        labels: every label.
        address: IP on the given network, empty until it runs.
    """

    id: str
    name: str
    state: str
    exit_code: int
    out_of_memory: bool
    error: str
    labels: dict[str, str]
    address: str

    @property
    def ended(self) -> bool:
        """Whether it ran and will not run again by itself; every other state still holds its devices."""
        return self.state in NOT_RUNNING


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """One image on this host.

    Attributes:
        id: content id.
        labels: every label.
        environment: the image's own ENV.
        size_bytes: as the engine reports it.
    """

    id: str
    labels: dict[str, str]
    environment: dict[str, str]
    size_bytes: int


class Engine:
    """The Docker Engine of this host.

    Args:
        network: the bridge on which servers live.
        options: arguments for ``docker.APIClient``; the environment (``DOCKER_HOST``) decides when empty.
        simulated: whether devices exist in name only: those without a CDI specification are not asked of the engine.
    """

    def __init__(self, *, network: str, options: dict[str, Any] | None = None, simulated: bool = False) -> None:
        self.network = network
        self._simulated = simulated
        self._docker = DockerClient("engine", THREADS, options)
        # A removal holds its thread until the server has ended; many slow ones must not keep anybody from looking.
        self._removals = DockerClient("removals", THREADS, options)
        self._accounts: dict[str, tuple[str, str]] = {}
        self._claims: dict[str, tuple[str, ...]] = {}

    # -- looking ------------------------------------------------------------------------------------------------

    async def inspect(self, container: str) -> ContainerStatus | None:
        """Return a container by id or name, ``None`` when the engine says that there is none.

        Raises:
            EngineUnavailable: nothing can be said about it; it is not known to be gone.
        """
        try:
            found = await self._docker.call(lambda client: client.inspect_container(container))
        except NotFound:
            return None
        return self._status(found)

    async def image(self, reference: str) -> ImageInfo | None:
        """Return an image by reference or id, ``None`` when it is not on this host."""
        try:
            found = await self._docker.call(lambda client: client.inspect_image(reference))
        except NotFound:
            return None
        config = found.get("Config") or {}
        return ImageInfo(
            id=found["Id"],
            labels=dict(config.get("Labels") or {}),
            environment=dict(item.partition("=")[::2] for item in config.get("Env") or ()),
            size_bytes=int(found.get("Size") or 0),
        )

    async def containers(self) -> tuple[Container, ...]:
        """Return every container of the host, in any state, with the devices that it was given.

        Raises:
            EngineUnavailable: the list could not be read completely.
        """
        return await self._docker.call(self._list)

    def _list(self, client: docker.APIClient) -> tuple[Container, ...]:
        found = []
        listed = client.containers(all=True)
        for entry in listed:
            claims = self._claims.get(entry["Id"])
            if claims is None:
                # What a container was given never changes during its life, so each is inspected once.
                try:
                    claims = device_claims(client.inspect_container(entry["Id"]))
                except NotFound:
                    continue
                self._claims[entry["Id"]] = claims
            found.append(
                Container(
                    id=entry["Id"],
                    name=(entry.get("Names") or ["/"])[0].removeprefix("/"),
                    state=entry["State"],
                    labels=dict(entry.get("Labels") or {}),
                    devices=claims,
                )
            )
        for gone in self._claims.keys() - {entry["Id"] for entry in listed}:
            self._claims.pop(gone, None)
        return tuple(found)

    async def held_by(self, hub: str, holder: Holder) -> tuple[str, ...]:
        """Return the ids of every container, in any state, that our labels give to one server of one hub."""
        wanted = [
            f"{labels.MANAGED}=true",
            f"{labels.HUB}={hub}",
            f"{labels.USER}={holder.user}",
            f"{labels.SERVER}={holder.server}",
        ]
        listed = await self._docker.call(lambda client: client.containers(all=True, filters={"label": wanted}))
        return tuple(entry["Id"] for entry in listed)

    async def log_tail(self, container: str, lines: int = 20) -> tuple[str, ...]:
        """Return the last lines that a container printed; empty when there are none or it is gone."""
        try:
            raw = await self._docker.call(lambda client: client.logs(container, tail=lines))
        except NotFound:
            return ()
        return tuple(raw.decode(errors="replace").splitlines())

    async def explain_end(self, container: str) -> str | None:
        """Say why a container does not run, ``None`` while it does (or is on its way up or down)."""
        status = await self.inspect(container)
        if status is None:
            return "The container was removed outside the hub. Launch the project again."
        if not status.ended:
            return None
        if status.out_of_memory:
            return (
                "The server ran out of memory and the kernel ended it. Launch again and load less at once, "
                "or ask for a higher memory limit."
            )
        tail = "\n".join(await self.log_tail(container))
        killed = " (killed from outside)" if status.exit_code == SIGKILL_EXIT else ""
        said = f" Its last lines were:\n{tail}" if tail else " It printed nothing."
        why = f" {status.error}." if status.error else ""
        ended = f"The server ended with exit code {status.exit_code}" if status.exit_code else CLEAN_END
        return f"{ended}{killed}.{why}{said}"

    # -- acting -------------------------------------------------------------------------------------------------

    async def create(self, server: ServerContainer, extra: dict[str, Any], extra_host: dict[str, Any]) -> str:
        """Create (not start) a server's container and return its id.

        A call that a thread has begun cannot be called back: who cancels this must await its end and remove what it
        made (``asyncio.shield``).

        Args:
            server: what the container is.
            extra: the site's own additions to the engine's create call.
            extra_host: the site's own additions to its host configuration.

        Raises:
            SiteMisconfigured: the additions would replace what the launch decides.
            ImageRefused: the image is gone, or what is in it cannot be used.
        """
        try:
            return await self._docker.call(lambda client: self._create(client, server, extra, extra_host))
        except ImageNotFound as error:
            # A launch can wait long for its device, and a build meanwhile replaces the image that it found.
            raise ImageRefused(
                "This project's image was replaced or removed while the launch waited. Launch again, and it starts "
                "from the new one."
            ) from error
        except NotFound as error:
            raise EngineUnavailable(f"Docker Engine refused: {error.explanation or error}") from error

    def _create(
        self,
        client: docker.APIClient,
        server: ServerContainer,
        extra: dict[str, Any],
        extra_host: dict[str, Any],
    ) -> str:
        host = {
            "network_mode": server.network,
            "mounts": [
                DockerMount(mount.target, mount.source, type="bind", read_only=mount.read_only)
                for mount in server.mounts
            ],
            "init": True,
            "cap_drop": ["ALL"],
            "security_opt": ["no-new-privileges"],
            "group_add": [str(group) for group in server.groups],
            "log_config": LogConfig(type=LogConfig.types.JSON, config={"max-size": str(LOG_BYTES), "max-file": "2"}),
            "device_requests": self._device_requests(client, server.devices),
        }
        if server.cpus is not None:
            # A limit meant for a larger machine is all of a smaller one; the engine would refuse it.
            host["nano_cpus"] = int(min(server.cpus, client.info()["NCPU"]) * 1e9)
        if server.memory_bytes is not None:
            host["mem_limit"] = host["memswap_limit"] = server.memory_bytes
        if server.shm_bytes is not None:
            host["shm_size"] = server.shm_bytes
        if server.pids is not None:
            host["pids_limit"] = server.pids
        # A CPU server must see no GPU, even where nvidia is the default runtime and the image asks for all of them.
        visible = ",".join(server.devices) or "void"
        create = {
            "image": server.image_id,
            "name": server.name,
            "hostname": server.hostname,
            "entrypoint": list(server.argv),
            "command": [],
            "environment": {**server.environment, "NVIDIA_VISIBLE_DEVICES": visible},
            "user": f"{server.uid}:{server.gid}",
            "working_dir": server.working_dir,
            "labels": dict(server.labels),
            "host_config": client.create_host_config(**add_to_host(host, extra_host)),
        }
        container = _create(client, add_to_create(create, extra))
        try:
            client.put_archive(container, "/", self._account_files(client, container, server))
        except BaseException:
            client.remove_container(container, force=True, v=True)
            raise
        return container

    def _account_files(self, client: docker.APIClient, container: str, server: ServerContainer) -> bytes:
        known = self._accounts.get(server.image_id)
        if known is None:
            known = _read_file(client, container, "/etc/passwd"), _read_file(client, container, "/etc/group")
            if len(self._accounts) >= KNOWN_IMAGES:
                self._accounts.clear()  # each is read again when it is next launched, in some milliseconds
            self._accounts[server.image_id] = known
        passwd, group = add_account(*known, server)
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w") as archive:
            for path, text in (("etc/passwd", passwd), ("etc/group", group)):
                entry = tarfile.TarInfo(path)
                entry.size, entry.mode = len(text.encode()), 0o644
                archive.addfile(entry, io.BytesIO(text.encode()))
            home = tarfile.TarInfo(server.home.removeprefix("/"))
            home.type, home.mode, home.uid, home.gid = tarfile.DIRTYPE, 0o700, server.uid, server.gid
            home.mtime = int(time.time())
            archive.addfile(home)
        return packed.getvalue()

    def _device_requests(self, client: docker.APIClient, devices: tuple[str, ...]) -> list[DeviceRequest]:
        if not devices:
            return []
        listed = cdi_devices(client.info())
        names = [f"{CDI_KIND}={uuid}" for uuid in devices]
        if all(name in listed for name in names):
            return [DeviceRequest(driver="cdi", device_ids=names)]
        if self._simulated:
            return []
        return [DeviceRequest(device_ids=list(devices), capabilities=[["gpu"]])]

    async def start(self, container: str) -> str:
        """Start a created container and return its address on the servers' network.

        Raises:
            ServerDied: the engine could not start it, or it ended at once.
            EngineUnavailable: something that it needs, such as the servers' network, is gone.
        """
        try:
            await self._docker.call(lambda client: client.start(container))
        except NotFound as error:
            if await self.inspect(container) is not None:
                raise EngineUnavailable(
                    f"Docker Engine could not start the server: {error.explanation}. If its network was removed, an "
                    "administrator can restart the hub, which makes it again."
                ) from error
            raise ServerDied("The container vanished before it started. Launch the project again.") from error
        except EngineUnavailable as error:
            if NO_DEVICE_DRIVER not in str(error):
                raise
            raise EngineUnavailable(
                "Docker Engine cannot hand over the GPU: it has neither a CDI specification for it nor NVIDIA's "
                "container toolkit. An administrator can make the specification with `nvidia-ctk cdi generate`."
            ) from error
        status = await self.inspect(container)
        if status is None or not status.address:
            why = await self.explain_end(container)
            raise ServerDied(why or "The container has no address on the servers' network. Tell an administrator.")
        return status.address

    async def remove(self, container: str, *, grace_seconds: int) -> None:
        """Stop and remove a container and return when it is gone; one that is gone already is no error.

        Args:
            container: its id.
            grace_seconds: time between SIGTERM and SIGKILL; 0 kills at once.
        """
        await self._removals.call(lambda client: self._remove(client, container, grace_seconds))

    def _remove(self, client: docker.APIClient, container: str, grace_seconds: int) -> None:
        try:
            if grace_seconds:
                client.stop(container, timeout=grace_seconds)
            client.remove_container(container, force=True, v=True)
        except NotFound:
            return
        except APIError as error:
            if error.status_code != requests.codes.conflict:
                raise
            # Somebody else is removing it already; gone is what was asked for, so wait for that.
            _wait_until_gone(client, container)

    def ensure_network(self, subnet: str) -> str:
        """Make sure that the servers' bridge exists and return its gateway, the host's address on it.

        Blocks; for the moment before the hub listens there.
        """
        return self._docker.ask(lambda client: self._ensure_network(client, subnet))

    def _ensure_network(self, client: docker.APIClient, subnet: str) -> str:
        try:
            found = client.inspect_network(self.network)
        except NotFound:
            client.create_network(
                self.network,
                driver="bridge",
                options={"com.docker.network.bridge.enable_icc": "false"},
                ipam=_addresses(subnet) if subnet else None,
                check_duplicate=True,
            )
            found = client.inspect_network(self.network)
        if (found.get("Options") or {}).get("com.docker.network.bridge.enable_icc") != "false":
            raise EngineUnavailable(
                f"The Docker network {self.network!r} lets containers reach each other. Remove it "
                f"(docker network rm {self.network}) so that it can be made anew, or choose another name."
            )
        for pool in found["IPAM"]["Config"] or ():
            if pool.get("Gateway"):
                return str(pool["Gateway"]).split("/", 1)[0]
        raise EngineUnavailable(f"The Docker network {self.network!r} has no gateway address.")

    async def remove_network(self) -> None:
        """Remove the servers' bridge; one that is not there is no error."""
        try:
            await self._docker.call(lambda client: client.remove_network(self.network))
        except NotFound:
            return

    def close(self) -> None:
        """Let running calls end and take no more."""
        self._docker.close()
        self._removals.close()

    def _status(self, found: dict[str, Any]) -> ContainerStatus:
        state = found["State"]
        networks = found["NetworkSettings"].get("Networks") or {}
        return ContainerStatus(
            id=found["Id"],
            name=found["Name"].removeprefix("/"),
            state=state["Status"],
            exit_code=state["ExitCode"],
            out_of_memory=bool(state["OOMKilled"]),
            error=state.get("Error") or "",
            labels=dict(found["Config"].get("Labels") or {}),
            address=(networks.get(self.network) or {}).get("IPAddress") or "",
        )


def _addresses(subnet: str) -> IPAMConfig:
    try:
        gateway = next(ip_network(subnet).hosts())
    except (ValueError, StopIteration) as error:
        raise EngineUnavailable(
            f"{subnet!r} is no subnet for the servers' network. Give one such as '172.30.0.0/16', or none."
        ) from error
    # Engines do not list the gateway that they chose for a given subnet, so it is given too.
    return IPAMConfig(pool_configs=[IPAMPool(subnet=subnet, gateway=str(gateway))])


def _create(client: docker.APIClient, arguments: dict[str, Any]) -> str:
    try:
        return str(client.create_container(**arguments)["Id"])
    except APIError as error:
        if error.status_code != requests.codes.conflict:
            raise
        raise EngineUnavailable(
            f"A container named {arguments['name']!r} exists already and is not this hub's. An administrator can see "
            f"it with `docker inspect {arguments['name']}` and remove it."
        ) from error


def _read_file(client: docker.APIClient, container: str, path: str) -> str:
    try:
        chunks, _ = client.get_archive(container, path)
    except NotFound:
        return ""
    packed = io.BytesIO()
    with closing(chunks):  # the engine cannot remove the container while it still sends a part of it
        for chunk in chunks:
            packed.write(chunk)
            if packed.tell() > ACCOUNT_FILE_BYTES:
                raise ImageRefused(
                    f"{path} in this project's image is larger than {ACCOUNT_FILE_BYTES // 2**20} MiB. It should list "
                    "the accounts of the image and nothing else: correct what the Dockerfile does with it."
                )
    packed.seek(0)
    with tarfile.open(fileobj=packed) as archive:
        member = archive.next()
        content = archive.extractfile(member) if member and member.isfile() else None
        return content.read().decode(errors="replace") if content else ""


def _wait_until_gone(client: docker.APIClient, container: str, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            client.inspect_container(container)
        except NotFound:
            return
        time.sleep(0.05)
    raise EngineUnavailable(f"Docker Engine has been removing container {container[:12]} for {seconds:.0f} s.")
