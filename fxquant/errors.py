"""Every error a user can meet. Each says what is wrong, where, and what to do next."""

from __future__ import annotations


class FxQuantError(Exception):
    """The base of every error that fxquant raises on purpose."""


class ConfigError(FxQuantError, ValueError):
    """A setting that cannot be right, or an override that matches nothing."""


class DataError(ConfigError):
    """A batch of data that cannot be used, or none at all."""


class CaptureError(FxQuantError):
    """The model's forward could not be written down as a graph."""


class UnsupportedOperatorError(FxQuantError):
    """An operator has no integer form and was not kept in float."""


class RecipeError(FxQuantError):
    """Passes in an order that cannot work."""


class ShapeError(FxQuantError, ValueError):
    """Inputs of other shapes than those for which a graph was captured."""


class StageError(FxQuantError):
    """A graph that has not travelled as far as the call needs, or too far."""


class VerifyError(FxQuantError):
    """A graph holds something that its stage does not allow: a pass is broken."""


class UncalibratedError(FxQuantError):
    """Ranges are missing: the prepared model has not seen any data."""


class NonFiniteError(FxQuantError):
    """A parameter is NaN or infinite."""


class AccumulatorError(FxQuantError):
    """A sum that could leave the bits of its accumulator."""


class ExportError(FxQuantError):
    """A network, or an operator of it, that a format cannot hold."""


class FileError(FxQuantError):
    """A file that is damaged, foreign or too new, or a network that no file can hold."""


class WriteError(FxQuantError, OSError):
    """A file that could not be written; what was there before is as it was."""


class MissingExtraError(FxQuantError, ImportError):
    """A feature needs a package that is an optional extra of fxquant."""
