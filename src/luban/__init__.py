"""Luban (鲁班): a workshop for large models. One recipe, one artefact, one function per verb.

Example:
    >>> import luban                                                        # doctest: +SKIP
    >>> result = luban.train("reviews.yaml")
    >>> luban.load(result["artefact"]).predict([{"review": "物流很快, 很满意"}])

Everything is imported when it is first used: ``import luban`` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from luban._version import __version__
from luban.imports import uncollected

if TYPE_CHECKING:
    from luban.predict import load
    from luban.recipe import schema
    from luban.verbs.audit import audit
    from luban.verbs.check import check
    from luban.verbs.compare import compare
    from luban.verbs.doctor import doctor
    from luban.verbs.evaluate import evaluate
    from luban.verbs.explain import explain
    from luban.verbs.export import export
    from luban.verbs.import_ import import_model
    from luban.verbs.init import init
    from luban.verbs.report import report
    from luban.verbs.train import train

__all__ = [
    "__version__",
    "audit",
    "check",
    "compare",
    "doctor",
    "evaluate",
    "explain",
    "export",
    "import_model",
    "init",
    "load",
    "report",
    "schema",
    "train",
]

_HOMES = {
    "audit": "luban.verbs.audit",
    "check": "luban.verbs.check",
    "compare": "luban.verbs.compare",
    "doctor": "luban.verbs.doctor",
    "evaluate": "luban.verbs.evaluate",
    "explain": "luban.verbs.explain",
    "export": "luban.verbs.export",
    "import_model": "luban.verbs.import_",
    "init": "luban.verbs.init",
    "load": "luban.predict",
    "report": "luban.verbs.report",
    "schema": "luban.recipe",
    "train": "luban.verbs.train",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        # A verb's module shares its name: importing it sets the attribute to the module, so the function is put in its place.
        with uncollected():
            value = getattr(import_module(_HOMES[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'luban' has no attribute '{name}'")
