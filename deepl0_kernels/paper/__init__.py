"""The paper's experiments, each run from one command into a folder: record, figures, tables."""
