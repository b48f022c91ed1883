"""Ranks as Ray actors, on a private Ray or a given cluster: sessions, nodes, places, the launcher.

Ray places and watches ranks. It is not on the path of a step: ranks talk to the driver themselves.
"""
