"""Registers and fields lie where the kernel's headers say (linux/pci_regs.h, linux/vfio.h, by way of
`iolane.uapi`).
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any

import pytest

from iolane.model.interrupts import InterruptIndex
from iolane.model.pci.caps.aer import AerRegisters, CorrectableErrors, UncorrectableErrors
from iolane.model.pci.caps.ari import AriCapabilities, AriRegisters
from iolane.model.pci.caps.express import (
    DeviceCapabilities,
    DeviceControl,
    DeviceStatus,
    ExpressRegisters,
    PortType,
)
from iolane.model.pci.caps.msi import MsiControl, MsiRegisters, msi_registers
from iolane.model.pci.caps.msix import MsixControl, MsixRegisters, MsixTable, VectorControl
from iolane.model.pci.caps.power_management import PowerControlStatus, PowerManagementRegisters
from iolane.model.pci.caps.sriov import SriovCapabilities, SriovControl, SriovRegisters, SriovStatus
from iolane.model.pci.header import Command, Status, Type0Header
from iolane.model.region import RegionIndex
from iolane.model.registers import Field, RegisterMap
from iolane.uapi import pci, pcie, vfio

OFFSETS: list[tuple[type[RegisterMap], dict[str, IntEnum | int]]] = [
    (
        Type0Header,
        {
            **{
                name: pci.Header[name]
                for name in ("VENDOR_ID", "DEVICE_ID", "COMMAND", "STATUS", "REVISION_ID")
            },
            **{name: pci.Header[name] for name in ("CACHE_LINE_SIZE", "HEADER_TYPE", "BIST", "CARDBUS_CIS")},
            **{name: pci.Header[name] for name in ("SUBSYSTEM_VENDOR_ID", "SUBSYSTEM_ID", "INTERRUPT_LINE")},
            **{name: pci.Header[name] for name in ("INTERRUPT_PIN", "MIN_GNT", "MAX_LAT", "LATENCY_TIMER")},
            "PROGRAMMING_INTERFACE": pci.Header.CLASS_PROG,
            "SUB_CLASS": pci.Header.CLASS_DEVICE,
            "BAR": pci.Header.BASE_ADDRESS_0,
            "EXPANSION_ROM": pci.Header.ROM_ADDRESS,
            "CAPABILITIES_POINTER": pci.Header.CAPABILITY_LIST,
        },
    ),
    (
        PowerManagementRegisters,
        {"CAPABILITIES": pci.PowerManagement.PMC, "CONTROL_STATUS": pci.PowerManagement.CTRL},
    ),
    (MsiRegisters, {"CONTROL": pci.Msi.FLAGS, "ADDRESS": pci.Msi.ADDRESS_LO}),
    (
        msi_registers(False, True),
        {"DATA": pci.Msi.DATA_32, "MASK": pci.Msi.MASK_32, "PENDING": pci.Msi.PENDING_32},
    ),
    (
        msi_registers(True, True),
        {"DATA": pci.Msi.DATA_64, "MASK": pci.Msi.MASK_64, "PENDING": pci.Msi.PENDING_64},
    ),
    (msi_registers(True, False), {"UPPER_ADDRESS": pci.Msi.ADDRESS_HI, "DATA": pci.Msi.DATA_64}),
    (MsixRegisters, {"CONTROL": pci.Msix.FLAGS, "TABLE": pci.Msix.TABLE, "PBA": pci.Msix.PBA}),
    (
        MsixTable,
        {
            "ADDRESS": pci.MsixEntry.LOWER_ADDR,
            "DATA": pci.MsixEntry.DATA,
            "CONTROL": pci.MsixEntry.VECTOR_CTRL,
        },
    ),
    (
        ExpressRegisters,
        {
            "CAPABILITIES": pcie.Express.FLAGS,
            "DEVICE_CAPABILITIES": pcie.Express.DEVCAP,
            "DEVICE_CONTROL": pcie.Express.DEVCTL,
            "DEVICE_STATUS": pcie.Express.DEVSTA,
            "LINK_CAPABILITIES": pcie.Express.LNKCAP,
            "LINK_CONTROL": pcie.Express.LNKCTL,
            "LINK_STATUS": pcie.Express.LNKSTA,
            "DEVICE_CAPABILITIES_2": pcie.Express.DEVCAP2,
            "DEVICE_CONTROL_2": pcie.Express.DEVCTL2,
            "LINK_CAPABILITIES_2": pcie.Express.LNKCAP2,
        },
    ),
    (
        AerRegisters,
        {
            "UNCORRECTABLE_STATUS": pcie.Aer.UNCOR_STATUS,
            "UNCORRECTABLE_MASK": pcie.Aer.UNCOR_MASK,
            "UNCORRECTABLE_SEVERITY": pcie.Aer.UNCOR_SEVER,
            "CORRECTABLE_STATUS": pcie.Aer.COR_STATUS,
            "CORRECTABLE_MASK": pcie.Aer.COR_MASK,
            "CONTROL": pcie.Aer.CAP,
            "HEADER_LOG": pcie.Aer.HEADER_LOG,
        },
    ),
    (AriRegisters, {"CAPABILITIES": pcie.Ari.CAP, "CONTROL": pcie.Ari.CTRL}),
    (
        SriovRegisters,
        {
            "CAPABILITIES": pcie.Sriov.CAP,
            "CONTROL": pcie.Sriov.CTRL,
            "STATUS": pcie.Sriov.STATUS,
            "INITIAL_VFS": pcie.Sriov.INITIAL_VF,
            "TOTAL_VFS": pcie.Sriov.TOTAL_VF,
            "NUM_VFS": pcie.Sriov.NUM_VF,
            "FUNCTION_LINK": pcie.Sriov.FUNC_LINK,
            "FIRST_VF_OFFSET": pcie.Sriov.VF_OFFSET,
            "VF_STRIDE": pcie.Sriov.VF_STRIDE,
            "VF_DEVICE_ID": pcie.Sriov.VF_DID,
            "SUPPORTED_PAGE_SIZES": pcie.Sriov.SUP_PGSIZE,
            "SYSTEM_PAGE_SIZE": pcie.Sriov.SYS_PGSIZE,
            "VF_BAR": pcie.Sriov.BAR,
            "MIGRATION_STATE": pcie.Sriov.VFM,
        },
    ),
]


@pytest.mark.parametrize(("registers", "expected"), OFFSETS, ids=lambda item: getattr(item, "__name__", ""))
def test_registers_lie_at_the_headers_offsets(registers: type[RegisterMap], expected: dict[str, int]) -> None:
    found = {spec.name: spec.offset for spec in registers.layout.registers}
    assert {name: found[name] for name in expected} == {name: int(value) for name, value in expected.items()}


FIELDS: list[tuple[Any, int]] = [
    (Command.IO, pci.Command.IO),
    (Command.MEMORY, pci.Command.MEMORY),
    (Command.BUS_MASTER, pci.Command.MASTER),
    (Command.PARITY_ERROR_RESPONSE, pci.Command.PARITY),
    (Command.SERR_ENABLE, pci.Command.SERR),
    (Command.INTX_DISABLE, pci.Command.INTX_DISABLE),
    (Status.INTERRUPT, pci.Status.INTERRUPT),
    (Status.CAPABILITIES_LIST, pci.Status.CAP_LIST),
    (Status.MASTER_DATA_PARITY_ERROR, pci.Status.PARITY),
    (Status.SIGNALED_TARGET_ABORT, pci.Status.SIG_TARGET_ABORT),
    (Status.RECEIVED_TARGET_ABORT, pci.Status.REC_TARGET_ABORT),
    (Status.RECEIVED_MASTER_ABORT, pci.Status.REC_MASTER_ABORT),
    (Status.SIGNALED_SYSTEM_ERROR, pci.Status.SIG_SYSTEM_ERROR),
    (Status.DETECTED_PARITY_ERROR, pci.Status.DETECTED_PARITY),
    (PowerControlStatus.POWER_STATE, pci.PmControl.STATE_MASK),
    (PowerControlStatus.NO_SOFT_RESET, pci.PmControl.NO_SOFT_RESET),
    (MsiControl.ENABLE, pci.MsiFlags.ENABLE),
    (MsiControl.MULTIPLE_CAPABLE, pci.MsiFlags.QMASK),
    (MsiControl.MULTIPLE_ENABLE, pci.MsiFlags.QSIZE),
    (MsiControl.ADDRESS_64, pci.MsiFlags._64BIT),
    (MsiControl.PER_VECTOR_MASK, pci.MsiFlags.MASKBIT),
    (MsixControl.TABLE_SIZE, pci.MsixFlags.QSIZE),
    (MsixControl.FUNCTION_MASK, pci.MsixFlags.MASKALL),
    (MsixControl.ENABLE, pci.MsixFlags.ENABLE),
    (VectorControl.MASK, pci.MSIX_ENTRY_CTRL_MASKBIT),
    (DeviceCapabilities.ROLE_BASED_ERROR_REPORTING, pcie.DevCap.RBER),
    (DeviceCapabilities.FUNCTION_LEVEL_RESET, pcie.DevCap.FLR),
    (DeviceControl.MAX_PAYLOAD, pcie.DevCtl.PAYLOAD),
    (DeviceControl.MAX_READ_REQUEST, pcie.DevCtl.READRQ),
    (DeviceControl.INITIATE_FLR, pcie.DevCtl.BCR_FLR),
    (DeviceStatus.TRANSACTIONS_PENDING, pcie.DevSta.TRPND),
    (UncorrectableErrors.COMPLETER_ABORT, pcie.AerUncorrectable.COMP_ABORT),
    (UncorrectableErrors.UNSUPPORTED_REQUEST, pcie.AerUncorrectable.UNSUP),
    (UncorrectableErrors.POISONED_TLP, pcie.AerUncorrectable.POISON_TLP),
    (UncorrectableErrors.INTERNAL, pcie.AerUncorrectable.INTN),
    (CorrectableErrors.RECEIVER, pcie.AerCorrectable.RCVR),
    (CorrectableErrors.ADVISORY_NON_FATAL, pcie.AerCorrectable.ADV_NFAT),
    (AriCapabilities.MFVC_GROUPS, pcie.AriCap.MFVC),
    (AriCapabilities.ACS_GROUPS, pcie.AriCap.ACS),
    (SriovCapabilities.VF_MIGRATION, pcie.SriovCap.VFM),
    (SriovControl.VF_ENABLE, pcie.SriovCtrl.VFE),
    (SriovControl.VF_MIGRATION_ENABLE, pcie.SriovCtrl.VFM),
    (SriovControl.VF_MIGRATION_INTERRUPT, pcie.SriovCtrl.INTR),
    (SriovControl.VF_MSE, pcie.SriovCtrl.MSE),
    (SriovControl.ARI_CAPABLE_HIERARCHY, pcie.SriovCtrl.ARI),
    (SriovStatus.VF_MIGRATION, pcie.SriovStatus.VFM),
]


@pytest.mark.parametrize(("field", "mask"), FIELDS, ids=lambda item: getattr(item, "name", ""))
def test_fields_are_the_headers_bits(field: Field, mask: int) -> None:
    assert field.mask == int(mask)


def test_indexes_are_vfios() -> None:
    regions = {item.name: item.value for item in vfio.PciRegion}
    assert {item.name: item.value for item in RegionIndex} == regions
    assert [item.value for item in InterruptIndex] == [item.value for item in vfio.PciIrq]
    assert int(PortType.INTEGRATED_ENDPOINT) == int(pcie.ExpressType.RC_END)


def test_the_sriov_capability_has_the_headers_size() -> None:
    assert SriovRegisters.layout.size == pcie.EXT_CAP_SRIOV_SIZEOF
    assert SriovRegisters.VF_BAR.count == pcie.SRIOV_NUM_BARS
