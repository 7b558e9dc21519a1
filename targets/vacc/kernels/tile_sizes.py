"""How many rows of something fit."""


def fitting(total: int, *, bytes_each: int, available: int, multiple: int) -> int:
    """The most of `total` that fit `available` bytes, a multiple of `multiple` unless it is all.

    Returns:
        At least 1, though it may not fit: the emulator says so then.
    """
    count = available // max(bytes_each, 1)
    if count >= total:
        return total
    return max(count - count % multiple, min(multiple, count), 1)
