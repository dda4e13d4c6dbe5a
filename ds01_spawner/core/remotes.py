"""Where ``ADD`` may fetch from.  The builder fetches in the host's own network, so not from the host nor beside it.

What a name leads to is known only when the builder asks for it, so this keeps out addresses, not intent: what else
the host serves on loopback needs a password of its own.
"""

from __future__ import annotations

import re
from ipaddress import ip_address

from ds01_spawner.core.dockerfile import ParsedDockerfile
from ds01_spawner.errors import ProjectRefused

_REMOTE = re.compile(r"(?:\w+://(?:[^/?#]*@)?|[\w.-]+@(?=[^/]*:))(\[[^\]]*|[^/:?#]*)", re.ASCII)
_NUMBER = re.compile(r"\d+|0x[0-9a-f]*")


def check_remotes(dockerfile: ParsedDockerfile) -> None:
    """Refuse a Dockerfile that adds from an address of this host or of its own network.

    Raises:
        ProjectRefused: with the line and what to write instead.
    """
    for stored in dockerfile.instructions:
        instruction = stored.trigger or stored
        for source in instruction.words[:-1] if instruction.keyword == "ADD" else ():
            match = _REMOTE.match(re.sub(r"['\"\\`]", "", source))
            if match and _is_near(match[1]):
                raise ProjectRefused(
                    f"Line {instruction.line} of the Dockerfile adds from “{source[:80]}”, which is or may be this "
                    "server or its own network; ADD fetches only from hosts of the internet, by their full name. Put "
                    "the file into the project's folder and use COPY, or fetch it with RUN."
                )


def _is_near(host: str) -> bool:
    name = host.removeprefix("[").partition("%")[0].rstrip(".").lower()
    try:
        return not ip_address(name).is_global
    except ValueError:
        last = name.rpartition(".")[2]
    # A name without a dot is this host or one beside it; 127.1 and 0x7f.1 are addresses to a resolver.
    return "." not in name or last == "localhost" or _NUMBER.fullmatch(last) is not None
