"""Anthropic's JSON, both ways."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from piagent_daemon.errors import ProviderError
from piagent_daemon.providers import anthropic_wire as wire
from piagent_daemon.providers.answer import Failure
from piagent_daemon.values import ChatRequest, Finish, Message

SYSTEM, USER = Message("system", "Be brief."), Message("user", "hi")
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=6,
)


def body(*messages: Message, left_out: frozenset[str] = frozenset(), **changes: Any) -> dict[str, Any]:
    fields: dict[str, Any] = {"options": {"num_predict": 100, "temperature": 0.5}, "context_tokens": 4096, **changes}
    return wire.chat_body(ChatRequest("claude", messages or (SYSTEM, USER), **fields), left_out)


def test_the_body_of_a_call() -> None:
    assert body(SYSTEM, Message("user", "What?", ("R0lGODlh",)), Message("assistant", "A gif."), USER) == {
        "model": "claude",
        "max_tokens": 100,
        "stream": True,
        "thinking": {"type": "disabled"},
        "temperature": 0.5,
        "system": "Be brief.",
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "image", "source": {"type": "base64", "media_type": "image/gif", "data": "R0lGODlh"}},
                    {"type": "text", "text": "What?"},
                ],
            },
            {"role": "assistant", "content": "A gif."},
            {"role": "user", "content": "hi"},
        ],
    }


@pytest.mark.parametrize(
    ("options", "fields"),
    [
        ({"temperature": 1.5}, {"temperature": 1}),
        ({"temperature": 0.5, "top_p": 0.9}, {"top_p": 0.9}),
        ({"top_k": 5, "seed": 3, "min_p": 0.1}, {"top_k": 5}),
        ({"stop": "END"}, {"stop_sequences": ["END"]}),
        ({"stop": ["\n", "x"]}, {"stop_sequences": ["x"]}),
        ({}, {}),
    ],
)
def test_options(options: dict[str, Any], fields: dict[str, Any]) -> None:
    found = body(options=options)
    kept = {"temperature", "top_p", "top_k", "stop_sequences", "seed", "min_p"}
    assert {name: value for name, value in found.items() if name in kept} == fields
    assert found["max_tokens"] == 1024


def test_conversations_that_it_would_refuse_are_mended() -> None:
    assert body(SYSTEM)["messages"] == [{"role": "user", "content": "."}]
    found = body(Message("assistant", "Yes?"), Message("user", "  "), USER, Message("assistant", ""))["messages"]
    assert [turn["content"] for turn in found] == [".", "Yes?", "hi"]
    assert "system" not in body(USER)
    assert body(SYSTEM, USER, prompt="<user>x</user>")["messages"] == [{"role": "user", "content": "<user>x</user>"}]
    assert "system" not in body(SYSTEM, USER, prompt="<user>x</user>")


@pytest.mark.parametrize(
    ("think", "left_out", "limit", "thinking", "sampled"),
    [
        (False, set(), 2000, {"type": "disabled"}, True),
        (False, {"thinking.disabled"}, 2000, None, True),
        (True, set(), 2000, {"type": "adaptive"}, False),
        (True, {"thinking.adaptive"}, 4000, {"type": "enabled", "budget_tokens": 2000}, False),
        (True, {"thinking.adaptive"}, 1100, {"type": "enabled", "budget_tokens": 1024}, False),
        (True, {"thinking.adaptive"}, 1024, None, True),
        (True, {"thinking.adaptive", "thinking.enabled"}, 4000, None, True),
    ],
)
def test_thinking(think: bool, left_out: set[str], limit: int, thinking: dict[str, Any] | None, sampled: bool) -> None:
    options = {"num_predict": limit, "temperature": 0.5}
    found = body(think=think, options=options, left_out=frozenset(left_out))
    assert found.get("thinking") == thinking
    assert ("temperature" in found) is sampled


def test_effort_comes_with_adaptive_thinking_alone() -> None:
    assert body(think="low")["output_config"] == {"effort": "low"}
    assert "output_config" not in body(think="low", left_out=frozenset({"thinking.adaptive"}))
    assert "output_config" not in body(think="low", left_out=frozenset({"output_config"}))


def test_structured_answers() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "array", "items": {"type": "object"}}}}
    found = body(format=schema)
    sent = found["output_config"]["format"]["schema"]
    assert sent["additionalProperties"] is False
    assert sent["properties"]["a"]["items"]["additionalProperties"] is False
    assert found["system"] == "Be brief."
    told = body(format=schema, left_out=frozenset({"output_config"}))
    assert "output_config" not in told
    assert told["system"].startswith("Be brief.\n\nAnswer with one JSON value")
    assert '"items"' in told["system"]
    assert "JSON" in body(USER, format="json")["system"]


def event(kind: str, **fields: Any) -> dict[str, Any]:
    return {"type": kind, **fields}


def delta(kind: str, text: str) -> dict[str, Any]:
    return event("content_block_delta", index=0, delta={"type": f"{kind}_delta", kind: text})


START = event(
    "message_start", message={"usage": {"input_tokens": 5, "cache_read_input_tokens": 20, "output_tokens": 1}}
)
STOP = event("message_stop")


def end(reason: str | None) -> dict[str, Any]:
    return event("message_delta", delta={"stop_reason": reason}, usage={"output_tokens": 9})


@pytest.mark.parametrize(
    ("reason", "found"),
    [
        ("end_turn", "stop"),
        ("stop_sequence", "stop"),
        ("tool_use", "stop"),
        ("max_tokens", "length"),
        ("model_context_window_exceeded", "length"),
    ],
)
def test_an_answer(reason: str, found: str) -> None:
    listener = wire.Listener()
    block = event("content_block_start", index=0, content_block={"type": "text", "text": ""})
    assert listener.hear([START, event("ping"), block, delta("thinking", "x")]) == ("", "x", None)
    assert listener.hear([delta("signature", "s"), delta("text", "a"), event("new_event")]) == ("a", "", None)
    text, _, finish = listener.hear([delta("text", "b"), end(reason), STOP])
    assert text == "b"
    assert isinstance(finish, Finish)
    assert finish.reason == found
    usage = finish.usage
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (25, 9, 34)


@pytest.mark.parametrize(
    ("events", "words"),
    [
        ([START, delta("text", "a"), STOP], "without a reason to stop"),
        ([START, delta("text", "a"), end("refusal"), STOP], "safety filter"),
        (
            [delta("text", "a"), event("error", error={"type": "overloaded_error", "message": "Overloaded"})],
            "Overloaded",
        ),
        ([delta("text", "a"), {"error": "broken proxy"}], "broken proxy"),
    ],
)
def test_ends_that_are_none(events: list[dict[str, Any]], words: str) -> None:
    text, _, found = wire.Listener().hear(events)
    assert text == "a"
    assert isinstance(found, Failure)
    assert words in str(found.error)


@given(
    st.lists(
        st.builds(
            lambda kind, fields: {**fields, "type": kind},
            st.sampled_from(
                ["message_start", "content_block_start", "content_block_delta", "message_delta", "error", "x"]
            ),
            st.dictionaries(st.sampled_from(["message", "delta", "content_block", "usage", "error"]), JSON),
        ),
        max_size=3,
    )
)
def test_any_events_raise_only_provider_errors(events: list[dict[str, Any]]) -> None:
    try:
        text, thinking, _ = wire.Listener().hear(events)
    except ProviderError:
        return
    assert isinstance(text + thinking, str)


def test_models() -> None:
    row = {"id": "claude", "capabilities": {"image_input": {"supported": False}, "thinking": {"supported": True}}}
    assert wire.model(row).capabilities == ("completion", "thinking", "tools")
    assert wire.abilities({"id": "old"}) == {"completion", "tools", "vision"}


@given(st.dictionaries(st.sampled_from(["data", "capabilities"]), JSON))
def test_lists_take_anything(found: dict[str, Any]) -> None:
    wire.rows(found)
    wire.abilities(found)
