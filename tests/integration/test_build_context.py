"""What is sent to the builder gives the same image as the whole folder would: compared with BuildKit's own reading."""

from __future__ import annotations

import asyncio
import json
import os
import random
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from ds01_spawner.adapters.buildcontext import BuildContexts
from ds01_spawner.adapters.workspace import Workspaces
from ds01_spawner.core.account import Account
from ds01_spawner.core.dockerfile import context_use, parse
from ds01_spawner.core.project import Dockerfile

pytestmark = pytest.mark.engine

UID = 1_234_501
CASES = 20
NAMES = ["a", "b.txt", "c.py", "data", "x y", ".hidden", "sub", "näme", "z-1"]


@dataclass
class Project:
    """A project on disk, and the reader of it."""

    home: Path
    folder: Path
    contexts: BuildContexts
    account: Account

    def files(self, files: dict[str, str]) -> None:
        """Write files; a text that starts with ``->`` makes a link, ``None`` a folder."""
        for name, text in files.items():
            path = self.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if text.startswith("->"):
                path.symlink_to(text[2:])
            elif text == "/":
                path.mkdir(exist_ok=True)
            else:
                path.write_text(text)
        own(self.home)

    def built(self, dockerfile: str) -> dict[str, tuple[str, int, str]] | None:
        """Return the image's tree when built from what is packed, ``None`` when the build fails."""
        return asyncio.run(self._built(dockerfile))

    async def _built(self, text: str) -> dict[str, tuple[str, int, str]] | None:
        (self.folder / "Dockerfile").write_text(text)
        own(self.home)
        dockerfile = Dockerfile(text.encode(), "~/workspace/project/Dockerfile")
        async with self.contexts.pack(self.account, "project", dockerfile, context_use(parse(text))) as packed:
            return build(["--file", packed.dockerfile_name, "-"], stdin=packed.archive.fileno(), at=self.home)

    def built_by_buildkit(self, dockerfile: str) -> dict[str, tuple[str, int, str]] | None:
        """Return the image's tree when BuildKit reads the folder itself."""
        (self.folder / "Dockerfile").write_text(dockerfile)
        return build([str(self.folder)], stdin=subprocess.DEVNULL, at=self.home)

    def sent(self, dockerfile: str) -> set[str]:
        """Return the paths that are packed for a Dockerfile."""
        return asyncio.run(self._sent(dockerfile))

    async def _sent(self, text: str) -> set[str]:
        dockerfile = Dockerfile(text.encode(), "~/workspace/project/Dockerfile")
        async with self.contexts.pack(self.account, "project", dockerfile, context_use(parse(text))) as packed:
            with tarfile.open(fileobj=packed.archive) as archive:
                return {member.name for member in archive if not member.isdir()}


def own(folder: Path) -> None:
    """Give a tree to the test's user."""
    for path in (folder, *folder.rglob("*")):
        os.chown(path, UID, UID, follow_symlinks=False)


def build(arguments: list[str], *, stdin: int, at: Path) -> dict[str, tuple[str, int, str]] | None:
    """Build and return path: (kind, mode, content) of the result."""
    result = at.parent / "result.tar"
    result.unlink(missing_ok=True)
    command = ["docker", "buildx", "build", "--quiet", "--output", f"type=tar,dest={result}", *arguments]
    done = subprocess.run(command, stdin=stdin, capture_output=True, check=False)
    if done.returncode:
        return None
    tree = {}
    with tarfile.open(result) as archive:
        for member in archive:
            content = archive.extractfile(member).read().decode() if member.isfile() else member.linkname
            tree[member.name.rstrip("/")] = (member.type.decode(), member.mode, content)
    return tree


@pytest.fixture
def project() -> Iterator[Project]:
    """Make an empty project where its user can enter: pytest's own folder is root's alone."""
    with tempfile.TemporaryDirectory() as name:
        site = Path(name)
        site.chmod(0o755)
        home = site / "home"
        folder = home / "workspace" / "project"
        folder.mkdir(parents=True)
        own(home)
        account = Account("tester", UID, UID, (UID,), home)
        yield Project(home, folder, BuildContexts(Workspaces(site / "run"), site), account)


TREE = {
    "a": "alpha",
    "b.txt": "beta",
    ".hidden": "dot",
    "x y": "blank",
    "sub/a": "sub-a",
    "sub/b.txt": "sub-b",
    "sub/deep/c.py": "c",
    "sub/empty": "/",
    "data/big.bin": "0" * 1000,
    "data/keep.txt": "keep",
    "näme": "umlaut",
    "to-a": "->a",
    "to-sub": "->sub",
    "abs": "->/sub/a",
    "out": "->/etc/hostname",
    "sub/up": "->../data",
    "loop": "->loop",
    "chain": "->to-sub/deep",
}


