"""Find the errors inside exception groups. Trio wraps each error that leaves a nursery in a group."""

from __future__ import annotations

from collections.abc import Iterator


def leaves(error: BaseException) -> Iterator[BaseException]:
    """Yield the errors inside nested groups, in their order. An error that is not a group is its only leaf."""
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from leaves(inner)
    else:
        yield error


def unwrapped(error: BaseException) -> BaseException:
    """Remove the groups around a single error. Return a group of several errors as it is."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error
