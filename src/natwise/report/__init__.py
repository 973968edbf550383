"""Pages from results: `report.html` of the audit and the gallery of `natwise reproduce`."""
