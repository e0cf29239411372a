"""How far the newest answer of each conversation was spoken, for a listener who cuts it off after it was complete.

A model is done long before a voice is: `cancel` with `spoken_index` mostly comes when the answer has ended.
"""

from collections import OrderedDict
from typing import Final

from piagent_daemon.job import Job, heard

CONVERSATIONS: Final = 200
"""Conversations whose newest answer is known; the one that was answered longest ago goes first."""


class Spoken:
    """Knows where the sentences of each newest answer end; nothing of an answer without sentences."""

    def __init__(self) -> None:
        self._answers: OrderedDict[str, tuple[str, int, tuple[int, ...]]] = OrderedDict()

    def answered(self, job: Job, reply: str) -> None:
        """Note the newest answer of a conversation."""
        self._answers.pop(job.conversation_id, None)
        if job.sentence_ends:
            self._answers[job.conversation_id] = (job.request_id, len(reply), job.sentence_ends)
        if len(self._answers) > CONVERSATIONS:
            self._answers.popitem(last=False)

    def cut(self, conversation_id: str, request_id: str | None, spoken_index: int) -> tuple[int, int] | None:
        """Return the length of the newest answer and how much of it was heard, None when there is nothing to cut."""
        known, length, ends = self._answers.get(conversation_id, ("", 0, ()))
        if spoken_index >= len(ends) - 1 or request_id not in {None, known}:
            return None
        del self._answers[conversation_id]
        return length, heard(ends, spoken_index)
