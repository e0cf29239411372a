"""A broker, or a network, that is away, slow, strict, old or mad (faults 1 to 15), with the daemon as a process."""

import random
from pathlib import Path
from typing import Any, Final

import pytest

from tests.conftest import BrokerFactory, DaemonFactory
from tests.fakes.answers import check_answer
from tests.fakes.broker import BlackHole, Mosquitto
from tests.fakes.certificates import make_certificates
from tests.fakes.daemon import DaemonProcess
from tests.fakes.observer import Observer
from tests.fakes.old_broker import REFUSAL, OldBroker
from tests.fakes.scripted_broker import PUBLISH, ScriptedBroker, packet, publish
from tests.fault.conftest import HouseFactory
from tests.fault.house import PASSWORD, House, faketime

both = pytest.mark.parametrize("protocol", ["5", "311"])
WORDS: Final = [f" w{number}" for number in range(40)]
NAMES: Final = {"5": "5", "311": "3.1.1"}


def warnings(log: str) -> list[str]:
    """Return the lines of a log that are no mere information."""
    return [line for line in log.splitlines() if " WARNING " in line or " ERROR " in line]


async def connected(home: House, times: int) -> None:
    """Wait for the daemon's connection with that number."""
    await home.server.until(lambda _: home.log.count("connected with MQTT") >= times, 20)


# ------------------------------------------------------------------------------------------------------- away: 1, 2, 3


@both
async def test_1_no_broker_at_the_start(house: HouseFactory, new_broker: BrokerFactory, protocol: str) -> None:
    broker = new_broker()
    broker.stop()
    async with house(broker, protocol=protocol, late=True, wait=False, fast=10) as home:
        await home.process.ready()  # after ten of its seconds: a start without a broker does not fail
        assert home.process.status.startswith("waiting for the broker")
        assert len(warnings(home.log)) == 2, "why, and that the start counts as done"
        broker.start()
        await home.listen()
        await home.health(lambda now: now["status"] == "ok" and now["protocol"] == NAMES[protocol])
        await home.well()
        assert home.process.status.startswith("ok")


@both
async def test_2_broker_restarts_lose_nothing(house: HouseFactory, new_broker: BrokerFactory, protocol: str) -> None:
    broker = new_broker()
    async with house(broker, protocol=protocol, max_concurrent=2) as home:
        home.server.runners.parallel = 2
        home.server.tokens, home.server.tokens_per_s = WORDS[:10], 100
        for restart in range(3):
            for number in range(10):
                await home.post(f"room{restart}-{number}")
            await home.server.until(lambda server: server.questions and server.questions[-1].tokens > 2)
            broker.restart(kill=restart == 2)
            await connected(home, restart + 2)
        for request_id in home.asked:
            assert (await home.observer.terminal(request_id, 20))["type"] == "final"
        assert home.log.count("session resumed") == 3
        await home.good()


@both
async def test_3_a_session_that_is_lost(house: HouseFactory, new_broker: BrokerFactory, protocol: str) -> None:
    """The acknowledgement of an old request would take a new one that has the same packet id by now."""
    broker = new_broker(persistence=False)
    async with house(broker, protocol=protocol, max_concurrent=2) as home:
        home.server.runners.parallel = 2
        home.server.next(tokens=WORDS, tokens_per_s=20)
        old = await home.post("old")
        await home.speaking(old)
        broker.restart(kill=True)
        await connected(home, 2)
        home.server.next("hang")
        new = await home.post("new")
        assert (await home.observer.terminal(old))["type"] == "final"
        assert "the broker lost our session" in home.log
        home.process.kill()
        home.process.start()
        assert (await home.observer.terminal(new))["type"] == "final"
        await home.good()


# ----------------------------------------------------------------------------------------- refuses, is old, frozen: 4-7


