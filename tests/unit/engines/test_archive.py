import os
import subprocess
from pathlib import Path

import pytest

from iolane.engines.qemu.archive import Archive, Manifest, Package, Suites, configuration_text, sources_text
from iolane.engines.qemu.cache import Cache
from iolane.engines.qemu.sources import DebianArchive
from iolane.errors import IolaneError

SUITES = Suites("s", ("s", "s-updates"), ("s-security",), "s-updates")
ARCHIVE = DebianArchive("http://a/debian", "http://a/security", "s", Path("/keyring.gpg"))


def quiet(message: str) -> None: ...


def test_sources_are_signed_by_the_debian_keyring_only() -> None:
    text = sources_text(ARCHIVE, SUITES)
    assert text.count("Signed-By: /keyring.gpg") == 2
    assert "Suites: s s-updates\n" in text
    assert "URIs: http://a/security\nSuites: s-security\n" in text
    assert "Trusted" not in text
    alone = DebianArchive("http://a/debian", None, "s", Path("/keyring.gpg"))
    assert "security" not in sources_text(alone, SUITES)


def test_nothing_loosens_verification() -> None:
    machine = ['Acquire::AllowInsecureRepositories "true";', 'Acquire::http::Proxy "http://proxy:1";']
    lines = configuration_text(Path("/state"), Path("/scratch"), machine).splitlines()
    assert 'Acquire::http::Proxy "http://proxy:1";' in lines
    insecure = [line for line in lines if "AllowInsecureRepositories" in line]
    assert insecure[-1].endswith('"false";')  # the last one counts
    assert 'APT::Get::AllowUnauthenticated "false";' in lines


def test_an_archive_that_cannot_be_verified_is_refused(tmp_path: Path) -> None:
    """A real apt, an unsigned archive on disk."""
    folder = tmp_path / "archive" / "dists" / "s" / "main" / "binary-amd64"
    folder.mkdir(parents=True)
    (folder / "Packages").write_text("")
    (tmp_path / "archive" / "dists" / "s" / "Release").write_text("Suite: s\nComponents: main\n")
    keyring = tmp_path / "empty.gpg"
    keyring.write_bytes(b"")
    archive = DebianArchive(f"file:{tmp_path}/archive", None, "s", keyring)
    with pytest.raises(IolaneError, match=r"not be verified|failed"):
        Archive(Cache(tmp_path / "cache", quiet), archive, Suites("s", ("s",))).depends("anything")
    assert not (tmp_path / "cache" / "apt" / "s" / "lists.stamp").exists()


def test_unpacking_records_what_was_unpacked(tmp_path: Path) -> None:
    content = tmp_path / "deb"
    (content / "DEBIAN").mkdir(parents=True)
    (content / "usr").mkdir()
    (content / "usr" / "file").write_text("hello")
    (content / "DEBIAN" / "control").write_text(
        "Package: thing\nVersion: 1:2-3\nArchitecture: all\nMaintainer: m <m@example.org>\nDescription: d\n"
    )
    os.chmod(content / "DEBIAN", 0o755)
    deb = tmp_path / "thing.deb"
    subprocess.run(["dpkg-deb", "-b", str(content), str(deb)], check=True, capture_output=True)
    prefix = tmp_path / "prefix"
    Archive(Cache(tmp_path / "cache", quiet), ARCHIVE, SUITES).unpack([deb], prefix)
    assert (prefix / "usr" / "file").read_text() == "hello"
    assert not deb.exists()
    manifest = Manifest.read(prefix)
    assert manifest.version("thing") == "1:2-3"
    assert manifest.version("other") is None
    (package,) = manifest.packages
    assert isinstance(package, Package)
    assert len(package.sha256) == 64
