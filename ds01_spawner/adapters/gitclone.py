"""Clones a public repository into a new project's folder, with its owner's rights.

The address comes from a person and what is behind it from anybody, so as little as possible is trusted: HTTPS only, to
an address that is neither this host nor its link-local neighbourhood and that git cannot look up a second time, no
redirect, no credentials, no hooks, no submodules, no filters, one at a time for each person, limits on
time and size.
"""

from __future__ import annotations

import asyncio
import ipaddress
import os
import re
import signal
import socket
from contextlib import suppress
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from ds01_spawner.core.account import Account
from ds01_spawner.core.buildprogress import clean_line
from ds01_spawner.core.project import quoted
from ds01_spawner.errors import InvalidOptions, ProjectRefused

SECONDS_MAX: Final = 300.0
TIDY_SECONDS: Final = 5.0
FILE_BYTES_MAX: Final = 2 * 2**30
_URL: Final = re.compile(r"https://[A-Za-z0-9.-]{1,253}(?::[0-9]{1,5})?/[A-Za-z0-9._~/%+@-]{1,500}")
_SAID_LINES: Final = 6
_SAID_BYTES: Final = 64 * 1024
_HTTPS_PORT: Final = 443
_NOWHERE: Final = "192.0.2.1"  # of a range that is kept for examples

_CLONING: Final[set[str]] = set()


def check_address(url: str) -> str:
    """Return a repository's address.

    Raises:
        InvalidOptions: it is not one that is cloned here.
    """
    if not _URL.fullmatch(url) or ".." in url:
        raise InvalidOptions(
            f"{quoted(url, 120)} is not cloned here. Use a public HTTPS address such as "
            "https://github.com/someone/something, or leave it empty and clone from a terminal later."
        )
    return url


async def clone(account: Account, folder: int, url: str) -> None:
    """Clone into an empty folder, whose owner and rights everything gets.

    Args:
        account: the owner.
        folder: descriptor of the folder, as it was opened.
        url: from ``check_address``.

    Raises:
        ProjectRefused: it could not be cloned, with what git said; or another is being cloned for the account.
    """
    if account.name in _CLONING:
        raise ProjectRefused(
            "Another repository is being cloned for you. Clone this one from a terminal in the project, or create the "
            "project again under another name when that has ended."
        )
    _CLONING.add(account.name)
    try:
        await _clone(account, folder, url)
    finally:
        _CLONING.discard(account.name)


