"""Evaluations as commands run them: texts, references, tasks, conversations."""
