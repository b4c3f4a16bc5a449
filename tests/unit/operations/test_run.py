"""What the run's parts say of words, sizes, and a guest's answers."""

from __future__ import annotations

import shlex

import pytest
import typer

from iolane.cli.demo import payload_bytes
from iolane.cli.output import quantity
from iolane.cli.run import memory_mib
from iolane.operations.demo.guest import checksum
from iolane.operations.demo.results import compare
from iolane.operations.run import command_text


def test_one_word_is_a_line_for_the_shell() -> None:
    assert command_text(["ls | wc -l"]) == "ls | wc -l"


def test_several_words_stay_as_they_are() -> None:
    words = ["printf", "%s\n", "a b", "$HOME", "it's", ""]
    assert shlex.split(command_text(words)) == words


@pytest.mark.parametrize(("text", "mib"), [("512", 512), ("512M", 512), ("2g", 2048), ("64m", 64)])
def test_memory(text: str, mib: int) -> None:
    assert memory_mib(text) == mib


@pytest.mark.parametrize("text", ["", "M", "63M", "-1", "1.5G", "2T", "9999999G", "0x100"])
def test_no_memory(text: str) -> None:
    with pytest.raises(typer.BadParameter):
        memory_mib(text)


def test_payload() -> None:
    assert payload_bytes("8M") == 8 << 20
    for text in ("8", "8G", "0M", "129M", "M", ""):
        with pytest.raises(typer.BadParameter):
            payload_bytes(text)


def test_quantities() -> None:
    assert [quantity(number) for number in (0, 1023, 1536, 64 << 20, 5 << 40)] == [
        "0 B",
        "1023 B",
        "1.5 KiB",
        "64.0 MiB",
        "5120.0 GiB",
    ]


def test_checksums_are_compared() -> None:
    digest = "0123456789abcdef" * 4
    assert checksum(f"noise\n{digest}  -\n") == digest
    assert checksum("sha256sum: no such file") == ""
    assert compare("x", digest, digest).ok
    assert not compare("x", digest, digest[::-1]).ok
    assert not compare("x", digest, "").ok
