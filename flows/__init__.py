"""Prefect says when. Whether anything needs to run is DVC's business, and how is the stages'."""
