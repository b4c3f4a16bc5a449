"""The machine's apt sources: where its Debian archive is (sources.list(5), one-line and deb822 style)."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from iolane.errors import IolaneError

KEYRINGS = (
    Path("/usr/share/keyrings/debian-archive-keyring.gpg"),
    Path("/usr/share/keyrings/debian-archive-keyring.pgp"),
)
ARCHIVE_VARIABLE = "IOLANE_DEBIAN_ARCHIVE"


@dataclass(frozen=True)
class Source:
    """One archive that apt is told to use: one address, one suite."""

    address: str
    suite: str
    components: tuple[str, ...]
    signed_by: str | None = None


@dataclass(frozen=True)
class DebianArchive:
    """Where Debian's packages come from, and the keyring that vouches for them."""

    address: str
    security_address: str | None
    codename: str
    keyring: Path


def parse_one_line(text: str) -> Iterator[Source]:
    """sources.list(5), ONE-LINE-STYLE FORMAT: `deb [option=value ...] address suite [component ...]`."""
    for raw in text.splitlines():
        line = raw.split("#", 1)[0].strip()
        match = re.match(r"deb\s+(?:\[([^\]]*)\]\s+)?(\S+)\s+(\S+)\s*(.*)$", line)
        if match is None:
            continue
        options = dict(option.split("=", 1) for option in shlex.split(match[1] or "") if "=" in option)
        yield Source(match[2], match[3], tuple(match[4].split()), options.get("signed-by"))


def parse_deb822(text: str) -> Iterator[Source]:
    """sources.list(5), DEB822-STYLE FORMAT: stanzas of fields, continued by indented lines."""
    for stanza in re.split(r"\n[ \t]*(?:\n[ \t]*)+", text):
        fields = _fields(stanza)
        if "deb" not in fields.get("types", "").split():
            continue
        if fields.get("enabled", "yes").strip().lower() in ("no", "false", "0", "off", "without", "disable"):
            continue
        components = tuple(fields.get("components", "").split())
        for address in fields.get("uris", "").split():
            for suite in fields.get("suites", "").split():
                yield Source(address, suite, components, fields.get("signed-by", "").strip() or None)


def _fields(stanza: str) -> dict[str, str]:
    fields: dict[str, str] = {}
    name = ""
    for line in stanza.splitlines():
        if line.startswith("#"):
            continue
        if line[:1] in (" ", "\t") and name:
            fields[name] += "\n" + line.strip()
        elif ":" in line:
            name, _, value = line.partition(":")
            name = name.strip().lower()
            fields[name] = value.strip()
    return fields


def machine_sources(etc_apt: Path = Path("/etc/apt")) -> list[Source]:
    """Every source apt itself would use, in its order."""
    files = [etc_apt / "sources.list", *sorted((etc_apt / "sources.list.d").glob("*"))]
    found: list[Source] = []
    for file in files:
        parse = {".list": parse_one_line, ".sources": parse_deb822}.get(file.suffix)
        if parse is not None and file.is_file():
            found.extend(parse(file.read_text(errors="replace")))
    return found


def machine_codename(os_release: Path = Path("/etc/os-release")) -> str | None:
    """The Debian codename of this machine, or None when it is not a Debian."""
    try:
        lines = os_release.read_text().splitlines()
    except OSError:
        return None
    values = dict(line.split("=", 1) for line in lines if "=" in line)
    if values.get("ID", "").strip('"') != "debian":
        return None
    return values.get("VERSION_CODENAME", "").strip('"') or None


def installed_keyring(candidates: Iterable[Path] = KEYRINGS) -> Path:
    """The keyring of the package debian-archive-keyring; nothing is fetched without it."""
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    raise IolaneError(
        "Debian's archive keyring is not installed, so packages could not be verified",
        remedy="apt-get install debian-archive-keyring",
    )


def debian_archive(
    sources: Iterable[Source], codename: str | None, keyring: Path, override: str | None = None
) -> DebianArchive:
    """Picks Debian's own archive among the sources. Third parties use Debian's suite names too, but not with
    the component `main` under Debian's key."""
    codename = codename or "bookworm"
    own = [source for source in sources if "main" in source.components and _debian_key(source)]
    security = [source.address for source in own if _is_security(source, codename)]
    main = [source.address for source in own if source.suite in (codename, f"{codename}-updates", "stable")]
    if override is None and not main:
        raise IolaneError(
            "no Debian archive among this machine's apt sources",
            remedy=f"set {ARCHIVE_VARIABLE} to the address of one, or IOLANE_QEMU to a QEMU >= 10.1",
        )
    return DebianArchive(override or main[0], security[0] if security else None, codename, keyring)


def _debian_key(source: Source) -> bool:
    return source.signed_by is None or os.path.basename(source.signed_by).startswith("debian-archive")


def _is_security(source: Source, codename: str) -> bool:
    return source.suite in (f"{codename}-security", f"{codename}/updates", "stable-security")


def this_machine() -> DebianArchive:
    """The archive this machine itself uses."""
    return debian_archive(
        machine_sources(), machine_codename(), installed_keyring(), os.environ.get(ARCHIVE_VARIABLE)
    )
