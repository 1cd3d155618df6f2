"""What is wrong with a user's input, in one line."""


class InputError(Exception):
    """Bad input: what it is, why it can't be used, and what to do.

    Args:
        subject: the file, folder or option.
        cause: what is wrong with it, without a closing full stop.
        remedy: what to do about it, a sentence.
    """

    def __init__(self, subject, cause, remedy):
        super().__init__(subject, cause, remedy)
        self.subject, self.cause, self.remedy = str(subject), cause, remedy

    def __str__(self):
        return f"{self.subject}: {self.cause}. {self.remedy}".replace("\n", " ")


class InputErrors(Exception):  # noqa: N818 - it is several of them
    """Several `InputError`s, reported together.

    Args:
        errors: at least one InputError.
        results: what was done in spite of them.
    """

    def __init__(self, errors, results=()):
        super().__init__(*errors)
        self.results = results
        # a folder that can't be written is one mistake, however many files were to go there
        self.errors = list({str(error): error for error in errors}.values())

    def __str__(self):
        return "\n".join(map(str, self.errors))
