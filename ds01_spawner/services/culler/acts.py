"""What the culler does: warns, calls off, ends, and leaves a record of each."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Protocol

from ds01_spawner.adapters.cullerfiles import CullerFiles
from ds01_spawner.adapters.hosttime import day_and_time, time_of_day
from ds01_spawner.adapters.hub import HubServer
from ds01_spawner.adapters.portalnotes import LostPackages
from ds01_spawner.core import wording
from ds01_spawner.core.idleness import Decision, Delivery, Reason, Retire, Warn
from ds01_spawner.core.idlerules import Rule
from ds01_spawner.services.culler.channels import PAGE, Channels, Sent
from ds01_spawner.services.culler.report import Report, describe_decision, describe_pass, measure
from ds01_spawner.services.culler.settings import Settings
from ds01_spawner.services.culler.watch import Watch, encode_delivery

log = logging.getLogger("ds01_spawner.culler")


class Events(Protocol):
    """Where events go."""

    @property
    def lost(self) -> int:
        """How many could not be written."""

    def record(self, kind: str, /, *, user: str = "", **details: Any) -> None:
        """Append one event."""


@dataclass(frozen=True, slots=True)
class Told:
    """A warning that was sent.

    Attributes:
        watch: whose server.
        decision: that made it.
        at: when, monotonic seconds.
        sent: where it arrived.
    """

    watch: Watch
    decision: Warn
    at: float
    sent: Sent


class Acts:
    """Does what was decided.

    Args:
        settings: the site's.
        channels: how users are reached.
        files: what pages and the command line read.
        packages: where the project's page finds what went with a container.
        events: the history.
        clock: monotonic seconds.
        wall: seconds since the epoch.
    """

    def __init__(
        self,
        settings: Settings,
        channels: Channels,
        files: CullerFiles,
        packages: LostPackages,
        events: Events,
        *,
        clock: Callable[[], float],
        wall: Callable[[], float],
    ) -> None:
        self.channels = channels
        self._settings = settings
        self._files = files
        self._packages = packages
        self._events = events
        self._clock = clock
        self._wall = wall
        self._written: Mapping[str, Any] = {}

    def standing(self) -> dict[str, Any]:
        """Return the warnings that stood when an earlier culler ended, by container."""
        return self._files.standing()

    async def tell(self, watches: Iterable[Watch]) -> Sequence[Told]:
        """Send every warning and every calling-off that was decided; return the warnings."""
        told = await asyncio.gather(*(self._tell_one(watch) for watch in watches))
        return [one for one in told if one is not None]

    async def _tell_one(self, watch: Watch) -> Told | None:
        try:
            await self._call_off(watch)
            self._note_keep_alive(watch)
            return await self._warn(watch, watch.decision) if isinstance(watch.decision, Warn) else None
        except Exception as error:
            # One server's trouble must not silence the others' warnings.
            watch.problem = f"{type(error).__name__}: {error}"
            watch.decision = None
            log.exception("%s/%s could not be told anything:", watch.server.user, watch.server.name)
            return None

    def publish(self, watches: Iterable[Watch], report: Report) -> bool:
        """Write what pages and metrics show, and return whether that worked."""
        watches = tuple(watches)
        wall = self._wall()
        try:
            self._files.write_status(
                describe_pass(report, watches, wall=wall, now=self._clock(), pass_seconds=self._settings.pass_seconds)
            )
            self._files.write_metrics(measure(report, watches, wall=wall, lost_events=self._events.lost))
        except OSError:
            log.exception("What the culler sees cannot be written")
            return False
        return True

    def settle(self, told: Iterable[Told], watches: Iterable[Watch], report: Report) -> None:
        """Publish a pass with its warnings on the page, count them as delivered where they arrived, and record them.

        Args:
            told: the warnings.
            watches: everything that is watched.
            report: of the pass.
        """
        made = []
        for one in told:
            stop_in, rule = one.decision.stop_in_seconds, one.decision.rule
            if rule is None:
                continue
            stop_at = math.inf if stop_in is None else one.at + stop_in
            delivery = Delivery(one.at, rule, one.decision.level, stop_at, (PAGE, *one.sent.arrived))
            one.watch.deliveries += (delivery,)
            made.append((one, delivery))
        page = self.publish(watches, report)
        for one, delivery in made:
            arrived = delivery.channels if page else one.sent.arrived
            # The newest of its watch; what no page could show has not arrived there.
            one.watch.deliveries = (*one.watch.deliveries[:-1], replace(delivery, channels=arrived))
            self._record("maintenance.warn", one.watch, one.decision, channels=arrived, failed=one.sent.failed)
        self._keep_standing(watches)

    async def end(
        self, watch: Watch, decision: Retire, *, took_seconds: float, stopped: bool, lost: tuple[str, ...] | None
    ) -> None:
        """Record the end of a server and tell of it.

        Args:
            watch: the server.
            decision: why.
            took_seconds: how long stopping it took.
            stopped: whether it has stopped, and is not still stopping.
            lost: the packages that went with its container, ``None`` when that cannot be told.
        """
        kind = "maintenance.runtime_kill" if decision.rule is Rule.RUN else "maintenance.idle_kill"
        clock = time_of_day(self._wall(), self._wall())
        text = wording.farewell(decision, watch.rules, project=watch.project, clock=clock)
        samples = wording.evidence(watch.samples, watch.rules, self._clock())
        sent = await self.channels.bid_farewell(watch, self._message("retired", watch, decision, text))
        warned = [delivery for delivery in watch.deliveries if delivery.rule is decision.rule]
        deliveries = [
            {"seconds_before": round(self._clock() - delivery.at), "channels": list(delivery.channels)}
            for delivery in warned
        ]
        stop = {"took_seconds": round(took_seconds, 1), "stopped": stopped}
        self._record(kind, watch, decision, deliveries=deliveries, failed=sent.failed, **stop)
        if lost is not None:
            self._packages.write(watch.server.user, watch.project, lost)
        try:
            self._files.add_retired(
                {
                    "user": watch.server.user,
                    "server": watch.server.name,
                    "project": watch.project,
                    "at": self._wall(),
                    "when": day_and_time(self._wall()),
                    "text": text,
                    "why": self._why(watch, decision),
                    "samples": samples,
                }
            )
        except OSError:
            log.exception("The end of %s/%s cannot be shown", watch.server.user, watch.server.name)
        log.info("Retired %s/%s: %s", watch.server.user, watch.server.name, text)

    def forget_launched(self, servers: Iterable[HubServer]) -> None:
        """Tell nobody any more how a server ended that starts or runs again."""
        back = {(server.user, server.name) for server in servers if server.pending != "stop"}
        try:
            self._files.forget_retired(back)
        except OSError:
            log.exception("How servers ended that run again cannot be forgotten")

    def _why(self, watch: Watch, decision: Retire) -> list[str]:
        """Return the sentences of a retirement for its user's page."""
        rules = watch.rules
        sentences = [wording.reason(decision, rules), wording.limits_in_force(decision, rules, watch.limits.group)]
        if decision.rule is Rule.IDLE:
            sentences.append(wording.what_is_use(rules, has_device=bool(watch.place.devices)))
        warned = [(self._clock() - d.at, d.channels) for d in watch.deliveries if d.rule is decision.rule]
        return [*sentences, wording.warnings_before(warned)]

    async def _warn(self, watch: Watch, decision: Warn) -> Told:
        at = self._clock()
        text = wording.warning(
            decision,
            watch.rules,
            project=watch.project,
            stop_clock=time_of_day(self._wall() + (decision.stop_in_seconds or 0), self._wall()),
            keep_alive_seconds=watch.limits.keepalive_seconds,
        )
        message = self._message("warn", watch, decision, text)
        announce = decision.rule is not None and decision.rule.ends
        return Told(watch, decision, at, await self.channels.warn(watch, text, message, announce=announce))

    async def _call_off(self, watch: Watch) -> None:
        decision = watch.decision
        if decision is None or not decision.withdrawn:
            return
        gone = watch.withdraw(decision.withdrawn)
        if not any(delivery.rule.ends for delivery in gone):
            return  # no end was announced, so none is called off
        text = wording.called_off(decision, project=watch.project)
        sent = await self.channels.call_off(watch, text, self._message("called-off", watch, decision, text))
        self._record("maintenance.cancel", watch, decision, channels=sent.arrived, failed=sent.failed)

    def _note_keep_alive(self, watch: Watch) -> None:
        holds = bool(watch.keep_alive_seconds)
        if holds and not watch.keep_alive_told and watch.decision and watch.decision.reason is Reason.KEEP_ALIVE:
            watch.keep_alive_told = True
            self._record(
                "maintenance.keep", watch, watch.decision, keep_alive_seconds=round(watch.keep_alive_seconds or 0)
            )
        if watch.keep_alive_seconds == 0:
            watch.keep_alive_told = False

    def _keep_standing(self, watches: Iterable[Watch]) -> None:
        standing = {
            watch.place.container_id: [encode_delivery(delivery) for delivery in watch.deliveries]
            for watch in watches
            if watch.deliveries
        }
        if standing == self._written:
            return
        try:
            self._files.write_standing(standing)
        except OSError:
            log.exception("The warnings that stand cannot be kept for a restart")
        else:
            self._written = standing

    def _record(self, kind: str, watch: Watch, decision: Decision, **details: Any) -> None:
        rules = watch.rules
        self._events.record(
            kind,
            user=watch.server.user,
            server=watch.server.name,
            project=watch.project,
            container=watch.place.container_id[:12],
            devices=list(watch.place.devices),
            decision=describe_decision(decision, watch, wall=self._wall()),
            limits={
                "group": watch.limits.group,
                "idle_seconds": rules.idle_seconds,
                "run_seconds": rules.run_seconds,
                "counting": rules.counting,
                "gpu_percent": rules.thresholds.gpu_percent,
                "cpu_cores": rules.thresholds.cpu_cores,
                "network_bytes_per_second": round(rules.thresholds.network_bytes_per_second),
            },
            samples=wording.evidence(watch.samples, rules, self._clock()),
            **details,
        )

    def _message(self, kind: str, watch: Watch, decision: Decision, text: str) -> dict[str, Any]:
        stop_in = decision.stop_in_seconds
        return {
            "kind": kind,
            "hub": self._settings.hub,
            "user": watch.server.user,
            "server": watch.server.name,
            "project": watch.project,
            "rule": decision.rule,
            "stop_at": None if stop_in is None else datetime.fromtimestamp(self._wall() + stop_in, UTC).isoformat(),
            "text": text,
        }
