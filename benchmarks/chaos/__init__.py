"""Cause faults in a cluster of three nodes, by a seeded plan, and account for every job afterwards.

    python -m benchmarks.chaos --seed 1 --faults 100 --jobs 20000

- `plan` draws the faults and their times.
- `faults` (with `poison` and `garbage`) inflicts them on the processes in `machines`.
- `load` submits jobs and records the responses.
- `handlers` run the jobs; `effects` records each run.
- `checker` compares responses, database and records.
- `recovery` and `report` compute and print the results.
"""
