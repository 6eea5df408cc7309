"""The keeper: a small separate process that keeps a node's lease while the node cannot.

The node starts the keeper (`engine.keeping`). The node records in shared memory (`node_state`) that
its loop runs, and which jobs run. The keeper reads this memory once per second, and does nothing
else while the loop runs.

If the loop is late, the keeper renews the lease and reports the job that blocks the node. If the
loop stays late for too long, the keeper hands the node's jobs back (`watch`). If the node's process
dies, the keeper ends the node's lease at once.

Modules in this package must import only the standard library at the top, so that an idle keeper uses
only 10 MiB.
"""
