"""The queue: the only place where the states of runs and attempts change.

Every function takes a transaction (:class:`~shunter_work_pools.storage.store.Tx`) and does one thing in
it: submit, claim, sync, report, release, cancel, retry, reap. What others wait for is noted in
``tx.changes`` and told after the commit.
"""
