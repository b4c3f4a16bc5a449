"""Memory that a device left, compared record by record: keys, and fields that go with the place."""

import struct

from iolane.model.trace.comparison import MemoryComparison
from iolane.model.trace.recorded import RecordedEvent

RECORD = struct.Struct("<HBB")
FIELDS = [("ID", 0, 2, 0xFFFF), ("STATUS", 2, 1, 0xFF), ("P", 3, 1, 0x01)]


class Queue:
    """Records of an identifier, a status and a phase, as the hardware and the model left them."""

    def __init__(self) -> None:
        self.comparison = MemoryComparison()

    def compare(
        self, recorded: list[tuple[int, int, int]], replayed: list[tuple[int, int, int]]
    ) -> list[str]:
        event = RecordedEvent(
            op="left", name="q[3]", fields=FIELDS, stride=RECORD.size, key=["ID"], placed=["P"]
        )
        left = [b"".join(RECORD.pack(*each) for each in records) for records in (recorded, replayed)]
        return [str(found.place) for found in self.comparison.compare(event, *left)]

    def rest(self) -> list[str]:
        return [found.recorded for found in self.comparison.rest()]


def test_records_in_another_order_are_the_same() -> None:
    """Also where the queue wraps between them: the phase is the place's, not the record's."""
    queue = Queue()
    assert queue.compare([(7, 0, 1), (8, 0, 0)], [(8, 0, 1), (7, 0, 0)]) == []
    assert queue.rest() == []


def test_a_field_of_a_record() -> None:
    queue = Queue()
    assert queue.compare([(7, 0, 1), (8, 3, 1)], [(8, 4, 1), (7, 0, 1)]) == ["memory.q.STATUS"]
    assert queue.rest() == []


def test_a_record_with_the_wrong_phase() -> None:
    queue = Queue()
    assert queue.compare([(7, 0, 1)], [(7, 0, 0)]) == ["memory.q.P"]
    assert queue.rest() == []


def test_a_place_to_which_the_model_has_not_come() -> None:
    """What lies there is of the lap before: nothing yet. Its record may come later, elsewhere."""
    queue = Queue()
    assert queue.compare([(7, 0, 1), (8, 0, 1)], [(7, 0, 1), (3, 9, 0)]) == []
    assert queue.rest() == ["ID 8"]
    assert queue.compare([(9, 0, 1)], [(8, 0, 1)]) == []
    assert queue.rest() == ["ID 9"]
