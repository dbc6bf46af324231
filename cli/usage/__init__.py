"""Which options a call may have.

Rules of every command, and the refusal of options that would have no effect.
"""
