"""Whether an error only says that another process of the job is gone."""

SIGNS = (
    "Gloo",
    "closed by peer",
    "reset by peer",
    "remote process exited",
    "tasks are unhealthy",
    "coordination service",
    "CoordinationService",
)


def is_lost_peer(error: BaseException | None) -> bool:
    """Whether the error is what JAX raises in a collective, or at a barrier, without a peer.

    It has no class for this: on processors the error is a plain ValueError.
    """
    return isinstance(error, ValueError | RuntimeError) and any(s in str(error) for s in SIGNS)
