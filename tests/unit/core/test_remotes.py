"""Where ADD may fetch from."""

from __future__ import annotations

import pytest

from ds01_spawner.core.dockerfile import parse
from ds01_spawner.core.remotes import check_remotes
from ds01_spawner.errors import ProjectRefused


@pytest.mark.parametrize(
    "line",
    [
        "ADD http://127.0.0.1:8081/hub/api /x",
        "ADD https://LOCALHOST/x /x",
        "ADD http://localhost./x /x",
        "ADD http://a.localhost/x /x",
        "ADD http://thishost:8000/x /x",
        "ADD http://10.0.0.1/x /x",
        "ADD http://172.17.0.1/x /x",
        "ADD http://169.254.169.254/latest/meta-data /x",
        "ADD http://0.0.0.0/x /x",
        "ADD http://127.1/x /x",
        "ADD http://2130706433/x /x",
        "ADD http://0x7f.1/x /x",
        "ADD http://[::1]:80/x /x",
        "ADD http://[::ffff:127.0.0.1]/x /x",
        "ADD http://[fe80::1%25eth0]/x /x",
        "ADD http://a:b@127.0.0.1/x /x",
        "ADD http://127.0.0.1?x /x",
        "ADD git@127.0.0.1:a/b.git /x",
        "ADD ssh://git@localhost/x.git /x",
        "ADD git://127.0.0.1/x.git /x",
        'ADD "http://127.0.0.1/x" /x',
        "ADD ht\\tp://127.0.0.1/x /x",
        'ADD ["http://127.0.0.1/x", "/x"]',
        "ADD --checksum=sha256:1 a https://example.org/x http://$HOST/x /x",
        "ONBUILD ADD http://127.0.0.1/x /x",
    ],
)
def test_addresses_of_the_host_and_its_network_are_refused(line: str) -> None:
    """The builder's own network is the host's, where what listens on loopback trusts whoever reaches it."""
    with pytest.raises(ProjectRefused, match=r"Line 2 .*adds from"):
        check_remotes(parse(f"FROM x\n{line}\n"))


@pytest.mark.parametrize(
    "line",
    [
        "ADD https://example.org/x.tar.gz git@example.org:x/y.git /x",
        "ADD https://example.org/$V/http://127.0.0.1 /x",
        "ADD https://8.8.8.8/x https://[2606:4700::1111]/x /x",
        "ADD a@2x.png localhost 127.0.0.1 /x",
        "ADD file.txt http://127.0.0.1/",
        "ADD $FILE /x",
        "COPY http://127.0.0.1/x /x",
        "RUN curl http://127.0.0.1/",
    ],
)
def test_everything_else_is_the_users_business(line: str) -> None:
    """The internet, files of the project, and what runs in the build's own network."""
    check_remotes(parse(f"FROM x\n{line}\n"))
