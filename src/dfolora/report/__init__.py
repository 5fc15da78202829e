"""Reports: from the store's runs to tables, figures and pages; needs no model and no torch."""

from dfolora.report.cells import Cell
from dfolora.report.grid import Grid
from dfolora.report.published import Published, comparison
from dfolora.report.spec import Groups, Measure, Picture, Row, TableSpec
from dfolora.report.tables import Table, build_table

__all__ = [
    "Cell",
    "Grid",
    "Groups",
    "Measure",
    "Picture",
    "Published",
    "Row",
    "Table",
    "TableSpec",
    "build_table",
    "comparison",
]
