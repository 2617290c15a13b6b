"""Orchestration: the order of a night, where its stages run, and the command line."""
