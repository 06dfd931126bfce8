"""Measures the signals of one live run that the controller's `needs` name, and no others."""
