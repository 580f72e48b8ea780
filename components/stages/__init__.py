"""One file a stage of dvc.yaml: read its section, build, call, save."""
