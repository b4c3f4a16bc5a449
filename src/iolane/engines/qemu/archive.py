"""A private apt: Debian packages resolved, verified and fetched into the cache, nothing installed.

It has its own lists, cache and sources and an empty dpkg status, so a closure is complete whatever this
machine has installed, and it needs no privilege. Signatures are verified by apt itself, against the installed
Debian keyring and nothing else.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from iolane.engines.qemu.cache import Cache, Report
from iolane.engines.qemu.sources import DebianArchive
from iolane.errors import IolaneError

LISTS_LIFETIME = 6 * 3600
"""Seconds for which fetched package lists are used without asking the archive again."""


class Package(msgspec.Struct, frozen=True):
    """One unpacked package, as the manifest records it."""

    name: str
    version: str
    architecture: str
    sha256: str


class Manifest(msgspec.Struct, frozen=True):
    """What a tree in the cache was made of."""

    packages: list[Package]

    def version(self, name: str) -> str | None:
        """The version of package `name`, None if the tree has none."""
        return next((package.version for package in self.packages if package.name == name), None)

    @classmethod
    def read(cls, tree: Path) -> Manifest:
        """The manifest of a tree made by `Archive.unpack`."""
        return msgspec.json.decode((tree / "manifest.json").read_bytes(), type=cls)


@dataclass(frozen=True)
class Suites:
    """Which suites a private apt looks into; `target` is preferred as by `apt-get -t`."""

    name: str
    suites: tuple[str, ...]
    security: tuple[str, ...] = ()
    target: str | None = None


def own_suites(archive: DebianArchive) -> Suites:
    """The suites of the machine's own release."""
    name = archive.codename
    return Suites(name, (name, f"{name}-updates"), (f"{name}-security",))


class Archive:
    """Packages of some suites of a Debian archive."""

    def __init__(self, cache: Cache, archive: DebianArchive, suites: Suites) -> None:
        self._cache = cache
        self._archive = archive
        self._suites = suites
        self._state = cache.root / "apt" / suites.name
        self.report: Report = cache.report

    def closure(self, packages: Sequence[str], prefix: Path) -> Manifest:
        """Unpacks `packages` with all they depend on (recommended packages are left out) into `prefix`."""
        with self._session() as session:
            debs = session.fetch_closure(packages)
            return self.unpack(debs, prefix)

    def exactly(self, packages: Sequence[str], prefix: Path) -> Manifest:
        """Unpacks exactly `packages` into `prefix`."""
        with self._session() as session:
            debs = session.fetch(packages)
            return self.unpack(debs, prefix)

    def depends(self, package: str) -> list[str]:
        """The names `package` (its candidate version) depends on directly."""
        with self._session() as session:
            return session.depends(package)

    def unpack(self, debs: Sequence[Path], prefix: Path) -> Manifest:
        """dpkg-deb -x of each into `prefix`, with a manifest; the .deb files are removed."""
        self.report(f"unpacking {len(debs)} packages")
        prefix.mkdir(parents=True)
        packages = []
        for deb in debs:
            fields = _run(["dpkg-deb", "-f", str(deb), "Package", "Version", "Architecture"]).splitlines()
            values = dict(line.split(": ", 1) for line in fields)
            digest = hashlib.sha256(deb.read_bytes()).hexdigest()
            packages.append(Package(values["Package"], values["Version"], values["Architecture"], digest))
            _run(["dpkg-deb", "-x", str(deb), str(prefix)])
        manifest = Manifest(sorted(packages, key=lambda package: package.name))
        (prefix / "manifest.json").write_bytes(msgspec.json.format(msgspec.json.encode(manifest)))
        for deb in debs:
            deb.unlink()
        return manifest

    @contextlib.contextmanager
    def _session(self) -> Iterator[_Session]:
        for program in ("apt-get", "apt-cache", "dpkg-deb"):
            if shutil.which(program) is None:
                raise IolaneError(
                    f"{program} is needed to fetch packages and is not installed",
                    remedy="use a Debian machine, or set IOLANE_QEMU and give your own --kernel",
                )
        with self._cache.locked(f"apt-{self._suites.name}"):
            scratch = self._state / "session"
            shutil.rmtree(scratch, ignore_errors=True)  # left by a run that was killed
            try:
                session = _Session(self._state, scratch, self._archive, self._suites, self.report)
                session.refresh()
                yield session
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
                for index in (self._state / "cache").glob("*.bin"):
                    index.unlink()  # large, and made again in a second


