"""What a reply sounds like: text for ears, made from text for eyes. Pure, and linear in the length of the text."""

import re

PASSES = 4
"""One pass is enough for what models write; a text that hides markup in markup is then stripped of every sign."""

# Patterns are plain strings, which `re` compiles and keeps when they are first used: most replies need none of them.
_EMOJI = (
    "\U0001f000-\U0001faff\U000e0020-\U000e007f\u2600-\u27bf\u2b00-\u2bff\u231a\u231b\u23cf\u23e9-\u23fa"
    "\u25aa\u25ab\u25b6\u25c0\u25fb-\u25fe\u2934\u2935\u3030\u303d\u3297\u3299"
)
_STOPS = ".!?:;,…。！？：；，、؟۔।"
_QUOTES = "\"'”’“»«›)]）」』"
_QUESTIONS = "?？﹖؟⁇⁈⁉‽⸮՞፧꘏꛷𑅃\u037e"

_LINKS = {
    "a link": "the a of to and in is for it you this see here more with on can at my your source visit open",
    "ein Link": "der die das und ist zu den von mit ein eine auf für sie ich nicht hier mehr siehe unter im dem"
    " mein dein tipp quelle seite webseite adresse gibt es kannst du schau bitte lies öffne",
    "un lien": "le la les et est de des un une pour vous sur dans voici avec voir du ce plus ici mon ton adresse lien"
    " conseil voyez lisez",
    "un enlace": "el la los las y es de un una para en con ver aquí más del puede este esta mi tu fuente página consejo"
    " enlace mira visita",
    "un link": "il lo la gli e di che per con una del qui più è si da mio tuo fonte pagina consiglio ecco vedi",
    "een link": "de het een en van is op voor met dat hier meer zie mijn jouw bron pagina bekijk kijk",
}
"""How one says it, and words that tell the language by being common."""

_PLAIN = r"[^\W_](?:[^\W_]|[ ,;:!?'’\"“”()%°€+=-]|\.(?!\.))*"
_SHOWN_AS_EMOJI = "\u00a9\u00ae\u203c\u2049\u2122\u2139\u2194-\u2199\u21a9\u21aa\u2328\u24c2"
"""Signs of a text, but no longer before U+FE0F."""
_EMOJIS = rf"[{_SHOWN_AS_EMOJI}]\ufe0f|[{_EMOJI}][{_EMOJI}\u200d\ufe0f\u20e3]*|[\ufe0f\u20e3]"
_SPECIAL = r"<\|[^<>|]*\|>"
_ADDRESS = r"<((?:https?|ftp)://[^<>\s]*)>"
_BREAK = (
    r"(?i)</?(?:br|hr|p|li|ul|ol|d[dlt]|div|table|caption|t[rdh]|h[1-6]|details|summary|blockquote|section)"
    r"(?![a-z0-9])[^<>]*>(?=[^\W_]|<[a-z])"
)
_ENTITY = r"&(?:amp;)*(#\d{1,7}|#[xX][\da-fA-F]{1,6}|[A-Za-z][A-Za-z\d]{1,30});"
_MAILTO = r"(?i)(?<![a-z])mailto:(?=\S)"
_MAIL = r"<([^<>\s@]+@[^<>\s@]+)>"
_TAG = r"</?[A-Za-z][\w:-]*\s*/?>|</?[A-Za-z][^<>\n=]*=[^<>\n]*>|(?<![^\W_])</?[A-Za-z][^<>\n]*>"
"""`x<y and z>w` is none: it begins within a word, and is neither short nor has it attributes."""
_FOOTNOTE = r"\[\^[^\[\]\s]*\]"
_ALERT = r"\[![A-Za-z]+\]"
"""GitHub's `> [!NOTE]`."""
_LINK = r"!?\[([^\[\]]*)\](?:\([^()\n]*(?:\([^()\n]*\)[^()\n]*)?\)|\[[^\[\]\n]*\])"
_STOP_URL = r"\s<>\"”»()\u3000-\u9fff\uff00-\uffef"
_DOMAINS = "com|org|net|io|dev|ai|app|edu|gov|info|eu|de|at|ch|fr|be|es|it|nl|uk|us|ca|cn|jp"
_URL = (
    rf"(?i)(?:https?://|ftp://|(?<![a-z0-9])www\.|(?<![\w@./-])(?:[a-z0-9-]{{1,63}}\.){{1,4}}(?:{_DOMAINS})/)"
    rf"(?=[^{_STOP_URL}])(?:[^{_STOP_URL}]|\([^{_STOP_URL}]*\))*(?<![.,;:!?'’*_`\]])"
)
_MULTIPLIED = (
    r"(?:(?<![\w*])(?:[A-Za-z]|\d\w*)|\))"
    r"(?:\*(?:(?:[A-Za-z]|\d\w*|(?<=\d\*)\w+|pi)(?=\*[A-Za-z0-9(]|[^\w*]|\Z)|\((?!\*)))+"
)
_TIMES = (
    r"(?<=\d) ?\* ?(?=\d)"
    r"|(?:(?<=[\d)])|(?<![^\W_]{2})(?<=[^\W_])) \* (?=\(|(?:[^\W\d_]|\d+)(?![^\W_]))"
)
"""`the * key` is no product."""
_POWER = r"(?<=[\d)])\*\*(?=\d)|(?<=[\d)]) \*\* (?=\d)|(?<![^\W_][^\W_])(?<=[A-Za-z])\*\*(?=\d)"
_COMMENT = r"<!--.*?(?:-->|\Z)"
_FORMULA = (
    r"\\\(([^\n]{1,200}?)\\\)|(?<![\w$\\])\$(?! )([^$\n]{1,200}?)(?<! )\$(?![\w$])"
    r"|(?<![\w$\\])\$\$(?!\$)([^$\n]{1,200}?)\$\$(?![\w$])"
)
_IN_FORMULA = r"\\[A-Za-z]|[\^_={}]|\A[A-Za-z]'?\Z"
_NUMBER = rf"{_IN_FORMULA}|\A\s*[\d.,]+\s*\Z"
_WORDS = r"\\(?:boxed|text|textbf|mathrm|mathbf|operatorname)\{([^{}]*)\}"
_FRACTION = r"\\[dt]?frac\{([^{}]*)\}\{([^{}]*)\}"
_COMMAND = r"\\([A-Za-z]+)"
_COMMANDS = {"cdot": "×", "times": "×", "div": "÷", "pm": "±", "leq": "≤", "le": "≤", "geq": "≥", "ge": "≥", "neq": "≠",
             "approx": "≈", "sqrt": "√", "infty": "∞", "to": "→", "rightarrow": "→", "pi": "π", "left": "", "right": "",
             "quad": " ", "degree": "°", "circ": "°"}  # fmt: skip
