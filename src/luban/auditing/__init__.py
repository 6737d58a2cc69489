"""Audits: what may be wrong with an artefact, or with the data behind it. One audit a file."""
