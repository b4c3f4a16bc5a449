"""The journal: whole entries only, one user at a time, owners told from later processes of their number."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from iolane.errors import IolaneError
from iolane.host.journal import (
    Journal,
    MadeFunctions,
    Owner,
    Step,
    TakenFunction,
    state_directory,
    this_process,
)
from iolane.model.pci.pcie_id import PcieId

FUNCTION = PcieId(0, 1, 0, 0)


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path)


def taken(journal: Journal, *, step: Step = Step.DONE, owner: Owner | None = None) -> TakenFunction:
    return TakenFunction(
        address=str(FUNCTION), step=step, owner=owner, boot=journal.boot, driver="nvme", driver_override=None
    )


def made(journal: Journal) -> MadeFunctions:
    return MadeFunctions(
        address=str(FUNCTION),
        step=Step.DONE,
        owner=None,
        boot=journal.boot,
        count=2,
        before=0,
        autoprobe=True,
    )


def test_entries_are_kept_until_removed(journal: Journal) -> None:
    entry, other = taken(journal), made(journal)
    journal.put(other)
    journal.put(entry)
    assert Journal(journal.folder).entries() == [entry, other]
    assert (journal.taken(FUNCTION), journal.made(FUNCTION)) == (entry, other)
    assert journal.taken(PcieId(0, 2, 0, 0)) is None
    journal.remove(entry)
    assert journal.entries() == [other]


def test_a_half_written_entry_is_not_one(journal: Journal) -> None:
    """A crash in the middle of writing leaves the file before the rename."""
    journal.put(taken(journal))
    (journal.folder / "function-0000:02:00.0.new").write_text('{"entry": "fun')
    assert len(journal.entries()) == 1


def test_an_unreadable_entry_is_put_aside_and_told(
    journal: Journal, caplog: pytest.LogCaptureFixture
) -> None:
    (journal.folder / "function-0000:02:00.0.json").write_text("{}")
    assert journal.entries() == []
    assert (journal.folder / "function-0000:02:00.0.unreadable").exists()
    assert "can't be read" in caplog.text


def test_entries_of_another_boot_are_over(journal: Journal) -> None:
    journal.put(msgspec.structs.replace(taken(journal), boot="another"))
    assert journal.entries() == []
    assert list(journal.folder.iterdir()) == []


def test_one_at_a_time(journal: Journal) -> None:
    with journal.locked():
        with pytest.raises(IolaneError, match=f"are being changed by process {os.getpid()}"):
            with Journal(journal.folder).locked(deadline=0.05):
                raise AssertionError("both hold it")
    with Journal(journal.folder).locked(deadline=0):
        pass


def test_a_dead_owner(journal: Journal) -> None:
    code = (
        "import msgspec; from iolane.host.journal import this_process;"
        "print(msgspec.json.encode(this_process()).decode())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    dead = msgspec.json.decode(done.stdout, type=Owner)
    assert (dead.is_alive, dead.is_self) == (False, False)
    assert taken(journal, owner=dead).is_left
    # the same number again, but another process
    assert not Owner(os.getpid(), this_process().started - 1, "x").is_alive
    living = this_process()
    assert (living.is_alive, living.is_self) == (True, True)
    assert not taken(journal, owner=living).is_left


@pytest.mark.parametrize(("step", "left"), [(Step.BEGUN, True), (Step.DONE, False), (Step.UNDOING, True)])
def test_what_was_in_the_middle_is_left(journal: Journal, step: Step, left: bool) -> None:
    assert taken(journal, step=step).is_left == left
    assert taken(journal, step=step, owner=this_process()).is_left == left


def test_the_folder_must_be_ours_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who writes there tells root what to bind."""
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    with pytest.raises(IolaneError, match="not a folder that only you may write to"):
        state_directory()
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    with pytest.raises(IolaneError, match="run it as root"):
        state_directory()
