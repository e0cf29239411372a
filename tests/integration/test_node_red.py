"""deploy/node-red in a real Node-RED, driven over HTTP, with a real broker and the daemon."""

import asyncio
import contextlib
import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, Final

import httpx
import pytest

from piagent_daemon.topics import Topics
from tests.fakes.answers import admin
from tests.fakes.broker import Mosquitto, find_mosquitto, free_port
from tests.fakes.daemon import DaemonProcess
from tests.fakes.observer import Observer
from tests.fakes.processes import Child, wait_for

FLOWS: Final = Path(__file__).parents[2] / "deploy/node-red/flows.json"
NODES: Final[list[dict[str, Any]]] = json.loads(FLOWS.read_text("utf-8"))
CORE: Final = {
    *("tab", "mqtt-broker", "comment", "inject", "http in", "http response", "function", "switch"),
    *("mqtt in", "mqtt out", "debug", "delay"),
}
VERSION: Final = "4.1.15"
"""The last of the 4.1 line: runs on Node.js 18 and 20."""
INSTALL_S: Final = 90.0
START_S: Final = 40.0
TOPICS: Final = Topics("piagent")


def nodes(kind: str) -> list[dict[str, Any]]:
    """The nodes of one type in the shipped flows."""
    return [node for node in NODES if node["type"] == kind]


# ------------------------------------------------------------------------------------------------- the file as it is


def test_only_nodes_that_come_with_node_red() -> None:
    assert {node["type"] for node in NODES} == CORE


def test_every_wire_leads_to_a_node_of_the_same_tab() -> None:
    places = {node["id"]: node.get("z") for node in NODES}
    assert len(places) == len(NODES)
    assert all(re.fullmatch(r"[0-9a-f]{16}", name) for name in places)
    for node in NODES:
        for target in (target for wires in node.get("wires", []) for target in wires):
            assert places[target] == node["z"], node
        if "broker" in node and node["type"] != "mqtt-broker":
            assert places[node["broker"]] is None


def test_every_tab_says_what_to_do() -> None:
    for tab in nodes("tab"):
        assert tab["info"]
        assert any(node["info"] for node in nodes("comment") if node["z"] == tab["id"])
        assert any(node["z"] == tab["id"] for node in nodes("inject"))


def test_the_broker_is_node_red_s_default_but_for_mqtt_5() -> None:
    old, new = nodes("mqtt-broker")
    assert (old["protocolVersion"], new["protocolVersion"]) == ("4", "5")
    for broker in (old, new):
        assert (broker["broker"], broker["port"], broker["usetls"]) == ("127.0.0.1", "1883", False)
        assert "credentials" not in broker
    of_new = {node["z"] for node in NODES if node.get("broker") == new["id"]}
    assert len(of_new) == 1, "MQTT 5 on one tab only"


def test_questions_go_out_at_qos_1_and_nothing_is_retained() -> None:
    asked = []
    for node in nodes("mqtt out"):
        assert node["retain"] == "false"
        inbound = TOPICS.parse(node["topic"] or "piagent/in")
        assert inbound
        asked.append(inbound.name)
        assert node["qos"] == ("0" if inbound.kind == "cancel" else "1")
    heard = [node["topic"] for node in nodes("mqtt in")]
    assert {TOPICS.out(name) for name in asked if name} == {topic for topic in heard if topic.endswith("/out")}
    assert {node["datatype"] for node in nodes("mqtt in")} == {"auto-detect"}


# -------------------------------------------------------------------------------------------------------- in real life


def installed() -> Path:
    """Return the folder with Node-RED in it, installing it once; skip where that cannot be."""
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        pytest.skip("npm is not installed")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "piagent-tests"
    folder = cache / f"node-red-{VERSION}"
    if folder.exists():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "lock").open("w") as lock, tempfile.TemporaryDirectory(dir=cache) as unfinished:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the tests run side by side, and one installation is enough
        if folder.exists():
            return folder
        tree = Path(unfinished) / "tree"
        tree.mkdir()
        options = "--prefer-offline --ignore-scripts --omit=optional --no-audit --fetch-retries=1 --fetch-timeout=20000"
        command = [npm, "install", "--prefix", str(tree), *options.split(), f"node-red@{VERSION}"]
        try:
            result = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_S, check=False)
        except subprocess.TimeoutExpired:
            pytest.skip(f"npm did not install Node-RED within {INSTALL_S:g} s")
        if result.returncode != 0:
            pytest.skip(f"npm could not install Node-RED: {result.stderr.strip()[-500:]}")
        tree.rename(folder)
    return folder


