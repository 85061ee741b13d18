"""Export of a trained student to other runtimes: one module per format."""

from crossdistill.export.export import ExportedFile, export_file
from crossdistill.export.formats import FORMATS, Format, export_student

__all__ = ["FORMATS", "ExportedFile", "Format", "export_file", "export_student"]
