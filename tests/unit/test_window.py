"""History is cut in blocks, and prompts are counted rather too large than too small."""

from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from piagent_daemon import prompt, window
from piagent_daemon.agents import Agent
from piagent_daemon.contract import Request
from piagent_daemon.values import Message, Turn
from piagent_daemon.window import Ledger, cut, estimate

NOW = datetime(2026, 3, 1, 18, 5, tzinfo=UTC)
SIZES = st.lists(st.integers(0, 5000), max_size=60)


# ------------------------------------------------------------------------------------------------------------ cutting


@settings(deadline=None)
@given(SIZES, st.integers(0, 40), st.integers(-100, 40_000))
def test_what_stays_fits_and_begins_with_a_user(sizes: list[int], max_turns: int, budget: int) -> None:
    drop = cut(sizes, max_turns=max_turns, budget=budget)
    kept = sizes[drop:]
    assert 0 <= drop <= len(sizes)
    assert len(kept) <= max_turns
    assert sum(kept) <= max(0, budget)
    assert drop % 2 == 0 or not kept


@settings(deadline=None)
@given(SIZES, st.integers(0, 40), st.integers(0, 40_000))
def test_nothing_goes_while_all_fit(sizes: list[int], max_turns: int, budget: int) -> None:
    fits = len(sizes) <= max_turns and sum(sizes) <= budget
    assert fits == (cut(sizes, max_turns=max_turns, budget=budget) == 0) or not sizes


@settings(deadline=None)
@given(st.integers(2, 40).map(lambda pairs: pairs * 2), st.integers(1, 200))
def test_a_cut_lasts(max_turns: int, size: int) -> None:
    sizes = [size] * (max_turns + 2)
    drop = cut(sizes, max_turns=max_turns, budget=10**9)
    assert len(sizes) - drop <= max_turns / 3 + 2


@settings(deadline=None)
@given(st.lists(st.integers(1, 300), min_size=2, max_size=60), st.integers(1, 5000))
def test_a_cut_for_room_leaves_half_of_it(sizes: list[int], budget: int) -> None:
    if cut(sizes, max_turns=1000, budget=budget):
        assert sum(sizes[cut(sizes, max_turns=1000, budget=budget) :]) <= budget / 2


@pytest.mark.parametrize(("max_turns", "kept"), [(0, 0), (1, 0), (2, 2), (8, 4), (16, 6), (24, 8)])
def test_a_third_stays(max_turns: int, kept: int) -> None:
    assert 26 - cut([1] * 26, max_turns=max_turns, budget=1000) == kept


# ---------------------------------------------------------------------------------------------------------- estimates


@settings(deadline=None)
@given(st.text(max_size=400))
def test_an_estimate_is_at_most_one_token_per_byte(text: str) -> None:
    assert (0 if not text else 1) <= estimate(text) <= max(1, len(text.encode("utf-8", "replace"))) or not text


@settings(deadline=None)
@given(st.text(max_size=200), st.text(max_size=200))
def test_more_text_is_never_fewer_tokens_by_much(one: str, other: str) -> None:
    assert estimate(one + other) >= max(estimate(one), estimate(other)) - 0.45 * len(one + other) - 2
    assert estimate(one + other) <= estimate(one) + estimate(other) + 0.4 * len(one + other) + 1


@pytest.mark.parametrize(
    ("text", "tokens"),  # counted with GPT-4's vocabulary (cl100k)
    [
        ("Could you please turn on the lights in the living room and tell me what the temperature is outside?", 20),
        ("Könntest du bitte das Licht im Wohnzimmer einschalten und mir sagen, wie warm es draußen ist?", 25),
        ("请打开客厅的灯，并告诉我现在外面的温度是多少。另外提醒我明天早上给妈妈打电话。", 49),
        ("거실 불을 켜 주시고 지금 바깥 기온이 얼마인지 알려 주세요.", 33),
        ("Παρακαλώ άναψε τα φώτα στο σαλόνι και πες μου τι θερμοκρασία έχει έξω τώρα.", 70),
        ("😀😂🎉👍🏽❤️🔥🏳️‍🌈👨‍👩‍👧‍👦", 46),
    ],
)
def test_estimates_are_near_and_not_below_the_truth(text: str, tokens: int) -> None:
    assert tokens <= estimate(text) <= 1.6 * tokens


# -------------------------------------------------------------------------------------------------------- calibration

