"""The one error a user can cause, phrased as one clear sentence; and the warning about what they should know."""

from __future__ import annotations


class InputError(ValueError):
    """A file, array or option that polysense cannot use.

    Args:
        source: What was given: a path, or a short description of an in-memory object.
        problem: What is wrong, lower case, no full stop ("the file is truncated").
        fix: What the user can do about it, imperative, no full stop ("export it again as PNG").
    """

    def __init__(self, source: object, problem: str, fix: str) -> None:
        self.source, self.problem, self.fix = str(source), problem, fix
        super().__init__(f"{source}: {problem}; {fix}.")

    def __reduce__(self) -> tuple[type, tuple[str, str, str]]:
        # Loader workers send exceptions through pickle; the default would replay the joined message.
        return type(self), (self.source, self.problem, self.fix)


class InputWarning(UserWarning):
    """Something about what was given that its user should know, though it can be used; the command line shows it."""
