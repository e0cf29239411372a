"""The table that turns what servers say that speak like OpenAI or Anthropic into the errors of the contract.

Sources: the pages on errors of the OpenAI and Anthropic APIs; the words of llama-server, LM Studio, vLLM,
text-generation-inference and the Hugging Face router.
"""

from piagent_daemon.errors import PiagentError, ProviderError, RateLimited
from piagent_daemon.providers.fault_rules import (
    REDIRECT,
    REFUSED,
    Fault,
    Rule,
    busy,
    no_key,
    not_found,
    other,
    overflow,
    passing,
    refused,
    rule,
)


class NoSuchPath(ProviderError):
    """The address is not the server's, or it does not have that part of the protocol."""


def _loading(fault: Fault) -> PiagentError:
    return passing(fault, "the model server still loads the model")


def _unpaid(fault: Fault) -> PiagentError:
    return passing(fault, "the model server wants to be paid first", RateLimited)


def _failed(fault: Fault) -> PiagentError:
    return passing(fault, "the model server failed" + (f" with status {fault.status}" if fault.status else ""))


def _no_such_path(fault: Fault) -> PiagentError:
    return NoSuchPath(
        f"the model server does not know this address ({fault.status}): {fault.words or 'without a word'}; "
        f"is {fault.site.url_setting} right?"
    )


API_RULES: tuple[Rule, ...] = (
    rule(
        overflow,
        "exceed_context_size|context_length_exceeded|exceeds the available context size|maximum context length"
        "|prompt is too long|exceed context limit|context length is only|context length of only"
        "|context (size|length|window) (has been )?exceeded|reached context length|exceeds? the context"
        r"|tokens \+ `?max_new_tokens`? must be|input is too large to process",
        *REFUSED,
    ),
    rule(_unpaid, "", 402),
    rule(_unpaid, "credit balance|insufficient_quota|billing_error|payment required", 400, 403, 429, None),
    rule(no_key, "", 401, 403),
    rule(no_key, "authentication_error|invalid_api_key|permission_error", None),
    rule(
        not_found,
        "model_not_found|model_not_supported|not_found_error.*model|model.*(not found|does not exist|not exist)"
        "|invalid model identifier|not supported by any provider",
        *(400, 404, 422, None),
    ),
    rule(_no_such_path, "", 404, 405),
    rule(_loading, "loading model", 503, None),
    rule(busy, "", 429, 503, 529),
    rule(busy, "overloaded_error|rate_limit|too many requests|engine_overloaded", None),
    rule(_failed, "", 408, 409, 500, 502, 504, *range(520, 528)),
    rule(other, "invalid_request", None),
    rule(_failed, "", None),
    REDIRECT,
    rule(refused, "", 400, 422),
    rule(other),
)
"""For servers that speak like OpenAI or Anthropic: what fails with a status of 500 there passes."""
