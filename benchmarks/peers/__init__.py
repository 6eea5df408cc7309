"""Our service beside other job queues on PostgreSQL, in one call and on one server.

    python -m benchmarks.peers [--only graphile-worker,pg-boss] [--rounds 3] [--scale 0.1] [--cache DIR] [--out DIR]

Each comes from its registry, in a version that `catalog` pins, into an environment of its own; an adapter under `adapters/` drives
it through its public API at its best documented settings. Producers and worker are processes of their own, the job does nothing and
has a payload of 79 bytes. Each measure gets a database of its own; before a drain it is vacuumed, analysed and checkpointed.
"""
