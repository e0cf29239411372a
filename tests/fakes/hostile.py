"""Pieces that texts are made of which want to confuse whoever looks for markup in them."""

WORDS = (
    *("```", "<think>", "</think>", "<!--", "-->", "https://", "www.", "x.y", "[a](b)"),
    *("**", "Hm", "<b>", "$$", "$a_b$", "\\[ ", "\\]"),
)
