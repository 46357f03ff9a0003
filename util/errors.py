"""The one exception that speaks to a user instead of a programmer."""


class UserError(Exception):
    """A mistake that the user can correct.

    The message is one clear line that names the file, id or flag concerned and says what to do. Command
    lines print it on stderr without a traceback and end with exit status 2.
    """

    def one_line(self) -> str:
        """The message alone, without the traceback that torch's data loader puts around a worker's error."""
        text = str(self).strip()
        return text.splitlines()[-1].split("UserError: ", 1)[-1] if text.startswith("Caught ") else text
