"""IolaneError says one clear line, with the way out where there is one."""

import pickle

from iolane import IolaneError


class Missing(IolaneError):
    def __init__(self, path: str, *, code: int) -> None:
        super().__init__(f"{path} is missing", remedy="create it")
        self.code = code


def test_one_line_with_the_remedy() -> None:
    assert str(IolaneError("no QEMU\nfound")) == "no QEMU found"
    assert str(IolaneError("no QEMU", remedy="run 'iolane doctor'")) == "no QEMU (run 'iolane doctor')"


def test_survives_pickling_whatever_the_subclass_takes() -> None:
    again = pickle.loads(pickle.dumps(Missing("disk.raw", code=3)))
    assert isinstance(again, Missing)
    assert (str(again), again.code) == ("disk.raw is missing (create it)", 3)
    assert again.args == ("disk.raw is missing",)
