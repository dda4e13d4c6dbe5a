"""The notebook server in a project's container: which packages it runs from, and how it is set up.

Standard library only until the paths are set, Python 3.9 or newer.
"""

from __future__ import annotations

import argparse
import gc
import os
import shutil
import sys
import traceback
from importlib.machinery import ModuleSpec, PathFinder
from typing import TYPE_CHECKING, Any

import ds01_deferred

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import ModuleType

BOOT = os.path.dirname(os.path.abspath(__file__))
RUNTIME = os.path.dirname(BOOT)
SERVER_PACKAGES = os.path.join(RUNTIME, "server")
KERNEL_PACKAGES = os.path.join(RUNTIME, "kernel")
DATA = os.path.join(RUNTIME, "share", "jupyter")
LAB = os.path.join(SERVER_PACKAGES, "share", "jupyter", "lab")


class OurJupyterHub:
    """Finds ``jupyterhub`` in the runtime before the image: it has to match the site's hub, not the image's age."""

    @staticmethod
    def find_spec(name: str, _path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        """Return where ``jupyterhub`` is; nothing for any other module."""
        return PathFinder.find_spec(name, [SERVER_PACKAGES], target) if name == "jupyterhub" else None


def set_paths(plan: str) -> None:
    """Make the server's packages importable, in the order of the plan."""
    ours = [SERVER_PACKAGES, KERNEL_PACKAGES]
    if plan == "runtime":
        _enter_virtual_environment()
        sys.path[:] = sys.path + ours
        return
    standard = list(sys.path)
    import site

    site.main()
    image = [entry for entry in sys.path if entry not in standard]
    if plan == "image-first":
        sys.meta_path.insert(0, OurJupyterHub)
        sys.path[:] = standard + image + ours
    else:
        sys.path[:] = standard + ours + image


def _enter_virtual_environment() -> None:
    """Set ``sys.prefix`` as ``site`` would have: Jupyter looks below it for what the image brings."""
    folder = os.path.dirname(os.path.dirname(sys.executable))
    if os.path.isfile(os.path.join(folder, "pyvenv.cfg")):
        sys.prefix = sys.exec_prefix = folder


def set_environment() -> None:
    """Prepare what kernels and terminals inherit: a place where ``pip install`` can write and Python looks."""
    base = os.path.expanduser("~/.local")
    inside = os.path.join("lib", "python%d.%d" % sys.version_info[:2], "site-packages")
    packages = os.path.join(base, inside)
    # Python leaves out a user site that does not exist when it starts, so a first `pip install` would not be found.
    try:
        os.makedirs(packages, exist_ok=True)
    except OSError as error:
        sys.stderr.write("ds01: no folder for `pip install`: %s\n" % error)
    # Debian marks its Python as its own; in a container that is gone tomorrow there is nothing to protect.
    os.environ.setdefault("PIP_BREAK_SYSTEM_PACKAGES", "1")
    os.environ["PATH"] = os.path.join(base, "bin") + os.pathsep + os.environ.get("PATH", os.defpath)
    if os.path.isfile(os.path.join(sys.prefix, "pyvenv.cfg")) and not os.access(
        os.path.join(sys.prefix, inside), os.W_OK
    ):
        # A virtual environment has no user site to fall back to when it belongs to root, as in most images.
        os.environ.setdefault("PIP_PREFIX", base)
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), packages]))


def shell_command() -> list[str]:
    """Return the command of a terminal."""
    wanted = os.environ.get("SHELL", "")
    if os.path.basename(wanted) not in ("", "sh", "bash", "dash") and os.access(wanted, os.X_OK):
        return [wanted, "-i"]
    bash = shutil.which("bash")
    if bash:
        return [bash, "--rcfile", os.path.join(BOOT, "bashrc"), "-i"]
    return ["/usr/bin/env", "ENV=" + os.path.join(BOOT, "shrc"), "/bin/sh", "-i"]


def settings(plan: str, *, own_kernel: bool) -> dict[str, dict[str, Any]]:
    """Return what the server is configured with; an image's own configuration files may say otherwise."""
    chosen: dict[str, dict[str, Any]] = {
        "ServerApp": {
            "open_browser": False,
            "terminado_settings": {"shell_command": shell_command()},
            # Nobody can rebuild JupyterLab in a read-only folder, so the browser need not ask.
            "tornado_settings": {"page_config_data": {"buildAvailable": False, "buildCheck": False}},
            "kernel_spec_manager_class": kernel_spec_manager(own_first=own_kernel),
        },
        "LabApp": {"news_url": None, "check_for_updates_class": "jupyterlab.NeverCheckForUpdate"},
    }
    if plan != "image-first":
        chosen["LabApp"]["app_dir"] = LAB
        chosen["LabApp"]["extension_manager"] = "readonly"
    return chosen


