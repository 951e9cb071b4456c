"""Reports: what a run's folder tells, as one HTML page. Nothing of the folder is executed."""

from jscale.report.explained import explained_page
from jscale.report.read import Account, read_run
from jscale.report.write import report

__all__ = ["Account", "explained_page", "read_run", "report"]