TRUE_RATIOS = st.floats(0.55, 3.0)
TEXTS = st.text(alphabet="abcdefghij klmno,.!?äß", min_size=1, max_size=400)
WORDS = (Message("user", "word " * 100),)
PICTURE = (Message("system", "You are a helpful assistant."), Message("user", "What is this?", ("aGk=",)))


@settings(deadline=None)
@given(TRUE_RATIOS, st.lists(TEXTS, min_size=30, max_size=30))
def test_calibration_ends_above_the_truth_and_wastes_little(ratio: float, texts: list[str]) -> None:
    ledger = Ledger()
    estimated = measured = 0
    for text in texts:
        messages = [Message("system", "You are a helpful assistant."), Message("user", text)]
        estimated, measured = ledger.tokens("m", messages), round(Ledger().tokens("m", messages) * ratio)
        ledger.calibrate("m", messages, measured)
    assert measured <= estimated <= 1.15 * measured + 2


def test_what_one_model_counts_is_not_applied_to_another() -> None:
    ledger, messages = Ledger(), [Message("user", "How warm is it outside?")]
    before = ledger.tokens("b", messages)
    ledger.calibrate("a", messages, 3 * before)
    assert ledger.tokens("b", messages) == before
    assert ledger.tokens("a", messages) >= 3 * before


def test_the_larger_count_holds_for_a_while() -> None:
    ledger = Ledger()
    ledger.calibrate("m", WORDS, 2 * ledger.tokens("m", WORDS))
    high = ledger.tokens("m", WORDS)
    ledger.calibrate("m", WORDS, high // 2)
    assert high * 0.85 < ledger.tokens("m", WORDS) < high


def test_answers_side_by_side_teach_no_more_than_one() -> None:
    ledger = Ledger()
    before = ledger.tokens("m", WORDS)
    for _ in range(5):  # all of them were sent before the first was counted
        ledger.calibrate("m", WORDS, 2 * before)
    assert ledger.tokens("m", WORDS) <= 2 * before * window.MARGIN + 1


@pytest.mark.parametrize("actual", [0.0, 0.9, 1.0, 1.5])
@pytest.mark.parametrize("messages", [WORDS, PICTURE])
def test_a_refusal_makes_the_next_prompt_smaller(messages: tuple[Message, ...], actual: float) -> None:
    ledger = Ledger()
    before = ledger.tokens("m", messages)
    ledger.overflowed("m", messages, round(actual * before) or None)
    assert ledger.tokens("m", messages) >= before * max(1.2, actual)


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from([WORDS, PICTURE]), st.integers(-5, 10**6), st.booleans()), max_size=30),
)
def test_no_count_of_a_server_spoils_the_ledger(counts: list[tuple[tuple[Message, ...], int, bool]]) -> None:
    ledger = Ledger()
    for messages, measured, refused in counts:
        (ledger.overflowed if refused else ledger.calibrate)("m", messages, measured)
    raw = Ledger().tokens("m", WORDS)
    assert raw * window.LEAST <= ledger.tokens("m", WORDS) <= raw * window.MOST + 1
    image = ledger.tokens("m", PICTURE) - ledger.tokens("m", [message._replace(images=()) for message in PICTURE])
    assert window.LEAST_IMAGE - 1 <= image <= window.MOST_IMAGE + 1
    assert ledger.least("m", PICTURE) <= ledger.tokens("m", PICTURE)


def test_models_named_by_strangers_do_not_pile_up() -> None:
    ledger = Ledger()
    for number in range(1000):
        ledger.calibrate(f"model-{number}", WORDS, 1200)
    assert len(ledger._weights) == window.MAX_MODELS


@pytest.mark.parametrize("measured", [1600, 4000])
def test_what_a_picture_takes_is_learnt_and_says_nothing_of_text(measured: int) -> None:
    ledger, text, fresh = Ledger(), [Message("user", "word " * 900)], Ledger()
    ledger.calibrate("m", PICTURE, measured)
    assert ledger.tokens("m", text) == fresh.tokens("m", text)
    assert measured <= ledger.tokens("m", PICTURE) <= 1.05 * measured
    two = [*PICTURE, Message("user", "And this?", ("aGk=",))]
    assert ledger.tokens("m", two) >= 1.9 * measured
    assert ledger.least("m", two) == fresh.tokens("m", two), "the next one may be small"


