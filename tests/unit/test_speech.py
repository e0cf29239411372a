"""Text for ears."""

import re
import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from piagent_daemon.speech import cleaned, expects_reply, speakable
from tests.fakes.hostile import WORDS


@pytest.mark.parametrize(
    ("written", "spoken"),
    [
        ("It is 21 °C in the living room.", "It is 21 °C in the living room."),
        ("  Yes.\n", "Yes."),
        ("", ""),
        ("**Hi** _there_, __you__ *two* ~~old~~ `now`", "Hi there, you two old now"),
        ("sensor_value is 3 * 4 = 12, 10 - 3 = 7, -5 °C, ~5 min, C# and #5, a < b", None),
        ("The\nlights are\non.", "The lights are on."),
        ("# Shopping\n- milk\n- **eggs**\n\nThat is all", "Shopping. milk. eggs. That is all"),
        ("First\n1. one\n2) two,\n- [x] done\n- [ ] open", "First. 1. one. 2) two, done. open"),
        ("> quoted\n> twice", "quoted. twice"),
        ("Title\n=====\ntext\n\n---\n\n* * *\nend.", "Title. text. end."),
        ("See [the docs](https://x.y/a_(b)?c=1), ![a cat](c.png) or [this][1].", "See the docs, a cat or this."),
        ("Go to https://x.y/z?a=1. Or <http://a.b>, www.c.d!", "Go to a link. Or a link, a link!"),
        ("[https://x.y](https://x.y)", "a link"),
        ("Facts[^1] are list[0].", "Facts are list[0]."),
        ("Run\n```sh\nrm -rf *\n```\nor not", "Run. or not"),
        ("Run\n~~~~\n~~~\nx\n~~~~\nend\n```\nnever closed", "Run. end"),
        ("Prices\n\n| a | b |\n|---|:-:|\n| 1 | 2 |\n\nDone.", "Prices. Done."),
        ("a | b\n--- | ---\n1 | 2\nDone.", "Done."),
        ("Either this | that.", "Either this | that."),
        ("<think>He asks\n\nme.</think>Hello<br/>!", "Hello!"),
        ("He asks me.</think> Hello.", "Hello."),
        ("Hello.<think>Now", "Hello."),
        ("<|im_start|>Hello<|im_end|> <b>you</b><!-- no -->", "Hello you"),
        ("Done 😀👨‍👩‍👧 🇩🇪! 1️⃣ ☀️ ✅", "Done ! 1"),
        ("\\*not\\* emphasis \\#", "not emphasis #"),
        ("one  \ntwo", "one. two"),
        ("one\\\ntwo\\", "one. two"),
        ("> [!NOTE]\n> It is on.\n\n> [!tip] Try it.", "It is on. Try it."),
        ("ℹ️ Note ‼️ ⌨️ ↩️ ↔️ Ⓜ️ ™️ done", "Note done"),
        ("ℹ Note ↔ © 2024 ™", "ℹ Note ↔ © 2024 ™"),
        ("<mailto:a@b.de> or mailto:c@d.de or [mail](mailto:e@f.de)", "a@b.de or c@d.de or mail"),
        (
            "10 * x + 2 * (a * b), (1) * 2, the * key, a *b* c, 3*x",
            "10 × x + 2 × (a × b), (1) × 2, the key, a b c, 3 × x",
        ),
        ("See **https://x.y/Foo_(bar)**. Or github.com/foo/.", "See a link. Or a link."),
        ("$\\frac{1}{2}$ and $x^{10} \\le 5$ cost $5 or 10$", "1 / 2 and x^10 ≤ 5 cost $5 or 10$"),
        ("\\[ never closed", "[ never closed"),
        ("    Not code.\n\n    code = 1", "Not code."),
        (
            "Here:\n\n    Autumn moonlight,\n    a worm digs silently.\n\nOk?",
            "Here: Autumn moonlight, a worm digs silently. Ok?",
        ),
        ("<!-- a --> b --> c", "b --> c"),
        ("``x`` and ```` ``` ```` too", "x and too"),
        ("نعم، می‌خواهم क्‍ष 東京は晴れです。", "نعم، می‌خواهم क्‍ष 東京は晴れです。"),
    ],
)
def test_what_is_spoken(written: str, spoken: str | None) -> None:
    expected = written.replace(" * ", " × ") if spoken is None else spoken
    assert speakable(written) == expected


