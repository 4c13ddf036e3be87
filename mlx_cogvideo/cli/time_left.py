"""How long a command will take, by what it has measured so far."""

import time

_UNITS = {
    "encode": "texts",
    "source": "sources",
    "denoise": "steps",
    "decode": "frames",
    "captions": "texts",
    "clips": "clips",
    "prior": "answers",
    "train": "steps",
}


def unit_of(stage: str) -> str:
    """What is counted in a stage: that of a network which is converted is its bytes."""
    return _UNITS.get(stage, "bytes")


class TimeLeft:
    """Measures a command's stages and estimates when it ends.

    Attributes:
        work: units that the command still has to do, the longest work first: ``steps`` of
            denoising or training, decoded ``frames``, or ``bytes`` of converted weights.
        pace: seconds that a unit takes, of those that have been measured.
    """

    def __init__(self):
        self.work: dict[str, int] = {}
        self.pace: dict[str, float] = {}
        self._stage, self._done = "", 0
        self._first, self._measured = (0, 0.0), False

    def note(self, stage: str, done: int, total: int) -> None:
        """Takes the progress of a stage; the first of several parts is slower, and not measured."""
        now, unit = time.monotonic(), unit_of(stage)
        if stage != self._stage or done < self._done:
            self._first, self._measured = (done, now), False
        elif done > self._done:
            if unit in self.work:
                self.work[unit] = max(0, self.work[unit] - done + self._done)
            first, then = self._first
            if self._measured or (done == total and unit not in self.pace):
                self.pace[unit] = (now - then) / (done - first)
            else:
                self._first, self._measured = (done, now), True
        self._stage, self._done = stage, done

    def seconds(self) -> float | None:
        """Seconds until the end, or None while the pace of the longest work isn't known.

        Decoding counts once some of it has been measured.
        """
        left = {unit: count for unit, count in self.work.items() if count}
        if not self.work or (left and next(iter(left)) not in self.pace):
            return None
        seconds = (count * self.pace.get(unit, 0) for unit, count in left.items())
        return round(sum(seconds, 0.0), 1)
