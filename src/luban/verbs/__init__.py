"""The verbs: each reads and writes artefacts, and is what the command line and the Python API call."""
