"""Tells what an image's Python is.  Runs inside the image, without network, before anything is trusted.

Standard library only, Python 3.4 or newer: one that is too old must still be able to say how old it is.  The answer is
one JSON line on standard output after a marker.  Whoever reads it treats it as hostile: a user's image ran it.
"""

import json
import os
import sys
import sysconfig

MARKER = "ds01-probe:"
MOST_PACKAGES = 2000
JUPYTER_FOLDERS = ("share/jupyter/labextensions", "etc/jupyter/jupyter_server_config.d", "share/jupyter/lab/extensions")


def glibc() -> str:
    """Return the C library's version, or an empty string where it is not glibc (Alpine's musl)."""
    try:
        name, _, version = (os.confstr("CS_GNU_LIBC_VERSION") or "").partition(" ")
    except (ValueError, OSError, AttributeError):
        return ""
    return version if name == "glibc" else ""


def packages(folders: "list[str]") -> "dict[str, str]":
    """Return installed distributions and their versions, read from the names of their metadata folders."""
    found = {}  # type: dict[str, str]
    for folder in reversed(folders):
        try:
            names = os.listdir(folder)
        except OSError:
            continue
        for name in names:
            stem, extension = os.path.splitext(name)
            if extension in (".dist-info", ".egg-info") and len(found) < MOST_PACKAGES:
                parts = stem.split("-")
                version = parts[1] if len(parts) > 1 else ""
                found[parts[0].lower().replace("_", "-").replace(".", "-")] = version
    return found


def has_files(prefixes: "set[str]") -> bool:
    """Return whether the image brings lab or server extensions of its own."""
    folders = [os.path.join(prefix, folder) for prefix in prefixes for folder in JUPYTER_FOLDERS]
    return any(os.path.isdir(folder) and os.listdir(folder) for folder in folders)


def main() -> None:
    """Print the facts."""
    extra = [item for item in os.environ.get("PYTHONPATH", "").split(os.pathsep) if item]
    facts = {
        "schema": 1,
        "version": list(sys.version_info[:3]),
        "implementation": sys.implementation.name,
        "bits": 64 if sys.maxsize > 2**32 else 32,
        "free_threaded": bool(sysconfig.get_config_var("Py_GIL_DISABLED")),
        "executable": sys.executable or "",
        "virtual": sys.prefix != sys.base_prefix,
        "glibc": glibc(),
        "packages": packages(extra + sys.path),
        "extensions": has_files({sys.prefix, "/usr/local", "/usr"}),
    }
    sys.stdout.write("\n" + MARKER + json.dumps(facts, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
