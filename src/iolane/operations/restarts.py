"""When something that ended is started anew: soon at first, then less and less, and not for ever."""

from __future__ import annotations

from collections import deque

import msgspec


class RestartPolicy(msgspec.Struct, frozen=True):
    """How often, and after how long; times in seconds."""

    first: float = 0.1
    factor: float = 2.0
    """Each restart waits so many times as long as the one before."""
    longest: float = 10.0
    most: int = 8
    """Restarts within `within`; one more, and it is dead for good."""
    within: float = 60.0
    """What lies longer back is forgotten, and the waiting begins with `first` again."""


class Restarts:
    """The restarts of one thing."""

    def __init__(self, policy: RestartPolicy) -> None:
        self.policy = policy
        self.count = 0
        """All of them."""
        self._times: deque[float] = deque()

    def next(self, now: float) -> float | None:
        """Seconds to wait before it is started anew; None when it is to be left alone.

        Args:
            now: seconds of a clock that never goes back.
        """
        policy = self.policy
        while self._times and now - self._times[0] >= policy.within:
            self._times.popleft()
        if len(self._times) >= policy.most:
            return None
        delay = min(policy.first * policy.factor ** len(self._times), policy.longest)
        self._times.append(now)
        self.count += 1
        return delay
