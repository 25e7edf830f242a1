"""How long work still takes, from how long its parts took."""


class Pace:
    """Estimates from reports of what is done.

    The time until the first report holds what is done only there, as compiling, and is no measure
    of the rest.
    """

    def __init__(self) -> None:
        self._first: tuple[int, float] | None = None  # what was done at the first report, and when

    def seconds_left(self, done: int, total: int, now: float) -> float | None:
        """Takes in a report at the time `now`, in seconds; None: it is too early to say."""
        if self._first is None:
            self._first = done, now
        if done == total:
            return 0.0
        before, then = self._first
        return (now - then) * (total - done) / (done - before) if done > before else None
