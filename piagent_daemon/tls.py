"""Whom TLS trusts, the same for broker and model server and in every Python."""

import ssl


def take_home_made(context: ssl.SSLContext) -> None:
    """Take the authorities that homes make for themselves; chain, dates and host names are verified as ever.

    Since 3.13 Python asks for extensions of RFC 5280 (key usage, authority key identifier) that the usual recipes leave
    out, mosquitto's own among them, and that other clients do without. Source: Python, `ssl.create_default_context`.
    """
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