class _Session:
    """Runs apt against the private state, its configuration in a scratch folder."""

    def __init__(
        self, state: Path, scratch: Path, archive: DebianArchive, suites: Suites, report: Report
    ) -> None:
        self._state = state
        self._suites = suites
        self._report = report
        self._scratch = scratch
        self._debs = state / "cache" / "archives"
        for folder in (
            state / "lists" / "partial",
            self._debs / "partial",
            scratch / "parts",
            scratch / "conf",
        ):
            folder.mkdir(parents=True, exist_ok=True)
        (state / "status").touch()
        (scratch / "parts" / "debian.sources").write_text(sources_text(archive, suites))
        (scratch / "apt.conf").write_text(configuration_text(state, scratch, _machine_acquire_settings()))
        self._environment = {**os.environ, "APT_CONFIG": str(scratch / "apt.conf"), "LC_ALL": "C.UTF-8"}

    def refresh(self) -> None:
        """Fetches the package lists unless they are fresh."""
        stamp = self._state / "lists.stamp"
        if stamp.exists() and 0 <= time.time() - stamp.stat().st_mtime < LISTS_LIFETIME:
            return
        self._report(f"fetching the package lists of Debian {self._suites.name}")
        self._apt(["apt-get", "update", "-q", "-o", "APT::Update::Error-Mode=any"])
        stamp.touch()

    def fetch_closure(self, packages: Sequence[str]) -> list[Path]:
        """Fetches packages and dependencies; what an earlier run has fetched is kept and resumed by apt."""
        target = ["-t", self._suites.target] if self._suites.target else []
        command = ["apt-get", "install", "-y", "-q", "--no-install-recommends", *target]
        plan = self._apt([*command, "--simulate", *packages])
        wanted = re.findall(r"^Inst (\S+)", plan, re.MULTILINE)
        self._report(f"fetching {', '.join(packages)} with dependencies: {len(wanted)} packages")
        self._apt([*command, "--download-only", *packages], progress=True)
        found = {deb.name.split("_", 1)[0]: deb for deb in sorted(self._debs.glob("*.deb"))}
        if missing := [name for name in wanted if name.split(":")[0] not in found]:
            raise IolaneError(f"apt did not fetch {', '.join(missing)}", remedy="try again")
        return [found[name.split(":")[0]] for name in wanted]

    def fetch(self, packages: Sequence[str]) -> list[Path]:
        """Fetches exactly these packages."""
        self._report(f"fetching {', '.join(packages)}")
        folder = Path(tempfile.mkdtemp(prefix="download-", dir=self._scratch))
        self._apt(["apt-get", "download", "-q", *packages], progress=True, folder=folder)
        debs = sorted(folder.glob("*.deb"))
        if len(debs) != len(packages):
            raise IolaneError(f"apt fetched {len(debs)} of {len(packages)} packages", remedy="try again")
        return [deb.rename(self._debs / deb.name) for deb in debs]

    def depends(self, package: str) -> list[str]:
        """The Depends of the candidate version."""
        text = self._apt(["apt-cache", "show", "--no-all-versions", package])
        match = re.search(r"^Depends: (.*)$", text, re.MULTILINE)
        return (
            [] if match is None else [re.split(r"[\s(:|]", part.strip())[0] for part in match[1].split(",")]
        )

    def _apt(self, command: list[str], *, progress: bool = False, folder: Path | None = None) -> str:
        arguments = list(command)
        with contextlib.ExitStack() as stack:
            pass_fds: tuple[int, ...] = ()
            if progress:
                reader, writer = os.pipe()
                stack.callback(_ignoring_closed, writer)
                arguments[1:1] = ["-o", f"APT::Status-Fd={writer}"]
                pass_fds = (writer,)
            process = stack.enter_context(
                subprocess.Popen(
                    arguments,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    env=self._environment,
                    cwd=folder,
                    pass_fds=pass_fds,
                    text=True,
                )
            )
            if progress:
                os.close(writer)
                follower = threading.Thread(target=_follow, args=(reader, self._report), daemon=True)
                follower.start()
                stack.callback(follower.join)
            try:
                output = process.communicate()[0]
            except BaseException:
                process.kill()
                raise
        if process.returncode != 0:
            raise _apt_error(command, output)
        return output