@both
async def test_4_a_wrong_password(house: HouseFactory, new_broker: BrokerFactory, protocol: str) -> None:
    broker = new_broker(users={"piagent": "another"})
    async with house(broker, protocol=protocol, late=True, wait=False, fast=20) as home:
        await home.process.ready()
        await home.logged("MQTT_PASSWORD")
        assert "MQTT_PASSWORD" in home.process.status
        await home.server.until(lambda _: broker.output.count("Sending CONNACK") > 1, 10)
        assert home.log.count("ERROR") == 1, "once, not at each try"
        broker.users = {"piagent": PASSWORD}
        broker.reload()
        await home.listen()
        await home.good(20)
        await home.well()


@pytest.mark.parametrize("answer", [REFUSAL, b"\x20\x03\x00\x84\x00", b""], ids=["3.1.1's", "5's", "none"])
async def test_5_a_broker_that_only_speaks_3_1_1(house: HouseFactory, mosquitto: Mosquitto, answer: bytes) -> None:
    async with OldBroker(mosquitto.port, answer) as gate, house(mqtt_port=gate.port, protocol="auto") as home:
        await home.health(lambda now: now["status"] == "ok" and now["protocol"] == "3.1.1")
        await home.well()
        assert home.log.count("falling back to 3.1.1") == 1
        assert gate.refused == (1 if answer else 2)


@both
async def test_6_a_broker_that_is_frozen(house: HouseFactory, new_broker: BrokerFactory, protocol: str) -> None:
    broker = new_broker()
    async with house(broker, protocol=protocol, fast=20) as home:
        home.server.next(tokens=WORDS, tokens_per_s=40)
        request_id = await home.post("k")
        await home.speaking(request_id)
        broker.pause()
        await home.logged("keepalive timeout", 15)
        await home.server.until(lambda server: server.questions[0].ended)
        broker.resume()
        final = await home.observer.terminal(request_id, 20)
        assert final["reply"] == "".join(WORDS)
        await home.good()
        assert len(home.server.questions) == 1


async def test_7_a_broker_behind_a_black_hole(house: HouseFactory, new_broker: BrokerFactory) -> None:
    with BlackHole() as hole:
        async with house(mqtt_port=hole.port, late=True, wait=False, fast=10) as home:
            await home.process.ready()
            await home.logged("no answer within the time limit")
            assert home.lag_s() < 0.2
            hole.__exit__()
            home.broker = new_broker(port=hole.port)
            await home.listen()
            await home.good(20)
            await home.well()


RESOLVER: Final = """
import pathlib, socket
real = socket.getaddrinfo

def getaddrinfo(host, *args, **kwargs):
    if host == "bröker.invalid":
        host = pathlib.Path(__file__).with_name("address").read_text()
    return real(host, *args, **kwargs)

socket.getaddrinfo = getaddrinfo
"""


async def test_7_a_name_that_is_resolved_anew_at_every_try(house: HouseFactory, tmp_path: Path) -> None:
    address = tmp_path / "address"
    address.write_text("nobody.invalid")
    (tmp_path / "sitecustomize.py").write_text(RESOLVER)
    env = {"PYTHONPATH": str(tmp_path)}
    async with house(mqtt_host="bröker.invalid", wait=False, fast=10, env=env) as home:
        await home.process.ready()
        await home.logged("the name cannot be resolved")
        assert "bröker.invalid" in home.process.status
        address.write_text("127.0.0.1")
        await home.good(20)
        await home.well()


# ------------------------------------------------------------------------------------------------------- secure: 8


def says(process: DaemonProcess, why: str) -> bool:
    return why in process.output


