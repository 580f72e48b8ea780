"""Prefect flows over the DVC stages: Prefect says when, DVC says whether a stage has to run, the stage says how."""
