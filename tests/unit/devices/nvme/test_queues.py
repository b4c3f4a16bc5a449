"""Queues: NVM Express Base 2.0c, 3.3.1, 5.2.1 and 5.4 to 5.7."""

import pytest

from iolane.devices.nvme.queues import CompletionQueue, SubmissionQueue
from iolane.devices.nvme.spec import AdminOpcode, IoOpcode, Status
from iolane.testing.nvme_driver import DOORBELLS, NvmeDriver
from tests.unit.devices.nvme.conftest import Make

CQ, SQ = AdminOpcode.CREATE_CQ, AdminOpcode.CREATE_SQ


def test_a_submission_doorbell_stays_in_the_ring_and_never_passes_the_head() -> None:
    queue = SubmissionQueue(1, 0, size=4, cqid=1, head=1, tail=2)
    assert [tail for tail in range(-1, 6) if queue.accepts(tail)] == [0, 3]
    queue = SubmissionQueue(1, 0, size=4, cqid=1, head=1, tail=0)
    assert not any(queue.accepts(tail) for tail in range(6))


def test_a_completion_doorbell_consumes_at_most_what_there_is() -> None:
    queue = CompletionQueue(1, 0, size=4, vector=0, interrupts=True, head=3, tail=1)
    assert [head for head in range(-1, 6) if queue.accepts(head)] == [0, 1]


def test_the_phase_tag_turns_with_each_pass() -> None:
    queue = CompletionQueue(1, 0, size=3, vector=0, interrupts=True)
    phases = []
    for _ in range(7):
        phases.append(queue.phase)
        queue.advance()
    assert phases == [1, 1, 1, 0, 0, 0, 1]


@pytest.mark.parametrize(
    ("opcode", "fields", "status"),
    [
        (CQ, {"cdw10": 7 << 16 | 0, "cdw11": 1}, Status.INVALID_QUEUE_ID),
        (CQ, {"cdw10": 7 << 16 | 9, "cdw11": 1}, Status.INVALID_QUEUE_ID),
        (CQ, {"cdw10": 7 << 16 | 1, "cdw11": 1}, Status.INVALID_QUEUE_ID),
        (CQ, {"cdw10": 0 << 16 | 3, "cdw11": 1}, Status.INVALID_QUEUE_SIZE),
        (CQ, {"cdw10": 1024 << 16 | 3, "cdw11": 1}, Status.INVALID_QUEUE_SIZE),
        (CQ, {"cdw10": 7 << 16 | 3, "cdw11": 0}, Status.INVALID_FIELD),
        (CQ, {"cdw10": 7 << 16 | 3, "cdw11": 17 << 16 | 3}, Status.INVALID_INTERRUPT_VECTOR),
        (CQ, {"cdw10": 7 << 16 | 3, "cdw11": 1, "prp1": 0x100010}, Status.INVALID_PRP_OFFSET),
        (SQ, {"cdw10": 7 << 16 | 3, "cdw11": 0 << 16 | 1}, Status.INVALID_QUEUE_ID),
        (SQ, {"cdw10": 7 << 16 | 3, "cdw11": 9 << 16 | 1}, Status.INVALID_QUEUE_ID),
        (SQ, {"cdw10": 7 << 16 | 3, "cdw11": 8 << 16 | 1}, Status.INVALID_CQ),
        (SQ, {"cdw10": 7 << 16 | 1, "cdw11": 1 << 16 | 1}, Status.INVALID_QUEUE_ID),
        (SQ, {"cdw10": 0 << 16 | 3, "cdw11": 1 << 16 | 1}, Status.INVALID_QUEUE_SIZE),
        (SQ, {"cdw10": 7 << 16 | 3, "cdw11": 1 << 16 | 0}, Status.INVALID_FIELD),
        (SQ, {"cdw10": 7 << 16 | 3, "cdw11": 1 << 16 | 1, "prp1": 4}, Status.INVALID_PRP_OFFSET),
        (AdminOpcode.DELETE_SQ, {"cdw10": 0}, Status.INVALID_QUEUE_ID),
        (AdminOpcode.DELETE_SQ, {"cdw10": 3}, Status.INVALID_QUEUE_ID),
        (AdminOpcode.DELETE_CQ, {"cdw10": 0}, Status.INVALID_QUEUE_ID),
        (AdminOpcode.DELETE_CQ, {"cdw10": 3}, Status.INVALID_QUEUE_ID),
        (AdminOpcode.DELETE_CQ, {"cdw10": 1}, Status.INVALID_QUEUE_DELETION),
    ],
)
def test_what_can_not_be_created_or_deleted(
    driver: NvmeDriver, opcode: int, fields: dict[str, int], status: Status
) -> None:
    completion = driver.admin(opcode, **fields)
    assert completion.status == status
    assert completion.do_not_retry
    assert completion.more
    assert driver.read(0, 1) == bytes(512)


