"""What the engine's adapter reads of images, without an engine."""

from __future__ import annotations

import io
import itertools
import tarfile
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from ds01_spawner.adapters.engine import ACCOUNT_FILE_BYTES, KNOWN_IMAGES, Engine
from ds01_spawner.errors import ImageRefused


class Client:
    """Serves one archive for every path, in chunks, and counts what was read of it."""

    def __init__(self, chunks: Iterator[bytes] | list[bytes]) -> None:
        self.chunks = chunks
        self.read = 0

    def get_archive(self, container: str, path: str) -> tuple[Iterator[bytes], dict[str, Any]]:
        """Return the archive."""
        del container, path
        return self._count(), {}

    def _count(self) -> Iterator[bytes]:
        for chunk in self.chunks:
            self.read += len(chunk)
            yield chunk


def account_files(engine: Engine, client: Client, image: str = "sha256:1") -> bytes:
    """Return what is put into a container of an image."""
    server = SimpleNamespace(image_id=image, user="alice", uid=2000, gid=2000, home="/home/alice")
    return engine._account_files(client, "c", server)  # type: ignore[arg-type]


def packed(text: bytes) -> list[bytes]:
    """Return an archive of one file."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        entry = tarfile.TarInfo("passwd")
        entry.size = len(text)
        archive.addfile(entry, io.BytesIO(text))
    return [file.getvalue()]


@pytest.fixture
def engine() -> Iterator[Engine]:
    """An adapter that never asks its engine."""
    adapter = Engine(network="none")
    yield adapter
    adapter.close()


def test_a_list_of_accounts_without_end_is_refused(engine: Engine) -> None:
    """Not much more than the limit is read of it."""
    client = Client(itertools.repeat(b"x" * 65536))
    with pytest.raises(ImageRefused, match="larger than 1 MiB"):
        account_files(engine, client)
    assert client.read <= ACCOUNT_FILE_BYTES + 65536


def test_only_so_many_images_are_remembered(engine: Engine) -> None:
    """A hub that runs for a year with a new image every minute does not grow; a known image is not read again."""
    client = Client(packed(b"root:x:0:0::/root:/bin/sh\n"))
    for number in range(3 * KNOWN_IMAGES + 1):
        assert b"root:x:0:0" in account_files(engine, client, f"sha256:{number}")
    assert len(engine._accounts) <= KNOWN_IMAGES
    read = client.read
    account_files(engine, client, f"sha256:{3 * KNOWN_IMAGES}")
    assert client.read == read
