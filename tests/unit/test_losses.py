"""What a retire would lose, told from changed paths."""

from __future__ import annotations

from ds01_spawner.core.losses import LOOKED_AT_MAX, Losses, find_losses


def test_what_every_server_leaves_is_no_loss() -> None:
    """Caches, histories, the account files and the workspace itself are not worth a question."""
    ordinary = [
        "/etc", "/etc/passwd", "/etc/group", "/usr", "/usr/sbin", "/usr/sbin/docker-init",
        "/home", "/home/ada", "/home/ada/.cache", "/home/ada/.cache/pip",
        "/home/ada/.ipython/profile_default/history.sqlite", "/home/ada/.local", "/home/ada/.local/share",
        "/home/ada/.local/share/jupyter/runtime/kernel-1.json", "/run/y", "/tmp", "/tmp/tmp1a_b2c3d/y",
        "/tmp/tmpab12cd34.csv", "/tmp/pip-build-env-x/z", "/tmp/.X11-unix/X0", "/var/tmp", "/home/ada/.config",
        "/home/ada/.config/matplotlib", "/workspace", "/opt/ds01",
        "/var/log/z",
        "/usr/lib/python3/dist-packages/__pycache__/a.cpython-313.pyc", "/home/ada/.bash_history",
    ]  # fmt: skip
    assert not find_losses(ordinary)


def test_files_are_counted_once_with_where_they_are() -> None:
    """Folders that are listed because a file in them changed are not counted themselves."""
    changed = [
        "/home/ada",
        "/home/ada/results",
        "/home/ada/results/a.csv",
        "/home/ada/results/b.csv",
        "/home/ada/results-2/c.csv",
        "/srv",
        "/srv/x.bin",
    ]
    found = find_losses(changed)
    assert found.files == 4
    assert found.folders == (("/home/ada/results", 2), ("/home/ada/results-2", 1), ("/srv", 1))


def test_what_people_put_into_temporary_folders_is_a_loss() -> None:
    """A model under /tmp, a setting under ~/.config, and folders that only have names like the system's."""
    mine = [
        "/tmp/model.pt", "/var/tmp/run1/ckpt.pt", "/tmp/tmp_model.pt", "/home/ada/.config/rclone.conf",
        "/home/ada/run/1.csv", "/home/ada/dev/tmp/a.py",
    ]  # fmt: skip
    assert [path for path in mine if find_losses([path]).files != 1] == []
    assert find_losses(mine).files == len(mine)


def test_packages_installed_by_hand_are_named_and_not_counted_as_files() -> None:
    """A package is one thing, however many files it has."""
    site = "/home/ada/.local/lib/python3.13/site-packages"
    changed = [
        f"{site}/iniconfig", f"{site}/iniconfig/__init__.py", f"{site}/iniconfig-2.1.0.dist-info",
        f"{site}/iniconfig-2.1.0.dist-info/METADATA", "/home/ada/.local/bin/tool",
        "/usr/local/lib/python3.13/dist-packages/typing_extensions-4.12.dist-info/x",
    ]  # fmt: skip
    found = find_losses(changed)
    assert found.packages == ("iniconfig==2.1.0", "typing-extensions==4.12")
    assert found.files == 0
    assert found


def test_a_busy_kernel_alone_is_worth_the_question() -> None:
    """A computation that is not finished is lost with its kernel."""
    assert find_losses([], busy_kernels=1)
    assert not find_losses([], busy_kernels=0)


def test_too_many_changes_are_not_told_apart() -> None:
    """How many there are a user decides, and telling them apart must not take seconds; they are asked about at once."""
    many = [f"/home/ada/{number}" for number in range(LOOKED_AT_MAX + 1)]
    assert find_losses(many[:-1]).files == LOOKED_AT_MAX
    found = find_losses(many, busy_kernels=2)
    assert found == Losses(busy_kernels=2, more_than=LOOKED_AT_MAX, packages=None)
    assert Losses(more_than=LOOKED_AT_MAX)
