"""Counters of a container from files: control groups v1 and v2, as hosts of each kind show them."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from ds01_spawner.adapters.containerprocess import ContainerProcess

ID = "34db6445cae8604579e4259265184562c350e154f009c64fcf3018676b51b47d"
PID = 4242

V1 = f"""12:cpu,cpuacct:/docker/{ID}
11:memory:/docker/{ID}
1:name=systemd:/docker/{ID}
0::/docker/{ID}
"""
V1_APART = f"""3:cpuset:/docker/{ID}
2:cpuacct:/docker/{ID}
1:cpu:/docker/{ID}
0::/
"""
V2 = f"0::/system.slice/docker-{ID}.scope\n"
V2_MOVED = f"0::/system.slice/docker-{ID}.scope/init.scope\n"

NET = """Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes packets errs drop fifo colls carrier compressed
    lo: 9999999      10    0    0    0     0          0         0 9999999 10 0 0 0 0 0 0
  eth0:    1000      10    0    0    0     0          0         0 200 10 0 0 0 0 0 0
  eth1:      30       1    0    0    0     0          0         0 4 1 0 0 0 0 0 0
"""


@pytest.fixture
def host(tmp_path: Path) -> Path:
    """Return a host with one container's process, without its control groups."""
    process = tmp_path / "proc" / str(PID)
    (process / "net").mkdir(parents=True)
    (process / "ns").mkdir()
    (process / "ns" / "net").write_text("")
    (tmp_path / "proc/self/ns").mkdir(parents=True)
    (tmp_path / "proc/self/ns/net").write_text("")
    (process / "net/dev").write_text(NET)
    before_start = " ".join(["S", *["0"] * 18])
    (process / "stat").write_text(f"{PID} (a) b) {before_start} 60000 0 0\n")
    (tmp_path / "proc/uptime").write_text("1000.50 10.0\n")
    (tmp_path / "cgroup").mkdir()
    return tmp_path


def opened(host: Path, groups: str) -> ContainerProcess:
    """Return the process, in these control groups."""
    (host / "proc" / str(PID) / "cgroup").write_text(groups)
    return ContainerProcess(PID, ID, proc=host / "proc", cgroups=host / "cgroup")


def count(host: Path, folder: str, name: str, text: str) -> None:
    """Write a counter of a control group."""
    (host / "cgroup" / folder).mkdir(parents=True, exist_ok=True)
    (host / "cgroup" / folder / name).write_text(text)


CPU_STAT = "usage_usec 12500000\nuser_usec 12000000\nsystem_usec 500000\n"


@pytest.mark.parametrize(
    ("groups", "folder", "name", "text"),
    [
        pytest.param(V1, f"cpu,cpuacct/docker/{ID}", "cpuacct.usage", "12500000000\n", id="v1"),
        pytest.param(V1_APART, f"cpuacct/docker/{ID}", "cpuacct.usage", "12500000000\n", id="v1, mounted apart"),
        pytest.param(V2, f"system.slice/docker-{ID}.scope", "cpu.stat", CPU_STAT, id="v2"),
        pytest.param(V2, f"unified/system.slice/docker-{ID}.scope", "cpu.stat", CPU_STAT, id="v2 beside v1"),
        pytest.param(V2_MOVED, f"system.slice/docker-{ID}.scope", "cpu.stat", CPU_STAT, id="v2, moved below"),
    ],
)
def test_processor_time_is_that_of_the_whole_container(
    host: Path, groups: str, folder: str, name: str, text: str
) -> None:
    """The container's own group counts, under whatever name the host mounts it."""
    count(host, folder, name, text)
    with opened(host, groups) as process:
        assert process.cpu_seconds() == 12.5


