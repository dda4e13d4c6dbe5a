"""One dated look at the host: the engine's containers and the driver's devices, together."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from ds01_spawner.adapters.nvml import DeviceLook
from ds01_spawner.core.model import Container, Observation
from ds01_spawner.errors import EngineUnavailable


class Devices(Protocol):
    """The GPUs of this host: NVML, or simulated ones."""

    async def look(self) -> DeviceLook:
        """Return what can be read now; never raises."""


class Containers(Protocol):
    """The containers of this host."""

    async def containers(self) -> tuple[Container, ...]:
        """Return all of them, or raise EngineUnavailable."""


class Observer:
    """Makes observations.

    Args:
        devices: the GPUs.
        containers: the engine.
        clock: epoch seconds.
    """

    def __init__(self, devices: Devices, containers: Containers, clock: Callable[[], float]) -> None:
        self._devices = devices
        self._containers = containers
        self._clock = clock

    async def observe(self) -> Observation:
        """Return one observation, dated when the look began; what could not be read is ``None`` and says why."""
        at = self._clock()
        look, (containers, problem) = await asyncio.gather(self._devices.look(), self._list())
        return Observation(
            at=at,
            devices=look.devices,
            containers=containers,
            processes=look.processes,
            memory_used_bytes=look.memory_used_bytes,
            problem=" ".join(text for text in (look.problem, problem) if text),
        )

    async def _list(self) -> tuple[tuple[Container, ...] | None, str]:
        try:
            return await self._containers.containers(), ""
        except EngineUnavailable as error:
            return None, str(error)
