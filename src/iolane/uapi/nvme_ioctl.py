"""Admin commands through Linux's NVMe driver (include/uapi/linux/nvme_ioctl.h)."""

from struct import Struct

PASSTHRU_CMD = Struct("=BBHIIIQQIIIIIIIIII")
"""struct nvme_passthru_cmd: opcode, flags, rsvd1, nsid, cdw2, cdw3, metadata, addr, metadata_len, data_len,
cdw10 to cdw15, timeout_ms, result."""
IOCTL_ADMIN_CMD = 0xC048_4E41
"""NVME_IOCTL_ADMIN_CMD: the call's result is the status that the controller gave, 0 for success."""