async def test_8_tls(
    house: HouseFactory, daemon: DaemonFactory, new_broker: BrokerFactory, mosquitto: Mosquitto, tmp_path: Path
) -> None:
    ca, *rest = make_certificates(tmp_path / "good")
    stranger = make_certificates(tmp_path / "stranger")[0]
    broker = new_broker(certificate=(ca, *rest))
    trusted: dict[str, Any] = {"mqtt_port": broker.port, "mqtt_tls": True, "mqtt_ca_file": ca}
    cases: list[tuple[dict[str, Any], str]] = [
        ({**trusted, "mqtt_ca_file": stranger}, "not trusted"),
        ({**trusted, "mqtt_host": "localhost"}, "not trusted"),
        ({**trusted, "env": faketime() | {"FAKETIME": "+400d"}}, "expired"),
        ({"mqtt_port": broker.port}, "8883"),
        ({**trusted, "mqtt_port": mosquitto.port}, "8883"),
    ]
    fakes = [await daemon(wait=False, mqtt_client_id=f"never{n}", **case) for n, (case, _) in enumerate(cases)]
    async with house(broker, ca_file=ca, mqtt_tls=True, mqtt_ca_file=ca) as home:
        await home.good()
        await home.well()
        words = [why for _, why in cases]
        await home.server.until(lambda _: all(map(says, fakes, words)), 15)
        for process in fakes:
            lines = warnings(process.output)
            assert len([line for line in lines if "trying again" in line]) == 1, "once for each change"
            assert "connected" not in process.output
            assert await process.stop() == 0
    assert "never" not in "".join(line for line in broker.output.splitlines() if "New client connected" in line)


# --------------------------------------------------------------------------------------------------- another client: 9


@both
async def test_9_two_daemons_with_one_client_id(
    house: HouseFactory, daemon: DaemonFactory, new_broker: BrokerFactory, protocol: str
) -> None:
    broker = new_broker()
    async with house(broker, protocol=protocol) as home:
        first = home.process
        taken = f"Client {first.settings['mqtt_client_id']} already connected"
        twin = await daemon(wait=False, **first.settings)
        await home.server.until(lambda _: losers(first, twin), 15)
        await home.well()
        takeovers = broker.output.count(taken)
        assert 1 <= takeovers < 10
        await home.well("again")
        (loser,) = losers(first, twin)
        if loser is first:  # it waits, and the other one is asked to the end
            assert await first.stop() == 0
            home.take_over(twin)
        else:
            assert await twin.stop() == 0
        await home.well("third")
        assert broker.output.count(taken) == takeovers, "they do not quarrel for ever"


def losers(*processes: DaemonProcess) -> list[DaemonProcess]:
    return [process for process in processes if says(process, "another client uses our client id")]


# --------------------------------------------------------------------------------------------------- access rules: 10


@both
@pytest.mark.parametrize("denied", ["publish", "subscribe"])
async def test_10_access_rules_that_deny(
    house: HouseFactory, new_broker: BrokerFactory, base_topic: str, protocol: str, denied: str
) -> None:
    right = {"publish": "read", "subscribe": "write"}[denied]
    everything = "user piagent\ntopic readwrite #\nuser daemon\n"
    health = f"topic readwrite {base_topic}/health\n"
    users = {"piagent": PASSWORD, "daemon": PASSWORD}
    broker = new_broker(users=users, acl=f"{everything}{health}topic {right} {base_topic}/#\n")
    async with house(broker, protocol=protocol, mqtt_username="daemon", fast=20) as home:
        ill = await home.reason(f"acl_{denied}")
        assert ill["status"] == "degraded"
        await home.logged(f"topic readwrite {base_topic}/#")
        broker.acl = f"{everything}topic readwrite {base_topic}/#\n"
        broker.reload()
        await home.good(15)
        await home.well()


# -------------------------------------------------------------------------------------------- nobody, too many: 11, 12


async def test_11_nobody_has_subscribed_yet(house: HouseFactory, new_broker: BrokerFactory) -> None:
    broker = new_broker()
    async with house(broker, protocol="5", late=True, fast=5) as home:
        async with Observer(broker.port, base=home.base, username="piagent", password=PASSWORD) as asker:
            await asker.publish(f"{home.base}/k/in", {"message": "Who hears?", "id": "one"})
            await home.logged("nobody subscribed")
        await home.listen()
        assert (await home.observer.terminal("one"))["type"] == "final"
        await home.process.restart()
        await home.well()
        assert len(home.ends("one")) == 1
        assert len(home.server.questions) == 2


