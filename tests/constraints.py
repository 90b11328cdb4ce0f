"""Print the lock as constraints that leave the build of torch alone where one is installed: python tests/constraints.py requirements.lock"""
import re
import sys
from importlib import metadata
from pathlib import Path

PARTS_OF_TORCH = re.compile(r"(torch|triton|nvidia-[\w-]+|cuda-[\w-]+)==")


def constraints(lock: str, torch: str | None) -> list:
    """Keep the lock as it is or, around an installed torch, without the lines that would replace it."""
    lines = lock.splitlines()
    return lines if torch is None else [line for line in lines if not PARTS_OF_TORCH.match(line)] + [f"torch=={torch}"]


def installed(name: str) -> str | None:
    """Return the version that this Python has."""
    try: return metadata.version(name)
    except metadata.PackageNotFoundError: return None


if __name__ == "__main__": print("\n".join(constraints(Path(sys.argv[1]).read_text(), installed("torch"))))