def test_text_says_nothing_of_pictures() -> None:
    ledger, fresh = Ledger(), Ledger()
    ledger.calibrate("m", WORDS, 5 * fresh.tokens("m", WORDS))
    words = [message._replace(images=()) for message in PICTURE]
    assert ledger.tokens("m", PICTURE) - ledger.tokens("m", words) == window.PER_IMAGE


def test_small_pictures_are_believed_slowly() -> None:
    ledger, sizes = Ledger(), list[int]()
    for _ in range(30):
        sizes.append(ledger.tokens("m", PICTURE))
        ledger.calibrate("m", PICTURE, 300)
    assert sizes[1] > 0.75 * sizes[0]
    assert 300 <= sizes[-1] <= 330
    assert ledger.least("m", PICTURE) == ledger.tokens("m", PICTURE)


def test_the_servers_count_of_an_answer_holds_but_not_its_thoughts() -> None:
    ledger, text = Ledger(), "It is nineteen degrees outside."
    estimated = ledger.turn("m", Turn("assistant", text, NOW))
    assert ledger.turn("m", Turn("assistant", text, NOW, tokens=4)) == 4 + window.PER_MESSAGE < estimated
    assert ledger.turn("m", Turn("assistant", text, NOW, tokens=900)) == estimated


def test_pictures_count() -> None:
    ledger = Ledger()
    assert ledger.tokens("m", [Message("user", "See", ("aGk=",))]) > ledger.tokens("m", [Message("user", "See")]) + 200


# ------------------------------------------------------------------------------------------- what the server rereads


def words(count: int, mark: str) -> str:
    return " ".join(f"{mark}{number}" for number in range(count))


def tokenised(messages: tuple[Message, ...]) -> list[str]:
    """A token per word, and five around each message, as ChatML has them."""
    tokens: list[str] = []
    for message in messages:
        tokens += ["<|im_start|>", message.role, "\n", *message.content.split(), "<|im_end|>", "\n"]
    return [*tokens, "<|im_start|>", "assistant", "\n"]


def reread(max_turns: int, *, clock: bool) -> float:
    """Return the share of prompt tokens, over 30 turns, that a server with a prefix cache reads again."""
    clock_words = " ".join(["{{ now.isoformat() }}", *["fact"] * 14])
    agent = Agent("general", words(200, "s"), context=clock_words if clock else None)
    turns: tuple[Turn, ...] = ()
    cache: list[str] = []
    sent = evaluated = 0
    for number in range(30):
        request = Request(message=words(40, f"u{number}-"))
        now = NOW.replace(minute=number)
        facts = prompt.turn_facts(agent, request, now=now, conversation_id="k")
        messages = prompt.build(agent, turns, request, facts)
        tokens = tokenised(messages)
        common = next(
            (at for at, pair in enumerate(zip(cache, tokens, strict=False)) if pair[0] != pair[1]), len(cache)
        )
        sent += len(tokens)
        evaluated += len(tokens) - min(common, len(tokens) - 1)
        reply = words(80, f"a{number}-")
        cache = [*tokens, *reply.split(), "<|im_end|>", "\n"]
        turns = (*turns, Turn("user", prompt.user_text(request), now), Turn("assistant", reply, now))
        turns = turns[cut([0] * len(turns), max_turns=max_turns, budget=0) :]
    return evaluated / sent


def test_little_is_read_again_even_with_a_clock() -> None:
    assert reread(16, clock=True) <= 0.25


def test_next_to_nothing_is_read_again_without_a_clock() -> None:
    assert reread(24, clock=False) <= 0.10


def test_the_window_always_has_room_for_the_answer() -> None:
    """A server whose tokens are smaller than we think must not get a prompt that does not fit, once it has counted."""
    ledger, room, truth = Ledger(), 3000, 1.9
    agent, turns, worst = Agent("general", words(100, "s")), list[Turn](), 0.0
    for number in range(60):
        request = Request(message=words(30, f"question{number}-"))
        bare = ledger.tokens("m", prompt.build(agent, (), request))
        sizes = [ledger.turn("m", turn) for turn in turns]
        turns = turns[cut(sizes, max_turns=1000, budget=room - bare) :]
        messages = prompt.build(agent, turns, request)
        real = int(Ledger().tokens("x", messages) * truth)
        if number:
            worst = max(worst, real / room)
        ledger.calibrate("m", messages, real)
        turns += [Turn("user", request.message, NOW), Turn("assistant", words(40, f"answer{number}-"), NOW)]
    assert 0.8 <= worst <= 1.0
