"""Bytes and messages: byte by byte, at every split, over every limit."""
