"""Which container and which user a process of the host belongs to."""

import os
import pwd
from pathlib import Path

import pytest

from ds01_spawner.adapters.hostprocess import container_of, owner_of

ID = "4f0c" + "0123456789ab" * 5
OTHER = "beef" + "ba9876543210" * 5

CGROUPS = {
    "v1 with the cgroupfs driver": f"12:memory:/docker/{ID}\n4:cpu,cpuacct:/docker/{ID}\n1:name=systemd:/docker/{ID}\n",
    "v1 with the systemd driver": f"12:memory:/system.slice/docker-{ID}.scope\n0::/system.slice/docker-{ID}.scope\n",
    "v1 with a memory controller outside": f"12:devices:/\n4:memory:/docker/{ID}\n",
    "v2 with the systemd driver": f"0::/system.slice/docker-{ID}.scope\n",
    "v2 with the cgroupfs driver": f"0::/docker/{ID}\n",
    "v2 below a slice of DS01": f"0::/ds01.slice/ds01-student.slice/docker-{ID}.scope\n",
    "v2 with a cgroup of its own inside": f"0::/system.slice/docker-{ID}.scope/init\n",
    "Podman": f"0::/machine.slice/libpod-{ID}.scope/container\n",
    "containerd of Kubernetes": f"0::/kubepods.slice/kubepods-pod1.slice/cri-containerd-{ID}.scope\n",
    "Docker inside Docker": f"0::/docker/{ID}/docker/{OTHER}\n",
}


def write(proc: Path, pid: int, **files: str) -> None:
    """Make the files of a process."""
    folder = proc / str(pid)
    folder.mkdir()
    for name, text in files.items():
        (folder / name).write_text(text)


@pytest.mark.parametrize("text", CGROUPS.values(), ids=CGROUPS.keys())
def test_container_from_cgroup(tmp_path: Path, text: str) -> None:
    """The outermost container's id is found in every layout of cgroups in use."""
    write(tmp_path, 42, cgroup=text)
    assert container_of(42, tmp_path) == ID


@pytest.mark.parametrize(
    "text",
    [
        "0::/user.slice/user-1000.slice/session-3.scope\n",
        "0::/\n",
        "",
        f"0::/system.slice/{ID}a.service\n",  # a longer hexadecimal word is not an id
        "garbage without colons\n",
    ],
)
def test_process_of_the_host(tmp_path: Path, text: str) -> None:
    """A process outside every container has none."""
    write(tmp_path, 42, cgroup=text)
    assert container_of(42, tmp_path) == ""


def test_process_that_is_gone(tmp_path: Path) -> None:
    """A process that ended between the driver's answer and ours belongs to nobody, and is no error."""
    assert container_of(42, tmp_path) == ""
    assert owner_of(42, tmp_path) == ""


def test_owner_is_the_effective_user(tmp_path: Path) -> None:
    """The name is that of the effective uid; a uid without a name is shown as a number."""
    write(tmp_path, 42, status="Name:\tpython\nUid:\t1\t0\t0\t0\nGid:\t0\t0\t0\t0\n")
    write(tmp_path, 43, status="Name:\tUid: 7\nUid:\t4000000000\t4000000000\t0\t0\n")
    write(tmp_path, 44, status="Name:\tx\n")
    assert owner_of(42, tmp_path) == "root"
    assert owner_of(43, tmp_path) == "uid 4000000000"
    assert owner_of(44, tmp_path) == ""


def test_this_process() -> None:
    """On a real process file system, this very process is ours."""
    assert owner_of(os.getpid()) == pwd.getpwuid(os.geteuid()).pw_name
