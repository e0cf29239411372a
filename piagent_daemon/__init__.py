"""piagent: the assistant on a home's message bus."""

from typing import Final

__version__: Final = "0.1.0"
CONTRACT_VERSION: Final = 1
"""Version of the wire contract (topics, payloads); raised only by an incompatible change."""
