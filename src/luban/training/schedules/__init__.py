"""Schedules: how the learning rate moves during training; one file per `type`."""
