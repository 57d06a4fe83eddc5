"""The one kind of error whose text a visitor reads."""


class UserError(Exception):
    """Something the person can change: one sentence on what is wrong, and one (the hint) on what to do."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".strip()
