"""What retiring a container would lose: told from the paths that changed in it, as the engine lists them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass

_IGNORED = re.compile(
    r"^/(?:run|dev|proc|sys|workspace|opt/ds01|var/(?:cache|lib/apt|lib/dpkg|log))(?:/|$)"
    # What programs leave for themselves; anything else there somebody has put there.
    r"|^/(?:var/)?tmp(?:$|/(?:\.|(?:pip|npm|matplotlib|torchinductor|hsperfdata)[-_]|tmp[a-z0-9_]{8}(?:[./]|$)))"
    r"|/docker-init$"  # the engine's own
    r"|/etc/(?:passwd|group|hosts|hostname|resolv\.conf)$"
    r"|/\.(?:cache|ipython|jupyter|npm|nv|config/matplotlib|dockerenv|bash_history|python_history|wget-hsts)(?:/|$)"
    r"|/\.local/(?:share/jupyter|state)(?:/|$)"
    r"|/__pycache__(?:/|$)|\.pyc$"
)
_DISTRIBUTION = re.compile(r"/([A-Za-z0-9][A-Za-z0-9._]*)-([^/-]+)\.(?:dist|egg)-info(?:/|$)")
_INSIDE_PACKAGES = re.compile(r"/(?:site|dist)-packages/|/\.local/(?:bin|lib|include|share)(?:/|$)|/include/python")
_SHOWN_FOLDERS = 5

LOOKED_AT_MAX = 100_000
"""More paths than these are not told apart: that would take seconds, and somebody waits."""


@dataclass(frozen=True, slots=True)
class Losses:
    """What would be gone.

    Attributes:
        busy_kernels: kernels that compute now.
        more_than: that so many files and folders were added or changed, too many to be told apart; 0 when they were.
        files: how many files outside ``/workspace`` were added or changed, packages excluded.
        folders: where most of them are, with how many.
        packages: Python packages installed by hand, ``name==version``, sorted; ``None`` when that cannot be told.
        unseen: what could not be seen, one phrase each; nothing is known of it, so it is asked about too.
    """

    busy_kernels: int = 0
    more_than: int = 0
    files: int = 0
    folders: tuple[tuple[str, int], ...] = ()
    packages: tuple[str, ...] | None = ()
    unseen: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.busy_kernels or self.more_than or self.files or self.packages or self.unseen)


def find_losses(changed: Collection[str], busy_kernels: int = 0) -> Losses:
    """Return what would be lost.

    Args:
        changed: absolute paths that were added or changed inside the container.
        busy_kernels: how many kernels compute now.
    """
    if len(changed) > LOOKED_AT_MAX:
        return Losses(busy_kernels, more_than=LOOKED_AT_MAX, packages=None)
    every = sorted(set(changed))
    paths = [path for path in every if not _IGNORED.search(path)]
    packages = {f"{found[1].replace('_', '-')}=={found[2]}" for path in paths if (found := _DISTRIBUTION.search(path))}
    files = [path for path in _leaves(paths, every) if not _INSIDE_PACKAGES.search(path)]
    folders = Counter(path.rpartition("/")[0] or "/" for path in files)
    shown = tuple(folders.most_common(_SHOWN_FOLDERS))
    return Losses(busy_kernels, files=len(files), folders=shown, packages=tuple(sorted(packages)))


def _leaves(paths: list[str], every: list[str]) -> list[str]:
    """Return the paths that contain no other one; a folder is listed with every file that changed in it.

    Folders that changed themselves, such as a home in which only caches came to be, look like files here; one level
    below the root none of them is anybody's file.
    """
    # A folder that changed because of something ignored in it is not a file either.
    split = [path.split("/") for path in every]
    parents = {"/".join(parts[:depth]) for parts in split for depth in range(2, len(parts))}
    kept = [path for path in paths if path not in parents and path.count("/") > 1]
    return [path for path in kept if not re.fullmatch(r"/home/[^/]+(?:/\.config|/\.local(?:/[^/]+)?)?", path)]
