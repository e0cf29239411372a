"""The nouns of the wire: what a client sends and what it gets back, and nothing else.

Every class is a frozen pydantic model, so that the wire and the core share one vocabulary. JSON is UTF-8 with keys in
snake_case; times are seconds as floats unless the name says otherwise; timestamps are RFC 3339 in UTC.
"""

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AliasChoices, AwareDatetime, BaseModel, ConfigDict, Field, StringConstraints, model_validator

from piagent_daemon.model_names import ModelName

Sentences = Literal["sentences"]
Stage = Literal["loading", "thinking", "tool", "retrying", "fallback"]
Id = Annotated[str, StringConstraints(min_length=1, max_length=128)]


class Noun(BaseModel):
    """A frozen value; an unknown field is an error, so that a typing error is never silently ignored."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, defer_build=True)

    def encode(self) -> bytes:
        """Return this value as one UTF-8 JSON object."""
        return self.model_dump_json().encode()


# ---------------------------------------------------------------------------------------------------------- requests


class Options(Noun):
    """Sampling options a request may set; load-time options (num_ctx, num_thread …) would reload the model."""

    model_config = ConfigDict(strict=True)

    temperature: float | None = Field(default=None, ge=0, le=5)
    top_p: float | None = Field(default=None, ge=0, le=1)
    top_k: int | None = Field(default=None, ge=0)
    min_p: float | None = Field(default=None, ge=0, le=1)
    repeat_penalty: float | None = Field(default=None, ge=0)
    seed: int | None = None
    stop: list[str] | None = None
    num_predict: int | None = Field(default=None, ge=1)


class File(Noun):
    """Text put before the message: inline (`name` and `text`) or read from below FILES_DIR (`path`)."""

    model_config = ConfigDict(strict=True)

    name: str | None = None
    text: str | None = None
    path: str | None = Field(default=None, min_length=1)

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        if len({self.path is None, self.text is not None, self.name is not None}) > 1:
            raise ValueError('give either "name" and "text", or "path"')
        return self


class Request(Noun):
    """What somebody asked; None means that the agent's or the daemon's own value applies."""

    model_config = ConfigDict(strict=True, str_strip_whitespace=False)

    message: str = Field(validation_alias=AliasChoices("message", "text"))
    id: Id | None = None
    conversation_id: str | None = None
    agent: str | None = None
    stream: bool | Sentences | None = None
    interrupt: bool | None = None
    model: Annotated[str, StringConstraints(min_length=1, max_length=256)] | None = None
    options: Options = Field(default_factory=Options)
    format: Literal["json"] | dict[str, Any] | None = None
    images: list[str] = []
    files: list[File] = []
    context: str | dict[str, Any] | None = None
    metadata: dict[str, Any] = {}
    expires_s: float | None = Field(default=None, ge=0)


class CancelRequest(Noun):
    """Stops the running answer; without an id it also drops what waits.

    `spoken_index` tells which sentence was the last that was spoken, -1 for none: only those are remembered.
    """

    id: Id | None = None
    spoken_index: int | None = Field(default=None, ge=-1, strict=True)


# ------------------------------------------------------------------------------------------------------------ events


class Event(Noun):
    """One message on `…/out`. `seq` counts all events of one attempt from 0; `attempt` counts the tries from 1."""

    terminal: ClassVar[bool] = False

    type: str
    conversation_id: str
    request_id: str
    attempt: int = Field(ge=1)
    seq: int = Field(ge=0)
    ts: AwareDatetime


class Accepted(Event):
    """The request is in the queue; `position` 0 starts now."""

    type: Literal["accepted"] = "accepted"
    position: int = Field(ge=0)
    agent: str
    model: str


class Status(Event):
    """A stage lasts longer than a second."""

    type: Literal["status"] = "status"
    stage: Stage
    detail: str


class Chunk(Event):
    """Text exactly as the model made it; the chunks of an attempt joined equal `final.reply`."""

    type: Literal["chunk"] = "chunk"
    text: str


class Sentence(Event):
    """A whole speakable sentence; `index` counts from 0."""

    type: Literal["sentence"] = "sentence"
    text: str
    index: int = Field(ge=0)


class Usage(Noun):
    """Tokens as the model server counted them."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0


