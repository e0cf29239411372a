"""Pieces that texts are made of which want to confuse whoever looks for markup in them."""

WORDS = (
    *("```", "<think>", "</think>", "<!--", "-->", "https://", "www.", "x.y", "[a](b)"),
    *("**", "Hm", "<b>", "$$", "$a_b$", "\\[ ", "\\]"),
)

PIECES = (
    *("a", "a ", "*", "_", "_a", "[", "![", "[a](", "[[]]", "<", "<a", "<|", "<t", "<think>", "</think>", "<!--", "`"),
    *("~", "|", "a|", "a|\n", "\n", "a\n", "-\n- a\n", "- ", "# ", "> ", "😀", "\u200d", "http://", "http://(", "www."),
    *("1*", "a*", "a*b", "\\", "\\[", "\\[ ", "\\(", "\\text{", "\\frac{", "1. ", "3. A", " ", "~~~\n", "a```", "(()"),
    *("?", "? ", ".", ". ", "a.", "a. ", "a.b.", "a.b/", "“", '"a. ', "。", "，", ",", "=", "$", "$$", "$$a", "$a$"),
    *("    a\n", "[1]: x\n", "[^1]: ", "a=", "= ", "&", "&amp;", "amp;", "&mdash;"),
    *("mailto:", "<p>", "\\ ", "ℹ️"),
)
"""What a text is a thousand times one of, that wants to take a reader's time."""

HEADS = (
    "<a",
    "</a ",
    "<a=",
    "<a@",
    "<https://",
    "<!--",
    "[",
    "![a](",
    "http://",
    "`",
    "$",
    "\\(",
    "\\text{",
    "1*(",
    "&",
)
"""What begins something that the same piece a thousand times may go on with, and never end."""
