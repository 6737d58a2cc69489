"""Optimizers: how a gradient becomes an update; one file per `type`."""
