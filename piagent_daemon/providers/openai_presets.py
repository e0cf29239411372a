"""Servers that speak OpenAI's protocol, by name: where they are and in what they differ."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

STANDARD = {"temperature": "temperature", "top_p": "top_p", "seed": "seed", "stop": "stop"}
"""Ollama's name of a sampling option -> OpenAI's."""
LOCAL = {**STANDARD, "top_k": "top_k", "min_p": "min_p", "repeat_penalty": "repeat_penalty"}


@dataclass(frozen=True, slots=True)
class Preset:
    """One kind of server.

    `url` is its own address, empty when it has none; `port` that of an address without one. `keyed`: its own address
    is of no use without a key. `options` are the sampling options that it knows, `limit` its name for num_predict.
    `quiet` is sent when no thought is wanted. `one_model`: it answers with the model that it was started with, whatever
    name it is given. `structured`: it takes formats, and with `plain_json` also {"type": "json_object"}. `catalogue` is
    a list of models that says more than /models, below the root of the server. `missing` is what to do about a model
    that it lacks.
    """

    url: str = ""
    port: int = 80
    keyed: bool = False
    options: Mapping[str, str] = field(default_factory=lambda: STANDARD)
    limit: str = "max_tokens"
    quiet: Mapping[str, Any] = field(default_factory=dict)
    one_model: bool = False
    plain_json: bool = True
    structured: bool = True
    catalogue: str = ""
    missing: str = "is its name right, and may this key use it?"


PRESETS = {
    "openai": Preset("https://api.openai.com/v1", 443, keyed=True, limit="max_completion_tokens"),
    "lmstudio": Preset(
        "http://127.0.0.1:1234/v1",
        1234,
        options=LOCAL,
        plain_json=False,
        catalogue="/api/v0/models",
        missing="download it there (`lms get {model}`)",
    ),
    "llamacpp": Preset(
        "http://127.0.0.1:8080/v1",
        8080,
        options=LOCAL,
        quiet={"chat_template_kwargs": {"enable_thinking": False}},
        one_model=True,
        missing="start llama-server with it",
    ),
    "huggingface": Preset(
        "https://router.huggingface.co/v1",
        443,
        keyed=True,
        missing="is its name right, and does a provider in your account serve it?",
    ),
    "ollama-cloud": Preset(quiet={"reasoning_effort": "none"}, structured=False),  # with an address that ends in /v1
    "custom": Preset(options={**LOCAL, "repeat_penalty": "repetition_penalty"}),
}
