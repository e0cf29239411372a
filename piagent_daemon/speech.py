"""What a reply sounds like: text for ears, made from text for eyes. Pure, and linear in the length of the text."""

import re

PASSES = 4
"""One pass is enough for what models write; a text that hides markup in markup is then stripped of every sign."""

# Patterns are plain strings, which `re` compiles and keeps when they are first used: most replies need none of them.
_THOUGHTS = (("<think>", "</think>"), ("<thinking>", "</thinking>"), ("<reasoning>", "</reasoning>"), ("<!--", "-->"))
_EMOJI = (
    "\U0001f000-\U0001faff\U000e0020-\U000e007f\u2600-\u27bf\u2b00-\u2bff\u231a\u231b\u23cf\u23e9-\u23fa"
    "\u25aa\u25ab\u25b6\u25c0\u25fb-\u25fe\u2934\u2935\u3030\u303d\u3297\u3299"
)
_STOPS = ".!?:;,…。！？：；，、؟۔।"
_QUOTES = "\"'”’“»«›)]）」』"
_QUESTIONS = "?？﹖؟⁇⁈⁉‽⸮՞፧꘏꛷𑅃\u037e"

_LINKS = {
    "a link": "the a of to and in is for it you this see here more with on can at",
    "ein Link": "der die das und ist zu den von mit ein eine auf für sie ich nicht hier mehr siehe unter im dem",
    "un lien": "le la les et est de des un une pour vous sur dans voici avec voir du ce plus ici",
    "un enlace": "el la los las y es de un una para en con ver aquí más del puede este esta",
    "un link": "il lo la gli e di che per con una del qui più è si da",
    "een link": "de het een en van is op voor met dat hier meer zie",
}
"""How one says it, and words that tell the language by being common."""

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
_BREAK = r"(?i)</?(?:br|p|li|div|tr|td|h[1-6])(?![a-z0-9])[^<>]*>(?=[^\W_])"
_ENTITY = r"&(?:amp;)*(amp|nbsp|lt|gt|quot|apos|#39);"
_ENTITIES = {"amp": "&", "nbsp": " ", "lt": "<", "gt": ">", "quot": '"', "apos": "'", "#39": "'"}
_MAIL = r"<([^<>\s@]+@[^<>\s@]+)>"
_TAG = r"</?[A-Za-z][\w:-]*\s*/?>|</?[A-Za-z][^<>]*=[^<>]*>|(?<![^\W_])</?[A-Za-z][^<>]*>"
"""`x<y and z>w` is none: it begins within a word, and is neither short nor has it attributes."""
_FOOTNOTE = r"\[\^[^\[\]\s]*\]"
_LINK = r"!?\[([^\[\]]*)\](?:\([^()\n]*(?:\([^()\n]*\)[^()\n]*)?\)|\[[^\[\]\n]*\])"
_URL = (
    r"(?i)(?:https?://|ftp://|(?<![a-z0-9])www\.)[^\s<>\"”»\u3000-\u9fff\uff00-\uffef]*"
    r"[^\s<>\"”»).,;:!?'’*_`\]\u3000-\u9fff\uff00-\uffef]"
)
_TIMES = r"(?<=\d) ?\* ?(?=\d)"
_STRIKE = r"~~+"
_ESCAPE = r"\\(?=[!-/:-@\[-`{-~])"
_UNDERLINE = r"(?<![^\W_])_+|_+(?![^\W_])"
_ACTIVE = r"(?i)&(?:amp|nbsp|lt|gt|quot|apos|#39);|[<>\[*`|\\#_]|~~|\A[-+•=]|://|www\."
_SIGNS = r"(?i)[<>\[\]*`~|\\#_+•=-]|://|www\."
_ASKED = rf"[{_QUESTIONS}][{_QUESTIONS}!！\s\"'“”‘’«»‹›„)\]}}）」』*_`~\u200d\ufe0f{_EMOJI}]*\Z"
_ASKED_IN_GREEK = r"[\u0370-\u03ff\u1f00-\u1fff];[\s\"'”’»*_]*\Z"


def speakable(markdown: str, *, context: str = "") -> str:
    """Return a reply as one line to be read aloud.

    Without Markdown, tables, code blocks, emoji, thinking and tags; an address becomes "a link" in the language of the
    text and of `context`, the text before it. Doing it twice changes nothing more.
    """
    text = markdown.strip()
    if re.fullmatch(_PLAIN, text) and "://" not in text and "  " not in text and "www." not in text.lower():
        return text
    for _ in range(PASSES):
        before, text = text, _once(text, context)
        if text == before or not re.search(_ACTIVE, text):
            return text
    return _once(re.sub(_SIGNS, " ", text), context)


def expects_reply(text: str) -> bool:
    """Tell whether a text ends in a question mark of any script; quotes, emoji and markup after it do not matter."""
    tail = text.rstrip()[-80:]
    return bool(re.search(_ASKED, tail) or re.search(_ASKED_IN_GREEK, tail))


def stopped(line: str) -> str:
    """Return a line with a stop at its end, so that a voice pauses there."""
    return line if line.rstrip(_QUOTES)[-1:] in _STOPS else f"{line}."


def link_in(text: str) -> str:
    """Return how one says "a link" in the language of `text`."""
    if re.search("[\u3040-\u30ff]", text):
        return "リンク"
    if re.search("[\u4e00-\u9fff]", text):
        return "一个链接"
    words = set(re.findall(r"[^\W\d_]+", re.sub(_URL, "", text).lower()))
    found = {link: len(words.intersection(common.split())) for link, common in _LINKS.items()}
    return max(found, key=lambda link: found[link])


def _once(text: str, context: str) -> str:
    for opening, closing in _THOUGHTS:
        text = _without(text, opening, closing)
    text = "\n".join(_blocks(re.sub(_BLANK, "\n\n", text)))
    return _joined(_inline(text, context).split("\n"))


def _inline(text: str, context: str) -> str:
    """Take markup out of running text; a pattern is only tried where its sign is there."""
    if not text.isascii():
        text = re.sub(_EMOJIS, "", text)
    if "\\" in text:
        text = re.sub(_ESCAPE, "", text)
    if "&" in text:
        text = re.sub(_ENTITY, lambda found: _ENTITIES[found[1]], text)
    if "<" in text:
        text = re.sub(_MAIL, r"\1", re.sub(_ADDRESS, r"\1", re.sub(_SPECIAL, "", text)))
        text = re.sub(_TAG, "", re.sub(_BREAK, " ", text))
    if "[" in text:
        text = re.sub(_LINK, r"\1", re.sub(_FOOTNOTE, "", text))
    if "://" in text or "www." in text.lower():
        text = re.sub(_URL, link_in(context + text), text)
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
        elif mark and not (lead == "`" and "`" in line[mark.end() :]):
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
    return " ".join([*map(stopped, lines[:-1]), *lines[-1:]])
