"""The table that turns what Ollama says into the errors of the contract, and what other tables are made of.

Source: Ollama's words as measured against 0.33 (llama-server's JSON comes nested as a string inside "error").
"""

import re
from collections.abc import Callable
from typing import NamedTuple

from piagent_daemon.errors import (
    ContextOverflow,
    ModelNotFound,
    PiagentError,
    ProviderError,
    ProviderUnavailable,
    RateLimited,
    RequestRefused,
    Unauthorized,
)


class Site(NamedTuple):
    """How messages speak of one server: which settings cure what, and what to do about a model that it lacks."""

    rules: "tuple[Rule, ...]"
    url_setting: str = "OLLAMA_HOST"
    key_setting: str = "OLLAMA_API_KEY"
    missing: str = "run `ollama pull {model}`"
    unreached: str = "Is it running, and is OLLAMA_HOST right?"


class Fault(NamedTuple):
    """What a server said. `status` is None for an error line inside a stream; `started`: text was already given on.

    `kind` has the words that machines read (`type`, `code`), `said` all of those for people, `words` what of them may
    be told.
    """

    status: int | None
    words: str
    site: Site
    model: str = ""
    started: bool = False
    prompt_tokens: int | None = None
    retry_after_s: float | None = None
    kind: str = ""
    said: str = ""


Make = Callable[[Fault], PiagentError]


class Rule(NamedTuple):
    """Applies when the status is one of `statuses` (empty: any) and `words` is found in what the server said.

    `words` is a regular expression, whatever the case, and compiled when a server first says something.
    """

    statuses: tuple[int | None, ...]
    words: str
    make: Make

    def fits(self, fault: Fault) -> bool:
        return (not self.statuses or fault.status in self.statuses) and (
            re.search(self.words, f"{fault.kind} {fault.said}".strip(), re.IGNORECASE) is not None
        )


def model_not_found(model: str, site: Site) -> ModelNotFound:
    """Return the error for a model that the server lacks."""
    return ModelNotFound(
        f"the model server does not have the model {model!r}: {site.missing.replace('{model}', model)}"
    )


def overflow(fault: Fault) -> PiagentError:
    """Make the error for a prompt that does not fit, with its size where the server named it."""
    tokens = fault.prompt_tokens or _prompt_tokens(fault.said)
    return ContextOverflow(f"the prompt does not fit the model's context: {fault.words}", tokens)


_TOKENS = (
    r"resulted in (\d+) tokens|\((\d+) in the messages|prompt is too long: (\d+) tokens|keep the first (\d+) tokens"
    r"|given: (\d+) `inputs`|(\d+) input tokens|request \((\d+) tokens\)"
)


def _prompt_tokens(words: str) -> int | None:
    found = re.search(_TOKENS, words, re.IGNORECASE)
    return int(next(filter(None, found.groups()))[:12]) if found else None


def not_found(fault: Fault) -> PiagentError:
    """Make the error for a model that the server lacks."""
    return model_not_found(fault.model, fault.site)


def _not_published(fault: Fault) -> PiagentError:
    return ModelNotFound(f"there is no model {fault.model!r} to pull: {fault.words}")


def no_key(fault: Fault) -> PiagentError:
    """Make the error for a key that was refused."""
    said = f" ({fault.words})" if fault.words else ""
    return Unauthorized(f"the model server refused the key{said}: check {fault.site.key_setting}")


def _foreign(_: Fault) -> PiagentError:
    return Unauthorized(
        "the model server refused this host without a word (403): let OLLAMA_HOST here name it by its IP address or by "
        "localhost, or set OLLAMA_HOST=0.0.0.0 and OLLAMA_ORIGINS on the server"
    )


def busy(fault: Fault) -> PiagentError:
    """Make the error for a server that has too much to do."""
    kind = RateLimited if fault.status == 429 else ProviderUnavailable
    return passing(fault, "the model server is overloaded", kind)


def _died(fault: Fault) -> PiagentError:
    return passing(fault, "the model server's runner failed")


def _offline(fault: Fault) -> PiagentError:
    return passing(fault, "the model server cannot reach what it downloads from")


def refused(fault: Fault) -> PiagentError:
    """Make the error for a request that the server does not take, though it may be well itself."""
    return RequestRefused(str(other(fault)))


def passing(fault: Fault, what: str, kind: type[ProviderUnavailable] = ProviderUnavailable) -> PiagentError:
    """Return an error that a new try or another server may cure, as long as no text was given on."""
    message = f"{what}: {fault.words or (f'status {fault.status}' if fault.status else 'without a word')}"
    if fault.started:
        return ProviderError(message)
    return kind(message, retry_after_s=fault.retry_after_s)


def redirect(fault: Fault) -> PiagentError:
    """Make the error for an answer from somewhere else."""
    return ProviderError(
        f"the model server answered with a redirect ({fault.status}): let {fault.site.url_setting} name its end"
    )


def other(fault: Fault) -> PiagentError:
    """Make the error for what no other rule knows."""
    status = "" if fault.status is None else f" with status {fault.status}"
    return ProviderError(f"the model server failed{status}: {fault.words or 'without a word'}")


def rule(make: Make, words: str = "", *statuses: int | None) -> Rule:
    """Return a rule for some statuses, or for all."""
    return Rule(statuses, words, make)


REDIRECT = rule(redirect, "", 301, 302, 303, 307, 308)
REFUSED = (400, 413, 422, 500, None)

OLLAMA_RULES: tuple[Rule, ...] = (
    rule(
        overflow,
        "exceed_context_size|exceeds the available context size|prompt is longer than the context"
        "|input length exceeds the context",
        *REFUSED,
    ),
    rule(_not_published, "pull model manifest.*(does not exist|not found|status: 404)", 500, None),
    rule(not_found, "model.*(not found|does not exist)", 404, 400, None),
    rule(_foreign, r"^$", 403),
    rule(no_key, "", 401, 403),
    rule(no_key, "^unauthorized", None),
    rule(busy, "", 429, 503),
    rule(busy, "server busy|maximum pending requests|too many (concurrent )?requests", None),
    rule(
        _died,
        "error was encountered while running the model|process has terminated|runner has unexpectedly stopped"
        "|runner process no longer running|timed out waiting for .*(runner|server)",
        *(500, None),
    ),
    rule(
        _offline,
        "dial tcp|no such host|name resolution|network is unreachable|no route to host|connection (reset|refused|timed)"
        "|i/o timeout|handshake timeout|deadline exceeded|unexpected eof|max retries exceeded",
        *(500, None),
    ),
    REDIRECT,
    rule(refused, "", 400, 422),
    rule(refused, "must be of type", 500),
    rule(other),
)
"""The first that fits decides; the last fits everything."""

OLLAMA = Site(OLLAMA_RULES)
