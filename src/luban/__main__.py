"""``python -m luban``: the command line."""

from luban.cli import main

main()
