"""One self-contained HTML file about one run or several: curves, answers before and after, a browser of the rollouts.

    from mmreason.report import write_report
    write_report([Path("outputs/demo")])          # outputs/demo/report.html

It reads what a run leaves in its output folder and knows nothing of how that was made. Importing it is light.
"""

from mmreason.report.data import Limits, RunData
from mmreason.report.page import write_report
from mmreason.report.run import read_run
from mmreason.report.watch import watch_report

__all__ = ["Limits", "RunData", "read_run", "watch_report", "write_report"]
