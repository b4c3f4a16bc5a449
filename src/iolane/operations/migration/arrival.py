"""One machine that arrives: the agreement with its link, its engine and its limits of patience."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable

import msgspec

from iolane.engines.qemu.migration_settings import MigrationSettings
from iolane.engines.qemu.patience import patient
from iolane.errors import IolaneError
from iolane.operations.migration.channel import Channel
from iolane.operations.migration.destination import Act, DestinationAgreement, DestinationPhase, Steps
from iolane.operations.migration.messages import Brings, FromSource, Moving, Ready
from iolane.operations.migration.moved_device import Departed
from iolane.operations.migration.sides import ArrivingMachine, IncomingSide
from iolane.operations.migration.waiting_stream import WaitingStream

SILENCE = 600.0
"""Seconds without a word of the source, after which the link is taken for cut: a guest may take its time to
let go of devices. A host that is gone is noticed sooner, by TCP."""

Post = Callable[[Callable[[], object]], object]
"""Has a call made in the thread that everything else of this arrival is done in."""


class Arrival:
    """Methods are called in one thread.

    Args:
        identity: of the move.
        machine: was made for it, and stands still.
        channel: the link to the source.
        post: for what other threads notice.

    Attributes:
        agreement: where it stands.
        machine: what arrives.
        problems: what did not come along, once it runs.
        told: whoever waits for it has been told.
    """

    def __init__(
        self,
        identity: str,
        machine: ArrivingMachine,
        channel: Channel[FromSource],
        settings: MigrationSettings,
        post: Post,
    ) -> None:
        self.agreement = DestinationAgreement(identity)
        self.machine = machine
        self.channel: Channel[FromSource] | None = channel
        self.problems: list[str] = []
        self.told = False
        self.progress: Moving | None = None
        self.waiting = WaitingStream(secrets.token_hex(16))
        self._settings = settings
        self._post = post
        self._incoming: IncomingSide | None = None
        self._departed: list[Departed] = []
        self._heard = time.monotonic()
        machine.on_lost(lambda: post(lambda: self._do(self.agreement.failed("its engine has ended"))))

    @property
    def identity(self) -> str:
        """Of the move."""
        return self.agreement.identity

    def begin(self) -> None:
        """Tell the source that all is ready."""
        self._say(Ready(self.waiting.token))

    def take_stream(self) -> None:
        """The source's stream has come."""
        connection = self.waiting.take()
        if connection is None or self._incoming is not None:
            return
        try:
            incoming = self.machine.incoming(self._settings, self._ended)
            self._incoming = incoming
            incoming.start(connection)
        except IolaneError as error:
            connection.close()
            self._do(self.agreement.failed(str(error)))

    def hear(self, message: FromSource) -> None:
        """The source says something."""
        self._heard = time.monotonic()
        if isinstance(message, Moving):
            self.progress = message
        if isinstance(message, Brings) and self.agreement.phase is DestinationPhase.RECEIVING:
            self._departed = message.devices
        self._do(self.agreement.hear(message))

    def hear_again(self, channel: Channel[FromSource], message: FromSource) -> None:
        """The source asks, on another link."""
        before, self.channel = self.channel, channel
        if before is not None and before is not channel:
            before.close()
        self.hear(message)

    def link_lost(self, reason: str) -> None:
        """The link is cut."""
        if self.channel is not None:
            self.channel.close()
        self.channel = None
        self._do(self.agreement.link_lost(reason))
        if self.agreement.in_doubt:
            self.machine.doubt(reason)

    def look(self) -> None:
        """Now and then: has the source been silent for too long?"""
        silent = patient(SILENCE)
        if self.agreement.phase is DestinationPhase.RECEIVING and time.monotonic() - self._heard > silent:
            self.link_lost(f"the source has said nothing for {silent:g} s")

    def source_ended(self) -> bool:
        """The operator knows that it has: the machine runs here. Whether that was open."""
        steps = self.agreement.source_ended()
        self._do(steps)
        return bool(steps)

    def end(self, reason: str) -> bool:
        """The operator ends it, unless it runs. Whether that was open."""
        steps = self.agreement.end(reason)
        self._do(steps)
        return bool(steps)

    def close(self) -> None:
        """Nothing more is heard or said."""
        self.waiting.close()
        if self._incoming is not None:
            self._incoming.close()
        if self.channel is not None:
            self.channel.close()
            self.channel = None

    # -- inside ---------------------------------------------------------------------------------------------

    def _ended(self, complete: bool) -> None:
        """In the engine's thread."""
        self._post(lambda: self._hear_engine(complete))

    def _hear_engine(self, complete: bool) -> None:
        assert self._incoming is not None
        if complete:
            self._do(self.agreement.arrived())
        else:
            self._do(self.agreement.failed(f"QEMU: {self._incoming.reason()}"))

    def _do(self, steps: Steps) -> None:
        for step in steps:
            match step:
                case Act.RUN:
                    self._do(self._run())
                case Act.DESTROY:
                    if self._incoming is not None:
                        self._incoming.close()
                    self.machine.destroy()
                case _:
                    self._say(step)

    def _run(self) -> Steps:
        """Its images are its own before it goes: from then on there is no way back."""
        try:
            self.machine.take_images()
        except IolaneError as error:
            return self.agreement.could_not_run(str(error))
        try:
            self.machine.run()
        except IolaneError as error:
            return self.agreement.could_not_run(str(error))
        steps = self.agreement.ran()
        self._do(steps)  # the source need not wait for the rest
        self.problems = self.machine.bring(self._departed)
        return []

    def _say(self, message: msgspec.Struct) -> None:
        if self.channel is not None:
            self.channel.send(message)