def offer_runtime_data() -> None:
    """Add the runtime's kernel and lab assets at the end of Jupyter's data folders, so that the image's come first."""
    from jupyter_core import paths

    for folder in (DATA, os.path.join(SERVER_PACKAGES, "share", "jupyter")):
        if folder not in paths.SYSTEM_JUPYTER_PATH:
            paths.SYSTEM_JUPYTER_PATH.append(folder)


def kernel_spec_manager(*, own_first: bool) -> type:
    """Return the class that finds kernels: the image's, then ours, or ours first where the image's cannot start."""
    from jupyter_client.kernelspec import KernelSpecManager
    from jupyter_core.paths import jupyter_path
    from traitlets import default

    class KernelSpecs(KernelSpecManager):
        @default("ensure_native_kernel")  # type: ignore[untyped-decorator]
        def _no_native_kernel(self) -> bool:
            # It would be described by the server's own packages, which a kernel does not see.
            return False

        def _kernel_dirs_default(self) -> list[str]:
            # The base class imports all of IPython to learn the name of one folder.
            folders = [*jupyter_path("kernels"), os.path.expanduser("~/.ipython/kernels")]
            ours = os.path.join(DATA, "kernels")
            return [ours] + [folder for folder in folders if folder != ours] if own_first else folders

    return KernelSpecs


def load_application(plan: str, *, own_kernel: bool, quick: bool) -> Any:
    """Import the server and return its application class, with the settings in it."""
    if quick:
        ds01_deferred.defer()
    offer_runtime_data()
    if os.environ.get("JUPYTERHUB_SERVICE_URL"):
        if quick:
            ds01_deferred.stand_in_for_hub()
        from jupyterhub.singleuser.extension import JupyterHubSingleUser as Application
    else:
        from jupyterlab.labapp import LabApp as Application
    make_serverapp = Application.make_serverapp.__func__

    def make_with_settings(cls: Any, /, **arguments: Any) -> Any:
        from traitlets.config import Config

        if plan != "image-first":
            arguments["jpserver_extensions"].update(jupyterlab=True, jupyter_server_terminals=True)
        serverapp = make_serverapp(cls, **arguments)
        serverapp.update_config(Config(settings(plan, own_kernel=own_kernel)))
        return serverapp

    Application.make_serverapp = classmethod(make_with_settings)
    if plan == "runtime":
        Application.load_other_extensions = False
    return Application


def main() -> None:
    """Start the server, or with ``--check`` only find out whether it could be."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--plan", choices=["runtime", "runtime-first", "image-first"], required=True)
    parser.add_argument("--own-kernel", action="store_true")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--import-all", action="store_true")
    arguments, rest = parser.parse_known_args()
    set_paths(arguments.plan)
    # It checks IRIs, takes a second to import, and a server works without it.
    sys.modules["rfc3987_syntax"] = None  # type: ignore[assignment]
    if arguments.check:
        check()
        return
    set_environment()
    # A start allocates much and frees little: collecting in between finds nothing.
    gc.set_threshold(50_000, 20, 50)
    try:
        application = load_application(arguments.plan, own_kernel=arguments.own_kernel, quick=not arguments.import_all)
    except Exception:
        if arguments.import_all:
            raise
        traceback.print_exc()
        sys.stderr.write("ds01: the quick start does not work with these packages; starting the usual way\n")
        sys.stderr.flush()
        os.execv(sys.executable, [sys.executable, "-I", "-S", *sys.argv, "--import-all"])
    if not os.environ.get("JUPYTERHUB_SERVICE_URL"):
        rest = ["--ServerApp.ip=0.0.0.0", "--ServerApp.port=8888", "--ServerApp.allow_remote_access=True", *rest]
    application.launch_instance(rest)


def check() -> None:
    """Fail with a sentence unless the image's own JupyterLab can be served."""
    import jupyter_server.serverapp
    import jupyterhub.singleuser.extension  # noqa: F401 - that it can be imported is the question
    import jupyterlab.labapp

    for name, module, least in (("jupyterlab", jupyterlab, 4), ("jupyter_server", jupyter_server, 2)):
        if int(module.__version__.split(".")[0]) < least:
            sys.exit("%s %s is older than %d" % (name, module.__version__, least))
