"""What the launcher overrides and uses of torch's elastic launcher without torch promising it, in one place.

`tests/training/launching/test_torch_private.py` looks whether it is all there. Read the new version's sources beside
`agent` and `meeting` before LATEST is raised.
"""

OLDEST, LATEST = "2.11", "2.13"
"""versions of torch whose sources have all of it; the tests of processes and machines ran with the latest"""

OVERRIDDEN = {
    "torch.distributed.elastic.agent.server.local_elastic_agent.LocalElasticAgent": (
        *("_invoke_run", "_monitor_workers", "_exit_barrier", "_restart_workers", "_stop_workers", "_start_workers"),
        "_shutdown",
    ),
    "torch.distributed.elastic.rendezvous.dynamic_rendezvous.DynamicRendezvousHandler": (
        *("_get_world", "next_rendezvous", "num_nodes_waiting"),
    ),
}
"""methods, by class"""
USED = {
    "torch.distributed.elastic.agent.server.local_elastic_agent.LocalElasticAgent": (
        *("_pcontext", "_remaining_restarts", "_store", "_worker_group"),
    ),
    "torch.distributed.elastic.rendezvous.dynamic_rendezvous.DynamicRendezvousHandler": (
        *("_get_deadline", "_heartbeat_lock", "_op_executor", "_state_holder", "_stop_heartbeats", "_store"),
        "_this_node",
    ),
}
"""methods and attributes, by class"""
NAMES = {
    "torch.distributed.elastic.rendezvous.dynamic_rendezvous": ("_NodeDesc", "_RendezvousExitOp"),
}
"""classes, by module"""
