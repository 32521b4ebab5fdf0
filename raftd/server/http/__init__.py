"""The HTTP listener: routes of our own on twisted.web's protocol."""
