"""Reports about a run: one HTML page, Markdown text or JSON object.

`content.build_report` evaluates a run and returns a `model.ReportContent`, typed values without any formatting.
`page.page` turns that into titled tables, figures, facts and notes (`blocks`), section by section (`sections`).
`render` writes the page as HTML or Markdown, and the content as JSON. Only drawing plots (`plots`) loads matplotlib.
"""
