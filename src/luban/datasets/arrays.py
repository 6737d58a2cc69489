"""A pickle that may hold a numpy array and nothing else."""

from __future__ import annotations

import io
import pickle
from typing import TYPE_CHECKING, Any

from luban.errors import DataError

if TYPE_CHECKING:
    import numpy as np

__all__ = ["unpickle_array"]

# All that a pickled array refers to. numpy 1 wrote `numpy.core`, numpy 2 writes `numpy._core`.
_ADMITTED = {
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
}

# What the opcodes of a damaged pickle raise.
_DAMAGE = (
    pickle.UnpicklingError, ArithmeticError, AttributeError, EOFError, LookupError, MemoryError, TypeError,
    ValueError,
)  # fmt: skip


class _ArrayUnpickler(pickle.Unpickler):
    """Unpickler whose only globals are those of a numpy array, so the bytes cannot call anything else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ADMITTED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        import numpy as np

        # numpy renamed its private module; an array's own __reduce__ leads to the function in both.
        return np.empty(0).__reduce__()[0] if name == "_reconstruct" else getattr(np, name)


def unpickle_array(blob: bytes, *, at: str) -> np.ndarray[Any, Any]:
    """Return the array in a pickle, or refuse.

    Args:
        blob: the pickle.
        at: the place to name in an error.

    Raises:
        DataError: the pickle is damaged, or holds anything but one array of numbers or fixed-width text.

    Example:
        >>> unpickle_array(pickle.dumps(np.arange(3)), at="a.pkl")  # doctest: +SKIP
        array([0, 1, 2])
    """
    import numpy as np

    try:
        value = _ArrayUnpickler(io.BytesIO(blob)).load()
    except _DAMAGE as error:
        raise DataError(f"the pickle is refused ({error}); only a numpy array is admitted", at=at) from error
    if not isinstance(value, np.ndarray) or value.dtype.hasobject:
        kind = f"an array of {value.dtype}" if isinstance(value, np.ndarray) else type(value).__name__
        raise DataError(f"the pickle holds {kind}; only a numpy array of numbers is admitted", at=at)
    return value
