"""Which arguments a strategy class takes, for its configs and its names."""

import inspect
from inspect import Parameter
from typing import Any

from hsdlab.errors import UserError


def init_arguments(cls: type) -> dict[str, Any]:
    """Find the arguments of a class's ``__init__``.

    Args:
        cls: ``*args`` and ``**kwargs`` of its ``__init__`` stand for the arguments of the next ``__init__`` among its
            base classes.

    Returns:
        The default of each argument by name, in order; ``Parameter.empty`` for an argument without a default.

    Raises:
        UserError: No base class names the arguments that ``*args`` or ``**kwargs`` stand for.
    """
    found: dict[str, Any] = {}
    taken: list[Parameter] = []
    for base in cls.__mro__:
        if base is object or "__init__" not in vars(base):
            continue
        _, *parameters = inspect.signature(base.__init__).parameters.values()  # type: ignore[misc]
        taken = [each for each in parameters if each.kind in (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)]
        found |= {each.name: each.default for each in parameters if each not in taken and each.name not in found}
        if not taken:
            break
    if taken:
        raise UserError(
            f"{cls.__name__}.__init__ takes {' and '.join(map(str, taken))}, and no base class of it names what that "
            "may be; expected each argument by its own name, so that configs and names of the strategy contain it."
        )
    return found
