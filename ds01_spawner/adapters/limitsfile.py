"""The limits file: who may have what, in one YAML file that is read again when it changes.

Beside it, where the DS01 system keeps them, may lie: ``groups/<group>.members`` (one login name a line),
``user-overrides.yaml`` and ``lifecycle-exemptions.yaml``.  What they say is added to the file's own sections.
"""

from __future__ import annotations

import difflib
import grp
import logging
import os
import pwd
import stat
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from ds01_spawner.adapters.limitsschema import GroupSection, Sections, changes, policy_changes, read_sections
from ds01_spawner.adapters.yamllines import MAX_BYTES, Document, YamlRefused, parse
from ds01_spawner.core.limits import Exemption, Group, Limits, Policy, resolve
from ds01_spawner.errors import LimitsFileInvalid

log = logging.getLogger(__name__)

# A file that was changed less than this ago may still be being written.
GROUPS_SECONDS = 60.0
SETTLE_SECONDS = 1.0

Signature = tuple[tuple[str, int, int, int], ...]


class Recorder(Protocol):
    """Where events go."""

    def record(self, kind: str, /, *, user: str = "", **details: Any) -> None:
        """Append one event."""


@dataclass(frozen=True, slots=True)
class Contents:
    """What a limits file and the files beside it say.

    Attributes:
        policy: the decisions.
        notes: a sentence for each thing that an admin should know, such as an earlier key.
    """

    policy: Policy
    notes: tuple[str, ...]


def linux_groups_of(user: str) -> frozenset[str]:
    """Return the names of a user's groups on this host; none for a user that the host does not know."""
    try:
        account = pwd.getpwnam(user)
    except (KeyError, ValueError):
        return frozenset()
    names = set()
    for gid in os.getgrouplist(user, account.pw_gid):
        try:
            names.add(grp.getgrgid(gid).gr_name)
        except KeyError:
            continue
    return frozenset(names)


def in_a_thread(work: Callable[[], None]) -> None:
    """Run something that nobody waits for."""
    threading.Thread(target=work, name="limits", daemon=True).start()


class HostGroups:
    """Remembers the host's groups of people, for decisions that cannot wait for a directory service.

    Args:
        ask: the host.
        clock: monotonic seconds.
        apart: runs an asking that nobody waits for.
    """

    def __init__(
        self,
        ask: Callable[[str], frozenset[str]] = linux_groups_of,
        *,
        clock: Callable[[], float] = time.monotonic,
        apart: Callable[[Callable[[], None]], object] = in_a_thread,
    ) -> None:
        self._ask = ask
        self._clock = clock
        self._apart = apart
        self._known: dict[str, tuple[float, frozenset[str]]] = {}

    def __call__(self, user: str) -> frozenset[str]:
        """Return a user's groups: asked the first time, then as they were at most about a minute ago."""
        if user not in self._known:
            self._remember(user)
        at, groups = self._known[user]
        if self._clock() - at >= GROUPS_SECONDS:
            self._known[user] = (self._clock(), groups)  # asked once, however many decisions come meanwhile
            self._apart(lambda: self._remember(user))
        return groups

    def _remember(self, user: str) -> None:
        self._known[user] = (self._clock(), self._ask(user))


