"""The checker: an independent program that breaks workers on a real Kafka and judges what is left.

``python -m tests.faults --help`` runs it; docs/reliability.md says what it proves. But for
:mod:`.app`, which the workers run, nothing here imports trickle: workload, faults and judgement
rest on confluent-kafka, lmdb and the operating system alone, so that they share no mistake with
what they judge.

The order of the modules is that of a run: :mod:`.workload` makes records whose keys carry their
oracle, :mod:`.plan` draws the faults from a seed, :mod:`.cluster` starts a broker behind the
:mod:`.proxy`, :mod:`.workers` starts, kills and stalls processes, :mod:`.drive` carries the plan
out, :mod:`.watch` sees how long outputs are silent, :mod:`.topics` and :mod:`.stores` read what has
become of it, :mod:`.judge` compares it. :mod:`.planted` checks the checker: it breaks the app's
engine on purpose.
"""
