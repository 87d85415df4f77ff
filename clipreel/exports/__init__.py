"""Hits as files for others: tables, edit lists, and the moments cut out of their videos.

`lists.listed(format, places)` gives the text of csv, json, edl and fcpxml; `cut.cut_all` writes MP4 files.
"""