class NodeRed(Child):
    """Node-RED with the shipped flows in a folder of its own; nothing in them is changed but the broker's port."""

    def __init__(self, program: Path, folder: Path, mqtt_port: int) -> None:
        folder.mkdir()
        self.port = free_port()
        flows = [{**node, "port": str(mqtt_port)} if node["type"] == "mqtt-broker" else node for node in NODES]
        (folder / "flows.json").write_text(json.dumps(flows), "utf-8")
        settings = {
            "uiHost": "127.0.0.1",
            "uiPort": self.port,
            "httpAdminRoot": False,
            "telemetry": {"enabled": False},
            "logging": {"console": {"level": "info"}},
        }
        (folder / "settings.js").write_text(f"module.exports = {json.dumps(settings)};\n", "utf-8")
        red = program / "node_modules/node-red/red.js"
        command = ["node", str(red), "-u", str(folder), "-s", str(folder / "settings.js"), "flows.json"]
        env = {"PATH": os.environ["PATH"], "HOME": str(folder), "NO_UPDATE_NOTIFIER": "1"}
        super().__init__(command, folder / "node-red.log", env, folder)


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mosquitto]:
    """A broker of our own: the flows speak on `piagent/#` itself."""
    if find_mosquitto() is None:
        pytest.skip("mosquitto is not installed")
    with Mosquitto(tmp_path_factory.mktemp("node-red-broker")) as one:
        yield one


def await_answer(red: NodeRed, daemon: DaemonProcess, path: str) -> None:
    """Ask a flow until it answers: then Node-RED, broker and daemon are all there."""

    def answered() -> bool:
        for child in (red, daemon):
            assert child.running, f"it ended:\n{child.output[-4000:]}"
        with contextlib.suppress(httpx.HTTPError):
            url = f"http://127.0.0.1:{red.port}{path}"
            return httpx.post(url, json={"message": "Ready?"}, timeout=1, trust_env=False).status_code == 200
        return False

    wait_for(answered, START_S, f"no answer from {path}")


@pytest.fixture(scope="module")
def node_red(broker: Mosquitto, tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeRed]:
    """Node-RED, and the daemon behind it; both answer."""
    program = installed()
    folder = tmp_path_factory.mktemp("node-red")
    (folder / "prompts").mkdir()
    (folder / "prompts/voice.md").write_text("Speak.")  # ours would have the time repeated at the end of each answer
    daemon = DaemonProcess(
        folder / "daemon",
        notify=False,
        provider="echo",
        prompts_dir=folder / "prompts",
        mqtt_port=broker.port,
        mqtt_client_id="piagent-node-red-test",
        ha_discovery=False,
    )
    red = NodeRed(program, folder / "red", broker.port)
    red.spawn()
    daemon.start()
    try:
        for path in ("/piagent/ask", "/piagent/request"):
            await_answer(red, daemon, path)
        yield red
    finally:
        if red.running:
            red.end(signal.SIGTERM)
        asyncio.run(daemon.close())


@pytest.fixture
async def http(node_red: NodeRed) -> AsyncIterator[httpx.AsyncClient]:
    """What drives the flows. Node-RED has complained of nothing when the test is over."""
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{node_red.port}", timeout=20, trust_env=False) as client:
        yield client
    log = node_red.output.partition("Started flows")[2]
    complaints = [line for line in log.splitlines() if re.search(r"\[(warn|error)\]", line)]
    assert complaints == []


@pytest.fixture
async def watcher(broker: Mosquitto) -> AsyncIterator[Observer]:
    """A client that sees what the flows ask and what they are told."""
    async with Observer(broker.port) as client:
        await client.subscribe("piagent/#")
        yield client


async def ask(http: httpx.AsyncClient, path: str, message: str) -> Any:
    """Ask a flow that answers at once; return the request id."""
    response = await http.post(path, json={"message": message})
    assert response.status_code == 202
    return response.json()["id"]


async def shown(http: httpx.AsyncClient, path: str, key: str) -> dict[str, Any]:
    """Look at what a flow shows until `key` is true in it."""
    async with asyncio.timeout(20):
        while True:
            state: dict[str, Any] = (await http.get(path)).json()
            if state[key]:
                return state
            await asyncio.sleep(0.05)


async def test_ask_and_see_the_final_event(http: httpx.AsyncClient) -> None:
    response = await http.post("/piagent/ask", json={"message": "Hello there."})
    final = response.json()
    assert (response.status_code, final["type"], final["reply"]) == (200, "final", "You said: Hello there.")
    plain = await http.post("/piagent/ask", content="42", headers={"Content-Type": "text/plain"})
    assert plain.json()["reply"] == "You said: 42"


async def test_each_of_many_askers_gets_the_own_answer(http: httpx.AsyncClient) -> None:
    questions = [f"Number {number}." for number in range(12)]
    answers = await asyncio.gather(*(http.post("/piagent/ask", json={"message": one}) for one in questions))
    assert [answer.json()["reply"] for answer in answers] == [f"You said: {one}" for one in questions]


async def test_an_error_comes_back_with_its_status_code(http: httpx.AsyncClient) -> None:
    response = await http.post("/piagent/ask", json={"message": " "})
    error = response.json()
    assert (response.status_code, error["type"], error["code"]) == (422, "error", "invalid_request")


