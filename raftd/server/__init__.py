"""Twisted: protocols, factories and services around a `Node`. The only package with a reactor in it."""