def test_entry_sizes_must_be_set_before_queues_are_created(make: Make) -> None:
    """CC.IOSQES and CC.IOCQES (Base 3.1.3.5)."""
    driver = make()
    driver.enable(configuration=1)
    assert driver.admin(CQ, cdw10=7 << 16 | 1, cdw11=1).status == Status.INVALID_QUEUE_SIZE


def test_queues_are_deleted_in_order_and_can_be_made_again(driver: NvmeDriver) -> None:
    for _ in range(3):
        driver.check(
            driver.admin(AdminOpcode.DELETE_SQ, cdw10=2), driver.admin(AdminOpcode.DELETE_CQ, cdw10=2)
        )
        driver.create_queue(2, 16, 2)
        driver.check(driver.write(1, bytes(512), qid=2))


def test_two_submission_queues_share_a_completion_queue(driver: NvmeDriver) -> None:
    size = 15 << 16 | 3
    base = driver.memory.allocate(4096)
    driver.check(driver.admin(SQ, prp1=base, cdw10=size, cdw11=1 << 16 | 1))
    flush = driver.entry(IoOpcode.FLUSH, nsid=1)
    driver.memory.write(base, flush.pack())
    driver.write_register(DOORBELLS + 8 * 3, 1)
    completion = driver.wait(1, [flush.cid])[0]
    assert (completion.sqid, completion.sq_head, completion.status) == (3, 1, 0)
    assert driver.admin(AdminOpcode.DELETE_CQ, cdw10=1).status == Status.INVALID_QUEUE_DELETION


def test_rings_wrap_many_times(driver: NvmeDriver) -> None:
    for number in range(200):
        driver.check(driver.write(number, bytes([number]) * 512, qid=1 + number % 2))
    assert driver.read(0, 200) == b"".join(bytes([number]) * 512 for number in range(200))


def test_a_full_completion_queue_holds_the_rest_back_and_loses_nothing(make: Make) -> None:
    """Base 3.3.1.5: a queue is full with one slot empty."""
    driver = make()
    driver.enable()
    driver.create_queues(1)
    driver.check(driver.admin(AdminOpcode.DELETE_SQ, cdw10=1), driver.admin(AdminOpcode.DELETE_CQ, cdw10=1))
    ring = driver.rings[1]
    ring.cq, ring.head, ring.phase, ring.tail = driver.memory.allocate(4096), 0, 1, 0
    driver.check(
        driver.admin(CQ, prp1=ring.cq, cdw10=3 << 16 | 1, cdw11=1 << 16 | 3),
        driver.admin(SQ, prp1=ring.sq, cdw10=63 << 16 | 1, cdw11=1 << 16 | 1),
    )
    cids = driver.submit(1, *(driver.entry(IoOpcode.FLUSH, nsid=1) for _ in range(40)))
    queue = driver.device.state.completion[1]
    assert queue.full
    assert queue.waiting
    ring.entries = 4
    seen: list[int] = []
    while len(seen) < 40:
        assert driver.reap(1) == min(3, 40 - len(seen))
        seen = list(ring.done)
    assert seen == cids
    assert not queue.waiting


def test_a_deleted_queue_posts_nothing_more(make: Make) -> None:
    """Base 5.7: what waited for room in the completion queue goes with the submission queue."""
    driver = make()
    driver.enable()
    ring = driver.create_queue(1, 64, 1)
    driver.check(driver.admin(CQ, prp1=driver.memory.allocate(4096), cdw10=3 << 16 | 2, cdw11=1))
    driver.check(driver.admin(SQ, prp1=ring.sq, cdw10=63 << 16 | 2, cdw11=2 << 16 | 1))
    driver.place(1, [driver.entry(IoOpcode.FLUSH, nsid=1) for _ in range(8)])
    driver.write_register(DOORBELLS + 8 * 2, 8)
    queue = driver.device.state.completion[2]
    assert queue.waiting
    driver.check(driver.admin(AdminOpcode.DELETE_SQ, cdw10=2))
    driver.write_register(DOORBELLS + 8 * 2 + 4, 3)
    assert (queue.used, queue.waiting) == (0, [])


def test_a_command_identifier_in_use_is_refused(make: Make) -> None:
    """Base, Figure 95: Command ID Conflict."""
    driver = make()
    driver.enable()
    request = driver.entry(AdminOpcode.ASYNC_EVENT_REQUEST)
    driver.submit(0, request)
    again = driver.submit(0, driver.entry(AdminOpcode.IDENTIFY, cid=request.cid))
    assert driver.wait(0, again)[0].status == Status.COMMAND_ID_CONFLICT
