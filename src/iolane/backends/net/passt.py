"""passt as the unprivileged network: the guest's packets become sockets of this user (passt(1)).

It runs as a process at the other end of a socket pair, and ends with it. passt hands out addresses by DHCP
and router advertisements; the guest reaches the host's loopback at the gateway's address.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Sequence

from iolane.backends.net.socket_peer import SocketPeer
from iolane.backends.stream import DescriptorPair
from iolane.errors import IolaneError

VARIABLE = "IOLANE_PASST"
REMEDY = f"apt-get install passt, or set {VARIABLE} to the program"
START_SECONDS = 10.0
WORDS = 300
"""Characters of what passt said that an error repeats."""


class PasstNet(SocketPeer):
    """A network of passt's. It goes to the background when it is ready, and ends when the socket is closed.

    Args:
        forward: TCP ports of the host that lead into the guest, as passt's `-t` takes them (`8080:80`).
        arguments: more of passt's own options.

    Raises:
        IolaneError: there is no passt, or it does not come up; the message has its own words.
    """

    def __init__(self, *, forward: Sequence[str] = (), arguments: Sequence[str] = ()) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with ours, theirs:
            options = ["--quiet", *(part for port in forward for part in ("--tcp-ports", port)), *arguments]
            _start([find_passt(), *options, "--fd", str(theirs.fileno())], theirs.fileno())
            super().__init__(DescriptorPair(ours.fileno()), "passt")
        self.connections = 1


def find_passt() -> str:
    """The program. Raises IolaneError where there is none."""
    chosen = os.environ.get(VARIABLE)
    if chosen is not None and not os.access(chosen, os.X_OK):
        raise IolaneError(f"{VARIABLE} names {chosen}, which is no program", remedy=REMEDY)
    found = chosen or shutil.which("passt")
    if found is None:
        raise IolaneError("passt, the unprivileged network, is not installed", remedy=REMEDY)
    return found


def _start(command: Sequence[str], fd: int) -> None:
    """Return when passt is ready: it then goes on as a daemon."""
    try:
        done = subprocess.run(
            command,
            pass_fds=(fd,),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            timeout=START_SECONDS,
        )
    except subprocess.TimeoutExpired:
        raise IolaneError(f"passt was not ready within {START_SECONDS:g} s") from None
    except OSError as error:
        raise IolaneError(f"{command[0]}: {(error.strerror or str(error)).lower()}") from error
    if done.returncode != 0:
        raise IolaneError(f"passt does not come up: {_words(done.stderr.decode(errors='replace'))}")


def _words(text: str) -> str:
    """What it said, less the complaints about a missing system log, as one line."""
    lines = [line.strip() for line in text.splitlines() if "to syslog" not in line and line.strip()]
    return "; ".join(lines)[:WORDS] or "it says nothing"
