"""VERSION: what is agreed, what is refused."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from typing import Any

import pytest

from iolane.carriers.vfio_user import Rejection, VfioUserClient, VfioUserServer
from iolane.carriers.vfio_user.version import Capabilities
from tests.unit.carriers.vfio_user.sample import RawClient, Sample

# What QEMU 11 proposes (hw/vfio-user/proxy.c, caps_json).
QEMU: dict[str, Any] = {
    "capabilities": {
        "migration": {"pgsize": 4096, "max_bitmap_size": 268435456},
        "max_msg_fds": 16,
        "max_data_xfer_size": 1048576,
        "pgsizes": 4096,
        "max_dma_maps": 65535,
        "write_multiple": True,
    }
}
# libvfio-user's samples/client.c.
LIBVFIO: dict[str, Any] = {
    "capabilities": {"max_msg_fds": 8, "max_data_xfer_size": 1048576, "twin_socket": {"supported": True}}
}
# Cloud Hypervisor's vfio_user crate.
CLOUD: dict[str, Any] = {
    "capabilities": {"max_msg_fds": 1, "max_data_xfer_size": 1048576, "migration": {"pgsize": 4096}}
}


def version(data: Any, major: int = 0, minor: int = 0) -> bytes:
    return struct.pack("<HH", major, minor) + json.dumps(data).encode() + b"\0"


def test_qemu_gets_no_more_than_it_proposed(server: VfioUserServer) -> None:
    proposal = version(QEMU)
    with RawClient(server.path) as raw:
        reply = raw.ask(1, proposal)
    assert len(reply) <= len(proposal)  # a longer reply is fatal to QEMU
    assert reply[:4] == b"\0\0\0\0"
    assert reply[-1] == 0
    agreed = json.loads(reply[4:-1])["capabilities"]
    assert agreed.keys() <= QEMU["capabilities"].keys()
    assert agreed["max_msg_fds"] <= 16
    assert agreed["pgsizes"] == 4096
    assert agreed["max_data_xfer_size"] == 1 << 20
    assert agreed["write_multiple"] is True
    assert agreed["migration"] == {"pgsize": 4096}


@pytest.mark.parametrize("proposal", [QEMU, LIBVFIO, CLOUD, {}, {"capabilities": {}}, {"max_msg_fds": 1}])
def test_the_answer_is_a_subset_of_the_proposal(server: VfioUserServer, proposal: dict[str, Any]) -> None:
    with RawClient(server.path) as raw:
        reply = raw.ask(1, version(proposal, minor=1))
    agreed = json.loads(reply[4:-1])
    assert agreed["capabilities"].keys() <= proposal.get("capabilities", {}).keys()


def test_no_data_is_answered_by_no_data(server: VfioUserServer) -> None:
    with RawClient(server.path) as raw:
        assert raw.ask(1, struct.pack("<HH", 0, 0)) == b"\0\0\0\0"


def test_the_lower_minor_version_holds(server: VfioUserServer) -> None:
    with RawClient(server.path) as raw:
        assert raw.ask(1, version({}, minor=9))[:4] == struct.pack("<HH", 0, 1)


def test_unknown_keys_are_ignored(server: VfioUserServer) -> None:
    with RawClient(server.path) as raw:
        raw.ask(1, version({"capabilities": {"teleport": {"a": [1]}, "max_msg_fds": 3}, "more": 1}))


@pytest.mark.parametrize(
    ("payload", "rejection"),
    [
        (b"\0", Rejection.PAYLOAD_SIZE),
        (version({}, major=1), Rejection.VERSION_MAJOR),
        (struct.pack("<HH", 0, 0) + b"{}", Rejection.VERSION_DATA),
        (struct.pack("<HH", 0, 0) + b"{\0", Rejection.VERSION_DATA),
        (struct.pack("<HH", 0, 0) + b"\xff\xfe\0", Rejection.VERSION_DATA),
        (struct.pack("<HH", 0, 0) + b"[" * 60000 + b"\0", Rejection.VERSION_DATA),
        (version([]), Rejection.VERSION_DATA),
        (version({"capabilities": []}), Rejection.VERSION_CAPABILITY),
        (version({"capabilities": {"max_msg_fds": -1}}), Rejection.VERSION_CAPABILITY),
        (version({"capabilities": {"max_msg_fds": 1 << 70}}), Rejection.VERSION_CAPABILITY),
        (version({"capabilities": {"max_msg_fds": "8"}}), Rejection.VERSION_CAPABILITY),
        (version({"capabilities": {"pgsizes": 512}}), Rejection.VERSION_CAPABILITY),
        (version({"capabilities": {"twin_socket": 1}}), Rejection.VERSION_CAPABILITY),
    ],
)
def test_bad_proposals_are_refused(
    server: VfioUserServer, rejected: Callable[[Rejection], int], payload: bytes, rejection: Rejection
) -> None:
    with RawClient(server.path) as raw:
        assert raw.refused(1, payload) == rejection.error
        if rejection is not Rejection.PAYLOAD_SIZE:
            assert raw.ended()
    assert server.wait_idle(30)
    assert rejected(rejection) == 1


def test_a_command_before_version_ends_the_connection(
    server: VfioUserServer, device: Sample, rejected: Callable[[Rejection], int]
) -> None:
    with RawClient(server.path) as raw:
        assert raw.refused(13) == Rejection.VERSION_FIRST.error
        assert raw.ended()
    assert server.wait_idle(30)
    assert rejected(Rejection.VERSION_FIRST) == 1
    assert not device.resets
    assert not device.disconnects


def test_version_comes_once(raw: RawClient, rejected: Callable[[Rejection], int]) -> None:
    assert raw.refused(1, version({})) == Rejection.VERSION_AGAIN.error
    assert rejected(Rejection.VERSION_AGAIN) == 1
    raw.ask(13)


def test_the_client_learns_the_servers_limits(server: VfioUserServer) -> None:
    with VfioUserClient(server.path) as client:
        agreed = client.negotiate(Capabilities(max_msg_fds=4))
        assert agreed == Capabilities(max_msg_fds=16)
        assert client.peer.max_msg_fds == 16
        assert client.peer.max_data_xfer_size == 1 << 20
