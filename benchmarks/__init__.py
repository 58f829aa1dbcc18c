"""Benchmarks: trickle beside the bare client and its peers, on one real broker, in one run.

``nox -s bench`` runs all; ``nox -s bench -- count --contestants trickle --repetitions 5`` one
workload with one contestant (and the bare client, which the others are compared with). What is
compared is told in :mod:`benchmarks.contestants`, how in :mod:`benchmarks.compare`. Figures belong
to the machine that they were taken on: only the ratios within one run travel.
"""
