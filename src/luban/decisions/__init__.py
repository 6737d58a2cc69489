"""Decisions: what is fitted on validation rows after training, one a file."""
