"""Bytes and spans of time as people read them."""


def readable(count: int) -> str:
    """A number of bytes in the fitting binary unit.

    >>> readable(1536), readable(7), readable(3 << 30)
    ('1.5 KiB', '7 B', '3.0 GiB')
    """
    size, units = float(count), iter(("B", "KiB", "MiB", "GiB", "TiB"))
    unit = next(units)
    for larger in units:
        if size < 1024:
            break
        size, unit = size / 1024, larger
    return f"{count} B" if unit == "B" else f"{size:.1f} {unit}"


def age(seconds: float) -> str:
    """A span of time in its largest whole unit.

    >>> age(59.0), age(7200.0), age(2e5)
    ('59 s', '2 h', '2 d')
    """
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{int(seconds // size)} {unit}"
    return f"{int(seconds)} s"
