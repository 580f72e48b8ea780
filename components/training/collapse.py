"""The error of a run that has collapsed, in a file of its own, since every stage names it and few train."""


class CollapseError(RuntimeError):
    """A run was told to stop if it collapses, and has collapsed."""