class Timing(Noun):
    """Where the seconds went."""

    queued_s: float = 0.0
    load_s: float = 0.0
    prompt_s: float = 0.0
    first_token_s: float = 0.0
    generate_s: float = 0.0
    total_s: float = 0.0
    tokens_per_s: float = 0.0


class ContextUse(Noun):
    """How much of the model's context the prompt took, and how many remembered turns it no longer holds."""

    tokens: int = 0
    limit: int = 0
    dropped_turns: int = 0


class Final(Event):
    """Terminal: the whole answer.

    On the wire `data` stands only when the request had a `format`, `cached` only when an earlier answer is given again.
    """

    terminal = True

    type: Literal["final"] = "final"
    reply: str
    speech: str
    model: str
    provider: str
    agent: str
    finish_reason: Literal["stop", "length", "cancelled"]
    expects_reply: bool
    usage: Usage
    timing: Timing
    context: ContextUse
    data: Any = None
    cached: bool = False
    metadata: dict[str, Any] = {}

    def encode(self) -> bytes:
        exclude = {"data", "cached"} - self.model_fields_set or None
        return self.model_dump_json(exclude=exclude).encode()


class ErrorEvent(Event):
    """Terminal: no answer, and why. `partial` is the text that was already streamed."""

    terminal = True

    type: Literal["error"] = "error"
    code: str
    message: str
    status_code: int
    retryable: bool
    partial: str = ""
    metadata: dict[str, Any] = {}


# ------------------------------------------------------------------------------------------------------------ health


class ProviderHealth(Noun):
    name: str
    reachable: bool | None = None
    """None until the first look."""
    model: str
    model_loaded: bool | None = None
    error: str | None = None


class QueueHealth(Noun):
    active: int = 0
    waiting: int = 0
    limit: int


class MemoryHealth(Noun):
    conversations: int = 0
    store: str


class Totals(Noun):
    """Counts since the start of the process."""

    requests: int = 0
    replies: int = 0
    errors: int = 0
    cancelled: int = 0
    refused: int = 0
    duplicates: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0


class Speed(Noun):
    """Medians over the recent answers; None before the first."""

    first_token_s: float | None = None
    tokens_per_s: float | None = None


class ProviderUse(ProviderHealth):
    """How one provider stands, and what it did since the start of the process."""

    resting_s: float = 0.0
    requests: int = 0
    errors: dict[str, int] = {}
    retries: int = 0
    cooldowns: int = 0
    speed: Speed


class ProcessHealth(Noun):
    rss_mb: float
    uptime_s: float


class Health(Noun):
    """The retained health message of a running daemon."""

    status: Literal["ok", "degraded", "offline"]
    reasons: list[str] = []
    version: str
    protocol: Literal["5", "3.1.1"] | None = None
    started_at: AwareDatetime
    ts: AwareDatetime
    provider: ProviderHealth
    providers: list[ProviderUse] = []
    queue: QueueHealth
    memory: MemoryHealth
    totals: Totals
    speed: Speed
    process: ProcessHealth


class Offline(Noun):
    """The last will, and the last word of a graceful stop."""

    status: Literal["offline"] = "offline"


class AgentInfo(Noun):
    name: str
    description: str
    provider: str
    model: str


class Defaults(Noun):
    """What applies to requests, and to agents, that name none themselves."""

    agent: str
    model: str
    temperature: float


class Info(Noun):
    """The retained description of this daemon."""

    version: str
    contract: int
    agents: list[AgentInfo]
    defaults: Defaults
    limits: dict[str, int]
    provider: str
    model: str
    models: list[str] = []
    topics: dict[str, str]


# ------------------------------------------------------------------------------------------------------------- admin


class SetDefaults(Noun):
    """What `defaults/set` takes: what is left out stays, and null takes the setting again."""

    model_config = ConfigDict(strict=True)

    agent: str | None = None
    model: ModelName | None = None
    temperature: float | None = Field(default=None, ge=0, le=5)


class AdminError(Noun):
    code: str
    message: str


class AdminResponse(Noun):
    """The answer on `piagent/response/<method>` (the zigbee2mqtt convention)."""

    status: Literal["ok", "error", "progress"]
    data: Any = None
    error: AdminError | None = None
    transaction: Any = None

    def encode(self) -> bytes:
        return self.model_dump_json(exclude_unset=True).encode()
