"""Steering the fake model server from another process: the /_fake endpoint, and the command line."""

import argparse
import asyncio
import json
import signal
import sys
from typing import Any

from tests.fakes.httpd import Exchange
from tests.fakes.ollama import DEFAULT_MODEL, FakeOllama
from tests.fakes.ollama_runner import Model


async def control(server: FakeOllama, exchange: Exchange) -> None:
    """GET returns counters and a figure per request (?bodies: with bodies and answers); POST sets behaviour.

    A POST holds fields of Behaviour (standing), `next` (a list of the same, each for one question, with `times`),
    `forget: true` (drop records and behaviours, before the rest is set).
    """
    if exchange.method == "POST":
        try:
            _set(server, json.loads(exchange.body or b"{}"))
        except (TypeError, ValueError) as error:
            await exchange.send_json(400, {"error": str(error)})
            return
    bodies = "bodies" in exchange.query
    requests = [
        {**record.summary(), **({"body": record.body or None, "text": record.text} if bodies else {})}
        for record in server.requests
    ]
    value = {
        "counters": {
            "requests": len(server.requests),
            "questions": len(server.questions),
            "connections": server.connections,
            "loads": server.runners.loads,
            "reloads": server.reloads,
            "tokens_sent": server.tokens_sent,
            "tokens_evaluated": server.tokens_evaluated,
        },
        "requests": requests,
    }
    await exchange.send_json(200, value)


def _set(server: FakeOllama, changes: dict[str, Any]) -> None:
    if changes.pop("forget", False):
        server.forget()
    once = changes.pop("next", ())
    for name, value in changes.items():
        if not hasattr(server.script, name):
            raise ValueError(f"no such field: {name}")
        setattr(server.script, name, value)
    for one in once:
        server.next(**one)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.fakes.ollama", description=FakeOllama.__doc__)
    parser.add_argument("--port", type=int, default=0, help="0 = any; the port is the first line on stdout")
    parser.add_argument("--model", action="append", help=f"a model it has (default {DEFAULT_MODEL}); repeatable")
    parser.add_argument("--tokens", type=int, help="answer with so many tokens instead of an echo")
    parser.add_argument("--reply", help="answer with this text instead of an echo")
    parser.add_argument("--stamp", action="store_true", help="each token is the monotonic time of its writing")
    parser.add_argument("--rate", type=float, default=0.0, help="tokens a second; 0 = as fast as possible")
    parser.add_argument("--first-token-delay", type=float, default=0.0, help="seconds")
    parser.add_argument("--load", type=float, default=0.0, help="seconds a model takes to load")
    parser.add_argument("--prompt-rate", type=float, default=0.0, help="prompt tokens read a second; 0 = no time")
    parser.add_argument("--parallel", type=int, default=1, help="slots a model")
    parser.add_argument("--mode", default="ok", help="standing mode")
    return parser


async def _serve(arguments: argparse.Namespace) -> None:
    server = FakeOllama(
        {name: Model() for name in arguments.model or [DEFAULT_MODEL]},
        port=arguments.port,
        parallel=arguments.parallel,
        load_s=arguments.load,
        prompt_tokens_per_s=arguments.prompt_rate,
    )
    server.mode = arguments.mode
    server.reply = arguments.reply
    server.tokens_per_s = arguments.rate
    server.first_token_delay_s = arguments.first_token_delay
    server.script.stamp = arguments.stamp
    if arguments.tokens is not None:
        server.tokens = [f" w{count}" for count in range(arguments.tokens)]
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with server:
        sys.stdout.write(f"{server.port}\n")
        sys.stdout.flush()
        await stop.wait()


def main() -> None:
    asyncio.run(_serve(_parser().parse_args()))
