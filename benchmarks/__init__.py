"""Benchmarks: trickle beside a bare loop over the client, on one real broker, in one run.

``nox -s bench`` runs them all; ``nox -s bench -- stateless --repetitions 5`` one of them. What is
compared, and how, is told in :mod:`benchmarks.compare`. Figures belong to the machine that they
were taken on: only the ratios within one run travel.
"""
