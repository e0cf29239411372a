"""Requests to a model outside the conversations, of which nothing is remembered: `llm/chat`, `/vision`, `/embed`."""

import asyncio
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from functools import partial
from typing import Any, Final, Literal

from pydantic import Field, model_validator

from piagent_daemon import files, wire
from piagent_daemon.admin import Parts, Progress
from piagent_daemon.admin_method import Long, takes
from piagent_daemon.alone import Errand
from piagent_daemon.contract import Chunk, File, Noun, Options, Request, Status
from piagent_daemon.contract import Final as FinalEvent
from piagent_daemon.errors import InvalidRequest
from piagent_daemon.model_names import ModelName
from piagent_daemon.settings import Settings
from piagent_daemon.values import Message
from piagent_daemon.waiting import in_thread

MAX_INPUTS: Final = 256
"""Texts in one request for embeddings."""


class Said(Noun):
    role: Literal["system", "user", "assistant"]
    content: str


class Chat(Long, Options):
    """Sampling options may stand here or in `options`; here they win. `max_tokens` is another name of `num_predict`."""

    model: ModelName
    messages: list[Said] = Field(min_length=1)
    stream: bool = False
    options: Options = Options()
    max_tokens: int | None = Field(default=None, ge=1)
    format: Literal["json"] | dict[str, Any] | None = None
    files: list[File] = Field(default=[])
    file_path: str | None = None
    images: list[str] = Field(default=[])


class Vision(Chat):
    """One image at least: a file below FILES_DIR (`image_path`), or inline (`images`)."""

    image_path: str | None

    @model_validator(mode="before")
    @classmethod
    def _inline_will_do(cls, params: dict[str, Any]) -> dict[str, Any]:
        """Require a path only where no image is inline, so that it is named together with all else that is missing."""
        return {"image_path": None, **params} if params.get("images") else params


class Embed(Long):
    input: str | list[str]
    model: ModelName | None = None


@takes(Chat)
async def chat(parts: Parts, params: Chat) -> AsyncGenerator[Any, None]:
    """Answer messages."""
    async with aclosing(_answer(parts, params, {})) as steps:
        async for step in steps:
            yield step


@takes(Vision)
async def vision(parts: Parts, params: Vision) -> AsyncGenerator[Any, None]:
    """Answer messages about images; `image_analyzed` names the first one."""
    if params.image_path is None and not params.images:
        raise InvalidRequest("Bad parameters for llm/vision: image_path: null is no image.")
    if params.image_path is not None:
        image = await _picture(params.image_path, parts.config.settings)
        params = params.model_copy(update={"images": [image, *params.images]})
    async with aclosing(_answer(parts, params, {"image_analyzed": params.image_path or "images.0"})) as steps:
        async for step in steps:
            yield step


async def _picture(path: str, settings: Settings) -> str:
    read = partial(files.picture, path, settings.files_dir, settings.max_image_bytes)
    try:
        async with asyncio.timeout(settings.total_timeout_s):
            return await in_thread(read, "read-files")
    except TimeoutError:
        raise files.late(settings.total_timeout_s) from None


@takes(Embed)
async def embed(parts: Parts, params: Embed) -> Any:
    """Return a vector for each text, in order."""
    texts = [params.input] if isinstance(params.input, str) else params.input
    if not 0 < len(texts) <= MAX_INPUTS or not all(text and wire.is_sendable(text) for text in texts):
        raise InvalidRequest(f'"input" should be a text, or 1 to {MAX_INPUTS} of them, and none of them empty.')

    async def call() -> tuple[list[list[float]], str, str]:
        return await parts.ladder.embed(texts, params.model)

    began = time.monotonic()
    request = Request(message="", model=params.model)
    errand = Errand(parts.scheduler, parts.clock, name=params.id, model=params.model or "", request=request)
    vectors, model, provider = await errand.do(call, parts.config.settings, sum(map(len, texts)))
    return {
        "embeddings": vectors,
        "model": model,
        "provider": provider,
        "total_duration": round(time.monotonic() - began, 4),
    }


async def _answer(parts: Parts, params: Chat, more: Mapping[str, Any]) -> AsyncGenerator[Any, None]:
    request = _request(parts, params)
    errand = Errand(parts.scheduler, parts.clock, name=params.id, model=params.model, request=request)
    messages = tuple(Message(said.role, said.content) for said in params.messages)
    async with aclosing(errand.ask(messages)) as events:
        async for event in events:
            match event:
                case Chunk(text=text) if params.stream:
                    yield Progress({"id": params.id, "text": text})
                case Status(stage=stage, detail=detail) if params.stream:
                    yield Progress({"id": params.id, "stage": stage, "detail": detail})
                case FinalEvent():
                    yield {**_told(event), **more}


def _request(parts: Parts, params: Chat) -> Request:
    """Return what the engine wants to know beside the messages. Raises InvalidRequest."""
    if not all(wire.is_sendable(said.content) for said in params.messages):
        raise InvalidRequest("The messages hold characters that are not valid Unicode text.")
    named = [*params.files, *([File(path=params.file_path)] if params.file_path is not None else [])]
    words = [said.content for said in params.messages if said.role == "user"]
    if not words and (named or params.images):
        raise InvalidRequest("Files and images need a message of the role user.")
    for number, image in enumerate(params.images):
        wire.check_image(image, f"images.{number}", parts.config.settings.max_image_bytes)
    here = {name: getattr(params, name) for name in Options.model_fields}
    here["num_predict"] = params.max_tokens or params.num_predict
    return Request(
        message=(words or [""])[-1],
        model=params.model,
        stream=params.stream,
        options=params.options.model_copy(update={name: value for name, value in here.items() if value is not None}),
        format=params.format,
        files=named,
        images=params.images,
    )


def _told(final: FinalEvent) -> dict[str, Any]:
    answer: dict[str, Any] = {
        "response": final.reply,
        "model": final.model,
        "provider": final.provider,
        "finish_reason": final.finish_reason,
        "total_duration": final.timing.total_s,
        "tokens_used": final.usage.total_tokens,
        "usage": final.usage.model_dump(),
    }
    if "data" in final.model_fields_set:
        answer["data"] = final.data
    return {**answer, "cached": True} if final.cached else answer
