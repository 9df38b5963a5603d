"""The front door of a language model: requests passed on byte for byte, recorded beside, and answered where allowed."""

CLOSE_KEY = "stillhouse.close"
"""Key in a request's ASGI scope: a function that closes the connection after what was sent so far."""
RELAY_KEY = "stillhouse.relay"
"""Key in a request's ASGI scope: a function that says that its body is passed on as it arrives, however long it is."""
