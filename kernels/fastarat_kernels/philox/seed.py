"""Seeds for custom ops and kernels, whose integers are signed."""


def signed(seed: int) -> int:
    """The int64 of the same 64 bits as `seed`, in [0, 2^64): what the schema of an op can hold."""
    return seed - 2**64 if seed >= 2**63 else seed
