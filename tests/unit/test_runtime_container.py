"""The scripts that run inside containers, run here by this Python or read as an old one would."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import venv
from importlib import resources
from pathlib import Path

import pytest

from ds01_spawner.core.imagefacts import PROBE_MARKER, TRIAL_MARKER, parse_probe, parse_trial

SCRIPTS = Path(str(resources.files("ds01_spawner") / "container"))


def run(code: str, *options: str, **environment: str) -> str:
    """Run code in a fresh interpreter and return what it printed."""
    done = subprocess.run(
        [sys.executable, *options, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def write_packages(folder: Path, **sources: str) -> None:
    """Write modules; a double underscore in a name is a dot, and a name that others extend is a package."""
    for name, source in sources.items():
        parts = name.split("__")
        is_package = any(other.startswith(name + "__") for other in sources)
        path = folder.joinpath(*parts, "__init__.py") if is_package else folder.joinpath(*parts[:-1], parts[-1] + ".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)


@pytest.mark.parametrize("path", sorted(SCRIPTS.glob("*.py")), ids=lambda path: path.name)
def test_every_script_can_be_read_by_the_oldest_python(path: Path) -> None:
    """The probe parses on Python 3.4, so that an old one can say that it is old; the others parse on 3.9."""
    ast.parse(path.read_text(), feature_version=(3, 4) if path.name == "probe.py" else (3, 9))


# -- the probe ----------------------------------------------------------------------------------------------------


def test_the_probe_tells_about_this_python(tmp_path: Path) -> None:
    """What the probe prints is read back as this interpreter's version, path and packages."""
    (tmp_path / "Tornado-4.5.dist-info").mkdir()
    (tmp_path / "jupyter_client-5.0.egg-info").mkdir()
    done = subprocess.run(
        [sys.executable, "-I", SCRIPTS / "probe.py"],
        capture_output=True,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        check=True,
    )
    facts = parse_probe(done.stdout)
    assert facts.version == sys.version_info[:3]
    assert facts.executable == sys.executable
    assert (facts.packages["tornado"], facts.packages["jupyter-client"]) == ("4.5", "5.0")


def test_the_probe_and_its_reader_agree_on_the_marker() -> None:
    """The marker stands in two files that cannot import each other."""
    assert f'MARKER = "{PROBE_MARKER}"' in (SCRIPTS / "probe.py").read_text()
    assert f'MARKER = "{TRIAL_MARKER}"' in (SCRIPTS / "trial.py").read_text()


# -- the kernel ---------------------------------------------------------------------------------------------------

KERNELAPP = (
    "import sys, json, marker\ndef launch_new_instance(): print(json.dumps([marker.OWNER, sys.argv[1:], sys.path]))"
)


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image's Python: one with nothing installed, unlike the one that runs the tests."""
    folder = tmp_path_factory.mktemp("python")
    venv.create(folder, with_pip=False)
    return folder / "bin" / "python3"


@pytest.fixture
def runtime(tmp_path: Path) -> Path:
    """A runtime folder whose ipykernel prints who provides its dependency, and an image that provides one too."""
    boot = tmp_path / "ds01" / "boot"
    boot.mkdir(parents=True)
    for script in SCRIPTS.glob("*.py"):
        (boot / script.name).write_text(script.read_text())
    write_packages(
        tmp_path / "ds01" / "kernel",
        ipykernel="",
        ipykernel__kernelapp=KERNELAPP,
        ipykernel__ipkernel="import marker; marker.OWNER",
        ipykernel__zmqshell="",
        marker="OWNER = 'runtime'",
    )
    (tmp_path / "image").mkdir()
    return tmp_path


