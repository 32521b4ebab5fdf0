"""The listeners, over transports in memory: send this, expect that. They run under trial too."""
