"""The simulator: that it finds what is wrong, and that what it runs is right."""
