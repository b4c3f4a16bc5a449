"""The numbers of network devices and taps are the kernel's: each is compared with this machine's headers."""

from __future__ import annotations

import subprocess
from pathlib import Path

from iolane.devices.virtio.net.config import NetConfig
from iolane.devices.virtio.net.features import NetFeature
from iolane.uapi import tun, virtio_net

ENUMS = {
    NetFeature: "VIRTIO_NET_F_",
    virtio_net.HeaderFlag: "VIRTIO_NET_HDR_F_",
    virtio_net.Gso: "VIRTIO_NET_HDR_GSO_",
    virtio_net.NetStatus: "VIRTIO_NET_S_",
    virtio_net.Ack: "VIRTIO_NET_",
    virtio_net.Control: "VIRTIO_NET_CTRL_",
    virtio_net.ControlRx: "VIRTIO_NET_CTRL_RX_",
    virtio_net.ControlMac: "VIRTIO_NET_CTRL_MAC_",
    virtio_net.ControlVlan: "VIRTIO_NET_CTRL_VLAN_",
    tun.TunFlag: "IFF_",
    tun.Offload: "TUN_F_",
}
CONSTANTS = {
    "VIRTIO_NET_CTRL_ANNOUNCE_ACK": virtio_net.CTRL_ANNOUNCE_ACK,
    "VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET": virtio_net.CTRL_MQ_VQ_PAIRS_SET,
    "VIRTIO_NET_CTRL_MQ_VQ_PAIRS_MAX": virtio_net.CTRL_MQ_VQ_PAIRS_MAX,
    "VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET": virtio_net.CTRL_GUEST_OFFLOADS_SET,
    "sizeof(struct virtio_net_hdr_v1)": virtio_net.HEADER.size,
    "sizeof(struct ifreq)": tun.IFREQ.size,
    "offsetof(struct virtio_net_config, mac)": NetConfig.MAC.offset,
    "offsetof(struct virtio_net_config, status)": NetConfig.STATUS.offset,
    "offsetof(struct virtio_net_config, max_virtqueue_pairs)": NetConfig.MAX_VIRTQUEUE_PAIRS.offset,
    "offsetof(struct virtio_net_config, mtu)": NetConfig.MTU.offset,
}
TUN_CONSTANTS = (
    "IFNAMSIZ",
    "IFF_UP",
    "TUNSETIFF",
    "TUNGETIFF",
    "TUNSETOFFLOAD",
    "TUNSETPERSIST",
    "TUNSETQUEUE",
    "TUNSETVNETHDRSZ",
    "TUNSETVNETLE",
    "SIOCGIFFLAGS",
    "SIOCSIFFLAGS",
)
HEADERS = ("stddef.h", "linux/virtio_net.h", "linux/if_tun.h", "linux/if.h", "linux/sockios.h")


def test_numbers(tmp_path: Path) -> None:
    ours = dict(CONSTANTS) | {name: getattr(tun, name) for name in TUN_CONSTANTS}
    for kind, prefix in ENUMS.items():
        ours |= {f"{prefix}{member.name}": int(member.value) for member in kind}
    lines = "".join(f'  printf("%s=%lld\\n", "{text}", (long long)({text}));\n' for text in ours)
    includes = "".join(
        f"#include <{name}>\n" for name in ("stdio.h", "sys/socket.h", "sys/ioctl.h", *HEADERS)
    )
    (tmp_path / "values.c").write_text(f"{includes}int main(void) {{\n{lines}}}\n")
    subprocess.run(["gcc", "-w", "-o", tmp_path / "values", tmp_path / "values.c"], check=True)
    printed = subprocess.run([tmp_path / "values"], check=True, capture_output=True, text=True).stdout
    theirs = {name: int(value) for name, _, value in (line.rpartition("=") for line in printed.splitlines())}
    assert {name: value & 0xFFFF_FFFF for name, value in theirs.items()} == ours
