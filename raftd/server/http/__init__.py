"""The HTTP door: routes of our own on twisted.web's protocol."""
