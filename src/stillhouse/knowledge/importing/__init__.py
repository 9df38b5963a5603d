"""Import of existing logs: files become observations, decisions and outcomes, each row once.

A file is read in chunks. Every chunk is appended under a batch name made of the file's content, the mapping and the
chunk's number, so that a repeated import does not write it again. Rows whose observation is in the knowledge base
already, from any source, are recognised by their ids. Unusable rows go to quarantine with file and line; the others are
imported.
"""

from stillhouse.knowledge.importing.run import ImportSummary, Preview, Skipped, import_files, preview
from stillhouse.knowledge.importing.source import ImportSource, RowProblem

__all__ = ["ImportSource", "ImportSummary", "Preview", "RowProblem", "Skipped", "import_files", "preview"]
