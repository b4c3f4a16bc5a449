"""The iolane side of `iolane bench net`: a network device by vhost-user, and a network that does little.

Run as `python -m iolane.bench.net_server sink|source|echo BYTES SOCKET`; says `ready`, serves until its
standard input ends.
"""

from __future__ import annotations

import sys

from iolane.backends.net import CompiledNet
from iolane.carriers.vhost_user import VhostUserServer
from iolane.devices.virtio.net import BareNet
from iolane.model.workers import Workers


def main(kind: str, length: str, socket: str) -> None:
    """Serve until whoever started this closes our standard input."""
    with Workers(1) as workers:
        net = BareNet(backend=CompiledNet(kind, int(length)), queue_size=256)
        with VhostUserServer(net, socket, workers=workers):
            print("ready", flush=True)
            sys.stdin.read()
        net.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