@pytest.mark.parametrize(
    ("folder", "name", "text"),
    [
        pytest.param("elsewhere", "cpu.stat", CPU_STAT, id="no group"),
        pytest.param(f"system.slice/docker-{ID}.scope", "memory.stat", "", id="no counter"),
        pytest.param(f"system.slice/docker-{ID}.scope", "cpu.stat", "user_usec 1\n", id="no usage"),
        pytest.param(f"system.slice/docker-{ID}.scope", "cpu.stat", "usage_usec x\n", id="no number"),
    ],
)
def test_processor_time_that_cannot_be_read_is_an_error(host: Path, folder: str, name: str, text: str) -> None:
    """Never zero: the caller makes it unknown."""
    count(host, folder, name, text)
    with opened(host, V2) as process, pytest.raises((OSError, ValueError)):
        process.cpu_seconds()


def test_network_is_everything_but_its_talk_with_itself(host: Path) -> None:
    """Received and sent bytes of every interface but lo."""
    with opened(host, V2) as process:
        assert process.network_bytes() == 1234


def test_the_hosts_own_network_is_not_a_containers(host: Path) -> None:
    """A container that shares the host's network has no counters of its own."""
    own = host / "proc" / str(PID) / "ns/net"
    own.unlink()
    os.link(host / "proc/self/ns/net", own)
    with opened(host, V2) as process, pytest.raises(OSError, match="host's network"):
        process.network_bytes()


def test_age_is_counted_by_the_kernel(host: Path) -> None:
    """600 s after boot it started, 1000.5 s after boot it is now; a command may hold brackets."""
    with opened(host, V2) as process:
        assert process.age_seconds() == pytest.approx(400.5)


def test_another_containers_process_is_refused(host: Path) -> None:
    """A pid that is used again by somebody else is not read."""
    with pytest.raises(ProcessLookupError, match="not of container"):
        opened(host, V2.replace(ID, "f" * 64))


def test_a_process_that_is_gone_is_refused(host: Path) -> None:
    """It is gone, not unreadable."""
    with pytest.raises(ProcessLookupError, match="gone"):
        ContainerProcess(1, ID, proc=host / "proc", cgroups=host / "cgroup")


@pytest.fixture
def terminals(host: Path) -> Path:
    """Return a container's folder of terminals with one of ours in it."""
    folder = host / "proc" / str(PID) / "root/dev/pts"
    folder.mkdir(parents=True)
    if os.geteuid() != 0:
        pytest.skip("device nodes are made by root")
    os.mknod(folder / "0", stat.S_IFCHR | 0o620, os.makedev(136, 4095))
    return folder


def test_terminals_are_those_of_the_kernel(host: Path, terminals: Path) -> None:
    """Other names, other devices, files and links are none, and what moves is the time of the last typing."""
    os.mknod(terminals / "1", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(terminals / "ptmx", stat.S_IFCHR | 0o666, os.makedev(5, 2))
    (terminals / "2").write_text("")
    (terminals / "3").symlink_to("/dev/pts/0")
    os.utime(terminals / "0", ns=(7, 9))
    with opened(host, V2) as process:
        assert [(t.name, t.last_activity) for t in process.terminals()] == [("0", "7")]


def test_nothing_but_a_terminal_is_written_to(host: Path, terminals: Path, tmp_path: Path) -> None:
    """A file, a pipe or a link that lies in a terminal's place is left alone."""
    (terminals / "0").unlink()
    target = tmp_path / "target"
    target.write_text("untouched")
    (terminals / "1").symlink_to(target)
    (terminals / "2").write_text("untouched")
    os.mkfifo(terminals / "3")
    with opened(host, V2) as process:
        assert process.write_to_terminals("x") == 0
    assert (terminals / "2").read_text() == target.read_text() == "untouched"


@pytest.mark.parametrize("place", ["root/dev", "root/dev/pts"])
def test_a_link_in_the_way_of_the_terminals_is_not_followed(host: Path, place: str, tmp_path: Path) -> None:
    """An image may hold a link where /dev is expected; it must not lead out of the container."""
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "pts").mkdir(parents=True)
    link = host / "proc" / str(PID) / place
    link.parent.mkdir(parents=True)
    link.symlink_to(elsewhere)
    with opened(host, V2) as process, pytest.raises(OSError):  # noqa: PT011 - the kernel's own word
        process.terminals()
