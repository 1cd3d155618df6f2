"""Errors in the user's input, each reported in one line."""

from collections.abc import Sequence
from typing import Any

from vnet_fast.text_table import printable


class InputError(Exception):
    """Bad input: the file or option, what is wrong with it, and how to mend it.

    Args:
        subject: the file, folder, option or device.
        cause: what is wrong with it, without a closing full stop.
        remedy: what to do about it, a sentence.
    """

    def __init__(self, subject: object, cause: str, remedy: str) -> None:
        super().__init__(subject, cause, remedy)
        self.subject, self.cause, self.remedy = str(subject), cause, remedy

    def __str__(self) -> str:
        # a name may hold anything, and a library's message several lines
        text = f"{self.cause}. {self.remedy}".replace("\n", " ")
        return printable(f"{self.subject}: {text}")


class InputErrors(Exception):  # noqa: N818 - it holds several of them
    """Several `InputError`s that are reported together.

    Args:
        errors: at least one InputError.
        results: what could be done in spite of them.
    """

    def __init__(self, errors: Sequence[InputError], results: Sequence[Any] = ()) -> None:
        super().__init__(*errors)
        self.results = results
        # a folder that can't be written is one mistake, however many files should go there
        self.errors = list({str(error): error for error in errors}.values())

    def __str__(self) -> str:
        return "\n".join(map(str, self.errors))
