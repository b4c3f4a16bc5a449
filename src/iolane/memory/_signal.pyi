"""Signalling a peer that may do anything with its descriptors, and never waiting for it."""

def take(fd: int) -> bool:
    """Take what was signalled, without waiting. False: nobody signals any more.

    Raises:
        OSError: BlockingIOError if there is nothing.
    """

class Signaller:
    """Signals eventfds, sockets and pipes. It holds nothing before it is used, and may be used again after
    `close`.
    """

    def open(self) -> None:
        """Take what it needs now: a file and a context for asynchronous I/O, where there is one."""
    def signal(self, fd: int) -> None:
        """Signal. What is full has been signalled, and a pipe or socket that nobody reads needs no signal."""
    def close(self) -> None:
        """Give back what it holds. Takes the kernel some 30 ms. While nobody signals."""
