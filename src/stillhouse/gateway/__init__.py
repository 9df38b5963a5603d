"""The front door of a language model: requests passed on byte for byte, recorded beside, and answered where allowed."""

CLOSE_KEY = "stillhouse.close"
"""Key in a request's ASGI scope: a function that closes the connection after what was sent so far."""
