"""Ollama's JSON, both ways."""

import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from piagent_daemon.errors import ProviderError
from piagent_daemon.providers import ollama_wire as wire
from piagent_daemon.providers.ndjson import NdjsonReader
from piagent_daemon.providers.untrusted import words
from piagent_daemon.values import ChatRequest, Message, ModelInfo, PullProgress

REQUEST = ChatRequest(
    "tiny",
    (Message("system", "Be brief."), Message("user", "What is this?", ("aGk=",))),
    {"temperature": 0.5, "num_predict": 100, "num_ctx": 1, "stop": ("END",)},
    2048,
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
)


def test_chat_body() -> None:
    assert wire.chat_body(REQUEST, think=False, keep_alive=-1) == (
        "/api/chat",
        {
            "model": "tiny",
            "stream": True,
            "think": False,
            "truncate": False,
            "shift": False,
            "keep_alive": -1,
            "options": {"temperature": 0.5, "num_predict": 100, "num_ctx": 2048, "stop": ["END"]},
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "What is this?", "images": ["aGk="]},
            ],
        },
    )


def test_generate_body_differs_only_in_what_is_said() -> None:
    request = ChatRequest("tiny", REQUEST.messages, REQUEST.options, 2048, prompt="<user>hi</user>", format="json")
    path, body = wire.chat_body(request, think="high", keep_alive=5)
    _, chat = wire.chat_body(REQUEST, think="high", keep_alive=5)
    assert path == "/api/generate"
    assert body.pop("prompt") == "<user>hi</user>"
    assert body.pop("images") == ["aGk="]
    assert body.pop("format") == "json"
    assert body == {key: value for key, value in chat.items() if key != "messages"}
    assert "raw" not in body


@pytest.mark.parametrize(("text", "value"), [("-1", -1), ("300", 300), ("0", 0), ("10m", "10m"), ("-1m", "-1m")])
def test_keep_alive(text: str, value: object) -> None:
    assert wire.keep_alive_value(text) == value


def say(content: object = "", done: bool = False, **more: object) -> dict[str, Any]:
    return {"model": "m", "message": {"role": "assistant", "content": content}, "done": done, **more}


def test_lines_are_joined_up_to_the_end() -> None:
    end = say("!", done=True)
    assert wire.join([say("a"), say(None), say(" b")], chat=True) == ("a b", "", None)
    assert wire.join([say("a"), end, say("never")], chat=True) == ("a!", "", end)
    assert wire.join([say("a"), {"error": "x"}, say("never")], chat=True) == ("a", "", {"error": "x"})
    assert wire.join([{"message": {"thinking": "hm"}}, {"done": "yes"}], chat=True) == ("", "hm", None)
    assert wire.join([{"response": "a", "thinking": "b"}, {"response": ""}], chat=False) == ("a", "b", None)


@pytest.mark.parametrize("line", [{"message": []}, {"message": "x"}, say(3), say(["a"]), {"message": {"thinking": 1}}])
def test_what_cannot_be_an_answer(line: dict[str, Any]) -> None:
    with pytest.raises(ProviderError, match="no piece of an answer"):
        wire.join([line], chat=True)


@given(st.lists(st.dictionaries(st.sampled_from(["message", "response", "done", "error", "thinking"]), JSON)))
def test_any_objects_raise_only_provider_errors(lines: list[dict[str, Any]]) -> None:
    for chat in (True, False):
        try:
            text, thinking, end = wire.join(lines, chat=chat)
        except ProviderError:
            pass
        else:
            assert isinstance(text, str)
            assert isinstance(thinking, str)
            wire.finish(end or {})


@given(
    st.lists(st.tuples(st.text(), st.text()), max_size=6),
    st.dictionaries(st.text(min_size=1).filter(lambda key: key not in {"message", "done", "error"}), JSON, max_size=4),
    st.lists(st.integers(0, 5000), max_size=10),
)
def test_extra_fields_and_any_splitting_change_nothing(
    tokens: list[tuple[str, str]], extra: dict[str, Any], places: list[int]
) -> None:
    safe = [(text.encode(errors="replace").decode(), more.encode(errors="replace").decode()) for text, more in tokens]
    lines = [{**extra, **say(text), "message": {**extra, "content": text, "thinking": more}} for text, more in safe]
    data = b"".join(json.dumps(line).encode() + b"\n" for line in [*lines, {**extra, **say(done=True)}])
    reader, said, thought, ended = NdjsonReader(), "", "", False
    edges = [0, *sorted(place % len(data) for place in places), len(data)]
    for start, stop in itertools.pairwise(edges):
        text, thinking, end = wire.join(reader.feed(data[start:stop]), chat=True)
        said, thought, ended = said + text, thought + thinking, ended or end is not None
    assert (said, thought, ended) == ("".join(text for text, _ in safe), "".join(more for _, more in safe), True)


def test_finish_counts_and_seconds() -> None:
    found = wire.finish(
        {
            "done_reason": "length",
            "load_duration": 2_500_000_000,
            "prompt_eval_count": 26,
            "prompt_eval_duration": 500_000_000,
            "eval_count": 4,
            "eval_duration": 1_000_000_000,
        }
    )
    assert found.reason == "length"
    assert (found.usage.prompt_tokens, found.usage.completion_tokens, found.usage.total_tokens) == (26, 4, 30)
    assert (found.load_s, found.prompt_s, found.generate_s) == (2.5, 0.5, 1.0)


@given(st.dictionaries(st.sampled_from(["done_reason", "eval_count", "prompt_eval_count", "load_duration"]), JSON))
def test_finish_takes_anything(line: dict[str, Any]) -> None:
    found = wire.finish(line)
    assert found.usage.total_tokens >= 0


def test_models_and_progress() -> None:
    row = {
        "name": "tiny:latest",
        "size": 3,
        "details": {"parameter_size": "1B", "quantization_level": "Q4_0"},
        "capabilities": ["Completion", 3],
    }
    assert wire.models({"models": [row, {"size": 1}, "x"]}) == [
        ModelInfo("tiny:latest", 3, "1B", "Q4_0", ("completion",))
    ]
    assert wire.models({}) == []
    assert wire.progress({"status": "pulling", "digest": "sha256:1", "total": 5}) == PullProgress(
        "pulling", "sha256:1", 0, 5
    )


@given(st.dictionaries(st.sampled_from(["models", "status", "capabilities"]), JSON))
def test_lists_take_anything(body: dict[str, Any]) -> None:
    wire.models(body)
    wire.progress(body)
    words(body, "capabilities")


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("qwen2.5", "qwen2.5:latest", True),
        ("Qwen2.5", "registry.ollama.ai/library/qwen2.5", True),
        ("library/qwen2.5:3b", "qwen2.5:3b", True),
        ("qwen2.5:3b", "qwen2.5", False),
        ("host:5000/me/x", "host:5000/me/x:latest", True),
        ("hf.co/me/x:Q4_K_M", "hf.co/me/x:q4_k_m", True),
        ("me/x", "x", False),
    ],
)
def test_names(one: str, other: str, same: bool) -> None:
    assert (wire.canonical(one) == wire.canonical(other)) is same
