"""Trainers and habits that the library is tried with, as integration tests, and the page made of their results."""
