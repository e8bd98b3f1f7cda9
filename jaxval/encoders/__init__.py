"""Encoders: adapters for modules and functions, the user's factories, and model families.

The package imports nothing itself, so importing one of its modules does not load the others.
"""
