"""What libvirt's hook does at which moment (libvirt's "Hooks for specific system management")."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from iolane.engines.libvirt.elements import text
from iolane.engines.libvirt.metadata import Attached, attached_element
from iolane.errors import IolaneError
from iolane.operations.libvirt import hook
from iolane.operations.libvirt.migration import is_libvirt_uri
from iolane.operations.libvirt.servers import server_pid, stop_server, stop_servers

DEVICES = [
    Attached(id="disk0", device="block,image=/d", carrier="vhost-user", socket="/run/d.sock"),
    Attached(id="edu0", device="edu", carrier="vfio-user", socket="/run/e.sock"),
]
DOMAIN = f"<domain><name>web</name><metadata>{text(attached_element(DEVICES))}</metadata></domain>"


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, list[str]]]:
    """What would be started and stopped."""
    done: list[tuple[str, list[str]]] = []
    monkeypatch.setattr(hook, "start_servers", lambda each: done.append(("start", [x.id for x in each])))
    monkeypatch.setattr(hook, "stop_servers", lambda each: done.append(("stop", [x.id for x in each])))
    return done


@pytest.mark.parametrize(
    ("operation", "phase", "wanted"),
    [
        ("prepare", "begin", "start"),
        ("reconnect", "begin", "start"),
        ("release", "end", "stop"),
        ("start", "begin", None),
        ("started", "begin", None),
        ("stopped", "end", None),
        ("migrate", "begin", None),
        ("attach", "begin", None),
    ],
)
def test_servers_are_there_before_a_domain_and_until_after_it(
    done: list[tuple[str, list[str]]], operation: str, phase: str, wanted: str | None
) -> None:
    hook.run_hook("web", operation, phase, DOMAIN)
    assert done == ([(wanted, ["disk0", "edu0"])] if wanted else [])


def test_other_domains_are_let_be(done: list[tuple[str, list[str]]]) -> None:
    hook.run_hook("other", "prepare", "begin", "<domain><name>other</name></domain>")
    assert done == [("start", [])]


def test_it_is_installed(tmp_path: Path) -> None:
    script = tmp_path / "hooks/qemu.d/iolane"
    with pytest.raises(IolaneError, match=r"does not call iolane here.*libvirt-hook --install"):
        hook.require_installed(script)
    hook.install(script)
    hook.require_installed(script)
    assert os.access(script, os.X_OK)
    assert script.read_text().endswith(' -m iolane libvirt-hook "$@"\n')


def test_a_server_that_has_gone_is_stopped_without_a_word(tmp_path: Path) -> None:
    device = Attached(id="x", device="edu", carrier="vfio-user", socket=str(tmp_path / "x/x.sock"))
    assert server_pid(device) is None
    stop_server(device)
    (tmp_path / "x").mkdir()
    (tmp_path / "x/x.pid").write_text(f"{os.getpid()}\n")  # a number that another process has got since
    assert server_pid(device) is None
    stop_server(device)
    (tmp_path / "x/x.pid").unlink()
    (tmp_path / "x/x.log").touch()
    stop_servers([device])
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("qemu+ssh://host2/system", True),
        ("qemu:///system?socket=/run/x", True),
        ("unix:/run/x.sock", False),
        ("tcp:host2:4444", False),
        ("qemuX://host", False),
    ],
)
def test_places_of_libvirts(text: str, wanted: bool) -> None:
    assert is_libvirt_uri(text) is wanted