def start_kernel(python: Path, runtime: Path, *options: str) -> tuple[str, list[str], list[str], str]:
    """Start the kernel script; return whose package it got, its arguments, its path and what it said."""
    done = subprocess.run(
        [python, *options, runtime / "ds01/boot/kernel.py", "-f", "connection.json"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(runtime / "image")},
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    owner, arguments, path = json.loads(done.stdout.splitlines()[-1])
    return owner, arguments, path, done.stderr


def test_the_images_packages_win_in_a_kernel(python: Path, runtime: Path) -> None:
    """A package that both have comes from the image, and the runtime's folder is last on the path."""
    (runtime / "image" / "marker.py").write_text("OWNER = 'image'")
    owner, arguments, path, _ = start_kernel(python, runtime)
    assert owner == "image"
    assert arguments == ["-f", "connection.json"]
    assert path[-1] == str(runtime / "ds01/kernel")
    assert str(runtime / "ds01/boot") not in path


def test_the_runtime_fills_in_what_the_image_lacks(python: Path, runtime: Path) -> None:
    """Without the package in the image the kernel gets the runtime's."""
    owner, _, _, said = start_kernel(python, runtime)
    assert (owner, said) == ("runtime", "")


@pytest.mark.parametrize("broken", ["OTHER = 1", "raise ImportError('old')", "raise SystemExit('no')", "def ("])
def test_a_kernel_that_cannot_use_the_images_packages_uses_the_runtimes(
    python: Path, runtime: Path, broken: str
) -> None:
    """However an image's package fails, the kernel starts with the runtime's and the log says so."""
    (runtime / "image" / "marker.py").write_text(broken)
    owner, arguments, path, said = start_kernel(python, runtime)
    assert owner == "runtime"
    assert arguments == ["-f", "connection.json"]
    assert path.index(str(runtime / "ds01/kernel")) < path.index(str(runtime / "image"))
    assert "starting with the site's before them" in said


def test_a_shadowed_standard_library_does_not_stop_a_kernel(python: Path, runtime: Path) -> None:
    """An image whose PYTHONPATH hides a module of Python itself still gets a kernel."""
    (runtime / "image" / "json.py").write_text("raise SystemExit('mine')")
    assert start_kernel(python, runtime)[0] == "runtime"


def test_a_kernel_keeps_the_interpreters_options_when_it_starts_again(python: Path, runtime: Path) -> None:
    """The debugger's option survives the second start."""
    (runtime / "image" / "marker.py").write_text("raise ImportError")
    code = KERNELAPP.replace("marker.OWNER", "sys._xoptions.get('frozen_modules')")
    (runtime / "ds01/kernel/ipykernel/kernelapp.py").write_text(code)
    assert start_kernel(python, runtime, "-Xfrozen_modules=off")[0] == "off"


def test_a_kernel_that_nothing_can_start_fails(python: Path, runtime: Path) -> None:
    """A broken runtime is an error with a traceback, not an endless circle of starts."""
    (runtime / "ds01/kernel/marker.py").write_text("raise ImportError('ours is broken')")
    done = subprocess.run(
        [python, runtime / "ds01/boot/kernel.py"], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 1
    assert "ours is broken" in done.stderr


def test_a_trial_says_what_a_kernel_would_do(python: Path, runtime: Path) -> None:
    """The trial's answer is what the kernel script then does, with Python's own words for why."""

    def trial() -> tuple[bool, str]:
        command = [python, "-I", runtime / "ds01/boot/trial.py"]
        done = subprocess.run(
            command, capture_output=True, env={**os.environ, "PYTHONPATH": str(runtime / "image")}, check=True
        )
        result = parse_trial(done.stdout)
        return result.kernel_image_first, result.kernel_error

    assert trial() == (True, "")
    (runtime / "image" / "marker.py").write_text("raise ImportError('too old')")
    assert trial() == (False, "ImportError: too old")


# -- deferred imports ---------------------------------------------------------------------------------------------

BEGIN = f"""
import sys
sys.path.insert(0, {str(SCRIPTS)!r})
import ds01_deferred
ds01_deferred.DEFERRED = frozenset({{"slow", "slow.inner", "outer.deep"}})
ds01_deferred.defer()
"""


@pytest.fixture
def packages(tmp_path: Path) -> Path:
    """Modules that print when they run."""
    write_packages(
        tmp_path,
        slow="print('slow runs'); value = 1; from slow.other import two",
        slow__other="print('other runs'); two = 2",
        slow__inner="print('inner runs'); value = 3",
        outer="",
        outer__deep="print('deep runs'); import slow; value = slow.value",
        circle="import slow\nclass Base: pass",
    )
    return tmp_path


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("import slow; import slow; import outer.deep; print('imported')", "imported"),
        ("import slow; print(slow.value, slow.two)", "slow runs|other runs|1 2"),
        ("from slow import value; print(value)", "slow runs|other runs|1"),
        ("import slow.other; print(slow.other.two)", "slow runs|other runs|2"),
        ("from slow.other import two; print(two)", "slow runs|other runs|2"),
        ("from slow import inner; print('imported')", "imported"),
        ("from slow import inner; print(inner.value)", "slow runs|other runs|inner runs|3"),
        ("from outer import deep; print(deep.value)", "deep runs|slow runs|other runs|1"),
        ("import slow; print(hasattr(slow, 'nothing'))", "slow runs|other runs|False"),
        ("import slow, inspect; print(inspect.getmodule(slow) is slow, slow.__name__)", "True slow"),
        (
            "import slow; slow.value; import slow.other as o; print(o.two, type(slow).__name__)",
            "slow runs|other runs|2 module",
        ),
        (
            "import slow; slow.value; import importlib.resources as r; print(r.files(slow).name)",
            "slow runs|other runs|slow",
        ),
        ("import slow; slow.extra = 7; print(slow.extra, slow.value)", "slow runs|other runs|7 1"),
    ],
)
def test_a_deferred_module_is_the_same_module_later(packages: Path, code: str, expected: str) -> None:
    """A deferred module runs once, when something is looked up in it, and is then what it always was."""
    assert run(BEGIN + code, PYTHONPATH=str(packages)).split("\n") == expected.split("|")