async def test_chunks_are_joined(http: httpx.AsyncClient, watcher: Observer) -> None:
    message = " ".join(f"word{number}" for number in range(200))
    request_id = await ask(http, "/piagent/words", message)
    final = await watcher.terminal(request_id)
    state = await shown(http, "/piagent/words", "complete")
    assert (state["request_id"], state["text"]) == (request_id, final["reply"])
    kinds = [event["type"] for event in watcher.events(request_id)]
    assert kinds[1:-1] == ["chunk"] * (len(kinds) - 2)


async def test_text_grows_and_a_second_attempt_begins_anew(http: httpx.AsyncClient, watcher: Observer) -> None:
    """Events as after a restart of the daemon, which is not asked here."""
    seen: list[str] = []
    for attempt, text in ((1, "Once upon"), (2, "There was"), (1, " a time"), (2, " a king")):
        event = {"type": "chunk", "request_id": "story", "attempt": attempt, "text": text}
        await watcher.publish("piagent/node-red-words/out", event)
    async with asyncio.timeout(10):
        while not seen or seen[-1] != "There was a king":
            seen.append((await http.get("/piagent/words")).json()["text"])
    assert not any("Once upon" in one and "king" in one for one in seen)


async def test_a_voice_speaks_sentence_after_sentence(http: httpx.AsyncClient, watcher: Observer) -> None:
    request_id = await ask(http, "/piagent/voice", "**It** is warm. Shall I open it?")
    final = await watcher.terminal(request_id)
    state = await shown(http, "/piagent/voice", "done")
    sentences = [event["text"] for event in watcher.events(request_id) if event["type"] == "sentence"]
    assert len(sentences) > 1
    assert state["spoken"] == sentences
    assert "".join(sentences).split() == final["speech"].split() or " ".join(sentences) == final["speech"]
    assert (state["request_id"], state["silent"], state["expects_reply"]) == (request_id, False, True)


async def remembered(watcher: Observer) -> list[str]:
    """Return what piagent remembers of the voice's conversation."""
    response = await admin(watcher, "memory/get", {"conversation_id": "node-red-voice"})
    return [turn["content"] for turn in response["data"]["turns"]]


async def test_be_quiet_stops_it_and_says_how_much_was_heard(http: httpx.AsyncClient, watcher: Observer) -> None:
    message = f"Yes. {' '.join(['This sentence is much too long to be spoken to its end'] * 6)}. And then?"
    request_id = await ask(http, "/piagent/voice", message)
    state = await shown(http, "/piagent/voice", "spoken")
    assert (await http.post("/piagent/voice/stop")).status_code == 200
    stop = await watcher.wait(lambda one: one.topic == "piagent/node-red-voice/cancel")
    assert stop.json == {"id": request_id, "spoken_index": len(state["spoken"]) - 1}
    state = await shown(http, "/piagent/voice", "silent")
    assert state["done"]
    assert not state["expects_reply"]
    assert len(state["spoken"]) < len([one for one in watcher.events(request_id) if one["type"] == "sentence"])
    async with asyncio.timeout(5):
        while "And then?" in (last := (await remembered(watcher))[-1]):
            pass
    assert last.startswith("You said: Yes."), "what was heard stays"


async def test_a_new_question_ends_the_speech_first(http: httpx.AsyncClient, watcher: Observer) -> None:
    first = await ask(http, "/piagent/voice", " ".join(["A very long story without any end."] * 8))
    await watcher.terminal(first)
    second = await ask(http, "/piagent/voice", "Stop that, what time is it?")
    stop = await watcher.wait(lambda one: one.topic == "piagent/node-red-voice/cancel")
    assert stop.field("id") == first
    assert stop.field("spoken_index") < 7
    question = await watcher.wait(lambda one: one.field("id") == second)
    assert watcher.messages.index(stop) < watcher.messages.index(question)
    await watcher.terminal(second)
    state = await shown(http, "/piagent/voice", "spoken")
    assert state["request_id"] == second


async def test_request_and_response_by_mqtt_5(http: httpx.AsyncClient, watcher: Observer) -> None:
    questions = [f"Joke {number}." for number in range(5)]
    answers = await asyncio.gather(*(http.post("/piagent/request", json={"message": one}) for one in questions))
    finals = [answer.json() for answer in answers]
    assert [final["reply"] for final in finals] == [f"You said: {one}" for one in questions]
    assert len({final["conversation_id"] for final in finals}) == len(questions), "a new conversation each time"
    await watcher.catch_up()
    replies = [one for one in watcher.on("piagent/reply/node-red") if one.field("type") == "final"]
    asked = [one.properties for one in watcher.on("piagent/in")]
    assert {one["ResponseTopic"] for one in asked} == {"piagent/reply/node-red"}
    assert {one.properties["CorrelationData"] for one in replies} == {one["CorrelationData"] for one in asked}


async def test_an_error_by_mqtt_5(http: httpx.AsyncClient) -> None:
    response = await http.post("/piagent/request", json={"message": ""})
    assert (response.status_code, response.json()["code"]) == (422, "invalid_request")
