"""Errors a user can mend.

Every message says what was wrong (naming the file), what was expected and what to do. The command line prints the
message alone and exits with the class's `exit_code`; a traceback is left for our own mistakes.
"""


class MedShiftError(Exception):
    """Base class of every error that is the input's, not the program's."""

    exit_code = 1


class ParameterError(MedShiftError, ValueError):
    """An argument is out of its range, misspelt or of the wrong type."""

    exit_code = 2


class DataError(MedShiftError):
    """A file or folder given as input is missing, damaged or not what was expected."""

    exit_code = 3


class CheckpointError(MedShiftError):
    """A checkpoint cannot be written, is damaged, or belongs to another architecture or codec."""

    exit_code = 3


class TrainingError(MedShiftError):
    """Training cannot go on, for example because the loss is no longer finite."""

    exit_code = 4