def test_a_deferred_module_runs_once_among_threads(packages: Path) -> None:
    """Ten threads that look something up at the same time all get it, and the module runs once."""
    code = """
import slow, threading
barrier, found = threading.Barrier(10), []
def look():
    barrier.wait()
    found.append(slow.two)
threads = [threading.Thread(target=look) for _ in range(10)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
print(found)
"""
    assert run(BEGIN + code, PYTHONPATH=str(packages)).split("\n") == ["slow runs", "other runs", str([2] * 10)]


def test_threads_that_need_each_others_half_do_not_wait_for_ever(packages: Path) -> None:
    """One thread imports below a deferred package while another looks something up in it, many times over."""
    code = """
import sys, threading
for attempt in range(100):
    for name in [name for name in sys.modules if name.startswith("slow")]:
        del sys.modules[name]
    import slow
    barrier, found = threading.Barrier(2), []
    def below():
        barrier.wait()
        import slow.other
        found.append(slow.other.two)
    def inside(slow=slow):
        barrier.wait()
        found.append(slow.value)
    threads = [threading.Thread(target=target, daemon=True) for target in (below, inside)]
    [thread.start() for thread in threads]
    [thread.join(20) for thread in threads]
    assert sorted(found) == [1, 2], found
"""
    # Python breaks the tie by an error in one of them, after which that module is run again: so at least once each.
    assert run(BEGIN + code, PYTHONPATH=str(packages)).count("slow runs") >= 100


def test_a_deferred_module_that_fails_fails_where_it_is_used(packages: Path) -> None:
    """An error in a deferred module reaches whoever looks something up in it, every time."""
    (packages / "slow" / "__init__.py").write_text("raise ImportError('broken')")
    code = """
import slow
for _ in range(2):
    try: slow.value
    except ImportError as error: print(error)
"""
    assert run(BEGIN + code, PYTHONPATH=str(packages)).split("\n") == ["broken", "broken"]


def test_a_missing_deferred_module_is_missing(packages: Path) -> None:
    """Deferring does not invent modules."""
    code = """
ds01_deferred.DEFERRED = frozenset({"nowhere"})
try: import nowhere
except ModuleNotFoundError as error: print(error.name)
"""
    assert run(BEGIN + code, PYTHONPATH=str(packages)) == "nowhere"


# -- standing in for the hub's side of JupyterHub -----------------------------------------------------------------

HUB = f"""
import sys
sys.path.insert(0, {str(SCRIPTS)!r})
import ds01_deferred
ds01_deferred.defer()
ds01_deferred.stand_in_for_hub()
sys.modules["rfc3987_syntax"] = None  # a second for each of these tests
import jupyterhub.singleuser.extension
"""


def test_the_server_extension_comes_without_the_hubs_side() -> None:
    """JupyterHub's server extension is imported, and its database layer, handlers and HTTP client are not."""
    code = "print([name for name in ('sqlalchemy.orm', 'alembic', 'aiohttp.client', 'jupyterhub.handlers.base')"
    assert run(HUB + code + " if name in sys.modules])") == "[]"


def test_whoever_asks_a_stand_in_for_more_gets_the_real_module() -> None:
    """Nothing of JupyterHub is missing behind the stand-ins; it only comes when it is asked for."""
    code = """
from jupyterhub.scopes import _intersect_expanded_scopes
print(*_intersect_expanded_scopes({"self"}, {"self"}), "sqlalchemy.orm" in sys.modules)
from jupyterhub.httpclient import JupyterHubHTTPClient
from jupyterhub.handlers.pages import HomeHandler
from jupyterhub.orm import User
from jupyterhub.singleuser import make_singleuser_app
import sqlalchemy.exc
print(issubclass(sqlalchemy.exc.OperationalError, sqlalchemy.exc.SQLAlchemyError))
print(JupyterHubHTTPClient.__name__, HomeHandler.__name__, User.__tablename__, make_singleuser_app.__name__)
"""
    assert run("import warnings; warnings.simplefilter('ignore')\n" + HUB + code).split("\n") == [
        "self False",
        "True",
        "JupyterHubHTTPClient HomeHandler users make_singleuser_app",
    ]


def test_an_untried_jupyterhub_is_imported_as_it_is() -> None:
    """With a release that the stand-ins were not tried with, there are none."""
    code = HUB.replace(
        "ds01_deferred.stand_in", "import jupyterhub; jupyterhub.__version__ = '7.0.0'; ds01_deferred.stand_in"
    )
    assert run(code + "print('jupyterhub.handlers.base' in sys.modules)").split("\n")[-1] == "True"
