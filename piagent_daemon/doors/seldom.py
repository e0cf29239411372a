"""What is not said each time: a log line that anybody may bring about would fill the journal."""

from collections import OrderedDict
from typing import Final

SELDOM_S: Final = 10.0


class Seldom:
    """Tells whether to say something: once per key, and again after `pause_s` seconds. Remembers 1000 keys."""

    def __init__(self, pause_s: float = SELDOM_S) -> None:
        self._pause_s = pause_s
        self._said: OrderedDict[str, float] = OrderedDict()

    def __call__(self, key: str, now: float) -> bool:
        """Return True when `key` is to be said at the monotonic time `now`."""
        said = self._said.get(key)
        if said is not None and now - said < self._pause_s:
            return False
        self._said[key] = now
        self._said.move_to_end(key)
        if len(self._said) > 1000:
            self._said.popitem(last=False)
        return True
