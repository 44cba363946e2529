"""What is wrong with a request, told in one sentence."""


class InputError(ValueError):
    """A setting, a file or an argument that does not fit; the message says what would."""
