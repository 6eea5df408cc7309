"""Break a cluster of three nodes on purpose, by a seeded plan, and account for every job afterwards.

    python -m benchmarks.chaos --seed 1 --faults 100 --jobs 20000

`plan` says what breaks and when, `faults` breaks it (with `poison` and `garbage`), `machines` are the processes it is done to,
`load` submits and keeps what was answered, `handlers` run the jobs and write what really ran (`effects`), `checker` compares the
three, `recovery` and `report` tell.
"""
