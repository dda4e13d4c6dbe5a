"""Every deliberate exception.

DS01Error
├── Refusal                 a "no" for the user: the text says which rule, the numbers, and what to do next
│   ├── InvalidOptions      what was asked for is not a valid request
│   ├── ProjectRefused      the project's name or folder cannot be used
│   ├── ImageRefused        the image cannot become a JupyterLab
│   ├── BuildFailed         the user's Dockerfile did not build; carries the step and the log's end
│   ├── LimitReached        a limit of the user or the group is used up
│   └── DeviceRefused       no device can satisfy the request, now or ever
└── Fault                   ours or the host's; the user sees one sentence, the log sees the cause
    ├── EngineUnavailable   Docker Engine did not answer, or answered with an error of its own
    ├── HubUnavailable      the hub did not answer a service, or refused what it may do
    ├── AccountUnavailable  the user's account or home folder cannot be used
    ├── RuntimeUnavailable  the notebook runtime for a Python version cannot be made
    ├── SiteMisconfigured   the site's configuration would break a promise of every launch
    ├── LimitsFileInvalid   the limits file cannot be used; carries every problem with its line
    ├── DevicesUnavailable  devices exist, but nothing safe can be said about them now, so none is granted
    ├── LedgerBroken        a step would have broken a rule of the ledger; nothing was changed
    └── ServerDied          the container ended before or after its server was ready; says why

Facts are attributes, the text is derived from them.  Vendor errors stay at the adapters, chained as ``__cause__``.
"""

from __future__ import annotations

from fractions import Fraction


class DS01Error(Exception):
    """Root of every exception raised on purpose.

    Attributes:
        reason: a stable word for metrics and scripts, such as ``"build-failed"``.
        status: the HTTP status that suits the error.
    """

    reason = "error"
    status = 500


class Refusal(DS01Error):
    """A deliberate no.  Its text is shown to the user as it is, so it ends with a next step."""

    reason = "refused"
    status = 400


class InvalidOptions(Refusal):
    """The form or the API asked for something that is not a valid request."""

    reason = "invalid-options"


class ProjectRefused(Refusal):
    """The project's name, folder or Dockerfile cannot be used."""

    reason = "project-refused"


class ImageRefused(Refusal):
    """The project's image cannot become a JupyterLab."""

    reason = "image-refused"


class BuildFailed(Refusal):
    """The user's Dockerfile did not build; the previous image stays usable.

    Attributes:
        step: the failing instruction as BuildKit names it, such as ``"[2/3] RUN pip install nosuch"``; may be empty.
        log: the last lines of the failing step's output.
    """

    reason = "build-failed"

    def __init__(self, message: str, *, step: str = "", log: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.step = step
        self.log = log


class LimitReached(Refusal):
    """A limit of the user or the group is used up.

    Attributes:
        limit: its name in the limits file, such as ``"max_gpu_equivalents"``.
        allowed: how much the limit allows.
        held: how much of it the user has already.
        asked: how much more was asked for.
    """

    reason = "limit-reached"
    status = 403

    def __init__(
        self,
        message: str,
        *,
        limit: str = "",
        allowed: Fraction | None = None,
        held: Fraction | None = None,
        asked: Fraction | None = None,
    ) -> None:
        super().__init__(message)
        self.limit = limit
        self.allowed = allowed
        self.held = held
        self.asked = asked


class DeviceRefused(Refusal):
    """No device can satisfy the request."""

    reason = "no-device"
    status = 503


class Fault(DS01Error):
    """Something of ours or of the host failed."""

    reason = "fault"


class EngineUnavailable(Fault):
    """Docker Engine did not answer, or answered with an error of its own."""

    reason = "engine-unavailable"
    status = 503


class HubUnavailable(Fault):
    """The hub did not answer a service, or refused what it may do."""

    reason = "hub-unavailable"
    status = 503


class AccountUnavailable(Fault):
    """The user's account or home folder cannot be used."""

    reason = "account-unavailable"


class RuntimeUnavailable(Fault):
    """The notebook runtime for a Python version cannot be made or is damaged."""

    reason = "runtime-unavailable"
    status = 503


class DevicesUnavailable(Fault):
    """Devices exist, but nothing safe can be said about them now, so none is granted."""

    reason = "devices-unavailable"
    status = 503


class LedgerBroken(Fault):
    """A step would have broken a rule of the ledger, which means a defect of the program; nothing was changed."""

    reason = "ledger-broken"


class SiteMisconfigured(Fault):
    """The site's configuration would break a promise of every launch; the text names the trait and the key."""

    reason = "site-misconfigured"


class LimitsFileInvalid(Fault):
    """The limits file cannot be used.

    Attributes:
        problems: one sentence each, with file, line, what is wrong and the accepted form.
    """

    reason = "limits-file"

    def __init__(self, problems: tuple[str, ...]) -> None:
        super().__init__("The limits file cannot be used.\n" + "\n".join(problems))
        self.problems = problems


class ServerDied(Fault):
    """The container ended although it should run; the text says why."""

    reason = "server-died"