@pytest.mark.parametrize(
    "text",
    ["Shall I?", 'He said: "Shall I?"', "Shall I? 🙂", "**Shall I?**", "Really?!", "¿Qué?", "何ですか？", "هل تريد؟",
     "Τι θέλεις;", "Τι θέλεις\u037e", "Ինչո՞ւ՞", "ለምን፧", "Shall I? (Or not?)", "Oui ?\n", "«Да?»", "_Well_?_ "],
)  # fmt: skip
def test_a_question_expects_a_reply(text: str) -> None:
    assert expects_reply(text)


@pytest.mark.parametrize(
    "text", ["", " ", "Yes.", "Why? Because.", "Done;", "?x", "What? 5", "🙂", "Ναι.", "a?b", "Is it? [yes"]
)
def test_a_statement_does_not(text: str) -> None:
    assert not expects_reply(text)


LINES = ["\n", "```\n", "| a |\n", "|-|-|\n", "- ", "1. "]
SIGNS = st.sampled_from([*"&;*_`~#<>[]()|\\-+=!:. a1😀\u200d\ufe0f", *WORDS, *LINES])


@given(st.text() | st.lists(SIGNS, max_size=40).map("".join))
@example("ht😀tps://x.y")
@example("<th<b>ink>x")
@example("\\\\\\[a](b)")
@example("~*~")
def test_any_text_is_spoken_without_markup(text: str) -> None:
    spoken = speakable(text)
    assert cleaned(spoken) == spoken
    assert "\n" not in spoken
    assert spoken == spoken.strip()
    assert not re.search(r"[*`😀]|~~|<think>|</think>|<!--|https?://\w|\[\w*\]\(\w*\)|<[a-z]+>", spoken)
    expects_reply(text)


@pytest.mark.parametrize(
    ("text", "spoken"),
    [
        ("if x<y and z>w then go", "if x<y and z>w then go"),
        ("Write to <mail@example.com> now.", "Write to mail@example.com now."),
        ("H<sub>2</sub>O is <b class='x'>wet</b>.", "H2O is wet."),
        ("<details open>It is.</details>", "It is."),
        ('<a href="/?a=b&c=d" title = "A = B">Here</a> <img alt=x src=y/>it is.', "Here it is."),
        ("Tom &amp; Jerry&nbsp;run &lt;b&gt;here&lt;/b&gt;.", "Tom & Jerry run here."),
        ("5 &euro; &mdash; or 6&hellip; &#8211; it&#x2019;s &uuml;ber&shy;all.", "5 € — or 6… – it’s überall."),
        ("AT&T; R&D &notit; &#128512; &#10; &#xffffff; &amp;mdash; 3 &#42; 4", "AT&T; R&D &notit; \ufffd — 3 × 4"),
        ("<table><tr><th>A</th><th>B</th></tr></table>", "A B"),
        ("<details><summary>More</summary>It is.<hr>Good<br><b>night</b>.</details>", "More It is. Good night."),
        ("<reasoning>He wants tea.</reasoning>Tea is ready.", "Tea is ready."),
    ],
)
def test_what_is_a_tag_and_what_is_not(text: str, spoken: str) -> None:
    assert speakable(text) == spoken


@given(st.text(st.characters(codec=None)))
def test_any_character_at_all(text: str) -> None:
    assert cleaned(speakable(text)) == speakable(text)


def test_it_costs_next_to_nothing() -> None:
    start = time.process_time()
    for _ in range(1000):
        speakable("It is 21 degrees in the living room, and the window is open.")
    assert time.process_time() - start < 0.05
