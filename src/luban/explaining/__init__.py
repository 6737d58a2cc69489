"""Why a model says what it says: one algorithm a file, registry section `explainers`; see `luban.explaining._base`.

A file whose name begins with an underscore holds shared code and is no explainer.
"""