@both
async def test_12_the_depth_of_the_queue_is_seen(house: HouseFactory, protocol: str) -> None:
    async with house(protocol=protocol, max_waiting=10) as home:
        home.server.next("noheader")
        ids = [await home.post(f"room{number}", wait=False) for number in range(100)]
        await home.observer.wait(lambda one: one.field("code") == "busy")
        assert (await home.now())["queue"] == {"active": 1, "waiting": 10, "limit": 10}
        await home.observer.publish(f"{home.base}/room0/cancel", qos=0)
        ends = [await home.observer.terminal(request_id, 30) for request_id in ids]
        assert {end.get("code") for end in ends} == {None, "busy"}
        assert ends[0]["finish_reason"] == "cancelled"


# --------------------------------------------------------------------------------------- mad, poisoned, slow: 13 to 15


async def introduced(home: House, broker: ScriptedBroker, times: int) -> None:
    """Wait until the daemon has introduced itself so often."""
    await home.server.until(lambda _: len(broker.of(PUBLISH, "/info")) >= times, 20)


async def test_13_nonsense_from_the_broker(house: HouseFactory) -> None:
    draw = random.Random(13)  # noqa: S311  a test that fails shall fail again
    async with ScriptedBroker() as broker:
        arguments: dict[str, Any] = {"mqtt_port": broker.port, "late": True, "wait": False, "fast": 100}
        async with house(protocol="5", **arguments) as home:
            home.reachable = False
            good = publish(f"{home.base}/k/in", b'{"message": "hi"}', 9, 5)
            for count in range(1, 11):
                await introduced(home, broker, count)
                bad = bytearray(good)
                for _ in range(draw.randrange(1, 4)):
                    bad[draw.randrange(len(bad))] = draw.randrange(256)
                broker.send(bytes(bad))
                broker.send(packet(draw.randrange(16), draw.randbytes(draw.randrange(40)), draw.randrange(16)))
                broker.drop()
            await introduced(home, broker, 11)
            assert home.process.running
            broker.send(good)
            await home.server.until(lambda _: broker.of(PUBLISH, "/k/out"), 10)


@both
async def test_14_an_answer_that_the_broker_does_not_take(
    house: HouseFactory, new_broker: BrokerFactory, protocol: str
) -> None:
    broker = new_broker(extra=["max_packet_size 20000"])
    limits = {"ctx_tokens": 32_768, "max_tokens": 16_384}
    async with house(broker, protocol=protocol, max_concurrent=3, **limits) as home:
        home.server.runners.parallel = 3
        home.server.reply = lambda body: "word " * 8000 if "[room poison]" in str(body) else "Yes."
        before = len(home.server.questions)
        ids = [await home.post(room) for room in ("one", "poison", "two", "three")]
        error = await home.observer.terminal(ids[1], 20)
        assert (error["type"], error["code"], error["retryable"]) == ("error", "internal", False)
        for request_id in (ids[0], *ids[2:]):
            assert (await home.observer.terminal(request_id))["reply"] == "Yes."
        assert home.log.count("connected with MQTT") <= (1 if protocol == "5" else 5)
        assert len(home.server.questions) == before + 4
        assert home.log.count("the broker does not take the answer") == 1
        await home.good()


@both
async def test_15_a_broker_that_does_not_read(house: HouseFactory, new_broker: BrokerFactory, protocol: str) -> None:
    broker = new_broker()
    limits = {"max_concurrent": 4, "max_tokens": 8000, "ctx_tokens": 16_384, "chunk_interval_ms": 0}
    async with house(broker, protocol=protocol, **limits) as home:
        home.server.runners.parallel = 4
        home.server.tokens, home.server.tokens_per_s = ["x" * 600 + " "] * 600, 300
        ids = [await home.post(f"room{number}") for number in range(4)]
        for request_id in ids:
            await home.speaking(request_id)
        broker.pause()
        await home.server.until(lambda server: all(question.ended for question in server.questions), 20)
        broker.resume()
        for request_id in ids:
            assert len((await home.observer.terminal(request_id, 30))["reply"]) == 600 * 601
        await home.good()
        final = await home.well()
        check_answer(home.observer.events(final["request_id"]))
