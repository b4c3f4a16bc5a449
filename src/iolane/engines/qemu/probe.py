"""Whether KVM runs Linux here, decided by trying: a device node says little (nested, emulated, forbidden)."""

from __future__ import annotations

import hashlib
import os
import re
import time
from pathlib import Path

import msgspec

from iolane.engines.qemu.cache import Cache
from iolane.engines.qemu.command_line import Accelerator, Hardware
from iolane.engines.qemu.initramfs import InitramfsContent, build_initramfs
from iolane.engines.qemu.kernel import Flavour, debian_kernel
from iolane.engines.qemu.launch import Running
from iolane.engines.qemu.patience import patient
from iolane.engines.qemu.provision import Qemu
from iolane.errors import IolaneError

CONTROL = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|[0-~])?|[\x00-\x08\x0b-\x1f\x7f]")
"""Escape sequences and control characters, which a console is full of and a message is not."""

ACCELERATOR_VARIABLE = "IOLANE_ACCEL"
"""What runs guests where no command says it; then nothing is tried."""

TRY_SECONDS = 12.0
TRY_SECONDS_WITHOUT_EXTENSIONS = 4.0
"""Without VT-x or SVM in sight KVM is some emulation: it has to be quick to be worth it."""


class Verdict(msgspec.Struct, frozen=True):
    """What a trial has shown."""

    accelerator: Accelerator
    reason: str


def choose_accelerator(qemu: Qemu, cache: Cache, device: Path = Path("/dev/kvm")) -> tuple[Accelerator, str]:
    """What IOLANE_ACCEL says; else KVM if Linux comes up with it, else TCG; and why. A trial is made once per
    boot of this host."""
    if chosen := os.environ.get(ACCELERATOR_VARIABLE):
        if chosen not in tuple(Accelerator):
            raise IolaneError(f"{ACCELERATOR_VARIABLE}={chosen} is no accelerator", remedy="kvm or tcg")
        return Accelerator(chosen), f"{ACCELERATOR_VARIABLE} says so"
    if not device.exists():
        return Accelerator.TCG, f"there is no {device}"
    if not os.access(device, os.R_OK | os.W_OK):
        return Accelerator.TCG, f"{device} may not be opened (join its group to use KVM)"
    file = cache.root / "probe" / f"{_key(qemu)}.json"
    with cache.locked("probe"):
        if not file.exists():
            file.parent.mkdir(exist_ok=True)
            for old in file.parent.glob("*.json"):
                old.unlink()
            verdict = _try_kvm(qemu, cache)
            scratch = file.with_suffix(".new")
            scratch.write_bytes(msgspec.json.encode(verdict))
            scratch.rename(file)
        verdict = msgspec.json.decode(file.read_bytes(), type=Verdict)
    return verdict.accelerator, verdict.reason


def _key(qemu: Qemu) -> str:
    boot = Path("/proc/sys/kernel/random/boot_id").read_text()
    return hashlib.sha256("\0".join((boot, _cpu(), qemu.version, *qemu.command)).encode()).hexdigest()[:16]


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return "\n".join(line for line in lines if line.startswith(("model name", "microcode")))


def has_extensions(cpuinfo: str) -> bool:
    """Whether the processor says that it can virtualise."""
    flags = next((line for line in cpuinfo.splitlines() if line.startswith("flags")), "")
    return bool({"vmx", "svm"} & set(flags.split()))


def _try_kvm(qemu: Qemu, cache: Cache) -> Verdict:
    real = has_extensions(Path("/proc/cpuinfo").read_text())
    seconds = patient(TRY_SECONDS if real else TRY_SECONDS_WITHOUT_EXTENSIONS)
    cache.report(f"trying whether KVM runs Linux here (up to {seconds:g} s, once)")
    kernel = debian_kernel(Flavour.CLOUD, cache)
    hardware = Hardware(
        name="kvm-trial",
        accelerator=Accelerator.KVM,
        memory_mib=256,
        ports=0,
        kernel=kernel.image,
        initrd=build_initramfs(kernel, InitramfsContent(), cache),
    )
    log = cache.root / "probe" / "console.log"
    running = Running(qemu, hardware, log, lambda line: None, agent=True)
    started = time.monotonic()
    try:
        running.connect()
        assert running.agent is not None
        running.agent.wait_hello(seconds)
        return Verdict(Accelerator.KVM, f"a Linux guest was up in {time.monotonic() - started:.1f} s")
    except IolaneError as error:
        said = "; ".join(running.process.messages().splitlines()[-2:])
        shown = CONTROL.sub("", running.console.tail(1)).strip()
        details = [error.message, said, f"console: {shown}" if shown else "nothing on the console"]
        if not real:
            details.append("the processor offers neither VT-x nor SVM")
        return Verdict(Accelerator.TCG, f"KVM does not run Linux here: {'; '.join(d for d in details if d)}")
    finally:
        running.close()
