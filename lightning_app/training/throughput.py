"""Training speed in characters per second."""

import time


class Throughput:
    """Counts characters and seconds of training; validation is not counted."""

    def __init__(self) -> None:
        self.characters, self.seconds = 0, 0.0
        self.since: float | None = None  # when the clock was started

    def start(self) -> None:
        if self.since is None:
            self.since = time.perf_counter()

    def pause(self) -> None:
        if self.since is not None:
            self.seconds += time.perf_counter() - self.since
            self.since = None

    def add(self, characters: int) -> None:
        self.characters += characters

    def characters_per_second(self) -> float:
        """The speed since the last call. A process's first steps, which compile, count too."""
        self.pause()
        speed = self.characters / max(self.seconds, 1e-9)
        self.characters, self.seconds = 0, 0.0
        self.start()
        return speed
