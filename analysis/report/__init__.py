"""RUN/report.html: one file that says which arm wins, by how much, and what that rests on. Opens without a network."""

from analysis.report.page import write, write_while_it_grows

__all__ = ["write", "write_while_it_grows"]