_POWERS = {"2": "²", "3": "³"}
_WIDE = "[\u3040-\u30ff\u4e00-\u9fff]"
_STRIKE = r"~~+"
_ESCAPE = r"\\(?=[!-/:-@\[-`{-~])"
_HARD_BREAK = r"(?m)\\ *$"
_UNDERLINE = r"(?<![^\W_])_+|_+(?![^\W_])"
_ACTIVE = r"(?i)&#?[a-z\d]+;|[<>\[*`\\_$]|~~|://|www\."
_SIGNS = r"(?i)[&<>\[\]*`~|\\#_+•=$-]|://|www\."
_ASKED = rf"[{_QUESTIONS}][{_QUESTIONS}!！\s\"'“”‘’«»‹›„)\]}}）」』*_`~\u200d\ufe0f{_EMOJI}]*\Z"
_ASKED_IN_GREEK = r"[\u0370-\u03ff\u1f00-\u1fff];[\s\"'”’»*_]*\Z"


def speakable(markdown: str, *, context: str = "") -> str:
    """Return a reply as one line to be read aloud.

    Without Markdown, tables, code blocks, formulas that stand by themselves, emoji, thinking and tags; an address
    becomes "a link" in the language of the text and of `context`, the text before it. A line that comes out is no
    Markdown any more: `# begins a comment` in a code span keeps its sign, so do not put it in again.
    """
    text = markdown.strip()
    if _is_plain(text):
        return text
    from piagent_daemon.markup import Reader  # noqa: PLC0415 (only where there is markup)

    found = _Blocks()
    reader = Reader(found)
    reader.feed(text)
    reader.close()
    found.end()
    return cleaned(_joined(_inline("\n".join(found.blocks), context).split("\n")), context=context)


def cleaned(text: str, *, context: str = "") -> str:
    """Return running text, of which the lines were looked at, as one line without markup."""
    text = text.strip()
    if _is_plain(text):
        return text
    for _ in range(PASSES):
        before, text = text, _joined([_inline(text, context)])
        if text == before or not re.search(_ACTIVE, text):
            return text
    return _joined([_inline(re.sub(_SIGNS, " ", text), context)])


def expects_reply(text: str) -> bool:
    """Tell whether a text ends in a question mark of any script; quotes, emoji and markup after it do not matter."""
    tail = text.rstrip()[-80:]
    return bool(re.search(_ASKED, tail) or re.search(_ASKED_IN_GREEK, tail))


