"""What a reply sounds like: text for ears, made from text for eyes. Pure, and linear in the length of the text."""

import re

PASSES = 4
"""One pass is enough for what models write; a text that hides markup in markup is then stripped of every sign."""

# Patterns are plain strings, which `re` compiles and keeps when they are first used: most replies need none of them.
_THOUGHTS = (("<think>", "</think>"), ("<thinking>", "</thinking>"), ("<!--", "-->"))
_EMOJI = (
    "\U0001f000-\U0001faff\U000e0020-\U000e007f\u2600-\u27bf\u2b00-\u2bff\u231a\u231b\u23cf\u23e9-\u23fa"
    "\u25aa\u25ab\u25b6\u25c0\u25fb-\u25fe\u2934\u2935\u3030\u303d\u3297\u3299"
)
_STOPS = ".!?:;,…。！？：；，、؟۔।"
_QUESTIONS = "?？﹖؟⁇⁈⁉‽⸮՞፧꘏꛷𑅃\u037e"

_PLAIN = r"[^\W_](?:[^\W_]|[ ,;:!?'’\"“”()%°€$/+=-]|\.(?!\.))*"
_BLANK = r"\n\s*\n"
_FENCE = r"`{3,}|~{3,}"
_RULE = r"[-*_=\s]+"
_TABLE_RULE = r"[\s|:-]+"
_MARKERS = r"(?:(?:[-*+•]|>+|#{1,6})(?:\s+|$)|>|\[[ xX]\]\s)+"
_NUMBER = r"\d{1,9}[.)]\s"

_RULERS = frozenset("-*_=")
_TABLERS = frozenset("|:-")
_LEADS = frozenset("-*+•>#[")

_EMOJIS = rf"[{_EMOJI}][{_EMOJI}\u200d\ufe0f\u20e3]*|[\ufe0f\u20e3]"
_SPECIAL = r"<\|[^<>|]*\|>"
_ADDRESS = r"<((?:https?|ftp)://[^<>\s]*)>"
_TAG = r"</?[A-Za-z][^<>]*>"
_FOOTNOTE = r"\[\^[^\[\]\s]*\]"
_LINK = r"!?\[([^\[\]]*)\](?:\([^()\n]*(?:\([^()\n]*\)[^()\n]*)?\)|\[[^\[\]\n]*\])"
_URL = r"(?i)\b(?:https?://|ftp://|www\.)[^\s<>\"”»]*[^\s<>\"”»).,;:!?'’*_`\]]"
_TIMES = r"(?<=\d) ?\* ?(?=\d)"
_STRIKE = r"~~+"
_ESCAPE = r"\\(?=[!-/:-@\[-`{-~])"
_UNDERLINE = r"(?<![^\W_])_+|_+(?![^\W_])"
_ACTIVE = r"(?i)[<>\[*`|\\#_]|~~|\A[-+•=]|://|www\."
_SIGNS = r"(?i)[<>\[\]*`~|\\#_+•=-]|://|www\."
_ASKED = rf"[{_QUESTIONS}][{_QUESTIONS}!！\s\"'“”‘’«»‹›„)\]}}）」』*_`~\u200d\ufe0f{_EMOJI}]*\Z"
_ASKED_IN_GREEK = r"[\u0370-\u03ff\u1f00-\u1fff];[\s\"'”’»*_]*\Z"


def speakable(markdown: str) -> str:
    """Return a reply as one line to be read aloud.

    Without Markdown, tables, code blocks, emoji, thinking and tags; an address becomes "a link". Doing it twice changes
    nothing more.
    """
    text = markdown.strip()
    if re.fullmatch(_PLAIN, text) and "://" not in text and "  " not in text and "www." not in text.lower():
        return text
    for _ in range(PASSES):
        before, text = text, _once(text)
        if text == before or not re.search(_ACTIVE, text):
            return text
    return _once(re.sub(_SIGNS, " ", text))


def expects_reply(text: str) -> bool:
    """Tell whether a text ends in a question mark of any script; quotes, emoji and markup after it do not matter."""
    tail = text.rstrip()[-80:]
    return bool(re.search(_ASKED, tail) or re.search(_ASKED_IN_GREEK, tail))


def _once(text: str) -> str:
    for opening, closing in _THOUGHTS:
        text = _without(text, opening, closing)
    text = "\n".join(_blocks(re.sub(_BLANK, "\n\n", text)))
    return _joined(_inline(text).split("\n"))


def _inline(text: str) -> str:
    """Take markup out of running text; a pattern is only tried where its sign is there."""
    if not text.isascii():
        text = re.sub(_EMOJIS, "", text)
    if "\\" in text:
        text = re.sub(_ESCAPE, "", text)
    if "<" in text:
        text = re.sub(_TAG, "", re.sub(_ADDRESS, r"\1", re.sub(_SPECIAL, "", text)))
    if "[" in text:
        text = re.sub(_LINK, r"\1", re.sub(_FOOTNOTE, "", text))
    if "://" in text or "www." in text.lower():
        text = re.sub(_URL, "a link", text)
    if "*" in text:
        text = re.sub(_TIMES, " × ", text).replace("*", "")
    if "_" in text:
        text = re.sub(_UNDERLINE, "", text)
    return re.sub(_STRIKE, "", text.replace("`", ""))


def _without(text: str, opening: str, closing: str) -> str:
    """Cut out what stands between two tags; a tag without its other half cuts to that end of the text."""
    if opening not in text and closing not in text:
        return text
    start, kept = 0, []
    while (begin := text.find(opening, start)) >= 0:
        end = text.find(closing, begin)
        kept.append(text[start:begin])
        start = len(text) if end < 0 else end + len(closing)
    rest = " ".join([*kept, text[start:]])
    return rest[rest.rfind(closing) + len(closing) :] if closing in rest else rest


def _blocks(text: str) -> list[str]:
    """Return paragraphs, headings and list items, one string each; tables, rules and code blocks are left out."""
    blocks: list[str] = []
    paragraph: list[str] = []
    markers, number, fences = re.compile(_MARKERS), re.compile(_NUMBER), re.compile(_FENCE)
    rule, table_rule = re.compile(_RULE), re.compile(_TABLE_RULE)
    fence = ""
    table = False

    def close() -> None:
        if paragraph:
            blocks.append(" ".join(paragraph))
            paragraph.clear()

    for raw in text.split("\n"):
        line = raw.strip()
        lead = line[:1]
        mark = fences.match(line) if lead in {"`", "~"} else None
        if fence:
            fence = "" if mark and line.startswith(fence) and not line.strip(fence[0]) else fence
        elif mark:
            close()
            fence = mark[0]
        elif not line or (lead in _RULERS and rule.fullmatch(line)):
            close()
            table = False
        elif lead in _TABLERS and "|" in line and "-" in line and table_rule.fullmatch(line):
            if paragraph and "|" in paragraph[-1]:
                paragraph.pop()
            table = True
        elif lead == "|" or (table and "|" in line):
            close()
        else:
            table = False
            marker = markers.match(line) if lead in _LEADS else None
            if marker or (lead.isdigit() and number.match(line)):
                close()
            paragraph.append(line[marker.end() :] if marker else line)
            if marker and "#" in marker[0]:
                close()
    close()
    return blocks


def _joined(blocks: list[str]) -> str:
    """Join blocks to one line; a block that ends without a stop gets one, so that the voice pauses there."""
    lines = [line for block in blocks if (line := " ".join(block.split()))]
    ended = [line if line[-1] in _STOPS else f"{line}." for line in lines[:-1]]
    return " ".join([*ended, *lines[-1:]])
