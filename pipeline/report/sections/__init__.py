"""The sections of the page: each function turns the content of a report into the parts of one section.

It yields nothing if there is nothing to report; then `pipeline.report.page` leaves the section out.
"""