async def _clone(account: Account, folder: int, url: str) -> None:
    host, port = urlsplit(check_address(url)).hostname or "", urlsplit(url).port or _HTTPS_PORT
    # Whether the proxy is used is settled here: git and curl read no_proxy in ways of their own.
    proxy = "" if proxy_bypass(host) else getproxies().get("https", "")
    pinned = await asyncio.to_thread(_resolve, host, port, is_proxied=bool(proxy))
    settings = {
        "protocol.allow": "never",
        "protocol.https.allow": "always",
        "http.followRedirects": "false",
        "credential.helper": "",
        "core.hooksPath": "/dev/null",
        "core.symlinks": "true",
        "transfer.fsckObjects": "true",
        # Mistakes of old programs that harm nobody and are in the history of much that people clone.
        "fetch.fsck.badTimezone": "ignore",
        "fetch.fsck.zeroPaddedFilemode": "ignore",
        "http.curloptResolve": f"{host}:{port}:{pinned}",
    }
    flags = [word for key, value in settings.items() for word in ("-c", f"{key}={value}")]
    environment = {
        "PATH": os.environ.get("PATH", "/usr/bin:/bin"),
        "HOME": "/nonexistent",
        "LANG": "C.UTF-8",
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_LFS_SKIP_SMUDGE": "1",
        **({"https_proxy": proxy} if proxy else {}),
    }
    where = Path(f"/proc/self/fd/{folder}")
    command = ["git", *flags, "clone", "--quiet", "--no-recurse-submodules", "--template=", "--", url, "."]
    process = await asyncio.create_subprocess_exec(
        *_as(account),
        *command,
        cwd=where,
        env=environment,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stderr is not None  # noqa: S101 - asked for above
    try:
        async with asyncio.timeout(SECONDS_MAX):
            said = await _last_words(process.stderr)
            await process.wait()
    except BaseException as error:
        await _end(process)
        if isinstance(error, TimeoutError):
            raise ProjectRefused(
                f"The repository was not cloned within {SECONDS_MAX:.0f} seconds. Create the project without it and "
                "clone from a terminal in it."
            ) from error
        raise
    if process.returncode:
        text = said.decode("utf-8", "replace")
        if "terminal prompts disabled" in text:
            raise ProjectRefused(
                "The repository is not there or asks for a login, and only public ones are cloned here. Clone it from "
                "a terminal in the project, where you can log in."
            )
        lines = [clean_line(line) for line in text.splitlines() if line.strip()]
        raise ProjectRefused(
            "The repository could not be cloned. git says: " + " ".join(lines[-_SAID_LINES:] or ["nothing"])
        )


async def _last_words(stream: asyncio.StreamReader) -> bytes:
    """Return how a stream ends: a host may have git pass on as much as it likes."""
    said = b""
    while more := await stream.read(_SAID_BYTES):
        said = (said + more)[-_SAID_BYTES:]
    return said


async def _end(process: asyncio.subprocess.Process) -> None:
    """End git: kindly first, so that it takes away what it has written, then for certain."""
    for number, seconds in ((signal.SIGTERM, TIDY_SECONDS), (signal.SIGKILL, None)):
        with suppress(ProcessLookupError, TimeoutError):
            os.killpg(process.pid, number)
            async with asyncio.timeout(seconds):
                await process.wait()


def _as(account: Account) -> list[str]:
    """Return the words that let a command run as the account, with no way back, within a size for each file."""
    limits = ["prlimit", f"--fsize={FILE_BYTES_MAX}", "--"]
    if os.geteuid() != 0:
        return limits
    groups = ",".join(map(str, account.groups))
    who = [f"--reuid={account.uid}", f"--regid={account.gid}", f"--groups={groups}" if groups else "--clear-groups"]
    return ["setpriv", *who, "--no-new-privs", "--inh-caps=-all", "--", *limits]


def _resolve(host: str, port: int, *, is_proxied: bool) -> str:
    """Return the one address that git may connect to; with a proxy it asks that one, which may know more names."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        if is_proxied:
            return _NOWHERE
        raise ProjectRefused(f"There is no host {quoted(host)}. Check the repository's address.") from error
    addresses = [ipaddress.ip_address(str(entry[4][0]).partition("%")[0]) for entry in found]
    if not addresses or any(_is_forbidden(address) for address in addresses):
        raise ProjectRefused(f"{quoted(host)} is this server or its neighbourhood, from which nothing is cloned.")
    first = addresses[0]
    return f"[{first}]" if first.version == 6 else str(first)  # noqa: PLR2004


_CLOUD_METADATA = ipaddress.ip_address("fd00:ec2::254")
"""Where some clouds answer with a machine's secrets; that of IPv4 is a link-local address."""


def _is_forbidden(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    # IPv6 has two ways to write an address of IPv4.
    mapped = getattr(address, "ipv4_mapped", None) or getattr(address, "sixtofour", None) or address
    if mapped == _CLOUD_METADATA:
        return True
    if mapped.is_loopback or mapped.is_link_local or mapped.is_multicast or mapped.is_unspecified or mapped.is_reserved:
        return True
    # An address that can be bound is one of this host's own, such as the bridge's gateway.
    family = socket.AF_INET6 if mapped.version == 6 else socket.AF_INET  # noqa: PLR2004
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((str(mapped), 0))
        except OSError:
            return False
    return True
