"""What GPUs offer a program, by JAX's names of them."""

SHARED = {"A100": 163, "H100": 227, "H200": 227, "H800": 227, "B200": 227}  # KiB
ELSEWHERE = 99  # KiB, as on GPUs for desks


def shared_memory(kind: str) -> int:
    """Bytes of shared memory that one program may take. Source: CUDA C++ Programming Guide."""
    return next((kib for chip, kib in SHARED.items() if chip in kind), ELSEWHERE) * 1024
