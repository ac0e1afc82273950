"""Subjects: one class a kind, with one calling convention for the checks."""
