"""The report: what is known of an artefact, as one page that anybody can read."""
