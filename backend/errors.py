"""The one kind of error whose text a visitor reads."""


class UserError(Exception):
    """Something the person can change: one sentence on what is wrong and one on what to do.

    Args:
        message: What is wrong, one sentence.
        hint: What to do about it, one sentence.
    """

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        """Return both sentences."""
        return f"{self.message} {self.hint}".strip()
