"""The decision, pure: what both sides hold, what they last agreed on, what should change.

Values in, values out. Nothing here reads a clock, a network or a database, nothing logs, and
no vendor's word appears.
"""
