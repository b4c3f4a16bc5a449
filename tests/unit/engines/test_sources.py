from pathlib import Path

import pytest

from iolane.engines.qemu.sources import (
    Source,
    debian_archive,
    installed_keyring,
    machine_sources,
    parse_deb822,
    parse_one_line,
)
from iolane.errors import IolaneError

KEYRING = Path("/keyring.gpg")

DEB822 = """\
# the archive
Types: deb deb-src
URIs: http://archive.example/debian
# a comment within
Suites: bookworm bookworm-updates
Components: main
 contrib
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: http://archive.example/debian-security
Suites: bookworm-security
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Enabled: no
Types: deb
URIs: http://off.example/debian
Suites: bookworm
Components: main

Types: deb
URIs: http://third.example/
Suites: bookworm
Components: main
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 mQINBGPL0BUBEADmW5NdOOHwPIJlgPu6JDcKw/NZJPR8lsD3K87ZM18gzyQZJD+w
 -----END PGP PUBLIC KEY BLOCK-----
"""

ONE_LINE = """\
deb http://archive.example/debian bookworm main contrib # trailing
deb-src http://archive.example/debian bookworm main
# deb http://off.example/debian bookworm main
deb [arch=amd64 signed-by=/usr/share/keyrings/third.gpg] https://third.example/apt bookworm main
deb http://security.example/debian-security bookworm-security main
"""


def test_deb822() -> None:
    found = list(parse_deb822(DEB822))
    assert [(s.address, s.suite) for s in found] == [
        ("http://archive.example/debian", "bookworm"),
        ("http://archive.example/debian", "bookworm-updates"),
        ("http://archive.example/debian-security", "bookworm-security"),
        ("http://third.example/", "bookworm"),
    ]
    assert found[0].components == ("main", "contrib")
    assert found[0].signed_by == "/usr/share/keyrings/debian-archive-keyring.gpg"
    assert found[3].signed_by is not None
    assert "BEGIN PGP" in found[3].signed_by


def test_one_line() -> None:
    assert list(parse_one_line(ONE_LINE)) == [
        Source("http://archive.example/debian", "bookworm", ("main", "contrib")),
        Source("https://third.example/apt", "bookworm", ("main",), "/usr/share/keyrings/third.gpg"),
        Source("http://security.example/debian-security", "bookworm-security", ("main",)),
    ]


@pytest.mark.parametrize("sources", [list(parse_deb822(DEB822)), list(parse_one_line(ONE_LINE))])
def test_debian_is_chosen_among_third_parties(sources: list[Source]) -> None:
    archive = debian_archive(list(reversed(sources)), "bookworm", KEYRING)
    assert archive.address == "http://archive.example/debian"
    assert archive.security_address is not None
    assert archive.security_address.endswith("/debian-security")


def test_no_debian_archive_names_the_way_out() -> None:
    third = [Source("https://third.example/apt", "bookworm", ("main",), "/usr/share/keyrings/third.gpg")]
    with pytest.raises(IolaneError, match="IOLANE_DEBIAN_ARCHIVE"):
        debian_archive(third, "bookworm", KEYRING)
    assert debian_archive(third, "bookworm", KEYRING, "http://own.example/").address == "http://own.example/"


def test_files_are_read_as_apt_reads_them(tmp_path: Path) -> None:
    (tmp_path / "sources.list.d").mkdir()
    (tmp_path / "sources.list").write_text("deb http://a/debian bookworm main\n")
    (tmp_path / "sources.list.d" / "b.sources").write_text(
        "Types: deb\nURIs: http://b/\nSuites: s\nComponents: main\n"
    )
    (tmp_path / "sources.list.d" / "c.list.disabled").write_text("deb http://c/ s main\n")
    assert [source.address for source in machine_sources(tmp_path)] == ["http://a/debian", "http://b/"]


def test_without_a_keyring_nothing_is_fetched(tmp_path: Path) -> None:
    with pytest.raises(IolaneError, match="debian-archive-keyring"):
        installed_keyring([tmp_path / "missing.gpg"])