@pytest.mark.parametrize(
    "line",
    [
        "COPY a /x",
        "COPY ./a /x",
        "COPY /a /x",
        "COPY ../../a /x",
        "COPY sub/../a /x",
        "COPY a b.txt /d/",
        "COPY *.txt /d/",
        "COPY *b* /d/",
        "COPY sub/* /d/",
        "COPY s?b /d/",
        "COPY [a-b]* /d/",
        "COPY sub /d",
        "COPY sub/ /d",
        'COPY ["x y", "/x"]',
        "COPY to-a /x",
        "COPY to-sub /d",
        "COPY to-sub/deep /d",
        "COPY to-su*/deep /d/",
        "COPY to-*/a /d/",
        "COPY abs /x",
        "COPY out /x",
        "COPY loop /x",
        "COPY chain /d",
        "COPY sub/up /d",
        "COPY sub/up/keep.txt /x",
        "COPY näme /x",
        "COPY .hidden /x",
        "COPY * /d/",
        "COPY . /d",
        "COPY nosuch /x",
        "COPY nosuch* a /d/",
        "COPY --chown=5:6 --chmod=600 a /x",
        "COPY --link sub /d",
        "ADD a b.txt /d/",
        "ADD --chown=5:6 sub /d",
        "COPY <<EOF /x\nCOPY data /y\nEOF",
        "COPY <<-'A' <<B sub/a /d/\n\tone\n\tA\ntwo\nB",
        "COPY a \\\n  # a comment\n\n  b.txt \\\n /d/",
        'ARG f=a\nCOPY ${f} "b.txt" /d/',
        "COPY a\\\n.x /d/",
        "ONBUILD COPY data /d\nCOPY a /x",
        "FROM scratch AS two\nCOPY --from=0 /y /z\nCOPY sub/a /q",
        "copy a /x",
        "cOpY\ta\t/x",
    ],
)
def test_same_image_as_buildkit(project: Project, line: str) -> None:
    """An image built from what is sent has the tree that BuildKit makes from the folder itself."""
    project.files(TREE)
    dockerfile = f"FROM scratch\nCOPY b.txt /y\n{line}\n"
    assert project.built(dockerfile) == project.built_by_buildkit(dockerfile)


@pytest.mark.parametrize(
    "mount",
    ["source=sub,target=/m", "type=bind,src=to-sub,dst=/m", "type=bind,target=/m,source=/sub/../data", "target=/m"],
)
def test_same_mounts_as_buildkit(project: Project, mount: str) -> None:
    """A bind mount from the context shows what BuildKit shows from the folder itself."""
    project.files(TREE)
    dockerfile = (
        "FROM ds01/debian:13 AS run\n"
        f"RUN --mount={mount} cd /m && find . -type f -print0 | sort -z | xargs -0 md5sum > /list\n"
        "FROM scratch\nCOPY --from=run /list /list\n"
    )
    mine = project.built(dockerfile)
    assert mine is not None
    assert mine == project.built_by_buildkit(dockerfile)


@pytest.mark.parametrize(
    "ignore",
    [
        "data",
        "/data/",
        "data/*\n!data/keep.txt",
        "*\n!sub\nsub/deep",
        "**/*.txt",
        "**/a",
        "sub/**",
        "*/a",
        "# comment\n\n  data  \n",
        "!a",
        "*\n!**/keep.txt",
        "sub/*/c.py",
        "s?b",
        "[a-b]*",
        "*\n!sub/deep/c.py\nsub/deep/*\n!sub/deep/c*",
        "Dockerfile\n.dockerignore",
        "x y",
        "data/..",
        "./data",
        "**",
        "**/deep/**\n!**/c.py",
    ],
)
def test_dockerignore_as_buildkit(project: Project, ignore: str) -> None:
    """`.dockerignore` leaves out what BuildKit leaves out; a Dockerfile that it names may stay, being needed."""
    project.files({**TREE, ".dockerignore": ignore})
    dockerfile = "FROM scratch\nCOPY . /d/\n"
    mine, theirs = project.built(dockerfile) or {}, project.built_by_buildkit(dockerfile) or {}
    mine.pop("d/Dockerfile", None)
    theirs.pop("d/Dockerfile", None)
    assert mine == theirs


