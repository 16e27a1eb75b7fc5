"""Logs of others as data sets here: one file for each format, and what they share."""

from sorl.data.importing.work import Imported, import_files

__all__ = ["Imported", "import_files"]
