"""Admin requests about what is remembered."""

from typing import Any

from pydantic import field_validator

from piagent_daemon.admin import Parts
from piagent_daemon.admin_method import NoParams, takes
from piagent_daemon.contract import Noun


class OneConversation(Noun):
    conversation_id: str


class SomeConversation(Noun):
    conversation_id: str | None = None

    @field_validator("conversation_id")
    @classmethod
    def _named(cls, value: str | None) -> str:
        """Refuse null, which a flow sends whose variable is not set: it does not mean everything."""
        if value is None:
            raise ValueError("null is no conversation; without it, everything is forgotten")
        return value


@takes(NoParams)
async def conversations_list(parts: Parts, _: NoParams) -> Any:
    """List the conversations, last used first."""
    return {
        "conversations": [
            {
                "conversation_id": row.conversation_id,
                "turns": row.turns,
                "agent": row.agent,
                "last_used": row.last_used,
            }
            for row in await parts.store.conversations()
        ]
    }


@takes(OneConversation)
async def get(parts: Parts, params: OneConversation) -> Any:
    """Return what is remembered of one conversation."""
    found = await parts.store.load(params.conversation_id)
    return {
        "conversation_id": params.conversation_id,
        "agent": found.agent,
        "dropped_turns": found.dropped,
        "turns": [
            {"role": turn.role, "content": turn.content, "ts": turn.ts, "interrupted": turn.interrupted}
            for turn in found.turns
        ],
    }


@takes(SomeConversation)
async def clear(parts: Parts, params: SomeConversation) -> Any:
    """Forget one conversation, or all of them."""
    return {"cleared": await parts.scheduler.reset(params.conversation_id)}
