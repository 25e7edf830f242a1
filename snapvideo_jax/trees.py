"""Paths of parameters in their tree."""


def names(path: tuple) -> tuple[str, ...]:
    """Returns the names along a path, such as ("network", "blocks", "read", ..., "kernel")."""
    return tuple(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path)


def path_name(path: tuple) -> str:
    """Returns a path as text: "params/network/blocks/read/attention/q/kernel"."""
    return "/".join(names(path))
