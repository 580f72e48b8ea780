"""Commands that are no DVC stage: `check`, `settings`, and the program `selfsight` over the stages."""
