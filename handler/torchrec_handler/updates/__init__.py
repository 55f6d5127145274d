"""Rows and dense weights that change while they are served: one generation after another.

A worker maps a live copy of the archive's tables, which lies in shared memory. One worker's thread
writes each delta of a folder into it, while no forward call runs, and whoever finds one half
written writes it again.
"""
