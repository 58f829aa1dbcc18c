"""The peers, each run by an interpreter or a JVM of its own.

These files import the peer and the standard library alone: the environments that
:mod:`benchmarks.environments` makes hold nothing of trickle's. Each prints the same lines as the
other contestants do.
"""
