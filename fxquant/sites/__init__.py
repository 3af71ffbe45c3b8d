"""Operators in a graph: the calls of them, what belongs to a call, and what a graph must hold."""
