"""What kind of image a base64 text holds: the other protocols want to be told, and Ollama's does not say."""

_STARTS = {"iVBORw0KGgo": "image/png", "/9j/": "image/jpeg", "R0lGOD": "image/gif", "UklGR": "image/webp"}


def media_type(image: str) -> str:
    """Return the media type by the first bytes; what is none of the four that models read is called a JPEG."""
    return next((kind for start, kind in _STARTS.items() if image.startswith(start)), "image/jpeg")
