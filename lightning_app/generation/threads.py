"""How many threads generate: chosen from measured times.

More threads are faster on an idle machine. On a busy one, all threads of a computation wait for
the one that another program holds up, and a single thread can be ten times as fast. Text is
generated in calls of some milliseconds, whose times are compared while it is generated.
"""

from collections import deque

RECENT = 4  # calls from which the speed of a number of threads is computed
ENOUGH = 2  # calls after which a number of threads can be compared with others
HOPELESS = 4  # so many times slower in its first call: not tried again at once
TRIAL_SHARE = 1 / 40  # of the time, for calls with half, and for calls with double the threads


class ThreadChoice:
    """Chooses the number of threads of each call, from the times of earlier calls.

    It begins with one thread and doubles the number as long as that is faster. From then on it uses
    the fastest number, and now and then tries half and double of it, because the machine may have
    become busy or idle.

    Args:
        most: The highest number of threads.
        given: The only number of threads, if the user has chosen it; nothing is compared then.
    """

    def __init__(self, most: int, given: int | None = None) -> None:
        doubled = [2**i for i in range(most.bit_length()) if 2**i < most]
        self.counts = [given] if given else [*doubled, most]
        # (seconds, size) of the last calls with each number of threads
        self.calls: dict[int, deque[tuple[float, float]]] = {}
        self.clock = 0.0  # seconds that all calls together have taken
        self.last_call = dict.fromkeys(self.counts, 0.0)  # when, by this clock
        self.code_is_loaded = False

    def next(self) -> int:
        """The number of threads for the next call."""
        if len(self.counts) == 1 or not self.calls:
            return self.counts[0]
        fastest = self.fastest()
        neighbours = self.neighbours(fastest)
        for count in (fastest, *neighbours):
            if not self.is_measured(count, fastest):
                return count
        for count in neighbours:
            last_seconds, _ = self.calls[count][-1]
            if (self.clock - self.last_call[count]) * TRIAL_SHARE > last_seconds:
                return count
        return fastest

    def fastest(self) -> int:
        """The fastest number of threads so far; before the first measurement, the lowest."""
        return min(self.calls, key=self.seconds_per_size, default=self.counts[0])

    def record(self, threads: int, seconds: float, size: float) -> None:
        """A call of this size took so long. The very first one is not counted, because compiled
        code is loaded in it."""
        if not self.code_is_loaded:
            self.code_is_loaded = True
            return
        self.clock += seconds
        self.last_call[threads] = self.clock
        self.calls.setdefault(threads, deque(maxlen=RECENT)).append((seconds, size))

    def seconds_per_size(self, threads: int) -> float:
        """Seconds per unit of size, in the last calls with this number of threads."""
        calls = self.calls[threads]
        return sum(seconds for seconds, _ in calls) / sum(size for _, size in calls)

    def neighbours(self, threads: int) -> list[int]:
        """The next lower and the next higher number of threads."""
        i = self.counts.index(threads)
        return self.counts[max(i - 1, 0) : i] + self.counts[i + 1 : i + 2]

    def is_measured(self, threads: int, fastest: int) -> bool:
        """Whether this number of threads can be compared with the fastest."""
        if threads not in self.calls:
            return False
        hopeless = self.seconds_per_size(threads) > HOPELESS * self.seconds_per_size(fastest)
        return hopeless or len(self.calls[threads]) >= ENOUGH
