"""Hits as files for others: tables, edit lists, and the moments cut out of their videos."""