def stopped(line: str) -> str:
    """Return a line with a stop at its end, so that a voice pauses there."""
    last = line.rstrip(_QUOTES)[-1:]
    return line if last in _STOPS else f"{line}{'。' if re.match(_WIDE, last) else '.'}"


def link_in(text: str) -> str:
    """Return how one says "a link" in the language of `text`."""
    if re.search("[\u3040-\u30ff]", text):
        return "リンク"
    if re.search("[\u4e00-\u9fff]", text):
        return "一个链接"
    words = set(re.findall(r"[^\W\d_]+", re.sub(_URL, "", text).lower()))
    found = {link: len(words.intersection(common.split())) for link, common in _LINKS.items()}
    return max(found, key=lambda link: found[link])


def _is_plain(text: str) -> bool:
    return bool(re.fullmatch(_PLAIN, text)) and "  " not in text and "www." not in text.lower()


def _inline(text: str, context: str) -> str:
    """Take markup out of running text; a pattern is only tried where its sign is there."""
    if "&" in text:
        text = re.sub(_ENTITY, _meant, text)
    if not text.isascii():
        text = re.sub(_EMOJIS, "", text)
    if "\\" in text or "$" in text:
        text = re.sub(_ESCAPE, "", re.sub(_HARD_BREAK, "", _without_formulas(text)))
    if "<" in text:
        text = re.sub(_COMMENT, " ", text)
        text = re.sub(_MAIL, r"\1", re.sub(_ADDRESS, r"\1", re.sub(_SPECIAL, "", text)))
        text = re.sub(_TAG, "", re.sub(_BREAK, " ", text))
    if "[" in text:
        text = re.sub(_LINK, r"\1", re.sub(_ALERT, "", re.sub(_FOOTNOTE, "", text)))
    if "@" in text:
        text = re.sub(_MAILTO, "", text)
    if "/" in text or "www." in text.lower():
        text = re.sub(_URL, link_in(context + text), text)
    if "*" in text:
        text = re.sub(_POWER, "^", text)
        text = re.sub(_MULTIPLIED, lambda found: found[0].replace("*", " × "), text)
        text = re.sub(_TIMES, " × ", text).replace("*", "")
    if "_" in text:
        text = re.sub(_UNDERLINE, "", text)
    return re.sub(_STRIKE, "", text.replace("`", ""))


def _meant(entity: re.Match[str]) -> str:
    """Return the sign that an entity of HTML stands for; what is none stays."""
    import html  # noqa: PLC0415 (few replies have entities, and the table is large)

    sign = html.unescape(f"&{entity[1]};")
    if sign.endswith(";"):
        return entity[0]
    return sign if sign.isprintable() else " " * sign.isspace()


def _without_formulas(text: str) -> str:
    """Make formulas in running text speakable; `$5 and $10` is money."""
    text = re.sub(_FORMULA, lambda found: _formula(found[1] or found[2] or found[3], found[0]), text)
    text = re.sub(r"\\(?:cdot|times)(?![A-Za-z])", "×", text)
    return re.sub(_WORDS, r"\1", text)


def _formula(inner: str, whole: str) -> str:
    if whole[0] == "$" and not re.search(_NUMBER if whole[1] == "$" else _IN_FORMULA, inner):
        return whole
    inner = re.sub(_FRACTION, r"\1 / \2", re.sub(_WORDS, r"\1", inner))
    inner = re.sub(_COMMAND, lambda found: _COMMANDS.get(found[1], found[1]), inner)
    inner = re.sub(r"\^\{?([23])\}?(?!\d)", lambda found: _POWERS[found[1]], inner)
    return re.sub(r"[\\{}_]", "", inner).replace("*", " × ").strip()


def _joined(blocks: list[str]) -> str:
    """Join blocks to one line; a block that ends without a stop gets one, so that the voice pauses there."""
    lines = [line for block in blocks if (line := " ".join(block.split()))]
    return " ".join([*map(stopped, lines[:-1]), *lines[-1:]])


class _Blocks:
    """Collects the paragraphs, headings and list items of a whole text, each as one line."""

    def __init__(self) -> None:
        self.blocks: list[str] = []
        self._parts: list[str] = []
        self._line = 0

    def begin(self, text: str) -> None:
        self._line = len(self._parts)
        self._parts.append(text)

    def add(self, text: str) -> None:
        self._parts.append(text)

    def end(self) -> None:
        if self._parts:
            self.blocks.append("".join(self._parts).replace("\n", " "))
            self._parts.clear()
            self._line = 0

    def table(self) -> None:
        if any("|" in part for part in self._parts[self._line :]):
            del self._parts[self._line :]

    def unsaid(self) -> None:
        self._parts.clear()
        self.blocks.clear()
