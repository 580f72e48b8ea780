"""Prefect flows over the DVC stages: Prefect says when a stage runs, DVC whether it has to, the stage what is done."""
