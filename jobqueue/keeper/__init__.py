"""The keeper of a node: a small process that looks after the node's lease while the node cannot.

The node starts it (`engine.keeping`) and writes into shared memory that its loop runs, and which jobs it runs (`node_state`). The
keeper looks there once a second, and does nothing else as long as the loop runs. When the loop is late, the keeper renews the
lease, reports the job that holds up the node, and hands the node's jobs back when that lasts too long (`watch`). When the node's
process has died, the keeper ends its lease at once.

Nothing here may import more than the standard library at the top of a module: a keeper that only waits takes 10 MiB.
"""
