"""A run, or several beside one another, as one page that needs nothing else: `report.write_report`."""
