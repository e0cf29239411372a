"""Everything that can go wrong, one class each.

PiagentError
├── InvalidRequest          invalid_request       422
│   └── OutOfBounds         invalid_request       422
├── UnknownAgent            unknown_agent         404
├── Busy                    busy                  429  retryable
├── Expired                 expired               408
├── Cancelled               cancelled             499
├── ContextOverflow         context_overflow      413
├── ShuttingDown            shutting_down         503  retryable
├── InternalError           internal              500
├── ProviderError           provider_error        502
│   ├── ProviderTimeout     timeout               504  retryable
│   ├── ProviderUnavailable provider_unavailable  502  retryable
│   │   └── RateLimited     provider_unavailable  502  retryable
│   ├── ModelNotFound       model_not_found       404
│   ├── Unauthorized        unauthorized          502
│   ├── RequestRefused      provider_error        502
│   └── ProviderMisconfigured (of a provider used as a library: never on the wire)
├── ConfigError             (exit code 78: never on the wire)
├── StoreError              (health `memory_not_persisted`: never on the wire)
└── DoorError               (the broker refused or vanished: never on the wire)

The wire fields `code`, `status_code` and `retryable` are those of the contract's table of errors.
"""

from typing import ClassVar


class PiagentError(Exception):
    """A failure with a place in the contract.

    `str(error)` is a sentence that a person can act on; it never holds a secret or a stack trace.
    """

    code: ClassVar[str] = "internal"
    status_code: int = 500
    retryable: ClassVar[bool] = False


class InvalidRequest(PiagentError):
    """The payload cannot be understood or breaks a bound."""

    code = "invalid_request"
    status_code = 422


class OutOfBounds(InvalidRequest):
    """Larger than is taken, or to be answered where nobody may make us write: the log warns of it."""


class UnknownAgent(PiagentError):
    """No prompt file has that name."""

    code = "unknown_agent"
    status_code = 404


class Busy(PiagentError):
    """The queue is full."""

    code = "busy"
    status_code = 429
    retryable = True


class Expired(PiagentError):
    """The request waited longer than its `expires_s`."""

    code = "expired"
    status_code = 408


class Cancelled(PiagentError):
    """Dropped from the queue before it started."""

    code = "cancelled"
    status_code = 499


class ContextOverflow(PiagentError):
    """The newest message alone does not fit the model's context.

    `prompt_tokens` is the size that the model server named for the refused prompt, or None.
    """

    code = "context_overflow"
    status_code = 413

    def __init__(self, message: str, prompt_tokens: int | None = None) -> None:
        super().__init__(message)
        self.prompt_tokens = prompt_tokens


class ShuttingDown(PiagentError):
    """The daemon stops and the broker will not bring the request back."""

    code = "shutting_down"
    status_code = 503
    retryable = True

    def __init__(self, message: str = "The daemon stops; ask again in a moment.") -> None:
        super().__init__(message)


class InternalError(PiagentError):
    """A defect of ours; the log has the trace."""

    def __init__(self, message: str = "The daemon failed on this request; its log says why.") -> None:
        super().__init__(message)


class ProviderError(PiagentError):
    """The model server failed, answered nonsense or broke the stream off."""

    code = "provider_error"

    def __init__(self, message: str, status_code: int = 502) -> None:
        super().__init__(message)
        self.status_code = status_code


class ProviderTimeout(ProviderError):
    """No first token, no next token, or no end in time."""

    code = "timeout"
    retryable = True

    def __init__(self, message: str, status_code: int = 504) -> None:
        super().__init__(message, status_code)


class ProviderUnavailable(ProviderError):
    """Cannot connect, refused, or overloaded.

    `retry_after_s` is the wait in seconds that the server asked for, or None.
    """

    code = "provider_unavailable"
    retryable = True

    def __init__(self, message: str, status_code: int = 502, retry_after_s: float | None = None) -> None:
        super().__init__(message, status_code)
        self.retry_after_s = retry_after_s


class RateLimited(ProviderUnavailable):
    """The model server answers no more so often, or no more than has been paid for."""


class ModelNotFound(ProviderError):
    """The model server does not have the model."""

    code = "model_not_found"

    def __init__(self, message: str, status_code: int = 404) -> None:
        super().__init__(message, status_code)


class Unauthorized(ProviderError):
    """The model server refused the key."""

    code = "unauthorized"


class RequestRefused(ProviderError):
    """The model server does not take this request; others may be answered."""


class ProviderMisconfigured(ProviderError):
    """A provider cannot be made of what it was told (no such kind, no address, no key); `problems` has a line each."""

    code = "config"

    def __init__(self, *problems: str, status_code: int = 502) -> None:
        super().__init__("\n".join(problems), status_code)
        self.problems = problems


class ConfigError(PiagentError):
    """Settings or prompt files cannot be used; `problems` has a line each, naming the setting or the file and key."""

    code = "config"

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class StoreError(PiagentError):
    """Conversations cannot be read or written."""

    code = "store"


class DoorError(PiagentError):
    """The outside cannot be reached or refused us."""

    code = "door"
