"""OpenAI's JSON, both ways."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from piagent_daemon.errors import ProviderError
from piagent_daemon.providers import openai_wire as wire
from piagent_daemon.providers.answer import DONE, Failure, vectors
from piagent_daemon.providers.openai_presets import PRESETS, Preset
from piagent_daemon.values import ChatRequest, Finish, Message

PNG = "iVBORw0KGgoAAAA"
OPTIONS = {"temperature": 0.5, "num_predict": 100, "top_k": 20, "repeat_penalty": 1.1, "stop": ("END",)}
REQUEST = ChatRequest("tiny", (Message("system", "Be brief."), Message("user", "What?", (PNG,))), OPTIONS, 2048)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=6,
)


def asking(**changes: Any) -> ChatRequest:
    fields = {"model": "tiny", "messages": (Message("user", "hi"),), "options": {}, "context_tokens": 2048, **changes}
    return ChatRequest(**fields)


def test_the_body_of_a_call() -> None:
    assert wire.chat_body(REQUEST, PRESETS["openai"]) == {
        "model": "tiny",
        "messages": [
            {"role": "system", "content": "Be brief."},
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "What?"},
                    {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}"}},
                ],
            },
        ],
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": 0.5,
        "max_completion_tokens": 100,
        "stop": ["END"],
    }
    assert wire.unknown_options(REQUEST, PRESETS["openai"]) == {"top_k", "repeat_penalty"}


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("lmstudio", {"max_tokens": 100, "top_k": 20, "repeat_penalty": 1.1}),
        ("llamacpp", {"max_tokens": 100, "top_k": 20, "chat_template_kwargs": {"enable_thinking": False}}),
        ("huggingface", {"max_tokens": 100}),
        ("custom", {"max_tokens": 100, "top_k": 20, "repetition_penalty": 1.1}),
    ],
)
def test_dialects(kind: str, more: dict[str, Any]) -> None:
    body = wire.chat_body(REQUEST, PRESETS[kind])
    assert {name: body.get(name) for name in more} == more
    assert "max_completion_tokens" not in body


@pytest.mark.parametrize(
    ("kind", "model", "think", "fields"),
    [
        ("openai", "gpt-5-mini", False, {"reasoning_effort": "low"}),
        ("openai", "o4-mini", False, {"reasoning_effort": "low"}),
        ("openai", "gpt-5-chat-latest", False, {}),
        ("openai", "gpt-4o-mini", False, {}),
        ("openai", "gpt-5-mini", True, {}),
        ("openai", "gpt-5-mini", "max", {"reasoning_effort": "high"}),
        ("custom", "gpt-5-mini", False, {}),
        ("custom", "any", "medium", {"reasoning_effort": "medium"}),
        ("llamacpp", "any", True, {}),
        ("llamacpp", "any", False, {"chat_template_kwargs": {"enable_thinking": False}}),
    ],
)
def test_thinking(kind: str, model: str, think: bool | str, fields: dict[str, Any]) -> None:
    body = wire.chat_body(asking(model=model, think=think), PRESETS[kind])
    assert {name: body[name] for name in ("reasoning_effort", "chat_template_kwargs") if name in body} == fields


def test_structured_answers() -> None:
    loose = {"type": "object", "properties": {"on": {"type": "boolean"}}}
    strict = {**loose, "required": ["on"], "additionalProperties": False}
    for schema in (loose, strict):
        found = wire.chat_body(asking(format=schema), PRESETS["openai"])["response_format"]["json_schema"]
        assert found == {"name": "answer", "schema": schema, "strict": schema is strict}
    nested = {**strict, "properties": {"on": {"type": "array", "items": loose}}}
    found = wire.chat_body(asking(format=nested), PRESETS["openai"])["response_format"]["json_schema"]
    assert found["strict"] is False
    plain = wire.chat_body(asking(format="json"), PRESETS["openai"])
    assert plain["response_format"] == {"type": "json_object"}
    assert plain["messages"][0] == {"role": "system", "content": "Answer with one JSON object."}
    told = wire.chat_body(asking(format="json", messages=(Message("user", "Give JSON."),)), PRESETS["openai"])
    assert len(told["messages"]) == 1
    joined = wire.chat_body(asking(format="json", messages=REQUEST.messages), PRESETS["openai"])["messages"]
    assert joined[0]["content"] == "Be brief.\n\nAnswer with one JSON object."
    studio = wire.chat_body(asking(format="json"), PRESETS["lmstudio"])
    assert studio["response_format"]["json_schema"]["schema"] == {"type": "object"}


def test_what_was_refused_is_left_out() -> None:
    preset = Preset("http://box")
    body = wire.chat_body(REQUEST, preset, frozenset({"temperature", "max_tokens", "stream_options"}))
    assert body["max_completion_tokens"] == 100
    assert not body.keys() & {"temperature", "max_tokens", "stream_options"}


def say(delta: dict[str, Any] | None = None, reason: str | None = None, **more: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": delta or {}, "finish_reason": reason}], **more}


def test_an_answer_piece_by_piece() -> None:
    listener = wire.Listener()
    assert listener.hear([say({"role": "assistant", "content": None}), say({"content": "a"})]) == ("a", "", None)
    assert listener.hear([say({"reasoning_content": "x"}), say({"reasoning": "y"})]) == ("", "xy", None)
    usage = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 99}
    text, _, end = listener.hear([say({"content": "b"}, "stop"), {"choices": [], "usage": usage}, DONE])
    assert text == "b"
    assert isinstance(end, Finish)
    assert (end.reason, end.usage.prompt_tokens, end.usage.total_tokens) == ("stop", 7, 10)


@pytest.mark.parametrize(
    ("chunks", "words"),
    [
        ([say({"content": "a"}), DONE], "without a reason to stop"),
        ([say({"content": "a"}, "content_filter"), DONE], "content filter"),
        ([say({"content": "a"}, "error"), DONE], "failed in the middle"),
    ],
)
def test_ends_that_are_none(chunks: list[dict[str, Any]], words: str) -> None:
    text, _, end = wire.Listener().hear(chunks)
    assert text == "a"
    assert isinstance(end, Failure)
    assert words in str(end.error)


def test_a_reason_without_done_is_no_end() -> None:
    assert wire.Listener().hear([say({"content": "a"}, "stop")]) == ("a", "", None)


def test_the_end_of_the_stream_is_an_end_only_behind_a_reason() -> None:
    listener = wire.Listener()
    listener.hear([say({"content": "a"})])
    assert listener.hear([]) == ("", "", None)
    listener.hear([say({}, "stop")])
    assert isinstance(listener.hear([])[2], Finish)


def test_the_words_of_a_refusal_and_of_other_ends() -> None:
    text, _, end = wire.Listener().hear([say({"refusal": "I will not."}), say(reason="tool_calls"), DONE])
    assert text == "I will not."
    assert isinstance(end, Finish)
    assert end.reason == "stop"


def test_an_error_ends_what_came_before() -> None:
    text, _, end = wire.Listener().hear([say({"content": "a"}), {"error": {"message": "x"}}, say({"content": "b"})])
    assert (text, end) == ("a", Failure({"message": "x"}))


def test_llama_servers_timings_become_seconds_and_counts() -> None:
    timings = {
        "prompt_n": 20,
        "cache_n": 5,
        "prompt_ms": 500.0,
        "predicted_n": 9,
        "predicted_ms": 1500,
        "load_ms": 2000,
    }
    end = wire.finish("length", {}, timings)
    assert (end.load_s, end.prompt_s, end.generate_s, end.reason) == (2.0, 0.5, 1.5, "length")
    assert (end.usage.prompt_tokens, end.usage.completion_tokens, end.usage.total_tokens) == (25, 9, 34)


@pytest.mark.parametrize(
    "chunk",
    [{"choices": [3]}, say({"content": 3}), say({"content": ["a"]}), {"choices": "x"}, {"choices": [{"delta": 1}]}],
)
def test_what_cannot_be_an_answer(chunk: dict[str, Any]) -> None:
    with pytest.raises(ProviderError, match="no piece of an answer"):
        wire.Listener().hear([chunk])


@given(st.lists(st.dictionaries(st.sampled_from(["choices", "error", "usage", "timings", "model"]), JSON), max_size=3))
def test_any_objects_raise_only_provider_errors(chunks: list[dict[str, Any]]) -> None:
    listener = wire.Listener()
    try:
        listener.hear(chunks)
        text, thinking, end = listener.hear([DONE])
    except ProviderError:
        return
    assert (text, thinking) == ("", "")
    assert end is not None


@pytest.mark.parametrize(
    ("row", "found"),
    [
        ({"id": "x", "type": "vlm", "capabilities": ["tool_use"]}, {"completion", "vision", "tools"}),
        ({"id": "x", "type": "embeddings"}, {"embedding"}),
        ({"id": "x-vl", "type": "llm"}, {"completion"}),
        ({"id": "x", "capabilities": ["completion", "multimodal"]}, {"completion", "vision"}),
        ({"id": "x", "capabilities": {"vision": True, "function_calling": False}}, {"completion", "vision"}),
        (
            {"id": "x", "architecture": {"input_modalities": ["text", "image"]}, "supported_parameters": ["tools"]},
            {"completion", "vision", "tools"},
        ),
        ({"id": "qwen2.5-vl-7b"}, {"completion", "vision"}),
        ({"id": "gpt-4o-mini"}, {"completion", "vision"}),
        ({"id": "o4-mini"}, {"completion", "vision", "thinking"}),
        ({"id": "text-embedding-3-small"}, {"embedding"}),
        ({"id": "llama-4-scout"}, {"completion", "vision"}),
        ({"id": "gte-large"}, {"embedding"}),
        ({"id": "qwen2.5-3b-instruct"}, set()),  # nothing is known
        ({"id": "SmolVLM-Instruct"}, set()),
        ({"id": "gpt-4o-mini-tts"}, set()),
    ],
)
def test_capabilities(row: dict[str, Any], found: set[str]) -> None:
    assert wire.abilities(row) == found


@given(st.dictionaries(st.sampled_from(["data", "object"]), JSON), st.dictionaries(st.text(), JSON))
def test_lists_take_anything(body: dict[str, Any], row: dict[str, Any]) -> None:
    for known in wire.rows(body):
        wire.model(known)
    wire.abilities(row)
    wire.embeddings(body)


@given(JSON)
def test_vectors_are_numbers_or_an_error(rows: Any) -> None:
    try:
        found = vectors(rows, 1)
    except ProviderError:
        return
    assert len(found) == 1
    assert all(isinstance(number, float) for number in found[0])


def test_embeddings_are_put_in_order() -> None:
    rows = [{"index": 1, "embedding": [2]}, {"index": 0, "embedding": [1.0]}]
    assert vectors(wire.embeddings({"data": rows}), 2) == [[1.0], [2.0]]
    with pytest.raises(ProviderError, match="3 embeddings"):
        vectors(wire.embeddings({"data": rows}), 3)
    assert json.dumps(wire.embeddings({})) == "[]"
