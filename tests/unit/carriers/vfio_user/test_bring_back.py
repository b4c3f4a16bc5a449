"""A function that is plugged in again comes with the state it was unplugged with.

QEMU resets what it plugs in (hw/core/qdev.c: a device made at run time is reset at its realization), and
again when the guest gives the slot power. Both come by DEVICE_RESET before the guest can reach the function.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from iolane.carriers.vfio_user import VfioUserClient, VfioUserServer
from iolane.model.pci import MsixCapability, ResetKind
from iolane.model.state import StateError, decode, encode
from iolane.model.workers import Workers
from tests.unit.carriers.vfio_user.sample import Sample

PLAIN, MEMORY, DECODING = 0x00, 0x1000, 0x6


@pytest.fixture
def document(server: VfioUserServer, device: Sample) -> bytes:
    """Of a device that a guest used, and let go of."""
    with VfioUserClient(server.path) as client:
        client.negotiate()
        client.config_write(4, 2, DECODING)
        client.config_write(0x10, 4, 0xFEB0_0000)
        client.write(0, PLAIN, 4, 0x1234)
        client.write(1, MEMORY, 4, 0x5678)
        with device.lock:
            msix = device.interrupts.msix
            assert isinstance(msix, MsixCapability)
            msix.table.CONTROL[3] = 0
            msix.pba.PENDING[0] = 1 << 5
    assert server.wait_idle(30)
    return device.save()


@pytest.fixture
def back(document: bytes) -> Iterator[Sample]:
    sample = Sample()
    sample.bring_back(document)
    yield sample
    sample.close()


@pytest.fixture
def again(back: Sample, tmp_path: Path) -> Iterator[VfioUserClient]:
    """A client of the device that came back, which has not touched it yet."""
    with (
        Workers(2) as workers,
        VfioUserServer(back, tmp_path / "t", workers=workers) as server,
        VfioUserClient(server.path) as client,
    ):
        client.negotiate()
        yield client


def seen(client: VfioUserClient) -> tuple[int, int]:
    return client.read(0, PLAIN, 4), client.read(1, MEMORY, 4)


@pytest.mark.parametrize("resets", [0, 1, 2])
def test_what_was_saved_is_there_however_often_the_machine_resets_it_first(
    again: VfioUserClient, resets: int
) -> None:
    for _ in range(resets):
        again.config_write(4, 2, 0)  # what QEMU writes before each reset
        again.reset()
    again.config_write(4, 2, DECODING)
    assert seen(again) == (0x1234, 0x5678)


def test_its_config_space_is_as_after_a_reset(again: VfioUserClient, back: Sample) -> None:
    """The slot was without power (PCI Express Base 6.0, 6.6.1): the guest gives it addresses anew."""
    fresh = Sample()
    for _ in range(2):
        assert bytes(back.config.storage) == bytes(fresh.config.storage)
        msix = back.interrupts.msix
        assert isinstance(msix, MsixCapability)
        assert msix.table.CONTROL[3].MASK
        assert not msix.is_pending(5)
        again.reset()
    fresh.close()


@pytest.mark.parametrize("use", ["COMMAND", "load", "reset", "flr"])
def test_it_comes_back_once(again: VfioUserClient, back: Sample, use: str) -> None:
    """Whatever uses, loads or resets it by intent ends it: the machine's next reset is as always."""
    if use == "COMMAND":
        again.config_write(4, 2, DECODING)
        assert seen(again) == (0x1234, 0x5678)
        again.write(0, PLAIN, 4, 0x9999)
        again.config_write(4, 2, 0)
    elif use == "load":
        back.load(back.save())
    else:
        back.reset(ResetKind.FLR if use == "flr" else ResetKind.CONVENTIONAL)
        assert seen(again)[0] == 0
    again.reset()
    assert seen(again)[0] == 0


def test_a_document_of_another_device_changes_nothing(document: bytes) -> None:
    saved = decode(document)
    saved.kind = "Other"
    sample = Sample()
    sample.bar0.PLAIN = 7
    before = sample.save()
    with pytest.raises(StateError, match="of a device of kind 'Other'"):
        sample.bring_back(encode(saved))
    assert sample.save() == before
    sample.reset_by_machine()
    assert sample.bar0.PLAIN == 0
    sample.close()


def test_a_function_that_was_saved_while_enabled_does_no_dma_before_the_guest_says_so(device: Sample) -> None:
    """A document may come from anywhere; what it says of COMMAND.BUS_MASTER holds no longer."""
    device.config.write(4, 2, DECODING)
    assert device.dma.enabled
    sample = Sample()
    sample.bring_back(device.save())
    assert not sample.dma.enabled
    sample.close()
