"""Decoders against bytes that nobody should send: a corpus of real traffic, changed at random from a seed."""