def sources_text(archive: DebianArchive, suites: Suites) -> str:
    """The deb822 source of the suites, signed by Debian's keyring and nothing else."""

    def stanza(address: str, names: Sequence[str]) -> str:
        return (
            f"Types: deb\nURIs: {address}\nSuites: {' '.join(names)}\nComponents: main\n"
            f"Signed-By: {archive.keyring}\n"
        )

    stanzas = [stanza(archive.address, suites.suites)]
    if archive.security_address is not None and suites.security:
        stanzas.append(stanza(archive.security_address, suites.security))
    return "\n".join(stanzas)


def configuration_text(state: Path, scratch: Path, acquire: Sequence[str]) -> str:
    """apt.conf(5) of the private apt: own folders, no hooks, nothing unsigned, the machine's proxies."""
    lines = [
        *acquire,
        f'Dir::Etc::sourceparts "{scratch}/parts";',
        'Dir::Etc::sourcelist "/dev/null";',
        f'Dir::Etc::parts "{scratch}/conf";',
        'Dir::Etc::main "/dev/null";',
        'Dir::Etc::preferences "/dev/null";',
        'Dir::Etc::preferencesparts "/dev/null";',
        f'Dir::State "{state}";',
        f'Dir::State::lists "{state}/lists";',
        f'Dir::State::status "{state}/status";',
        f'Dir::Cache "{state}/cache";',
        f'Dir::Log "{scratch}";',
        'APT::Sandbox::User "root";',
        'APT::Install-Recommends "false";',
        'APT::Keep-Downloaded-Packages "true";',
        'APT::Get::AllowUnauthenticated "false";',
        'Acquire::AllowInsecureRepositories "false";',
        'Acquire::AllowWeakRepositories "false";',
        'Acquire::Languages "none";',
        'Acquire::GzipIndexes "true";',
        'Acquire::Retries "3";',
    ]
    return "\n".join(lines) + "\n"


def _machine_acquire_settings() -> list[str]:
    """How this machine reaches its archive (proxies, timeouts); what loosens verification is overridden."""
    dump = _run(["apt-config", "dump"]).splitlines()
    left_out = ("Acquire::IndexTargets", "Acquire::Languages", "Acquire::GzipIndexes")
    lines = [line for line in dump if line.startswith("Acquire::") and not line.startswith(left_out)]
    return [line for line in lines if not line.endswith(' "";')]


def _follow(reader: int, report: Report) -> None:
    """Reads apt's status lines (`dlstatus:number:percent:what`) and reports every tenth part."""
    told = 0
    with os.fdopen(reader) as lines:
        for line in lines:
            match = re.match(r"dlstatus:\d+:([\d.]+):", line)
            if match is not None and (tenth := int(float(match[1])) // 10) > told:
                told = tenth
                report(f"  {tenth * 10}% fetched")


def _ignoring_closed(fd: int) -> None:
    with contextlib.suppress(OSError):
        os.close(fd)


def _apt_error(command: Sequence[str], output: str) -> IolaneError:
    notes = [line for line in output.splitlines() if line.startswith(("E:", "W:", "Err:"))]
    what = "; ".join(notes[-3:]) or output.strip()[-300:]
    if re.search(r"signature|NO_PUBKEY|not signed", what):
        return IolaneError(
            f"the Debian archive could not be verified, nothing of it is used: {what}",
            remedy="update the package debian-archive-keyring",
        )
    return IolaneError(
        f"{' '.join(command[:2])} failed: {what}", remedy="check this machine's network and apt"
    )


def _run(command: Sequence[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "LC_ALL": "C.UTF-8"})
    if done.returncode != 0:
        raise IolaneError(f"{' '.join(command[:2])} failed: {done.stderr.strip() or done.returncode}")
    return done.stdout