class LimitsFile:
    """The limits in force, from a file that admins edit while the hub runs.

    Every use looks whether the file changed.  A change that cannot be used leaves the last good contents in force; it
    is logged, recorded as an event, and stays visible in ``problem`` until it is mended.

    Args:
        path: the YAML file.
        recorder: gets a ``config.change`` event for every change, used or refused.
        clock: seconds since the epoch.
        linux_groups: the host's groups of a user; asked only if the file names any.
        apart: runs the reading of a changed file: at once by default, or in a thread where that must not be waited for;
            until it is done the contents of before are in force.

    Raises:
        LimitsFileInvalid: the file cannot be used; without a good one the hub does not start.
    """

    def __init__(
        self,
        path: Path | str,
        *,
        recorder: Recorder | None = None,
        clock: Callable[[], float] = time.time,
        linux_groups: Callable[[str], frozenset[str]] = linux_groups_of,
        apart: Callable[[Callable[[], None]], object] = lambda read: read(),
    ) -> None:
        self._path = Path(path)
        self._recorder = recorder
        self._clock = clock
        self._linux_groups = linux_groups
        self._apart = apart
        self._is_reading = False
        self._problem = ""
        self._signature = _signature(self._path)
        self._contents = read_contents(self._path)
        for note in self._contents.notes:
            log.warning("%s", note)

    @property
    def policy(self) -> Policy:
        """The decisions in force."""
        self._refresh()
        return self._contents.policy

    @property
    def notes(self) -> tuple[str, ...]:
        """What an admin should know about the contents in force, one sentence each."""
        self._refresh()
        return self._contents.notes

    @property
    def problem(self) -> str:
        """Why the file as it is now is not in force; empty when it is."""
        self._refresh()
        return self._problem

    def limits(self, user: str, groups: frozenset[str] = frozenset()) -> Limits:
        """Return the limits of a user.

        Args:
            user: login name.
            groups: names of the user's JupyterHub groups.
        """
        policy = self.policy
        ask_host = any(group.linux_groups for group in policy.groups)
        return resolve(policy, user, groups, self._clock(), self._linux_groups(user) if ask_host else ())

    def _refresh(self) -> None:
        signature = _signature(self._path)
        if self._is_reading or signature == self._signature or self._being_written(signature):
            return
        self._signature = signature
        self._is_reading = True
        self._apart(self._read)

    def _read(self) -> None:
        had_problem = bool(self._problem)
        try:
            contents, self._problem = read_contents(self._path), ""
        except LimitsFileInvalid as error:
            contents, self._problem = self._contents, str(error)
        finally:
            self._is_reading = False
        if self._problem:
            log.error("%s\nThe limits of before stay in force.", self._problem)
            self._record("refused", problem=self._problem)
        elif had_problem or contents != self._contents:
            self._contents = contents
            log.info("Limits read again from %s", self._path)
            for note in contents.notes:
                log.warning("%s", note)
            self._record("loaded")

    def _being_written(self, signature: Signature) -> bool:
        """Whether the newest change is so fresh that its writer may not be done; a date in the future is not fresh."""
        newest = max((modified_ns for _, modified_ns, _, _ in signature), default=0) / 1e9
        return 0 <= self._clock() - newest < SETTLE_SECONDS

    def _record(self, result: str, **details: Any) -> None:
        if self._recorder is not None:
            self._recorder.record("config.change", file=str(self._path), result=result, **details)


def read_contents(path: Path) -> Contents:
    """Return what a limits file and the files beside it say.

    Raises:
        LimitsFileInvalid: carries every problem of all files.
    """
    reader = _Reader()
    main = reader.sections(path)
    for name, section in (("user-overrides.yaml", "user_overrides"), ("lifecycle-exemptions.yaml", "")):
        beside = path.with_name(name)
        if beside.exists():
            main = reader.joined(main, reader.sections(beside, section), beside.name)
    groups = tuple(reader.group(path, name, section) for name, section in main.groups.items())
    if main.default_group and main.default_group not in main.groups:
        near = difflib.get_close_matches(main.default_group, main.groups, n=1)
        hint = f"did you mean {near[0]}?" if near else "add it to groups, or remove default_group"
        reader.problems.append(f"{path.name}: default_group: there is no group {main.default_group}; {hint}")
    policy = Policy(
        defaults=replace(Limits(), **changes(main.defaults), **policy_changes(main.policies)),
        groups=groups,
        default_group=main.default_group,
        users={user: changes(values) for user, values in main.user_overrides.items()},
        exemptions=tuple(
            Exemption(
                user=entry.username,
                idle="idle_timeout_h" in entry.exempt_from,
                runtime="max_runtime_h" in entry.exempt_from,
                reason=entry.reason,
                until=entry.expires_on,
            )
            for entry in main.exemptions
        ),
    )
    reader.problems += _contradictions(path.name, policy)
    if reader.problems:
        raise LimitsFileInvalid(tuple(reader.problems))
    return Contents(policy, (*reader.notes, *_ambiguities(path.name, policy)))