def test_random_projects(project: Project) -> None:
    """Random trees, ignore rules and Dockerfiles give the image that BuildKit makes from the folder itself."""
    seed = int(os.environ.get("DS01_TEST_SEED", "1"))
    succeeded = 0
    for case in range(CASES):
        chance = random.Random(seed * 1000 + case)
        subprocess.run(["rm", "-rf", str(project.folder)], check=True)
        project.folder.mkdir()
        tree = random_tree(chance)
        project.files(tree)
        if chance.random() < 0.5:
            rules = [random_rule(chance) for _ in range(chance.randint(1, 4))]
            # The Dockerfile is always sent, being needed; BuildKit reads an ignored one by another way.
            project.files({".dockerignore": "\n".join([*rules, "!Dockerfile"])})
        dockerfile = "FROM scratch\n" + "".join(random_copy(chance, tree) for _ in range(chance.randint(1, 2)))
        mine, theirs = project.built(dockerfile), project.built_by_buildkit(dockerfile)
        assert mine == theirs, f"case {case}: {dockerfile!r} in {sorted(project.folder.rglob('*'))}"
        succeeded += mine is not None
    assert succeeded >= CASES / 5, "too few of the random projects build for the comparison to mean anything"


def random_tree(chance: random.Random) -> dict[str, str]:
    """Return a few files, folders and links."""
    tree: dict[str, str] = {}
    for _ in range(chance.randint(2, 10)):
        parts = [chance.choice(NAMES) for _ in range(chance.randint(1, 3))]
        path = "/".join(parts)
        taken = any(path.startswith(f"{other}/") or other.startswith(f"{path}/") for other in tree) or path in tree
        if taken:
            continue
        if chance.random() < 0.25:
            up = chance.choice(["", "", "../", "/", "./", "../../"])
            somewhere = "/".join(chance.choice(NAMES) for _ in range(chance.randint(1, 2)))
            # Most links lead to something, or too many of the builds would fail.
            tree[path] = f"->/{chance.choice(list(tree))}" if tree and chance.random() < 0.7 else f"->{up}{somewhere}"
        else:
            tree[path] = "/" if chance.random() < 0.15 else f"content of {path}"
    return tree or {"a": "a"}


def random_component(chance: random.Random) -> str:
    """Return a name or a pattern of one."""
    return chance.choice([*NAMES, *NAMES, "*", "*.txt", "?", "[a-c]*", "s*b", "*a*", "."])


def random_rule(chance: random.Random) -> str:
    """Return a line of a `.dockerignore`."""
    parts = [chance.choice([random_component(chance), "**"]) for _ in range(chance.randint(1, 3))]
    return chance.choice(["", "", "!", "/"]) + "/".join(parts)


def random_source(chance: random.Random, tree: dict[str, str]) -> str:
    """Return a source of `COPY`, mostly one that exists."""
    parts = chance.choice(list(tree)).split("/")
    parts = parts[: chance.randint(1, len(parts))]
    if chance.random() < 0.3:
        parts[chance.randrange(len(parts))] = random_component(chance)
    if chance.random() < 0.2:
        parts.append(random_component(chance))
    return chance.choice(["", "", "./", "/", "../"]) + "/".join(parts)


def random_copy(chance: random.Random, tree: dict[str, str]) -> str:
    """Return a `COPY`; a source with a blank makes it the JSON form."""
    sources = [random_source(chance, tree) for _ in range(chance.randint(1, 2))]
    flags = chance.choice(["", "", "--link ", "--chmod=640 "])
    if any(" " in source for source in sources):
        return f"COPY {flags}{json.dumps([*sources, '/d/'])}\n"
    return f"COPY {flags}{' '.join(sources)} /d/\n"


@pytest.mark.parametrize(
    ("dockerfile", "sent"),
    [
        ("FROM scratch\nRUN pip install six", set()),
        ("FROM scratch\nCOPY a sub/b.txt /d/", {"a", "sub/b.txt"}),
        ("FROM scratch\nCOPY to-a /d/", {"a", "to-a"}),
        ("FROM scratch\nRUN --mount=type=bind,source=data/keep.txt,target=/k true", {"data/keep.txt"}),
        ("FROM scratch AS x\nFROM scratch\nCOPY --from=x /a /b", set()),
    ],
)
def test_nothing_more_is_sent(project: Project, dockerfile: str, sent: set[str]) -> None:
    """Only files that the Dockerfile names leave the folder."""
    project.files(TREE)
    assert project.sent(dockerfile) == {*sent, "Dockerfile"}
