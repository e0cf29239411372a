"""The table that turns what a model server says into the errors of the contract; one for each family of servers.

Sources: Ollama's words as measured against 0.33 (llama-server's JSON comes nested as a string inside "error"); the
pages on errors of the OpenAI and Anthropic APIs; the words of llama-server, LM Studio, vLLM, text-generation-inference.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

from piagent_daemon.errors import (
    ContextOverflow,
    ModelNotFound,
    PiagentError,
    ProviderError,
    ProviderUnavailable,
    Unauthorized,
)


@dataclass(frozen=True, slots=True)
class Site:
    """How messages speak of one server: which settings cure what, and what to do about a model that it lacks."""

    rules: "tuple[Rule, ...]"
    url_setting: str = "OLLAMA_HOST"
    key_setting: str = "OLLAMA_API_KEY"
    missing: str = "run `ollama pull {model}`"
    unreached: str = "Is it running, and is OLLAMA_HOST right?"


@dataclass(frozen=True, slots=True)
class Fault:
    """What a server said. `status` is None for an error line inside a stream; `started`: text was already given on.

    `kind` has the words that machines read (`type`, `code`), `words` those for people.
    """

    status: int | None
    words: str
    site: Site
    model: str = ""
    started: bool = False
    prompt_tokens: int | None = None
    retry_after_s: float | None = None
    kind: str = ""


Make = Callable[[Fault], PiagentError]


@dataclass(frozen=True, slots=True)
class Rule:
    """Applies when the status is one of `statuses` (empty: any) and `words` is found in what the server said."""

    statuses: tuple[int | None, ...]
    words: re.Pattern[str] | None
    make: Make

    def fits(self, fault: Fault) -> bool:
        return (not self.statuses or fault.status in self.statuses) and (
            self.words is None or self.words.search(f"{fault.kind} {fault.words}".strip()) is not None
        )


def model_not_found(model: str, site: Site) -> ModelNotFound:
    """Return the error for a model that the server lacks."""
    return ModelNotFound(
        f"the model server does not have the model {model!r}: {site.missing.replace('{model}', model)}"
    )


def _overflow(fault: Fault) -> PiagentError:
    tokens = fault.prompt_tokens or _prompt_tokens(fault.words)
    return ContextOverflow(f"the prompt does not fit the model's context: {fault.words}", tokens)


_TOKENS = re.compile(
    r"resulted in (\d+) tokens|\((\d+) in the messages|prompt is too long: (\d+) tokens|keep the first (\d+) tokens"
    r"|given: (\d+) `inputs`|(\d+) input tokens|request \((\d+) tokens\)",
    re.IGNORECASE,
)


def _prompt_tokens(words: str) -> int | None:
    found = _TOKENS.search(words)
    return int(next(filter(None, found.groups()))[:12]) if found else None


def _not_found(fault: Fault) -> PiagentError:
    return model_not_found(fault.model, fault.site)


def _not_published(fault: Fault) -> PiagentError:
    return ModelNotFound(f"there is no model {fault.model!r} to pull: {fault.words}")


def _no_key(fault: Fault) -> PiagentError:
    said = f" ({fault.words})" if fault.words else ""
    return Unauthorized(f"the model server refused the key{said}: check {fault.site.key_setting}")


def _foreign(_: Fault) -> PiagentError:
    return Unauthorized(
        "the model server refused this host without a word (403): let OLLAMA_HOST here name it by its IP address or by "
        "localhost, or set OLLAMA_HOST=0.0.0.0 and OLLAMA_ORIGINS on the server"
    )


def _busy(fault: Fault) -> PiagentError:
    return _passing(fault, "the model server is overloaded")


def _loading(fault: Fault) -> PiagentError:
    return _passing(fault, "the model server still loads the model")


def _unpaid(fault: Fault) -> PiagentError:
    return _passing(fault, "the model server wants to be paid first")


def _failed(fault: Fault) -> PiagentError:
    return _passing(fault, "the model server failed" + (f" with status {fault.status}" if fault.status else ""))


def _died(fault: Fault) -> PiagentError:
    return _passing(fault, "the model server's runner failed")


def _passing(fault: Fault, what: str) -> PiagentError:
    """Return an error that a new try or another server may cure, as long as no text was given on."""
    message = f"{what}: {fault.words or (f'status {fault.status}' if fault.status else 'without a word')}"
    if fault.started:
        return ProviderError(message)
    return ProviderUnavailable(message, retry_after_s=fault.retry_after_s)


def _redirect(fault: Fault) -> PiagentError:
    return ProviderError(
        f"the model server answered with a redirect ({fault.status}): let {fault.site.url_setting} name its end"
    )


def _no_such_path(fault: Fault) -> PiagentError:
    return ProviderError(
        f"the model server does not know this address (404): {fault.words or 'without a word'}; "
        f"is {fault.site.url_setting} right?"
    )


def _other(fault: Fault) -> PiagentError:
    status = "" if fault.status is None else f" with status {fault.status}"
    return ProviderError(f"the model server failed{status}: {fault.words or 'without a word'}")


def _rule(make: Make, words: str = "", *statuses: int | None) -> Rule:
    return Rule(statuses, re.compile(words, re.IGNORECASE) if words else None, make)


_REDIRECT = _rule(_redirect, "", 301, 302, 303, 307, 308)
_REFUSED = (400, 413, 422, 500, None)

OLLAMA_RULES: tuple[Rule, ...] = (
    _rule(
        _overflow,
        "exceed_context_size|exceeds the available context size|prompt is longer than the context"
        "|input length exceeds the context",
        *_REFUSED,
    ),
    _rule(_not_published, "pull model manifest.*(does not exist|not found|status: 404)", 500, None),
    _rule(_not_found, "model.*(not found|does not exist)", 404, 400, None),
    _rule(_foreign, r"^$", 403),
    _rule(_no_key, "", 401, 403),
    _rule(_no_key, "^unauthorized", None),
    _rule(_busy, "", 429, 503),
    _rule(_busy, "server busy|maximum pending requests|too many (concurrent )?requests", None),
    _rule(
        _died,
        "error was encountered while running the model|process has terminated|runner has unexpectedly stopped"
        "|runner process no longer running|timed out waiting for .*(runner|server)",
        *(500, None),
    ),
    _REDIRECT,
    _rule(_other),
)
"""The first that fits decides; the last fits everything."""

API_RULES: tuple[Rule, ...] = (
    _rule(
        _overflow,
        "exceed_context_size|context_length_exceeded|exceeds the available context size|maximum context length"
        "|prompt is too long|exceed context limit|context length is only|context length of only"
        "|context (size|length|window) (has been )?exceeded|reached context length|exceeds? the context"
        r"|tokens \+ `?max_new_tokens`? must be|input is too large to process",
        *_REFUSED,
    ),
    _rule(_unpaid, "", 402),
    _rule(_unpaid, "credit balance|insufficient_quota|billing_error|payment required", 400, 403, 429, None),
    _rule(_no_key, "", 401, 403),
    _rule(_no_key, "authentication_error|invalid_api_key|permission_error", None),
    _rule(
        _not_found,
        "model_not_found|model_not_supported|not_found_error.*model|model.*(not found|does not exist|not exist)"
        "|invalid model identifier|not supported by any provider",
        *(400, 404, 422, None),
    ),
    _rule(_no_such_path, "", 404, 405),
    _rule(_loading, "loading model", 503, None),
    _rule(_busy, "", 429, 503, 529),
    _rule(_busy, "overloaded_error|rate_limit|too many requests|engine_overloaded", None),
    _rule(_failed, "", 408, 409, 500, 502, 504, *range(520, 528)),
    _rule(_other, "invalid_request", None),
    _rule(_failed, "", None),
    _REDIRECT,
    _rule(_other),
)
"""For servers that speak like OpenAI or Anthropic: what fails with a status of 500 there passes."""

OLLAMA = Site(OLLAMA_RULES)