class _Reader:
    def __init__(self) -> None:
        self.problems: list[str] = []
        self.notes: list[str] = []

    def sections(self, path: Path, section: str = "") -> Sections:
        """Return a file's sections; of a file that holds one section alone, that section.  Empty when refused."""
        try:
            document = parse(_content(path))
        except OSError as error:
            self.problems.append(f"{path}: cannot be read: {error.strerror or error}")
            return Sections()
        except YamlRefused as error:
            if section and error.empty:
                return Sections()
            self.problems.append(f"{path.name}:{error.line}: {error.problem}")
            return Sections()
        if section:
            lines = {(section, *key): line for key, line in document.lines.items()}
            document = Document({section: document.data}, lines)
        sections, notes, problems = read_sections(path.name, document)
        self.notes += notes
        self.problems += problems
        return sections or Sections()

    def joined(self, main: Sections, beside: Sections, name: str) -> Sections:
        twice = main.user_overrides.keys() & beside.user_overrides.keys()
        self.problems += (f"{name}: {user} has overrides in the limits file too; keep one" for user in sorted(twice))
        return main.model_copy(
            update={
                "user_overrides": main.user_overrides | beside.user_overrides,
                "exemptions": main.exemptions + beside.exemptions,
            }
        )

    def group(self, path: Path, name: str, section: GroupSection) -> Group:
        members = set(section.members)
        listed = path.parent / "groups" / f"{name}.members"
        try:
            text = _content(listed).decode("utf-8")
            members |= {line for line in (raw.partition("#")[0].strip() for raw in text.splitlines()) if line}
        except FileNotFoundError:
            pass
        except (OSError, UnicodeDecodeError) as error:
            self.problems.append(f"{listed}: cannot be read: {error}")
        return Group(
            name=name,
            changes=changes(section),
            members=frozenset(members),
            linux_groups=frozenset(section.linux_groups),
        )


def _content(path: Path) -> bytes:
    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_mode & stat.S_IWOTH:
            raise PermissionError(0, "everybody may write to it, so anybody could raise their limits; chmod o-w")
        return file.read(MAX_BYTES + 1)


def _signature(path: Path) -> Signature:
    """Return what changes when any of the files does: name, modification time, inode, size."""

    def files() -> Iterator[Path]:
        yield path
        yield path.with_name("user-overrides.yaml")
        yield path.with_name("lifecycle-exemptions.yaml")
        yield from sorted((path.parent / "groups").glob("*.members"))

    found = []
    for file in files():
        try:
            status = file.stat()
        except OSError:
            continue
        found.append((file.name, status.st_mtime_ns, status.st_ino, status.st_size))
    return tuple(found)


def _contradictions(name: str, policy: Policy) -> Iterator[str]:
    """Yield a sentence for each group and user whose merged values cannot go together."""
    everyone = replace(policy, default_group="", exemptions=())
    cases = [("defaults", resolve(replace(everyone, users={}), "", (), 0))]
    cases += [(f"groups.{group.name}", resolve(everyone, "", (group.name,), 0)) for group in policy.groups]
    cases += [(f"user_overrides.{user}", resolve(policy, user, (), 0)) for user in policy.users]
    for where, limits in cases:
        if limits.shm_size_bytes > limits.memory_bytes:
            yield f"{name}: {where}: shm_size is larger than memory, of which it is a part"


def _ambiguities(name: str, policy: Policy) -> Iterator[str]:
    """Yield a sentence for each user who is listed in several groups."""
    groups_of: dict[str, list[str]] = {}
    for group in policy.groups:
        for member in group.members:
            groups_of.setdefault(member.casefold(), []).append(group.name)
    for member, names in sorted(groups_of.items()):
        if len(names) > 1:
            yield f"{name}: {member} is a member of {' and '.join(names)}; {names[-1]} counts, being furthest down"
