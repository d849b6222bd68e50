"""Pictures that the tests compute themselves (crates/picture/tests/common/mod.rs)."""

import numpy as np


def synthetic(kind, width, height):
    """`[height, width, 3]` u8 of kind noise, ramp or blocks."""
    y, x, c = np.meshgrid(np.arange(height), np.arange(width), np.arange(3), indexing="ij")
    if kind == "ramp":
        values = x * 7 + y * 13 + c * 85
    elif kind == "blocks":
        values = ((x // 3 + y // 5 + c) % 2) * 255
    else:
        index = ((y * width + x) * 3 + c).astype(np.uint64)
        mixed = (index * 2654435761 + 12345) & 0xFFFFFFFF
        mixed ^= mixed >> 15
        mixed = (mixed * 2246822519) & 0xFFFFFFFF
        values = mixed >> 24
    return (values & 255).astype(np.uint8)
