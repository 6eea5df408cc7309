"""Compare jobqueue with other job queues on PostgreSQL, in one call and on one server.

    python -m benchmarks.peers [--only graphile-worker,pg-boss] [--rounds 3] [--scale 0.1] [--cache DIR] [--out DIR]

Each peer is installed from its registry into its own environment, in the version that `catalog` pins. An adapter in `adapters/`
uses its public API with the best documented settings. Producers and worker are separate processes. The job does nothing and has a
payload of 79 bytes. Each measure gets its own database. Before a drain, VACUUM, ANALYZE and CHECKPOINT run.
"""
